"""Takes a logger over: puts a pipeline into a logger that has a sink of ours.

The logger gets a `start` that does nothing. If its queue is needed after all, the pipeline calls
the `start` of the logger's class.
"""

from __future__ import annotations

from typing import Any

from fapilog.core import shutdown
from fapilog.core.logger import AsyncLoggerFacade
from fapilog.core.pressure import PressureMonitor

from cwsink.frontends.fapilog_names import PIPELINE
from cwsink.frontends.inline import outlets
from cwsink.frontends.inline.giving_back import give_back
from cwsink.frontends.inline.pipeline import Pipeline
from cwsink.frontends.inline.stages import Suspended


def take_over(logger: Any) -> bool:
    """Put a pipeline into a logger. False: it has no sink of ours, or a plugin might wait; it keeps its queue."""
    vars(logger)[PIPELINE] = None
    found = outlets.find(logger._sink_write, _is_ours)
    ours = [] if found is None else [target.ours for target in found.all if target.ours is not None]
    if found is None or not ours:
        return False
    try:
        pipeline = Pipeline(logger, found)
    except Suspended as suspended:
        give_back(logger, suspended)
        return False
    taken = {
        PIPELINE: pipeline,
        "start": _nothing,
        "_try_enqueue_with_metrics": pipeline.log,
        "_make_worker": pipeline.make_worker,
        "_make_dynamic_worker": pipeline.make_dynamic_worker,
        "_schedule_metrics_call": pipeline.measure,
        "_schedule_dedupe_summary_emission": pipeline.tell_deduplicated,
    }
    if isinstance(logger, AsyncLoggerFacade) and any(sink.blocks for sink in ours):
        taken["_enqueue"] = pipeline.log_and_wait
    if logger._cached_adaptive_enabled:
        # A drain returns its summary. It runs in fapilog's thread, which puts another one in its place.
        logger._pressure_monitor = PressureMonitor(queue=logger._queue)
    # fapilog's own `start` does this, too. A drain of all loggers must find this one.
    shutdown.install_shutdown_handlers()
    shutdown.register_logger(logger)
    # At once, and last: a signal handler that raises meanwhile leaves the logger as it was, or taken over as a whole.
    vars(logger).update(taken)
    return True


def _nothing() -> None:
    """Take the place of `start` in a logger that needs no thread."""


def _is_ours(sink: Any) -> bool:
    return getattr(sink, "writes_through", False) is True
