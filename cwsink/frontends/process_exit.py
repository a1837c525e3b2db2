"""When a process ends: what each kind of process calls, and in which order it is done.

`atexit` does not run in multiprocessing's children before Python 3.13; its `Finalize` does, everywhere. Neither runs in
Celery's children, which send a signal. None of it runs in a process that is killed, or ends by `os._exit`: the kernel
drops its mark on the spool, and the flusher sends what it left.
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
"""Called, in order, before the process leaves its spools: the drain of fapilog, the writers' last loss markers."""

leaving: list[Callable[[], None]] = []
"""Called after them."""

_is_registered = False


def register() -> None:
    """Have the end of this process handled, once, whoever started it."""
    global _is_registered
    if _is_registered:
        return
    _is_registered = True
    # Only if the module is there already: a child of multiprocessing has it, others need not pay for it.
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
    if not descriptors.here[0]:  # a child of a fork in C that never logged: what is open and attached is its parent's
        descriptors.notice_fork()
    for call in (*before_leaving, *leaving):
        with contextlib.suppress(Exception):
            call()


def _leave_celery_child(**_: object) -> None:
    _leave()


def _forked() -> None:
    global _is_registered
    _is_registered = False


descriptors.after_fork(_forked)
