"""A small spool, an operation on it in a process that is made to fail, and the check afterwards.

For sweeps of hundreds to thousands of faults: the spool is prepared once and put back from memory before
each, the process is forked from a warm one, and CloudWatch is a file that both append to. So one fault,
with everything that is checked after it, costs some milliseconds. What CloudWatch itself does wrong is for
the strict server, in other tests.

The oracle is a page shared with the victim: an id is issued before its append and acknowledged after
it. A message is a function of its id.
"""

from __future__ import annotations

import contextlib
import gc
import json
import mmap
import os
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cwsink.config import SinkConfig
from cwsink.flusher.chunk import body  # noqa: F401  # warm: the victim is not to import anything
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.outcome import Answer
from cwsink.frontends import presence
from cwsink.frontends.writer import Writer
from cwsink.spool import directory, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import Survey, survey
from tests.harness.interleave import SMALL, deliver
from tests.harness.support import is_ours, quick_config, sent_as_history_has_it

IDS = 1024
LANE = 64  # ids of one writer: `lane(n)` begins at n * LANE
SURVIVOR = 15  # the lane of the writer that appends after the fault
HANG_SECONDS = 60
BATCH = 4  # events of a request, so that a few records are several
_NOTE_BYTES = 8
_SENT_FD_FLAGS = os.O_RDWR | os.O_CREAT | os.O_APPEND


def message_of(number: int) -> str:
    """Return the message with this id: 400 characters, so that nine fill a segment."""
    return f"{number:04d} " + chr(ord("a") + number % 26) * 395


class StoredRequest(NamedTuple):
    """One request that CloudWatch stored."""

    epoch: int
    pid: int
    texts: list[str]


