"""`cwsink tail`: print the records of spools, also while they are appended, delivered and reclaimed.

A follower (cwsink.spool.follower) reads each spool; with --since, cwsink.spool.past_records does.
"""

from __future__ import annotations

import argparse
import contextlib
import fnmatch
import os
import resource
import select
import sys
import time
from collections import deque
from collections.abc import Iterator
from typing import Final

import msgspec

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, complain
from cwsink.cli.spools import Spools, period, target
from cwsink.printable import printable_json
from cwsink.spool import past_records
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.follower import Follower
from cwsink.spool.record import Event
from cwsink.watching import lines

# A look at a quiet spool five times a second costs nearly nothing. In a busy one, a small segment may be filled,
# delivered and reclaimed within moments. So the command looks more often there.
_QUIET_SECONDS: Final = 0.2
_BUSY_SECONDS: Final = 0.01
_NEW_SPOOLS_SECONDS: Final = 1.0
# The last N records are in memory together. These are more than any that are sent.
_MOST_CHARACTERS: Final = 16 * 1024 * 1024
_CANNOT: Final = "cannot read the spool"


class Printer:
    """Prints the records that the filters let through."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._grep = options.grep.casefold() if options.grep else None
        self._level: int | None = options.level
        self._logger: str | None = options.logger
        self._is_json = options.json
        self._is_terminal = sys.stdout.isatty()
        self._has_colour = _wants_colour()
        self._heading = ""
        self.has_headings = False
        self.has_printed = False

    def wants(self, event: Event) -> bool:
        """Tell whether the filters let a record through."""
        if self._level is not None and not lines.is_at_least(lines.read(event), self._level):
            return False
        if self._logger is not None and not fnmatch.fnmatchcase(lines.read(event).logger, self._logger):
            return False
        if self._grep is None or self._grep in event.message.casefold():
            return True
        # People see a record as it is printed ("order_id=17"), not as JSON. So they may look for that.
        return self._grep in self._line(event, colour=False).casefold()

    def print(self, directory: SpoolDirectory, event: Event) -> None:
        """Print one record, under its spool's heading if there are several."""
        self.has_printed = True
        if self._is_json:
            content = {"id": event.id, "timestamp_ms": event.timestamp_ms, "message": event.message}
            line = msgspec.json.encode(content)
            if self._is_terminal:
                line = printable_json(line.decode()).encode()
            sys.stdout.buffer.write(line + b"\n")
            return
        if self.has_headings and self._heading != directory.path:
            print(f"{chr(10) if self._heading else ''}==> {target(directory)} <==")
            self._heading = directory.path
        print(self._line(event, colour=self._has_colour))

    def _line(self, event: Event, *, colour: bool) -> str:
        return lines.render(lines.read(event), today=time.strftime("%Y-%m-%d"), colour=colour)


def run(options: argparse.Namespace) -> int:
    """Print the records that are there. With -f go on until Ctrl-C, or until nobody reads the output."""
    if options.follow and (options.since or options.until):
        options.error("--since and --until are for what is there, and -f is for what comes.")
    _raise_file_limit()
    with contextlib.suppress(KeyboardInterrupt), contextlib.closing(_Tail(options)) as tail:
        return tail.run(options.lines, follow=options.follow)
    return DONE


