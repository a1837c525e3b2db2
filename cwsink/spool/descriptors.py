"""File descriptors that must not survive a fork.

A flock belongs to the open file description, and a forked child shares that with its parent. If the child kept the
parent's descriptors, it would hold the parent's locks for as long as it lives: the leader could reclaim nothing, and
no process could tell whether another one is still attached. So the descriptors of a spool are opened here, by
`opened`. A hook of `os.register_at_fork` closes them in the child. There `incarnation()` then differs, and each owner
opens its own. Two are not known here: the guard's lock, because its child is to share it (cwsink.spool.flusher_lock),
and the lease, which filelock opens, and closes in a child.

A fork waits for no thread. So another thread may be in the middle of `opened` or `release` at the moment of the fork.
The child then has a descriptor that is not recorded yet, or not any more. It finds such a descriptor by its file. That
takes a moment, but is needed only then.

A fork by C code runs no Python hook. So there is a page of memory that the kernel empties in every child
(MADV_WIPEONFORK, Linux 4.14), and a writer looks at one byte of it before each append, which costs a tenth of
`getpid()`. Without such a page the child keeps writing under its parent's producer id: its records are safe, but their
ids may repeat.

An application may close descriptors that are not its own (a daemon closes all that it has inherited), or put a file of
its own under any number. So ours are moved to high numbers: an application gets the lowest free ones, and most
programs that close what they do not know stop before that. None of ours is ever 0, 1 or 2, where others write without
asking whose file it is. A number may be lost all the same. So each descriptor is remembered with its file, and nobody
closes a number that has another file by then. A writer looks each second, and after each pause, whether the number is
still its segment, because a look before each append would double its cost. So an application that puts a file over
exactly that number (`dup2`) in the middle of a burst loses the records of less than a second.

All files are opened with mode 0600 and these flags: O_CLOEXEC (an exec'd program inherits nothing), O_NOFOLLOW (nobody
can make us write through a symlink that they planted) and O_NONBLOCK (nobody can make us wait at a FIFO that they
planted).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import resource
import sys
from collections.abc import Callable
from functools import partial
from threading import RLock
from typing import Final

from cwsink.interruption import is_interruption, suppress

FILE_MODE: Final = 0o600
_FLAGS: Final = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

# Our numbers begin at a tenth of those that the process may have, within these bounds. The kernel keeps 8 bytes for
# each number up to the highest one, and copies them at each fork.
_LEAST_NUMBER: Final = 100
_MOST_NUMBER: Final = 1_000
_AFTER_STDERR: Final = 3

# <asm-generic/mman-common.h>; the mmap module has no name for it yet.
_MADV_WIPEONFORK: Final = 18
# C code has forked, and one thread of the child closes what was inherited. Its other threads wait so long for it.
_BECOME_SECONDS: Final = 1.0

# Each descriptor with its file (device, inode): somebody may close it beneath us, and its number may become another
# file's (`closerange` in a daemon). Nothing of that file may be closed or written then.
_open: dict[int, tuple[int, int]] = {}
# What threads are opening and closing now. These are lists because `append` and `remove` of a list need no lock.
_opening: list[tuple[str, int | None]] = []
_closing: list[tuple[int, tuple[int, int]]] = []
_incarnation = 0
_after_fork: list[Callable[[], None]] = []
_becoming = RLock()
_is_becoming = False


def _page_wiped_on_fork() -> mmap.mmap | bytes:
    if sys.platform == "linux":
        with suppress(OSError, ValueError):
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
        with suppress(RuntimeError):
            _becoming.release()


def incarnation() -> int:
    """Return a number that differs in a forked child from its parent's."""
    return _incarnation


def release(fd: int, owner_incarnation: int, file: tuple[int, int] | None = None) -> None:
    """Close a descriptor of `opened`; nothing happens if it is closed already, or is another file's by now.

    Args:
        fd: the descriptor.
        owner_incarnation: the incarnation in which it was opened. If a fork came since, it is closed.
        file: what `file_of` said when it was opened. An owner that keeps it for long must give it.
    """
    known = _open.get(fd)
    if owner_incarnation != _incarnation or known is None or file not in (None, known):
        return
    if not is_same(fd, known):
        _open.pop(fd, None)
        return
    mine = fd, known
    _closing.append(mine)
    try:
        del _open[fd]
        os.close(fd)
    except BaseException as error:
        if isinstance(error, (KeyError, OSError)) and not is_interruption(error):
            return  # KeyError: another thread closes it, or a fork has cleared it: we are the child
        if fd not in _open and is_same(fd, known):  # a signal handler has raised between the two
            os.close(fd)
        raise
    finally:
        with suppress(ValueError):
            _closing.remove(mine)


