"""How a host starts whose spool is full of what the last run left: when do live records flow, at what cost?

    python -m benchmarks.recovery [--pending MIB ...] [--rounds N]

A process fills a spool with records of 300 bytes that nobody delivers, and ends. Then a fresh process opens a
`Writer` and appends a live record at once. Who delivers is the flusher that this append starts; or `cwsink flush`,
started at the same moment. Counted from the moment the process begins to open its writer (cwsink is imported by then):

* open: until the writer is open;
* first append: what that takes on top, until the live record is safe; it starts the flusher, too, which is on its way
  by then;
* first delivery: until the first request of all arrives at the strict server;
* live delivered: until the request with the live record arrives; from 8 MiB on it is sent beside the backlog;
* all delivered: until the last request arrives;
* memory: the peak (VmHWM) of the process that leads (not of its guard), and how much of it is more than with nothing
  pending.

Linux only (memory).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.report import Report, add_options
from benchmarks.staging.flushers import kill_flushers
from cwsink.limits import EVENT_OVERHEAD_BYTES
from cwsink.spool import leader_state
from cwsink.spool.directory import open_existing
from cwsink.testing import SpawnedCloudWatch, spawn

MESSAGE: Final = "GET /api/orders/123456 200 12ms " + "x" * 268
LIVE_MESSAGE: Final = "live"  # of another length, by which its request is known
RECORD_BYTES: Final = 346  # of a frame with MESSAGE, near enough to say how many make a MiB
SPOOL_MAX_BYTES: Final = 1 << 30  # nothing is evicted
MIB: Final = 1 << 20
HTTP_OK: Final = 200
RATE_MIB: Final = 16  # a rate takes a good number of requests of 1 MiB
HANG_SECONDS: Final = 120.0
POLL_SECONDS: Final = 0.05

APPLICATION: Final = """
import json, sys, time
from cwsink import Writer

settings, message = json.loads(sys.argv[1])
began = time.time()
writer = Writer.open(settings)
opened = time.time()
assert writer.append(message)
print(json.dumps([began, opened, time.time()]), flush=True)
sys.stdin.read()
"""

FILL: Final = """
import json, sys
from cwsink import Writer

settings, message, count = json.loads(sys.argv[1])
writer = Writer.open(settings)
for _ in range(count):
    assert writer.append(message)
