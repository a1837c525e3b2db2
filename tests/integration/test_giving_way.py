"""Who cannot deliver gives way to who stands for election, and nobody else has to wait.

Real processes: one of them has a proxy that nobody listens at, as in a container without a way to the network. The
others reach the strict server.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator

import pytest

from cwsink import Writer, diagnostics
from cwsink.config import SinkConfig
from cwsink.flusher import election as election_module
from cwsink.flusher import publisher
from cwsink.flusher.election import Election
from cwsink.spool import cursor, leader_state, lease
from cwsink.spool.directory import SpoolDirectory, open_for
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, quick_config

FLUSH = "import sys\nfrom cwsink.cli import main\nsys.argv[1:1] = ['flush']\nsys.exit(main())\n"
LOG = """
import sys, time, cwsink
writer = cwsink.Writer.open({settings})
assert writer.append(sys.argv[1])
while True:
    time.sleep(0.2)
    if {keeps_logging}:
        assert writer.append("more")
"""


def wait_for(condition: Callable[[], object], claim: str) -> None:
    until = time.monotonic() + CHILD_SECONDS
    while not condition():
        assert time.monotonic() < until, claim
        time.sleep(0.01)


@pytest.fixture
def nowhere() -> Iterator[dict[str, str]]:
    """The environment of a process whose proxy does not listen."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield {"http_proxy": f"http://127.0.0.1:{held.getsockname()[1]}", "no_proxy": ""}


def obstacle(spool: SpoolDirectory) -> str:
    published = leader_state.read(spool)
    return published.obstacle if published else ""


def status(spool: SpoolDirectory) -> dict[str, object]:
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", "status", "--json", spool.path],
        capture_output=True,
        text=True,
        check=True,
        timeout=CHILD_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    (found,) = json.loads(done.stdout)["spools"]
    assert isinstance(found, dict)
    return found


def test_a_leader_without_a_network_gives_way_to_one_that_stands(
    server: StrictCloudWatch, spawn: Spawn, nowhere: dict[str, str]
) -> None:
    """Two `cwsink flush` on one root: the one that leads cannot reach CloudWatch, and the other one delivers."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))
    assert writer.append("one")
    blind = spawn(FLUSH, env=nowhere)
    wait_for(lambda: obstacle(writer.directory) == "unreachable", "it leads, and fails")
    spawn(FLUSH)
    assert server.wait_for_events(1, 30.0)
    assert writer.append("two")
    assert server.wait_for_events(2, CHILD_SECONDS)
    wait_for(lambda: status(writer.directory)["unable"] == [], "its trouble is over")
    assert [request.epoch for request in server.requests][-1] == 2
    blind.kill()
    _, err = blind.communicate(timeout=CHILD_SECONDS)
    assert "another process stands: it gives way for 30 s" in err


def test_if_nobody_can_deliver_each_ones_reason_is_shown_and_nothing_spins(
    server: StrictCloudWatch, spawn: Spawn, nowhere: dict[str, str]
) -> None:
    """One has no network, the other one no permission: one handover, then nothing for a while."""
    server.faults.deny("logs:PutLogEvents")
    server.faults.deny("logs:CreateLogStream")
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))
    assert writer.append("one")
    blind = spawn(FLUSH, env=nowhere)
    wait_for(lambda: obstacle(writer.directory) == "unreachable", "it leads, and fails")
    spawn(FLUSH)
    wait_for(lambda: obstacle(writer.directory) == "denied", "the other one leads, and fails")
    time.sleep(8.0)  # longer than each of them needs to know that it fails
    shown = status(writer.directory)
    assert cursor.read(writer.directory.cursor).epoch == 2
    assert shown["state"] in ("retrying", "circuit_open")
    assert "AccessDenied" in str(shown["last_error"])
    (other,) = shown["unable"]  # type: ignore[misc]
    assert (other["pid"], other["kind"]) == (blind.pid, "service")
    assert "ProxyConnectionError" in other["error"]
    server.faults.allow("logs:PutLogEvents")
    server.faults.allow("logs:CreateLogStream")
    assert server.wait_for_events(1, CHILD_SECONDS)


def test_a_writers_flusher_takes_over_from_one_without_a_network(
    server: StrictCloudWatch, spawn: Spawn, nowhere: dict[str, str]
) -> None:
    """The flusher was started in a container without a network; a program in another one logs, and its flusher can."""
    settings = {**_settings(server.endpoint_url), "drain_timeout_seconds": 600.0}
    first = spawn(LOG.format(settings=settings, keeps_logging=False), "one", env=nowhere)
    spool = open_for(SinkConfig(**settings))
    wait_for(lambda: obstacle(spool) == "unreachable", "its flusher leads, and fails")
    second = spawn(LOG.format(settings=settings, keeps_logging=True), "two")
    assert server.wait_for(lambda seen: {"one", "two"} <= set(seen.messages()), 45.0)
    first.kill()
    second.kill()


def test_a_dedicated_flusher_without_a_network_gives_way_to_a_writers(
    server: StrictCloudWatch, spawn: Spawn, nowhere: dict[str, str]
) -> None:
    """`cwsink flush` leads and fails; a program that logs there starts a flusher of its own, which delivers."""
    settings = _settings(server.endpoint_url)
    writer = Writer(SinkConfig(**{**settings, "flusher": "external"}))
    assert writer.append("one")
    spawn(FLUSH, env=nowhere)
    wait_for(lambda: obstacle(writer.directory) == "unreachable", "it leads, and fails")
    program = spawn(LOG.format(settings=settings, keeps_logging=True), "two")
    assert server.wait_for(lambda seen: {"one", "two"} <= set(seen.messages()), 45.0)
    program.kill()


def _settings(url: str) -> dict[str, object]:
    return {
        "log_group_name": "/test/group",
        "log_stream_name": "stream",
        "region": "us-east-1",
        "endpoint_url": url,
        "batch_timeout_seconds": 0.2,
        "retry_base_delay": 0.05,
        "drain_timeout_seconds": 5.0,
    }


def test_a_flusher_that_can_deliver_one_spool_gives_way_for_the_other_one_only(
    server: StrictCloudWatch, spawn: Spawn, nowhere: dict[str, str]
) -> None:
    """Its network reaches one of two endpoints: a guest delivers the other spool, and both go on."""
    settings = _settings(server.endpoint_url)
    beside = {
        **settings,
        "log_group_name": "/beside",
        "endpoint_url": server.endpoint_url.replace("127.0.0.1", "localhost"),
    }
    env = {**nowhere, "no_proxy": "localhost"}
    spawn(LOG.format(settings=beside, keeps_logging=True), "beside", env=env)
    assert server.wait_for(lambda seen: "beside" in seen.messages(), CHILD_SECONDS)
    healthy, failing = (open_for(SinkConfig(**each)) for each in (beside, settings))
    spawn(LOG.format(settings=settings, keeps_logging=False), "one", env=env)
    wait_for(lambda: obstacle(failing) == "unreachable", "its flusher fails for the second spool")
    first = leader_state.read(healthy)
    spawn(LOG.format(settings=settings, keeps_logging=True), "two")
    assert server.wait_for(lambda seen: {"one", "two"} <= set(seen.messages()), 45.0)
    now, other = leader_state.read(healthy), leader_state.read(failing)
    assert first is not None
    assert now is not None
    assert other is not None
    assert now.pid == first.pid != other.pid


# One election, in this process.


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader gives way as soon as it fails, and finds at once that nobody has taken its lease."""
    monkeypatch.setattr(publisher, "_GIVE_WAY_SECONDS", 0.1)
    monkeypatch.setattr(election_module, "_VACANT_SECONDS", 0.2)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: lines.append(message)])
    monkeypatch.setattr(diagnostics, "QUIET_SECONDS", 0.0)
    return lines


