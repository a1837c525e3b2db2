"""A spool's directory as it was opened and looked at: what is done by name in a spool is done from there.

Who may write to the directory above a spool can put a directory of his own in the place of the spool, or of its `ring`,
at any moment, also between two calls of ours. The next lines would go to him, and what he has forged would be sent with
our credentials. The root is trusted when a spool is opened (cwsink.spool.root). But somebody may give it away later. So
nothing goes by a path from the root to a file:

1. The spool's directory is opened, and no link at its end is followed. What was opened is looked at: does it belong to
   this user? `ring` is opened from there, in the same way.
2. All else is done from that descriptor. Whatever becomes of the directory's name meanwhile, the descriptor stays with
   the directory that was looked at.
3. A file that is opened must be a regular one, and of the same user. So nobody waits at a FIFO that somebody has put
   there, and nobody reads or writes what is not ours.

A directory is opened for one call, or for a loop over the segments, or for all that a thread does within `staying_in`.
This takes a few system calls more, and none of them is in an append. (Rejected: to keep it open. Each process that logs
would need a descriptor for each spool, and would have to notice that the spool was removed and made anew.)

Root may look at the spools of all users (`cwsink status`), and so at what they have planted there. `look_at` allows
that for one spool: its files are read then, and nothing is changed.

Only this module and `files`, which finds the directory of a path, call the functions of `os` that take a name in a
spool.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Final

from cwsink.interruption import suppress
from cwsink.spool import descriptors, disk
from cwsink.spool.descriptors import Opened
from cwsink.spool.root import make_directory

RING: Final = "ring"
HISTORY: Final = "history"
TEMPORARY_SUFFIX: Final = ".tmp"
_CHANGES: Final = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC

# Spools that this process only looks at, and the user whose they were when it began to.
_looked_at: dict[str, int] = {}


class OpenDirectory:
    """A spool's directory, its ring, or the root, open for one `with` block. Names are of what is in it.

    Attributes:
        path: for messages.
        opened_as: its status when it was opened.
    """

    __slots__ = ("_file", "_is_root", "_owner", "opened_as", "path")

    def __init__(self, path: str, name: str, owner: int, *, dir_fd: int | None = None, is_root: bool = False) -> None:
        """Open the directory `name`, which begins at `dir_fd`. Raises OSError.

        Args:
            path: the same as a path.
            name: see above.
            owner: the user whose its files must be, and the directory itself.
            dir_fd: an open directory; None: `name` is a path.
            is_root: it may also be root's, and others may write to it.
        """
        self.path = path
        self._owner = owner
        self._is_root = is_root
        self._file = descriptors.opened(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd)
        self.opened_as = self._file.opened_as
        if self.opened_as.st_uid != owner and not (is_root and self.opened_as.st_uid == 0):
            self._file.close()
            raise _not_ours(self.opened_as, owner, path)

    def __enter__(self) -> OpenDirectory:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close it, as the end of a block does."""
        self._file.close()

    @property
    def fd(self) -> int:
        """The descriptor. It is closed at the end of the block."""
        return self._file.fd

    def within(self, name: str) -> OpenDirectory:
        """Open the ring of a spool, or its history. Raises OSError, as `at`."""
        return OpenDirectory(f"{self.path}/{name}", name, self._owner, dir_fd=self.fd)

    def names(self) -> list[str]:
        """Return all names. Raises OSError."""
        return os.listdir(self.fd)

    def status(self, name: str) -> os.stat_result:
        """Return the status of a file, or of the link that has the name. Raises OSError."""
        return os.stat(name, dir_fd=self.fd, follow_symlinks=False)

    def opened(self, name: str, flags: int) -> Opened:
        """Open a file for a `with` block.

        Raises:
            OSError: the file is not there, cannot be opened (EMFILE ...), is no regular file (EINVAL), or is another
                user's (EACCES).
        """
        file = descriptors.opened(name, flags, self._fd_to_change() if flags & _CHANGES else self.fd)
        try:
            self._check(file.opened_as, f"{self.path}/{name}")
        except OSError:
            file.close()
            raise
        return file

    def _check(self, status: os.stat_result, path: str) -> None:
        """Raise OSError if a file that was opened is not to be used."""
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file", path)
        if status.st_uid != self._owner:
            raise _not_ours(status, self._owner, path)
        # Where others may write, they may also have given a file of ours the name, and it would be written to.
        if self._is_root and status.st_nlink > 1:
            raise OSError(errno.EMLINK, "the file has another name, too", path)

    def read(
        self, name: str, most_bytes: int, *, patience_seconds: float | None = None
    ) -> tuple[bytes, os.stat_result]:
        """Return a file's content, and its status just before. Raises OSError; EFBIG: it is longer than that.

        `patience_seconds`: see `disk.read`. None: what the disk cannot read is an error for ever.
        """
        with self.opened(name, os.O_RDONLY) as file:
            if file.opened_as.st_size > most_bytes:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), f"{self.path}/{name}")
            if patience_seconds is None:
                return os.pread(file.fd, most_bytes, 0), file.opened_as
            return disk.read(file.fd, most_bytes, 0, patience_seconds=patience_seconds), file.opened_as

    def replace(self, name: str, data: bytes) -> None:
        """Replace a file as a whole. Raises OSError: then the old file is still there, unchanged."""
        with self.prepared(name, data) as (_, temporary):
            self.rename(temporary, name)

    @contextlib.contextmanager
    def prepared(self, name: str, data: bytes) -> Iterator[tuple[Opened, str]]:
        """Write a temporary file, which the block may `link` or `rename` to `name`; its temporary name goes after that.

        Yields:
            The open file, and its temporary name.

        Raises:
            OSError: nothing is left of it.
        """
        temporary = f"{name}.{os.urandom(8).hex()}{TEMPORARY_SUFFIX}"
        try:
            with self.opened(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as file:
                if os.write(file.fd, data) != len(data):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                yield file, temporary
        finally:
            with suppress(OSError):
                self.remove(temporary)

    def remove(self, name: str) -> None:
        """Remove a file. Raises OSError."""
        os.unlink(name, dir_fd=self._fd_to_change())

    def rename(self, old: str, new: str) -> None:
        """Give a file another name, also one that another file has. Raises OSError."""
        fd = self._fd_to_change()
        os.replace(old, new, src_dir_fd=fd, dst_dir_fd=fd)

    def move(self, name: str, into: OpenDirectory) -> None:
        """Move a file into another directory, where it takes the place of one of its name. Raises OSError."""
        os.replace(name, name, src_dir_fd=self._fd_to_change(), dst_dir_fd=into.fd)

    def link(self, name: str, another: str) -> None:
        """Give a file a second name. Raises OSError; FileExistsError: a file has that name already."""
        fd = self._fd_to_change()
        os.link(name, another, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)

    def touch(self, name: str, *, make: bool = False) -> None:
        """Set a file's time to now. `make`: make the file if it is not there. Raises OSError."""
        try:
            os.utime(name, dir_fd=self._fd_to_change(), follow_symlinks=False)
        except FileNotFoundError:
            if not make:
                raise
            self.opened(name, os.O_WRONLY | os.O_CREAT).close()

    def make_directory(self, name: str) -> None:
        """Make a directory that only its owner may enter, if there is none. Raises OSError."""
        make_directory(name, self._fd_to_change())

    def set_mode(self, name: str, mode: int) -> None:
        """Set the mode of what the caller has seen here, and what is no link. Raises OSError."""
        os.chmod(name, mode, dir_fd=self._fd_to_change())

    def is_locked(self, name: str, *, shared: bool = False, tries: int = 1) -> bool:
        """Tell whether another process has locked a file; see `descriptors.is_locked`. Raises OSError."""
        with self.opened(name, os.O_RDONLY) as file:
            return descriptors.is_locked(file.fd, shared=shared, tries=tries)

    def sync(self) -> None:
        """Make the names durable against a crash of the host. Raises OSError."""
        disk.sync_whole(self.fd)

    def _fd_to_change(self) -> int:
        """Return the descriptor for a call that changes something. Raises PermissionError: we may only look."""
        if self._owner != os.geteuid():
            raise PermissionError(errno.EACCES, f"it is user {self._owner}'s, and may only be looked at", self.path)
        return self.fd


class _Staying(OpenDirectory):
    """A directory that stays open at the end of the blocks that use it. Who has opened it closes it."""

    __slots__ = ()

    def __exit__(self, *exception: object) -> None:
        pass


class _Stays(threading.local):
    """The directories in which this thread stays, by their paths."""

    by_path: Mapping[str, OpenDirectory] = MappingProxyType({})


_stays: Final = _Stays()


@contextlib.contextmanager
def staying_in(spool: str) -> Iterator[None]:
    """Open a spool and its ring once for all that this thread does there in the block. Raises OSError, as `at`."""
    if spool in _stays.by_path:
        yield
        return
    before, owner = _stays.by_path, _looked_at.get(spool, os.geteuid())
    held = _Staying(spool, spool, owner)
    opened = {spool: held}
    try:
        with suppress(FileNotFoundError):
            opened[f"{spool}/{RING}"] = _Staying(f"{spool}/{RING}", RING, owner, dir_fd=held.fd)
        _stays.by_path = opened
        yield
    finally:
        _stays.by_path = before
        for each in opened.values():
            each.close()


def at(path: str) -> OpenDirectory:
    """Open a spool's directory, or its ring or history, for a `with` block.

    Raises:
        FileNotFoundError: it is gone.
        NotADirectoryError: a file or a link is in its place.
        PermissionError: it is another user's.
        OSError: EMFILE and so on.
    """
    if (stay := _stays.by_path.get(path)) is not None:
        return stay
    above, _, name = path.rpartition("/")
    if name in (RING, HISTORY):
        with at(above) as spool:
            return spool.within(name)
    return OpenDirectory(path, path, _looked_at.get(path, os.geteuid()))


def root(path: str, owner: int | None = None) -> OpenDirectory:
    """Open the directory that holds the spools of our user, or of `owner`, for a `with` block. Raises OSError, as `at`.

    Its path may lead over links: cwsink.spool.root has looked at them.
    """
    return OpenDirectory(path, f"{path}/.", os.geteuid() if owner is None else owner, is_root=True)


def look_at(spool: str, owner: int) -> None:
    """Allow this process to look at a spool of this user."""
    _looked_at[spool] = owner


def work_on(spool: str) -> None:
    """Allow nothing but a spool of our own user from now on."""
    _looked_at.pop(spool, None)


def _not_ours(status: os.stat_result, owner: int, path: str) -> OSError:
    return PermissionError(errno.EACCES, f"it belongs to user {status.st_uid}, not to user {owner}", path)
