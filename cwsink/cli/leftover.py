"""What stays in a spool when a flusher has ended, and nobody is there who goes on with it (only looks)."""

from __future__ import annotations

import time
from typing import Final

from cwsink.spool import lease, orphans
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import has_pending, survey

# A worker that may lead tries this often, and then a little.
_TAKEOVER_SECONDS: Final = 2 * lease.TRY_SECONDS
_POLL_SECONDS: Final = 0.05


def count(directory: SpoolDirectory) -> int:
    """Return how many records wait with nobody to send them. Whoever is about to take over is waited for."""
    until = time.monotonic() + _TAKEOVER_SECONDS
    while has_pending(directory):
        if orphans.is_led(directory):
            return 0
        if time.monotonic() >= until or not orphans.is_attached(directory):
            return survey(directory).pending
        time.sleep(_POLL_SECONDS)
    return 0
