"""fapilog's pipeline in the thread that logs: when `logger.info` returns, the record is in the spool.

What arrives is compared with fapilog's own in `test_inline_corpus`; here it is about when, from
where, and what goes wrong. Real fapilog throughout; the verdict is what the spool holds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import subprocess
import sys
import threading
import time
from functools import partial
from typing import Any

import fapilog
import pytest
from fapilog.core.stdlib_bridge import enable_stdlib_bridge
from msgspec.structs import asdict

import cwsink
from cwsink.config import SinkConfig
from cwsink.frontends.inline.seam import pipeline_of
from cwsink.spool import directory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness.pipelines import SMALL_SPOOL, Counting, Recorder, drain, entries_of, get_logger, made, messages_of
from tests.harness.support import CHILD_SECONDS, is_ours, quick_config


@pytest.fixture
def config() -> SinkConfig:
    """Nobody delivers: what the spool holds is what was appended."""
    return quick_config(flusher="external")


# The call returns, the record is there.


@pytest.mark.parametrize("serialized", [False, True])
def test_a_record_is_spooled_when_the_call_returns(config: SinkConfig, serialized: bool) -> None:
    """After each call the spool has one record more; no thread was started for it."""
    before = threading.active_count()
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"serialize_in_flush": serialized})
    for number in range(5):
        logger.info(f"m-{number}")
        assert messages_of(config)[-1] == f"m-{number}"
    assert threading.active_count() == before
    assert drain(logger) == (5, 5, 0)


def test_an_awaited_record_is_spooled(config: SinkConfig) -> None:
    """The async facade, `runtime_async`'s too, has spooled when the await returns; flush and drain go on working."""

    async def main() -> Any:
        sinks = [cwsink.CloudWatchSpoolSink(config)]
        logger = await fapilog.get_async_logger("app", sinks=sinks, settings=fapilog.Settings(), reuse=False)
        await logger.info("one")
        assert messages_of(config) == ["one"]
        await logger.bind(colour="red").info("two")
        assert entries_of(config)[-1]["data"]["colour"] == "red"
        await logger.flush()
        assert (await logger.self_test())["ok"]
        assert (await logger.check_health()).all_healthy
        return await logger.drain()

    result = asyncio.run(main())
    assert (result.submitted, result.processed, result.dropped) == (2, 2, 0)


def test_the_context_is_the_callers(config: SinkConfig) -> None:
    """request_id and user_id of the calling task arrive; in fapilog's thread they were not set."""
    from fapilog.core.errors import request_id_var, user_id_var

    async def request(logger: Any, number: int) -> None:
        request_id_var.set(f"r-{number}")
        user_id_var.set(f"u-{number}")
        await asyncio.sleep(0)
        await logger.info(f"m-{number}")

    async def main() -> None:
        sinks = [cwsink.CloudWatchSpoolSink(config)]
        logger = await fapilog.get_async_logger("app", sinks=sinks, settings=fapilog.Settings(), reuse=False)
        await asyncio.gather(*(request(logger, number) for number in range(10)))

    asyncio.run(main())
    found = {entry["message"]: entry["context"] for entry in entries_of(config)}
    for number in range(10):
        context = found[f"m-{number}"]
        assert (context["request_id"], context["user_id"]) == (f"r-{number}", f"u-{number}")


