"""Counts refused records until they are written down in the spool (cwsink.spool.refusals), and has them said.

A refusal is written down before the caller is told of it, so that the count survives a kill. If that cannot be done at
this moment (another process is writing, there is no descriptor), the count waits here, and is tried again with the next
refusal, the next append, and at the end of the process.

What waits here no command can show. If it has waited for a second, or if the process ends, this process says it on
stderr: the disk may have become read-only, or somebody has put something else in the place of the spool.

Two threads, or a thread and a signal handler, may refuse a record at the same moment, and must not wait for each other.
Each puts its refusal into a list, which needs no lock. One of them writes the list down.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cwsink import words
from cwsink.clock import monotonic
from cwsink.diagnostics import report, reset_quiet
from cwsink.frontends.turn import Turn
from cwsink.interruption import suppress
from cwsink.spool import page, refusals
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Loss, timestamp_of
from cwsink.spool.ring import Append

if TYPE_CHECKING:
    from cwsink.spool.alerts import Alerts

# While nothing can be written down, the list must not take more memory with each refusal.
_MOST_SEPARATE: Final = 1000
# Another process that writes its own counts down needs no longer than this, unless it was stopped.
_PASSING_SECONDS: Final = 1.0
UNENCODABLE: Final = "unencodable"
INTERNAL_ERROR: Final = "internal_error"


def prepare(directory: SpoolDirectory) -> None:
    """Make the files in which losses are counted, and what was said of them, if there is room. Never raises."""
    page.prepare(directory.refusals, dict)
    page.prepare(directory.told, lambda: _told_now(directory))


def _told_now(directory: SpoolDirectory) -> object:
    from cwsink.spool import alerts  # only who makes the file needs it

    return alerts.told_now(directory)


class Losses:
    """The refusals of one writer that are not written down yet."""

    def __init__(self) -> None:
        self._losses: list[Loss] = []
        self._turn = Turn()
        self._has_lost = self._is_said = False
        self._alerts: Alerts | None = None
        self._made = 0
        self._waits_since: float | None = None
        self._waiting_said = 0

    @property
    def pending(self) -> bool:
        """Tell whether there are any."""
        return bool(self._losses)

    def add(self, reason: str, timestamp_ms: int) -> None:
        """Count one refused record with this time."""
        self._has_lost = True
        self._losses.append(Loss(1, timestamp_ms, timestamp_ms, reason, 0))

    def add_record(self, payload: bytes, answer: Append) -> None:
        """Count one record that the ring has refused."""
        self.add("spool_full" if answer is Append.FULL else "io_error", timestamp_of(payload))

    def add_text(self, timestamp_ms: int, what: str) -> None:
        """Count a message that is no record, and say which."""
        self.add(UNENCODABLE, timestamp_ms)
        report(f"refused_{UNENCODABLE}", f"LOST {what}. It is counted; the application goes on.")

    def watch(self, directory: SpoolDirectory, made: int) -> None:
        """Look if this process has made one more segment: it may be one of the last, or an older one was evicted."""
        if made != self._made:
            self._made = made
            self._look(directory, at_once=True)

    def write_down(self, directory: SpoolDirectory, *, is_last: bool = False) -> None:
        """Write down what is counted, if that can be done now, and say it. Never raises. `is_last`: at the end."""
        with suppress(Exception):  # somebody may have replaced a function of the system, as tests do
            self._write_down(directory)
            self._say_what_waits(directory, is_last=is_last)
            if self._has_lost or (is_last and self._alerts is not None):  # the latter has evicted some, perhaps
                is_first, self._is_said = not self._is_said, True
                self._look(directory, is_last=is_last, at_once=is_first)

    def _say_what_waits(self, directory: SpoolDirectory, *, is_last: bool) -> None:
        """Say what cannot be written down: in a second, for it may pass, or now if this process ends."""
        if not self._losses:
            self._waits_since, self._waiting_said = None, 0
            return
        since = self._waits_since = monotonic() if self._waits_since is None else self._waits_since
        lost = {reason: each.count for reason, each in refusals.add_up({}, list(self._losses)).items()}
        count, key = sum(lost.values()), f"unwritten_{directory.path}"
        if count == self._waiting_said or not (is_last or monotonic() - since >= _PASSING_SECONDS):
            return
        if is_last:
            reset_quiet(key)
        is_said = report(
            key,
            f"LOST {words.records(count)} of this process ({words.each_counted(lost)}). {directory.path} does not take "
            "the count, so `cwsink status` does not show them. Another line says why they are refused.",
            is_total=True,
        )
        self._waiting_said = count if is_said else self._waiting_said

    def _look(self, directory: SpoolDirectory, *, is_last: bool = False, at_once: bool) -> None:
        if self._alerts is None or self._alerts.directory is not directory:  # the spool was removed and made anew
            # Most workers never come here, so what says losses is loaded now. That may be refused: there is no
            # descriptor, the process ends, or it does not see its installation any more. Then another one says it.
            with suppress(ImportError, OSError):
                from cwsink.spool.alerts import Alerts

                self._alerts = Alerts(directory)
        if self._alerts is not None:
            self._alerts.look(is_last=is_last, at_once=at_once)

    def _write_down(self, directory: SpoolDirectory) -> None:
        # If it is another thread's turn, that one sees what was added.
        while self._losses and (turn := self._turn.take()) is not None:
            with turn:
                if not refusals.add(directory, self._losses):
                    if len(self._losses) > _MOST_SEPARATE:
                        now = len(self._losses)
                        summed = refusals.add_up({}, self._losses[:now]).items()
                        self._losses[:now] = [Loss(it.count, it.first_ms, it.last_ms, why, 0) for why, it in summed]
                    return
