"""What is killed, stopped or taken away, and which records are lost by it: cwsink and its peers.

    python -m benchmarks.losses [--rows WORD ...] [--jobs N] [--quick]

Each cell is a CloudWatch (the strict server, in a process of its own) and a gunicorn with 4 sync workers, under
load (4 clients, 5 records of about 250 bytes a request), or a script. Every record has an id. Once the logging call
has returned, the application was told it is logged, and adds the id to a file (one `os.write`, O_APPEND: it survives
the process). Lost = noted there and never arrived; twice = arrived more than once.

* The service is loaded until all workers have logged, and a while longer; then the row's own thing happens. Unless
  the row is about the end itself, there is time to deliver (up to 6 s; after an outage 30 s) before SIGTERM ends it.
* What cwsink still has in its spool at the end of a row is sent by `cwsink flush --once`, as the next start of the
  service would do; the peers keep nothing on disk. How much that was is said below the table.
* All send at least once a second (watchtower's own default is 60 s, fapilog's sink's 5 s). fapilog has, in both its
  columns, a queue of 50,000 and `drop_on_full` off; all else is as it comes.
"""

from __future__ import annotations

import argparse
import random
import signal
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final, NamedTuple

from benchmarks import report
from benchmarks.staging.processes import BrokenError, Children
from benchmarks.staging.run import RECOVER_SECONDS, Run
from benchmarks.staging.subjects import Subject

MAX_REQUESTS: Final = 50
GENERATIONS: Final = 12

SUBJECTS: Final = (
    Subject("fapilog's own sink", "fapilog", "built-in"),
    Subject("watchtower", "logging", "watchtower"),
    Subject("fapilog + cwsink", "fapilog", "cwsink"),
    Subject("cwsink.SpoolHandler", "logging", "cwsink"),
)


class Row(NamedTuple):
    """Something that happens."""

    title: str
    happens: Callable[[Run], None]


def kill_worker(run: Run) -> None:
    """Kill one, at random."""
    run.start()
    run.kill(run.chance.choice(run.workers()))
    run.settle()
    run.stop()


def kill_each(run: Run) -> None:
    """Kill all that were there at the start, and who sends for cwsink, in the middle of it."""
    run.start()
    for pid in run.workers():
        run.kill(pid)
        run.kill_flushers()
    run.settle()
    run.stop()


def deploy(run: Run) -> None:
    """End it in order, in the middle of its work."""
    run.start()
    run.stop()


def preload(run: Run) -> None:
    """Load the application, and its logger, before the workers are forked."""
    run.start("--preload")
    run.settle()
    run.stop()


def recycle(run: Run) -> None:
    """Replace each worker after some requests, again and again."""
    run.start("--max-requests", str(MAX_REQUESTS))
    run.wait_until(lambda: len(run.generations()) >= GENERATIONS * run.scale, f"{GENERATIONS} workers")
    run.settle()
    run.stop()


def throttled(run: Run) -> None:
    """Refuse every call, for a while."""
    run.start()
    run.cloudwatch.throttle(everything=True)
    run.go_on(10.0)
    run.cloudwatch.throttle(everything=False)
    run.go_on(1.0)
    run.settle(RECOVER_SECONDS)
    run.stop()


def down(run: Run) -> None:
    """Refuse every connection, for a while."""
    run.start()
    run.cloudwatch.go("down")
    run.go_on(10.0)
    run.cloudwatch.go("up")
    run.go_on(1.0)
    run.settle(RECOVER_SECONDS)
    run.stop()


def down_at_end(run: Run) -> None:
    """Take CloudWatch away, end the service, have CloudWatch back, start the service again."""
    run.start()
    run.cloudwatch.go("down")
    run.go_on(1.0)
    run.stop()
    run.cloudwatch.go("up")
    run.start()
    run.settle()
    run.stop()


def power_button(run: Run) -> None:
    """End all processes at once, and start the service again."""
    run.start()
    run.power_off()
    run.start()
    run.settle()
    run.stop()


ROWS: Final = {
    "kill-worker": Row("SIGKILL of a worker", kill_worker),
    "kill-each": Row("SIGKILL of each worker in turn, whoever sends among them", kill_each),
    "sigterm": Row("SIGTERM to gunicorn: a deployment", deploy),
    "preload": Row("gunicorn --preload", preload),
    "recycle": Row(f"--max-requests {MAX_REQUESTS}: workers are replaced", recycle),
    "throttled": Row("CloudWatch throttles every call for 10 s", throttled),
    "refused": Row("CloudWatch is down for 10 s", down),
    "down-at-end": Row("CloudWatch is down when the service ends; up, and restarted", down_at_end),
    "power-button": Row("SIGKILL of all processes at once; restarted", power_button),
    "exit": Row("a script logs 1,000 records in 2 s, and ends", lambda run: run.script(1_000, "exit", per_second=500)),
    "os-exit": Row("the same, and ends by os._exit", lambda run: run.script(1_000, "_exit", per_second=500)),
    "burst": Row("a script logs 50,000 records at once", lambda run: run.script(int(50_000 * run.scale), "shut-down")),
}