class FaultTrial:
    """A spool on which faults are tried, the oracle, and what CloudWatch has stored."""

    def __init__(self, root: Path, **settings: object) -> None:
        self.root = root
        self.settings: dict[str, object] = {
            "spool_directory": str(root / "spools"),
            "flusher": "external",
            "segment_bytes": SMALL,
            "max_batch_events": BATCH,
            "batch_size": 1,
            **settings,
        }
        self.config: SinkConfig = quick_config("http://127.0.0.1:9", **self.settings)
        self.spool: SpoolDirectory = directory.open_for(self.config)
        self._oracle = mmap.mmap(-1, 2 * IDS + _NOTE_BYTES)
        self._image: dict[str, bytes] = {}
        self._image_oracle = bytes(2 * IDS)
        self._image_sent = b""
        self._refused_before = 0
        self.sent_fd = os.open(root / "sent", _SENT_FD_FLAGS)
        self._put: Any = CloudWatch.put

    @contextlib.contextmanager
    def cloudwatch_is_a_file(self) -> Iterator[None]:
        """Have every PutLogEvents of this process, and of those it forks, stored in a file, and accepted."""

        def put(client: Any, stream: str, events: Any, sequence_token: str | None = None) -> Answer:
            request = StoredRequest(client._epoch, os.getpid(), [event.message for event in events])
            os.write(self.sent_fd, json.dumps(request).encode() + b"\n")
            return Answer(status=200, request_id="stored")

        CloudWatch.put = put  # type: ignore[method-assign]
        try:
            yield
        finally:
            CloudWatch.put = self._put  # type: ignore[method-assign]

    # The oracle.

    def log(self, writer: Writer, number: int, timestamp_ms: int | None = None) -> bool:
        """Append the message with this id."""
        self.issue(number)
        answer = writer.append(message_of(number), timestamp_ms)
        if answer:
            self.acknowledge(number)
        return answer

    def issue(self, number: int) -> None:
        self._oracle[number] = 1

    def acknowledge(self, number: int) -> None:
        self._oracle[IDS + number] = 1

    def note(self, number: int) -> None:
        """Leave a number for the process that forked this one."""
        self._oracle[2 * IDS :] = number.to_bytes(_NOTE_BYTES, "little")

    @property
    def noted(self) -> int:
        return int.from_bytes(self._oracle[2 * IDS :], "little")

    def issued(self) -> set[int]:
        return {number for number in range(IDS) if self._oracle[number]}

    def acknowledged(self) -> set[int]:
        return {number for number in range(IDS) if self._oracle[IDS + number]}

    def sent(self) -> list[StoredRequest]:
        """Return the requests CloudWatch has stored."""
        size = os.fstat(self.sent_fd).st_size
        return [StoredRequest(*json.loads(line)) for line in os.pread(self.sent_fd, size, 0).splitlines()]

    # The state on disk.

    def remember(self) -> None:
        """Take the state as it is for the one that each fault begins with. Nobody may have the spool open."""
        base = Path(self.spool.path)
        self._image = {str(path): path.read_bytes() for path in base.rglob("*") if path.is_file()}
        self._image_oracle = self._oracle[: 2 * IDS]
        self._image_sent = os.pread(self.sent_fd, os.fstat(self.sent_fd).st_size, 0)
        self._refused_before = sum(survey(self.spool).refused.values())

    def restore(self) -> None:
        """Put the remembered state back. What other processes have open is theirs no more."""
        shutil.rmtree(self.spool.path, ignore_errors=True)
        os.makedirs(self.spool.ring, mode=0o700)
        os.chmod(self.spool.path, 0o700)
        for path, content in self._image.items():
            os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            os.write(fd, content)
            os.close(fd)
        self._oracle[: 2 * IDS] = self._image_oracle
        os.ftruncate(self.sent_fd, 0)
        os.write(self.sent_fd, self._image_sent)
        presence.this._presences.clear()  # their attachment is to files that are gone

    # The fault, and what must hold after it.

    def fork(self, work: Callable[[], None]) -> int:
        """Start `work` in a child that ends, without any exit handler, with 0 if it returns. Returns its pid."""
        pid = os.fork()
        if pid:
            return pid
        code = 70
        try:
            signal.alarm(HANG_SECONDS)
            gc.disable()  # so that the same is done each time
            work()
            code = 0
        except BaseException as error:
            sys.settrace(None)
            sys.stderr.write(f"the victim: {type(error).__name__}: {error}\n")
            raise
        finally:
            os._exit(code)

    def recover(
        self, *, evicting: bool = False, flusher_deaths: int = 0, refused: int | None = None, in_order: bool = True
    ) -> Survey:
        """Append as another writer, deliver as the next leader, and assert that all is accounted for.

        Args:
            evicting: whether records may have been evicted.
            flusher_deaths: how many leaders did not come to their end; each may repeat a batch.
            refused: how many appends were answered with False since the spool was restored, if that is known.
            in_order: whether each writer's records must arrive in the order of its appends.
        """
        writer = Writer(self.config)
        after = [SURVIVOR * LANE, SURVIVOR * LANE + 1]
        for number in after:
            assert self.log(writer, number), "the next writer was refused"
        writer.close()
        deliver(self.spool, self.config)
        texts = [text for request in self.sent() for text in request.texts if not is_ours(text)]
        first = dict.fromkeys(int(text[:4]) for text in texts)
        acknowledged, issued = self.acknowledged(), self.issued()
        lost = acknowledged - first.keys()
        books = survey(self.spool)
        if evicting:
            assert len(lost) <= books.evicted <= len(issued - first.keys()), f"{len(lost)} are gone: {books}"
        else:
            assert not lost, f"lost: {lost}"
            assert books.evicted == 0
        assert first.keys() <= issued, f"invented: {first.keys() - issued}"
        assert all(text == message_of(int(text[:4])) for text in texts), "altered"
        for begin in range(0, IDS, LANE):
            lane = [number for number in first if begin <= number < begin + LANE]
            assert lane == sorted(lane) or not in_order, f"out of order: {lane}"
        assert len(texts) - len(first) <= BATCH * flusher_deaths, f"{len(texts) - len(first)} duplicates"
        if refused is not None:
            assert sum(books.refused.values()) == self._refused_before + refused, f"refused {refused}: {books}"
        assert books.adds_up, books
        assert (books.pending, books.delivered) == (0, len(first)), books
        assert len(segment.numbers(self.spool.ring)) == 1, "not all was reclaimed"
        if self.config.keep_delivered:
            told = Counter(int(text[:4]) for _, text in sent_as_history_has_it(self.spool).elements())
            assert told == Counter(first.keys()), "history does not have each record that was delivered, once"
        return books


@contextlib.contextmanager
def told(where: str) -> Iterator[None]:
    """Add to an AssertionError which fault it came after."""
    try:
        yield
    except AssertionError as error:
        raise AssertionError(f"{where}: {error}") from error


def wait(pid: int) -> int:
    """Return the exit code of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
