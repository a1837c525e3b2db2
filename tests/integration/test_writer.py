"""The writer: what it takes, what it refuses, what it counts, and what it does beside an append."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict, replace

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.flusher.publisher import LeaderState
from cwsink.frontends import presence, turn
from cwsink.frontends import writer as writer_module
from cwsink.frontends.turn import Turn
from cwsink.spool import attachment, directory, disk, flusher_lock, frame, leader_state, record, segment
from cwsink.spool import survey as survey_module
from cwsink.spool.attachment import Attachment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.open_directory import OpenDirectory
from cwsink.spool.ring import Ring
from cwsink.spool.survey import events, survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import Clock, deliver, leading, on_write, segment_path, segments, until
from tests.harness.support import CHILD_SECONDS, Unresolved, finish, quick_config, told_lost


@pytest.fixture
def external(server: StrictCloudWatch) -> SinkConfig:
    """A leader only where the test runs one."""
    return quick_config(server.endpoint_url, flusher="external")


def pending(writer: Writer) -> list[str]:
    return [event.message for event in events(writer.directory)]


# What is a record.


@pytest.mark.parametrize(
    ("message", "spooled"),
    [
        ("plain", "plain"),
        ("späte Züge \U0001f682", "späte Züge \U0001f682"),
        ("x", "x"),
        ("two\nlines\0and a NUL", "two\nlines\0and a NUL"),
        (b"bytes \xe2\x82\xac", "bytes €"),
        (b"stray \xff byte", "stray \\xff byte"),
        (bytearray(b"array"), "array"),
        (memoryview(b"view"), "view"),
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
    ],
)
def test_any_text_is_spooled_as_legal_text(external: SinkConfig, message: Any, spooled: str) -> None:
    """Text and bytes arrive as they are; what is not legal Unicode is kept as escapes."""
    writer = Writer(external)
    assert writer.append(message)
    assert pending(writer) == [spooled]


@pytest.mark.parametrize("message", ["", b"", None, 7, ["list"], object()])
def test_what_is_no_text_is_refused_and_counted(external: SinkConfig, message: Any) -> None:
    """append answers False and never raises; the reason is counted."""
    writer = Writer(external)
    assert writer.append(message) is False
    assert writer.append("text")
    assert pending(writer) == ["text"]
    assert survey(writer.directory).refused == {"unencodable": 1}


def test_a_text_longer_than_a_frame_is_refused_and_counted(external: SinkConfig) -> None:
    """16 MiB is the most a frame carries; an oversize event below that is kept for the dead letters."""
    writer = Writer(quick_config(external.endpoint_url, flusher="external", segment_bytes=16 * 1024 * 1024))
    assert writer.append("x" * (16 * 1024 * 1024)) is False
    assert writer.append("ä" * (8 * 1024 * 1024)) is False
    assert writer.append("x" * (16 * 1024 * 1024 - 100))
    assert survey(writer.directory).refused == {"unencodable": 2}
    assert survey(writer.directory).pending == 1


@pytest.mark.parametrize("timestamp", [None, -1, 1 << 53, 1 << 70, 1.5, "now", True, float("nan")])
def test_what_is_no_time_is_now(external: SinkConfig, monkeypatch: pytest.MonkeyPatch, timestamp: Any) -> None:
    """An event without a time CloudWatch could take gets the time of the append."""
    Clock(monkeypatch)
    writer = Writer(external)
    assert writer.append("odd", timestamp)
    assert writer.append("now")
    odd, now = events(writer.directory)
    assert odd.timestamp_ms == now.timestamp_ms or (timestamp is True and odd.timestamp_ms == 1)


def test_an_object_that_cannot_be_asked_what_it_is_is_no_text_and_no_time(external: SinkConfig) -> None:
    """As any other object: as a message it is refused and counted, and as a time it is now."""
    writer = Writer(external)
    before_ms = int(time.time() * 1000)
    assert writer.append("first")
    odd: Any = Unresolved()
    assert writer.append(odd) is False
    assert writer.append("text", odd)
    assert [event.message for event in events(writer.directory) if event.timestamp_ms >= before_ms] == ["first", "text"]
    assert survey(writer.directory).refused == {"unencodable": 1}


@pytest.mark.parametrize("timestamp", [0, 1, 1_700_000_000_000, (1 << 53) - 1])
def test_an_events_own_time_is_kept(external: SinkConfig, timestamp: int) -> None:
    """The time given is the time spooled."""
    writer = Writer(external)
    assert writer.append("old", timestamp)
    assert next(events(writer.directory)).timestamp_ms == timestamp


def test_the_sequence_has_no_gap_that_is_not_a_loss(external: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """(producer, sequence) counts every record; one that was refused is the gap."""
    writer = Writer(external)
    assert writer.append("0")
    assert writer.append("1 \ud800")
    assert writer.append(b"2")
    with monkeypatch.context() as broken:
        on_write(broken, lambda fd, data: os.write(fd, data[:5]))
        assert not writer.append("3")
    until(lambda: writer.append("works again"), "room")
    found = list(events(writer.directory))
    sequences = [event.sequence for event in found]
    assert sequences[:3] == [0, 1, 2]
    assert len({event.producer for event in found}) == 1
    lost = sequences[-1] + 1 - len(sequences)
    assert lost == survey(writer.directory).refused["spool_full"] >= 1


def test_two_writers_are_two_producers(external: SinkConfig) -> None:
    """Each incarnation draws an id of its own."""
    first, second = Writer(external), Writer(external)
    assert first.append("one")
    assert second.append("two")
    assert len({event.producer for event in events(first.directory)}) == 2


# Order and times.


def test_a_clock_that_is_set_back_disturbs_nothing(external: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A year back, then forward: every append lands, in order of arrival."""
    clock = Clock(monkeypatch)
    writer = Writer(external)
    texts = []
    for step in (0, -365 * 86_400, 3 * 3_600, 400 * 86_400, -1):
        clock.advance(float(step))
        texts += [f"after {step}", f"again after {step}"]
        assert writer.append(texts[-2])
        assert writer.append(texts[-1])
    assert pending(writer) == texts


