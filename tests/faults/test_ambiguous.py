"""Sends whose fate nobody knows: killed between store and answer, between answer and commit, a commit torn in two.

At most one batch is repeated, it is the one that was in flight, and the ledger counts each record once. A cursor that
was damaged later is in tests/integration/test_cursor.py and test_flusher.py.

Invariant 4.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig, load_config
from cwsink.flusher.commits import Cursor
from cwsink.flusher.delivery import Delivery
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.publisher import LeaderState
from cwsink.frontends.writer import Writer
from cwsink.spool import directory, segment
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.faults import failpoints
from tests.faults.failpoints import failpoint, kill_me
from tests.faults.test_every_bytecode import days, two_segments
from tests.faults.victim import FaultTrial, told, wait
from tests.harness.interleave import deliver
from tests.harness.support import finish, program_calling, quick_config
from tests.harness.warm_forker import WarmForker

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

RECORDS, BATCHES = 20, 5
HANG_SECONDS = 30.0
# Each is called, in this order, after CloudWatch has answered and before the commit is on disk; the last two after it.
AFTER_THE_ANSWER: list[Callable[..., object]] = [
    Delivery._succeeded,
    Flusher._set_aside,
    Flusher._commit,
    Cursor.commit,
    Cursor._write,
    LeaderState.delivered,
    Flusher._reclaim,
]
COMMITTED = AFTER_THE_ANSWER[-2:]


def lead(settings: dict[str, object], text: str = "") -> None:
    """Lead until all is delivered, or something happens at the failpoint of that text."""
    config = load_config(settings)
    if text:
        failpoints.arm(text)
    deliver(directory.open_for(config), config)


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    return quick_config(server.endpoint_url, max_batch_events=RECORDS // BATCHES, batch_size=1, flusher="external")


@pytest.fixture
def spool(config: SinkConfig) -> directory.SpoolDirectory:
    """A spool with five batches to send."""
    writer = Writer(config)
    assert all(writer.append(f"{number:02d}") for number in range(RECORDS))
    writer.close()
    return writer.directory


@pytest.fixture
def settings(config: SinkConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if value is not None}


def settled(spool: directory.SpoolDirectory, server: StrictCloudWatch) -> list[str]:
    """Assert that all is delivered, counted once and reclaimed; return what arrived more than once."""
    counts = Counter(server.messages())
    assert set(counts) == {f"{number:02d}" for number in range(RECORDS)}
    books = survey(spool)
    assert books.adds_up, books
    assert (books.delivered, books.pending) == (RECORDS, 0)
    assert len(segment.numbers(spool.ring)) == 1
    assert max(counts.values()) <= 2
    first = list(dict.fromkeys(server.messages()))
    assert first == sorted(first)
    return sorted(text for text, count in counts.items() if count > 1)


def batch(number: int) -> list[str]:
    """Return the records of a batch, from 1."""
    size = RECORDS // BATCHES
    return [f"{each:02d}" for each in range((number - 1) * size, number * size)]


@pytest.mark.parametrize("number", range(1, BATCHES + 1))
def test_a_kill_between_store_and_answer_repeats_that_batch(
    spool: directory.SpoolDirectory,
    server: StrictCloudWatch,
    spawn: Spawn,
    settings: dict[str, object],
    number: int,
) -> None:
    """CloudWatch has it and has not said so: exactly that batch is sent again, by the next leader."""
    forker = WarmForker(spawn, lead)
    server.create_group("/test/group")
    server.create_stream("/test/group", "stream")
    server.faults.pass_next(number - 1)
    server.faults.hang(HANG_SECONDS, after_storing=True)
    leader = forker.fork(settings)
    assert server.wait_for_events(number * len(batch(1)), HANG_SECONDS)
    forker.kill(leader)
    assert forker.wait(forker.fork(settings)) == 0
    assert settled(spool, server) == batch(number)


@pytest.mark.parametrize("function", AFTER_THE_ANSWER, ids=lambda function: function.__qualname__)
def test_a_kill_between_answer_and_commit_repeats_at_most_that_batch(
    spool: directory.SpoolDirectory,
    server: StrictCloudWatch,
    spawn: Spawn,
    settings: dict[str, object],
    function: Callable[..., object],
) -> None:
    """The answer was read, the commit is not on disk: that batch again. With the commit on disk: nothing."""
    forker = WarmForker(spawn, lead)
    nth = 3 if function is Cursor._write else 2  # the first write is the takeover's
    assert forker.wait(forker.fork(settings, failpoint(function, nth, "kill"))) == -signal.SIGKILL
    assert forker.wait(forker.fork(settings)) == 0
    assert settled(spool, server) == ([] if function in COMMITTED else batch(2))


# The long run takes each byte.
@pytest.mark.parametrize(
    ("name", "step"),
    [("whole", 7), pytest.param("whole", 1, marks=pytest.mark.long), pytest.param("parts", 1, marks=pytest.mark.long)],
)
def test_a_commit_torn_at_any_byte_repeats_at_most_one_batch(
    spawn: Spawn, memory_disk: Path, name: str, step: int
) -> None:
    """The leader dies in the middle of writing the cursor, at each byte of each of its commits."""
    torn = int(finish(spawn(program_calling(tear), memory_disk, name, step), seconds=300.0).split()[-1])
    assert torn > 500 // step


def tear(root: str, name: str, step: str) -> None:
    """Cut each write of the cursor after each of its bytes, or each seventh one."""
    trial = FaultTrial(Path(root))
    pwrite = os.pwrite
    torn = 0
    with trial.cloudwatch_is_a_file():
        (two_segments if name == "whole" else days)(trial)
        trial.remember()
        for commit in range(1, 4):  # the first is the takeover
            length = 1
            cut = 0
            while cut < length:
                trial.restore()

                def victim(commit: int = commit, cut: int = cut) -> None:
                    writes = 0

                    def torn_write(fd: int, data: bytes, offset: int) -> int:
                        nonlocal writes
                        writes += 1
                        if writes == commit:
                            trial.note(len(data))
                            pwrite(fd, data[:cut], offset)
                            kill_me()
                        return pwrite(fd, data, offset)

                    os.pwrite = torn_write  # type: ignore[assignment]
                    deliver(trial.spool, trial.config)

                assert wait(trial.fork(victim)) == -signal.SIGKILL
                with told(f"{name}: write {commit} of the cursor torn after {cut} bytes"):
                    trial.recover(flusher_deaths=1)
                length = trial.noted
                cut += int(step)
                torn += 1
    print(torn)