class _Tail:
    """The spools that are looked at. One that cannot be read is named, and the others are shown."""

    def __init__(self, options: argparse.Namespace) -> None:
        self._spools = Spools(options.path, read_only=True)
        self._period = period(options) if options.since or options.until else None
        self._printer = Printer(options)
        self._followers: dict[str, Follower] = {}
        self._given_up: set[str] = set()

    def run(self, lines: int | None, *, follow: bool) -> int:
        """Print what is there, and with `follow` what comes. Returns the exit code."""
        found = self._begin(lines, follow=follow)
        if follow:
            self._follow()
            return DONE
        if not found or not self._spools.is_whole:
            return NOT_DONE
        if lines is None and self._period is None and not self._printer.has_printed:
            complain("nothing to print waits for delivery. `-n 20` prints delivered records that are on disk, too.")
        return DONE

    def close(self) -> None:
        """Close all segments."""
        for follower in self._followers.values():
            follower.close()

    def _begin(self, last: int | None, *, follow: bool) -> list[SpoolDirectory]:
        """Print all pending records, or the `last` records of all that are on disk. Returns the spools."""
        found = self._spools.find()
        self._printer.has_headings = len(found) > 1
        for directory in found:
            if self._period:
                events = self._read_past(directory)
            else:
                self._open(directory, all_present=last is not None)
                events = self._read(directory.path)
            for event in events if last is None else _last(events, last):
                self._printer.print(directory, event)
            if not follow:  # each segment takes a descriptor, and the next spools need theirs
                self._forget(directory.path)
        return found

    def _follow(self) -> None:
        pause = _QUIET_SECONDS
        look_for_spools_at = 0.0
        while not _is_nobody_reading():
            if time.monotonic() >= look_for_spools_at:
                for directory in self._spools.open():
                    if directory.path not in self._followers.keys() | self._given_up:
                        self._open(directory)
                self._printer.has_headings = len(self._followers) > 1
                look_for_spools_at = time.monotonic() + _NEW_SPOOLS_SECONDS
            is_busy = False
            for path, follower in list(self._followers.items()):
                for event in self._read(path):
                    is_busy = True
                    self._printer.print(follower.directory, event)
            sys.stdout.flush()
            pause = _BUSY_SECONDS if is_busy else min(2 * pause, _QUIET_SECONDS)
            time.sleep(pause)

    def _open(self, directory: SpoolDirectory, *, all_present: bool = False) -> None:
        def say_missed(count: int) -> None:
            segments = f"{words.counted(count, 'segment')} of {directory.path}"
            complain(f"{segments} came and went unseen. Their records were delivered (or evicted), but not shown here.")

        with self._spools.missing(directory.path, _CANNOT), self._spools.at_once():
            self._followers[directory.path] = Follower(directory, all_present=all_present, missed=say_missed)
            return
        self._given_up.add(directory.path)

    def _read(self, path: str) -> Iterator[Event]:
        """Yield the records of a spool that are new, and wanted. If it cannot be read, look no further there."""
        if (follower := self._followers.get(path)) is None:
            return
        with self._spools.missing(path, _CANNOT):
            yield from filter(self._printer.wants, follower.read())
            return
        self._given_up.add(path)
        self._forget(path)

    def _read_past(self, directory: SpoolDirectory) -> Iterator[Event]:
        with self._spools.missing(directory.path, _CANNOT):
            yield from filter(self._printer.wants, past_records.between(directory, *self._period or (0, 0)))

    def _forget(self, path: str) -> None:
        if follower := self._followers.pop(path, None):
            follower.close()


def _last(events: Iterator[Event], count: int) -> deque[Event]:
    """Return the last events, fewer than asked for if they are too long to be held together."""
    found: deque[Event] = deque()
    characters = left_out = 0
    for event in events:
        found.append(event)
        characters += len(event.message)
        while len(found) > count or (characters > _MOST_CHARACTERS and len(found) > 1):
            left_out += len(found) <= count
            characters -= len(found.popleft().message)
    if left_out and len(found) < count:
        complain(f"only {words.counted(len(found), 'record')} shown of {count:,}, because they are very long.")
    return found


def _wants_colour() -> bool:
    """Tell whether stdout is a terminal whose user has not turned colours off (no-color.org)."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") not in ("dumb", "unknown")


def _is_nobody_reading() -> bool:
    """Tell whether stdout is a pipe that nobody reads any more. In a quiet spool, no write would notice that."""
    poll = select.poll()
    try:
        poll.register(sys.stdout.fileno(), 0)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (OSError, ValueError):  # stdout has no descriptor, or it cannot be polled
        return False


def _raise_file_limit() -> None:
    """Allow more than the usual 1,024 descriptors. Each segment takes one, and there may be many small ones."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
