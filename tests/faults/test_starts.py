"""Starting the flusher, and its end: whoever is killed in between, and whoever comes in between, there is one.

In the place of Python a script is started that notes its pid and keeps the lock, so that a start takes a millisecond.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

import cwsink
from cwsink.config import SinkConfig
from cwsink.flusher.election import Election
from cwsink.flusher.own import OwnFlusher
from cwsink.frontends import presence
from cwsink.frontends.starter import PYTHON_VARIABLE, Starter
from cwsink.frontends.writer import Writer
from cwsink.spool import cursor, descriptors, flusher_lock, leader_state, ring, sending
from cwsink.spool.directory import SpoolDirectory, open_for
from cwsink.spool.flusher_lock import FlusherLock
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.faults.failpoints import at_bytecode, kill_me
from tests.faults.own_processes import ours
from tests.faults.victim import FaultTrial, told, wait
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, finish, program_calling, quick_config

pytestmark = pytest.mark.faults

FEWEST_CALLS: Final = 60
LONGEST_SECONDS: Final = 500.0
GONE_SECONDS: Final = 15.0  # 5, and as long again twice on a crowded machine; less than the request under way takes


class Stub:
    """What is started in the place of Python."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._notes = Path(root, "started")
        script = Path(root, "python3")
        script.write_text(f"#!/bin/sh\necho $$ >>{self._notes}\nexec sleep 600\n", encoding="utf-8")
        script.chmod(0o700)
        os.environ[PYTHON_VARIABLE] = str(script)

    def started(self) -> list[int]:
        """Return the pids of all that were started so far, dead or alive."""
        return [int(line) for line in self._notes.read_text(encoding="utf-8").split()] if self._notes.exists() else []

    def end(self) -> None:
        """End them, and wait until none has the lock any more."""
        until(lambda: bool(self.started()), "one has begun")
        for pid in self.started():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        until(lambda: not flusher_lock.is_taken(self._root), "the lock is free")


@pytest.fixture
def spool(server: StrictCloudWatch) -> SpoolDirectory:
    """A spool that nobody leads."""
    return open_for(quick_config(server.endpoint_url))


@pytest.fixture
def stub(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stub]:
    """A root where the stub is started."""
    monkeypatch.setenv(PYTHON_VARIABLE, "")  # so that it is put back
    yield (stub := Stub(spool.root))
    stub.end()


def test_two_that_find_nobody_at_the_same_time_start_one(spool: SpoolDirectory, stub: Stub) -> None:
    """The lock is handed to what was started: there is no moment in which a second one would get it."""
    for _ in range(5):
        Starter(spool.root).ensure(spool)
    until(lambda: bool(stub.started()), "it has begun")
    Starter(spool.root).ensure(spool)
    assert len(stub.started()) == 1
    assert flusher_lock.is_taken(spool.root)


def test_every_check_of_a_ring_brings_a_look() -> None:
    """A look that was allowed a moment later than the check would wait for the next check: a start took up to 2 s."""
    assert presence._LOOK_SECONDS * 1e9 < ring._CHECK_NS < 1e9


