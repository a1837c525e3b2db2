"""`spawn()`: the strict server in a process of its own (I/O).

It is for benchmarks, whose client must not share the server's GIL. The child is
`python -m cwsink.testing`, which prints its URL. It ends when its stdin is closed.
Therefore it cannot outlive the process that spawned it, however that one ends.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import msgspec

import cwsink
from cwsink.testing import control
from cwsink.testing.store import StoredRequest

# A hung control channel must fail a benchmark, not hang it.
CONTROL_TIMEOUT_SECONDS: Final = 60.0
STOP_TIMEOUT_SECONDS: Final = 10.0


class SpawnedCloudWatch:
    """A strict server in a child process, made by `spawn`. As a context manager it stops the server at the end."""

    def __init__(self, child: subprocess.Popen[str], endpoint_url: str) -> None:
        self._child = child
        self.endpoint_url = endpoint_url

    @property
    def pid(self) -> int:
        """The child's process id, e.g. to read its CPU time."""
        return self._child.pid

    def summary(self) -> dict[str, Any]:
        """Return the counts of everything, see `control.summary`."""
        return msgspec.json.decode(self._ask("GET", "summary"), type=dict[str, Any])

    def messages(self) -> list[str]:
        """Return the accepted messages in arrival order."""
        return msgspec.json.decode(self._ask("GET", "messages"), type=list[str])

    def requests(self) -> list[StoredRequest]:
        """Return all PutLogEvents calls in arrival order."""
        return msgspec.json.decode(self._ask("GET", "requests"), type=list[StoredRequest])

    def ids(self) -> set[str]:
        """Return the distinct ids of accepted events. Empty without an `id_pattern`."""
        return msgspec.json.decode(self._ask("GET", "ids"), type=set[str])

    def misbehave(self, **faults: Any) -> None:
        """Set attributes and call methods of the server's `Faults`.

        Example:
            server.misbehave(latency_seconds=0.2, fail_next={"n": 5})
        """
        self._ask("POST", "faults", msgspec.json.encode(faults))

    def reset(self) -> None:
        """Forget groups, events, requests, violations and faults."""
        self._ask("POST", "reset")

    def stop(self) -> None:
        """End the child and reap it. A second call does nothing."""
        # To close its stdin may not be enough, because a process that was forked meanwhile holds it open, too.
        self._child.terminate()
        if self._child.stdin is not None:
            self._child.stdin.close()
        try:
            self._child.wait(STOP_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()

    def __enter__(self) -> SpawnedCloudWatch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _ask(self, method: str, name: str, body: bytes = b"") -> bytes:
        connection = http.client.HTTPConnection(
            self.endpoint_url.removeprefix("http://"), timeout=CONTROL_TIMEOUT_SECONDS
        )
        try:
            connection.request(method, control.PREFIX + name, body)
            response = connection.getresponse()
            answer = response.read()
        finally:
            connection.close()
        if response.status != 200:
            raise ValueError(f"the strict server refused {name}: {answer.decode()}")
        return answer


def spawn(*, keep_events: bool = True, id_pattern: str | None = None, port: int = 0) -> SpawnedCloudWatch:
    """Start a strict server in its own process and wait until it listens.

    Args:
        keep_events: False counts accepted events without keeping them, so memory does not grow.
        id_pattern: regular expression of an event's id. The summary then counts
            distinct_ids and repeated_ids, which costs about 1 us an event.
        port: 0 lets the kernel choose.

    Raises:
        RuntimeError: the server did not start; its own message is on stderr.
    """
    command = [sys.executable, "-m", "cwsink.testing", "--port", str(port), "--until-stdin-closes"]
    if not keep_events:
        command.append("--forget-events")
    if id_pattern is not None:
        command += ["--id-pattern", id_pattern]
    # A source tree may be on sys.path only, where pytest's `pythonpath` puts it. A child does not inherit that.
    root = str(Path(cwsink.__file__).parent.parent)
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert child.stdout is not None, "asked for a pipe"
    endpoint_url = child.stdout.readline().strip()
    server = SpawnedCloudWatch(child, endpoint_url)
    if not endpoint_url.startswith("http://"):
        server.stop()
        raise RuntimeError("the strict server did not start: its message is on stderr")
    return server
