"""Have what is in some spools now delivered, for `cwsink flush --once` and `cwsink replay`.

The cursor shows when all of it is settled. So it makes no difference whether this process delivers or another flusher.
A spool that cannot be read for a moment (no descriptor is left) is looked at again. The others go on meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Final

from cwsink import words
from cwsink.cli.flushing import POLL_SECONDS, StopRequests, end_all, leader_note
from cwsink.cli.progress import Display
from cwsink.cli.spools import target
from cwsink.flusher.election import Election
from cwsink.flusher.outcome import advice_on
from cwsink.flusher.turns import Turns
from cwsink.spool import segment
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.stats import look
from cwsink.spool.survey import Backlog, survey
from cwsink.watching.reasons import sentence, stall

# Without --timeout the command gives up after this time without progress, and does not wait for an outage to end.
_PATIENCE_SECONDS: Final = 60.0
# If the leader does not take delivered segments away within this time, they are left to the next one.
_TIDY_SECONDS: Final = 1.0


class SpoolDrain:
    """Follows one spool until its backlog is settled, or until the command gives it up.

    Attributes:
        target: the spool's name for people.
        backlog: what was there at the beginning.
        election: this process stands for election, but another process may deliver as well.
        is_done: the backlog is settled.
        sent: how many records were settled since the beginning, later ones included.
        failure: the line to complain with in the end, or None.
    """

    def __init__(self, directory: SpoolDirectory, *, timeout: float | None = None, pace: float | None = None) -> None:
        """`timeout`: give up after so many seconds. `pace`: the most records to send in a second. Raises OSError."""
        self.directory = directory
        self.target = target(directory)
        self.backlog = Backlog(directory)
        self.election = Election(directory, kind="once", in_a_hurry=True, pace=pace)
        self.is_done = self.backlog.is_empty and self.is_tidy
        self.sent = 0
        self.failure: str | None = None
        self._why = ""
        self._began = self._moved = time.monotonic()
        self._left_bytes = self.backlog.data_bytes
        self._timeout = timeout
        self._tidy_until = 0.0

    @property
    def is_tidy(self) -> bool:
        """Tell whether at most one segment is left. More are left as long as an idle worker has them open."""
        return len(segment.numbers(self.directory.ring)) <= 1

    @property
    def is_open(self) -> bool:
        """Tell whether the backlog is neither settled nor given up."""
        return not self.is_done and not self._why

    @property
    def share(self) -> float:
        """How much of the backlog is settled, from 0 to 1, for a progress bar."""
        return 1.0 - self._left_bytes / self.backlog.data_bytes if self.backlog.data_bytes else 1.0

    def look(self) -> None:
        """Look how far the backlog is settled, by whatever process. Give up if it takes too long. Raises OSError."""
        now = time.monotonic()
        if not self.election.is_started:
            self._moved = now  # it waits for its first turn
        if self.election.pace is not None and is_anyone_attached(self.directory):
            self.give_up("processes log there again, and a replay with --rate would slow their delivery down")
            return
        is_settled = self.backlog.is_settled()
        sent = self.backlog.settled_since().appended
        if (self.backlog.left_bytes, sent) != (self._left_bytes, self.sent):
            self._left_bytes, self.sent, self._moved = self.backlog.left_bytes, sent, now
        if is_settled:
            self._tidy_until = self._tidy_until or now + _TIDY_SECONDS
            self.is_done = self.is_tidy or now >= self._tidy_until
        elif self._timeout is not None and now - self._began >= self._timeout:
            self.give_up(f"not delivered within {words.duration(self._timeout)}")
        elif self._timeout is None and now - self._moved >= _PATIENCE_SECONDS:
            self.give_up(f"no progress for {words.duration(_PATIENCE_SECONDS)}")

    def give_up(self, reason: str) -> None:
        """Follow the spool no further. Remember why now, as long as the leader's state shows it. Raises OSError."""
        spool = look(self.directory)
        if trouble := self.election.trouble:
            cause = sentence(trouble)
        elif spool.state in ("retrying", "circuit_open") and spool.last_error:
            cause = f"{sentence(spool.last_error)} {advice_on(spool.last_error, spool.obstacle)}"
        else:
            cause = stall(spool)
        self._why = f"{reason}. {cause}{' ' if cause else ''}They are kept, and the next leader sends them."

    def abandon(self, error: OSError) -> None:
        """Follow the spool no further, because it cannot be read."""
        self._why = f"interrupted, and {error.strerror}. They are kept, and the next leader sends them."

    def conclude(self) -> None:
        """Set `failure` if records stay. To be called after the election has ended, so that no request is in flight."""
        path = self.directory.path
        try:
            if self._why and self.backlog.is_settled():
                self.is_done = True
            elif self._why:
                self.failure = f"{words.stay(survey(self.directory).pending)} in {path}: {self._why}"
        except OSError as error:
            self.failure = f"cannot tell what is left in {path}: {error.strerror}. Its records are kept."
        if self.backlog.foreign:
            self.failure = (
                f"segments {self.backlog.foreign} of {self.directory.path} are of a newer cwsink. They are kept for it."
            )

    def summary(self) -> str:
        """Return a line that says what was delivered. Raises OSError."""
        seconds = words.duration(time.monotonic() - self._began)
        settled = self.backlog.settled_since()
        self.sent = settled.appended
        if not settled.appended:
            return f"{self.target}: nothing was pending."
        if settled.dead_lettered:
            letters = words.each_counted(settled.dead_lettered)
            count = words.records(settled.appended)
            return f"{self.target}: settled {count} in {seconds}; not deliverable: {letters} (see dead_letters.jsonl)."
        return f"{self.target}: delivered {words.records(settled.delivered)} in {seconds}."


def follow(drains: Sequence[SpoolDrain], stops: StopRequests, shown: Display) -> None:
    """Deliver the spools that are open, and show how far each is. Then end their elections, and conclude."""
    turns = Turns()
    for drain in drains:
        if drain.is_open:
            turns.add(drain.election)
    followed = [drain for drain in drains if drain.is_open]
    while still_open := [drain for drain in followed if drain.is_open]:
        turns.look()
        for drain in still_open:
            _look_at(drain, stops, shown)
            if not drain.is_open:
                turns.leave(drain.election, 0.0)  # its place is for another one
        if any(drain.is_open for drain in still_open):
            time.sleep(POLL_SECONDS)
    end_all(turns, [drain.election for drain in followed], 0.0, stops)
    for drain in drains:
        drain.conclude()


def _look_at(drain: SpoolDrain, stops: StopRequests, shown: Display) -> None:
    try:
        if stops.count:
            drain.give_up("interrupted")
        else:
            drain.look()
        if drain.backlog.data_bytes:
            shown.show(drain.target, drain.sent, drain.share, leader_note(drain.election))
    except OSError as error:
        if stops.count:
            drain.abandon(error)
