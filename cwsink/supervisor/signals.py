"""Signals as a queue, for `cwsink run`, which forwards them to its command.

Signals are blocked, and taken one by one. So a signal that comes before the command is started waits. No handler
interrupts anything, and no signal is missed between a look and a wait. Only so does process 1 get a signal for which it
has no handler.

A terminal sends Ctrl-C to every process in its foreground, and so to the command as well. If the supervisor forwarded
it too, the command would get it twice, and quit at once instead of gracefully. Linux tells where a signal is from.
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
    signal.SIGTTIN,  # to gunicorn this means one worker more, and the next one worker less
    signal.SIGTTOU,
)
_TAKEN: Final = {*FORWARDED, signal.SIGCHLD}
# For systems that cannot wait for a signal with a time limit (macOS).
_POLL_SECONDS: Final = 0.05


class Arrival(NamedTuple):
    """A signal that came. `is_for_all`: a terminal has sent it, to the command as well."""

    number: int
    is_for_all: bool


class Signals:
    """The queue of signals. It must be made before any child is started."""

    def __init__(self) -> None:
        self._mask_before = signal.pthread_sigmask(signal.SIG_BLOCK, _TAKEN)
        # If SIGCHLD is ignored, as some parents leave it, no exit codes of children can be read.
        self._child_before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)

    def next(self, timeout_seconds: float | None) -> Arrival | None:
        """Wait for the next signal, and return it. None: the time is over."""
        if not hasattr(signal, "sigtimedwait"):
            return self._poll(timeout_seconds)
        if timeout_seconds is None:
            found = signal.sigwaitinfo(_TAKEN)
        elif (timely := signal.sigtimedwait(_TAKEN, max(0.0, timeout_seconds))) is not None:
            found = timely
        else:
            return None
        return Arrival(found.si_signo, found.si_code > 0)  # sigaction(2): a code above 0 is from the kernel

    def _poll(self, timeout_seconds: float | None) -> Arrival | None:
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while not (_TAKEN & signal.sigpending()):
            if until is not None and time.monotonic() >= until:
                return None
            time.sleep(_POLL_SECONDS)
        number = signal.sigwait(_TAKEN)
        return Arrival(number, number in (signal.SIGINT, signal.SIGQUIT, signal.SIGWINCH) and _is_in_foreground())

    def restore(self) -> None:
        """In a forked child, before exec: set signals as they were when this process was started."""
        if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            # Python's own handler is gone after exec. But a Ctrl-C before exec would go to this handler, and be lost.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        if self._child_before is not None:
            signal.signal(signal.SIGCHLD, self._child_before)
        signal.pthread_sigmask(signal.SIG_SETMASK, self._mask_before)


def _is_in_foreground() -> bool:
    """Tell whether this process is in the foreground of a terminal. If so, the terminal most likely sent the signal."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
