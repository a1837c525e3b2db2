"""`cwsink flush` without `--once`: a sidecar, a unit of systemd, or the flusher of `cwsink run`.

```text
serve --TERM----------------> await the writers --> drain --> end     a sidecar: the application got TERM, too
serve --INT, a byte on stdin--------------------> drain --> end       a person; `cwsink run`, whose command has ended
serve --stdin ends--> serve until no writer is left --> drain --> end  `cwsink run` was killed
```

Writers are known from the kernel, by the shared lock each of them holds (cwsink.spool.attachment).
A second request of any kind ends it at once. Nothing is lost by any of this: what is not delivered stays.
"""

from __future__ import annotations

import argparse
import os
import time
from typing import Final

from cwsink.cli import DONE, NOT_DONE, complain, text
from cwsink.cli.flushing import POLL_SECONDS, StopRequests, delivered, end_all, leader_note
from cwsink.cli.progress import Display, display
from cwsink.cli.spools import Spools, target
from cwsink.diagnostics import report
from cwsink.flusher.election import Election, Kind
from cwsink.spool import flusher_lock, orphans
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.survey import survey

# How often it looks for new spools, and for processes that want to lead where it cannot deliver.
_LOOK_SECONDS: Final = 1.0
# Time for all that comes after TERM. Kubernetes sends TERM to all containers of a pod at once, and KILL 30 s later.
_GRACE_SECONDS: Final = 25.0
# Share of that time in which writers may end by themselves. The rest is for delivering what they have appended.
_WRITERS_SHARE: Final = 0.8


class ParentPipe(StopRequests):
    """The requests of `cwsink run`, on stdin: each byte is one, and the end of the pipe is our parent's death.

    Signals do not count as long as the parent lives. It decides when we end: systemd sends TERM to a whole unit
    while the command still logs.
    """

    def __init__(self) -> None:
        super().__init__()
        os.set_blocking(0, False)

    def look(self) -> None:
        """Read what came."""
        if self.is_orphaned:
            return
        try:
            requests = os.read(0, 16)
        except BlockingIOError:
            return
        self.count += len(requests)
        self.is_orphaned = not requests

    def _note(self, number: int, *_: object) -> None:
        self.look()
        if self.is_orphaned:
            super()._note(number)


def run(options: argparse.Namespace) -> int:
    """Flush until told to end."""
    stops = ParentPipe() if options.supervised else StopRequests()
    with display(has_end=False) as shown:
        # Not `complain`, which fails if nobody reads stderr any more.
        spools = Spools(options.path, read_only=False, tell=lambda message: report(message, message))
        service = FlushService(spools, options.timeout, stops, shown, "run" if options.supervised else "service")
        if not service.serve():
            return NOT_DONE
        service.await_writers()
        service.end()
    return service.conclude(is_told=not options.supervised)


class FlushService:
    """Stands for election for every spool at a place, as they appear."""

    def __init__(self, spools: Spools, timeout: float | None, stops: StopRequests, shown: Display, kind: Kind) -> None:
        """`timeout`: for everything after the first request to stop, in seconds. `kind`: who hosts it."""
        self._spools = spools
        self._timeout = timeout
        self._stops = stops
        self._shown = shown
        self._kind = kind
        self._elections: dict[Election, int] = {}  # and how many records were delivered before
        self._find_at = self._give_way_at = 0.0
        self._is_waiting = False
        self._ends_at: float | None = None

    def serve(self) -> bool:
        """Deliver until told to end, or until no writer needs an orphaned flusher. False: no spool can be opened."""
        while not self._stops.count:
            self._find()
            if not self._elections and not self._spools.is_whole:
                return False
            if self._stops.is_orphaned and not self._has_writers():
                break
            self._give_way()
            self._show()
        if self._timeout is not None:
            self._ends_at = time.monotonic() + self._timeout
        return True

    def await_writers(self) -> None:
        """After TERM: go on as long as processes are left that log, but not for ever."""
        if not self._stops.is_patient:
            return
        total = _GRACE_SECONDS if self._timeout is None else self._timeout
        until = time.monotonic() + total * _WRITERS_SHARE
        self._ends_at = time.monotonic() + total
        if self._has_writers():
            seconds = text.duration(total * _WRITERS_SHARE)
            self._shown.say(f"Told to end: waiting at most {seconds} for the processes that log to end first.")
        while self._stops.count == 1 and time.monotonic() < until and self._has_writers():
            self._find()
            for election in self._elections:
                election.hurry()
            self._show()

    def end(self) -> None:
        """Deliver what is there, and let go of the spools."""
        self._find_at = 0.0  # a short program's spool may be younger than the last look
        self._find()
        for election in self._elections:
            if election.epoch:
                self._shown.say(f"{target(election.directory)}: told to end; delivering what is there.")
        end_all(self._elections, self._timeout, self._stops, self._ends_at)

    def conclude(self, *, is_told: bool) -> int:
        """Say what was delivered and what stays; the latter only if `is_told`. Returns the exit code."""
        code = DONE
        for election, before in self._elections.items():
            sent = delivered(election) - before
            print(f"{target(election.directory)}: ended; {text.records(sent)} delivered meanwhile.", flush=True)
            directory = election.directory
            is_stuck = not election.has_ended(0.0)  # then it still holds the lease
            if pending := survey(directory).pending if is_stuck else orphans.left_behind(directory):
                code = NOT_DONE
                if is_told:
                    complain(f"{text.stay(pending)} in {directory.path}: not delivered in time. They are kept.")
        return code

    def _give_way(self) -> None:
        """Let a process with other credentials lead where ours fail, if one asks for it."""
        if time.monotonic() < self._give_way_at:
            return
        self._give_way_at = time.monotonic() + _LOOK_SECONDS
        for election in self._elections:
            if election.cannot_deliver and flusher_lock.challenge(election.directory.root) is not None:
                self._shown.say(f"{target(election.directory)}: cannot deliver, and gives way to another process.")
                election.give_way()

    def _has_writers(self) -> bool:
        return any(is_anyone_attached(election.directory) for election in self._elections)

    def _find(self) -> None:
        """Stand for election for new spools, if the last look for them is a while ago."""
        if time.monotonic() < self._find_at:
            return
        self._find_at = time.monotonic() + _LOOK_SECONDS
        known = {election.directory.path for election in self._elections}
        for directory in self._spools.open():
            if directory.path not in known:
                election = Election(directory, kind=self._kind)
                self._elections[election] = delivered(election)
                election.start()
                self._shown.say(f"{target(directory)}: standing for election in {directory.path}")
        if not self._elections and self._spools.is_whole and not self._is_waiting:
            self._shown.say(f"No spool in {self._spools.place} yet: waiting for the first worker to log.")
            self._is_waiting = True

    def _show(self) -> None:
        """Show how far it is, and wait a little."""
        for election, before in self._elections.items():
            sent = delivered(election) - before
            self._shown.show(target(election.directory), sent, None, leader_note(election))
        time.sleep(POLL_SECONDS)
        self._stops.look()
