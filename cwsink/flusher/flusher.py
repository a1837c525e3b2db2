"""The leader's loop: gather, deliver, commit, reclaim. The whole story is in `cwsink.flusher`.

Nothing is remembered that the spool does not hold, so a leader that takes over reads the cursor and goes on. The leader
checks its lease before every send, commit and unlink.

If a request was answered and its commit fails, the next leader sends the request again. So nothing between the answer
and the commit may fail. What the commit needs is looked up before the request is sent. A commit that fails (a full
disk, an I/O error) is repeated until it succeeds, together with the look whether this process still leads. Only the
file of dead letters is opened in between, if there are any. If that fails, the lost letters are counted, and delivery
goes on.
"""

from __future__ import annotations

import functools
import math
import random
import time
from collections import Counter
from typing import Final

from msgspec.structs import replace

from cwsink import host, naming
from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.flusher.chunk import Request, fingerprint, requests
from cwsink.flusher.claim import Lease
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.collector import Chunk, Collector, notice
from cwsink.flusher.commits import Cursor
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.flusher.delivery import Delivery, Stopped
from cwsink.flusher.durability import Durability
from cwsink.flusher.journal import Journal
from cwsink.flusher.orders import Orders
from cwsink.flusher.proof import Proof
from cwsink.flusher.publisher import LeaderState
from cwsink.flusher.self_metrics import SelfMetrics
from cwsink.spool import budget, disk, history, refusals, segment
from cwsink.spool.alerts import Alerts, fate_of
from cwsink.spool.cursor import Ledger, State
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.files import remove_stale_temporaries
from cwsink.spool.frame import DamageKind
from cwsink.spool.reader import RingReader
from cwsink.spool.record import Event, Loss

# How often an idle leader looks for new records. Ten looks a second take about 0.4 % of a core.
POLL_SECONDS: Final = 0.1
# A client takes memory, a connection and credentials. So it is closed if it was not needed for so long.
CLIENT_SECONDS: Final = 60.0
# An hour of a full spool is some 60 lines about it in the stream.
LONGEST_REFUSALS_PAUSE_SECONDS: Final = 60.0
# The time of a notice is that of a record that is lost, and may be any. So near ours every log group takes it.
_NEAR_MS: Final = 3_600_000
# How long the leader waits before it repeats a commit that has failed.
COMMIT_AGAIN_SECONDS: Final = 0.5


