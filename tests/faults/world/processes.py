"""All processes of a world, also those that its members have started, as /proc shows them.

A variable of the environment marks them, which each process inherits. It is found in what the process was started with.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import time
from pathlib import Path
from typing import Final

MARK: Final = "CWSINK_TEST_WORLD"


def marked(place: Path) -> dict[int, str]:
    """Return the processes of the world in `place` that live, with their command lines."""
    mark = f"{MARK}={place}".encode()
    found = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            if mark in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                words = Path("/proc", name, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found[int(name)] = words
    return found


def has_ended(pid: int) -> bool:
    """Tell whether a process is gone, or has ended and is not reaped yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def age_seconds(pid: int) -> float:
    """Return for how long a process has lived; 0 if it is gone."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0.0
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def has_threads(pid: int) -> bool:
    """Tell whether a process has more than one thread."""
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task")) > 1
    return False


def kill(pid: int) -> bool:
    """SIGKILL a process. Tell whether it was there."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def starve(pids: list[int], seconds: float) -> None:
    """Let these processes open no file for so long."""
    before = {}
    for pid in pids:
        with contextlib.suppress(OSError):
            soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, hard))
            before[pid] = (soft, hard)
    time.sleep(seconds)
    for pid, limits in before.items():
        with contextlib.suppress(OSError):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
