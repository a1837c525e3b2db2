"""Lets go of stderr while the guard loads: whoever reads a program's stderr to its end is not to wait for that.

The guard has the stderr of the program that has started it, and takes a third of a second to load. A short program may
have ended by then, and may have said what stays in the spool (cwsink.spool.hurry). Then nobody waits for another word,
nor wants one in the middle of the next command at a terminal. From its first moment on the guard looks for that. So
this module loads little.

Later the flusher looks itself, and more closely (cwsink.flusher.stderr, cwsink.flusher.own).
"""

from __future__ import annotations

import contextlib
import os
import signal
import stat
from typing import Final

from cwsink.spool import hurry

MUTE_VARIABLE: Final = "CWSINK_FLUSHER_MUTE"
_LOOK_SECONDS: Final = 0.01


def begin(spool: str) -> None:
    """Look from now on whether the last program of this spool has said what stays there; "" for no spool."""

    def look(*_: object) -> None:
        with contextlib.suppress(OSError):
            if (is_pipe() or os.isatty(2)) and hurry.has_word(spool):
                go_mute()

    if spool:
        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)


def end() -> None:
    """Look no more."""
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)


def go_mute(*_: object) -> None:
    """Let go of stderr. The variable tells the flushers and guards that come after."""
    os.environ[MUTE_VARIABLE] = "1"
    with contextlib.suppress(OSError):
        fd = os.open(os.devnull, os.O_WRONLY)
        os.dup2(fd, 2)
        os.close(fd)


def is_pipe() -> bool:
    """Tell whether our stderr has a reader that may wait for its end."""
    with contextlib.suppress(OSError):
        mode = os.fstat(2).st_mode
        return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)
    return False
