"""File descriptors that must not survive a fork.

A flock belongs to the open file description, and a forked child shares that with its parent. If the child kept the
parent's descriptors, it would hold the parent's locks for as long as it lives: the leader could reclaim nothing, and
no process could tell whether another one is still attached. So the descriptors of a spool are opened here, by
`acquire`. A hook of `os.register_at_fork` closes them in the child. There `incarnation()` then differs, and each owner
opens its own. Three kinds of descriptors are opened elsewhere: the guard's lock, because its child is to share it
(cwsink.spool.flusher_lock), the lease, because filelock closes it in a child, and files that take no lock and are
closed at once.

A fork waits for no thread. So another thread may be in the middle of `acquire` or `release` at the moment of the fork.
The child then has a descriptor that is not recorded yet, or not any more. It finds such a descriptor by its file. That
takes a moment, but is needed only then.

A fork by C code runs no Python hook. So there is a page of memory that the kernel empties in every child
(MADV_WIPEONFORK, Linux 4.14), and a writer looks at one byte of it before each append, which costs a tenth of
`getpid()`. Without such a page the child keeps writing under its parent's producer id: its records are safe, but their
ids may repeat.

All files are opened with mode 0600 and these flags: O_CLOEXEC (an exec'd program inherits nothing), O_NOFOLLOW (nobody
can make us write through a symlink that they planted) and O_NONBLOCK (nobody can make us wait at a FIFO that they
planted).
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
# C code has forked, and one thread of the child closes what was inherited. Its other threads wait so long for it.
_BECOME_SECONDS: Final = 1.0

_open: set[int] = set()
# What threads are opening and closing now. These are lists because `append` and `remove` of a list need no lock.
_opening: list[str] = []
_closing: list[tuple[int, os.stat_result]] = []
_incarnation = 0
_after_fork: list[Callable[[], None]] = []
_becoming = RLock()
_is_becoming = False


def _page_wiped_on_fork() -> mmap.mmap | bytes:
    if sys.platform == "linux":
        with contextlib.suppress(OSError, ValueError):
            page = mmap.mmap(-1, mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            page.madvise(_MADV_WIPEONFORK)
            page[0] = 1
            return page
    return b"\1"


fork_sentinel: Final = _page_wiped_on_fork()
"""If `fork_sentinel[0]` is 0, C code has forked this process, and no Python hook has run: call `become_child`."""


def after_fork(call: Callable[[], None]) -> None:
    """Have `call` called in every forked child once its descriptors are closed; the first one registered goes first."""
    _after_fork.append(call)


def become_child() -> None:
    """Close what a fork by C code has left open in this child, and call what `after_fork` has registered.

    Several threads of the child may come here at once. One of them does it, the others wait for it.
    """
    global _is_becoming
    # With a time-out: at the fork a thread of the parent may have held this lock, and the child has no such thread.
    _becoming.acquire(timeout=_BECOME_SECONDS)
    try:
        # Not if another thread has done it meanwhile, and not if we are a signal handler that has interrupted it.
        if not fork_sentinel[0] and not _is_becoming:
            _is_becoming = True
            try:
                _start_anew()
            finally:
                _is_becoming = False
    finally:
        with contextlib.suppress(RuntimeError):
            _becoming.release()


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
        with contextlib.suppress(ValueError):  # a fork has cleared the list: we are the child
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
    except (KeyError, OSError):  # KeyError: another thread closes it, or a fork has cleared the set: we are the child
        pass
    finally:
        with contextlib.suppress(ValueError):
            _closing.remove(mine)


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take the flock of `fd`, or convert the one we have, if that needs no waiting. Tell whether it worked.

    A conversion that fails may drop the lock that we had (flock(2)).
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(path: str, *, shared: bool = False, tries: int = 1) -> bool:
    """Tell whether a process has locked a file. To find out, this takes the lock for a moment.

    In that moment another thread may fork, and its child shares our lock. If we only closed our descriptor, the child
    would keep the lock for as long as it lives, and no leader could get it. So we unlock the file first: this frees
    the lock for all who share it.

    Args:
        path: the file.
        shared: a shared lock counts, too.
        tries: how often to try. Others ask in the same way, and their lock of a moment must not count.

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


def _start_anew() -> None:
    """Begin a new incarnation: close what was inherited, then tell all who asked by `after_fork`."""
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
    if isinstance(fork_sentinel, mmap.mmap):
        fork_sentinel[0] = 1  # at the end: until then the child's other threads are to wait for us


def _unrecorded() -> list[int]:
    """Return the descriptors that another thread of the parent was just opening or closing at the fork."""
    found = []
    for path in set(_opening):
        with contextlib.suppress(OSError):
            wanted = os.stat(path, follow_symlinks=False)
            found += [int(name) for name in os.listdir("/dev/fd") if _is_of(int(name), wanted)]
    # The file is compared, too: if the other thread had closed it before the fork, the number may be another file's.
    found += [fd for fd, file in _closing if _is_of(fd, file)]
    return [fd for fd in set(found) if fd not in _open]


def _is_of(fd: int, file: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), file)
    except OSError:
        return False


def _after_in_child() -> None:
    global _becoming, _is_becoming
    _becoming, _is_becoming = RLock(), False
    _start_anew()


os.register_at_fork(after_in_child=_after_in_child)
