"""`cwsink flush` beside an application that is told to end at the same moment (real processes)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig
from cwsink.testing import StrictCloudWatch
from tests.support import CHILD_SECONDS, finish

Spawn = Callable[..., "subprocess.Popen[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

# Appends a record for each line of stdin, without ever sending; ends with it.
WRITER = """
    import json, sys
    from cwsink import Writer

    writer = Writer.open(**{**json.loads(sys.argv[1]), "flusher": "external"})
    for line in sys.stdin:
        assert writer.append(line.strip())
        print("appended", flush=True)
"""


@pytest.fixture
def flush() -> Iterator[Start]:
    """Start `cwsink flush` with `words`; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str) -> subprocess.Popen[str]:
        started.append(
            subprocess.Popen(
                [sys.executable, "-m", "cwsink", "flush", *words],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for each in started:
        each.kill()
        each.communicate()


def append(writer: subprocess.Popen[str], message: str) -> None:
    assert writer.stdin
    assert writer.stdout
    writer.stdin.write(f"{message}\n")
    writer.stdin.flush()
    assert writer.stdout.readline() == "appended\n", writer.stderr and writer.stderr.read()


def wait_for_line(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdout
    for line in process.stdout:
        if text in line:
            return
    raise AssertionError(f"{text!r} was not said: {process.stderr and process.stderr.read()}")


def test_term_waits_for_those_who_still_log(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start
) -> None:
    """TERM comes to the sidecar first: what the application appends after it is delivered too, then it is code 0."""
    writer = spawn(WRITER, json.dumps(asdict(config)))
    append(writer, "before")
    sidecar = flush("--timeout", "600")
    assert server.wait_for_events(1, CHILD_SECONDS)
    sidecar.send_signal(signal.SIGTERM)
    wait_for_line(sidecar, "Told to end: waiting at most")
    for number in range(20):
        append(writer, f"after {number}")
        assert server.wait_for_events(number + 2, CHILD_SECONDS)  # it goes on delivering, without a pause
    append(writer, "last")
    finish(writer)
    assert "22 records delivered" in finish(sidecar)
    assert server.messages() == ["before", *(f"after {number}" for number in range(20)), "last"]
    assert server.senders_by_epoch() == {1: {str(sidecar.pid)}}


def test_a_spool_that_is_new_after_term_is_served(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start
) -> None:
    """An application may log into another group for the first time while it ends."""
    writer = spawn(WRITER, json.dumps(asdict(config)))
    append(writer, "one")
    sidecar = flush("--timeout", "600")
    assert server.wait_for_events(1, CHILD_SECONDS)
    sidecar.send_signal(signal.SIGTERM)
    wait_for_line(sidecar, "Told to end: waiting at most")
    other = spawn(WRITER, json.dumps({**asdict(config), "log_group_name": "/test/other"}))
    append(other, "two")
    finish(other)
    finish(writer)
    finish(sidecar)
    assert server.messages("/test/other") == ["two"]


@pytest.mark.parametrize("is_reachable", [True, False])
def test_a_writer_that_does_not_end_is_not_waited_for_for_ever(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start, is_reachable: bool
) -> None:
    """After its time the sidecar ends: 0 if all is delivered, else 1 and a line that says how many records stay."""
    if not is_reachable:
        server.faults.fail_next(1_000_000, "ServiceUnavailableException", status=503)
    writer = spawn(WRITER, json.dumps(asdict(config)))
    for number in range(3):
        append(writer, f"record {number}")
    sidecar = flush("--timeout", "1")
    assert server.wait_for(lambda server: bool(server.requests), CHILD_SECONDS)
    sidecar.send_signal(signal.SIGTERM)
    _, err = sidecar.communicate(timeout=CHILD_SECONDS)
    if is_reachable:
        assert (sidecar.returncode, err) == (0, "")
        assert len(server.messages()) == 3
    else:
        assert sidecar.returncode == 1
        assert "cwsink: 3 records stay in " in err.splitlines()[-1]
    assert writer.poll() is None


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_now(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start, second: signal.Signals
) -> None:
    """Whatever the time-out, and whoever is left."""
    writer = spawn(WRITER, json.dumps(asdict(config)))
    append(writer, "record")
    sidecar = flush("--timeout", str(10 * CHILD_SECONDS))
    assert server.wait_for_events(1, CHILD_SECONDS)
    sidecar.send_signal(signal.SIGTERM)
    wait_for_line(sidecar, "Told to end: waiting at most")
    sidecar.send_signal(second)
    finish(sidecar)
    assert writer.poll() is None


def test_ctrl_c_waits_for_nobody(server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start) -> None:
    """A person at a terminal wants it to end, and the workers to go on."""
    writer = spawn(WRITER, json.dumps(asdict(config)))
    append(writer, "record")
    sidecar = flush("--timeout", str(10 * CHILD_SECONDS))
    assert server.wait_for_events(1, CHILD_SECONDS)
    sidecar.send_signal(signal.SIGINT)
    assert "1 record delivered" in finish(sidecar)
    assert writer.poll() is None
