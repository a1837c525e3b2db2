"""What cwsink says about itself: one clear line, rarely, never through logging.

The application's loggers may end in this very sink, so nothing here may log.
A line goes to stderr and to every subscriber (the fapilog sink subscribes
fapilog's own diagnostics). The same `key` speaks at most once in
`QUIET_SECONDS`; what was held back is counted in the next line.

Others log for us: asyncio says which selector a new event loop has, and fapilog's queue is emptied in one at exit.
fapilog's bridge would bring that record back to the queue, for a new loop to write, and so on. `own_work` marks such a
thread, and the bridge leaves out what `is_own` knows.
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

# Long enough that an outage of an hour is 60 lines, short enough to be seen while it lasts.
QUIET_SECONDS: Final = 60.0

Subscriber = Callable[[str, str], None]

_subscribers: list[Subscriber] = []
_quiet: dict[str, tuple[float, int]] = {}
# Process and thread: a forked child's threads get the same numbers again.
_own_threads: set[tuple[int, int]] = set()


def subscribe(subscriber: Subscriber) -> None:
    """Call `subscriber(key, message)` for each line from now on (once per callable)."""
    if subscriber not in _subscribers:
        _subscribers.append(subscriber)


def report(key: str, message: str) -> bool:
    """Say `message` on stderr and to the subscribers. Never raises, never blocks for long.

    Args:
        key: what kind of line this is; the same key is quiet for `QUIET_SECONDS`.
        message: what happened, what becomes of the data, what to do.

    Returns:
        Whether it was said. False: held back, and counted.
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
        # os.write, not sys.stderr: this may run in a signal handler or while the interpreter ends.
        os.write(2, f"cwsink: {message}\n".encode("utf-8", "backslashreplace"))
    for subscriber in _subscribers:
        with contextlib.suppress(Exception):
            subscriber(key, message)
    return True


def settled(key: str) -> None:
    """The matter of `key` has ended: its next line is not held back."""
    _quiet.pop(key, None)


@contextlib.contextmanager
def own_work() -> Iterator[None]:
    """Mark this thread's log records, whichever library makes them, as our own doing. Nests."""
    me = os.getpid(), threading.get_ident()
    was_marked = me in _own_threads
    _own_threads.add(me)
    try:
        yield
    finally:
        if not was_marked:
            _own_threads.discard(me)


def is_own(record: LogRecord) -> bool:
    """Tell whether a record of the logging module was made by our own work, also if another thread handles it."""
    return (record.process or os.getpid(), record.thread or threading.get_ident()) in _own_threads
