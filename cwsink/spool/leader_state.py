"""`leader.json`: what the leader is doing, for people and for writers.

Who leads is decided by the lease, never by this file. A writer that is the last one out reads here whether waiting for
delivery makes sense, and a writer with other credentials, or of a newer version, whether to offer itself.

Replaced atomically, at most once a second, when something changed, and every ten seconds
while records wait: a leader whose file is older than that hangs. `cwsink status` shows it.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import time
from typing import Final, Literal

import msgspec

from cwsink.spool import files, sending
from cwsink.spool.directory import SpoolDirectory
from cwsink.version import __version__

PUBLISH_SECONDS: Final = 1.0
# While there is something to do, an old file means a leader that hangs.
ALIVE_SECONDS: Final = 10.0
_MOST_BYTES: Final = 256 * 1024

Doing = Literal["idle", "delivering", "retrying", "circuit_open"]
# What keeps the leader from delivering: "busy" passes by itself, the others rarely do.
Obstacle = Literal["", "credentials", "denied", "unreachable", "busy"]
# Who started this process: set by the flusher that starts by itself, at its start.
STARTED_BY_VARIABLE: Final = "CWSINK_STARTED_BY"


class Published(msgspec.Struct, kw_only=True):
    """The content of leader.json. Times are seconds since 1970 UTC, rates are per second.

    Attributes:
        kind: who hosts the leader (cwsink.flusher.election.Kind).
        obstacle: what keeps it from delivering now; "" if nothing does.
        version: of the leader's cwsink.
        is_outdated: that version's files have been replaced or removed since the leader has started.
        is_mute: its lines reach nobody any more: it let go of a pipe whose reader waits for the end of it.
        credentials: tells its environment from another one (see cwsink.spool.sending.credentials_stamp).
        started_by: the process that started it, for people; "" if a person or a service did.
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
    version: str = ""
    is_outdated: bool = False
    is_mute: bool = False
    credentials: int = 0
    started_by: str = ""
    records_per_second: float = 0.0
    capacity_bytes: int = 0


def read(directory: SpoolDirectory) -> Published | None:
    """Return what the last leader published; None if there is nothing to read."""
    try:
        return msgspec.json.decode(files.read(directory.leader_state, _MOST_BYTES)[0], type=Published)
    except (OSError, ValueError, RecursionError):  # a damaged file may not even be UTF-8
        return None


class LeaderState:
    """Keeps leader.json for one leader."""

    def __init__(self, directory: SpoolDirectory, epoch: int, kind: str, capacity_bytes: int) -> None:
        self._path = directory.leader_state
        self._now = Published(
            pid=os.getpid(),
            host=socket.gethostname(),
            epoch=epoch,
            kind=kind,
            since=time.time(),
            version=__version__,
            credentials=sending.credentials_stamp(os.environ),
            started_by=os.environ.get(STARTED_BY_VARIABLE, ""),
            last_success=before.last_success if (before := read(directory)) else None,
            capacity_bytes=capacity_bytes,
        )
        self._published: Published | None = None
        self._published_at = self._written_at = 0.0
        self._delivered = 0
        self.publish()

    @property
    def obstacle(self) -> Obstacle:
        """What keeps the leader from delivering now; "" if nothing does."""
        return self._now.obstacle

    def succeeded(self) -> None:
        """CloudWatch took a request."""
        if self._now.obstacle:
            self._published_at = -math.inf  # with the next look: a process that ends may be waiting to know this, too
        self._now.state = "delivering"
        self._now.obstacle = ""
        self._now.last_success = time.time()

    def failed(self, error: str, obstacle: Obstacle, *, is_open: bool) -> None:
        """CloudWatch did not."""
        if self._now.obstacle != obstacle:
            self._published_at = -math.inf  # a process that ends may be waiting to know
        self._now.state = "circuit_open" if is_open else "retrying"
        self._now.last_error = error
        self._now.obstacle = obstacle
        self.publish()

    def went_mute(self) -> None:
        """The process has let go of its stderr."""
        self._now.is_mute = True
        self._published_at = -math.inf
        self.publish()

    def delivered(self, records: int) -> None:
        """Count for the rate, and publish if it is time."""
        self._delivered += records
        self.publish()

    def touch(self) -> None:
        """Show writers that somebody syncs the spool (they look at the file's time)."""
        with contextlib.suppress(OSError):
            os.utime(self._path)

    def publish(self) -> None:
        """Write the file if it is out of date. Never raises."""
        elapsed = time.monotonic() - self._published_at
        if elapsed < PUBLISH_SECONDS:
            return
        rate = self._delivered / min(elapsed, 3600.0)
        self._now.records_per_second = round(rate, 1)
        if self._now.state == "delivering" and not self._delivered:
            self._now.state = "idle"
        self._delivered = 0
        self._now.is_outdated = sending.installation_now() != sending.installation()
        is_stale = self._now.state != "idle" and time.monotonic() - self._written_at >= ALIVE_SECONDS
        if self._now != self._published or is_stale:
            self._written_at = time.monotonic()
            self._published = msgspec.structs.replace(self._now)
            with contextlib.suppress(OSError):
                files.replace(self._path, msgspec.json.encode(self._now))
        self._published_at = time.monotonic()
