"""The files of a spool by their paths: opened, read, replaced, removed in one way.

Each path leads to a file in a spool, or in its ring. The file's directory is opened and looked at first, and the call
is made from there (cwsink.spool.open_directory).

Some questions are asked by path, without a descriptor (`seen`, `exists`, `is_link`, `is_named`). Somebody may exchange
the directory in the next moment. So these answers are for messages, and for what is looked at more closely before
anything is done. One answer stays true: `is_named` compares a name with a file that is open already, and nobody can
give another file the same inode.

A process may be killed, and the disk may become full, in the middle of a write. So `replace` writes a temporary file
beside the old one, makes sure that all of it is there, and renames it: a reader sees the old content or the new one.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Iterator
from typing import Final

from cwsink.interruption import suppress
from cwsink.spool import disk, open_directory
from cwsink.spool.descriptors import Opened
from cwsink.spool.open_directory import TEMPORARY_SUFFIX, OpenDirectory

# A process keeps a temporary file for a moment only. One as old as this was left by a process that was killed.
_STALE_SECONDS: Final = 60.0
_READ_BYTES: Final = 1024 * 1024
# Nothing was written yet, or the name belongs to something that is no file of ours.
_ABSENT: Final = frozenset(
    {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EISDIR, errno.ENXIO, errno.ENODEV, errno.EINVAL, errno.EFBIG}
)


def is_absent(error: OSError) -> bool:
    """Tell whether a read failed because there is no such file of ours. With any other error there may be one."""
    return error.errno in _ABSENT


def opened(path: str, flags: int) -> Opened:
    """Open a file for a `with` block.

    Raises:
        OSError: the directory or the file is not there, cannot be opened (EMFILE, EIO ...), is no directory or no
            regular file (ENOTDIR, EINVAL), or is another user's (EACCES).
    """
    held, name = _place_of(path)
    with held:
        return held.opened(name, flags)


def read(path: str, most_bytes: int) -> tuple[bytes, os.stat_result]:
    """Return a file's content and its status just before.

    The status is that of the opened file, not of its name: a network file system may answer a question about a name
    from its cache, but on opening a file it asks its server.

    Args:
        path: the file.
        most_bytes: how long it may be.

    Raises:
        OSError: as `opened`, or the file is larger than `most_bytes` (EFBIG), or the disk cannot read it.
    """
    held, name = _place_of(path)
    with held:
        return held.read(name, most_bytes)


def read_if_there(path: str, most_bytes: int) -> bytes | None:
    """Return a file's content, with the patience of `disk.read`; None if there is no such file of ours.

    A file that is too long is damaged, and not absent: nothing of it is returned.

    Raises:
        OSError: there may be one, but it cannot be read now (EMFILE, EIO ...).
    """
    try:
        held, name = _place_of(path)
        with held:
            return held.read(name, most_bytes, patience_seconds=disk.PATIENCE_SECONDS)[0]
    except OSError as error:
        if error.errno == errno.EFBIG:
            return b""
        if is_absent(error):
            return None
        raise


def lines(path: str, most_bytes: int) -> Iterator[bytes]:
    """Yield the lines of a file that are not empty, in its first `most_bytes`; none if there is no file.

    Raises:
        OSError: as `opened`.
    """
    rest, at = b"", 0
    try:
        with opened(path, os.O_RDONLY) as file:
            while at < most_bytes and (block := os.pread(file.fd, _READ_BYTES, at)):
                at += len(block)
                *found, rest = (rest + block).split(b"\n")
                yield from filter(None, found)
    except FileNotFoundError:
        return
    if rest:
        yield rest


def replace(path: str, data: bytes) -> None:
    """Replace a file as a whole. Raises OSError: then the old file is still there, unchanged."""
    held, name = _place_of(path)
    with held:
        held.replace(name, data)


def overwrite(path: str, data: bytes) -> None:
    """Write a short text over a file, in the blocks that it has, with blanks up to its old end: for a full disk.

    Raises:
        OSError: ENOSPC: the text is longer than the blocks, and the file is unchanged. Any other: it may be damaged.
    """
    with opened(path, os.O_RDWR) as file:
        text = data.ljust(file.opened_as.st_size)
        if len(data) > file.opened_as.st_blocks * 512 or os.pwrite(file.fd, text, 0) != len(text):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)


def create(path: str, data: bytes, *, is_durable: bool = False) -> None:
    """Make a file with this content, unless another process is first. Raises OSError.

    Args:
        path: the file.
        data: its content.
        is_durable: from the moment it has its name it must survive a crash of the host.
    """
    held, name = _place_of(path)
    with held, held.prepared(name, data) as (file, temporary):
        if is_durable:
            disk.sync_whole(file.fd)
        with suppress(FileExistsError):
            held.link(temporary, name)


def status(path: str) -> os.stat_result:
    """Return the status of a file, or of the link that has the path. Raises OSError."""
    held, name = _place_of(path)
    with held:
        return held.status(name)


def written_at_ns(*paths: str) -> int:
    """Return when one of these files was written last, in ns since 1970; 0 if none is there, or can be looked at."""
    times = [0]
    for path in paths:
        with suppress(OSError):
            times.append(status(path).st_mtime_ns)
    return max(times)


def remove(path: str) -> None:
    """Remove a file. Raises OSError."""
    held, name = _place_of(path)
    with held:
        held.remove(name)


def rename(path: str, new: str) -> None:
    """Give a file another path in the same directory, also one that another file has. Raises OSError."""
    held, name = _place_of(path)
    with held:
        held.rename(name, new.rpartition("/")[2])


def touch(path: str, *, make: bool = False) -> None:
    """Set a file's time to now. `make`: make the file if it is not there. Raises OSError."""
    held, name = _place_of(path)
    with held:
        held.touch(name, make=make)


