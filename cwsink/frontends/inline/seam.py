"""Hooks into fapilog: checks that it has all the names we need, and looks at each logger as it starts.

fapilog calls a logger's `start` as soon as the logger is made, and again for each record. At the
first call `takeover` looks at the logger's sinks. Before the hook is put in place, all names of
fapilog that it needs are looked up. If one is missing, no logger is taken over, and one line says so.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from cwsink import diagnostics
from cwsink.frontends.fapilog_names import PIPELINE, exists, module, of, of_logger
from cwsink.interruption import is_interruption

if TYPE_CHECKING:
    from cwsink.frontends.inline.pipeline import Pipeline

NEEDS: Final = (
    *of_logger("start _make_worker _make_dynamic_worker _try_enqueue_with_metrics _schedule_metrics_call"),
    *of_logger("_schedule_dedupe_summary_emission _emit_dedupe_summary_event _record_drop_for_summary"),
    *of_logger("_filters_snapshot _enrichers_snapshot _redactors_snapshot _processors_snapshot _circuit_breakers"),
    *of_logger("_sink_write _sink_write_serialized _serialize_in_flush _metrics _counters _queue _worker_loop _name"),
    *of_logger("_batch_timeout_seconds _queue_high_watermark _stop_flag _cached_adaptive_enabled _pressure_monitor"),
    "fapilog.core.logger:SyncLoggerFacade._enqueue",
    "fapilog.core.logger:AsyncLoggerFacade._enqueue",
    *of(
        "fapilog.core.worker:LoggerWorker",
        "_apply_filters _apply_enrichers _apply_redactors _try_serialize _apply_processors _sink_write "
        "_sink_write_serialized _processors_getter _metrics _redaction_fail_mode _stop_flag _drained_event "
        "_flush_event _flush_done_event run",
    ),
    *of(
        "fapilog.core.sink_writers:SinkWriterGroup",
        "_sinks _writers _breakers _fallback_writers _parallel _write_one _write_one_serialized",
    ),
    *of("fapilog.core.routing:RoutingSinkWriter", "_sink_entries _parallel _write_one get_sinks_for_level"),
    "fapilog.core.circuit_breaker:SinkCircuitBreaker._lock",
    "fapilog.core.concurrency:DualQueue._main",
    "fapilog.core.concurrency:DualQueue._protected",
    "fapilog.core.concurrency:NonBlockingRingQueue._lock",
    "fapilog.core.pressure:PressureMonitor",
    "fapilog.metrics.metrics:MetricsCollector._lock",
    "fapilog.metrics.metrics:plugin_timer",
    "fapilog.plugins.enrichers:_deep_merge",
    "fapilog.plugins.filters:_record_filter_metrics",
)

_is_enabled = False


def enable() -> None:
    """Put the hook in place, which looks at each logger from now on. Idempotent."""
    global _is_enabled
    if _is_enabled:
        return
    _is_enabled = True
    lacking = missing()
    try:
        if not lacking:
            _hook(importlib.import_module("cwsink.frontends.inline.takeover").take_over)
            importlib.import_module("cwsink.frontends.inline.enrichers").enable()
    except Exception as error:
        if is_interruption(error):
            _is_enabled = False  # the next sink tries again
            raise
        lacking = [f"what cwsink needs ({type(error).__name__}: {error})"]
    if lacking:
        diagnostics.report(
            "lacking",
            f"this fapilog lacks {', '.join(lacking)}, so its loggers keep its queue: SIGKILL or os._exit loses the "
            "records of the last core.batch_timeout_seconds. Use fapilog 0.18.1 or a newer cwsink.",
        )


def missing() -> list[str]:
    """Return the names that the hook needs and this fapilog lacks, as "module:Class.name". Empty is healthy."""
    return sorted(name for name in NEEDS if not exists(name))


def pipeline_of(logger: Any) -> Pipeline | None:
    """Return the pipeline of a logger; None if it keeps fapilog's queue, or was given back to it."""
    found: Pipeline | None = vars(logger).get(PIPELINE)
    return found


def _hook(take_over: Callable[[Any], bool]) -> None:
    mixin = module("fapilog.core.logger")._LoggerMixin
    start = mixin.start

    def start_or_take_over(logger: Any) -> None:
        try:
            if PIPELINE not in vars(logger) and take_over(logger):
                return
        except BaseException as error:
            if not isinstance(error, Exception) or is_interruption(error):
                if pipeline_of(logger) is None:
                    vars(logger).pop(PIPELINE, None)  # the next record tries again
                raise
            name = getattr(logger, "_name", "?")
            diagnostics.report(
                f"takeover_{name}",
                f"the fapilog logger {name!r} keeps fapilog's queue, because of {type(error).__name__}: {error}.",
            )
        start(logger)

    mixin.start = start_or_take_over
