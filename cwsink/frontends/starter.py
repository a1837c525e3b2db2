"""Starts the flusher, a process of its own, when an append finds that no process leads (see `cwsink.frontends`).

The application must not notice the new process, so it must not be a child of the application: there is no zombie, and
no SIGCHLD later on. A shell between the two starts it and ends at once. We wait for the shell, which takes a
millisecond. Where there is no shell the new process is our child, and a later look collects its end.

The new process is a fresh interpreter. It shares with the application only the environment, which gives credentials,
and the `sys.path`, which is put behind its own. Paths in them are made absolute, because its directory is `/`. How to
send is in the spool (cwsink.spool.sending). It runs without `site` (`-S`) and without the variables that Python reads.
Therefore it loads no tracer and no coverage tool that the application runs under. If a module is not to be found in
that path, it begins once more with `site`.

A limit may keep it from starting (open files, memory). What the loader, the shell or Python would say of that is not
for the application's stderr. So that is handed over under another number, and the new process takes it once it runs.
Why it could not begin, it leaves in the lock's file, and the next look says so in our words.
"""

from __future__ import annotations

import os
import posix
import re
import resource
import signal
import sys
import time
from typing import Final

from cwsink import host, hosted, version, words
from cwsink.clock import monotonic
from cwsink.diagnostics import has_stderr, report, reset_quiet
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import descriptors, files, held_lock, leader_state, lease, sending
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.flusher_lock import LOCK_FD, FlusherLock, Reason

PYTHON_VARIABLE: Final = "CWSINK_PYTHON"
PATH_VARIABLE: Final = "CWSINK_FLUSHER_PATH"
STDERR_VARIABLE: Final = "CWSINK_FLUSHER_STDERR"  # its number, if there is one to take; a guard that begins anew has it
_FLUSHERS_OWN: Final = "CWSINK_FLUSHER_"  # a guard that begins anew tells the next one what it knows

_STDERR_FD: Final = 4  # where the guard finds the stderr that it is to take
# What the new process runs; `ps` shows it, so it has no comments. It leaves the directory first, because Python 3.13.0
# can import no socket where that is gone. If a module cannot be imported, it begins once more, with `site`: the path
# handed over may lead to none (a frozen program), or to those of another Python. The packages of this Python come first
# then. Why it cannot begin, it leaves in the lock's file; or it says it, if it was to take over from a flusher that is
# there, and goes on. Nothing else may reach stderr. There may be no memory for an import, or for the interpreter's end.
_BOOT: Final = f"""\
import os,sys
fd=int(os.environ.pop('{STDERR_VARIABLE}','2'))
fd==2 or (os.dup2(fd,2),os.close(fd))
sys.excepthook=lambda*_:None
os.chdir('/')
more=os.environ.pop('{PATH_VARIABLE}')
sys.path[:]=dict.fromkeys([p for p in sys.path if p]+more.split('\\n'))
try:
    from cwsink.flusher.boot import main
    main(sys.argv[2:])
except Exception as error:
    if isinstance(error,ImportError) and '-S' in sys.orig_argv:
        sys.orig_argv.remove('-S')
        os.environ.update({PATH_VARIABLE}=more,{STDERR_VARIABLE}='{_STDERR_FD}')
        os.dup2(2,{_STDERR_FD})
        os.dup2(1,2)
        sys.argv[4] or os.set_inheritable({LOCK_FD},True)
        os.execv(sys.executable,sys.orig_argv)
    why='no memory was left' if isinstance(error,MemoryError) else type(error).__name__+': '+str(error)
    if sys.argv[4]:
        why='cwsink: the flusher that was to take over cannot start ('+sys.executable+'): '+why+'\\n'
    why=why.encode('utf-8','replace')
    os.write(2,why) if sys.argv[4] else os.pwrite({LOCK_FD},why,0)
    os._exit(1)
"""
_SHELL: Final = "/bin/sh"
# A flusher needs about this much. A limit below it may be why it cannot start.
_FEW_FILES: Final = 64
_LITTLE_BYTES: Final = 256 * 1024 * 1024
_RETRY_SECONDS: Final = 10.0
_HOSTED_SECONDS: Final = 5.0
# A flusher that has just started needs a moment before it leads. One that has given way comes back after 3 s.
_BEGINNING_NS: Final = 10_000_000_000
_VACANT_SECONDS: Final = 5.0
_IS_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*t?")
# A new process inherits which signals are ignored, and an application may ignore SIGCHLD or SIGPIPE. Reset these.
_SIGNALS: Final = [signal.SIGCHLD, signal.SIGPIPE, signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM]
# Python needs these to find its library and to know where it may write. All other PYTHON* are for the application.
_OF_PYTHON: Final = frozenset(("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX"))
# Not `os.waitpid`, because gevent replaces it by a function that switches to other greenlets.
_spawn = posix.posix_spawn
_wait = posix.waitpid


