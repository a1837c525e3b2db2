"""Watched by machines: OpenMetrics, the events of `self_metrics`, alarms, and letters that were dealt with."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import yaml

from cwsink import Writer, stats
from cwsink.config import SinkConfig
from cwsink.flusher import self_metrics
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.publisher import LeaderState
from cwsink.spool import letters, refusals
from cwsink.spool.record import Loss
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver, leading, until
from tests.harness.support import CHILD_SECONDS, quick_config

METRICS = set("Pending OldestSeconds Fill Appended Delivered DeadLetters Lost Requests Throttled SentBytes".split())
SEVEN = Loss(7, int(time.time() * 1000), int(time.time() * 1000), "spool_full", 0)


def cwsink(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def openmetrics_of(path: str | None) -> str:
    from cwsink.watching import openmetrics  # here, because it needs an extra

    return openmetrics.text_of(path).decode()


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Parse OpenMetrics, which is checked by that."""
    from prometheus_client.openmetrics.parser import text_string_to_metric_families

    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def key(name: str, **labels: str) -> tuple[str, frozenset[tuple[str, str]]]:
    return f"cwsink_{name}", frozenset({"group": "/test/group", **labels}.items())


def test_the_numbers_of_prometheus_are_those_of_stats(
    small: SinkConfig, server: StrictCloudWatch, tmp_path: Path
) -> None:
    """Written as a whole, from the files alone; requests by answer, bytes and times are those of the leaders."""
    writer = Writer(small)
    for number in range(5):
        writer.append(f"{number} {'x' * 100}")
    server.faults.fail_next(2, "ThrottlingException")
    deliver(writer.directory, small)
    writer.append("waits")
    assert refusals.add(writer.directory, [SEVEN])
    file = tmp_path / "cwsink.prom"
    cwsink("metrics", "--textfile", str(file))
    assert [each.name for each in tmp_path.glob("cwsink.prom*")] == [file.name]
    found = samples(file.read_text())
    assert found[key("records_total", outcome="delivered", reason="")] == 5
    assert found[key("records_total", outcome="refused", reason="spool_full")] == 7
    assert found[key("records_total", outcome="dead_lettered", reason="poison")] == 0
    assert (found[key("pending_records")], found[key("leader_epoch")]) == (1, 1)
    assert 0 < found[key("oldest_pending_seconds")] < CHILD_SECONDS
    assert found[key("capacity_bytes")] == small.spool_max_bytes
    assert found[key("requests_total", answer="throttled")] == 2
    assert found[key("requests_total", answer="delivered")] == 1
    assert found[key("request_seconds_count")] == found[key("request_seconds_bucket", le="+Inf")] >= 3
    assert found[key("request_seconds_sum")] > 0
    assert found[key("sent_bytes_total")] >= 3 * 500
    (spool,) = stats(writer.directory.root).spools
    assert found[key("spool_bytes")] == spool.used_bytes
    before = found[key("requests_total", answer="delivered")]
    deliver(writer.directory, small)
    later = samples(cwsink("metrics", "--textfile", "-").stdout)
    assert later[key("requests_total", answer="delivered")] == before + 2, "the next leader counts on (a notice, too)"


def test_metrics_of_a_path_with_a_slip_of_the_pen_are_not_written(small: SinkConfig, tmp_path: Path) -> None:
    """No numbers would look like no trouble."""
    missing, file = tmp_path / "spolls", tmp_path / "cwsink.prom"
    done = cwsink("metrics", "--textfile", str(file), str(missing), code=1)
    assert done.stderr.startswith(f"cwsink: {missing} is not there. ")
    assert not file.exists()
    writer = Writer(small)
    assert writer.append("x")
    ring = writer.directory.ring
    assert f"{ring} holds no spool" in cwsink("metrics", "--textfile", "-", ring, code=1).stderr


