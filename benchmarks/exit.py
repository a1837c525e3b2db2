"""What cwsink adds to the exit of a process: who leaves, who is left, what CloudWatch does.

    python -m benchmarks.exit [--rounds N]

Each exit is a process of its own that logs 1,000 records, waits until its part is played, and ends. Measured is the
time between the beginning and the end of cwsink's exit handlers. The parts:

* delivered: all that it has logged is;
* pending: a flusher leads, and waits for more records before it sends these;
* at once: it ends right after its records. It is the first one to log here, so a flusher is on its way;
* known: the flusher has found out that it cannot deliver, and has said so in the spool;
* again: as "at once", and a program found out a minute ago that it could not deliver.

CloudWatch is up; refuses connections; denies; is silent (connections are accepted, requests read, nothing answered); or
there are no credentials, or no region. `drain_timeout_seconds` is 1 here (the default is 5), so that the rows of a
silent CloudWatch show the limit. Linux only.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

from benchmarks.report import Report, add_options
from benchmarks.staging.flushers import kill_flushers
from cwsink.testing import StrictCloudWatch

RECORDS: Final = 1_000
HANG_SECONDS: Final = 60.0
CREDENTIALS: Final = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}

PROCESS: Final = """
import atexit, json, sys, time
from cwsink import Writer
from cwsink.frontends import presence
from cwsink.spool import leader_state, lease

settings, part, records = json.loads(sys.argv[1])
writer = Writer.open(settings)
for number in range(records):
    writer.append(f"record {number}")
if part == "delivered":
    assert writer.flush(60)
while part == "pending" and not (lease.is_taken(writer.directory) and leader_state.read(writer.directory)):
    time.sleep(0.01)
while part == "known" and not ((led := leader_state.read(writer.directory)) and led.obstacle):
    time.sleep(0.01)
if part not in ("at once", "again"):
    print("ready", flush=True)
    sys.stdin.read()
atexit.unregister(presence.this.leave)
began = time.perf_counter()
presence.this.leave()
print((time.perf_counter() - began) * 1000, flush=True)
"""


class Row(NamedTuple):
    """An exit. `is_last`: no other process is left; `goal_ms`: None where a limit is shown."""

    part: str
    cloudwatch: str
    is_last: bool
    goal_ms: float | None

    @property
    def title(self) -> str:
        """Say it."""
        return f"{'the last one' if self.is_last else 'others are left'}: {self.part}; CloudWatch {self.cloudwatch}"


ROWS: Final = (
    Row("delivered", "up", False, 1),
    Row("pending", "up", False, 1),
    Row("pending", "silent", False, 1),
    Row("known", "refuses", False, 1),
    Row("delivered", "up", True, 700),
    Row("pending", "up", True, 700),
    Row("at once", "up", True, 700),
    Row("at once", "refuses", True, 200),
    Row("at once", "without credentials", True, 200),
    Row("at once", "without region", True, 200),
    Row("at once", "denies", True, 700),
    Row("again", "denies", True, 200),
    Row("known", "refuses", True, 10),
    Row("known", "without credentials", True, 10),
    Row("pending", "silent", True, None),
)


def leave(row: Row, folder: Path) -> float:
    """Return the ms that one exit took."""
    with ExitStack() as stack:
        spools = tempfile.mkdtemp(dir=folder)
        stack.callback(kill_flushers, spools)
        settings: dict[str, Any] = {
            "log_group_name": "/benchmark",
            "endpoint_url": endpoint_of(row.cloudwatch, stack),
            "region": None if row.cloudwatch == "without region" else "us-east-1",
            "spool_directory": spools,
            "batch_timeout_seconds": 60.0 if row.part == "pending" else 0.1,
            "batch_size": 10 * RECORDS,
            "drain_timeout_seconds": 1.0,
        }
        env = {
            name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "FAPILOG_", "CWSINK_"))
        }
        env.update(AWS_EC2_METADATA_DISABLED="true", HOME=str(folder))
        if row.cloudwatch != "without credentials":
            env.update(CREDENTIALS)
        if row.part == "again":
            start(settings, "known", 1, env, stack).communicate(timeout=HANG_SECONDS)
            kill_flushers(spools)
            for path in Path(spools).glob("*/leader.json"):
                os.utime(path, (time.time() - 60, time.time() - 60))
        process = start(settings, row.part, RECORDS, env, stack)
        if not row.is_last:
            start(settings, "attached", 1, env, stack)
        out, _ = process.communicate(timeout=HANG_SECONDS)
        return float(out)


def endpoint_of(cloudwatch: str, stack: ExitStack) -> str:
    """Return the URL of one in this state."""
    if cloudwatch == "refuses":
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))  # nobody else gets the port, and nobody listens
        return f"http://127.0.0.1:{listener.getsockname()[1]}"
    server = stack.enter_context(StrictCloudWatch())
    if cloudwatch == "silent":
        server.faults.hang(HANG_SECONDS, 1_000)
    if cloudwatch == "denies":
        server.faults.deny("logs:PutLogEvents")
    return server.endpoint_url


def start(
    settings: dict[str, Any], part: str, records: int, env: dict[str, str], stack: ExitStack
) -> subprocess.Popen[str]:
    """Start a process, and return when it is ready to end. It is gone with the stack."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROCESS, json.dumps([settings, part, records])],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=env,
        text=True,
    )
    stack.callback(end, process)
    assert process.stdout is not None, "asked for a pipe"
    if part not in ("at once", "again") and process.stdout.readline() != "ready\n":
        raise SystemExit(f"a process that was to be {part} ended with {process.wait()}")
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Kill what is left."""
    process.kill()
    process.communicate()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--rounds", type=int, default=20)
    options = parser.parse_args()
    if options.quick:
        options.rounds = 1
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    report = Report("exit", options, "botocore")
    folder = Path(tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp"))
    found: dict[Row, list[float]] = {row: [] for row in ROWS}
    chance = random.Random(1)
    try:
        for _ in range(options.rounds):
            for row in chance.sample(ROWS, len(ROWS)):
                found[row].append(leave(row, folder))
    finally:
        shutil.rmtree(folder)
    report.say(f"Each process has logged {RECORDS:,} records. The goal is for the median.")
    report.table(
        ["added to the exit, ms", "least", "median", "most", "goal"],
        [
            [row.title, *(f"{ms:.1f}" for ms in (min(times), statistics.median(times), max(times))), row.goal_ms or "-"]
            for row, times in found.items()
        ],
    )
    report.bars(
        "How much later does a process end?",
        "ms (median, logarithmic)",
        {row.title: {"exit": statistics.median(times)} for row, times in found.items()},
        log=True,
    )
    report.save()


if __name__ == "__main__":
    main()