print(writer.directory.path)
"""

LEADERS: Final = {"its own flusher": "process", "cwsink flush": "external"}


class Start(NamedTuple):
    """What one start took, in seconds; and what the leading process held at most."""

    open_seconds: float
    append_seconds: float
    first_seconds: float
    live_seconds: float
    last_seconds: float
    peak_bytes: int

    def rate(self, mebibytes: int) -> float:
        """Return MB/s of the backlog, from the first request to the last."""
        return mebibytes * MIB / 1e6 / (self.last_seconds - self.first_seconds)


def fill(settings: dict[str, Any], mebibytes: int) -> str:
    """Have a process spool that much, and end; return the spool's path."""
    given = json.dumps([{**settings, "flusher": "external"}, MESSAGE, mebibytes * MIB // RECORD_BYTES])
    filled = subprocess.run([sys.executable, "-c", FILL, given], stdout=subprocess.PIPE, text=True, check=True)
    return filled.stdout.strip()


@contextlib.contextmanager
def running(*command: str) -> Iterator[subprocess.Popen[str]]:
    """A process of ours, which ends with the block."""
    process = subprocess.Popen(
        [sys.executable, *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def peak_of(pid: int) -> int:
    """Return the most memory a process has had resident, in bytes. (ru_maxrss would begin with its parent's.)"""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None, "every process has it"
    return int(found[1]) * 1024


def measure(server: SpawnedCloudWatch, mebibytes: int, flusher: str) -> Start:
    """Fill a spool, start, and wait until all is delivered."""
    server.reset()
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
    settings = {
        "log_group_name": "/benchmark/recovery",
        "log_stream_name": "host",
        "region": "us-east-1",
        "endpoint_url": server.endpoint_url,
        "spool_directory": root,
        "spool_max_bytes": SPOOL_MAX_BYTES,
        "flusher": flusher,
    }
    try:
        path = fill(settings, mebibytes)
        os.sync()  # else the kernel writes back what we have just written while we measure
        with contextlib.ExitStack() as stack:
            stack.callback(kill_flushers, root)
            application = stack.enter_context(running("-c", APPLICATION, json.dumps([settings, LIVE_MESSAGE])))
            if flusher == "external":
                stack.enter_context(running("-m", "cwsink", "flush", path))
            assert application.stdout is not None, "asked for a pipe"
            began, opened, appended = json.loads(application.stdout.readline())
            wait_for_events(server, mebibytes * MIB // RECORD_BYTES + 1)
            leader = leader_state.read(open_existing(path))
            assert leader is not None, "it has delivered"
            peak = peak_of(leader.pid)
        first, live, last = arrivals(server)
        return Start(opened - began, appended - opened, first - began, live - began, last - began, peak)
    finally:
        shutil.rmtree(root)


def wait_for_events(server: SpawnedCloudWatch, count: int) -> None:
    """Wait until so many have arrived."""
    until = time.monotonic() + HANG_SECONDS
    while (seen := server.summary())["events"] < count:
        if time.monotonic() > until:
            raise SystemExit(f"the server saw {seen}, and not {count} events")
        time.sleep(POLL_SECONDS)


def arrivals(server: SpawnedCloudWatch) -> tuple[float, float, float]:
    """Return when the first request arrived, the one with the live record, and the last."""
    accepted = [each for each in server.requests() if each.status == HTTP_OK]
    event_bytes = len(MESSAGE) + EVENT_OVERHEAD_BYTES
    live = next(each for each in accepted if each.counted_bytes != each.events * event_bytes)
    return accepted[0].time_seconds, live.time_seconds, accepted[-1].time_seconds


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--pending", type=int, nargs="+", default=[1, 64, 256], help="MiB, for each row")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if options.quick:
        options.pending, options.rounds = [1, 4], 1
    if not Path("/proc/self/status").exists():
        raise SystemExit("this needs /proc/PID/status: Linux")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    report = Report("recovery", options, "botocore")
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    found: dict[tuple[str, int], list[Start]] = defaultdict(list)
    chance = random.Random(1)
    plan = list(product(LEADERS, [0, *options.pending]))
    with spawn(keep_events=False) as server:
        for _ in range(options.rounds):
            for leader, mebibytes in chance.sample(plan, len(plan)):
                found[leader, mebibytes].append(measure(server, mebibytes, LEADERS[leader]))
    say(report, found)
    report.save()


def say(report: Report, found: Mapping[tuple[str, int], Sequence[Start]]) -> None:
    """Print and plot what was found."""
    table = []
    lines: dict[str, list[tuple[float, float]]] = {}
    for (leader, mebibytes), starts in sorted(found.items()):
        open_ms = [each.open_seconds * 1000 for each in starts]
        append_ms = [each.append_seconds * 1000 for each in starts]
        first, live = [each.first_seconds for each in starts], [each.live_seconds for each in starts]
        last = [each.last_seconds for each in starts]
        base = statistics.median(each.peak_bytes for each in found[leader, 0])
        peak = statistics.median(each.peak_bytes for each in starts)
        rate = statistics.median(each.rate(mebibytes) for each in starts) if mebibytes >= RATE_MIB else None
        table.append(
            [
                leader,
                mebibytes,
                f"{statistics.median(open_ms):.1f}",
                f"{statistics.median(append_ms):.1f}",
                with_spread(first),
                with_spread(live),
                with_spread(last),
                f"{rate:.0f}" if rate else "-",
                f"{peak / MIB:.0f}",
                f"{(peak - base) / MIB:.1f}" if mebibytes else "",
            ]
        )
        if mebibytes:
            for name, times in (("live record delivered", live), ("all delivered", last)):
                lines.setdefault(f"{leader}: {name}", []).append((mebibytes, statistics.median(times)))
    report.say(
        "Medians, in brackets the least and the most; seconds unless another unit is named. "
        "Peak: of the process that leads, and how much more than with nothing pending."
    )
    columns = ["leader", "MiB pending", "open, ms", "first append, ms", "first delivery", "live delivered"]
    columns += ["all delivered", "replay MB/s", "peak MiB", "more MiB"]
    report.table(columns, table)
    report.lines(
        "How long after a start is it delivered?",
        "MiB pending at the start",
        "seconds",
        lines,
        log_x=True,
        log_y=True,
    )


def with_spread(seconds: Sequence[float]) -> str:
    """Return the median, the least and the most as text."""
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f}-{max(seconds):.2f})"


if __name__ == "__main__":
    main()