def test_a_clock_before_1970_loses_nothing(external: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """No time of a segment or record can be negative. Those count as of 1970, and no quicker way leads around that."""
    Clock(monkeypatch).advance(-80 * 365 * 86_400.0)
    writer = Writer(external)
    assert all([writer.append("one"), writer.append("two", -5), writer.append("three")])
    assert pending(writer) == ["one", "two", "three"]
    assert survey(writer.directory).oldest_pending_ms == 0


# The spool directory.


def test_the_spool_is_private(external: SinkConfig) -> None:
    """Directories 0700, files 0600, whatever the umask."""
    previous = os.umask(0)
    try:
        writer = Writer(external)
        assert writer.append("secret")
        deliver(writer.directory, external)
    finally:
        os.umask(previous)
    for path in [Path(writer.directory.path), *Path(writer.directory.path).rglob("*")]:
        expected = 0o700 if path.is_dir() else 0o600
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_a_removed_spool_is_made_anew_with_the_recent_records(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What was appended since the last look is carried over with its ids; it is said once on stderr."""
    clock = Clock(monkeypatch)
    writer = Writer(external)
    texts = [f"before {number}" for number in range(20)]
    assert all(writer.append(text) for text in texts)
    deliver(writer.directory, external)
    shutil.rmtree(writer.directory.path)
    recent = [f"into the void {number}" for number in range(50)]
    assert all(writer.append(text) for text in recent)
    clock.advance(2.0)
    assert writer.append("finds out")
    assert capfd.readouterr().err.count("was removed or moved. It was made anew") == 1
    found = list(events(writer.directory))
    assert [event.message for event in found][-51:] == [*recent, "finds out"]
    assert [event.sequence for event in found][-51:] == list(range(20, 71))
    deliver(writer.directory, external)
    assert server.messages()[:20] == texts
    assert server.messages()[-51:] == [*recent, "finds out"]


def test_each_removal_of_a_spool_costs_no_record_of_the_last_second_and_is_said(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """However many records a second there are, and so looks; also if somebody removes the spool every two seconds."""
    clock = Clock(monkeypatch)
    monkeypatch.setattr(writer_module, "_REOPEN_SECONDS", 0.0)
    writer = Writer(replace(external, segment_bytes=1 << 20))
    for removal in range(3):
        texts = [f"{removal} {number}" for number in range(500)]
        for text in texts:
            assert writer.append(text)
            clock.advance(0.004)
        shutil.rmtree(writer.directory.path)
        clock.advance(1.0)
        assert writer.append("finds out")
        assert writer.append("looks")
        found = [event.message for event in events(writer.directory)]
        assert found[-252:-2] == texts[-250:]
    assert capfd.readouterr().err.count("was removed or moved. It was made anew") == 3


def test_who_stands_for_election_does_not_make_a_removed_spool(external: SinkConfig) -> None:
    """The lock's library would make the directory, with the umask's mode, and the writer then refuse it."""
    previous = os.umask(0o002)
    try:
        writer = Writer(external)
        assert writer.append("before")
        shutil.rmtree(writer.directory.path)
        with pytest.raises(FileNotFoundError):
            Lease(writer.directory).try_acquire()
        assert not os.path.exists(writer.directory.path)
        writer._ring.check_due_ns = 0
        assert writer.append("after")
    finally:
        os.umask(previous)
    assert pending(writer)[-1] == "after"


@pytest.mark.parametrize("what", ["spool", "root"])
def test_a_removed_spool_is_made_anew_while_a_flusher_leads(server: StrictCloudWatch, what: str) -> None:
    """The leader is fenced by its lock file, which is gone, and leads the new spool. With the root the flusher's own
    lock is gone: it ends, and a new one is started."""
    writer = Writer(quick_config(server.endpoint_url))
    assert writer.append("before")
    assert writer.flush(30)
    shutil.rmtree(writer.directory.path if what == "spool" else writer.directory.root)
    writer._ring.check_due_ns = 0
    assert writer.append("after")
    assert writer.flush(30)
    assert server.messages()[0] == "before"
    assert server.messages()[-1] == "after"
    senders = [request.sender for request in server.requests]
    assert len(set(senders)) == (1 if what == "spool" else 2)
    assert senders == sorted(senders, key=senders.index), "the one that has ended has sent again"


def test_threads_wait_for_the_one_that_opens_another_spool(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No record is refused because another thread is about to open the spool anew; a signal handler does not wait."""
    writer = Writer(external)
    assert writer.append("before")
    shutil.rmtree(writer.directory.path)
    writer._ring.check_due_ns = 0
    monkeypatch.setattr(writer_module, "_REOPEN_WAIT_SECONDS", CHILD_SECONDS)
    monkeypatch.setattr(turn, "_LEFT_BEHIND_SECONDS", CHILD_SECONDS)
    answers: dict[str, bool] = {}
    others = [threading.Thread(target=lambda: answers.update(other=writer.append("other"))) for _ in range(2)]
    open_again, take = Writer._open_again, Turn.take
    waiting: list[int] = []

    def noted(self: Turn, **words: float) -> Any:
        waiting.append(threading.get_ident())
        return take(self, **words)

    def while_others_log(self: Writer, old: Ring) -> None:
        for number, thread in enumerate(others):
            old.check_due_ns = 0  # while one thread looks at the segment, another one may still append to it
            thread.start()
            until(lambda number=number: len(set(waiting)) == number + 2, "another thread waits")
        answers["handler"] = self.append("a signal handler's")
        open_again(self, old)

    monkeypatch.setattr(Turn, "take", noted)
    monkeypatch.setattr(Writer, "_open_again", while_others_log)
    assert writer.append("first")
    for thread in others:
        thread.join(CHILD_SECONDS)
    assert answers == {"other": True, "handler": False}
    assert sorted(pending(writer)) == ["before", "first", "other", "other"]


def test_what_threads_append_while_the_spool_is_made_anew_is_not_lost(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that writes into the old segment after the salvage: its record is carried over too."""
    writer = Writer(external)
    assert writer.append("before")
    old_ring = writer._ring
    shutil.rmtree(writer.directory.path)
    open_for = directory.open_for

    def meanwhile(*args: Any) -> Any:
        monkeypatch.setattr(directory, "open_for", open_for)
        # As another thread that chose the old ring before: it has looked less than a second ago.
        assert old_ring.attached is not None
        payload = record.encode((1_700_000_000_000, writer._producer, next(writer._sequence), "in the middle"))
        os.write(old_ring.attached.fd, frame.encode(payload, old_ring.attached.salt))
        return open_for(*args)

    monkeypatch.setattr(directory, "open_for", meanwhile)
    old_ring.check_due_ns = 0
    assert writer.append("finds out")
    assert sorted(pending(writer)) == ["before", "finds out", "in the middle"]


def test_a_spool_that_cannot_be_made_anew_refuses_and_counts(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No exception reaches the application; when the place is usable again, so is the writer."""
    clock = Clock(monkeypatch)
    writer = Writer(external)
    assert writer.append("before")
    root = Path(writer.directory.path).parent
    shutil.rmtree(root)
    root.write_text("in the way")
    clock.advance(2.0)
    assert [writer.append("refused") for _ in range(3)] == [False] * 3
    root.unlink()
    monkeypatch.setattr(writer_module, "monotonic", lambda: 1e9)
    clock.advance(2.0)
    assert writer.append("after")
    assert pending(writer) == ["before", "after"]
    assert survey(writer.directory).refused == {"io_error": 3}


# Flush and close.


def test_flush_says_whether_all_is_settled(external: SinkConfig, server: StrictCloudWatch) -> None:
    """False while nobody delivers; True once the leader has committed, or there is nothing."""
    writer = Writer(external)
    assert writer.flush(0) is True
    assert writer.append("one")
    assert writer.flush(0.1) is False
    deliver(writer.directory, external)
    assert writer.flush(0) is True
    assert server.messages() == ["one"]


def test_flush_waits_for_what_other_writers_appended_too(external: SinkConfig, server: StrictCloudWatch) -> None:
    """A record of another writer, in the same spool, is part of what flush waits for."""
    mine, other = Writer(external), Writer(external)
    assert other.append("theirs")
    assert mine.flush(0) is False
    with leading(mine.directory, external):
        assert mine.flush(30) is True
    assert server.messages() == ["theirs"]


def test_all_that_this_process_has_appended_is_waited_for(server: StrictCloudWatch) -> None:
    """Also what a writer has appended that is no more, as `cwsink.drain` does."""
    assert Writer(quick_config(server.endpoint_url)).append("of a writer that is gone")
    assert presence.this.flush(30)
    assert server.messages() == ["of a writer that is gone"]


def test_a_message_that_no_reader_would_take_is_refused_at_every_append(external: SinkConfig) -> None:
    """The second one goes the quick way: it is refused and counted as the first one, and nothing else is lost."""
    writer = Writer(external)
    long = "x" * (record.MAX_PAYLOAD_BYTES + 1)
    assert writer.append("before")
    assert not writer.append(long)
    assert writer.append("between")
    assert not writer.append(long)
    assert writer.append("after")
    assert [event.message for event in events(writer.directory)] == ["before", "between", "after"]
    assert survey(writer.directory).refused == {"unencodable": 2}


@pytest.mark.parametrize("trouble", [MemoryError(), OSError(5, "Input/output error"), struct.error("size")])
def test_no_exception_of_a_long_append_reaches_the_application(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    """Also outside of the write itself: it is refused and counted."""

    def fail(*_: object, **__: object) -> None:
        raise trouble

    writer = Writer(external)
    assert writer.append("before")
    monkeypatch.setattr(frame, "encode", fail)
    assert not writer.append("x" * 100_000)
    monkeypatch.undo()
    assert writer.append("after")
    assert survey(writer.directory).refused == {"internal_error": 1}


@pytest.mark.parametrize("spool", ["there", "removed"])
@pytest.mark.parametrize("trouble", [MemoryError(), OSError(24, "Too many open files"), KeyError("a bug")])
def test_a_record_in_the_spool_is_no_loss_whatever_cannot_be_looked_at_after_it(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch, trouble: Exception, spool: str
) -> None:
    """Who were told False would log it once more. The next look is as good."""
    looked = []

    def fail(self: presence.Presence) -> None:
        looked.append(self)
        raise trouble

    writer = Writer(external)
    assert writer.append("before")
    if spool == "removed":
        shutil.rmtree(writer.directory.path)
    monkeypatch.setattr(presence.Presence, "look", fail)
    writer._ring.check_due_ns = 0
    assert writer.append("without a look")
    monkeypatch.undo()
    assert looked
    assert writer.append("after")
    assert pending(writer) == ["before", "without a look", "after"]
    assert survey(writer.directory).refused == {}


@pytest.mark.parametrize("trouble", [MemoryError(), OSError(5, "Input/output error"), KeyError("a bug")])
@pytest.mark.parametrize("step", [(leader_state, "is_synced"), (disk, "sync")], ids=lambda step: str(step[1]))
def test_a_record_in_the_spool_is_no_loss_whatever_its_sync_raises(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch, trouble: Exception, step: tuple[Any, str]
) -> None:
    """The next append syncs what this one could not."""

    def fail(*_: object) -> None:
        raise trouble

    writer = Writer(SinkConfig(**{**asdict(external), "durability": "host"}))
    monkeypatch.setattr(*step, fail)
    assert writer.append("not synced")
    monkeypatch.undo()
    assert writer.append("after")
    assert pending(writer) == ["not synced", "after"]
    assert survey(writer.directory).refused == {}


def test_what_is_refused_is_counted_once_whatever_cannot_be_looked_at_after_it(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count does not wait for another append."""

    def fail(*_: object) -> None:
        raise OSError(5, "Input/output error")

    writer = Writer(external)
    assert writer.append("before")
    monkeypatch.setattr(presence.Presence, "look", fail)
    on_write(monkeypatch, fail)
    assert not writer.append("refused")
    monkeypatch.undo()
    assert survey(writer.directory).refused == {"io_error": 1}


def test_a_spool_that_nobody_serves_delays_no_other(server: StrictCloudWatch, tmp_path: Path) -> None:
    """All are asked to hurry at once, and each is waited for beside the others."""
    url = server.endpoint_url
    stuck = Writer(quick_config(url, flusher="external", spool_directory=str(tmp_path / "stuck")))
    slow = Writer(quick_config(url, batch_size=1000, batch_timeout_seconds=60))
    assert stuck.append("nobody comes")
    assert slow.append("delivered at once")
    assert not presence.flush([(each.directory, each.config) for each in (stuck, slow)], 5)
    assert server.messages() == ["delivered at once"]


def test_flush_does_not_wait_for_what_comes_later(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Records appended after the call began are not waited for."""
    writer = Writer(external)
    assert writer.append("before")
    ends = survey_module.ends

    def and_then(spool: SpoolDirectory) -> Any:
        found = ends(spool)
        deliver(writer.directory, external)
        assert writer.append("later")
        return found

    monkeypatch.setattr(survey_module, "ends", and_then)
    assert writer.flush(0) is True


def test_a_closed_writer_opens_again(external: SinkConfig) -> None:
    """close lets go of the segment; a later append attaches anew, as the same producer."""
    writer = Writer(external)
    assert writer.append("one")
    writer.close()
    assert writer._ring.attached is None
    writer.close()
    assert writer.append("two")
    assert [(event.sequence, event.message) for event in events(writer.directory)] == [(0, "one"), (1, "two")]


def test_close_tells_of_what_was_refused(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Refusals that no marker told of yet are marked when the writer is closed."""
    writer = Writer(external)
    assert writer.append("one")
    for _ in range(5):
        assert not writer.append("")
    writer.close()
    assert survey(writer.directory).refused == {"unencodable": 5}
    deliver(writer.directory, external)
    assert told_lost(server.messages(), "unencodable") == 5


EXIT = """
    from cwsink import Writer
    from tests.harness.support import quick_config

    writer = Writer(quick_config("http://127.0.0.1:1", flusher="external"))
    assert writer.append("one")
    for _ in range(5):
        assert not writer.append("")
"""


def test_a_process_that_ends_tells_of_what_it_was_refused(external: SinkConfig, spawn: Spawn) -> None:
    """The last counts of a process go into the spool at its exit."""
    config = quick_config("http://127.0.0.1:1", flusher="external")
    finish(spawn(EXIT))
    assert survey(Writer(config).directory).refused == {"unencodable": 5}


# Being attached.


def test_of_two_threads_that_append_first_at_once_one_attachment_remains(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First appends of two threads: one presence, one mark, so that the last one out knows it is."""
    config = quick_config(server.endpoint_url)
    first, second = Writer(config), Writer(config)
    real = Attachment.__init__

    def meanwhile(self: Attachment, spool: directory.SpoolDirectory) -> None:
        monkeypatch.setattr(Attachment, "__init__", real)
        assert second.append("second")
        real(self, spool)

    monkeypatch.setattr(Attachment, "__init__", meanwhile)
    assert first.append("first")
    assert len(presence.this.presences()) == 1
    assert first.flush(30)
    assert presence.this._presences.pop(first.directory.path).leave(), "a mark was left behind"


def test_a_writer_that_never_appends_starts_nothing(external: SinkConfig) -> None:
    """No thread, no process, no mark, no segment before the first append."""
    before = threading.active_count()
    writer = Writer(quick_config("http://127.0.0.1:1"))
    assert threading.active_count() == before
    assert not presence.this.presences()
    assert not flusher_lock.is_taken(writer.directory.root)
    assert not attachment.is_anyone_attached(writer.directory)
    assert segments(writer.directory) == []


# durability="host".


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The size that the newest segment had at each fdatasync of it by this process."""
    sizes: list[int] = []
    sync = disk.sync

    def note(fd: int) -> None:
        sizes.append(os.fstat(fd).st_size)
        sync(fd)

    monkeypatch.setattr(disk, "sync", note)
    return sizes


def lead_at(writer: Writer, seconds_ago: float) -> None:
    """Make the leader.json of a leader that synced the spool then."""
    moment = time.time() - seconds_ago
    LeaderState(writer.directory, 1, "own", 1).synced()
    os.utime(writer.directory.leader_state, (moment, moment))


@pytest.mark.parametrize("seconds_ago", [None, 3.5, 86_400.0, -86_400.0])
def test_under_host_durability_each_append_is_synced_while_nobody_leads(
    server: StrictCloudWatch, synced: list[int], seconds_ago: float | None
) -> None:
    """It may be the last of a burst. leader.json from the future, after the clock was set back, is no sign of life."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external", durability="host", segment_bytes=4096))
    if seconds_ago is not None:
        lead_at(writer, seconds_ago)
    for number in range(40):
        assert writer.append(f"{number} {'x' * 300}")
        newest = segment_path(writer.directory, segments(writer.directory)[-1])
        assert newest.stat().st_size in synced, f"{number} is not synced"
    assert len(segments(writer.directory)) > 2


def test_under_host_durability_names_are_synced_while_nobody_leads(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new segment is lost with its records if its name is: the directories are synced with its first record."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external", durability="host", segment_bytes=4096))
    names: list[str] = []
    monkeypatch.setattr(OpenDirectory, "sync", lambda held: names.append(held.path))
    assert writer.append("first")
    assert names == [writer.directory.ring, writer.directory.path, writer.directory.root]
    while len(segments(writer.directory)) < 2:
        assert writer.append("x" * 300)
    assert names.count(writer.directory.ring) == 2


@pytest.mark.parametrize("rotations", [1, 2])
def test_under_host_durability_a_thread_syncs_the_segment_that_it_wrote_to(
    server: StrictCloudWatch, synced: list[int], monkeypatch: pytest.MonkeyPatch, rotations: int
) -> None:
    """It has chosen a segment, and other threads go on to the next ones, and sync those, before it writes."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external", durability="host", segment_bytes=4096))
    assert writer.append("first")
    has_chosen, may_write, answers = threading.Event(), threading.Event(), []

    def write(fd: int, data: bytes) -> int:
        if threading.current_thread() is late:
            has_chosen.set()
            assert may_write.wait(CHILD_SECONDS)
        return os.write(fd, data)

    late = threading.Thread(target=lambda: answers.append(writer.append("late")))
    on_write(monkeypatch, write)
    late.start()
    assert has_chosen.wait(CHILD_SECONDS)
    while len(segments(writer.directory)) <= rotations:
        assert writer.append("x" * 300)
    synced.clear()
    may_write.set()
    late.join()
    assert answers == [True]
    assert pending(writer).index("late") < len(pending(writer)) - 1
    oldest = segment_path(writer.directory, 1)
    assert b"late" in oldest.read_bytes()
    assert oldest.stat().st_size in synced


def test_under_host_durability_what_could_not_be_synced_is_with_the_next_append(
    server: StrictCloudWatch, synced: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sync of all segments has failed that one thread owes: the next append makes up for it."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external", durability="host", segment_bytes=4096))
    while len(segments(writer.directory)) < 2:
        assert writer.append("x" * 300)

    def fail(ring: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(segment, "sync", fail)
        with pytest.raises(OSError, match="Input/output"):
            writer._ring.sync(None)
    synced.clear()
    assert writer.append("next")
    assert segment_path(writer.directory, 1).stat().st_size in synced


def test_under_host_durability_a_writer_leaves_it_to_the_leader(server: StrictCloudWatch, synced: list[int]) -> None:
    """While leader.json is touched no append syncs; soon after it is not, each one does."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external", durability="host"))
    lead_at(writer, 0.0)
    for number in range(100):
        assert writer.append(f"{number}")
    assert not synced
    lead_at(writer, 4.0)
    time.sleep(0.2)
    assert writer.append("alone")
    assert synced


def test_process_durability_never_syncs(external: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The default survives the process, not the host's power: no fdatasync at all."""
    monkeypatch.setattr(disk, "sync", None)
    writer = Writer(external)
    assert all(writer.append(f"{number}") for number in range(100))


def test_an_append_leaves_one_frame_and_no_other_write(external: SinkConfig) -> None:
    """One record grows the segment by exactly its frame."""
    writer = Writer(external)
    assert writer.append("warm up")
    path = segment_path(writer.directory, 1)
    before = path.stat().st_size
    assert writer.append("0123456789")
    grown = path.stat().st_size - before
    assert 20 + 10 < grown < 20 + 10 + 32
