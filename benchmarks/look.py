"""How long it takes to look at a spool: `cwsink.stats()` for a health page, `cwsink check` for a probe.

    python -m benchmarks.look [--rounds N]

One spool, delivered, whose flusher is there; then the same with 1,000 records waiting. `stats()` is called in one
process, again at once, and with 10 ms between two calls, after which the processor's caches are cold. `cwsink check` is
a process from its start to its end; a Python that does nothing is its floor.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import cwsink
from benchmarks.report import Report, add_options
from cwsink.testing import spawn
from cwsink.testing.flushers import end_flushers

HANG_SECONDS: Final = 30.0
PAUSE_SECONDS: Final = 0.01
DELIVERED: Final = 5_000
WAITING: Final = 1_000


def main() -> None:
    """Measure, print a table, and save it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    add_options(parser)
    options = parser.parse_args()
    rounds = 20 if options.quick else options.rounds
    report = Report("look", options)
    rows = []
    with spawn() as server, tempfile.TemporaryDirectory() as root:
        os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench")
        led = cwsink.Writer.open(
            log_group_name="/bench/led", region="us-east-1", endpoint_url=server.endpoint_url, spool_directory=root
        )
        for number in range(DELIVERED):
            led.append(f"record {number}")
        if not led.flush(HANG_SECONDS):
            raise SystemExit("not delivered in time")
        rows.append(["a Python that does nothing", *timed(rounds // 10, lambda: run("-c", "pass"))])
        rows.append(["`cwsink check`", *timed(rounds // 10, lambda: run("-m", "cwsink", "check", root))])
        rows.append(["`cwsink.stats()`, one spool, delivered", *timed(rounds, lambda: look(root, 1), pause_seconds=0)])
        rows.append(["the same, after a pause", *timed(rounds, lambda: look(root, 1))])
        end_flushers(Path(root))
    with tempfile.TemporaryDirectory() as root:
        waiting = cwsink.Writer.open(
            log_group_name="/bench", region="us-east-1", spool_directory=root, flusher="external"
        )
        for number in range(WAITING):
            waiting.append(f"record {number}")
        rows.append([f"the same, {WAITING:,} records waiting", *timed(rounds, lambda: look(root, 1))])
    report.table(["ms", "least", "median", "p99"], rows)
    report.save()


def run(*words: str) -> None:
    """Run a Python to its end. No timeout: with one, `subprocess` looks for the end only every 50 ms."""
    subprocess.run([sys.executable, *words], check=True, stdout=subprocess.DEVNULL)


def look(root: str, spools: int) -> None:
    """Look at the spools of a root."""
    if len(cwsink.stats(root).spools) != spools:
        raise SystemExit("a spool cannot be read")


def timed(rounds: int, work: Callable[[], None], *, pause_seconds: float = PAUSE_SECONDS) -> list[str]:
    """Return the least, the median and the 99th percentile of so many calls, in ms."""
    found = []
    for _ in range(rounds):
        time.sleep(pause_seconds)
        began = time.perf_counter()
        work()
        found.append((time.perf_counter() - began) * 1000)
    found.sort()
    return [f"{each:.2f}" for each in (found[0], statistics.median(found), found[int(0.99 * len(found))])]


if __name__ == "__main__":
    main()
