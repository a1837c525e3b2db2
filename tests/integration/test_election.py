"""One process of many leads: never two at once, and soon another when it dies. And one flusher is started, not twenty.

The verdict comes from outside: the pids and epochs in the requests that the strict server saw, the
kernel's word on the lease, and the cursor file.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from cwsink import Writer, diagnostics
from cwsink.config import SinkConfig, load_config
from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Cursor, Fenced
from cwsink.flusher.election import Election
from cwsink.frontends import starter
from cwsink.spool import cursor, descriptors, directory, flusher_lock, leader_state, lease
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from cwsink.testing.flushers import end_flushers
from tests.conftest import Spawn
from tests.harness.support import finish, quick_config
from tests.harness.warm_forker import WarmForker

CANDIDATES = 8
KILLS = [60, pytest.param(200, marks=pytest.mark.long)]
HANG_SECONDS = 30.0


def candidate(settings: dict[str, object], *also: str) -> None:
    """Append 50 records a second, and stand for election, until killed.

    `also` "fork": as leader, make three children that live on.
    """
    writer = Writer(load_config(settings))
    Election(writer.directory, kind="service").start()
    if "fork" in also:
        until_leading(settings)
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(HANG_SECONDS)  # the test kills it before that
    for number in range(10_000):
        writer.append(f"{os.getpid()} {number}")
        time.sleep(0.02)


def until_leading(settings: dict[str, object]) -> None:
    """Wait until this process leads."""
    spool = directory.open_for(load_config(settings))
    wait_for(lambda: leader_of(spool) == os.getpid())


def wait_for(condition: Callable[[], object]) -> None:
    """Look every 2 ms until the condition holds."""
    until = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.002)


def leader_of(spool: SpoolDirectory) -> int:
    """Return the pid of the leader; 0 if there is none that has begun."""
    published = leader_state.read(spool)
    if published is None or published.epoch != cursor.read(spool.cursor).epoch or not lease.is_taken(spool):
        return 0
    return published.pid


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    """No flusher is started by itself: a test that wants one says so."""
    return quick_config(server.endpoint_url, batch_timeout_seconds=0.1, flusher="external")


@pytest.fixture
def settings(config: SinkConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if value is not None}


@pytest.fixture
def spool(config: SinkConfig) -> SpoolDirectory:
    return directory.open_for(config)


@pytest.fixture
def forker(spawn: Spawn) -> WarmForker:
    return WarmForker(spawn, candidate)


@pytest.fixture
def cursor_never_goes_back(spool: SpoolDirectory) -> Iterator[None]:
    """Watch the cursor all the time: epoch and delivered records only grow."""
    seen = [(0, 0)]
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.001):
            state = cursor.read(spool.cursor)
            now = (state.epoch, state.ledger.delivered)
            if seen[-1] != now:
                seen.append(now)

    watcher = threading.Thread(target=watch)
    watcher.start()
    yield
    ended.set()
    watcher.join()
    epochs, delivered = zip(*seen, strict=True)
    assert list(epochs) == sorted(epochs)
    assert list(delivered) == sorted(delivered)


def assert_one_sender_at_a_time(server: StrictCloudWatch) -> None:
    """Each epoch has one sender, and none sends after a later one has begun to."""
    assert all(len(senders) == 1 for senders in server.senders_by_epoch().values())
    epochs = [request.epoch for request in server.requests]
    assert epochs == sorted(epochs)


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kills", KILLS)
def test_leaders_are_killed_and_one_follows_each(
    server: StrictCloudWatch, spool: SpoolDirectory, forker: WarmForker, settings: dict[str, object], kills: int
) -> None:
    """8 candidates, 60 or 200 leader kills: always one successor, an epoch higher, never two senders of one epoch.

    Invariant 5.
    """
    rng = random.Random(8)
    pids = {forker.fork(settings) for _ in range(CANDIDATES)}
    takeovers = []
    epoch = 0
    for _ in range(kills):
        wait_for(lambda: leader_of(spool) in pids)
        leader, epoch = leader_of(spool), cursor.read(spool.cursor).epoch
        if rng.random() < 0.7:  # the others die before they have sent anything
            assert server.wait_for(lambda s, epoch=epoch: epoch in s.senders_by_epoch(), HANG_SECONDS)
        os.kill(leader, signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda epoch=epoch: cursor.read(spool.cursor).epoch > epoch)
        takeovers.append(time.monotonic() - began)
        forker.wait(leader)
        pids.remove(leader)
        pids.add(forker.fork(settings))
    takeovers.sort()
    median, p95 = statistics.median(takeovers), takeovers[int(0.95 * kills)]
    print(f"{kills} leaders killed, {CANDIDATES} candidates: median {median:.3f} s, p95 {p95:.3f} s to the next one")
    assert epoch >= kills
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
def test_two_candidates_take_over_from_each_other(
    server: StrictCloudWatch, spool: SpoolDirectory, forker: WarmForker, settings: dict[str, object]
) -> None:
    """With one successor only, too, each of 10 killed leaders is followed, and every epoch has one sender."""
    rng = random.Random(2)
    pids = {forker.fork(settings) for _ in range(2)}
    takeovers = []
    for _ in range(10):
        wait_for(lambda: leader_of(spool) in pids)
        time.sleep(rng.uniform(0.0, 1.5 * lease.TRY_SECONDS))  # meet the other at any point of its pause
        leader, epoch = leader_of(spool), cursor.read(spool.cursor).epoch
        os.kill(leader, signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda epoch=epoch: cursor.read(spool.cursor).epoch > epoch)
        takeovers.append(time.monotonic() - began)
        forker.wait(leader)
        pids.remove(leader)
        pids.add(forker.fork(settings))
    print(f"takeover of 2 candidates: median {statistics.median(takeovers) * 1000:.0f} ms")
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_a_leader_whose_lock_file_is_gone_stops(
    server: StrictCloudWatch,
    spool: SpoolDirectory,
    forker: WarmForker,
    settings: dict[str, object],
    tmp_path: Path,
    is_replaced: bool,
) -> None:
    """Lock file removed or replaced while a request is out: the old leader neither sends nor commits again."""
    old = forker.fork(settings)
    wait_for(lambda: leader_of(spool) == old)
    assert server.wait_for_events(1, HANG_SECONDS)
    server.faults.latency_seconds = 0.4  # longer than a takeover: the answer finds another leader
    new = forker.fork(settings)
    sent = len(server.requests)
    assert server.wait_for(lambda s: len(s.requests) > sent, HANG_SECONDS)
    if is_replaced:
        other = tmp_path / "other.lock"
        other.touch()
        os.replace(other, spool.leader_lock)
    else:
        os.unlink(spool.leader_lock)
    wait_for(lambda: leader_of(spool) not in (0, old))
    assert leader_of(spool) == new
    server.faults.latency_seconds = 0.0
    mine = server.senders_by_epoch()
    assert server.wait_for(lambda s: len(s.senders_by_epoch()) > len(mine), HANG_SECONDS)
    # The old one stands again: it follows when the new one dies.
    forker.kill(new)
    wait_for(lambda: leader_of(spool) == old)
    assert server.wait_for(lambda s: s.senders_by_epoch().get(3) == {str(old)}, HANG_SECONDS)
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
def test_a_stopped_leader_that_was_superseded_sends_nothing_more(
    server: StrictCloudWatch, spool: SpoolDirectory, forker: WarmForker, settings: dict[str, object]
) -> None:
    """SIGSTOP in the middle of a request, another takes over, SIGCONT: nothing more is sent under the old epoch.

    Invariant 5.
    """
    old = forker.fork(settings)
    assert server.wait_for_events(1, HANG_SECONDS)
    server.faults.latency_seconds = 0.2
    sent = len(server.requests)
    assert server.wait_for(lambda s: len(s.requests) > sent, HANG_SECONDS)
    os.kill(old, signal.SIGSTOP)
    server.faults.latency_seconds = 0.0
    new = forker.fork(settings)
    os.unlink(spool.leader_lock)
    wait_for(lambda: leader_of(spool) == new)
    assert server.wait_for(lambda s: s.senders_by_epoch().get(2) == {str(new)}, HANG_SECONDS)
    os.kill(old, signal.SIGCONT)
    forker.kill(new)
    wait_for(lambda: leader_of(spool) == old)
    assert server.wait_for(lambda s: s.senders_by_epoch().get(3) == {str(old)}, HANG_SECONDS)
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
def test_a_stopped_leader_that_keeps_its_lease_goes_on(
    server: StrictCloudWatch, spool: SpoolDirectory, forker: WarmForker, settings: dict[str, object], config: SinkConfig
) -> None:
    """While the leader is stopped others append but do not lead; continued, it delivers in the same epoch."""
    leader = forker.fork(settings)
    wait_for(lambda: leader_of(spool) == leader)
    os.kill(leader, signal.SIGSTOP)
    writer = Writer(config)
    assert all(writer.append(f"meanwhile {number}") for number in range(1_000))
    assert not writer.flush(2 * lease.TRY_SECONDS)
    assert leader_of(spool) == leader
    os.kill(leader, signal.SIGCONT)
    assert writer.flush(HANG_SECONDS)
    assert server.senders_by_epoch() == {1: {str(leader)}}
    assert [message for message in server.messages() if message.startswith("meanwhile")] == [
        f"meanwhile {number}" for number in range(1_000)
    ]


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
def test_forked_children_do_not_keep_a_dead_leaders_lease(
    server: StrictCloudWatch, spool: SpoolDirectory, forker: WarmForker, settings: dict[str, object]
) -> None:
    """The leader dies, three children that it forked live on: the lease is free, and the mark on the spool gone."""
    leader = forker.fork(settings, "fork")
    wait_for(lambda: leader_of(spool) == leader)
    assert server.wait_for(lambda s: any(message.endswith(" 5") for message in s.messages()), HANG_SECONDS)
    children = children_of(leader)
    assert len(children) == 3
    forker.kill(leader)
    began = time.monotonic()
    wait_for(lambda: not lease.is_taken(spool))
    assert not is_anyone_attached(spool)
    print(f"lease free {(time.monotonic() - began) * 1000:.1f} ms after the leader's death")
    for child in children:
        os.kill(child, 0)  # raises if it is not alive
        os.kill(child, signal.SIGKILL)


def children_of(pid: int) -> list[int]:
    """Return the pids of a process's children."""
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(each) for each in text.split()]


