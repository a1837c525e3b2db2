"""What logging does to the requests of a web application, while CloudWatch is well and while it is not.

    python -m benchmarks.requests [--seconds N] [--rounds N] [--only WORD ...] [--state WORD ...]

gunicorn, 4 sync workers, an application that works for about 3 ms a request (JSON, the same number of
passes for everyone) and logs 3 lines of about 300 bytes. Each cell is a gunicorn and a CloudWatch of its own.

* requests/s: as many as 8 connections get (wrk, if it is installed; else threads of this process).
* p50, p99: at a fixed, moderate rate (`--rate`, an open loop: a late answer does not delay the next
  request, and its own delay counts from when it should have been sent). Gunicorn, CloudWatch and the load
  share this machine: flat out, a latency would be that of the queue for its cores.
  The first 2 s are not counted: in them who leads for cwsink loads boto3, in a thread (others do before they serve).
* CPU: of gunicorn and what it started (cwsink's flusher too), per request, flat out. What the machine's other
  tenants do moves it least.
* kept: which share of the lines logged has arrived, or waits in a spool, when gunicorn has been stopped.

"Nothing" is the same logging library with a sink that does nothing, so what fapilog, or logging, costs is in
both; each row is compared with the "nothing" of its own library, state and round. CloudWatch: `up`;
`throttled` (0.2 s an answer, one call a second); `black hole` (no packet is answered); `refused`.
Medians over rounds, with the least and the most; rows are interleaved, in another (seeded) order each round.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.report import Report, add_options
from benchmarks.staging.processes import session_of
from benchmarks.staging.subjects import Subject
from cwsink.spool.directory import find_spools, open_existing
from cwsink.spool.survey import survey
from cwsink.testing.process import spawn

WORKERS: Final = 4
CONNECTIONS: Final = 8
LINES: Final = 3
WORK_SECONDS: Final = 0.003
WARM_UP_SECONDS: Final = 2.0
ANSWER_SECONDS: Final = 30.0
HANG_SECONDS: Final = 90.0
GROUP: Final = "/benchmark/requests"

APP: Final = """
import json, os
from benchmarks.staging.logger import open_logger, structured

PASSES, LINES = int(os.environ["PASSES"]), int(os.environ["LINES"])
BASKET = {"items": [{"id": number, "name": "x" * 20, "price": number * 1.1} for number in range(50)]}

log = structured(open_logger())


def app(environ, start_response):
    for _ in range(PASSES):
        json.loads(json.dumps(BASKET))
    for number in range(LINES):
        log("request done", path=environ["PATH_INFO"], status=200, number=number, padding="y" * 180)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\\n"]
"""


class Cell(NamedTuple):
    """What one gunicorn did."""

    per_second: float
    cpu_ms: float
    p50_ms: float
    p99_ms: float
    kept: float | None


SUBJECTS: Final = (
    Subject("fapilog: nothing", "fapilog", "nothing"),
    Subject("fapilog: cwsink, a thread", "fapilog", "cwsink"),
    Subject("fapilog: cwsink run", "fapilog", "cwsink", has_flusher=True),
    Subject("fapilog: its own sink", "fapilog", "built-in"),
    Subject("logging: nothing", "logging", "nothing"),
    Subject("logging: cwsink", "logging", "cwsink"),
    Subject("logging: watchtower", "logging", "watchtower"),
)
STATES: Final = ("up", "throttled", "black hole", "refused")


class DownError(Exception):
    """The application does not answer, or does not end."""


class CloudWatch:
    """One in the state asked for."""

    def __init__(self, state: str, stack: ExitStack) -> None:
        self._server = None
        if state in ("up", "throttled"):
            self._server = stack.enter_context(spawn(keep_events=False))
            self.url = self._server.endpoint_url
            if state == "throttled":
                self._server.misbehave(latency_seconds=0.2, throttle_rate={"calls_per_second": 1})
            return
        listener = stack.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        if state == "black hole":  # a queue that is full: the kernel drops whatever comes
            listener.listen(0)
            for _ in range(4):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(listener.getsockname())

    def accepted(self) -> int:
        """Return how many events have arrived."""
        return int(self._server.summary()["events"]) if self._server else 0


@contextmanager
def gunicorn(subject: Subject, url: str, folder: Path, passes: int) -> Iterator[tuple[int, int]]:
    """Run the application; yields its port and its session. Stopped as a deployment does, and waited for."""
    (folder / "shop.py").write_text(APP)
    env = subject.environment(folder, GROUP, url, PASSES=str(passes), LINES=str(LINES))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener, open(folder / "log", "wb") as log:
        command = [sys.executable, "-m", "gunicorn", "shop:app", "-w", str(WORKERS), "-b", f"fd://{listener.fileno()}"]
        command.append("--no-control-socket")  # it would lie in the home directory
        if subject.has_flusher:
            command = [sys.executable, "-m", "cwsink", "run", "--", *command]
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            pass_fds=[listener.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        port = listener.getsockname()[1]
    try:
        yield port, process.pid
        process.send_signal(signal.SIGTERM)
        process.wait(HANG_SECONDS)
    except (OSError, HTTPException, subprocess.SubprocessError) as error:
        said = (folder / "log").read_text().strip().splitlines()
        raise DownError(f"{type(error).__name__}: {error}; gunicorn's last line: {said[-1] if said else ''}") from error
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def cpu_seconds(session: int) -> float:
    """Return the CPU time the living processes of a session have used (Linux; else 0)."""
    if not os.path.exists("/proc/self/stat"):
        return 0
    ticks = 0
    for pid in session_of(session):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def get(port: int) -> None:
    """Send one request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", "/orders/4711")
        connection.getresponse().read()
    finally:
        connection.close()


