"""What cwsink says about itself: one clear line, rarely, never through logging.

The application's loggers may end in this very sink, so nothing here may log.
A line goes to stderr and to every subscriber (the fapilog sink subscribes
fapilog's own diagnostics). The same `key` speaks at most once in
`QUIET_SECONDS`; what was held back is counted in the next line.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Final

# Long enough that an outage of an hour is 60 lines, short enough to be seen while it lasts.
QUIET_SECONDS: Final = 60.0

Subscriber = Callable[[str, str], None]

_subscribers: list[Subscriber] = []
_quiet: dict[str, tuple[float, int]] = {}


def subscribe(subscriber: Subscriber) -> None:
    """Call `subscriber(key, message)` for each line from now on (once per callable)."""
    if subscriber not in _subscribers:
        _subscribers.append(subscriber)


def report(key: str, message: str) -> None:
    """Say `message` on stderr and to the subscribers. Never raises, never blocks for long.

    Args:
        key: what kind of line this is; the same key is quiet for `QUIET_SECONDS`.
        message: what happened, what becomes of the data, what to do.
    """
    now = time.monotonic()
    last, held_back = _quiet.get(key, (-QUIET_SECONDS, 0))
    if now - last < QUIET_SECONDS:
        _quiet[key] = (last, held_back + 1)
        return
    _quiet[key] = (now, 0)
    if held_back:
        message = f"{message} (and {held_back:,} more like this)"
    with contextlib.suppress(Exception):
        # os.write, not sys.stderr: this may run in a signal handler or while the interpreter ends.
        os.write(2, f"cwsink: {message}\n".encode("utf-8", "backslashreplace"))
    for subscriber in _subscribers:
        with contextlib.suppress(Exception):
            subscriber(key, message)


def settled(key: str) -> None:
    """The matter of `key` has ended: its next line is not held back."""
    _quiet.pop(key, None)
