"""How long nothing is delivered when the leader is killed, and what arrives twice.

    python -m benchmarks.failover [--kills N] [--default-kills N]

Four processes append to one spool all the time, and one of them leads in a thread. It gets SIGKILL at a
random moment (seeded); a new process takes its place when the next leader has delivered. Measured from
the signal:

* to the takeover: another process has the lease, boto3 loaded, and has written its epoch;
* to the next delivery: the first request of that epoch arrives at the strict server.

A new leader waits, as any, for a batch to fill or for `batch_timeout_seconds`: so once with 0.2, where the
failover itself is seen, and once with the default of 1. CloudWatch stores at once and answers after 20 ms, as
one in the same region does: a leader killed in between leaves a batch that is sent twice. Lost is what `append`
returned True for (each process counts it in shared memory) and what never arrived.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import mmap
import os
import random
import shutil
import signal
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.report import Report, add_options
from cwsink.spool import leader_state
from cwsink.spool.directory import find_spools, open_existing
from cwsink.testing import StoredRequest, StrictCloudWatch

WORKERS: Final = 4
RECORDS_PER_SECOND: Final = 100  # of each worker
ANSWER_SECONDS: Final = 0.02
STEADY_SECONDS: Final = (0.05, 0.45)  # of undisturbed delivery before a kill
DRAIN_SECONDS: Final = 30.0
HANG_SECONDS: Final = 180.0
POLL_SECONDS: Final = 0.005

WORKER: Final = """
import json, mmap, os, struct, sys, time
from cwsink import Writer

settings, number, path, pause, parent = json.loads(sys.argv[1])
with open(path, "r+b") as file:
    counts = mmap.mmap(file.fileno(), 0)
writer = Writer.open(settings)
acknowledged = 0
while not counts[0] and os.getppid() == parent:
    if writer.append(f"{number}-{acknowledged} GET /api/orders/123456 200 12ms " + "x" * 260):
        acknowledged += 1
        struct.pack_into("<Q", counts, 8 * number, acknowledged)
    time.sleep(pause)
"""


class Failover(NamedTuple):
    """What one kill did."""

    takeover_seconds: float
    delivery_seconds: float
    repeated: int


class Fleet:
    """The processes that log, and how many records each has appended. Number 0 is the order to end."""

    def __init__(self, settings: dict[str, Any], folder: Path, most: int) -> None:
        self._settings = settings
        self._path = folder / "counts"
        self._path.write_bytes(bytes(8 * (most + 1)))
        with open(self._path, "r+b") as file:
            self._counts = mmap.mmap(file.fileno(), 0)
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self._started = 0

    def start(self) -> None:
        """Start one more."""
        self._started += 1
        arguments = [self._settings, self._started, str(self._path), 1 / RECORDS_PER_SECOND, os.getpid()]
        process = subprocess.Popen([sys.executable, "-c", WORKER, json.dumps(arguments)], stdin=subprocess.DEVNULL)
        self._running[process.pid] = process

    def kill(self, pid: int) -> None:
        """Kill one."""
        process = self._running.pop(pid)
        process.kill()
        process.wait()

    def acknowledged(self, number: int) -> int:
        """Return how many records process `number` has appended."""
        return int(struct.unpack_from("<Q", self._counts, 8 * number)[0])

    def all_acknowledged(self) -> list[str]:
        """Return the ids of all records appended."""
        return [f"{who}-{each}" for who in range(1, self._started + 1) for each in range(self.acknowledged(who))]

    @property
    def newest_logs(self) -> bool:
        """Tell whether the process started last has begun."""
        return self.acknowledged(self._started) > 0

    def end(self) -> None:
        """Have all end by themselves: the last one out delivers what is left."""
        self._counts[0] = 1
        for process in self._running.values():
            process.wait(HANG_SECONDS)

    def stop(self) -> None:
        """Kill what is left. Repeatable."""
        for pid in list(self._running):
            self.kill(pid)


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds."""
    until = time.monotonic() + HANG_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"{what}: waited in vain")
        time.sleep(POLL_SECONDS)


