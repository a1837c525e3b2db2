"""Decides which dead letters `cwsink replay --dead-letters` sends again, with what time and message (pure).

CloudWatch would refuse most of them for the same reason again. So each reason has its condition. A letter that was
refused for its time can be sent with the present time, with its own time inside the message.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection
from typing import TYPE_CHECKING, Final, NamedTuple

from cwsink import naming
from cwsink.flusher import oversize
from cwsink.flusher.chunk import message_bytes
from cwsink.limits import MAX_FUTURE_MS, MAX_PAST_MS

if TYPE_CHECKING:
    from cwsink.flusher.dead_letter import DeadLetter

# CloudWatch will refuse these again with their own time. What was too new may be in time by now.
_STAYS_TOO_OLD: Final = frozenset(("too_old", "expired"))
# CloudWatch refused these for their time, so another time may help.
_REFUSED_FOR_TIME: Final = frozenset(("too_old", "too_new", "expired"))

_NOT_ASKED_FOR: Final = "not asked for"
_UNKNOWN: Final = "this cwsink does not know this reason"
_NEEDS_RESTAMP: Final = "CloudWatch takes them only with --restamp"
_TOO_LONG: Final = "still longer than {:,} bytes; sent all the same with --reason oversize"
_TOO_LONG_RESTAMPED: Final = "longer than {:,} bytes with their own time inside"


def options_for(reasons: Collection[str]) -> str:
    """Return the options of `cwsink replay --dead-letters` without which letters of these reasons stay where they are.

    Each one has a space before it. Letters that are too long are sent if they alone are asked for (`Rules.judge`).
    """
    restamp = " --restamp" if _STAYS_TOO_OLD & set(reasons) else ""
    return restamp + (" --reason oversize" if set(reasons) == {"oversize"} else "")


class Resend(NamedTuple):
    """A letter gets a second chance, with this time and message."""

    timestamp_ms: int
    message: str


class Skip(NamedTuple):
    """A letter gets no second chance now, and why."""

    why: str


class Rules(NamedTuple):
    """Which letters get a second chance.

    Attributes:
        replayable: the reasons of letters that may have a second chance at all.
        reasons: the reasons that the operator named; None for all.
        restamp: whether to send letters that CloudWatch does not take with their own time, with the present time.
        max_event_bytes: the longest message that CloudWatch takes.
    """

    replayable: Collection[str]
    reasons: Collection[str] | None
    restamp: bool
    max_event_bytes: int

    def judge(self, letter: DeadLetter, now_ms: int) -> Resend | Skip:
        """Decide about one letter."""
        if letter.reason not in self.replayable:
            return Skip(_UNKNOWN)
        if self.reasons is not None and letter.reason not in self.reasons:
            return Skip(_NOT_ASKED_FOR)
        fits = message_bytes(letter.message) <= self.max_event_bytes
        if letter.reason == "oversize" and self.reasons is None and not fits:
            return Skip(_TOO_LONG.format(self.max_event_bytes))
        in_time = now_ms - MAX_PAST_MS < letter.timestamp_ms < now_ms + MAX_FUTURE_MS
        if self.restamp and (letter.reason in _REFUSED_FOR_TIME or not in_time):
            message = restamped(letter.message, letter.timestamp_ms)
            if fits and message_bytes(message) > self.max_event_bytes:
                return Skip(_TOO_LONG_RESTAMPED.format(self.max_event_bytes))
            return Resend(now_ms, message)
        return Skip(_NEEDS_RESTAMP) if letter.reason == "too_old" else Resend(letter.timestamp_ms, letter.message)


def restamped(message: str, timestamp_ms: int) -> str:
    """Return `message` with its original time: in a JSON object under "_cwsink", else in brackets before the text."""
    moment = naming.rfc3339(timestamp_ms)
    note: dict[str, object] = {"original_timestamp_ms": timestamp_ms, "original_time": moment}
    body = message.strip()
    try:
        content = json.loads(message)
    except json.JSONDecodeError:
        content = None
    except (ValueError, RecursionError):  # it is JSON that Python cannot read: a number too long, or nested too deep
        content = {"?": None} if body.startswith("{") and body.endswith("}") else None
    if not isinstance(content, dict):
        return f"[{moment}] {message}"
    if "_cwsink" in content:
        had = content["_cwsink"]
        # A message that was replayed before keeps the original time of its first replay.
        note = {**note, **had} if isinstance(had, dict) else {**note, "value": had}
        with contextlib.suppress(ValueError, RecursionError):  # Python does not write a number too large for a double
            return oversize.dump({**content, "_cwsink": note}).decode()
    # What the application wrote must stay the same to the byte. So the note is put in as text.
    return f"{body[:-1]}{',' if content else ''}{oversize.dump({'_cwsink': note}).decode()[1:]}"
