"""What the leader reads, and every kind of damage that a ring can have."""

from __future__ import annotations

import contextlib
import errno
import gc
import os
import shutil
import struct
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import msgspec
import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.cli import flush, main
from cwsink.config import SinkConfig
from cwsink.flusher.adoption import give_back
from cwsink.frontends import presence
from cwsink.spool import budget, cursor, disk, frame, history, orphans, reader, record, segment
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.follower import Follower
from cwsink.spool.open_segment import OpenSegment
from cwsink.spool.reader import RingReader
from cwsink.spool.segment import AttachedSegment
from cwsink.spool.survey import Backlog, ends, has_pending, survey, unsettled
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.bad_sectors import PAGE_BYTES, unreadable
from tests.harness.interleave import SMALL, Clock, deliver, fill_segment, leading, segment_path, segments, until
from tests.harness.support import CHILD_SECONDS, finish, is_ours, quick_config


def event_frame(salt: int, message: str, *, kind: int = frame.EVENT, flags: int = 0) -> bytes:
    return frame.encode(record.encode((1_700_000_000_000, 7, 0, message)), salt, kind, flags)


def attached_to(directory: SpoolDirectory) -> AttachedSegment:
    attached = segment.attach_newest(directory.ring)
    assert attached is not None
    return attached


BACKLOG = 24 * 1024  # records of 1 KiB
FILL = """
import sys
from tests.harness.support import quick_config
from cwsink import Writer

writer = Writer(quick_config(sys.argv[1], flusher="external", segment_bytes=1 << 20))
assert all(writer.append(f"{number} ".ljust(1024, ".")) for number in range(int(sys.argv[2])))
"""


def now_ms(messages: list[str]) -> list[str]:
    return [text for text in messages if not is_ours(text)]


def dead_letters(directory: SpoolDirectory) -> list[dict[str, object]]:
    path = Path(directory.dead_letters)
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


# Holes.


@pytest.mark.parametrize("says_end", [True, False], ids=["a hole to the end", "a hole up to the last page"])
@pytest.mark.parametrize("size", [500, 3 << 20], ids=["short records", "long records"])
def test_what_is_not_written_back_yet_is_no_hole(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, size: int, says_end: bool
) -> None:
    """A file system that answers SEEK_DATA by what is on the disk (OpenZFS issue 15526) costs no record."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external", segment_bytes=8 << 20))
    messages = [f"{number} ".ljust(size, "x") for number in range((6 << 20) // size)]
    assert all(map(writer.append, messages))
    lseek = os.lseek

    def lie(fd: int, position: int, how: int) -> int:
        if how != os.SEEK_DATA:
            return lseek(fd, position, how)
        if says_end:
            raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))
        return max(position, os.fstat(fd).st_size - 4096)

    monkeypatch.setattr(os, "lseek", lie)
    reader = RingReader(writer.directory, {})
    found, damage = [], []
    while (block := reader.read()) is not None:
        found += [event.message for event in map(frame.event_of, block.frames) if event]
        damage += block.damage
    reader.close()
    assert (found == messages, damage) == (True, [])


# Unparsable ends.


@pytest.mark.parametrize("cut", [1, 4, 19, 20, 21, 40])
def test_half_a_frame_of_a_live_writer_waits(small: SinkConfig, server: StrictCloudWatch, cut: int) -> None:
    """What a live writer is still writing is neither torn nor holds back newer segments."""
    writer = Writer(small)
    assert writer.append("before", 1_700_000_000_000)
    live = attached_to(writer.directory)
    data = event_frame(live.salt, "slow")
    os.write(live.fd, data[:cut])
    with pytest.MonkeyPatch.context() as patch:
        Clock(patch)
        deliver(writer.directory, small)
        assert survey(writer.directory).corrupt_bytes == 0
    os.write(live.fd, data[cut:])
    assert writer.append("after", 1_700_000_000_000)
    deliver(writer.directory, small)
    assert server.violations == []
    books = survey(writer.directory)
    assert (books.corrupt_bytes, books.pending, books.appended) == (0, 0, 3)


def test_half_a_frame_holds_back_no_newer_segment(small: SinkConfig, server: StrictCloudWatch) -> None:
    """A writer stopped in the middle of its write, in an old segment: the newer ones are delivered."""
    writer = Writer(small)
    assert writer.append("first")
    fillers = fill_segment(writer)
    old = next(open_old(writer.directory))
    data = event_frame(old.salt, "stopped in the middle")
    os.write(old.fd, data[:30])
    assert writer.append("newer")
    for _ in range(2):
        deliver(writer.directory, small)
    assert server.messages() == ["first", *fillers, "newer"]
    assert segments(writer.directory) == [1, 2]
    assert survey(writer.directory).corrupt_bytes == 0
    os.write(old.fd, data[30:])
    deliver(writer.directory, small)
    # It is of 2023: CloudWatch refuses it one by one, and it is accounted for.
    assert survey(writer.directory).dead_lettered == {"too_old": 1}


def open_old(directory: SpoolDirectory):  # type: ignore[no-untyped-def]  # a generator that keeps the lock
    """Attach to the oldest segment, as a writer that chose it before the rotation has it."""
    numbers = segment.numbers
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(segment, "numbers", lambda ring: numbers(ring)[:1])
        attached = attached_to(directory)
    yield attached


TORN = """
    import os, signal, sys
    from cwsink import Writer
    from cwsink.spool import frame, record
    from tests.harness.support import quick_config

    writer = Writer(quick_config("http://127.0.0.1:1", segment_bytes=4096, flusher="external"))
    assert writer.append("by the one that dies")
    attached = writer._ring.attached
    data = frame.encode(record.encode((1_700_000_000_000, 7, 0, "never finished")), attached.salt)
    os.write(attached.fd, data[: int(sys.argv[1])])
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("cut", [7, 33])
@pytest.mark.parametrize("goes_on", [True, False])
def test_half_a_frame_of_a_dead_writer_is_torn(server: StrictCloudWatch, spawn: Spawn, cut: int, goes_on: bool) -> None:
    """Killed in the middle of a write: the fragment is counted and skipped, and its segment goes."""
    config = quick_config(f"http://127.0.0.1:{1}", segment_bytes=SMALL, flusher="external")
    writer = Writer(config)
    finish(spawn(TORN, cut), code=-9)
    messages = ["by the one that dies"]
    if goes_on:  # else the fragment is the end of its segment
        assert writer.append("after")
        messages.append("after")
    else:
        segment.create(writer.directory.ring, 2, bytes(16), SMALL)
        assert writer.append("after, in the next")
        messages.append("after, in the next")
    to_server = at(writer.directory, server)
    for _ in range(2):
        deliver(to_server, config)
    assert server.messages() == messages
    books = survey(writer.directory)
    assert (books.corrupt_bytes, books.dead_lettered) == (cut, {})
    assert len(segments(writer.directory)) == 1


