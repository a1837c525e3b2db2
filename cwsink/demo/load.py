"""Sends HTTP requests to the web server from several threads, and notes which worker answered.

A worker may be killed before it answers. Its request is sent again under another id, and the
application logs the id of each try. Therefore an id that is twice in CloudWatch is a duplicate,
and nothing else. (gunicorn's sync workers close each connection; other kinds keep it alive.)
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Final

THREADS: Final = 8
# This is long, because the first requests wait until the workers have started.
REQUEST_TIMEOUT_SECONDS: Final = 15.0
STOP_SECONDS: Final = 5.0
# A person can follow the demo at this rate, and no worker runs at its full speed. If the requests do not fit
# into the time, they are sent faster.
USUAL_PER_SECOND: Final = 400.0
MOST_SECONDS: Final = 10.0
# The pause before another try, while the server has not started yet or a worker has gone.
_RETRY_SECONDS: Final = 0.05
_PATHS: Final = ("/", "/products/17", "/basket", "/checkout")


@dataclass
class Answers:
    """The clients' notes. Several threads fill them, each with a single atomic operation.

    Attributes:
        sent: the ids of all tries.
        answered: id -> pid of the worker that answered, which it does after it has logged.
        broken: the ids of the tries that were not answered.
    """

    sent: list[str] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Load:
    """Sends so many requests, each until it is answered. It is a context manager, which stops the threads."""

    def __init__(self, port: int, requests: int) -> None:
        self.answers = Answers()
        self.requests = requests
        self._port = port
        self._numbers = itertools.count(1)
        self._pace_seconds = min(1 / USUAL_PER_SECOND, MOST_SECONDS / requests)
        self._began: float | None = None  # when the first answer came
        self._is_stopped = threading.Event()
        self._threads = [threading.Thread(target=self._send, daemon=True) for _ in range(THREADS)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def done(self) -> int:
        """How many requests are answered."""
        return len(self.answers.answered)

    @property
    def per_second(self) -> float:
        """Requests answered per second so far."""
        return self.done / max(time.monotonic() - self._began, 0.001) if self._began else 0.0

    @property
    def is_running(self) -> bool:
        """Tell whether a thread still has requests to send."""
        return any(thread.is_alive() for thread in self._threads)

    def workers(self) -> list[int]:
        """Return the pids of all workers that have answered, in order of their first answer."""
        return list(dict.fromkeys(self.answers.answered.copy().values()))

    def stop(self) -> None:
        """Send no more requests, and wait a few seconds for those in flight."""
        self._is_stopped.set()
        until = time.monotonic() + STOP_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _send(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=REQUEST_TIMEOUT_SECONDS)
        for number in self._numbers:
            if number > self.requests:
                break
            if self._began:
                self._is_stopped.wait(max(0.0, self._began + number * self._pace_seconds - time.monotonic()))
            for attempt in itertools.count():
                if self._is_stopped.is_set():
                    return
                name = f"r-{number:06d}" + (f"-again-{attempt}" if attempt else "")
                if self._try(connection, name, _PATHS[number % len(_PATHS)]):
                    break
                self._is_stopped.wait(_RETRY_SECONDS)

    def _try(self, connection: http.client.HTTPConnection, name: str, path: str) -> bool:
        """Send one try, and tell whether it was answered. A connection that the server has closed is opened again."""
        self.answers.sent.append(name)
        try:
            connection.request("GET", path, headers={"X-Request-Id": name})
            response = connection.getresponse()
            body = response.read()
            if response.status == http.client.OK:
                self.answers.answered[name] = int(body.split()[-1])
                self._began = self._began or time.monotonic()
                return True
        except (OSError, http.client.HTTPException):
            pass
        connection.close()
        self.answers.broken.append(name)
        return False
