"""Refused events under Hypothesis: in any arrangement, with any deaths, all others arrive, in few calls.

A leader is a `Delivery` and a commit after each piece; its death is an exception at a call or a commit. The next one
begins at what is committed, as the cursor has it.
"""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter
from collections.abc import Callable, Sequence

from hypothesis import example, given, settings
from hypothesis import strategies as st

from cwsink.config import SinkConfig
from cwsink.flusher.chunk import Request
from cwsink.flusher.delivery import Delivery
from cwsink.flusher.outcome import Answer
from cwsink.spool.record import Event
from tests.harness.support import SPOOL_FORMAT, Killed

CONFIG = SinkConfig(circuit_breaker_enabled=False)
OK = Answer(status=200, request_id="r")
INVALID = Answer(status=400, code="InvalidParameterException", message="no", request_id="r")
LOST = Answer(code="ReadTimeoutError", message="no", is_ambiguous=True)
EXAMPLES = 300
NEVER: frozenset[int] = frozenset()
Refuses = Callable[[Sequence[Event]], bool]


class CloudWatch:
    """Takes events, and is also all else that a Delivery touches.

    Attributes:
        calls: how many requests it got.
        taken: what it took, request by request.
        letters: the events that became dead letters.
        refuses: whether it refuses a request.
        dies_at: at which steps (a call, a commit) a leader dies.
        loses: at which calls the answer is lost.
    """

    sent_bytes = 0

    def __init__(self, refuses: Refuses, dies_at: frozenset[int] = NEVER, loses: frozenset[int] = NEVER) -> None:
        self.refuses = refuses
        self.dies_at = dies_at
        self.loses = loses
        self.calls = 0
        self.taken: list[list[int]] = []
        self.letters: list[int] = []
        self._steps = itertools.count()

    def step(self) -> None:
        if next(self._steps) in self.dies_at:
            raise Killed

    def put(self, stream: str, events: Sequence[Event], sequence_token: str | None = None) -> Answer:
        self.step()
        self.calls += 1
        if self.refuses(events):
            return INVALID
        self.taken.append([event.sequence for event in events if event.is_record])
        return LOST if self.calls in self.loses else OK

    def create_group(self) -> Answer:
        return OK

    def create_stream(self, stream: str) -> Answer:
        return OK

    def close(self) -> None: ...

    def add(self, reason: str, error: str, events: list[Event]) -> None:
        self.letters += [event.sequence for event in events]

    def answered(self, outcome: str, seconds: float, sent_bytes: int) -> None: ...

    def succeeded(self) -> None: ...

    def failed(self, error: str, obstacle: str, *, is_open: bool) -> None: ...

    def check(self) -> None: ...

    def wait(self, seconds: float) -> bool:
        return True

    def deliver(self, events: list[Event]) -> tuple[int, Counter[str], int]:
        """Have leaders deliver until all is settled. Returns delivered, dead letters by reason, deaths."""
        done = delivered = deaths = 0
        dead: Counter[str] = Counter()
        while done < len(events):
            begin = done
            delivery = Delivery(self, SPOOL_FORMAT, CONFIG, self, self, self, uniform=lambda: 0.0)
            try:
                for settled in delivery.send(Request("host", events[begin:])):
                    self.step()
                    assert done < begin + settled.done <= len(events)
                    done = begin + settled.done
                    delivered += settled.tally.delivered
                    dead += settled.tally.dead
            except Killed:
                deaths += 1
        return delivered, dead, deaths


ARRANGEMENTS = st.one_of(
    st.lists(st.booleans(), min_size=1, max_size=64),
    # Runs, as one source of illegal events writes them.
    st.lists(st.tuples(st.booleans(), st.integers(1, 80)), min_size=1, max_size=6).map(
        lambda runs: [is_bad for is_bad, length in runs for _ in range(length)]
    ),
    st.integers(1, 200).map(lambda count: [True] * count),
)


