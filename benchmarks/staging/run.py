"""One cell of `benchmarks.losses`: an application that logs in one way, its CloudWatch, and what can happen to them."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, Final

from benchmarks.staging.flushers import await_flushers, kill_flushers
from benchmarks.staging.processes import BrokenError, Children, CloudWatch, session_of
from benchmarks.staging.subjects import Subject

GROUP: Final = "/benchmark/losses"
WORKERS: Final = 4
CLIENTS: Final = 4
LINES: Final = 5
# Of a client between two requests: about 600 records a second in all, which keeps no core of two busy.
PAUSE_SECONDS: Final = 0.03
HANG_SECONDS: Final = 90.0
POLL_SECONDS: Final = 0.02
# Several times the second within which all of them send.
SETTLE_SECONDS: Final = 6.0
# Longer than cwsink's longest pause between two tries (20 s).
RECOVER_SECONDS: Final = 30.0


class Notes:
    """A file of ids, one line "ID PID" each, that the application adds to."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()

    def read(self) -> dict[str, int]:
        """Return who noted each id."""
        text = self.path.read_text()
        return {id_: int(pid) for id_, pid in map(str.split, text[: text.rfind("\n") + 1].splitlines())}


class Run:
    """One cell: a way to log, an application, and its CloudWatch. A context manager."""

    def __init__(self, subject: Subject, children: Children, chance: random.Random, scale: float) -> None:
        self.chance = chance
        self.scale = scale
        self.children = children
        self.folder = Path(tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp"))
        self._subject = subject
        self._service: subprocess.Popen[str] | None = None
        self._load: list[threading.Thread] = []
        self._has_load = threading.Event()
        self._starts = 0
        self.returned = Notes(self.folder / "returned")
        self.cloudwatch = CloudWatch(children, self.folder)

    def __enter__(self) -> Run:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.stop_load()
            if self._service is not None:
                self.children.end(self._service)
        finally:
            self.kill_flushers()
            self.cloudwatch.close()
            shutil.rmtree(self.folder)

    # What a row is made of.

    def start(self, *options: str, seconds: float = 1.5) -> None:
        """Start gunicorn and the load; wait until all workers have logged, and so much longer."""
        before = set(self.returned.read().values())
        with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
            bind = ["-w", str(WORKERS), "-b", f"fd://{listener.fileno()}", "--no-control-socket"]
            command = [sys.executable, "-m", "gunicorn", "benchmarks.staging.application:app", *bind, *options]
            self._service = self._start(command, pass_fds=[listener.fileno()])
            port = listener.getsockname()[1]
        self._starts += 1
        self._has_load.set()
        self._load = [threading.Thread(target=self._visit, args=(port, client)) for client in range(CLIENTS)]
        for client in self._load:
            client.start()
        self.wait_until(lambda: len(self.generations() - before) >= WORKERS, "all workers log")
        self.go_on(seconds)

    def go_on(self, seconds: float) -> None:
        """Let time pass, under load or not."""
        time.sleep(seconds * self.scale)

    def generations(self) -> set[int]:
        """Return every process that has logged."""
        return set(self.returned.read().values())

    def workers(self) -> list[int]:
        """Return the workers."""
        assert self._service is not None
        return [pid for pid in session_of(self._service.pid) if pid != self._service.pid]

    def kill(self, pid: int) -> None:
        """SIGKILL a worker, and go on until another has taken its place and has logged."""
        before = self.generations()
        os.kill(pid, signal.SIGKILL)
        self.wait_until(lambda: self.generations() - before, "another worker")
        self.go_on(1.0)

    def kill_flushers(self) -> None:
        """SIGKILL what cwsink has started by itself; the next append starts it anew."""
        kill_flushers(self.folder / "spools")

    def power_off(self) -> None:
        """SIGKILL all of the service at once, under load."""
        assert self._service is not None
        os.killpg(self._service.pid, signal.SIGKILL)
        self.kill_flushers()
        self._end()

    def stop(self) -> None:
        """SIGTERM, under load unless it has been stopped, and wait for the end."""
        assert self._service is not None
        self._service.send_signal(signal.SIGTERM)
        self._end()

    def settle(self, seconds: float = SETTLE_SECONDS) -> None:
        """Stop the load, and wait until all has arrived, or for so long."""
        self.stop_load()
        seconds *= self.scale
        expected = self.returned.read().keys()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if self.cloudwatch.count() >= len(expected) and expected <= self.cloudwatch.ids():
                return
            time.sleep(10 * POLL_SECONDS)

    def script(self, count: int, end: str, *, per_second: float = 0) -> None:
        """Run the application as a script that logs, at a rate or as fast as it goes, and ends so."""
        command = [sys.executable, "-m", "benchmarks.staging.application", str(count), str(per_second), end]
        self._service = self._start(command, stdin=subprocess.PIPE)
        if end == "shut-down":
            self.wait_until(lambda: len(self.returned.read()) >= count, "all is logged", 10 * POLL_SECONDS)
            self.settle(RECOVER_SECONDS)
        assert self._service.stdin is not None
        self._service.stdin.close()
        self._end()

    def flush(self) -> None:
        """Deliver what is left in a spool."""
        if any((self.folder / "spools").glob("*/FORMAT")):
            self._service = self._start([sys.executable, "-m", "cwsink", "flush", "--once"])
            self._end()

    def wait_until(self, claim: Callable[[], object], what: str, poll_seconds: float = POLL_SECONDS) -> None:
        """Wait until something is so."""
        until = time.monotonic() + HANG_SECONDS
        while not claim():
            if time.monotonic() > until or self._service is None or self._service.poll() is not None:
                raise BrokenError(f"never: {what}. {self._last_words()}")
            time.sleep(poll_seconds)

    def stop_load(self) -> None:
        """Send no more requests."""
        self._has_load.clear()
        for client in self._load:
            client.join()
        self._load = []

    # How.

    def _start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        environment = self._subject.environment(
            self.folder,
            GROUP,
            self.cloudwatch.url,
            FAPILOG_CORE__DROP_ON_FULL="false",
            FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS="1s",
            LINES=str(LINES),
            RETURNED=str(self.returned.path),
        )
        return self.children.start(command, self.folder / "log", cwd=self.folder, env=environment, **options)

    def _end(self) -> None:
        assert self._service is not None
        try:
            self._service.wait(HANG_SECONDS)
        except subprocess.TimeoutExpired:
            raise BrokenError(f"it does not end. {self._last_words()}") from None
        finally:
            self.stop_load()
            self.children.end(self._service)
            self._service = None
        await_flushers(self.folder / "spools")  # it sends what is left, or gives up

    def _visit(self, port: int, client: int) -> None:
        number = 0
        while self._has_load.is_set():
            number += 1
            connection = HTTPConnection("127.0.0.1", port, timeout=HANG_SECONDS)
            try:
                connection.request("GET", f"/{self._starts}.{client}.{number}")
                connection.getresponse().read()
            except (OSError, HTTPException):
                pass  # its worker was killed, or gunicorn has gone; what it had noted counts
            finally:
                connection.close()
            time.sleep(PAUSE_SECONDS)

    def _last_words(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").strip().splitlines()
        return f"Its last line: {lines[-1] if lines else ''}"