class Starter:
    """Starts a flusher for the spools of one root if there is none. A process has one Starter for each root.

    Attributes:
        has_started: it has started one, which has the environment of this process.
        has_failed: the last start has failed, and the next one is not due.
    """

    def __init__(self, root: str) -> None:
        self.has_started = self.has_failed = False
        self._root = root
        self._python = ""
        self._is_busy = False
        self._look_again_at = 0.0
        self._led_before: int | None = None  # leader.json's time when we started a flusher; 0: there was no such file
        self._ended_early = 0  # flushers of ours that ended before they led, since we last saw a leader
        self._vacant_since: float | None = None
        self._held: dict[str, held_lock.Obstruction] = {}  # of each spool that nobody leads, though the lock is taken
        self._left_alone: list[int] = []  # flushers that are our children, because there is no shell

    def ensure(self, directory: SpoolDirectory) -> None:
        """Start a flusher if no process leads `directory` and no flusher is starting. At most 2 ms; never raises."""
        if self._is_busy:  # another thread does it, or this is a signal handler that interrupted it
            return
        self._is_busy = True
        try:
            self._ensure(directory)
        except Exception as error:
            self._failed(error)
        finally:
            self._is_busy = False

    def look_back(self, directory: SpoolDirectory) -> bool:
        """Tell a process that ends whether there is a flusher, though none leads this spool. Starts none; never raises.

        If the one that this process has started has ended already, this is its last look, and says so.
        """
        with suppress(OSError):
            lock = FlusherLock(self._root)
            try:
                if not lock.try_acquire():
                    return True
                if self._led_before == files.written_at_ns(directory.leader_state):
                    self._led_before = None
                    self._say_it_ended(lock)
            finally:
                lock.close()
        return False

    def replace(self, directory: SpoolDirectory, reason: Reason, leader: int) -> None:
        """Start a flusher that is to take the place of the leader with this pid, for this reason. Never raises."""
        try:
            self._spawn(directory, None, f"{reason}:{leader}")
        except Exception as error:
            self._failed(error)

    def _ensure(self, directory: SpoolDirectory) -> None:
        now = monotonic()
        self._collect()
        if _is_led(directory):
            self._led_before = self._vacant_since = None
            self.has_failed = False
            self._ended_early = 0
            self._held.pop(directory.path, None)
            reset_quiet("starter")
            return
        if now < self._look_again_at or self._is_hosted(now):
            return
        lock = FlusherLock(self._root)
        try:
            if not lock.try_acquire():
                self._say_if_held(directory, lock)
                return
            led = files.written_at_ns(directory.leader_state)  # it changes as soon as a flusher leads
            if self._led_before == led:  # the lock is free again: the flusher that we started has ended
                self._led_before = None
                self._ended_early += 1
                if self._ended_early > 1:  # the first one may have been killed: start another one without a pause
                    self._say_it_ended(lock)
                    return
            lock.leave_word("")
            self._spawn(directory, lock, "")
            self.has_started, self.has_failed = True, False
            self._led_before = led
        finally:
            lock.close()

    def _say_if_held(self, directory: SpoolDirectory, lock: FlusherLock) -> None:
        """A process has had the lock for long. It is to lead this spool; say so if it does not."""
        has_begun = time.time_ns() - lock.taken_at_ns >= _BEGINNING_NS
        held = self._held.setdefault(directory.path, held_lock.Obstruction())
        if has_begun and held.lasts(seconds=_VACANT_SECONDS):
            held_lock.say(
                lock.path,
                f"Only a flusher needs the lock. This process does not lead {directory.path}. "
                f"Records wait as long as there is room. {words.to_send(directory.path)} sends them, too.",
            )

    def _is_hosted(self, now: float) -> bool:
        """Tell whether to leave the start to `cwsink run`, whose flusher is not there yet or is started anew."""
        if not hosted.is_hosted():
            return False
        self._vacant_since = self._vacant_since if self._vacant_since is not None else now
        return now - self._vacant_since < _HOSTED_SECONDS

    def _spawn(self, directory: SpoolDirectory, lock: FlusherLock | None, why: str) -> None:
        has_shell, says = os.access(_SHELL, os.X_OK), has_stderr()
        self._python = find_python()
        command = [self._python, "-s", "-S", "-c", _BOOT, "cwsink-flusher", self._root, directory.path, why]
        actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]] = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        ]
        if lock is not None:
            actions.append((os.POSIX_SPAWN_DUP2, lock.fd, LOCK_FD))
        if says:
            actions.append((os.POSIX_SPAWN_DUP2, 2, _STDERR_FD))
        actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
        if has_shell:
            command = [_SHELL, "-c", '"$@" &', "sh", *command]
        try:
            pid = _start(command, actions, _environment() | ({STDERR_VARIABLE: str(_STDERR_FD)} if says else {}))
        except OSError:
            # The error names the program, whatever could not be opened for it. If that is /dev/null, this raises, too.
            descriptors.opened(os.devnull, os.O_RDWR).close()
            raise
        if not has_shell:
            self._left_alone.append(pid)
            return
        # The shell's end may be collected by the application (it waits for any child) or the kernel (SIGCHLD ignored).
        with suppress(ChildProcessError):
            if (code := os.waitstatus_to_exitcode(_wait(pid, 0)[1])) != 0:
                raise OSError(f"{_SHELL} ended with code {code}")

    def _say_it_ended(self, lock: FlusherLock) -> None:
        word = lock.word()
        ended = f"{self._python} has ended before it led any spool"
        self._say_why_not(f"{ended}{word and f' ({word})'}{_low_limits()}")

    def _failed(self, error: Exception) -> None:
        if is_interruption(error):
            raise error
        self._say_why_not(f"{type(error).__name__}: {error}")

    def _say_why_not(self, why: str) -> None:
        self._look_again_at = monotonic() + _RETRY_SECONDS
        self.has_failed = True
        report(
            "starter",
            f"the flusher cannot be started: {why}. Records wait in {self._root} as long as there is room, and the "
            f"start is tried again every {_RETRY_SECONDS:.0f} s. {words.to_send(self._root)} sends them, too.",
        )

    def _collect(self) -> None:
        for pid in list(self._left_alone):
            with suppress(ChildProcessError):
                if _wait(pid, os.WNOHANG)[0] == 0:
                    continue
            self._left_alone.remove(pid)


