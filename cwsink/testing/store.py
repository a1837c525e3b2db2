"""The state of the strict server: groups, streams, accepted events, calls (state only, no I/O).

`actions` and `gateway` fill it, and `server` reads it. One condition variable, `changed`, guards
everything, and wakes a test that waits for an event. Accepted events stay in `accepted` when
their stream is deleted, because a test asks which events were delivered.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Iterator

import msgspec


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """One accepted event.

    Attributes:
        timestamp: event time in milliseconds.
        epoch: the epoch of the leader that sent it, from "epoch/<n>" in its User-Agent.
        request: `number` of the StoredRequest that brought it.
    """

    group: str
    stream: str
    timestamp: int
    message: str
    epoch: int | None
    request: int


class StoredRequest(msgspec.Struct, frozen=True):
    """One PutLogEvents call, recorded when it is judged, before it is answered.

    Attributes:
        number: 1 for the first call, in order of arrival.
        sender: n of "pid/<n>" in the User-Agent, or else the client's IP address.
        peer: "ip:port" of the client.
        events: the number of events in the call; 0 if the call ended before its body was judged.
        counted_bytes: UTF-8 bytes plus 26 for each event; 0 likewise.
        body_bytes: the size of the HTTP body as it was sent.
        access_key: the AWS access key that signed the call; "" if none did.
        status: HTTP status; 0 if the client got no answer.
        error: error code; None on success. With status 0 it is "ConnectionDropped" or "Hang".
        time_seconds: the server's clock at arrival.
    """

    number: int
    action: str
    group: str | None
    stream: str | None
    user_agent: str
    epoch: int | None
    sender: str
    peer: str
    events: int
    counted_bytes: int
    body_bytes: int
    access_key: str
    status: int
    error: str | None
    time_seconds: float


class StoredBatch(msgspec.Struct, frozen=True):
    """The accepted events of one call, in columns, because an object for each event would cost more than HTTP."""

    group: str
    stream: str
    timestamps: list[int]
    messages: list[str]
    epoch: int | None
    request: int
    ingested_ms: int

    def events(self) -> Iterator[StoredEvent]:
        for timestamp, message in zip(self.timestamps, self.messages, strict=True):
            yield StoredEvent(self.group, self.stream, timestamp, message, self.epoch, self.request)


class Stream(msgspec.Struct):
    """A log stream. `sequence` counts accepted calls, for the legacy sequence tokens."""

    name: str
    created_ms: int
    batches: list[StoredBatch] = []
    sequence: int = 0
    last_call: tuple[list[int], list[str]] | None = None
    # What `events` has answered last, because who reads a stream page by page asks for all of it each time.
    rows: list[tuple[int, int, str]] = []
    sorted_batches: int = 0

    @property
    def token(self) -> str:
        """The sequence token that the next call must have."""
        return f"{self.sequence:056d}"

    def events(self, until_ms: int | None = None) -> list[tuple[int, int, str]]:
        """Return (timestamp, ingestion time, message) of each event, ordered by timestamp, then arrival.

        `until_ms`: only of those that were accepted until then.
        """
        batches = [each for each in self.batches if until_ms is None or each.ingested_ms <= until_ms]
        if len(batches) != self.sorted_batches:  # they only become more, so as many are the same ones
            rows = [(t, b.ingested_ms, m) for b in batches for t, m in zip(b.timestamps, b.messages, strict=True)]
            rows.sort(key=lambda row: row[0])
            self.rows, self.sorted_batches = rows, len(batches)
        return self.rows


class Group(msgspec.Struct):
    """A log group."""

    name: str
    created_ms: int
    group_class: str = "STANDARD"
    kms_key_id: str | None = None
    retention_days: int | None = None
    tags: dict[str, str] = {}
    streams: dict[str, Stream] = {}


class Store:
    """Groups, streams, accepted events, and the record of every call. Thread-safe.

    Args:
        keep_events: False counts accepted events without keeping them.
        id_pattern: regular expression. The text that it finds in a message (group 1 if it
            has one) is the event's id. Events whose id was there before are counted.
    """

    def __init__(self, *, keep_events: bool = True, id_pattern: str | None = None) -> None:
        self.changed = threading.Condition(threading.RLock())
        self.keep_events = keep_events
        self._id_pattern = None if id_pattern is None else re.compile(id_pattern)
        self.reset()

    def reset(self) -> None:
        """Forget everything, also groups and streams."""
        with self.changed:
            self.groups: dict[str, Group] = {}
            self.accepted: list[StoredBatch] = []
            self.requests: list[StoredRequest] = []
            self.violations: list[str] = []
            self.calls: Counter[str] = Counter()
            self.errors: Counter[str] = Counter()
            self.rejected: Counter[str] = Counter()
            self.accepted_events = 0
            self.accepted_bytes = 0
            self.ids: set[str] = set()
            self.repeated_ids = 0
            self.changed.notify_all()

    def delete_group(self, name: str) -> None:
        """Delete a log group with its streams, if there is one."""
        with self.changed:
            self.groups.pop(name, None)

    def delete_stream(self, group: str, name: str) -> None:
        """Delete a log stream, if there is one."""
        with self.changed:
            if group in self.groups:
                self.groups[group].streams.pop(name, None)

    def accept(self, target: Stream, batch: StoredBatch, counted_bytes: int) -> None:
        """Count a batch, and keep it if events are kept. The caller holds `changed`."""
        self.accepted_events += len(batch.messages)
        self.accepted_bytes += counted_bytes
        if self._id_pattern is not None:
            self._count_ids(self._id_pattern, batch.messages)
        if self.keep_events:
            self.accepted.append(batch)
            target.batches.append(batch)

    def _count_ids(self, pattern: re.Pattern[str], messages: list[str]) -> None:
        for message in messages:
            found = pattern.search(message)
            if found is None:
                continue
            event_id = found.group(1 if pattern.groups else 0)
            if event_id in self.ids:
                self.repeated_ids += 1
            else:
                self.ids.add(event_id)

    def events(self, group: str | None = None, stream: str | None = None) -> Iterator[StoredEvent]:
        """Yield the accepted events in arrival order. If a group or stream is named, only its events."""
        with self.changed:
            batches = list(self.accepted)
        for batch in batches:
            if group in (None, batch.group) and stream in (None, batch.stream):
                yield from batch.events()
