"""Runs one logger's pipeline in the thread that logs, from the payload to the spool.

Both of fapilog's facades send each record through the logger's `_try_enqueue_with_metrics`, once it
is gated, prepared and counted as submitted. `Pipeline.log` takes the place of that method. When it
returns, the record was dropped on purpose (by a filter, or a redactor that fails closed), or it is
in the spool, or it was refused and counted.

This needs no thread, no queue and no lock. Therefore a fork, a signal handler or a plugin that logs
may come at any moment. The queue and its thread begin with the first record that has another sink
than ours, or that cannot be finished here (see `handover`).

The sums of fapilog's counters stay right. A record that is finished here is counted here, as
processed. A record that is handed over is counted by fapilog's worker, or here as dropped if the
queue is full. A full queue never makes the caller wait, whatever `drop_on_full` says, because our
sink has nearly always written the record by then.
"""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar, copy_context
from functools import partial
from time import perf_counter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from cwsink import diagnostics
from cwsink.frontends.inline import handover, measuring, outlets, stages, waiting
from cwsink.frontends.inline.giving_back import give_back, is_deep, say_tied
from cwsink.frontends.inline.handover import Passed
from cwsink.frontends.inline.harmless import harmless
from cwsink.frontends.inline.stages import Entry, Suspended, drive
from cwsink.interruption import is_interruption, suppress

# A plugin that logs is called for its own record, which logs again, for ever. From this depth on a record is dropped.
MOST_NESTED: Final = 5

if TYPE_CHECKING:
    from typing import TypeAlias

    # The records that an async caller must await room for, each as (our sink, encoded record, target, entry, view).
    _Waiting: TypeAlias = list[tuple[outlets.SpoolSink, bytes, outlets.Outlet, Entry, Any]]

_waiting: Final[ContextVar[_Waiting | None]] = ContextVar("cwsink_waiting", default=None)


class _Nested(threading.local):
    depth: int = 0


_nested: Final = _Nested()


