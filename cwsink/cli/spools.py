"""Finds the spools that a PATH on the command line means, and names them for people (reads directories).

A spool that is damaged or closed to us must not hide the others. So it is told on stderr and remembered, and the others
are returned.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import time
from collections.abc import Callable, Container, Iterator
from typing import NamedTuple, TypeVar

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, complain
from cwsink.config import variables_of
from cwsink.errors import CwsinkError, SpoolError
from cwsink.printable import printable
from cwsink.spool import disk, files, heartbeat, open_directory, segment
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.spool.leadership import leader_of
from cwsink.spool.root import choose_root, closed_spools, directories
from cwsink.spool.stats import SpoolStats

_T = TypeVar("_T")


def target(directory: SpoolDirectory) -> str:
    """Return the name of a spool for people: its target."""
    return words.target(directory.format.log_group_name, directory.format.log_stream_name)


def period(options: argparse.Namespace) -> tuple[int, int]:
    """Return what --since and --until mean: a range of times in ms since 1970."""
    now = time.time()
    since_ms = 0 if options.since is None else int((now - options.since) * 1000)
    return since_ms, (1 << 62) if options.until is None else int((now - options.until) * 1000)


def leader_name(directory: SpoolDirectory) -> str:
    """Return the name of the process that leads a spool, or of its host. The caller knows that one does."""
    if other := heartbeat.elsewhere(directory):
        return printable(f"host {other.mark.host}", one_line=True)
    leader = leader_of(directory)
    return printable(f"pid {leader.pid} on {leader.host}", one_line=True) if leader else "another process"


class Look(NamedTuple):
    """What was seen of all spools, and what could not be read (`Spools.unreadable`)."""

    spools: list[SpoolStats]
    unreadable: dict[str, str]

    @property
    def code(self) -> int:
        """The exit code: whether all is well cannot be told if something is missing, or if there is no spool."""
        return DONE if self.spools and not self.unreadable else NOT_DONE


class Spools:
    """The spools at a PATH. `open()` returns them, and later also those that are new.

    Attributes:
        unreadable: what could not be read, or not as a whole: the path of a spool or of a file, and why.
    """

    def __init__(
        self,
        path: str | None,
        *,
        read_only: bool,
        leaves_others: bool = False,
        tell: Callable[[str], object] = complain,
    ) -> None:
        """Prepare to look.

        Args:
            path: of one spool, or of a directory with spools; None: the root that a writer would choose.
            read_only: only look, also at other users' spools.
            leaves_others: other users' closed spools beside own ones are no matter of this command.
            tell: gets a line for each that cannot be read.
        """
        self._path = path or os.path.expanduser(
            next(filter(None, map(os.environ.get, variables_of("spool_directory"))), "")
        )
        self._read_only = read_only
        self._leaves_others = leaves_others
        self._tell = tell
        self._told: set[str] = set()
        self.unreadable: dict[str, str] = {}

    @property
    def is_whole(self) -> bool:
        """False once a spool could not be read."""
        return not self.unreadable

    @property
    def place(self) -> str:
        """The directory of PATH, for messages."""
        return os.path.abspath(self._path) if self._path else choose_root(None, os.environ, make=False)

    def open(self, known: Container[str] = ()) -> list[SpoolDirectory]:
        """Return the spools that can be opened, except those `known`.

        Raises:
            SpoolAccessError: the directory itself cannot be read.
        """
        paths = find_spools(self._path or None)
        found = [directory for path in paths if path not in known and (directory := self._open(path))]
        if paths != [self.place]:
            self._look_for_others(set(paths), has_own=bool(found) or any(path in known for path in paths))
        return found

    def find(self) -> list[SpoolDirectory]:
        """Do as `open`, and complain if there is no spool. `open` has told which cannot be opened."""
        found = self.open()
        if not found and self.is_whole:
            what = "holds no spool" if os.path.isdir(self.place) else "is not there"
            complain(f"{self.place} {what}: nothing was logged into it yet, or the spools are at another PATH.")
        return found

    def _open(self, path: str) -> SpoolDirectory | None:
        try:
            return open_existing(path, read_only=self._read_only)
        except SpoolError as error:
            self.miss(path, str(error))
            return None

    def _look_for_others(self, known: set[str], *, has_own: bool) -> None:
        """Complain of directories that seem to be spools, but cannot be opened.

        Where several users log to one root, each sends the spools of its own. So if there is one, those of others that
        are closed are named, and nothing that this user could do is left undone.
        """
        for path, why in closed_spools(self.place).items():
            if not self._leaves_others or not has_own or not words.as_owner(path):
                self.miss(path, f"cannot look into {path}: {why}")
            else:
                self._tell_once(path, f"{path} is left to its owner: {words.to_send(path)} sends what waits there.")
        try:
            paths = directories(self.place)
        except OSError:
            return
        for path in paths:
            # In this order: a spool that is made just now gets its FORMAT before its first record.
            if path not in known and self._has_records(path) and not files.exists(f"{path}/FORMAT"):
                self.miss(
                    path, f"{path} holds records but no FORMAT file. The next worker that logs there writes it anew."
                )

    def _has_records(self, path: str) -> bool:
        """Tell whether a directory has segments. It may be anybody's, with anything in it."""
        with contextlib.suppress(OSError):
            if self._read_only:
                open_directory.look_at(path, files.seen(path).st_uid)
            return bool(segment.numbers(f"{path}/{open_directory.RING}"))
        return False

    def missing(self, path: str, cannot: str, then: str = "") -> Missing:
        """Whatever goes wrong with one spool in the block: say so with its name, and let the others be served.

        `cannot` is what cannot be done, such as "cannot read", and `then` what becomes of its records.
        """
        return Missing(self, path, cannot, then)

    def looked_at(self, directory: SpoolDirectory, look: Callable[[SpoolDirectory], _T]) -> _T | None:
        """Return what a look at a spool shows; None if it cannot be read, which is said."""
        with self.missing(directory.path, "cannot read the spool"):
            return look(directory)
        return None

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """In the block wait for no disk that cannot read a file now. Say of which file something is missing."""
        with disk.at_once() as failing:
            yield
        for path in sorted(failing):
            self.miss(path, f"cannot read {path}: {disk.UNREADABLE_FILE}.")

    def miss(self, path: str, message: str) -> None:
        """Note that a spool could not be read, and say so the first time."""
        self.unreadable[path] = message
        self._tell_once(path, message)

    def _tell_once(self, path: str, message: str) -> None:
        if path not in self._told:
            self._told.add(path)
            self._tell(message)


class Missing:
    """The block in which a spool may turn out to be missing (see `Spools.missing`)."""

    def __init__(self, spools: Spools, path: str, cannot: str, then: str) -> None:
        self._spools = spools
        self._path = path
        self._cannot = cannot
        self._then = f" {then}" if then else ""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        # A pipe that nobody reads is the output's trouble, and not the spool's.
        if not isinstance(error, Exception) or isinstance(error, BrokenPipeError):
            return False
        what = str(error) if isinstance(error, CwsinkError | OSError) else f"{type(error).__name__}: {error}"
        self._spools.miss(self._path, f"{self._cannot} {self._path}: {what.rstrip('.: ')}.{self._then}")
        return True
