"""What an emulator of CloudWatch has to give back: the same tests for moto and for LocalStack.

Both take what AWS refuses, so they prove nothing about limits (the strict server does); here
somebody else's code reads the requests and is asked what it understood. `EmulatorContract` is
inherited by one class in the test module of each emulator, which provides `endpoint`.
"""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import boto3
import pytest
from botocore.config import Config

from cwsink.cli import main
from cwsink.doctor import patient, rounds
from tests.conftest import Spawn
from tests.harness.support import finish

RECORDS: Final = 300
PROCESSES: Final = 4
TEXTS: Final = (
    "plain",
    "naïve façade",
    "日本語のログ",
    "a scarf 🧣 and a 👩\u200d🚀",
    'quotes " and \\ and\nlines\t\u2028',
)
PAGE: Final = 97  # events a page: none of the counts above is a multiple of it

FAPILOG_PROGRAM: Final = """
import json, sys
import cwsink, fapilog

cwsink.install()
group, stream, endpoint, texts, first, last = json.loads(sys.argv[1])
settings = fapilog.Settings()
settings.core.sinks = ["cloudwatch"]
settings.sink_config.cloudwatch.log_group_name = group
settings.sink_config.cloudwatch.log_stream_name = stream
settings.sink_config.cloudwatch.region = "us-east-1"
settings.sink_config.cloudwatch.endpoint_url = endpoint
logger = fapilog.get_logger(settings=settings)
for number in range(first, last):
    logger.info(texts[number % len(texts)], number=number)
"""

WRITER_PROGRAM: Final = """
import json, sys, time
from cwsink import Writer

group, stream, endpoint, texts, producer, count = json.loads(sys.argv[1])
writer = Writer.open(
    log_group_name=group, log_stream_name=stream, region="us-east-1", endpoint_url=endpoint, batch_timeout_seconds=0.2
)
print("ready", flush=True)
sys.stdin.readline()
for number in range(count):
    now_ms = time.time_ns() // 1_000_000
    text = texts[number % len(texts)]
    record = {"producer": producer, "number": number, "message": text, "time_ms": now_ms}
    assert writer.append(json.dumps(record, ensure_ascii=False), now_ms)
    time.sleep(0.001)
"""

# Generous: a loaded machine must not turn one call into two.
PATIENT: Final = {
    "FAPILOG_CLOUDWATCH__READ_TIMEOUT_SECONDS": "50s",
    "FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": "50s",
    "NO_PROXY": "*",
    "CWSINK_KEEP_DELIVERED": "1h",
}


@dataclass(frozen=True)
class Target:
    """A group and a stream nobody else uses, and what boto3 reads from them."""

    endpoint: str
    group: str = field(default_factory=lambda: f"/read-back/{uuid.uuid4()}")
    stream: str = "web-1"

    @property
    def client(self) -> Any:
        """A boto3 client of its own making: no line of cwsink's is in it."""
        return boto3.Session(aws_access_key_id="test", aws_secret_access_key="test", region_name="us-east-1").client(
            "logs", endpoint_url=self.endpoint, config=Config(read_timeout=50, proxies={})
        )

    def groups(self) -> list[str]:
        pages = self.client.get_paginator("describe_log_groups").paginate(logGroupNamePrefix=self.group)
        return [group["logGroupName"] for page in pages for group in page["logGroups"]]

    def streams(self) -> list[str]:
        pages = self.client.get_paginator("describe_log_streams").paginate(logGroupName=self.group)
        return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]

    def get_log_events(self) -> Iterator[tuple[int, str]]:
        """Yield timestamp and message of every event of the stream, page by page."""
        client, token = self.client, None
        while True:
            page = client.get_log_events(
                logGroupName=self.group,
                logStreamName=self.stream,
                startFromHead=True,
                limit=PAGE,
                **({"nextToken": token} if token else {}),
            )
            assert len(page["events"]) <= PAGE
            yield from ((event["timestamp"], event["message"]) for event in page["events"])
            if page["nextForwardToken"] == token:  # the documented end
                return
            token = page["nextForwardToken"]

    def filter_log_events(self) -> Iterator[tuple[int, str]]:
        """Yield the same of all streams of the group."""
        pages = self.client.get_paginator("filter_log_events").paginate(logGroupName=self.group, limit=PAGE)
        return ((event["timestamp"], event["message"]) for page in pages for event in page["events"])


