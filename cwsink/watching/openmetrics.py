"""The numbers of `cwsink.stats()` in the format of OpenMetrics, by prometheus-client (the extra `metrics`).

Spools come and go with hosts, pods and streams, so their names would make labels without bound. The numbers are those
of a log group: sums over its spools, and of ages the greatest. Reasons and answers that this cwsink does not know are
counted as "other".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest

from cwsink.flusher.outcome import Outcome
from cwsink.spool.stats import SpoolStats, State, look_below

_generate: Final[Any] = generate_latest  # it has no types
OTHER: Final = "other"
# Why a record was dead-lettered, and why one was refused.
DEAD: Final = ("too_old", "too_new", "expired", "oversize", "poison", "corrupt")
REFUSED: Final = ("spool_full", "io_error", "unencodable", "internal_error")
# The outcomes of records: each is a field of SpoolStats, a number that has one reason, or numbers by reason.
_OF_ONE_REASON: Final = {"appended": "", "delivered": "", "resent": "", "evicted": "spool_full"}
_BY_REASON: Final = {"dead_lettered": DEAD, "replayed": DEAD, "refused": REFUSED}
ANSWERS: Final = tuple(outcome.name.lower() for outcome in Outcome)


class SpoolsCollector:
    """Looks at the spools at a path each time that it is asked."""

    def __init__(self, path: str | None) -> None:
        self._path = path

    def collect(self) -> Iterator[Any]:
        """Return the metrics as they are now. Raises SpoolError."""
        found = look_below(self._path)
        unreadable = GaugeMetricFamily("cwsink_unreadable_spools", "Spools that cannot be read, or not whole.")
        paths = [spool.path for spool in found.spools]
        names = {next((each for each in paths if path.startswith(f"{each}/")), path) for path in found.unreadable}
        unreadable.add_metric([], len(names))
        yield unreadable
        yield from families(found.spools)


def text_of(path: str | None) -> bytes:
    """Return the metrics of the spools at a path as OpenMetrics. Raises SpoolError."""
    text: bytes = _generate(registry_of(path))
    return text


def registry_of(path: str | None) -> CollectorRegistry:
    """Return a registry of the spools at a path, for a server."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(SpoolsCollector(path))
    return registry


def families(spools: Iterable[SpoolStats]) -> Iterator[Any]:
    """Yield the metrics of these spools."""
    groups: dict[str, list[SpoolStats]] = {}
    for spool in spools:
        groups.setdefault(spool.log_group_name, []).append(spool)
    labels = ["group"]
    records = CounterMetricFamily("cwsink_records", "Records, by outcome.", None, [*labels, "outcome", "reason"])
    requests = CounterMetricFamily("cwsink_requests", "Requests to send records, by answer.", None, [*labels, "answer"])
    states = GaugeMetricFamily("cwsink_spools", "Spools, by state.", None, [*labels, "state"])
    seconds = HistogramMetricFamily("cwsink_request_seconds", "Time of a request.", labels=labels, unit="seconds")
    sent = CounterMetricFamily("cwsink_sent_bytes", "The bodies of all requests.", None, labels, unit="bytes")
    gauges = {name: GaugeMetricFamily(f"cwsink_{name}", text, None, labels) for name, (text, _) in _GAUGES.items()}
    for group, members in sorted(groups.items()):
        for (outcome, reason), count in _records(members).items():
            records.add_metric([group, outcome, reason], count)
        answers = sum((_bounded(spool.requests, ANSWERS) for spool in members), Counter[str]())
        for answer in (*ANSWERS, OTHER):
            requests.add_metric([group, answer], answers[answer])
        for state in get_args(State):
            states.add_metric([group, state], sum(spool.state == state for spool in members))
        buckets = Counter[str]()
        for spool in members:
            buckets.update(spool.request_seconds)
        total = buckets.pop("sum", 0.0)
        if buckets:
            seconds.add_metric([group], sorted(buckets.items(), key=lambda each: float(each[0])), total)
        sent.add_metric([group], sum(spool.sent_bytes for spool in members))
        for name, (_, value) in _GAUGES.items():
            gauges[name].add_metric([group], value(members))
    yield from (records, requests, states, seconds, sent, *gauges.values())


def _records(members: Sequence[SpoolStats]) -> Counter[tuple[str, str]]:
    """Count records by outcome and reason. What has never happened is there as 0: its first time is an increase."""
    found: Counter[tuple[str, str]] = Counter()
    for outcome, reason in _OF_ONE_REASON.items():
        found[outcome, reason] = sum(getattr(spool, outcome) for spool in members)
    for outcome, known in _BY_REASON.items():
        found.update({(outcome, reason): 0 for reason in (*known, OTHER)})
        for spool in members:
            for reason, count in _bounded(getattr(spool, outcome), known).items():
                found[outcome, reason] += count
    return found


def _bounded(counts: Mapping[str, int], known: Iterable[str]) -> Counter[str]:
    found: Counter[str] = Counter()
    for name, count in counts.items():
        found[name if name in known else OTHER] += count
    return found


_GAUGES: Final[dict[str, tuple[str, Any]]] = {
    "pending_records": ("Records that wait.", lambda members: sum(each.pending for each in members)),
    "pending_bytes": ("Their size.", lambda members: sum(each.pending_bytes for each in members)),
    "oldest_pending_seconds": (
        "How long the oldest of them has waited.",
        lambda members: max(each.oldest_pending_seconds or 0.0 for each in members),
    ),
    "spool_bytes": ("The disk space that records take.", lambda members: sum(each.used_bytes for each in members)),
    "capacity_bytes": ("How much they may take.", lambda members: sum(each.capacity_bytes for each in members)),
    "fill_ratio": ("How full the fullest spool is.", lambda members: max(each.fill for each in members)),
    "dead_letters": (
        "Dead letters that are still there: neither replayed nor cleared nor dropped.",
        lambda members: sum(sum(each.dead_letters.values()) for each in members),
    ),
    "dead_letters_dropped": (
        "Dead letters that are lost, because their file or the disk was full.",
        lambda members: sum(each.dead_letters_dropped for each in members),
    ),
    "losing": ("1 while records are being lost.", lambda members: float(any(each.is_losing for each in members))),
    "leader_epoch": (
        "The sum of the epochs of all leaderships, so that each change of a leader shows.",
        lambda members: sum(each.epoch for each in members),
    ),
}
