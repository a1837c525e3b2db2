"""Writers, flushers and guards killed at random while CloudWatch misbehaves: nothing that was acknowledged is lost.

Four kinds of writers, the flusher that they start with its guard, and `cwsink flush` beside it (tests.faults.soakers).
The verdict is the oracle's, and what the strict server stored. Each round of `scripts/soak kills` draws from another
seed.
"""

from __future__ import annotations

import bisect
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig
from cwsink.spool import capacity, directory, leader_state, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_segment import Block
from cwsink.spool.reader import RingReader
from cwsink.spool.ring import Append, Ring
from cwsink.spool.survey import survey
from cwsink.testing import StoredEvent, StrictCloudWatch
from cwsink.testing.flushers import end_flushers
from tests.conftest import Spawn
from tests.faults.own_processes import FLUSHER, GUARD, Process, kill, ours
from tests.faults.soakers import ROLES, WRITERS, Oracle, message_of, text_of, work
from tests.harness.interleave import deliver
from tests.harness.interleave import until as eventually
from tests.harness.support import quick_config, sent_as_history_has_it
from tests.harness.warm_forker import WarmForker
from tests.soak import SEED_VARIABLE


class Size(NamedTuple):
    """How many kills while how many records are logged, and how long that is to take; a slow machine takes longer."""

    kills: int
    records: int
    seconds: float


SIZES = [Size(90, 45_000, 9.0), pytest.param(Size(600, 320_000, 60.0), marks=pytest.mark.long)]
MAX_BATCH_EVENTS = 500
HANG_SECONDS = 500.0

MISBEHAVIOURS = [
    ("pass_next",),
    ("fail_next", 2, "ServiceUnavailableException"),
    ("fail_next", 1, "InternalFailure", 500),
    ("fail_next", 1, "ThrottlingException"),
    ("junk_next",),
    ("drop_connection_before_storing",),
    ("drop_connection_after_storing",),
]


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    return quick_config(
        server.endpoint_url,
        batch_timeout_seconds=0.1,
        max_batch_events=MAX_BATCH_EVENTS,
        spool_max_bytes=1 << 30,
        keep_delivered="1h",
    )


@pytest.mark.faults
@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size.kills} kills")
def test_no_kill_loses_an_acknowledged_record(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, tmp_path: Path, size: Size
) -> None:
    """90 kills, 45,000 records, or seven times as many: the acknowledged ones arrive, in order, unaltered; few repeats.

    And history has each of them once, whoever was killed while it was written.

    Invariants 1, 2, 3, 4, 5.
    """
    rng = random.Random(int(os.environ.get(SEED_VARIABLE, "1")))
    spool = directory.open_for(config)
    oracle = Oracle(tmp_path / "oracle", size.records)
    server.faults.latency_seconds = 0.01
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    forker = WarmForker(spawn, work)

    def fork(slot: int) -> int:
        return forker.fork(ROLES[slot], str(tmp_path / "oracle"), size.records, size.seconds, settings)

    pids = [fork(slot) for slot in range(len(ROLES))]
    kills: Counter[str] = Counter()
    until = time.monotonic() + HANG_SECONDS
    while kills.total() < size.kills or not oracle.is_waiting():
        assert time.monotonic() < until, f"{oracle.progress()} of {oracle.records} issued after {kills.total()} kills"
        time.sleep(rng.uniform(0.01, 0.12))
        victims = choose(rng, server, spool, pids)
        for pid in victims:
            if isinstance(pid, Process):  # one that a writer has started
                kills[pid.name] += kill(pid, spool.root)
                continue
            slot = pids.index(pid)
            forker.kill(pid)
            kills[ROLES[slot]] += 1
            pids[slot] = fork(slot)
        if server.faults.pending:
            continue  # a script that only grows would hold the leader back for longer than the test lasts
        misbehaviour, *arguments = rng.choice(MISBEHAVIOURS)
        getattr(server.faults, misbehaviour)(*arguments)
    oracle.close()  # all leave at once, as gunicorn's workers do
    assert [forker.wait(pid) for pid in pids[: len(WRITERS)]] == [0] * len(WRITERS)
    for pid in pids[len(WRITERS) :]:
        os.kill(pid, signal.SIGTERM)
        assert forker.wait(pid) == 0
    end_flushers(tmp_path)
    eventually(lambda: not ours(spool.root), "flusher and guard are gone")
    deliver(spool, config)  # what came after the last leader had left
    settled = verdict(server, oracle, size)
    killed = f"{kills[FLUSHER]} flushers, {kills[GUARD]} guards, {kills['flusher']} of `cwsink flush`"
    print(f"{settled}, {kills.total()} kills, of them {killed}")
    assert min(kills[FLUSHER], kills[GUARD], kills["flusher"]) > size.kills // 60, killed
    assert len(segment.numbers(spool.ring)) == 1
    books = survey(spool)
    arrived = len({text_of(text)[:7] for text in server.messages()})
    assert (books.delivered, books.pending, books.evicted, books.dead_lettered) == (arrived, 0, 0, {})
    assert books.adds_up
    kept = Counter(message for _, message in sent_as_history_has_it(spool).elements())
    assert kept == dict.fromkeys(server.messages(), 1), "history does not have each record that was delivered, once"


