"""A finding: what a question has seen, and what to do about it (pure)."""

from __future__ import annotations

from typing import Literal

import msgspec

# "unknown": it cannot be told from here. Only "wrong" is an error.
Verdict = Literal["ok", "warning", "wrong", "unknown"]


class Finding(msgspec.Struct, frozen=True):
    """One line.

    Attributes:
        topic: what was asked, in a word or two.
        verdict: the answer.
        seen: what was seen.
        advice: what to type or to change; "" if there is nothing to do.
    """

    topic: str
    verdict: Verdict
    seen: str
    advice: str = ""


def ok(topic: str, seen: str) -> Finding:
    """Return a finding that asks for nothing."""
    return Finding(topic, "ok", seen)


def warning(topic: str, seen: str, advice: str = "") -> Finding:
    """Return a finding that may be as it is meant to be."""
    return Finding(topic, "warning", seen, advice)


def wrong(topic: str, seen: str, advice: str = "") -> Finding:
    """Return a finding that keeps records from arriving, or will."""
    return Finding(topic, "wrong", seen, advice)


def unknown(topic: str, seen: str, advice: str = "") -> Finding:
    """Return a finding about what cannot be told."""
    return Finding(topic, "unknown", seen, advice)
