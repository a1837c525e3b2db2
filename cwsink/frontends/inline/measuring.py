"""Calls fapilog's metrics in the thread that logs, where a signal handler may log in the middle of such a call.

A call holds locks for a moment: the collector's own, and those of prometheus_client, which are not reentrant. In
fapilog's thread that is safe, because no signal handler runs there. In the thread that logs a handler may interrupt the
call, log, and wait for a lock that its own thread holds: for ever. So a thread makes one call at a time. What comes in
the middle of another one is noted, and made by that one at its end.

Not promised: with PROMETHEUS_MULTIPROC_DIR all metrics of a process have one lock, the application's own, too. A signal
handler that logs must not interrupt one of those.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Coroutine
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final

from cwsink.frontends.inline.stages import Suspended, drive
from cwsink.interruption import suppress


class NeverWaits:
    """Takes the place of a metrics collector's `asyncio.Lock`, which two threads cannot share.

    It is held for an addition, never while a plugin runs.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()

    async def __aenter__(self) -> None:
        self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class _Turn(threading.local):
    def __init__(self) -> None:
        self.is_taken = False
        self.left: list[Callable[[], Coroutine[Any, Any, object]]] = []


_turn: Final = _Turn()


def in_turn(call: Callable[[], Coroutine[Any, Any, object]]) -> None:
    """Make a call, and all that come in the middle of it. Raises nothing but what a signal handler raises."""
    left = _turn.left
    left.append(call)
    while left and not _turn.is_taken:  # again at the end: one may have come just before the turn was given back
        _turn.is_taken = True
        try:
            while left:
                with suppress(Exception, Suspended):  # a record is worth more than its metrics
                    drive(left.pop(0))
        finally:
            _turn.is_taken = False


class Measured:
    """Stands for a metrics collector. Its coroutines make their calls in turn, and return nothing."""

    def __init__(self, collector: Any) -> None:
        self.collector = collector

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.collector, name)
        if not iscoroutinefunction(found):
            return found

        async def measure(*args: Any, **fields: Any) -> None:
            in_turn(partial(found, *args, **fields))

        return measure


def measured(collector: Any) -> Any:
    """Return what stands for a collector; None for None."""
    return collector if collector is None or isinstance(collector, Measured) else Measured(collector)


def behind(collector: Any) -> Any:
    """Return the collector that this stands for, or that it is."""
    return collector.collector if isinstance(collector, Measured) else collector