def flat_out(port: int, seconds: float) -> tuple[float, int]:
    """Return requests per second, and how many there were."""
    if wrk := shutil.which("wrk"):
        url = f"http://127.0.0.1:{port}/orders/4711"
        command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "--timeout", f"{ANSWER_SECONDS:.0f}s", url]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate, count = re.search(r"Requests/sec:\s+([\d.]+)", out), re.search(r"(\d+) requests in", out)
        assert rate is not None and count is not None, out  # noqa: PT018  # both, or it is another wrk
        return float(rate[1]), int(count[1])
    counts = [0] * CONNECTIONS
    until = time.perf_counter() + seconds

    def load(number: int) -> None:
        while time.perf_counter() < until:
            get(port)
            counts[number] += 1

    in_threads(load)
    return sum(counts) / seconds, sum(counts)


def paced(port: int, seconds: float, rate: float) -> list[float]:
    """Return the latencies, in ms, of requests sent at a fixed rate."""
    count = round(seconds * rate)
    began = time.perf_counter() + 0.05
    latencies: list[float] = []

    def load(number: int) -> None:
        for index in range(number, count, CONNECTIONS):
            due = began + index / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            get(port)
            latencies.append((time.perf_counter() - due) * 1000)

    in_threads(load)
    return sorted(latencies)


