"""The root: the directory that holds the spools. Which one it is, and whether it may be trusted.

The root is `spool_directory`, else $CWSINK_SPOOL_DIRECTORY, else the first usable of
/var/lib/cwsink, $XDG_STATE_HOME/cwsink or ~/.local/state/cwsink, /var/tmp/cwsink-<uid>.

Who may rename what is in a directory can put a spool of his own in our place: he would read what is logged, and have
his lines sent with our credentials. The owner of a directory may, and whoever can write to it, unless it is sticky. So
a root must belong to this user or to root. Others may write to it only if it is root's and sticky, like /tmp. On the
way to it there may be no directory that anyone can write to (unless it is sticky), and no symbolic link that another
user can change. A volume that is writable by a group (Kubernetes' `fsGroup`) is no root, but a directory below it is
one: it is made for this user alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Mapping
from typing import Final

from cwsink.errors import SpoolAccessError
from cwsink.interruption import is_interruption, suppress

DIRECTORY_MODE: Final = 0o700
ROOT_VARIABLE: Final = "CWSINK_SPOOL_DIRECTORY"
_MOST_LINKS: Final = 40
CLOSED: Final = "permission denied. Run as its owner or as root."
# The names that cwsink.naming.spool_name makes. By its name alone we know whether a closed directory is a spool.
_SPOOL_NAME: Final = r".+\.[0-9a-f]{10}"
# What lies in a root: the flusher's locks, the host's name, spools, and what a disk brings.
_OF_A_ROOT: Final = rf"flusher-.*|host-.*|{_SPOOL_NAME}|lost\+found|\..*"
_OTHERS_WRITE: Final = stat.S_IWGRP | stat.S_IWOTH


def choose_root(configured: str | None, env: Mapping[str, str], *, make: bool = True) -> str:
    """Return the root: the directory that holds the spools. `make`: make it if it is not there.

    Raises:
        SpoolAccessError: the configured root cannot be used, or none of the default ones can.
    """
    named = configured or env.get(ROOT_VARIABLE)
    if named:
        return _named_root(named, make=make)
    if make:
        return default_root(env)
    for root in _default_roots(env):
        if os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK):
            return root
    return next(iter(_default_roots(env)))


def default_root(env: Mapping[str, str]) -> str:
    """Return the first default root that this user can use, and make it if it is not there. Raises SpoolAccessError."""
    reasons = []
    for root in _default_roots(env):
        if (reason := _why_unusable(root)) is None:
            return root
        reasons.append(f"{root} ({reason})")
    raise SpoolAccessError(
        f"no directory for the spool can be used: {'; '.join(reasons)}. Nothing was written. "
        f"Set spool_directory or {ROOT_VARIABLE} to a writable local directory.",
        "",
    )


def make_directory(path: str, dir_fd: int | None = None) -> None:
    """Make a directory that only its owner may enter, if there is none; the path begins at `dir_fd`. Raises OSError."""
    with suppress(FileExistsError):
        os.mkdir(path, DIRECTORY_MODE, dir_fd=dir_fd)
        # Under a umask such as 0177 even its owner could not enter. Only then the mode is changed: that goes by name.
        if os.stat(path, dir_fd=dir_fd, follow_symlinks=False).st_mode & DIRECTORY_MODE != DIRECTORY_MODE:
            os.chmod(path, DIRECTORY_MODE, dir_fd=dir_fd)


def directories(path: str) -> list[str]:
    """Return the paths of the directories in a root. Raises OSError."""
    return sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))


def closed_spools(root: str) -> dict[str, str]:
    """Return the spools below a root that this user may not look into, as far as their names tell, and why."""
    with suppress(OSError):
        closed = [path for path in directories(root) if not os.access(path, os.R_OK | os.X_OK)]
        return {path: CLOSED for path in closed if re.fullmatch(_SPOOL_NAME, os.path.basename(path), re.DOTALL)}
    return {}


def strangers(path: str) -> list[str]:
    """Return the names in a directory that are not to be expected in a root. Raises OSError."""
    return sorted(entry.name for entry in os.scandir(path) if not re.fullmatch(_OF_A_ROOT, entry.name, re.DOTALL))


def _named_root(named: str, *, make: bool) -> str:
    root = os.path.expanduser(named)
    if not os.path.isabs(root):
        raise SpoolAccessError(
            f"{ROOT_VARIABLE}={named!r} is relative: workers with different working directories would each get "
            "a spool of their own. Nothing was written. Give an absolute path.",
            root,
        )
    root = os.path.abspath(root)
    if make and (reason := _why_unusable(root)):
        raise SpoolAccessError(
            f"the spool directory {root} cannot be used: {reason}. Nothing was written. Make it writable for "
            f"user {os.geteuid()} alone, or name another one (spool_directory or {ROOT_VARIABLE}).",
            root,
        )
    return root


def _default_roots(env: Mapping[str, str]) -> Iterator[str]:
    yield "/var/lib/cwsink"
    state = env.get("XDG_STATE_HOME")
    home = f"{state}/cwsink" if state and os.path.isabs(state) else os.path.expanduser("~/.local/state/cwsink")
    if os.path.isabs(home):  # a user may have no home
        yield home
    yield f"/var/tmp/cwsink-{os.geteuid()}"


def _why_unusable(root: str) -> str | None:
    """Return why a root cannot be used, after making it if it is not there. None: it can."""
    try:
        _make(root)
        return why_untrusted(root)
    except OSError as error:
        if is_interruption(error):
            raise
        return f"{error.strerror}".lower()


def _make(path: str) -> None:
    """Make a directory, and those above it that are missing, each for this user alone. Raises OSError."""
    if not os.path.isdir(path):
        _make(os.path.dirname(path))
        make_directory(path)


def why_untrusted(root: str) -> str | None:
    """Return why this user must not put spools into a directory; None: there is no reason. Raises OSError."""
    status = os.stat(root)
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISDIR(status.st_mode):
        return "it is no directory"
    if not _is_trusted(status):
        return f"it belongs to user {status.st_uid}, who could replace what is in it"
    if mode & _OTHERS_WRITE and not (mode & stat.S_ISVTX and status.st_uid == 0):
        return f"other users may write to it (mode {mode:04o}), and replace what is in it. A directory below it will do"
    if reason := _why_way_is_unsafe(root):
        return reason
    if os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return None
    return "its file system is read-only" if os.statvfs(root).f_flag & os.ST_RDONLY else "permission denied"


def why_unusable(root: str) -> str | None:
    """Return why this user cannot use a root, or make it, as far as a look tells. Makes nothing. Raises OSError."""
    there = root
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    if there == root:
        return why_untrusted(root)
    # Root may write in /proc, as far as its mode tells.
    may_make = os.access(there, os.W_OK | os.X_OK) and not f"{there}/".startswith(("/proc/", "/sys/"))
    return None if may_make else f"it is not there, and cannot be made in {there}"


def _why_way_is_unsafe(root: str) -> str | None:
    """Look at each directory and symbolic link on the way to the root. Raises OSError."""
    left = root.split("/")[::-1]
    at, links = "/", 0
    while left:
        name = left.pop()
        if name in ("", "."):
            continue
        above = os.stat(at)
        if above.st_mode & stat.S_IWOTH and not above.st_mode & stat.S_ISVTX:
            return f"anyone may write to {at}, above it, and replace what is in it"
        path = os.path.join(at, name)
        status = os.lstat(path)
        if not stat.S_ISLNK(status.st_mode):
            at = os.path.dirname(at) if name == ".." else path
            continue
        links += 1
        may_be_replaced = above.st_mode & _OTHERS_WRITE and not above.st_mode & stat.S_ISVTX
        if may_be_replaced or not _is_trusted(status) or not _is_trusted(above):
            return f"another user can change the symbolic link {path}"
        if links > _MOST_LINKS:
            return "too many symbolic links lead to it"
        target = os.readlink(path)
        at = "/" if os.path.isabs(target) else at
        left += target.split("/")[::-1]
    return None


def _is_trusted(status: os.stat_result) -> bool:
    """Tell whether a file or directory belongs to this user or to root."""
    return status.st_uid in (0, os.geteuid())
