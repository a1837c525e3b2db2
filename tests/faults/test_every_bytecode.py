"""SIGKILL before every single bytecode of what a writer and a leader do: nothing acknowledged is lost.

The process is really killed, at the next bytecode each time, until the operation comes to its end. After each kill
another writer appends and another leader delivers, and everything is accounted for.

Invariants 1, 2, 3, 4, 9, 10.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig
from cwsink.frontends import presence
from cwsink.frontends.writer import Writer
from cwsink.spool import segment
from tests.conftest import Spawn
from tests.faults.failpoints import at_bytecode, kill_me
from tests.faults.victim import LANE, FaultTrial, message_of, told, wait
from tests.harness.interleave import SMALL, deliver
from tests.harness.support import finish, program_calling

pytestmark = pytest.mark.faults

DAY_MS = 86_400_000
# A tracer that sees lines or calls only would make this a test of a few hundred points, unnoticed.
FEWEST_BYTECODES, FEWEST_CALLS = 1_000, 80
LONGEST_SECONDS = 3600.0  # guards against a hang
STRIDE = 181


class Operation(NamedTuple):
    """What a victim does.

    Attributes:
        prepare: brings the spool into the state before it.
        begin: runs in the victim, before the bytecodes that count; returns what is swept.
        settings: of the spool.
        flusher_deaths: how many leaders die of the kill.
        evicts: whether records are evicted.
        stride: which of its calls are killed before: each such one, and the long run takes all.
    """

    prepare: Callable[[FaultTrial], None]
    begin: Callable[[FaultTrial], Callable[[], object]]
    settings: Mapping[str, object] = MappingProxyType({})
    flusher_deaths: int = 0
    evicts: bool = False
    stride: int = STRIDE


def fill(trial: FaultTrial, lane: int, count: int) -> Writer:
    writer = Writer(trial.config)
    for number in range(lane * LANE, lane * LANE + count):
        assert trial.log(writer, number)
    return writer


def nothing(trial: FaultTrial) -> None:
    """A spool nobody has appended to."""


def some(trial: FaultTrial) -> None:
    fill(trial, 1, 3).close()


def full_segment(trial: FaultTrial) -> None:
    """The next append must rotate."""
    writer = fill(trial, 1, 2)
    number = LANE + 2
    while os.path.getsize(segment.path_of(trial.spool.ring, 1)) < SMALL:
        assert trial.log(writer, number)
        number += 1
    writer.close()


def full_spool(trial: FaultTrial, first: int = LANE) -> None:
    """The next append must evict."""
    presence.this.forget_below(trial.spool.root)  # beside others it would keep to their policy
    writer = Writer(SinkConfig(**{**asdict(trial.config), "on_full": "drop_newest"}))
    number = first
    while trial.log(writer, number):
        number += 1
    writer.close()
    presence.this.forget_below(trial.spool.root)


def two_segments(trial: FaultTrial) -> None:
    """A segment to reclaim, and some records in the next one: three batches."""
    fill(trial, 1, 12).close()


def delivered_once(trial: FaultTrial) -> None:
    """A cursor, of another leader; more to deliver since."""
    fill(trial, 1, 6).close()
    deliver(trial.spool, trial.config)
    fill(trial, 2, 7).close()


def days(trial: FaultTrial) -> None:
    """One chunk whose requests would span more than 24 hours: it is sent in several parts."""
    writer = Writer(trial.config)
    now = int(time.time() * 1000)
    for number, age in enumerate((3, 2, 1)):
        assert trial.log(writer, LANE + number, now - age * DAY_MS - number)
    writer.close()


def damaged(trial: FaultTrial) -> None:
    """A range that is no record any more, and an event that is too large."""
    writer = fill(trial, 1, 2)
    with open(segment.path_of(trial.spool.ring, 1), "ab") as file:
        file.write(b"\xff" * 50)
    for number in (LANE + 2, LANE + 3):
        assert trial.log(writer, number)
    writer.close()


def open_writer(trial: FaultTrial) -> Callable[[], object]:
    """Open a writer, append, and close it."""

    def work() -> None:
        writer = Writer(trial.config)
        assert trial.log(writer, 2 * LANE)
        writer.close()

    return work


def first_appends(trial: FaultTrial) -> Callable[[], object]:
    """The first two appends of a process: attach, and whatever that makes necessary; stand for election."""
    writer = Writer(trial.config)
    return lambda: [trial.log(writer, number) for number in (2 * LANE, 2 * LANE + 1)]


def append(trial: FaultTrial) -> Callable[[], object]:
    """The plain append of a writer that is attached."""
    writer = Writer(trial.config)
    trial.log(writer, 3 * LANE)
    return lambda: [trial.log(writer, number) for number in range(3 * LANE + 1, 3 * LANE + 4)]


def append_odd(trial: FaultTrial) -> Callable[[], object]:
    """An append that goes the long way: bytes, a text that is no Unicode, one that is refused, and its marker."""
    writer = Writer(trial.config)
    trial.log(writer, 3 * LANE)

    def work() -> None:
        number = 3 * LANE + 1
        trial.issue(number)
        if writer.append(message_of(number).encode(), int(time.time() * 1000)):
            trial.acknowledge(number)
        assert not writer.append("")
        assert trial.log(writer, number + 1)

    return work


def lead(trial: FaultTrial) -> Callable[[], object]:
    """Be elected, take over, deliver, commit and reclaim until nothing is left."""
    return lambda: deliver(trial.spool, trial.config)


OPERATIONS = {
    "append": Operation(some, append),
    "append_odd": Operation(some, append_odd),
    "open": Operation(nothing, open_writer),
    "attach_first": Operation(nothing, first_appends),
    "attach": Operation(some, first_appends),
    "rotate": Operation(full_segment, first_appends),
    "evict": Operation(full_spool, first_appends, {"spool_max_bytes": 8 * SMALL}, evicts=True),
    "lead": Operation(two_segments, lead, flusher_deaths=1),
    "lead_on": Operation(delivered_once, lead, flusher_deaths=1),
    "lead_parts": Operation(days, lead, flusher_deaths=1),
    "lead_keep": Operation(delivered_once, lead, {"keep_delivered": 3600.0}, flusher_deaths=1, stride=211),
    "lead_damage": Operation(damaged, lead, flusher_deaths=1),
}
# A leader runs some 25,000 bytecodes for a few records. Only a call can change what is on disk, so a kill before
# each call leaves each state there is; the bytecodes between two calls are for the long run.
# Each run takes each 181st call, and the long one takes all.


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("stride", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_kill_before_any_call_loses_nothing(spawn: Spawn, memory_disk: Path, name: str, stride: int) -> None:
    """Appends, attaching, rotation and eviction; the election, takeover, delivery, commit and reclaim of a leader."""
    stride = stride or OPERATIONS[name].stride
    kills = run(spawn, memory_disk, name, "calls", stride)
    assert kills > FEWEST_CALLS // stride


@pytest.mark.timeout(3600)
@pytest.mark.parametrize(
    ("name", "stride"), [("append", 17), *(pytest.param(name, 1, marks=pytest.mark.long) for name in OPERATIONS)]
)
def test_a_kill_before_any_bytecode_loses_nothing(spawn: Spawn, memory_disk: Path, name: str, stride: int) -> None:
    """The same at every single bytecode; each time at every third one of an append."""
    kills = run(spawn, memory_disk, name, "bytecodes", stride)
    assert kills > FEWEST_BYTECODES // stride


def run(spawn: Spawn, disk: Path, name: str, points: str, stride: int = 1) -> int:
    """Sweep in a process of its own, warm and without threads. Returns the number of kills."""
    child = spawn(program_calling(sweep), name, disk, points, str(stride))
    kills, last = map(int, finish(child, seconds=LONGEST_SECONDS).split())
    print(f"{name}: killed before each of {kills} {points}")
    last //= stride
    # The bytecodes of one operation vary by a few: times have more or fewer digits, dictionaries another order.
    assert abs(kills - last) <= last // 10 + 1
    return kills


def sweep(name: str, root: str, points: str, stride: str) -> None:
    """Kill a victim at its "calls" or "bytecodes" in turn, each or every so many, until one comes to its end."""
    operation = OPERATIONS[name]
    trial = FaultTrial(Path(root), **operation.settings)
    with trial.cloudwatch_is_a_file():
        operation.prepare(trial)
        trial.remember()
        warm_up(trial, operation)
        number, kills, code = 1, 0, -signal.SIGKILL
        while code:
            trial.restore()

            def victim(number: int = number) -> None:
                work = operation.begin(trial)
                end = at_bytecode(number, kill_me, calls_only=points == "calls")
                work()
                trial.note(end())

            code = wait(trial.fork(victim))
            assert code in (0, -signal.SIGKILL), (
                f"it ended with {code} when killed before number {number} of its {points}"
            )
            kills += code != 0
            with told(f"{name}: killed before number {number} of its {points}"):
                books = trial.recover(evicting=operation.evicts, flusher_deaths=operation.flusher_deaths)
            number += int(stride)
        assert bool(books.evicted) == operation.evicts
    print(kills, trial.noted)


def warm_up(trial: FaultTrial, operation: Operation) -> None:
    """Run the operation here once: what it imports, and where its calls are, its victims then know."""
    swept = operation.begin(trial)
    end = at_bytecode(0, kill_me, calls_only=True)
    swept()
    end()
    trial.restore()
