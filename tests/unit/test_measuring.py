"""fapilog's metrics in the thread that logs: a signal handler that logs waits for no lock of its own thread."""

from __future__ import annotations

import asyncio

from fapilog.metrics.metrics import MetricsCollector

from cwsink.frontends.inline import measuring
from cwsink.frontends.inline.stages import drive


def test_a_call_in_the_middle_of_another_waits_for_its_end() -> None:
    """prometheus_client's lock is not reentrant. Whoever waited for it here would wait for ever."""
    collector = MetricsCollector(enabled=True)
    measured = measuring.measured(collector)

    async def interrupted() -> None:
        with collector._h_plugin_latency._lock:
            drive(measured.record_plugin_execution, plugin_name="late", duration_seconds=0.1)
            assert not collector._plugin_stats

    measuring.in_turn(interrupted)
    assert collector._plugin_stats["late"].executions == 1


def test_a_call_that_fails_or_waits_keeps_no_other_from_being_made() -> None:
    """Nothing is raised either."""
    made = []

    async def fails() -> None:
        measuring.in_turn(waits)
        measuring.in_turn(works)
        raise ValueError

    async def waits() -> None:
        await asyncio.sleep(0)
        made.append("waited")

    async def works() -> None:
        made.append("made")

    measuring.in_turn(fails)
    assert made == ["made"]


def test_what_is_no_call_is_the_collectors_own() -> None:
    """And nothing stands for what stands for it already."""
    measured = measuring.measured(MetricsCollector(enabled=False))
    assert measured.is_enabled is False
    assert measuring.measured(measured) is measured
    assert measuring.measured(None) is None
