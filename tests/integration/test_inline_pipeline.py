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
from collections import Counter
from typing import Any

import fapilog
import pytest
from fapilog.core.stdlib_bridge import enable_stdlib_bridge

import cwsink
from cwsink.config import SinkConfig
from cwsink.frontends.inline.pipeline import MOST_NESTED
from cwsink.frontends.inline.seam import pipeline_of
from cwsink.spool import directory
from cwsink.spool.survey import events, survey
from cwsink.testing import StrictCloudWatch
from tests.support import CHILD_SECONDS, quick_config

SMALL_SPOOL = {"segment_bytes": 4096, "spool_max_bytes": 4 * 4096}


@pytest.fixture
def config() -> SinkConfig:
    """Nobody delivers: what the spool holds is what was appended."""
    return quick_config(flusher="external")


class Recorder:
    """Another sink: keeps what it is given, and waits before that if it is told to."""

    name = "recorder"

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.may_go = threading.Event()
        self.may_go.set()

    async def write(self, entry: dict[str, Any]) -> None:
        while not self.may_go.is_set():
            await asyncio.sleep(0.001)
        self.entries.append(dict(entry))

    @property
    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.entries]


class Counting:
    """A plugin of every kind, which counts what it sees."""

    name = "counting"

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        self.seen["filter", event["message"]] += 1
        return event

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        self.seen["enricher", event["message"]] += 1
        return {"data": {"enriched": True}}

    async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        self.seen["redactor", event["message"]] += 1
        return event

    async def process(self, view: memoryview) -> memoryview:
        self.seen["processor", json.loads(bytes(view))["log"]["message"]] += 1
        return view


def made(logger: Any, **plugins: list[Any]) -> Any:
    """Give a logger plugins beside its own."""
    for kind, added in plugins.items():
        getattr(logger, f"_{kind}").extend(added)
        getattr(logger, f"_invalidate_{kind}_cache")()
    return logger


def get_logger(*sinks: Any, **settings: Any) -> Any:
    """Make a logger of its own."""
    return fapilog.get_logger("app", sinks=list(sinks), settings=fapilog.Settings(**settings), reuse=False)


def drain(logger: Any) -> tuple[int, int, int]:
    """End a logger; return (submitted, processed, dropped)."""
    result = asyncio.run(logger.stop_and_drain())
    return result.submitted, result.processed, result.dropped


def entries_of(config: SinkConfig) -> list[dict[str, Any]]:
    """Return what the spool of a config holds."""
    found = [event.message for event in events(directory.open_for(config))]
    entries = [json.loads(message) for message in found if message.startswith("{")]
    return [entry.get("log", entry) for entry in entries]


def messages_of(config: SinkConfig) -> list[str]:
    return [entry["message"] for entry in entries_of(config)]


def eventually(condition: Any) -> None:
    """Wait until it is so; a hang is a failure."""
    until = time.monotonic() + CHILD_SECONDS
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.002)


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


# Other sinks.


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


def test_two_of_our_sinks_are_both_written(config: SinkConfig) -> None:
    """Two spools, one logger: both have the record at once."""
    other = quick_config(flusher="external", log_stream_name="other")
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), cwsink.CloudWatchSpoolSink(other))
    logger.info("one")
    assert messages_of(config) == messages_of(other) == ["one"]
    assert drain(logger) == (1, 1, 0)


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


# Plugins that wait.


class Waiting(Counting):
    """Really waits, in each of its methods."""

    name = "slow"

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return await super().filter(event)

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return await super().enrich(event)

    async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return await super().redact(event)

    async def process(self, view: memoryview) -> memoryview:
        await asyncio.sleep(0)
        return await super().process(view)


