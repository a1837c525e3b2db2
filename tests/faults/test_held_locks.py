"""Another process of the same user has a lock, and keeps it: records are taken and delivered, or one line says why not.

Its holder may be a stopped process, a debugger, a backup program, or a person with `flock`.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import freezegun
import msgspec
import pytest

from cwsink import diagnostics
from cwsink.config import SinkConfig
from cwsink.flusher import dead_letter
from cwsink.flusher.claim import Heartbeat
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.election import Election
from cwsink.frontends import presence
from cwsink.frontends.writer import Writer
from cwsink.spool import files, flusher_lock, frame, heartbeat, held_lock, leader_state, lease, segment
from cwsink.spool.budget import Budget
from cwsink.spool.open_segment import Block
from cwsink.spool.reader import RingReader
from cwsink.spool.record import Event
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import SMALL, fill_segment, leading, segment_path, segments, until
from tests.harness.support import CHILD_SECONDS, quick_config

pytestmark = pytest.mark.faults

Hold = Callable[..., int]


@pytest.fixture
def hold() -> Iterator[Hold]:
    """Lock a file, or a directory, to the end of the test. A flock belongs to the open file, not to the process."""
    held = []

    def lock(path: str | Path, how: int = fcntl.LOCK_EX) -> int:
        flags = os.O_RDONLY if os.path.isdir(path) else os.O_RDWR | os.O_CREAT
        held.append(os.open(path, flags, 0o600))
        fcntl.flock(held[-1], how | fcntl.LOCK_NB)
        return held[-1]

    yield lock
    for fd in held:
        os.close(fd)


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The lines of this process."""
    lines: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: lines.append(message)])
    return lines


def about(path: str | Path, said: list[str]) -> list[str]:
    """The lines that name a held lock."""
    return [line for line in said if line.startswith(f"another process has {path} locked, and does not let go. ")]


def test_a_held_cursor_costs_one_wait_and_one_line(
    server: StrictCloudWatch, small: SinkConfig, hold: Hold, said: list[str]
) -> None:
    """The leader goes on without the lock, for all that it sends then."""
    writer = Writer(small)
    assert writer.append("before")
    hold(writer.directory.cursor)
    with leading(writer.directory, small):
        for number in range(20):
            assert writer.append(f"{number}")
            until(lambda number=number: f"{number}" in server.messages(), "delivered")  # type: ignore[misc]
    assert len(about(writer.directory.cursor, said)) == 1
    assert survey(writer.directory).pending == 0


def full(server: StrictCloudWatch) -> Writer:
    """A writer whose spool has no room for another segment."""
    writer = Writer(
        quick_config(server.endpoint_url, flusher="external", segment_bytes=SMALL, spool_max_bytes=4 * SMALL)
    )
    assert writer.append("first")
    fill_segment(writer, count=2)
    return writer


def append_until_said(writer: Writer, path: str | Path, said: list[str]) -> None:
    end = time.monotonic() + CHILD_SECONDS
    while not about(path, said):
        writer.append("x" * 500)
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_held_budget_lock_is_named_when_records_are_refused_for_it(
    server: StrictCloudWatch, hold: Hold, said: list[str]
) -> None:
    """Nothing can be evicted then: new records are refused, and the line says why."""
    writer = full(server)
    hold(writer.directory.budget_lock)
    append_until_said(writer, writer.directory.budget_lock, said)
    assert "new records are refused and counted" in about(writer.directory.budget_lock, said)[0]
    assert survey(writer.directory).refused["spool_full"] > 0


def test_held_segments_are_named_when_records_are_refused_for_them(
    server: StrictCloudWatch, hold: Hold, said: list[str]
) -> None:
    """Each segment that might go is open elsewhere."""
    writer = full(server)
    for number in segments(writer.directory):
        hold(segment_path(writer.directory, number), fcntl.LOCK_SH)
    oldest = segment_path(writer.directory, segments(writer.directory)[0])
    append_until_said(writer, oldest, said)
    assert "cannot be evicted" in about(oldest, said)[0]


