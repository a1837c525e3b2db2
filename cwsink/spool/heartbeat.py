"""Which host leads a spool: `leader.host`, written when the lease is won, touched while it is held.

A flock is known to one kernel only. Two hosts may see the same file system (`allow_unsafe_filesystem`, or a file system
that we do not recognise), and then each may get "the" lease. So a leader writes the id of its host's boot here, and
touches the file every `BEAT_SECONDS`, or every 10 s while the spool rests (cwsink.flusher.turns). A process that wins
the lease and finds a fresh beat of another boot does not lead. Its writers append all the same.

```text
{"boot_id": "...", "host": "web-1"}       removed when a leader leaves in order
```

This must not keep a host from leading without need. Containers of one host share its boot id, so a restarted container
never waits. After a reboot, a host finds the id of its own former boot, with a beat from before the host was up. That
leader is dead, however fresh its beat is. So only a beat of another boot that came after our own start counts, and,
whatever is on disk, for at most `2 * FRESH_SECONDS`. Clocks of two hosts may differ, so ages are measured by the file
system's clock alone: our own touch against the other host's.

If two leaders send after all, the epoch in the cursor stops the first one (cwsink.spool.cursor).
"""

from __future__ import annotations

import time
from typing import Final, NamedTuple

import msgspec

from cwsink import host
from cwsink.interruption import suppress
from cwsink.spool import files
from cwsink.spool.directory import SpoolDirectory

BEAT_SECONDS: Final = 2.0
# A leader cannot beat during a request, and a request that hangs takes 13 s (3 s to connect, 10 s to wait).
FRESH_SECONDS: Final = 20.0
_MOST_BYTES: Final = 4096


class Mark(msgspec.Struct, frozen=True):
    """The content of leader.host."""

    boot_id: str
    host: str


class Elsewhere(NamedTuple):
    """The mark of a leader on another host, and how many seconds ago that leader touched it."""

    mark: Mark
    age_seconds: float


def elsewhere(directory: SpoolDirectory, *, touch: str | None = None) -> Elsewhere | None:
    """Return the mark of a leader on another host that lives; None if there is none.

    Args:
        directory: the spool.
        touch: a file of the spool that the caller may touch, to learn the file system's time. None: our own clock
            counts, which is good enough to tell a person.
    """
    found = read(directory.leader_host)
    boot_id = host.boot_id()
    if found is None or not boot_id or found[0].boot_id == boot_id:
        return None
    mark, beaten_at = found
    age = _now(touch) - beaten_at
    # A beat from the future comes from a clock that was wrong, there or here. It must not hold us up for ever.
    is_fresh = -FRESH_SECONDS < age < min(FRESH_SECONDS, host.uptime_seconds())
    return Elsewhere(mark, max(0.0, age)) if is_fresh else None


def _now(touch: str | None) -> float:
    if touch is not None:
        with suppress(OSError):
            files.touch(touch)
            return files.status(touch).st_mtime
    return time.time()


def read(path: str) -> tuple[Mark, float] | None:
    """Return the mark and the time of its last beat; None if there is no mark, or if it is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        data, status = files.read(path, _MOST_BYTES)
        return msgspec.json.decode(data, type=Mark), status.st_mtime
    return None