def test_a_commit_of_an_old_epoch_is_refused(spool: SpoolDirectory) -> None:
    """Whoever wrote the cursor last, with a later epoch, is the only one who may commit."""
    first, second = Cursor(spool.cursor), Cursor(spool.cursor)
    state = first.take_over("first")
    first.commit(state)
    later = second.take_over("second")
    assert later.epoch == state.epoch + 1
    assert second.is_ours()
    assert not first.is_ours()
    with pytest.raises(Fenced):
        first.commit(state)
    second.commit(later)
    assert cursor.read(spool.cursor) == later
    first.close()
    second.close()


def test_a_lease_is_proven_by_inode_and_process(spool: SpoolDirectory) -> None:
    """`is_held` is True only for the process that took it, and only while the lock file is the one it locked."""
    mine, other = Lease(spool), Lease(spool)
    assert mine.try_acquire()
    assert mine.is_held()
    assert not other.try_acquire()
    assert not other.is_held()
    os.link(spool.leader_lock, f"{spool.path}/backup")  # as `cp -al` does
    assert mine.is_held()
    os.unlink(spool.leader_lock)
    assert not mine.is_held()
    assert other.try_acquire()
    assert other.is_held()
    assert not mine.is_held()
    mine.release()
    assert other.is_held()
    other.release()
    assert not lease.is_taken(spool)


