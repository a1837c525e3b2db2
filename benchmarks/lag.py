"""How long a record takes from the logging call to the spool: what a SIGKILL in between would take.

    python -m benchmarks.lag [--records N] [--rounds N]

The record is in the spool when its segment file has grown; that is looked at until it has, by
the thread that logs (with a rest of 50 us between two looks, so that fapilog's own thread gets
the interpreter). One record at a time, with a pause of 1 to 20 ms after each (seeded): the lag
of an application that is not flat out. Each row is a process of its own, rounds are interleaved.
Nothing is sent (`flusher=external`).
"""

from __future__ import annotations

import argparse
import glob
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Final

import cwsink
from benchmarks.report import Report, add_options

Log = Callable[[str], object]

# What a process is asked to log with, and the environment it gets beside the defaults.
SUBJECTS: Final[dict[str, tuple[str, dict[str, str]]]] = {
    "fapilog": ("fapilog", {}),
    'fapilog, pipeline="queue"': ("fapilog", {"FAPILOG_CLOUDWATCH__PIPELINE": "queue"}),
    "SpoolHandler": ("handler", {}),
    "Writer.append": ("writer", {}),
}
HANG_SECONDS: Final = 30.0


def fapilog_logger() -> Log:
    """Return `logger.info` of a fapilog logger with the sink."""
    import fapilog

    cwsink.install()
    return fapilog.get_logger(settings=fapilog.Settings()).info


def stdlib_logger() -> Log:
    """Return `logger.info` of a logger with the handler."""
    import logging

    logger = logging.getLogger("lag")
    logger.setLevel(logging.INFO)
    logger.addHandler(cwsink.SpoolHandler(log_group_name="/lag"))
    return logger.info


def writer() -> Log:
    """Return `Writer.append`."""
    return cwsink.Writer.open(log_group_name="/lag").append


LOGGERS: Final[dict[str, Callable[[], Log]]] = {
    "fapilog": fapilog_logger,
    "handler": stdlib_logger,
    "writer": writer,
}


def work(name: str, root: str, records: int, seed: int) -> list[float]:
    """Log, one by one, and return how many ms each took to get into the spool."""
    log = LOGGERS[name]()
    log("warm up")
    path = find_segment(root)
    chance = random.Random(seed)
    lags = []
    for number in range(records):
        time.sleep(chance.uniform(0.001, 0.020))
        size = os.stat(path).st_size
        began = time.perf_counter()
        log(f"record {number}")
        while os.stat(path).st_size == size:
            time.sleep(0.000_05)
            if time.perf_counter() - began > HANG_SECONDS:
                raise SystemExit(f"{name}: a record does not get into the spool")
        lags.append((time.perf_counter() - began) * 1000)
    return lags


def find_segment(root: str) -> str:
    """Wait for the first record; return its segment."""
    until = time.monotonic() + HANG_SECONDS
    while time.monotonic() < until:
        for path in glob.glob(f"{root}/*/ring/*.seg"):
            time.sleep(0.5)  # whatever was logged while we started is in it by then
            return path
        time.sleep(0.01)
    raise SystemExit("nothing gets into the spool")


def measure(subject: str, records: int, seed: int) -> list[float]:
    """Return the lags of one process."""
    name, variables = SUBJECTS[subject]
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("FAPILOG_", "CWSINK_"))}
    environment = {
        **inherited,
        "CWSINK_SPOOL_DIRECTORY": root,
        "FAPILOG_CORE__SINKS": '["cloudwatch"]',
        "FAPILOG_CLOUDWATCH__FLUSHER": "external",
        **variables,
    }
    try:
        out = subprocess.run(
            [sys.executable, "-m", "benchmarks.lag", "--work", name, root, str(records), str(seed)],
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        if out.returncode:
            raise SystemExit(out.stderr)
        found: list[float] = json.loads(out.stdout.splitlines()[-1])
        return found
    finally:
        shutil.rmtree(root)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--records", type=int, default=40, help="per row and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        name, root, records, seed = options.work
        print(json.dumps(work(name, root, int(records), int(seed))))
        return
    if options.quick:
        options.records, options.rounds = 5, 1
    report = Report("lag", options, "fapilog")
    subjects = [each for each in SUBJECTS if each != "SpoolHandler" or "SpoolHandler" in cwsink.__all__]
    lags: dict[str, list[float]] = {subject: [] for subject in subjects}
    for round_ in range(options.rounds):
        for subject in subjects:
            lags[subject] += measure(subject, options.records, round_)
    rows = {}
    for subject, found in lags.items():
        ordered = sorted(found)
        rows[subject] = {
            "median": statistics.median(ordered),
            "p99": ordered[int(len(ordered) * 0.99)],
            "most": ordered[-1],
        }
    table = [[subject, *(f"{ms:.2f}" for ms in row.values())] for subject, row in rows.items()]
    report.table(["from the call to the spool, ms", "median", "p99", "most"], table)
    report.bars("How long is a record in the memory of its process only?", "ms (logarithmic)", rows, log=True)
    report.save()


if __name__ == "__main__":
    main()