class Opened:
    """A descriptor, open for one `with` block.

    A signal handler may raise at any line, also where a `finally` is about to close a descriptor. The lock on it would
    then stay for as long as this process lives. Here the last reference closes it at the latest.

    Attributes:
        opened_as: the file's status when it was opened.
    """

    __slots__ = ("_file", "_incarnation", "fds", "opened_as")
    opened_as: os.stat_result

    def __init__(self) -> None:
        self.fds: list[int] = []  # the descriptor, while it is ours
        self._incarnation = _incarnation
        self._file: tuple[int, int] | None = None

    @property
    def fd(self) -> int:
        """The descriptor."""
        return self.fds[0]

    def open(self, path: str, flags: int, dir_fd: int | None) -> None:
        """Open. Raises OSError."""
        # The call and the note of its answer are one step of C code, so that no signal handler can raise in between.
        self.fds.extend(map(partial(os.open, dir_fd=dir_fd), (path,), (flags | _FLAGS,), (FILE_MODE,)))
        self.opened_as = status = os.fstat(self.fd)
        self._file = file_of(status)
        if not flags & os.O_DIRECTORY:  # a directory is open for one call, and nobody can write to it by its number
            self._move_up()
        if flags & os.O_CREAT and status.st_mode & FILE_MODE != FILE_MODE and status.st_uid == os.geteuid():
            os.fchmod(self.fd, FILE_MODE)
        _open[self.fd] = self._file

    def _move_up(self) -> None:
        """Give the descriptor a high number; as high as the limit allows. Raises OSError."""
        number = min(max(_LEAST_NUMBER, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 10), _MOST_NUMBER)
        while self.fd < number:
            try:
                self.fds.extend(map(fcntl.fcntl, (self.fd,), (fcntl.F_DUPFD_CLOEXEC,), (number,)))
                if self.fds[-1] < number:  # no kernel answers so, but a fake file system for tests does
                    raise OSError(errno.ENOSYS, f"fcntl() has made the descriptor {self.fds.pop()}")
            except OSError as error:  # EINVAL: the limit is lower. EMFILE: all numbers from there on are taken
                if number == _AFTER_STDERR or is_interruption(error):
                    raise
                number = max(_AFTER_STDERR, number // 2)
                continue
            # Forget the lower number first. If a signal handler raises in between, it stays open; the other way around
            # it would be closed again later, when it may be a file of the application.
            os.close(self.fds.pop(0))

    def is_open(self) -> bool:
        """Tell whether it is open still: nobody has closed it beneath us."""
        return bool(self.fds) and self._file is not None and is_same(self.fd, self._file)

    def abandon(self) -> None:
        """Forget the descriptor: somebody has closed it, and the next one to be opened may get its number."""
        self.fds.clear()

    def keep(self) -> int:
        """Give the descriptor to the caller, who is to `release` it."""
        return self.fds.pop()

    def close(self) -> None:
        """Close it now, unless it is closed or given away."""
        for fd in self.fds:
            if fd in _open:
                release(fd, self._incarnation, self._file)
            elif self._incarnation == _incarnation and (self._file is None or is_same(fd, self._file)):
                os.close(fd)  # it was not opened to the end
        self.fds.clear()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        # It was not made to its end, and has no descriptor. Or the interpreter ends, and has taken this module apart:
        # each of its names, also that of what would catch the error, is None. The kernel closes the descriptor then.
        try:
            self.close()
        except (AttributeError, TypeError):
            pass


def opened(path: str, flags: int, dir_fd: int | None = None) -> Opened:
    """Open `path` for a `with` block; it begins at the directory `dir_fd`, if that is given. Raises OSError."""
    file = Opened()
    _opening.append((path, dir_fd))
    try:
        file.open(path, flags, dir_fd)
        return file
    finally:
        with suppress(ValueError):  # a fork has cleared the list: we are the child
            _opening.remove((path, dir_fd))


def file_of(status: os.stat_result) -> tuple[int, int]:
    """Return what tells one file of the host from all others: device and inode."""
    return status.st_dev, status.st_ino


def try_lock(fd: int, *, exclusive: bool) -> bool:
    """Take the flock of `fd`, or convert the one we have, if that needs no waiting. Tell whether it worked.

    A conversion that fails may drop the lock that we had (flock(2)).
    """
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def is_locked(fd: int, *, shared: bool = False, tries: int = 1) -> bool:
    """Tell whether another process has locked the file of `fd`. To find out, this takes the lock for a moment.

    In that moment another thread may fork, and its child shares our lock. If we only closed our descriptor, the child
    would keep the lock for as long as it lives, and no leader could get it. So we unlock the file first: this frees
    the lock for all who share it.

    Args:
        fd: a descriptor that has no lock.
        shared: a shared lock counts, too.
        tries: how often to try. Others ask in the same way, and their lock of a moment must not count.
    """
    if not any(try_lock(fd, exclusive=shared) for _ in range(tries)):
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False


def _start_anew() -> None:
    """Begin a new incarnation: close what was inherited, then tell all who asked by `after_fork`."""
    global _incarnation
    _incarnation += 1
    for fd in [*(fd for fd, file in _open.items() if is_same(fd, file)), *_unrecorded()]:
        with suppress(OSError):
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
    for path, dir_fd in set(_opening):
        with suppress(OSError):
            wanted = file_of(os.stat(path, dir_fd=dir_fd, follow_symlinks=False))
            found += [int(name) for name in os.listdir("/dev/fd") if is_same(int(name), wanted)]
    # The file is compared, too: if the other thread had closed it before the fork, the number may be another file's.
    found += [fd for fd, file in _closing if is_same(fd, file)]
    return [fd for fd in set(found) if fd not in _open]


def is_same(fd: int, file: tuple[int, int]) -> bool:
    """Tell whether a descriptor is open, and is that file's (`file_of`)."""
    try:
        return file_of(os.fstat(fd)) == file
    except OSError as error:
        if is_interruption(error):
            raise
        return False


def _after_in_child() -> None:
    global _becoming, _is_becoming
    _becoming, _is_becoming = RLock(), False
    _start_anew()


os.register_at_fork(after_in_child=_after_in_child)
