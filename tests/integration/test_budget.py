"""When the spool is full: the cap holds at every moment, and every drop is counted exactly."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import os
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen
from types import FrameType, SimpleNamespace
from typing import Any

import msgspec
import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher.commits import Cursor
from cwsink.frontends import presence
from cwsink.frontends.fapilog_sink import CloudWatchSpoolSink
from cwsink.spool import budget, capacity, cursor, descriptors, files, frame, record, rotation, segment
from cwsink.spool.directory import SpoolDirectory, open_existing
from cwsink.spool.ring import Append, Ring
from cwsink.spool.segment import AttachedSegment
from cwsink.spool.survey import Survey, events, open_segments, survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import deliver, leading, on_write, ring_bytes, segments, until
from tests.harness.support import CHILD_SECONDS, Killed, finish, is_ours, quick_config, told_lost

SEGMENT = 16 * 1024
CAP = 8 * SEGMENT
POLICIES = ("drop_oldest", "drop_newest", "block")
# Beyond the cap and one segment: what four writers append between two looks, and a page of each one's next header.
SLACK = 4 * (1024 + 4096)


def full_config(url: str | None, on_full: str, **settings: object) -> SinkConfig:
    defaults: dict[str, object] = {
        "on_full": on_full,
        "spool_max_bytes": CAP,
        "segment_bytes": SEGMENT,
        "block_timeout_seconds": 0.05,
        "flusher": "external",
    }
    return quick_config(url, **{**defaults, **settings})


def full_writer(url: str) -> Writer:
    """Return a writer whose last append was refused."""
    writer = Writer(full_config(url, "drop_newest"))
    while writer.append("x" * 300):
        pass
    return writer


@contextmanager
def watched(spool: SpoolDirectory) -> Iterator[list[int]]:
    """Measure the ring in a thread, as often as it can be, for as long as the block runs."""
    sizes: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            sizes.append(ring_bytes(spool))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield sizes
    finally:
        over.set()
        thread.join()


def check_books(spool: SpoolDirectory, *, attempts: int, appended: int) -> Survey:
    books = survey(spool)
    assert books.adds_up, books
    assert books.appended == appended, books
    assert books.appended + books.refused.get("spool_full", 0) == attempts, books
    assert set(books.refused) <= {"spool_full"}
    return books


def records(server: StrictCloudWatch) -> list[str]:
    return [text for text in server.messages() if not is_ours(text)]


def told(server: StrictCloudWatch, reason: str) -> int:
    """Sum what the stream was told about records lost for `reason`."""
    return told_lost(server.messages(), reason)


@pytest.mark.parametrize("on_full", POLICIES)
def test_with_no_leader_alive_the_cap_holds_and_drops_are_counted(server: StrictCloudWatch, on_full: str) -> None:
    """Ten times the budget is appended; the ring never exceeds it by more than a segment. Invariant 6."""
    config = full_config(server.endpoint_url, on_full, block_timeout_seconds=0.0)
    writer = Writer(config)
    attempts = 4_000
    with watched(writer.directory) as sizes:
        answers = [writer.append(f"{number} {'x' * 300}") for number in range(attempts)]
    assert max(sizes) <= CAP + SEGMENT + SLACK
    writer.close()
    books = check_books(writer.directory, attempts=attempts, appended=sum(answers))
    left = [int(event.message.split(" ")[0]) for event in events(writer.directory)]
    if on_full == "drop_oldest":
        assert all(answers)
        assert left == list(range(attempts - len(left), attempts)), "not the oldest ones went"
        assert books.evicted == attempts - len(left)
    else:
        assert left == [number for number, answer in enumerate(answers) if answer]
        assert books.evicted == 0
    assert len(left) * 330 > CAP // 2, "the budget is not used"
    deliver(writer.directory, config)
    assert [int(text.split(" ")[0]) for text in records(server)] == left
    assert told(server, "spool_full") == books.refused.get("spool_full", 0)
    assert told(server, "evicted (spool_full)") == books.evicted
    assert len(segments(writer.directory)) == 1


WORKER = """
    import sys
    from cwsink import Writer
    from cwsink.config import SinkConfig
    import msgspec

    config = SinkConfig(**msgspec.json.decode(sys.argv[1]))
    name, count = sys.argv[2], int(sys.argv[3])
    writer = Writer(config)
    print("ready", flush=True)
    sys.stdin.readline()
    print(sum(writer.append(f"{name} {number} {'x' * 300}") for number in range(count)), flush=True)