def in_threads(load: Callable[[int], None]) -> None:
    """Call `load(number)` for each connection, at once. Raises what one of them raises."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for each in [pool.submit(load, number) for number in range(CONNECTIONS)]:
            each.result()


def measure(subject: Subject, state: str, passes: int, seconds: float, rate: float) -> Cell:
    """Start everything, load it, stop it, count."""
    folder = Path(tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp"))
    try:
        with ExitStack() as stack:
            cloudwatch = CloudWatch(state, stack)
            with gunicorn(subject, cloudwatch.url, folder, passes) as (port, session):
                get(port)  # it is up
                warm_up = paced(port, WARM_UP_SECONDS, rate)
                latencies = paced(port, seconds, rate)
                cpu = cpu_seconds(session)
                per_second, answered = flat_out(port, seconds)
                cpu = cpu_seconds(session) - cpu
            kept = cloudwatch.accepted()
            kept += sum(survey(open_existing(path)).pending for path in find_spools(str(folder / "spools")))
        logged = LINES * (1 + len(warm_up) + len(latencies) + answered)
        share = None if subject.sink == "nothing" else min(1.0, kept / logged)
        p50, p99 = (latencies[int(len(latencies) * each)] for each in (0.5, 0.99))
        return Cell(per_second, 1000 * cpu / answered, p50, p99, share)
    finally:
        shutil.rmtree(folder)


def attempt(subject: Subject, state: str, passes: int, seconds: float, rate: float) -> Cell | str:
    """Measure; or say why the server was down."""
    try:
        return measure(subject, state, passes, seconds, rate)
    except DownError as error:
        return str(error)


def passes_for(seconds: float) -> int:
    """Return how often the application does its work in that time, on this machine, undisturbed."""
    basket = {"items": [{"id": number, "name": "x" * 20, "price": number * 1.1} for number in range(50)]}
    best = min(_timed(basket) for _ in range(200))
    return max(1, round(seconds / best))


def _timed(basket: object) -> float:
    began = time.perf_counter()
    json.loads(json.dumps(basket))
    return time.perf_counter() - began


def row(state: str, subject: Subject, cells: list[Cell], floor: list[Cell]) -> list[str]:
    """Return a row of the table: medians with spread, each beside what it is to "nothing"."""

    def columns(name: str, digits: int) -> list[str]:
        values = [getattr(cell, name) for cell in cells]
        text = f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f}-{max(values):.{digits}f})"
        if subject.sink == "nothing" or not all(values):
            return [text, ""]
        ratios = [getattr(cell, name) / getattr(base, name) for cell, base in zip(cells, floor, strict=True)]
        return [text, f"{100 * (statistics.median(ratios) - 1):+.1f}%"]

    kept = [cell.kept for cell in cells if cell.kept is not None]
    share = f"{100 * min(kept):.1f}%" if kept else ""
    numbers = [*columns("per_second", 0), *columns("cpu_ms", 2), *columns("p50_ms", 1), *columns("p99_ms", 1)]
    return [f"{subject.name}, {state}", *numbers, share]


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0, help="for each of the two loads of a cell")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second where latency is measured")
    parser.add_argument("--only", nargs="+", default=[""], metavar="WORD", help='rows with one of these, and "nothing"')
    parser.add_argument("--state", nargs="+", default=[""], metavar="WORD", help="states with one of these")
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.rounds, options.only, options.state = 1.0, 1, ["a thread"], ["up"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("told to end"))  # not without ending what it has started
    report = Report("requests", options, "fapilog", "gunicorn", "boto3", "watchtower")
    passes = passes_for(WORK_SECONDS)
    subjects = [each for each in SUBJECTS if each.sink == "nothing" or any(word in each.name for word in options.only)]
    frontends = {each.frontend for each in subjects if each.sink != "nothing"}
    states = [each for each in STATES if any(word in each for word in options.state)]
    missing = [each for each in subjects if not each.is_installed]
    subjects = [each for each in subjects if each.frontend in frontends and each not in missing]
    chance = random.Random(1)
    cells: dict[tuple[str, Subject], list[Cell]] = {}
    down: dict[tuple[str, Subject], str] = {}
    for _ in range(options.rounds):
        for state in states:
            for subject in chance.sample(subjects, len(subjects)):
                cell = attempt(subject, state, passes, options.seconds, options.rate)
                print(f"{state}, {subject.name}: {cell}", file=sys.stderr, flush=True)
                if isinstance(cell, Cell):
                    cells.setdefault((state, subject), []).append(cell)
                else:
                    down[state, subject] = cell
    load = "wrk" if shutil.which("wrk") else "Python threads"
    report.say(
        f"{WORKERS} workers, {passes} passes of work a request, {LINES} lines; {load}; latencies at {options.rate:.0f} "
        "requests/s. Medians of rounds (least to most); each percentage is the median of the ratios to the same "
        'library\'s "nothing" in the same round.'
    )
    rows = []
    bars: dict[str, dict[str, float]] = {}
    for state in states:
        for subject in subjects:
            if (state, subject) in cells and (state, subject) not in down:
                found = cells[state, subject]
                rows.append(row(state, subject, found, cells[state, subject.floor(subjects)]))
                bars.setdefault(subject.name, {})[state] = statistics.median(cell.p99_ms for cell in found)
    report.table(("logging, CloudWatch", "requests/s", "", "CPU ms", "", "p50 ms", "", "p99 ms", "", "kept"), rows)
    for (state, subject), why in down.items():
        report.say(f"{subject.name}, {state}: the server is down. {why}")
    for subject in missing:
        report.say(f"{subject.name}: {', '.join(subject.packages)} are not all installed.")
    report.bars(
        f"p99 of requests, by what they log with and how CloudWatch is ({options.rate:.0f} requests/s)", "ms", bars
    )
    report.save()


if __name__ == "__main__":
    main()