# One candidate: cwsink.flusher.election.Election.


@pytest.fixture
def stand() -> Iterator[Callable[..., Election]]:
    """Start candidates in this process; they have ended when the test has."""
    standing: list[Election] = []

    def start(spool: SpoolDirectory, **options: Any) -> Election:
        standing.append(Election(spool, kind="service", **options))
        standing[-1].start()
        return standing[-1]

    yield start
    for each in standing:
        each.leave(0.0)
    assert all(each.has_ended(HANG_SECONDS) for each in standing)


Stand = Callable[..., Election]


def changed(config: SinkConfig, **settings: object) -> SinkConfig:
    return SinkConfig(**{**asdict(config), **settings})


def test_of_two_candidates_one_leads_and_the_other_follows(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand
) -> None:
    """The second stands by as long as the first leads, and leads an epoch later."""
    writer = Writer(config)
    first = stand(spool)
    wait_for(lambda: first.epoch == 1)
    second = stand(spool)
    assert writer.append("one")
    assert writer.flush(HANG_SECONDS)
    assert (first.epoch, second.epoch) == (1, 0)
    first.leave(0.0)
    assert first.has_ended(HANG_SECONDS)
    wait_for(lambda: second.epoch == 2)
    assert first.epoch == 0
    assert writer.append("two")
    assert writer.flush(HANG_SECONDS)
    assert server.messages() == ["one", "two"]
    assert set(server.senders_by_epoch()) == {1, 2}


