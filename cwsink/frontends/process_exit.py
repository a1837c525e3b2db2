"""Runs our exit code at the end of a process, in a fixed order, by the hook that its kind of process has.

`atexit` does not run in multiprocessing's children before Python 3.13. multiprocessing's `Finalize` runs in all of
them. Neither runs in Celery's children, but Celery sends a signal there. No hook runs in a process that is killed or
ends by `os._exit`. The kernel detaches such a process from the spool, and the flusher sends the records it left.
"""

from __future__ import annotations

import atexit
import contextlib
import sys
from collections.abc import Callable
from typing import Final

from cwsink.spool import descriptors

# Runs before multiprocessing's own finalizers of queues and pools (priorities 10 and below).
_EXIT_PRIORITY: Final = 100

before_leaving: list[Callable[[], None]] = []
"""Called first, in this order: the drain of fapilog's queues, then the writers' last loss markers."""

leaving: list[Callable[[], None]] = []
"""Called after `before_leaving`: the process lets go of its spools."""

_is_registered = False


def register() -> None:
    """Register the exit hooks of this kind of process. A second call changes nothing."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True
    # A child of multiprocessing has loaded these modules. Other processes are not to pay for an import.
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is not None and process is not None and process.parent_process() is not None:
        util.Finalize(None, _leave, exitpriority=_EXIT_PRIORITY)
    billiard = sys.modules.get("billiard.util")  # Celery's fork of multiprocessing
    if billiard is not None:
        billiard.Finalize(None, _leave, exitpriority=_EXIT_PRIORITY)
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(_leave_celery_child, weak=False, dispatch_uid="cwsink")
    atexit.register(_leave)


def _leave() -> None:
    # In a child that C code forked and that never logged, all open descriptors and attachments are still the parent's.
    if not descriptors.fork_sentinel[0]:
        descriptors.become_child()
    for call in (*before_leaving, *leaving):
        with contextlib.suppress(Exception):
            call()


def _leave_celery_child(**_: object) -> None:
    _leave()


def _forked() -> None:
    global _is_registered
    _is_registered = False


descriptors.after_fork(_forked)