def test_the_choice_of_the_queue_is_obeyed(config: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """`FAPILOG_CLOUDWATCH__PIPELINE=queue`: fapilog's thread writes, as before."""
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__PIPELINE", "queue")
    sink = cwsink.CloudWatchSpoolSink(
        {"flusher": "external", "region": "us-east-1", "log_group_name": "/test/group", "log_stream_name": "stream"}
    )
    logger = get_logger(sink)
    assert pipeline_of(logger) is None
    logger.info("one")
    assert drain(logger) == (1, 1, 0)
    assert survey(sink._writer.directory).pending == 1


def test_a_sink_with_a_write_of_its_own_keeps_the_queue(config: SinkConfig) -> None:
    """A subclass that overrides `write` wants it called: by fapilog's worker, with the event loop it may need."""
    written = []

    class Mine(cwsink.CloudWatchSpoolSink):
        async def write(self, entry: dict[str, Any]) -> bool:
            await asyncio.sleep(0)
            written.append(entry["message"])
            return await super().write(entry)

    logger = get_logger(Mine(config))
    logger.info("one")
    assert drain(logger) == (1, 1, 0)
    assert written == messages_of(config) == ["one"]


def test_threads_share_a_logger_and_its_metrics(config: SinkConfig) -> None:
    """Eight threads with metrics on: each record is there once, and each count is exact."""
    recorder = Recorder()
    settings = {"core": {"enable_metrics": True, "enrichers": ["runtime_info"]}}
    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config), recorder, **settings), filters=[Counting()])
    barrier = threading.Barrier(8)

    def log(thread: int) -> None:
        barrier.wait()
        for number in range(100):
            logger.info(f"m-{thread}-{number}")

    threads = [threading.Thread(target=log, args=(thread,)) for thread in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    snapshot = asyncio.run(logger._metrics.snapshot())
    stats = asyncio.run(logger._metrics.get_plugin_stats("RuntimeInfoEnricher"))
    assert snapshot.events_processed == stats.executions == 800
    assert drain(logger) == (800, 800, 0)
    expected = sorted(f"m-{thread}-{number}" for thread in range(8) for number in range(100))
    assert sorted(messages_of(config)) == sorted(recorder.messages) == expected


def test_the_bridge_from_logging_writes_through(config: SinkConfig) -> None:
    """`enable_stdlib_bridge`: a record of the logging module is spooled when its call returns."""
    logger = get_logger(cwsink.CloudWatchSpoolSink(config))
    source = logging.getLogger("test_inline_pipeline.bridged")
    enable_stdlib_bridge(logger, target_loggers=[source])
    try:
        source.info("from %s", "logging")
        assert messages_of(config) == ["from logging"]
        assert entries_of(config)[0]["diagnostics"]["origin"] == "stdlib"
    finally:
        source.handlers.clear()


def test_a_dedupe_summary_needs_no_thread(config: SinkConfig) -> None:
    """fapilog sends it through its thread's loop; inline it is spooled when the next such error is."""
    logger = get_logger(
        cwsink.CloudWatchSpoolSink(config),
        core={"error_dedupe_window_seconds": 0.05, "protected_levels": [], "emit_drop_summary": True},
    )
    logger._emit_drop_summary = True
    for _ in range(3):
        logger.error("again")
    time.sleep(0.06)
    logger.error("again")
    assert messages_of(config) == ["again", "Errors deduplicated", "again"]
    assert entries_of(config)[1]["data"]["suppressed_count"] == 2


def test_a_redactor_that_gets_no_copy_is_counted(config: SinkConfig) -> None:
    """fapilog cannot copy a record with a set in it. It counts an error of each redactor, and that it was called."""
    logger = get_logger(
        cwsink.CloudWatchSpoolSink(config),
        core={"redactors": ["field_mask", "url_credentials"], "enable_metrics": True},
    )
    logger.info("one", things={1})
    logger.info("two")
    for name in ("FieldMaskRedactor", "UrlCredentialsRedactor"):
        value = partial(logger._metrics.registry.get_sample_value, labels={"plugin": name})
        assert value("fapilog_plugin_errors_total") == 1
        assert value("fapilog_plugin_exec_seconds_count") == 2


def test_a_drain_has_the_summary_of_adaptive_settings(config: SinkConfig) -> None:
    """fapilog's thread makes it. Without that thread nothing was ever under pressure, and the summary says so."""
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), adaptive={"enabled": True})
    logger.info("one")
    adaptive = asyncio.run(logger.stop_and_drain()).adaptive
    assert (adaptive.peak_pressure_level.value, adaptive.escalation_count) == ("normal", 0)
    assert messages_of(config) == ["one"]


# on_full="block": the caller waits, an event loop never does.


@pytest.fixture
def full(server: StrictCloudWatch) -> SinkConfig:
    """A spool that is full, and whose policy is to wait."""
    settings = {"endpoint_url": server.endpoint_url, "flusher": "external", **SMALL_SPOOL}
    config = quick_config(**settings, on_full="block", block_timeout_seconds=60.0)
    fill(config)
    return config


def fill(config: SinkConfig) -> None:
    """Append until a record is refused."""
    filler = cwsink.Writer(quick_config(**{**asdict(config), "on_full": "drop_newest"}))
    while filler.append("x" * 500):
        pass


def make_room(config: SinkConfig) -> None:
    """Deliver all that is in the spool."""
    command = [sys.executable, "-m", "cwsink", "flush", "--once", directory.open_for(config).path]
    subprocess.run(command, check=True, capture_output=True, timeout=CHILD_SECONDS)


def arrived(server: StrictCloudWatch, config: SinkConfig) -> list[str]:
    """Return the messages of entries that were delivered, and of those in the spool."""
    return [
        json.loads(each)["message"] for each in server.messages() if each[0] == "{" and not is_ours(each)
    ] + messages_of(config)


