"""Puts a spool in order that somebody has meddled with, when a process opens it to write or to lead.

In the place of a file of the spool there may be something else: a FIFO, a directory, a symbolic link, another user's
file. No process can use that, so nobody could lead, or append, any more. Or a file or the ring may be closed to its own
owner (`chmod`, a strict umask). What is not ours to use is renamed, and what is missing then is made anew, as if it had
never been there: the records are in the segments. What is only closed is opened again.
"""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Callable, Iterator

from cwsink.diagnostics import report
from cwsink.spool.descriptors import FILE_MODE
from cwsink.spool.root import DIRECTORY_MODE, make_directory


def put_in_order(path: str) -> None:
    """Set aside what is no file of ours in the spool at `path`, and make the rest usable. Raises OSError."""
    ring = f"{path}/ring"
    _put_in_order(ring, stat.S_ISDIR, DIRECTORY_MODE)
    make_directory(ring)
    for name in _names(path):
        if name not in ("ring", "FORMAT") and ".damaged" not in name:  # FORMAT is repaired by who opens the spool
            _put_in_order(f"{path}/{name}", stat.S_ISREG, FILE_MODE)
    for name in _names(ring):
        if name.endswith(".seg"):
            _put_in_order(f"{ring}/{name}", stat.S_ISREG, FILE_MODE)


def _names(path: str) -> Iterator[str]:
    with os.scandir(path) as entries:
        for entry in entries:
            yield entry.name


def _put_in_order(path: str, is_right: Callable[[int], bool], mode: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        status = os.lstat(path)
        if not is_right(status.st_mode) or status.st_uid != os.geteuid():
            aside = f"{path}.damaged.{os.urandom(4).hex()}"
            os.rename(path, aside)
            report(f"aside_{path}", f"{path} is no file of this user and this spool. It was set aside as {aside}.")
        elif status.st_mode & mode != mode:
            os.chmod(path, mode)
