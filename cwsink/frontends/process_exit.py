"""Runs our exit code at the end of a process, in a fixed order, by the hook that its kind of process has.

`atexit` does not run in multiprocessing's children before Python 3.13. multiprocessing's `Finalize` runs in all of
them. Neither runs in Celery's children, but Celery sends a signal there. No hook runs in a process that is killed or
ends by `os._exit`. The kernel detaches such a process from the spool, and the flusher sends the records it left.
"""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from typing import Final

# Runs before multiprocessing's own finalizers of queues and pools (priorities 10 and below).
_EXIT_PRIORITY: Final = 100


def register(leave: Callable[[], None]) -> None:
    """Have `leave` called at the end of this process, by the hook that this kind of process has."""
    # A child of multiprocessing has loaded these modules. Other processes are not to pay for an import.
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, leave, exitpriority=_EXIT_PRIORITY)
    billiard = sys.modules.get("billiard.util")  # Celery's fork of multiprocessing
    if billiard is not None:
        billiard.Finalize(None, leave, exitpriority=_EXIT_PRIORITY)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(lambda **_: leave(), weak=False, dispatch_uid="cwsink")
    atexit.register(leave)