def kill_leaders(kills: int, settings: dict[str, Any], seed: int) -> tuple[list[Failover], int, int]:
    """Kill so many. Returns what each did, how many records were appended, and how many of them lost."""
    folder = Path(tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp"))
    chance = random.Random(seed)
    with StrictCloudWatch() as server, contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        server.faults.latency_seconds = ANSWER_SECONDS
        settings = {
            "log_group_name": "/benchmark/failover",
            "region": "us-east-1",
            "endpoint_url": server.endpoint_url,
            "spool_directory": str(folder / "spools"),
            "drain_timeout_seconds": DRAIN_SECONDS,
            **settings,
        }
        fleet = Fleet(settings, folder, kills + WORKERS)
        stack.callback(fleet.stop)
        for _ in range(WORKERS):
            fleet.start()
            wait_for(lambda: fleet.newest_logs, "a worker's first record")
        server.wait_for(lambda s: bool(s.requests), HANG_SECONDS)
        spool = open_existing(find_spools(settings["spool_directory"])[0])
        times: dict[int, tuple[float, float]] = {}
        for _ in range(kills):
            wait_for(lambda: fleet.newest_logs, "a worker's first record")
            time.sleep(chance.uniform(*STEADY_SECONDS))
            last = server.requests[-1]
            killed_at = time.time()
            fleet.kill(int(last.sender))
            first = next_leaders_first(server, last.epoch or 0)
            taken = leader_state.read(spool)
            assert taken is not None, "it is written before the first request"
            assert first.epoch == taken.epoch, "one kill, one successor"
            times[taken.epoch] = (taken.since - killed_at, first.time_seconds - killed_at)
            fleet.start()
        fleet.end()
        repeated, seen = repeats(server)
        appended = fleet.all_acknowledged()
        lost = len(set(appended) - seen)
        server.assert_clean()
        return [Failover(*both, repeated[epoch]) for epoch, both in times.items()], len(appended), lost


def next_leaders_first(server: StrictCloudWatch, epoch: int) -> StoredRequest:
    """Wait for a request of a later epoch, and return the first one."""
    if not server.wait_for(lambda s: (s.requests[-1].epoch or 0) > epoch, HANG_SECONDS):
        raise SystemExit(f"nobody took over from the leader of epoch {epoch} within {HANG_SECONDS:.0f} s")
    return next(each for each in server.requests if (each.epoch or 0) > epoch)


def repeats(server: StrictCloudWatch) -> tuple[Counter[int], set[str]]:
    """Return how many events each epoch sent that had arrived before, and the ids of all events."""
    seen: set[str] = set()
    repeated: Counter[int] = Counter()
    for event in server.events():
        identity = event.message.partition(" ")[0]
        if identity in seen:
            repeated[event.epoch or 0] += 1
        seen.add(identity)
    return repeated, seen


def row(name: str, seconds: list[float]) -> list[str]:
    """Return a table's row for a distribution, in ms."""
    ordered = sorted(seconds)
    p95, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * each))] for each in (0.95, 0.99))
    return [name, *(f"{each * 1000:.0f}" for each in (ordered[0], statistics.median(ordered), p95, p99, ordered[-1]))]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--kills", type=int, default=100, help="with batch_timeout_seconds 0.2")
    parser.add_argument("--default-kills", type=int, default=30, help="with the default")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.default_kills = 3, 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    report = Report("failover", options, "boto3")
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    series: list[tuple[str, int, dict[str, Any]]] = [
        ("batch_timeout_seconds 0.2", options.kills, {"batch_timeout_seconds": 0.2}),
        ("default", options.default_kills, {}),
    ]
    table: list[list[str]] = []
    losses: list[list[object]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for seed, (name, kills, settings) in enumerate(series):
        if not kills:
            continue
        found, appended, lost = kill_leaders(kills, settings, seed)
        delivered = [each.delivery_seconds for each in found]
        taken = [each.takeover_seconds for each in found]
        table += [row(f"to the takeover, {name}", taken), row(f"to the next delivery, {name}", delivered)]
        repeated = [each.repeated for each in found]
        affected = [each for each in repeated if each]
        losses.append(
            [name, kills, f"{appended:,}", lost, len(affected), f"{statistics.mean(repeated):.1f}", max(repeated)]
        )
        for label, times in ((f"next delivery, {name}", delivered), (f"takeover, {name}", taken)):
            lines[label] = [(each, 100 * index / kills) for index, each in enumerate(sorted(times), 1)]
    report.say(f"{WORKERS} processes, {RECORDS_PER_SECOND} records a second each; ms from SIGKILL of the leader:")
    report.table(["", "least", "median", "p95", "p99", "most"], table)
    report.say("Records; repeated are those that arrived twice:")
    names = ["", "kills", "appended", "lost", "kills with repeats", "repeated a kill", "the most"]
    report.table(names, losses)
    report.lines("From SIGKILL of the leader to the next delivery", "seconds", "share of kills, %", lines)
    report.save()


if __name__ == "__main__":
    main()
