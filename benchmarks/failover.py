"""How long nothing is delivered when the flusher is killed, and what arrives twice.

    python -m benchmarks.failover [--kills N] [--default-kills N] [--both-kills N]

Four processes append to one spool all the time. The flusher that they have started gets SIGKILL at a random
moment (seeded), 1 to 1.5 s after its first request: who dies sooner is started again after a pause. Measured from the
signal:

* to the takeover: a new flusher has the lease, and has written its epoch;
* to the next delivery: the first request of that epoch arrives at the strict server. It needs a client, so the client
  is there by then.

Once the flusher alone is killed, and its guard forks another one; with `batch_timeout_seconds` 0.2, and with the
default of 1. And once guard and flusher are killed together: then the next look of an append starts both anew (each
process looks once a second), and measured is also

* to the start: the new guard is a process.

CloudWatch stores at once and answers after 20 ms, as one in the same region does: a flusher killed in between leaves
a batch that is sent twice. Lost is what `append` returned True for (each process counts it in shared memory) and what
never arrived. Linux only.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.report import Report, add_options
from benchmarks.staging.flushers import await_flushers, flushers_of, kill_flushers
from cwsink.spool import leader_state
from cwsink.spool.directory import find_spools, open_existing
from cwsink.testing import StoredRequest, StrictCloudWatch

WORKERS: Final = 4
RECORDS_PER_SECOND: Final = 100  # of each worker
ANSWER_SECONDS: Final = 0.02
STEADY_SECONDS: Final = (1.0, 1.5)  # of undisturbed delivery before a kill; see cwsink.flusher.guard
DRAIN_SECONDS: Final = 30.0
HANG_SECONDS: Final = 180.0
GOALS: Final = {"median": 0.2, "p99": 0.5, "both": 1.0}  # seconds: to a delivery; of both, to the start
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
    """What one kill did. `start_seconds` is 0 if the guard was not killed."""

    start_seconds: float
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
        while self._running:
            _, process = self._running.popitem()
            process.kill()
            process.wait()


def wait_for(condition: Callable[[], bool], what: str) -> None:
    """Wait until it holds."""
    until = time.monotonic() + HANG_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise SystemExit(f"{what}: waited in vain")
        time.sleep(POLL_SECONDS)


def kill_flusher(
    kills: int, settings: dict[str, Any], seed: int, *, guard_too: bool
) -> tuple[list[Failover], int, int]:
    """Kill so many. Returns what each did, how many records were appended, and how many of them lost."""
    folder = Path(tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp"))
    root = str(folder / "spools")
    chance = random.Random(seed)
    with StrictCloudWatch() as server, contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder)
        server.faults.latency_seconds = ANSWER_SECONDS
        settings = {
            "log_group_name": "/benchmark/failover",
            "region": "us-east-1",
            "endpoint_url": server.endpoint_url,
            "spool_directory": root,
            "drain_timeout_seconds": DRAIN_SECONDS,
            **settings,
        }
        stack.callback(kill_flushers, root)
        fleet = Fleet(settings, folder, WORKERS)
        stack.callback(fleet.stop)
        for _ in range(WORKERS):
            fleet.start()
            wait_for(lambda: fleet.newest_logs, "a worker's first record")
        server.wait_for(lambda s: bool(s.requests), HANG_SECONDS)
        spool = open_existing(find_spools(root)[0])
        times: dict[int, tuple[float, float, float]] = {}
        for _ in range(kills):
            time.sleep(chance.uniform(*STEADY_SECONDS))
            last = server.requests[-1]
            killed_at, killed_at_boot_time = time.time(), time.clock_gettime(time.CLOCK_BOOTTIME)
            kill(int(last.sender), guard_too=guard_too)
            first = next_leaders_first(server, last.epoch or 0)
            taken = leader_state.read(spool)
            assert taken is not None, "it is written before the first request"
            assert first.epoch == taken.epoch, "one kill, one successor"
            started = started_at(parent_of(taken.pid)) - killed_at_boot_time if guard_too else 0.0
            times[taken.epoch] = (started, taken.since - killed_at, first.time_seconds - killed_at)
        fleet.end()
        if not await_flushers(root):
            raise SystemExit(f"a flusher has not ended: {flushers_of(root)}")
        repeated, seen = repeats(server)
        appended = fleet.all_acknowledged()
        lost = len(set(appended) - seen)
        server.assert_clean()
        return [Failover(*each, repeated[epoch]) for epoch, each in times.items()], len(appended), lost


def kill(flusher: int, *, guard_too: bool) -> None:
    """Kill a flusher; its guard first, which would fork another one."""
    if guard_too:
        os.kill(parent_of(flusher), signal.SIGKILL)
    os.kill(flusher, signal.SIGKILL)


def stat_of(pid: int) -> list[str]:
    """Return the fields of /proc/PID/stat from the third on: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def parent_of(pid: int) -> int:
    """Return a process's parent."""
    return int(stat_of(pid)[1])


