"""Signals as a queue, for a process that is in front of another one (`cwsink run`).

Signals are blocked, and taken one by one. So a signal that comes before the command is started waits, no
handler can interrupt anything, and none is missed between a look and a wait. For process 1 this
is the only way to see a signal that nobody handles.

A terminal sends Ctrl-C to every process in its foreground, so to the command as well. If we forwarded it
too, the command would quit at once instead of gracefully. Linux says where a signal is from.
"""

from __future__ import annotations

import os
import signal
import time
from typing import Final, NamedTuple

FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTTIN,  # a worker more, and with the next a worker less, for gunicorn
    signal.SIGTTOU,
)
_TAKEN: Final = {*FORWARDED, signal.SIGCHLD}
# Where there is no wait with a limit (macOS).
_POLL_SECONDS: Final = 0.05


class Arrival(NamedTuple):
    """A signal that came. `is_for_all`: the terminal sent it, and has sent it to the command as well."""

    number: int
    is_for_all: bool


class Signals:
    """The queue. To be made before any child is started."""

    def __init__(self) -> None:
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        # Some parents ignore it; then there would be no exit codes.
        self._child_before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def next(self, timeout_seconds: float | None) -> Arrival | None:
        """Wait for the next signal. None: the time is over."""
        if not hasattr(signal, "sigtimedwait"):
            return self._poll(timeout_seconds)
        if timeout_seconds is None:
            found = signal.sigwaitinfo(_TAKEN)
        elif (timely := signal.sigtimedwait(_TAKEN, max(0.0, timeout_seconds))) is not None:
            found = timely
        else:
            return None
        return Arrival(found.si_signo, found.si_code > 0)  # sigaction(2): above 0 it is from the kernel

    def _poll(self, timeout_seconds: float | None) -> Arrival | None:
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (_TAKEN & signal.sigpending()):
            if until is not None and time.monotonic() >= until:
                return None
            time.sleep(_POLL_SECONDS)
        number = signal.sigwait(_TAKEN)
        return Arrival(number, number in (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH) and _is_in_foreground())

    def restore(self) -> None:
        """In a forked child, before exec: have signals as they were when this process was started."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # exec takes Python's own handler away. But a Ctrl-C that comes before exec would go to it, and be lost.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._child_before is not None:
            signal.signal(signal.SIGCHLD, self._child_before)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)


def _is_in_foreground() -> bool:
    """Tell whether this process is in the foreground of a terminal, which then most likely sent the signal."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
