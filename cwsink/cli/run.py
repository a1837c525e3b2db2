"""`cwsink run -- COMMAND ...`: run a command, and beside it one flusher for all that it logs.

```text
start the command, then the flusher --> forward signals, reap, restart the flusher --> the command ends
   --> the flusher drains, for --drain-timeout at most --> say what stays --> the command's exit code
```

This process, the supervisor, holds no spool and loads neither botocore nor fapilog. It takes signals from a queue
(cwsink.cli.signals) and reaps all its children. As process 1 it is also the parent of every orphan of the container,
elsewhere on Linux of those that the command leaves behind (PR_SET_CHILD_SUBREAPER).

A terminal or a service manager may signal all processes at once, while the command still logs. So the flusher has a
session of its own, and ignores such signals. The supervisor tells it to end over a pipe. If the pipe closes, the
supervisor is gone (`ParentPipe` in cwsink.cli.serve).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import cwsink
from cwsink.cli.signals import FORWARDED, Arrival, Signals
from cwsink.printable import printable

# The exit codes of a shell.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_SIGNAL_BASE: Final = 128

# Pauses before the flusher is started again. Each is twice the last, until a flusher has lived for the third time.
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0
# The flusher keeps its time limit by itself. If it is late by this much, the supervisor kills it.
_PATIENCE_SECONDS: Final = 1.0
_LEAST_DRAIN_SECONDS: Final = 0.1

_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
# `python -m` would look for modules in the working directory first, and an application may have a `queue.py` there.
_FLUSHER: Final = """\
import sys
sys.path[:] = [each for each in sys.path if each] + [sys.argv.pop(1)]
from cwsink.cli import main
sys.exit(main())
"""
_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>


def run(options: argparse.Namespace) -> int:
    """Run the command. Returns its exit code."""
    words = options.words[1:] if options.words[:1] == ["--"] else options.words
    if not words:
        options.error("run what? The command goes last: cwsink run -- COMMAND ...")
    # The command and the flusher both take these from their environment. By the first one, the workers know that they
    # need not start a flusher at once (cwsink.frontends.starter).
    os.environ["CWSINK_HOSTED"] = str(os.geteuid())
    if options.spool is not None:
        os.environ["CWSINK_SPOOL_DIRECTORY"] = os.path.abspath(options.spool)
    return Supervisor(words, options.drain_timeout).run()


class FlusherProcess:
    """The flusher, as a child of this process. Between its end and its next start there is none.

    Attributes:
        start_at: the monotonic time of the next start. None while a flusher runs, or if none is to be started.
        was_killed: a signal ended the last one.
    """

    def __init__(self, signals: Signals, drain_seconds: float) -> None:
        self._signals = signals
        self._drain_seconds = drain_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe = -1
        self._began = 0.0
        self._pause_seconds = _FIRST_PAUSE_SECONDS
        self.start_at: float | None = None
        self.was_killed = False
        self._is_ending = False

    @property
    def pid(self) -> int | None:
        """The pid of the flusher, or None if there is none now."""
        return None if self._process is None else self._process.pid

    def start(self, drain_seconds: float | None = None) -> None:
        """Start a flusher. If that fails, say so and plan another try."""
        seconds = self._drain_seconds if drain_seconds is None else drain_seconds
        root = str(Path(cwsink.__file__).parent.parent)
        command = [sys.executable, "-c", _FLUSHER, root, "flush", "--supervised", "--timeout", f"{seconds:.3f}"]
        self.start_at = None
        self._began = time.monotonic()
        try:
            reading, self._pipe = os.pipe()
            try:
                self._process = subprocess.Popen(
                    command,
                    stdin=reading,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                    preexec_fn=self._signals.restore,  # noqa: PLW1509  # there are no threads here
                )
            finally:
                os.close(reading)
        except (OSError, subprocess.SubprocessError, TypeError) as error:  # TypeError: sys.executable is None
            self._close()
            self._plan(f"the flusher cannot be started: {error}")

    def tell_to_end(self) -> None:
        """Have it drain and end. A second call has it end at once. After that no flusher is started by itself."""
        self._is_ending = True
        with contextlib.suppress(OSError):
            os.write(self._pipe, b".")

    def kill(self) -> None:
        """Kill it, if it runs."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._close()

    def ended(self, status: int) -> None:
        """Note that it was reaped with `status`. Unless it was told to end, plan to start another one."""
        pid, code = self.pid, os.waitstatus_to_exitcode(status)
        assert self._process is not None
        self._process.returncode = code  # Popen must not wait for this pid, which may be another process's by now
        self._close()
        self.was_killed = code < 0
        if not self._is_ending:
            how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
            self._plan(f"the flusher (pid {pid}) {how}")

    def _plan(self, why: str) -> None:
        if time.monotonic() - self._began >= _STEADY_SECONDS:
            self._pause_seconds = _FIRST_PAUSE_SECONDS
        pause = self._pause_seconds
        self._pause_seconds = min(2 * pause, _LONGEST_PAUSE_SECONDS)
        self.start_at = time.monotonic() + pause
        what_now = "" if self._is_ending else f" It is started again in {pause:.1f} s."
        _say(f"{why}.{what_now} Records wait as long as their spool has room.")

    def _close(self) -> None:
        self._process = None
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


