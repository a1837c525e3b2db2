"""`capacity.json`: how much a spool may hold, and what is done when it is full.

Several programs may log to one spool, each with settings of its own. If each of them went by its own, a cron job with a
small `spool_max_bytes` would throw away what the web application has asked to keep. So budget, policy and segment size
belong to the spool:

```text
{"spool_max_bytes": 268435456, "segment_bytes": 8388608, "on_full": "drop_newest", "written_by": "web-1/4711"}
```

* A writer that begins while no process is attached writes its own settings down, and they hold. But if what is pending
  has no room in its budget, or takes more than half of a smaller one, the settings that are there go on to hold:
  nothing is thrown away for it, nor for its first records.
* A writer that begins beside others takes over what they have. Only a larger budget holds at once. So a deployment that
  raises it needs no stop.
* If a writer's own settings differ from those that hold, one line names both.

A writer reads the file when it begins and whenever it needs a segment. Whether a writer that is refused waits for room
(`block`) is a matter of its own.
"""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from cwsink import host
from cwsink.config import MIN_SEGMENT_BYTES, MIN_SEGMENTS, MOST_SEGMENT_BYTES, SinkConfig
from cwsink.diagnostics import report
from cwsink.interruption import suppress
from cwsink.spool import cursor, files, segment
from cwsink.spool.directory import SpoolDirectory

_MOST_BYTES: Final = 4096
_NAMES: Final = ("spool_max_bytes", "segment_bytes", "on_full")


class Capacity(msgspec.Struct, frozen=True):
    """What a writer wishes, or what holds.

    Attributes:
        spool_max_bytes: the disk space that the ring may take.
        segment_bytes: the size at which a segment is full.
        on_full: the policy.
        written_by: host and pid of the writer whose settings these are, for people.
    """

    spool_max_bytes: Annotated[int, msgspec.Meta(ge=MIN_SEGMENTS * MIN_SEGMENT_BYTES)]
    segment_bytes: Annotated[int, msgspec.Meta(ge=MIN_SEGMENT_BYTES, le=MOST_SEGMENT_BYTES)]
    on_full: str = "drop_oldest"
    written_by: str = ""

    @property
    def may_evict(self) -> bool:
        """Tell whether old records may go for new ones."""
        return self.on_full == "drop_oldest"


# Made now: msgspec looks annotations up in this module, which is taken apart before the last `__del__` may append.
_decode: Final = msgspec.json.Decoder(Capacity).decode


def of(config: SinkConfig) -> Capacity:
    """Return what a writer with this config wishes."""
    written_by = host.process()
    return Capacity(config.spool_max_bytes, config.ring_segment_bytes, config.on_full, written_by)


def read(directory: SpoolDirectory) -> Capacity | None:
    """Return what holds; None if no writer has written anything down, or if the file is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        return _decode(files.read(directory.capacity, _MOST_BYTES)[0])
    return None


def claim(directory: SpoolDirectory, mine: Capacity, *, is_alone: bool) -> Capacity:
    """Begin to write with these wishes, and return what holds. Never raises.

    Args:
        directory: the spool.
        mine: the wishes.
        is_alone: no process is attached.
    """
    found = read(directory)
    holds = mine if found is None or (is_alone and _may_replace(directory, found, mine)) else _larger(found, mine)
    _write(directory, found, holds)
    if differing := [name for name in _NAMES if getattr(holds, name) != getattr(mine, name)]:
        shown = ", ".join(f"{name}={getattr(mine, name)} here, {getattr(holds, name)} there" for name in differing)
        is_raised = found is not None and found.spool_max_bytes < mine.spool_max_bytes
        report(
            f"capacity_{directory.path}",
            f"the settings of {directory.path} differ from those that {holds.written_by} has set: {shown}. Those there "
            f"hold{', but for the larger budget of this process' if is_raised else ''}, as long as a process logs "
            "there, or what is pending takes more than half of the smaller budget. No record is lost by that.",
        )
    return holds


def agree(directory: SpoolDirectory, mine: Capacity) -> Capacity:
    """Look once more, now that this process is attached, and return what holds. Never raises.

    Two processes may have begun at the same moment. Each found nobody else, and the later one's settings hold.
    """
    found = read(directory)
    if found is None or found.written_by == mine.written_by:
        return renew(directory, mine)
    return claim(directory, mine, is_alone=False)


def renew(directory: SpoolDirectory, mine: Capacity) -> Capacity:
    """Return what holds now. If two writers began at once, the one with the larger budget sees to it here."""
    found = read(directory)
    holds = mine if found is None else _larger(found, mine)
    _write(directory, found, holds)
    return holds


def _larger(found: Capacity, mine: Capacity) -> Capacity:
    return msgspec.structs.replace(found, spool_max_bytes=max(found.spool_max_bytes, mine.spool_max_bytes))


def _may_replace(directory: SpoolDirectory, found: Capacity, mine: Capacity) -> bool:
    """Tell whether what is pending has room in this budget; in a smaller one than before, so that much more has."""
    is_smaller = mine.spool_max_bytes < found.spool_max_bytes
    with suppress(OSError):
        pending_bytes = segment.pending_bytes(directory.ring, cursor.read(directory.cursor).committed())
        return pending_bytes * (1 + is_smaller) <= mine.spool_max_bytes
    return False


def _write(directory: SpoolDirectory, found: Capacity | None, holds: Capacity) -> None:
    if found is None or any(getattr(found, name) != getattr(holds, name) for name in _NAMES):
        with suppress(OSError):  # no space, say: what was there goes on to hold for the others
            files.replace(directory.capacity, msgspec.json.encode(holds))
