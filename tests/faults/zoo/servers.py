"""How each animal of the zoo is started, and what can be seen of it from outside.

`SPECIES` is the table; `Animal` is one that runs: its processes (those of its session, from
/proc), who leads, what was acknowledged, and clients that send requests without a pause. The
application is the same everywhere, see app.py and crew.py.
"""

from __future__ import annotations

import http.client
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cwsink.spool import directory, leader_state
from cwsink.testing import StrictCloudWatch
from tests.faults.zoo.crew import CHILDREN, STOP_VARIABLE, VICTIM_VARIABLE
from tests.faults.zoo.oracle import FILE_VARIABLE, FLAVOUR_VARIABLE, Acknowledged

HANG_SECONDS = 60.0
POLL_SECONDS = 0.01
CLIENTS = 4
PAUSE_SECONDS = 0.003  # of a client between two requests, so that the machine is busy and not swamped
GROUP = "/zoo"
_APP = "tests.faults.zoo.app"


@dataclass(frozen=True)
class Species:
    """A kind of server; `{fd}` in its arguments is the listening socket."""

    arguments: tuple[str, ...]
    serves: bool = False  # answers requests; others log by themselves
    preload: tuple[str, ...] | None = None  # the option, where it exists
    recycling: tuple[str, ...] = ()  # the option that ends a worker after some requests or tasks
    recycling_environment: tuple[tuple[str, str], ...] = ()


# The script, not `-m gunicorn`: after USR2 that has gunicorn's own folder first on sys.path, and its package
# `http` in place of Python's.
_GUNICORN = Path(sys.executable).with_name("gunicorn")


def _gunicorn(application: str, options: str = "") -> Species:
    arguments = f"-w {CHILDREN} -b 127.0.0.1:0 --no-control-socket --graceful-timeout 40 --timeout 60 {options}"
    return Species(
        (str(_GUNICORN), f"{_APP}:{application}", *arguments.split()),
        serves=True,
        preload=("--preload",),
        recycling=("--max-requests", "10", "--max-requests-jitter", "5"),
    )


def _crew(kind: str, *, preloads: bool = False, recycles: bool = False) -> Species:
    return Species(
        ("-m", "tests.faults.zoo.crew", kind),
        preload=("--preload",) if preloads else None,
        recycling_environment=(("ZOO_RECORDS_PER_CHILD", "20"),) if recycles else (),
    )


SPECIES: dict[str, Species] = {
    "gunicorn_sync": _gunicorn("wsgi"),
    "gunicorn_gthread": _gunicorn("wsgi", "-k gthread --threads 4"),
    "gunicorn_uvicorn": _gunicorn("asgi", "-k uvicorn_worker.UvicornWorker"),
    "gunicorn_asgi": _gunicorn("asgi", "-k asgi"),
    "uvicorn": Species(
        tuple(f"-m uvicorn {_APP}:asgi --workers {CHILDREN} --fd {{fd}} --timeout-graceful-shutdown 40".split()),
        serves=True,
        recycling=("--limit-max-requests", "10"),
    ),
    "script": _crew("script"),
    "fork": _crew("fork", preloads=True, recycles=True),
    "spawn": _crew("spawn", recycles=True),
    "forkserver": _crew("forkserver", preloads=True, recycles=True),
    "pool": _crew("pool", preloads=True),
    "celery": Species(
        (*f"-m celery -A tests.faults.zoo.celery_app worker -P prefork -c {CHILDREN}".split(), "--loglevel", "WARNING"),
        recycling=("--max-tasks-per-child", "5"),
    ),
}


