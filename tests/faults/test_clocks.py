"""A wall clock that is wrong, or jumps while a process logs: no spin, legal requests, every record accounted for.

The clock is a host's: writer and leader see the same one. So both are in one process here, with a clock of its own.
"""

from __future__ import annotations

import json
from typing import Final

import pytest
from msgspec.structs import asdict

from cwsink.spool import directory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import deliver
from tests.harness.support import finish, quick_config

pytestmark = pytest.mark.faults

HOUR: Final = 3_600
DAY: Final = 24 * HOUR
RECORDS: Final = 40  # at each time
IDLE_SECONDS: Final = 1.0

# Runs through the offsets, in seconds, with a record of each time on both sides of every jump.
CHILD: Final = """
import json, sys, time

offset = 0
real, real_ns = time.time, time.time_ns
time.time = lambda: real() + offset
time.time_ns = lambda: real_ns() + offset * 10**9
settings, offsets, records, idle, leads = json.loads(sys.argv[1])

from cwsink import Writer
from cwsink.flusher.election import Election

offset = offsets[0]
writer = Writer.open(**settings)
election = Election(writer.directory, kind="own")
if leads:
    election.start()
number = 0
for offset in offsets:
    for _ in range(records):
        assert writer.append(f"{number:04d} {'.' * 300}")
        number += 1
    assert not leads or writer.flush(30)
cpu = time.process_time()
time.sleep(idle)
idle_cpu = time.process_time() - cpu
if leads:
    election.leave(0.0)
    assert election.has_ended(30)
print(json.dumps({"path": writer.directory.path, "idle_cpu": idle_cpu}))
"""


@pytest.mark.parametrize(
    ("offsets", "refused"),
    [
        pytest.param([-365 * DAY], {"too_old": 1}, id="a year behind"),
        pytest.param([3 * HOUR], {"too_new": 1}, id="three hours ahead"),
        pytest.param([20 * DAY], {"too_new": 1}, id="twenty days ahead"),
        pytest.param([0, -365 * DAY, 0], {"too_old": 1}, id="set back a year and corrected"),
        pytest.param([0, 3 * HOUR, 0], {"too_new": 1}, id="three hours on and back"),
        pytest.param([0, 20 * DAY, -20 * DAY, 0], {"too_new": 1, "too_old": 1}, id="twenty days either way"),
        pytest.param([-80 * 365 * DAY], {"too_old": 1}, id="before 1970"),
        pytest.param([0, -80 * 365 * DAY, 0], {"too_old": 1}, id="set back before 1970 and corrected"),
        pytest.param([0, -1, 1, -HOUR, HOUR, 0], {}, id="small corrections"),
    ],
)
def test_a_wrong_clock_costs_what_cloudwatch_refuses_and_no_more(
    server: StrictCloudWatch, spawn: Spawn, offsets: list[int], refused: dict[str, int]
) -> None:
    """What CloudWatch takes arrives in order, the rest is a dead letter with its reason; an idle leader idles."""
    config = quick_config(server.endpoint_url, flusher="external")
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    child = spawn(CHILD, json.dumps([settings, offsets, RECORDS, IDLE_SECONDS, True]))
    said = json.loads(finish(child))
    books = survey(directory.open_existing(said["path"]))
    total = RECORDS * len(offsets)
    dead = {reason: RECORDS * times for reason, times in refused.items()}
    assert books.dead_lettered == dead
    assert (books.appended, books.delivered, books.pending) == (total, total - sum(dead.values()), 0)
    messages = server.messages()
    assert len(messages) == len(set(messages)) == books.delivered
    # Each time's records were flushed before the next jump, so all are in the order of their appends.
    assert messages == sorted(messages)
    # One request for each look at most, and a leader that spins takes all of the second.
    assert len(server.requests) <= 4 * RECORDS
    assert said["idle_cpu"] < IDLE_SECONDS / 2


def test_records_from_both_sides_of_a_jump_go_in_legal_requests(server: StrictCloudWatch, spawn: Spawn) -> None:
    """Not flushed between: one backlog spans a year and is divided, the server sees no illegal request."""
    config = quick_config(server.endpoint_url, flusher="external", drain_timeout_seconds=0.0)
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    offsets = [0, -365 * DAY, 3 * HOUR, -2 * DAY, 20 * DAY, 0]
    child = spawn(CHILD, json.dumps([settings, offsets, RECORDS, 0.0, False]))
    spool = directory.open_existing(json.loads(finish(child))["path"])
    deliver(spool, config)
    books = survey(spool)
    assert books.dead_lettered == {"too_old": RECORDS, "too_new": 2 * RECORDS}
    assert (books.delivered, books.pending) == (3 * RECORDS, 0)
    assert sorted(server.messages()) == [
        f"{number:04d} {'.' * 300}" for number in range(6 * RECORDS) if number // RECORDS in (0, 3, 5)
    ]