def find_python() -> str:
    """Return the path of the interpreter for the flusher, of the same version as this one.

    `sys.executable` may be no Python (uWSGI, mod_wsgi, embedded, frozen). Then a Python is looked for in the prefixes
    of this interpreter.

    Raises:
        FileNotFoundError: there is none, or none where `CWSINK_PYTHON` says.
    """
    if named := os.environ.get(PYTHON_VARIABLE):
        import shutil  # here, because few set the variable

        if (found := shutil.which(named)) is None:
            raise FileNotFoundError(f"{PYTHON_VARIABLE}={named!r} names no program")
        return found
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    beside = [f"{prefix}/bin/{name}" for prefix in (sys.prefix, sys.base_prefix) for name in (version, "python3")]
    for path in (sys.executable, getattr(sys, "_base_executable", ""), *beside):
        if path and _IS_PYTHON.fullmatch(os.path.basename(path)) and os.access(path, os.X_OK):
            return path
    raise FileNotFoundError(
        f"no Python was found ({sys.executable or 'sys.executable'} is none). Name a {version} in {PYTHON_VARIABLE}"
    )


def _start(
    command: list[str], actions: list[tuple[int, int, str, int, int] | tuple[int, int, int]], env: dict[str, str]
) -> int:
    """Start a process in a session of its own, with no signal blocked or ignored. Returns its pid. Raises OSError."""
    try:
        return _spawn(command[0], command, env, file_actions=actions, setsid=True, setsigmask=[], setsigdef=_SIGNALS)
    except NotImplementedError:  # an old libc has no `setsid` here; the guard makes the session itself
        return _spawn(command[0], command, env, file_actions=actions, setsigmask=[], setsigdef=_SIGNALS)


def _low_limits() -> str:
    """Return which limits of this process, and so of the flusher, are low: to be put behind a statement."""
    found = []
    if 0 <= (files_limit := resource.getrlimit(resource.RLIMIT_NOFILE)[1]) < _FEW_FILES:
        found.append(f"{files_limit} open files (ulimit -n)")
    for limit, option in ((resource.RLIMIT_AS, "-v"), (resource.RLIMIT_DATA, "-d")):
        if 0 <= (most_bytes := resource.getrlimit(limit)[1]) < _LITTLE_BYTES:
            found.append(f"{words.size(most_bytes)} of memory (ulimit {option})")
    return f"; it may have only {' and '.join(found)}" if found else ""


def _is_led(directory: SpoolDirectory) -> bool:
    """Tell whether a process leads the spool that is going to stay.

    `cwsink flush --once` and `cwsink replay` lead too, but end when they have sent the records they found. They may
    not see a record that this process logs meanwhile. Therefore it starts a flusher, which waits for its turn.
    """
    if not lease.is_taken(directory):
        return False
    published = leader_state.read(directory)
    return published is None or published.kind != "once"


def _environment() -> dict[str, str]:
    left_out = ("PYTHON", _FLUSHERS_OWN)
    here = sending.absolute(os.environ)
    env = {name: value for name, value in here.items() if not name.startswith(left_out) or name in _OF_PYTHON}
    env[PATH_VARIABLE] = "\n".join(_search_path())
    env[leader_state.STARTED_BY_VARIABLE] = f"pid {os.getpid()} ({host.program() or 'python'})"
    env.pop(hosted.VARIABLE, None)
    if hasattr(sys, "_MEIPASS"):  # PyInstaller has put its libraries before those that another Python needs
        env.pop("LD_LIBRARY_PATH", None)
        if before := env.get("LD_LIBRARY_PATH_ORIG"):
            env["LD_LIBRARY_PATH"] = before
    return env


def _search_path() -> list[str]:
    """Return the application's import path with absolute directories, because the flusher has another working one."""
    paths = []
    for each in sys.path:
        if isinstance(each, str):  # Python passes over all else
            with suppress(OSError):  # it is relative to a working directory that is gone
                paths.append(os.path.abspath(each))
    home = os.path.dirname(os.path.dirname(version.__file__))  # pathlib would be loaded for this alone: 10 ms
    return paths if home in paths else [*paths, home]
