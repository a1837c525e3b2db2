"""What logging does to the requests of a web application, while CloudWatch is well and while it is not.

    python -m benchmarks.requests [--seconds N] [--rounds N] [--only WORD ...] [--state WORD ...]

gunicorn, 4 sync workers, an application that works for about 3 ms a request (JSON, the same number of
passes for everyone) and logs 3 lines of about 300 bytes. Each row is a gunicorn and a CloudWatch of its own.

* requests/s: as many as 8 connections get (wrk, if it is installed; else threads of this process).
* p50, p99: at a fixed, moderate rate (`--rate`, an open loop: a late answer does not delay the next
  request, and its own delay counts from when it should have been sent). Gunicorn, CloudWatch and the load
  share this machine: flat out, a latency would be that of the queue for its cores.
  The first 2 s are not counted: in them cwsink's flusher starts, a process (others load boto3 before they serve).
* CPU: of gunicorn and what it started (cwsink's flusher and its guard too), per request, flat out.
* logging: which part of that is spent in the logger's calls, and in threads and processes that serve no requests (who
  delivers). Its percentage is what comes on top of "nothing", of the CPU of a request with
  "nothing". It is measured where it is spent, not as the difference of two totals, which drift with the machine.
* kept: which share of the lines logged has arrived, or waits in a spool, when gunicorn has been stopped.

"Nothing" is the same logging library with a sink that does nothing, so what fapilog, or logging, costs is in
both. CloudWatch: `up`; `throttled` (0.2 s an answer, one call a second); `black hole` (no packet is answered);
`refused`.

All rows of a library and state stand ready at once and take turns, in another (seeded) order each round; who
has no turn is stopped. A percentage compares all turns of a row with those of its "nothing"; beside it is where
nine of ten such percentages lie when the rounds are drawn anew, with replacement (bootstrap, seeded). Linux only.
"""

from __future__ import annotations

import argparse
import random
import signal
import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Final, NamedTuple

from benchmarks.report import Report, add_options
from benchmarks.staging import load
from benchmarks.staging.service import LINES, STATES, WORKERS, DownError, Service, Spent, Turn, passes_for
from benchmarks.staging.subjects import Subject

WORK_SECONDS: Final = 0.003
DRAWS: Final = 1000

SUBJECTS: Final = (
    Subject("fapilog: nothing", "fapilog", "nothing"),
    Subject("fapilog: cwsink", "fapilog", "cwsink"),
    Subject("fapilog: cwsink run", "fapilog", "cwsink", has_flusher=True),
    Subject("fapilog: its own sink", "fapilog", "built-in"),
    Subject("logging: nothing", "logging", "nothing"),
    Subject("logging: cwsink", "logging", "cwsink"),
    Subject("logging: watchtower", "logging", "watchtower"),
)


class Measured(NamedTuple):
    """All turns of one row, in the order of the rounds."""

    turns: list[Turn]
    kept: float


class Metric(NamedTuple):
    """A column: what it is of some turns, with this many digits; and the one that its percentages are of, or itself."""

    name: str
    digits: int
    of: Callable[[Sequence[Turn]], float]
    whole: Callable[[Sequence[Turn]], float] | None = None

    def above(self, turns: Sequence[Turn], floor: Sequence[Turn]) -> float:
        """Return by how many per cent of the whole it is above the floor."""
        return 100 * (self.of(turns) - self.of(floor)) / (self.whole or self.of)(floor)


def percentile(part: float) -> Callable[[Sequence[Turn]], float]:
    """Return the function that gives this part (0 to 1) of all latencies, in ms."""

    def of(turns: Sequence[Turn]) -> float:
        latencies = sorted(chain.from_iterable(each.latencies_ms for each in turns))
        return latencies[int(len(latencies) * part)]

    return of


def per_request_ms(spent: Callable[[Spent], float]) -> Callable[[Sequence[Turn]], float]:
    """Return the function that gives this CPU time per request, in ms."""

    def of(turns: Sequence[Turn]) -> float:
        return 1000 * sum(spent(each.spent) for each in turns) / sum(each.answered for each in turns)

    return of


CPU_MS: Final = per_request_ms(lambda spent: spent.all)
METRICS: Final = (
    Metric("requests/s", 0, lambda turns: statistics.mean(each.per_second for each in turns)),
    Metric("CPU ms", 2, CPU_MS),
    Metric("logging ms", 3, per_request_ms(lambda spent: spent.calls + spent.beside), CPU_MS),
    Metric("p50 ms", 1, percentile(0.5)),
    Metric("p99 ms", 1, percentile(0.99)),
)


