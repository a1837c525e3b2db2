"""Counts refused records until they are written down in the spool (cwsink.spool.refusals), and has them said.

A refusal is written down before the caller is told of it, so that the count survives a kill. If that cannot be done at
this moment (another process is writing, there is no descriptor), the count waits here, and is tried again with the next
refusal, the next append, and at the end of the process.

Two threads, or a thread and a signal handler, may refuse a record at the same moment, and must not wait for each other.
Each puts its refusal into a list, which needs no lock. One of them writes the list down.
"""

from __future__ import annotations

from typing import Final

from cwsink.diagnostics import report
from cwsink.frontends.turn import Turn
from cwsink.spool import refusals
from cwsink.spool.alerts import Alerts
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Loss
from cwsink.spool.segment import AttachedSegment, SegmentKey

# While nothing can be written down, the list must not take more memory with each refusal.
_MOST_SEPARATE: Final = 1000
UNENCODABLE: Final = "unencodable"


class Losses:
    """The refusals of one writer that are not written down yet."""

    def __init__(self) -> None:
        self._losses: list[Loss] = []
        self._turn = Turn()
        self._has_lost = self._is_said = False
        self._alerts: Alerts | None = None
        self._segment: SegmentKey | None = None

    @property
    def pending(self) -> bool:
        """Tell whether there are any."""
        return bool(self._losses)

    def add(self, reason: str, timestamp_ms: int) -> None:
        """Count one refused record with this time."""
        self._has_lost = True
        self._losses.append(Loss(1, timestamp_ms, timestamp_ms, reason, 0))

    def add_text(self, timestamp_ms: int, what: str) -> None:
        """Count a message that is no record, and say which."""
        self.add(UNENCODABLE, timestamp_ms)
        report(f"refused_{UNENCODABLE}", f"LOST {what}. It is counted; the application goes on.")

    def watch(self, directory: SpoolDirectory, attached: AttachedSegment | None) -> None:
        """Note the segment that is appended to. The next one may be one of the last, or an older one was evicted."""
        # Not the segment itself: it could not be reclaimed as long as it is kept here.
        if attached is not None and attached.key != self._segment:
            self._segment = attached.key
            self._alerts_of(directory).look(at_once=True)

    def write_down(self, directory: SpoolDirectory, *, is_last: bool = False) -> None:
        """Write down what is counted, if that can be done now, and say it. Never raises. `is_last`: at the end."""
        self._write_down(directory)
        if self._has_lost:
            is_first, self._is_said = not self._is_said, True
            self._alerts_of(directory).look(is_last=is_last, at_once=is_first)

    def _alerts_of(self, directory: SpoolDirectory) -> Alerts:
        if self._alerts is None or self._alerts.directory is not directory:  # the spool was removed and made anew
            self._alerts = Alerts(directory)
        return self._alerts

    def _write_down(self, directory: SpoolDirectory) -> None:
        # If it is another thread's turn, that one sees what was added.
        while self._losses and (turn := self._turn.take()) is not None:
            with turn:
                if not refusals.add(directory, self._losses):
                    if len(self._losses) > _MOST_SEPARATE:
                        now = len(self._losses)
                        self._losses[:now] = _summed(self._losses[:now])
                    return


def _summed(losses: list[Loss]) -> list[Loss]:
    """Return one loss for each reason."""
    by_reason: dict[str, Loss] = {}
    for loss in losses:
        known = by_reason.get(loss.reason)
        by_reason[loss.reason] = (
            loss
            if known is None
            else Loss(
                known.count + loss.count,
                min(known.first_ms, loss.first_ms),
                max(known.last_ms, loss.last_ms),
                loss.reason,
                0,
            )
        )
    return list(by_reason.values())