class EmulatorContract:
    """The tests; a subclass provides `endpoint`, the emulator's URL."""

    @pytest.fixture
    def target(self, endpoint: str) -> Target:
        """A group of this test's own, not there yet."""
        target = Target(endpoint)
        assert target.groups() == []  # and LocalStack has loaded the service, which takes it seconds
        return target

    def test_a_fapilog_program_is_read_back(self, target: Target, spawn: Spawn) -> None:
        """300 records and a plain exit: group and stream are there, and each record once, in order, in its own words
        and with its own time."""
        log_with_fapilog(spawn, target, 0, RECORDS)
        assert target.groups() == [target.group]
        assert target.streams() == [target.stream]
        events = list(target.get_log_events())
        assert [number_of(message) for _, message in events] == list(range(RECORDS))
        assert [json.loads(message)["message"] for _, message in events] == list(map(text_of, range(RECORDS)))
        assert [timestamp for timestamp, _ in events] == [time_of(message) for _, message in events]

    def test_a_restarted_program_goes_on_in_the_same_stream(self, target: Target, spawn: Spawn) -> None:
        """The second run finds group and stream, and its records stand behind those of the first."""
        log_with_fapilog(spawn, target, 0, RECORDS)
        log_with_fapilog(spawn, target, RECORDS, 2 * RECORDS)
        assert target.streams() == [target.stream]
        assert [number_of(message) for _, message in target.get_log_events()] == list(range(2 * RECORDS))

    def test_several_processes_are_read_back_from_one_stream(
        self, target: Target, spawn: Spawn, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """4 processes write 300 records each at the same time: each is there once, in order for each of them, with
        its own time; GetLogEvents, FilterLogEvents and `cwsink verify` agree."""
        writers = [
            spawn(WRITER_PROGRAM, json.dumps([*destination(target), producer, RECORDS]), env=PATIENT)
            for producer in range(PROCESSES)
        ]
        for writer in writers:
            assert writer.stdout is not None
            assert writer.stdout.readline() == "ready\n"
        began_ms = time.time_ns() // 1_000_000
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("go\n")
            writer.stdin.flush()
        for writer in writers:
            finish(writer)

        events = list(target.get_log_events())
        assert sorted(target.filter_log_events()) == sorted(events)
        records = [json.loads(message) for _, message in events]
        assert [timestamp for timestamp, _ in events] == [record["time_ms"] for record in records]
        assert all(began_ms <= timestamp <= time.time() * 1000 for timestamp, _ in events)
        assert len(records) == PROCESSES * RECORDS
        for producer in range(PROCESSES):
            own = [(record["number"], record["message"]) for record in records if record["producer"] == producer]
            assert own == [(number, text_of(number)) for number in range(RECORDS)]
        assert main(["verify", "--rate", "100"]) == 0
        assert f"{PROCESSES * RECORDS:,} events found, 0 missing." in capfd.readouterr().out

    def test_the_doctor_changes_nothing_and_its_probe_arrives(
        self, target: Target, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is missing is said, and not made; then all is well, and nothing is stored but the probe's record."""
        settings = {"LOG_GROUP_NAME": target.group, "LOG_STREAM_NAME": target.stream, "ENDPOINT_URL": target.endpoint}
        for name, value in {**settings, "BATCH_TIMEOUT_SECONDS": "0.1", "DRAIN_TIMEOUT_SECONDS": "0"}.items():
            monkeypatch.setenv(f"CWSINK_{name}", value)
        monkeypatch.setenv("NO_PROXY", "*")
        questions = [question for question in rounds.QUESTIONS if question.ask.__module__.endswith("reach")]

        def verdicts(*, probe: bool = False) -> dict[str, str]:
            found = list(rounds.examine(patient.admit([], os.environ), questions, probe=probe))
            assert "wrong" not in {each.verdict for each in found}, found
            return {each.topic: each.verdict for each in found}

        assert verdicts()["CreateLogGroup"] == "unknown"
        assert target.groups() == []
        target.client.create_log_group(logGroupName=target.group)
        assert verdicts()["CreateLogStream"] == "unknown"
        assert target.streams() == []
        target.client.create_log_stream(logGroupName=target.group, logStreamName=target.stream)
        assert set(verdicts().values()) == {"ok"}
        assert list(target.get_log_events()) == []
        assert verdicts(probe=True)["probe"] == "ok"
        assert [json.loads(message)["logger"] for _, message in target.get_log_events()] == ["cwsink.doctor"]


def text_of(number: int) -> str:
    return TEXTS[number % len(TEXTS)]


def destination(target: Target) -> list[object]:
    return [target.group, target.stream, target.endpoint, TEXTS]


def log_with_fapilog(spawn: Spawn, target: Target, first: int, last: int) -> None:
    finish(spawn(FAPILOG_PROGRAM, json.dumps([*destination(target), first, last]), env=PATIENT))


def number_of(message: str) -> int:
    return json.loads(message)["data"]["number"]


def time_of(message: str) -> int:
    """Return the time in a fapilog entry's own words, in ms."""
    text = json.loads(message)["timestamp"]
    return round(datetime.fromisoformat(text.replace("Z", "+00:00")).timestamp() * 1000)
