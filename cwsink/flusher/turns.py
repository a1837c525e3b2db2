"""Whose turn it is: which spools of a process are led now, and which rest because there is nothing to do.

A process may look after hundreds of spools (a directory for each pod that ever ran on the host). To lead one takes a
thread, some descriptors and looks at its files; to send takes a client with a connection. So at most `MOST_AT_ONCE`
spools are led at once. All others rest.

```text
                    something was appended
    rest  ---------------------------------------------->  a turn: its election stands, leads, delivers
          <-- idle for REST_SECONDS, or while others wait: it keeps the lease
          <-- others wait, and it fails, or has had TURN_SECONDS: it gives the lease back
```

A spool that rests is looked at every LOOK_SECONDS, by the host's own thread, at the cost of two `stat` calls. It is led
again as soon as it has grown, and then its records are sent at once: they do not wait for `batch_timeout_seconds`. So
an append to a spool that rests arrives as soon as one to a spool that is led. With more than some hundred spools each
is looked at less often, so that the looks stay cheap. A spool that rests with its lease is led for everybody else: no
other process takes it, and no writer starts a flusher for it.

Spools that fail must not keep those waiting that could be delivered. So at most half of the places are for spools whose
last turn has failed, and one of these gives its place to a spool that waits for its first try.
"""

from __future__ import annotations

import math
import resource
import time
from typing import Final

from cwsink.diagnostics import report
from cwsink.flusher.election import Election
from cwsink.flusher.self_metrics import EVERY_SECONDS
from cwsink.spool import disk, leader_state, lease
from cwsink.spool.watch import RingWatch

# A thread and a client take some 0.5 MiB. If more spools than this are busy, each waits a second or two for its turn.
MOST_AT_ONCE: Final = 32
# A turn takes some ten descriptors: lease, cursor, segments, a connection, files that are open for a moment.
_DESCRIPTORS_A_TURN: Final = 10
# The process itself needs so many, and as many are left to whatever else opens files.
_DESCRIPTORS_KEPT: Final = 64

LOOK_SECONDS: Final = 0.25
# Looks in a second, over all spools that rest. At 5 to 10 us each they take less than 0.5 % of a core.
_LOOKS_A_SECOND: Final = 400
# While spools wait for their turn, look this often whether a place is free.
_HASTE_SECONDS: Final = 0.05
# A spool that rests is looked at more closely this often: is its lease still there, does another leader fail?
_CLOSE_LOOK_SECONDS: Final = 10.0
# A client is made anew after a rest, and with it a connection and perhaps a session of a role. So do not rest too soon.
REST_SECONDS: Final = 60.0
TURN_SECONDS: Final = 2.0
# A leader that is to make room delivers what it has for so long.
_LAST_SECONDS: Final = 1.0


