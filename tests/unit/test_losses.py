"""What is refused is counted exactly, and written down before anybody is told of it."""

from __future__ import annotations

import os
import sys
from collections import Counter
from types import FrameType
from typing import Any

import pytest

from cwsink.config import SinkConfig
from cwsink.frontends import turn
from cwsink.frontends.losses import Losses
from cwsink.spool import descriptors, directory, page, refusals
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.refusals import Refused

NOW_MS = 1_700_000_000_000


@pytest.fixture
def spool() -> SpoolDirectory:
    """A spool in which nothing was refused yet."""
    made = directory.open_for(SinkConfig())
    page.prepare(made.refusals, dict)
    return made


def test_refusals_are_counted_by_reason_with_their_times(spool: SpoolDirectory) -> None:
    """A count for each reason, with the first and last time, whatever order they came in; the file does not grow."""
    losses = Losses()
    for reason, time in [("spool_full", 20), ("io_error", 50), ("spool_full", 10), ("spool_full", 30)]:
        losses.add(reason, NOW_MS + time)
    assert losses.pending
    losses.write_down(spool)
    assert not losses.pending
    assert refusals.read(spool) == {
        "spool_full": Refused(3, NOW_MS + 10, NOW_MS + 30),
        "io_error": Refused(1, NOW_MS + 50, NOW_MS + 50),
    }
    assert os.path.getsize(spool.refusals) == 4096


def test_a_later_run_of_refusals_has_its_own_time(spool: SpoolDirectory) -> None:
    """The count is of all that was ever refused; the time is of the refusals that the stream was not told of."""
    for run in ((NOW_MS, NOW_MS + 1000), (NOW_MS + 3_600_000, NOW_MS + 3_600_005)):
        refusals.were_told(spool, refusals.read(spool))
        for moment in run:
            losses = Losses()
            losses.add("spool_full", moment)
            losses.write_down(spool)
    assert refusals.read(spool) == {"spool_full": Refused(4, NOW_MS + 3_600_000, NOW_MS + 3_600_005)}


def test_what_cannot_be_written_down_waits(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor, say, for thousands of refusals: they take no more memory, and are all counted in the end."""
    losses = Losses()

    def fail(path: str, flags: int, dir_fd: int | None = None) -> descriptors.Opened:
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as none_left:
        none_left.setattr(descriptors, "opened", fail)
        for number in range(5_000):
            losses.add(("spool_full", "io_error")[number % 2], NOW_MS + number)
            losses.write_down(spool)
        assert losses.pending
        assert len(losses._losses) <= 1_001
    losses.write_down(spool)
    assert refusals.counts(spool) == {"spool_full": 2_500, "io_error": 2_500}


@pytest.mark.parametrize("content", [b"", b"x" * 4096, b"\0" * 10_000])
def test_a_file_that_is_damaged_begins_anew(spool: SpoolDirectory, content: bytes) -> None:
    """The counts in it are gone, and nothing else is."""
    with open(spool.refusals, "wb") as file:
        file.write(content)
    assert refusals.read(spool) == {}
    losses = Losses()
    losses.add("spool_full", NOW_MS)
    losses.write_down(spool)
    assert not losses.pending
    assert refusals.counts(spool) == {"spool_full": 1}


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # some of it runs in a finalizer
def test_a_handler_that_raises_or_is_refused_in_the_middle_changes_no_count(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each line once: a soft time limit ends the writing, or a handler is refused a record as well."""

    class TimeLimitError(Exception):
        """What the handler raises."""

    kept: Counter[str] = Counter()
    losses = Losses()
    lines = 0
    monkeypatch.setattr(turn, "_LEFT_BEHIND_SECONDS", 0.0)  # tracing also stops where no signal handler can run
    while True:
        lines += 1
        left = lines

        def trace(frame: FrameType, event: str, arg: Any) -> Any:
            nonlocal left
            if "cwsink" not in frame.f_code.co_filename:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    sys.settrace(None)
                    losses.add("io_error", NOW_MS)
                    kept["io_error"] += 1
                    losses.write_down(spool)
                    raise TimeLimitError
            return trace

        losses.write_down(spool)
        losses.add("spool_full", NOW_MS)
        sys.settrace(trace)
        try:
            losses.write_down(spool)
        except TimeLimitError:
            pass
        finally:
            sys.settrace(None)
        kept["spool_full"] += 1
        if left > 0:
            break
    assert lines > 50
    losses.write_down(spool)
    assert not losses.pending
    assert refusals.counts(spool) == kept