class Flusher:
    """Leads one spool for one epoch.

    Attributes:
        epoch: the epoch.
        leader_state: what it publishes.
        is_idle: all that it has found is settled, as of its last look.
    """

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
            config: how to send. Where to send is in the spool's FORMAT.
            lease: the caller holds it, and releases it.
            orders: when to stop.
            kind: which program hosts it (cwsink.flusher.election.Kind), for `cwsink status`.
            pace: the most records to send in a second, in about one request; None for no limit.

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
            self._state = self._cursor.take_over(host.process())
        except BaseException:
            self._cursor.close()
            raise
        self.epoch = self._state.epoch
        self._proof = Proof(directory, lease, self._cursor)
        self._history = history.of(directory, config)
        self._journal = Journal(self._history, config, self.epoch)
        self._reader = RingReader(directory, self._state.committed(), self._history)
        self._collector = Collector(self._reader, config)
        self._dead_letters = DeadLetters(directory.dead_letters)
        self.leader_state = LeaderState(directory, self.epoch, kind, config.spool_max_bytes)
        self._alerts = Alerts(directory)
        self._durability = Durability(directory.path, config, self._reader, self._cursor, self.leader_state)
        self._self_metrics = SelfMetrics(directory, config, self.leader_state, self._durability)
        self._delivery = Delivery(
            CloudWatch(directory.format, config, self.epoch),
            directory.format,
            config,
            self._dead_letters,
            self.leader_state,
            self,
            uniform=random.random,
            fate=functools.partial(fate_of, directory),
            beside=self._durability.beside,
        )
        # Records that a new leader finds have waited long enough.
        self._pending_since: float | None = -math.inf
        self._sent_at = time.monotonic()
        self.is_idle = False
        self._tell_refusals_at = self._refusals_pause = 0.0
        self._evictions_told_ms = 0

    def lead(self) -> None:
        """Deliver until told to stop.

        Raises:
            Fenced: the lease or the epoch is another process's. Nothing was sent or committed after that was found.
        """
        try:
            remove_stale_temporaries(self._directory.path)
            remove_stale_temporaries(self._directory.ring)
            self._finish_chunk()
            while not self._orders.is_over:
                self.check()  # even if there is nothing to send, because the spool may have been removed and made anew
                self._orders.look()
                self._durability.look()
                self._alerts.look()
                self._report_evictions()
                if (event := self._self_metrics.event()) is not None:
                    self._tell(event)
                is_full = self._collector.fill()
                if self._is_due(is_full):
                    self._deliver()
                    self._reclaim()
                    continue
                self._reclaim()
                self.is_idle = self._collector.is_empty and not self._reader.has_more
                if self._orders.stop.is_set() and self.is_idle:
                    break
                if self.is_idle and time.monotonic() - self._sent_at >= CLIENT_SECONDS:
                    self._delivery.close()  # the next request makes another client
                self.leader_state.publish()
                self._orders.stop.wait(POLL_SECONDS)
            self._durability.end()
            self.leader_state.publish(at_once=True)
        except (Stopped, OSError):
            self._durability.end()
            raise
        finally:
            # What others wait for goes first: whatever fails behind it, no segment stays locked in this process.
            self._delivery.close()
            self._reader.close()
            self._cursor.close()
            self._alerts.look(at_once=True)

    def check(self) -> None:
        """Raise Fenced unless this process can prove that it still leads; OSError if the disk does not say."""
        self._proof.check(self._state)

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
            or collector.count == 0  # damage alone need not wait for anything
            or now - self._pending_since >= self._delivery.gather_seconds - POLL_SECONDS
            or self._orders.hurry.is_set()
            or self._orders.stop.is_set()
        )

    def _deliver(self) -> None:
        """Deliver and commit the chunk that is gathered."""
        self.is_idle = False
        count = self._collector.count
        self._deliver_chunk(self._collector.take())
        self._sent_at = time.monotonic()
        self._pending_since = None
        if self._pace is not None:
            self.wait(count / self._pace)

    def _finish_chunk(self) -> None:
        """Go on with the chunk that the leader before this one did not finish, if there is one."""
        state = self._state
        if state.chunk:
            is_whole = self._collector.replay(state.chunk)
            self._deliver_chunk(self._collector.take(), state, is_whole=is_whole)

    def _deliver_chunk(self, chunk: Chunk, begun: State | None = None, *, is_whole: bool = True) -> None:
        """Deliver a chunk and commit it.

        Each request is committed on its own, and so is each piece of a request that CloudWatch refused as a whole. The
        last piece is committed with the chunk.

        Args:
            chunk: what to deliver.
            begun: the cursor of another leader, which has settled a part of the chunk; None: nothing is settled.
            is_whole: this is all of that leader's chunk.
        """
        existing = set(segment.numbers(self._directory.ring))  # it takes a descriptor, so not after the answer
        is_dated = "{" in self._directory.format.log_stream_name
        found = requests(chunk.events, self._stream_of, fits=chunk.is_one_request, is_dated=is_dated)
        mark = functools.cache(lambda: fingerprint(found))  # asked for only if needed: it looks at each event
        first, begin, partial = 0, 0, Ledger()
        # The requests differ if some of the chunk was evicted, or if there are other settings for oversize events.
        if begun and is_whole and begun.fingerprint == mark() + begun.events_done:
            first, begin, partial = begun.requests_done, begun.events_done, Ledger().plus(begun.partial)
        elif begun:
            begun.ledger.resent += min(begun.partial.delivered, sum(event.is_record for event in chunk.events))
        with self._journal.of(chunk, self._state.committed()) as note:
            for number in range(first, len(found)):
                stream, events = found[number]
                for piece in self._delivery.send(Request(stream, events[begin:])):
                    partial.count(*piece.tally)
                    done = begin + piece.done
                    note(number, found[number], done - piece.events, piece)
                    if done < len(events):
                        self._commit_progress(chunk, number, done, partial, mark())
                    elif number + 1 < len(found):
                        self._commit_progress(chunk, number + 1, 0, partial, mark())
                begin = 0
        self._set_aside(chunk, partial)
        self._commit_chunk(chunk, partial, existing)
        self.leader_state.delivered(partial.delivered)

    def _set_aside(self, chunk: Chunk, partial: Ledger) -> None:
        """Make dead letters of what is never sent: events that are too long, and damage."""
        dead: Counter[str] = Counter()
        if chunk.oversize:
            limit = self._config.max_event_bytes
            self._dead_letters.add("oversize", f"longer than {limit:,} bytes", chunk.oversize)
            dead["oversize"] = len(chunk.oversize)
        for key, damage in chunk.damage:
            partial.corrupt_bytes += damage.end - damage.start
            if damage.kind is DamageKind.CORRUPT:
                data = self._reader.data_of(key, damage.start, damage.end)
                self._dead_letters.add_damage(key.number, damage.start, data)
                dead["corrupt"] += 1
        partial.count(0, dead)

    def _report_evictions(self) -> None:
        evictions = budget.read_evictions(self._directory, mends=True)
        ledger = self._state.ledger
        if count := max(0, evictions.records - ledger.evicted_reported):
            # An evictor that has not seen the last report yet counts on from the times of before.
            first_ms = min(max(evictions.first_ms, self._evictions_told_ms), evictions.last_ms)
            self._tell(notice(Loss(count, first_ms, evictions.last_ms, "evicted (spool_full)", 0)))
            self._evictions_told_ms = evictions.last_ms
            ledger.evicted_reported = evictions.records
            self._commit(self._state)
        self._report_refusals(evictions)

    def _report_refusals(self, evictions: budget.Evictions) -> None:
        """Tell the stream what writers have refused: at once, then after 1 s, 2 s, 4 s ... as long as it goes on.

        Writers of before put loss markers into the ring. If these were evicted, their evictor has counted them.
        """
        ledger, refused = self._state.ledger, refusals.read(self._directory, mends=True)
        totals = Counter(evictions.refused) + Counter({reason: each.count for reason, each in refused.items()})
        unsaid, now = totals - Counter(ledger.refused_reported), time.monotonic()
        if now < self._tell_refusals_at and not self._orders.stop.is_set():
            return
        if not unsaid:
            self._refusals_pause = 0.0
            return
        for reason, count in unsaid.items():
            known = refused.get(reason, evictions)
            self._tell(notice(Loss(count, known.first_ms, known.last_ms, reason, 0)))
        ledger.refused_reported = dict(totals)
        self._commit(self._state)
        refusals.were_told(self._directory, refused)
        self._refusals_pause = min(LONGEST_REFUSALS_PAUSE_SECONDS, 2 * self._refusals_pause or 1.0)
        self._tell_refusals_at = now + self._refusals_pause

    def _tell(self, event: Event) -> None:
        """Send an event of ours, which is no record. CloudWatch would refuse a time that is not near ours."""
        now_ms = int(1000 * time.time())
        if abs(event.timestamp_ms - now_ms) > _NEAR_MS:
            event = replace(event, timestamp_ms=now_ms)
        for _ in self._delivery.send(Request(self._stream_of(event.timestamp_ms), [event])):
            pass

    def _stream_of(self, timestamp_ms: int) -> str:
        return naming.stream_at(self._directory.format.log_stream_name, timestamp_ms)

    def _commit_chunk(self, chunk: Chunk, partial: Ledger, existing: set[int]) -> None:
        """Write down that a chunk is settled, and add `partial` and what writers have refused to the ledger.

        `existing` are the segments that existed before the chunk was sent. Offsets of others are dropped.
        """
        state = self._state
        offsets = {each.key: each for each in state.offsets if each.number in existing}
        offsets.update((each.key, each) for each in chunk.offsets())
        ledger = state.ledger.plus(partial)
        for reason, count in chunk.refused.items():
            ledger.refused[reason] = ledger.refused.get(reason, 0) + count
        self._commit(State(state.epoch, state.holder, list(offsets.values()), ledger=ledger))

    def _commit_progress(self, chunk: Chunk, requests_done: int, events_done: int, partial: Ledger, mark: int) -> None:
        """Write down how far a chunk is settled. `mark` is the fingerprint of its requests."""
        progress = {
            "chunk": chunk.offsets(),
            "requests_done": requests_done,
            "events_done": events_done,
            # A copy: the chunk is counted on meanwhile, and `check` may write what was committed last anew.
            "partial": Ledger().plus(partial),
            "fingerprint": mark + events_done,
        }
        self._commit(replace(self._state, **progress))

    def _commit(self, state: State) -> None:
        """Write the cursor, and repeat that until it succeeds. Raises Fenced, or OSError if it is to leave before."""
        state.ledger.resent += self._delivery.take_resent()
        while True:
            try:
                self.check()
                self._cursor.commit(state)
            except OSError as error:  # noqa: PERF203  # nearly always the first try succeeds
                if error.errno in disk.NO_ROOM and history.give_way(self._directory):
                    continue
                report(
                    "commit",
                    f"cannot write down how far {self._directory.path} is delivered: {error.strerror}"
                    f"{disk.limit_of(error)}. It is tried again every {COMMIT_AGAIN_SECONDS} s. Until it succeeds, "
                    "nothing is sent.",
                )
                if not self.wait(COMMIT_AGAIN_SECONDS):
                    raise
            else:
                break
        self._state = state

    def _reclaim(self) -> None:
        if self._reader.has_reclaimable(committed := self._state.committed()):
            self.check()
            if self._reader.reclaim(committed):
                # A writer killed between `link` and `unlink` leaves a second name on the segment's file. Until that
                # name goes, the disk blocks of a reclaimed segment are not freed.
                remove_stale_temporaries(self._directory.ring)
        if self._history:
            self._history.prune()

    def wait(self, seconds: float) -> bool:
        """Wait, but no longer than until told to leave. Returns False if told to leave."""
        until = time.monotonic() + seconds
        while not self._orders.is_over:
            self._orders.look()
            left = until - time.monotonic()
            if left <= 0:
                return True
            self.leader_state.publish()
            self._lease.beat()
            self._durability.look()
            self._alerts.look()
            time.sleep(min(left, POLL_SECONDS))
        return False
