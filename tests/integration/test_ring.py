"""The writers' side of the ring: each thing it does, with the interleaving that would break it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gc
import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from msgspec.structs import asdict

from cwsink import SpoolHandler, Writer
from cwsink.config import SinkConfig
from cwsink.frontends import log_handler, presence
from cwsink.spool import budget, cursor, descriptors, disk, files, frame, record, rotation, segment
from cwsink.spool.attachment import Attachment, is_anyone_attached
from cwsink.spool.capacity import Capacity
from cwsink.spool.directory import SpoolDirectory, open_existing
from cwsink.spool.open_directory import OpenDirectory
from cwsink.spool.ring import Append, Ring
from cwsink.spool.rotation import Rotation
from cwsink.spool.survey import events, survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import (
    SMALL,
    Clock,
    deliver,
    fill_segment,
    leading,
    on_write,
    ring_bytes,
    segment_path,
    segments,
    until,
)
from tests.harness.support import CHILD_SECONDS, finish, quick_config


def pending(directory: SpoolDirectory) -> list[str]:
    return [event.message for event in events(directory)]


# Attach.


def test_a_writer_attaches_to_the_newest_segment_with_a_shared_lock(small: SinkConfig) -> None:
    """While a writer has a segment open nobody gets it exclusively; other writers do share it."""
    directory = Writer(small).directory
    for number in (1, 2, 3):
        segment.create(directory.ring, number, bytes(16), SMALL)
    attached = segment.attach_newest(directory.ring)
    again = segment.attach_newest(directory.ring)
    assert attached is not None
    assert again is not None
    assert (attached.key.number, again.key) == (3, attached.key)
    with segment_path(directory, 3).open() as other:
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        del attached, again
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


@pytest.mark.parametrize("maker_was_killed", [False, True])
def test_a_segment_that_is_removed_while_being_attached_to_is_not_written(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch, maker_was_killed: bool
) -> None:
    """The leader may unlink between a writer's open and its lock: it looks again, also if a second link is left."""
    directory = Writer(small).directory
    segment.create(directory.ring, 1, bytes(16), SMALL)
    if maker_was_killed:  # before it removed the temporary name
        os.link(segment_path(directory, 1), f"{directory.ring}/1-0123.tmp")
    try_lock = descriptors.try_lock

    def reclaim_first(fd: int, *, exclusive: bool) -> bool:
        monkeypatch.setattr(descriptors, "try_lock", try_lock)
        segment.create(directory.ring, 2, bytes(16), SMALL)
        segment_path(directory, 1).unlink()
        return try_lock(fd, exclusive=exclusive)

    monkeypatch.setattr(descriptors, "try_lock", reclaim_first)
    attached = segment.attach_newest(directory.ring)
    assert attached is not None
    assert attached.key.number == 2


