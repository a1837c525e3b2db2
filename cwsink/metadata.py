"""One request to a metadata service (EC2, ECS). Loaded only if a name of the host is asked for there."""

from __future__ import annotations

import contextlib
import socket
from http import client
from typing import Any, Final
from urllib.parse import urlsplit

from cwsink.clock import monotonic

_MOST_ANSWER_BYTES: Final = 64 * 1024


def ask(method: str, url: str, headers: dict[str, str], until: float) -> str:
    """Make one request without a proxy, because these addresses are on this host. No redirect is followed.

    Args:
        method: GET or PUT.
        url: what to ask for, by plain http.
        headers: what the service wants beside that.
        until: when the answer is of no use any more, by `cwsink.clock.monotonic`.

    Raises:
        OSError: no answer came in time.
        http.client.HTTPException, ValueError: the answer is of no use.
    """
    address = urlsplit(url)
    if address.scheme != "http" or not address.hostname:
        raise ValueError(url)
    connected = socket.create_connection((address.hostname, address.port or 80), _left(until))
    with contextlib.closing(client.HTTPConnection(address.hostname)) as connection:
        connection.sock = timed = _TimedSocket(fileno=connected.detach())
        timed.until = until
        connection.request(method, address.path, headers=headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise ValueError(f"{url} answers {answer.status}")
        return answer.read(_MOST_ANSWER_BYTES).decode().strip()


class _TimedSocket(socket.socket):
    """A socket on which all that is received has come by one point in time, however slowly it drips."""

    until = 0.0

    def recv_into(self, *args: Any) -> int:
        self.settimeout(_left(self.until))
        return super().recv_into(*args)


def _left(until: float) -> float:
    """Return the seconds that are left. Raises TimeoutError if there are none."""
    if (left := until - monotonic()) <= 0:
        raise TimeoutError
    return left
