"""Puts a spool in order that somebody has meddled with, when a process opens it to write or to lead.

In the place of a file of the spool there may be something else: a FIFO, a directory, a symbolic link, another user's
file. No process can use that, so nobody could lead, or append, any more. Or a file or the ring may be closed to its own
owner (`chmod`, a strict umask). What is not ours to use is renamed, and what is missing then is made anew, as if it had
never been there: the records are in the segments. What is only closed is opened again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

from cwsink.diagnostics import report
from cwsink.interruption import suppress
from cwsink.spool import open_directory
from cwsink.spool.descriptors import FILE_MODE
from cwsink.spool.open_directory import HISTORY, RING, OpenDirectory
from cwsink.spool.root import DIRECTORY_MODE


def put_in_order(path: str) -> None:
    """Set aside what is no file of ours in the spool at `path`, and make the rest usable. Raises OSError."""
    with open_directory.at(path) as spool:
        _put_in_order(spool, RING, stat.S_ISDIR, DIRECTORY_MODE)
        spool.make_directory(RING)
        _put_in_order(spool, HISTORY, stat.S_ISDIR, DIRECTORY_MODE)
        for name in spool.names():
            # FORMAT is repaired by who opens the spool.
            if name not in (RING, HISTORY, "FORMAT") and ".damaged" not in name:
                _put_in_order(spool, name, stat.S_ISREG, FILE_MODE)
        with spool.within(RING) as ring:
            for name in ring.names():
                if name.endswith(".seg"):
                    _put_in_order(ring, name, stat.S_ISREG, FILE_MODE)


def _put_in_order(held: OpenDirectory, name: str, is_right: Callable[[int], bool], mode: int) -> None:
    with suppress(FileNotFoundError):
        status = held.status(name)
        if not is_right(status.st_mode) or status.st_uid != os.geteuid():
            aside = f"{name}.damaged.{os.urandom(4).hex()}"
            held.rename(name, aside)
            path, where = f"{held.path}/{name}", f"{held.path}/{aside}"
            report(f"aside_{path}", f"{path} is no file of this user and this spool. It was set aside as {where}.")
        elif status.st_mode & mode != mode:
            held.set_mode(name, mode)
