"""Many hosts, one AWS account: cold start of all at once, calls and lag at rest, and when the quota is too small.

    python -m benchmarks.fleet [--hosts N ...] [--seconds S] [--quick]

A host is a spool and a stream of its own, with a leader of its own: a process, or, beyond 100 of them, one of
several in a process. The process that logs hosts the leader, too, as a thread: with a guard and a flusher for each
host this machine's memory would be what is measured. CloudWatch is the strict server, in a process of its own, with
AWS's default quotas for an account and region, as token buckets of one second. Three things are measured, at each
number of hosts:

* cold start: neither group nor streams exist, all hosts log a record at the same moment. (Their clients are connected
  already, by a record to a group that was then forgotten: else this machine's CPU would spread them out.)
* at rest: each host logs `RECORDS_PER_SECOND`, not in step; default settings.
* half the quota: the same, and PutLogEvents allows half as many calls as were made at rest. This is 10,000 hosts at
  5,000 calls a second, to scale.

Lag is the time from `append` to acceptance, of each record. What 10,000 hosts do is computed: the cold start by a
simulation of the delivery's calls in virtual time, with its own back-off; it is run for the measured sizes as well.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from multiprocessing.connection import Connection
from typing import Any, Final, NamedTuple

import boto3

from benchmarks import report
from benchmarks.staging.cold_start import DEFAULTS, QUOTAS, ColdStart, simulate
from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher import cloudwatch
from cwsink.flusher.election import Election
from cwsink.testing.process import SpawnedCloudWatch, spawn

GROUP: Final = "/benchmark/fleet"
RECORDS_PER_SECOND: Final = 2.0
MESSAGE_BYTES: Final = 300
MOST_PROCESSES: Final = 100
# A host at rest, its calls and its share of CloudWatch take about 0.8 % of a core; more would measure this machine.
MOST_AT_REST: Final = 100 * (os.cpu_count() or 1)
HANG_SECONDS: Final = 120.0
BIG: Final = 10_000


# The hosts.


def be_hosts(numbers: Sequence[int], root: str, url: str, orders: Connection, parent: int) -> None:
    """Be some hosts until the parent is gone. Orders: ("once",), ("log", name, seconds), ("flush",)."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    writers = [Writer(config_of(number, root, url)) for number in numbers]
    for writer in writers:
        Election(writer.directory, kind="own").start()
    while True:
        while not orders.poll(1.0):
            if os.getppid() != parent:
                os._exit(1)
        match orders.recv():
            case ["once"]:
                for writer in writers:
                    writer.append("x" * MESSAGE_BYTES)
            case ["log", name, seconds]:
                log(name, dict(zip(numbers, writers, strict=True)), seconds)
            case ["flush"]:
                until = time.monotonic() + HANG_SECONDS
                for writer in writers:
                    writer.flush(max(0.0, until - time.monotonic()))
        orders.send("done")


def config_of(number: int, root: str, url: str) -> SinkConfig:
    """Return the settings of a host: the defaults, but for where."""
    return SinkConfig(
        log_group_name=GROUP,
        log_stream_name=f"host-{number:05d}",
        region="us-east-1",
        endpoint_url=url,
        spool_directory=f"{root}/{number}",
        flusher="external",
    )


def log(name: str, writers: dict[int, Writer], seconds: float) -> None:
    """Log at the rate of each host; hosts are not in step."""
    period = 1 / RECORDS_PER_SECOND
    offsets = {number: random.Random(number).uniform(0, period) for number in writers}
    ticks = range(round(seconds * RECORDS_PER_SECOND))
    due = sorted((tick * period + offset, tick, number) for tick in ticks for number, offset in offsets.items())
    began = time.monotonic()
    for at, tick, number in due:
        time.sleep(max(0.0, began + at - time.monotonic()))
        writers[number].append(f"{name} {number} {tick} ".ljust(MESSAGE_BYTES, "x"))


class Fleet:
    """Hosts in processes. A context manager that leaves none behind."""

    def __init__(self, hosts: int, url: str) -> None:
        self.processes = min(hosts, MOST_PROCESSES)
        self._root = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
        fork = multiprocessing.get_context("fork")
        self._members: list[tuple[Any, Connection]] = []
        for index in range(self.processes):
            mine, its = fork.Pipe()
            numbers = range(index, hosts, self.processes)
            member = fork.Process(target=be_hosts, args=(numbers, self._root, url, its, os.getpid()), daemon=True)
            member.start()
            its.close()
            self._members.append((member, mine))

    def order(self, *order: object) -> None:
        """Tell all of them at once, and wait until all have done it."""
        for _, orders in self._members:
            orders.send(order)
        for _, orders in self._members:
            orders.recv()

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, *_: object) -> None:
        for member, _orders in self._members:
            member.kill()
        for member, orders in self._members:
            member.join()
            orders.close()
        shutil.rmtree(self._root)


# What is measured.


class Load(NamedTuple):
    """How a fleet delivered what it logged."""

    calls_per_second: float
    throttled_per_second: float
    creates: int
    lags: list[float]
    lost: int
    twice: int
    late_seconds: float
    busy: float


