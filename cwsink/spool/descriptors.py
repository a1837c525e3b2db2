"""File descriptors that must not survive a fork.

A flock belongs to the open file description, which a forked child shares: a
child that kept the parent's descriptors would hold the parent's segment locks
for as long as it lives, and nothing could be reclaimed. Every descriptor of the
spool is therefore opened here, and `os.register_at_fork` closes them in the
child, where `incarnation()` then differs and all owners open their own again.

A fork by C code runs no Python hook. It is noticed through a page of memory that the
kernel empties in every child (MADV_WIPEONFORK, Linux 4.14): looking at a byte costs a tenth
of `getpid()`. Where there is no such page, such a child keeps writing under its parent's
producer id; its records are safe, only their ids may repeat.

A fork copies another thread's half-done import, too, or a lock it holds in OpenSSL, and nothing in the child ever
completes it. `no_fork()` lets a thread that imports, or makes a client, finish first. So does every open: a descriptor
that exists and is not written down yet would stay open in the child.

All files are opened O_CLOEXEC (no leak into exec'd programs) and O_NOFOLLOW
(nobody can make us write through a planted symlink), mode 0600.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import sys
from collections.abc import Callable
from threading import RLock
from typing import Final

FILE_MODE: Final = 0o600

# <asm-generic/mman-common.h>; the mmap module has no name for it yet.
_MADV_WIPEONFORK: Final = 18

_open: set[int] = set()
_incarnation = 0
_after_fork: list[Callable[[], None]] = []
_gate = RLock()
_opening = RLock()  # not the gate: an append that opens a segment must not wait for an import
# Many times what importing boto3 takes, or asking for credentials; whoever holds one of them for longer is stuck,
# and the fork goes on.
_GATE_SECONDS: Final = 5.0


def _page_wiped_on_fork() -> mmap.mmap | bytes:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
            page[0] = 1
            return page
    return b"\1"


here: Final = _page_wiped_on_fork()
"""`here[0]` is 0 in a child of a fork that ran no Python hook: call `notice_fork`."""


def after_fork(call: Callable[[], None]) -> None:
    """Have `call` called in every forked child, in the order of these calls, after all descriptors are closed."""
    _after_fork.append(call)


def notice_fork() -> None:
    """Become a process of our own: close what was inherited, and tell those who asked."""
    global _incarnation, _gate, _opening
    _incarnation += 1
    _gate, _opening = RLock(), RLock()
    for fd in _open:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()
    if isinstance(here, mmap.mmap):
        here[0] = 1
    for call in _after_fork:
        call()


def incarnation() -> int:
    """Return a number that differs in a forked child from its parent's."""
    return _incarnation


def no_fork() -> contextlib.AbstractContextManager[object]:
    """Return what a thread holds (`with no_fork():`) while no other may fork: as short as can be."""
    return _gate


def acquire(path: str, flags: int) -> int:
    """Open `path` and own the descriptor. Raises OSError."""
    with _opening:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW, FILE_MODE)
        _open.add(fd)
        return fd


def release(fd: int, owner_incarnation: int) -> None:
    """Close a descriptor of `acquire`; nothing happens if a fork has closed it already."""
    with _opening:
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


def _before_fork() -> None:
    for lock in (_gate, _opening):
        lock.acquire(timeout=_GATE_SECONDS)


def _after_in_parent() -> None:
    for lock in (_opening, _gate):
        with contextlib.suppress(RuntimeError):  # not ours: the fork did not wait any longer
            lock.release()


os.register_at_fork(before=_before_fork, after_in_parent=_after_in_parent, after_in_child=notice_fork)
