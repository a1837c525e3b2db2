"""Stages in the thread that logs: what is left to fapilog's queue, and from where on."""

from __future__ import annotations

from enum import Enum
from typing import Any

import pytest

from cwsink.frontends.inline import stages
from cwsink.frontends.inline.harmless import harmless
from cwsink.frontends.inline.stages import REDACTORS, Stages, TooDeep


class Redactor:
    """Taken for one of fapilog's own, several of which share a copy. Raises one error after the other."""

    __module__ = "fapilog.plugins.redactors.ours"

    def __init__(self, *errors: type[Exception] | None) -> None:
        self.errors = list(errors)

    async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        if (error := self.errors.pop(0)) is not None:
            raise error
        event["seen"] += 1
        return event


def test_redactors_that_run_again_may_lack_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue goes on from the one that lacks it, with what those before it have made."""
    monkeypatch.setattr(stages, "_FRAMES_OF_QUEUE", 0)
    redactors = [Redactor(None, None), Redactor(None, RecursionError), Redactor(ValueError)]
    with pytest.raises(TooDeep) as found:
        Stages([], [], redactors, None).redact({"seen": 0})
    assert (found.value.stage, found.value.at, found.value.entry) == (REDACTORS, 1, {"seen": 1})
    assert found.value.plugin is redactors[1]


def test_no_text_takes_the_place_of_a_record() -> None:
    """Where the stack ends, a record that must be made plain is either plain or left to another thread."""

    class Colour(Enum):
        RED = "red"

    seen = []

    def recurse() -> None:
        try:
            seen.append(harmless({"colour": Colour.RED}))
        except RecursionError:
            seen.append({})
        recurse()

    with pytest.raises(RecursionError):
        recurse()
    assert {type(each) for each in seen} == {dict}
    assert {} in seen