class Turns:
    """Gives each election of a process its turns. The host calls `look` ten times a second, always in one thread."""

    def __init__(self) -> None:
        limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        spare = (math.inf if limit == resource.RLIM_INFINITY else limit) - _DESCRIPTORS_KEPT
        self._most = int(max(2, min(MOST_AT_ONCE, spare // _DESCRIPTORS_A_TURN)))
        # Each spool that rests with its lease has one descriptor.
        self._most_leases = int(max(0, min(1_000_000, spare / 2 - self._most * _DESCRIPTORS_A_TURN / 2)))
        self._turns: dict[Election, _Turn] = {}
        self._look_at = 0.0

    def add(self, election: Election) -> None:
        """Give an election its turns from now on."""
        self._turns[election] = _Turn(election)
        self._look_at = 0.0

    def remove(self, election: Election) -> None:
        """Forget an election. It has left."""
        self._turns.pop(election, None)

    def look(self) -> None:
        """Begin and end turns. Never raises."""
        now = time.monotonic()
        if now < self._look_at:
            return
        running = [turn for turn in self._turns.values() if turn.election.is_running]
        resting = [turn for turn in self._turns.values() if not turn.election.is_running]
        self._look_at = now + max(LOOK_SECONDS, len(resting) / _LOOKS_A_SECOND)
        for turn in running:
            turn.watch(now)
        waiting = sorted((turn for turn in resting if turn.wants(now)), key=lambda turn: (turn.has_failed, turn.at))
        waiting = self._begin(waiting, running, now)
        if waiting:
            self._look_at = now + _HASTE_SECONDS
            places = len(waiting) - sum(turn.is_ending for turn in running)
            for turn in self._who_makes_room(running, waiting[0], now)[: max(0, places)]:
                turn.end(now, keep_lease=self._may_keep_lease(turn))
        self._let_rest([turn for turn in running if not turn.is_ending], now)

    def leave(self, election: Election, drain_seconds: float) -> None:
        """Have an election deliver the rest for at most `drain_seconds`, and end. A later call sets the time anew."""
        self._turns[election].leave(drain_seconds)

    def have_ended(self) -> bool:
        """After all were told to leave: tell whether each has ended, with a last turn if it waited for one. Looks."""
        self._look_at = 0.0
        self.look()
        ended = [turn.election.has_ended(0.0) for turn in self._turns.values()]  # ask each, so that it lets go
        # Those that have ended since the look have made room for others that wait.
        return all(ended) and not any(turn.wants(time.monotonic()) for turn in self._turns.values())

    def _begin(self, waiting: list[_Turn], running: list[_Turn], now: float) -> list[_Turn]:
        """Begin turns as long as there is room. Returns those that have to wait."""
        left = []
        places, failing = self._most - len(running), sum(turn.has_failed for turn in running)
        for turn in waiting:
            if places <= 0 or (turn.has_failed and failing >= self._most // 2):
                left.append(turn)
                continue
            try:
                turn.begin(now)
            except RuntimeError as error:  # no thread can be started now
                report(
                    "turns",
                    f"cannot lead {turn.election.directory.path} now: {error}{disk.limit_of(error)}. It is tried "
                    "again.",
                )
                break
            places -= 1
            failing += turn.has_failed
        return left

    def _who_makes_room(self, running: list[_Turn], first: _Turn, now: float) -> list[_Turn]:
        """Return the turns that may end for the one that waits first, and in which order."""
        if first.has_failed and sum(turn.has_failed for turn in running) >= self._most // 2:
            running = [turn for turn in running if turn.has_failed]
        found = [
            turn
            for turn in running
            if not turn.is_ending
            and (
                turn.idle_since is not None
                or now - turn.at >= TURN_SECONDS
                or (turn.has_failed and not first.has_failed and turn.election.is_failing)
            )
        ]
        return sorted(
            found, key=lambda turn: (turn.idle_since is None, not turn.has_failed, turn.idle_since or turn.at)
        )

    def _let_rest(self, running: list[_Turn], now: float) -> None:
        """Have idle spools rest, except a process's only one, one that adopts orphans, and those with metrics."""
        adopters = [turn for turn in running if turn.election.adopts]
        for turn in (each for each in running if len(self._turns) > 1 and not each.is_metered):
            if turn.idle_since is not None and now - turn.idle_since >= REST_SECONDS and adopters != [turn]:
                adopters = [each for each in adopters if each is not turn]
                turn.end(now, keep_lease=self._may_keep_lease(turn))

    def _may_keep_lease(self, turn: _Turn) -> bool:
        return (
            turn.idle_since is not None and sum(each.keeps_lease for each in self._turns.values()) < self._most_leases
        )


class _Turn:
    """One election, and what its host remembers of it.

    Attributes:
        at: when its turn began, or since when it waits.
        idle_since: since when it has had nothing to do; None: it has.
        is_ending: it was told to rest.
        has_failed: CloudWatch has taken nothing since a request failed.
        keeps_lease: it rests, and keeps the lease.
    """

    def __init__(self, election: Election) -> None:
        self.election = election
        self.at = time.monotonic()
        self.idle_since: float | None = None
        self.is_ending = False
        self.has_failed = False
        self.keeps_lease = False
        self._ring = RingWatch(election.directory.ring)
        self._wants = True
        self._was_last = False
        self._close_look_at = self._rests_since = 0.0

    @property
    def is_metered(self) -> bool:
        """Tell whether it sends metrics of its own each minute while it leads."""
        return self.election.config.self_metrics != "off"

    def begin(self, now: float) -> None:
        """Begin a turn. Raises RuntimeError: no thread can be started now."""
        self.election.start()
        self.at = now
        self.idle_since = None
        self.is_ending = self.keeps_lease = self._wants = False
        self._was_last = self.election.is_leaving

    def watch(self, now: float) -> None:
        """Look at a turn that lasts."""
        election = self.election
        self._note_success()
        is_idle = election.is_idle and not election.is_failing
        self.idle_since = (self.idle_since or now) if is_idle else None

    def end(self, now: float, *, keep_lease: bool) -> None:
        """Have it rest."""
        # What is appended from now on shows later, whether the leader still reads it or not.
        self._ring.mark()
        self._wants = self.idle_since is None
        self._close_look_at = now + _CLOSE_LOOK_SECONDS
        self._rests_since = now
        self.is_ending = True
        self.keeps_lease = keep_lease
        self.at = now
        self.election.rest(0.0 if self.election.is_failing else _LAST_SECONDS, keep_lease=keep_lease)

    def leave(self, drain_seconds: float) -> None:
        """End it, with one more turn if it waits for that."""
        self._was_last |= self.election.is_running and not self.is_ending
        self.election.leave(drain_seconds)

    def wants(self, now: float) -> bool:
        """Tell whether there is something to do for it."""
        if self._was_last:
            return False
        if self.is_ending:
            self.is_ending = False
            self._note_success()
            if self.has_failed:
                self._wants = False  # others first
        if not self._wants:
            is_close = now >= self._close_look_at
            if is_close:
                self._close_look_at = now + _CLOSE_LOOK_SECONDS
                self._ring.distrust()
                self.keeps_lease = self.keeps_lease and self.election.beat()
            is_due = self.is_metered and now - self._rests_since >= EVERY_SECONDS
            # If it has kept the lease, all was settled when it began to rest.
            is_left = is_close and not self.keeps_lease and self.election.has_pending()
            self._wants = (self._ring.has_grown() or is_due or is_left) and (self.keeps_lease or self._is_vacant())
            self.at = now
        return self._wants

    def _note_success(self) -> None:
        if self.election.is_failing:
            self.has_failed = True
        elif self.election.has_succeeded:
            self.has_failed = False

    def _is_vacant(self) -> bool:
        """Tell whether no other process leads, or only one that cannot deliver and may give way."""
        directory = self.election.directory
        if not lease.is_taken(directory):
            return True
        published = leader_state.read(directory)
        return published is not None and published.obstacle != ""
