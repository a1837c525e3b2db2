"""Repairs of what fapilog's queue and thread lose, for the loggers that have them.

A logger that writes through (see `inline`) has neither, and needs none of this but the last two
rows. The others are for loggers without our sink, for `pipeline="queue"`, for a logger with a
plugin that waits, and for the other sinks of a logger that writes through.

Measured with fapilog 0.18.1 on Python 3.10 to 3.13. `enable()` puts in place:

| fapilog 0.18.1                                 | the repair                                        |
|------------------------------------------------|---------------------------------------------------|
| Its exit drain calls `asyncio.to_thread`,      | `exit_drain`, from `atexit` and, where that does  |
| which raises once `concurrent.futures` is shut | not run (multiprocessing's fork and forkserver    |
| down, and the error is swallowed: 0 of 50      | children before 3.13, billiard's), from           |
| records reach any sink on a plain exit.        | `multiprocessing.util.Finalize`.                  |
| After a fork the logger's thread is gone: all  | The child gets a new, empty pipeline. The records |
| records of the child are lost, or it hangs on  | queued at the fork are the parent's: it has the   |
| a lock another thread held at the fork.        | thread that writes them.                          |
|                                                | `inline.enrichers` ends its imports; the locks of |
|                                                | those under way at a fork are dropped in a child. |
| Its SIGTERM and SIGINT handlers replace the    | `FAPILOG_CORE__SIGNAL_HANDLER_ENABLED=false`,     |
| server's: requests in flight are killed.       | unless it is set. `Settings(core=...)` is ignored.|
| `enable_stdlib_bridge` hears what asyncio logs | The bridge leaves out the records of our own      |
| of the loop in which we empty a queue: one     | work (see cwsink.diagnostics). Other handlers     |
| record more, which needs another loop.         | hear them as before.                              |

The restart costs a child no thread until it logs: fapilog calls `logger.start()` for every
record and it returns at once while `_worker_loop` is set, so the child clears that, and the
first record starts the thread. (Starting it in the fork hook was rejected: 500 children
that never log would pay for 500 threads.)

Not promised: records still in a queue or batch when the process ends without an exit:
`os._exit`, SIGKILL, and SIGTERM without a handler, which is also how uvicorn's processes end:
after its shutdown it raises the signal again. Such programs call `drain` as their last act
(uvicorn: in the lifespan's shutdown). The drain at exit comes after `concurrent.futures` is shut
down: a sink that needs `to_thread` then fails. prometheus_client's locks are not renewed.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cwsink import diagnostics
from cwsink.frontends.fapilog_names import exists as _exists
from cwsink.frontends.fapilog_names import module as _module
from cwsink.frontends.fapilog_names import of_logger as _of_logger
from cwsink.frontends.inline import seam

if TYPE_CHECKING:
    from logging import LogRecord

SIGNAL_HANDLER_VARIABLE: Final = "FAPILOG_CORE__SIGNAL_HANDLER_ENABLED"

# fapilog's default is 2 s for each logger. A full default queue takes 1.3 s on an idle machine and
# several on a busy one, so this is used unless `atexit_drain_timeout_seconds` is set. It is only
# reached when a sink is stuck.
EXIT_DRAIN_TIMEOUT_SECONDS: Final = 10.0

# Above 0, so that the drain comes before multiprocessing waits for the child's own children.
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
# What the import machinery waits for; CPython, unlike its other locks, does not renew them at a fork.
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

    Idempotent and cheap; never raises. What this fapilog version does not allow is named in
    one RuntimeWarning, and everything else works.
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
    """Name what the repairs need and this fapilog lacks, as "module:Class.name"; [] is healthy."""
    return sorted(name for name in set().union(*_WITHOUT) if not _exists(name))


def drain(timeout_seconds: float) -> None:
    """Hand every record logged so far to its sinks, for all loggers together; never raises.

    Logging goes on working: the next record starts its logger again. What a stuck sink has
    not taken within `timeout_seconds` stays with its worker thread and may be lost.
    """
    with suppress(Exception):
        _drain(time.monotonic() + timeout_seconds, exiting=False)


def exit_drain() -> None:
    """Drain for the last time: later records are written at once, by the thread that logs them.

    May be called by every exit hook and more than once; one that ends the sink calls it first
    (`atexit` runs the latest handler first, so registering it earlier is not enough). All
    calls share one deadline. Obeys `core.atexit_drain_enabled` and
    `core.atexit_drain_timeout_seconds` as far as the environment sets them. Never raises.
    """
    global _exit_deadline
    with suppress(Exception):
        wanted, timeout_seconds = _exit_settings()
        if _exit_deadline is None:
            _exit_deadline = time.monotonic() + timeout_seconds
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
        except Warning:  # under -W error: logging must not stop the application
            sys.stderr.write(f"{text}\n")


def _loggers() -> list[Any]:
    for _ in range(3):
        with suppress(RuntimeError):  # another thread made a logger during the iteration
            return list(_module("fapilog.core.shutdown")._registered_loggers)
    return []


def _exit_settings() -> tuple[bool, float]:
    try:
        core = _module("fapilog").Settings().core  # 1.5 ms
        is_set = "atexit_drain_timeout_seconds" in core.model_fields_set
        timeout_seconds = core.atexit_drain_timeout_seconds if is_set else EXIT_DRAIN_TIMEOUT_SECONDS
        return bool(core.atexit_drain_enabled), float(timeout_seconds)
    except Exception:
        return True, EXIT_DRAIN_TIMEOUT_SECONDS


def _drain(deadline: float, *, exiting: bool) -> None:
    loggers = _loggers()
    for logger in loggers:
        logger._stop_flag = True  # all workers finish side by side
    for logger in loggers:
        with suppress(Exception):
            _stop_worker(logger, deadline, exiting)


def _stop_worker(logger: Any, deadline: float, exiting: bool) -> None:
    owner, enqueue, start = _seam(logger)
    worker = logger._worker_thread
    if worker is not None and worker is not threading.current_thread():
        worker.join(max(0.0, deadline - time.monotonic()))
    if worker is None or not worker.is_alive():
        vars(owner).update({start: lambda: None, enqueue: _write_through(logger)})
        if not logger._queue.is_empty():  # logged while the worker was leaving
            _run(logger._worker_main())
        logger._drain_thread_mode(warn_on_timeout=False)  # its join, without a limit, is done
        # The next start() gathers `_worker_tasks`; tasks of another loop would end its thread.
        logger._worker_tasks = []
        if not exiting:
            vars(owner).pop(enqueue, None)
    if not exiting:
        setattr(owner, start, _start_once(logger))


def _seam(logger: Any) -> tuple[Any, str, str]:
    """Return who enqueues for a logger and starts its thread, and the names of what does so.

    The logger itself, or the pipeline that took it over and enqueues what it does not finish.
    """
    pipeline = seam.pipeline_of(logger)
    if pipeline is None:
        return logger, "_try_enqueue_with_metrics", "start"
    return pipeline, "enqueue", "start_queue"


def _deafen_bridge() -> None:
    """Keep what is logged of our own work out of fapilog's bridge, whenever that is enabled."""
    bridge = _module("fapilog.core.stdlib_bridge").StdlibBridgeHandler
    accepts = bridge.filter

    def accepts_others(handler: Any, record: LogRecord) -> Any:
        return not diagnostics.is_own(record) and accepts(handler, record)

    bridge.filter = accepts_others