def test_what_a_killed_writer_left_does_not_keep_a_segments_blocks(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Killed between naming a segment and removing its temporary name: the leader that reclaims removes that, too."""
    writer = Writer(small)
    assert writer.append("first")
    left = Path(f"{writer.directory.ring}/1-0123.tmp")
    with leading(writer.directory, small):
        os.link(segment_path(writer.directory, 1), left)
        fill_segment(writer)
        os.utime(left, (0, 0))
        fill_segment(writer)
        until(lambda: not left.exists(), "removed")


@pytest.mark.parametrize("when", ["at its first record", "at a full segment"])
def test_a_writer_that_is_stopped_while_it_makes_a_segment_goes_on_with_it(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], when: str
) -> None:
    """For a minute, before the file has its name: a leader has tidied it away. No spool was removed, no disk fails."""
    other, writer = Writer(small), Writer(small)
    if when == "at a full segment":
        assert writer.append("first")
        writer._ring.attached.is_full = True  # type: ignore[union-attr]
        writer._ring.check_due_ns = 0
    link = OpenDirectory.link

    def stopped(self: OpenDirectory, name: str, another: str) -> None:
        monkeypatch.setattr(OpenDirectory, "link", link)
        assert other.append("meanwhile")
        os.utime(f"{self.path}/{name}", (0, 0))
        files.remove_stale_temporaries(self.path)
        link(self, name, another)

    monkeypatch.setattr(OpenDirectory, "link", stopped)
    assert writer.append("of the stopped one")
    assert pending(writer.directory)[-2:] == ["meanwhile", "of the stopped one"]
    assert survey(writer.directory).refused == {}
    assert capfd.readouterr().err == ""


def test_a_spool_that_is_there_is_not_said_to_be_removed(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever file the kernel did not find: the record goes into this spool."""
    writer = Writer(small)
    newest = Rotation.newest

    def not_found(self: Rotation) -> segment.AttachedSegment:
        monkeypatch.setattr(Rotation, "newest", newest)
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(Rotation, "newest", not_found)
    spool = writer.directory
    assert writer.append("kept")
    assert writer.directory is spool
    assert pending(spool) == ["kept"]
    assert capfd.readouterr().err == ""


def test_a_segment_that_is_being_removed_is_waited_for(small: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The exclusive lock of a remover makes a writer look again, and bounded."""
    directory = Writer(small).directory
    segment.create(directory.ring, 1, bytes(16), SMALL)
    with segment_path(directory, 1).open() as remover:
        fcntl.flock(remover, fcntl.LOCK_EX)
        looks = []
        monkeypatch.setattr(segment, "numbers", lambda ring: looks.append(ring) or [1])
        assert segment.attach_newest(directory.ring) is None
        assert 1 < len(looks) <= 1000


# Rotate.

WORKER = """
    import sys
    from cwsink import Writer
    from tests.harness.support import quick_config

    name, count, segment_bytes = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    writer = Writer(quick_config("http://127.0.0.1:1", segment_bytes=segment_bytes, flusher="external"))
    print("ready", flush=True)
    sys.stdin.readline()
    refused = sum(not writer.append(f"{name} {number} {'x' * (number % 150)}") for number in range(count))
    print(refused)
"""


@pytest.mark.parametrize("segment_bytes", [4096, 16 * 1024])
def test_processes_that_rotate_at_once_lose_nothing(spawn: Spawn, segment_bytes: int) -> None:
    """Four processes, hundreds of rotations: each record once, in its writer's order, numbers without a gap."""
    count = 2_000
    config = quick_config("http://127.0.0.1:1", segment_bytes=segment_bytes, flusher="external")
    directory = Writer(config).directory
    children = [spawn(WORKER, name, count, segment_bytes) for name in "abcd"]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin
        child.stdin.write("go\n")
        child.stdin.flush()
    assert [finish(child) for child in children] == ["0\n"] * 4
    found: dict[str, list[int]] = {name: [] for name in "abcd"}
    for message in pending(directory):
        name, number, _ = message.split(" ")
        found[name].append(int(number))
    assert found == {name: list(range(count)) for name in "abcd"}
    numbers = segments(directory)
    assert numbers == list(range(1, numbers[-1] + 1))
    sizes = [segment_path(directory, number).stat().st_size for number in numbers[:-1]]
    assert min(sizes) >= segment_bytes, "a segment was left before it was full"
    assert max(sizes) < 2 * segment_bytes
    assert not list(Path(directory.ring).glob("*.tmp"))
    assert survey(directory).appended == 4 * count


def test_of_two_writers_that_rotate_at_once_one_makes_the_segment(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever decided to rotate and finds the next segment made takes it, and makes none after it."""
    first, second = Writer(small), Writer(small)
    assert first.append("first")
    assert second.append("second")
    has_room = budget.Budget.has_room

    def meanwhile(self: budget.Budget) -> bool:
        monkeypatch.setattr(budget.Budget, "has_room", has_room)
        fill_segment(second)
        return has_room(self)

    monkeypatch.setattr(budget.Budget, "has_room", meanwhile)
    fill_segment(first)
    assert segments(first.directory) == [1, 2]


def test_writers_that_begin_a_spool_at_once_make_one_segment(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A writer that found the ring empty takes the first segment another one made meanwhile."""
    first, second = Writer(small), Writer(small)
    attach_newest = segment.attach_newest

    def meanwhile(ring: str) -> segment.AttachedSegment | None:
        monkeypatch.setattr(segment, "attach_newest", attach_newest)
        found = attach_newest(ring)
        assert second.append("second")
        return found

    monkeypatch.setattr(segment, "attach_newest", meanwhile)
    assert first.append("first")
    assert segments(first.directory) == [1]
    assert pending(first.directory) == ["second", "first"]


def test_a_writer_never_goes_back_to_an_older_segment(small: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other threads rotate twice while this one has just found the segment between: its records come after theirs."""
    writer, another = Writer(small), Writer(small)
    assert writer.append("first")
    fillers = fill_segment(another)
    attach_newest = segment.attach_newest
    others: list[str] = []

    def meanwhile(ring: str) -> segment.AttachedSegment | None:
        monkeypatch.setattr(segment, "attach_newest", attach_newest)
        found = attach_newest(ring)
        assert found is not None
        assert found.key.number == 2
        while segments(writer.directory)[-1] == 2:
            others.append(f"other {len(others)} {'.' * 200}")
            assert writer.append(others[-1])
        return found

    monkeypatch.setattr(segment, "attach_newest", meanwhile)
    writer._ring.check_due_ns = 0
    assert writer.append("this one")
    assert segments(writer.directory) == [1, 2, 3]
    assert [text for text in pending(writer.directory) if text not in fillers] == ["first", *others, "this one"]


def test_a_thread_paused_before_its_write_loses_nothing_to_a_rotation(
    small: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread holds its segment from choosing it until its write: it is neither closed nor reclaimed."""
    writer = Writer(small)
    assert writer.append("first")
    chosen, go_on = threading.Event(), threading.Event()

    def pause(fd: int, data: bytes) -> int:
        if b"paused" in data:
            chosen.set()
            assert go_on.wait(60)
        return os.write(fd, data)

    on_write(monkeypatch, pause)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(writer.append("paused")))
    thread.start()
    assert chosen.wait(60)
    fillers = fill_segment(writer, count=3)
    deliver(writer.directory, small)
    assert server.messages() == ["first", *fillers]
    assert segments(writer.directory)[0] == 1, "the segment of the paused thread was removed"
    go_on.set()
    thread.join()
    assert answers == [True]
    deliver(writer.directory, small)
    assert server.messages() == ["first", *fillers, "paused"]
    assert len(segments(writer.directory)) == 1


def test_a_stopped_holder_of_the_budget_lock_makes_nobody_wait(small: SinkConfig, spawn: Spawn) -> None:
    """Others go on up to twice a segment, then refuse; when the holder is gone they evict again. Invariant 8."""
    config = SinkConfig(**{**asdict(small), "spool_max_bytes": 4 * SMALL})
    writer = Writer(config)
    assert writer.append("first")
    fill_segment(writer, count=3)
    holder = spawn(
        """
        import fcntl, os, signal, sys
        fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)
        fcntl.flock(fd, fcntl.LOCK_EX)
        print("held", flush=True)
        os.kill(os.getpid(), signal.SIGSTOP)
        """,
        writer.directory.budget_lock,
    )
    assert holder.stdout
    assert holder.stdout.readline() == "held\n"
    os.waitid(os.P_PID, holder.pid, os.WSTOPPED | os.WNOWAIT)

    attempts = appended = 0
    while writer.append(f"while it is stopped {attempts} {'.' * 200}"):
        attempts, appended = attempts + 1, appended + 1
        assert attempts < 100, "the segment grows for ever"
    attempts += 1
    newest = segment_path(writer.directory, segments(writer.directory)[-1])
    assert SMALL <= newest.stat().st_size < 2.2 * SMALL
    assert appended > 0
    for _ in range(50):
        assert not writer.append("refused")
    holder.kill()
    holder.wait()
    until(lambda: writer.append("after"), "room")
    books = survey(writer.directory)
    assert books.adds_up
    assert books.refused["spool_full"] >= 51
    assert books.evicted > 0


# Idle writers, and a spool that was removed.


@pytest.mark.parametrize("hours", [0, 2])
def test_an_idle_worker_appends_hours_later(
    small: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, hours: int
) -> None:
    """An idle worker's old segment holds nobody back, is hollowed, and goes once the worker has left it.

    Its late record is delivered whether it still goes to the old segment (within a second of the last
    look) or, hours later, to the newest.

    Invariant 9.
    """
    config = SinkConfig(**{**asdict(small), "segment_bytes": 8 * SMALL})
    clock = Clock(monkeypatch)
    idle, busy = Writer(config), Writer(config)
    assert idle.append("early")
    fillers = fill_segment(busy, count=5)
    deliver(busy.directory, config)
    assert server.messages() == ["early", *fillers]
    assert [segments(busy.directory)[0], len(segments(busy.directory))] == [1, 2]
    assert segment_path(busy.directory, 1).stat().st_blocks * 512 <= 2 * SMALL, "it was not hollowed"

    clock.advance(hours * 3600.0)
    assert idle.append("late")
    assert busy.append("later still")
    deliver(busy.directory, config)
    assert sorted(server.messages()[-2:]) == ["late", "later still"]
    assert (1 in segments(busy.directory)) == (hours == 0)
    idle.close()
    deliver(busy.directory, config)
    assert len(segments(busy.directory)) == 1
    assert survey(busy.directory).delivered == len(fillers) + 3


def test_sixty_four_idle_workers_do_not_fill_the_budget(server: StrictCloudWatch) -> None:
    """Segments that are delivered and only held by idle workers count by their blocks. Invariant 9."""
    size = 64 * 1024
    config = quick_config(server.endpoint_url, segment_bytes=size, spool_max_bytes=16 * size, flusher="external")
    writer = Writer(config)
    assert writer.append("first")
    idle = []
    messages = ["first"]
    for number in range(64):
        idle.append(segment.attach_newest(writer.directory.ring))
        messages.append(f"{number} " + "x" * (size + 10))
        assert writer.append(messages[-1])
        if number % 8 == 7:
            deliver(writer.directory, config)
    deliver(writer.directory, config)
    assert server.messages() == messages
    assert len(segments(writer.directory)) >= 60
    assert ring_bytes(writer.directory) < 16 * size
    books = survey(writer.directory)
    assert (books.evicted, books.refused) == (0, {})
    del idle
    deliver(writer.directory, config)
    assert len(segments(writer.directory)) == 1


# Reclaim.


def test_a_segment_is_unlinked_only_after_its_end_is_committed_and_delivered(
    small: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commit first, unlink after; when all is committed one segment remains. Invariant 9."""
    writer = Writer(small)
    assert writer.append("first")
    messages = ["first", *fill_segment(writer, count=10)]
    unlink, checked = os.unlink, []

    def check(path: str, **rest: Any) -> None:
        if str(path).endswith(".seg"):
            data = Path(writer.directory.ring, path).read_bytes()
            header = segment.decode_header(data)
            assert header is not None
            assert cursor.read(writer.directory.cursor).committed()[header.key] == len(data)
            frames = frame.scan(data[header.length :], header.key.salt, at_end=True, final=True).frames
            delivered = set(server.messages())
            assert all(record.decode_event(each.payload).message in delivered for each in frames)
            checked.append(path)
        unlink(path, **rest)

    monkeypatch.setattr(os, "unlink", check)
    deliver(writer.directory, small)
    assert len(checked) == 10
    assert server.messages() == messages
    assert len(segments(writer.directory)) == 1


# Short writes. (What is read is proven in test_reader.py.)


@pytest.mark.parametrize("on_full", ["block", "drop_newest", "drop_oldest"])
def test_after_a_short_write_readers_see_the_whole_frame_or_none(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, on_full: str
) -> None:
    """The cut frame is skipped, never truncated away, and the record is written again at once."""
    config = quick_config(server.endpoint_url, on_full=on_full, flusher="external")
    writer = Writer(config)
    assert writer.append("before")
    cuts = iter([True])
    sizes = []

    def cut(fd: int, data: bytes) -> int:
        if b"cut" in data and next(cuts, False):
            data = data[: len(data) // 2]
        written = os.write(fd, data)
        sizes.append(os.fstat(fd).st_size)
        return written

    on_write(monkeypatch, cut)
    with monkeypatch.context() as never_truncated:
        never_truncated.setattr(os, "ftruncate", None)
        answer = writer.append("cut in the middle")
    assert answer
    assert writer.append("after")
    deliver(writer.directory, config)
    expected = ["before", "cut in the middle", "after"]
    assert server.messages() == expected
    assert sizes == sorted(sizes)
    books = survey(writer.directory)
    assert books.adds_up
    assert books.appended == len(expected)
    assert books.corrupt_bytes > 0
    assert not books.dead_lettered
    assert not books.refused


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EMFILE, errno.EROFS])
def test_an_error_of_the_disk_is_counted_and_never_raised(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    """A write that fails is a refusal with a reason; the next one goes on."""
    config = quick_config(server.endpoint_url, flusher="external")
    writer = Writer(config)
    assert writer.append("before")

    def fail(fd: int, data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as broken:
        on_write(broken, fail)
        assert [writer.append("lost") for _ in range(3)] == [False] * 3
    until(lambda: writer.append("after"), "works again")
    writer.close()
    books = survey(writer.directory)
    reason = "spool_full" if code == errno.ENOSPC else "io_error"
    assert books.refused[reason] >= 3
    assert books.appended == 2


# Limits of the process, and descriptors that somebody else closes.


def inside(directory: SpoolDirectory) -> list[str]:
    """What this process has open of a spool's ring."""
    links = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            links.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [link for link in links if link.startswith(directory.ring)]


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="not run: this needs /proc")
@pytest.mark.parametrize("checked", [False, True])
def test_a_descriptor_that_is_closed_beneath_us_costs_no_record(small: SinkConfig, checked: bool) -> None:
    """A daemon closes all it has inherited: the writer opens its segment anew, and appends the record at once."""
    writer = Writer(small)
    assert writer.append("before")
    for number in range(3):
        attached = writer._ring.attached
        assert attached is not None
        os.close(attached.fd)
        del attached
        if checked:
            writer._ring.check_due_ns = 0
        assert writer.append(f"{number}")
    assert pending(writer.directory) == ["before", "0", "1", "2"]
    assert len(inside(writer.directory)) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="not run: this needs /proc")
def test_a_descriptor_that_is_another_files_by_now_is_left_alone(small: SinkConfig, tmp_path: Path) -> None:
    """From the next check on nothing is written to it; and it is never closed, by no rotation and no end."""
    writer = Writer(small)
    assert writer.append("before")
    attached = writer._ring.attached
    assert attached is not None
    fd = attached.fd
    with open(tmp_path / "theirs", "w+b", buffering=0) as file:
        os.dup2(file.fileno(), fd)
    with open(fd, "r+b", buffering=0) as theirs:
        writer._ring.check_due_ns = 0
        assert writer.append("after")
        del attached
        fill_segment(writer)
        writer.close()
        gc.collect()
        assert os.fstat(fd).st_size == 0
        theirs.write(b"still open")
    assert pending(writer.directory)[:2] == ["before", "after"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_beneath_another_file_changes_nothing_of_it(
    small: SinkConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The application has put a file of its own under our number, and its disk is full: no room is made in that."""
    writer = Writer(small)
    assert writer.append("before")
    attached = writer._ring.attached
    assert attached is not None
    punched: list[int] = []
    monkeypatch.setattr(disk, "punch_hole", lambda fd, *_: punched.append(fd))
    fd = attached.fd
    with open("/dev/full", "wb") as full:
        os.dup2(full.fileno(), fd)
    assert writer.append("after")
    assert punched == []
    assert pending(writer.directory) == ["before", "after"]
    os.close(fd)


def test_an_attachment_whose_descriptor_is_closed_is_renewed(small: SinkConfig) -> None:
    """Others must go on to see that this process is attached; and at its end it finds out whether it is the last."""
    directory = Writer(small).directory
    attachment = Attachment(directory)
    os.close(attachment._file.fd)
    assert not is_anyone_attached(directory)
    attachment.hold()
    assert is_anyone_attached(directory)
    os.close(attachment._file.fd)
    assert attachment.detach()


def test_an_attachment_that_cannot_be_renewed_now_refuses_no_record(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no descriptor for it: the record is in the spool all the same, and the next look tries again."""
    writer = Writer(small)
    assert writer.append("before")
    (mine,) = presence.this.presences()
    os.close(mine._attachment._file.fd)
    opened = descriptors.opened

    def none_left(path: str, flags: int, dir_fd: int | None = None) -> descriptors.Opened:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), path)

    monkeypatch.setattr(descriptors, "opened", none_left)
    mine._look_at = 0.0
    writer._ring.check_due_ns = 0
    assert writer.append("without a descriptor")
    monkeypatch.setattr(descriptors, "opened", opened)
    mine._look_at = 0.0
    mine.look()
    assert is_anyone_attached(writer.directory)
    assert pending(writer.directory) == ["before", "without a descriptor"]


LATE = """
    import gc, os, sys
    from cwsink import SpoolHandler, Writer
    from tests.harness.support import quick_config

    class Late:
        def __init__(self, writer, name):
            self.writer, self.name, self.me = writer, name, self

        def __del__(self):
            for number in range(3):
                os.write(1, f"{self.name} {number} {self.writer.append(f'{self.name} {number}')}\\n".encode())

    writer = Writer(quick_config("http://127.0.0.1:1", flusher=sys.argv[1], drain_timeout_seconds=0.1))
    assert writer.append("early")
    late = Late(writer, "global")
    own = Writer(quick_config("http://127.0.0.1:1", flusher=sys.argv[1], drain_timeout_seconds=0.1))
    assert own.append("own")
    cycle = Late(own, "cycle")
    own.cycle = cycle
    sys.modules["late"] = Late(writer, "module")
"""


@pytest.mark.parametrize("flusher", ["process", "external"])
def test_finalizers_at_the_interpreters_end_may_append(spawn: Spawn, flusher: str) -> None:
    """The ring may be closed, or collected before the object that logs: it is opened once more."""
    out = finish(spawn(LATE, flusher))
    config = quick_config("http://127.0.0.1:1")
    told = [line.removesuffix(" True") for line in out.splitlines()]
    assert len(told) >= 6
    assert not [line for line in out.splitlines() if not line.endswith(" True")]
    assert sorted(pending(Writer(config).directory)) == sorted(["early", "own", *told])


AT_THE_LAST = """
    import atexit, sys
    from cwsink import Writer
    from tests.harness.support import quick_config

    if sys.argv[1] == "logs at exit":
        atexit.register(lambda: writer.append("late"))
    writer = Writer(quick_config("http://127.0.0.1:1", flusher="external"))
    assert writer.append("early")
    sys.excepthook = lambda *error: writer.append(repr(error))
"""


@pytest.mark.parametrize("how", ["logs before", "logs at exit"])
def test_what_python_frees_last_prints_nothing(spawn: Spawn, how: str) -> None:
    """A hook of `sys` keeps its writer until Python has taken all modules apart."""
    child = spawn(AT_THE_LAST, how)
    assert child.communicate(timeout=CHILD_SECONDS)[1] == ""
    assert child.returncode == 0


def test_a_finalizer_needs_no_name_of_its_module(small: SinkConfig) -> None:
    """At the interpreter's end each of them is None."""
    writer = Writer(small)
    assert writer.append("first")
    (mine,) = presence.this.presences()
    for module, owner in (
        (log_handler, SpoolHandler(small)),
        (segment, writer._ring.attached),
        (descriptors, writer._ring.attached),
        (descriptors, mine._attachment._file),
    ):
        none = {name: None for name in vars(module) if not name.startswith("__")}
        with mock.patch.dict(vars(module), none):
            owner.__del__()  # type: ignore[union-attr]


NO_DESCRIPTORS = """
    import os, resource
    from cwsink import Writer
    from tests.harness.support import quick_config

    writer = Writer(quick_config("http://127.0.0.1:1", segment_bytes=65536, flusher="external"))
    assert writer.append("first")
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    during = [writer.append(f"{number} {'x' * 300}") for number in range(300)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    after = [writer.append(f"after {number}") for number in range(10)]
    print(sum(during), sum(after))
"""


def test_a_process_without_descriptors_appends_on_to_what_it_has(spawn: Spawn) -> None:
    """It cannot rotate: the segment grows up to twice its size; what has no room then is counted."""
    during, after = map(int, finish(spawn(NO_DESCRIPTORS)).split())
    assert 2 * 65536 / 360 < during < 2.2 * 65536 / 330 or during == 300
    assert after == 10
    directory = Writer(quick_config("http://127.0.0.1:1", segment_bytes=65536)).directory
    books = survey(directory)
    assert books.appended == during + 11
    assert books.refused.get("io_error", 0) == 300 - during
    assert len(segments(directory)) == 2


NO_DESCRIPTORS_AFTER_A_SMALL_FILE = """
    import os, resource
    from cwsink import Writer
    from tests.harness.support import quick_config

    writer = Writer(quick_config("http://127.0.0.1:1", segment_bytes=65536, flusher="external"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
    small = [writer.append("x" * 1000) for number in range(20)]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    other = Writer(quick_config("http://127.0.0.1:1", segment_bytes=65536, flusher="external"))
    large = [other.append("x" * 1000) for number in range(20)]  # into the same segment
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, hard))
    during = [writer.append("x" * 1000) for number in range(20)]
    print(sum(small), sum(large), sum(during))
"""


def test_a_limit_that_is_gone_keeps_nothing_out(spawn: Spawn) -> None:
    """Files had to be small for a while. Now no descriptor is left: the segment grows as ever, to twice its size."""
    assert finish(spawn(NO_DESCRIPTORS_AFTER_A_SMALL_FILE)) == "20 20 20\n"


@pytest.mark.parametrize("failures", [2, 100])
def test_a_segment_whose_disk_fails_is_left(small: SinkConfig, monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """EIO may pass. After three in a row the writer goes on in another segment, and loses nothing more."""
    writer = Writer(small)
    for _ in range(3):
        assert writer.append("before" + "." * 300)
    bad = os.fstat(writer._ring.attached.fd).st_ino  # type: ignore[union-attr]
    left = iter(range(failures))

    def write(fd: int, data: bytes) -> int:
        if os.fstat(fd).st_ino == bad and next(left, None) is not None:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return os.write(fd, data)

    on_write(monkeypatch, write)
    assert [writer.append(f"{number}") for number in range(5)] == [False, False, True, True, True]
    assert segments(writer.directory) == ([1] if failures == 2 else [1, 2])
    assert survey(writer.directory).refused == {"io_error": 2}


def test_a_stray_file_with_the_highest_number_stops_nothing(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Somebody has copied a segment, or touched one: numbers go on from those that writers have made."""
    writer = Writer(small)
    assert writer.append("first")
    for name in ("999999999999999999", "18446744073709551615"):
        Path(f"{writer.directory.ring}/{name}.seg").write_bytes(segment_path(writer.directory, 1).read_bytes())
    Path(f"{writer.directory.ring}/999999999999999998.seg").touch()
    fillers = fill_segment(writer, count=2)
    assert segments(writer.directory) == [1, 2, 3]
    presence.this.forget_below(writer.directory.root)
    again = Writer(small)
    assert again.append("again")
    deliver(writer.directory, small)
    assert server.messages() == ["first", *fillers, "again"]


# Reserve.


def test_a_segment_reserves_its_blocks_when_it_is_made(small: SinkConfig) -> None:
    """Where the file system can, "disk full" happens at rotation and not in the middle of a record."""
    writer = Writer(SinkConfig(**{**asdict(small), "segment_bytes": 1024 * 1024}))
    assert writer.append("one")
    path = segment_path(writer.directory, 1)
    with path.open("r+b") as file:
        if not disk.reserve(file.fileno(), 4096):
            pytest.skip("this file system cannot reserve blocks")
    assert path.stat().st_size < 4096
    assert path.stat().st_blocks * 512 >= 1024 * 1024


def test_no_room_for_a_new_segment_leaves_nothing_behind(small: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOSPC at creation: the oldest segment goes under drop_oldest, else the last one grows to twice its size."""
    keeper = Writer(SinkConfig(**{**asdict(small), "on_full": "drop_newest"}))
    assert keeper.append("first")
    fill_segment(keeper, count=2)
    link = os.link

    def full(source: str, target: str, **more: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "link", full)
    while keeper.append("." * 200):
        pass
    assert segments(keeper.directory) == [1, 2, 3]
    assert 2 * SMALL <= segment_path(keeper.directory, 3).stat().st_size < 2 * SMALL + 300
    assert survey(keeper.directory).refused == {"spool_full": 1}
    assert not list(Path(keeper.directory.ring).glob("*.tmp"))
    presence.this.forget_below(keeper.directory.root)

    def full_once(source: str, target: str, **more: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        full(source, target)

    monkeypatch.setattr(os, "link", full_once)
    evicting = Writer(small)
    assert evicting.append("." * 200)
    assert segments(evicting.directory) == [2, 3, 4]
    assert survey(evicting.directory).evicted > 0
    assert not list(Path(keeper.directory.ring).glob("*.tmp"))


def test_a_disk_with_less_than_a_segment_left_is_used_as_far_as_it_goes(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As much is reserved as there is. EFBIG, a limit of this process, gives as much as the limit."""
    room = {errno.ENOSPC: 96 * 1024, errno.EFBIG: 32 * 1024}
    reserved: list[int] = []
    code = errno.ENOSPC

    def reserve(fd: int, size_bytes: int, start: int = 0) -> bool:
        if size_bytes > room[code]:
            raise OSError(code, os.strerror(code))
        reserved.append(size_bytes)
        return True

    writer = Writer(SinkConfig(**{**asdict(small), "segment_bytes": 1024 * 1024, "on_full": "drop_newest"}))
    monkeypatch.setattr(disk, "reserve", reserve)
    assert writer.append("one")
    assert reserved[-1] == 64 * 1024
    code = errno.EFBIG
    assert segment.create(writer.directory.ring, 2, bytes(16), 1024 * 1024)
    assert reserved[-1] == 32 * 1024


# Fork.


FORK = """
    import ctypes, json, os, sys
    from cwsink import Writer
    from cwsink.spool.survey import events
    from tests.harness.support import quick_config

    how = sys.argv[1]
    writer = Writer(quick_config("http://127.0.0.1:1", flusher="external"))
    assert writer.append("parent before")

    def inside():
        # What this process has open of the spool.
        links = {}
        for fd in os.listdir("/proc/self/fd"):
            try:
                links[int(fd)] = os.readlink(f"/proc/self/fd/{fd}")
            except OSError:
                pass
        return {fd: name for fd, name in links.items() if name.startswith(writer.directory.path)}

    before = inside()
    assert before
    pid = ctypes.PyDLL(None).fork() if how == "c" else os.fork()
    if pid == 0:
        inherited = sorted(inside().values())
        again = os.fork() if how == "double" else 0
        ok = writer.append(f"child {again == 0}")
        ok = writer.append(f"child {again == 0}, second") and ok
        if again:
            os.waitpid(again, 0)
        os.write(1, json.dumps({"inherited": inherited, "ok": ok}).encode() + b"\\n")
        os._exit(0)
    os.waitpid(pid, 0)
    assert writer.append("parent after")
    found = [(event.producer, event.sequence, event.message) for event in events(writer.directory)]
    print(json.dumps({"found": found, "path": writer.directory.path}))
"""


@pytest.mark.parametrize("how", ["fork", "double", "c"])
def test_a_forked_child_is_another_producer(spawn: Spawn, how: str) -> None:
    """The child closes what it inherited; no (producer, sequence) is used twice; every record is there."""
    lines = [json.loads(line) for line in finish(spawn(FORK, how)).splitlines()]
    found = lines[-1]["found"]
    ids = Counter((producer, sequence) for producer, sequence, _ in found)
    assert max(ids.values()) == 1
    children = [line for line in lines if "ok" in line]
    assert all(line["ok"] for line in children)
    if how != "c":  # noticed at the first append only
        assert [line["inherited"] for line in children] == [[]] * len(children)
    processes = 3 if how == "double" else 2
    assert len({producer for producer, _, _ in found}) == processes
    assert len(found) == 2 * processes
    for producer in {producer for producer, _, _ in found}:
        assert [sequence for other, sequence, _ in found if other == producer] == [0, 1]


FORK_BESIDE_A_THREAD = """
    import os, sys, threading
    from cwsink.spool import descriptors

    path, when = sys.argv[1:]
    begun, go_on = threading.Event(), threading.Event()
    really_open, really_close = os.open, os.close

    def pause():
        begun.set()
        assert go_on.wait(60), "the fork waits for this thread"

    def open_slowly(*args, **more):
        fd = really_open(*args, **more)
        pause()
        return fd

    def close_slowly(fd):
        os.close = really_close
        if when == "closing":
            pause()
        really_close(fd)
        if when == "closed":
            os.dup2(foreign, fd)
            pause()

    def work():
        if when == "opening":
            os.open = open_slowly
            descriptors.opened(path, os.O_RDONLY)
        else:
            fd = descriptors.opened(path, os.O_RDONLY).keep()
            os.close = close_slowly
            descriptors.release(fd, descriptors.incarnation())

    foreign = really_open(os.devnull, os.O_RDONLY)
    thread = threading.Thread(target=work)
    thread.start()
    assert begun.wait(60)
    count = len(os.listdir("/dev/fd"))
    pid = os.fork()
    if pid == 0:
        links = [os.path.realpath(f"/dev/fd/{fd}") for fd in os.listdir("/dev/fd")]
        print(path in links, len(links) - count, flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
    go_on.set()
    thread.join()
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize(("when", "fewer"), [("opening", -1), ("closing", -1), ("closed", 0)])
def test_a_fork_waits_for_no_thread_and_the_child_has_nothing_of_it(
    spawn: Spawn, tmp_path: Path, when: str, fewer: int
) -> None:
    """Another thread opens or closes: the child has neither file nor lock, and keeps what has the number since."""
    path = tmp_path / "segment"
    path.touch()
    assert finish(spawn(FORK_BESIDE_A_THREAD, path, when)).split() == ["False", f"{fewer}"]


# Signal handlers, __del__, threads.

INTERRUPTIONS = [
    (segment, "attach_newest"),
    (segment, "create"),
    (segment, "numbers"),
    (budget.Budget, "has_room"),
    (descriptors, "opened"),
]


@pytest.mark.parametrize(("where", "name"), INTERRUPTIONS, ids=[name for _, name in INTERRUPTIONS])
@pytest.mark.parametrize("after", [False, True])
def test_an_append_may_interrupt_an_append_anywhere(
    small: SinkConfig, monkeypatch: pytest.MonkeyPatch, where: Any, name: str, after: bool
) -> None:
    """A signal handler or `__del__` that logs while this thread rotates: both records are there."""
    writer = Writer(small)
    real: Callable[..., Any] = getattr(where, name)
    busy: list[bool] = []
    answers: list[bool] = []

    def interrupted(*args: Any, **rest: Any) -> Any:
        if busy:
            return real(*args, **rest)
        busy.append(True)
        try:
            if not after:
                answers.append(writer.append(f"handler {len(answers)}"))
            result = real(*args, **rest)
            if after:
                answers.append(writer.append(f"handler {len(answers)}"))
            return result
        finally:
            busy.clear()

    with monkeypatch.context() as patch:
        patch.setattr(where, name, interrupted)
        mine = [f"main {number} {'.' * 200}" for number in range(60)]
        assert all(writer.append(message) for message in mine)
    assert answers
    assert all(answers)
    found = pending(writer.directory)
    assert [message for message in found if message.startswith("main")] == mine
    assert sorted(message for message in found if message.startswith("handler")) == sorted(
        f"handler {number}" for number in range(len(answers))
    )
    assert len(segments(writer.directory)) >= 3


def test_a_storm_of_signals_loses_and_blocks_nothing(small: SinkConfig) -> None:
    """Handlers that append while the main thread appends and rotates."""
    writer = Writer(small)
    handled = []
    mine = [f"main {number}" for number in range(5_000)]
    acknowledged: list[bool] = []

    def handle(*_: object) -> None:
        handled.append(writer.append(f"handler {len(handled)}"))
        # Only now: on a slow machine handlers must not pile up. A last signal may be handled when all is over, and the
        # next one would be for the time limit of the test.
        if len(acknowledged) < len(mine):
            signal.setitimer(signal.ITIMER_REAL, 0.0003)

    previous = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, 0.0003)
    try:
        acknowledged.extend(writer.append(message) for message in mine)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert all(acknowledged)
    assert all(handled)
    found = pending(writer.directory)
    assert [message for message in found if message.startswith("main")] == mine
    assert len(found) == len(mine) + len(handled)


def test_finalizers_may_append(small: SinkConfig) -> None:
    """`__del__`, run by the collector in the middle of an append, appends."""
    writer = Writer(small)
    said = []

    class Dying:
        def __init__(self) -> None:
            self.itself = self

        def __del__(self) -> None:
            said.append(writer.append(f"dying {len(said)}"))

    old = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for number in range(500):
            Dying()
            assert writer.append(f"living {number}")
    finally:
        gc.set_threshold(*old)
    gc.collect()
    assert len(said) == 500
    assert all(said)
    assert len(pending(writer.directory)) == 1000


def test_many_threads_append_and_rotate(small: SinkConfig) -> None:
    """Eight threads on one writer and the smallest segments: each record once, in its thread's order."""
    writer = Writer(small)
    count = 1_000
    refused = []

    def work(name: int) -> None:
        refused.extend(number for number in range(count) if not writer.append(f"{name} {number}"))

    threads = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not refused
    found: dict[str, list[int]] = {}
    for message in pending(writer.directory):
        name, number = message.split(" ")
        found.setdefault(name, []).append(int(number))
    assert found == {str(name): list(range(count)) for name in range(8)}


def test_an_append_takes_no_file_lock_that_can_be_held(small: SinkConfig) -> None:
    """Every lock file of the spool held by somebody else: appends go on. Invariant 8."""
    writer = Writer(small)
    held = []
    for path in (writer.directory.leader_lock, writer.directory.budget_lock, writer.directory.attached_lock):
        file = open(path, "w")  # noqa: SIM115  # closed below
        fcntl.flock(file, fcntl.LOCK_EX)
        held.append(file)
    try:
        began = time.monotonic()
        assert all(writer.append("." * 200) for _ in range(200))
        assert time.monotonic() - began < 30
    finally:
        for file in held:
            file.close()


def test_a_ring_answers_with_a_closed_set(small: SinkConfig) -> None:
    """Without its directory a ring says GONE; it never raises."""
    directory = open_existing(Writer(small).directory.path)
    os.rmdir(directory.ring)
    ring = Ring(directory, Capacity(small.spool_max_bytes, SMALL))
    assert ring.append(record.encode((0, 1, 0, "text"))) is Append.GONE


def test_leading_from_another_thread_disturbs_no_writer(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Rotation, delivery and reclaiming at once: all delivered, once, in order."""
    writer = Writer(small)
    messages = [f"{number} {'.' * 100}" for number in range(3_000)]
    with leading(writer.directory, small):
        assert all(writer.append(message) for message in messages)
        assert writer.flush(60)
    assert server.messages() == messages
    writer.close()
    deliver(writer.directory, small)
    assert len(segments(writer.directory)) == 1


# A start with a backlog.


@pytest.fixture
def behind(small: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> tuple[SpoolDirectory, list[int]]:
    """A spool with a backlog that is one, of a process that is gone; and its segments."""
    monkeypatch.setattr(segment, "BACKLOG_BYTES", 2 * SMALL)
    monkeypatch.setattr(rotation, "_WORTH_LEAVING_BYTES", SMALL // 2)
    directory = Writer(small).directory
    gone = Ring(directory, Capacity(16 * SMALL, SMALL, "drop_newest"))
    while len(segments(directory)) < 3 or segment_path(directory, 3).stat().st_size < SMALL // 2:
        assert append_text(gone) is Append.APPENDED
    gone.close()
    return directory, segments(directory)


def append_text(writing: Ring) -> Append:
    return writing.append(record.encode((1_700_000_000_000, 7, 1, "." * 400)))


def test_the_first_writer_after_a_start_keeps_out_of_the_backlog(behind: tuple[SpoolDirectory, list[int]]) -> None:
    """It begins a segment; those that come later, attached or not yet, share it."""
    directory, before = behind
    first, second = (Ring(directory, Capacity(16 * SMALL, SMALL, "drop_newest")) for _ in range(2))
    assert append_text(first) is Append.APPENDED
    assert append_text(second) is Append.APPENDED
    assert segments(directory) == [*before, before[-1] + 1]
    assert first.attached is not None
    assert second.attached is not None
    assert first.attached.key == second.attached.key


def test_a_writer_beside_others_goes_where_they_are(behind: tuple[SpoolDirectory, list[int]]) -> None:
    """Somebody is attached: the backlog may be his, and goes on."""
    directory, before = behind
    other = Attachment(directory)
    assert append_text(Ring(directory, Capacity(16 * SMALL, SMALL, "drop_newest"))) is Append.APPENDED
    assert segments(directory) == before
    other.close()


def test_who_asks_at_the_same_time_is_not_taken_for_attached(
    behind: tuple[SpoolDirectory, list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Workers start together: each that asks has the lock for a moment, and all of them keep out of the backlog."""
    directory, before = behind
    other = os.open(directory.attached_lock, os.O_RDWR | os.O_CREAT)
    fcntl.flock(other, fcntl.LOCK_EX)
    try_lock = descriptors.try_lock

    def try_and_let_the_other_go(fd: int, *, exclusive: bool) -> bool:
        is_held = try_lock(fd, exclusive=exclusive)
        fcntl.flock(other, fcntl.LOCK_UN)
        return is_held

    monkeypatch.setattr(descriptors, "try_lock", try_and_let_the_other_go)
    assert append_text(Ring(directory, Capacity(16 * SMALL, SMALL, "drop_newest"))) is Append.APPENDED
    assert segments(directory) == [*before, before[-1] + 1]
    os.close(other)


@pytest.mark.parametrize("why", ["no room", "small backlog", "small segment"])
def test_no_segment_is_begun_at_a_start_without_need(
    behind: tuple[SpoolDirectory, list[int]], why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is evicted for it, little is not worth it, and a crash loop does not leave a segment each time."""
    directory, before = behind
    if why == "small backlog":
        monkeypatch.setattr(segment, "BACKLOG_BYTES", 100 * SMALL)
    if why == "small segment":
        monkeypatch.setattr(rotation, "_WORTH_LEAVING_BYTES", 2 * SMALL)
    most = 16 * SMALL
    if why == "no room":
        most = ring_bytes(directory)
        Path(directory.capacity).unlink(missing_ok=True)  # a larger one would hold, because so much is pending
    assert append_text(Ring(directory, Capacity(most, SMALL))) is Append.APPENDED
    assert segments(directory) == before
