"""The guard: a writer starts it. It loads what delivering needs, forks the flusher, and forks it again if it dies.

```text
writer --posix_spawn--> guard --fork--> flusher (cwsink.flusher.own)
                          |  the flusher is killed: fork another one, which has its client 10 ms later
                          |  cwsink's files were replaced (an upgrade): begin anew with the new ones, keep the lock
                          |  the flusher has ended by itself: end, too
```

The guard has no thread, holds no spool and sends nothing. If the guard is killed, the flusher goes on without it. If
both are killed, the next append starts both anew.

The guard must not disturb its host. So it has a session of its own (no terminal reaches it), `/` as its directory (no
mount is kept busy), and stdin from /dev/null (no credential helper asks anybody). It inherits stderr for its lines, and
no other descriptor but the lock, which says that a flusher is there. No variable and no `.pth` file of the application
makes it load a tracer or a coverage tool (cwsink.frontends.starter).
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import math
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from typing import Final, NoReturn

import msgspec

from cwsink.diagnostics import report
from cwsink.flusher import cloudwatch, helper, mute, own
from cwsink.flusher.own import Ends
from cwsink.spool import flusher_lock, leader_state, lease
from cwsink.spool.directory import open_existing
from cwsink.spool.flusher_lock import LOCK_FD, FlusherLock

# Pauses before the guard forks again: none after a flusher that lived a second, else the first, then twice the last.
_FIRST_PAUSE_SECONDS: Final = 0.1
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 1.0
_MEANWHILE: Final = "Records wait as long as their spool has room."
# The exit code by which the flusher asks the guard to begin anew.
_RENEW: Final = 75
_LEFT_BEHIND_VARIABLE: Final = "CWSINK_FLUSHER_LEFT_BEHIND"
# Linux takes no variable of more than 128 KiB. That many spools are left behind where each container has had its own.
_MOST_NOTE_BYTES: Final = 100_000
# How long a guard that is to take over waits for the present leader to end.
_CHALLENGE_SECONDS: Final = 30.0
_CHALLENGE_POLL_SECONDS: Final = 0.05
# A flusher that ends frees the lease, and soon the lock. If it frees only the lease, it goes on with other spools.
_GUEST_SECONDS: Final = 1.0
_MOST_GUESTS: Final = 9
# mallopt(3) of glibc.
_M_TRIM_THRESHOLD: Final = -1
_M_MMAP_THRESHOLD: Final = -3
_M_ARENA_MAX: Final = -8
_LARGE_BYTES: Final = 64 * 1024
# A program may have lowered its own limits. The flusher serves other programs, too, so it takes what it is allowed to.
_LIMITS: Final = (
    resource.RLIMIT_FSIZE,
    resource.RLIMIT_NOFILE,
    resource.RLIMIT_AS,
    resource.RLIMIT_DATA,
    resource.RLIMIT_CPU,
)
# These are for the application, from its service manager. The guard must not act on them.
_NOT_OURS: Final = ("NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID")


def main(argv: list[str]) -> NoReturn:
    """Be the guard, or the flusher that it forks.

    Args:
        argv: the root; the spool that the writer logs to, or ""; why the present flusher is to be replaced, a colon,
            and its pid, or "".
    """
    root, spool, reason = argv
    _settle_in(keep_lock=not reason)
    _name_process("cwsink-guard")
    _give_memory_back()
    lock = _take_over(root, spool, reason) if reason else FlusherLock(root, fd=LOCK_FD, is_shared=True)
    if lock is None:
        sys.exit(0)
    left_behind = _left_behind(root, lock, spool)
    cloudwatch.take_credentials_only(os.environ)
    _load()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, _forward)
    signal.signal(signal.SIGUSR1, mute.go_mute)
    mute.end()
    guard_pid = os.getpid()

    def go_mute() -> None:
        mute.go_mute()
        if os.getppid() == guard_pid:
            os.kill(guard_pid, signal.SIGUSR1)

    def work() -> bool:
        is_mute = mute.MUTE_VARIABLE in os.environ
        return own.OwnFlusher(root, lock, go_mute=go_mute, is_mute=is_mute, left_behind=left_behind).run()

    _watch(work)
    _begin_anew(lock, left_behind)


_flusher_pid = 0


def _watch(work: Callable[[], bool]) -> None:
    """Have a forked child do the work, and another one if it dies. Returns if the guard is to begin anew."""
    global _flusher_pid
    pause_seconds = 0.0
    while True:
        began = time.monotonic()
        _flusher_pid = os.fork()
        if _flusher_pid == 0:
            _be_flusher(work)
        code = os.waitstatus_to_exitcode(os.waitpid(_flusher_pid, 0)[1])
        _flusher_pid = 0
        if code == 0:
            sys.exit(0)
        if code == _RENEW:
            return
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        pause_seconds = (
            0.0 if time.monotonic() - began >= _STEADY_SECONDS else 2 * pause_seconds or _FIRST_PAUSE_SECONDS
        )
        pause_seconds = min(pause_seconds, _LONGEST_PAUSE_SECONDS)
        again = f"in {pause_seconds:.1f} s" if pause_seconds else "at once"
        report("guard", f"the flusher {how}. It is started again {again}. {_MEANWHILE}")
        time.sleep(pause_seconds)


def _left_behind(root: str, lock: FlusherLock, spool: str) -> Ends:
    """Return the spools that were left behind before the guard began: the first one, if this one began anew."""
    if before := os.environ.pop(_LEFT_BEHIND_VARIABLE, ""):
        return msgspec.json.decode(before, type=Ends)
    return {path: end for path, end in own.left_behind(root, lock.taken_at_ns).items() if path != spool}


def _begin_anew(lock: FlusherLock, left_behind: Ends) -> NoReturn:
    """Replace this process by one that runs the new files. The pid and the lock stay the same."""
    if lock.fd != LOCK_FD:
        os.dup2(lock.fd, LOCK_FD)
    os.set_inheritable(LOCK_FD, True)  # `dup2` would not do it if the lock has that number already
    env = {**os.environ, "CWSINK_FLUSHER_PATH": "\n".join(sys.path)}
    note = msgspec.json.encode(left_behind).decode()
    if len(note) <= _MOST_NOTE_BYTES:  # without it the next guard looks for itself
        env[_LEFT_BEHIND_VARIABLE] = note
    os.execve(sys.executable, [*sys.orig_argv[:-1], ""], env)


def _be_flusher(work: Callable[[], bool]) -> NoReturn:
    code = 1
    try:
        _name_process("cwsink-flusher")
        code = _RENEW if work() else 0
    except BaseException as error:
        report("flusher", f"the flusher ends: {type(error).__name__}: {error}. {_MEANWHILE}")
    finally:
        helper.end_all()  # `_exit` calls no handler
        os._exit(code)


def _forward(number: int, *_: object) -> None:
    if _flusher_pid:
        with contextlib.suppress(OSError):
            os.kill(_flusher_pid, number)


def _settle_in(*, keep_lock: bool) -> None:
    with contextlib.suppress(OSError):  # it fails if posix_spawn has made the session already
        os.setsid()
    highest = os.sysconf("SC_OPEN_MAX")
    os.closerange(LOCK_FD + keep_lock, min(highest, 1 << 20) if highest > 0 else 65_536)
    for name in _NOT_OURS:
        os.environ.pop(name, None)
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(limit, (resource.getrlimit(limit)[1],) * 2)


def _load() -> None:
    """Load what delivering needs. It is frozen, so that its memory stays shared with the forked child."""
    import filelock  # noqa: F401

    cloudwatch.import_botocore()
    gc.freeze()
    cloudwatch.load()
    gc.collect()  # `load` has made a client, and dropped it
    gc.freeze()
    gc.enable()


def _give_memory_back() -> None:
    """Have glibc keep one heap for all threads, and free large blocks (a request has 1 MB) at once. It saves 2 MiB."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # only glibc has it
        for option, value in ((_M_ARENA_MAX, 1), (_M_MMAP_THRESHOLD, _LARGE_BYTES), (_M_TRIM_THRESHOLD, _LARGE_BYTES)):
            mallopt(option, value)