def test_a_thread_waits_for_room(full: SinkConfig, server: StrictCloudWatch) -> None:
    """Without an event loop the call itself waits, and has spooled when it returns."""
    logger = get_logger(cwsink.CloudWatchSpoolSink(full))
    caller = threading.Thread(target=logger.info, args=("one",))
    caller.start()
    caller.join(0.2)
    assert caller.is_alive()
    make_room(full)
    caller.join(CHILD_SECONDS)
    assert arrived(server, full) == ["one"]
    assert drain(logger) == (1, 1, 0)


def test_the_async_facade_awaits_room(full: SinkConfig, server: StrictCloudWatch) -> None:
    """The task waits and the loop runs on; the await ends when the record is in the spool."""

    async def main() -> Any:
        sinks = [cwsink.CloudWatchSpoolSink(full)]
        logger = await fapilog.get_async_logger("app", sinks=sinks, settings=fapilog.Settings(), reuse=False)
        waiting = asyncio.create_task(logger.info("one"))
        for _ in range(20):
            await asyncio.sleep(0.005)  # the loop is not blocked
        assert not waiting.done()
        await asyncio.to_thread(make_room, full)
        await waiting
        assert arrived(server, full) == ["one"]
        return await logger.drain()

    result = asyncio.run(main())
    assert (result.submitted, result.processed, result.dropped) == (1, 1, 0)


def test_a_wait_that_is_cancelled_is_counted(full: SinkConfig, server: StrictCloudWatch) -> None:
    """Who gives up waiting has a refused record, and the loss is told once there is room."""

    async def main() -> None:
        sinks = [cwsink.CloudWatchSpoolSink(full)]
        logger = await fapilog.get_async_logger("app", sinks=sinks, settings=fapilog.Settings(), reuse=False)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(logger.info("one"), 0.05)
        await asyncio.to_thread(make_room, full)
        await logger.info("two")

    asyncio.run(main())
    assert arrived(server, full) == ["two"]
    # The one with which the fixture noticed that the spool is full, and ours.
    assert survey(directory.open_for(full)).refused == {"spool_full": 2}


def test_of_a_cancelled_wait_for_two_spools_both_are_counted(full: SinkConfig) -> None:
    """The call waits for the first one. The second one has not been asked yet, and does not get the record either."""
    second = quick_config(**{**asdict(full), "log_stream_name": "second"})
    fill(second)

    async def main() -> None:
        sinks = [cwsink.CloudWatchSpoolSink(full), cwsink.CloudWatchSpoolSink(second)]
        logger = await fapilog.get_async_logger("app", sinks=sinks, settings=fapilog.Settings(), reuse=False)
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(logger.info("one"), 0.05)

    asyncio.run(main())
    assert [survey(directory.open_for(each)).refused for each in (full, second)] == [{"spool_full": 2}] * 2


def test_what_neither_spool_nor_queue_has_room_for_is_counted(full: SinkConfig, server: StrictCloudWatch) -> None:
    """In a running loop records wait in fapilog's queue. Those that it drops are refused records of ours."""

    async def main(logger: Any) -> None:
        for number in range(40):
            logger.info(f"m-{number}")
        await asyncio.to_thread(make_room, full)

    logger = get_logger(cwsink.CloudWatchSpoolSink(full), core={"max_queue_size": 10, "batch_max_size": 1})
    asyncio.run(main(logger))
    submitted, processed, dropped = drain(logger)
    assert submitted == 40 == processed + dropped
    assert dropped > 0
    assert len(arrived(server, full)) == processed
    assert survey(directory.open_for(full)).refused == {"spool_full": 1 + dropped}


def test_the_sync_facade_does_not_block_a_loop(full: SinkConfig, server: StrictCloudWatch) -> None:
    """In a running loop the call returns at once, as ever: fapilog's thread waits for the room."""

    async def main(logger: Any) -> None:
        logger.info("one")
        await asyncio.sleep(0)
        assert arrived(server, full) == []
        await asyncio.to_thread(make_room, full)

    logger = get_logger(cwsink.CloudWatchSpoolSink(full))
    asyncio.run(main(logger))
    assert drain(logger) == (1, 1, 0)
    assert arrived(server, full) == ["one"]


def test_runtime_writes_through(monkeypatch: pytest.MonkeyPatch, config: SinkConfig) -> None:
    """`runtime()` gives a logger that has spooled when its call returns."""
    cwsink.install()
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__FLUSHER", "external")
    settings = fapilog.Settings(core={"sinks": ["cloudwatch"]})
    with fapilog.runtime(settings=settings) as logger:
        logger.info("one")
        directory_ = logger._sinks[0]._writer.directory
        assert survey(directory_).pending == 1
