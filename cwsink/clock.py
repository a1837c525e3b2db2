"""The clock for waits and pauses in an application's process.

An application's tests may freeze the clocks of the module `time` (freezegun). A wait that reads a frozen clock never
ends. These libraries leave `clock_gettime` alone. The time of a record is another matter: it is the application's time,
frozen or not.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Final

# Windows has no such clock. There nothing waits (cwsink.frontends.console).
monotonic: Final = (
    partial(time.clock_gettime, time.CLOCK_MONOTONIC) if hasattr(time, "clock_gettime") else time.monotonic
)
"""Return seconds since some moment, as `time.monotonic` does."""
wall: Final = partial(time.clock_gettime, time.CLOCK_REALTIME) if hasattr(time, "clock_gettime") else time.time
"""Return seconds since 1970, as `time.time` does: for what several processes tell each other."""
