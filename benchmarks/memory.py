"""What logging holds in memory: for each worker, and for all processes of a host.

    python -m benchmarks.memory [--workers N ...] [--records N] [--rounds N]

gunicorn with N sync workers; each logs (at most 2,000 records a second) and then idles, with its garbage
collected. Each cell is a gunicorn of its own. When the strict CloudWatch, which is no part of it, has got
what it will get, /proc/PID/smaps_rollup of each process is read, also of the flusher and its guard, or of `cwsink run`:

* private (USS): what would be free again if only this process ended, Private_Clean + Private_Dirty;
* PSS: shared pages count by their share, so the PSS of all processes of a host add up to what they take.

"Nothing" is the same library with a sink that does nothing: what it has, everyone has, and it is subtracted
(round by round). Each worker loads the application itself, gunicorn's default; the last table is for
`--preload`, where the libraries are loaded once, before the fork. Other programs that have the same files
mapped would be sharers, too: the machine should run nothing else with this Python. Linux only.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
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
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.report import Report, add_options
from benchmarks.staging.flushers import flushers_of, kill_flushers
from benchmarks.staging.subjects import Subject
from cwsink.testing import SpawnedCloudWatch, spawn

HANG_SECONDS: Final = 180.0
# CloudWatch has got what it will get when nothing has come for this long: twice what a sink waits for a batch.
QUIET_SECONDS: Final = 2.0
SETTLE_SECONDS: Final = 0.3
POLL_SECONDS: Final = 0.05
# MiB more than with nothing, at most: of a worker, by its library; of the host, by its number of workers.
WORKER_GOALS: Final = {"fapilog": 1.4, "logging": 2.5}
HOST_GOALS: Final = {8: 60, 16: 75}
MIB: Final = 1 << 20

SHOP: Final = """
import gc, os, time
from benchmarks.staging.logger import open_logger, structured


def work():
    log = structured(open_logger())
    for number in range(int(os.environ["RECORDS"])):
        log("request done", path="/api/orders/123456", status=200, number=number, padding="y" * 180)
        if number % 10 == 9:
            time.sleep(0.005)
    time.sleep(0.5)
    gc.collect()
    os.write(1, f"{os.getpid()}\\n".encode())


def app(environ, start_response):
    start_response("204 No Content", [])
    return []
"""
CONFIGURATION: Final = """
def post_worker_init(worker):
    import shop

    shop.work()
"""


class Size(NamedTuple):
    """The memory of a process, or of several."""

    private: int
    pss: int


class Host(NamedTuple):
    """What the processes of one cell hold. `delivers`: guard and flusher, or what `cwsink run` is and has started."""

    workers: list[Size]
    delivers: Size
    all: Size


SUBJECTS: Final = (
    Subject("fapilog: nothing (floor)", "fapilog", "nothing"),
    Subject("fapilog: cwsink", "fapilog", "cwsink"),
    Subject("fapilog: cwsink run", "fapilog", "cwsink", has_flusher=True),
    Subject("fapilog: its own sink", "fapilog", "built-in"),
    Subject("logging: nothing (floor)", "logging", "nothing"),
    Subject("logging: cwsink", "logging", "cwsink"),
    Subject("logging: watchtower", "logging", "watchtower"),
)
Cells = dict[tuple[Subject, int], list[Host]]


def size_of(pid: int) -> Size:
    """Return what a process holds, in bytes."""
    found: dict[str, int] = defaultdict(int)
    for name, kib in re.findall(r"^(\w+):\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE):
        found[name] += int(kib) * 1024
    return Size(found["Private_Clean"] + found["Private_Dirty"], found["Pss"])


def tree(pid: int) -> Iterator[int]:
    """Yield a process and all that come from it."""
    yield pid
    for thread in os.listdir(f"/proc/{pid}/task"):
        for child in Path(f"/proc/{pid}/task/{thread}/children").read_text().split():
            yield from tree(int(child))


def parent_of(pid: int) -> int:
    """Return a process's parent."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def sum_of(sizes: Iterable[Size]) -> Size:
    """Add up."""
    found = list(sizes)
    return Size(sum(each.private for each in found), sum(each.pss for each in found))


