"""A host in one process: writers, leaders that stop at every step, a disk that fails, a power that fails.

A writer is a `Writer` object, killed by forgetting it; a leader is a `Flusher` in a greenlet, which comes back at
each step that another process could see (before a request, after it is stored, before and after a commit, an
unlink, at each wait) and may then be killed, overtaken, or let on. A flock belongs to the open file, so
locks hold between them as between processes. Time stands still until somebody waits.

`SimulatedHost` also keeps the books that no code under test can fake: where each record was written, what became of it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import random
import tempfile
import threading
import traceback
import types
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple
from unittest import mock

from greenlet import getcurrent, greenlet

from cwsink.config import SinkConfig
from cwsink.flusher import durability as durability_module
from cwsink.flusher import flusher as flusher_module
from cwsink.flusher.claim import Lease
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.commits import Cursor, Fenced
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.delivery import Stopped
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.instructions import config_of
from cwsink.flusher.orders import Orders
from cwsink.frontends import presence
from cwsink.frontends import writer as writer_module
from cwsink.frontends.writer import Writer
from cwsink.spool import directory, disk, frame, record, ring, segment, sending
from cwsink.spool.budget import read_evictions
from cwsink.spool.cursor import SLOT_BYTES, State
from cwsink.spool.open_directory import OpenDirectory
from cwsink.spool.segment import SegmentKey
from tests.harness.fake_cloudwatch import FakeCloudWatch
from tests.harness.support import Killed, quick_config

SEGMENT_BYTES: Final = 4096
CAP_BYTES: Final = 8 * SEGMENT_BYTES
MAX_BATCH_EVENTS: Final = 8
MAX_EVENT_BYTES: Final = 2_000
# 2026-01-02, so that a year earlier is a time as well.
BEGAN_NS: Final = 1_767_312_000 * 10**9
SECTOR_BYTES: Final = 512
# A leader that comes back this often without an end spins.
MOST_STEPS: Final = 20_000

_real = types.SimpleNamespace(
    write=os.write,
    pwrite=os.pwrite,
    remove=OpenDirectory.remove,
    link=OpenDirectory.link,
    rename=OpenDirectory.rename,
    move=OpenDirectory.move,
    commit=Cursor.commit,
    bury=DeadLetters.add,
)


class Place(NamedTuple):
    """Where a record lies: its segment, and its bytes [start, end) in it."""

    key: SegmentKey
    start: int
    end: int


class _Pause(threading.Event):
    """What an idle leader waits on: a step."""

    def __init__(self, step: Callable[[str], None]) -> None:
        super().__init__()
        self._step = step

    def wait(self, timeout: float | None = None) -> bool:
        self._step("idle")
        return self.is_set()


class _Orders(Orders):
    def __init__(self, step: Callable[[str], None]) -> None:
        super().__init__()
        self.stop = _Pause(step)
        self.hurry.set()


class Leader:
    """A process that leads."""

    def __init__(self, host: SimulatedHost) -> None:
        self._host = host
        self.is_killed = False
        self.epoch = 0
        self.will_tear_commit = False
        self.orders = _Orders(host.step)
        self._greenlet = greenlet(self._run)
        self.step()

    @property
    def is_alive(self) -> bool:
        return not self._greenlet.dead

    def step(self) -> str:
        """Let it go on to its next step, and return which; "end" if it has left."""
        self._host.leaders_by_greenlet[self._greenlet] = self
        return self._greenlet.switch() or "end"

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self.is_killed = True
        if self.is_alive:
            self._greenlet.throw(Killed)
        assert not self.is_alive

    def drain(self) -> None:
        """Let it deliver all there is, and leave."""
        self.orders.drain(float("inf"))
        for _ in range(MOST_STEPS):
            if not self.is_alive:
                return
            self.step()
        raise AssertionError("the leader spins")

    def _run(self) -> None:
        host = self._host
        lease = Lease(host.spool)
        try:
            if not lease.try_acquire():
                return
            config = config_of(host.spool)
            flusher = Flusher(host.spool, config, lease, self.orders, kind="own")
            self.epoch = flusher.epoch
            flusher.lead()
        except (Stopped, Fenced, Killed):
            pass
        except OSError:
            # Its election says so and it stands again; only a disk that fails may be the cause.
            if not host.disk_was_full:
                raise
        finally:
            lease._lock.release(force=True)


class SimulatedHost:
    """One spool, all that lives on it, and what is known about each record.

    Attributes:
        issued: every message ever given to `append`, with its time.
        written: whose frame is wholly in a segment, and where; acknowledged or not.
        acknowledged: whose append returned True.
        excused: may be gone: the disk lost or changed their bytes.
        evicted: were in a segment that a writer has evicted.
        buried: were made dead letters.
        kills: of leaders, and how often one was superseded: each may repeat one batch.
        is_damaged: bytes on the disk were changed or lost, so counts may be off.
    """

    def __init__(self, on_full: str, durability: str, keep_delivered: str | None = None) -> None:
        self._root = tempfile.TemporaryDirectory()
        self._patches = contextlib.ExitStack()
        self.main = getcurrent()
        self.leaders_by_greenlet: dict[greenlet, Leader] = {}
        self.true_ns = BEGAN_NS
        self.clock_offset_ns = 0
        self.monotonic = 1_000.0
        self.kill_in: int | None = None  # steps of the writer that appends
        self._is_dying = False
        self.free_bytes: int | None = None
        self.disk_was_full = False
        self.tear_at: int | None = None
        self.issued: dict[str, int] = {}
        self.written: dict[str, Place] = {}
        self.acknowledged: set[str] = set()
        self.excused: set[str] = set()
        self.evicted: set[str] = set()
        self.buried: set[str] = set()
        self.kills = 0
        self.is_damaged = False
        self._damaged_copies: defaultdict[SegmentKey, set[int]] = defaultdict(set)  # of each segment's header
        self._keys: dict[tuple[int, int], SegmentKey] = {}
        self._durable: dict[SegmentKey, int] = {}
        self._durable_names: set[str] = set()
        self._unlinked: dict[str, bytes] = {}
        self._durable_cursor = b""
        self.cloudwatch = FakeCloudWatch(lambda: self.true_ns // 1_000_000)
        self.cloudwatch.before = lambda client: self.step("put")
        self.cloudwatch.after = lambda client: self.step("stored")
        self._patch()
        self.config: SinkConfig = quick_config(
            spool_directory=self._root.name,
            segment_bytes=SEGMENT_BYTES,
            spool_max_bytes=CAP_BYTES,
            flusher="external",
            on_full=on_full,
            durability=durability,
            max_batch_events=MAX_BATCH_EVENTS,
            max_event_bytes=MAX_EVENT_BYTES,
            keep_delivered=keep_delivered,
        )
        self.spool = directory.open_for(self.config)
        sending.leave(self.spool, self.config)

    def close(self) -> None:
        """Kill what is left, and undo all patches."""
        try:
            for leader in list(self.leaders_by_greenlet.values()):
                leader.kill()
        finally:
            if (mine := presence.this._presences.pop(self.spool.path, None)) is not None:
                mine.detach()
            self._patches.close()
            self._root.cleanup()

    # What processes do.

    def step(self, name: str) -> None:
        """Be at a point where another process may act, or this one be killed."""
        leader = self.leaders_by_greenlet.get(getcurrent())
        if leader is not None:
            if leader.is_killed:
                raise Killed
            self.main.switch(name)
            return
        if self._is_dying:
            raise Killed
        if self.kill_in is not None:
            self.kill_in -= 1
            if self.kill_in < 0:
                self.kill_in = None
                self._is_dying = True
                raise Killed

    def append(self, writer: Writer, message: str) -> bool:
        """Have a writer append. Returns whether it lives; False: it was killed in the middle."""
        self.issued[message] = self.now_ns() // 1_000_000
        return self._write_to_its_end(lambda: writer.append(message), message)

    def draw(self, writer: Writer, message: str) -> Callable[[], bool]:
        """Have a thread of a writer draw its record's sequence; it is written when the answer is called."""
        self.issued[message] = self.now_ns() // 1_000_000
        payload = writer.prepare(message)
        assert payload is not None
        return lambda: self._write_to_its_end(lambda: writer.try_append(payload) is ring.Append.APPENDED, message)

    def _write_to_its_end(self, write: Callable[[], bool], message: str) -> bool:
        try:
            if write():
                self.acknowledged.add(message)
            return True
        except Killed as killed:
            error: BaseException | None = killed
            while error is not None:  # its frames hold segments, and may hold each other
                traceback.clear_frames(error.__traceback__)
                error = error.__context__
            return False
        finally:
            self._is_dying = False
            self.kill_in = self.tear_at = None

    def forget(self, writer: Writer) -> None:
        """SIGKILL a writer's process: the kernel closes what it had open."""
        writer._ring.attached = None

    def now_ns(self) -> int:
        """The wall clock as the writers see it."""
        return self.true_ns + self.clock_offset_ns

    def pass_time(self, seconds: float) -> None:
        self.true_ns += int(seconds * 1e9)
        self.monotonic += seconds

    # What happens to the disk.

    def files(self) -> list[str]:
        """Return the paths of what may be damaged: segments, cursor, evictions, dead letters, settings."""
        names = [segment.path_of(self.spool.ring, number) for number in segment.numbers(self.spool.ring)]
        spool = self.spool
        others = [spool.cursor, spool.evictions, spool.dead_letters, spool.leader_state, spool.sending]
        return names + [path for path in others if os.path.exists(path)]

    def flip(self, path: str, share: float, bit: int) -> None:
        """Change one bit of a file, at this share of its length."""
        with open(path, "r+b") as file:
            size = os.fstat(file.fileno()).st_size
            if not size:
                return
            at = int(share * size)
            if path == self.spool.cursor:
                at = int(share * 400) + (SLOT_BYTES if bit % 2 else 0)  # the slots are mostly empty
            self.is_damaged = True
            if path.endswith(".seg"):
                self._excuse(file.fileno(), at, at + 1)
            byte = os.pread(file.fileno(), 1, at) or b"\0"
            _real.pwrite(file.fileno(), bytes([byte[0] ^ 1 << bit]), at)

    def lose_power(self, chance: random.Random) -> None:
        """All processes end; of what was written since the last sync each sector, name and rename may be lost."""
        for leader in list(self.leaders_by_greenlet.values()):
            leader.kill()
        self.is_damaged = True
        for path, content in self._unlinked.items():
            if chance.random() < 0.5 and not os.path.exists(path):
                with open(path, "wb") as file:
                    file.write(content)
        for number in segment.numbers(self.spool.ring):
            self._lose_of_segment(segment.path_of(self.spool.ring, number), chance)
        self._lose_of_cursor(chance)
        spool = self.spool
        for path in (spool.evictions, spool.leader_state, spool.leader_host, spool.dead_letters, spool.sending):
            if os.path.exists(path) and chance.random() < 0.3:
                with open(path, "r+b") as file:
                    file.truncate(chance.choice((0, os.fstat(file.fileno()).st_size // 2)))
        self._unlinked.clear()

    def _lose_of_segment(self, path: str, chance: random.Random) -> None:
        with open(path, "r+b") as file:
            fd = file.fileno()
            key, size = self._key(fd), os.fstat(fd).st_size
            durable = self._durable.get(key, 0) if key else 0
            if path not in self._durable_names and chance.random() < 0.3:
                self._excuse(fd, 0, size)
                os.unlink(path)
                return
            if size > durable and chance.random() < 0.6:
                cut = chance.randrange(durable, size)
                self._excuse(fd, cut, size)
                file.truncate(cut)
                size = cut
            for start in range(durable, size, SECTOR_BYTES):
                if chance.random() < 0.2:
                    end = min(start + SECTOR_BYTES, size)
                    self._excuse(fd, start, end)
                    _real.pwrite(fd, bytes(end - start), start)

    def _lose_of_cursor(self, chance: random.Random) -> None:
        if not os.path.exists(self.spool.cursor):
            return
        with open(self.spool.cursor, "r+b") as file:
            for start in (0, SLOT_BYTES):
                if chance.random() < 0.5:
                    old = self._durable_cursor[start : start + SLOT_BYTES]
                    _real.pwrite(file.fileno(), old or bytes(SECTOR_BYTES), start)

    def _excuse(self, fd: int, start: int, end: int) -> None:
        """The bytes [start, end) of a segment are about to change: what lies there may be lost."""
        key = self._key(fd)
        if key is None:
            return
        for copy_at in (0, segment.SECOND_COPY_AT):
            if start < copy_at + segment.COPY_BYTES and copy_at < end:
                self._damaged_copies[key].add(copy_at)
        for message, place in self.written.items():
            if place.key == key and (self._is_header_lost(key) or (place.start < end and start < place.end)):
                self.excused.add(message)

    def _is_header_lost(self, key: SegmentKey) -> bool:
        return len(self._damaged_copies[key]) == 2

    # The seams.

    def _patch(self) -> None:
        """Put this host in the place of the kernel's calls, the clocks and CloudWatch."""

        def put(target: object, name: str, value: object) -> None:
            self._patches.enter_context(mock.patch.object(target, name, value))

        clock = types.SimpleNamespace(
            monotonic=lambda: self.monotonic,
            thread_time=lambda: self.monotonic,
            time=lambda: self.now_ns() / 1e9,
            sleep=self._sleep,
        )
        put(flusher_module, "time", clock)
        put(durability_module, "time", clock)
        put(
            durability_module.Durability, "beside", lambda _: contextlib.nullcontext()
        )  # nobody waits here for an answer
        put(segment, "time", types.SimpleNamespace(time=lambda: self.now_ns() / 1e9, time_ns=self.now_ns))
        for module in (ring, writer_module):
            put(module, "time_ns", self.now_ns)
            put(module, "monotonic", lambda: self.monotonic)
            put(module, "_write", self._write_frame)
        put(os, "urandom", random.Random(0).randbytes)  # salts and producers: the same story twice is the same
        put(os, "write", self._write)
        put(os, "pwrite", self._pwrite)
        put(disk, "reserve", self._reserve)
        put(disk, "sync", self._sync)
        put(CloudWatch, "put", self.cloudwatch.method())
        # Functions, not methods of ours: only those are given the object they are called on.
        put(OpenDirectory, "remove", lambda held, name: self._remove(held, name))  # noqa: PLW0108
        put(OpenDirectory, "link", lambda held, *names: self._link(held, *names))  # noqa: PLW0108
        put(OpenDirectory, "rename", lambda held, *names: self._rename(held, *names))  # noqa: PLW0108
        put(OpenDirectory, "move", lambda held, *names: self._move(held, *names))  # noqa: PLW0108
        put(OpenDirectory, "sync", lambda held: self._sync_directory(held))  # noqa: PLW0108
        put(Cursor, "commit", lambda held, state: self._commit(held, state))  # noqa: PLW0108
        put(Cursor, "sync", lambda held: self._sync_cursor(held))  # noqa: PLW0108
        put(DeadLetters, "add", lambda letters, *rest: self._bury(letters, *rest))  # noqa: PLW0108

    def _sleep(self, seconds: float) -> None:
        self.pass_time(max(seconds, 5.0))
        self.step("sleep")

    def _write_frame(self, fd: int, data: bytes) -> int:
        self.step("write")
        if self.tear_at is not None:
            _real.write(fd, data[: min(self.tear_at, len(data) - 1)])
            self._is_dying = True
            raise Killed
        written = self._write(fd, data)
        if written == len(data):
            self._note(fd, data)
        self.step("written")
        return written

    def _note(self, fd: int, data: bytes) -> None:
        """Remember where a record lies."""
        event = record.event_of(data[frame.HEADER_BYTES :]) if data[16] == frame.EVENT else None
        key = self._key(fd)
        if event is not None and key is not None:
            end = os.lseek(fd, 0, os.SEEK_CUR)
            self.written[event.message] = Place(key, end - len(data), end)
            if self._is_header_lost(key):
                self.excused.add(event.message)

    def _key(self, fd: int) -> SegmentKey | None:
        """Return which segment a file is, also if its header has been damaged since."""
        status = os.fstat(fd)
        file = status.st_dev, status.st_ino
        if (header := segment.read_header(fd)) is not None:
            self._keys[file] = header.key
        return self._keys.get(file)

    def _write(self, fd: int, data: bytes) -> int:
        if fd == 2:
            return len(data)
        if self.free_bytes is not None:
            if self.free_bytes == 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            data = data[: self.free_bytes]
            self.free_bytes -= len(data)
        return _real.write(fd, data)

    def _pwrite(self, fd: int, data: bytes, offset: int) -> int:
        leader = self.leaders_by_greenlet.get(getcurrent())
        if leader is not None and leader.will_tear_commit:
            _real.pwrite(fd, data[: len(data) // 2], offset)
            leader.is_killed = True
            self.kills += 1
            raise Killed
        return _real.pwrite(fd, data, offset)

    def _reserve(self, fd: int, size_bytes: int, start: int = 0) -> bool:
        if self.free_bytes is not None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return True

    def _remove(self, held: OpenDirectory, name: str) -> None:
        if name.endswith(".seg"):
            path = f"{held.path}/{name}"
            self.step("unlink")
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                key = self._key(file.fileno())
                self._unlinked[path] = file.read()
                # By a writer, or by a leader that finishes what an evictor has begun.
                if getcurrent() is self.main or key == read_evictions(self.spool).last_evicted:
                    self.evicted |= {message for message, place in self.written.items() if place.key == key}
        elif self._is_dying:
            raise Killed
        _real.remove(held, name)

    def _link(self, held: OpenDirectory, name: str, another: str) -> None:
        self.step("link")
        _real.link(held, name, another)
        self.step("linked")

    def _rename(self, held: OpenDirectory, old: str, new: str) -> None:
        if new == "evictions":
            self.step("evict")
        _real.rename(held, old, new)
        if new == "evictions":
            self.step("evicted")

    def _move(self, held: OpenDirectory, name: str, into: OpenDirectory) -> None:
        self.step("move")
        _real.move(held, name, into)
        self.step("moved")

    def _sync(self, fd: int) -> None:
        if (key := self._key(fd)) is not None:
            self._durable[key] = os.fstat(fd).st_size

    def _sync_directory(self, held: OpenDirectory) -> None:
        self._durable_names = {segment.path_of(held.path, number) for number in segment.numbers_in(held)}
        self._unlinked.clear()

    def _commit(self, held: Cursor, state: State) -> None:
        self.step("commit")
        _real.commit(held, state)
        self.step("committed")

    def _sync_cursor(self, held: Cursor) -> None:
        self._durable_cursor = os.pread(held._fd, 2 * SLOT_BYTES, 0)

    def _bury(self, letters: DeadLetters, reason: str, error: str, events: list[record.Event]) -> None:
        _real.bury(letters, reason, error, events)
        self.buried |= {event.message for event in events}


@contextlib.contextmanager
def simulated_host(on_full: str = "drop_oldest", durability: str = "process") -> Iterator[SimulatedHost]:
    """A host for the time of the block."""
    made = SimulatedHost(on_full, durability)
    try:
        yield made
    finally:
        made.close()
