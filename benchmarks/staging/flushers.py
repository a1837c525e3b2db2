"""The flusher that cwsink starts by itself, and its guard: found and ended by a benchmark (Linux).

They are in no tree or session of the application: its writers start them in a session of their own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from typing import Final

_POLL_SECONDS: Final = 0.02
_HANG_SECONDS: Final = 30.0


def flushers_of(root: str | Path) -> list[int]:
    """Return the pids of the guard and the flusher that serve the spools of a directory, guards first."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
                if b"cwsink-flusher" in words and os.fsencode(root) in words:
                    found.append((Path(f"/proc/{entry}/comm").read_text().strip() == "cwsink-flusher", int(entry)))
    return [pid for _, pid in sorted(found)]


def kill_flushers(root: str | Path) -> None:
    """Kill both, and whatever is started meanwhile, until none is left: the guard first, which else forks another."""
    while pids := flushers_of(root):
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_POLL_SECONDS)


def await_flushers(root: str | Path) -> bool:
    """Wait until they have ended by themselves: all is delivered, or their time is over. Returns whether they have."""
    until = time.monotonic() + _HANG_SECONDS
    while is_over := time.monotonic() < until:
        if not flushers_of(root):
            break
        time.sleep(_POLL_SECONDS)
    return is_over
