"""`LeaderState`: a leader writes down what it does, and what hinders it, for people and for writers.

What is in the file, and who reads it: cwsink.spool.leader_state. It is replaced as a whole when something has changed,
at most once a second, and while records wait also every ten seconds. A disk that is full may still take it: it has its
block from the beginning, and is overwritten in place if it cannot be replaced.
"""

from __future__ import annotations

import math
import os
import time
from bisect import bisect_left
from typing import Final

import msgspec

from cwsink import host
from cwsink.interruption import suppress
from cwsink.spool import files, leader_state, sending
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.leader_state import REQUEST_SECONDS, STARTED_BY_VARIABLE, Obstacle, Published, Unable
from cwsink.spool.record import Seconds
from cwsink.version import __version__

PUBLISH_SECONDS: Final = 1.0
# While records wait the file is rewritten this often; if it is older, the leader hangs.
ALIVE_SECONDS: Final = 10.0
# A leader that has failed for so long lets another process try, if one stands. Trouble that passes by itself may pass.
_GIVE_WAY_SECONDS: Final = 3.0
_GIVE_WAY_BUSY_SECONDS: Final = 10.0
_MOST_UNABLE: Final = 8
# What is over sooner has cost no records.
_OUTAGE_SECONDS: Final = 3.0
# What the next leader goes on with.
_OF_THE_SPOOL: Final = (
    "last_success", "failing_since", "outage", "outage_until", "requests", "sent_bytes", "request_seconds", "metered",
    "metered_at",
)  # fmt: skip


class LeaderState:
    """Keeps leader.json for one leader."""

    def __init__(self, directory: SpoolDirectory, epoch: int, kind: str, capacity_bytes: int) -> None:
        self._path = directory.leader_state
        before = leader_state.read(directory)
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
