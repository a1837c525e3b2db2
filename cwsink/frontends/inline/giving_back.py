"""Leaves the thread that logs: tells when its stack is used up, and gives a logger back to fapilog's queue."""

from __future__ import annotations

import sys
from typing import Any, Final

from cwsink import diagnostics
from cwsink.frontends.fapilog_names import PIPELINE
from cwsink.frontends.inline import stages
from cwsink.frontends.inline.stages import Suspended

# A thread that has fewer frames left than this on its stack leaves the record to fapilog's thread.
_FRAMES_NEEDED: Final = 150
# The attributes that a logger gets when it is taken over, and loses when it is given back. As long as it has the last
# one the next record gives it back again, should a signal handler raise meanwhile.
_TAKEN: Final = tuple(
    "start _schedule_metrics_call _schedule_dedupe_summary_emission _enqueue _try_enqueue_with_metrics".split()
)


def is_deep() -> bool:
    """Tell whether this thread is near the recursion limit, where plugins fail and redactors would be skipped."""
    most = sys.getrecursionlimit() - _FRAMES_NEEDED
    try:
        return most > 0 and sys._getframe(most) is not None
    except ValueError:
        return False


def give_back(logger: Any, suspended: Suspended) -> None:
    """Make a logger use fapilog's queue from now on, and report why."""
    vars(logger)[PIPELINE] = None
    for name in _TAKEN:
        vars(logger).pop(name, None)
    named = _who(suspended)
    why = f" ({suspended})" if suspended.args else ""
    diagnostics.report(
        f"queue_{logger._name}_{named}",
        f"the fapilog logger {logger._name!r} keeps fapilog's queue, because {named} {suspended.trouble}{why}. "
        f"SIGKILL or os._exit loses up to {logger._batch_timeout_seconds:g} s of its records "
        "(core.batch_timeout_seconds).",
    )


def say_tied(logger: Any, suspended: Suspended) -> None:
    """Report that a record is lost, because a plugin belongs to another thread."""
    named = _who(suspended)
    diagnostics.report(
        f"tied_{logger._name}_{named}",
        f"lost a record of the fapilog logger {logger._name!r}, because {named} works in one thread only "
        f'({suspended}). It is counted as dropped. Set pipeline="queue".',
    )


def _who(suspended: Suspended) -> str:
    kind, plugin = stages.KINDS[suspended.stage if suspended.kind is None else suspended.kind], suspended.plugin
    return f"one of its {kind}s" if plugin is None else f"its {kind} {getattr(plugin, 'name', type(plugin).__name__)!r}"