def test_no_label_grows_without_bound(small: SinkConfig) -> None:
    """Streams, hosts, pids and what others may have written into the files are in no label."""
    for stream in ("pod-1", "pod-2"):
        writer = Writer(quick_config(small.endpoint_url, log_stream_name=stream, flusher="external"))
        writer.append("x")
    assert refusals.add(writer.directory, [Loss(3, 1, 1, "by a stranger", 0)])
    state = LeaderState(writer.directory, 1, "own", 1)
    state.answered("made up", 0.1, 5)
    state.publish(at_once=True)
    text = openmetrics_of(writer.directory.root)
    found = samples(text)
    assert found[key("pending_records")] == 2
    assert found[key("records_total", outcome="refused", reason="other")] == 3
    assert found[key("requests_total", answer="other")] == 1
    for foreign in ("pod-1", "stranger", "made up"):
        assert foreign not in text


@pytest.mark.parametrize("address", ["127.0.0.1", "[::1]"])
def test_prometheus_can_ask(small: SinkConfig, address: str) -> None:
    """It answers with what is there at that moment, and ends by TERM with code 0."""
    writer = Writer(small)
    child = subprocess.Popen(
        [sys.executable, "-m", "cwsink", "metrics", "--listen", f"{address}:0"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout
        url = child.stdout.readline().strip()
        assert url.startswith(f"http://{address}:"), url
        for count in (1, 2):
            writer.append("x")
            request = urllib.request.Request(url, headers={"Accept": "application/openmetrics-text; version=1.0.0"})
            with urllib.request.urlopen(request, timeout=CHILD_SECONDS) as answer:
                assert samples(answer.read().decode())[key("pending_records")] == count
        child.send_signal(signal.SIGTERM)
        assert child.wait(CHILD_SECONDS) == 0
    finally:
        child.kill()
        child.wait(CHILD_SECONDS)
        if child.stdout:
            child.stdout.close()


def test_without_the_extra_one_line_says_so(tmp_path: Path) -> None:
    """It names what to install."""
    (tmp_path / "prometheus_client.py").write_text("raise ImportError('No module named prometheus_client')")
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", "metrics", "--textfile", "-"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "pip install 'cwsink[metrics]'" in line


# The embedded metric format, as its specification has it
# (https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html).
EMF = {
    "type": "object",
    "required": ["_aws"],
    "properties": {
        "_aws": {
            "type": "object",
            "required": ["Timestamp", "CloudWatchMetrics"],
            "properties": {
                "Timestamp": {"type": "integer"},
                "CloudWatchMetrics": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["Namespace", "Dimensions", "Metrics"],
                        "properties": {
                            "Namespace": {"type": "string", "minLength": 1, "maxLength": 1024},
                            "Dimensions": {
                                "type": "array",
                                "minItems": 1,
                                "items": {
                                    "type": "array",
                                    "maxItems": 30,
                                    "items": {"type": "string", "minLength": 1, "maxLength": 250},
                                },
                            },
                            "Metrics": {
                                "type": "array",
                                "maxItems": 100,
                                "items": {
                                    "type": "object",
                                    "required": ["Name"],
                                    "properties": {
                                        "Name": {"type": "string", "minLength": 1, "maxLength": 1024},
                                        "Unit": {"enum": ["Count", "Seconds", "Bytes", "Percent"]},
                                        "StorageResolution": {"enum": [1, 60]},
                                    },
                                },
                            },
                        },
                    },
                },
            },
        }
    },
}


def metrics_of(server: StrictCloudWatch) -> list[dict[str, Any]]:
    return [json.loads(message) for message in server.messages() if "_aws" in message]