def at(directory: SpoolDirectory, server: StrictCloudWatch) -> SpoolDirectory:
    """The same spool, sent to `server`."""
    return SpoolDirectory(directory.path, msgspec.structs.replace(directory.format, endpoint_url=server.endpoint_url))


# Damage.


def test_a_changed_byte_costs_one_record_and_leaves_a_dead_letter(small: SinkConfig, server: StrictCloudWatch) -> None:
    """A range that was changed after it was written: counted in bytes, kept, and read past."""
    writer = Writer(small)
    assert all(writer.append(f"record {number}") for number in range(10))
    path = segment_path(writer.directory, 1)
    data = bytearray(path.read_bytes())
    at_five = data.index(b"record 5")
    data[at_five] ^= 0xFF
    path.write_bytes(data)
    deliver(writer.directory, small)
    assert server.messages() == [f"record {number}" for number in range(10) if number != 5]
    books = survey(writer.directory)
    assert books.adds_up
    assert (books.delivered, books.dead_lettered) == (9, {"corrupt": 1})
    letters = dead_letters(writer.directory)
    assert [letter["reason"] for letter in letters] == ["corrupt"]
    assert letters[0]["segment"] == 1
    assert books.corrupt_bytes == letters[0]["bytes"]


def test_a_segment_truncated_under_load_costs_only_what_was_cut(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Somebody truncates the segment: writers go on to the next one, and what they append is delivered."""
    writer = Writer(small)
    with leading(writer.directory, small):
        assert all(writer.append(f"before {number}") for number in range(20))
        assert writer.flush(30)
        for size in (600, 100, 0):
            number = segments(writer.directory)[-1]
            os.truncate(segment_path(writer.directory, number), size)
            writer._ring.check_due_ns = 0
            assert writer.append(f"after the cut to {size}")
            assert segments(writer.directory)[-1] == number + 1
            assert all(writer.append(f"later {size} {each}") for each in range(20))
            assert writer.flush(30)
    messages = server.messages()
    assert messages[:20] == [f"before {number}" for number in range(20)]
    for size in (600, 100, 0):
        assert messages.count(f"after the cut to {size}") == 1
        assert [text for text in messages if text.startswith(f"later {size}")] == [
            f"later {size} {each}" for each in range(20)
        ]
    writer.close()
    deliver(writer.directory, small)
    assert len(segments(writer.directory)) == 1


@pytest.mark.parametrize(("start", "end"), [(0, 1), (20, 24), (0, 64), (0, 512), (512, 576)])
def test_a_damaged_header_costs_no_record(small: SinkConfig, server: StrictCloudWatch, start: int, end: int) -> None:
    """The header stands there twice: leader and new writers go by the other copy, behind what is committed."""
    first = Writer(small)
    assert first.append("delivered before")
    deliver(first.directory, small)
    assert first.append("delivered after")
    path = segment_path(first.directory, 1)
    with open(path, "r+b") as file:
        file.seek(start)
        file.write(b"\xff" * (end - start))
    second = Writer(small)
    assert second.append("by a new writer")
    assert segments(second.directory) == [1]
    assert first.append("by one that was there already")
    first.close()
    deliver(second.directory, small)
    assert server.messages() == [
        "delivered before",
        "delivered after",
        "by a new writer",
        "by one that was there already",
    ]
    books = survey(second.directory)
    assert (books.adds_up, books.corrupt_bytes, books.pending, books.dead_lettered) == (True, 0, 0, {})


def test_a_segment_with_a_damaged_header_is_counted_when_it_is_evicted(small: SinkConfig) -> None:
    """As any other."""
    writer = Writer(SinkConfig(**{**asdict(small), "spool_max_bytes": 16 * SMALL}))
    appended = 0
    while len(segments(writer.directory)) < 3:
        appended += writer.append("." * 300)
    with open(segment_path(writer.directory, 1), "r+b") as file:
        file.write(b"\xff" * 512)
    while 1 in segments(writer.directory):
        appended += writer.append("." * 300)
    books = survey(writer.directory)
    assert books.evicted > 0
    assert (books.adds_up, books.appended, books.evicted + books.pending) == (True, appended, appended)
    writer.close()


def filled_to_four(config: SinkConfig) -> tuple[Writer, int]:
    """Return a writer whose spool has four segments, and how many records they hold."""
    writer, appended = Writer(config), 0
    while len(segments(writer.directory)) < 4:
        appended += writer.append("." * 300)
    return writer, appended


def test_a_segment_that_is_evicted_between_open_and_lock_is_not_read(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two evictions at that moment, so that the totals name another segment by then: its records have one fate."""
    writer, appended = filled_to_four(small)
    spool = writer.directory
    ask = reader.read_evictions

    def evict_first(directory: SpoolDirectory) -> budget.Evictions:
        monkeypatch.setattr(reader, "read_evictions", ask)
        for _ in range(2):
            assert budget.Budget(spool, small.spool_max_bytes, SMALL).evict(at_least_one=True, seconds=CHILD_SECONDS)
        return ask(directory)

    monkeypatch.setattr(reader, "read_evictions", evict_first)
    ring = RingReader(spool, {})
    blocks = list(iter(ring.read, None))
    ring.close()
    assert {block.key.number for block in blocks} == {3, 4}
    assert sum(len(block.frames) for block in blocks) + survey(spool).evicted == appended


def test_a_segment_that_is_counted_between_open_and_lock_is_not_read(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its evictor was killed before it unlinked the segment."""
    writer, appended = filled_to_four(small)
    spool = writer.directory
    ask = reader.read_evictions

    def count_then(directory: SpoolDirectory) -> budget.Evictions:
        monkeypatch.setattr(reader, "read_evictions", ask)
        before = ask(directory)
        with monkeypatch.context() as patch, contextlib.suppress(InterruptedError):
            patch.setattr(segment, "remove", lambda ring, number: (_ for _ in ()).throw(InterruptedError))
            budget.Budget(spool, small.spool_max_bytes, SMALL).evict(at_least_one=True, seconds=CHILD_SECONDS)
        return before

    monkeypatch.setattr(reader, "read_evictions", count_then)
    ring = RingReader(spool, {})
    blocks = list(iter(ring.read, None))
    ring.close()
    assert {block.key.number for block in blocks} == {2, 3, 4}
    assert sum(len(block.frames) for block in blocks) + survey(spool).evicted == appended


@pytest.mark.parametrize("left", [0, 100, 600])
def test_a_segment_with_both_copies_of_its_header_damaged_is_written_off_and_others_flow(
    small: SinkConfig, server: StrictCloudWatch, left: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without its salt nothing in it can be proven: its bytes are counted; new writers make a new segment."""
    first = Writer(small)
    assert first.append("lost with its header")
    first.close()
    path = segment_path(first.directory, 1)
    data = path.read_bytes()[:left]
    path.write_bytes(b"\xff" + data[1:512] + b"\xff" + data[513:] if left > 512 else data)
    second = Writer(small)
    assert second.append("in the next segment")
    assert segments(second.directory) == [1, 2]
    deliver(second.directory, small)
    assert server.messages() == ["in the next segment"]
    books = survey(second.directory)
    assert books.adds_up
    assert books.dead_lettered == ({"corrupt": 1} if left else {})
    assert books.corrupt_bytes == len(data)
    assert segments(second.directory) == [2]
    if left:
        assert "damaged header" in capfd.readouterr().err


# Pages that the disk cannot read.


def four_segments(server: StrictCloudWatch, **settings: int) -> tuple[Writer, list[str]]:
    """Return a writer with a few segments of 32 KiB, and its messages in order."""
    writer = Writer(quick_config(server.endpoint_url, segment_bytes=8 * PAGE_BYTES, flusher="external", **settings))
    assert writer.append("0")
    return writer, ["0", *fill_segment(writer, count=3)]


def places(directory: SpoolDirectory, number: int) -> dict[str, range]:
    """Return the bytes of each record of a segment."""
    with open(segment_path(directory, number), "rb") as file:
        frames = list(OpenSegment(file.fileno(), number).frames())
    return {
        event.message: range(each.end - each.size_bytes, each.end) for each in frames if (event := frame.event_of(each))
    }


@pytest.mark.parametrize("fails_as_a_whole", [False, True])
@pytest.mark.parametrize(("number", "pages"), [(1, (3,)), (1, (7,)), (2, (1, 2)), (2, (2, 5)), (4, (0,)), (3, (0, 4))])
def test_a_page_that_cannot_be_read_costs_what_is_in_it(
    server: StrictCloudWatch,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    pages: tuple[int, ...],
    fails_as_a_whole: bool,
) -> None:
    """What is intact before and behind it is delivered, in order; the rest is counted. Invariant 7."""
    writer, messages = four_segments(server)
    spool = writer.directory
    lost = {
        message
        for message, place in places(spool, number).items()
        if 0 in pages or any(place.start < (page + 1) * PAGE_BYTES and page * PAGE_BYTES < place.stop for page in pages)
    }
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 0.0)
    with unreadable(segment_path(spool, number), pages, fails_as_a_whole=fails_as_a_whole):
        assert survey(spool).pending == len(messages) - len(lost)
        writer.close()
        later = Writer(writer.config)
        messages += fill_segment(later)
        deliver(spool, writer.config)
    expected = [message for message in messages if message not in lost]
    assert now_ms(server.messages()) == expected
    books = survey(spool)
    ranges = 1 if pages == (1, 2) or 0 in pages else len(pages)
    assert (books.adds_up, books.pending, books.delivered) == (True, 0, len(expected))
    assert books.dead_lettered == {"corrupt": ranges}
    assert books.corrupt_bytes >= len(lost)
    assert [letter["reason"] for letter in dead_letters(spool)] == ["corrupt"] * ranges
    assert segments(spool) == [segments(spool)[-1]]


def test_a_disk_that_cannot_read_for_a_moment_costs_nothing(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader fails and tries again, as long as that may pass; only then it goes on without the pages."""
    writer, messages = four_segments(server)
    monkeypatch.setattr(disk, "monotonic", lambda: now[0])
    now = [1000.0]
    for seconds in (0.0, 9.9):
        now[0] = 1000.0 + seconds
        with unreadable(segment_path(writer.directory, 2), [1]), pytest.raises(OSError, match="Input/output"):
            deliver(writer.directory, writer.config)
    deliver(writer.directory, writer.config)
    assert now_ms(server.messages()) == messages
    assert survey(writer.directory).corrupt_bytes == 0
    writer.close()


def behind_the_first_page(server: StrictCloudWatch) -> SpoolDirectory:
    """A spool whose second page has all that is pending. No process logs there any more."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))
    assert writer.append("x" * (PAGE_BYTES + 500))
    deliver(writer.directory, writer.config)
    assert all(writer.append(f"important {number}") for number in range(20))
    writer.close()
    presence.this.forget_below(writer.directory.root)
    return writer.directory


@pytest.mark.parametrize("page", [0, 1])
def test_what_cannot_be_read_for_a_moment_counts_as_pending(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """Nobody leaves it for delivered: neither the header nor the records. After 10 s it counts as lost."""
    spool = behind_the_first_page(server)
    now = [1000.0]
    monkeypatch.setattr(disk, "monotonic", lambda: now[0])
    before = ends(spool)
    assert before
    with unreadable(segment_path(spool, 1), [page]):
        for seconds in (0.0, 9.9):
            now[0] = 1000.0 + seconds
            assert orphans.is_orphan(spool)
            assert ends(spool) is unsettled(spool, None) is None
            assert unsettled(spool, before) == before
            backlog = Backlog(spool)
            assert not backlog.is_empty
            assert not backlog.is_settled()
            with pytest.raises(OSError, match="Input/output"):
                orphans.left_behind(spool)
        now[0] = 1010.0
        assert (has_pending(spool), orphans.left_behind(spool)) == (False, 0)
        assert not Backlog(spool).is_settled()  # `flush --once` does not say that nothing was pending
    assert not backlog.is_settled()
    assert backlog.left_bytes == backlog.data_bytes > 20 * len("important 0")
    deliver(spool, quick_config(server.endpoint_url))
    assert backlog.is_settled()
    assert (unsettled(spool, before), has_pending(spool), backlog.settled_since().delivered) == ({}, False, 20)


@pytest.mark.parametrize("page", [0, 1])
def test_flush_once_waits_for_a_disk_that_cannot_read_for_a_moment(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], page: int
) -> None:
    """The page can be read again once the command has had its first look."""
    spool = behind_the_first_page(server)
    disk_fails, follow = contextlib.ExitStack(), flush.follow

    def follow_later(*arguments: Any) -> None:
        disk_fails.close()
        follow(*arguments)

    monkeypatch.setattr(flush, "follow", follow_later)
    disk_fails.enter_context(unreadable(segment_path(spool, 1), [page]))
    with disk_fails:
        assert main(["flush", "--once", spool.path]) == 0
    assert "delivered 20 records" in capsys.readouterr().out
    assert survey(spool).pending == 0


def test_what_is_delivered_while_a_header_cannot_be_read_is_told(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The leader gives the header up after a while. The command has seen what was there before, and says what went."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external", segment_bytes=SMALL))
    while len(segments(writer.directory)) < 3:
        assert writer.append("x" * 200)
    spool = writer.directory
    writer.close()
    presence.this.forget_below(spool.root)
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 0.2)
    with unreadable(segment_path(spool, 1), [0]):
        main(["flush", "--once", spool.path])
    said = capsys.readouterr().out
    assert f"settled {len(server.messages()) + 1} records" in said
    assert "not deliverable: 1 corrupt" in said


