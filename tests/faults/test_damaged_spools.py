"""Any region of any file of a spool flipped, cut, zeroed or doubled: it starts, ends, and delivers what is intact.

One spool with one of everything is made once; each case damages a copy, has a writer append to it and a leader
empty it (against `tests.harness.fake_cloudwatch`), and compares with what the damage did not touch.

Invariant 7.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple
from unittest import mock

import pytest

from cwsink import diagnostics
from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.commits import Cursor
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.instructions import config_of
from cwsink.flusher.orders import Orders
from cwsink.frontends import presence
from cwsink.frontends.writer import Writer
from cwsink.spool import cursor, directory, disk, frame, record, segment
from cwsink.spool.segment import COPY_BYTES, HEADER_BYTES, SECOND_COPY_AT
from cwsink.spool.survey import survey
from tests.harness.fake_cloudwatch import POISON, FakeCloudWatch
from tests.harness.simulation import SEGMENT_BYTES
from tests.harness.support import quick_config
from tests.soak import SEED_VARIABLE

pytestmark = pytest.mark.faults

CASES: Final = 600
CHUNK: Final = 300  # a test of its own each, so that all cores take part
LONG_CASES: Final = 100_000
# A leader that asks so often whether to go on spins: an undamaged spool takes about 5 turns.
MOST_TURNS: Final = 60
LIVE: Final = "appended to the damaged spool"
FILES: Final = (
    "ring/0000000002.seg ring/0000000003.seg ring/0000000004.seg ring/0000000005.seg cursor FORMAT evictions "
    "leader.json leader.host dead_letters.jsonl settings.json"
).split()


class Spot(NamedTuple):
    """Where a record that is not settled lies: its file, and its bytes [start, end) in it."""

    file: str
    start: int
    end: int


class Image(NamedTuple):
    """A spool as it was left: the content of each file, and where its pending records lie."""

    name: str
    files: dict[str, bytes]
    records: dict[str, Spot]
    all_messages: frozenset[str]


class Damage(NamedTuple):
    """What is done to one file: `kind` to its bytes [start, end)."""

    file: str
    kind: str
    start: int
    end: int

    def of(self, content: bytes) -> bytes:
        middle = content[self.start : self.end]
        if self.kind == "flip":
            return content[: self.start] + bytes([content[self.start] ^ 1 << self.end % 8]) + content[self.start + 1 :]
        elif self.kind == "zero":
            middle = bytes(len(middle))
        elif self.kind == "double":
            middle *= 2
        elif self.kind == "cut":
            return content[: self.start]
        return content[: self.start] + middle + content[self.end :]

    def touches(self, spot: Spot) -> bool:
        """Tell whether a record may be lost to it."""
        if spot.file != self.file:
            return False
        if self.kind == "double":  # it moves what follows, whole
            return self.start < COPY_BYTES or spot.start < self.end < spot.end or spot.start < self.start < spot.end
        is_header_lost = self.start < COPY_BYTES and self._end > SECOND_COPY_AT  # of both copies
        return is_header_lost or (self.start < spot.end and spot.start < self._end)

    @property
    def _end(self) -> int:
        return {"flip": self.start + 1, "cut": 1 << 60}.get(self.kind, self.end)


class _Turns(Orders):
    """Deliver all there is, and fail if that does not end."""

    def __init__(self) -> None:
        super().__init__()
        self.left = MOST_TURNS
        self.drain(float("inf"))

    @property
    def is_over(self) -> bool:
        self.left -= 1
        assert self.left, "the leader spins"
        return False


def config_for(root: str) -> SinkConfig:
    return quick_config(
        spool_directory=root, segment_bytes=SEGMENT_BYTES, spool_max_bytes=64 * SEGMENT_BYTES, flusher="external"
    )


def lead(spool: directory.SpoolDirectory, config: SinkConfig) -> None:
    lease = Lease(spool)
    assert lease.try_acquire()
    try:
        Flusher(spool, config, lease, _Turns(), kind="own").lead()
    finally:
        lease.release()


def forget(writer: Writer) -> None:
    """Let go of all that a writer of this process holds."""
    writer._ring.close()
    if (present := presence.this._presences.pop(writer.directory.path, None)) is not None:
        present.detach()


@pytest.fixture(scope="module")
def image() -> Image:
    """A spool of four segments: partly delivered, with dead letters, evictions, fragments, markers, a hole."""
    cloudwatch = FakeCloudWatch(lambda: time.time_ns() // 1_000_000)
    with (
        tempfile.TemporaryDirectory() as root,
        mock.patch.object(CloudWatch, "put", cloudwatch.method()),
        mock.patch.object(disk, "reserve", return_value=True),
    ):
        config = config_for(root)
        writer = Writer(config)
        issued = [f"{number:03d} {'delivered ' * 5}" for number in range(3)] + [f"003 {POISON}"]
        for message in issued:
            assert writer.append(message)
        cloudwatch.answers = []
        lead(writer.directory, config)
        number = len(issued)
        while segment.numbers(writer.directory.ring)[-1] < 5:
            message = f"{number:03d} " + "pending " * (number % 7 * 9 + 1)
            number += 1
            issued.append(message)
            assert writer.append(message)
            attached = writer._ring.attached
            assert attached is not None
            if number % 9 == 0:
                loss = record.encode(record.Loss(3, 1_700_000_000_000, 1_700_000_001_000, "spool_full", 1))
                os.write(attached.fd, frame.encode(loss, attached.salt, frame.LOSS))
            if number % 10 == 0:
                os.write(attached.fd, frame.encode(b"of a later version", attached.salt, 77, frame.FLAG_OPTIONAL))
            if number % 11 == 0:
                os.write(attached.fd, frame.encode(b"torn" * 20, attached.salt)[:50])
        spool = writer.directory
        writer._ring._rotation._budget.evict(at_least_one=True)
        forget(writer)
        # Of the oldest one that is left, the first records are delivered; a leader was killed in the next chunk.
        places = {message: spot for message, spot in _places(spool).items() if message in issued}
        held = Cursor(spool.cursor)
        state = held.take_over("gone/1")
        number = segment.numbers(spool.ring)[0]
        key = next(each.key for each in _opened(spool) if each.key.number == number)
        first = [spot for spot in places.values() if spot.file.endswith(f"{number:010d}.seg")][:4]
        state.offsets = [cursor.Offset(*key, first[-1].end)]
        held.commit(state)
        held.close()
        pending = {message: spot for message, spot in places.items() if spot not in first}
        Path(spool.leader_host).write_bytes(b'{"boot_id":"another","host":"web-2"}')
        os.utime(spool.leader_host, (1, 1))
        files = {name: Path(spool.path, name).read_bytes() for name in FILES}
        assert sorted(os.listdir(spool.ring)) == sorted(os.path.basename(name) for name in FILES if "ring" in name)
        return Image(os.path.basename(spool.path), files, pending, frozenset(issued))


def _opened(spool: directory.SpoolDirectory) -> Iterator[directory.Any]:
    from cwsink.spool.survey import open_segments

    return open_segments(spool)


def _places(spool: directory.SpoolDirectory) -> dict[str, Spot]:
    """Return where each record of the ring lies."""
    places = {}
    for opened in _opened(spool):
        for each in opened.frames():
            if event := frame.event_of(each):
                places[event.message] = Spot(f"ring/{opened.key.number:010d}.seg", each.end - each.size_bytes, each.end)
    return places


def damage_of(image: Image, chance: random.Random) -> Damage:
    """Choose a file, a region and what happens to it; half of the regions lie in a segment."""
    names = list(image.files)
    file = chance.choice([name for name in names if "ring" in name] if chance.random() < 0.5 else names)
    size = len(image.files[file])
    if file == "cursor" and chance.random() < 0.8:  # the slots are mostly empty
        start = chance.choice((0, cursor.SLOT_BYTES)) + chance.randrange(200)
    else:
        start = chance.randrange(HEADER_BYTES) if chance.random() < 0.2 else chance.randrange(size)
    start = min(start, size - 1)
    end = min(size, start + chance.choice((1, 2, 4, 16, 60, 512, 4096)))
    return Damage(file, chance.choice(("flip", "flip", "zero", "double", "cut")), start, end)


def check(image: Image, damage: Damage, root: Path) -> None:
    """One damaged spool: it starts, ends, and delivers what is intact."""
    config = config_for(str(root))
    path = root / image.name
    (path / "ring").mkdir(parents=True, mode=0o700)
    path.chmod(0o700)
    for name, content in image.files.items():
        (path / name).write_bytes(damage.of(content) if name == damage.file else content)
    os.utime(path / "leader.host", (1, 1))  # a beat of long ago
    cloudwatch = FakeCloudWatch(lambda: time.time_ns() // 1_000_000)
    with mock.patch.object(CloudWatch, "put", cloudwatch.method()):
        if damage.file == "settings.json":  # before a writer comes, which replaces it
            spool = directory.open_existing(str(path))
            lead(spool, config_of(spool))
        writer = Writer(config)
        assert writer.directory.path == str(path)
        assert writer.append(LIVE)
        for _ in range(2):  # what the first one could prove only at its end
            lead(writer.directory, config)
        books = survey(writer.directory)
        left = segment.numbers(writer.directory.ring)
        forget(writer)
    delivered = set(cloudwatch.messages())
    assert delivered <= image.all_messages | {LIVE}
    intact = {message for message, spot in image.records.items() if not damage.touches(spot)}
    assert intact | {LIVE} <= delivered, sorted((intact | {LIVE}) - delivered)
    assert (books.adds_up, books.pending, len(left)) == (True, 0, 1)
    lost = image.records.keys() - delivered
    if lost and damage.kind != "cut":  # what is cut off leaves no trace but the gap in its sequence
        assert books.corrupt_bytes > 0
        assert len(lost) == 1 or damage.start < HEADER_BYTES or damage.kind == "zero"


def check_many(image: Image, cases: int, seed: int) -> None:
    chance = random.Random(seed)
    check_all(image, (damage_of(image, chance) for _ in range(cases)))


def check_all(image: Image, damages: Iterable[Damage]) -> None:
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        with (
            mock.patch.object(diagnostics.os, "write", _silent(os.write)),
            mock.patch.object(disk, "reserve", return_value=True),
        ):
            for case, damage in enumerate(damages):
                check(image, damage, root / str(case))
                shutil.rmtree(root / str(case))
    finally:
        shutil.rmtree(root, ignore_errors=True)


def _silent(write: directory.Any) -> directory.Any:
    return lambda fd, data: len(data) if fd == 2 else write(fd, data)


@pytest.mark.parametrize("seed", range(CASES // CHUNK))
def test_a_damaged_spool_starts_ends_and_delivers_what_is_intact(image: Image, seed: int) -> None:
    """Flip, cut, zero or double any region of any file: what it did not touch arrives, the rest is counted."""
    check_many(image, CHUNK, seed)


@pytest.mark.parametrize("stride", [3, pytest.param(1, marks=pytest.mark.long)])
@pytest.mark.parametrize("file", ["leader.json", "leader.host", "evictions", "settings.json"])
def test_a_byte_that_is_no_text_in_any_place_of_a_small_file_stops_nothing(
    image: Image, file: str, stride: int
) -> None:
    """The highest bit of each third byte, and in the long run of each: what was JSON is not even UTF-8."""
    size = len(image.files[file])
    check_all(image, (Damage(file, "flip", at, at // 8 * 8 + 7) for at in range(0, size, stride)))


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_many_damaged_spools(image: Image) -> None:
    """The same, 100,000 times, others in each round of `scripts/soak`."""
    check_many(image, LONG_CASES, int(os.environ.get(SEED_VARIABLE, "100")))
    print(f"{LONG_CASES} damaged spools, all started, ended and delivered what was intact")