class Pipeline:
    """The pipeline of one logger.

    Attributes:
        start_queue: starts fapilog's thread for this logger.
        enqueue: puts a record into fapilog's queue; False: it is full.

    `fapilog_repairs` replaces both when it drains, at a fork, and at the end of the process.
    """

    def __init__(self, logger: Any, sinks: outlets.Outlets) -> None:
        self._logger = logger
        self._outlets = sinks
        self._seen: tuple[Any, ...] = ()
        self._metrics = logger._metrics
        self._helper = type(logger)._make_worker(logger)
        self._helper._metrics = self._measured = measuring.measured(logger._metrics)
        self.unlock()
        self._look()

    def unlock(self) -> None:
        """Make new locks: at the start, and in a forked child, because another thread may have held the old ones."""
        self._starting = threading.Lock()
        for plugin in (self._logger, *self._logger._processors_snapshot):
            collector = measuring.behind(getattr(plugin, "_metrics", None))
            if getattr(collector, "_lock", None) is not None:
                collector._lock = measuring.NeverWaits()
        for ring in (self._logger._queue._main, self._logger._queue._protected, *self._logger._circuit_breakers):
            ring._lock = (
                threading.RLock()
            )  # reentrant: a signal handler that logs may interrupt the thread that holds it

    def log(self, payload: Entry) -> bool:
        """Take one record through the pipeline. Always True: fapilog has nothing left to do with it.

        It raises no Exception. A KeyboardInterrupt, or what a signal handler raises, goes on to the caller.
        """
        depth = _nested.depth
        if depth >= MOST_NESTED:
            self._logger._counters["dropped"] += 1
            _say_lost(f"a record logged by a plugin that was called for a record, {depth} deep")
            return True
        _nested.depth = depth + 1
        try:
            self._log(payload)
        except BaseException as error:
            self._logger._counters["dropped"] += 1
            if not isinstance(error, Exception) or is_interruption(error):
                raise  # this belongs to the application: a Ctrl-C while a plugin ran
            _say_lost(f"a record: {type(error).__name__}: {error}")
        finally:
            _nested.depth = depth
        return True

    def _log(self, payload: Entry) -> None:
        logger, seen = self._logger, self._seen
        if is_deep():
            self._hand_over(Passed(payload, stages.FILTERS))
            return
        try:
            if (
                logger._enrichers_snapshot is not seen[1]
                or logger._filters_snapshot is not seen[0]
                or logger._redactors_snapshot is not seen[2]
                or logger._processors_snapshot is not seen[3]
            ):
                self._look(payload)
            if self._isolates:  # a plugin may set a context variable, which must not reach the caller
                copy_context().run(self._process, payload)
            else:
                self._process(payload)
        except Suspended as suspended:
            self._leave_to_queue(suspended)

    async def log_and_wait(self, level: str, message: str, **fields: Any) -> None:
        """Take the place of the async facade's `_enqueue` under `on_full="block"`: await room in the event loop."""
        unfinished: _Waiting = []
        left = iter(unfinished)
        try:
            token = _waiting.set(unfinished)
            try:
                await type(self._logger)._enqueue(self._logger, level, message, **fields)
            finally:
                _waiting.reset(token)
            for sink, payload, target, entry, view in left:
                if not await sink.wait_for_room(payload):
                    drive(target.refuse, entry, view)
        except BaseException:  # the caller is cancelled
            for sink, payload, *_ in left:
                sink.refuse(payload)
            raise

    def start_queue(self) -> None:
        """Start fapilog's thread, unless another thread is doing so."""
        if self._starting.acquire(blocking=False):
            try:
                type(self._logger).start(self._logger)
            finally:
                self._starting.release()

    def enqueue(self, record: Passed) -> bool:
        """Put a record into fapilog's queue, where fapilog's worker counts it. False: the queue is full."""
        return bool(type(self._logger)._try_enqueue_with_metrics(self._logger, record))

    def make_worker(self) -> Any:
        """Take the place of the logger's `_make_worker`: return a worker that runs only the stages that are left."""
        logger = self._logger
        worker = type(logger)._make_worker(logger)
        handover.Remainder(worker, self._outlets, logger).teach(worker)
        return worker

    async def make_dynamic_worker(self, stop_flag: Any) -> None:
        """Take the place of the logger's `_make_dynamic_worker`, with such a worker."""
        logger, worker = self._logger, self.make_worker()
        worker._stop_flag = lambda: logger._stop_flag or stop_flag()
        worker._drained_event = worker._flush_event = worker._flush_done_event = None
        await worker.run(in_thread_mode=True)

    def measure(self, call: Any, *args: Any, **fields: Any) -> None:
        """Take the place of the logger's `_schedule_metrics_call`, which starts a thread each time it has no loop."""
        if self._metrics is not None:
            measuring.in_turn(partial(call, *args, **fields))

    def tell_deduplicated(self, message: str, suppressed: int, window_seconds: float) -> None:
        """Take the place of the logger's `_schedule_dedupe_summary_emission`, which needs the loop of its thread."""
        kind, logger = type(self._logger), self._logger
        if self._has_others:
            self._begin_queue()
            kind._schedule_dedupe_summary_emission(logger, message, suppressed, window_seconds)
        else:
            facade = SimpleNamespace(_name=logger._name, _sink_write=self._write_now)
            drive(kind._emit_dedupe_summary_event, facade, message, suppressed, window_seconds)

    def _look(self, payload: Entry | None = None) -> None:
        """Read which plugins the logger has now.

        Raises:
            Suspended: one of them might wait. No plugin has been called with the payload yet.
        """
        logger = self._logger
        filters, enrichers, redactors, processors = seen = (
            logger._filters_snapshot,
            logger._enrichers_snapshot,
            logger._redactors_snapshot,
            logger._processors_snapshot,
        )
        self._serializes = logger._serialize_in_flush and logger._sink_write_serialized is not None
        if not self._serializes:
            processors = ()  # fapilog does not call processors for such a logger
        for stage, plugins in enumerate((filters, enrichers, redactors, processors)):
            for plugin in plugins:
                if why := waiting.why_it_may_wait(plugin, stages.METHODS[stage]):
                    suspended = Suspended(why)
                    suspended.stage, suspended.entry = stages.FILTERS, payload
                    suspended.kind, suspended.plugin = stage, plugin
                    raise suspended
        self._isolates = not all(
            type(each).__module__.startswith("fapilog.") for each in (*filters, *enrichers, *redactors, *processors)
        )
        self._has_others = any(target.ours is None for target in self._outlets.all)
        for plugin in processors:
            if hasattr(plugin, "_metrics"):
                plugin._metrics = measuring.measured(plugin._metrics)
        guarded = [stages.Guarded(each) for each in processors]
        self._helper._processors_getter = lambda: guarded
        self._stages = stages.Stages(filters, enrichers, redactors, self._measured)
        self._seen = seen  # set last: another thread that finds it must also find everything above

    def _process(self, payload: Entry) -> None:
        if self._metrics is None:
            self._run_stages(payload)
            return
        began = perf_counter()
        self._run_stages(payload)
        self.measure(self._metrics.record_flush, batch_size=1, latency_seconds=perf_counter() - began)

    def _run_stages(self, payload: Entry) -> None:
        plugins = self._stages
        entry = plugins.filter(payload)
        if entry is None:
            return
        entry = plugins.enrich(entry)
        if plugins.has_redactors and not _is_unsafe(entry):
            entry = self._redact(plugins, entry)
            if entry is None:
                self._count_dropped()
                return
        view = heard = None
        if self._serializes:
            is_dropped = False
            try:
                view, is_dropped = drive(self._helper._try_serialize, harmless(entry))
                if view is not None:
                    view = drive(self._helper._apply_processors, view)
            except (Suspended, RecursionError) as error:
                stages.hand_on(error, stages.PROCESSORS, 0, entry)
                raise
            except stages.Interrupted as carried:
                heard = carried.error
            if heard is not None:  # raised out of the `except`: else it and what has carried it would keep each other
                try:
                    raise heard
                finally:
                    heard = None  # and it would keep this frame, which keeps it
            if is_dropped:
                self._count_dropped()
                return
        self._deliver(entry, view)

    def _redact(self, plugins: stages.Stages, entry: Entry) -> Entry | None:
        """Run the redactors. If they fail as a whole, do what the logger's fail mode says. None: dropped."""
        try:
            return plugins.redact(entry)
        except Exception as error:
            stages.hand_on(error, stages.REDACTORS, 0, entry)
            if self._metrics is not None:
                self.measure(self._metrics.record_redaction_exception)
            mode = self._helper._redaction_fail_mode
            drops = mode == "closed"
            told = "dropping event due to redaction exception" if drops else "redaction exception, passing original"
            if mode != "open":
                stages.warn("redactor", told, error=stages.text_of(error), _rate_limit_key="redaction_exception")
            return None if drops else entry

    def _deliver(self, entry: Entry, view: Any) -> None:
        done, left = [], False
        for target in self._outlets.of(entry, view):
            if target.ours is not None and not target.is_replaced and self._write(target, entry, view):
                done.append(id(target.sink))
            else:
                left = True
        if left:
            self._hand_over(Passed(entry, view=view, done=frozenset(done)))
        else:
            self._logger._counters["processed"] += 1

    async def _write_now(self, entry: Entry) -> None:
        for target in self._outlets.of(entry, None):
            if target.ours is not None:
                self._write(target, entry, None)

    def _write(self, target: outlets.Outlet, entry: Entry, view: Any) -> bool:
        """Write to a sink of ours. False: there is no room, and this thread must not wait: it runs an event loop."""
        sink = target.ours
        assert sink is not None
        if sink.blocks and asyncio._get_running_loop() is not None:
            answer = sink.offer(entry, view)
            if isinstance(answer, bytes):
                unfinished = _waiting.get()
                if unfinished is not None:
                    unfinished.append((sink, answer, target, entry, view))
                return unfinished is not None
        else:
            answer = sink.spool(entry, view)
        if not answer:
            drive(target.refuse, entry, view)
        elif target.breaker is not None:
            target.breaker.should_allow()  # if it is open, and has been for long enough, a success closes it
            target.breaker.record_success()
        return True

    def _hand_over(self, record: Passed) -> None:
        self._begin_queue()
        if not self.enqueue(record):
            logger = self._logger
            logger._record_drop_for_summary(1)
            for target in self._outlets.of(record, record.view):
                if target.ours is not None and id(target.sink) not in record.done:
                    target.ours.refuse(target.ours.encoded(record, record.view))
            stages.warn(
                "backpressure",
                "drop on full",
                drop_total=logger._counters["dropped"] + 1,
                queue_hwm=logger._queue_high_watermark,
                capacity=logger._queue.capacity,
            )
            logger._counters["dropped"] += 1  # last: `log` counts a record for which this raises

    def _begin_queue(self) -> None:
        if self._logger._worker_loop is None:
            with suppress(RuntimeError):  # no thread starts at the interpreter's end; the drain at exit does its work
                self.start_queue()

    def _leave_to_queue(self, suspended: Suspended) -> None:
        """Put the record that a plugin left unfinished into fapilog's queue, and give the logger back to the queue."""
        if isinstance(suspended, stages.TiedToThread):
            self._logger._counters["dropped"] += 1
            say_tied(self._logger, suspended)
            return
        if not isinstance(suspended, stages.TooDeep):
            give_back(self._logger, suspended)
        entry = suspended.entry
        if entry is not None:
            self._hand_over(Passed(entry, suspended.stage, suspended.at))

    def _count_dropped(self) -> None:
        self._logger._counters["dropped"] += 1
        if self._metrics is not None:
            self.measure(self._metrics.record_events_dropped, 1)


def _say_lost(what: str) -> None:
    diagnostics.report("inline_dropped", f"lost {what}. It is counted as dropped; the application goes on.")


def _is_unsafe(entry: Entry) -> bool:
    """Tell whether an entry comes from `unsafe_debug`. fapilog does not redact such an entry."""
    data = entry.get("data")
    return isinstance(data, dict) and data.get("_fapilog_unsafe") is True