class Contest:
    """The subjects of one library, while CloudWatch is in one state."""

    def __init__(self, subjects: Sequence[Subject], state: str, passes: int, rate: float) -> None:
        """Start them. Who does not come up is `down`."""
        self.down: dict[Subject, str] = {}
        self._rate = rate
        self._turns: dict[Subject, list[Turn]] = {}
        self._services: dict[Subject, Service] = {}
        self._state = state
        for subject in subjects:
            with self._dropped_if_down(subject):
                self._services[subject] = Service(subject, state, passes, rate)
                self._turns[subject] = []

    def play(self, order: Sequence[Subject], seconds: float) -> None:
        """Give each that is up a turn."""
        for subject in order:
            if subject not in self.down:
                with self._dropped_if_down(subject):
                    turn = self._services[subject].turn(seconds, self._rate)
                    self._turns[subject].append(turn)
                    cells = ", ".join(f"{each.name} {each.of([turn]):.{each.digits}f}" for each in METRICS)
                    print(f"{self._state}, {subject.name}: {cells}", file=sys.stderr, flush=True)

    def end(self) -> dict[Subject, Measured]:
        """Stop all; return what those did that never were down."""
        found = {}
        for subject, service in list(self._services.items()):
            with self._dropped_if_down(subject):
                found[subject] = Measured(self._turns[subject], service.end())
        self.close()
        return found

    def close(self) -> None:
        """Kill what is left."""
        while self._services:
            self._services.popitem()[1].close()

    @contextmanager
    def _dropped_if_down(self, subject: Subject) -> Iterator[None]:
        try:
            yield
        except DownError as error:
            print(f"{self._state}, {subject.name}: {error}", file=sys.stderr, flush=True)
            self.down[subject] = str(error)
            if (service := self._services.pop(subject, None)) is not None:
                service.close()


def compared(metric: Metric, turns: list[Turn], floor: list[Turn]) -> str:
    """Return by how many per cent a row is above its "nothing", and how sure that is."""
    chance = random.Random(1)

    def percent(rounds: Sequence[int]) -> float:
        return metric.above([turns[each] for each in rounds], [floor[each] for each in rounds])

    every = range(len(turns))
    drawn = sorted(percent(chance.choices(every, k=len(turns))) for _ in range(DRAWS))
    return f"{percent(every):+.1f}% ({drawn[DRAWS // 20]:+.1f} to {drawn[-DRAWS // 20]:+.1f})"


def row(state: str, subject: Subject, measured: Measured, floor: Measured) -> list[str]:
    """Return a row of the table."""
    cells = [f"{subject.name}, {state}"]
    for metric in METRICS:
        cells.append(f"{metric.of(measured.turns):.{metric.digits}f}")
        cells.append("" if subject.sink == "nothing" else compared(metric, measured.turns, floor.turns))
    return [*cells, "" if subject.sink == "nothing" else f"{100 * measured.kept:.1f}%"]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=3.0, help="for each of the two loads of a turn")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second where latency is measured")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help='rows with one of these, and "nothing"')
    parser.add_argument("--state", nargs="+", default=[""], metavar="WORD", help="states with one of these")
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds, options.only, options.state = 1.0, 1, ["cwsink"], ["up"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    report = Report("requests", options, "fapilog", "gunicorn", "botocore", "watchtower")
    passes = passes_for(WORK_SECONDS)
    subjects = [each for each in SUBJECTS if each.sink == "nothing" or any(word in each.name for word in options.only)]
    missing = [each for each in subjects if not each.is_installed]
    subjects = [each for each in subjects if each not in missing]
    frontends = dict.fromkeys(each.frontend for each in subjects if each.sink != "nothing")
    states = [each for each in STATES if any(word in each for word in options.state)]
    report.say(
        f"{WORKERS} workers, {passes} passes of work a request, {LINES} lines; {load.loader()}; latencies at "
        f"{options.rate:.0f} requests/s; {options.rounds} rounds of {options.seconds:g} s each. Percentages are to the "
        'same library\'s "nothing", with the range that holds nine of ten draws of the rounds.'
    )
    chance = random.Random(1)
    rows: list[list[str]] = []
    bars: dict[str, dict[str, float]] = {}
    down: dict[tuple[str, Subject], str] = {}
    for state in states:
        for frontend in frontends:
            taking_part = [each for each in subjects if each.frontend == frontend]
            contest = Contest(taking_part, state, passes, options.rate)
            try:
                for _ in range(options.rounds):
                    contest.play(chance.sample(taking_part, len(taking_part)), options.seconds)
                found = contest.end()
            finally:
                contest.close()
            down.update({(state, subject): why for subject, why in contest.down.items()})
            for subject, measured in found.items():
                rows.append(row(state, subject, measured, found[subject.floor(taking_part)]))
                bars.setdefault(subject.name, {})[state] = percentile(0.99)(measured.turns)
    columns = chain.from_iterable((metric.name, "to nothing") for metric in METRICS)
    report.table(("logging, CloudWatch", *columns, "kept"), rows)
    for (state, subject), why in down.items():
        report.say(f"{subject.name}, {state}: the server is down. {why}")
    for subject in missing:
        report.say(f"{subject.name}: {', '.join(subject.packages)} are not all installed.")
    report.bars("Do requests take longer?", f"ms (p99, {options.rate:.0f} requests/s)", bars)
    report.save()


if __name__ == "__main__":
    main()
