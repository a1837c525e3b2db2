"""What a flusher is told while it leads: to hurry, to drain, to stop."""

from __future__ import annotations

import threading
import time


class Orders:
    """What the owner of a flusher wants of it. Any thread and any signal handler may give orders."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()  # send what is pending without waiting for batch_size or batch_timeout_seconds
        self._drain_until = 0.0

    def look(self) -> None:
        """See whether there are orders that do not come by a call. A subclass may have some."""

    def drain(self, timeout_seconds: float) -> None:
        """Deliver what is there for at most `timeout_seconds`, then stop."""
        self._drain_until = time.monotonic() + timeout_seconds
        self.hurry.set()
        self.stop.set()

    @property
    def is_over(self) -> bool:
        """Tell whether to leave now, whether all is delivered or not."""
        return self.stop.is_set() and time.monotonic() >= self._drain_until
