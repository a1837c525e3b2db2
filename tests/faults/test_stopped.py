"""SIGSTOP and SIGCONT of a writer and of a leader, wherever it is: nobody else notices, and nothing old is sent.

A stopped process keeps all its locks. It is stopped before a call that is named by its number, so that the points are
the same each time.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Fenced
from cwsink.frontends.writer import Writer
from cwsink.spool import cursor, descriptors, lease
from tests.conftest import Spawn
from tests.faults.failpoints import at_bytecode, stop_me
from tests.faults.test_every_bytecode import OPERATIONS, Operation, warm_up
from tests.faults.victim import LANE, FaultTrial, told, wait
from tests.harness.interleave import NOT_ELECTED, deliver
from tests.harness.support import finish, program_calling

pytestmark = [pytest.mark.faults, pytest.mark.timeout(600)]

POINTS, MANY_POINTS = 20, 500
WRITERS = ["attach_first", "append", "rotate", "evict"]
LEADERS = ["lead", "lead_on", "lead_parts"]
LONGEST_SECONDS = 3000.0


@pytest.mark.parametrize("name", WRITERS)
def test_a_stopped_writer_is_noticed_by_nobody(spawn: Spawn, memory_disk: Path, name: str) -> None:
    """While it is stopped another one appends and rotates, and a leader delivers; continued, it goes on.

    Invariant 8.
    """
    assert run(spawn, memory_disk, "stop_writer", name, POINTS) == POINTS


@pytest.mark.parametrize("name", LEADERS)
def test_a_stopped_leader_keeps_its_lease_and_holds_up_no_append(spawn: Spawn, memory_disk: Path, name: str) -> None:
    """While it is stopped others append, and none leads beside it; continued, it delivers, and nothing twice.

    Invariant 8.
    """
    assert run(spawn, memory_disk, "stop_leader", name, POINTS) == POINTS


@pytest.mark.parametrize("name", LEADERS)
def test_a_stopped_leader_that_is_superseded_sends_and_commits_nothing_old(
    spawn: Spawn, memory_disk: Path, name: str
) -> None:
    """Its lock file is removed and another one leads; continued, it may finish the one request it had begun.

    Invariant 5.
    """
    assert run(spawn, memory_disk, "supersede_leader", name, POINTS) == POINTS


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("how", "name"),
    [("stop_writer", name) for name in WRITERS]
    + [(how, name) for how in ("stop_leader", "supersede_leader") for name in LEADERS],
)
def test_a_process_stopped_anywhere_harms_nobody(spawn: Spawn, memory_disk: Path, how: str, name: str) -> None:
    """The same at up to 500 points."""
    assert run(spawn, memory_disk, how, name, MANY_POINTS) >= POINTS


def run(spawn: Spawn, disk: Path, how: str, name: str, points: int) -> int:
    """Stop in a process of its own. Returns how often."""
    stops = int(finish(spawn(program_calling(sweep), disk, how, name, points), seconds=LONGEST_SECONDS).split()[-1])
    print(f"{how}, {name}: {stops} times stopped, nothing lost")
    return stops


def sweep(root: str, how: str, name: str, points: str) -> None:
    """Stop a victim at so many of its calls, evenly."""
    operation = OPERATIONS[name]
    trial = FaultTrial(Path(root), **operation.settings)
    meanwhile = {
        "stop_writer": beside_a_writer,
        "stop_leader": beside_a_leader,
        "supersede_leader": instead_of_a_leader,
    }
    stops = 0
    with trial.cloudwatch_is_a_file():
        operation.prepare(trial)
        trial.remember()
        warm_up(trial, operation)
        assert wait(trial.fork(victim(trial, operation, 0))) == 0
        calls = trial.noted * 49 // 50  # that of one run: the next has a few more or fewer
        for point in sorted({1 + index * (calls - 1) // (int(points) - 1) for index in range(int(points))}):
            trial.restore()
            pid = trial.fork(victim(trial, operation, point))
            with told(f"{how}, {name}: stopped before call {point} of {calls}"):
                assert os.WIFSTOPPED(os.waitpid(pid, os.WUNTRACED)[1]), "it ended before"
                try:
                    check = meanwhile[how](trial, pid)
                finally:
                    os.kill(pid, signal.SIGCONT)
                    code = wait(pid)
                assert code == 0, f"exit code {code}"
                check()
                # Who is superseded is as good as dead: it may have sent what it has not committed.
                trial.recover(evicting=operation.evicts, flusher_deaths=int(how == "supersede_leader"))
            stops += 1
    print(stops)


def victim(trial: FaultTrial, operation: Operation, point: int) -> Callable[[], None]:
    """Return what stops itself before that call; for 0, what notes how many there are."""

    def work() -> None:
        swept = operation.begin(trial)
        end = at_bytecode(point, stop_me, calls_only=True)
        try:
            swept()
        except Fenced:
            pass
        except AssertionError as error:
            if str(error) != NOT_ELECTED:  # it was superseded while it was being elected
                raise
        if point == 0:
            trial.note(end())

    return work


def others_append(trial: FaultTrial) -> None:
    """Another writer appends, three segments full: each append returns, and says that it has done so."""
    writer = Writer(trial.config)
    for number in range(8 * LANE, 8 * LANE + 27):
        assert trial.log(writer, number), "refused beside a stopped process"
    writer.close()


def beside_a_writer(trial: FaultTrial, pid: int) -> Callable[[], None]:
    writer = Writer(trial.config)
    # A writer that is stopped while it evicts keeps the others from evicting: they go on to twice a segment.
    refused = sum(not trial.log(writer, number) for number in range(8 * LANE, 8 * LANE + 27))
    assert not refused or trial.config.spool_max_bytes < 1024 * 1024, f"{refused} refused"
    writer.close()
    deliver(trial.spool, trial.config)
    return lambda: None


def beside_a_leader(trial: FaultTrial, pid: int) -> Callable[[], None]:
    others_append(trial)
    claim = Lease(trial.spool)
    is_free = claim.try_acquire()  # it was stopped before its election, or at its very end
    claim.release()
    assert is_free or lease.is_taken(trial.spool)
    sent = len(trial.sent())

    def check() -> None:
        late = trial.sent()[sent:]
        assert {request.pid for request in late} <= {pid}
        assert len({request.epoch for request in late}) <= 1

    return check


def instead_of_a_leader(trial: FaultTrial, pid: int) -> Callable[[], None]:
    if os.path.exists(trial.spool.leader_lock):
        os.unlink(trial.spool.leader_lock)
    others_append(trial)
    if is_locked(trial.spool.cursor):
        # It is in the middle of a commit, which nobody may take over from: the next leader waits for it, and no writer
        # does. Nothing to check yet.
        return lambda: None
    deliver(trial.spool, trial.config)
    before, sent = cursor.read(trial.spool.cursor), len(trial.sent())

    def check() -> None:
        late = [request for request in trial.sent()[sent:] if request.epoch <= before.epoch]
        assert len(late) <= 1, f"{len(late)} requests of an old epoch"
        after = cursor.read(trial.spool.cursor)
        assert (after.ledger, after.offsets, after.chunk) == (before.ledger, before.offsets, before.chunk)

    return check


def is_locked(path: str) -> bool:
    try:
        fd = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not descriptors.try_lock(fd, exclusive=False)
    finally:
        os.close(fd)
