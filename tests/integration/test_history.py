"""The history: segments that are delivered, what was sent of them, and that it is the first to go."""

from __future__ import annotations

import contextlib
import errno
import os
import time
from collections import Counter
from collections.abc import Iterator

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.commits import Cursor
from cwsink.flusher.past import Past
from cwsink.frontends.writer import Writer
from cwsink.spool import disk, history, segment
from cwsink.spool.budget import read_evictions
from cwsink.spool.cursor import State
from cwsink.spool.directory import SpoolDirectory
from tests.harness.fake_cloudwatch import POISON, FakeCloudWatch
from tests.harness.interleave import SMALL, deliver, on_write
from tests.harness.support import Killed, quick_config, sent_as_history_has_it

DAY_MS = 86_400_000
BATCH = 8


@pytest.fixture
def cloudwatch(monkeypatch: pytest.MonkeyPatch) -> FakeCloudWatch:
    made = FakeCloudWatch(lambda: int(time.time() * 1000))
    monkeypatch.setattr(CloudWatch, "put", made.method())
    return made


@pytest.fixture
def keeping() -> SinkConfig:
    """The smallest segments, small requests, and a history."""
    return quick_config(
        segment_bytes=SMALL, spool_max_bytes=16 * SMALL, flusher="external", max_batch_events=BATCH, keep_delivered="1h"
    )


@contextlib.contextmanager
def written(config: SinkConfig, count: int, text: str = "") -> Iterator[Writer]:
    writer = Writer(config)
    for number in range(count):
        assert writer.append(f"{number:04d} {text or 'x' * 395}")
    yield writer
    writer.close()


def kept_bytes(directory: SpoolDirectory) -> int:
    return sum(each.used_bytes for each in history.kept(directory))