def cold_start(fleet: Fleet, server: SpawnedCloudWatch, hosts: int) -> ColdStart:
    """Have all log at once, into nothing."""
    fleet.order("once")
    fleet.order("flush")
    server.reset()
    for action, rate in QUOTAS.items():
        server.misbehave(throttle_rate={"calls_per_second": rate, "action": action})
    began = time.time()
    fleet.order("once")
    wait_for(server, hosts)
    fleet.order("flush")
    seen = server.summary()
    first: dict[str | None, float] = {}
    for request in server.requests():
        if request.status == 200:
            first.setdefault(request.stream, request.time_seconds - began)
    return ColdStart(
        statistics.median(first.values()),
        max(first.values()),
        Counter(seen["calls"]),
        seen["errors"].get("ThrottlingException", 0),
    )


def wait_for(server: SpawnedCloudWatch, events: int) -> None:
    """Wait until so many events have arrived."""
    until = time.monotonic() + HANG_SECONDS
    while server.summary()["events"] < events:
        if time.monotonic() > until:
            raise SystemExit(f"only {server.summary()['events']:,} of {events:,} events arrive")
        time.sleep(0.1)


def load(fleet: Fleet, server: SpawnedCloudWatch, hosts: int, name: str, seconds: float) -> Load:
    """Have all log for some time, and see how that arrives."""
    before = server.summary()
    began, busy_before = time.time(), cpu()
    fleet.order("log", name, seconds)
    ended, busy_after = time.time(), cpu()
    logged = hosts * round(seconds * RECORDS_PER_SECOND)
    wait_for(server, before["events"] + logged)
    late = time.time() - ended
    fleet.order("flush")
    began_to_send = began + DEFAULTS.batch_timeout_seconds
    made = [each for each in server.requests() if began_to_send <= each.time_seconds <= ended]
    busy, idle = (after - earlier for after, earlier in zip(busy_after, busy_before, strict=True))
    lags, arrived = arrivals(server, name)
    calls = server.summary()["calls"]
    return Load(
        sum(each.status == 200 for each in made) / (ended - began_to_send),
        sum(each.error == "ThrottlingException" for each in made) / (ended - began_to_send),
        sum(calls.get(action, 0) - before["calls"].get(action, 0) for action in ("CreateLogStream", "CreateLogGroup")),
        sorted(lags),
        logged - arrived,
        len(lags) - arrived,
        late,
        busy / (busy + idle),
    )


def arrivals(server: SpawnedCloudWatch, name: str) -> tuple[list[float], int]:
    """Return how many seconds each event of a load took, and how many different ones there are."""
    client = boto3.client("logs", region_name="us-east-1", endpoint_url=server.endpoint_url)
    pages = client.get_paginator("filter_log_events").paginate(logGroupName=GROUP, filterPattern=name)
    events = [each for page in pages for each in page["events"]]
    lags = [(each["ingestionTime"] - each["timestamp"]) / 1000 for each in events]
    return lags, len({each["message"] for each in events})


def cpu() -> tuple[float, float]:
    """Return the machine's busy and idle time so far, in ticks."""
    with open("/proc/stat") as file:
        ticks = [float(each) for each in file.readline().split()[1:9]]
    idle = ticks[3] + ticks[4]
    return sum(ticks) - idle, idle


# What is said.


class Found(NamedTuple):
    """What was measured of one size."""

    processes: int
    cold: ColdStart
    rest: Load | None = None
    scarce: Load | None = None


def measure(hosts: int, seconds: float) -> Found:
    """Measure one size."""
    with ExitStack() as stack:
        server = stack.enter_context(spawn())
        fleet = stack.enter_context(Fleet(hosts, server.endpoint_url))
        found = Found(fleet.processes, cold_start(fleet, server, hosts))
        if hosts <= MOST_AT_REST:
            rest = load(fleet, server, hosts, "rest", seconds)
            half = {"calls_per_second": rest.calls_per_second / 2, "action": "PutLogEvents"}
            server.misbehave(throttle_rate=half)
            found = found._replace(rest=rest, scarce=load(fleet, server, hosts, "scarce", 1.5 * seconds))
        seen = server.summary()
        if seen["violations"]:
            raise SystemExit(f"CloudWatch's rules were broken: {seen['violation_texts']}")
        return found


def cold_row(name: str, hosts: int, cold: ColdStart) -> list[str]:
    """Return a row of the table of cold starts."""
    calls = [cold.calls["CreateLogGroup"], cold.calls["CreateLogStream"], cold.calls["PutLogEvents"]]
    control = sum(calls[:2]) / hosts
    seconds = [f"{cold.half_seconds:.1f}", f"{cold.last_seconds:.1f}", f"{hosts / QUOTAS['CreateLogStream']:.0f}"]
    return [name, *seconds, *(f"{count:,}" for count in calls), f"{cold.throttled:,}", f"{control:.1f}"]


