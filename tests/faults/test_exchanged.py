"""A spool's directory is exchanged for a hostile one, again and again, under a writer and a leader.

Who owns the root can do so. No root of another user's is taken, so here the root is given away after the spool was
made. The ring is exchanged by root, because nobody else can get at it. In the hostile directory all files are there,
with right checksums, and everybody may write to them. Nothing that is logged lands there, nothing that is forged there
is sent, and nothing that was acknowledged is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import random
import shutil
import signal
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple
from unittest import mock

import pytest

from cwsink.config import SinkConfig
from cwsink.errors import CwsinkError
from cwsink.flusher.claim import Lease
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.commits import Fenced
from cwsink.flusher.delivery import Stopped
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.orders import Orders
from cwsink.flusher.outcome import Answer
from cwsink.frontends.writer import Writer
from cwsink.spool import directory, frame, record, repair, root, segment
from cwsink.spool.segment import SegmentKey
from cwsink.spool.survey import survey
from tests.faults.test_damaged_spools import forget, lead
from tests.harness.fake_cloudwatch import FakeCloudWatch
from tests.harness.interleave import SMALL, deliver
from tests.harness.support import is_ours, quick_config
from tests.soak import SEED_VARIABLE

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(os.geteuid() != 0, reason="not run: only root can become two other users"),
]

VICTIM: Final = 12_345
MALLORY: Final = 65_534
EXCHANGES: Final = 20_000
MOST_SECONDS: Final = 5.0
LONG_EXCHANGES: Final = 1_000_000
LONGEST_SECONDS: Final = 1_000  # guards against a hang
FORGED: Final = "forged"
# Between two exchanges: so long does an operation go on undisturbed.
LONGEST_PAUSE_SECONDS: Final = 0.0005
AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2


class Shared:
    """What the processes of one trial tell each other."""

    MOST_IDS: Final = 1 << 20
    NOTE_BYTES: Final = 8

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, self.MOST_IDS + 1 + self.NOTE_BYTES)

    def acknowledge(self, number: int) -> None:
        self._page[number] = 1

    def acknowledged(self) -> set[int]:
        return {number for number in range(self.MOST_IDS) if self._page[number]}

    def stop(self) -> None:
        self._page[self.MOST_IDS] = 1

    @property
    def is_over(self) -> bool:
        return self._page[self.MOST_IDS] != 0

    def note(self, number: int) -> None:
        """Leave a number for the process that has forked this one."""
        self._page[-self.NOTE_BYTES :] = number.to_bytes(self.NOTE_BYTES, "little")

    @property
    def noted(self) -> int:
        return int.from_bytes(self._page[-self.NOTE_BYTES :], "little")


def config_for(root: Path) -> SinkConfig:
    return quick_config(
        "http://127.0.0.1:9", spool_directory=str(root), segment_bytes=SMALL, flusher="external", batch_size=1
    )


class Places(NamedTuple):
    """The directories of a trial, and the file of what CloudWatch has stored."""

    base: Path
    root: Path
    spool: Path
    hostile: Path
    sent: Path

    @property
    def config(self) -> SinkConfig:
        return config_for(self.root)


def exchange_often(one: Path, other: Path, times: int, seconds: float, seed: int, shared: Shared) -> None:
    """Exchange two directories, an even number of times, until enough is done or the time is over."""
    chance = random.Random(seed)
    rename = ctypes.CDLL(None).renameat2
    words = AT_FDCWD, os.fsencode(one), AT_FDCWD, os.fsencode(other), RENAME_EXCHANGE
    until = time.monotonic() + seconds
    done = 0
    while done < times and time.monotonic() < until:
        for _ in range(2):
            assert rename(*words) == 0
            done += 1
            pause = time.perf_counter() + chance.random() ** 4 * LONGEST_PAUSE_SECONDS
            while time.perf_counter() < pause:
                pass
    shared.note(done)


def write(places: Places, shared: Shared) -> None:
    """Log until told to stop."""
    writer: Writer | None = None
    while writer is None:
        with contextlib.suppress(CwsinkError):
            writer = Writer(places.config)
    number = 1
    while not shared.is_over and number < Shared.MOST_IDS:
        if writer.append(f"{number:07d} {'x' * 300}"):
            shared.acknowledge(number)
        number += 1
        if number % 50 == 0:
            time.sleep(0.001)  # the leader is to keep up


def lead_again_and_again(places: Places, shared: Shared) -> None:
    """Stand and lead until told to stop, as an election does, but without its pause after trouble."""
    while not shared.is_over:
        with contextlib.suppress(OSError, Fenced, Stopped):  # a SpoolError is an OSError
            spool = directory.open_existing(str(places.spool))
            claim = Lease(spool)
            try:
                if claim.try_acquire():
                    orders = Orders()
                    flusher = Flusher(spool, places.config, claim, orders, kind="service")
                    orders.drain(0.2)
                    flusher.lead()
            finally:
                claim.release()


def in_child(user: int, work: Callable[[], object], sent: Path) -> int:
    """Run `work` as another user in a child, whose requests are stored in a file. Returns its pid."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(LONGEST_SECONDS)
        stored = os.open(sent, os.O_WRONLY | os.O_APPEND)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)

        def put(client: Any, stream: str, events: Any, token: str | None = None) -> Answer:
            os.write(stored, b"".join(each.message.encode() + b"\n" for each in events))
            return Answer(status=200, request_id="stored")

        CloudWatch.put = put  # type: ignore[method-assign]
        root.why_untrusted = lambda path: None
        repair._put_in_order = lambda *arguments: None  # it would set the hostile ring aside, and make another one
        work()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def reap(pid: int) -> None:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def plant(places: Places) -> None:
    """Make the hostile directory: a copy of the spool that all may write to, with forged records."""
    shutil.copytree(places.spool, places.hostile)
    ring = places.hostile / "ring"
    spool_id = bytes.fromhex(directory.open_existing(str(places.spool), read_only=True).format.spool_id)
    for number in [*range(1, 30), 100_000]:
        salt = 7
        event = record.Event(int(time.time() * 1000), 1, number, FORGED)
        content = segment.encode_header(SegmentKey(number, salt), spool_id, 0) + frame.encode(
            record.encode(event), salt
        )
        (ring / segment.name_of(number)).write_bytes(content)
    for path in (places.hostile, *places.hostile.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o666)
        os.chown(path, MALLORY, MALLORY)