def test_history_has_each_event_as_it_was_sent(
    cloudwatch: FakeCloudWatch, keeping: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records of several days and streams, in parts, refused and rejected ones; by leaders that were killed."""
    config = SinkConfig(
        **{**asdict(keeping), "log_stream_name": "s-{date:%d}", "oversize": "split", "max_event_bytes": 1_024}
    )
    now, writer, kills = int(time.time() * 1000), Writer(config), 0
    for number in range(60):
        age = (0, 1, 3, 20)[number % 4] * DAY_MS  # 20 days are too old
        text = f"{number:04d} {POISON if number == 17 else ''}" + "x" * (2_000 if number % 9 == 0 else 300)
        assert writer.append(text, now - age)
    writer.close()
    calls = Counter[str]()

    def die_now_and_then(client: CloudWatch) -> None:
        calls["stored"] += 1
        if calls["stored"] % 5 == 0:
            raise Killed

    commit = Cursor.commit

    def commit_or_die(held: Cursor, state: State) -> None:
        calls["commits"] += 1
        if calls["commits"] % 7 == 0:
            raise Killed
        commit(held, state)

    monkeypatch.setattr(Cursor, "commit", commit_or_die)
    cloudwatch.after = die_now_and_then
    cloudwatch.answers = ["ok", "lost", "ok", "error", "ok", "ok", "junk"]
    while True:
        try:
            deliver(writer.directory, config)
            break
        except Killed:
            kills += 1
    stored = Counter((sent.timestamp_ms, sent.message) for sent in cloudwatch.stored)
    told = sent_as_history_has_it(writer.directory)
    ours = {key: count for key, count in stored.items() if not key[1].startswith("cwsink: ")}
    assert kills > 3
    assert told == Counter(ours.keys())
    repeated = sum(ours.values()) - len(ours)
    assert 0 < repeated <= (kills + cloudwatch.unanswered) * BATCH
    past = Past(writer.directory)
    days = {time.strftime("%d", time.gmtime((now - age * DAY_MS) / 1000)) for age in (0, 1, 3, 20)}
    assert {each.stream for each in past.entries} == {f"s-{day}" for day in days}
    assert sum(each.parts for each in past.entries) > 0
    assert any(each.resent for each in past.entries)
    assert any("too_old" in each.dead for each in past.entries)
    assert any("poison" in each.dead for each in past.entries)


def test_without_the_setting_there_is_no_history(cloudwatch: FakeCloudWatch, keeping: SinkConfig) -> None:
    """Segments are unlinked, and nothing is noted."""
    config = SinkConfig(**{**asdict(keeping), "keep_delivered": None})
    with written(config, 30) as writer:
        deliver(writer.directory, config)
    assert not os.path.exists(writer.directory.history)


def test_an_idle_writers_segment_is_kept_although_its_blocks_are_given_back(
    cloudwatch: FakeCloudWatch, keeping: SinkConfig
) -> None:
    """While the writer has it open, after the writer has logged there again, and after its end."""
    keeping = SinkConfig(**{**asdict(keeping), "segment_bytes": 4 * SMALL})
    idle = Writer(keeping)
    assert idle.append("the first of the idle one")
    with written(keeping, 60) as writer:
        directory = writer.directory
        deliver(directory, keeping)
        assert len(segment.numbers(directory.ring)) == 2  # the newest, and a hollow one
        assert len(sent_as_history_has_it(directory)) == 61
    idle._ring.check_due_ns = 1 << 62  # it has not looked for a newer segment yet
    assert idle.append("the last of the idle one")
    deliver(directory, keeping)
    idle.close()
    with written(keeping, 1, "later"):
        deliver(directory, keeping)
    assert len(segment.numbers(directory.ring)) == 1
    told = {message for _, message in sent_as_history_has_it(directory)}
    assert told == {sent.message for sent in cloudwatch.stored}
    assert {"the first of the idle one", "the last of the idle one"} < told


def test_history_keeps_to_its_time_its_size_and_the_rings_room(
    cloudwatch: FakeCloudWatch, keeping: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest segments go first, each with its notes."""
    monkeypatch.setattr(history, "_PRUNE_SOON_SECONDS", 0.0)
    with written(keeping, 60) as writer:
        directory = writer.directory
        deliver(directory, keeping)
    numbers = segment.numbers(directory.history)
    assert len(numbers) >= 6
    half = kept_bytes(directory) // 2
    deliver(directory, SinkConfig(**{**asdict(keeping), "keep_delivered_bytes": half}))
    assert 0 < kept_bytes(directory) <= half
    left = segment.numbers(directory.history)
    assert left == numbers[-len(left) :]
    assert len(os.listdir(directory.history)) == 2 * len(left) + 1  # and the notes on the segment in the ring
    monkeypatch.setattr(disk, "free_bytes", lambda fd: keeping.spool_max_bytes - 4 * SMALL)
    deliver(directory, keeping)
    assert 0 < len(segment.numbers(directory.history)) < len(left)
    monkeypatch.setattr(disk, "free_bytes", lambda fd: None)
    deliver(directory, SinkConfig(**{**asdict(keeping), "keep_delivered": "1ms"}))
    assert segment.numbers(directory.history) == []
    assert len(os.listdir(directory.history)) == 1


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest"])
def test_history_goes_before_anything_is_evicted_or_refused(
    cloudwatch: FakeCloudWatch, keeping: SinkConfig, monkeypatch: pytest.MonkeyPatch, on_full: str
) -> None:
    """A full disk costs a writer nothing, and the leader no commit, as long as there is a history."""
    config = SinkConfig(**{**asdict(keeping), "on_full": on_full})
    with written(config, 30) as writer:
        directory = writer.directory
        deliver(directory, config)
        room = [0]
        real_write, real_remove = os.write, history._remove

        def write(fd: int, data: bytes) -> int:
            if room[0] <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            room[0] -= len(data)
            return real_write(fd, data)

        def remove(spool: SpoolDirectory, number: int) -> None:
            room[0] += 4 * SMALL
            real_remove(spool, number)

        monkeypatch.setattr(history, "_remove", remove)
        on_write(monkeypatch, write)
        assert segment.numbers(directory.history)
        for number in range(8):
            assert writer.append(f"{number} on a full disk")
        assert room[0] > 0
    monkeypatch.undo()
    assert read_evictions(directory).records == 0
    monkeypatch.setattr(CloudWatch, "put", cloudwatch.method())
    deliver(directory, config)
    assert cloudwatch.messages()[-1] == "7 on a full disk"