def events_of(arrangement: list[bool]) -> list[Event]:
    return [Event(1_700_000_000_000 + number, 7, number, f"m{number}") for number in range(len(arrangement))]


def good(arrangement: list[bool]) -> list[int]:
    return [number for number, is_bad in enumerate(arrangement) if not is_bad]


def bad(arrangement: list[bool]) -> list[int]:
    return [number for number, is_bad in enumerate(arrangement) if is_bad]


def refuses_bad(arrangement: list[bool]) -> Refuses:
    return lambda events: any(event.is_record and arrangement[event.sequence] for event in events)


@settings(max_examples=EXAMPLES, deadline=None)
@given(ARRANGEMENTS)
@example([True])
@example([True, True])
@example([False, True, True])
@example([True] * 10_000)
@example([False] * 5_000 + [True] + [False] * 4_999)
@example([False, True] * 5_000)
def test_each_legal_event_arrives_once_and_in_order_in_few_calls(arrangement: list[bool]) -> None:
    """Each refused one is a dead letter, once; the calls are at most 2 * refused * log2(batch) + 10."""
    cloudwatch = CloudWatch(refuses_bad(arrangement))
    refused = bad(arrangement)
    delivered, dead, _ = cloudwatch.deliver(events_of(arrangement))
    assert [number for request in cloudwatch.taken for number in request] == good(arrangement)
    assert cloudwatch.letters == refused
    assert (delivered, dead["poison"]) == (len(good(arrangement)), len(refused))
    assert cloudwatch.calls <= 2 * len(refused) * math.log2(len(arrangement)) + 10


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=40),
    st.frozensets(st.integers(0, 60), max_size=8),
    st.frozensets(st.integers(0, 60), max_size=4),
)
def test_a_death_or_a_lost_answer_repeats_one_piece_at_most(
    arrangement: list[bool], dies_at: frozenset[int], loses: frozenset[int]
) -> None:
    """Wherever leaders die: every legal event arrives, what repeats is one taken piece each, the ledger adds up."""
    cloudwatch = CloudWatch(refuses_bad(arrangement), dies_at, loses)
    delivered, dead, deaths = cloudwatch.deliver(events_of(arrangement))
    assert (delivered, dead["poison"]) == (len(good(arrangement)), len(bad(arrangement)))
    assert set(cloudwatch.letters) == set(bad(arrangement))
    counts = Counter(number for request in cloudwatch.taken for number in request)
    assert set(counts) == set(good(arrangement))
    lost = sum(call <= cloudwatch.calls for call in loses)
    pieces = sorted((len(request) for request in cloudwatch.taken), reverse=True)
    assert sum(counts.values()) - len(counts) <= sum(pieces[: deaths + lost])


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(1, 20), st.randoms(use_true_random=False))
def test_requests_that_are_refused_for_another_reason_cost_no_legal_event(
    arrangement: list[bool], most: int, rng: random.Random
) -> None:
    """Too many for a proxy, or by a whim that depends on the call: what is alone is judged for itself."""
    by_content = refuses_bad(arrangement)

    def refuses(events: Sequence[Event]) -> bool:
        return by_content(events) or len(events) > most or (len(events) > 1 and rng.random() < 0.5)

    cloudwatch = CloudWatch(refuses)
    cloudwatch.deliver(events_of(arrangement))
    assert [number for request in cloudwatch.taken for number in request] == good(arrangement)
    assert cloudwatch.letters == bad(arrangement)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=60), st.integers(0, 200))
def test_a_target_that_takes_nothing_at_first_costs_no_legal_event(arrangement: list[bool], mended_at: int) -> None:
    """Whenever it is mended, in the middle of a search too: what was refused before is judged anew."""
    by_content = refuses_bad(arrangement)
    cloudwatch = CloudWatch(lambda events: cloudwatch.calls <= mended_at or by_content(events))
    cloudwatch.deliver(events_of(arrangement))
    assert [number for request in cloudwatch.taken for number in request] == good(arrangement)
    assert cloudwatch.letters == bad(arrangement)
