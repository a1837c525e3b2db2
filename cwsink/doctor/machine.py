"""What `cwsink doctor` reads of this machine: /proc, directories, names of users. Changes nothing.

What is seen by a path here is only told to people. Nobody opens or writes a file by it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import pwd
from typing import Final

from cwsink.doctor.invocation import Invocation

_MOST_BYTES: Final = 64 * 1024
_OF_UWSGI: Final = (".ini", ".yaml", ".yml", ".xml", ".json")
_OF_GUNICORN: Final = "gunicorn.conf.py"  # read without a word, if it is in the working directory
_TROUBLES: Final = (errno.EROFS, errno.EIO, errno.EDQUOT)


def nearest(path: str) -> str:
    """Return the path itself, or the nearest directory above it that is there."""
    while not os.path.isdir(path) and path != os.path.dirname(path):
        path = os.path.dirname(path)
    return path


def owner_of(path: str) -> int:
    """Return the user whose directory it is. Raises OSError."""
    return os.stat(path).st_uid


def disk_trouble(path: str) -> str | None:
    """Return why the disk of a directory takes no file, though there is room; None if it does, or cannot be asked.

    The file that it is asked for never has a name (O_TMPFILE of Linux), so nothing is changed. A disk that the kernel
    has made read-only after an error says that in no other way.
    """
    try:
        os.close(os.open(path, getattr(os, "O_TMPFILE", os.O_RDONLY) | os.O_WRONLY, 0o600))
    except OSError as error:
        return os.strerror(error.errno) if error.errno in _TROUBLES else None
    return None


def user_name(uid: int) -> str:
    """Return "www-data (33)", or "33" if the user has no name here."""
    with contextlib.suppress(KeyError):
        return f"{pwd.getpwuid(uid).pw_name} ({uid})"
    return str(uid)


def uid_of(name: str) -> int | None:
    """Return the number of a user, which may be given as one; None if there is none of that name."""
    with contextlib.suppress(KeyError):
        return int(name.lstrip("#")) if name.lstrip("#").isdecimal() else pwd.getpwnam(name).pw_uid
    return None


def is_command(found: Invocation) -> bool:
    """Tell whether what is started is there: on the PATH that it is started with, or where its own path says."""
    places = [found.directory] if "/" in found.typed else os.get_exec_path(found.env)
    return not found.typed or any(os.access(os.path.join(each, found.typed), os.X_OK) for each in places)


def words_of(pid: int) -> list[str]:
    """Return the command line of a process; empty if there is no such process, or if that cannot be told here."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read(_MOST_BYTES).decode(errors="backslashreplace").rstrip("\0").split("\0")
    except OSError:
        return []


def directory_of(pid: int) -> str:
    """Return a path of the working directory of a process, which may be in another container."""
    return f"/proc/{pid}/cwd"


def options_file(found: Invocation) -> str | None:
    """Return the file that may hold more options of a server; None if there is none. It is not read."""
    if found.program in ("uwsgi", "pyuwsgi"):
        named = [word for word in found.words[1:] if word.endswith(_OF_UWSGI)]
        return named[0].rpartition("=")[2] if named else found.option("--emperor")
    if found.program not in ("gunicorn", "hypercorn"):
        return None
    named_by_option = found.option("--config", "-c")
    if named_by_option is None and found.program == "gunicorn" and _may_be(f"{found.directory}/{_OF_GUNICORN}"):
        return _OF_GUNICORN
    return named_by_option


def _may_be(path: str) -> bool:
    """Tell whether a file is there. One that we may not look for may be there."""
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True
