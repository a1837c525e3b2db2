"""A signal handler that raises at any line of an append: Ctrl-C in a notebook, a soft time limit.

Whatever was going on, the writer goes on afterwards, and so does every other process: no lock, flag, descriptor or
count stays wrong. (In a finalizer Python prints an exception and goes on. There a handler may cost us a descriptor for
as long as the process lives; nothing can be done about that.) What became of the interrupted record is unknown: the
call raised, so it was neither acknowledged nor refused. But one that waited for room is refused: test_budget.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import shutil
import signal
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from decimal import Decimal
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from fapilog.core.logger import _LoggerMixin
from msgspec.structs import asdict

from cwsink import CloudWatchSpoolSink, SpoolHandler, Writer
from cwsink.config import SinkConfig
from cwsink.frontends import presence, turn
from cwsink.frontends.inline import seam
from cwsink.spool import ring
from cwsink.spool.survey import events, survey
from tests.faults.failpoints import is_ours
from tests.harness import pipelines
from tests.harness.interleave import SMALL, segment_path, segments
from tests.harness.support import quick_config

pytestmark = pytest.mark.faults

CONFIG = {"segment_bytes": SMALL, "spool_max_bytes": 8 * SMALL, "flusher": "external"}
FEWEST_LINES = 20


class TimeLimitError(BaseException):
    """What the handler raises. Like KeyboardInterrupt, it is no Exception."""


class SoftTimeLimitError(Exception):
    """What the handler raises. As Celery's, it is an Exception."""


Limit = type[TimeLimitError] | type[SoftTimeLimitError] | type[TimeoutError]
LIMITS: list[Limit] = [TimeLimitError, SoftTimeLimitError, TimeoutError]  # the last one is an OSError


def attach(config: SinkConfig) -> Writer:
    """The next append is a process's first."""
    return Writer(config)


def rotate(config: SinkConfig) -> Writer:
    """The next append makes a segment."""
    writer = Writer(config)
    assert writer.append("first")
    while segment_path(writer.directory, 1).stat().st_size < SMALL:
        assert writer.append("." * 300)
    return writer


def evict(config: SinkConfig) -> Writer:
    """The next append evicts a segment for a new one."""
    writer = Writer(config)
    assert writer.append("first")
    while segments(writer.directory)[0] == 1:
        assert writer.append("." * 900)
    while segment_path(writer.directory, segments(writer.directory)[-1]).stat().st_size < SMALL:
        assert writer.append("." * 300)
    return writer


def refuse(config: SinkConfig) -> Writer:
    """The next append is refused, and counted."""
    writer = Writer(SinkConfig(**{**asdict(config), "on_full": "drop_newest"}))
    while writer.append("." * 300):
        pass
    return writer


def reopen(config: SinkConfig) -> Writer:
    """The next append finds that the spool was removed, and makes it anew."""
    writer = Writer(config)
    assert writer.append("first")
    shutil.rmtree(writer.directory.path)
    writer._ring.check_due_ns = 0
    return writer


