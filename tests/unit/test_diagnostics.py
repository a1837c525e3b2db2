"""cwsink speaks of itself rarely, clearly, and never into the application's way."""

from __future__ import annotations

import signal
from collections.abc import Callable
from types import FrameType

import pytest

from cwsink import diagnostics
from cwsink.diagnostics import QUIET_SECONDS, report, reset_quiet, subscribe


class SettableClock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SettableClock:
    """Time under the test's control."""
    clock = SettableClock()
    monkeypatch.setattr(diagnostics, "monotonic", clock.monotonic)
    return clock


@pytest.fixture
def heard(clock: SettableClock, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What a subscriber hears."""
    monkeypatch.setattr(diagnostics, "_subscribers", [])
    lines: list[tuple[str, str]] = []
    subscribe(lambda key, message: lines.append((key, message)))
    return lines


def test_a_line_goes_to_stderr_and_to_the_subscribers(
    heard: list[tuple[str, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    """One line, with our name in front where others write too."""
    report("disk", "the disk is full. Records are counted.")
    assert capfd.readouterr().err == "cwsink: the disk is full. Records are counted.\n"
    assert heard == [("disk", "the disk is full. Records are counted.")]


def test_the_same_matter_is_told_once_a_minute(heard: list[tuple[str, str]], clock: SettableClock) -> None:
    """An outage of an hour that fails ten times a second is 61 lines, and no failure is left uncounted."""
    for _ in range(3_600 * 10):
        report("send", "cannot deliver")
        clock.now += 0.1
    clock.now += QUIET_SECONDS
    report("send", "cannot deliver")
    assert 60 <= len(heard) <= 62
    held_back = sum(int(text.split("(and ")[1].split()[0]) for _, text in heard if "(and " in text)
    assert held_back + len(heard) == 36_001


def test_what_was_held_back_is_counted_in_the_next_line(heard: list[tuple[str, str]], clock: SettableClock) -> None:
    """The count is that of the lines left out since the last one."""
    for _ in range(1_235):
        report("send", "cannot deliver")
    clock.now += QUIET_SECONDS
    report("send", "cannot deliver")
    clock.now += QUIET_SECONDS
    report("send", "cannot deliver")
    assert [text for _, text in heard] == [
        "cannot deliver",
        "cannot deliver (and 1,234 more like this)",
        "cannot deliver",
    ]


def test_silence_lasts_exactly_its_time(heard: list[tuple[str, str]], clock: SettableClock) -> None:
    """A moment before the minute is over nothing is said, at the minute it is."""
    report("send", "first")
    clock.now += QUIET_SECONDS - 0.001
    report("send", "too early")
    assert len(heard) == 1
    clock.now += 0.001
    report("send", "again")
    assert heard[1] == ("send", "again (and 1 more like this)")


def test_matters_do_not_silence_each_other(heard: list[tuple[str, str]]) -> None:
    """Each key has a minute of its own."""
    report("one", "1")
    report("two", "2")
    report("one", "3")
    assert heard == [("one", "1"), ("two", "2")]


def test_a_matter_that_has_ended_may_speak_again_at_once(heard: list[tuple[str, str]]) -> None:
    """After `reset_quiet`, the next failure is news; to reset what was never told changes nothing."""
    report("send", "down")
    report("send", "still down")
    reset_quiet("send")
    reset_quiet("never told")
    report("send", "down again")
    assert [text for _, text in heard] == ["down", "down again"]


def test_a_subscriber_is_called_once_however_often_it_subscribes(
    clock: SettableClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two sinks of one process subscribe the same function."""
    monkeypatch.setattr(diagnostics, "_subscribers", [])
    lines: list[str] = []

    def subscriber(key: str, message: str) -> None:
        lines.append(message)

    subscribe(subscriber)
    subscribe(subscriber)
    report("a", "once")
    assert lines == ["once"]


@pytest.mark.usefixtures("clock")
@pytest.mark.parametrize("text", ["lone \ud800 surrogate", "NUL \0", "é€😀", "x" * 100_000, ""])
def test_any_text_can_be_told(text: str, capfd: pytest.CaptureFixture[str]) -> None:
    """What cannot be encoded is escaped."""
    report("text", text)
    assert capfd.readouterr().err.startswith("cwsink: ")


def broken_subscriber(key: str, message: str) -> None:
    raise RuntimeError("a subscriber's own fault")


def test_a_broken_subscriber_harms_nobody(heard: list[tuple[str, str]]) -> None:
    """Neither the caller nor the subscribers after it."""
    diagnostics._subscribers.insert(0, broken_subscriber)
    report("a", "told")
    assert heard == [("a", "told")]


def test_what_a_signal_handler_raises_meanwhile_reaches_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """A task's time is over while a line is written. To the task that must not be trouble of a subscriber's."""

    class OverTimeError(Exception):
        pass

    def handle(number: int, frame: FrameType | None) -> None:
        raise OverTimeError

    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: signal.raise_signal(signal.SIGALRM)])
    before = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(OverTimeError):
            diagnostics.report("limit", "a line")
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("error", [OSError(9, "Bad file descriptor"), BlockingIOError(), ValueError("closed")])
def test_a_stderr_that_is_gone_harms_nobody(
    heard: list[tuple[str, str]], error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A daemon has closed it; the subscribers still hear."""

    def refuse(fd: int, data: bytes) -> int:
        raise error

    monkeypatch.setattr(diagnostics.os, "write", refuse)
    report("a", "told")
    monkeypatch.undo()
    assert heard == [("a", "told")]


def test_a_subscriber_that_reports_does_not_recurse(clock: SettableClock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Diagnostics that end in this very sink come back with the same key, and end there."""
    monkeypatch.setattr(diagnostics, "_subscribers", [])
    lines: list[str] = []

    def echo(key: str, message: str) -> None:
        lines.append(message)
        report(key, message)

    subscribe(echo)
    report("a", "told")
    assert lines == ["told"]


def test_nothing_is_logged(heard: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The application's loggers may end in this very sink: the logging module is not touched."""
    import logging

    called: list[str] = []
    refuse: Callable[..., None] = lambda *_, **__: called.append("logged")  # noqa: E731  # shorter than three lines
    monkeypatch.setattr(logging.Logger, "_log", refuse)
    monkeypatch.setattr(logging.Logger, "handle", refuse)
    report("a", "told")
    assert (called, len(heard)) == ([], 1)
