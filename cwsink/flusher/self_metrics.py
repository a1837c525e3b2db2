"""`self_metrics="emf"`: an event a minute that CloudWatch turns into metrics of cwsink itself, without an agent.

The event is in the embedded metric format: JSON whose `_aws` names the metrics in it, and their dimensions, group and
app. It is an event of ours and no record, so it is in no count of the ledger. A leader sends one as long as it leads,
also when nothing is logged: if none comes, something is wrong. While CloudWatch takes nothing, none comes either.

Counts are those since the event before, whichever leader sent that, so that sums over time and hosts are right. What
the leader before has counted is in leader.json.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Mapping
from typing import Final

import msgspec

from cwsink import host
from cwsink.config import SinkConfig
from cwsink.flusher.durability import Durability
from cwsink.flusher.publisher import LeaderState
from cwsink.spool import room, sending, survey
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import NOTICE, Event

NAMESPACE: Final = "cwsink"
DIMENSIONS: Final = ("group", "app")
EVERY_SECONDS: Final = 60.0
# Of the metrics that are no mere count.
_UNITS: Final = {"OldestSeconds": "Seconds", "Fill": "Percent", "SentBytes": "Bytes"}


class SelfMetrics:
    """Makes the events of one leader."""

    def __init__(
        self, directory: SpoolDirectory, config: SinkConfig, leader_state: LeaderState, durability: Durability
    ) -> None:
        self._durability = durability
        self._directory = directory
        self._is_on = config.self_metrics == "emf"
        self._leader_state = leader_state

    def event(self) -> Event | None:
        """Return the event that is due; None if none is, or if the spool cannot be read now."""
        now = time.time()
        if self._is_on and not 0 <= now - self._leader_state.published.metered_at < EVERY_SECONDS:
            with contextlib.suppress(OSError):
                return self._event(now)
        return None

    def _event(self, now: float) -> Event:
        published = self._leader_state.published
        with self._durability.beside():  # a large backlog takes seconds
            books = survey.survey(self._directory)
        totals = {
            "Appended": books.appended,
            "Delivered": books.delivered,
            "DeadLetters": sum(books.dead_lettered.values()),
            "Lost": books.evicted + sum(books.refused.values()),
            "Requests": sum(published.requests.values()),
            "Throttled": published.requests.get("throttled", 0),
            "SentBytes": published.sent_bytes,
        }
        oldest = books.oldest_pending_ms
        values: dict[str, float] = {
            "Pending": books.pending,
            "OldestSeconds": 0.0 if oldest is None else round(max(0.0, now - oldest / 1000), 3),
            "Fill": round(100 * room.measure(self._directory).fill, 1) if books.pending else 0.0,
        }
        values |= {name: max(0, total - published.metered.get(name, 0)) for name, total in totals.items()}
        found = sending.read(self._directory)
        message = embedded(int(now * 1000), self._directory.format.log_group_name, found.app if found else "", values)
        self._leader_state.metered(totals, now)
        return Event(int(now * 1000), 0, NOTICE, message)


def embedded(timestamp_ms: int, group: str, app: str, values: Mapping[str, float]) -> str:
    """Return the event as JSON (pure)."""
    metrics = [{"Name": name, "Unit": _UNITS.get(name, "Count")} for name in values]
    directive = {"Namespace": NAMESPACE, "Dimensions": [list(DIMENSIONS)], "Metrics": metrics}
    content = {
        "_aws": {"Timestamp": timestamp_ms, "CloudWatchMetrics": [directive]},
        "group": group,
        "app": app or "app",
        "host": host.name(),
        **values,
    }
    return msgspec.json.encode(content).decode()
