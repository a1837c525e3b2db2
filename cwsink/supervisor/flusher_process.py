"""The flusher of `cwsink run`, as a child of the supervisor: start it, tell it to end, start it again."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import cwsink
from cwsink.printable import printable
from cwsink.supervisor.signals import Signals

# Pauses before the flusher is started again. Each is twice the last, until a flusher has lived for the third time.
_FIRST_PAUSE_SECONDS: Final = 0.2
_LONGEST_PAUSE_SECONDS: Final = 30.0
_STEADY_SECONDS: Final = 60.0

# `python -m` would look for modules in the working directory first, and an application may have a `queue.py` there.
_FLUSHER: Final = """\
import sys
sys.path[:] = [each for each in sys.path if each] + [sys.argv.pop(1)]
from cwsink.cli import main
sys.exit(main())
"""


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
        say(f"{why}.{what_now} Records wait in the spool.")

    def _close(self) -> None:
        self._process = None
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1


def say(message: str) -> None:
    """Write one line to stderr. If nobody reads it, that must not end the command."""
    with contextlib.suppress(OSError):
        os.write(2, f"cwsink: {printable(message, one_line=True)}\n".encode("utf-8", "backslashreplace"))
