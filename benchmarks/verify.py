"""How fast `cwsink verify` compares a history with CloudWatch, and how much memory that takes.

    python -m benchmarks.verify [--events N ...] [--rounds N]

A leader delivers N records of 300 bytes to the strict server, and keeps them. Then a fresh process verifies them,
without the pause between two calls: against AWS, it makes 4 calls a second by default, and a page holds 1 MB, so there
some 13,000 events of this size a second are the most. Counted are the seconds of that process from its start to its
end, its CPU time, the calls, and the peak of its memory (VmHWM), which should not grow with N.

Linux only (memory).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from typing import Final, NamedTuple

from benchmarks.report import Report, add_options
from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.flusher.flusher import Flusher, Orders
from cwsink.frontends.writer import Writer
from cwsink.spool.directory import SpoolDirectory
from cwsink.testing import spawn

MESSAGE: Final = "GET /api/orders/123456 200 12ms " + "x" * 258
# More than a record takes in the spool.
RECORD_BYTES: Final = 500
HANG_SECONDS: Final = 3_600.0
VERIFY: Final = """
import json, sys, time
from unittest.mock import patch
from cwsink.flusher.log_reader import LogReader
from cwsink.flusher.verification import Verification
from cwsink.spool.directory import open_existing

with patch.object(LogReader, "_call", autospec=True, side_effect=LogReader._call) as calls:
    work = Verification(open_existing(sys.argv[1]), lambda _: None, calls_per_second=1e9)
    account = work.run(patience_seconds=60.0)
peak = next(line for line in open("/proc/self/status") if line.startswith("VmHWM:"))
print(json.dumps([account.found, account.missing, calls.call_count, time.process_time(), int(peak.split()[1]) << 10]))
"""


class Result(NamedTuple):
    """What one verification took."""

    seconds: float
    cpu_seconds: float
    calls: int
    peak_bytes: int


def main() -> None:
    """Measure, print a table, and save it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--events", type=int, nargs="+", default=[100_000, 1_000_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=3)
    add_options(parser)
    options = parser.parse_args()
    events, rounds = ([20_000], 1) if options.quick else (options.events, options.rounds)
    report = Report("verify", options)
    found: defaultdict[int, list[Result]] = defaultdict(list)
    for count in events:
        with spawn() as server, tempfile.TemporaryDirectory() as root:
            os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench")
            directory = deliver(server.endpoint_url, root, count)
            found[count] = [measure(directory, count) for _ in range(rounds)]
    report.say("Medians of a process from its start to its end, without the pause between two calls.")
    table = []
    for count, results in found.items():
        seconds = statistics.median(each.seconds for each in results)
        cpu = statistics.median(each.cpu_seconds for each in results)
        peak = max(each.peak_bytes for each in results)
        row = [f"{count:,}", f"{seconds:.1f}", f"{count / seconds:,.0f}", f"{cpu / count * 1e6:.1f}"]
        table.append([*row, f"{results[0].calls:,}", f"{peak / (1 << 20):.0f}"])
    report.table(["events", "seconds", "events/s", "CPU us/event", "calls", "peak MiB"], table)
    report.save()


def deliver(endpoint_url: str, root: str, count: int) -> SpoolDirectory:
    """Log and deliver so many records, which stay in the history."""
    config = SinkConfig(
        log_group_name="/bench/verify",
        region="us-east-1",
        endpoint_url=endpoint_url,
        spool_directory=root,
        spool_max_bytes=max(1 << 30, count * RECORD_BYTES),
        flusher="external",
        keep_delivered="1h",
        keep_delivered_bytes=max(1 << 30, count * RECORD_BYTES),
    )
    writer = Writer(config)
    for number in range(count):
        writer.append(f"{number:09d} {MESSAGE}")
    writer.close()
    lease, orders = Lease(writer.directory), Orders()
    if not lease.try_acquire():
        raise SystemExit("another process leads")
    orders.drain(HANG_SECONDS)
    Flusher(writer.directory, config, lease, orders, kind="once").lead()
    lease.release()
    return writer.directory


def measure(directory: SpoolDirectory, count: int) -> Result:
    """Verify in a process of its own."""
    began = time.monotonic()
    command = [sys.executable, "-c", VERIFY, directory.path]
    said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=HANG_SECONDS).stdout
    seconds = time.monotonic() - began
    found, missing, calls, cpu_seconds, peak_bytes = json.loads(said)
    if (found, missing) != (count, 0):
        raise SystemExit(f"of {count} events {found} were found, {missing} are missing")
    return Result(seconds, cpu_seconds, calls, peak_bytes)


if __name__ == "__main__":
    main()
