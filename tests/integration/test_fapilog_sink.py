"""The sink in real fapilog programs, as users write them; the verdict is what the strict server stored."""

from __future__ import annotations

import asyncio
import importlib.metadata
import json
import math
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import fapilog
import pytest
from fapilog.core import config_builders
from fapilog.testing import validators

import cwsink
from cwsink.config import SinkConfig
from cwsink.spool import directory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from cwsink.testing.store import StoredEvent
from tests.conftest import Spawn
from tests.harness.interleave import deliver
from tests.harness.support import Unresolved, finish

HANG_SECONDS = 60.0
# On a crowded machine a flusher is not there at once.
PATIENT = {"FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": "30"}

EXAMPLE = """\
import cwsink, fapilog
cwsink.install()
settings = fapilog.Settings()
settings.core.sinks = ["cloudwatch"]
settings.sink_config.cloudwatch.log_group_name = "/myapp/prod"
settings.sink_config.cloudwatch.log_stream_name = "web-1"
settings.sink_config.cloudwatch.region = "us-east-1"
settings.sink_config.cloudwatch.batch_size = 100
settings.sink_config.cloudwatch.batch_timeout_seconds = 5.0
settings.sink_config.cloudwatch.max_retries = 3
settings.sink_config.cloudwatch.retry_base_delay = 0.5
logger = fapilog.get_logger(settings=settings)
"""
SETTINGS, GET_LOGGER = EXAMPLE.split("logger = ")
LOG_250 = """
for number in range(250):
    logger.info("hello", number=number)
"""

Run = Callable[..., list[StoredEvent]]


@pytest.fixture
def run(server: StrictCloudWatch, spawn: Spawn) -> Run:
    """Run a program to its end, and return what CloudWatch has then."""

    def run_program(code: str, **variables: str) -> list[StoredEvent]:
        child = spawn(code, env={**server.environment(), **PATIENT, **variables})
        run_program.stdout, run_program.stderr = child.communicate(timeout=HANG_SECONDS)
        assert child.returncode == 0, run_program.stderr
        return server.events()

    run_program.stdout = run_program.stderr = ""
    return run_program


def numbers(events: list[StoredEvent]) -> list[int]:
    """Return the `number` of each fapilog entry, whichever way it was serialized."""
    entries = [json.loads(event.message) for event in events]
    return [entry.get("log", entry)["data"]["number"] for entry in entries]


def time_of(event: StoredEvent) -> int:
    """Return the time in the entry's own words, in ms."""
    entry = json.loads(event.message)
    text = entry.get("log", entry)["timestamp"]
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)


def test_the_first_example_delivers_every_record(run: Run) -> None:
    """12 lines, 250 records, a plain end: 250 arrive once, in order, in the stream asked for, nothing is said."""
    events = run(EXAMPLE + LOG_250)
    assert numbers(events) == list(range(250))
    assert {(event.group, event.stream) for event in events} == {("/myapp/prod", "web-1")}
    assert run.stderr == ""


def test_records_come_with_their_own_time(run: Run) -> None:
    """The event's time is the entry's, not that of sending it."""
    events = run(EXAMPLE + "import time\n" + "logger.info('x', number=1)\ntime.sleep(0.05)\n" * 3)
    assert [event.timestamp for event in events] == [time_of(event) for event in events]
    assert len({event.timestamp for event in events}) == 3


def test_serialized_in_flush_all_arrive_with_their_own_time(run: Run) -> None:
    """`serialize_in_flush` hands over JSON bytes and never calls start(): 250 of 250 arrive all the same."""
    events = run(SETTINGS + "settings.core.serialize_in_flush = True\nlogger = " + GET_LOGGER + LOG_250)
    assert numbers(events) == list(range(250))
    assert [event.timestamp for event in events] == [time_of(event) for event in events]
    assert "schema_version" in events[0].message