def test_who_leaves_delivers_the_rest_first(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand
) -> None:
    """What was being gathered is sent, then the lease is free."""
    writer = Writer(changed(config, batch_timeout_seconds=3600.0))
    leader = stand(spool)
    wait_for(lambda: leader.epoch == 1)
    assert writer.append("first")
    assert writer.flush(HANG_SECONDS)
    assert writer.append("gathered")
    leader.leave(HANG_SECONDS)
    assert leader.has_ended(HANG_SECONDS)
    assert server.messages() == ["first", "gathered"]
    assert not lease.is_taken(spool)


def test_who_never_led_leaves_when_another_has_delivered(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand
) -> None:
    """The wish is that the rest is delivered, by whomever; a follower does not wait for more than that."""
    writer = Writer(config)
    leader = stand(spool)
    wait_for(lambda: leader.epoch == 1)
    follower = stand(spool)
    assert writer.append("by the leader")
    follower.leave(HANG_SECONDS)
    assert follower.has_ended(HANG_SECONDS)
    assert server.messages() == ["by the leader"]
    assert leader.epoch == 1


def test_who_gives_way_stays_out_and_does_not_stand_again_at_once(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand
) -> None:
    """It cannot deliver, and another one stands: that one takes the lease, and keeps it."""
    server.faults.deny("logs:PutLogEvents")
    writer = Writer(config)
    assert writer.append("one")
    first = stand(spool)
    wait_for(lambda: first.cannot_deliver)
    assert first.epoch == 1
    second = stand(spool)
    wait_for(lambda: second.epoch == 2)
    server.faults.allow("logs:PutLogEvents")
    assert writer.flush(HANG_SECONDS)
    assert (first.epoch, second.epoch) == (0, 2)
    assert not second.cannot_deliver
    assert server.messages() == ["one"]


def test_a_spool_that_is_made_anew_is_led_again(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand
) -> None:
    """Somebody removed it, and a writer made it again: the same candidate delivers from the new one."""
    leader = stand(spool)
    wait_for(lambda: leader.epoch == 1)
    shutil.rmtree(spool.path)
    writer = Writer(config)
    assert writer.append("in the new one")
    assert writer.flush(HANG_SECONDS)
    assert server.messages() == ["in the new one"]
    assert leader.directory.format.spool_id == writer.directory.format.spool_id != spool.format.spool_id


def test_a_spool_that_cannot_be_looked_into_does_not_end_a_candidate(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Told to leave while there is no descriptor to look whether anything is pending: it delivers the rest later."""
    writer = Writer(config)
    holder = Lease(spool)
    assert holder.try_acquire()
    candidate = stand(spool)
    assert writer.append("one")
    with monkeypatch.context() as patch:
        patch.setattr(descriptors, "opened", _no_descriptors)
        candidate.leave(HANG_SECONDS)
        assert not candidate.has_ended(2 * lease.TRY_SECONDS)
    holder.release()
    assert candidate.has_ended(HANG_SECONDS)
    assert server.messages() == ["one"]


def _no_descriptors(path: str, flags: int, dir_fd: int | None = None) -> descriptors.Opened:
    raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)


@pytest.mark.parametrize("name", ["cursor", "leader_lock"])
def test_what_keeps_a_candidate_from_leading_is_said_and_tried_again(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand, said: list[str], name: str
) -> None:
    """A cursor or a lease that is no file: one line, it is set aside by another one, and the records are delivered."""
    writer = Writer(config)
    assert writer.append("one")
    path = getattr(spool, name)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    os.mkdir(path)
    candidate = stand(spool)
    wait_for(lambda: candidate.trouble)
    assert not lease.is_taken(spool)
    assert server.wait_for_events(1)
    wait_for(lambda: candidate.trouble is None)
    trouble, aside = said
    assert trouble.startswith(f"cannot flush {spool.path}: IsADirectoryError")
    assert aside.startswith(f"{path} is no file of this user and this spool. It was set aside as {path}.damaged.")
    assert server.messages() == ["one"]


# How to send: what the newest writer left.


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What this process has said."""
    lines: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: lines.append(message)])
    return lines


