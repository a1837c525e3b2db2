"""SIGKILL, an errno and a short write at every system call of a writer and of a leader, by strace.

A run without a fault lists the calls. Then one call fails in each run: the application sees no exception,
what was refused is counted, and the next writer and the next leader find everything in its place.

Invariant 1.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest

from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Fenced
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.orders import Orders
from cwsink.frontends.writer import Writer
from cwsink.spool.survey import survey
from tests.conftest import Spawn
from tests.faults.test_every_bytecode import OPERATIONS as SWEPT
from tests.faults.test_every_bytecode import Operation, fill, full_spool, two_segments
from tests.faults.victim import HANG_SECONDS, LANE, FaultTrial, told, wait
from tests.harness.interleave import SMALL
from tests.harness.support import finish, program_calling

STRACE = shutil.which("strace")

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(600),
    pytest.mark.skipif(STRACE is None, reason="not run: strace is not installed: apt-get install strace"),
]

ERRORS = ["ENOSPC", "EIO", "EMFILE", "EACCES", "EROFS"]
KILL, SHORT = "KILL", "SHORT"
FAULTS = [*ERRORS, KILL, SHORT]
# The victim calls PROBE, and nothing else does, until strace shows it.
PROBE = "getpriority"
TRACED = f"%file,%desc,{PROBE}"
# Memory, and calls of the interpreter itself; a failure there is none of a disk.
NOT_OURS = frozenset(["mmap", "munmap", "mprotect", "ioctl", "lseek", "readlink", "execve", "poll", "ppoll", "select"])
WRITES = frozenset(["write", "pwrite64"])
SHORT_BYTES = 10
NOT_READY, READY = 1, 2  # notes
MARKER = "/the operation begins"
CALLS_IN_CI = 11
LONGEST_SECONDS = 3000.0

_CALL = re.compile(r"^(?:\d+ +)?(\w+)\((.*)")


class SystemCall(NamedTuple):
    """The `nth` call of that name since strace was attached."""

    name: str
    nth: int
    arguments: str


def append_and_close(trial: FaultTrial) -> Callable[[], object]:
    """What a worker does in its life. Each answer that is False is counted in the note."""
    writer = Writer(trial.config)

    def work() -> None:
        trial.note(sum(not trial.log(writer, number) for number in range(2 * LANE, 2 * LANE + 4)))
        writer.close()

    return work


def stand_once(trial: FaultTrial) -> Callable[[], object]:
    """What an election does each time it stands: a fault may end its leadership, and it says so."""

    def attempt() -> None:
        lease = Lease(trial.spool)
        try:
            if lease.try_acquire():
                orders = Orders()
                flusher = Flusher(trial.spool, trial.config, lease, orders, kind="own")
                orders.drain(HANG_SECONDS)
                flusher.lead()
        except (OSError, Fenced) as error:
            print(f"the leader ended: {error}", file=sys.stderr)
        finally:
            lease.release()

    return attempt


def evicted_before(trial: FaultTrial) -> None:
    """A full spool, of which some is evicted already that nobody was told of yet."""
    full_spool(trial, first=LANE)
    fill(trial, 3, 12).close()
    full_spool(trial, first=4 * LANE)
    assert survey(trial.spool).evicted > 0


OPERATIONS = {
    "attach": Operation(SWEPT["attach"].prepare, append_and_close),
    "rotate": Operation(SWEPT["rotate"].prepare, append_and_close),
    "evict": Operation(evicted_before, append_and_close, {"spool_max_bytes": 8 * SMALL}, evicts=True),
    "lead": Operation(two_segments, stand_once, flusher_deaths=1),
    "lead_parts": Operation(SWEPT["lead_parts"].prepare, stand_once, flusher_deaths=1),
    "lead_damage": Operation(SWEPT["lead_damage"].prepare, stand_once, flusher_deaths=1),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_failing_call_reaches_the_application_or_loses_a_record(spawn: Spawn, memory_disk: Path, name: str) -> None:
    """Some 18 calls of each operation, its first and its last among them, one at a time, each fault there is."""
    assert set(run(spawn, memory_disk, name, CALLS_IN_CI)) == set(FAULTS)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_failing_call_at_all_reaches_the_application_or_loses_a_record(
    spawn: Spawn, memory_disk: Path, name: str
) -> None:
    """All calls of each operation."""
    assert set(run(spawn, memory_disk, name, sys.maxsize)) == set(FAULTS)


def test_a_disk_that_is_read_only_for_a_while_costs_counted_records_only(spawn: Spawn, memory_disk: Path) -> None:
    """Under load every change fails with EROFS, and then none: the application goes on, and all is accounted for."""
    refused = int(finish(spawn(program_calling(read_only_for_a_while), memory_disk)).split()[-1])
    assert 20 <= refused <= 60


def run(spawn: Spawn, disk: Path, name: str, most: int) -> dict[str, int]:
    """Sweep in a process of its own. Returns how often each fault was met."""
    met: dict[str, int] = json.loads(
        finish(spawn(program_calling(sweep), name, disk, most), seconds=LONGEST_SECONDS).splitlines()[-1]
    )
    print(f"{name}: {met}")
    return met


def sweep(name: str, root: str, most: str) -> None:
    """Have the calls of an operation fail, one in each run."""
    operation = OPERATIONS[name]
    trial = FaultTrial(Path(root), **operation.settings)
    log = Path(root, "calls")
    met: Counter[str] = Counter()
    with trial.cloudwatch_is_a_file():
        operation.prepare(trial)
        trial.remember()
        operation.begin(trial)()  # so that no call is one of an import
        trial.restore()
        evicted = survey(trial.spool).evicted
        assert traced(trial, operation, log, None) == (0, False)
        books = trial.recover(evicting=operation.evicts)
        assert (books.evicted > evicted) == operation.evicts
        calls = listed(log, trial)
        for fault in FAULTS:
            for call in spread([call for call in calls if fault != SHORT or call.name in WRITES], int(most)):
                met[fault] += suffers(trial, operation, log, call, fault)
    print(json.dumps(met))


def suffers(trial: FaultTrial, operation: Operation, log: Path, call: SystemCall, fault: str) -> bool:
    """Run the operation with one fault, and what must hold then. Returns whether the fault was met."""
    trial.restore()
    what = {KILL: "signal=KILL", SHORT: f"retval={SHORT_BYTES}"}.get(fault, f"error={fault}")
    code, was_met = traced(trial, operation, log, f"inject={call.name}:{what}:when={call.nth}")
    with told(f"{fault} at {call.name} number {call.nth}, {call.arguments[:90]}"):
        assert code == (-signal.SIGKILL if fault == KILL and was_met else 0), f"exit code {code}"
        trial.recover(
            evicting=operation.evicts,
            flusher_deaths=operation.flusher_deaths,
            refused=None if fault == KILL or operation.flusher_deaths else trial.noted,
            # A segment that we may not open, or not ask about, is not ours: it is left alone, and what comes after it
            # is not held back.
            in_order=not (fault == "EACCES" and (".seg" in call.arguments or is_about_an_open_file(call))),
        )
    return was_met


def is_about_an_open_file(call: SystemCall) -> bool:
    """Tell whether it is what `os.fstat` calls, or the close of a file's first number when it gets a high one."""
    return call.name in ("fstat", "close") or "AT_EMPTY_PATH" in call.arguments