@pytest.mark.parametrize("timeout", ["5s", "5.0"])
def test_settings_come_from_the_environment(run: Run, timeout: str) -> None:
    """FAPILOG_CORE__SINKS and FAPILOG_CLOUDWATCH__* are enough; a duration may have its unit."""
    events = run(
        f"import cwsink, fapilog\ncwsink.install()\nlogger = fapilog.get_logger()\n{LOG_250}",
        FAPILOG_CORE__SINKS='["cloudwatch"]',
        FAPILOG_CLOUDWATCH__LOG_GROUP_NAME="/myapp/env",
        FAPILOG_CLOUDWATCH__LOG_STREAM_NAME="web-2",
        FAPILOG_CLOUDWATCH__REGION="us-east-1",
        FAPILOG_CLOUDWATCH__BATCH_SIZE="100",
        FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS=timeout,
        FAPILOG_CLOUDWATCH__SEGMENT_BYTES="64KiB",  # one of ours: fapilog's settings do not know it
    )
    assert numbers(events) == list(range(250))
    assert {(event.group, event.stream) for event in events} == {("/myapp/env", "web-2")}


EXTRA = """\
settings = fapilog.Settings()
settings.core.sinks = ["cwsink"]
settings.sink_config.extra["cwsink"] = {
    "log_group_name": "/myapp/extra", "log_stream_name": "web-3", "region": "us-east-1", "segment_bytes": "64KiB",
}
"""


def as_fapilog_gives_it(**given: object) -> SinkConfig:
    """What the sink makes of the config object that fapilog builds for it."""
    settings = fapilog.Settings()
    for name, value in given.items():
        setattr(settings.sink_config.cloudwatch, name, value)
    config = config_builders._sink_configs(settings)["cloudwatch"]["config"]
    return cwsink.CloudWatchSpoolSink(config, flusher="external")._writer.config


