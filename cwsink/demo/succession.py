"""Finds the flusher, kills it, and measures the time until there is another one."""

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
class FoundFlusher:
    """The process that sends, the epoch it leads in, and the process that started it ("pid 17 (gunicorn)")."""

    pid: int
    epoch: int
    started_by: str


@dataclass(frozen=True)
class Takeover:
    """`after` began its epoch `ms` milliseconds after `before` was killed."""

    before: FoundFlusher
    after: FoundFlusher
    ms: float


def find_flusher(spool: SpoolDirectory) -> FoundFlusher | None:
    """Return the flusher that leads the spool now. None: no process does."""
    published = leader_state.read(spool)
    if published is None or published.epoch != cursor.read(spool.cursor).epoch or not lease.is_taken(spool):
        return None
    return FoundFlusher(published.pid, published.epoch, published.started_by)


def kill(flusher: FoundFlusher) -> float:
    """SIGKILL the flusher, but not its guard. Returns the time of it, on the monotonic clock."""
    killed_at = time.monotonic()  # read before the kill, because after it this process may have to wait for the CPU
    os.kill(flusher.pid, signal.SIGKILL)
    return killed_at


def wait_for_successor(
    spool: SpoolDirectory, before: FoundFlusher, killed_at: float, timeout_seconds: float
) -> Takeover:
    """Wait until the guard's next flusher has begun its epoch. Raises DemoError.

    Args:
        spool: the spool that it leads.
        before: the flusher that was killed.
        killed_at: the time of the kill, on the monotonic clock.
        timeout_seconds: the most to wait.
    """
    until = killed_at + timeout_seconds
    while cursor.read(spool.cursor).epoch <= before.epoch:
        if time.monotonic() > until:
            raise DemoError(f"There was no other flusher within {timeout_seconds:.0f} s of the SIGKILL.")
        time.sleep(_POLL_SECONDS)
    took_seconds = time.monotonic() - killed_at
    # The new leader writes leader.json, which has its pid, a moment after it has begun its epoch.
    while (after := find_flusher(spool)) is None:
        if time.monotonic() > until:
            raise DemoError("A new epoch has begun, but nobody leads.")
        time.sleep(_POLL_SECONDS)
    return Takeover(before, after, took_seconds * 1000)
