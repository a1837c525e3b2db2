"""One thread at a time, and nobody waits: neither another thread nor a signal handler that interrupts the first one.

A signal handler may raise at any line (Ctrl-C, a soft time limit), also where a lock is about to be freed. `with` frees
it nearly everywhere. Where it does not, the lock counts for a moment longer, and then for nothing.
"""

from __future__ import annotations

from threading import Lock
from time import monotonic
from typing import Final

# What is done in turn takes milliseconds. A lock that is as old as this was left behind.
_LEFT_BEHIND_SECONDS: Final = 1.0


class Turn:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts_until = 0.0

    def take(self) -> Lock | None:
        """Return a lock to be held by `with`; None if it is another thread's turn, or that of the code below us."""
        if self._lock.locked():
            if monotonic() < self._counts_until:
                return None
            self._lock = Lock()
        self._counts_until = monotonic() + _LEFT_BEHIND_SECONDS
        return self._lock
