"""Forced interleavings: a hook in the write of a frame, a clock to set, a leader to run by hand."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Fenced
from cwsink.flusher.delivery import Stopped
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.orders import Orders
from cwsink.frontends import writer
from cwsink.frontends.writer import Writer
from cwsink.spool import ring, segment
from cwsink.spool.directory import SpoolDirectory
from tests.harness.support import CHILD_SECONDS

LEAD_SECONDS = 30.0  # guards against a hang
NOT_ELECTED = "another process leads"
SMALL = 4096  # bytes: the smallest segments, so that a few records rotate


def on_write(monkeypatch: pytest.MonkeyPatch, hook: Callable[[int, bytes], int]) -> None:
    """Have every frame of this process written by `hook(fd, data)`."""
    for module in (ring, writer):
        monkeypatch.setattr(module, "_write", hook, raising=False)


class Clock:
    """The writers' wall clock in this process, which stands still until it is told to go on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now = time.time_ns()
        for module in (ring, writer):
            if hasattr(module, "time_ns"):
                monkeypatch.setattr(module, "time_ns", lambda: self._now)

    def advance(self, seconds: float) -> None:
        self._now += int(seconds * 1e9)


def deliver(directory: SpoolDirectory, config: SinkConfig, *, kind: str = "own") -> Flusher:
    """Lead until all that is pending is settled; returns the flusher, which has left."""
    lease = Lease(directory)
    assert lease.try_acquire(), NOT_ELECTED
    try:
        orders = Orders()
        flusher = Flusher(directory, config, lease, orders, kind=kind)
        orders.drain(LEAD_SECONDS)
        flusher.lead()
        return flusher
    finally:
        lease.release()


@contextlib.contextmanager
def leading(directory: SpoolDirectory, config: SinkConfig, *, kind: str = "own") -> Iterator[Flusher]:
    """Lead in a thread of this process for as long as the block runs."""
    lease = Lease(directory)
    assert lease.try_acquire(), NOT_ELECTED
    orders = Orders()
    flusher = Flusher(directory, config, lease, orders, kind=kind)

    def run() -> None:
        with contextlib.suppress(Stopped, Fenced):
            flusher.lead()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield flusher
    finally:
        orders.drain(0.0)
        thread.join(CHILD_SECONDS)
        lease.release()
        assert not thread.is_alive(), "the leader does not leave"


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait until `condition()` holds: what another thread or process does takes as long as it takes."""
    end = time.monotonic() + CHILD_SECONDS
    while not condition():
        assert time.monotonic() < end, f"still not: {what}"
        time.sleep(0.005)


def ring_bytes(directory: SpoolDirectory) -> int:
    """Return the disk space all files in ring/ take now, by blocks: temporaries too, each file once (as du does)."""
    while True:
        names = os.listdir(directory.ring)
        files: dict[int, int] = {}
        with contextlib.suppress(FileNotFoundError):
            for name in names:
                status = os.lstat(f"{directory.ring}/{name}")
                files[status.st_ino] = status.st_blocks * 512
            # Names are never used again: those that are there before and after were there together.
            if os.listdir(directory.ring) == names:
                return sum(files.values())


def segments(directory: SpoolDirectory) -> list[int]:
    """Return the numbers of the segments that exist."""
    return segment.numbers(directory.ring)


def segment_path(directory: SpoolDirectory, number: int) -> Path:
    """Return the path of a segment."""
    return Path(segment.path_of(directory.ring, number))


def fill_segment(writer: Writer, *, count: int = 1) -> list[str]:
    """Append until `count` more segments exist; return the messages."""
    target = segments(writer.directory)[-1] + count
    messages = []
    while segments(writer.directory)[-1] < target:
        messages.append(f"filler {len(messages)} of {id(messages)} {'.' * 200}")
        assert writer.append(messages[-1])
    return messages
