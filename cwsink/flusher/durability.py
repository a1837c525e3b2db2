"""durability="host": the leader syncs the spool twice a second, also while CloudWatch has a request of its.

Writers do not sync while a leader does, and believe for 3 s what leader.json says about it (cwsink.spool.leader_state).
A request may take 13 s. So a thread syncs while the leader waits for an answer, and the leader itself all the rest of
the time.

The thread lives for one call, and the leader goes on only when it has ended. So no two threads use cursor, ring and
leader.json at once, and none of them is closed or exchanged while the thread has it. It is a daemon: a flusher that has
to leave in the middle of a request does not wait for it. A leader that hangs in a call must not look alive because of
its thread. So that ends after twice the time that a request may take, and says that nobody syncs now.

Rejected: a thread for as long as the process leads. It would share all this with the leader, and need locks for it. And
to publish before each request that nobody syncs now: under load each append would be synced for half of the time.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Final

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.flusher import deadline
from cwsink.flusher.commits import Cursor
from cwsink.flusher.publisher import LeaderState
from cwsink.spool.reader import RingReader

# A power failure takes at most the records of this time.
SYNC_SECONDS: Final = 0.5
THREAD: Final = "cwsink-sync"


class Durability:
    """Makes one spool durable, for one leader. With durability="process" it does nothing."""

    def __init__(
        self, path: str, config: SinkConfig, reader: RingReader, cursor: Cursor, leader_state: LeaderState
    ) -> None:
        """Begin. `path` is the spool's, for messages."""
        self._path = path
        self._is_on = config.durability == "host"
        self._most_seconds = 2 * deadline.seconds_of(config)
        self._reader = reader
        self._cursor = cursor
        self._leader_state = leader_state
        self._synced_at = 0.0

    def look(self) -> None:
        """Sync if it is time to. An error is said, and published: writers then sync by themselves."""
        now = time.monotonic()
        if self._is_on and now - self._synced_at >= SYNC_SECONDS:
            self._synced_at = now
            if self._sync():
                self._leader_state.synced()
            else:
                self._leader_state.not_synced()

    def end(self) -> None:
        """Publish that this process syncs no more, and sync what writers have appended before they could read that."""
        if self._is_on:
            self._leader_state.not_synced()
            self._sync()

    def _sync(self) -> bool:
        try:
            self._reader.sync()
            self._cursor.sync()
        except OSError as error:
            # A commit may be under repetition. If the leader ended here, the next one would send the request again.
            report(
                "sync",
                f"cannot make {self._path} durable: {error.strerror}. Until it succeeds, a power failure may take its "
                f"last records. It is tried again every {SYNC_SECONDS} s, and delivery goes on.",
            )
            return False
        return True

    @contextlib.contextmanager
    def beside(self) -> Iterator[None]:
        """Have a thread look while the block runs, in which the caller waits, or only reads."""
        if not self._is_on:
            yield
            return
        is_over = threading.Event()
        thread = threading.Thread(target=self._look_until, args=(is_over,), name=THREAD, daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread can be started now
            self._leader_state.not_synced()
            yield
            return
        try:
            yield
        finally:
            is_over.set()
            thread.join()

    def _look_until(self, is_over: threading.Event) -> None:
        until = time.monotonic() + self._most_seconds
        try:
            while not is_over.wait(max(0.0, self._synced_at + SYNC_SECONDS - time.monotonic())):
                if time.monotonic() >= until:
                    return
                self.look()
        finally:
            if not is_over.is_set():
                self._leader_state.not_synced()
