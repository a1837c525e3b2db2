"""Records that were refused, counted until a loss marker can say so in the spool.

While a spool is full a marker is written at most once a second, then every two,
four ... up to 60 seconds, so that the markers of an outage stay small.

Threads and signal handlers may refuse at the same moment, and must not wait for each
other: each puts its refusal in a queue, and whoever gets the lock adds up. What is
put there while another one adds up is added by the next.
"""

from __future__ import annotations

from collections import deque
from threading import Lock
from typing import Final

from cwsink.spool.record import Loss

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0


class Losses:
    """The refusals of one writer that no marker tells of yet."""

    def __init__(self) -> None:
        self.pending = False
        self._adding = Lock()
        self._queue: deque[Loss] = deque()
        self._by_reason: dict[str, Loss] = {}
        self._pause = 0.0
        self._next = 0.0

    def add(self, reason: str, timestamp_ms: int) -> None:
        """Count one record refused at this time."""
        self.put_back([Loss(1, timestamp_ms, timestamp_ms, reason, 0)])

    def is_due(self, now: float) -> bool:
        """Tell whether a marker may be written while the spool is full."""
        return self.pending and now >= self._next

    def take(self, now: float, producer: int, *, still_full: bool) -> list[Loss]:
        """Return the markers to write, and begin to count anew. Nothing if another one is just counting."""
        if not self._adding.acquire(blocking=False):
            return []
        try:
            self.pending = False  # before adding up: what comes after is pending again
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
        """Count losses again whose marker could not be written."""
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