def _write_through(logger: Any) -> Callable[[dict[str, Any]], bool]:
    """Let the thread that logs also write, from the moment the worker is gone.

    fapilog would drop what is queued while `_drain_thread_mode` counts leftovers, and would
    start a thread for later records, which Python 3.12 and later forbid at exit: a
    RuntimeError in the application's own atexit handler.
    """
    enqueue = type(logger)._try_enqueue_with_metrics

    def write(payload: dict[str, Any]) -> bool:
        return _run(logger._flush_batch([payload])) or bool(enqueue(logger, payload))

    return write


def _run(coroutine: Coroutine[Any, Any, Any]) -> bool:
    """Run to the end in this thread; False if it could not, as inside a running event loop.

    Not `asyncio.run`: it takes the main thread's current event loop away.
    """
    if asyncio._get_running_loop() is not None:
        coroutine.close()
        return False
    # A new loop logs its selector, which the bridge would bring back here, for a new loop to write.
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
    """Make a `logger.start` for the time after the present worker: fapilog's, but only once.

    Two threads that log the first record would each make a loop, and `gather` over the tasks
    of two loops fails. Who comes second queues its record and goes on.
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
    """Drain in children that end with `os._exit`, once multiprocessing is in use.

    A child clears the finalizers it starts with (also those of a spawned child's main module)
    and then runs the functions of `register_after_fork`: both are needed. billiard uses the
    same registry, but may import it only in the child. A program that uses neither package
    need not carry it.
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
    """Hook of `os.register_at_fork`: they run as registered, so threading's own ran before."""
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
            # It carries the records of an async logger bridged from the logging module.
            _module("fapilog.core.stdlib_bridge")._bridge_loop_manager.__init__()
        for logger in _loggers():
            with suppress(Exception):
                _reset(logger)


def _forget_dead_imports() -> None:
    """Drop the module locks of threads the child does not have, and what they half imported.

    fapilog's context enricher tries `import opentelemetry` for every record, 33 us where it is
    not installed. Forked in one of these, the child waited for that lock for ever.
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
        # Only fapilog's own: other plugins know best what a fork does to them.
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
        # New, not emptied: another thread may have held its locks at the fork.
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
    logger._invalidate_filters_cache()  # the parent's load may have tightened them


def _renew_locks(part: object) -> None:
    for name, value in list(getattr(part, "__dict__", {}).items()):
        if isinstance(value, asyncio.Lock):
            setattr(part, name, asyncio.Lock())
        elif isinstance(value, type(threading.Lock())):
            setattr(part, name, threading.Lock())
        elif isinstance(value, type(threading.RLock())) or type(value).__module__.startswith("cwsink."):
            setattr(part, name, type(value)())  # put there by a pipeline