@pytest.mark.parametrize("kind", ["filter", "enricher", "redactor", "processor"])
def test_a_plugin_that_waits_keeps_the_queue(
    config: SinkConfig, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Found out before it is called: nothing is processed twice or lost, and one line says which, and what it costs."""
    plugin = Waiting()
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"serialize_in_flush": True})
    logger.info("before")
    assert messages_of(config) == ["before"]
    made(logger, **{f"{kind}s": [plugin]})
    names = [f"m-{number}" for number in range(20)]
    for name in names:
        logger.info(name)
    assert drain(logger) == (21, 21, 0)
    assert messages_of(config) == ["before", *names]
    assert plugin.seen == Counter((kind, name) for name in names)
    [line] = [line for line in capfd.readouterr().err.splitlines() if "keeps fapilog's queue" in line]
    assert f"its {kind} 'slow' may wait (`await asyncio.sleep(0)`)" in line
    assert "loses up to 0.25 s" in line


def test_a_new_logger_with_a_plugin_that_waits_is_left_alone(
    config: SinkConfig, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its first record takes the queue, too."""
    from fapilog.plugins import loader

    plugin = Waiting()
    loader.register_builtin("fapilog.enrichers", "slow_one", lambda **_: plugin)
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"enrichers": ["slow_one"]})
    assert pipeline_of(logger) is None
    logger.info("one")
    assert drain(logger) == (1, 1, 0)
    assert messages_of(config) == ["one"]
    assert plugin.seen == {("enricher", "one"): 1}
    assert "its enricher 'slow' may wait" in capfd.readouterr().err


class Changing(Counting):
    """Waits only once it has been changed, after its code was read."""

    name = "changing"

    async def helper(self) -> None:
        return None

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        await self.helper()
        return await super().filter(event)

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        await self.helper()
        return await super().enrich(event)

    async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        await self.helper()
        return await super().redact(event)

    async def process(self, view: memoryview) -> memoryview:
        await self.helper()
        return await super().process(view)


@pytest.mark.parametrize("kind", ["filter", "enricher", "redactor", "processor"])
def test_a_plugin_that_comes_to_wait_is_found_out(config: SinkConfig, kind: str) -> None:
    """Its record goes on in the queue from where it stands: what is done, as the filters, is not done again."""
    plugin, last = Changing(), Counting()
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), Recorder(), core={"serialize_in_flush": True})
    made(logger, **{f"{kind}s": [plugin, last]}, **({} if kind == "filter" else {"filters": [last]}))
    logger.info("one")
    assert messages_of(config) == ["one"]
    plugin.helper = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    for name in ("two", "three"):
        logger.info(name)
    assert pipeline_of(logger) is None
    assert drain(logger) == (3, 3, 0)
    assert messages_of(config) == ["one", "two", "three"]
    kinds = {kind, "filter"}
    assert plugin.seen == Counter((kind, name) for name in ("one", "two", "three"))
    assert last.seen == Counter((each, name) for each in kinds for name in ("one", "two", "three"))


# Logging while logging.


class Chatty:
    """An enricher that logs, each time."""

    name = "chatty"
    logger: Any = None

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        self.logger.info(f"about {event['message']}")
        return {}


def test_a_plugin_that_logs_is_bounded(config: SinkConfig, capfd: pytest.CaptureFixture[str]) -> None:
    """Each record begets one, so many deep; the last is refused and counted, and the next call starts anew."""
    chatty = Chatty()
    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config)), enrichers=[chatty])
    chatty.logger = logger
    for name in ("one", "two"):
        logger.info(name)
    expected = [f"{'about ' * depth}{name}" for name in ("one", "two") for depth in reversed(range(MOST_NESTED))]
    assert messages_of(config) == expected
    assert drain(logger) == (2 * (MOST_NESTED + 1), 2 * MOST_NESTED, 2)
    assert "logged by a plugin" in capfd.readouterr().err


def test_a_str_that_logs_is_spooled(config: SinkConfig) -> None:
    """A `__str__` called for the entry logs by itself: both are there, its own first."""
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"redactors": []})

    class Speaking:
        def __str__(self) -> str:
            logger.info("inner")
            return "shown"

    logger.info("outer", thing=Speaking())
    assert messages_of(config) == ["inner", "outer"]
    assert entries_of(config)[1]["data"]["thing"] == "shown"


