"""The flusher: which process it is, and how long it takes until there is another one after a SIGKILL."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from typing import Final

from cwsink.demo.sandbox import DemoError
from cwsink.spool import cursor, leader_state, lease
from cwsink.spool.directory import SpoolDirectory

_POLL_SECONDS: Final = 0.002


@dataclass(frozen=True)
class Flusher:
    """The process that sends, the epoch it leads in, and who started it ("pid 17 (gunicorn)")."""

    pid: int
    epoch: int
    started_by: str


@dataclass(frozen=True)
class Takeover:
    """`after` began its epoch `ms` milliseconds after `before` was killed."""

    before: Flusher
    after: Flusher
    ms: float


def find_flusher(spool: SpoolDirectory) -> Flusher | None:
    """Return who sends now; None while nobody does."""
    published = leader_state.read(spool)
    if published is None or published.epoch != cursor.read(spool.cursor).epoch or not lease.is_taken(spool):
        return None
    return Flusher(published.pid, published.epoch, published.started_by)


def kill(flusher: Flusher) -> float:
    """SIGKILL it, and not its guard. Returns when, on the monotonic clock."""
    killed_at = time.monotonic()  # before it: this process may have to wait for the CPU after it
    os.kill(flusher.pid, signal.SIGKILL)
    return killed_at


def wait_for_successor(spool: SpoolDirectory, before: Flusher, killed_at: float, timeout_seconds: float) -> Takeover:
    """Wait until the guard's next flusher has begun its epoch. Raises DemoError.

    Args:
        spool: the spool it sends.
        before: the flusher that was killed.
        killed_at: when, on the monotonic clock.
        timeout_seconds: the most to wait.
    """
    until = killed_at + timeout_seconds
    while cursor.read(spool.cursor).epoch <= before.epoch:
        if time.monotonic() > until:
            raise DemoError(f"There was no other flusher within {timeout_seconds:.0f} s of the SIGKILL.")
        time.sleep(_POLL_SECONDS)
    took_seconds = time.monotonic() - killed_at
    # leader.json, which has the pid, is written a moment after the epoch.
    while (after := find_flusher(spool)) is None:
        if time.monotonic() > until:
            raise DemoError("A new epoch has begun, but nobody leads.")
        time.sleep(_POLL_SECONDS)
    return Takeover(before, after, took_seconds * 1000)
