"""`cwsink flush` beside an application that is told to end at the same moment (real processes)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig
from cwsink.spool import directory, flusher_lock, leader_state
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, finish

Spawn = Callable[..., "subprocess.Popen[str]"]
Start = Callable[..., "subprocess.Popen[str]"]

# Appends a record for each line of stdin; ends with it.
WRITER = """
    import json, sys
    from cwsink import Writer

    writer = Writer.open(**json.loads(sys.argv[1]))
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


def settings(config: SinkConfig, **changes: object) -> str:
    return json.dumps({name: value for name, value in {**asdict(config), **changes}.items() if value is not None})


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
    writer = spawn(WRITER, settings(config, flusher="external"))
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
    writer = spawn(WRITER, settings(config, flusher="external"))
    append(writer, "one")
    sidecar = flush("--timeout", "600")
    assert server.wait_for_events(1, CHILD_SECONDS)
    sidecar.send_signal(signal.SIGTERM)
    wait_for_line(sidecar, "Told to end: waiting at most")
    other = spawn(WRITER, settings(config, flusher="external", log_group_name="/test/other"))
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
    writer = spawn(WRITER, settings(config, flusher="external"))
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
    writer = spawn(WRITER, settings(config, flusher="external"))
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
    writer = spawn(WRITER, settings(config, flusher="external"))
    append(writer, "record")
    sidecar = flush("--timeout", str(10 * CHILD_SECONDS))
    assert server.wait_for_events(1, CHILD_SECONDS)
    sidecar.send_signal(signal.SIGINT)
    assert "1 record delivered" in finish(sidecar)
    assert writer.poll() is None


# Workers that may start a flusher of their own.


def leader(config: SinkConfig) -> leader_state.Published | None:
    return leader_state.read(directory.open_for(config))


def test_while_it_leads_no_worker_starts_one(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start
) -> None:
    """Neither at the first record nor seconds later, and the last one out waits for it to deliver."""
    sidecar = flush()
    wait_for_line(sidecar, "waiting for the first worker")
    outside = spawn(WRITER, settings(config, flusher="external"))
    append(outside, "outside")
    assert server.wait_for_events(1, CHILD_SECONDS)
    finish(outside)
    writer = spawn(WRITER, settings(config, batch_timeout_seconds=600.0))
    for number in range(5):
        append(writer, f"record {number}")
        time.sleep(0.5)  # it looks once a second, with an append
        assert not flusher_lock.is_taken(directory.open_for(config).root)
    finish(writer)
    assert server.messages() == ["outside", *(f"record {number}" for number in range(5))]
    published = leader(config)
    assert published is not None
    assert (published.pid, published.kind, published.started_by) == (sidecar.pid, "service", "")
    assert {request.sender for request in server.requests} == {str(sidecar.pid)}
    sidecar.send_signal(signal.SIGTERM)
    finish(sidecar)


@pytest.mark.faults
def test_when_it_is_killed_a_worker_starts_one(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start
) -> None:
    """At the next append that looks. A sidecar that is started again stands by until that one goes; nothing is lost."""
    sidecar = flush()
    wait_for_line(sidecar, "waiting for the first worker")
    outside = spawn(WRITER, settings(config, flusher="external"))
    append(outside, "outside")
    assert server.wait_for_events(1, CHILD_SECONDS)
    writer = spawn(WRITER, settings(config))
    append(writer, "before")
    assert server.wait_for_events(2, CHILD_SECONDS)
    sidecar.kill()
    sidecar.wait(CHILD_SECONDS)
    sent = ["outside", "before"]

    def is_led_anew() -> bool:
        sent.append(f"after {len(sent)}")
        append(writer, sent[-1])
        found = leader(config)
        return found is not None and found.kind == "own" and f"pid {writer.pid} " in found.started_by

    until(is_led_anew, "a worker's own flusher leads")
    assert server.wait_for(lambda s: set(s.messages()) == set(sent), CHILD_SECONDS)
    again = flush()
    wait_for_line(again, "standing for election")
    append(writer, "with both")
    assert server.wait_for(lambda s: "with both" in s.messages(), CHILD_SECONDS)
    finish(outside)
    finish(writer)
    until(lambda: (found := leader(config)) is not None and found.pid == again.pid, "the sidecar leads again")
    again.send_signal(signal.SIGTERM)
    finish(again)
    assert set(server.messages()) == {*sent, "with both"}


def test_what_is_logged_while_flush_once_leads_does_not_wait_for_the_next_record(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, flush: Start
) -> None:
    """It sends what there was, and leaves. Who logged meanwhile, and no more, has a flusher of its own by then."""
    outside = spawn(WRITER, settings(config, flusher="external", max_batch_events=1))
    append(outside, "outside")
    server.faults.latency_seconds = 1.0
    once = flush("--once")
    until(lambda: (found := leader(config)) is not None and found.kind == "once", "it leads")
    writer = spawn(WRITER, settings(config, max_batch_events=1))
    records = [f"meanwhile {number}" for number in range(20)]
    for record in records:
        append(writer, record)
    finish(once)
    assert server.messages() != ["outside", *records]
    server.faults.clear()
    assert server.wait_for(lambda s: s.messages() == ["outside", *records], CHILD_SECONDS)
    finish(writer)
    finish(outside)