@pytest.mark.parametrize(("name", "page"), [("cursor", 0), ("cursor", 16), ("evictions", 0), ("refusals", 0)])
def test_a_bad_sector_beside_the_ring_ends_no_delivery(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, name: str, page: int
) -> None:
    """The leader's error names the file for 10 s, in case that passes. Then what the page held is lost, and no more."""
    now = [1000.0]
    monkeypatch.setattr(disk, "monotonic", lambda: now[0])
    spool = behind_the_first_page(server)
    config = quick_config(server.endpoint_url, flusher="external")
    path = Path(spool.path) / name
    bad = path.stat().st_ino
    with unreadable(path, [page]):
        for seconds in (0.0, 9.9):
            now[0] = 1000.0 + seconds
            with pytest.raises(OSError, match=f"Input/output error: '{path}'"):
                deliver(spool, config)
        assert not any("important" in message for message in server.messages())
        now[0] = 1010.0
        deliver(spool, config)
        assert [message for message in server.messages() if "important" in message] == [
            f"important {number}" for number in range(20)
        ]
        writer = Writer(config)
        assert writer.append("later")
        deliver(spool, config)
        assert path.stat().st_ino != bad
        disk._failing.clear()  # another process reads it at once
        assert survey(spool).pending == 0
    assert server.messages()[-1] == "later"
    assert not has_pending(spool)
    writer.close()


