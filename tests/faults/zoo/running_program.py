"""A program of the zoo that runs, a server or another one, and what can be seen of it from outside.

Its processes are those of its session, from /proc. Beside them there are ours: the guard and the flusher, in a session
of their own, known by their command line. What was acknowledged is in a file. Clients send requests without a pause.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import random
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cwsink.spool import directory, leader_state, root
from cwsink.testing import StrictCloudWatch
from tests.faults import own_processes
from tests.faults.own_processes import Process
from tests.faults.zoo import broker
from tests.faults.zoo.acknowledged import FILE_VARIABLE, FLAVOUR_VARIABLE, Acknowledged
from tests.faults.zoo.kinds import KINDS, ProgramKind
from tests.faults.zoo.plain_programs import STOP_VARIABLE, VICTIM_VARIABLE

HANG_SECONDS = 60.0
POLL_SECONDS = 0.01
CLIENTS = 4
PAUSE_SECONDS = 0.003  # of a client between two requests, so that the machine is busy and not swamped
GROUP = "/zoo"
DRAIN_TIMEOUT_SECONDS = 30.0
# No process of ours may be left so long after the program, and what `drain_timeout_seconds` allows.
GONE_SECONDS = 5.0

_SAYS_WHERE = re.compile(r"(?:Listening at: http://|Serving on http://)127\.0\.0\.1:(\d+)")


class RunningProgram:
    """A running server and all of its processes."""

    def __init__(
        self, name: str, folder: Path, server: StrictCloudWatch, flavour: str, *, preload: bool, recycling: bool
    ) -> None:
        self.name, self.kind = name, (kind := KINDS[name])
        folder.mkdir()
        self._stop_file, self._victim_file, self.log = folder / "stop", folder / "victim", folder / "output.log"
        self._socket = folder / "socket"
        self._acknowledged = Acknowledged(folder / "acknowledged")
        self._broker = _Broker() if _takes(kind, "{broker}") else None
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._port = listener.getsockname()[1] if _takes(kind, "{fd}") else 0
        address = self._broker.address if self._broker else ""
        arguments = [
            argument.format(fd=listener.fileno(), socket=self._socket.name, broker=address)
            for argument in kind.arguments
        ]
        arguments += (kind.preload or ()) if preload else ()
        arguments += kind.recycling if recycling else ()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    **server.environment(),
                    **dict(kind.environment),
                    **(dict(kind.recycling_environment) if recycling else {}),
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "PYTHONWARNINGS": "default",
                    "FAPILOG_CORE__SINKS": '["cloudwatch"]',
                    "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": GROUP,
                    "FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS": "200ms",
                    "FAPILOG_CLOUDWATCH__SEGMENT_BYTES": "65536",
                    "FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": f"{DRAIN_TIMEOUT_SECONDS:.0f}s",
                    FLAVOUR_VARIABLE: flavour,
                    FILE_VARIABLE: str(folder / "acknowledged"),
                    STOP_VARIABLE: str(self._stop_file),
                    VICTIM_VARIABLE: str(self._victim_file),
                },
                pass_fds=[listener.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        listener.close()

    # What can be seen.

    @property
    def port(self) -> int:
        """Return where it listens. Some bind by themselves and say where: handed a socket, gunicorn cannot do USR2."""
        if not self._port:
            found = _SAYS_WHERE.search(self.log.read_text(errors="replace"))
            if found is None:
                raise ConnectionRefusedError("it does not listen yet")
            self._port = int(found[1])
        return self._port

    def processes(self) -> dict[int, int]:
        """Return the parent of each live process of its session."""
        found = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    with open(f"/proc/{entry}/stat") as file:
                        state, parent, _, session = file.read().rpartition(")")[2].split()[:4]
                except OSError:
                    continue  # it has just gone
                if int(session) == self.process.pid and state != "Z":
                    found[int(entry)] = int(parent)
        return found

    def acknowledged(self) -> set[str]:
        """Return the ids that were promised so far."""
        return set(self._acknowledged.by_id())

    def generations(self) -> set[int]:
        """Return all processes that ever logged."""
        return set(self._acknowledged.by_id().values())

    def workers(self) -> list[int]:
        """Return the live processes that have logged, the oldest first; not a parent that has logged early."""
        alive = self.processes()
        if self.kind.workers > 1:
            alive.pop(self.process.pid, None)
        return [pid for pid in dict.fromkeys(self._acknowledged.by_id().values()) if pid in alive]

    def ours(self) -> list[Process]:
        """Return the guards and flushers of its spools' root."""
        return own_processes.ours(os.environ[root.ROOT_VARIABLE])

    def leader(self) -> Process | None:
        """Return the flusher that leads, if it is alive."""
        for path in directory.find_spools():
            state = leader_state.read(directory.open_existing(path, read_only=True))
            for each in self.ours():
                if state is not None and state.pid == each.pid:
                    return each
        return None

    # Waiting for something to become true.

    def wait_until(self, claim: Callable[[], Any], what: str, seconds: float = HANG_SECONDS) -> Any:
        """Wait until the claim holds, and return it; fail with the program's own words if it never does."""
        until = time.monotonic() + seconds
        while not (found := claim()):
            if time.monotonic() > until:
                processes = f"processes {self.processes()}, ours {self.ours()}"
                records = f"records of {Counter(self._acknowledged.by_id().values())}"
                raise AssertionError(f"never: {what}; {processes}, {records}\n{self.words()}")
            time.sleep(POLL_SECONDS)
        return found

    def wait_for_records(self, count: int) -> None:
        """Wait until this many more records are acknowledged."""
        goal = len(self.acknowledged()) + count
        self.wait_until(lambda: len(self.acknowledged()) >= goal, f"{count} more records")

    def wait_for_workers(self, *, without: set[int] = frozenset()) -> None:  # type: ignore[assignment]  # not changed
        """Wait until all workers have logged and none of `without` is left."""
        wanted = self.kind.workers
        if self.kind.lives_briefly:
            self.wait_until(lambda: len(self.generations()) >= wanted, f"{wanted} jobs")
            return
        self.wait_until(
            lambda: len(set(self.workers()) - without) >= wanted and not without & self.processes().keys(),
            f"{wanted} workers that are not {without}",
        )

    def has_ended(self, seconds: float) -> bool:
        """Wait so long at most for the end of the first process; tell whether it has come."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def wait_for_end(self) -> None:
        """Wait until the first process and then all others have ended."""
        if not self.has_ended(HANG_SECONDS):
            raise AssertionError(f"it does not end; processes {self.processes()}\n{self.words()}")
        self.wait_until(lambda: not self.processes(), "all its processes have ended")

    def wait_until_ours_are_gone(self) -> None:
        """Wait, as long as it may take and no longer, until no process of ours is left."""
        seconds = DRAIN_TIMEOUT_SECONDS + GONE_SECONDS
        self.wait_until(lambda: not self.ours(), "no process of ours is left", seconds)

    def words(self) -> str:
        """Return what it said, the end of it."""
        return self.log.read_text(errors="replace")[-6_000:]

    # Acting on it.

    def get(self, path: str, timeout: float = HANG_SECONDS) -> str:
        """Request a path; the body of the 200, or OSError or HTTPException."""
        if _takes(self.kind, "{socket}"):
            connection: http.client.HTTPConnection = _LocalConnection(self._socket, timeout)
        else:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request("GET", f"/{path}", headers={"Connection": "close"})
            response = connection.getresponse()
            body = response.read().decode()
            if response.status != 200:
                raise http.client.HTTPException(f"{response.status} {body}")
            return body
        finally:
            connection.close()

    def signal(self, number: int) -> None:
        """Signal the first process."""
        self.process.send_signal(number)

    def get_first(self, paths: list[str]) -> None:
        """Request some paths at once, as soon as it listens; AssertionError if one is not answered."""
        with ThreadPoolExecutor(len(paths)) as clients:
            asked = {
                path: clients.submit(self.wait_until, functools.partial(self._is_answered, path), f"{path} is answered")
                for path in paths
            }
        missing = [f"{path}: {each.exception()!r}" for path, each in asked.items() if each.exception()]
        assert not missing, f"{missing}\n{self.words()}"

    def _is_answered(self, path: str) -> bool:
        """Request a path. False: it has no socket yet, or does not listen to it."""
        try:
            return bool(self.get(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return False

    def ask_to_end(self) -> None:
        """SIGTERM to the first process; to all where it would leave its children behind."""
        self.signal_all(signal.SIGTERM) if self.kind.leaves_children else self.signal(signal.SIGTERM)

    def signal_group(self, number: int) -> None:
        """Signal the whole group, as Ctrl-C in a terminal does."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, number)

    def signal_all(self, number: int) -> None:
        """Signal all processes, those in groups of their own, too."""
        self.signal_group(number)
        for pid in self.processes():
            if _group_of(pid) != self.process.pid:
                _kill(pid, number)

    def kill_all(self, *, ours: bool = False) -> None:
        """SIGKILL to all, until none is left; to our processes, too, if the whole host is to go."""
        while (processes := self.processes()) or (ours and self.ours()):  # again: one may have been forking
            if processes:
                self.signal_group(signal.SIGKILL)
            for pid in processes:
                _kill(pid)
            if ours:
                self.kill_ours()
            time.sleep(POLL_SECONDS)

    def kill_ours(self) -> None:
        """SIGKILL to the guard and the flusher, the guard first, which would fork another flusher."""
        for each in sorted(self.ours(), key=lambda each: each.name != own_processes.GUARD):
            _kill(each.pid)

    def end_one(self, rng: random.Random, number: int) -> None:
        """Signal a worker, and wait until it has ended."""
        if self.kind.lives_briefly:
            _replace(self._victim_file, broker.NEXT)
            self.wait_until(lambda: not self._victim_file.exists(), "a job takes it")
            return
        while not (workers := self.workers()):
            self.wait_until(self.workers, "a worker")
        victim = workers[0] if self.kind.is_delicate else rng.choice(workers)
        if self.name == "celery":
            _replace(self._victim_file, str(victim))
        else:
            _kill(victim, number)  # if it is still there: a pool ends all of its own when one is killed
        self.wait_until(lambda: victim not in self.processes(), "it has ended")
        if self.kind.is_delicate:
            self.wait_for_workers()

    def stop(self, way: str) -> None:
        """Tell programs that serve nothing how to end."""
        _replace(self._stop_file, way)

    def close(self) -> None:
        """Leave nothing behind, however the test ended."""
        self.kill_all()
        self.process.wait(HANG_SECONDS)
        self._acknowledged.close()
        if self._broker:
            self._broker.close()


