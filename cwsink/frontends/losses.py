"""Records that were refused, counted until a loss marker can say so in the spool.

While a spool is full a marker is written at most once a second, then every two,
four ... up to 60 seconds, so that the markers of an outage stay small.
"""

from __future__ import annotations

from typing import Final

from cwsink.spool.record import Loss

_FIRST_PAUSE_SECONDS: Final = 1.0
_LONGEST_PAUSE_SECONDS: Final = 60.0


class Losses:
    """The refusals of one writer that no marker tells of yet."""

    def __init__(self) -> None:
        self.pending = False
        self._by_reason: dict[str, Loss] = {}
        self._pause = 0.0
        self._next = 0.0

    def add(self, reason: str, timestamp_ms: int) -> None:
        """Count one record refused at this time."""
        loss = self._by_reason.get(reason)
        if loss is None:
            loss = self._by_reason.setdefault(reason, Loss(0, timestamp_ms, timestamp_ms, reason, 0))
        loss.count += 1
        loss.last_ms = max(loss.last_ms, timestamp_ms)
        self.pending = True

    def is_due(self, now: float) -> bool:
        """Tell whether a marker may be written while the spool is full."""
        return self.pending and now >= self._next

    def take(self, now: float, producer: int, *, still_full: bool) -> list[Loss]:
        """Return the markers to write, and begin to count anew."""
        taken, self._by_reason = list(self._by_reason.values()), {}
        self.pending = False
        self._pause = min(_LONGEST_PAUSE_SECONDS, self._pause * 2 or _FIRST_PAUSE_SECONDS) if still_full else 0.0
        self._next = now + self._pause
        for loss in taken:
            loss.producer = producer
        return taken

    def put_back(self, losses: list[Loss]) -> None:
        """Count losses again whose marker could not be written."""
        for loss in losses:
            known = self._by_reason.setdefault(loss.reason, Loss(0, loss.first_ms, loss.last_ms, loss.reason, 0))
            known.count += loss.count
            known.first_ms = min(known.first_ms, loss.first_ms)
            self.pending = True
