"""What the commands that lead have in common: requests to stop, who leads, and the end of an election."""

from __future__ import annotations

import signal
import time
from collections.abc import Collection
from typing import Final

from cwsink.cli.spools import leader_name
from cwsink.flusher.election import Election
from cwsink.spool import cursor, leader_state, lease

POLL_SECONDS: Final = 0.1
# After the last request's time is over, what is left to do is to commit.
_COMMIT_SECONDS: Final = 1.0
# Share of the time that is left in which new requests may begin. The rest is for the last one to finish.
_DRAIN_SHARE: Final = 0.9


class StopRequests:
    """How often TERM or INT asked this process to end, and how.

    A signal handler may interrupt any line of the main thread. So it only sets plain values, which that thread polls.

    Attributes:
        count: how many requests came.
        is_patient: the first one was TERM, which a process manager sends, perhaps to our workers at the same time.
        is_orphaned: who started us has ended without asking.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_patient = False
        self.is_orphaned = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def look(self) -> None:
        """See whether there are requests that do not come as signals."""

    def _note(self, number: int, *_: object) -> None:
        if not self.count:
            self.is_patient = number == signal.SIGTERM
        self.count += 1


def end_all(
    elections: Collection[Election], drain_seconds: float | None, stops: StopRequests, ends_at: float | None = None
) -> None:
    """Have all of them leave, and wait for it; a request beyond the first makes them leave at once.

    Args:
        elections: of all spools.
        drain_seconds: how long each may deliver; its drain_timeout_seconds by default.
        stops: to be asked again.
        ends_at: when it has to be over (monotonic), a request in flight or not. None: that one is waited for.
    """
    began = until = time.monotonic()
    for election in elections:
        seconds = election.config.drain_timeout_seconds if drain_seconds is None else drain_seconds
        if ends_at is not None:
            seconds = min(seconds, max(0.0, ends_at - began) * _DRAIN_SHARE)
        election.leave(seconds)
        until = max(until, began + seconds + election.request_seconds + _COMMIT_SECONDS)
    if ends_at is not None:
        until = min(until, ends_at)
    asked = min(stops.count, 1)
    while time.monotonic() < until and not all(election.has_ended(POLL_SECONDS) for election in elections):
        stops.look()
        if stops.count > asked:
            asked = stops.count
            until = min(until, time.monotonic() + _COMMIT_SECONDS)
            for election in elections:
                election.leave(0.0)


def delivered(election: Election) -> int:
    """Return how many records of the spool were delivered ever, by any process."""
    return cursor.read(election.directory.cursor).ledger.delivered


def leader_note(election: Election) -> str:
    """Say who leads, and whether it gets on."""
    directory = election.directory
    if not election.epoch:
        return f"{leader_name(directory)} leads" if lease.is_taken(directory) else "being elected"
    published = leader_state.read(directory)
    doing = published.state if published and published.epoch == election.epoch else "delivering"
    return "leading, retrying" if doing in ("retrying", "circuit_open") else "leading"
