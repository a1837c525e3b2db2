"""`cwsink flush` without `--once`: the flusher as a sidecar, as a unit of systemd, or as a child of `cwsink run`.

```text
serve --TERM----------------> await the writers --> drain --> end     a sidecar: the application got TERM, too
serve --INT, a byte on stdin--------------------> drain --> end       a person; `cwsink run`, whose command has ended
serve --stdin ends--> serve until no writer is left --> drain --> end  `cwsink run` was killed
```

Each writer holds a shared lock, by which the kernel tells whether any is left (cwsink.spool.attachment). A second
request of any kind ends the command at once. No record is lost by that: what is not delivered stays in the spool.

There may be hundreds of spools, and one of them may be damaged, of a newer cwsink, or not readable for a while. That is
said with its name and looked at again, and the others are served. Of many spools only some are led at a time
(cwsink.flusher.turns).
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Final

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, complain, say
from cwsink.cli.flushing import POLL_SECONDS, StopRequests, delivered, end_all, leader_note
from cwsink.cli.progress import Display, display
from cwsink.cli.spools import Spools, target
from cwsink.diagnostics import report
from cwsink.errors import CwsinkError
from cwsink.flusher.election import Election, Kind
from cwsink.flusher.turns import Turns
from cwsink.spool import cursor, files, orphans
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey

# How often the command looks for new spools, and how far delivery is if its output is no terminal.
_LOOK_SECONDS: Final = 1.0
# With more spools than this the command looks for new ones less often.
_SPOOLS_A_SECOND: Final = 100.0
# All that comes after TERM must be over by then, because Kubernetes sends KILL 30 s after TERM.
_GRACE_SECONDS: Final = 25.0
# In this share of that time, writers may end by themselves. The rest is for delivering what they have appended.
_WRITERS_SHARE: Final = 0.8


class ParentPipe(StopRequests):
    """Requests from `cwsink run`, our parent, on stdin. A byte is one, and the end of the pipe is the parent's death.

    systemd sends TERM to a whole unit, while the command still logs. So signals do not count as long as the parent
    lives: it decides when the flusher ends.
    """

    def __init__(self) -> None:
        self._pipe = os.dup(0)
        os.set_blocking(self._pipe, False)
        super().__init__()

    def look(self) -> None:
        """Read the requests that have come."""
        if self.is_orphaned:
            return
        try:
            requests = os.read(self._pipe, 16)
        except BlockingIOError:
            return
        self.count += len(requests)
        self.is_orphaned = not requests

    def _note(self, number: int, *_: object) -> None:
        self.look()
        if self.is_orphaned:
            super()._note(number)


def run(options: argparse.Namespace) -> int:
    """Flush until told to end. Returns the exit code."""
    stops = ParentPipe() if options.supervised else StopRequests()
    with display(has_end=False) as shown:
        # While bars are drawn, stderr is hidden. What is reported stands above them.
        spools = Spools(
            options.path, read_only=False, leaves_others=True, tell=lambda message: report(message, message)
        )
        service = FlushService(spools, options.timeout, stops, shown, "run" if options.supervised else "service")
        if not service.serve():
            return NOT_DONE
        service.await_writers()
        service.end()
    return service.conclude(is_told=not options.supervised)


class FlushService:
    """Stands for election for every spool at a place, also for those that appear later."""

    def __init__(self, spools: Spools, timeout: float | None, stops: StopRequests, shown: Display, kind: Kind) -> None:
        """`timeout`: seconds for all that comes after the first request to stop. `kind`: which command hosts it."""
        self._spools = spools
        self._timeout = timeout
        self._stops = stops
        self._shown = shown
        self._kind = kind
        self._turns = Turns()
        self._elections: dict[Election, int] = {}  # with the number of records delivered before
        self._find_at = self._show_at = 0.0
        self._is_waiting = False
        self._ends_at: float | None = None

    def serve(self) -> bool:
        """Deliver until told to end, or until an orphaned flusher has no writer left. False: no spool can be opened."""
        while not self._stops.count:
            self._find()
            if not self._elections and not self._spools.is_whole:
                return False
            if self._stops.is_orphaned and not self._has_writers():
                break
            self._show()
        if self._timeout is not None:
            self._ends_at = time.monotonic() + self._timeout
        return True

    def await_writers(self) -> None:
        """After TERM, go on as long as processes are left that log, but not for ever."""
        if not self._stops.is_patient:
            return
        total = _GRACE_SECONDS if self._timeout is None else self._timeout
        until = time.monotonic() + total * _WRITERS_SHARE
        self._ends_at = time.monotonic() + total
        if self._has_writers():
            seconds = words.duration(total * _WRITERS_SHARE)
            self._shown.say(f"Told to end: waiting at most {seconds} for the processes that log to end first.")
        while self._stops.count == 1 and time.monotonic() < until and self._has_writers():
            self._find()
            for election in self._elections:
                election.hurry()
            self._show()

    def end(self) -> None:
        """Deliver what is there, and give up the leases."""
        self._find_at = 0.0  # a short program may have made a spool since the last look
        self._find()
        for election in self._elections:
            if election.epoch:
                self._shown.say(f"{target(election.directory)}: told to end; delivering what is there.")
        end_all(self._turns, self._elections, self._timeout, self._stops, self._ends_at)

    def conclude(self, *, is_told: bool) -> int:
        """Print what was delivered, and complain of what stays if `is_told`. Returns the exit code."""
        code = DONE
        for election, before in self._elections.items():
            directory = election.directory
            try:
                sent = delivered(election, before) - before
                is_stuck = not election.has_ended(0.0)  # it still holds the lease then
                pending = survey(directory).pending if is_stuck else orphans.left_behind(directory)
            except Exception as error:
                code = NOT_DONE
                complain(f"cannot tell what is left in {directory.path}: {error}. Its records are kept.")
                continue
            say(f"{target(directory)}: ended; {words.records(sent)} delivered meanwhile.")
            if pending:
                code = NOT_DONE
                if is_told:
                    complain(f"{words.stay(pending)} in {directory.path}: not delivered in time. They are kept.")
        return code

    def _has_writers(self) -> bool:
        return any(is_anyone_attached(election.directory) for election in self._elections)

    def _find(self) -> None:
        """If the last look is a while ago, look for new spools and stand for election there."""
        if time.monotonic() < self._find_at:
            return
        self._find_at = time.monotonic() + max(_LOOK_SECONDS, len(self._elections) / _SPOOLS_A_SECOND)
        known = {election.directory.path: election for election in self._elections}
        try:
            for directory in self._spools.open(known):
                self._stand(directory)
        except (CwsinkError, OSError) as error:
            if not known:
                raise
            report("find", f"cannot look for new spools in {self._spools.place}: {error} The known ones are served.")
        for path, election in known.items():
            if not files.exists(path):
                election.leave(0.0)  # somebody has removed it. If it is made anew, it is found again
            if election.is_leaving and election.has_ended(0.0):
                del self._elections[election]
                self._turns.remove(election)
        if not self._elections and self._spools.is_whole and not self._is_waiting:
            self._shown.say(f"No spool in {self._spools.place} yet: waiting for the first worker to log.")
            self._is_waiting = True

    def _stand(self, directory: SpoolDirectory) -> None:
        try:
            before = cursor.read(directory.cursor).ledger.delivered
        except Exception as error:
            report(
                f"stand_{directory.path}",
                f"cannot read {directory.cursor}: {error}. The records of that spool stay there. It is tried "
                f"again every {_LOOK_SECONDS:.0f} s.",
            )
            return
        election = Election(directory, kind=self._kind)
        self._elections[election] = before
        self._turns.add(election)
        self._shown.say(f"{target(directory)}: standing for election in {directory.path}")

    def _show(self) -> None:
        """Show how far delivery is, and wait a little."""
        if (now := time.monotonic()) >= self._show_at:
            self._show_at = now + (POLL_SECONDS if self._shown.is_live else _LOOK_SECONDS)
            for election, before in self._elections.items():
                if election.is_running:
                    sent = delivered(election, before) - before
                    self._shown.show(target(election.directory), sent, None, leader_note(election))
        self._turns.look()
        time.sleep(POLL_SECONDS)
        self._stops.look()
