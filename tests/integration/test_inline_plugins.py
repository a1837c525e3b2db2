"""Plugins in the thread that logs: those that wait, log, raise, or leave something behind."""

from __future__ import annotations

import asyncio
import signal
import sqlite3
import threading
from collections import Counter
from enum import Enum
from typing import Any

import pytest

import cwsink
from cwsink.config import SinkConfig
from cwsink.frontends.inline import stages
from cwsink.frontends.inline.pipeline import MOST_NESTED
from cwsink.frontends.inline.seam import pipeline_of
from tests.harness.pipelines import Counting, Recorder, drain, entries_of, get_logger, made, messages_of
from tests.harness.support import quick_config


class _Colour(Enum):
    RED = "red"


class UnsayableError(Exception):
    def __str__(self) -> str:
        raise ValueError


@pytest.fixture
def config() -> SinkConfig:
    """Nobody delivers: what the spool holds is what was appended."""
    return quick_config(flusher="external")


class CountingAndWaiting(Counting):
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
def test_a_plugin_that_waits_keeps_the_queue(config: SinkConfig, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Found out before it is called: nothing is processed twice or lost, and one line says which, and what it costs."""
    plugin = CountingAndWaiting()
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

    plugin = CountingAndWaiting()
    loader.register_builtin("fapilog.enrichers", "slow_one", lambda **_: plugin)
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"enrichers": ["slow_one"]})
    assert pipeline_of(logger) is None
    logger.info("one")
    assert drain(logger) == (1, 1, 0)
    assert messages_of(config) == ["one"]
    assert plugin.seen == {("enricher", "one"): 1}
    assert "its enricher 'slow' may wait" in capfd.readouterr().err


class TaskIsOverError(Exception):
    """What the application's signal handler raises."""


class InterruptedPlugin(Counting):
    """A signal arrives while it runs."""

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        signal.raise_signal(signal.SIGUSR1)
        return await super().filter(event)

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        signal.raise_signal(signal.SIGUSR1)
        return await super().enrich(event)

    async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        signal.raise_signal(signal.SIGUSR1)
        return await super().redact(event)

    async def process(self, view: memoryview) -> Any:
        signal.raise_signal(signal.SIGUSR1)
        return await super().process(view)


@pytest.mark.parametrize("metrics", [False, True])
@pytest.mark.parametrize("kind", ["filter", "enricher", "redactor", "processor"])
def test_what_a_signal_handler_raises_while_a_plugin_runs_is_heard(
    config: SinkConfig, kind: str, metrics: bool
) -> None:
    """It is no failure of the plugin: the record does not go on without it (unredacted), and is counted as dropped."""

    def stop(number: int, frame: object) -> None:
        raise TaskIsOverError

    core = {"enable_metrics": metrics, "serialize_in_flush": True}
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core=core)
    made(logger, **{f"{kind}s": [InterruptedPlugin()]})
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(TaskIsOverError):
            logger.info("one")
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert drain(logger) == (1, 0, 1)
    assert messages_of(config) == []


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


class LoopUser(Counting):
    """Asks for the loop that runs, in a helper that is not read."""

    name = "loop_user"

    def helper(self, given: Any) -> Any:
        asyncio.get_running_loop()
        return given

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        return await super().filter(self.helper(event))

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return await super().enrich(self.helper(event))

    async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        return await super().redact(self.helper(event))

    async def process(self, view: memoryview) -> memoryview:
        return await super().process(self.helper(view))


@pytest.mark.parametrize("kind", ["filter", "enricher", "redactor", "processor"])
def test_a_plugin_that_needs_a_loop_gets_it(config: SinkConfig, kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    """It fails without one. So its record goes on in the queue, and so do those after it; one line says why."""
    plugin, first = LoopUser(), Counting()
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"serialize_in_flush": True})
    made(logger, **({} if kind == "filter" else {"filters": [first]}), **{f"{kind}s": [plugin]})
    names = ["one", "two"]
    for name in names:
        logger.info(name)
    assert drain(logger) == (2, 2, 0)
    assert messages_of(config) == names
    assert plugin.seen == Counter((kind, name) for name in names)
    assert kind == "filter" or first.seen == Counter(("filter", name) for name in names)
    [line] = [line for line in capfd.readouterr().err.splitlines() if "keeps fapilog's queue" in line]
    assert f"its {kind} 'loop_user' needs an event loop (RuntimeError: no running event loop)" in line


def test_a_plugin_that_waits_to_clean_up_is_found_out(config: SinkConfig) -> None:
    """Closed where it suspends, its coroutine suspends again. That is no error of the plugin."""

    class CleaningUp(Counting):
        async def helper(self) -> None:
            return None

        async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
            try:
                await self.helper()
                return {**event, "message": "hidden"}
            finally:
                await self.helper()

    plugin = CleaningUp()
    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config)), redactors=[plugin])
    logger.info("one")
    plugin.helper = lambda: asyncio.sleep(0)  # type: ignore[method-assign]
    logger.info("two")
    assert drain(logger) == (2, 2, 0)
    assert messages_of(config) == ["hidden", "hidden"]