def test_a_page_that_is_exactly_one_record_is_no_write_that_was_cut(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left of it that does not parse, and it was a record all the same."""
    writer = Writer(quick_config(server.endpoint_url, segment_bytes=8 * PAGE_BYTES, flusher="external"))
    assert writer.append("first")
    attached = attached_to(writer.directory)
    for end in (PAGE_BYTES, 2 * PAGE_BYTES):
        wanted = end - os.fstat(attached.fd).st_size
        excess = len(event_frame(attached.salt, "x" * wanted)) - wanted
        os.write(attached.fd, event_frame(attached.salt, "x" * (wanted - excess)))
        assert os.fstat(attached.fd).st_size == end
    assert writer.append("last")
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 0.0)
    with unreadable(segment_path(writer.directory, 1), [1]):
        ring = RingReader(writer.directory, {})
        (found,) = iter(ring.read, None)
    ring.close()
    assert found.damage == [frame.Damage(PAGE_BYTES, 2 * PAGE_BYTES, frame.DamageKind.CORRUPT)]
    assert len(found.frames) == 3


@pytest.mark.parametrize("page", [0, 3])
def test_a_segment_with_a_page_that_cannot_be_read_for_a_moment_is_evicted_later(
    server: StrictCloudWatch, page: int
) -> None:
    """Newer ones go meanwhile: nothing is refused, no append waits, and each record is counted."""
    writer, messages = four_segments(server, spool_max_bytes=8 * 8 * PAGE_BYTES)
    spool, appended = writer.directory, len(messages)
    with unreadable(segment_path(spool, 1), [page]):
        while 2 in segments(spool):
            assert writer.append("." * 300)
            appended += 1
    assert 1 in segments(spool)
    while 1 in segments(spool):
        assert writer.append("." * 300)
        appended += 1
    books = survey(spool)
    assert (books.adds_up, books.appended, books.evicted > 0) == (True, appended, True)
    writer.close()


@pytest.mark.parametrize("page", [0, 3])
def test_what_an_evicted_segment_has_lost_to_the_disk_is_counted_as_damage(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, page: int
) -> None:
    """The rest is counted exactly, nothing is refused, and the stream is told of the time when it was written."""
    writer, messages = four_segments(server, spool_max_bytes=8 * 8 * PAGE_BYTES)
    spool = writer.directory
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 0.0)
    with unreadable(segment_path(spool, 1), [page]):
        appended = survey(spool).pending
        assert appended < len(messages)
        while 1 in segments(spool):
            assert writer.append("." * 300)
            appended += 1
    books, evictions = survey(spool), budget.read_evictions(spool)
    assert (books.adds_up, books.appended) == (True, appended + 1)
    assert (books.evicted == 1) == (page == 0)
    assert 1_700_000_000_000 < evictions.first_ms <= evictions.last_ms
    writer.close()


def test_a_segment_that_cannot_be_read_now_leaves_no_descriptor_open(small: SinkConfig) -> None:
    """No memory, for example: whoever looks or leads fails and tries again, and does not run out of descriptors."""
    writer = Writer(small)
    assert writer.append("first")
    fill_segment(writer)
    spool = writer.directory
    with unreadable(segment_path(spool, 2), [0], error=errno.ENOMEM):
        looks: list[Callable[[], object]] = [
            lambda: survey(spool),
            lambda: RingReader(spool, {})._attach(2),
            lambda: list(history.opened(spool, 2)),
            lambda: Follower(spool, all_present=True, missed=lambda _: None),
        ]
        for look in looks:
            before = os.listdir("/dev/fd")
            with pytest.raises(OSError, match="Cannot allocate memory"):
                look()
            gc.collect()
            assert os.listdir("/dev/fd") == before
        before = os.listdir("/dev/fd")
        writer.close()
        give_back(spool)  # never raises
        assert len(os.listdir("/dev/fd")) < len(before)


def put_kind(directory: SpoolDirectory, name: str, kind: str) -> None:
    path = Path(directory.ring) / name
    if kind == "file":
        path.write_bytes(os.urandom(5000))
    elif kind == "directory":
        path.mkdir()
    elif kind == "link":
        path.symlink_to("/etc/passwd")
    elif kind == "dangling":
        path.symlink_to("nowhere")
    else:
        os.mkfifo(path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("0000000001.seg", "file"),
        ("0000000002.seg", "file"),
        ("0000000001.seg", "directory"),
        ("0000000002.seg", "directory"),
        ("0000000002.seg", "link"),
        ("0000000002.seg", "dangling"),
        ("0000000001.seg", "fifo"),
        ("0000000009.seg", "fifo"),
        ("9" * 30 + ".seg", "file"),
        ("notes.txt", "file"),
        ("1.seg", "directory"),
    ],
)
def test_garbage_in_the_ring_stops_nothing(small: SinkConfig, server: StrictCloudWatch, name: str, kind: str) -> None:
    """Whatever lies in ring/, under whatever name: appends, rotation, eviction, delivery and surveys go on.

    Invariant 7.
    """
    writer = Writer(SinkConfig(**{**asdict(small), "spool_max_bytes": 16 * SMALL}))
    put_kind(writer.directory, name, kind)
    messages = [f"{number} {'.' * 300}" for number in range(40)]
    assert all(writer.append(message) for message in messages)
    deliver(writer.directory, small)
    assert server.messages() == messages
    for number in range(400):  # several times the budget
        assert writer.append(f"again {number} {'.' * 300}")
    books = survey(writer.directory)
    assert books.adds_up
    assert books.appended - books.dead_lettered.get("corrupt", 0) == 440
    assert books.evicted > 0
    writer.close()
    fresh = Writer(small)
    assert fresh.append("a new process")
    fresh.close()
    deliver(writer.directory, small)
    assert server.messages()[-1] == "a new process"
    assert survey(writer.directory).pending == 0


# Versions.


def header(number: int, *, major: int = 1, incompatible: int = 0, compatible: int = 0, length: int = 576) -> bytes:
    fields = struct.pack("<8sHHIII16sQQ", b"CWSINKSG", major, length, compatible, incompatible, 7, bytes(16), number, 0)
    copy = fields + struct.pack("<I4x", crc32(fields))
    return (copy + bytes(448) + copy).ljust(length, b"\0")


@pytest.mark.parametrize("newest", [False, True])
@pytest.mark.parametrize("change", [{"major": 2}, {"incompatible": 1}, {"incompatible": 1 << 31}])
def test_a_segment_of_a_newer_layout_is_left_alone_and_the_others_flow(
    small: SinkConfig,
    server: StrictCloudWatch,
    capfd: pytest.CaptureFixture[str],
    change: dict[str, int],
    newest: bool,
) -> None:
    """It is not read, not written, not evicted and not removed; it is reported."""
    config = SinkConfig(**{**asdict(small), "spool_max_bytes": 8 * SMALL})
    writer = Writer(config)
    number = 1
    if newest:
        assert writer.append("older")
        number = 2
    path = segment_path(writer.directory, number)
    content = header(number, **change) + event_frame(7, "not for us")
    path.write_bytes(content)
    messages = ["older"] if newest else []
    messages += fill_segment(writer) if newest else []
    for text in ("one", "two"):
        assert writer.append(text)
        messages.append(text)
    deliver(writer.directory, config)
    assert server.messages() == messages
    assert all(writer.append(f"{each} {'.' * 300}") for each in range(200))
    assert survey(writer.directory).evicted > 0
    deliver(writer.directory, config)
    assert path.read_bytes() == content
    assert "newer layout" in capfd.readouterr().err
    assert survey(writer.directory).adds_up
    assert len(segments(writer.directory)) == 2


@pytest.mark.parametrize(("compatible", "length"), [(1, 576), (1 << 31, 576), (0, 640)])
def test_compatible_flags_and_a_longer_header_are_read(
    small: SinkConfig, server: StrictCloudWatch, compatible: int, length: int
) -> None:
    """What a later version adds compatibly is ignored, not refused."""
    spool = Writer(small).directory
    now = survey_time()
    body = frame.encode(record.encode((now, 7, 0, "from a later version")), 7)
    segment_path(spool, 1).write_bytes(header(1, compatible=compatible, length=length) + body)
    writer = Writer(small)
    assert writer.append("ours")
    assert segments(spool) == [1]
    deliver(spool, small)
    assert server.messages() == ["from a later version", "ours"]


def survey_time() -> int:
    import time

    return int(time.time() * 1000)


def test_an_unknown_optional_frame_is_skipped(small: SinkConfig, server: StrictCloudWatch) -> None:
    """A later version's optional frame costs nothing and is no record."""
    writer = Writer(small)
    assert writer.append("before")
    attached = attached_to(writer.directory)
    os.write(attached.fd, frame.encode(b"anything", attached.salt, 99, frame.FLAG_OPTIONAL))
    assert writer.append("after")
    assert writer.flush(0) is False
    deliver(writer.directory, small)
    assert server.messages() == ["before", "after"]
    assert writer.flush(0) is True
    books = survey(writer.directory)
    assert (books.appended, books.dead_lettered, books.corrupt_bytes) == (2, {}, 0)


def test_an_unknown_frame_that_is_not_optional_is_left_for_a_newer_cwsink(
    small: SinkConfig, server: StrictCloudWatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It and what follows it in its segment stay on disk; the newer segments are delivered."""
    writer = Writer(small)
    assert writer.append("before")
    attached = attached_to(writer.directory)
    strange = frame.encode(b"anything", attached.salt, 99)
    os.write(attached.fd, strange)
    del attached
    assert writer.append("behind it")
    behind = fill_segment(writer)[:-1]
    newer = fill_segment(writer)
    for _ in range(2):
        deliver(writer.directory, small)
    delivered = server.messages()
    assert delivered[0] == "before"
    assert "behind it" not in delivered
    assert set(newer) <= set(delivered)
    assert segments(writer.directory)[0] == 1
    assert strange in segment_path(writer.directory, 1).read_bytes()
    assert "left for a newer cwsink" in capfd.readouterr().err
    books = survey(writer.directory)
    assert books.adds_up
    assert books.pending == 1 + len(behind)


# Progress, and what is given back.


def test_one_pass_over_a_hostile_segment_ends(small: SinkConfig, server: StrictCloudWatch) -> None:
    """A segment full of magic numbers and broken frames is one damaged range, and the next record is read.

    Invariant 7.
    """
    writer = Writer(small)
    assert writer.append("before")
    attached = attached_to(writer.directory)
    os.write(attached.fd, (frame.MAGIC + b"\xff" * 16) * 20_000)
    del attached
    writer._ring.check_due_ns = 0
    assert writer.append("after")
    deliver(writer.directory, small)
    assert server.messages() == ["before", "after"]
    assert survey(writer.directory).corrupt_bytes == 400_000
    assert len(segments(writer.directory)) <= 2


def test_a_hollowed_segment_is_got_over_when_the_cursor_is_lost(small: SinkConfig, server: StrictCloudWatch) -> None:
    """With the cursor gone what is left of a delivered segment is read again, and its hole skipped."""
    config = SinkConfig(**{**asdict(small), "segment_bytes": 8 * SMALL})
    idle, writer = Writer(config), Writer(config)
    assert idle.append("idle")
    fillers = fill_segment(writer, count=2)
    deliver(writer.directory, config)
    if b"\0" * 8 * 1024 not in segment_path(writer.directory, 1).read_bytes():
        pytest.skip("this file system cannot give blocks back")
    os.unlink(writer.directory.cursor)
    idle.close()
    assert writer.append("after")
    deliver(writer.directory, config)
    books = survey(writer.directory)
    assert (books.adds_up, books.pending) == (True, 0)
    assert server.messages()[-1] == "after"
    assert len(server.messages()) < 2 * (len(fillers) + 1)
    assert len(segments(writer.directory)) == 1


def test_a_reader_reads_each_segment_from_its_own_offset(small: SinkConfig) -> None:
    """Offsets are per segment: a late record in an old one is found, what is committed is not read again."""
    writer = Writer(small)
    assert writer.append("old 1")
    old = next(open_old(writer.directory))
    fill_segment(writer)
    reader = RingReader(writer.directory, {})
    committed = {}
    while (block := reader.read()) is not None:
        committed[block.key] = block.end
    reader.close()
    os.write(old.fd, event_frame(old.salt, "late"))
    assert writer.append("new")
    reader = RingReader(writer.directory, committed)
    found = []
    while (block := reader.read()) is not None:
        found += [record.decode_event(each.payload).message for each in block.frames]
    reader.close()
    assert found == ["late", "new"]


@pytest.mark.parametrize("how", ["the ring was moved away", "its evictor lets go"])
def test_a_segment_that_comes_back_is_read_on_from_where_it_was(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """What this leader has read before is in its hands, or delivered: to read it again would repeat it all."""
    writer = Writer(small)
    assert writer.append("first")
    fill_segment(writer)
    ring = RingReader(writer.directory, {})
    committed = {block.key: block.end for block in iter(ring.read, None)}
    if how == "the ring was moved away":
        os.rename(writer.directory.ring, f"{writer.directory.ring}2")
        assert ring.read() is None
        os.rename(f"{writer.directory.ring}2", writer.directory.ring)
    else:
        with monkeypatch.context() as patch:
            patch.setattr(OpenSegment, "finalise", lambda _: False)
            assert ring.reclaim(committed) == 0
    assert writer.append("new")
    found = [each for block in iter(ring.read, None) for each in block.frames]
    ring.close()
    assert [record.decode_event(each.payload).message for each in found] == ["new"]


@pytest.mark.parametrize("name", ["FORMAT", "settings.json", "attached.lock"])
def test_a_file_that_is_removed_under_a_writer_is_made_anew(server: StrictCloudWatch, name: str) -> None:
    """An `rm -r` that is not at its end may take it from a spool that was just made anew."""
    writer = Writer(quick_config(server.endpoint_url))
    assert writer.append("before")
    assert writer.flush(60)
    path = f"{writer.directory.path}/{name}"
    os.remove(path)
    until(lambda: writer.append("after") and os.path.exists(path), "it is there again")
    assert is_anyone_attached(writer.directory)
    assert writer.directory.is_present()
    assert writer.flush(60)
    assert {"before", "after"} == set(server.messages())


def test_a_removed_spool_directory_under_load_is_made_anew(
    server: StrictCloudWatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """rm -rf of the spool while two threads log and a flusher leads: later records are delivered."""
    config = quick_config(server.endpoint_url)
    writer = Writer(config)
    stop = threading.Event()
    appended: list[list[str]] = [[], []]

    def work(name: int) -> None:
        number = 0
        while not stop.is_set():
            message = f"{name} {number}"
            if writer.append(message):
                appended[name].append(message)
            number += 1
            stop.wait(0.001)

    threads = [threading.Thread(target=work, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len(server.messages()) > 10, "delivering")
        old = writer.directory
        shutil.rmtree(old.path, ignore_errors=True)
        until(lambda: writer.directory is not old, "the spool is made anew")
        mark = len(appended[0])
        until(lambda: len(appended[0]) > mark + 10, "later records")
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert writer.flush(60)
    delivered = set(now_ms(server.messages()))
    late = [text for texts in appended for text in texts[-5:]]
    assert set(late) <= delivered
    assert "was removed or moved. It was made anew" in capfd.readouterr().err
    assert cursor.read(writer.directory.cursor).epoch >= 1


# A backlog, and what was begun behind it.


def fill_up(writer: Writer, count: int) -> list[list[str]]:
    """Fill `count` segments, of which the last is full, and the next one not made yet; return their messages."""
    messages: list[list[str]] = []
    for number in range(1, count + 1):
        messages.append([])
        while (
            segments(writer.directory)[-1:] != [number] or segment_path(writer.directory, number).stat().st_size < SMALL
        ):
            text = f"{number} {len(messages[-1])} {'.' * 200}"
            assert writer.append(text)
            messages[segments(writer.directory)[-1] - 1].append(text)
    return messages


def read_all(reader: RingReader) -> Iterator[tuple[int, list[str]]]:
    """Read all that is pending, as (segment, messages) of each block."""
    while (block := reader.read()) is not None:
        yield block.key.number, [record.decode_event(each.payload).message for each in block.frames]
    reader.close()


def append_as(attached: AttachedSegment, producer: int, *sequences: int) -> None:
    """Append records as a process does whose threads are anywhere between drawing a sequence and writing."""
    for sequence in sequences:
        payload = record.encode((1_700_000_000_000, producer, sequence, f"live {sequence}"))
        os.write(attached.fd, frame.encode(payload, attached.salt))


@pytest.fixture
def small_backlog(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two small segments are a backlog."""
    monkeypatch.setattr(segment, "BACKLOG_BYTES", SMALL)


def test_a_small_backlog_goes_first(small: SinkConfig) -> None:
    """It is sent in no time, and all there is stays in the order of arrival."""
    writer = Writer(small)
    backlog = fill_up(writer, 3)
    assert Writer(small).append("live")
    blocks = list(read_all(RingReader(writer.directory, {})))
    assert blocks == [(1, backlog[0]), (2, backlog[1]), (3, backlog[2]), (4, ["live"])]


@pytest.mark.usefixtures("small_backlog")
def test_what_another_process_began_behind_a_backlog_does_not_wait_for_it(small: SinkConfig) -> None:
    """Its records and the backlog take turns, also when it goes on to the next segment; each of them in order."""
    old = Writer(small)
    backlog = fill_up(old, 4)
    live = Writer(small)
    assert live.append("live")
    blocks = read_all(RingReader(old.directory, {}))
    assert [next(blocks), next(blocks)] == [(1, backlog[0]), (5, ["live"])]
    late = fill_segment(live)  # the last one is in segment 6
    assert [next(blocks) for _ in range(4)] == [(2, backlog[1]), (5, late[:-1]), (3, backlog[2]), (6, late[-1:])]
    assert list(blocks) == [(4, backlog[3])]


@pytest.mark.usefixtures("small_backlog")
def test_a_producer_with_records_in_the_backlog_waits_for_them(small: SinkConfig) -> None:
    """And so does all that is behind it, but nothing before it; no record is read twice. Invariant 3."""
    old = Writer(small)
    backlog = fill_up(old, 3)
    live = Writer(small)
    assert live.append("live")
    assert old.append("follows the backlog")
    assert live.append("live, behind it")
    assert list(read_all(RingReader(old.directory, {}))) == [
        (1, backlog[0]),
        (4, ["live"]),
        (2, backlog[1]),
        (3, backlog[2]),
        (4, ["follows the backlog", "live, behind it"]),
    ]


@pytest.mark.usefixtures("small_backlog")
def test_of_two_first_threads_the_second_may_write_first(small: SinkConfig) -> None:
    """A process's record 1 is in the ring before its record 0: both are new."""
    old = Writer(small)
    backlog = fill_up(old, 2)
    assert Writer(small).append("of a third")  # rotates
    live = attached_to(old.directory)
    append_as(live, 99, 1, 0, 2)
    assert list(read_all(RingReader(old.directory, {}))) == [
        (1, backlog[0]),
        (3, ["of a third", "live 1", "live 0", "live 2"]),
        (2, backlog[1]),
    ]


@pytest.mark.usefixtures("small_backlog")
def test_a_first_record_behind_the_backlog_does_not_let_its_process_pass(small: SinkConfig) -> None:
    """A thread logs to the last segment of the backlog while another one, that drew sequence 0, is on its way."""
    old = Writer(small)
    backlog = fill_up(old, 2)
    first = attached_to(old.directory)
    append_as(first, 99, 1)
    assert Writer(small).append("of a third")  # rotates
    append_as(attached_to(old.directory), 99, 0, 2)
    assert list(read_all(RingReader(old.directory, {}))) == [
        (1, backlog[0]),
        (3, ["of a third", "live 0"]),
        (2, [*backlog[1], "live 1"]),
        (3, ["live 2"]),
    ]


@pytest.mark.usefixtures("small_backlog")
def test_a_record_on_its_way_does_not_end_the_lane(small: SinkConfig) -> None:
    """A thread has drawn a sequence and not written yet: what the others log waits for the next look, no longer."""
    old = Writer(small)
    backlog = fill_up(old, 4)
    assert Writer(small).append("of a third")  # rotates
    live = attached_to(old.directory)
    append_as(live, 99, 0, 2)
    blocks = read_all(RingReader(old.directory, {}))
    assert [next(blocks) for _ in range(3)] == [(1, backlog[0]), (5, ["of a third", "live 0"]), (2, backlog[1])]
    append_as(live, 99, 1)
    assert [next(blocks) for _ in range(2)] == [(5, ["live 2", "live 1"]), (3, backlog[2])]
    append_as(live, 99, 4)  # 3 never comes
    assert list(blocks) == [(4, backlog[3]), (5, ["live 4"])]


@pytest.mark.usefixtures("small_backlog")
def test_damage_in_the_lane_is_found_once(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Noise before and behind the record that ends the lane: counted as what it is, nothing is lost."""
    old = Writer(small)
    backlog = [text for each in fill_up(old, 3) for text in each]
    live = Writer(small)
    assert live.append("live")
    newest = attached_to(old.directory)
    os.write(newest.fd, b"x" * 50)
    assert old.append("follows the backlog")
    os.write(newest.fd, b"y" * 60)
    assert live.append("live, behind it")
    deliver(old.directory, small)
    assert Counter(server.messages()) == Counter([*backlog, "live", "follows the backlog", "live, behind it"])
    books = survey(old.directory)
    assert books.adds_up
    assert (books.corrupt_bytes, books.pending) == (110, 0)


def test_a_start_after_a_long_outage_is_seen_at_once(server: StrictCloudWatch, spawn: Spawn) -> None:
    """A backlog of 24 MiB, then a process that logs: its first record is in one of the first requests. Invariant 7."""
    finish(spawn(FILL, server.endpoint_url, BACKLOG))
    writer = Writer(quick_config(server.endpoint_url, segment_bytes=1 << 20))
    before = segments(writer.directory)
    server.faults.latency_seconds = 0.02
    assert writer.append("live")
    assert segments(writer.directory) == [*before, before[-1] + 1]
    assert writer.flush(CHILD_SECONDS)
    messages = server.messages()
    assert messages.index("live") < 4 * 1024
    messages.remove("live")
    assert [int(text.split()[0]) for text in messages] == list(range(BACKLOG))
    assert server.violations == []
