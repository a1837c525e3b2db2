"""Repairs fapilog's queue and thread, which lose records, for the loggers that have them.

A logger that writes through (see `inline`) has no queue and no thread, and needs only the last
two rows. The other rows are for loggers without our sink, for `pipeline="queue"`, for a logger
with a plugin that waits, and for the other sinks of a logger that writes through.

Measured with fapilog 0.18.1 on Python 3.10 to 3.13. `enable()` puts in place:

| fapilog 0.18.1                                 | the repair                                        |
|------------------------------------------------|---------------------------------------------------|
| Its exit drain calls `asyncio.to_thread`,      | `exit_drain`, from `atexit` and, where that does  |
| which raises once `concurrent.futures` is shut | not run (multiprocessing's fork and forkserver    |
| down, and the error is swallowed: 0 of 50      | children before 3.13, billiard's), from           |
| records reach any sink on a plain exit.        | `multiprocessing.util.Finalize`.                  |
| After a fork the logger's thread is gone: all  | The child gets a new, empty pipeline. The records |
| records of the child are lost, or it hangs on  | queued at the fork belong to the parent, which    |
| a lock another thread held at the fork.        | has the thread that writes them. The child also   |
|                                                | drops the locks of imports that were under way at |
|                                                | the fork. (`inline.enrichers` ends fapilog's.)    |
| Its SIGTERM and SIGINT handlers replace the    | `FAPILOG_CORE__SIGNAL_HANDLER_ENABLED=false`,     |
| server's: requests in flight are killed.       | unless it is set. `Settings(core=...)` is ignored.|
| `enable_stdlib_bridge` also brings the record  | The bridge leaves out the records of our own      |
| that asyncio logs for the loop in which we     | work (see cwsink.diagnostics). Other handlers get |
| empty a queue. It would need another loop.     | them as before.                                   |

A child gets no thread until it logs. fapilog calls `logger.start()` for every record, which
returns at once while `_worker_loop` is set. The fork hook clears that, and the first record
starts the thread. (Rejected: to start the thread in the fork hook. 500 children that never log
would pay for 500 threads.)

Not promised: the records that are in a queue or batch when a process ends without an exit, by
`os._exit`, SIGKILL, or SIGTERM without a handler. uvicorn's processes end like that, because
uvicorn raises the signal again after its shutdown. Such programs call `drain` as their last act
(uvicorn: in the lifespan's shutdown). The drain at exit comes after `concurrent.futures` is shut
down, so a sink that needs `to_thread` fails then. prometheus_client's locks are not renewed.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cwsink import diagnostics
from cwsink.clock import monotonic
from cwsink.frontends.fapilog_names import exists as _exists
from cwsink.frontends.fapilog_names import module as _module
from cwsink.frontends.fapilog_names import of_logger as _of_logger
from cwsink.frontends.inline import seam

if TYPE_CHECKING:
    from logging import LogRecord

SIGNAL_HANDLER_VARIABLE: Final = "FAPILOG_CORE__SIGNAL_HANDLER_ENABLED"

# fapilog's default is 2 s for each logger, but to drain a full default queue takes 1.3 s on an idle
# machine and several on a busy one. This is used instead, unless `atexit_drain_timeout_seconds` is
# set. An exit takes that long only if a sink is stuck.
EXIT_DRAIN_TIMEOUT_SECONDS: Final = 10.0

# A finalizer with a priority above 0 runs before multiprocessing waits for the child's own children.
FINALIZE_PRIORITY: Final = 100


_DRAIN_NEEDS: Final = (
    "fapilog.core.shutdown:_registered_loggers",
    *_of_logger("start _drain_thread_mode _flush_batch _worker_main _try_enqueue_with_metrics"),
    *_of_logger("_queue _stop_flag _worker_loop _worker_tasks _worker_thread"),
)
_RESTART_NEEDS: Final = (
    "fapilog:_cache_lock",
    "fapilog.core.shutdown:_install_lock",
    "fapilog.core.shutdown:_registered_loggers",
    "fapilog.core.stdlib_bridge:_bridge_loop_manager",
    "fapilog.core.concurrency:DualQueue.capacity",
    "fapilog.core.concurrency:DualQueue.protected_capacity",
    *_of_logger("start _invalidate_filters_cache _started _stop_flag _thread_ready _queue _protected_levels"),
    *_of_logger("_worker_loop _worker_pool _worker_tasks _worker_thread _pressure_monitor _pressure_monitor_task"),
    *_of_logger("_drained_event _flush_event _flush_done_event _counters _submitted _retried"),
    *_of_logger("_backpressure_retries _queue_high_watermark _drop_count_since_summary"),
    *_of_logger("_sinks _filters _enrichers _redactors _processors _circuit_breakers _metrics"),
)
# An import waits for the lock of its module. CPython renews its other locks at a fork, but not these.
_IMPORT_NEEDS: Final = ("importlib._bootstrap:_module_locks",)
_WITHOUT: Final = {
    _DRAIN_NEEDS: "records logged just before a process exits",
    _RESTART_NEEDS: "all records of a forked child whose logger is older than the fork",
    _IMPORT_NEEDS: "all records of a child, if another thread was importing at the fork",
}

_enabled = _covers_multiprocessing = False
_works: dict[tuple[str, ...], bool] = dict.fromkeys(_WITHOUT, False)
_exit_deadline: float | None = None


def enable() -> None:
    """Put the repairs in place, before the first `get_logger`.

    Idempotent and cheap; never raises. If this fapilog version does not allow one of them, one
    RuntimeWarning says which records will be lost, and the other repairs work.
    """
    global _enabled
    os.environ.setdefault(SIGNAL_HANDLER_VARIABLE, "false")
    if not _enabled:
        _enabled = True
        _works.update((needs, all(map(_exists, needs))) for needs in _WITHOUT)
        _warn_of_what_is_lost()
        if _works[_DRAIN_NEEDS]:
            atexit.register(exit_drain)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_after_fork_in_child)
        with suppress(Exception):
            _deafen_bridge()
    with suppress(Exception):
        _cover_multiprocessing()


def missing() -> list[str]:
    """Return the names that the repairs need and this fapilog lacks, as "module:Class.name". Empty is healthy."""
    return sorted(name for name in set().union(*_WITHOUT) if not _exists(name))


def drain(timeout_seconds: float) -> None:
    """Hand every record logged so far to its sinks, for all loggers together; never raises.

    The process may go on logging: the next record starts its logger again. A record that a stuck
    sink has not taken within `timeout_seconds` stays with the worker thread, and may be lost.
    """
    with suppress(Exception):
        _drain(monotonic() + timeout_seconds, exiting=False)


def exit_drain() -> None:
    """Drain for the last time. Later records are written at once, by the thread that logs them.

    Every exit hook may call this, and more than once: all calls share one deadline. An exit hook
    that ends the sink must call it first, because `atexit` runs the latest handler first, and this
    one may be an earlier one. It obeys `core.atexit_drain_enabled` and
    `core.atexit_drain_timeout_seconds` if the environment sets them. Never raises.
    """
    global _exit_deadline
    with suppress(Exception):
        wanted, timeout_seconds = _exit_settings()
        if _exit_deadline is None:
            _exit_deadline = monotonic() + timeout_seconds
        if wanted:
            _drain(_exit_deadline, exiting=True)


def _warn_of_what_is_lost() -> None:
    lost = [what for needs, what in _WITHOUT.items() if not _works[needs]]
    if lost:
        text = (
            f"cwsink: this fapilog lacks {', '.join(missing())}. It will lose, unnoticed: "
            f"{'; '.join(lost)}. Use fapilog 0.18.1 or a newer cwsink."
        )
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        except Warning:  # under -W error a warning is raised, but logging must not stop the application
            sys.stderr.write(f"{text}\n")


def _loggers() -> list[Any]:
    for _ in range(3):
        with suppress(RuntimeError):  # another thread made a logger during the iteration
            return list(_module("fapilog.core.shutdown")._registered_loggers)
    return []


def _exit_settings() -> tuple[bool, float]:
    try:
        core = _module("fapilog").Settings().core  # takes 1.5 ms
        is_set = "atexit_drain_timeout_seconds" in core.model_fields_set
        timeout_seconds = core.atexit_drain_timeout_seconds if is_set else EXIT_DRAIN_TIMEOUT_SECONDS
        return bool(core.atexit_drain_enabled), float(timeout_seconds)
    except Exception:
        return True, EXIT_DRAIN_TIMEOUT_SECONDS


def _drain(deadline: float, *, exiting: bool) -> None:
    loggers = _loggers()
    for logger in loggers:
        logger._stop_flag = True  # told to all of them first, so that the workers finish side by side
    for logger in loggers:
        with suppress(Exception):
            _stop_worker(logger, deadline, exiting)


def _stop_worker(logger: Any, deadline: float, exiting: bool) -> None:
    owner, enqueue, start = _seam(logger)
    worker = logger._worker_thread
    if worker is not None and worker is not threading.current_thread():
        worker.join(max(0.0, deadline - monotonic()))
    if worker is None or not worker.is_alive():
        vars(owner).update({start: lambda: None, enqueue: _write_through(logger)})
        if not logger._queue.is_empty():  # another thread has logged while the worker was ending
            _run(logger._worker_main())
        logger._drain_thread_mode(warn_on_timeout=False)  # it joins the worker without a limit, but that has ended
        # The next start() gathers `_worker_tasks`. A task of another loop in it would end the new thread.
        logger._worker_tasks = []
        if not exiting:
            vars(owner).pop(enqueue, None)
    if not exiting:
        setattr(owner, start, _start_once(logger))


def _seam(logger: Any) -> tuple[Any, str, str]:
    """Return the object that enqueues for a logger and starts its thread, and the names of the two methods.

    It is the logger itself, or the pipeline that has taken the logger over.
    """
    pipeline = seam.pipeline_of(logger)
    if pipeline is None:
        return logger, "_try_enqueue_with_metrics", "start"
    return pipeline, "enqueue", "start_queue"


def _deafen_bridge() -> None:
    """Keep the log records of our own work out of fapilog's bridge, whenever the application enables that."""
    bridge = _module("fapilog.core.stdlib_bridge").StdlibBridgeHandler
    accepts = bridge.filter

    def accepts_others(handler: Any, record: LogRecord) -> Any:
        return not diagnostics.is_own(record) and accepts(handler, record)

    bridge.filter = accepts_others