class Supervisor:
    """Runs one command, and keeps a flusher beside it."""

    def __init__(self, words: list[str], drain_seconds: float) -> None:
        """Begin to collect signals. `drain_seconds`: how long the flusher may deliver after the end of the command."""
        self._words = words
        self._drain_seconds = drain_seconds
        self._signals = Signals()
        self._flusher = FlusherProcess(self._signals, drain_seconds)
        self._command = 0
        self._code: int | None = None
        self._stops = 0
        self._late: list[Arrival] = []

    def run(self) -> int:
        """Run the command to its end. Returns its exit code."""
        _adopt_orphans()
        try:
            # Some descriptors may be for the command (systemd's sockets). So none is closed. Ours are closed by exec.
            process = subprocess.Popen(self._words, close_fds=False, preexec_fn=self._become_command)  # noqa: PLW1509  # no threads here
        except OSError as error:
            return self._say_why_not(error)
        self._command = process.pid
        self._flusher.start()
        while self._code is None:
            start_at = self._flusher.start_at
            arrival = self._signals.next(None if start_at is None else start_at - time.monotonic())
            if arrival is None:
                self._flusher.start()
                continue
            # The kernel hands out SIGTERM before SIGCHLD. So look whether the command has ended before forwarding one.
            if self._reap():
                self._late.append(arrival)
            elif arrival.number != signal.SIGCHLD:
                self._forward(arrival)
        process.returncode = self._code  # reaped above
        self._drain()
        self._say_what_stays()
        return self._code

    def _become_command(self) -> None:
        """In the forked child, before exec: undo what a command without a supervisor would not see."""
        if os.environ.get("LISTEN_PID") == str(os.getppid()):  # the pid for which systemd's sockets are meant
            os.environ["LISTEN_PID"] = str(os.getpid())
        self._signals.restore()

    def _say_why_not(self, error: OSError) -> int:
        name = ascii(self._words[0])[1:-1]
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            _say(f"{name}: command not found")
            return NOT_FOUND
        _say(f"{name} cannot be run: {error.strerror}")
        return NOT_EXECUTABLE

    def _forward(self, arrival: Arrival) -> None:
        self._stops += arrival.number in _STOPS
        if arrival.number in FORWARDED and not arrival.is_for_all:
            with contextlib.suppress(OSError):  # not reaped yet, so the pid is the command's; it may be another user's
                os.kill(self._command, arrival.number)

    def _reap(self) -> bool:
        """Reap all children that have ended. Tell whether the command has ended."""
        with contextlib.suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                pid, status = ended
                if pid == self._flusher.pid:
                    self._flusher.ended(status)
                elif pid == self._command and self._code is None:
                    self._command_ended(pid, os.waitstatus_to_exitcode(status))
        return self._code is not None

    def _command_ended(self, pid: int, code: int) -> None:
        if (successor := _upgrade_of(pid)) is not None:
            _say(f"the gunicorn of pid {pid} has handed over to pid {successor}, which is the command from now on.")
            self._command = successor
        else:
            self._code = code if code >= 0 else _SIGNAL_BASE - code

    def _drain(self) -> None:
        """Have the flusher deliver what is left."""
        until = time.monotonic() + self._drain_seconds
        for _ in range(2):  # once more if the flusher is killed meanwhile
            if self._flusher.pid is None:
                self._flusher.start(max(_LEAST_DRAIN_SECONDS, until - time.monotonic()))
            self._flusher.tell_to_end()
            until = self._await_flusher(until)
            if not self._flusher.was_killed or time.monotonic() >= until:
                break
        self._flusher.kill()

    def _await_flusher(self, until: float) -> float:
        """Wait for the flusher to end. A second signal to stop shortens the time. Returns when the time is over."""
        while self._flusher.pid is not None:
            left = until + _PATIENCE_SECONDS - time.monotonic()
            arrival = self._late.pop() if self._late else self._signals.next(left)
            if arrival is None:
                break
            if arrival.number == signal.SIGCHLD:
                self._reap()
            elif arrival.number in _STOPS:
                self._stops += 1
                if self._stops > 1:
                    until = min(until, time.monotonic())
                    self._flusher.tell_to_end()
        return until

    def _say_what_stays(self) -> None:
        from cwsink import words  # imported here, because all of this would hold 8 MiB while the command runs
        from cwsink.cli.spools import Spools
        from cwsink.errors import CwsinkError
        from cwsink.spool import orphans

        # Another user's spool is not our flusher's, and may hold what was put there to stop us.
        spools = Spools(None, read_only=False, tell=lambda _: None)
        try:
            for directory in spools.open():
                with spools.missing(directory.path, "cannot read the spool"):
                    if count := orphans.left_behind(directory):
                        _say(
                            f"{words.stay(count)} in {directory.path}. They are kept, and sent by the next start or by "
                            f"{words.to_send(directory.path)}."
                        )
        except (CwsinkError, OSError) as error:
            _say(str(error))


def _say(message: str) -> None:
    """Write one line to stderr. If nobody reads it, that must not end the command."""
    with contextlib.suppress(OSError):
        os.write(2, f"cwsink: {printable(message, one_line=True)}\n".encode("utf-8", "backslashreplace"))


def _adopt_orphans() -> None:
    """Become the parent of all orphans among our descendants, as process 1 is of all orphans."""
    if sys.platform != "linux" or os.getpid() == 1:
        return
    with contextlib.suppress(Exception):  # then process 1 reaps them, and no upgrade is followed
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _upgrade_of(pid: int) -> int | None:
    """Return the pid of our child that gunicorn `pid` has started to take its place (USR2), or None.

    The new master has the pid of the old one in its environment. No other orphan is followed, because a daemon that the
    command leaves behind must not keep a container alive.
    """
    mark = f"GUNICORN_PID={pid}".encode()
    with contextlib.suppress(OSError):
        for name in filter(str.isdigit, os.listdir("/proc")):
            with contextlib.suppress(OSError):
                parent = Path("/proc", name, "stat").read_bytes().rpartition(b")")[2].split()[1]
                is_ours = int(parent) == os.getpid()
                if is_ours and mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    return int(name)
    return None
