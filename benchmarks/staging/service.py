"""gunicorn with an application that works and logs, and a CloudWatch of its own in one of four states (Linux).

Several services stand ready at once and take turns: but for its turn, each is stopped (SIGSTOP). What the
machine's other tenants do in a minute then falls on all of them alike, and what a service has still to
deliver costs nobody else's time.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.staging import load
from benchmarks.staging.flushers import await_flushers, flushers_of, kill_flushers
from benchmarks.staging.processes import session_of
from benchmarks.staging.subjects import Subject
from cwsink.spool import leader_state
from cwsink.spool.directory import find_spools, open_existing
from cwsink.spool.survey import survey
from cwsink.testing.process import spawn

WORKERS: Final = 4
LINES: Final = 3
STATES: Final = ("up", "throttled", "black hole", "refused")
_WARM_UP_SECONDS: Final = 2.0
_WAKE_UP_SECONDS: Final = 0.5
_HANG_SECONDS: Final = 90.0
_POLL_SECONDS: Final = 0.05
_GROUP: Final = "/benchmark/requests"

_APP: Final = """
import json, mmap, os
from time import thread_time_ns
from benchmarks.staging.logger import open_logger, structured

PASSES, LINES = int(os.environ["PASSES"]), int(os.environ["LINES"])
BASKET = {"items": [{"id": number, "name": "x" * 20, "price": number * 1.1} for number in range(50)]}

log = structured(open_logger())
with open(f"logging-{os.getpid()}", "w+b") as file:
    file.write(bytes(8))
    file.flush()
    NS = memoryview(mmap.mmap(file.fileno(), 8)).cast("Q")  # that this worker has spent in calls of the logger


def app(environ, start_response):
    for _ in range(PASSES):
        json.loads(json.dumps(BASKET))
    began = thread_time_ns()
    for number in range(LINES):
        log("request done", path=environ["PATH_INFO"], status=200, number=number, padding="y" * 180)
    NS[0] += thread_time_ns() - began
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\\n"]
"""


class DownError(Exception):
    """The application does not answer, or does not end."""


class Spent(NamedTuple):
    """CPU time, in seconds: of all processes; in the logger's calls; in no thread that serves requests."""

    all: float
    calls: float
    beside: float

    def since(self, before: Spent) -> Spent:
        """Return what was spent since then."""
        return Spent(*(now - then for now, then in zip(self, before, strict=True)))


class Turn(NamedTuple):
    """What a service did in one turn: at a fixed rate, then flat out (`answered` requests, with `spent`)."""

    latencies_ms: list[float]
    per_second: float
    answered: int
    spent: Spent


