"""HTTP requests to the web server, from several threads, and who answered them.

Every try has an id of its own, which the application logs: a request whose worker was
killed before it answered is sent again under another id, so that a repeated id in
CloudWatch is a duplicate and nothing else. (gunicorn's sync workers close each connection;
with others it is kept alive.)
"""

from __future__ import annotations

import http.client
import itertools
import threading
import time
from dataclasses import dataclass, field
from typing import Final

THREADS: Final = 8
# Long: the first ones wait until the workers are up.
REQUEST_TIMEOUT_SECONDS: Final = 15.0
STOP_SECONDS: Final = 5.0
# Slow enough to be watched, and so that no worker is flat out: fapilog's queue would grow, and what
# a SIGKILL takes from that is not what this is about. More requests than fit are sent faster.
USUAL_PER_SECOND: Final = 400.0
MOST_SECONDS: Final = 10.0
# A server that is not up yet, or went away, is not asked at full speed.
_RETRY_SECONDS: Final = 0.05
_PATHS: Final = ("/", "/products/17", "/basket", "/checkout")


@dataclass
class Answers:
    """What the clients saw. Filled by several threads, with one operation that is atomic each.

    Attributes:
        sent: the ids of all tries.
        answered: id -> pid of the worker that answered; it has logged the request before.
        broken: the ids of tries that were not answered.
    """

    sent: list[str] = field(default_factory=list)
    answered: dict[str, int] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)


class Load:
    """Sends `requests` requests, each until it is answered. A context manager that stops it."""

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
        """Tell whether there are requests left to send."""
        return any(thread.is_alive() for thread in self._threads)

    def workers(self) -> list[int]:
        """Return the pids of all workers that have answered, in order of their first answer."""
        return list(dict.fromkeys(self.answers.answered.copy().values()))

    def stop(self) -> None:
        """Let the requests in flight end, and send no more. Bounded in time."""
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
        """Send one try. Whether the server keeps the connection alive or not, it is opened when needed."""
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
