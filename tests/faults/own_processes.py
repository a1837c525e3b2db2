"""The guards and flushers that cwsink has started for a root, as /proc shows them, and how to kill them."""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path
from typing import Final, NamedTuple

GUARD: Final = "cwsink-guard"
FLUSHER: Final = "cwsink-flusher"


class Process(NamedTuple):
    """A process of ours. Its name is what it calls itself once it has begun."""

    pid: int
    parent: int
    name: str


def ours(root: Path | str) -> list[Process]:
    """Return all of them that live, by their command line; one that has ended and is not reaped yet has none."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\0")
            if b"cwsink-flusher" in words and str(root).encode() in words and words[0] != b"/bin/sh":
                status = Path("/proc", name, "stat").read_text()
                comm, _, rest = status.partition("(")[2].rpartition(")")
                found.append(Process(int(name), int(rest.split()[1]), comm))
    return sorted(found)


def named(root: Path | str, name: str) -> list[Process]:
    """Return those of one name."""
    return [each for each in ours(root) if each.name == name]


def kill(process: Process, root: Path | str) -> bool:
    """SIGKILL it, unless its number is another process's by now. Returns whether it was there."""
    try:
        fd = os.pidfd_open(process.pid)
    except OSError:
        return False
    try:
        if process.pid not in [each.pid for each in ours(root)]:
            return False
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        return True
    except OSError:
        return False
    finally:
        os.close(fd)
