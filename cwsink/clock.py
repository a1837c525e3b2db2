"""The clock for waits and pauses in an application's process.

An application's tests may freeze the clocks of the module `time` (freezegun). A wait that reads a frozen clock never
ends. These libraries leave `clock_gettime` alone. The time of a record is another matter: it is the application's time,
frozen or not.
"""

from __future__ import annotations

from functools import partial
from time import CLOCK_MONOTONIC, clock_gettime
from typing import Final

monotonic: Final = partial(clock_gettime, CLOCK_MONOTONIC)
"""Return seconds since some moment, as `time.monotonic` does."""