def choose(
    rng: random.Random, server: StrictCloudWatch, spool: SpoolDirectory, pids: list[int]
) -> Sequence[int | Process]:
    """Choose who is killed next: the leader every other time, alone, with its guard, or the guard alone."""
    leader = leader_state.read(spool)
    own = ours(spool.root)
    leading = [each for each in own if leader is not None and each.pid == leader.pid]
    if leader is None or rng.random() < 0.5 or not (leading or leader.pid in pids):
        return [rng.choice(pids)]
    if rng.random() < 0.7:  # the others die before they have sent anything
        server.wait_for(lambda s, epoch=leader.epoch: epoch in s.senders_by_epoch(), 0.5)
    if not leading:
        return [leader.pid]
    guards = [each for each in own if each.pid == leading[0].parent]
    return rng.choice([leading, leading, [*guards, *leading], guards])


def verdict(server: StrictCloudWatch, oracle: Oracle, size: Size) -> str:
    """Compare what arrived with what was acknowledged. Returns the figures."""
    events = [(text_of(event.message), event) for event in server.events()]
    acknowledged = oracle.acknowledged()
    first: dict[int, StoredEvent] = {}
    for text, event in events:
        first.setdefault(int(text[:7]), event)
    lost = acknowledged - first.keys()
    assert not lost, f"{len(lost)} of {len(acknowledged)} acknowledged records lost"
    assert first.keys() <= oracle.issued()
    assert all(text == message_of(int(text[:7])) for text, _ in events)
    begins = oracle.begins()
    latest: dict[int, int] = {}
    for number in first:
        run = bisect.bisect(begins, number)
        before = latest.get(run, -1)
        assert number > before, f"of one process and thread, {first[number]} arrived after {first[before]}"
        latest[run] = number

    leaders = server.senders_by_epoch()
    assert all(len(senders) == 1 for senders in leaders.values())
    assert len(leaders) > size.kills // 20, "the leader was hardly ever killed"
    # Repeated may be what was stored without an answer, and the last batch of a leader; nothing else.
    unanswered = {request.number for request in server.requests if request.status == 0}
    last_batches = {event.epoch: event.request for _, event in events}
    repeatable = unanswered | set(last_batches.values())
    stored_by: dict[int, int] = {}
    repeats = 0
    for text, event in events:
        number = int(text[:7])
        repeats += number in stored_by
        assert number not in stored_by or stored_by[number] in repeatable, f"{number} was sent again after an answer"
        stored_by[number] = event.request
    assert 1 <= repeats <= MAX_BATCH_EVENTS * (len(leaders) + len(unanswered))
    assert len(acknowledged) >= 0.9 * size.records
    return f"{len(acknowledged)} acknowledged, 0 lost, {repeats} repeated, {len(leaders)} leaders that sent"


def test_a_record_never_overtakes_the_one_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread appends to an old segment just after the reader looked there, and at once to the next: read in order.

    Invariant 3.
    """
    config = quick_config()
    spool = directory.open_for(config)
    ring = Ring(spool, capacity.of(config))
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
        ring.check_due_ns = 0  # now it looks
        assert ring.append(b"second") is Append.APPENDED  # to segment 2
        return block

    monkeypatch.setattr(old, "read", look_and_miss_it)
    assert payloads() == [b"first"]
    assert payloads() == [b"second"]
    assert payloads() == []
    reader.close()
    ring.close()
