"""Runs the command to its end: forwards signals, reaps, keeps a flusher beside it, has that drain at the end."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from cwsink.supervisor.flusher_process import FlusherProcess, say
from cwsink.supervisor.signals import FORWARDED, Arrival, Signals

# The exit codes of a shell.
NOT_FOUND: Final = 127
NOT_EXECUTABLE: Final = 126
_SIGNAL_BASE: Final = 128

# The flusher keeps its time limit by itself. If it is late by this much, the supervisor kills it.
_PATIENCE_SECONDS: Final = 1.0
_LEAST_DRAIN_SECONDS: Final = 0.1

_STOPS: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_PR_SET_CHILD_SUBREAPER: Final = 36  # <linux/prctl.h>


class Supervisor:
    """Runs one command, and keeps a flusher beside it.

    Attributes:
        is_command_started: there was such a command.
    """

    def __init__(self, words: list[str], drain_seconds: float) -> None:
        """Begin to collect signals. `drain_seconds`: how long the flusher may deliver after the end of the command."""
        self.is_command_started = False
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
        self.is_command_started = True
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
        return self._code

    def _become_command(self) -> None:
        """In the forked child, before exec: undo what a command without a supervisor would not see."""
        if os.environ.get("LISTEN_PID") == str(os.getppid()):  # the pid for which systemd's sockets are meant
            os.environ["LISTEN_PID"] = str(os.getpid())
        self._signals.restore()

    def _say_why_not(self, error: OSError) -> int:
        name = ascii(self._words[0])[1:-1]
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            say(f"{name}: command not found")
            return NOT_FOUND
        say(f"{name} cannot be run: {error.strerror}")
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
            say(f"the gunicorn of pid {pid} has handed over to pid {successor}, which is the command from now on.")
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