class Service:
    """One gunicorn, started and stopped as a deployment does."""

    def __init__(self, subject: Subject, state: str, passes: int, rate: float) -> None:
        """Start it, have it load what it loads late, and stop it until its turn. Raises DownError."""
        self._stack = ExitStack()
        try:
            folder = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
            self._stack.callback(shutil.rmtree, folder)
            self._folder = Path(folder)
            self._spools = self._folder / "spools"
            self._stack.callback(kill_flushers, self._spools)
            self._cloudwatch = _CloudWatch(state, self._stack)
            self._port, self._process = self._stack.enter_context(
                _gunicorn(subject, self._cloudwatch.url, self._folder, passes)
            )
            self._answered = 0
            with self._said():
                load.get(self._port)  # it is up
                self._answered += 1 + len(load.paced(self._port, _WARM_UP_SECONDS, rate))
            if subject.sink == "cwsink":
                self._await_leader()
            self._signal(signal.SIGSTOP)
        except BaseException:
            self.close()
            raise

    def turn(self, seconds: float, rate: float) -> Turn:
        """Load it: `seconds` at `rate`, then as long flat out. Raises DownError."""
        with self._said():
            self._signal(signal.SIGCONT)
            self._answered += len(load.paced(self._port, _WAKE_UP_SECONDS, rate))
            latencies = load.paced(self._port, seconds, rate)
            before = self._spent()
            per_second, answered = load.flat_out(self._port, seconds)
            spent = self._spent().since(before)
            self._signal(signal.SIGSTOP)
        self._answered += len(latencies) + answered
        return Turn(latencies, per_second, answered, spent)

    def end(self) -> float:
        """Stop gunicorn. Returns which share of the lines logged has arrived, or waits in a spool. Raises DownError."""
        with self._said():
            self._signal(signal.SIGCONT)
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(_HANG_SECONDS)
        await_flushers(self._spools)  # it sends the rest, or gives up
        kept = self._cloudwatch.accepted()
        kept += sum(survey(open_existing(path)).pending for path in find_spools(str(self._spools)))
        return min(1.0, kept / (LINES * self._answered))

    def close(self) -> None:
        """Kill what runs, and clear up."""
        self._stack.close()

    def _await_leader(self) -> None:
        """Wait until somebody leads: on a slow machine that process is still starting. Raises DownError."""
        until = time.monotonic() + _HANG_SECONDS
        while not any(map(leader_state.read, map(open_existing, find_spools(str(self._spools))))):
            if time.monotonic() > until:
                raise DownError("nobody delivers")
            time.sleep(_POLL_SECONDS)

    def _signal(self, number: int) -> None:
        for pid in self._pids():
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def _pids(self) -> list[int]:
        """Return gunicorn's processes, and those that cwsink has started in a session of their own."""
        return session_of(self._process.pid) + flushers_of(self._spools)

    def _spent(self) -> Spent:
        """Return what the living threads of the service have used."""
        calls = {path.name.partition("-")[2]: path.read_bytes() for path in self._folder.glob("logging-*")}
        everywhere = serving = 0
        for pid in map(str, self._pids()):
            for task in Path(f"/proc/{pid}/task").iterdir():
                nanoseconds = int((task / "schedstat").read_text().split()[0])
                everywhere += nanoseconds
                if pid in calls and task.name == pid:  # a worker's main thread
                    serving += nanoseconds
        called = sum(int.from_bytes(each, sys.byteorder) for each in calls.values())
        return Spent(everywhere / 1e9, called / 1e9, (everywhere - serving) / 1e9)

    @contextmanager
    def _said(self) -> Iterator[None]:
        """Have an error tell what gunicorn said last."""
        try:
            yield
        except (OSError, HTTPException, subprocess.SubprocessError) as error:
            said = (self._folder / "log").read_text().strip().splitlines()
            text = f"{type(error).__name__}: {error}; gunicorn's last line: {said[-1] if said else ''}"
            raise DownError(text) from error


class _CloudWatch:
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
def _gunicorn(subject: Subject, url: str, folder: Path, passes: int) -> Iterator[tuple[int, subprocess.Popen[bytes]]]:
    """Run the application; yields its port and its process, which leads a session. Killed at the end."""
    (folder / "shop.py").write_text(_APP)
    env = subject.environment(folder, _GROUP, url, PASSES=str(passes), LINES=str(LINES))
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener, open(folder / "log", "wb") as log:
        command = [sys.executable, "-m", "gunicorn", "shop:app", "-w", str(WORKERS), "-b", f"fd://{listener.fileno()}"]
        command.append("--no-control-socket")  # it would lie in the home directory
        command += ["--timeout", "0"]  # a worker that is stopped does not hang
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
        yield port, process
    finally:
        while members := session_of(process.pid):
            for pid in members:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            process.poll()
            time.sleep(0.02)
        process.wait()


def passes_for(seconds: float) -> int:
    """Return how often the application does its work in that time, on this machine, undisturbed."""
    basket = {"items": [{"id": number, "name": "x" * 20, "price": number * 1.1} for number in range(50)]}
    best = min(_timed(basket) for _ in range(200))
    return max(1, round(seconds / best))


def _timed(basket: object) -> float:
    began = time.perf_counter()
    json.loads(json.dumps(basket))
    return time.perf_counter() - began