@pytest.fixture
def led(server: StrictCloudWatch) -> Iterator[tuple[Writer, Election]]:
    """A writer, and the only process that leads."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))
    election = Election(writer.directory, kind="service")
    election.start()
    yield writer, election
    election.leave(0.0)
    assert election.has_ended(CHILD_SECONDS)


@pytest.mark.usefixtures("quick")
def test_a_leader_that_nobody_challenges_keeps_the_lease(
    server: StrictCloudWatch, led: tuple[Writer, Election]
) -> None:
    """It fails, and goes on trying in the same epoch: to give way would cost a takeover, and nobody stands."""
    writer, election = led
    server.faults.deny("logs:PutLogEvents")
    assert writer.append("one")
    wait_for(lambda: election.cannot_deliver, "it fails")
    time.sleep(1.0)
    assert election.epoch == 1


@pytest.mark.usefixtures("quick")
def test_a_challenger_that_has_gone_costs_a_moment_only(
    server: StrictCloudWatch, led: tuple[Writer, Election], said: list[str]
) -> None:
    """The leader gives way, nobody takes the lease, so it leads again at once. It stays out for longer each time that
    it gives way, until it has delivered something."""
    writer, election = led
    server.faults.deny("logs:PutLogEvents")
    assert writer.append("one")
    for epoch, seconds in ((1, 30), (2, 60), (3, 120)):
        wait_for(lambda epoch=epoch: election.epoch == epoch and election.cannot_deliver, "it leads, and fails")
        lease.challenge(writer.directory)
        wait_for(lambda: not election.epoch, "it gives way")
        wait_for(lambda seconds=seconds: any(f"gives way for {seconds} s" in line for line in said), "it says so")
    server.faults.allow("logs:PutLogEvents")
    assert writer.flush(CHILD_SECONDS)
    server.faults.deny("logs:PutLogEvents")
    said.clear()
    assert writer.append("two")
    wait_for(lambda: election.cannot_deliver, "it fails again")
    lease.challenge(writer.directory)
    wait_for(lambda: any("gives way for 30 s" in line for line in said), "it gives way")


@pytest.mark.usefixtures("quick")
def test_a_leader_that_delivers_ignores_a_challenge(server: StrictCloudWatch, led: tuple[Writer, Election]) -> None:
    """Only who fails gives way."""
    writer, election = led
    assert writer.append("one")
    assert writer.flush(CHILD_SECONDS)
    lease.challenge(writer.directory)
    assert writer.append("two")
    assert writer.flush(CHILD_SECONDS)
    assert election.epoch == 1
