"""Counts refused records until the writer can put a loss marker into the spool.

While a spool stays full, markers must not fill it further. Therefore the pause between
two markers is one second at first, then two, four, and so on, up to 60 seconds.

Two threads, or a thread and a signal handler, may refuse a record at the same moment, and
must not wait for each other. Each puts its refusal into a queue. The one that gets the lock
adds the queue up. A refusal that comes in too late for it is added up at the next call.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Final

from cwsink.spool.record import Loss

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0


class Losses:
    """The refusals of one writer that no loss marker tells of yet.

    Attributes:
        pending: whether there are any.
    """

    def __init__(self) -> None:
        self.pending = False
        self._adding = Lock()
        self._queue: deque[Loss] = deque()
        self._by_reason: dict[str, Loss] = {}
        self._pause = 0.0
        self._next = 0.0

    def add(self, reason: str, timestamp_ms: int) -> None:
        """Count one refused record with this time."""
        self.put_back([Loss(1, timestamp_ms, timestamp_ms, reason, 0)])

    def is_due(self, now: float) -> bool:
        """Tell whether a marker may be written while the spool is full."""
        return self.pending and now >= self._next

    def take(self, now: float, producer: int, *, still_full: bool) -> list[Loss]:
        """Return the markers to write, and count anew from 0. Empty if another thread is adding up at this moment."""
        if not self._adding.acquire(blocking=False):
            return []
        try:
            self.pending = False  # before adding up, because a refusal that comes after that sets it again
            self._add_up()
            taken, self._by_reason = list(self._by_reason.values()), {}
            self._pause = min(_LONGEST_PAUSE_SECONDS, self._pause * 2 or _FIRST_PAUSE_SECONDS) if still_full else 0.0
            self._next = now + self._pause
        finally:
            self._adding.release()
        for loss in taken:
            loss.producer = producer
        return taken

    def put_back(self, losses: list[Loss]) -> None:
        """Count these losses, again if their markers could not be written."""
        self._queue.extend(losses)
        if self._adding.acquire(blocking=False):
            try:
                self._add_up()
            finally:
                self._adding.release()
        self.pending = True

    def _add_up(self) -> None:
        while self._queue:
            loss = self._queue.popleft()
            known = self._by_reason.setdefault(loss.reason, loss)
            if known is not loss:
                known.count += loss.count
                known.first_ms = min(known.first_ms, loss.first_ms)
                known.last_ms = max(known.last_ms, loss.last_ms)
