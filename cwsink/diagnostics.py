"""Reports cwsink's own troubles: one clear line, rarely, never through logging.

The application's loggers may end in cwsink, so cwsink must not log. It writes a
line to stderr and to every subscriber (the fapilog sink subscribes fapilog's own
diagnostics). Lines with the same `key` come at most once in `QUIET_SECONDS`. The
next one says how many were held back.

A library that we call may log. To empty fapilog's queue at exit we make an event loop, and asyncio logs its selector.
fapilog's bridge would put that record into the queue again, which would need another loop, and so on. Therefore
`own_work` marks the thread that makes the loop, and the bridge leaves out the records that `is_own` knows by it.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from logging import LogRecord

# An outage of an hour is then 60 lines, and a person who looks while it lasts soon sees one.
QUIET_SECONDS: Final = 60.0

Subscriber = Callable[[str, str], None]

_subscribers: list[Subscriber] = []
_quiet: dict[str, tuple[float, int]] = {}
# Pairs of process and thread. The thread alone is not enough, because a forked child's threads get the same numbers.
_own_threads: set[tuple[int, int]] = set()


def subscribe(subscriber: Subscriber) -> None:
    """Call `subscriber(key, message)` for each line from now on. To subscribe the same one again changes nothing."""
    if subscriber not in _subscribers:
        _subscribers.append(subscriber)


def report(key: str, message: str) -> bool:
    """Write `message` to stderr and to the subscribers. Takes no lock, and never raises.

    Args:
        key: the kind of line; after a line, others of its key are held back for `QUIET_SECONDS`.
        message: what happened, what becomes of the data, what to do.

    Returns:
        True: the line was written. False: it was held back, and counted.
    """
    now = time.monotonic()
    last, held_back = _quiet.get(key, (-QUIET_SECONDS, 0))
    if now - last < QUIET_SECONDS:
        _quiet[key] = (last, held_back + 1)
        return False
    _quiet[key] = (now, 0)
    if held_back:
        message = f"{message} (and {held_back:,} more like this)"
    with contextlib.suppress(Exception):
        # os.write and not sys.stderr, because this may run in a signal handler or while the interpreter ends.
        os.write(2, f"cwsink: {message}\n".encode("utf-8", "backslashreplace"))
    for subscriber in _subscribers:
        with contextlib.suppress(Exception):
            subscriber(key, message)
    return True


def reset_quiet(key: str) -> None:
    """Note that the trouble of `key` is over: its next line is not held back."""
    _quiet.pop(key, None)


@contextlib.contextmanager
def own_work() -> Iterator[None]:
    """Mark the records that any library logs in this thread meanwhile as those of our own work. Nests."""
    me = os.getpid(), threading.get_ident()
    was_marked = me in _own_threads
    _own_threads.add(me)
    try:
        yield
    finally:
        if not was_marked:
            _own_threads.discard(me)


def is_own(record: LogRecord) -> bool:
    """Tell whether our own work has made a record of the logging module. Another thread may ask."""
    return (record.process or os.getpid(), record.thread or threading.get_ident()) in _own_threads