@dataclass(frozen=True)
class Cell:
    """What became of the records of one run."""

    logged: int
    lost: int
    twice: int
    late: int  # came only with `cwsink flush --once`

    def __str__(self) -> str:
        text = f"{self.lost:,} of {self.logged:,}"
        return f"{text} ({self.twice:,} twice)" if self.twice else text


def measure(row: Row, subject: Subject, children: Children, seed: int, scale: float) -> Cell | BrokenError:
    """Have it happen, and count."""
    try:
        with Run(subject, children, random.Random(seed), scale) as run:
            row.happens(run)
            logged = run.returned.read().keys()
            missing = logged - run.cloudwatch.ids()
            if subject.sink == "cwsink" and missing:
                run.flush()
            arrived = run.cloudwatch.ids()
            lost = len(logged - arrived)
            late = len(missing) - lost
            return Cell(len(logged), lost, run.cloudwatch.repeated(), late)
    except BrokenError as error:
        return error


def measure_all(
    rows: Sequence[str], subjects: Sequence[Subject], jobs: int, scale: float
) -> dict[tuple[str, Subject], Cell | BrokenError]:
    """Measure each cell, some at the same time; leaves no process behind."""
    children = Children()
    cells: dict[tuple[str, Subject], Future[Cell | BrokenError]] = {}
    pool = ThreadPoolExecutor(jobs)
    try:
        for seed, name in enumerate(rows):
            for subject in subjects:
                cells[name, subject] = pool.submit(measure, ROWS[name], subject, children, seed, scale)
        found = {}
        for (name, subject), cell in cells.items():
            found[name, subject] = cell.result()
            print(f"{name}, {subject.name}: {found[name, subject]}", file=sys.stderr, flush=True)
        return found
    finally:
        children.end_all()
        pool.shutdown(cancel_futures=True)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=[""], metavar="WORD", help=f"some of {', '.join(ROWS)}")
    parser.add_argument("--jobs", type=int, default=3, help="cells at the same time; most of a cell is waiting")
    report.add_options(parser)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    rows = [name for name in ROWS if any(word in name for word in options.rows)]
    if options.quick:
        rows = [name for name in rows if name in ("sigterm", "exit")]
    if not rows:
        parser.error(f"no such row; there are {', '.join(ROWS)}")
    missing = [subject for subject in SUBJECTS if not subject.is_installed]
    subjects = [subject for subject in SUBJECTS if subject not in missing]
    out = report.Report("losses", options, "fapilog", "watchtower", "boto3", "gunicorn")
    cells = measure_all(rows, subjects, options.jobs, 0.1 if options.quick else 1.0)
    say(out, rows, subjects, cells)
    for subject in missing:
        out.say(f"{subject.name}: {', '.join(subject.packages)} are not all installed")
    out.save()


def say(
    out: report.Report,
    rows: Sequence[str],
    subjects: Sequence[Subject],
    cells: dict[tuple[str, Subject], Cell | BrokenError],
) -> None:
    """Print the table, what is not in it, and the plot."""
    out.say("Lost, of all records whose logging call had returned:")
    out.table(
        ["what happens", *(subject.name for subject in subjects), "`--rows`"],
        [[ROWS[name].title, *(_text(cells[name, subject]) for subject in subjects), name] for name in rows],
    )
    good = {key: cell for key, cell in cells.items() if isinstance(cell, Cell)}
    late = Counter({(name, subject.name): cell.late for (name, subject), cell in good.items()})
    waited = [f"{name}, {subject}: {count:,}" for (name, subject), count in late.items() if count]
    if waited:
        out.say(f"Counted as arrived, sent by `cwsink flush --once` after the end: {'; '.join(waited)}.")
    for (name, subject), cell in cells.items():
        if isinstance(cell, BrokenError):
            out.say(f"{name}, {subject.name}: {cell}")
    shares = {
        ROWS[name].title: {
            subject.name: 100 * cell.lost / max(1, cell.logged)
            for subject in subjects
            if isinstance(cell := cells[name, subject], Cell)
        }
        for name in rows
    }
    out.bars("How many records are lost?", "% of those logged", shares)


def _text(cell: Cell | BrokenError) -> str:
    return str(cell) if isinstance(cell, Cell) else "(broken)"


if __name__ == "__main__":
    main()
