"""Worker after worker, leader after leader: descriptors, threads, files, memory and streams stay flat.

Of workers, of a process that leads again and again, of the flusher that serves all these workers, and of its guard.
"""

from __future__ import annotations

import gc
import os
import signal
import time
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
from msgspec.structs import asdict, replace

from cwsink import Writer
from cwsink.config import SinkConfig, load_config
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.spool import directory, leader_state
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from cwsink.testing.flushers import end_flushers
from tests.conftest import Spawn
from tests.faults.own_processes import FLUSHER, GUARD, named, ours
from tests.harness.fake_cloudwatch import FakeCloudWatch
from tests.harness.interleave import deliver, segments, until
from tests.harness.support import CHILD_SECONDS, quick_config
from tests.harness.warm_forker import WarmForker

pytestmark = pytest.mark.faults

GENERATIONS: Final = 200
MANY_GENERATIONS: Final = 2_000
# So many workers one after the other are each the last one out: they wait until all is delivered. A start is dear.
LAST_EVERY: Final = 20
NEEDS_PROC: Final = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="not run: needs /proc")
TAKEOVERS: Final = 200
MANY_TAKEOVERS: Final = 1_000
WORKERS, MANY_WORKERS = 40, 1_000
KILLS, MANY_KILLS = 100, 1_000
# What an allocator keeps for itself; a leak of a KiB a takeover would be far more.
SLACK_KIB: Final = 4_096


def work(settings: dict[str, object], number: int) -> None:
    """One generation: log twice, and leave as a program does: the last one waits for what those before it have left."""
    writer = Writer(load_config(settings))
    assert writer.append(f"{number:05d} first")
    assert writer.append(f"{number:05d} last")


def resident_kib(pid: int) -> int:
    """Return the memory of a process that is its own."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))


def footprint(pid: int, spool: directory.SpoolDirectory) -> tuple[int, int, set[str]]:
    """Return how many descriptors and threads a process has, and which files the spool has beside its segments."""
    files = {str(path.relative_to(spool.path)) for path in Path(spool.path).rglob("*") if path.suffix != ".seg"}
    files.discard("leader.host")  # a leader's while it leads, or one that has not ended in order
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), files


def check_generations(server: StrictCloudWatch, spawn: Spawn, generations: int) -> None:
    """Compare after a tenth of the generations, when all is warm, and after the last."""
    config = quick_config(server.endpoint_url)
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    forker = WarmForker(spawn, work)
    parent = forker._process.pid
    spool = directory.open_for(config)
    for number in range(generations):
        waits = number % LAST_EVERY == LAST_EVERY - 1
        flusher = "process" if waits else "external"
        assert forker.wait(forker.fork({**settings, "flusher": flusher}, number)) == 0
        if number == generations // 10 - 1:
            before, kib = footprint(parent, spool), resident_kib(parent)
    end_flushers(Path(spool.root))
    assert footprint(parent, spool) == before
    assert resident_kib(parent) < kib + SLACK_KIB
    until(lambda: not ours(spool.root), "flusher and guard are gone")
    assert server.messages() == [f"{number:05d} {what}" for number in range(generations) for what in ("first", "last")]
    assert {event.stream for event in server.events()} == {"stream"}
    assert server.calls["CreateLogStream"] <= 2
    assert len(segments(spool)) == 1
    books = survey(spool)
    assert (books.delivered, books.pending, books.resent) == (2 * generations, 0, 0)
    print(f"{generations} generations of workers: descriptors, threads, files, memory and streams as at the start")


def check_takeovers(config: SinkConfig, takeovers: int) -> None:
    """One process leads again and again, and appends between: as one whose neighbours come and go."""
    cloudwatch = FakeCloudWatch(lambda: time.time_ns() // 1_000_000)
    writer = Writer(config)
    with mock.patch.object(CloudWatch, "put", cloudwatch.method()):
        for number in range(takeovers):
            assert writer.append(f"{number:05d} " + "." * 900)
            deliver(writer.directory, config)
            if number == takeovers // 10:
                gc.collect()
                before, objects = footprint(os.getpid(), writer.directory), len(gc.get_objects())
    gc.collect()
    assert footprint(os.getpid(), writer.directory) == before
    # What the fake CloudWatch keeps is two objects a record at most.
    assert len(gc.get_objects()) < objects + 3 * takeovers + 200
    assert len(cloudwatch.messages()) == takeovers
    assert len(segments(writer.directory)) <= 2
    assert survey(writer.directory).epoch == takeovers
    print(f"{takeovers} takeovers in one process: descriptors, threads, files and objects as at the start")


def check_flusher(server: StrictCloudWatch, spawn: Spawn, records: int) -> None:
    """One program stays, others come and go beside it: the same flusher and guard serve all of them, in one size."""
    config = quick_config(server.endpoint_url)
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    forker = WarmForker(spawn, work)
    stays = Writer(config)
    assert stays.append("stays")
    assert stays.flush(CHILD_SECONDS)
    (guard,), (flusher,) = (named(stays.directory.root, name) for name in (GUARD, FLUSHER))
    before: list[object] = []
    for number in range(records):
        assert forker.wait(forker.fork(settings, number)) == 0
        assert stays.append(f"{number:05d} between")
        assert stays.flush(CHILD_SECONDS)
        if number == records // 10:
            before = [footprint(pid, stays.directory) for pid in (guard.pid, flusher.pid)]
            kib = [resident_kib(pid) for pid in (guard.pid, flusher.pid)]
    assert ours(stays.directory.root) == [guard, flusher]
    assert [footprint(pid, stays.directory) for pid in (guard.pid, flusher.pid)] == before
    grown = [resident_kib(pid) - was for pid, was in zip((guard.pid, flusher.pid), kib, strict=True)]
    assert max(grown) < SLACK_KIB, grown
    assert len(server.messages()) == 3 * records + 1
    print(f"{records} workers beside one that stays: flusher and guard as at the start")


# Is the guard, which pauses before it forks a flusher again that was killed at once. Here it does not.
HASTY_GUARD: Final = """
import os, sys
from cwsink.flusher import guard
from cwsink.spool.flusher_lock import FlusherLock