@pytest.mark.parametrize("error", [ValueError, MemoryError, asyncio.CancelledError, RecursionError])
def test_what_a_plugin_raises_stays_inside(config: SinkConfig, error: type[BaseException]) -> None:
    """Whatever it is, the record arrives without that plugin, and the caller sees nothing."""

    class Raising:
        name = "raising"

        async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
            raise error

        enrich = redact = filter

    plugin = Raising()
    logger = get_logger(cwsink.CloudWatchSpoolSink(config))
    made(logger, filters=[plugin], enrichers=[plugin], redactors=[plugin]).info("one")
    assert messages_of(config) == ["one"]
    assert drain(logger) == (1, 1, 0)


def test_a_ctrl_c_in_a_plugin_is_the_applications(config: SinkConfig) -> None:
    """KeyboardInterrupt leaves the call; the record is counted, and logging goes on."""

    class Interrupted:
        name = "interrupted"

        async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
            if event["message"] == "one":
                raise KeyboardInterrupt
            return {}

    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config)), enrichers=[Interrupted()])
    with pytest.raises(KeyboardInterrupt):
        logger.info("one")
    logger.info("two")
    assert messages_of(config) == ["two"]
    assert drain(logger) == (2, 1, 1)


def test_what_a_plugin_sets_in_the_context_stays_there(config: SinkConfig) -> None:
    """As in fapilog's thread: a plugin's own context is not the caller's."""
    from fapilog.core.errors import user_id_var

    class Setting:
        name = "setting"

        async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
            user_id_var.set("the plugin's")
            return event

    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config)), filters=[Setting()])
    logger.info("one")
    assert user_id_var.get(None) is None
    assert messages_of(config) == ["one"]


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


# on_full="block": the caller waits, an event loop never does.


@pytest.fixture
def full(server: StrictCloudWatch) -> SinkConfig:
    """A spool that is full, and whose policy is to wait."""
    settings = {"endpoint_url": server.endpoint_url, "flusher": "external", **SMALL_SPOOL}
    filler = cwsink.Writer(quick_config(**settings, on_full="drop_newest"))
    while filler.append("x" * 500):
        pass
    return quick_config(**settings, on_full="block", block_timeout_seconds=60.0)


def make_room(config: SinkConfig) -> None:
    """Deliver all that is in the spool."""
    subprocess.run([sys.executable, "-m", "cwsink", "flush", directory.open_for(config).path], check=True)


def sent(server: StrictCloudWatch) -> list[str]:
    """Return the messages of entries that were delivered."""
    return [json.loads(each)["message"] for each in server.messages() if each.startswith("{")]


def test_a_thread_waits_for_room(full: SinkConfig, server: StrictCloudWatch) -> None:
    """Without an event loop the call itself waits, and has spooled when it returns."""
    logger = get_logger(cwsink.CloudWatchSpoolSink(full))
    caller = threading.Thread(target=logger.info, args=("one",))
    caller.start()
    caller.join(0.2)
    assert caller.is_alive()
    make_room(full)
    caller.join(CHILD_SECONDS)
    assert messages_of(full) == ["one"]
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
        assert messages_of(full) == ["one"]
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
    assert messages_of(full) == ["two"]
    assert survey(directory.open_for(full)).refused == {"spool_full": 1}


def test_the_sync_facade_does_not_block_a_loop(full: SinkConfig, server: StrictCloudWatch) -> None:
    """In a running loop the call returns at once, as ever: fapilog's thread waits for the room."""

    async def main(logger: Any) -> None:
        logger.info("one")
        await asyncio.sleep(0)
        assert "one" not in sent(server)
        await asyncio.to_thread(make_room, full)

    logger = get_logger(cwsink.CloudWatchSpoolSink(full))
    asyncio.run(main(logger))
    assert drain(logger) == (1, 1, 0)
    assert messages_of(full) == ["one"]


def test_runtime_writes_through(monkeypatch: pytest.MonkeyPatch, config: SinkConfig) -> None:
    """`runtime()` gives a logger that has spooled when its call returns."""
    cwsink.install()
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__FLUSHER", "external")
    settings = fapilog.Settings(core={"sinks": ["cloudwatch"]})
    with fapilog.runtime(settings=settings) as logger:
        logger.info("one")
        directory_ = logger._sinks[0]._writer.directory
        assert survey(directory_).pending == 1
