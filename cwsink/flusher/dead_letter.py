"""Dead letters: what can never be delivered is kept in a file, one JSON line each, with the reason.

```text
letter   {"time": "...Z", "reason": "too_old", "error": "...", "id": "producer-sequence",
          "timestamp_ms": 1700000000000, "message": "..."}
damage   {"time", "reason": "corrupt", "segment", "offset", "bytes", "data": base64}
too long {"time", "reason", "error", "id", "timestamp_ms", "bytes", "beginning"}
dropped  {"dropped": 1234}     how many letters the cap has cost so far; the last such line counts
```

The file and its predecessor (`.1`) together stay below the cap: the oldest letters go. They are counted before they go,
so a kill between the two makes the count too high, never too low. A letter is kept whole, unless it alone is longer
than the cap. Then only its beginning is kept, and it counts as dropped.

The leader appends letters. `cwsink replay` takes out those that it has appended to the ring again. Each of them holds a
flock on the spool's directory meanwhile, because the directory is never replaced as the files are, and needs no room
on a full disk as a lock file would. Files are replaced whole, in one rename.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import chain
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec

from cwsink import words
from cwsink.diagnostics import report
from cwsink.spool import descriptors, disk, files, held_lock, open_directory
from cwsink.spool.record import Event

MAX_BYTES: Final = 8 * 1024 * 1024
# One file may hold one letter that is as long as the cap, and two counts. More is not ours, and is not read.
_MOST_FILE_BYTES: Final = MAX_BYTES + 64 * 1024
# Damage, and the beginning of a letter that is too long, are kept for people to look at, not for a replay.
_MOST_DAMAGE_BYTES: Final = 64 * 1024
# Lines are written in portions of this size, so that few large letters are in memory in encoded form.
_PORTION_BYTES: Final = 64 * 1024
# A line with the count is shorter, whatever the number. Each file may end up with two such lines beyond its share.
_COUNT_BYTES: Final = 32
_COUNT: Final = b'{"dropped":'
# A process holds the lock for milliseconds. If it is stopped meanwhile (SIGSTOP), a leader that waited for it would
# deliver nothing. So after this time the leader appends without the lock, which could lose a letter.
LOCK_SECONDS: Final = 10.0
_LOCK_POLL_SECONDS: Final = 0.005


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A record that could not be delivered, with the fields of its line."""

    time: str
    reason: str
    error: str
    id: str
    timestamp_ms: Annotated[int, msgspec.Meta(ge=0, lt=1 << 53)]
    message: Annotated[str, msgspec.Meta(min_length=1)]


class Contents(NamedTuple):
    """What the files hold.

    Attributes:
        letters: each letter with its line, oldest first.
        others: how many lines hold no whole record (damage, too long), by reason.
        unreadable: how many lines cannot be read.
        dropped: how many letters the cap has cost since the spool was made.
    """

    letters: list[tuple[DeadLetter, bytes]]
    others: Counter[str]
    unreadable: int
    dropped: int


class _Other(msgspec.Struct):
    """The common fields of lines without a whole record: damage, and a letter that was too long."""

    reason: str
    bytes: int


class _Count(msgspec.Struct):
    dropped: int


_T = TypeVar("_T")

_encode: Final = msgspec.json.Encoder().encode
_letter_of: Final = msgspec.json.Decoder(DeadLetter).decode
_other_of: Final = msgspec.json.Decoder(_Other).decode
_count_of: Final = msgspec.json.Decoder(_Count).decode


