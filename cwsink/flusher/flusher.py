"""The leader's loop: read, batch, deliver, commit, reclaim.

```text
take over (epoch + 1) -> [ gather a chunk -> for each part: fence, send until it is
delivered or proven undeliverable -> commit -> reclaim ] until stopped or fenced
```

Nothing is remembered that the spool does not hold: whoever takes over reads the
cursor and goes on. The lease is checked before every send, commit and unlink.
A batch is kept, unchanged, until CloudWatch has answered for it; there is no last try.
"""

from __future__ import annotations

import math
import os
import random
import socket
import threading
import time
from collections import Counter
from typing import Final

from msgspec.structs import replace

from cwsink import naming
from cwsink.config import SinkConfig
from cwsink.flusher import batch
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.collector import Chunk, Collector, notice
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.delivery import Delivery, Tally
from cwsink.spool import budget
from cwsink.spool.cursor import Cursor, Fenced, Ledger, Offset, State
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.files import remove_stale_temporaries
from cwsink.spool.frame import DamageKind
from cwsink.spool.leader_state import LeaderState
from cwsink.spool.lease import Lease
from cwsink.spool.reader import RingReader
from cwsink.spool.record import Loss

# How often an idle leader looks for new records. Ten looks a second cost about 0.4 % of a core.
POLL_SECONDS: Final = 0.1
# durability="host": at most this much of a host's last records is lost with its power.
SYNC_SECONDS: Final = 0.5


class Orders:
    """What the owner of a flusher wants of it. Safe to give from any thread or signal handler."""

    def __init__(self) -> None:
        self.stop = threading.Event()
        self.hurry = threading.Event()  # send what is pending without waiting for batch_size or batch_timeout
        self._drain_until = 0.0

    def look(self) -> None:
        """See whether there are wishes that do not come by a call."""

    def drain(self, timeout_seconds: float) -> None:
        """Deliver what is there, for at most this long, then stop."""
        self._drain_until = time.monotonic() + timeout_seconds
        self.hurry.set()
        self.stop.set()

    @property
    def is_over(self) -> bool:
        """Tell whether to leave now, delivered or not."""
        return self.stop.is_set() and time.monotonic() >= self._drain_until