def test_the_leader_is_not_named_for_what_it_has_open(
    server: StrictCloudWatch, hold: Hold, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It could not send it yet, and why is said as the cause of the loss. To end the leader would not help."""
    monkeypatch.setattr(held_lock.Obstruction, "lasts", lambda *_args, **_named: True)
    writer = full(server)
    hold(writer.directory.leader_lock)
    for number in segments(writer.directory):
        hold(segment_path(writer.directory, number), fcntl.LOCK_SH)
    for _ in range(100):
        writer.append("x" * 500)
    assert survey(writer.directory).refused["spool_full"] > 0
    assert not [line for line in said if "cannot be evicted" in line]


def test_on_a_full_disk_nobody_is_named_for_what_is_open(
    server: StrictCloudWatch, hold: Hold, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may be open in the very process that looks for room. The disk is the cause of the loss."""
    monkeypatch.setattr(held_lock.Obstruction, "lasts", lambda *_args, **_named: True)
    writer = full(server)
    for number in segments(writer.directory):
        hold(segment_path(writer.directory, number), fcntl.LOCK_SH)
    assert not Budget(writer.directory, 4 * SMALL, SMALL).evict(at_least_one=True)
    assert not [line for line in said if "cannot be evicted" in line]


def test_who_evicts_in_turn_is_not_named(
    server: StrictCloudWatch, hold: Hold, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process has the lock each time that this one asks, but it evicts."""
    monkeypatch.setattr(held_lock, "PATIENCE_SECONDS", 0.05)
    writer = full(server)
    hold(writer.directory.budget_lock)
    for number in range(20):
        Path(writer.directory.evictions).write_bytes(b"")
        os.utime(writer.directory.evictions, (number, number))
        writer.append("x" * 500)
        time.sleep(0.01)
    assert not about(writer.directory.budget_lock, said)


def test_a_held_segment_holds_up_only_its_own_records(
    server: StrictCloudWatch, small: SinkConfig, hold: Hold, said: list[str]
) -> None:
    """Shared locks hold up nothing. Behind an exclusive one records wait, and a line says so; all newer ones go on."""
    writer = Writer(small)
    assert writer.append("first")
    older = ["first", *fill_segment(writer, count=3)]
    newest = segments(writer.directory)[-1]
    writer.close()
    for number in segments(writer.directory)[:-1]:
        hold(segment_path(writer.directory, number), fcntl.LOCK_SH)
    held = hold(segment_path(writer.directory, newest))
    newer = [f"{number}" for number in range(10)]
    assert all(writer.append(message) for message in newer)
    with leading(writer.directory, small):
        until(lambda: about(segment_path(writer.directory, newest), said) != [], "said")
        until(lambda: set(newer) <= set(server.messages()), "the newer ones")
        assert set(server.messages()) == {*older[:-1], *newer}
        fcntl.flock(held, fcntl.LOCK_UN)
        until(lambda: set(server.messages()) == {*older, *newer}, "what was held")


def messages_of(block: Block | None) -> list[str]:
    return [event.message for each in block.frames if (event := frame.event_of(each))] if block else []


def read_all(reader: RingReader) -> list[str]:
    return [message for block in iter(reader.read, None) for message in messages_of(block)]


def test_a_segment_that_is_locked_is_not_overtaken(small: SinkConfig, hold: Hold) -> None:
    """An evictor counts it, and is slow. It may be killed, and the records are read after all. Invariant 3."""
    writer = Writer(small)
    assert writer.append("first")
    messages = ["first", *fill_segment(writer, count=4)]
    locked = {number: hold(segment_path(writer.directory, number)) for number in (2, 4)}
    reader = RingReader(writer.directory, {})
    found = []
    for number in (2, 4):
        found += read_all(reader)
        assert found == messages[: len(found)]
        assert len(found) < len(messages)
        assert reader.has_more, "a leader that drains does not leave now"
        fcntl.flock(locked[number], fcntl.LOCK_UN)
    assert found + read_all(reader) == messages
    assert not reader.has_more
    reader.close()


def test_an_evictor_that_lets_go_now_and_then_holds_up_nothing(small: SinkConfig, hold: Hold) -> None:
    """It counts for 10 ms at a time. One look is enough to come in between."""
    writer = Writer(small)
    assert writer.append("first")
    messages = ["first", *fill_segment(writer)]
    held = hold(segment_path(writer.directory, 1))
    letting_go = threading.Timer(0.005, fcntl.flock, (held, fcntl.LOCK_UN))
    letting_go.start()
    reader = RingReader(writer.directory, {})
    assert read_all(reader) == messages
    letting_go.join()
    reader.close()


def test_evictors_that_are_always_ahead_hold_up_nothing_for_long(
    small: SinkConfig, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each segment is locked just before the reader comes to it, and goes; no single one for 2 s."""
    now = [0.0]
    monkeypatch.setattr(held_lock, "monotonic", lambda: now[0])
    writer = Writer(small)
    assert writer.append("first")
    fill_segment(writer, count=5)
    reader = RingReader(writer.directory, {})
    for number in (1, 2, 3):
        held = hold(segment_path(writer.directory, number))
        assert read_all(reader) == []
        now[0] += 0.9 * held_lock.PATIENCE_SECONDS / 2
        fcntl.flock(held, fcntl.LOCK_UN)
        segment.remove(writer.directory.ring, number)
    hold(segment_path(writer.directory, 4))
    assert read_all(reader) != [], "the newer ones"
    reader.close()


def test_the_lane_does_not_wait_for_a_segment_that_is_locked(
    small: SinkConfig, hold: Hold, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its records may leave before the backlog in any case."""
    monkeypatch.setattr(segment, "BACKLOG_BYTES", SMALL)
    old = Writer(small)
    assert old.append("first")
    fill_segment(old, count=3)
    new = Writer(small)
    new._ring.close()
    assert segment.create(old.directory.ring, segments(old.directory)[-1] + 1, bytes(16), 0)
    live = Writer(small)
    assert live.append("live")
    hold(segment_path(old.directory, 1))
    reader = RingReader(old.directory, {})
    assert read_all(reader) == ["live"]
    reader.close()


def test_a_chunk_that_is_gone_on_with_waits_for_its_segment(small: SinkConfig, hold: Hold) -> None:
    """If it did not, its newer records would be sent without these."""
    writer = Writer(small)
    assert writer.append("first")
    fill_segment(writer)
    reader = RingReader(writer.directory, {})
    block = reader.read()
    assert block is not None
    reader.close()
    held = hold(segment_path(writer.directory, 1))
    letting_go = threading.Timer(0.2, fcntl.flock, (held, fcntl.LOCK_UN))
    letting_go.start()
    assert messages_of(reader.read_to(block.key, block.end)) == messages_of(block)
    letting_go.join()
    reader.close()


@pytest.mark.parametrize("how", [fcntl.LOCK_SH, fcntl.LOCK_EX], ids=["shared", "exclusive"])
def test_a_held_attached_lock_holds_up_nothing(
    server: StrictCloudWatch, small: SinkConfig, hold: Hold, said: list[str], how: int
) -> None:
    """Nobody knows any more who is the last; records are appended and delivered."""
    writer = Writer(small)
    hold(writer.directory.attached_lock, how)
    with leading(writer.directory, small):
        assert writer.append("one")
        until(lambda: server.messages() == ["one"], "delivered")
    assert not said


def test_held_dead_letters_are_waited_for_once(tmp_path: Path, hold: Hold, said: list[str]) -> None:
    """For ten seconds, with a line after two; then each letter is kept at once, without the lock."""
    letters = DeadLetters(str(tmp_path / "dead_letters.jsonl"))
    hold(tmp_path)
    began = time.monotonic()
    for number in range(20):
        letters.add("too_old", "why", [Event(number, 1, number, f"{number}")])
    assert time.monotonic() - began < 2 * dead_letter.LOCK_SECONDS
    assert len((tmp_path / "dead_letters.jsonl").read_text().splitlines()) == 20
    assert len(about(tmp_path, said)) == 1


def lead_once(server: StrictCloudWatch, config: SinkConfig) -> Writer:
    """A spool that was led before, in order."""
    writer = Writer(config)
    assert writer.append("before")
    with leading(writer.directory, config):
        until(lambda: server.messages() == ["before"], "delivered")
    return writer


@pytest.mark.parametrize("is_new", [True, False], ids=["new spool", "led before"])
def test_a_held_lease_is_named_by_who_stands(
    server: StrictCloudWatch, small: SinkConfig, hold: Hold, said: list[str], is_new: bool
) -> None:
    """Nobody delivers while a process that is no leader has leader.lock."""
    writer = Writer(small) if is_new else lead_once(server, small)
    hold(writer.directory.leader_lock)
    assert writer.append("one")
    candidate = Election(writer.directory, kind="service")
    candidate.start()
    try:
        until(lambda: about(writer.directory.leader_lock, said) != [], "said")
    finally:
        candidate.leave(0.0)
        assert candidate.has_ended(CHILD_SECONDS)


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "r+")
fcntl.flock(file, fcntl.LOCK_EX)
print("held", flush=True)
sys.stdin.read()
"""


def test_a_held_lease_is_named_soon_where_the_kernel_knows_who_has_it(
    server: StrictCloudWatch, small: SinkConfig, spawn: Spawn, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last leader was killed a moment ago, so its mark is young: another process has the lock, and is none that
    leads. If the kernel names the leader, it may be in a request, and is left alone."""
    monkeypatch.setattr(lease, "_SILENT_SECONDS", 0.0)
    monkeypatch.setattr(heartbeat, "FRESH_SECONDS", 1000.0)
    writer = lead_once(server, small)
    path = writer.directory.leader_lock
    holder = spawn(HOLDER, path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    Heartbeat(writer.directory).begin()
    assert writer.append("one")
    published = leader_state.read(writer.directory)
    assert published is not None
    published.pid = holder.pid
    files.replace(writer.directory.leader_state, msgspec.json.encode(published))
    lease.watch_holder(writer.directory, 1.0)
    time.sleep(held_lock.PATIENCE_SECONDS)
    lease.watch_holder(writer.directory, 1.0)
    assert not about(path, said)
    published.pid = os.getpid()
    files.replace(writer.directory.leader_state, msgspec.json.encode(published))
    until(lambda: lease.watch_holder(writer.directory, 1.0) or about(path, said) != [], "said")


def test_who_has_no_descriptor_left_cannot_tell_who_has_the_lease(
    server: StrictCloudWatch, small: SinkConfig, hold: Hold, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """To look takes some. A writer looks after it has appended, and its record is not lost for that."""
    monkeypatch.setattr(lease, "_SILENT_SECONDS", 0.0)
    writer = lead_once(server, small)
    Heartbeat(writer.directory).begin()
    hold(writer.directory.leader_lock)
    assert writer.append("one")
    limits, taken = resource.getrlimit(resource.RLIMIT_NOFILE), list[int]()
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, limits[1]))
    try:
        with contextlib.suppress(OSError):
            while True:
                taken.append(os.open(os.devnull, os.O_RDONLY))
        for _free in range(4):
            lease.watch_holder(writer.directory, 1.0)
            os.close(taken.pop())
    finally:
        for fd in taken:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert not said


def test_a_held_lease_is_named_by_who_logs(server: StrictCloudWatch, hold: Hold, said: list[str]) -> None:
    """A writer that relies on a flusher, and starts none because one seems to be there."""
    writer = Writer(quick_config(server.endpoint_url))
    hold(writer.directory.leader_lock)
    end = time.monotonic() + CHILD_SECONDS
    while not about(writer.directory.leader_lock, said):
        assert writer.append("one")
        writer._ring.check_due_ns = 0
        assert time.monotonic() < end
        time.sleep(0.05)
    assert "They wait there as long as there is room. " in about(writer.directory.leader_lock, said)[0]
    presence.this.forget_below(writer.directory.root)


def test_a_leader_that_waits_for_an_answer_is_not_named(
    server: StrictCloudWatch, small: SinkConfig, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It shows no sign of life meanwhile, but it has left its mark when it began."""
    monkeypatch.setattr(held_lock, "PATIENCE_SECONDS", 0.05)
    writer = Writer(small)
    assert writer.append("one")
    server.faults.hang(2, 1, action="PutLogEvents")
    candidate = Election(writer.directory, kind="service")
    with leading(writer.directory, small):
        candidate.start()
        until(lambda: server.messages() == ["one"], "delivered")
    candidate.leave(0.0)
    assert candidate.has_ended(CHILD_SECONDS)
    assert not about(writer.directory.leader_lock, said)


def test_a_leader_is_not_named_because_the_clock_has_jumped(
    server: StrictCloudWatch, small: SinkConfig, spawn: Spawn, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The host was suspended, or its clock set ahead, while the leader waits for an answer: its files look old at once.
    It is silent only if it is for the time of a request by a clock that does not jump."""
    now = 1000.0
    monkeypatch.setattr(held_lock, "monotonic", lambda: now)
    request_seconds = 13.0
    writer = lead_once(server, small)
    holder = spawn(HOLDER, writer.directory.leader_lock)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    Heartbeat(writer.directory).begin()
    published = leader_state.read(writer.directory)
    assert published is not None
    published.pid = holder.pid
    files.replace(writer.directory.leader_state, msgspec.json.encode(published))
    assert writer.append("one")

    def jump(seconds: float) -> None:
        for path in (writer.directory.leader_host, writer.directory.cursor, writer.directory.leader_state):
            os.utime(path, (time.time() - seconds,) * 2)

    with freezegun.freeze_time("2100-01-01"):  # an application's tests may do that, and no file looks older for it
        lease.watch_holder(writer.directory, request_seconds)
        now += 2 * request_seconds
        lease.watch_holder(writer.directory, request_seconds)
    assert not said
    now = 1000.0
    jump(3600)
    for now in (1000.0, 1003.0, 1000.0 + request_seconds - 0.1):  # noqa: B007
        lease.watch_holder(writer.directory, request_seconds)
    assert not said
    jump(7200)
    lease.watch_holder(writer.directory, request_seconds)
    now += request_seconds - 0.1
    lease.watch_holder(writer.directory, request_seconds)
    assert not said, "it has shown itself meanwhile"
    now += 0.2
    lease.watch_holder(writer.directory, request_seconds)
    assert len(about(writer.directory.leader_lock, said)) == 1


def test_a_held_flusher_lock_is_named(server: StrictCloudWatch, hold: Hold, said: list[str], tmp_path: Path) -> None:
    """No flusher starts while a process that is none has its lock."""
    writer = Writer(quick_config(server.endpoint_url))
    path = flusher_lock.path_of(writer.directory.root)
    hold(path)
    os.utime(path, (1, 1))
    end = time.monotonic() + CHILD_SECONDS
    while not about(path, said):
        assert writer.append("one")
        writer._ring.check_due_ns = 0
        assert time.monotonic() < end
        time.sleep(0.05)
    assert re.search(r"does not lead .*`cwsink flush --once .*` sends them", about(path, said)[0])
    presence.this.forget_below(writer.directory.root)
