"""One thread at a time. A signal handler that interrupts the first one never waits for it.

A signal handler may raise at any line (Ctrl-C, a soft time limit), also where a lock is about to be freed. `with` frees
it nearly everywhere. Where it does not, the lock counts for a moment longer, and then for nothing.
"""

from __future__ import annotations

import time
from threading import Lock, get_ident
from typing import Final

from cwsink.clock import monotonic

# What is done in turn takes milliseconds. A lock that is as old as this was left behind.
_LEFT_BEHIND_SECONDS: Final = 1.0
_POLL_SECONDS: Final = 0.001


class Turn:
    """Whose turn it is."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._counts_until = 0.0
        self._owner = 0

    def take(self, *, wait_seconds: float = 0.0) -> Lock | None:
        """Return a lock to be held by `with`; None if it is another thread's turn, or that of the code below us.

        `wait_seconds`: the most to wait for another thread. For the code below us there is no waiting.
        """
        until = monotonic() + wait_seconds
        while self._lock.locked():
            now = monotonic()
            if now >= self._counts_until:
                self._lock = Lock()
            elif now >= until or self._owner == get_ident():
                return None
            else:
                time.sleep(_POLL_SECONDS)
        self._counts_until, self._owner = monotonic() + _LEFT_BEHIND_SECONDS, get_ident()
        return self._lock