"""


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest"])
def test_four_processes_together_keep_the_cap(spawn: Spawn, server: StrictCloudWatch, on_full: str) -> None:
    """All rotate, evict and refuse at once: the cap holds and the counts of all add up. Invariant 6."""
    config = full_config(server.endpoint_url, on_full)
    spool = Writer(config).directory
    count = 3_000
    settings = msgspec.json.encode({key: value for key, value in asdict(config).items() if value is not None}).decode()
    children = [spawn(WORKER, settings, name, count) for name in "abcd"]
    for child in children:
        assert child.stdout
        assert child.stdout.readline() == "ready\n"
    with watched(spool) as sizes:
        for child in children:
            assert child.stdin
            child.stdin.write("go\n")
            child.stdin.flush()
        appended = sum(int(finish(child)) for child in children)
    assert max(sizes) <= CAP + SEGMENT + SLACK
    books = check_books(spool, attempts=4 * count, appended=appended)
    assert (books.evicted > 0) == (on_full == "drop_oldest")
    before = books.refused.get("spool_full", 0)
    deliver(spool, config)
    assert told(server, "spool_full") == before
    assert told(server, "evicted (spool_full)") == books.evicted
    assert len(records(server)) == books.pending


@pytest.mark.parametrize("on_full", POLICIES)
def test_with_a_leader_and_the_server_down_the_cap_holds_and_all_is_told_later(
    server: StrictCloudWatch, on_full: str
) -> None:
    """A leader that cannot send keeps its batch; when CloudWatch is back the counts arrive in the stream."""
    config = full_config(server.endpoint_url, on_full, block_timeout_seconds=0.01, circuit_breaker_enabled=False)
    writer = Writer(config)
    server.stop()
    attempts = 2_000 if on_full != "block" else 450
    with leading(writer.directory, config):
        with watched(writer.directory) as sizes:
            appended = sum(writer.append(f"{number} {'x' * 300}") for number in range(attempts))
        assert max(sizes) <= CAP + SEGMENT + SLACK
        books = survey(writer.directory)
        assert books.delivered == 0
        assert appended < attempts or books.evicted > 0
        server.start()
        until(lambda: len(records(server)) >= 20, "delivering again")
        until(lambda: writer.append("room again"), "room again")
        assert writer.flush(60)
        writer.close()
    deliver(writer.directory, config)
    books = survey(writer.directory)
    assert (books.adds_up, books.pending) == (True, 0)
    assert len(records(server)) == books.delivered
    assert books.delivered + books.evicted == books.appended >= appended + 1
    assert told(server, "spool_full") == books.refused.get("spool_full", 0)
    assert told(server, "evicted (spool_full)") == books.evicted


def test_many_threads_at_a_full_spool_keep_the_cap(server: StrictCloudWatch) -> None:
    """A thread that passes by the one who looks for room is refused too, and each refusal is counted."""
    config = full_config(server.endpoint_url, "drop_newest")
    writer = Writer(config)
    each = 2_000
    appended: list[int] = []

    def work() -> None:
        appended.append(sum(writer.append("x" * 300) for _ in range(each)))

    threads = [threading.Thread(target=work) for _ in range(8)]
    with watched(writer.directory) as sizes:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert max(sizes) <= CAP + SEGMENT + SLACK
    writer.close()
    check_books(writer.directory, attempts=8 * each, appended=sum(appended))


def test_a_full_spool_refuses_whoever_passes_by_the_one_who_looks(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While one thread looks for room, and found none last time, another one does not append on."""
    writer = full_writer(server.endpoint_url)
    has_room = budget.Budget.has_room
    answers: list[bool] = []

    def look(self: budget.Budget) -> bool:
        monkeypatch.setattr(budget.Budget, "has_room", has_room)
        answers.extend(writer.append("passing by") for _ in range(10))
        return has_room(self)

    monkeypatch.setattr(budget.Budget, "has_room", look)
    until(lambda: not writer.append("looks") and bool(answers), "a look")
    assert answers == [False] * 10