def state_of(place: Path) -> dict[str, tuple[int, int, int, bytes]]:
    """What is in a directory, with owner, mode and time of each file.

    Not with the time of `leader.lock`. FileLock opens it by its path, so it may get the hostile one (see
    `cwsink.flusher.claim`), and cuts it to the 0 bytes that it has if filelock is older than 4.2.1.
    """
    found = {}
    for path in sorted(place.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        written_at_ns = 0 if path.name == "leader.lock" else status.st_mtime_ns
        found[str(path.relative_to(place))] = (status.st_uid, status.st_mode, written_at_ns, content)
    return found


def load(root: Path) -> str:
    """Do it once here: the children, of another user, may not be able to load modules. Returns the spool's name."""
    writer = Writer(config_for(root))
    assert writer.append("loading")
    with mock.patch.object(CloudWatch, "put", FakeCloudWatch(lambda: time.time_ns() // 1_000_000).method()):
        lead(writer.directory, writer.config)
    forget(writer)
    return Path(writer.directory.path).name


def make_spool(places: Places) -> None:
    """With all its files, so that the hostile one has them, too."""
    writer = Writer(places.config)
    assert writer.append("0000000 first")
    lead(writer.directory, places.config)
    forget(writer)


@pytest.fixture
def places() -> Iterator[Places]:
    """A spool of the victim's, in a root that is his."""
    base = Path(tempfile.mkdtemp(prefix="cwsink-exchanged-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    try:
        base.chmod(0o755)
        name = load(base / "loading")
        found = Places(base, base / "root", base / "root" / name, base / "root" / "hostile", base / "sent")
        found.root.mkdir()
        os.chown(found.root, VICTIM, VICTIM)
        found.sent.touch()
        reap(in_child(VICTIM, lambda: make_spool(found), found.sent))
        yield found
    finally:
        shutil.rmtree(base)


def check(places: Places, kind: str, times: int, seconds: float, seed: int) -> None:
    """Exchange the spool, or its ring, under a writer and a leader."""
    shared = Shared()
    plant(places)
    if kind == "spool":
        one, other = places.spool, places.hostile
        os.chown(places.root, MALLORY, MALLORY)
    else:
        one, other = places.spool / "ring", places.hostile / "ring"
    before = state_of(places.hostile)
    working: list[int] = []
    try:
        for work in (write, lead_again_and_again):
            working.append(in_child(VICTIM, partial(work, places, shared), places.sent))  # noqa: PERF401  # to be reaped
        attacker = MALLORY if kind == "spool" else 0
        reap(in_child(attacker, lambda: exchange_often(one, other, times, seconds, seed, shared), places.sent))
        shared.stop()
        while working:
            reap(working.pop())
    finally:
        for pid in working:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    assert state_of(places.hostile) == before, "something was written there"
    spool = directory.open_existing(str(places.spool), read_only=True)
    while survey(spool).pending:  # a busy machine may need more than one such time
        reap(in_child(VICTIM, lambda: deliver(spool, places.config), places.sent))
    sent = places.sent.read_text().splitlines()
    lines = [line for line in sent if not is_ours(line)]
    assert FORGED not in lines
    acknowledged = shared.acknowledged()
    assert acknowledged <= {int(line[:7]) for line in lines}
    assert len(acknowledged) > 100
    print(f"{shared.noted} exchanges; {len(acknowledged)} records, all delivered, and none of another's")


@pytest.mark.parametrize("kind", ["spool", "ring"])
def test_a_directory_that_is_exchanged_captures_nothing(places: Places, kind: str) -> None:
    """Some thousands of times, between any two calls of a writer and a leader."""
    check(places, kind, EXCHANGES, MOST_SECONDS, 0)


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("kind", ["spool", "ring"])
def test_a_million_exchanges_capture_nothing(places: Places, kind: str) -> None:
    """The same, for as long as it takes."""
    check(places, kind, LONG_EXCHANGES, 0.8 * LONGEST_SECONDS, int(os.environ.get(SEED_VARIABLE, "100")))