class DeadLetters:
    """The dead letters of one spool."""

    def __init__(self, path: str, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._older = f"{path}.1"
        self._temporary = f"{path}.tmp"
        self._max_bytes = max_bytes
        self._longest = max_bytes - 2 * _COUNT_BYTES  # the longest letter, if it is the only one
        self._half = max_bytes // 2 - 3 * _COUNT_BYTES
        self._is_stuck = False  # another process had the lock for too long when we wanted it last
        self._unsaid: Counter[str] = Counter()  # letters that no line has told of yet
        self._uncounted = 0  # letters that a full disk has cost; the count cannot be written yet, either

    def add(self, reason: str, error: str, events: list[Event]) -> None:
        """Keep events. Never raises, because a full disk must not stop the delivery of other records."""
        now = _now()
        self._keep(reason, len(events), (self._line(now, reason, error, event) for event in events))

    def add_damage(self, segment: int, start: int, data: bytes) -> None:
        """Keep a damaged range of a segment. Never raises."""
        content = base64.b64encode(data[:_MOST_DAMAGE_BYTES]).decode()
        line = {"reason": "corrupt", "segment": segment, "offset": start, "bytes": len(data), "data": content}
        self._keep("corrupt", 1, iter([_line_of({"time": _now(), **line})]))

    def read(self, *, waits: bool = True) -> Contents:
        """Return what the files hold. Changes nothing. Raises OSError.

        Args:
            waits: wait for the lock on the files, and do nothing without it. Else read as they are now, which is good
                enough to count: whoever holds the lock of his own spool must not hold up who only looks.
        """
        self._is_stuck |= not waits
        with self._locked(strict=waits):
            return self._read()

    def _read(self) -> Contents:
        contents = Contents([], Counter(), 0, 0)
        unreadable = dropped = 0
        # Line by line, because somebody may have made millions of short ones.
        for line in chain.from_iterable(files.lines(path, _MOST_FILE_BYTES) for path in (self._older, self._path)):
            if (letter := _decoded(_letter_of, line)) is not None:
                contents.letters.append((letter, line))
            elif (other := _decoded(_other_of, line)) is not None:
                contents.others[other.reason] += 1
            elif (count := _decoded(_count_of, line)) is not None:
                dropped = count.dropped
            else:
                unreadable += 1
        return contents._replace(unreadable=unreadable, dropped=dropped)

    def remove(self, lines: Iterable[bytes]) -> None:
        """Take out lines that `read` gave. Lines added since stay. Raises OSError: some of them may still be there."""
        gone = Counter(lines)

        def stays(line: bytes) -> bool:
            gone[line] -= 1
            return gone[line] < 0

        # The leader may have begun a new file since. So lines are known by their content, not by their place.
        self._keep_only(stays)

    def clear(self, reasons: Collection[str] | None) -> None:
        """Throw away all lines, or those with these reasons. Raises OSError: some of them may still be there."""
        self._keep_only(lambda line: line.startswith(_COUNT) or not (reasons is None or _reason_of(line) in reasons))

    def _keep_only(self, stays: Callable[[bytes], bool]) -> None:
        with self._locked(strict=True):
            for path in (self._older, self._path):
                present = _lines(path)
                kept = [line for line in present if stays(line)]
                if len(kept) < len(present):
                    self._replace(path, kept)

    def _line(self, now: str, reason: str, error: str, event: Event) -> bytes:
        letter = DeadLetter(now, reason, error, event.id, event.timestamp_ms, event.message)
        line = _line_of(letter)
        if len(line) <= self._longest:
            return line
        self._uncounted += 1
        report(
            "dead_letter_too_long",
            f"record {event.id} of {len(event.message):,} characters cannot be delivered ({reason}). It is longer than "
            f"all dead letters together may be, so only its beginning is kept in {self._path}.",
        )
        beginning = event.message[: min(_MOST_DAMAGE_BYTES, self._half // 8)]
        content = {**msgspec.structs.asdict(letter), "bytes": len(event.message.encode()), "beginning": beginning}
        del content["message"]
        return _line_of(content)

    def _keep(self, reason: str, count: int, lines: Iterator[bytes]) -> None:
        left = count
        try:
            with self._locked() as is_locked:
                if is_locked:
                    with contextlib.suppress(OSError):
                        files.remove(self._temporary)  # a replay that was killed has left it
                for portion, number in self._portions(lines):
                    if is_locked:
                        self._make_room(len(portion))
                    self._write(portion)
                    left -= number
                if self._uncounted:
                    self._count(self._uncounted)
                    self._uncounted = 0
        except OSError as error:
            self._uncounted += left
            why = f"{error.strerror}{disk.limit_of(error)}"
            report("dead_letters", f"{left:,} dead letters could not be kept in {self._path}: {why}.")
        if left < count:
            self._unsaid[reason] += count - left
            if report(
                f"dead_{reason}_{self._path}",
                f"{words.records(self._unsaid[reason])} cannot be delivered ({reason}): kept in {self._path}. Other "
                "records are not held up.",
                is_total=True,
            ):
                del self._unsaid[reason]

    def _portions(self, lines: Iterator[bytes]) -> Iterator[tuple[bytes, int]]:
        """Yield the lines in portions, each with the number of its lines."""
        most = min(_PORTION_BYTES, self._half // 8)
        portion: list[bytes] = []
        size = 0
        for line in lines:
            if portion and size + len(line) > most:
                yield b"".join(portion), len(portion)
                portion, size = [], 0
            portion.append(line)
            size += len(line)
        if portion:
            yield b"".join(portion), len(portion)

    def _make_room(self, size_bytes: int) -> None:
        """Let the oldest letters go until `size_bytes` may be appended. Raises OSError."""
        current = _size(self._path)
        if current and current + size_bytes > self._half:
            if _size(self._older):
                self._drop(_lines(self._older))
            files.rename(self._path, self._older)
            current = 0
        # A letter may be longer than half the cap. Then there is no room for two full halves, and older letters go.
        excess = current + _size(self._older) + size_bytes + _COUNT_BYTES - self._max_bytes
        if excess > 0:
            oldest, kept = [], _lines(self._older)[::-1]
            while kept and excess > 0:
                oldest.append(kept.pop())
                excess -= len(oldest[-1]) + 1
            self._drop(oldest)
            self._replace(self._older, kept[::-1])

    def _drop(self, lines: list[bytes]) -> None:
        """Count lines that are about to go. Raises OSError: the lines must stay."""
        letters = sum(not line.startswith(_COUNT) for line in lines)
        total = self._count(letters)
        if letters:
            report(
                "dead_letters_dropped",
                f"{letters:,} of the oldest dead letters were dropped to keep {self._path} below its cap, "
                f"{total:,} in all so far. `cwsink replay --dead-letters` sends those that are left.",
            )

    def _count(self, more: int) -> int:
        """Write down that so many more letters are lost. Returns how many are in all. Raises OSError."""
        counts = [line for path in (self._older, self._path) for line in _lines(path) if line.startswith(_COUNT)]
        last = _decoded(_count_of, counts[-1]) if counts else None
        total = more + (last.dropped if last else 0)
        self._write(_line_of(_Count(total)))
        return total

    def _write(self, data: bytes) -> None:
        """Append whole lines. Raises OSError: none of them is there."""
        with files.opened(self._path, os.O_RDWR | os.O_APPEND | os.O_CREAT) as file:
            size = os.fstat(file.fd).st_size
            if size and os.pread(file.fd, 1, size - 1) != b"\n":
                data = b"\n" + data  # a leader was killed while it wrote: end its fragment first
            try:
                _write_all(file.fd, data)
            except OSError:
                with contextlib.suppress(OSError):
                    os.ftruncate(file.fd, size)
                raise

    def _replace(self, path: str, lines: list[bytes]) -> None:
        """Have `path` hold these lines, or no file if there are none. Raises OSError: it is as it was."""
        if not lines:
            files.remove(path)
            return
        try:
            with files.opened(self._temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) as file:
                _write_all(file.fd, b"\n".join([*lines, b""]))
                disk.sync_whole(file.fd)  # else the rename may be on disk before the content is
            files.rename(self._temporary, path)
        except OSError:
            with contextlib.suppress(OSError):
                files.remove(self._temporary)
            raise

    @contextlib.contextmanager
    def _locked(self, *, strict: bool = False) -> Iterator[bool]:
        """Take the lock on the files, and yield whether it is held. Raises OSError, and TimeoutError if `strict`."""
        spool = os.path.dirname(self._path)
        with open_directory.at(spool) as held:
            try:
                is_locked = self._wait_for(held.fd, spool)
                if strict and not is_locked:
                    raise TimeoutError(
                        f"another process has held the lock on {spool} for {LOCK_SECONDS:.0f} s. Is that process "
                        "stopped? Nothing was changed."
                    )
                yield is_locked
            finally:
                # To close the descriptor is not enough, because a child that C code has forked holds the same lock.
                with contextlib.suppress(OSError):
                    fcntl.flock(held.fd, fcntl.LOCK_UN)

    def _wait_for(self, fd: int, spool: str) -> bool:
        """Take the lock, and tell whether that has worked in time. Who has waited in vain does not wait again."""
        began = time.monotonic()
        most_seconds = 0.0 if self._is_stuck else LOCK_SECONDS
        is_said = self._is_stuck
        while not (is_locked := descriptors.try_lock(fd, exclusive=True)) and time.monotonic() - began < most_seconds:
            if not is_said and time.monotonic() - began >= held_lock.PATIENCE_SECONDS:
                is_said = True
                held_lock.say(
                    spool,
                    "Dead letters are written under this lock, and delivery waits for it. After "
                    f"{LOCK_SECONDS:.0f} s it goes on, and they are written without the lock.",
                )
            time.sleep(_LOCK_POLL_SECONDS)
        self._is_stuck = not is_locked
        return is_locked


def _reason_of(line: bytes) -> str | None:
    found = _decoded(_letter_of, line) or _decoded(_other_of, line)
    return found.reason if found else None


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def _line_of(content: object) -> bytes:
    return _encode(content) + b"\n"


def _decoded(decode: Callable[[bytes], _T], line: bytes) -> _T | None:
    """Return the content of a line, or None if `decode` cannot read it."""
    try:
        return decode(line)
    except (ValueError, RecursionError):  # msgspec's errors and UnicodeDecodeError are ValueErrors
        return None


def _lines(path: str) -> list[bytes]:
    """Return the lines of a file, or none if there is no file. Raises OSError."""
    return list(files.lines(path, _MOST_FILE_BYTES))


def _size(path: str) -> int:
    try:
        return files.status(path).st_size
    except FileNotFoundError:
        return 0


def _write_all(fd: int, data: bytes) -> None:
    """Write all of `data`. Raises OSError (ENOSPC, for instance): a part may be written."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(fd, rest) :]