class Animal:
    """A running server and all of its processes."""

    def __init__(
        self, name: str, folder: Path, server: StrictCloudWatch, flavour: str, *, preload: bool, recycling: bool
    ) -> None:
        self.name, self.species = name, (species := SPECIES[name])
        folder.mkdir()
        self._stop_file, self._victim_file, self.log = folder / "stop", folder / "victim", folder / "output.log"
        self._acknowledged = Acknowledged(folder / "acknowledged")
        listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._port = listener.getsockname()[1] if "{fd}" in species.arguments else 0
        arguments = [argument.format(fd=listener.fileno()) for argument in species.arguments]
        arguments += (species.preload or ()) if preload else ()
        arguments += species.recycling if recycling else ()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=folder,
                env={
                    **os.environ,
                    **server.environment(),
                    **(dict(species.recycling_environment) if recycling else {}),
                    "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
                    "PYTHONWARNINGS": "default",
                    "FAPILOG_CORE__SINKS": '["cloudwatch"]',
                    "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": GROUP,
                    "FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS": "200ms",
                    "FAPILOG_CLOUDWATCH__SEGMENT_BYTES": "65536",
                    "FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": "30s",
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
        """Return where it listens. gunicorn binds by itself and says where: handed a socket, it cannot do USR2."""
        if not self._port:
            found = re.search(r"Listening at: http://127\.0\.0\.1:(\d+)", self.log.read_text(errors="replace"))
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
        """Return the live processes that have logged, the oldest first."""
        alive = self.processes()
        return [pid for pid in dict.fromkeys(self._acknowledged.by_id().values()) if pid in alive]

    def leader(self) -> int | None:
        """Return the process that leads, if it is alive and one of ours."""
        for path in directory.find_spools():
            state = leader_state.read(directory.open_existing(path, read_only=True))
            if state is not None and state.pid in self.processes():
                return state.pid
        return None

    # Waiting for something to become true.

    def wait_until(self, claim: Callable[[], object], what: str, seconds: float = HANG_SECONDS) -> None:
        """Wait until the claim holds; fail with the animal's own words if it never does."""
        until = time.monotonic() + seconds
        while not claim():
            if time.monotonic() > until:
                raise AssertionError(f"never: {what}; processes {self.processes()}\n{self.words()}")
            time.sleep(POLL_SECONDS)

    def wait_for_records(self, count: int) -> None:
        """Wait until this many more records are acknowledged."""
        goal = len(self.acknowledged()) + count
        self.wait_until(lambda: len(self.acknowledged()) >= goal, f"{count} more records")

    def wait_for_workers(self, *, without: set[int] = frozenset()) -> None:  # type: ignore[assignment]  # not changed
        """Wait until all workers have logged and none of `without` is left."""
        wanted = 1 if "script" in self.species.arguments else CHILDREN
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

    def words(self) -> str:
        """Return what it said, the end of it."""
        return self.log.read_text(errors="replace")[-6_000:]

    # Acting on it.

    def get(self, path: str, timeout: float = HANG_SECONDS) -> str:
        """Request a path; the body of the 200, or OSError or HTTPException."""
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

    def signal_all(self, number: int) -> None:
        """Signal the whole group, as Ctrl-C in a terminal or a killed container does."""
        try:
            os.killpg(self.process.pid, number)
        except ProcessLookupError:
            pass

    def end(self, pid: int, number: int) -> None:
        """Signal a worker, if it is still there: a pool ends all of its own when one is killed."""
        if self.name == "celery":
            _replace(self._victim_file, str(pid))
        else:
            _kill(pid, number)

    def stop(self, way: str) -> None:
        """Tell programs that serve nothing how to end."""
        _replace(self._stop_file, way)

    def close(self) -> None:
        """Leave nothing behind, however the test ended."""
        while processes := self.processes():  # again: one may have been forking
            for pid in processes:
                _kill(pid)
            time.sleep(POLL_SECONDS)
        self.process.wait(HANG_SECONDS)
        self._acknowledged.close()


def _kill(pid: int, number: int = signal.SIGKILL) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        pass


def _replace(path: Path, text: str) -> None:
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


class Visitors:
    """Clients that send one request after the other until they are told to stop. A context manager."""

    def __init__(self, animal: Animal) -> None:
        self._animal = animal
        self._ended = threading.Event()
        self.issued: set[str] = set()
        self.answered: set[str] = set()
        clients = CLIENTS if animal.species.serves else 0
        self._threads = [threading.Thread(target=self._visit, args=(client,)) for client in range(clients)]

    def _visit(self, client: int) -> None:
        number = 0
        while not self._ended.is_set():
            id_ = f"visitor{client}-{number}"
            number += 1
            self.issued.add(id_)
            try:
                self._animal.get(id_)
            except (OSError, http.client.HTTPException):
                # Its worker was ended, or the server is not up yet, or no more: nothing was promised.
                self._ended.wait(POLL_SECONDS)
            else:
                self.answered.add(id_)
                self._ended.wait(PAUSE_SECONDS)

    def __enter__(self) -> Visitors:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(HANG_SECONDS)
            assert not thread.is_alive(), "a client hangs"
