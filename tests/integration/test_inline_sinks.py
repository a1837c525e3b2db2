"""Beside our sink in one logger: what other sinks get, and what fapilog's fallbacks are worth."""

from __future__ import annotations

import time
from collections import Counter

import fapilog
import pytest

import cwsink
from cwsink.config import SinkConfig
from cwsink.spool import directory
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver
from tests.harness.pipelines import SMALL_SPOOL, Counting, Recorder, drain, get_logger, made, messages_of
from tests.harness.support import quick_config


@pytest.fixture
def config() -> SinkConfig:
    """Nobody delivers: what the spool holds is what was appended."""
    return quick_config(flusher="external")


@pytest.mark.parametrize("serialized", [False, True])
def test_other_sinks_get_each_record_once(config: SinkConfig, serialized: bool) -> None:
    """A finished record goes to them through fapilog's queue: no plugin sees it again, counts add up."""
    recorder, plugin = Recorder(), Counting()
    logger = get_logger(recorder, cwsink.CloudWatchSpoolSink(config), core={"serialize_in_flush": serialized})
    kinds = {"filter", "enricher", "redactor", "processor"} if serialized else {"filter", "enricher", "redactor"}
    made(logger, filters=[plugin], enrichers=[plugin], redactors=[plugin], processors=[plugin])
    names = [f"m-{number}" for number in range(100)]
    for name in names:
        logger.info(name)
    assert messages_of(config) == names
    assert drain(logger) == (100, 100, 0)
    assert messages_of(config) == names
    if not serialized:  # fapilog takes a sink without `write_serialized` for done
        assert recorder.messages == names
        assert all(entry["data"]["enriched"] for entry in recorder.entries)
    assert plugin.seen == Counter((kind, name) for kind in kinds for name in names)


def test_a_stuck_sink_delays_neither_caller_nor_spool(config: SinkConfig) -> None:
    """Its queue fills up and drops for it, counted; the spool has all, even where a full queue would make wait."""
    recorder = Recorder()
    recorder.may_go.clear()
    core = {"max_queue_size": 10, "batch_max_size": 1, "drop_on_full": False, "backpressure_wait_ms": 60_000}
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), recorder, core=core)
    names = [f"m-{number}" for number in range(100)]
    for name in names:
        logger.info(name)
    assert messages_of(config) == names
    recorder.may_go.set()
    submitted, processed, dropped = drain(logger)
    assert submitted == 100 == processed + dropped
    assert len(recorder.entries) == processed >= 10


def test_routing_decides_for_each_sink(config: SinkConfig) -> None:
    """ERROR goes to the spool at once, INFO to the other sink, WARNING to both."""
    settings = fapilog.Settings(
        sink_routing={
            "enabled": True,
            "rules": [
                {"levels": ["ERROR", "WARNING"], "sinks": ["cwsink"]},
                {"levels": ["INFO", "WARNING"], "sinks": ["recorder"]},
            ],
        }
    )
    recorder = Recorder()
    sinks = [cwsink.CloudWatchSpoolSink(config), recorder]
    logger = fapilog.get_logger("app", sinks=sinks, settings=settings, reuse=False)
    logger.error("error")
    assert logger._worker_thread is None
    logger.warning("warning")
    logger.info("info")
    assert messages_of(config) == ["error", "warning"]
    assert drain(logger) == (3, 3, 0)
    assert sorted(recorder.messages) == ["info", "warning"]


def test_a_dedupe_summary_is_routed_by_its_level(config: SinkConfig) -> None:
    """It is INFO, whatever was suppressed."""
    other = quick_config(flusher="external", log_stream_name="other")
    ours, others = cwsink.CloudWatchSpoolSink(config), cwsink.CloudWatchSpoolSink(other)
    others.name = "other"
    rules = [{"levels": ["ERROR"], "sinks": ["cwsink"]}, {"levels": ["INFO"], "sinks": ["other"]}]
    logger = get_logger(
        ours,
        others,
        core={"error_dedupe_window_seconds": 0.05, "protected_levels": []},
        sink_routing={"enabled": True, "rules": rules},
    )
    logger._emit_drop_summary = True
    for _ in range(2):
        logger.error("again")
    time.sleep(0.06)
    logger.error("again")
    assert messages_of(config) == ["again", "again"]
    assert messages_of(other) == ["Errors deduplicated"]


def test_two_of_our_sinks_are_both_written(config: SinkConfig) -> None:
    """Two spools, one logger: both have the record at once."""
    other = quick_config(flusher="external", log_stream_name="other")
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), cwsink.CloudWatchSpoolSink(other))
    logger.info("one")
    assert messages_of(config) == messages_of(other) == ["one"]
    assert drain(logger) == (1, 1, 0)


def test_a_spool_that_has_room_again_is_written_to_at_once(server: StrictCloudWatch) -> None:
    """fapilog's circuit breaker opens when the spool is full, for 30 s. But a spool on this host needs no such rest."""
    config = quick_config(server.endpoint_url, flusher="external", on_full="drop_newest", **SMALL_SPOOL)
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"sink_circuit_breaker_enabled": True})
    for number in range(60):
        logger.info(f"m-{number}", padding="x" * 500)
    assert logger._circuit_breakers[0].is_open
    deliver(directory.open_for(config), config)
    logger.info("again")
    assert messages_of(config) == ["again"]


def test_a_refused_record_takes_fapilogs_fallbacks(capfd: pytest.CaptureFixture[str]) -> None:
    """A full spool: stderr has the record; the breaker opens after 5, and then the fallback sink has it."""
    config = quick_config(flusher="external", on_full="drop_newest", **SMALL_SPOOL)
    recorder = Recorder()
    logger = get_logger(
        cwsink.CloudWatchSpoolSink(config),
        recorder,
        core={"sink_circuit_breaker_enabled": True, "sink_circuit_breaker_fallback_sink": "recorder"},
    )
    names = [f"m-{number}" for number in range(60)]
    for name in names:
        logger.info(name, padding="x" * 500)
    kept = messages_of(config)
    assert 0 < len(kept) < 50
    assert drain(logger) == (60, 60, 0)
    refused = names[len(kept) :]
    said = capfd.readouterr().err
    assert [name for name in refused if f'"message":"{name}"' in said] == refused[:5]
    # The recorder is written to for itself, and once more in the place of the spool.
    assert Counter(recorder.messages) == Counter(names) + Counter(refused[5:])
