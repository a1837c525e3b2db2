"""The cold start of many hosts in virtual time: quotas of the account, the calls of each leader, its own back-off."""

from __future__ import annotations

import heapq
import itertools
import random
import statistics
from collections import Counter
from collections.abc import Generator
from typing import Final, NamedTuple

from cwsink.config import SinkConfig
from cwsink.flusher.backoff import Backoff
from cwsink.flusher.flusher import POLL_SECONDS
from cwsink.testing.faults import Bucket

# Calls a second of one account in one region (AWS, "CloudWatch Logs quotas", large regions).
QUOTAS: Final = {"PutLogEvents": 5_000.0, "CreateLogStream": 50.0, "CreateLogGroup": 10.0}
# From the client to CloudWatch and back, in the simulation.
CALL_SECONDS: Final = 0.02
DEFAULTS: Final = SinkConfig()


class ColdStart(NamedTuple):
    """How all hosts came to deliver their first record; times from when it was logged."""

    half_seconds: float
    last_seconds: float
    calls: Counter[str]
    throttled: int


class Account:
    """Quotas and what exists, in virtual time."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.throttled = 0
        self._buckets = {action: Bucket(rate, rate, rate, 0.0) for action, rate in QUOTAS.items()}
        self._has_group = False
        self._streams: set[int] = set()

    def answer(self, action: str, host: int, now: float) -> str:
        """Return "ok", "throttled" or "missing"."""
        self.calls[action] += 1
        if self._buckets[action].is_empty(now):
            self.throttled += 1
            return "throttled"
        if action == "CreateLogGroup":
            self._has_group = True
        elif action == "CreateLogStream" and self._has_group:
            self._streams.add(host)
        elif host not in self._streams:
            return "missing"
        return "ok"


def first_delivery(chance: random.Random) -> Generator[float | str, str, None]:
    """Yield the calls that a leader makes until its first record is delivered, and the seconds it waits."""
    backoff = Backoff(DEFAULTS.retry_base_delay, DEFAULTS.max_retries, DEFAULTS.circuit_breaker_threshold)
    while True:
        answer = yield "PutLogEvents"
        if answer == "missing":
            answer = yield "CreateLogStream"
            if answer == "missing" and (answer := (yield "CreateLogGroup")) == "ok":
                answer = yield "CreateLogStream"
            if answer == "ok":
                answer = yield "PutLogEvents"
        if answer == "ok":
            return
        yield backoff.failed(chance.random())


def simulate(hosts: int) -> ColdStart:
    """Return the cold start of many hosts, computed."""
    chance, account, numbers = random.Random(hosts), Account(), itertools.count()
    # The oldest record is due after the batch time-out; leaders look every POLL_SECONDS.
    earliest = DEFAULTS.batch_timeout_seconds - POLL_SECONDS
    queue: list[tuple[float, int, int, Generator[float | str, str, None], str]] = []
    for host in range(hosts):
        work = first_delivery(chance)
        action = next(work)
        assert isinstance(action, str)
        queue.append((earliest + chance.uniform(0, POLL_SECONDS), next(numbers), host, work, action))
    heapq.heapify(queue)
    delivered: list[float] = []
    while queue:
        now, _, host, work, action = heapq.heappop(queue)
        answer = account.answer(action, host, now)
        try:
            wish = work.send(answer)
            now += CALL_SECONDS
            if not isinstance(wish, str):
                now += wish
                wish = next(work)
        except StopIteration:
            delivered.append(now)
            continue
        assert isinstance(wish, str)
        heapq.heappush(queue, (now, next(numbers), host, work, wish))
    return ColdStart(statistics.median(delivered), delivered[-1], account.calls, account.throttled)
