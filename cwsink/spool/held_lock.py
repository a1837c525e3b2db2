"""Says that another process keeps a lock that it should have for a moment only.

The kernel's locks are free as soon as their holder dies. But a holder may live on and do nothing: a stopped process, a
debugger, a backup program that locks what it copies, a person with `flock`. None of ours waits for it for long. Still
somebody has to know why nothing is delivered, or why records are refused: one line names the file.
"""

from __future__ import annotations

from typing import Final

from cwsink.clock import monotonic
from cwsink.diagnostics import report

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