def test_one_that_is_killed_before_it_leads_is_started_again_at_once(
    spool: SpoolDirectory, stub: Stub, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next look starts another one, without a word. If that ends early, too, it is said, and the third waits."""
    starter = Starter(spool.root)
    for started in (1, 2):
        starter.ensure(spool)
        until(lambda started=started: len(stub.started()) == started, "it has begun")
        assert not capfd.readouterr().err
        stub.end()
    starter.ensure(spool)
    starter.ensure(spool)
    assert len(stub.started()) == 2
    assert capfd.readouterr().err.count("python3 has ended before it led any spool") == 1


@pytest.mark.timeout(600)
def test_a_kill_before_any_call_of_a_start_leaves_one_flusher(spawn: Spawn, memory_disk: Path) -> None:
    """The next append of another process starts one if the killed one did not: never two, and never none for good."""
    kills, itself = map(int, finish(spawn(program_calling(sweep), memory_disk), seconds=LONGEST_SECONDS).split()[-2:])
    print(f"killed before each of {kills} calls of a start; {itself} of them had started one already")
    assert kills > FEWEST_CALLS
    assert 0 < itself < kills


def sweep(root: str) -> None:
    """Kill a writer before each call of `Starter.ensure` in turn, until one comes to its end."""
    trial = FaultTrial(Path(root))
    stub = Stub(trial.spool.root)
    Starter(trial.spool.root).ensure(trial.spool)  # warm
    stub.end()
    code, number, itself = -signal.SIGKILL, 0, 0
    for number in itertools.count(1):

        def victim(number: int = number) -> None:
            starter = Starter(trial.spool.root)
            end = at_bytecode(number, kill_me, calls_only=True)
            starter.ensure(trial.spool)
            end()

        code = wait(trial.fork(victim))
        with told(f"killed before call {number} of a start"):
            assert code in (0, -signal.SIGKILL)
            itself += flusher_lock.is_taken(trial.spool.root)
            Starter(trial.spool.root).ensure(trial.spool)
            assert flusher_lock.is_taken(trial.spool.root), "none is there, and nobody starts one"
            until(lambda number=number: len(stub.started()) > number, "it has begun")  # type: ignore[misc]
            stub.end()
            # One that comes late would be counted at the next point.
            assert len(stub.started()) == 1 + number, "two were started"
        if code == 0:
            break
    print(number - 1, itself - 1)


# The end of a flusher.


class EndingFlusher:
    """A flusher that has nobody to serve any more, and what happens just before it frees its lock."""

    def __init__(self, spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
        self.lock = FlusherLock(spool.root, is_shared=True)
        assert self.lock.try_acquire()
        self.flusher = OwnFlusher(spool.root, self.lock, go_mute=lambda: None, is_mute=False, left_behind={})
        self._monkeypatch = monkeypatch

    def has_ended(self, before: object = None, after: object = None) -> bool:
        give_up = self.lock.give_up

        def watched() -> None:
            if callable(before):
                before()
            give_up()
            if callable(after):
                after()

        self._monkeypatch.setattr(self.lock, "give_up", watched)
        return self.flusher._has_ended()


@pytest.fixture
def ending(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> Iterator[EndingFlusher]:
    """A flusher in this process, about to end."""
    ending = EndingFlusher(spool, monkeypatch)
    yield ending
    ending.flusher._leave_all(CHILD_SECONDS)
    ending.lock.close()


def test_who_comes_while_the_lock_is_still_held_is_served(
    spool: SpoolDirectory, server: StrictCloudWatch, ending: EndingFlusher
) -> None:
    """A writer found the lock taken, and started nobody: the flusher that had it looks once more, and stays."""
    writer = Writer(quick_config(server.endpoint_url))

    def come() -> None:
        assert writer.append("in between")
        assert not ours(spool.root)

    assert not ending.has_ended(before=come)
    assert flusher_lock.is_taken(spool.root)
    until(lambda: server.messages() == ["in between"], "it is delivered")


def test_a_flusher_whose_place_is_taken_lets_go_of_what_it_began_with(
    spool: SpoolDirectory, server: StrictCloudWatch, ending: EndingFlusher
) -> None:
    """A writer came in between, another one has the lock now: the old one ends, and leads nothing."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))
    other = FlusherLock(spool.root, is_shared=True)
    try:
        assert ending.has_ended(before=lambda: writer.append("in between"), after=other.try_acquire)
        assert all(served.election.has_ended(0.0) for served in ending.flusher._serving.values())
    finally:
        other.close()


@pytest.mark.timeout(30)
def test_a_flusher_that_finds_another_one_in_its_place_ends(
    spool: SpoolDirectory, server: StrictCloudWatch, ending: EndingFlusher
) -> None:
    """One was killed after it had freed the lock, and its guard forks the next: by then another may be there."""
    assert Writer(quick_config(server.endpoint_url, flusher="external")).append("for the other one")
    ending.lock.give_up()
    other = FlusherLock(spool.root, is_shared=True)
    try:
        assert other.try_acquire()
        assert ending.flusher.run() is False
    finally:
        other.close()


def test_a_flusher_that_can_deliver_keeps_its_place(spool: SpoolDirectory, ending: EndingFlusher) -> None:
    """Another one with other credentials asks in vain; one of a newer version does not."""
    with flusher_lock.challenging(spool.root, "trouble", 0):
        assert ending.flusher._why_end() is None
    ending.flusher._question_at = 0.0
    with flusher_lock.challenging(spool.root, "version", os.getpid() + 1):  # for the flusher before this one
        assert ending.flusher._why_end() is None
    ending.flusher._question_at = 0.0
    with flusher_lock.challenging(spool.root, "version", os.getpid()):
        assert ending.flusher._why_end() == "replaced"


def test_a_flusher_keeps_no_socket_of_its_program(server: StrictCloudWatch, spawn: Spawn, tmp_path: Path) -> None:
    """A server's listening socket, which its children inherit, is not kept open by a flusher that outlives it."""
    code = """
        import os, signal, socket, sys
        from cwsink import Writer
        listening = socket.create_server(("127.0.0.1", 0))
        os.dup2(listening.fileno(), 20, inheritable=True)  # 3 is where the lock goes
        writer = Writer.open(log_group_name="/test/group", endpoint_url=sys.argv[1])
        assert writer.append("heard")
        assert writer.flush(60)
        print(os.fstat(listening.fileno()).st_ino, flush=True)
        sys.stdin.readline()
    """
    child = spawn(code, server.endpoint_url)
    assert child.stdout is not None
    inode = int(child.stdout.readline())
    found = ours(tmp_path / "spools")
    assert len(found) == 2
    for process in found:
        links = [os.readlink(f"/proc/{process.pid}/fd/{fd}") for fd in os.listdir(f"/proc/{process.pid}/fd")]
        assert f"socket:[{inode}]" not in links


def test_a_request_under_way_keeps_no_flusher_alive(server: StrictCloudWatch, spawn: Spawn, tmp_path: Path) -> None:
    """CloudWatch does not answer, nobody is attached, the time is over: no process waits for `read_timeout_seconds`."""
    code = """
        import os, signal, sys
        from cwsink import Writer
        settings = {"drain_timeout_seconds": 0.5, "read_timeout_seconds": 60}
        writer = Writer.open(log_group_name="/test/group", endpoint_url=sys.argv[1], **settings)
        assert writer.append("waits")
        sys.stdin.readline()
        os.kill(os.getpid(), signal.SIGKILL)
    """
    server.faults.hang(60.0)
    child = spawn(code, server.endpoint_url)
    assert server.wait_for(lambda each: bool(each.requests), CHILD_SECONDS)
    assert child.stdin is not None
    child.stdin.write("end\n")
    child.stdin.flush()
    assert child.wait(CHILD_SECONDS) == -signal.SIGKILL
    began = time.monotonic()
    while ours(tmp_path / "spools"):
        assert time.monotonic() - began < GONE_SECONDS, "it waits for the answer"
        time.sleep(0.02)


def test_a_flusher_that_cannot_deliver_is_offered_less_and_less_often(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newer writer without credentials beside an older one that has some: they do not take turns for ever."""
    present = presence.Presence(spool, quick_config())
    offers: list[str] = []
    monkeypatch.setattr(present._starter, "replace", lambda spool, reason, _: offers.append(reason))
    of_the_older = leader_state.Published(pid=1, host="", epoch=1, kind="own", version="0.0.1")
    of_ours = leader_state.Published(
        pid=2,
        host="",
        epoch=2,
        kind="own",
        version=cwsink.__version__,
        obstacle="credentials",
        credentials=sending.credentials_stamp(os.environ),
    )
    pauses = []
    for _ in range(4):
        for published in (of_the_older, of_ours):
            monkeypatch.setattr(leader_state, "read", lambda spool, published=published: published)
            present._offer(0.0)
            pauses.append(present._offer_seconds)
    present.detach()
    assert offers == ["version"] * 4
    assert pauses == [10, 10, 20, 20, 40, 40, 80, 80]


# A child that C code has forked.

C_FORK: Final = """
    import ctypes, os, signal, threading, time
    from cwsink.spool import descriptors

    became = []

    def slowly():
        became.append(threading.get_ident())
        time.sleep(0.2)  # the others come meanwhile
        descriptors.become_child()  # and so does a signal handler

    descriptors.after_fork(slowly)
    pid = ctypes.PyDLL(None).fork()
    if pid == 0:
        signal.alarm(60)
        together = threading.Barrier(8)
        threads = [threading.Thread(target=lambda: (together.wait(), descriptors.become_child())) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        descriptors.become_child()
        os.write(1, f"{len(became)} {descriptors.incarnation()}\\n".encode())
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.skipif(descriptors.fork_sentinel == b"\1", reason="not run: needs MADV_WIPEONFORK")
def test_a_fork_by_c_code_is_noticed_once(spawn: Spawn) -> None:
    """Eight threads of the child, and a handler that interrupts the first of them: it becomes a process once."""
    assert finish(spawn(C_FORK)).split() == ["1", "1"]


# How to send.


def test_a_leader_sends_as_its_spool_says(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another application's variables, in the environment of whoever leads, say nothing."""
    writer = Writer(in_twos(server))
    assert all(writer.append(f"{number}") for number in range(6))
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__MAX_BATCH_EVENTS", "3")
    with election(writer.directory):
        until(lambda: len(server.messages()) == 6, "all of it")
    assert {request.events for request in server.requests} == {2}


def test_a_leader_takes_over_what_a_newer_writer_says(server: StrictCloudWatch) -> None:
    """While it leads a process with other settings opens the spool: they hold from then on, for all."""
    writer = Writer(in_twos(server))
    with election(writer.directory):
        assert all(writer.append(f"{number}") for number in range(4))
        until(lambda: len(server.messages()) == 4, "what was there before")
        Writer(quick_config(server.endpoint_url, flusher="external", max_batch_events=1, batch_size=1))
        before = len(server.requests)
        until(lambda: leads_anew(writer), "the leader has seen it")
        assert all(writer.append(f"{number}") for number in range(4, 10))
        until(lambda: len(server.messages()) == 10, "what came after")
    assert {request.events for request in server.requests[before:]} == {1}


def in_twos(server: StrictCloudWatch) -> SinkConfig:
    return quick_config(server.endpoint_url, flusher="external", max_batch_events=2, batch_size=1)


def leads_anew(writer: Writer) -> bool:
    return cursor.read(writer.directory.cursor).epoch > 1


@contextlib.contextmanager
def election(spool: SpoolDirectory) -> Iterator[None]:
    """Stand for election in this process for as long as the block runs."""
    standing = Election(spool, kind="own")
    standing.start()
    try:
        yield
    finally:
        standing.leave(0.0)
        assert standing.has_ended(CHILD_SECONDS)
