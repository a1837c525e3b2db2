"""One process of many leads: never two at once, and soon another when it dies.

The verdict comes from outside: the pids and epochs in the requests that the strict server saw, the
kernel's word on the lease, and the cursor file.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.config import SinkConfig, load_config
from cwsink.spool import cursor, directory, leader_state, lease
from cwsink.spool.cursor import Cursor, Fenced
from cwsink.spool.directory import SpoolDirectory
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.nursery import Nursery
from tests.support import quick_config

CANDIDATES = 8
KILLS = 200
HANG_SECONDS = 30.0


def candidate(settings: dict[str, object], *also: str) -> None:
    """Append 50 records a second until killed; `also` "fork": as leader, make three children that live on."""
    if "fork" in also:
        Writer(load_config(settings)).append("before the fork")
        until_leading(settings)
        for _ in range(3):
            if os.fork() == 0:
                time.sleep(600)
    writer = Writer(load_config(settings))
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
    return quick_config(server.endpoint_url, batch_timeout_seconds=0.1)


@pytest.fixture
def settings(config: SinkConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if value is not None}


@pytest.fixture
def spool(config: SinkConfig) -> SpoolDirectory:
    return directory.open_for(config)


@pytest.fixture
def nursery(spawn: Spawn) -> Nursery:
    return Nursery(spawn, candidate)


@pytest.fixture(autouse=True)
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
@pytest.mark.timeout(600)
def test_200_leaders_are_killed_and_one_follows_each(
    server: StrictCloudWatch, spool: SpoolDirectory, nursery: Nursery, settings: dict[str, object]
) -> None:
    """8 candidates, 200 leader kills: always one successor, an epoch higher, never two senders of one epoch."""
    rng = random.Random(8)
    pids = {nursery.fork(settings) for _ in range(CANDIDATES)}
    takeovers = []
    epoch = 0
    for _ in range(KILLS):
        wait_for(lambda: leader_of(spool) in pids)
        leader, epoch = leader_of(spool), cursor.read(spool.cursor).epoch
        if rng.random() < 0.7:  # the others die before they have sent anything
            assert server.wait_for(lambda s, epoch=epoch: epoch in s.senders_by_epoch(), HANG_SECONDS)
        os.kill(leader, signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda epoch=epoch: cursor.read(spool.cursor).epoch > epoch)
        takeovers.append(time.monotonic() - began)
        nursery.wait(leader)
        pids.remove(leader)
        pids.add(nursery.fork(settings))
    takeovers.sort()
    median, p95 = statistics.median(takeovers), takeovers[int(0.95 * KILLS)]
    print(f"{KILLS} leaders killed, {CANDIDATES} candidates: median {median:.3f} s, p95 {p95:.3f} s to the next one")
    assert epoch >= KILLS
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
def test_two_candidates_take_over_from_each_other(
    server: StrictCloudWatch, spool: SpoolDirectory, nursery: Nursery, settings: dict[str, object]
) -> None:
    """With one successor only, too, each of 10 killed leaders is followed, and every epoch has one sender."""
    rng = random.Random(2)
    pids = {nursery.fork(settings) for _ in range(2)}
    takeovers = []
    for _ in range(10):
        wait_for(lambda: leader_of(spool) in pids)
        time.sleep(rng.uniform(0.0, 1.5 * lease.TRY_SECONDS))  # meet the other at any point of its pause
        leader, epoch = leader_of(spool), cursor.read(spool.cursor).epoch
        os.kill(leader, signal.SIGKILL)
        began = time.monotonic()
        wait_for(lambda epoch=epoch: cursor.read(spool.cursor).epoch > epoch)
        takeovers.append(time.monotonic() - began)
        nursery.wait(leader)
        pids.remove(leader)
        pids.add(nursery.fork(settings))
    print(f"takeover of 2 candidates: median {statistics.median(takeovers) * 1000:.0f} ms")
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
@pytest.mark.parametrize("is_replaced", [False, True], ids=["removed", "replaced"])
def test_a_leader_whose_lock_file_is_gone_stops(
    server: StrictCloudWatch,
    spool: SpoolDirectory,
    nursery: Nursery,
    settings: dict[str, object],
    tmp_path: Path,
    is_replaced: bool,
) -> None:
    """Lock file removed or replaced while a request is out: the old leader neither sends nor commits again."""
    old = nursery.fork(settings)
    wait_for(lambda: leader_of(spool) == old)
    assert server.wait_for_events(1, HANG_SECONDS)
    server.faults.latency_seconds = 0.4  # longer than a takeover: the answer finds another leader
    new = nursery.fork(settings)
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
    nursery.kill(new)
    wait_for(lambda: leader_of(spool) == old)
    assert server.wait_for(lambda s: s.senders_by_epoch().get(3) == {str(old)}, HANG_SECONDS)
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
def test_a_stopped_leader_that_was_superseded_sends_nothing_more(
    server: StrictCloudWatch, spool: SpoolDirectory, nursery: Nursery, settings: dict[str, object]
) -> None:
    """SIGSTOP in the middle of a request, another takes over, SIGCONT: nothing more is sent under the old epoch."""
    old = nursery.fork(settings)
    assert server.wait_for_events(1, HANG_SECONDS)
    server.faults.latency_seconds = 0.2
    sent = len(server.requests)
    assert server.wait_for(lambda s: len(s.requests) > sent, HANG_SECONDS)
    os.kill(old, signal.SIGSTOP)
    server.faults.latency_seconds = 0.0
    new = nursery.fork(settings)
    os.unlink(spool.leader_lock)
    wait_for(lambda: leader_of(spool) == new)
    assert server.wait_for(lambda s: s.senders_by_epoch().get(2) == {str(new)}, HANG_SECONDS)
    os.kill(old, signal.SIGCONT)
    nursery.kill(new)
    wait_for(lambda: leader_of(spool) == old)
    assert server.wait_for(lambda s: s.senders_by_epoch().get(3) == {str(old)}, HANG_SECONDS)
    assert_one_sender_at_a_time(server)


@pytest.mark.faults
def test_a_stopped_leader_that_keeps_its_lease_goes_on(
    server: StrictCloudWatch, spool: SpoolDirectory, nursery: Nursery, settings: dict[str, object], config: SinkConfig
) -> None:
    """While the leader is stopped others append but do not lead; continued, it delivers in the same epoch."""
    leader = nursery.fork(settings)
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
def test_forked_children_do_not_keep_a_dead_leaders_lease(
    server: StrictCloudWatch, spool: SpoolDirectory, nursery: Nursery, settings: dict[str, object]
) -> None:
    """The leader dies, three children that it forked live on: the lease is free."""
    leader = nursery.fork(settings, "fork")
    wait_for(lambda: leader_of(spool) == leader)
    assert server.wait_for(lambda s: any(message.endswith(" 5") for message in s.messages()), HANG_SECONDS)
    children = children_of(leader)
    assert len(children) == 3
    nursery.kill(leader)
    began = time.monotonic()
    wait_for(lambda: not lease.is_taken(spool))
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
    mine, other = lease.Lease(spool), lease.Lease(spool)
    assert mine.try_acquire()
    assert mine.is_held()
    assert not other.try_acquire()
    assert not other.is_held()
    os.unlink(spool.leader_lock)
    assert not mine.is_held()
    assert other.try_acquire()
    assert other.is_held()
    assert not mine.is_held()
    mine.release()
    assert other.is_held()
    other.release()
    assert not lease.is_taken(spool)