def test_a_redactor_of_one_thread_lets_nothing_through(config: SinkConfig, capfd: pytest.CaptureFixture[str]) -> None:
    """What it keeps belongs to the thread that has logged first. fapilog's thread could not use that, either."""

    class Table:
        name = "table"
        db: Any = None

        def names(self) -> list[str]:
            if self.db is None:
                self.db = sqlite3.connect(":memory:")
            return [name for (name,) in self.db.execute("select 'password'")]

        async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
            event["data"].update(dict.fromkeys(self.names(), "***"))
            return event

    table = Table()
    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config)), redactors=[table])
    logger.info("one", password="hunter2")
    other = threading.Thread(target=logger.info, args=("two",), kwargs={"password": "hunter2"})
    other.start()
    other.join()
    logger.info("three", password="hunter2")
    assert drain(logger) == (3, 2, 1)
    table.db.close()
    assert [(each["message"], each["data"]["password"]) for each in entries_of(config)] == [
        ("one", "***"),
        ("three", "***"),
    ]
    said = capfd.readouterr().err
    assert "its redactor 'table' works in one thread only (ProgrammingError: SQLite objects" in said
    assert 'Set pipeline="queue"' in said


# A stack that is used up.


def test_at_the_end_of_the_stack_nothing_is_left_out(config: SinkConfig) -> None:
    """A recursion logs at each depth until Python ends it: each record arrives redacted, and enriched."""
    logger = get_logger(
        cwsink.CloudWatchSpoolSink(config),
        core={"redactors": ["field_mask"], "protected_levels": []},
        redactor_config={"field_mask": {"fields_to_mask": ["data.a.b.password"]}},
    )
    returned = []

    def recurse(depth: int) -> None:
        logger.info(f"{depth}", a={"b": {"password": "hunter2"}}, colour=_Colour.RED)
        returned.append(f"{depth}")
        recurse(depth + 1)

    with pytest.raises(RecursionError):
        recurse(0)
    assert pipeline_of(logger) is not None
    submitted, processed, dropped = drain(logger)
    assert submitted == processed + dropped
    assert sorted(messages_of(config)) == sorted(returned)
    for entry in entries_of(config):
        assert entry["data"] == {"a": {"b": {"password": "***"}}, "colour": "red"}
        assert entry["diagnostics"]["pid"]


@pytest.mark.parametrize("kind", ["filter", "enricher", "redactor", "processor"])
def test_a_plugin_without_stack_is_called_in_the_queue(
    config: SinkConfig, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only this record goes through the queue. The logger goes on to write through."""
    monkeypatch.setattr(stages, "_FRAMES_OF_QUEUE", 0)

    class Deep(LoopUser):
        def helper(self, given: Any) -> Any:
            if b"deep" in bytes(given) if isinstance(given, memoryview) else given["message"] == "deep":
                self.recurse(threading.current_thread())
            return given

        def recurse(self, thread: threading.Thread) -> None:
            if thread is threading.main_thread():
                self.recurse(thread)

    plugin = Deep()
    logger = get_logger(cwsink.CloudWatchSpoolSink(config), core={"serialize_in_flush": True})
    made(logger, **{f"{kind}s": [plugin]})
    for name in ("one", "deep", "two"):
        logger.info(name)
    assert pipeline_of(logger) is not None
    assert drain(logger) == (3, 3, 0)
    assert sorted(messages_of(config)) == ["deep", "one", "two"]
    assert plugin.seen == Counter((kind, name) for name in ("one", "deep", "two"))


def test_a_plugin_that_calls_itself_without_end_stays_inline(
    config: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would fail in the queue, too. It is left out there and here, and no enricher is called twice."""
    monkeypatch.setattr(stages, "_FRAMES_OF_QUEUE", 10_000)

    class Endless(Counting):
        async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
            return await super().enrich(self.recurse(event))

        def recurse(self, event: dict[str, Any]) -> dict[str, Any]:
            return self.recurse(event)

    first = Counting()
    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config)), enrichers=[first, Endless()])
    logger.info("one")
    assert messages_of(config) == ["one"]
    assert drain(logger) == (1, 1, 0)
    assert first.seen == {("enricher", "one"): 1}


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no order in 'the event loop held by another thread'"),
        RuntimeError("asyncio.run() cannot be called from a running event loop"),
    ],
)
def test_a_text_about_a_loop_is_not_always_about_the_thread(config: SinkConfig, error: Exception) -> None:
    """It may quote the record, or say that there is a loop: then fapilog's thread, which has one, is no way out."""

    class Failing(Counting):
        async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
            raise error

    async def log() -> None:
        logger.info("one")

    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config)), redactors=[Failing()])
    asyncio.run(log())
    assert messages_of(config) == ["one"]
    assert pipeline_of(logger) is not None
    assert drain(logger) == (1, 1, 0)


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


@pytest.mark.parametrize("error", [ValueError, MemoryError, asyncio.CancelledError, RecursionError, UnsayableError])
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
    assert drain(logger) == (1, 1, 0)
    assert messages_of(config) == ["one"]


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


def test_a_record_of_a_plugins_own_class_arrives(config: SinkConfig) -> None:
    """A filter may return a dict that is shown in its own way, and an Enum in it has the record made plain."""

    class Shown(dict[str, Any]):
        def __repr__(self) -> str:
            return "a record"

    class Replacing:
        name = "replacing"

        async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
            return Shown(event, colour=_Colour.RED)

    logger = made(get_logger(cwsink.CloudWatchSpoolSink(config), core={"enrichers": []}), filters=[Replacing()])
    logger.info("one")
    (entry,) = entries_of(config)
    assert (entry["message"], entry["colour"]) == ("one", "red")


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
