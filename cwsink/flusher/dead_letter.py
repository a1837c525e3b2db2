"""What can never be delivered, kept: one JSON line each, with the reason.

```text
{"time": "...Z", "reason": "too_old", "error": "...", "id": "producer-sequence",
 "timestamp_ms": 1700000000000, "message": "..."}
```

Damage has no record to keep: its line holds segment, offset and the bytes in base64.
The file and its predecessor (`.1`) together stay below `max_bytes`, oldest out.
"""

from __future__ import annotations

import base64
import contextlib
import os
import time
from typing import Any, Final

import msgspec

from cwsink.diagnostics import report
from cwsink.spool import descriptors
from cwsink.spool.record import Event

MAX_BYTES: Final = 8 * 1024 * 1024
# A damaged range is kept for a look at what happened, not for a replay.
_MOST_DAMAGE_BYTES: Final = 64 * 1024


class DeadLetters:
    """The dead letters of one spool. Only the leader writes them."""

    def __init__(self, path: str, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._half = max_bytes // 2

    def add(self, reason: str, error: str, events: list[Event]) -> None:
        """Keep events. Never raises: a full disk must not stop what can be delivered."""
        self._append(
            reason,
            [
                {
                    "reason": reason,
                    "error": error,
                    "id": event.id,
                    "timestamp_ms": event.timestamp_ms,
                    "message": event.message,
                }
                for event in events
            ],
        )

    def add_damage(self, segment: int, start: int, data: bytes) -> None:
        """Keep a damaged range of a segment."""
        content = base64.b64encode(data[:_MOST_DAMAGE_BYTES]).decode()
        line = {"reason": "corrupt", "segment": segment, "offset": start, "bytes": len(data), "data": content}
        self._append("corrupt", [line])

    def _append(self, reason: str, lines: list[dict[str, Any]]) -> None:
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        data = b"".join(msgspec.json.encode({"time": now, **line}) + b"\n" for line in lines)
        try:
            fd = descriptors.acquire(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            try:
                if os.fstat(fd).st_size and os.fstat(fd).st_size + len(data) > self._half:
                    os.replace(self._path, f"{self._path}.1")
                    descriptors.release(fd, descriptors.incarnation())
                    fd = descriptors.acquire(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
                with contextlib.suppress(BlockingIOError):
                    os.write(fd, data)
            finally:
                descriptors.release(fd, descriptors.incarnation())
        except OSError as error:
            report("dead_letters", f"{len(lines):,} dead letters could not be kept in {self._path}: {error.strerror}.")
        report(
            f"dead_{reason}",
            f"{len(lines):,} records cannot be delivered ({reason}). They are kept in {self._path}; the rest goes on.",
        )