def sizes(server: StrictCloudWatch) -> list[int]:
    return [request.events for request in server.requests if request.status == 200]


def test_the_settings_of_a_newer_writer_hold(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand
) -> None:
    """The leader takes them within moments, in a new epoch; what it knew before it forgets."""
    older = Writer(changed(config, max_batch_events=2, batch_timeout_seconds=3600.0))
    leader = stand(spool)
    wait_for(lambda: leader.epoch == 1 and leader.is_idle)  # a new leader sends at once what it finds
    assert leader.config.max_batch_events == 2
    assert all(older.append(f"{number}") for number in range(4))
    assert older.flush(HANG_SECONDS)
    assert sizes(server) == [2, 2]
    newer = Writer(changed(config, max_batch_events=3))
    wait_for(lambda: leader.epoch == 2)
    assert leader.config.max_batch_events == 3
    assert leader.config.batch_timeout_seconds == config.batch_timeout_seconds
    # Also for the records of the older one, and although that writes on.
    assert older.append("first of three")
    assert newer.append("second")
    assert newer.append("third")
    assert newer.flush(HANG_SECONDS)
    assert max(sizes(server)[2:]) <= 3
    assert len(server.messages()) == 7


def test_the_environment_of_the_leader_does_not_say_how_to_send(
    server: StrictCloudWatch, spool: SpoolDirectory, config: SinkConfig, stand: Stand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever leads sends as the writer said; variables of its own are those of another application."""
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS", "3600")
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__COMPRESSION", "gzip")
    writer = Writer(config)
    leader = stand(spool)
    assert leader.config.batch_timeout_seconds == config.batch_timeout_seconds
    assert leader.config.compression == "none"
    assert writer.append("one")
    assert server.wait_for_events(1, HANG_SECONDS)


def test_a_difference_of_two_living_writers_is_one_line(config: SinkConfig, said: list[str]) -> None:
    """It names each setting with both values, the other writer, and which one holds."""
    first = Writer(config)
    assert first.append("attached")
    Writer(changed(config, batch_size=7, compression="gzip"))
    (line,) = said
    assert line == (
        f"the settings of {first.directory.path} differ from those of {socket.gethostname()}/{os.getpid()}, whose "
        "application still logs there: batch_size 1000 -> 7, compression none -> gzip. The newer ones hold from now on."
    )


def test_what_is_the_same_or_nobodys_any_more_is_not_worth_a_line(config: SinkConfig, said: list[str]) -> None:
    """The same settings again, others that only concern the writer itself, and a change between two starts."""
    first = Writer(config)
    Writer(changed(config, batch_size=7))  # nobody was attached
    assert first.append("attached")
    Writer(changed(config, batch_size=7))
    Writer(changed(config, batch_size=7, on_full="drop_newest", block_timeout_seconds=1.0))
    assert said == []


def test_a_secret_between_two_parties_is_not_shown(config: SinkConfig, said: list[str]) -> None:
    """An external id is a secret of sorts: that it differs is said, not what it is."""
    role = "arn:aws:iam::123456789012:role/logs"
    assert Writer(changed(config, role_arn=role, external_id="our-secret")).append("attached")
    Writer(changed(config, role_arn=role, external_id="their-secret"))
    (line,) = said
    assert "external_id (not shown) -> (not shown)" in line
    assert "our-secret" not in line
    assert "their-secret" not in line


# The flusher that starts by itself: one a user and root.

# Python, and a line for each time that it was started.
COUNTED_PYTHON = """#!/bin/sh
echo started >> {log}
exec {python} "$@"
"""

TOGETHER = """
import os, sys, time, cwsink

config = {settings}
gate, start = os.pipe()
pids = []
for number in range({workers}):
    pid = os.fork()
    if pid == 0:
        os.close(start)
        os.read(gate, 1)  # returns for all of them at the same moment: when nobody has the other end any more
        writer = cwsink.Writer.open(config)
        assert writer.append(f"worker {{number}}")
        sys.stdin.readline()  # one of them reads what is written, the others wait for the end
        sys.exit()
    pids.append(pid)
os.close(start)
print("all are on their way", flush=True)
for pid in pids:
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How many flushers have been started so far."""
    log, python = tmp_path / "starts", tmp_path / "counted-python"
    log.touch()
    python.write_text(COUNTED_PYTHON.format(log=log, python=sys.executable))
    python.chmod(0o755)
    monkeypatch.setenv(starter.PYTHON_VARIABLE, str(python))
    return lambda: len(log.read_text().splitlines())


def test_20_workers_that_start_together_start_exactly_one_guard(
    server: StrictCloudWatch,
    spawn: Spawn,
    settings: dict[str, object],
    spool: SpoolDirectory,
    starts: Callable[[], int],
) -> None:
    """All of them find at the same moment that nobody leads; one process is started, and delivers for all."""
    code = TOGETHER.format(settings={**settings, "flusher": "process"}, workers=20)
    workers = spawn(code)
    assert server.wait_for_events(20, HANG_SECONDS), workers.poll()
    wait_for(lambda: starts() > 0)
    finish(workers)
    assert sorted(server.messages()) == sorted(f"worker {number}" for number in range(20))
    assert starts() == 1
    assert_one_sender_at_a_time(server)


def test_programs_that_come_and_go_share_a_flusher(
    server: StrictCloudWatch,
    settings: dict[str, object],
    spool: SpoolDirectory,
    tmp_path: Path,
    starts: Callable[[], int],
) -> None:
    """It lingers for a moment when the last one has gone: the next one finds it warm, in the same epoch."""
    opens = f"cwsink.Writer.open({ {**settings, 'flusher': 'process'}!r})"
    program = [sys.executable, "-c", f"import cwsink\ncwsink.Writer\ninput(chr(10))\nassert {opens}.append('x')"]
    pids = []
    with (tmp_path / "stderr").open("w") as stderr, contextlib.ExitStack() as started:
        # Its stderr is a file: it lets go of a pipe, for whoever waits for the end of that. All programs are started
        # now, because on a busy machine a start takes longer than the flusher lingers.
        programs = [
            started.enter_context(
                subprocess.Popen(
                    program, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr
                )
            )
            for _ in range(3)
        ]
        for each in programs:
            assert each.stdout is not None
            assert each.stdout.readline() == b"\n", "it has loaded cwsink, and waits"
        for each in programs:
            each.communicate(b"\n", HANG_SECONDS)
            assert each.returncode == 0
            pids.append(leader_of(spool))
    assert server.messages() == ["x"] * 3
    assert len(set(pids)) == 1
    assert starts() == 1


def test_two_spools_of_a_root_have_one_flusher_and_two_roots_have_two(
    server: StrictCloudWatch,
    config: SinkConfig,
    tmp_path: Path,
    starts: Callable[[], int],
) -> None:
    """A writer that finds the root's lock taken starts none: the flusher that has it sees the new spool."""
    own = changed(config, flusher="process")
    writers = [Writer(changed(own, log_stream_name=name)) for name in ("one", "two")]
    assert all(writer.append("x") and writer.flush(HANG_SECONDS) for writer in writers)
    assert starts() == 1
    elsewhere = Writer(changed(own, spool_directory=str(tmp_path / "elsewhere")))
    assert elsewhere.append("x")
    assert elsewhere.flush(HANG_SECONDS)
    assert starts() == 2


def test_a_lock_that_is_held_keeps_a_flusher_from_being_started(
    config: SinkConfig, spool: SpoolDirectory, starts: Callable[[], int]
) -> None:
    """The lock alone decides: whoever holds it has started one, or is one."""
    lock = flusher_lock.FlusherLock(spool.root)
    assert lock.try_acquire()
    own = changed(config, flusher="process")
    writer = Writer(own)
    assert writer.append("x")
    assert not writer.flush(0.0)
    assert starts() == 0
    lock.close()
    assert writer.flush(HANG_SECONDS)
    assert starts() == 1


@pytest.mark.skipif(os.getuid() != 0, reason="only root can give a file to another user")
def test_each_user_has_a_flusher_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a root that several users share, the lock of one is not in the way of another."""
    mine = flusher_lock.FlusherLock(str(tmp_path))
    assert mine.try_acquire()
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)
    Path(flusher_lock.path_of(str(tmp_path))).touch()
    os.chown(flusher_lock.path_of(str(tmp_path)), 12_345, -1)
    theirs = flusher_lock.FlusherLock(str(tmp_path))
    assert not flusher_lock.is_taken(str(tmp_path))
    assert theirs.try_acquire()
    mine.close()
    theirs.close()


def test_who_removes_the_locks_file_ends_the_flusher(
    server: StrictCloudWatch, config: SinkConfig, spool: SpoolDirectory, starts: Callable[[], int]
) -> None:
    """It goes, whatever it has left to do; the next append starts another one, which delivers."""
    server.faults.deny("logs:PutLogEvents")
    writer = Writer(changed(config, flusher="process"))
    assert writer.append("one")
    wait_for(lambda: leader_of(spool))
    end_flushers(Path(spool.root))
    assert not lease.is_taken(spool)
    server.faults.allow("logs:PutLogEvents")
    assert writer.flush(HANG_SECONDS)
    assert server.messages() == ["one"]
    assert starts() == 2


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
def test_a_killed_flusher_is_followed_by_its_guards_next_one(
    server: StrictCloudWatch, config: SinkConfig, spool: SpoolDirectory, starts: Callable[[], int]
) -> None:
    """Five kills: each time a child of the same guard follows, an epoch higher, and no writer starts one."""
    writer = Writer(changed(config, flusher="process"))
    guards, epochs, messages = set(), [], []
    for number in range(5):
        messages.append(f"record {number}")
        assert writer.append(messages[-1])
        assert writer.flush(HANG_SECONDS)
        pid, epoch = leader_of(spool), cursor.read(spool.cursor).epoch
        guards.add(parent_of(pid))
        epochs.append(epoch)
        time.sleep(1.0)  # one that dies sooner is started again after a pause, which grows
        os.kill(pid, signal.SIGKILL)
        wait_for(lambda epoch=epoch: cursor.read(spool.cursor).epoch > epoch)
    assert writer.flush(HANG_SECONDS)
    assert len(guards) == 1
    assert epochs == list(range(1, 6))
    assert starts() == 1
    assert server.messages() == messages
    assert_one_sender_at_a_time(server)


def parent_of(pid: int) -> int:
    done = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.faults
@pytest.mark.usefixtures("cursor_never_goes_back")
def test_whoever_is_killed_there_is_one_sender_and_nothing_is_lost(
    server: StrictCloudWatch, spawn: Spawn, settings: dict[str, object], spool: SpoolDirectory
) -> None:
    """Three workers log; the flusher, its guard, or both are killed at any point of their lives: every record
    arrives."""
    code = """
        import sys, time, cwsink
        writer = cwsink.Writer.open({})
        number = 0
        print("ready", flush=True)
        while not sys.stdin.closed and number < 10_000:
            assert writer.append(f"{{sys.argv[1]}} {{number}}")
            number += 1
            time.sleep(0.01)
            if number % 10 == 0 and select.select([sys.stdin], [], [], 0)[0]:
                break
        print(number, flush=True)
    """
    code = "import select\n" + textwrap.dedent(code).format({**settings, "flusher": "process"})
    workers = [spawn(code, name) for name in "abc"]
    rng = random.Random(13)
    for _ in range(12):
        wait_for(lambda: leader_of(spool))
        time.sleep(rng.uniform(0.0, 0.5))
        flusher = leader_of(spool)
        if not flusher:
            continue
        with contextlib.suppress(subprocess.CalledProcessError, ProcessLookupError):
            guard = parent_of(flusher)
            victims = [[flusher], [guard], [guard, flusher]][rng.randrange(3)]
            for pid in victims:
                if pid != 1:  # the guard is gone: an orphan's parent is init
                    os.kill(pid, signal.SIGKILL)
    expected = set()
    for name, worker in zip("abc", workers, strict=True):
        ready, count = finish(worker).split()
        assert ready == "ready"
        expected |= {f"{name} {number}" for number in range(int(count))}
    wait_for(lambda: not survey(spool).pending)
    assert set(server.messages()) == expected
    assert_one_sender_at_a_time(server)
