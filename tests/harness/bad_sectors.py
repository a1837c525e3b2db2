"""A disk that cannot read some pages of a file."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

PAGE_BYTES = 4096


@contextlib.contextmanager
def unreadable(
    path: Path, pages: Collection[int], *, error: int = errno.EIO, fails_as_a_whole: bool = False
) -> Iterator[None]:
    """Have each read of these pages fail in this process for as long as the block runs, as of a damaged disk.

    Args:
        path: the file. It stays bad under another name, too.
        pages: their numbers, from 0.
        error: the errno.
        fails_as_a_whole: a read fails if one of its pages does. Else it returns what stands before that page.
    """
    file, pread = path.stat().st_ino, os.pread

    def read(fd: int, size: int, start: int) -> bytes:
        status = os.fstat(fd)
        if status.st_ino == file and start < min(start + size, status.st_size):
            end = min(start + size, status.st_size)
            bad = [page for page in pages if page * PAGE_BYTES < end and start < (page + 1) * PAGE_BYTES]
            if bad and (fails_as_a_whole or min(bad) * PAGE_BYTES <= start):
                raise OSError(error, os.strerror(error))
            if bad:
                size = min(bad) * PAGE_BYTES - start
        return pread(fd, size, start)

    # While it is open, no other file gets its inode.
    with open(path, "rb"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pread", read)
        yield
