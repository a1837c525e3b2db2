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
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from cwsink.clock import monotonic
from cwsink.interruption import is_interruption, suppress
from cwsink.printable import printable

if TYPE_CHECKING:
    from logging import LogRecord

# An outage of an hour is then 60 lines, and a person who looks while it lasts soon sees one.
QUIET_SECONDS: Final = 60.0

Subscriber = Callable[[str, str], None]


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _stderr_at_start() -> tuple[int, int] | None:
    """Return which file is stderr; None if this process was started without one (`2>&-`)."""
    try:
        return None if sys.stderr is None or not os.get_inheritable(2) else _identity(os.fstat(2))
    except Exception:  # not only OSError: a fake file system for tests may be in the place of `os`
        return None


# A stderr is for the programs that are started, too, so it is inherited. What this process itself has opened is not,
# unless somebody has asked for it (`dup2`).
_STDERR: Final = _stderr_at_start()

_subscribers: list[Subscriber] = []
_quiet: dict[str, tuple[float, int]] = {}
# Pairs of process and thread. The thread alone is not enough, because a forked child's threads get the same numbers.
_own_threads: set[tuple[int, int]] = set()
_collected: list[str] | None = None


def subscribe(subscriber: Subscriber) -> None:
    """Call `subscriber(key, message)` for each line from now on. To subscribe the same one again changes nothing."""
    if subscriber not in _subscribers:
        _subscribers.append(subscriber)


def report(key: str, message: str, *, is_total: bool = False) -> bool:
    """Write `message` to stderr and to the subscribers. Takes no lock, and raises only what a signal handler raises.

    Args:
        key: the kind of line; after a line, others of its key are held back for `QUIET_SECONDS`. It ends with a path or
            a group if what is said of one must not hold back what is said of another.
        message: what happened, what becomes of the data, what to do.
        is_total: the message counts what the lines before it, which were held back, would have said.

    Returns:
        True: the line was written. False: it was held back, and counted.
    """
    if _collected is not None:
        _collected.append(message)
        return True
    now = monotonic()
    last, held_back = _quiet.get(key, (-QUIET_SECONDS, 0))
    if now - last < QUIET_SECONDS:
        _quiet[key] = (last, held_back + 1)
        return False
    _quiet[key] = (now, 0)
    message = printable(message, one_line=True)
    if held_back and not is_total:
        message = f"{message} (and {held_back:,} more like this)"
    _try(_write, f"cwsink: {message}\n")
    for subscriber in _subscribers:
        _try(subscriber, key, message)
    return True


def _try(tell: Callable[..., None], *words: str) -> None:
    try:
        tell(*words)
    except Exception as error:
        if is_interruption(error):
            raise


def _write(line: str) -> None:
    try:
        if has_stderr():
            # os.write and not sys.stderr, because this may run in a signal handler or while the interpreter ends.
            os.write(2, line.encode("utf-8", "backslashreplace"))
    except Exception as error:
        if isinstance(error, OSError) or is_interruption(error):
            raise
        sys.stderr.write(line)  # `os` is a fake one for tests, which knows no descriptor 2


def has_stderr() -> bool:
    """Tell whether the descriptor 2 is stderr, so that a line may be written there. Raises no OSError.

    Somebody may have closed it, and opened a file of his own that got the same number. That file must get no line. But
    a program may also send its stderr elsewhere (`dup2`): to a terminal or /dev/null, or to a log, which is opened for
    appending. Test runners send it to a file without a name.
    """
    if _STDERR is None:
        return False
    with suppress(OSError):
        status, flags = os.fstat(2), _flags_of(2)
        if _identity(status) == _STDERR:
            return True
        is_log = stat.S_ISREG(status.st_mode) and (flags & os.O_APPEND != 0 or not status.st_nlink)
        return (is_log or stat.S_ISCHR(status.st_mode)) and os.get_inheritable(2)
    return False


def is_heard() -> bool:
    """Tell whether somebody may read our stderr: it is there, and is not /dev/null. Raises no OSError."""
    with suppress(OSError):
        return has_stderr() and os.fstat(2).st_rdev != os.stat(os.devnull).st_rdev
    return False


def _flags_of(fd: int) -> int:
    """Return the flags a descriptor was opened with. Raises OSError."""
    try:
        import fcntl  # here, because Windows has none
    except ImportError:
        return 0
    return fcntl.fcntl(fd, fcntl.F_GETFL)


def reset_quiet(key: str) -> None:
    """Note that the trouble of `key` is over: its next line is not held back."""
    _quiet.pop(key, None)


@contextlib.contextmanager
def collected() -> Iterator[list[str]]:
    """Have each line of this process in a list, and on stderr none, until the end of the block."""
    global _collected
    before, _collected = _collected, []
    try:
        yield _collected
    finally:
        _collected = before


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