def test_what_nobody_has_set_in_fapilogs_config_comes_from_variables_or_is_our_default(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """fapilog's object has every field: its defaults are nobody's wish, and what a variable says is no argument."""
    found = as_fapilog_gives_it(max_retries=7)
    assert (found.batch_size, found.batch_timeout_seconds, found.max_retries) == (1000, 1.0, 7)
    variables = {
        "CWSINK_LOG_GROUP_NAME": "/ours/group",
        "CWSINK_BATCH_SIZE": "7",
        "CWSINK_BATCH_TIMEOUT_SECONDS": "500ms",
        "CWSINK_CREATE_LOG_GROUP": "no",
        "CWSINK_MAX_RETRIES": "9",
        "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": "/theirs/group",
        "FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS": "2s",
        "FAPILOG_CLOUDWATCH__CREATE_LOG_STREAM": "false",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = as_fapilog_gives_it(max_retries=7)
    assert (found.log_group_name, found.batch_size, found.batch_timeout_seconds) == ("/ours/group", 7, 0.5)
    assert (found.create_log_group, found.create_log_stream, found.max_retries) == (False, False, 7)
    said = capfd.readouterr().err
    assert "the variable FAPILOG_CLOUDWATCH__LOG_GROUP_NAME has no effect: CWSINK_LOG_GROUP_NAME is set" in said
    assert "the variable FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS has no effect" in said


def test_the_sink_is_there_by_its_own_name(run: Run) -> None:
    """`core.sinks = ["cwsink"]` takes its settings from `sink_config.extra`."""
    events = run(f"import cwsink, fapilog\ncwsink.install()\n{EXTRA}logger = {GET_LOGGER}{LOG_250}")
    assert numbers(events) == list(range(250))
    assert {(event.group, event.stream) for event in events} == {("/myapp/extra", "web-3")}


def test_the_sink_is_found_by_its_entry_point(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Installed and in `plugins.allowlist`, no line of cwsink's is needed; not in sys.modules before."""
    if not importlib.metadata.entry_points(group="fapilog.sinks", name="cwsink"):
        metadata = tmp_path / "site" / "cwsink-0.dist-info"
        metadata.mkdir(parents=True)
        (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: cwsink\nVersion: 0\n")
        (metadata / "entry_points.txt").write_text(
            "[fapilog.sinks]\ncwsink = cwsink.frontends.fapilog_sink:CloudWatchSpoolSink\n"
        )
        monkeypatch.syspath_prepend(metadata.parent)  # `spawn` hands sys.path on
    events = run(f"import fapilog\n{EXTRA}settings.plugins.allowlist = ['cwsink']\nlogger = {GET_LOGGER}{LOG_250}")
    assert numbers(events) == list(range(250))


def test_routing_knows_the_sink_by_the_built_in_name(run: Run) -> None:
    """A routing rule that names "cloudwatch" goes on working after install()."""
    events = run(
        SETTINGS
        + "settings.core.sinks = ['cloudwatch', 'stdout_json']\n"
        + "settings.sink_routing.enabled = True\n"
        + "settings.sink_routing.rules = [{'levels': ['ERROR'], 'sinks': ['cloudwatch']},\n"
        + "                               {'levels': ['INFO'], 'sinks': ['stdout_json']}]\n"
        + "settings = fapilog.Settings.model_validate(settings.model_dump())\nlogger = "
        + GET_LOGGER
        + "for number in range(10):\n    logger.info('no', number=number)\n    logger.error('yes', number=number)\n"
    )
    assert numbers(events) == list(range(10))
    assert all("yes" in event.message for event in events)


def test_two_pipeline_workers_deliver_each_record_once(run: Run) -> None:
    """`core.worker_count = 2` starts the sink twice: 250 of 250 arrive, none of them twice."""
    events = run(SETTINGS + "settings.core.worker_count = 2\nlogger = " + GET_LOGGER + LOG_250)
    assert sorted(numbers(events)) == list(range(250))


@pytest.mark.parametrize("ending", ["await logger.drain()", "pass"])
def test_the_async_logger_delivers_every_record(run: Run, ending: str) -> None:
    """The async facade, drained or just left behind at the end of the loop."""
    events = run(
        SETTINGS
        + f"""
import asyncio
async def main():
    logger = await fapilog.get_async_logger(settings=settings)
    for number in range(250):
        await logger.info("hello", number=number)
    {ending}
asyncio.run(main())
"""
    )
    assert numbers(events) == list(range(250))


def test_signal_handlers_are_left_alone(run: Run) -> None:
    """install() and get_logger() change no signal's handler."""
    events = run(
        "import signal\n"
        "def handlers(): return {each: signal.getsignal(each) for each in signal.valid_signals()}\n"
        "before = handlers()\n" + EXAMPLE + "logger.info('x', number=1)\nassert handlers() == before\n"
    )
    assert numbers(events) == [1]


def test_an_unknown_setting_is_named_on_stderr(run: Run) -> None:
    """fapilog swallows what a constructor raises; the line that names the nearest setting is seen all the same."""
    events = run(
        "import cwsink, fapilog\ncwsink.install()\n"
        + EXTRA.replace("log_stream_name", "log_stream_nam")
        + f"logger = {GET_LOGGER}logger.info('the application goes on')\nprint('went on')\n"
    )
    assert events == []
    assert "cwsink: " in run.stderr
    assert "'log_stream_nam' is not a cwsink setting. Did you mean 'log_stream_name'?" in run.stderr
    assert "went on" in run.stdout


def test_an_unusable_spool_directory_is_named_on_stderr(run: Run, tmp_path: Path) -> None:
    """No spool, no sink: one line says which directory, why and what to do, and the application goes on."""
    in_the_way = tmp_path / "file"
    in_the_way.touch()
    events = run(EXAMPLE + LOG_250 + "print('went on')\n", CWSINK_SPOOL_DIRECTORY=str(in_the_way / "spools"))
    assert events == []
    assert str(in_the_way) in run.stderr
    assert "CWSINK_SPOOL_DIRECTORY" in run.stderr
    assert run.stderr.count("cwsink: ") == 1
    assert "went on" in run.stdout


def test_odd_values_reach_the_sink_through_the_logger(run: Run) -> None:
    """Each record with something JSON cannot say arrives, and so do those after it."""
    events = run(
        EXAMPLE
        + """
circle = []; circle.append(circle)
class Broken:
    def __str__(self): raise ValueError("no")
    __repr__ = __str__
odd = [b"\\xff\\x00", {1, 2}, object(), circle, float("nan"), 1 << 70, "\\ud800 and \\0", {(1, 2): 3}, 3 + 4j, Broken()]
for number, value in enumerate(odd):
    logger.info("odd", value=value, number=number)
    logger.info("plain", number=100 + number)
"""
    )
    text = "\n".join(event.message for event in events)
    assert len(events) == 20, text
    assert sorted(number for number in numbers_of_any(events) if number >= 100) == list(range(100, 110))


def numbers_of_any(events: list[StoredEvent]) -> list[int]:
    """Return the numbers of those entries whose data could be kept as it was."""
    entries = [json.loads(event.message) for event in events]
    return [entry["data"]["number"] for entry in entries if isinstance(entry["data"], dict)]


# The sink itself, without a pipeline.


def make_sink(config: SinkConfig, **settings: Any) -> cwsink.CloudWatchSpoolSink:
    return cwsink.CloudWatchSpoolSink(config, **settings)


def entry(message: str = "hello", **fields: object) -> dict[str, Any]:
    return {"timestamp": "2026-01-01T00:00:00.000Z", "level": "INFO", "message": message, **fields}


def test_the_sink_keeps_fapilogs_contract(config: SinkConfig) -> None:
    """fapilog's own validator finds nothing to say, for the sink and for its metadata."""
    result = validators.validate_sink(make_sink(config))
    assert (result.valid, result.errors, result.warnings) == (True, [], [])


def test_an_old_entry_keeps_its_time(server: StrictCloudWatch, config: SinkConfig) -> None:
    """An entry of three hours ago is stored with that time, by write and by write_serialized, in all notations."""
    sink = make_sink(config)
    then = datetime.now(timezone.utc) - timedelta(hours=3)
    then_ms = round(then.timestamp() * 1000)
    words = then.strftime("%Y-%m-%dT%H:%M:%S.") + f"{then_ms % 1000:03d}"
    timestamps = [words + "Z", words + "+00:00", then_ms / 1000]

    async def write() -> None:
        for timestamp in timestamps:
            assert await sink.write({**entry(), "timestamp": timestamp})
            for text in ({"log": {"timestamp": timestamp}, "schema_version": "1.1"}, {"timestamp": timestamp}):
                assert await sink.write_serialized(SimpleNamespace(data=memoryview(json.dumps(text).encode())))

    asyncio.run(write())
    assert server.wait_for_events(9, HANG_SECONDS)
    assert [event.timestamp for event in server.events()] == [then_ms] * 9


def test_an_entry_without_a_time_gets_the_present_one(server: StrictCloudWatch, config: SinkConfig) -> None:
    """No, broken, or impossible times: the entry arrives with the time it was written at."""
    sink = make_sink(config)
    before = int(time.time() * 1000)
    times = [None, "yesterday", math.nan, math.inf, -1, 1 << 80, [], "2026-13-40T99:00:00Z", Unresolved()]

    async def write() -> None:
        for timestamp in times:
            assert await sink.write({**entry(), "timestamp": timestamp})
        for data in (b"not JSON", b"[1, 2]", b'{"log": 1}', b'{"log": {"timestamp": "soon"}}', b"\xff\xfe"):
            assert await sink.write_serialized(SimpleNamespace(data=data))

    asyncio.run(write())
    assert server.wait_for_events(len(times) + 5, HANG_SECONDS)
    assert all(before <= event.timestamp <= time.time() * 1000 for event in server.events())


@pytest.mark.parametrize("life", ["", "start", "start start", "start stop", "start stop stop", "stop"])
def test_start_and_stop_do_not_matter(server: StrictCloudWatch, config: SinkConfig, life: str) -> None:
    """Never started, started twice, written to after stop: every entry arrives, and stop waits for nothing."""
    sink = make_sink(config)

    async def live() -> None:
        for call in life.split():
            await getattr(sink, call)()
        assert await sink.write(entry("first", timestamp=None))
        assert await sink.health_check()
        await sink.stop()
        assert await sink.write(entry("second", timestamp=None))
        await sink.stop()

    asyncio.run(live())
    assert server.wait_for_events(2, HANG_SECONDS)
    assert [json.loads(message)["message"] for message in server.messages()] == ["first", "second"]


CIRCLE: list[object] = []
CIRCLE.append(CIRCLE)


class Broken:
    """Cannot even be shown."""

    def __str__(self) -> str:
        raise ValueError("no")

    __repr__ = __str__


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (b"bytes", '"'),
        ({1}, "[1]"),
        (Path("/a/path"), '"/a/path"'),
        (datetime(2026, 1, 2, tzinfo=timezone.utc), '"2026-01-02T00:00:00Z"'),
        (math.nan, "null"),
        (1 << 70, str(1 << 70)),
        ("\ud800 lone", "lone"),
        ("nul \0 character", "nul \\u0000 character"),
        (CIRCLE, "..."),
        ({(1, 2): 3}, "3"),
        (object(), "object object"),
        (Broken(), "Broken"),
        ("\x1b[31m\r\n\u2028\N{PILE OF POO}", "\N{PILE OF POO}"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_json_cannot_say_arrives_as_something_sensible(
    server: StrictCloudWatch, small: SinkConfig, value: object, kept: str
) -> None:
    """The entry arrives as a JSON object with its message, and the next entries arrive too."""
    sink = make_sink(small)

    async def write() -> None:
        assert await sink.write(entry(value=value, timestamp=None))
        assert await sink.write(entry("next", timestamp=None))

    asyncio.run(write())
    spool = directory.open_for(small)
    deliver(spool, small)
    odd, after = server.messages()
    assert json.loads(odd)["message"] == "hello"
    assert kept in odd
    assert json.loads(after)["message"] == "next"
    assert survey(spool).dead_lettered == {}


def test_install_twice_is_install_once(run: Run) -> None:
    """Libraries may each call install(): one sink, each record once."""
    events = run(EXAMPLE.replace("cwsink.install()", "cwsink.install(); cwsink.install()") + LOG_250)
    assert numbers(events) == list(range(250))


def test_a_sink_in_a_worker_that_is_killed_loses_nothing(server: StrictCloudWatch, spawn: Spawn) -> None:
    """What the sink has taken is delivered, though its process was killed at once; nobody has to start another one."""
    code = EXAMPLE + LOG_250
    slow = "import os, signal, time\nfrom cwsink.spool import directory, survey\n"
    slow += "spool = directory.open_existing(directory.find_spools()[0])\n"
    slow += "while survey.survey(spool).appended < 250: time.sleep(0.01)\nos.kill(os.getpid(), signal.SIGKILL)\n"
    finish(spawn(code + slow, env=server.environment()), code=-9)
    assert server.wait_for_events(250, HANG_SECONDS)
    assert numbers(server.events()) == list(range(250))


def test_drain_empties_fapilog_and_the_spool(spawn: Spawn, server: StrictCloudWatch) -> None:
    """After `cwsink.drain()` everything logged is delivered, even if the process ends without exit handlers."""
    code = """
        import os
        import cwsink, fapilog
        cwsink.install()
        settings = fapilog.Settings()
        settings.core.sinks = ["cloudwatch"]
        logger = fapilog.get_logger(settings=settings)
        for number in range(50):
            logger.info("drained", number=number)
        done = cwsink.drain(30)
        logger.info("goes on")
        again = cwsink.drain(30)
        os._exit(0 if done and again else 1)
    """
    finish(spawn(code, env={"FAPILOG_CLOUDWATCH__ENDPOINT_URL": server.endpoint_url}))
    assert len(server.messages()) == 51