def test_the_leader_sends_metrics_of_itself(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Valid by the specification, each minute, also when idle; counts since the one before; no record in the books."""
    jsonschema = pytest.importorskip("jsonschema")
    config = quick_config(server.endpoint_url, flusher="external", self_metrics="emf", app_name="shop")
    writer = Writer(config)
    for _ in range(3):
        writer.append("x")
    deliver(writer.directory, config)
    assert len(metrics_of(server)) == 1
    assert refusals.add(writer.directory, [SEVEN])
    deliver(writer.directory, config)
    assert len(metrics_of(server)) == 1, "the next leader waits for the minute to end"
    monkeypatch.setattr(self_metrics, "EVERY_SECONDS", 0.2)
    with leading(writer.directory, config):
        until(lambda: len(metrics_of(server)) >= 4, "metrics of an idle spool")
    found = metrics_of(server)
    for event in found:
        jsonschema.validate(event, EMF)
        (directive,) = event["_aws"]["CloudWatchMetrics"]
        names = [metric["Name"] for metric in directive["Metrics"]]
        assert set(names) == METRICS
        assert all(isinstance(event[name], int | float) for name in names)
        assert directive["Dimensions"] == [["group", "app"]]
        assert (event["group"], event["app"]) == ("/test/group", "shop")
    assert (found[0]["Pending"], found[0]["Appended"], found[0]["Delivered"]) == (3, 3, 0)
    assert [sum(event[name] for event in found) for name in ("Appended", "Delivered", "Lost")] == [3, 3, 7]
    assert found[-1]["Requests"] >= 1
    (spool,) = stats(writer.directory.root).spools
    assert (spool.appended, spool.delivered, spool.pending, spool.lost) == (3, 3, 0, 7)


def test_metrics_are_off_by_default(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Nobody finds an event that he has not asked for."""
    writer = Writer(small)
    writer.append("x")
    deliver(writer.directory, small)
    assert server.messages() == ["x"]


def test_the_alarms_are_on_metrics_that_exist() -> None:
    """Five alarms and a dashboard; no data is an alarm."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_multi_constructor("!", lambda loader, tag, node: (tag, getattr(node, "value", None)))
    template = yaml.load(cwsink("alarms").stdout, Loader)  # a SafeLoader that knows !Sub
    resources = template["Resources"]
    alarms = {name: each["Properties"] for name, each in resources.items() if each["Type"] == "AWS::CloudWatch::Alarm"}
    assert alarms.keys() == {"Behind", "Losing", "NoData", "DeadLetters", "Throttled"}
    assert {each["MetricName"] for each in alarms.values()} <= METRICS
    assert {each["Namespace"] for each in alarms.values()} == {self_metrics.NAMESPACE}
    assert alarms["NoData"]["TreatMissingData"] == "breaching"
    body = json.loads(resources["Dashboard"]["Properties"]["DashboardBody"][1])
    shown = [metric[1] for widget in body["widgets"] for metric in widget["properties"].get("metrics", [])]
    assert set(shown) <= METRICS


def test_the_template_passes_cfn_lint(tmp_path: Path) -> None:
    """Without an error and without a warning."""
    file = tmp_path / "cwsink.yaml"
    file.write_text(cwsink("alarms").stdout)
    lint = "import sys; from cfnlint.runner import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", lint, str(file)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_rules_of_prometheus_are_on_metrics_that_exist(small: SinkConfig, tmp_path: Path) -> None:
    """One for each alarm; promtool agrees if the machine has it."""
    Writer(small).append("x")
    rules = yaml.safe_load(text := cwsink("alarms", "--prometheus").stdout)["groups"][0]["rules"]
    assert [rule["alert"] for rule in rules] == [
        "CwsinkBehind", "CwsinkLosing", "CwsinkNoData", "CwsinkDeadLetters", "CwsinkThrottled",
    ]  # fmt: skip
    names = {name for name, _ in samples(openmetrics_of(None))}
    assert {name for rule in rules for name in re.findall(r"cwsink_\w+", rule["expr"])} <= names
    if promtool := shutil.which("promtool"):
        (tmp_path / "rules.yaml").write_text(text)
        subprocess.run([promtool, "check", "rules", str(tmp_path / "rules.yaml")], check=True, capture_output=True)


def test_letters_that_were_dropped_are_lost_and_not_kept(
    small: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go when the file is full: every number says what is still there, and how many are lost."""
    writer = Writer(small)
    old_ms = int((time.time() - 15 * 86_400) * 1000)
    for number in range(120):
        assert writer.append(f"{number} {'x' * 200}", old_ms)
    init = DeadLetters.__init__
    monkeypatch.setattr(DeadLetters, "__init__", lambda self, path: init(self, path, 8192))
    deliver(writer.directory, small)
    path = writer.directory.path
    there = len(DeadLetters(writer.directory.dead_letters).read().letters)
    (spool,) = stats(path).spools
    assert 0 < there < 120
    assert (spool.dead_lettered, spool.dead_letters) == ({"too_old": 120}, {"too_old": there})
    assert spool.dead_letters_dropped == 120 - there
    found = samples(openmetrics_of(path))
    assert (found[key("dead_letters")], found[key("dead_letters_dropped")]) == (there, 120 - there)
    line = cwsink("check", "--no-dead-letters", "--no-losses", path, code=2).stdout
    assert f"{120 - there} dead letters lost" in line
    assert f": {there} dead letters;" in line
    assert f"LOST {120 - there} dead letters" in cwsink("status", path).stdout
    assert f"{120 - there} dead letters lost before" in cwsink("replay", "--dead-letters", "--dry-run", path).stdout
    assert f"thrown away: {there} too_old." in cwsink("replay", "--dead-letters", "--clear", path).stdout
    (spool,) = stats(path).spools
    assert (spool.dead_letters, spool.dead_letters_dropped) == ({}, 120 - there), "what is lost stays lost"


@pytest.mark.parametrize("lines", [b"", b"\xff\n{}\n[1]\n" + b"[" * 100_000, b'{"reason":5}\n{"dropped":-1}\n'])
def test_what_is_no_letter_is_not_counted(lines: bytes, small: SinkConfig) -> None:
    """Whatever somebody has written into the file; and a thousand reasons do not become a thousand keys."""
    writer = Writer(small)
    Path(writer.directory.dead_letters).write_bytes(lines)
    assert letters.there(writer.directory) == ({}, 0)
    many = b"".join(b'{"reason":"%d"}\n' % number for number in range(1000))
    Path(f"{writer.directory.dead_letters}.1").write_bytes(many)
    assert len(letters.there(writer.directory)[0]) < 100


def test_replayed_letters_are_counted_as_such_and_can_be_cleared(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Dead letters that were sent after all are no alarm any more, and those that cannot be are thrown away by hand."""
    server.create_stream("/test/group", "stream")
    server.faults.poison = "BAD"
    writer = Writer(small)
    for message in ("BAD 1", "good", "BAD 2"):
        writer.append(message)
    old_ms = int((time.time() - 15 * 86_400) * 1000)
    writer.append("old", old_ms)
    deliver(writer.directory, small)
    server.faults.poison = None
    path = writer.directory.path
    cwsink("replay", "--dead-letters", "--reason", "poison", path)
    deliver(writer.directory, small)
    (spool,) = stats(path).spools
    assert (spool.dead_letters, spool.replayed) == ({"too_old": 1}, {"poison": 2})
    assert spool.dead_lettered == {"poison": 2, "too_old": 1}, "the ledger keeps what happened"
    assert spool.appended == 6 == spool.delivered + 3
    cwsink("check", "--no-dead-letters", path, code=1)
    assert "would throw away 1 too_old" in cwsink("replay", "--dead-letters", "--clear", "--dry-run", path).stdout
    assert "thrown away: 1 too_old." in cwsink("replay", "--dead-letters", "--clear", path).stdout
    (spool,) = stats(path).spools
    assert spool.dead_letters == {}
    cwsink("check", "--no-dead-letters", path)
    assert "no dead letters" in cwsink("replay", "--dead-letters", path).stdout