class _LocalConnection(http.client.HTTPConnection):
    """To a socket in the file system."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to it."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class _Broker:
    """A Redis with jobs, in a process of its own."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", broker.__name__],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        assert select.select([self._process.stdout], [], [], HANG_SECONDS)[0], "no broker"
        self.address = f"127.0.0.1:{int(self._process.stdout.readline())}"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.communicate()


def _takes(kind: ProgramKind, what: str) -> bool:
    return any(what in argument for argument in kind.arguments)


def _group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class Clients:
    """Clients that send one request after the other until they are told to stop. A context manager."""

    def __init__(self, program: RunningProgram) -> None:
        self._program = program
        self._ended = threading.Event()
        self.issued: set[str] = set()
        self.answered: set[str] = set()
        clients = CLIENTS if program.kind.serves else 0
        self._threads = [threading.Thread(target=self._send_requests, args=(client,)) for client in range(clients)]

    def _send_requests(self, client: int) -> None:
        number = 0
        while not self._ended.is_set():
            id_ = f"client{client}-{number}"
            number += 1
            self.issued.add(id_)
            try:
                self._program.get(id_)
            except (OSError, http.client.HTTPException):
                # Its worker was ended, or the server is not up yet, or no more: nothing was promised.
                self._ended.wait(POLL_SECONDS)
            else:
                self.answered.add(id_)
                self._ended.wait(PAUSE_SECONDS)

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS)
            assert not thread.is_alive(), "a client hangs"
