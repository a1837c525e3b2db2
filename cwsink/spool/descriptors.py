"""File descriptors that must not survive a fork.

A flock belongs to the open file description, which a forked child shares. A child that kept its parent's
descriptors would hold the parent's locks for as long as it lives: nothing could be reclaimed, and nobody
could tell who is left. So every descriptor of a spool is opened here, but for the guard's lock, which its child is to
share (cwsink.spool.flusher_lock). The hook of `os.register_at_fork` closes them in the child, where `incarnation()`
then differs, and every owner opens its own.

No fork waits for us. Another thread may be in the middle of `acquire` or `release` while this one forks: then the child
has a descriptor that is not written down yet, or not any more. The child looks for it by its file, which takes a
moment, but happens only then.

A fork by C code runs no Python hook. It is noticed through a page of memory that the kernel empties in every child
(MADV_WIPEONFORK, Linux 4.14): looking at a byte costs a tenth of `getpid()`. Where there is no such page, such a child
keeps writing under its parent's producer id. Its records are safe, only their ids may repeat.

All files are opened O_CLOEXEC (no leak into exec'd programs), O_NOFOLLOW (nobody can make us write through a planted
symlink) and O_NONBLOCK (nobody can make us wait at a planted FIFO), mode 0600.
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
# Other threads of a child that C code forked wait so long for the one that noticed it.
_NOTICE_SECONDS: Final = 1.0

_open: set[int] = set()
# What threads are opening and closing now. Lists: `append` and `remove` of one need no lock.
_opening: list[str] = []
_closing: list[tuple[int, os.stat_result]] = []
_incarnation = 0
_after_fork: list[Callable[[], None]] = []
_noticing = RLock()
_is_noticing = False


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
    """Become a process of our own, if nobody did it yet: close what was inherited, and tell those who asked.

    Several threads of a child that C code forked may come here at once. One does it, the others wait for it.
    """
    global _is_noticing
    _noticing.acquire(timeout=_NOTICE_SECONDS)  # not for ever: a thread that the child has not may hold it
    try:
        if not here[0] and not _is_noticing:  # else another thread has done it, or a signal handler has interrupted it
            _is_noticing = True
            try:
                _become_child()
            finally:
                _is_noticing = False
    finally:
        with contextlib.suppress(RuntimeError):
            _noticing.release()


def incarnation() -> int:
    """Return a number that differs in a forked child from its parent's."""
    return _incarnation


def acquire(path: str, flags: int) -> int:
    """Open `path` and own the descriptor. Raises OSError."""
    _opening.append(path)
    try:
        fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, FILE_MODE)
        _open.add(fd)
        return fd
    finally:
        with contextlib.suppress(ValueError):  # we are a child by now
            _opening.remove(path)


def release(fd: int, owner_incarnation: int) -> None:
    """Close a descriptor of `acquire`; nothing happens if a fork has closed it already."""
    if owner_incarnation != _incarnation or fd not in _open:
        return
    try:
        mine = fd, os.fstat(fd)
    except OSError:
        _open.discard(fd)
        return
    _closing.append(mine)
    try:
        _open.remove(fd)
        os.close(fd)
    except (KeyError, OSError):  # KeyError: another thread is at it, or we are a child by now
        pass
    finally:
        with contextlib.suppress(ValueError):
            _closing.remove(mine)


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take or convert the flock of `fd` if that needs no waiting."""
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: str, *, shared: bool = False, tries: int = 1) -> bool:
    """Tell whether a process has locked a file, without keeping anybody out for longer than that takes.

    Another thread may fork meanwhile. The child shares our lock then, and would keep leaders out for as long as it
    lives. So the lock is given back for all who share it, before the descriptor is closed.

    Args:
        path: the file.
        shared: also by a lock that several may have.
        tries: how often to ask, where others who ask must not be taken for one that holds the lock.

    Raises:
        OSError: the file is not there, or cannot be opened.
    """
    fd, mine = acquire(path, os.O_RDONLY), _incarnation
    try:
        if not any(try_lock(fd, exclusive=shared) for _ in range(tries)):
            return True
        fcntl.flock(fd, fcntl.LOCK_UN)
        return False
    finally:
        release(fd, mine)


def _become_child() -> None:
    global _incarnation
    _incarnation += 1
    for fd in [*_open, *_unrecorded()]:
        with contextlib.suppress(OSError):
            os.close(fd)
    _open.clear()
    _opening.clear()
    _closing.clear()
    for call in _after_fork:
        call()
    if isinstance(here, mmap.mmap):
        here[0] = 1  # last: until then the child's other threads wait for us


def _unrecorded() -> list[int]:
    """Return the descriptors that another thread of the parent was about to write down, or to close, at the fork."""
    found = []
    for path in set(_opening):
        with contextlib.suppress(OSError):
            wanted = os.stat(path, follow_symlinks=False)
            found += [int(name) for name in os.listdir("/dev/fd") if _is_of(int(name), wanted)]
    # By number and file: once it is closed, the number may be another file's.
    found += [fd for fd, file in _closing if _is_of(fd, file)]
    return [fd for fd in set(found) if fd not in _open]


def _is_of(fd: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:
        return False


def _after_in_child() -> None:
    global _noticing, _is_noticing
    _noticing, _is_noticing = RLock(), False
    _become_child()


os.register_at_fork(after_in_child=_after_in_child)
