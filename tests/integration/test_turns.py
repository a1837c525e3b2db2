"""A process looks after many spools: few are led at once, the others rest, and each gets its turn.

Elections of this process, and `cwsink flush` as a process of its own where its threads and descriptors are looked at.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher import election as election_module
from cwsink.flusher import turns as turns_module
from cwsink.flusher.election import Election
from cwsink.flusher.turns import MOST_AT_ONCE, Turns
from cwsink.spool import cursor, lease
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, quick_config

# In this process, so that a test needs fewer spools.
MOST = 8
MANY = 3 * MOST
# Starts a program that may open only so many files.
WITH_DESCRIPTORS = ("/bin/sh", "-c", 'ulimit -n "$0" && exec "$@"')


class Host:
    """Gives spools their turns, as every host does, and looks when a test waits."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.elections: list[Election] = []

    def serve(self, writer: Writer) -> Election:
        self.elections.append(Election(writer.directory, kind="service"))
        self.turns.add(self.elections[-1])
        return self.elections[-1]

    def until(self, condition: Callable[[], object], claim: str) -> None:
        end = time.monotonic() + CHILD_SECONDS
        while not condition():
            assert time.monotonic() < end, claim
            self.turns.look()
            time.sleep(0.01)

    def running(self) -> int:
        return sum(election.is_running for election in self.elections)

    def end(self) -> None:
        for election in self.elections:
            self.turns.leave(election, 0.0)
        end = time.monotonic() + CHILD_SECONDS
        while not self.turns.have_ended():
            assert time.monotonic() < end, "all end"
            time.sleep(0.01)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The host; all of its elections have ended when the test has."""
    monkeypatch.setattr(turns_module, "MOST_AT_ONCE", MOST)
    made = Host()
    yield made
    made.end()


def writers(url: str, count: int, **settings: object) -> list[Writer]:
    return [Writer(quick_config(url, log_group_name=f"/g/{n}", flusher="external", **settings)) for n in range(count)]


def test_many_spools_are_all_delivered_and_few_are_led_at_once(server: StrictCloudWatch, host: Host) -> None:
    """Three times as many as are led at once: each gets its turn, and at no moment more run."""
    many = writers(server.endpoint_url, MANY)
    for number, writer in enumerate(many):
        assert writer.append(f"{number}")
        host.serve(writer)
    most = 0

    def all_arrived() -> bool:
        nonlocal most
        most = max(most, host.running())
        return len(server.messages()) == MANY

    host.until(all_arrived, "all are delivered")
    assert most == MOST
    assert sorted(server.messages(), key=int) == [str(number) for number in range(MANY)]


def test_idle_spools_rest_with_their_leases_and_wake_up(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread is left for them, but nobody else can lead them; what is appended then arrives."""
    monkeypatch.setattr(turns_module, "REST_SECONDS", 0.1)
    before = threading.active_count()
    many = writers(server.endpoint_url, 6)
    for writer in many:
        assert writer.append("first")
        host.serve(writer)
    host.until(lambda: len(server.messages()) == 6 and not host.running(), "all of them rest")
    server.wait_for(lambda _: threading.active_count() <= before, CHILD_SECONDS)  # it has one for each connection
    assert threading.active_count() <= before
    assert all(lease.is_taken(writer.directory) for writer in many)
    assert many[3].append("second")
    host.until(lambda: "second" in server.messages(), "it is delivered")
    assert cursor.read(many[3].directory.cursor).epoch == 2