def _write_through(logger: Any) -> Callable[[dict[str, Any]], bool]:
    """Return a function that enqueues for a logger whose worker has ended: the thread that logs writes the record.

    fapilog would drop a record that is queued while `_drain_thread_mode` counts leftovers. For
    later records it would start a thread. Python 3.12 and later forbid that at exit: the
    application's own atexit handler, which logs, would get a RuntimeError.
    """
    enqueue = type(logger)._try_enqueue_with_metrics

    def write(payload: dict[str, Any]) -> bool:
        return _run(logger._flush_batch([payload])) or bool(enqueue(logger, payload))

    return write


def _run(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Run a coroutine to its end in this thread. False: it failed, or this thread is inside a running event loop.

    (Rejected: `asyncio.run`. It takes the main thread's current event loop away.)
    """
    if asyncio._get_running_loop() is not None:
        coroutine.close()
        return False
    # A new loop logs its selector. The bridge would bring that record here, which would need a new loop, and so on.
    with diagnostics.own_work():
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(coroutine)
        except Exception:
            return False
        finally:
            loop.close()
    return True


def _start_once(logger: Any) -> Callable[[], None]:
    """Return a `logger.start` that calls fapilog's own once, after the present worker has ended.

    Two threads may log the first records at the same moment. Each would make a loop, and `gather`
    over the tasks of two loops fails. So the first thread starts the worker, and the second one
    only puts its record into the queue.
    """
    starting, former = threading.Lock(), logger._worker_thread
    owner, _, name = _seam(logger)

    def start() -> None:
        if (former is None or not former.is_alive()) and starting.acquire(blocking=False):
            try:
                if former is not None:
                    logger._worker_loop, logger._worker_tasks = None, []
                type(logger).start(logger)
            finally:
                if vars(owner).get(name) is start:
                    delattr(owner, name)

    return start


def _cover_multiprocessing() -> None:
    """Drain in the children of multiprocessing and billiard, which end with `os._exit`.

    A child first clears its finalizers (also those of a spawned child's main module), and then
    runs the functions of `register_after_fork`. Therefore the finalizer is registered here, and
    by such a function once more. billiard uses the same registry, but may import it only in the
    child. A program that uses neither package is not to load it.
    """
    global _covers_multiprocessing
    used = not sys.modules.keys().isdisjoint(("multiprocessing.util", "billiard"))
    if used and _works[_DRAIN_NEEDS] and not _covers_multiprocessing:
        _covers_multiprocessing = True
        util = _module("multiprocessing.util")

        def finalize(drain_at_exit: Callable[[], None]) -> None:
            util.Finalize(None, drain_at_exit, exitpriority=FINALIZE_PRIORITY)

        finalize(exit_drain)
        util.register_after_fork(exit_drain, finalize)


def _after_fork_in_child() -> None:
    """Give a forked child's loggers new pipelines. Hooks run in the order of registration: threading's own has run."""
    global _exit_deadline
    _exit_deadline = None
    with suppress(Exception):
        _cover_multiprocessing()
    if _works[_IMPORT_NEEDS]:
        with suppress(Exception):
            _forget_dead_imports()
    if _works[_RESTART_NEEDS]:
        with suppress(Exception):
            _module("fapilog")._cache_lock = threading.Lock()
            _module("fapilog.core.shutdown")._install_lock = threading.Lock()
            # The bridge brings the logging module's records to an async logger through a loop of its own.
            _module("fapilog.core.stdlib_bridge")._bridge_loop_manager.__init__()
        for logger in _loggers():
            with suppress(Exception):
                _reset(logger)


def _forget_dead_imports() -> None:
    """Drop the import locks of threads that the child does not have, and the modules they half imported.

    fapilog's context enricher tries `import opentelemetry` for every record, which takes 33 us
    where it is not installed. A child that was forked in that time waited for the lock for ever.
    """
    locks = _module("importlib._bootstrap")._module_locks
    for name, reference in list(locks.items()):
        lock = reference()
        if lock is not None and lock.owner != threading.get_ident():
            locks.pop(name, None)
            spec = getattr(sys.modules.get(name), "__spec__", None)
            if lock.owner is not None and getattr(spec, "_initializing", False):
                del sys.modules[name]


def _reset(logger: Any) -> None:
    owner, enqueue, start = _seam(logger)
    vars(owner).pop(enqueue, None)
    if owner is logger or logger._worker_thread is not None or logger._queue_high_watermark:
        _reset_queue(logger)
        setattr(owner, start, _start_once(logger))
    parts = [logger._metrics, *logger._sinks, *logger._filters, *logger._enrichers]
    for part in (*parts, *logger._redactors, *logger._processors, *logger._circuit_breakers):
        # Only in fapilog's own plugins. Other plugins know best what a fork does to them.
        if type(part).__module__.startswith("fapilog."):
            _renew_locks(part)
    if owner is not logger:
        owner.unlock()


def _reset_queue(logger: Any) -> None:
    state, queue = vars(logger), logger._queue
    nothing = "_drained_event _flush_event _flush_done_event _worker_loop _worker_thread _worker_pool"
    nothing += " _pressure_monitor _pressure_monitor_task"
    zero = "_submitted _retried _backpressure_retries _queue_high_watermark _drop_count_since_summary"
    state.update(
        dict.fromkeys(nothing.split()),
        **dict.fromkeys(zero.split(), 0),
        # A new queue instead of the emptied old one, because another thread may have held its locks at the fork.
        _queue=type(queue)(
            main_capacity=queue.capacity,
            protected_capacity=queue.protected_capacity,
            protected_levels=logger._protected_levels,
        ),
        _counters={"processed": 0, "dropped": 0},
        _worker_tasks=[],
        _thread_ready=threading.Event(),
        _stop_flag=False,
        _started=False,
    )
    logger._invalidate_filters_cache()  # under load the parent may have tightened its filters


def _renew_locks(part: object) -> None:
    for name, value in list(getattr(part, "__dict__", {}).items()):
        if isinstance(value, asyncio.Lock):
            setattr(part, name, asyncio.Lock())
        elif isinstance(value, type(threading.Lock())):
            setattr(part, name, threading.Lock())
        elif isinstance(value, type(threading.RLock())) or type(value).__module__.startswith("cwsink."):
            setattr(part, name, type(value)())  # an RLock or a lock of ours, which a pipeline has put there