def is_locked(path: str, *, shared: bool = False, tries: int = 1) -> bool:
    """Tell whether another process has locked a file; see `descriptors.is_locked`. Raises OSError."""
    held, name = _place_of(path)
    with held:
        return held.is_locked(name, shared=shared, tries=tries)


def sync_directory(path: str) -> None:
    """Make the names in a spool's directory durable against a crash of the host. Raises OSError."""
    with open_directory.at(path) as held:
        held.sync()


def remove_stale_temporaries(path: str) -> None:
    """Remove temporary files that are a minute old: the processes that made them were killed. Never raises."""
    oldest = time.time() - _STALE_SECONDS
    with suppress(OSError), open_directory.at(path) as held:
        for name in held.names():
            if name.endswith(TEMPORARY_SUFFIX):
                with suppress(OSError):
                    if held.status(name).st_mtime < oldest:
                        held.remove(name)


# By path, without a descriptor.


def seen(path: str) -> os.stat_result:
    """Return the status of what has this path now; a link at its end is not followed. Raises OSError."""
    return os.lstat(path)


def exists(path: str) -> bool:
    """Tell whether something has this path now."""
    with suppress(OSError, ValueError):  # as `os.path.lexists`, which would suppress what a signal handler raises
        os.lstat(path)  # not `seen`: a check of the ring asks for what is not there, and each frame more takes time
        return True
    return False


def is_link(path: str) -> bool:
    """Tell whether a symbolic link has this path now. Raises no OSError."""
    with suppress(OSError, ValueError):
        return stat.S_ISLNK(os.lstat(path).st_mode)
    return False


def is_named(path: str, status: os.stat_result) -> bool:
    """Tell whether a path leads to the open file with this status. Raises OSError, but not if it leads nowhere."""
    try:
        return os.path.samestat(seen(path), status)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _place_of(path: str) -> tuple[OpenDirectory, str]:
    """Open the directory of a file. Returns it with the file's name. Raises OSError."""
    above, _, name = path.rpartition("/")
    return open_directory.at(above), name
