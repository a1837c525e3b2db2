"""What all commands that lead need: requests to stop, the name of the leader, and the end of their elections."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Collection
from typing import Final

from cwsink.cli import be_null
from cwsink.cli.spools import leader_name
from cwsink.flusher.election import Election
from cwsink.flusher.turns import Turns
from cwsink.spool import cursor, leader_state, lease

POLL_SECONDS: Final = 0.1
_END_POLL_SECONDS: Final = 0.02
# After the time for the last request is over, a leader may still have to commit.
_COMMIT_SECONDS: Final = 1.0
# In this share of the remaining time, new requests may begin. The rest is for the last request to finish.
_DRAIN_SHARE: Final = 0.9


class StopRequests:
    """Requests to end, from the signals TERM and INT.

    A signal handler may interrupt any line of the main thread. So it only sets plain values, which that thread polls.

    Attributes:
        count: how many requests came.
        is_patient: the first request was TERM. A process manager may have sent it to the writers at the same time.
        is_orphaned: the process that started this one has ended without a request.
    """

    def __init__(self) -> None:
        self.count = 0
        self.is_patient = False
        self.is_orphaned = False
        be_null(0)  # stdin is not ours to read, and a helper that gives credentials might read it
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def look(self) -> None:
        """Look for requests that do not come as signals. A subclass may have some."""

    def _note(self, number: int, *_: object) -> None:
        if not self.count:
            self.is_patient = number == signal.SIGTERM
        self.count += 1


def end_all(
    turns: Turns,
    elections: Collection[Election],
    drain_seconds: float | None,
    stops: StopRequests,
    ends_at: float | None = None,
) -> None:
    """Have all elections leave, and wait until they have. A second request to stop makes them leave at once.

    Args:
        turns: gives the elections their turns.
        elections: the elections of all spools.
        drain_seconds: how long each may deliver. None: its drain_timeout_seconds.
        stops: the requests to stop.
        ends_at: the monotonic time at which all must be over, even with a request in flight. None: wait for that.
    """
    began = until = time.monotonic()
    for election in elections:
        seconds = election.config.drain_timeout_seconds if drain_seconds is None else drain_seconds
        if ends_at is not None:
            seconds = min(seconds, max(0.0, ends_at - began) * _DRAIN_SHARE)
        turns.leave(election, seconds)
        until = max(until, began + seconds + election.request_seconds + _COMMIT_SECONDS)
    if ends_at is not None:
        until = min(until, ends_at)
    asked = min(stops.count, 1)
    while not turns.have_ended() and time.monotonic() < until:
        time.sleep(_END_POLL_SECONDS)
        stops.look()
        if stops.count > asked:
            asked = stops.count
            until = min(until, time.monotonic() + _COMMIT_SECONDS)
            for election in elections:
                election.leave(0.0)


def delivered(election: Election, default: int = 0) -> int:
    """Return how many records of the spool any process has delivered so far; `default` if that cannot be read now."""
    try:
        return cursor.read(election.directory.cursor).ledger.delivered
    except OSError:  # no descriptor is left, for example. It is for display only
        return default


def leader_note(election: Election) -> str:
    """Return a note for the progress bar: which process leads, and whether it gets on."""
    directory = election.directory
    if not election.epoch:
        with contextlib.suppress(OSError):  # no descriptor is left, for example
            return f"{leader_name(directory)} leads" if lease.is_taken(directory) else "being elected"
        return ""
    published = leader_state.read(directory)
    doing = published.state if published and published.epoch == election.epoch else "delivering"
    return "leading, retrying" if doing in ("retrying", "circuit_open") else "leading"
