"""A total deadline for each request of a client of botocore: connect, TLS, send, headers and body together.

The time-outs of botocore are for one step each, and one step of reading is one packet. A server that sends a byte a
second never exceeds them, and a leader that waits for the rest of such an answer delivers nothing more, and does not
say so. So each connection has a deadline of its own for each request, and every step may take only what is left.

botocore has no setting for that. We replace the classes of its connections by classes derived from them. These are
private names of botocore. If a version does not have them, its requests have the usual time-outs only, and a line says
so.

Not bounded: the look-up of the host's name, for which the C library has time-outs of its own (resolv.conf).
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from typing import Any

from cwsink.config import SinkConfig
from cwsink.diagnostics import report


def seconds_of(config: SinkConfig) -> float:
    """Return how many seconds a request may take in all."""
    return config.connect_timeout_seconds + config.read_timeout_seconds


def bind(client: Any, seconds: float) -> None:
    """Have each request of `client` end within `seconds`, with an answer or a time-out."""
    try:
        pools = client._endpoint.http_session._pool_classes_by_scheme  # noqa: SLF001  # see above
        bound = {scheme: _bound(pool, seconds) for scheme, pool in pools.items()}
    except AttributeError as error:
        report("deadline", f"this version of botocore has no place for a total deadline of its requests: {error}.")
    else:
        pools.update(bound)


def _bound(pool: Any, seconds: float) -> Any:
    """Return the class of a pool whose connections have the deadline."""
    connection = type("Connection", (_Deadline, pool.ConnectionCls), {"total_seconds": seconds})
    return type("Pool", (pool,), {"ConnectionCls": connection})


class _Deadline:
    """What is added to the class of a connection (urllib3.connection.HTTPConnection)."""

    total_seconds = 0.0
    sock: Any
    timeout: Any
    _until = 0.0
    # The connection was made for the present request, whose time runs since then.
    _is_new = False

    def connect(self) -> None:
        self._until = time.monotonic() + self.total_seconds
        self._is_new = True
        super().connect()  # type: ignore[misc]  # the other base has it, and so on below

    def request(self, *args: Any, **options: Any) -> Any:
        if not self._is_new:
            self._until = time.monotonic() + self.total_seconds
        try:
            return super().request(*args, **options)  # type: ignore[misc]
        finally:
            self._is_new = False

    def send(self, data: Any) -> Any:
        if self.sock is None:
            self.connect()
        self.sock.settimeout(self.left(self.timeout))
        return super().send(data)  # type: ignore[misc]

    def response_class(self, sock: Any, *args: Any, **options: Any) -> Any:
        from botocore.compat import HTTPResponse

        return HTTPResponse(_Source(sock, self), *args, **options)

    def left(self, step_seconds: float | None) -> float:
        """Return how many seconds the next step may take. Raises TimeoutError: the deadline is over."""
        left = self._until - time.monotonic()
        if left <= 0:
            raise TimeoutError(f"no whole answer within {self.total_seconds:g} s")
        return left if step_seconds is None else min(left, step_seconds)

    def _new_conn(self) -> Any:
        # The name may have several addresses, which are tried one after the other.
        count = 1
        with contextlib.suppress(OSError):
            host, port = self._dns_host, self.port  # type: ignore[attr-defined]
            count = max(1, len(socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM)))
        self.timeout = min(self.timeout or self.total_seconds, self.total_seconds / count)
        return super()._new_conn()  # type: ignore[misc]


class _Source:
    """Stands in for the socket that an answer is read from."""

    def __init__(self, sock: Any, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, mode: str) -> io.BufferedReader:
        """Return the file of the answer."""
        return io.BufferedReader(_File(self._sock, self._deadline))


class _File(io.RawIOBase):
    """Reads from a socket. Each read may take the time-out of one step, but no longer than until the deadline."""

    def __init__(self, sock: Any, deadline: _Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline
        self._step_seconds = sock.gettimeout()
        self._file = sock.makefile("rb", buffering=0)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left(self._step_seconds))
        count: int | None = self._file.readinto(buffer)
        return count

    def fileno(self) -> int:
        number: int = self._file.fileno()
        return number

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
