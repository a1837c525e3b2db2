"""A thread, and a flag to wake it, that are real under gevent and eventlet too.

Both replace `_thread.start_new_thread` and the locks of `threading` with greenlets and
switches between them. A flusher in a greenlet would stop the whole server while it imports
boto3 (0.3 s) or encodes a batch, and would itself stand still while a request computes. So its
thread is a real one, and so is what it waits for: a wait of a greenlet's lock in one thread for
another thread works in some versions of these libraries only.

What the thread calls (`time.sleep`, sockets) may be patched all the same: both libraries give
each thread a hub of its own.
"""

from __future__ import annotations

import _thread
import sys
from _queue import Empty, SimpleQueue  # `queue`'s is patched by gevent, this one by nobody
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import BuiltinFunctionType
from typing import Final

_PATCH_FIRST: Final = "Let gevent or eventlet patch before anything else is imported."
_ELSEWHERE: Final = ' Or flush in another process: `cwsink run`, or flusher="external" and `cwsink flush`.'


class Flag:
    """`threading.Event` as far as we use it; may be set in a signal handler that interrupted the same `set`."""

    def __init__(self) -> None:
        self._is_set = False
        self._wake: Final[SimpleQueue[None]] = SimpleQueue()

    def is_set(self) -> bool:
        """Tell whether it is."""
        return self._is_set

    def set(self) -> None:
        """Set it, and wake who waits."""
        if not self._is_set:
            self._is_set = True
            self._wake.put(None)

    def clear(self) -> None:
        """Take it back."""
        self._is_set = False
        with suppress(Empty):
            self._wake.get_nowait()

    def wait(self, timeout_seconds: float) -> bool:
        """Block this thread, all greenlets in it included, until the flag is set or the time is over."""
        if not self._is_set:
            try:
                self._wake.get(timeout=max(0.0, timeout_seconds))
            except Empty:
                return self._is_set
            self._wake.put(None)  # for others who wait
        return self._is_set


def sleep(seconds: float) -> None:
    """Block this thread. A greenlet's sleep that is under way as the interpreter ends can crash it (Python 3.10)."""
    Flag().wait(seconds)


class PatchedError(RuntimeError):
    """`_thread.start_new_thread` has been replaced, by nobody we know."""


def start_thread(work: Callable[[], None]) -> None:
    """Start a real thread, without the `threading` module, whose locks a signal handler may have interrupted.

    Raises:
        RuntimeError: no thread can be started: at exit (Python 3.12 and later), at the system's limit.
        PatchedError: only a greenlet could be.
    """
    start = next(filter(_is_real, _starters()), None)
    if start is None:
        raise PatchedError(f"threads are patched, by neither gevent nor eventlet.{_ELSEWHERE}")
    start(work, ())


def refuse_late_patch() -> None:
    """Raise PatchedError if eventlet has patched after cwsink was imported.

    It cannot patch all locks that exist by then. A thread that led all the same mostly delivered, and hung in one run
    of six. What gevent patches late works.
    """
    patcher = sys.modules.get("eventlet.patcher")
    if _began_unpatched and patcher is not None and patcher.is_monkey_patched("thread"):
        raise PatchedError("eventlet has patched threads after cwsink was imported")


def advice() -> str:
    """Return what to do if the flusher fails in a process whose threads are patched; "" in others."""
    return "" if _is_real(_thread.start_new_thread) else f" {_PATCH_FIRST}{_ELSEWHERE}"


def _is_real(start: object) -> bool:
    return isinstance(start, BuiltinFunctionType)


_began_unpatched: Final = _is_real(_thread.start_new_thread)


def _starters() -> Iterator[Callable[[Callable[[], None], tuple[()]], object]]:
    yield _thread.start_new_thread
    if monkey := sys.modules.get("gevent.monkey"):
        yield monkey.get_original("_thread", "start_new_thread")
    if patcher := sys.modules.get("eventlet.patcher"):
        yield patcher.original("_thread").start_new_thread