def test_who_found_no_room_is_refused_for_that_though_another_has_found_some_since(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader makes room, and another thread appends, before the first one says why it could not: no disk fails."""
    writer = full_writer(server.endpoint_url)
    before = survey(writer.directory).refused
    check = Ring._check
    answers: list[bool] = []

    def overtaken(self: Ring, now: int) -> AttachedSegment | Append:
        found = check(self, now)
        monkeypatch.setattr(Ring, "_check", check)
        deliver(writer.directory, writer.config)
        while not answers or not answers[-1]:
            answers.append(writer.append("of another thread"))
        return found

    monkeypatch.setattr(Ring, "_check", overtaken)
    assert not writer.append("refused")
    assert survey(writer.directory).refused == {"spool_full": before["spool_full"] + answers.count(False) + 1}


def test_threads_that_are_refused_at_once_are_all_counted(server: StrictCloudWatch) -> None:
    """Eight threads are refused 8,000 times: the count is exact."""
    config = full_config(server.endpoint_url, "drop_newest")
    writer = Writer(config)
    appended = 0
    while writer.append("x" * 300):
        appended += 1
    each = 1_000

    def work() -> None:
        for _ in range(each):
            writer._losses.add("spool_full", 1_700_000_000_000)
            writer.mark_losses()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    writer.close()
    assert survey(writer.directory).refused["spool_full"] == 8 * each + 1


@pytest.mark.parametrize("on_full", POLICIES)
def test_no_wait_of_an_append_goes_by_a_clock_that_can_be_frozen(monkeypatch: pytest.MonkeyPatch, on_full: str) -> None:
    """An application's tests freeze `time.monotonic`. Another process keeps the lock that each refusal tries to get."""
    readers: list[str] = []

    def frozen(real: Callable[[], float] = time.monotonic) -> float:
        readers.append(sys._getframe(1).f_code.co_filename)
        return real()

    writer = Writer(full_config("http://127.0.0.1:9", on_full))
    with files.opened(writer.directory.refusals, os.O_RDWR) as held, monkeypatch.context() as patch:
        patch.setattr(time, "monotonic", frozen)
        fcntl.flock(held.fd, fcntl.LOCK_EX)
        appended = sum(writer.append("x" * 1000) for _ in range(2 * CAP // 1000))
    assert readers == []
    writer.close()
    check_books(writer.directory, attempts=2 * CAP // 1000, appended=appended)


def test_drop_newest_refuses_and_says_so(server: StrictCloudWatch, capfd: pytest.CaptureFixture[str]) -> None:
    """append answers False, one line says that records are lost, and room makes it answer True again."""
    writer = full_writer(server.endpoint_url)
    assert not writer.append("refused")
    assert capfd.readouterr().err.count("LOST 1 record (1 in all): the spool is full") == 1
    deliver(writer.directory, writer.config)
    until(lambda: writer.append("accepted"), "room")
    deliver(writer.directory, writer.config)
    assert records(server)[-1] == "accepted"


def test_block_waits_at_most_its_timeout(server: StrictCloudWatch) -> None:
    """A blocked append gives up after block_timeout_seconds, is counted once, and returns False. Invariant 8."""
    config = full_config(server.endpoint_url, "block", block_timeout_seconds=0.0)
    filler = Writer(config)
    while filler.append("x" * 300):
        pass
    filler.close()
    before = survey(filler.directory).refused["spool_full"]
    writer = Writer(full_config(server.endpoint_url, "block", block_timeout_seconds=0.3))
    began = time.monotonic()
    assert not writer.append("waits")
    assert 0.3 <= time.monotonic() - began < 10
    writer.close()
    assert survey(writer.directory).refused["spool_full"] == before + 1


def test_a_blocked_append_goes_on_when_there_is_room(server: StrictCloudWatch) -> None:
    """Delivering makes room, and the waiting record is appended: once."""
    config = full_config(server.endpoint_url, "block", block_timeout_seconds=60.0)
    filler = Writer(full_config(server.endpoint_url, "drop_newest"))
    count = 0
    while filler.append("x" * 300):
        count += 1
    filler.close()
    writer = Writer(config)
    answers: list[bool] = []
    thread = threading.Thread(target=lambda: answers.append(writer.append("waited")))
    thread.start()
    deliver(writer.directory, config)
    thread.join(60)
    assert answers == [True]
    deliver(writer.directory, config)
    assert records(server).count("waited") == 1
    assert len(records(server)) == count + 1


class TaskTimeLimitError(Exception):
    """What a signal handler raises, as Celery's."""


INTERRUPTED: dict[str, tuple[object, str]] = {
    "while it sleeps": (time, "sleep"),
    "while it looks for room": (budget.Budget, "has_room"),
    "while it looks for a flusher": (presence.Presence, "look"),
}


@pytest.mark.parametrize("limit", [TaskTimeLimitError, KeyboardInterrupt])
@pytest.mark.parametrize("where", INTERRUPTED)
def test_a_wait_for_room_that_a_signal_handler_ends_is_counted(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, where: str, limit: type[BaseException]
) -> None:
    """The task hears that its time is over, and its record is refused: once, and before the call ends."""
    filler = Writer(full_config(server.endpoint_url, "drop_newest"))
    while filler.append("x" * 300):
        pass
    before = survey(filler.directory)
    writer = Writer(full_config(server.endpoint_url, "block", block_timeout_seconds=60.0))

    def handle(number: int, interrupted: FrameType | None) -> None:
        raise limit

    sleep = time.sleep

    def interrupt(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGALRM)

    def begin(seconds: float) -> None:
        sleep(seconds)
        monkeypatch.setattr(*INTERRUPTED[where], interrupt)

    monkeypatch.setattr(*INTERRUPTED["while it sleeps"], begin)
    handler = signal.signal(signal.SIGALRM, handle)
    try:
        with pytest.raises(limit):
            writer.append("waits")
    finally:
        signal.signal(signal.SIGALRM, handler)
    after = survey(filler.directory)
    assert after.refused["spool_full"] == before.refused["spool_full"] + 1
    assert after.pending == before.pending


@pytest.mark.parametrize("end", ["the task is cancelled", "its loop is closed"])
def test_a_wait_for_room_of_a_task_that_ends_is_counted(server: StrictCloudWatch, end: str) -> None:
    """Whatever ends it: nobody will write the record."""
    filler = Writer(full_config(server.endpoint_url, "drop_newest"))
    while filler.append("x" * 300):
        pass
    before = survey(filler.directory).refused["spool_full"]
    sink = CloudWatchSpoolSink(full_config(server.endpoint_url, "block", block_timeout_seconds=60.0))

    async def begin() -> None:
        task = asyncio.get_running_loop().create_task(sink.write({"message": "waits"}))
        for _ in range(3):
            await asyncio.sleep(0)
        if end == "the task is cancelled":
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    del loop
    gc.collect()
    assert survey(filler.directory).refused["spool_full"] == before + 1


@pytest.mark.parametrize("flow", ["append", "sink"])
def test_under_block_an_error_of_the_disk_is_counted_once_and_not_waited_for(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, flow: str
) -> None:
    """Blocking is for a full spool. An I/O error is refused at once, and one record is one refusal."""
    config = full_config(server.endpoint_url, "block", block_timeout_seconds=60.0)
    sink = CloudWatchSpoolSink(config)
    writer = sink._writer
    assert writer.append("before")

    def fail(fd: int, data: bytes) -> int:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as broken:
        on_write(broken, fail)
        began = time.monotonic()
        if flow == "append":
            assert not writer.append("lost")
        else:
            assert not asyncio.run(sink.write({"message": "lost", "timestamp": 1.0}))
        assert time.monotonic() - began < 30
    writer.close()
    assert survey(writer.directory).refused == {"io_error": 1}


@pytest.mark.parametrize("room", [False, True])
def test_the_sink_waits_without_blocking_the_event_loop(server: StrictCloudWatch, room: bool) -> None:
    """Under "block" another task of the loop runs on while `write` waits for room."""
    config = full_config(server.endpoint_url, "block", block_timeout_seconds=0.0)
    filler = Writer(config)
    while filler.append("x" * 300):
        pass
    filler.close()
    refused = survey(filler.directory).refused["spool_full"]
    timeout = 60.0 if room else 0.3
    sink = CloudWatchSpoolSink(full_config(server.endpoint_url, "block", block_timeout_seconds=timeout))

    async def run() -> tuple[int, bool, bool]:
        entry = {"message": "waits", "timestamp": "2024-01-01T00:00:00Z"}
        ticks = 0
        waiting = [
            asyncio.create_task(sink.write(entry)),
            asyncio.create_task(sink.write_serialized(SimpleNamespace(data=b'{"message": "serialized"}'))),
        ]
        while not all(task.done() for task in waiting):
            await asyncio.sleep(0.001)
            ticks += 1
            if room and ticks == 20:
                await asyncio.to_thread(deliver, sink._writer.directory, config)
        return ticks, waiting[0].result(), waiting[1].result()

    ticks, *answers = asyncio.run(run())
    assert ticks >= 20
    assert answers == [room, room]
    sink._writer.close()
    assert survey(filler.directory).refused["spool_full"] == refused + 2 * (not room)


# Eviction under a kill at any point.


def full_spool(url: str) -> tuple[Writer, int]:
    """A spool whose next segment needs an eviction, and how many records it holds."""
    config = full_config(url, "drop_oldest")
    writer = Writer(full_config(url, "drop_newest"))
    count = 0
    while writer.append("x" * 300):
        count += 1
    writer.close()
    return Writer(config), count


@pytest.mark.parametrize("step", ["open", "replace", "unlink", "unlinked"])
def test_an_evictor_that_dies_counts_nothing_twice(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Killed before, between or after writing `evictions` and unlinking: each record has one fate. Invariant 10."""
    writer, count = full_spool(server.endpoint_url)
    spool = writer.directory
    refused = survey(spool).refused
    oldest = segments(spool)[0]
    path = segment.path_of(spool.ring, oldest)
    real_replace, real_unlink = os.replace, os.unlink

    def replace(source: str, target: str, **more: Any) -> None:
        if step == "open" and target == "evictions":
            raise Killed
        real_replace(source, target, **more)
        if step == "replace" and target == "evictions":
            raise Killed

    def unlink(name: str, **more: Any) -> None:
        if step == "unlink" and name == os.path.basename(path):
            raise Killed
        real_unlink(name, **more)
        if step == "unlinked" and name == os.path.basename(path):
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", replace)
        patch.setattr(os, "unlink", unlink)
        with pytest.raises(Killed):
            budget.Budget(spool, CAP, SEGMENT).evict()
    is_evicted = step in ("replace", "unlink")
    assert os.path.exists(path) == (step != "unlinked")
    assert (budget.read_evictions(spool).last_evicted.number == oldest) == (step != "open")

    books = survey(spool)
    assert books.adds_up
    assert (books.appended, books.refused) == (count, refused)
    assert (books.evicted > 0) == (step != "open")
    assert len(list(events(spool))) == books.pending, "a void segment was read"

    deliver(spool, full_config(server.endpoint_url, "drop_oldest"))
    assert len(records(server)) == books.pending
    assert len(segments(spool)) == 1, "the void segment stays for ever" if is_evicted else ""
    after = survey(spool)
    assert (after.appended, after.evicted, after.delivered) == (count, books.evicted, books.pending)


def test_the_next_evictor_removes_a_void_segment_without_counting_it_again(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no leader alive the next writer that needs room unlinks what the killed one had counted."""
    writer, count = full_spool(server.endpoint_url)
    spool = writer.directory
    oldest = segments(spool)[0]

    def die(name: str, **more: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", die)
        with pytest.raises(Killed):
            budget.Budget(spool, CAP, SEGMENT).evict()
    evicted = survey(spool).evicted
    assert evicted > 0
    assert budget.Budget(spool, CAP, SEGMENT).evict(seconds=CHILD_SECONDS)
    assert oldest not in segments(spool)
    books = survey(spool)
    assert (books.evicted, books.appended) == (evicted, count)


def test_an_evictor_that_dies_on_a_full_disk_has_told_what_it_evicted(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file can be replaced, so it overwrites the totals that are there, before it removes what they count."""
    writer, count = full_spool(server.endpoint_url)
    remove = segment.remove

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    def removed_and_killed(ring: str, number: int) -> None:
        remove(ring, number)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(files, "replace", no_space)
        patch.setattr(segment, "remove", removed_and_killed)
        with pytest.raises(Killed):
            budget.Budget(writer.directory, CAP, SEGMENT).evict(at_least_one=True, seconds=CHILD_SECONDS)
    books = survey(writer.directory)  # what the evictor knew is gone with it
    assert books.evicted > 0
    assert books.appended == count
    assert budget.Budget(writer.directory, CAP, SEGMENT).evict(at_least_one=True, seconds=CHILD_SECONDS)
    assert survey(writer.directory).appended == count


@pytest.mark.parametrize("failures", [1, 2, 5])
def test_evictions_are_counted_on_a_disk_too_full_to_write_them_down(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, failures: int
) -> None:
    """Nor overwritten (btrfs). Room is made, by closing what was unlinked, too; the rest is written the next time."""
    writer, count = full_spool(server.endpoint_url)
    spool = writer.directory
    left = [failures]
    real_replace, real_release = files.replace, descriptors.release

    def replace(path: str, data: bytes) -> None:
        if left[0]:
            left[0] -= 1
            no_space()
        real_replace(path, data)

    def no_space(*_: object) -> None:
        raise OSError(28, "No space left on device")

    open_when_written: list[int] = []

    def release(fd: int, incarnation: int, file: tuple[int, int] | None = None) -> None:
        open_when_written.append(left[0])
        real_release(fd, incarnation, file)

    monkeypatch.setattr(files, "replace", replace)
    monkeypatch.setattr(os, "pwrite", no_space)
    monkeypatch.setattr(descriptors, "release", release)
    room = budget.Budget(spool, CAP, SEGMENT)
    for _ in range(4):
        assert room.evict(at_least_one=True, seconds=CHILD_SECONDS)
    assert failures - 1 in open_when_written, "the evicted segment was still open when its room was needed"
    books = survey(spool)
    assert books.appended == count
    assert books.evicted > 0


def test_what_is_committed_is_not_counted_as_evicted(server: StrictCloudWatch) -> None:
    """A segment that is partly delivered when it is evicted counts only with its rest."""
    writer, count = full_spool(server.endpoint_url)
    spool = writer.directory
    opened = open_segments(spool)  # a generator: it closes the segment when it is left
    first = next(opened)
    part = first.read()
    assert part is not None
    done = part.frames[9].end
    leader = Cursor(spool.cursor)
    state = leader.take_over("test")
    state.offsets = [cursor.Offset(first.key.number, first.key.salt, done)]
    state.ledger.appended = state.ledger.delivered = 10
    leader.commit(state)
    leader.close()
    assert budget.Budget(spool, CAP, SEGMENT).evict(seconds=CHILD_SECONDS)
    books = survey(spool)
    assert books.adds_up
    assert (books.appended, books.delivered, books.evicted) == (count, 10, len(part.frames) - 10)


def test_a_segment_that_is_read_or_written_is_not_evicted(server: StrictCloudWatch) -> None:
    """Eviction takes the oldest segment that nobody has open; with all of them open there is no room."""
    writer, _ = full_spool(server.endpoint_url)
    spool = writer.directory
    held = [open(segment.path_of(spool.ring, number)) for number in segments(spool)]  # noqa: SIM115  # closed below
    for file in held:
        fcntl.flock(file, fcntl.LOCK_SH)
    try:
        assert not budget.Budget(spool, CAP, SEGMENT).evict()
        held.pop(1).close()
        assert budget.Budget(spool, CAP, SEGMENT).evict(seconds=CHILD_SECONDS)
        assert segments(spool)[:2] == [1, 3]
    finally:
        for file in held:
            file.close()


def test_loss_markers_that_are_evicted_stay_counted(server: StrictCloudWatch) -> None:
    """What a marker tells of is known even if the marker's own segment goes."""
    config = full_config(server.endpoint_url, "drop_oldest")
    writer = Writer(config)
    assert not writer.append("")
    assert not writer.append(b"")
    assert writer.append("one")
    for number in range(2_000):
        assert writer.append(f"{number} {'x' * 300}")
    assert segments(writer.directory)[0] > 1
    assert survey(writer.directory).refused == {"unencodable": 2}
    deliver(writer.directory, config)
    books = survey(writer.directory)
    assert books.refused == {"unencodable": 2}
    assert books.appended == 2_001


def test_the_whole_directory_stays_within_its_bounds(server: StrictCloudWatch) -> None:
    """All files together: ring, cursor, evictions, locks and state. Invariant 6."""
    config = full_config(server.endpoint_url, "drop_oldest", spool_max_bytes=CAP)
    writer = Writer(config)
    for number in range(3_000):
        assert writer.append(f"{number} {'x' * 300}")
        if number % 1_000 == 0:
            deliver(writer.directory, config)
    files = [path for path in Path(writer.directory.path).rglob("*") if path.is_file()]
    total = sum(path.stat().st_blocks * 512 for path in files)
    fixed = 2 * cursor.SLOT_BYTES + 16 * 4096  # the cursor's slots and a page for each small file
    assert total <= CAP + SEGMENT + fixed


# An append counts what it evicts a part at a time.


def slow_spool(url: str) -> tuple[SpoolDirectory, SinkConfig, int]:
    """Two segments of 256 KiB, and how many records the first one holds that is to be evicted."""
    config = full_config(url, "drop_newest", segment_bytes=256 * 1024, spool_max_bytes=2 << 20)
    writer = Writer(config)
    count = 0
    while len(segments(writer.directory)) < 2:
        assert writer.append(f"{count}")
        count += 1
    assert writer.append("newest")
    presence.this.forget_below(writer.directory.root)
    return (
        writer.directory,
        config,
        sum(not event.message.startswith("newest") for event in events(writer.directory)) - 1,
    )


def test_a_large_segment_is_counted_in_parts_by_whoever_is_there(server: StrictCloudWatch) -> None:
    """Each call reads a block, by another process each time; the count is exact, and nothing goes before that."""
    spool, _, count = slow_spool(server.endpoint_url)
    calls = 1
    while not budget.Budget(spool, 2 << 20, 256 * 1024).evict(at_least_one=True, seconds=0.0):
        calls += 1
        assert calls < 100
        books = survey(spool)
        assert (books.evicted, segments(spool)) == (0, [1, 2])
        assert books.adds_up
    assert calls >= 256 // 64
    books = survey(spool)
    assert (books.evicted, segments(spool)) == (count, [2])
    assert budget.read_evictions(spool).counting is None


def test_a_count_begins_anew_if_a_leader_has_settled_some_meanwhile(server: StrictCloudWatch) -> None:
    """What is delivered between two parts of the count is not evicted as well."""
    spool, _, count = slow_spool(server.endpoint_url)
    assert not budget.Budget(spool, 2 << 20, 256 * 1024).evict(at_least_one=True, seconds=0.0)
    opened = open_segments(spool)
    first = next(opened)
    part = first.read()
    assert part is not None
    leader = Cursor(spool.cursor)
    state = leader.take_over("test")
    state.offsets = [cursor.Offset(first.key.number, first.key.salt, part.frames[99].end)]
    state.ledger.appended = state.ledger.delivered = 100
    leader.commit(state)
    leader.close()
    until(lambda: budget.Budget(spool, 2 << 20, 256 * 1024).evict(at_least_one=True, seconds=0.0), "room")
    books = survey(spool)
    assert (books.delivered, books.evicted) == (100, count - 100)
    assert books.adds_up


def test_while_a_segment_is_counted_appends_go_on(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """However small the part is that one append may count, none is refused under drop_oldest."""
    monkeypatch.setattr(rotation, "_COUNT_SECONDS", 0.0)
    monkeypatch.setattr(rotation, "_COUNT_SECONDS_IN_NEED", 0.0)
    config = full_config(server.endpoint_url, "drop_oldest", segment_bytes=256 * 1024, spool_max_bytes=1 << 20)
    writer = Writer(config)
    assert all(writer.append(f"{number}") for number in range(40_000))
    books = survey(writer.directory)
    assert (books.appended, books.refused) == (40_000, {})
    assert books.evicted > 0


# Several applications log to one spool.


def run_writer(spawn: Spawn, config: SinkConfig, count: int, *, wait: bool = False) -> tuple[Any, str]:
    """Have another process append `count` records; `wait`: it stays until its stdin is closed."""
    settings = msgspec.json.encode({key: value for key, value in asdict(config).items() if value is not None}).decode()
    child = spawn(
        """
        import sys
        import msgspec
        from cwsink import Writer
        from cwsink.config import SinkConfig

        writer = Writer(SinkConfig(**msgspec.json.decode(sys.argv[1])))
        print(sum(writer.append(f"{number} {'x' * 300}") for number in range(int(sys.argv[2]))), flush=True)
        if sys.argv[3] == "True":
            sys.stdin.read()
        """,
        settings,
        count,
        wait,
    )
    if wait:
        assert child.stdout
        return child, child.stdout.readline()
    return child, finish(child)


MIB = 1 << 20
LARGE = {"spool_max_bytes": 64 * MIB, "segment_bytes": 8 * MIB, "on_full": "drop_newest"}
SMALL_ONE = {"spool_max_bytes": MIB, "segment_bytes": 128 * 1024, "on_full": "drop_oldest"}


@pytest.mark.parametrize("when", ["while it runs", "while it is restarted"])
def test_a_small_budget_takes_nothing_from_a_larger_one(server: StrictCloudWatch, spawn: Spawn, when: str) -> None:
    """A cron job beside a web application, or while that is restarted behind a backlog: one line, and nothing else."""
    is_there = when == "while it runs"
    web = full_config(server.endpoint_url, **LARGE)  # type: ignore[arg-type]
    job = full_config(server.endpoint_url, **SMALL_ONE)  # type: ignore[arg-type]
    first, said = run_writer(spawn, web, 2_500, wait=is_there)  # more than half of the small one
    assert int(said) == 2_500
    _, said = run_writer(spawn, job, 4_000)
    assert int(said) == 4_000
    spool = Writer(web).directory
    books = survey(spool)
    assert (books.evicted, books.pending, books.refused) == (0, 6_500, {})
    assert MIB / 2 < books.pending_bytes * 2_500 / 6_500 < MIB
    held = capacity.read(spool)
    assert held is not None
    assert (held.spool_max_bytes, held.segment_bytes, held.on_full) == (64 * MIB, 8 * MIB, "drop_newest")
    if is_there:
        first.stdin.close()
    assert segments(spool) == [1]


def test_a_larger_budget_holds_at_once_and_the_policy_of_those_who_are_there(
    server: StrictCloudWatch, spawn: Spawn
) -> None:
    """A deployment that raises the budget works while the old workers run; one line names all that differs."""
    old = full_config(server.endpoint_url, "drop_newest", spool_max_bytes=CAP)
    new = full_config(server.endpoint_url, "drop_oldest", spool_max_bytes=8 * CAP, segment_bytes=2 * SEGMENT)
    worker, said = run_writer(spawn, old, 10, wait=True)
    assert int(said) == 10
    child = spawn(
        """
        import sys
        from cwsink import Writer
        from cwsink.config import SinkConfig
        import msgspec

        writer = Writer(SinkConfig(**msgspec.json.decode(sys.argv[1])))
        assert writer.append("new")
        """,
        msgspec.json.encode({key: value for key, value in asdict(new).items() if value is not None}).decode(),
    )
    _, errors = child.communicate(timeout=60)
    (line,) = [each for each in errors.splitlines() if "differ from those" in each]
    for part in (
        "segment_bytes=32768 here, 16384 there",
        "on_full=drop_oldest here, drop_newest there",
        "larger budget",
    ):
        assert part in line
    spool = Writer(old).directory
    held = capacity.read(spool)
    assert held is not None
    assert (held.spool_max_bytes, held.segment_bytes, held.on_full) == (8 * CAP, SEGMENT, "drop_newest")
    worker.stdin.close()


def test_alone_a_writer_has_its_own_budget_whatever_others_have_reserved(
    server: StrictCloudWatch, spawn: Spawn
) -> None:
    """A segment of 8 MiB that others have reserved would fill a budget of 1 MiB by itself: it is given back."""
    web = full_config(server.endpoint_url, **LARGE)  # type: ignore[arg-type]
    job = full_config(server.endpoint_url, **SMALL_ONE)  # type: ignore[arg-type]
    run_writer(spawn, web, 10)
    _, said = run_writer(spawn, job, 20_000)
    assert int(said) == 20_000
    spool = Writer(web).directory
    assert ring_bytes(spool) <= MIB + 128 * 1024 + SLACK
    books = survey(spool)
    assert (books.appended, books.refused) == (20_010, {})
    assert books.evicted > 0


@pytest.mark.parametrize("on_full", POLICIES)
def test_a_record_of_nearly_the_whole_budget_is_followed_by_others(server: StrictCloudWatch, on_full: str) -> None:
    """It is delivered, and holds the only segment, which alone leaves no room for the next one."""
    config = full_config(server.endpoint_url, on_full, oversize="truncate")
    writer = Writer(config)
    assert writer.append("x" * (CAP - SEGMENT))
    assert writer.append("beside a leader that is behind") is (on_full == "drop_oldest")
    for round_number in range(3):
        deliver(writer.directory, config)
        assert all(writer.append(f"after it {round_number} {number}") for number in range(100))
    assert ring_bytes(writer.directory) <= CAP + SEGMENT + SLACK


def test_a_record_of_nearly_the_whole_budget_is_evicted_for_new_ones(server: StrictCloudWatch) -> None:
    """Nobody sends. `drop_oldest` drops the oldest, also where that is the only segment."""
    config = full_config(server.endpoint_url, "drop_oldest")
    writer = Writer(config)
    assert writer.append("x" * (CAP - SEGMENT))
    attempts = 1 + sum(writer.append("x" * 300) for _ in range(200))
    books = check_books(writer.directory, attempts=attempts, appended=201)
    assert books.evicted == 1
    assert ring_bytes(writer.directory) <= CAP + SEGMENT + SLACK


@pytest.mark.parametrize("keeps", [False, True], ids=["removed", "kept"])
def test_a_cut_write_behind_a_large_record_stops_nobody(server: StrictCloudWatch, keeps: bool) -> None:
    """A leader never settles it while that segment is the newest one, where it might go on."""
    config = full_config(
        server.endpoint_url, "drop_newest", oversize="truncate", keep_delivered="1h" if keeps else None
    )
    writer = Writer(config)
    assert writer.append("x" * (CAP - SEGMENT))
    with open(segment.path_of(writer.directory.ring, 1), "r+b") as file:
        first = file.read()[segment.HEADER_BYTES :][:300]
        file.seek(0, os.SEEK_END)
        file.write(first)
    deliver(writer.directory, config)
    assert writer.append("after it")


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest"])
def test_after_a_larger_budget_the_segment_of_that_is_left(
    server: StrictCloudWatch, spawn: Spawn, on_full: str
) -> None:
    """All is delivered. What it was written to has more blocks than the new budget."""
    large = full_config(server.endpoint_url, "drop_oldest", spool_max_bytes=16 * CAP, segment_bytes=2 * CAP)
    _, said = run_writer(spawn, large, 600)
    assert int(said) == 600
    small = full_config(server.endpoint_url, on_full)
    spool = Writer(large).directory
    deliver(spool, large)
    presence.this.forget(spool)
    assert ring_bytes(spool) > CAP
    for round_number in range(3):
        _, said = run_writer(spawn, small, 100)
        assert int(said) == 100, round_number
        deliver(spool, small)
    assert ring_bytes(spool) <= CAP + SEGMENT + SLACK


def test_two_that_begin_at_once_have_the_larger_budget_in_the_end(server: StrictCloudWatch) -> None:
    """Each finds nobody attached: whoever wrote last, the first rotation of the one with more puts it right."""
    large = Writer(full_config(server.endpoint_url, "drop_newest", spool_max_bytes=2 * CAP))
    assert large.append("first")
    small = capacity.of(full_config(server.endpoint_url, "drop_newest"))
    assert capacity.claim(large.directory, small, is_alone=True) == small
    appended = 0
    while large.append("x" * 300):
        appended += 1
    assert appended * 330 > 1.5 * CAP


def test_a_hole_in_a_segment_that_is_to_go_is_not_read(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has made it 512 MiB long: the append that evicts reads some 100 KiB, and the segment goes."""
    writer, count = full_spool(server.endpoint_url)
    spool = writer.directory
    oldest = segments(spool)[0]
    os.truncate(segment.path_of(spool.ring, oldest), 512 * MIB)
    pread, read = os.pread, []

    def note(fd: int, size: int, offset: int) -> bytes:
        data = pread(fd, size, offset)
        read.append(len(data))
        return data

    monkeypatch.setattr(os, "pread", note)
    assert budget.Budget(spool, CAP, SEGMENT).evict(at_least_one=True, seconds=CHILD_SECONDS)
    monkeypatch.undo()
    assert sum(read) < MIB
    assert oldest not in segments(spool)
    books = survey(spool)
    assert books.evicted > 0
    assert books.appended == count


def test_what_is_no_record_in_a_segment_that_is_to_go_is_read_in_parts(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has written 100 MiB of noise into it: no more than a frame could need is in memory at once."""
    writer, count = full_spool(server.endpoint_url)
    spool = writer.directory
    oldest = segments(spool)[0]
    with open(segment.path_of(spool.ring, oldest), "ab") as file:
        file.writelines(b"\xa5" * MIB for _ in range(100))
    pread, largest = os.pread, [0]

    def note(fd: int, size: int, offset: int) -> bytes:
        largest[0] = max(largest[0], size)
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", note)
    room = budget.Budget(spool, CAP, SEGMENT)
    for _ in range(20):
        if room.evict(at_least_one=True):
            break
    monkeypatch.undo()
    assert largest[0] <= 33 * MIB
    assert oldest not in segments(spool)
    assert count < survey(spool).appended <= count + 10  # damage counts as a record for each range


@pytest.mark.parametrize("offset", [-1, 1 << 63])
def test_a_count_that_nobody_could_have_written_is_not_gone_on_with(server: StrictCloudWatch, offset: int) -> None:
    """The checksum of `evictions` is right, and it says that a segment is counted up to before its beginning."""
    writer, count = full_spool(server.endpoint_url)
    spool = writer.directory
    oldest = segments(spool)[0]
    header = segment.decode_header(Path(segment.path_of(spool.ring, oldest)).read_bytes()[: segment.HEADER_BYTES])
    assert header is not None
    body = msgspec.msgpack.encode([0, 0, 0, {}, 0, 0, [*header.key, header.length, offset, 0, 0, 0, {}]])
    Path(spool.evictions).write_bytes(zlib.crc32(body).to_bytes(4, "little") + body)
    assert budget.Budget(spool, CAP, SEGMENT).evict(at_least_one=True, seconds=CHILD_SECONDS)
    books = survey(spool)
    assert books.evicted > 0
    assert books.appended == count


def test_loss_markers_of_many_reasons_cost_no_count(server: StrictCloudWatch) -> None:
    """Somebody has made the reasons up. The totals of what is evicted stay in their block, and are exact."""
    config = full_config(server.endpoint_url, "drop_oldest", spool_max_bytes=64 * SEGMENT, segment_bytes=8 * SEGMENT)
    writer = Writer(config)
    assert writer.append("first")
    attached = writer._ring.attached
    assert attached is not None
    for number in range(1_000):
        loss = record.encode(record.Loss(2, 1, 2, f"{number} {'x' * 50}", 1))
        os.write(attached.fd, frame.encode(loss, attached.salt, frame.LOSS))
    del attached
    while len(segments(writer.directory)) < 2:
        assert writer.append("x" * 300)
    appended = survey(writer.directory).appended
    evictor = budget.Budget(writer.directory, 64 * SEGMENT, 8 * SEGMENT)
    assert evictor.evict(at_least_one=True, seconds=CHILD_SECONDS)
    assert os.path.getsize(writer.directory.evictions) <= 4096
    books = survey(writer.directory)
    assert books.evicted > 0
    assert (books.appended, books.refused) == (appended, {"other": 2_000})


def test_evictions_that_are_too_long_are_damaged_and_not_none(server: StrictCloudWatch) -> None:
    """What the stream was told of is known from the cursor. A leader writes the file anew, and evictors count on."""
    spool = Writer(full_config(server.endpoint_url, "drop_oldest")).directory
    held = Cursor(spool.cursor)
    state = held.take_over("holder")
    state.ledger.evicted_reported = 5
    held.commit(state)
    held.close()
    Path(spool.evictions).write_bytes(b"x" * 70_000)
    assert budget.read_evictions(spool).records == 5
    assert budget.read_evictions(spool, mends=True).records == 5
    assert os.path.getsize(spool.evictions) < 4096
    assert budget.read_evictions(spool).records == 5


BEGINNER = """
import sys
import cwsink
from cwsink.frontends.presence import Process

presence_in = Process.presence_in

def attach_when_told(self, directory, config):
    print("has made the segment", flush=True)
    input()
    return presence_in(self, directory, config)

Process.presence_in = attach_when_told
writer = cwsink.Writer.open(log_group_name="/test/group", log_stream_name="stream", flusher="external",
                            batch_size=int(sys.argv[1]), spool_max_bytes=sys.argv[2], on_full=sys.argv[3])
print("has left its settings", flush=True)
input()
assert writer.append("x")
print(writer.directory.path, flush=True)
input()
"""


@pytest.mark.parametrize("first", [0, 1])
def test_two_programs_that_start_at_the_same_moment_agree(spawn: Spawn, first: int) -> None:
    """Neither is attached when the other one looks: the larger budget holds all the same, and both values are named."""
    children = []
    for settings in (("20", "64MiB", "drop_oldest"), ("10", "8MiB", "drop_newest")):
        children.append(spawn(BEGINNER, *settings))
        heard(children[-1])
    for child in children:
        go_on(child)
        heard(child)
    for child in (children[first], children[1 - first]):
        go_on(child)
        held = capacity.read(open_existing(heard(child)))
    assert held is not None
    assert held.spool_max_bytes == 64 * MIB
    errors = [child.communicate("\n", timeout=CHILD_SECONDS)[1] for child in children]
    lines = [line for each in errors for line in each.splitlines() if "differ from those" in line]
    assert len([line for line in lines if "batch_size 20 -> 10" in line and line.endswith("The latter hold.")]) == 1
    assert len([line for line in lines if "on_full=drop_oldest here, drop_newest there" in line]) == 1


def heard(child: Popen[str]) -> str:
    """Return what it says next."""
    assert child.stdout is not None
    return child.stdout.readline().strip()


def go_on(child: Popen[str]) -> None:
    """Answer its `input()`."""
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