def test_a_late_record_in_an_older_segment_wakes_a_spool_up(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An idle writer has an older segment open, and appends to it while the spool rests."""
    monkeypatch.setattr(turns_module, "REST_SECONDS", 0.1)
    (idle,) = writers(server.endpoint_url, 1, segment_bytes=4096)
    assert idle.append("idle")
    (busy,) = writers(server.endpoint_url, 1, segment_bytes=4096)
    while len(os.listdir(busy.directory.ring)) < 3:
        assert busy.append("x" * 500)
    election = host.serve(busy)
    host.serve(writers(server.endpoint_url, 2)[1])  # the only spool of a process would not rest
    host.until(lambda: not survey(busy.directory).pending and not election.is_running, "all is delivered, and it rests")
    assert idle.append("late")
    host.until(lambda: "late" in server.messages(), "it is delivered")


def test_spools_that_cannot_be_delivered_do_not_keep_the_others_waiting(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More of them than places, found first: a spool whose endpoint answers is delivered all the same, twice."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))  # nobody listens there
        for writer in writers(f"http://127.0.0.1:{held.getsockname()[1]}", MOST + 4):
            assert writer.append("never")
            host.serve(writer)
        host.until(lambda: host.running() == MOST, "they have all places")
        (good,) = writers(server.endpoint_url, 1)
        assert good.append("one")
        host.serve(good)
        host.until(lambda: server.messages() == ["one"], "it gets a place")
        assert good.append("two")
        host.until(lambda: server.messages() == ["one", "two"], "and again")


def test_a_spool_that_rests_behind_another_leader_is_led_when_that_is_killed(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch, spawn: Spawn
) -> None:
    """The other process led it and took nothing; it is killed, and nothing is appended any more."""
    monkeypatch.setattr(turns_module, "REST_SECONDS", 0.1)
    monkeypatch.setattr(turns_module, "_CLOSE_LOOK_SECONDS", 0.3)
    writer, second = writers(server.endpoint_url, 2, batch_timeout_seconds=3600.0)
    assert writer.append("for the other one")
    other = spawn(
        "import sys, time\n"
        "from cwsink.flusher.election import Election\n"
        "from cwsink.spool.directory import open_existing\n"
        "Election(open_existing(sys.argv[1]), kind='service').start()\n"
        "time.sleep(600)\n",
        writer.directory.path,
    )
    assert server.wait_for_events(1, CHILD_SECONDS)
    election = host.serve(writer)
    host.serve(second)  # the only spool of a process would not rest
    host.until(lambda: election.is_idle, "it stands behind the other one")
    host.until(lambda: not election.is_running, "it rests")
    assert writer.append("gathered")
    until = time.monotonic() + 1.0
    host.until(lambda: time.monotonic() > until, "a while passes")
    assert not election.epoch
    os.kill(other.pid, signal.SIGKILL)
    other.wait(CHILD_SECONDS)
    host.until(lambda: "gathered" in server.messages(), "it is delivered")


@pytest.mark.parametrize("host_is_slow", [False, True])
def test_what_waits_for_its_turn_at_the_end_gets_it(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch, host_is_slow: bool
) -> None:
    """Told to leave with most of them not begun: each is led once more, and all is delivered."""
    look = Turns.look

    def slow_look(turns: Turns) -> None:
        look(turns)
        assert all(election.has_ended(CHILD_SECONDS) for election in host.elections)

    for number, writer in enumerate(writers(server.endpoint_url, MANY)):
        assert writer.append(f"{number}")
        host.serve(writer)
    host.turns.look()
    for election in host.elections:
        host.turns.leave(election, CHILD_SECONDS)
    if host_is_slow:
        monkeypatch.setattr(Turns, "look", slow_look)
    end = time.monotonic() + CHILD_SECONDS
    while not host.turns.have_ended():
        assert time.monotonic() < end, "all end"
        time.sleep(0.01)
    assert len(server.messages()) == MANY


def test_one_that_adopts_orphans_does_not_rest(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all of them rested, nobody would look for orphans."""
    monkeypatch.setattr(turns_module, "REST_SECONDS", 0.1)
    for writer in writers(server.endpoint_url, 3, adopt_orphans=True):
        assert writer.append("x")
        host.serve(writer)
    host.until(lambda: len(server.messages()) == 3 and host.running() == 1, "two of them rest")
    until = time.monotonic() + 0.5
    host.until(lambda: time.monotonic() > until, "a while passes")
    assert host.running() == 1


def test_spools_that_cannot_be_led_do_not_keep_the_others_waiting(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More damaged ones than places: the good one, found last, is delivered."""
    monkeypatch.setattr(election_module, "put_in_order", lambda _: None)
    for writer in writers(server.endpoint_url, MOST + 2):
        os.mkdir(writer.directory.cursor)
        host.serve(writer)
    host.until(lambda: host.running() == MOST, "they have all places")
    good = Writer(quick_config(server.endpoint_url, log_group_name="/good", flusher="external"))
    assert good.append("good")
    host.serve(good)
    host.until(lambda: server.messages() == ["good"], "it gets a place")
    for each in host.elections[:-1]:
        os.rmdir(each.directory.cursor)


def test_no_thread_can_be_started_now(
    server: StrictCloudWatch, host: Host, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It is said, and tried again: once there can be threads, the spool is led."""
    (writer,) = writers(server.endpoint_url, 1)
    assert writer.append("one")
    with monkeypatch.context() as patch:
        patch.setattr(Election, "start", lambda _: (_ for _ in ()).throw(RuntimeError("can't start new thread")))
        host.serve(writer)
        host.turns.look()
    assert writer.directory.path in capfd.readouterr().err
    host.until(lambda: server.messages() == ["one"], "it is delivered")


@pytest.mark.parametrize(("spools", "descriptors"), [(60, 128), pytest.param(300, 256, marks=pytest.mark.long)])
def test_few_descriptors_are_enough_for_many_spools(
    server: StrictCloudWatch, tmp_path: Path, spools: int, descriptors: int
) -> None:
    """`ulimit -n`, far more spools than that has room for: `cwsink flush` delivers them all in turn, and lives."""
    for number, writer in enumerate(writers(server.endpoint_url, spools)):
        assert writer.append(f"{number}")
        writer.close()
    child = subprocess.Popen(
        [*WITH_DESCRIPTORS, str(descriptors), sys.executable, "-m", "cwsink", "flush", "--timeout", "5"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    try:
        assert server.wait_for_events(spools, 2 * CHILD_SECONDS)
        assert len(os.listdir(f"/proc/{child.pid}/task")) <= MOST_AT_ONCE + 2
        child.send_signal(signal.SIGINT)
        _, err = child.communicate(timeout=CHILD_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        child.wait(CHILD_SECONDS)
    assert (child.returncode, err) == (0, "")
    assert sorted(server.messages(), key=int) == [str(number) for number in range(spools)]


def test_flush_once_gives_each_of_many_spools_its_turn(server: StrictCloudWatch, config: SinkConfig) -> None:
    """With room for few descriptors: all are delivered, and each is said with its count."""
    for number, writer in enumerate(writers(server.endpoint_url, 40)):
        assert writer.append(f"{number}")
        writer.close()
    done = subprocess.run(
        [*WITH_DESCRIPTORS, "128", sys.executable, "-m", "cwsink", "flush", "--once"],
        capture_output=True,
        text=True,
        timeout=2 * CHILD_SECONDS,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("delivered 1 record in ") == 40
