"""What stderr is told of losses, and when: a table of situations, without files."""

from __future__ import annotations

import pytest

from cwsink.spool.alerts import AGAIN_SECONDS, Seen, decide
from cwsink.spool.room import Room
from cwsink.spool.told import Told

NOW = 1_700_000_000.0
LOST_BEFORE = Told(lost={"evicted": 10}, trouble="losing", at=NOW - 5, since=NOW - 65, until=NOW - 5)


def seen(lost: int = 0, used: int = 0, *, free: int | None = None, dead: int = 0, has_pending: bool = True) -> Seen:
    return Seen({"evicted": lost} if lost else {}, {"poison": dead} if dead else {}, Room(used, 100, free), has_pending)


@pytest.mark.parametrize(
    ("said", "found", "is_last", "says"),
    [
        (Told(), seen(), False, ()),
        (Told(), seen(used=79), False, ()),
        (Told(), seen(used=80), False, ("filling",)),
        (Told(), seen(used=80, has_pending=False), False, ()),
        (Told(), seen(used=9, free=1), False, ("filling",)),
        (Told(trouble="filling", at=NOW - 59), seen(used=90), False, ()),
        (Told(trouble="filling", at=NOW - 60), seen(used=90), False, ("filling",)),
        (Told(trouble="filling", at=NOW + 3600), seen(used=90), False, ("filling",)),
        (Told(trouble="filling", at=NOW - 1), seen(used=75), False, ()),
        (Told(trouble="filling", at=NOW - 1), seen(used=60), False, ("emptied",)),
        (Told(trouble="filling", at=NOW - 1), seen(used=90, has_pending=False), False, ("emptied",)),
        (Told(at=NOW - 59), seen(used=90), False, ()),
        (Told(at=NOW - 60), seen(used=90), False, ("filling",)),
        (Told(at=NOW + 3600), seen(used=90), False, ("filling",)),
        (Told(at=NOW - 1), seen(used=60), False, ()),
        (Told(trouble="filling", at=NOW - 1), seen(1, used=90), False, ("losing",)),
        (Told(), seen(1), False, ("losing",)),
        (Told(), seen(1, used=100, has_pending=False), False, ("losing",)),
        (LOST_BEFORE, seen(20, used=100), False, ()),
        (LOST_BEFORE, seen(20, used=100), True, ("losing",)),
        (LOST_BEFORE, seen(10, used=100), True, ()),
    ],
)
def test_what_is_said(said: Told, found: Seen, is_last: bool, says: tuple[str, ...]) -> None:
    """Each trouble at once when it begins, again after a minute, and when it ends; at an end, what was not said yet."""
    assert decide(said, found, NOW, is_last=is_last).says == says


def test_bursts_without_end_are_said_once_a_minute() -> None:
    """A spool that is nearly full every other second, for ten minutes, and then no more."""
    said, lines = Told(), list[str]()
    for second in range(600):
        verdict = decide(said, seen(used=90 if second % 2 == 0 else 10), NOW + second)
        said, lines = verdict.told, [*lines, *verdict.says]
        assert second % 2 == 0 or lines[-1] == "emptied", "the last line is true"
    assert lines == ["filling", "emptied"] * 10


def test_a_minute_later_the_difference_is_said() -> None:
    """How many since the last line, and since when it goes on; it is over when nothing is lost, and there is room."""
    later = NOW - 5 + AGAIN_SECONDS
    verdict = decide(LOST_BEFORE, seen(25, used=100), later)
    assert (verdict.says, verdict.more) == (("losing",), {"evicted": 15})
    assert (verdict.told.since, verdict.told.until) == (NOW - 65, later)
    assert decide(verdict.told, seen(25, used=100), later + AGAIN_SECONDS).says == (), "it is full as before"
    over = decide(verdict.told, seen(25, used=10), later + AGAIN_SECONDS)
    assert (over.says, over.told.trouble, over.told.since) == (("over",), "", NOW - 65)


def test_the_end_of_dead_letters_is_said_once() -> None:
    """A minute after the last one. Each new one begins the minute anew."""
    first = decide(Told(), seen(dead=3), NOW)
    assert (first.says, first.told.dead_at) == ((), NOW)
    second = decide(first.told, seen(dead=4), NOW + 50)
    third = decide(second.told, seen(dead=4), NOW + 70)
    fourth = decide(third.told, seen(dead=4), NOW + 110)
    assert (third.says, fourth.says) == ((), ("no more dead",))
    assert decide(fourth.told, seen(dead=4), NOW + 999).says == ()


def test_counts_that_fall_are_no_loss() -> None:
    """A file of totals was damaged: what is counted from then on is new."""
    assert decide(Told(lost={"evicted": 99}), seen(5), NOW).says == ()