root, spool = sys.argv[1:]
guard._STEADY_SECONDS = 0.0
lock = FlusherLock(root, is_shared=True)
assert lock.try_acquire()
os.dup2(lock.fd, 3)
sys.argv.append("cwsink-flusher")
guard.main([root, spool, ""])
"""


def check_guard(config: SinkConfig, spawn: Spawn, kills: int) -> None:
    """The flusher is killed again and again: the guard forks the next, and keeps nothing of those before."""
    writer = Writer(config)
    assert writer.append("before")
    child = spawn(HASTY_GUARD, writer.directory.root, writer.directory.path)
    guard, spool = child.pid, writer.directory
    before, kib, pid = (0, 0, set[str]()), 0, 0
    for number in range(kills):
        until(lambda pid=pid: child_of(guard) not in (0, pid), "the next one is there")  # type: ignore[misc]
        pid = child_of(guard)
        if number % 10 == 0:  # one that leads; the others are killed at any time
            until(lambda pid=pid: leader_pid(spool) == pid, "it leads")  # type: ignore[misc]
        if number == kills // 10:
            before, kib = footprint(guard, spool), resident_kib(guard)
        os.kill(pid, signal.SIGKILL)
    until(lambda: child_of(guard) not in (0, pid), "the last one is there")
    until(lambda: footprint(guard, spool)[:2] == before[:2], "descriptors and threads are as before")
    assert resident_kib(guard) < kib + SLACK_KIB
    print(f"{kills} kills of a flusher: descriptors, threads and memory of its guard as at the start")


def child_of(pid: int) -> int:
    """Return the only child of a process, or 0."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="utf-8").split()
    return int(children[0]) if children else 0


def leader_pid(spool: directory.SpoolDirectory) -> int:
    published = leader_state.read(spool)
    return published.pid if published is not None else 0


@NEEDS_PROC
@pytest.mark.timeout(600)
def test_workers_leave_nothing_in_the_flusher_that_serves_them(server: StrictCloudWatch, spawn: Spawn) -> None:
    """40 workers, one after the other, beside one that stays."""
    check_flusher(server, spawn, WORKERS)


@NEEDS_PROC
@pytest.mark.timeout(600)
def test_killed_flushers_leave_nothing_in_their_guard(small: SinkConfig, spawn: Spawn) -> None:
    """100 of them."""
    check_guard(small, spawn, KILLS)


@NEEDS_PROC
@pytest.mark.timeout(600)
def test_generations_of_workers_leave_nothing_behind(server: StrictCloudWatch, spawn: Spawn) -> None:
    """200 workers, each forked from the same warm process."""
    check_generations(server, spawn, GENERATIONS)


@NEEDS_PROC
def test_takeovers_leave_nothing_behind(small: SinkConfig) -> None:
    """200 leaders in one process, one after the other."""
    check_takeovers(small, TAKEOVERS)


@NEEDS_PROC
@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_many_workers_and_kills_leave_nothing_behind(
    server: StrictCloudWatch, spawn: Spawn, small: SinkConfig, tmp_path: Path
) -> None:
    """1,000 workers beside one that stays, and 1,000 killed flushers."""
    check_flusher(server, spawn, MANY_WORKERS)
    check_guard(replace(small, spool_directory=str(tmp_path / "others")), spawn, MANY_KILLS)


@NEEDS_PROC
@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_many_takeovers_leave_nothing_behind(small: SinkConfig) -> None:
    """1,000 of them."""
    check_takeovers(small, MANY_TAKEOVERS)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@NEEDS_PROC
def test_many_generations_of_workers_leave_nothing_behind(server: StrictCloudWatch, spawn: Spawn) -> None:
    """2,000 of them."""
    check_generations(server, spawn, MANY_GENERATIONS)
