"""Finds the loggers one of whose sinks is ours, and puts a pipeline into each.

fapilog calls a logger's `start` as soon as it is made, and again for each record. The first call
is where we look at its sinks. A logger that is taken over gets a `start` that does nothing; when
its queue is needed after all, the class's own is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fapilog.core import shutdown
from fapilog.core.logger import AsyncLoggerFacade, _LoggerMixin

from cwsink import diagnostics
from cwsink.frontends.fapilog_names import exists, of_logger
from cwsink.frontends.inline import enrichers, outlets
from cwsink.frontends.inline.pipeline import ATTRIBUTE, Pipeline, give_back
from cwsink.frontends.inline.stages import Suspended

NEEDS: Final = (
    *of_logger("start _make_worker _make_dynamic_worker _try_enqueue_with_metrics _schedule_metrics_call"),
    *of_logger("_schedule_dedupe_summary_emission _emit_dedupe_summary_event _record_drop_for_summary"),
    *of_logger("_filters_snapshot _enrichers_snapshot _redactors_snapshot _processors_snapshot _circuit_breakers"),
    *of_logger("_sink_write _sink_write_serialized _serialize_in_flush _metrics _counters _queue _worker_loop _name"),
    *of_logger("_batch_timeout_seconds _queue_high_watermark _stop_flag"),
    *(f"fapilog.core.logger:{facade}._enqueue" for facade in ("SyncLoggerFacade", "AsyncLoggerFacade")),
    *(
        f"fapilog.core.worker:LoggerWorker.{name}"
        for name in (
            "_apply_filters _apply_enrichers _apply_redactors _try_serialize _apply_processors _sink_write "
            "_sink_write_serialized _metrics _redaction_fail_mode _stop_flag _drained_event _flush_event "
            "_flush_done_event run"
        ).split()
    ),
    *(
        f"fapilog.core.sink_writers:SinkWriterGroup.{name}"
        for name in "_sinks _writers _breakers _parallel _write_one _write_one_serialized".split()
    ),
    *(
        f"fapilog.core.routing:RoutingSinkWriter.{name}"
        for name in "_sink_entries _parallel _write_one get_sinks_for_level".split()
    ),
    "fapilog.core.circuit_breaker:SinkCircuitBreaker._lock",
    "fapilog.core.concurrency:DualQueue._main",
    "fapilog.core.concurrency:DualQueue._protected",
    "fapilog.core.concurrency:NonBlockingRingQueue._lock",
    "fapilog.metrics.metrics:MetricsCollector._lock",
    "fapilog.metrics.metrics:plugin_timer",
    "fapilog.plugins.enrichers:_deep_merge",
    "fapilog.plugins.filters:_record_filter_metrics",
)

_start: Callable[[Any], None] | None = None
_is_lacking = False


def enable() -> None:
    """Look at each logger from now on. Idempotent; never raises."""
    global _start, _is_lacking
    if _start is not None or _is_lacking:
        return
    enrichers.enable()
    if lacking := missing():
        _is_lacking = True
        diagnostics.report(
            "lacking",
            f"this fapilog lacks {', '.join(lacking)}, so its loggers keep its queue: SIGKILL or os._exit loses the "
            "records of the last core.batch_timeout_seconds. Use fapilog 0.18.1 or a newer cwsink.",
        )
        return
    _start = _LoggerMixin.start
    _LoggerMixin.start = _start_or_take_over  # type: ignore[assignment,method-assign]


def missing() -> list[str]:
    """Name what this needs and this fapilog lacks, as "module:Class.name"; [] is healthy."""
    return sorted(name for name in NEEDS if not exists(name))


def pipeline_of(logger: Any) -> Pipeline | None:
    """Return the pipeline of a logger that was taken over, and was not given back."""
    found: Pipeline | None = vars(logger).get(ATTRIBUTE)
    return found


def _start_or_take_over(logger: Any) -> None:
    try:
        if ATTRIBUTE not in vars(logger) and _take_over(logger):
            return
    except Exception as error:
        diagnostics.report(
            "takeover",
            f"the fapilog logger {getattr(logger, '_name', '?')!r} keeps fapilog's queue, because of "
            f"{type(error).__name__}: {error}.",
        )
    if _start is not None:
        _start(logger)


def _is_ours(sink: Any) -> bool:
    return getattr(sink, "writes_through", False) is True


def _take_over(logger: Any) -> bool:
    """Put a pipeline into a logger of ours; False: it keeps its queue."""
    vars(logger)[ATTRIBUTE] = None
    found = outlets.find(logger._sink_write, _is_ours)
    ours = [] if found is None else [target.ours for target in found.all() if target.ours is not None]
    if found is None or not ours:
        return False
    try:
        pipeline = Pipeline(logger, found)
    except Suspended as suspended:
        give_back(logger, suspended)
        return False
    vars(logger).update(
        {ATTRIBUTE: pipeline},
        start=_nothing,
        _try_enqueue_with_metrics=pipeline.log,
        _make_worker=pipeline.make_worker,
        _make_dynamic_worker=pipeline.make_dynamic_worker,
        _schedule_metrics_call=pipeline.measure,
        _schedule_dedupe_summary_emission=pipeline.tell_deduplicated,
    )
    if isinstance(logger, AsyncLoggerFacade) and any(sink.blocks for sink in ours):
        vars(logger)["_enqueue"] = pipeline.log_and_wait
    # As fapilog's own start does: who drains all loggers must find this one.
    shutdown.install_shutdown_handlers()
    shutdown.register_logger(logger)
    return True


def _nothing() -> None:
    """Be the `start` of a logger that needs no thread."""