def _take_over(root: str, spool: str, reason: str) -> FlusherLock | None:
    """Ask the present flusher to end or to give way, and take its lock or that of a guest.

    Returns:
        The lock. None: the flusher does neither, another process asks already, or another flusher has followed it.
    """
    lock = FlusherLock(root, is_shared=True)
    directory = open_existing(spool)
    why, _, pid = reason.partition(":")
    with flusher_lock.challenging(root, "version" if why == "version" else "trouble", int(pid)) as is_ours:
        until = time.monotonic() + _CHALLENGE_SECONDS
        vacant_since = math.inf
        while is_ours and (now := time.monotonic()) < until:
            published = leader_state.read(directory)
            if published is not None and published.pid != int(pid):
                break
            has_lock = lock.try_acquire()
            # A flusher of `cwsink run` or `cwsink flush` does not hold the lock. So ask for the lease, too.
            vacant_since = math.inf if lease.is_taken(directory) else min(vacant_since, now)
            if has_lock and vacant_since <= now:
                return lock
            if why != "version" and now - vacant_since >= _GUEST_SECONDS:
                return _guest_lock(root)
            time.sleep(_CHALLENGE_POLL_SECONDS)
    return None


def _guest_lock(root: str) -> FlusherLock | None:
    """Take the first lock of a guest that is free. None: there are enough guests."""
    for number in range(1, _MOST_GUESTS + 1):
        lock = FlusherLock(root, is_shared=True, guest=number)
        if lock.try_acquire():
            return lock
        lock.close()
    return None


def _name_process(name: str) -> None:
    """Have `ps` and `top` show this name."""
    with contextlib.suppress(OSError), open("/proc/self/comm", "w") as file:
        file.write(name)
