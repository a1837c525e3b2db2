"""`cwsink replay --dead-letters`: send what CloudWatch refused once more.

Dead letters become new records in the same ring, with a producer of their own. The leader delivers them like any other
record, and the ledger counts them as appended anew. The replay needs no leader: the next one finds them. Live records
come first, so nothing is evicted for a letter.

A killed replay must not lose a letter. So a step of letters is appended, made durable, and only then taken out of the
dead letters. A replay that is killed in between leaves the step in both places, and the next one sends it again (at
most `_STEP_LETTERS` duplicates). A note of how far a replay is would have to be made as durable as the removal, and
would say no more than the removal does.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections import Counter
from collections.abc import Iterator
from typing import Final, NamedTuple

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, complain, say
from cwsink.cli.arguments import REPLAYABLE
from cwsink.cli.progress import Display, display
from cwsink.cli.spools import Spools, leader_name, target
from cwsink.errors import SpoolError
from cwsink.flusher import dead_letter
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.instructions import config_of
from cwsink.flusher.second_chance import Resend, Rules, Skip
from cwsink.spool import capacity, descriptors, files, lease, letters, record, segment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Event
from cwsink.spool.ring import Append, Ring
from cwsink.spool.stats import look
from cwsink.watching.reasons import stall

# A killed replay may send so many letters twice. A smaller step would rewrite the file, up to 8 MiB, more often.
_STEP_LETTERS: Final = 1_000

_CANNOT: Final = "cannot replay the dead letters of"
_CANNOT_CLEAR: Final = "cannot throw away the dead letters of"
_DAMAGE: Final = "damage, which holds no record to send"
_BEGINNING: Final = "only the beginning was kept"

_WHY_STOPPED: Final = {
    Append.FULL: "the spool, or its disk, is full, and no record that waits there is evicted for them. Deliver those, "
    "for instance by {}, and replay again",
    Append.FAILED: "the spool cannot be written",
    Append.GONE: "the spool was removed",
}


class Chosen(NamedTuple):
    """A letter that gets a second chance."""

    reason: str
    line: bytes
    resend: Resend


class LetterReplay:
    """Makes records of the dead letters of one spool.

    Attributes:
        path: of the spool.
        failure: why the replay failed, or None.
    """

    def __init__(self, directory: SpoolDirectory, reasons: frozenset[str] | None, *, restamp: bool) -> None:
        """Raises ConfigError, OSError: how to send cannot be told (cwsink.flusher.instructions.config_of)."""
        self.path = directory.path
        self._directory = directory
        self._config = config_of(directory)
        self._rules = Rules(REPLAYABLE, reasons, restamp, self._config.max_event_bytes)
        self._letters = DeadLetters(directory.dead_letters)
        self._producer = int.from_bytes(os.urandom(8), "little")
        self._replayed: Counter[str] = Counter()
        self._skipped: Counter[tuple[str, str]] = Counter()
        self._unreadable = self._dropped = 0
        self.failure: str | None = None

    def pretend(self) -> None:
        """Count what a replay would do, and change nothing. Raises OSError."""
        self._replayed.update(each.reason for each in self._choose(waits=False))

    def run(self, shown: Display) -> None:
        """Append the letters that get a second chance, step by step, and take them out of the dead letters."""
        try:
            with _alone(self._directory):
                self._append_all(self._choose(waits=True), shown)
        except OSError as error:  # a SpoolError is an OSError
            self.failure = f"{_CANNOT} {self.path}: {error}"

    def clear(self, reasons: frozenset[str] | None, *, dry_run: bool) -> None:
        """Throw the letters away, and say how many. Raises OSError."""
        with _alone(self._directory):
            kept = look(self._directory).dead_letters
            counts = {reason: count for reason, count in kept.items() if reasons is None or reason in reasons}
            if not dry_run:
                self._letters.clear(reasons)
                letters.add(self._directory, "cleared", counts)
        done = "would throw away" if dry_run else "thrown away:"
        say(f"{target(self._directory)}: {done} {words.each_counted(counts) or 'no dead letters'}.")

    def tell(self, *, dry_run: bool) -> None:
        """Print what was done, or what would be done."""
        name = target(self._directory)
        replayed, skipped = self._replayed.total(), self._skipped.total()
        if replayed or skipped:
            reasons = words.each_counted(self._replayed)
            whys = "; ".join(f"{reason}: {count:,}, {why}" for (reason, why), count in sorted(self._skipped.items()))
            done, left = ("would replay", "skip") if dry_run else ("replayed", "skipped")
            line = f"{done} {replayed:,}{reasons and f' ({reasons})'}, {left} {skipped:,}{whys and f' ({whys})'}."
            say(f"{name}: {line}")
        elif self.failure is None:
            say(f"{name}: no dead letters.")
        if replayed and not dry_run:
            say(f"{name}: {_who_sends(self._directory)}")
        if self._dropped:
            most = words.size(dead_letter.MAX_BYTES)
            lost = words.counted(self._dropped, "dead letter")
            say(f"{name}: {lost} lost before. The oldest go when all together take {most}.")
        if self._unreadable:
            lines = words.counted(self._unreadable, "line")
            complain(f"{lines} of {self._directory.dead_letters} cannot be read, and stay there.")
        if self.failure is not None:
            complain(self.failure)

    def _choose(self, *, waits: bool) -> list[Chosen]:
        """Read the letters. Return those that get a second chance, and remember why the others do not."""
        contents = self._letters.read(waits=waits)
        now_ms = time.time_ns() // 1_000_000
        chosen = []
        for letter, line in contents.letters:
            verdict = self._rules.judge(letter, now_ms)
            if isinstance(verdict, Skip):
                self._skipped[letter.reason, verdict.why] += 1
            else:
                chosen.append(Chosen(letter.reason, line, verdict))
        for reason, count in contents.others.items():
            self._skipped[reason, _DAMAGE if reason == "corrupt" else _BEGINNING] += count
        self._unreadable, self._dropped = contents.unreadable, contents.dropped
        return chosen

    def _append_all(self, chosen: list[Chosen], shown: Display) -> None:
        # A worker that leaves last has the spool drained. If this process were attached, the worker would not be the
        # last one, and this process delivers nothing. So there is no Attachment here.
        ring = Ring(self._directory, capacity.of(self._config), is_guest=True)
        with contextlib.closing(ring):
            for start in range(0, len(chosen), _STEP_LETTERS):
                stopped = self._append(ring, chosen[start : start + _STEP_LETTERS])
                replayed = self._replayed.total()
                if shown.is_live:  # elsewhere the summary says it soon enough
                    shown.show(target(self._directory), replayed, replayed / len(chosen))
                if stopped is not None:
                    why = _WHY_STOPPED[stopped].format(words.to_send(self.path))
                    self.failure = f"{words.counted(len(chosen) - replayed, 'dead letter')} of {self.path} stay: {why}."
                if self.failure is not None:
                    return

    def _append(self, ring: Ring, step: list[Chosen]) -> Append | None:
        """Append a step of letters, and take these out of the dead letters. Returns what stopped it, or None."""
        done: list[Chosen] = []
        try:
            for each in step:
                timestamp_ms, message = each.resend
                sequence = self._replayed.total() + len(done)
                answer = ring.append(record.encode(Event(timestamp_ms, self._producer, sequence, message)))
                if answer is not Append.APPENDED:
                    return answer
                done.append(each)
            return None
        finally:  # also after Ctrl-C
            if done:
                self._take_out(done)

    def _take_out(self, done: list[Chosen]) -> None:
        self._replayed.update(each.reason for each in done)
        try:
            segment.sync(self._directory.ring)  # the letters are about to be taken out of their file
            self._letters.remove(each.line for each in done)
            letters.add(self._directory, "replayed", Counter(each.reason for each in done))
        except OSError as error:
            self.failure = (
                f"{words.counted(len(done), 'dead letter')} of {self._directory.path} replayed, but could not be taken "
                f"out of the dead letters: {error}. Another replay sends them again."
            )


def run(options: argparse.Namespace) -> int:
    """Replay the dead letters of every spool at PATH."""
    spools = Spools(options.path, read_only=options.dry_run)
    reasons = frozenset(options.reason) if options.reason else None
    replays = []
    for directory in spools.find():
        with spools.missing(directory.path, _CANNOT):
            replays.append(LetterReplay(directory, reasons, restamp=options.restamp))
    if options.clear:
        for replay in replays:
            with spools.missing(replay.path, _CANNOT_CLEAR):
                replay.clear(reasons, dry_run=options.dry_run)
    elif options.dry_run:
        for replay in replays:
            with spools.missing(replay.path, _CANNOT):
                replay.pretend()
                replay.tell(dry_run=True)
    else:
        with display(has_end=True) as shown:
            for replay in replays:
                replay.run(shown)
        for replay in replays:
            replay.tell(dry_run=False)
    if options.dry_run and replays:
        say("Dry run: nothing was changed.")
    return DONE if replays and spools.is_whole and all(replay.failure is None for replay in replays) else NOT_DONE


@contextlib.contextmanager
def _alone(directory: SpoolDirectory) -> Iterator[None]:
    """Keep out a second replay of the spool, which would send all letters twice. Raises SpoolError, OSError.

    The lock is on the file FORMAT, because that is there, is never replaced, and has no other lock.
    """
    with files.opened(f"{directory.path}/FORMAT", os.O_RDONLY) as file:
        if not descriptors.try_lock(file.fd, exclusive=True):
            raise SpoolError("another replay is at work", directory.path)
        yield


def _who_sends(directory: SpoolDirectory) -> str:
    if lease.is_taken(directory):
        return stall(look(directory)) or f"{leader_name(directory)} leads, and sends them."
    return f"no process leads. They are sent when a worker logs again, or by {words.to_send(directory.path)}."