def open_files(root: str) -> list[str]:
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(link for link in links if link.startswith(root))


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Tell whether an exception would only be printed there."""
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


def interrupted(work: Callable[[], object], line: int, limit: Limit = TimeLimitError) -> bool:
    """Run `work`, and raise before this line of the package. False: it has fewer lines.

    Python 3.13 may believe for ever that the thread is handling an exception, if a tracer raises where one was about to
    end (`sys.exc_info`). So each time it is another thread.
    """

    def handle(number: int, interrupted: FrameType | None) -> None:
        raise limit

    def delete(number: int, interrupted: FrameType | None) -> None:
        del number, interrupted  # Unused.
        raise limit

    handler = delete if limit is TimeoutError else handle
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with ThreadPoolExecutor(1) as pool:
            return pool.submit(interrupt, work, line, limit, handler).result()
    finally:
        signal.signal(signal.SIGUSR1, before)


def interrupt(
    work: Callable[[], object], line: int, limit: Limit, handle: Callable[[int, FrameType | None], None]
) -> bool:
    """Do that in this thread. `handle` is called as a signal handler is: with a number and a frame."""
    left = line

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal left
        if not is_ours(frame.f_code) or is_in_finalizer(frame):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                handle(signal.SIGUSR1, sys._getframe())
        return trace

    sys.settrace(trace)
    try:
        work()
    except limit:
        return True
    finally:
        sys.settrace(None)
    assert left > 0, f"what was raised before line {line} was swallowed"
    return False


# A tracer may also raise between `open` and its `with`. The file is closed all the same, when its object goes.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="not run: this needs /proc")
@pytest.mark.parametrize("step", [120, pytest.param(1, marks=[pytest.mark.long, pytest.mark.timeout(1800)])])
@pytest.mark.parametrize("prepare", [attach, rotate, evict, refuse, reopen])
def test_a_handler_that_raises_leaves_nothing_wrong(
    prepare: Callable[[SinkConfig], Writer], step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who has logged hears of it. Afterwards this writer and another one append, evict and count as if nothing had
    been."""
    # A tracer also stops in places where no handler can run, as between the end of a `with` and its lock's release.
    monkeypatch.setattr(turn, "_LEFT_BEHIND_SECONDS", 0.0)
    monkeypatch.setattr(ring, "_CHECKING_SECONDS", 0.0)
    lines = 0
    while True:
        lines += step
        config = quick_config(None, **CONFIG, spool_directory=str(tmp_path / f"spools{lines}"))
        writer = prepare(config)
        limit = LIMITS[lines // step % len(LIMITS)]
        was_interrupted = interrupted(lambda writer=writer: writer.append("interrupted"), lines, limit)
        gc.collect()
        where = f"raised before line {lines}"
        before = survey(writer.directory)
        writer._reopen_at = 0.0
        refused = 0
        for number in range(30):
            refused += not writer.append(f"{number} {'x' * 300}")
        after = survey(writer.directory)
        assert after.adds_up, where
        counted = sum(after.refused.values()) - sum(before.refused.values())
        assert refused <= counted <= refused + was_interrupted, where  # the interrupted one may be counted later
        if prepare is not refuse:
            assert refused == 0, where
            assert [event.message.split(" ")[0] for event in events(writer.directory)][-1] == "29", where
        names = [link.rpartition("/")[2] for link in open_files(f"{tmp_path}/spools{lines}/")]
        expected = {"attached.lock", os.path.basename(segment_path(writer.directory, segments(writer.directory)[-1]))}
        # As a set: where a tracer raises at a `return` in an `except`, Python 3.11 itself leaks what the frame has.
        assert {name for name in names if not name.endswith("(deleted)")} == expected, where
        presence.this.forget_below(str(tmp_path))
        writer.close()
        del writer
        shutil.rmtree(tmp_path / f"spools{lines}")
        if not was_interrupted:
            break
    assert lines > FEWEST_LINES


class Shown:
    """An object whose `str()` is code of the application."""

    def __str__(self) -> str:
        return "shown"


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_in_the_middle_of_a_log_call_is_heard(limit: Limit, step: int, tmp_path: Path) -> None:
    """At the lines of `SpoolHandler`, whatever it is encoding: a task hears that its time is over."""
    handler = SpoolHandler(quick_config(None, **CONFIG, spool_directory=str(tmp_path / "spools")))
    extra = {
        "shown": Shown(),
        "list": [{"at": datetime(2026, 1, 2, tzinfo=timezone.utc)}, Decimal(1)],
        "limit": limit(),
        3: Path("/"),
    }
    try:
        raise KeyError("gone")
    except KeyError as error:
        fields = {"msg": {"event": "placed", "order": Shown()}, "exc_info": (KeyError, error, None), **extra}
        record = logging.LogRecord("app", logging.INFO, "app.py", 1, "", (), None)
        vars(record).update(fields)
    handler.handle(record)  # now it is attached
    lines = 1
    while interrupted(lambda: handler.handle(record), lines, limit):
        lines += step
    assert lines > FEWEST_LINES
    handler.close()


class FailingPlugin:
    """A plugin that fails, so that the pipeline reports it and goes on. The redactors before it then run again."""

    __module__ = "fapilog.plugins.redactors.failing"  # only with fapilog's own
    name = "failing"

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        raise ValueError("on purpose")

    enrich = redact = filter


@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_in_the_middle_of_fapilogs_pipeline_is_heard(limit: Limit, step: int) -> None:
    """Also while a plugin runs. The record is counted as dropped, and no secret goes on because a redactor ended."""
    config = quick_config(flusher="external")
    logger = pipelines.get_logger(CloudWatchSpoolSink(config))
    failing = [FailingPlugin()]
    pipelines.made(logger, filters=failing, enrichers=failing, redactors=failing).info("one")
    lines = 1
    while interrupted(lambda: logger.info("paid", url="https://ann:hunter2@shop/"), lines, limit):
        lines += step
    assert lines > FEWEST_LINES
    assert pipelines.drain(logger)[2] > 1
    assert not [entry for entry in pipelines.entries_of(config) if "hunter2" in str(entry)]


@pytest.mark.parametrize("limit", LIMITS)
def test_a_limit_in_the_middle_of_a_take_over_leaves_no_logger_half_taken(
    limit: Limit, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fapilog calls `start` again for the next record, which then takes the logger over."""
    start = _LoggerMixin.start
    lines, is_over = 1, False
    while not is_over:
        with monkeypatch.context() as unstarted:
            unstarted.setattr(_LoggerMixin, "start", lambda _: None)
            logger = pipelines.get_logger(CloudWatchSpoolSink(quick_config(flusher="external")))
        is_over = not interrupted(lambda logger=logger: logger.start(), lines, limit)  # type: ignore[misc]
        assert bool(seam.pipeline_of(logger)) == (logger.start.__name__ == "_nothing")
        logger.start()
        assert seam.pipeline_of(logger) is not None
        lines += 3
    assert _LoggerMixin.start is start
    assert lines > FEWEST_LINES
