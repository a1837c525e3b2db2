"""Says that another process keeps a lock that it should have for a moment only.

The kernel's locks are free as soon as their holder dies. But a holder may live on and do nothing: a stopped process, a
debugger, a backup program that locks what it copies, a person with `flock`. None of ours waits for it for long. Still
somebody has to know why nothing is delivered, or why records are refused: one line names the file.
"""

from __future__ import annotations

import os
from typing import Final

from cwsink.clock import monotonic
from cwsink.diagnostics import report
from cwsink.interruption import suppress
from cwsink.spool import files

# Whoever of ours has such a lock needs it for milliseconds.
PATIENCE_SECONDS: Final = 2.0


class Obstruction:
    """How long something has been in the way."""

    def __init__(self) -> None:
        self._since: float | None = None
        self._state: object = None

    def is_over(self) -> None:
        """Note that nothing is in the way."""
        self._since = None

    def lasts(self, state: object = None, *, seconds: float = PATIENCE_SECONDS) -> bool:
        """Note that it is in the way. Tell whether it has been for so long, and `state` was the same all the time."""
        now = monotonic()
        if self._since is None or state != self._state:
            self._since, self._state = now, state
        return now - self._since >= seconds


def say(path: str, what: str) -> None:
    """Say that a lock is held, and what that means: a few sentences. Never raises."""
    report(
        f"held_{path}",
        f"another process has {path} locked, and does not let go. {what} `fuser -v {path}` names the process: let it "
        "go on, or end it.",
    )


def holder(path: str) -> frozenset[str]:
    """Return the pid of the process that has an exclusive flock on a file: one for each pid namespace that it is in.

    Empty if nobody has, or if the kernel does not say: the process is in a container that we cannot look into, or has
    ended and left the lock to a child, or this is no Linux.
    """
    with suppress(OSError, IndexError):
        status = files.status(path)
        file = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        with open("/proc/locks", encoding="ascii") as locks:
            of_file = [fields for line in locks if (fields := line.split())[5] == file and fields[1] == "FLOCK"]
        for fields in of_file:
            if fields[3] == "WRITE":
                with open(f"/proc/{fields[4]}/status", encoding="utf-8", errors="replace") as about:
                    numbers = [line.split()[1:] for line in about if line.startswith("NSpid:")]
                return frozenset(numbers[0])
    return frozenset()
