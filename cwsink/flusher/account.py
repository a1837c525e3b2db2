"""Compares what was sent with what CloudWatch shows (pure).

Both come as keys, a number for each event made of its time and its message. The same message may be logged twice in one
millisecond, so keys are counted: CloudWatch must show each as often as it was sent.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from hashlib import blake2b
from typing import NamedTuple

# 16 bytes: that two events among ten million have one key by chance has a probability of 1 in 10^24.
_KEY_BYTES = 16


class Difference(NamedTuple):
    """What the comparison of one window has found; each key with how often.

    Attributes:
        found: how many events were sent and are shown.
        missing: were sent, and are not shown.
        repeated: are shown more often than they were sent.
        others: are shown, and were not sent.
    """

    found: int
    missing: Counter[bytes]
    repeated: Counter[bytes]
    others: Counter[bytes]


def key_of(timestamp_ms: int, message: str) -> bytes:
    """Return the key of an event."""
    data = message.encode("utf-8", "surrogatepass")
    return blake2b(data, digest_size=_KEY_BYTES, person=timestamp_ms.to_bytes(8, "big")).digest()


def compare(sent: Iterable[bytes], shown: Iterable[bytes]) -> Difference:
    """Compare the keys of one window of time."""
    expected, seen = Counter(sent), Counter(shown)
    missing = expected - seen
    more = seen - expected
    repeated = Counter({key: count for key, count in more.items() if key in expected})
    return Difference(expected.total() - missing.total(), missing, repeated, more - repeated)


class Span(NamedTuple):
    """Times of some events: [first_ms, last_ms], and how many they are."""

    first_ms: int
    last_ms: int
    events: int


def windows(spans: Iterable[Span], since_ms: int, until_ms: int, most_events: int) -> list[tuple[int, int]]:
    """Cut [since_ms, until_ms) into windows, of about so many events each.

    Args:
        spans: where the events are.
        since_ms, until_ms: what of that is wanted.
        most_events: a window ends before the first span with which it would have more. If many begin in one
            millisecond, or are long and lie one over the other, a window has more.

    Returns:
        Windows [start, end) without a gap, from the first event to the last.
    """
    wanted = sorted(each for each in spans if each.last_ms >= since_ms and each.first_ms < until_ms)
    if not wanted or since_ms >= until_ms:
        return []
    start = max(since_ms, wanted[0].first_ms)
    found, count = [], 0
    for each in wanted:
        if count and count + each.events > most_events and each.first_ms > start:
            found.append((start, each.first_ms))
            start, count = each.first_ms, 0
        count += each.events
    end = min(until_ms, max(each.last_ms for each in wanted) + 1)
    return [*found, (start, end)]
