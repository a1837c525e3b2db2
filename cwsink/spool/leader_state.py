"""`leader.json`: what the leader is doing, for people and for writers.

The lease decides who leads, never this file. It only advises. The last process that ends reads here whether it makes
sense to wait for delivery. A writer with other credentials, or of a newer version, reads here whether to start another
flusher.

The leader replaces the file as a whole when something has changed, at most once a second. While records wait it also
also does so every ten seconds, so a leader whose file is older than that hangs. `cwsink status` shows it.

The disk may be full when a leader begins. So the file has its block from the beginning (`prepare`), and is overwritten
in place if it cannot be replaced. A reader that comes in the middle of that finds it damaged, for one look.
"""

from __future__ import annotations

import math
import os
import time
from bisect import bisect_left
from typing import Final, Literal

import msgspec

from cwsink import host
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import files, sending
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Count, Seconds
from cwsink.version import __version__

PUBLISH_SECONDS: Final = 1.0
# While records wait the file is rewritten this often; if it is older, the leader hangs.
ALIVE_SECONDS: Final = 10.0
_MOST_BYTES: Final = 256 * 1024
_RESERVED_BYTES: Final = 4096
# A leader that syncs does so twice a second. If the file is older than this, no leader does. If it is from the future,
# the clock was set back, and its time says nothing.
_SYNC_SILENT_SECONDS: Final = 3.0
# A leader that has failed for so long lets another process try, if one stands. Trouble that passes by itself may pass.
_GIVE_WAY_SECONDS: Final = 3.0
_GIVE_WAY_BUSY_SECONDS: Final = 10.0
_MOST_UNABLE: Final = 8
# What is over sooner has cost no records.
_OUTAGE_SECONDS: Final = 3.0
# The bounds of the histogram of request times. Whoever reads one of other bounds begins a new one.
REQUEST_SECONDS: Final = (0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

Doing = Literal["idle", "delivering", "retrying", "circuit_open"]
# The reason why the leader cannot deliver. "busy" passes by itself, the others rarely do.
Obstacle = Literal["", "credentials", "denied", "unreachable", "busy"]
HOPELESS: Final = frozenset[Obstacle](("credentials", "denied", "unreachable"))
# Names the process that started a flusher. A writer sets it for the flusher that it starts.
STARTED_BY_VARIABLE: Final = "CWSINK_STARTED_BY"
# What the next leader goes on with.
_OF_THE_SPOOL: Final = (
    "last_success", "failing_since", "outage", "outage_until", "requests", "sent_bytes", "request_seconds", "metered",
    "metered_at",
)  # fmt: skip


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
    try:
        content, status = files.read(directory.leader_state, _MOST_BYTES)
        return _decode(content), time.time() - status.st_mtime
    except (OSError, ValueError, RecursionError) as error:  # a damaged file may not even be UTF-8
        if is_interruption(error):
            raise
        return None, math.inf


class LeaderState:
    """Keeps leader.json for one leader."""

    def __init__(self, directory: SpoolDirectory, epoch: int, kind: str, capacity_bytes: int) -> None:
        self._path = directory.leader_state
        before = read(directory)
        self._now = Published(
            pid=os.getpid(),
            host=host.name(),
            epoch=epoch,
            kind=kind,
            since=time.time(),
            version=__version__,
            credentials=sending.credentials_stamp(os.environ),
            started_by=os.environ.get(STARTED_BY_VARIABLE, ""),
            capacity_bytes=capacity_bytes,
        )
        if before:
            for name in _OF_THE_SPOOL:
                setattr(self._now, name, getattr(before, name))
            self._now.unable = [
                each for each in before.unable if (each.pid, each.host) != (self._now.pid, self._now.host)
            ]
        self._failing_since: Seconds | None = None
        self.has_succeeded = False
        self._published: Published | None = None
        self._published_at = self._written_at = 0.0
        self._delivered = 0
        self.publish()

    @property
    def cannot_deliver(self) -> bool:
        """Tell whether it fails, and has for so long that another process is to try if one stands."""
        if self._failing_since is None:
            return False
        patience = _GIVE_WAY_BUSY_SECONDS if self._now.obstacle == "busy" else _GIVE_WAY_SECONDS
        return time.monotonic() - self._failing_since >= patience

    def succeeded(self) -> None:
        """Note that CloudWatch has accepted a request."""
        self.has_succeeded = True
        now = self._now
        if now.obstacle and now.last_error and time.time() - (now.failing_since or math.inf) >= _OUTAGE_SECONDS:
            now.outage, now.outage_until = now.last_error, max(0.0, time.time())
        self._failing_since = self._now.failing_since = None
        self._now.unable = []
        if self._now.obstacle:
            self._published_at = -math.inf  # with the next look: a process that ends may be waiting to know this, too
        self._now.state = "delivering"
        self._now.obstacle = ""
        self._now.last_success = time.time()

    def failed(self, error: str, obstacle: Obstacle, *, is_open: bool) -> None:
        """Note that a request has failed, and publish that. `is_open`: the leader sends none for a while."""
        has_changed = self._now.obstacle != obstacle
        if self._failing_since is None:
            self._failing_since = time.monotonic()
        if self._now.failing_since is None:
            self._now.failing_since = max(0.0, time.time())
        self._now.state = "circuit_open" if is_open else "retrying"
        self._now.last_error = error
        self._now.last_failure = max(0.0, time.time())
        self._now.obstacle = obstacle
        self.publish(at_once=has_changed)  # a process that ends may be waiting to know

    def answered(self, outcome: str, seconds: float, sent_bytes: int) -> None:
        """Count a request that has ended."""
        now = self._now
        now.requests = {**now.requests, outcome: now.requests.get(outcome, 0) + 1}
        now.sent_bytes += sent_bytes
        counts = (
            now.request_seconds
            if len(now.request_seconds) == len(REQUEST_SECONDS) + 2
            else [0.0] * (len(REQUEST_SECONDS) + 2)
        )
        index = bisect_left(REQUEST_SECONDS, seconds)
        now.request_seconds = [*counts[:index], counts[index] + 1, *counts[index + 1 : -1], counts[-1] + seconds]

    @property
    def published(self) -> Published:
        """What is, or will soon be, in the file."""
        return self._now

    def metered(self, totals: dict[str, int], at: float) -> None:
        """Note that an event of metrics was made of these totals, and publish that."""
        self._now.metered, self._now.metered_at = totals, max(0.0, at)
        self.publish(at_once=True)

    def gave_way(self) -> str:
        """Publish that this process gives the lease up because it cannot deliver. Returns the reason."""
        now = self._now
        mine = Unable(now.pid, now.host, now.kind, now.last_error or "", time.time())
        now.unable = [*now.unable, mine][-_MOST_UNABLE:]
        self.publish(at_once=True)
        return mine.error

    def went_mute(self) -> None:
        """Note and publish that the process has closed its stderr."""
        self._now.is_mute = True
        self.publish(at_once=True)

    def delivered(self, records: int) -> None:
        """Add to the rate, and publish if `PUBLISH_SECONDS` have passed."""
        self._delivered += records
        self.publish()

    def synced(self) -> None:
        """Note that the spool was made durable, and touch the file: writers look at its time (`is_synced`)."""
        self._set_syncs(True)
        with suppress(OSError):
            files.touch(self._path)

    def not_synced(self) -> None:
        """Note that the spool could not be made durable, and publish that: writers are to do it themselves."""
        self._set_syncs(False)

    def _set_syncs(self, syncs: bool) -> None:
        if self._now.syncs != syncs:
            self._now.syncs = syncs
            self.publish(at_once=True)

    def publish(self, *, at_once: bool = False) -> None:
        """Write the file if its content has changed or is old, at most once in `PUBLISH_SECONDS`. Never raises."""
        elapsed = time.monotonic() - self._published_at
        if elapsed < PUBLISH_SECONDS and not at_once:
            return
        rate = self._delivered / min(max(elapsed, 0.1), 3600.0)
        self._now.records_per_second = round(rate, 1)
        if self._now.state == "delivering" and not self._delivered:
            self._now.state = "idle"
        self._delivered = 0
        self._now.is_outdated = sending.installation_now() != sending.installation()
        is_stale = self._now.state != "idle" and time.monotonic() - self._written_at >= ALIVE_SECONDS
        if self._now != self._published or is_stale:
            now, data = msgspec.structs.replace(self._now), msgspec.json.encode(self._now)
            with suppress(OSError):  # it is tried again in `PUBLISH_SECONDS`
                try:
                    files.replace(self._path, data)
                except OSError:
                    files.overwrite(self._path, data)
                self._written_at, self._published = time.monotonic(), now
        self._published_at = time.monotonic()
