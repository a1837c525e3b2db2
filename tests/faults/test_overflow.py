"""A hundred times the budget is appended while nothing can be sent: the cap holds, each record is accounted for.

Invariants 6, 10.
"""

from __future__ import annotations

import contextlib

import pytest

from cwsink.config import SinkConfig
from cwsink.frontends.writer import Writer
from cwsink.spool import leader_state
from cwsink.spool.survey import Survey, survey
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver, leading, ring_bytes, segments, until
from tests.integration.test_budget import POLICIES, full_config, records, told

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]

MIB = 1024 * 1024
BUDGET = MIB
SEGMENT = BUDGET // 4
APPENDED = 100 * MIB
RECORD = 16_384
LOOK_EVERY = 3  # of the 16 of a segment
# Beyond cap and one segment: what is appended between two looks, and a page of the next header.
SLACK = 4 * (RECORD + 4096)


def message_of(number: int) -> str:
    return f"{number:06d} ".ljust(RECORD, "x")


@pytest.mark.parametrize("leader", ["no leader", "server down"])
@pytest.mark.parametrize("on_full", POLICIES)
def test_100_mib_into_a_spool_of_1_mib_are_accounted_for(server: StrictCloudWatch, on_full: str, leader: str) -> None:
    """Bounded at every moment, dropped as the policy says, counted exactly, and told in the stream itself."""
    config = full_config(
        server.endpoint_url,
        on_full,
        spool_max_bytes=BUDGET,
        segment_bytes=SEGMENT,
        block_timeout_seconds=0.0,
        circuit_breaker_enabled=False,
    )
    attempts = APPENDED // RECORD
    server.stop()
    writer = Writer(config)
    with leading(writer.directory, config) if leader == "server down" else contextlib.nullcontext():
        answers, most_bytes = [], 0
        for number in range(attempts):
            answers.append(writer.append(message_of(number)))
            if number == 0 and leader == "server down":
                # From now on it tries to send this record. Else it might hold all four segments.
                until(lambda: (state := leader_state.read(writer.directory)) and state.last_error, "it has tried")
            if number % LOOK_EVERY == 0:
                most_bytes = max(most_bytes, ring_bytes(writer.directory))
        books = survey(writer.directory)
        server.start()
    assert most_bytes <= BUDGET + SEGMENT + SLACK
    assert books.delivered == 0
    assert (books.evicted > 0) == (on_full == "drop_oldest")
    if on_full == "drop_oldest":
        # An append that has no time to count all that it is to evict is refused. A busy machine has a few.
        assert answers.count(False) < attempts // 100
    else:
        assert answers.count(False) > attempts // 2
    writer.close()
    settled = settle(writer, config)
    assert settled.appended == answers.count(True)
    assert settled.refused.get("spool_full", 0) == sum(settled.refused.values()) == answers.count(False)
    assert settled.delivered + settled.evicted == settled.appended
    arrived = records(server)
    assert len(set(arrived)) == settled.delivered
    assert set(arrived) <= {message_of(number) for number, answer in enumerate(answers) if answer}
    assert told(server, "spool_full") == answers.count(False)
    assert told(server, "evicted (spool_full)") == settled.evicted
    print(
        f"{on_full}, {leader}: {attempts} appended to a full spool, {settled.delivered} delivered, "
        f"{settled.evicted} evicted and {answers.count(False)} refused, all told in the stream"
    )


def settle(writer: Writer, config: SinkConfig) -> Survey:
    """CloudWatch is back: deliver what is left."""
    deliver(writer.directory, config)
    books = survey(writer.directory)
    assert (books.adds_up, books.pending, len(segments(writer.directory))) == (True, 0, 1)
    return books