def started_at(pid: int) -> float:
    """Return when a process was started, in seconds of the boot clock, to 10 ms."""
    return int(stat_of(pid)[19]) / os.sysconf("SC_CLK_TCK")


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


def percentiles(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Return median, p95 and p99."""
    ordered = sorted(seconds)
    p95, p99 = (ordered[min(len(ordered) - 1, int(len(ordered) * each))] for each in (0.95, 0.99))
    return statistics.median(ordered), p95, p99


def row(name: str, seconds: Sequence[float]) -> list[str]:
    """Return a table's row for a distribution, in ms."""
    return [name, *(f"{each * 1000:.0f}" for each in (min(seconds), *percentiles(seconds), max(seconds)))]


class Series(NamedTuple):
    """A row of the tables."""

    name: str
    kills: int
    guard_too: bool
    settings: dict[str, Any]


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--kills", type=int, default=100, help="of the flusher, with batch_timeout_seconds 0.2")
    parser.add_argument("--default-kills", type=int, default=30, help="of the flusher, with the default")
    parser.add_argument("--both-kills", type=int, default=50, help="of guard and flusher")
    options = parser.parse_args()
    if options.quick:
        options.kills, options.default_kills, options.both_kills = 3, 1, 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    report = Report("failover", options, "botocore")
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    short = {"batch_timeout_seconds": 0.2}
    every = [
        Series("the flusher, batch_timeout_seconds 0.2", options.kills, False, short),
        Series("the flusher, default", options.default_kills, False, {}),
        Series("guard and flusher", options.both_kills, True, short),
    ]
    table: list[list[str]] = []
    losses: list[list[object]] = []
    lines: dict[str, list[tuple[float, float]]] = {}
    verdicts = []
    for seed, series in enumerate(every):
        if not series.kills:
            continue
        found, appended, lost = kill_flusher(series.kills, series.settings, seed, guard_too=series.guard_too)
        delivered = [each.delivery_seconds for each in found]
        taken = [each.takeover_seconds for each in found]
        if series.guard_too:
            table.append(row(f"{series.name}: to the start", [each.start_seconds for each in found]))
        table += [row(f"{series.name}: to the takeover", taken), row(f"{series.name}: to the next delivery", delivered)]
        repeated = [each.repeated for each in found]
        affected = [each for each in repeated if each]
        losses.append(
            [
                *(series.name, series.kills, f"{appended:,}", lost),
                *(len(affected), f"{statistics.mean(repeated):.1f}", max(repeated)),
            ]
        )
        for label, times in ((f"next delivery, {series.name}", delivered), (f"takeover, {series.name}", taken)):
            lines[label] = [(each, 100 * index / series.kills) for index, each in enumerate(sorted(times), 1)]
        verdicts.append(verdict(series, found))
    report.say(f"{WORKERS} processes, {RECORDS_PER_SECOND} records a second each; ms from SIGKILL:")
    report.table(["", "least", "median", "p95", "p99", "most"], table)
    report.say(*verdicts)
    report.say("Records; repeated are those that arrived twice:")
    names = ["", "kills", "appended", "lost", "kills with repeats", "repeated a kill", "the most"]
    report.table(names, losses)
    report.lines("How soon after SIGKILL is it delivered again?", "seconds", "% of kills", lines)
    report.save()


def verdict(series: Series, found: Sequence[Failover]) -> str:
    """Say how the times stand to the goals."""
    median, _, p99 = percentiles([each.delivery_seconds for each in found])
    if series.guard_too:
        latest = max(each.start_seconds for each in found)
        goal = f"both are started anew {latest:.2f} s after the kill at the latest; the goal: {GOALS['both']:g} s"
    else:
        goal = f"the goal: median {GOALS['median']:g} s, p99 {GOALS['p99']:g} s at most"
    return f"{series.name}: median {median:.2f} s, p99 {p99:.2f} s to the next delivery; {goal}."


if __name__ == "__main__":
    main()