def load_row(hosts: int, made: Load) -> list[str]:
    """Return a row of the tables of loads."""
    lags = [made.lags[int(len(made.lags) * share)] for share in (0.5, 0.99)]
    return [
        f"{hosts:,}",
        f"{made.calls_per_second:,.0f}",
        f"{made.calls_per_second / hosts:.2f}",
        f"{made.throttled_per_second:,.0f}",
        f"{made.creates}",
        *(f"{lag:.1f}" for lag in (*lags, made.lags[-1])),
        f"{made.late_seconds:.1f}",
        f"{made.lost}",
        f"{made.twice}",
        f"{100 * made.busy:.0f} %",
    ]


def say(out: report.Report, found: dict[int, Found]) -> None:
    """Print the tables, the arithmetic and the plot."""
    sizes = sorted({*found, 1_000, 2_000, 5_000, BIG})
    simulated = {hosts: simulate(hosts) for hosts in sizes}
    out.say("Cold start of all at once. The quota of CreateLogStream alone asks for hosts / 50 seconds.")
    columns = ["hosts", "half deliver, s", "all, s", "quota, s", "CreateLogGroup", "CreateLogStream", "PutLogEvents"]
    rows = []
    for hosts in sizes:
        if hosts in found:
            rows.append(cold_row(f"{hosts:,}", hosts, found[hosts].cold))
        rows.append(cold_row(f"{hosts:,}, simulated", hosts, simulated[hosts]))
    out.table([*columns, "throttled", "control calls/host"], rows)
    columns = ["hosts", "calls/s", "each", "throttled/s", "creates", "lag p50, s", "p99", "worst", "all in after, s"]
    columns += ["lost", "twice", "machine busy"]
    out.say(f"At rest: {RECORDS_PER_SECOND:.0f} records a second each, default settings, one stream each.")
    rests = {hosts: each.rest for hosts, each in found.items() if each.rest}
    out.table(columns, [load_row(hosts, made) for hosts, made in rests.items()])
    out.say("The same, half as long again, with half the calls allowed.")
    out.table(columns, [load_row(hosts, each.scarce) for hosts, each in found.items() if each.scarce])
    for hosts, each in found.items():
        if each.processes < hosts:
            out.say(f"{hosts:,} hosts were {each.processes} processes of {math.ceil(hosts / each.processes)}.")
        if each.rest is None:
            out.say(f"{hosts:,} hosts at rest would measure this machine: {MOST_AT_REST} are the most it bears.")
    if rests:
        big(out, simulated[BIG], max(made.calls_per_second / hosts for hosts, made in rests.items()))
    out.lines(
        "All hosts start at once: when has the last one delivered?",
        "hosts",
        "seconds",
        {
            "measured": [(hosts, each.cold.last_seconds) for hosts, each in found.items()],
            "simulated": [(hosts, cold.last_seconds) for hosts, cold in simulated.items()],
            "CreateLogStream quota alone (floor)": [(hosts, hosts / QUOTAS["CreateLogStream"]) for hosts in simulated],
        },
        log_x=True,
        log_y=True,
    )


def big(out: report.Report, cold: ColdStart, each: float) -> None:
    """Print the arithmetic for 10,000 hosts."""
    allowed, timeout = QUOTAS["PutLogEvents"], DEFAULTS.batch_timeout_seconds
    record_bytes = MESSAGE_BYTES + 26
    gib = BIG * RECORDS_PER_SECOND * record_bytes * 30 * 86_400 / 2**30
    out.say(
        f"{BIG:,} hosts that all log all the time make {BIG * each:,.0f} calls a second at `batch_timeout_seconds` = "
        f"{timeout:g}, {BIG * each / allowed:.1f} times the default quota of {allowed:,.0f}; with 5 s it is "
        f"{BIG / 5:,.0f}. Above the quota calls are throttled, batches grow, and lag is as in the last table: "
        "nothing is lost.",
        f"Their cold start, all at the same moment, takes {cold.last_seconds:.0f} s (half of them: "
        f"{cold.half_seconds:.0f} s), of which the quota of CreateLogStream asks for "
        f"{BIG / QUOTAS['CreateLogStream']:.0f} s; hosts that start apart or have their stream wait for none of it. "
        f"At {RECORDS_PER_SECOND:.0f} records a second of {record_bytes} bytes (26 of them CloudWatch's own) they "
        f"ingest {gib:,.0f} GiB in 30 days: hosts x records/s x bytes x 2,592,000 / 2^30, times the region's price.",
    )


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, nargs="+", default=[50, 200, 500])
    parser.add_argument(
        "--seconds", type=float, default=15.0, help="of logging at rest; half as much again when scarce"
    )
    report.add_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    os.environ.update(
        AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark", AWS_EC2_METADATA_DISABLED="true"
    )
    if options.quick:
        options.hosts, options.seconds = [10], 2.0
    out = report.Report("fleet", options, "botocore")
    cloudwatch.load()  # once, for all the processes forked from this one
    say(out, {hosts: measure(hosts, options.seconds) for hosts in options.hosts})
    out.save()


if __name__ == "__main__":
    main()
