"""The file that `cwsink export --output` or `cwsink metrics --textfile` names: written as a whole, or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from typing import IO

from cwsink.errors import CwsinkError


@contextlib.contextmanager
def replacing(path: str, mode: int | None = None) -> Iterator[IO[bytes]]:
    """Open a file that becomes `path` as a whole at the end of the block. `-` is stdout.

    No reader sees a part of it. If the block fails or is interrupted, the file that was there before stays as it was.
    A device or a pipe cannot be replaced, so it is written directly: a rename would put a plain file in its place.

    Args:
        path: the file; a link leads to the file that is replaced.
        mode: its permissions. None: those of the file that was there, or as the umask says.

    Raises:
        BrokenPipeError: nobody reads the pipe any more.
        CwsinkError: the file cannot be written.
    """
    if path == "-":
        yield sys.stdout.buffer
        return
    try:
        with open(path, "wb") if _is_device(path) else _beside(os.path.realpath(path), mode) as file:
            yield file
    except BrokenPipeError:
        raise
    except OSError as error:  # its text has the name of the temporary file, or none
        raise CwsinkError(f"cannot write {path}: {error.strerror or error}") from error


def _is_device(path: str) -> bool:
    return path.startswith("/dev/") or (os.path.exists(path) and not stat.S_ISREG(os.stat(path).st_mode))


@contextlib.contextmanager
def _beside(path: str, mode: int | None) -> Iterator[IO[bytes]]:
    if mode is None and os.path.exists(path):
        mode = stat.S_IMODE(os.stat(path).st_mode)
    temporary = f"{path}.{os.getpid()}.tmp"
    try:
        with open(temporary, "wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            yield file
        os.replace(temporary, path)
    except BaseException:  # also Ctrl-C
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