@contextlib.contextmanager
def started(
    subject: Subject, workers: int, records: int, folder: Path, url: str, *, preload: bool
) -> Iterator[subprocess.Popen[str]]:
    """Run gunicorn on one host; its processes end with the block."""
    (folder / "shop.py").write_text(SHOP)
    (folder / "gunicorn.conf.py").write_text(CONFIGURATION)
    command = [sys.executable, "-m", "gunicorn", "shop:app", "-w", str(workers), "-b", f"unix:{folder}/socket"]
    command += ["-t", "0"]  # it logs before it serves: nobody is to be killed for that on a slow machine
    command += ["--preload"] * preload
    if subject.has_flusher:
        command = [sys.executable, "-m", "cwsink", "run", "--", *command]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=subject.environment(folder, "/benchmark/memory", url, RECORDS=str(records)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        yield process
        process.terminate()
        process.communicate(timeout=HANG_SECONDS)
    finally:
        # Whatever is left of it, also after an error; the flusher of `cwsink run` ends with its parent.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        kill_flushers(folder / "spools")


def settle(server: SpawnedCloudWatch, expected: int) -> None:
    """Wait until all events have arrived, or no more do: some sinks lose some."""
    seen, since = -1, time.monotonic()
    while seen < expected and time.monotonic() - since < QUIET_SECONDS:
        if (now := int(server.summary()["events"])) != seen:
            seen, since = now, time.monotonic()
        time.sleep(POLL_SECONDS)
    time.sleep(SETTLE_SECONDS)


def measure(subject: Subject, workers: int, records: int, server: SpawnedCloudWatch, *, preload: bool = False) -> Host:
    """Start a host, let it log, look at each of its processes."""
    server.reset()
    folder = Path(tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp"))
    try:
        with started(subject, workers, records, folder, server.endpoint_url, preload=preload) as process:
            assert process.stdout is not None, "asked for a pipe"
            of_workers = set()
            for _ in range(workers):
                if not (line := process.stdout.readline()):
                    raise SystemExit(f"{subject.name}: a worker failed")
                of_workers.add(int(line))
            if subject.sink != "nothing":
                settle(server, workers * records)
            pids = {*tree(process.pid), *flushers_of(folder / "spools")}
            sizes = {pid: size_of(pid) for pid in pids}
            # gunicorn's own process is the parent of its workers; `cwsink run` is the parent of that one.
            gunicorn = parent_of(next(iter(of_workers)))
        delivers = [size for pid, size in sizes.items() if pid not in of_workers and pid != gunicorn]
        return Host([sizes[pid] for pid in of_workers], sum_of(delivers), sum_of(sizes.values()))
    finally:
        shutil.rmtree(folder)


def over(hosts: Sequence[Host], floors: Sequence[Host], part: str, kind: str) -> list[float]:
    """Return, in MiB for each round, what `part` ("workers": one of them; "all") holds more than with nothing."""

    def of(host: Host) -> float:
        sizes = [host.all] if part == "all" else host.workers
        return float(statistics.median(getattr(each, kind) for each in sizes))

    return [(of(host) - of(floor)) / MIB for host, floor in zip(hosts, floors, strict=True)]


def rows(cells: Cells, subjects: Sequence[Subject], counts: Sequence[int], kind: str) -> list[list[str]]:
    """Return a row for each subject: a column for each number of workers, MiB of one of them over nothing."""
    table = []
    for subject in subjects:
        if subject.sink != "nothing":
            values = [over(cells[subject, n], cells[subject.floor(subjects), n], "workers", kind) for n in counts]
            table.append([subject.name, *(with_spread(each) for each in values)])
    return table


def with_spread(values: Sequence[float]) -> str:
    """Return the median, and with several rounds the least and the most."""
    median = f"{statistics.median(values):.1f}"
    return f"{median} ({min(values):.1f}-{max(values):.1f})" if len(values) > 1 else median


def say_workers(report: Report, cells: Cells, subjects: Sequence[Subject], counts: Sequence[int]) -> None:
    """Print what a worker holds, and the verdict on the goal."""
    columns = [f"{n} worker{'s' if n > 1 else ''}" for n in counts]
    report.say("One worker, private memory (USS), MiB more than with nothing (median of all workers):")
    report.table(["worker", *columns], rows(cells, subjects, counts, "private"))
    report.say("The same as PSS, MiB more than with nothing:")
    report.table(["worker", *columns], rows(cells, subjects, counts, "pss"))
    for subject in subjects:
        if subject.sink == "cwsink":
            floor = subject.floor(subjects)
            found = [mib for n in counts for mib in over(cells[subject, n], cells[floor, n], "workers", "private")]
            report.say(
                f"{subject.name}: a worker holds {with_spread(found)} MiB of private memory more than with nothing; "
                f"the goal is {WORKER_GOALS[subject.frontend]} at most."
            )


def say_hosts(report: Report, cells: Cells, subjects: Sequence[Subject], counts: Sequence[int]) -> None:
    """Print and plot what all processes of a host hold."""
    columns = [f"{n} worker{'s' if n > 1 else ''}" for n in counts]
    total = {
        subject.name: [(n, statistics.median(host.all.pss for host in cells[subject, n]) / MIB) for n in counts]
        for subject in subjects
    }
    more = {
        subject.name: [
            (n, statistics.median(over(cells[subject, n], cells[subject.floor(subjects), n], "all", "pss")))
            for n in counts
        ]
        for subject in subjects
        if subject.sink != "nothing"
    }
    delivers = {
        subject.name: [
            f"{statistics.median(host.delivers.pss for host in cells[subject, n]) / MIB:.1f}" for n in counts
        ]
        for subject in subjects
        if subject.sink == "cwsink"
    }
    report.say("What delivers, PSS, MiB: guard and flusher; or all that `cwsink run` has beside the command:")
    report.table(["", *columns], [[name, *sizes] for name, sizes in delivers.items()])
    report.say("All processes of the host, PSS, MiB:")
    report.table(["host", *columns], [[name, *(f"{mib:.0f}" for _, mib in points)] for name, points in total.items()])
    report.lines("How much memory do all processes of a host take?", "workers", "MiB (PSS)", total)
    report.say("The same, MiB more than with nothing:")
    report.table(["host", *columns], [[name, *(f"{mib:.0f}" for _, mib in points)] for name, points in more.items()])
    report.say(*host_verdicts(more))
    report.lines(
        "How much memory does logging to CloudWatch add to a host?",
        "workers",
        "MiB (PSS) more than with nothing",
        more,
        plot="over",
    )


def host_verdicts(more: Mapping[str, Sequence[tuple[int, float]]]) -> Iterator[str]:
    """Yield how what a host holds more stands to the goals."""
    for name, points in more.items():
        goals = [f"{mib:.0f} MiB with {n} workers (the goal: {HOST_GOALS[n]})" for n, mib in points if n in HOST_GOALS]
        if goals and "cwsink" in name:
            yield f"{name}: the host holds more than with nothing: {', '.join(goals)}."


def say_preloaded(report: Report, cells: Cells, subjects: Sequence[Subject], workers: int) -> None:
    """Print the table of `--preload`."""
    report.say(f"With `--preload`, {workers} workers, MiB more than with nothing:")
    table = []
    for subject in subjects:
        if subject.sink != "nothing":
            mine, floor = cells[subject, workers], cells[subject.floor(subjects), workers]
            found = [over(mine, floor, *which) for which in (("workers", "private"), ("all", "pss"))]
            table.append([subject.name, *map(with_spread, found)])
    report.table(["", "a worker, private", "host, PSS"], table)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_options(parser)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4, 8, 16], help="how many, for each column")
    parser.add_argument("--records", type=int, default=2_000, help="for each worker")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help='rows with one of these, and "nothing"')
    parser.add_argument("--preloaded", type=int, default=8, help="workers of the table for --preload; 0: none")
    options = parser.parse_args()
    if options.quick:
        options.workers, options.records, options.preloaded = [2], 100, 0
    if not Path("/proc/self/smaps_rollup").exists():
        raise SystemExit("this needs /proc/PID/smaps_rollup: Linux")
    if importlib.util.find_spec("gunicorn") is None:
        raise SystemExit("this needs gunicorn")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    report = Report("memory", options, "fapilog", "botocore", "watchtower")
    subjects = [each for each in SUBJECTS if each.is_installed and any(word in each.name for word in options.only)]
    floors = {each.floor(SUBJECTS) for each in subjects}
    subjects = [each for each in SUBJECTS if each in subjects or each in floors]
    for missing in [each for each in SUBJECTS if not each.is_installed]:
        report.say(f"{missing.name} is left out: {', '.join(missing.packages)} are not all installed.")
    if options.quick:
        report.say("A quick run leaves the peers out.")
        subjects = [each for each in subjects if each.sink in ("nothing", "cwsink")]
    cells: Cells = defaultdict(list)
    preloaded: Cells = defaultdict(list)
    chance = random.Random(1)
    with spawn(keep_events=False) as server:
        for _ in range(options.rounds):
            plan = list(product(subjects, options.workers, [cells]))
            if options.preloaded:
                plan += list(product(subjects, [options.preloaded], [preloaded]))
            for subject, workers, into in chance.sample(plan, len(plan)):
                host = measure(subject, workers, options.records, server, preload=into is preloaded)
                into[subject, workers].append(host)
    say_workers(report, cells, subjects, options.workers)
    say_hosts(report, cells, subjects, options.workers)
    if options.preloaded:
        say_preloaded(report, preloaded, subjects, options.preloaded)
    report.save()


if __name__ == "__main__":
    main()
