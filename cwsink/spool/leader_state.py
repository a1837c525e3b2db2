"""`leader.json`: what the leader is doing, for people and for writers.

The lease decides who leads, never this file. It only advises. The last process that ends reads here whether it makes
sense to wait for delivery. A writer with other credentials, or of a newer version, reads here whether to start another
flusher.

The leader replaces the file as a whole when something has changed, at most once a second. While records wait it also
does so every ten seconds, so a leader whose file is older than that hangs. `cwsink status` shows it. The writing half
is cwsink.flusher.publisher: a worker only reads.

The disk may be full when a leader begins. So the file has its block from the beginning (`prepare`), and is overwritten
in place if it cannot be replaced. A reader that comes in the middle of that finds it damaged, for one look.
"""

from __future__ import annotations

import math
import time
from typing import Final, Literal

import msgspec

from cwsink.interruption import suppress
from cwsink.spool import files
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Count, Seconds

_MOST_BYTES: Final = 256 * 1024
_RESERVED_BYTES: Final = 4096
# A leader that syncs does so twice a second. If the file is older than this, no leader does. If it is from the future,
# the clock was set back, and its time says nothing.
_SYNC_SILENT_SECONDS: Final = 3.0
# The bounds of the histogram of request times. Whoever reads one of other bounds begins a new one.
REQUEST_SECONDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Doing = Literal["idle", "delivering", "retrying", "circuit_open"]
# The reason why the leader cannot deliver. "busy" passes by itself, the others rarely do.
Obstacle = Literal["", "credentials", "denied", "unreachable", "busy"]
HOPELESS: Final = frozenset[Obstacle](("credentials", "denied", "unreachable"))
# Names the process that started a flusher. A writer sets it for the flusher that it starts.
STARTED_BY_VARIABLE: Final = "CWSINK_STARTED_BY"


class Unable(msgspec.Struct, frozen=True):
    """A process that gave the lease up because it could not deliver, why, and when (seconds since 1970)."""

    pid: int
    host: str
    kind: str
    error: str
    at: float


class Published(msgspec.Struct, kw_only=True):
    """The content of leader.json. Times are seconds since 1970 UTC, rates are per second.

    Attributes:
        kind: which kind of process hosts the leader (cwsink.flusher.election.Kind).
        obstacle: the reason why the leader cannot deliver now; "" if it can.
        version: of the leader's cwsink.
        is_outdated: the files of that version were replaced or removed since the leader started.
        is_mute: nobody sees its messages any more. Its stderr was a pipe, the pipe's reader waits for the end of it,
            and so the leader has closed its end.
        credentials: a number that differs if it has other AWS credentials, or another network
            (cwsink.spool.sending.credentials_stamp).
        started_by: the process that started it, for people; "" if a person or a service manager did.
        syncs: its last try to make the spool durable has succeeded (durability="host").
        last_failure: when this leader has last tried in vain; None: it has not.
        failing_since: since when CloudWatch has taken nothing although it was asked; None: its last request succeeded.
        outage: the error of the last outage that is over, and outage_until, when it ended.
        requests: how many requests were answered, ever, by outcome (cwsink.flusher.outcome).
        sent_bytes: the bodies of these together, as they were sent.
        request_seconds: how long they took: how many took at most so many seconds, by each bound of REQUEST_SECONDS,
            and longer; then the sum of all.
        metered: the totals that the last event of metrics was made from, and metered_at, when that was
            (cwsink.flusher.self_metrics).
        unable: processes that led before and could not deliver, since the last request that CloudWatch has taken.
    """

    pid: int
    host: str
    epoch: int
    kind: str
    state: Doing = "idle"
    since: float = 0.0
    last_error: str | None = None
    obstacle: Obstacle = ""
    last_success: float | None = None
    last_failure: Seconds | None = None
    version: str = ""
    is_outdated: bool = False
    is_mute: bool = False
    credentials: int = 0
    started_by: str = ""
    records_per_second: float = 0.0
    capacity_bytes: int = 0
    syncs: bool = False
    unable: list[Unable] = []
    failing_since: Seconds | None = None
    outage: str = ""
    outage_until: Seconds = 0.0
    requests: dict[str, Count] = {}
    sent_bytes: Count = 0
    request_seconds: list[Seconds] = []
    metered: dict[str, Count] = {}
    metered_at: Seconds = 0.0


_decode: Final = msgspec.json.Decoder(Published).decode


def prepare(directory: SpoolDirectory) -> None:
    """Make the file with a block of blanks, if it is not there. Never raises."""
    with suppress(OSError):
        if not files.exists(directory.leader_state):
            files.create(directory.leader_state, b" " * _RESERVED_BYTES)


def read(directory: SpoolDirectory) -> Published | None:
    """Return what the last leader published; None if there is no such file, or if it is damaged."""
    return _read(directory)[0]


def hopeless(directory: SpoolDirectory, *, within_seconds: float) -> Published | None:
    """Return what the last leader published, if it could not deliver then, and that is not longer ago. Never raises."""
    published, age = _read(directory)
    return published if published and age < within_seconds and published.obstacle in HOPELESS else None


def is_synced(directory: SpoolDirectory) -> bool:
    """Tell whether a leader makes the spool durable, so that its writers need not. Never raises."""
    published, age = _read(directory)
    return published is not None and published.syncs and 0 <= age < _SYNC_SILENT_SECONDS


def _read(directory: SpoolDirectory) -> tuple[Published | None, float]:
    """Return what the last leader published, and how many seconds ago."""
    with suppress(OSError, ValueError, RecursionError):  # a damaged file may not even be UTF-8
        content, status = files.read(directory.leader_state, _MOST_BYTES)
        return _decode(content), time.time() - status.st_mtime
    return None, math.inf