def read_only_for_a_while(root: str) -> None:
    """Append 200 records; all that changes the disk fails in the middle."""

    def load(trial: FaultTrial) -> Callable[[], object]:
        writer = Writer(trial.config)

        def work() -> None:
            answers = [trial.log(writer, number) for number in range(2 * LANE, 10 * LANE, 2)]
            writer.close()
            assert answers[0]
            assert answers[-1]
            trial.note(answers.count(False))

        return work

    trial = FaultTrial(Path(root))
    with trial.cloudwatch_is_a_file():
        trial.remember()
        changes = "write,linkat,ioctl,renameat,unlinkat"
        operation = Operation(two_segments, load)
        answer = traced(trial, operation, Path(root, "calls"), f"inject={changes}:error=EROFS:when=40..100")
        assert answer == (0, True)
        refused = trial.noted
        trial.recover(refused=refused)
    print(refused)


def spread(calls: list[SystemCall], most: int) -> list[SystemCall]:
    """Return at most so many, evenly, the first and the last included."""
    if len(calls) <= most:
        return calls
    return [calls[index * (len(calls) - 1) // (most - 1)] for index in range(most)]


def listed(log: Path, trial: FaultTrial) -> list[SystemCall]:
    """Return the calls after the marker, but those that stand for CloudWatch."""
    counts: Counter[str] = Counter()
    calls: list[SystemCall] = []
    has_begun = False
    for line in log.read_text(errors="replace").splitlines():
        match = _CALL.match(line)
        if match is None:
            continue
        name, arguments = match.groups()
        counts[name] += 1
        if has_begun and name not in NOT_OURS and not arguments.startswith(f"{trial.sent_fd}, "):
            calls.append(SystemCall(name, counts[name], arguments))
        has_begun = has_begun or MARKER in arguments
    assert has_begun, log.read_text(errors="replace")
    return calls


def traced(trial: FaultTrial, operation: Operation, log: Path, injection: str | None) -> tuple[int, bool]:
    """Run the operation under strace. Returns the victim's exit code, and whether the fault was met.

    strace is the tracer a moment before it sees the first call. If the operation began in that moment, its first calls
    would be in no log and in no count. So it begins when the log shows a call.
    """
    trial.note(NOT_READY)
    log.unlink(missing_ok=True)

    def victim() -> None:
        work = operation.begin(trial)
        trial.note(READY)
        while trial.noted == READY:
            os.getpriority(os.PRIO_PROCESS, 0)
            time.sleep(0.0005)
        os.access(MARKER, os.F_OK)
        work()

    pid = trial.fork(victim)
    until(lambda: trial.noted == READY)
    command = [STRACE or "strace", "-f", "-qq", "-o", str(log), "-p", str(pid), "-e", f"trace={TRACED}"]
    tracer = subprocess.Popen([*command, *(["-e", injection] if injection else [])], stdin=subprocess.DEVNULL)
    try:
        until(lambda: log.exists() and PROBE in log.read_text(errors="replace"))
        trial.note(0)
        code = wait(pid)
    finally:
        tracer.wait()
    return code, code == -signal.SIGKILL or "INJECTED" in log.read_text(errors="replace")


def until(condition: Callable[[], bool]) -> None:
    """Wait until it holds."""
    end = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < end, "waited in vain for strace"
        time.sleep(0.0005)
