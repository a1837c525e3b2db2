"""Workers and leaders killed at random while CloudWatch misbehaves: nothing that was acknowledged is lost.

The oracle is a file that every worker maps, one byte for "issued" and one for "acknowledged" of each id,
and what the strict server stored. A message is a function of its id.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import threading
import time
from pathlib import Path

import pytest

from cwsink import Writer
from cwsink.config import load_config
from cwsink.flusher import leader_state
from cwsink.spool import directory, segment
from cwsink.spool.reader import Block, RingReader
from cwsink.spool.ring import Append, Ring
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.nursery import Nursery
from tests.support import quick_config

WORKERS = 4
THREADS = 2  # in each worker; each has a lane of ids of its own
LANES = WORKERS * THREADS
MAX_BATCH_EVENTS = 500
HANG_SECONDS = 60.0

MISBEHAVIOURS = [
    ("pass_next",),
    ("fail_next", 2, "ServiceUnavailableException"),
    ("fail_next", 1, "InternalFailure", 500),
    ("fail_next", 1, "ThrottlingException"),
    ("junk_next",),
    ("drop_connection_before_storing",),
    ("drop_connection_after_storing",),
]


def message_of(number: int) -> str:
    """Return the message with this id: 40 to 400 characters, and one in 64 longer than two pages."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    length = 9_000 if number % 64 == 0 else 40 + int(digest[:4], 16) % 360
    return f"{number:07d} " + (digest * (length // len(digest) + 1))[:length]


class Oracle:
    """What was issued and what was acknowledged, in a file that outlives its writers."""

    def __init__(self, path: Path, lane_length: int) -> None:
        self.lane_length = lane_length
        self.records = LANES * lane_length
        if not path.exists():
            path.write_bytes(bytes(2 * self.records + 1))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)

    def lane(self, lane: int) -> range:
        return range(lane * self.lane_length, (lane + 1) * self.lane_length)

    def is_issued(self, number: int) -> bool:
        return bool(self._bytes[number])

    def issue(self, number: int) -> None:
        self._bytes[number] = 1

    def acknowledge(self, number: int) -> None:
        self._bytes[self.records + number] = 1

    def issued(self) -> set[int]:
        return {number for number, is_set in enumerate(self._bytes[: self.records]) if is_set}

    def acknowledged(self) -> set[int]:
        return {number for number, is_set in enumerate(self._bytes[self.records : -1]) if is_set}

    def progress(self) -> int:
        return self._bytes[: self.records].count(1)

    def close(self) -> None:
        """Tell all workers to finish and exit."""
        self._bytes[-1] = 1

    def is_closed(self) -> bool:
        return bool(self._bytes[-1])


def work(slot: int, path: str, lane_length: int, seconds: float, settings: dict[str, object]) -> None:
    """One incarnation of worker `slot`: goes on after the last ids that were issued in its lanes.

    The last id of each lane is kept until no more is killed, so that every worker takes part in the end.
    """
    oracle = Oracle(Path(path), lane_length)
    writer = Writer(load_config(settings))

    def append(lane: int) -> None:
        last = oracle.lane(lane)[-1]
        for number in oracle.lane(lane):
            if oracle.is_issued(number):
                continue
            while number == last and not oracle.is_closed():
                time.sleep(0.02)
            oracle.issue(number)
            if writer.append(message_of(number)):
                oracle.acknowledge(number)
            if number % 10 == 0:
                time.sleep(10 * seconds / lane_length)

    threads = [threading.Thread(target=append, args=(slot * THREADS + n,)) for n in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


@pytest.mark.faults
@pytest.mark.parametrize(
    ("records", "seconds", "seed"),
    [
        pytest.param(20_000, 8.0, 1, id="short"),
        pytest.param(240_000, 60.0, 2, id="long", marks=[pytest.mark.long, pytest.mark.timeout(300)]),
    ],
)
def test_no_kill_loses_an_acknowledged_record(
    server: StrictCloudWatch, spawn: Spawn, tmp_path: Path, records: int, seconds: float, seed: int
) -> None:
    """4 workers and their leaders killed at random: all acknowledged records arrive, in order, repeats bounded."""
    rng = random.Random(int(os.environ.get("CWSINK_SOAK_SEED", seed)))
    config = quick_config(
        server.endpoint_url, batch_timeout_seconds=0.1, max_batch_events=MAX_BATCH_EVENTS, spool_max_bytes=1 << 30
    )
    settings = {name: value for name, value in vars(config).items() if value is not None}
    spool = directory.open_for(config)
    path, lane_length = tmp_path / "oracle", records // LANES
    oracle = Oracle(path, lane_length)
    nursery = Nursery(spawn, work)
    server.faults.latency_seconds = 0.01

    def fork(slot: int) -> int:
        return nursery.fork(slot, str(path), lane_length, seconds, settings)

    workers = [fork(slot) for slot in range(WORKERS)]
    kills = 0
    until = time.monotonic() + 3 * seconds + HANG_SECONDS
    while oracle.progress() < oracle.records - LANES:
        assert time.monotonic() < until, f"{oracle.progress()} of {oracle.records} issued after {kills} kills"
        time.sleep(rng.uniform(0.02, 0.25))
        leader = leader_state.read(spool)
        if leader is not None and leader.pid in workers and rng.random() < 0.5:
            slot = workers.index(leader.pid)
            if rng.random() < 0.7:  # the others die before they have sent anything
                server.wait_for(lambda s, epoch=leader.epoch: epoch in s.senders_by_epoch(), 2.0)
        else:
            slot = rng.randrange(WORKERS)
        nursery.kill(workers[slot])
        kills += 1
        workers[slot] = fork(slot)
        if server.faults.pending:
            continue  # a script that only grows would hold the leader back for longer than the test lasts
        misbehaviour, *arguments = rng.choice(MISBEHAVIOURS)
        getattr(server.faults, misbehaviour)(*arguments)
    oracle.close()  # all leave at once, as gunicorn's workers do
    assert [nursery.wait(pid) for pid in workers] == [0] * WORKERS

    events = server.events()
    acknowledged = oracle.acknowledged()
    first: dict[int, None] = dict.fromkeys(int(event.message[:7]) for event in events)
    lost = acknowledged - first.keys()
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged records lost, {kills} kills"
    assert first.keys() <= oracle.issued()
    assert all(event.message == message_of(int(event.message[:7])) for event in events)
    for lane in range(LANES):
        numbers = [number for number in first if number in oracle.lane(lane)]
        assert numbers == sorted(numbers), f"lane {lane} arrived out of order"

    leaders = server.senders_by_epoch()
    assert all(len(senders) == 1 for senders in leaders.values())
    assert len(leaders) > 3, "the leader was hardly ever killed"
    # Repeated may be what was stored without an answer, and the last batch of a leader; nothing else.
    unanswered = {request.number for request in server.requests if request.status == 0}
    last_batches = {event.epoch: event.request for event in events}
    repeatable = unanswered | set(last_batches.values())
    stored_by: dict[int, int] = {}
    repeats = 0
    for event in events:
        number = int(event.message[:7])
        repeats += number in stored_by
        assert number not in stored_by or stored_by[number] in repeatable, f"{number} was sent again after an answer"
        stored_by[number] = event.request
    assert repeats <= MAX_BATCH_EVENTS * (len(leaders) + len(unanswered))
    print(f"{len(acknowledged)} acknowledged, {kills} kills, {len(leaders)} sending leaders, {repeats} repeats")

    assert len(segment.numbers(spool.ring)) == 1
    books = survey(spool)
    assert (books.delivered, books.pending, books.evicted, books.dead_lettered) == (len(first), 0, 0, {})
    assert books.adds_up


def test_a_record_never_overtakes_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread appends to an old segment just after the reader looked there, and at once to the next: read in order."""
    config = quick_config()
    spool = directory.open_for(config)
    ring = Ring(spool, config.spool_max_bytes, config.ring_segment_bytes, may_evict=True)
    assert ring.append(b"zero") is Append.APPENDED
    reader = RingReader(spool, {})

    def payloads() -> list[bytes]:
        block = reader.read()
        return [frame.payload for frame in block.frames] if block else []

    assert payloads() == [b"zero"]
    segment.create(spool.ring, 2, bytes.fromhex(spool.format.spool_id), config.ring_segment_bytes)
    old = reader._open[1]
    read = old.read

    def look_and_miss_it() -> Block | None:
        monkeypatch.setattr(old, "read", read)
        block = read()
        assert ring.append(b"first") is Append.APPENDED  # to segment 1: the writer has not looked yet
        ring.refresh()
        assert ring.append(b"second") is Append.APPENDED  # to segment 2
        return block

    monkeypatch.setattr(old, "read", look_and_miss_it)
    assert payloads() == [b"first"]
    assert payloads() == [b"second"]
    assert payloads() == []
    reader.close()
    ring.close()
