"""Processes of a benchmark, and the strict server as one that can be taken away and comes back (Linux).

python -m benchmarks.staging.processes     # is that server; "down" and "up" on its stdin
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks.staging.subjects import ROOT
from cwsink.testing import StrictCloudWatch
from cwsink.testing.process import SpawnedCloudWatch

ID_PATTERN: Final = r"id=([\w.-]+)"
_POLL_SECONDS: Final = 0.02


class BrokenError(Exception):
    """Something does not start, or does not end: there is nothing to measure."""


class Children:
    """Every process that was started, each in a session of its own: ended and waited for, whatever happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running: list[subprocess.Popen[str]] = []
        self._is_over = False

    def start(self, command: Sequence[str], log: Path, **options: Any) -> subprocess.Popen[str]:
        """Start one; what it says goes to `log`."""
        with self._lock, log.open("a") as said:
            if self._is_over:
                raise BrokenError("the benchmark is being stopped")
            settings: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": said, "stderr": said, **options}
            child: subprocess.Popen[str] = subprocess.Popen(command, text=True, start_new_session=True, **settings)
            self._running.append(child)
        return child

    def end(self, child: subprocess.Popen[str]) -> None:
        """Kill what is left of its session, and wait until it is gone: a gunicorn's workers are not our children."""
        while members := session_of(child.pid):
            _kill(members)
            child.poll()
            time.sleep(_POLL_SECONDS)
        child.wait()
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()
        with self._lock, contextlib.suppress(ValueError):
            self._running.remove(child)

    def end_all(self) -> None:
        """Start none any more, and kill the rest; who waits for one of them sees it end."""
        with self._lock:
            self._is_over = True
            running = list(self._running)
        for child in running:
            _kill(session_of(child.pid))


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def session_of(leader: int) -> list[int]:
    """Return the live processes of a session, from /proc."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, _, _, session = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:4]
            except OSError:
                continue  # it has just gone
            if int(session) == leader and state != "Z":
                found.append(int(entry))
    return found


class CloudWatch:
    """The strict server in a process of its own."""

    def __init__(self, children: Children, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.staging.processes"]
        self._children = children
        pipe = subprocess.PIPE
        self._child = children.start(command, folder / "cloudwatch.log", cwd=ROOT, stdin=pipe, stdout=pipe)
        self.url = self._answer()
        self._server = SpawnedCloudWatch(self._child, self.url)

    def go(self, way: str) -> None:
        """Go "down" (connections are refused) or "up" (at the same port, with all it had)."""
        assert self._child.stdin is not None, "asked for a pipe"
        self._child.stdin.write(f"{way}\n")
        self._child.stdin.flush()
        self._answer()

    def throttle(self, *, everything: bool) -> None:
        """Answer ThrottlingException to every call; or to none."""
        self._server.misbehave(**({"fail_next": {"n": 1_000_000}} if everything else {"clear": {}}))

    def ids(self) -> set[str]:
        """Return the ids of what has arrived."""
        return self._server.ids()

    def count(self) -> int:
        """Return how many ids have arrived."""
        return int(self._server.summary()["distinct_ids"])

    def repeated(self) -> int:
        """Return how many events had an id that had arrived before."""
        return int(self._server.summary()["repeated_ids"])

    def close(self) -> None:
        """End it."""
        self._children.end(self._child)

    def _answer(self) -> str:
        assert self._child.stdout is not None, "asked for a pipe"
        if not (line := self._child.stdout.readline()):
            raise BrokenError("CloudWatch has ended")
        return line.strip()


def serve() -> None:
    """Be CloudWatch: say where, then do what each line of stdin says, until it is closed."""
    with StrictCloudWatch(keep_events=False, id_pattern=ID_PATTERN) as server:
        print(server.endpoint_url, flush=True)
        for line in sys.stdin:
            if line.strip() == "down":
                server.stop()
            else:
                server.start()
            print("done", flush=True)


if __name__ == "__main__":
    serve()
