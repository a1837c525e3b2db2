"""Which host leads a spool: `leader.host`, written when the lease is won, touched while it is held.

A flock is one kernel's. On a file system that two hosts see (`allow_unsafe_filesystem`, or one we do
not know for what it is), each may be granted "the" lease. So a leader leaves the id of its host's boot
here, and touches the file every `BEAT_SECONDS`; who wins the lease and finds a fresh beat of another
boot does not lead. Writers append all the same.

```text
{"boot_id": "...", "host": "web-1"}       removed when a leader leaves in order
```

Containers of one host share its boot id, so a restarted one is never held up. A host that was
rebooted finds the id of its former boot, but a beat from before it was up: that one is dead, however
fresh. So only a beat of another boot that came after our own start holds us up, and, whatever is
on disk, for at most `2 * FRESH_SECONDS`. Ages are told by the file system's clock alone (our own touch
against the other's), not by two hosts' clocks.

This is the belt to the braces: the epoch in the cursor still fences whoever leads second.
"""

from __future__ import annotations

import contextlib
import os
import time
from typing import Final, NamedTuple

import msgspec

from cwsink import host
from cwsink.spool import files
from cwsink.spool.directory import SpoolDirectory

BEAT_SECONDS: Final = 2.0
# Longer than a request that hangs (connecting 3 s, waiting 10 s), in which a leader cannot beat.
FRESH_SECONDS: Final = 20.0
_MOST_BYTES: Final = 4096


class Mark(msgspec.Struct, frozen=True):
    """The content of leader.host."""

    boot_id: str
    host: str


class Elsewhere(NamedTuple):
    """Another host leads: its mark, and how long ago it beat, in seconds."""

    mark: Mark
    age_seconds: float


class Heartbeat:
    """This host's mark on a spool, for as long as its leader holds the lease."""

    def __init__(self, directory: SpoolDirectory) -> None:
        self._path = directory.leader_host
        self._beaten_at = 0.0

    def begin(self) -> None:
        """Leave the mark. Never raises: a full disk must not keep anybody from leading."""
        self._beaten_at = time.monotonic()
        if not (boot_id := host.boot_id()):
            return
        with contextlib.suppress(OSError):
            files.replace(self._path, msgspec.json.encode(Mark(boot_id, host.name())))

    def beat(self) -> None:
        """Show that the leader lives, if it is time."""
        if time.monotonic() - self._beaten_at >= BEAT_SECONDS:
            self._beaten_at = time.monotonic()
            try:
                os.utime(self._path)
            except FileNotFoundError:
                self.begin()
            except OSError:
                pass

    def end(self) -> None:
        """Take the mark away, if it is still this host's: the next host need not wait."""
        found = _read(self._path)
        if found is not None and found[0].boot_id == host.boot_id():
            with contextlib.suppress(OSError):
                os.unlink(self._path)


def elsewhere(directory: SpoolDirectory, *, touch: str | None = None) -> Elsewhere | None:
    """Return who leads on another host, or None.

    Args:
        directory: the spool.
        touch: a file of it that the caller may touch, to learn the file system's time; else our own
            clock is taken, which is good enough for people.
    """
    found = _read(directory.leader_host)
    boot_id = host.boot_id()
    if found is None or not boot_id or found[0].boot_id == boot_id:
        return None
    mark, beaten_at = found
    age = _now(touch) - beaten_at
    # A beat from the future: its host's clock was wrong, or ours is. It must not hold us up for ever.
    is_fresh = -FRESH_SECONDS < age < min(FRESH_SECONDS, host.uptime_seconds())
    return Elsewhere(mark, max(0.0, age)) if is_fresh else None


def _now(touch: str | None) -> float:
    if touch is not None:
        with contextlib.suppress(OSError):
            os.utime(touch)
            return os.stat(touch).st_mtime
    return time.time()


def _read(path: str) -> tuple[Mark, float] | None:
    """Return the mark and the time of its last beat; None if there is none, or it is damaged."""
    try:
        data, status = files.read(path, _MOST_BYTES)
        return msgspec.json.decode(data, type=Mark), status.st_mtime
    except (OSError, ValueError, RecursionError):
        return None
