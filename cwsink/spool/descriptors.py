"""File descriptors that must not survive a fork.

A flock belongs to the open file description, which a forked child shares: a
child that kept the parent's descriptors would hold the parent's segment locks
for as long as it lives, and nothing could be reclaimed. Every descriptor of the
spool is therefore opened here, and `os.register_at_fork` closes them in the
child, where `incarnation()` then differs and all owners open their own again.

All files are opened O_CLOEXEC (no leak into exec'd programs) and O_NOFOLLOW
(nobody can make us write through a planted symlink), mode 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from typing import Final

FILE_MODE: Final = 0o600

_open: set[int] = set()
_incarnation = 0


def incarnation() -> int:
    """Return a number that differs in a forked child from its parent's."""
    return _incarnation


def acquire(path: str, flags: int) -> int:
    """Open `path` and own the descriptor. Raises OSError."""
    fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
    _open.add(fd)
    return fd


def release(fd: int, owner_incarnation: int) -> None:
    """Close a descriptor of `acquire`; nothing happens if a fork has closed it already."""
    if owner_incarnation == _incarnation and fd in _open:
        _open.discard(fd)
        with contextlib.suppress(OSError):
            os.close(fd)


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take or convert the flock of `fd` if that needs no waiting."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _close_inherited() -> None:
    global _incarnation
    _incarnation += 1
    for fd in _open:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()


os.register_at_fork(after_in_child=_close_inherited)