class Flusher:
    """Leads one spool for one epoch."""

    def __init__(
        self,
        directory: SpoolDirectory,
        config: SinkConfig,
        lease: Lease,
        orders: Orders,
        *,
        kind: str,
        pace: float | None = None,
    ) -> None:
        """Take over the spool, whose lease is held.

        Args:
            directory: the spool.
            config: how to send; where to is in the spool's FORMAT.
            lease: held by the caller, who releases it.
            orders: when to stop.
            kind: who hosts it (cwsink.flusher.election.Kind), for `cwsink status`.
            pace: the most records to send in a second, in about one request; None for as many as it takes.

        Raises:
            OSError: the cursor cannot be read or written.
        """
        if pace is not None:
            config = replace(config, max_batch_events=max(1, min(config.max_batch_events, int(pace))))
        self._directory = directory
        self._config = config
        self._lease = lease
        self._orders = orders
        self._pace = pace
        self._cursor = Cursor(directory.cursor)
        try:
            self._state = self._cursor.take_over(f"{socket.gethostname()}/{os.getpid()}")
        except BaseException:
            self._cursor.close()
            raise
        self.epoch = self._state.epoch
        self._reader = RingReader(directory, self._state.committed())
        self._collector = Collector(self._reader, config)
        self._dead_letters = DeadLetters(directory.dead_letters)
        self.leader_state = LeaderState(directory, self.epoch, kind, config.spool_max_bytes)
        self._delivery = Delivery(
            CloudWatch(directory.format, config, self.epoch),
            directory.format,
            config,
            self._dead_letters,
            self.leader_state,
            check=self.check,
            wait=self._wait,
            uniform=random.random,
        )
        # What a new leader finds has waited long enough.
        self._pending_since: float | None = -math.inf
        self._synced_at = 0.0

    def lead(self) -> None:
        """Deliver until told to stop.

        Raises:
            Fenced: the lease or the epoch is another's; nothing was sent or committed after it.
        """
        try:
            remove_stale_temporaries(self._directory.path)
            remove_stale_temporaries(self._directory.ring)
            self._finish_chunk()
            while not self._orders.is_over:
                self.check()  # also with nothing to send: the spool may have been removed and made anew
                self._orders.look()
                self._sync()
                self._report_evictions()
                is_full = self._collector.fill()
                if self._is_due(is_full):
                    self._deliver()
                    self._reclaim()
                    continue
                self._reclaim()
                if self._orders.stop.is_set() and self._collector.is_empty:
                    return
                self.leader_state.publish()
                self._orders.stop.wait(POLL_SECONDS)
        finally:
            self._delivery.close()
            self._reader.close()
            self._cursor.close()

    def check(self) -> None:
        """Raise Fenced unless this process can prove that it still leads."""
        self._lease.beat()
        if not self._lease.is_held() or not self._cursor.is_ours():
            raise Fenced(f"epoch {self.epoch} has ended")

    def _is_due(self, is_full: bool) -> bool:
        collector = self._collector
        if collector.is_empty:
            self._pending_since = None
            self._orders.hurry.clear()
            return False
        now = time.monotonic()
        if self._pending_since is None:
            self._pending_since = now
        return (
            is_full
            or collector.count >= self._config.batch_size
            or collector.count == 0  # damage or markers only: nothing to wait for
            or now - self._pending_since >= self._delivery.gather_seconds - POLL_SECONDS
            or self._orders.hurry.is_set()
            or self._orders.stop.is_set()
        )

    def _deliver(self) -> None:
        """Deliver and commit one chunk."""
        count = self._collector.count
        self._settle(self._collector.take())
        self._pending_since = None
        if self._pace is not None:
            self._wait(count / self._pace)

    def _finish_chunk(self) -> None:
        """Go on with a chunk of several parts that the leader before us did not finish."""
        state = self._state
        if state.chunk:
            is_whole = self._collector.replay(state.chunk)
            self._settle(self._collector.take(), state if is_whole else None)

    def _settle(self, chunk: Chunk, begun: State | None = None) -> None:
        """Deliver a chunk, of which `begun` says how far another leader was, and commit it."""
        is_dated = "{" in self._directory.format.log_stream_name
        parts = batch.parts(chunk.events, self._stream_of, fits=chunk.is_one_request, is_dated=is_dated)
        shape = batch.shape(parts) if begun or len(parts) > 1 else 0
        parts_done, partial = 0, Ledger()
        # With some of it evicted, or other settings for oversize events, the parts are not the same any more.
        if begun and begun.shape == shape:
            parts_done, partial = begun.parts_done, begun.partial
        for done, part in enumerate(parts):
            if done < parts_done:
                continue
            tally = self._delivery.send(part)
            _add(partial, tally)
            if len(parts) > 1:
                self._commit(chunk=chunk.offsets(), parts_done=done + 1, partial=partial, shape=shape)
        self._set_aside(chunk, partial)
        self._commit(ends=chunk.offsets(), partial=partial, refused=chunk.refused)
        self.leader_state.delivered(partial.delivered)

    def _set_aside(self, chunk: Chunk, partial: Ledger) -> None:
        """Dead-letter what never was a candidate: too large, or damaged."""
        dead: Counter[str] = Counter()
        if chunk.oversize:
            limit = self._config.max_event_bytes
            self._dead_letters.add("oversize", f"longer than {limit:,} bytes", chunk.oversize)
            dead["oversize"] = len(chunk.oversize)
            self._tell("oversize", chunk.oversize[0].timestamp_ms, chunk.oversize[-1].timestamp_ms, dead["oversize"])
        for key, damage in chunk.damage:
            partial.corrupt_bytes += damage.end - damage.start
            if damage.kind is DamageKind.CORRUPT:
                data = self._reader.data_of(key, damage.start, damage.end)
                self._dead_letters.add_damage(key.number, damage.start, data)
                dead["corrupt"] += 1
        _add(partial, Tally(0, dead))

    def _tell(self, reason: str, first_ms: int, last_ms: int, count: int) -> None:
        """Tell the stream that records are missing from it."""
        event = notice(Loss(count, first_ms, last_ms, reason, 0))
        self._delivery.send(batch.Part(self._stream_of(event.timestamp_ms), [event]))

    def _report_evictions(self) -> None:
        evictions = budget.read_evictions(self._directory)
        ledger = self._state.ledger
        if count := max(0, evictions.records - ledger.evicted_reported):
            self._tell("evicted (spool_full)", evictions.first_ms, evictions.last_ms, count)
            ledger.evicted_reported = evictions.records
            self._commit()
        # Loss markers that were evicted before they could be told of.
        if unsaid := Counter(evictions.refused) - Counter(ledger.refused_reported):
            for reason, count in unsaid.items():
                self._tell(reason, evictions.first_ms, evictions.last_ms, count)
            ledger.refused_reported = dict(evictions.refused)
            self._commit()

    def _stream_of(self, timestamp_ms: int) -> str:
        return naming.stream_at(self._directory.format.log_stream_name, timestamp_ms)

    def _commit(
        self,
        *,
        ends: list[Offset] | None = None,
        chunk: list[Offset] | None = None,
        parts_done: int = 0,
        partial: Ledger | None = None,
        shape: int = 0,
        refused: Counter[str] | None = None,
    ) -> None:
        """Write the cursor: `ends` settle a chunk, `chunk` and `parts_done` say how far one is."""
        self.check()
        state = self._state
        ledger = state.ledger
        if ends is not None:
            existing = self._reader.existing()
            offsets = {each.key: each for each in state.offsets if each.number in existing}
            offsets.update((each.key, each) for each in ends)
            if partial is not None:
                ledger = _sum(ledger, partial)
            for reason, count in (refused or {}).items():
                ledger.refused[reason] = ledger.refused.get(reason, 0) + count
            state = State(state.epoch, state.holder, list(offsets.values()), ledger=ledger)
        elif chunk is not None:
            partial = partial or Ledger()
            state = State(state.epoch, state.holder, state.offsets, chunk, parts_done, ledger, partial, shape)
        state.ledger.resent = ledger.resent + self._delivery.take_resent()
        self._cursor.commit(state)
        self._state = state

    def _reclaim(self) -> None:
        if self._reader.has_reclaimable(committed := self._state.committed()):
            self.check()
            if self._reader.reclaim(committed):
                # One may be a second link to a segment that is gone by its name, and so keep all its blocks.
                remove_stale_temporaries(self._directory.ring)

    def _sync(self) -> None:
        now = time.monotonic()
        if self._config.durability == "host" and now - self._synced_at >= SYNC_SECONDS:
            self._reader.sync()
            self._cursor.sync()
            self.leader_state.touch()
            self._synced_at = now

    def _wait(self, seconds: float) -> bool:
        """Wait, unless told to leave. Returns whether to go on."""
        until = time.monotonic() + seconds
        while not self._orders.is_over:
            self._orders.look()
            left = until - time.monotonic()
            if left <= 0:
                return True
            self.leader_state.publish()
            self._lease.beat()
            self._sync()
            time.sleep(min(left, POLL_SECONDS))
        return False


def _add(ledger: Ledger, tally: Tally) -> None:
    ledger.delivered += tally.delivered
    ledger.appended += tally.delivered + sum(tally.dead.values())
    for reason, count in tally.dead.items():
        ledger.dead_lettered[reason] = ledger.dead_lettered.get(reason, 0) + count


def _sum(ledger: Ledger, partial: Ledger) -> Ledger:
    return Ledger(
        appended=ledger.appended + partial.appended,
        delivered=ledger.delivered + partial.delivered,
        dead_lettered=dict(Counter(ledger.dead_lettered) + Counter(partial.dead_lettered)),
        refused=dict(ledger.refused),
        evicted_reported=ledger.evicted_reported,
        refused_reported=ledger.refused_reported,
        resent=ledger.resent,
        corrupt_bytes=ledger.corrupt_bytes + partial.corrupt_bytes,
    )
