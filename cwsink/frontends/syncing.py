"""Syncs what a writer has appended under `durability="host"`, while no leader does it.

An append may be the last one for long, and nothing of ours runs in the application that could sync it later. So while
nobody leads each append is synced before it returns.
"""

from __future__ import annotations

from typing import Final

from cwsink.clock import monotonic
from cwsink.interruption import suppress
from cwsink.spool import leader_state
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.ring import Ring
from cwsink.spool.segment import SegmentKey

# A writer that has seen that a leader syncs looks again after this time.
_LED_SECONDS: Final = 0.1


class Syncing:
    """The syncs of one writer."""

    def __init__(self) -> None:
        self._led_until = 0.0

    def sync(self, directory: SpoolDirectory, ring: Ring, before: SegmentKey | None) -> None:
        """Sync what was appended to the disk, if no leader does it. A sync that fails leaves it to the next append.

        `before`: the segment that was attached before the append.
        """
        now = monotonic()
        if now < self._led_until:
            return
        with suppress(Exception):
            if leader_state.is_synced(directory):
                self._led_until = now + _LED_SECONDS
            else:
                ring.sync(before)
