"""What cwsink adds to the exit of a process: who leaves, who is left, what CloudWatch does.

    python -m benchmarks.exit [--rounds N]

Each exit is a process of its own that logs, waits until its part is played (it leads, another
leads, all is delivered), and ends. Measured is the time between the beginning and the end of
cwsink's exit handlers. `drain_timeout_seconds` is 1 here (the default is 5), so that the rows of a
silent CloudWatch show the limit. Silent: connections are accepted, requests read, nothing answered.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Final

from benchmarks.report import Report, add_options
from cwsink.testing import StrictCloudWatch

DRAIN_SECONDS: Final = 1.0
RECORDS: Final = 1_000
HANG_SECONDS: Final = 60.0

PROCESS = """
import atexit, json, sys, time
from cwsink import Writer
from cwsink.frontends import candidate

settings, part, records = json.loads(sys.argv[1])
writer = Writer.open(settings)
for number in range(records):
    writer.append(f"record {number}")
if part == "delivered":
    assert writer.flush(60)
(mine,) = candidate._candidates.values()
while part == "leader" and not mine.is_leading:
    time.sleep(0.01)
print("ready", flush=True)
sys.stdin.read()
atexit.unregister(candidate._leave_all)
began = time.perf_counter()
candidate._leave_all()
print((time.perf_counter() - began) * 1000, flush=True)
"""

# The row's title: the part the process plays, whether others are left, and whether CloudWatch answers.
ROWS: Final = {
    "a follower, others are left": ("follower", True, True),
    "a follower, others are left; CloudWatch silent": ("follower", True, False),
    "the leader, others are left": ("leader", True, True),
    "the leader, others are left; CloudWatch silent": ("leader", True, False),
    "the last one, all is delivered": ("delivered", False, True),
    "the last one, all is delivered; CloudWatch silent": ("delivered, then silent", False, True),
    f"the last one, {RECORDS:,} are pending": ("leader", False, True),
    f"the last one, {RECORDS:,} are pending; CloudWatch silent": ("leader", False, False),
}


def leave(part: str, others: bool, answers: bool, root: str) -> float:
    """Return the ms that one exit took."""
    with StrictCloudWatch() as server:
        settings: dict[str, Any] = {
            "endpoint_url": server.endpoint_url,
            "region": "us-east-1",
            "spool_directory": tempfile.mkdtemp(dir=root),
            "drain_timeout_seconds": DRAIN_SECONDS,
            "batch_timeout_seconds": 0.1 if part.startswith(("delivered", "follower")) else 60.0,
            "batch_size": 10 * RECORDS,
        }
        if not answers:
            server.faults.hang(HANG_SECONDS, 1_000)
            settings["batch_timeout_seconds"] = 0.1
        other = start(settings, "leader", 1) if part == "follower" else None
        process = start(settings, part.partition(",")[0], RECORDS)
        if others and other is None:
            other = start(settings, "follower", 1)
        if part.endswith("silent"):
            server.faults.hang(HANG_SECONDS, 1_000)
        if not answers:
            server.wait_for(lambda s: s.calls["PutLogEvents"] > 0)
        out, _ = process.communicate(timeout=HANG_SECONDS)
        if other is not None:
            other.kill()
            other.communicate()
        return float(out)


def start(settings: dict[str, Any], part: str, records: int) -> subprocess.Popen[str]:
    """Start a process, and return when it is ready to end."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps([settings, part, records])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None, "asked for a pipe"
    if process.stdout.readline() != "ready\n":
        raise SystemExit(f"a process that was to be {part} ended with {process.wait()}")
    return process


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=10)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    report = Report("exit", options, "boto3")
    os.environ.update(AWS_ACCESS_KEY_ID="benchmark", AWS_SECRET_ACCESS_KEY="benchmark")
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
    found: dict[str, list[float]] = {row: [] for row in ROWS}
    try:
        for _ in range(options.rounds):
            for row, (part, others, answers) in ROWS.items():
                found[row].append(leave(part, others, answers, root))
    finally:
        shutil.rmtree(root)
    report.table(
        ["added to the exit, ms", "median", "most"],
        [[row, f"{statistics.median(times):.1f}", f"{max(times):.1f}"] for row, times in found.items()],
    )
    report.bars(
        "What cwsink adds to the exit of a process",
        "ms, median",
        {row: {"exit": statistics.median(times)} for row, times in found.items()},
        log=True,
    )
    report.save()


if __name__ == "__main__":
    main()
