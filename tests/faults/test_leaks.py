"""Worker after worker, leader after leader: descriptors, threads, files, memory and streams stay flat."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Final
from unittest import mock

import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.config import SinkConfig, load_config
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.spool import directory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.interleave import deliver, segments
from tests.nursery import Nursery
from tests.stand_in import StandIn
from tests.support import quick_config

pytestmark = pytest.mark.faults

GENERATIONS: Final = 200
MANY_GENERATIONS: Final = 2_000
# The others only append: a client of boto3 takes a tenth of a second.
LEADS_EVERY: Final = 10
NEEDS_PROC: Final = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="not run: needs /proc")
TAKEOVERS: Final = 200
MANY_TAKEOVERS: Final = 1_000
# What an allocator keeps for itself; a leak of a KiB a takeover would be far more.
SLACK_KIB: Final = 4_096


def work(settings: dict[str, object], number: int) -> None:
    """One generation: log twice, and leave as a program does: who leads drains what those before it have left."""
    writer = Writer(load_config(settings))
    assert writer.append(f"{number:05d} first")
    assert writer.append(f"{number:05d} last")


def resident_kib(pid: int) -> int:
    """Return the memory of a process that is its own."""
    text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) for line in text.splitlines() if line.startswith("RssAnon"))


def footprint(pid: int, spool: directory.SpoolDirectory) -> tuple[int, int, set[str]]:
    """Return how many descriptors and threads a process has, and which files the spool has beside its segments."""
    files = {str(path.relative_to(spool.path)) for path in Path(spool.path).rglob("*") if path.suffix != ".seg"}
    return len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")), files


def check_generations(server: StrictCloudWatch, spawn: Spawn, generations: int) -> None:
    """Compare after a tenth of the generations, when all is warm, and after the last."""
    config = quick_config(server.endpoint_url)
    settings = {name: value for name, value in asdict(config).items() if value is not None}
    nursery = Nursery(spawn, work)
    parent = nursery._process.pid
    spool = directory.open_for(config)
    for number in range(generations):
        leads = number % LEADS_EVERY == LEADS_EVERY - 1
        flusher = "thread" if leads else "external"
        assert nursery.wait(nursery.fork({**settings, "flusher": flusher}, number)) == 0
        if number == generations // 10 - 1:
            before, kib = footprint(parent, spool), resident_kib(parent)
    assert footprint(parent, spool) == before
    assert resident_kib(parent) < kib + SLACK_KIB
    assert server.messages() == [f"{number:05d} {what}" for number in range(generations) for what in ("first", "last")]
    assert {event.stream for event in server.events()} == {"stream"}
    assert server.calls["CreateLogStream"] <= 2
    assert len(segments(spool)) == 1
    books = survey(spool)
    assert (books.delivered, books.pending, books.resent) == (2 * generations, 0, 0)
    print(f"{generations} generations of workers: descriptors, threads, files, memory and streams as at the start")


def check_takeovers(config: SinkConfig, takeovers: int) -> None:
    """One process leads again and again, and appends between: as one whose neighbours come and go."""
    cloudwatch = StandIn(lambda: time.time_ns() // 1_000_000)
    writer = Writer(config)
    with mock.patch.object(CloudWatch, "put", cloudwatch.method()):
        for number in range(takeovers):
            assert writer.append(f"{number:05d} " + "." * 900)
            deliver(writer.directory, config)
            if number == takeovers // 10:
                gc.collect()
                before, objects = footprint(os.getpid(), writer.directory), len(gc.get_objects())
    gc.collect()
    assert footprint(os.getpid(), writer.directory) == before
    # What the stand-in keeps is two objects a record at most.
    assert len(gc.get_objects()) < objects + 3 * takeovers + 200
    assert len(cloudwatch.messages()) == takeovers
    assert len(segments(writer.directory)) <= 2
    assert survey(writer.directory).epoch == takeovers
    print(f"{takeovers} takeovers in one process: descriptors, threads, files and objects as at the start")


@NEEDS_PROC
@pytest.mark.timeout(600)
def test_generations_of_workers_leave_nothing_behind(server: StrictCloudWatch, spawn: Spawn) -> None:
    """200 workers, each forked from the same warm process."""
    check_generations(server, spawn, GENERATIONS)


@NEEDS_PROC
def test_takeovers_leave_nothing_behind(small: SinkConfig) -> None:
    """200 leaders in one process, one after the other."""
    check_takeovers(small, TAKEOVERS)


@NEEDS_PROC
@pytest.mark.long
@pytest.mark.timeout(3_600)
def test_many_takeovers_leave_nothing_behind(small: SinkConfig) -> None:
    """1,000 of them."""
    check_takeovers(small, MANY_TAKEOVERS)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@NEEDS_PROC
def test_many_generations_of_workers_leave_nothing_behind(server: StrictCloudWatch, spawn: Spawn) -> None:
    """2,000 of them."""
    check_generations(server, spawn, MANY_GENERATIONS)
