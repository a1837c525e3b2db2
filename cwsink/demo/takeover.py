"""Which process sends, and how long it takes until another one does after a SIGKILL."""

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
class Leader:
    """The flusher's process, and the epoch it won."""

    pid: int
    epoch: int
    started_by: str


@dataclass(frozen=True)
class Takeover:
    """`after` began its epoch `ms` milliseconds after `before` was killed."""

    before: Flusher
    after: Flusher
    ms: float


def find_leader(spool: SpoolDirectory) -> Leader | None:
    """Return who leads now; None while nobody does."""
    published = leader_state.read(spool)
    if published is None or published.epoch != cursor.read(spool.cursor).epoch or not lease.is_taken(spool):
        return None
    return Flusher(published.pid, published.epoch, published.started_by)


def find_worker(server: WebServer, workers: list[int]) -> int | None:
    """Return one of the `workers` that lives; None if there is none."""
    return next(filter(server.is_worker, workers), None)


def kill(leader: Leader) -> float:
    """SIGKILL the flusher: nothing is flushed. Returns when, on the monotonic clock."""
    killed_at = time.monotonic()  # before it: this process may have to wait for the CPU after it
    os.kill(leader.pid, signal.SIGKILL)
    return killed_at


def wait_for_successor(spool: SpoolDirectory, before: Leader, killed_at: float, timeout_seconds: float) -> Takeover:
    """Wait until another flusher has begun its epoch. Raises DemoError.

    Args:
        spool: the spool.
        before: the leader that was killed.
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
    while (after := find_leader(spool)) is None:
        if time.monotonic() > until:
            raise DemoError("A new epoch has begun, but nobody leads.")
        time.sleep(_POLL_SECONDS)
    return Takeover(before, after, took_seconds * 1000)
