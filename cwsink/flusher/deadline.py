"""Bounds of each answer that botocore reads: one deadline for the whole request, and 1 MiB.

The time-outs of botocore are for one step each, and one step of reading is one packet. A server that sends a byte a
second never exceeds them, and a leader that waits for the rest of such an answer delivers nothing more, and does not
say so. And botocore reads an answer to its end, however long it is: a broken proxy could fill the memory.

So each connection has one deadline for connect, TLS, send, headers and body together, and every step may take only what
is left. Each answer, headers included, is read up to 1 MiB. CloudWatch's own answers have about 1 KiB, but for pages of
events, which only `cwsink verify` reads (`for_pages`).

botocore has no setting for that. We replace the classes of its connection pools by classes derived from them, for all
of this process: credential providers (a metadata service, STS, SSO) make connections of their own, which no caller can
reach. This process is the flusher's, so no application's calls are concerned. These are private names of botocore. If a
version does not have them, its requests have the usual time-outs only, and a line says so.

Not bounded: the look-up of the host's name. The C library has time-outs of its own for it (resolv.conf, usually 5 s,
twice), and no call that could be ended from outside. (Rejected: a thread for each look-up. A resolver that hangs would
leave one behind at each try.)
"""

from __future__ import annotations

import contextlib
import io
import socket
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, Final

from cwsink.config import SinkConfig
from cwsink.diagnostics import report

MOST_ANSWER_BYTES = 1024 * 1024
# A page of GetLogEvents: 1 MB of messages in up to 10,000 events, as JSON, in which a byte may take six.
_MOST_PAGE_BYTES: Final = 8 * 1024 * 1024
# One TLS record. With TLS, Python's time-out is for each record, and not for all that is sent.
_RECORD_BYTES: Final = 16 * 1024
# botocore's own default, for a connection without a time-out.
_STEP_SECONDS: Final = 60.0


@contextlib.contextmanager
def for_pages() -> Iterator[None]:
    """Have this process read answers of the length of a page in the block. It delivers nothing meanwhile."""
    global MOST_ANSWER_BYTES
    before, MOST_ANSWER_BYTES = MOST_ANSWER_BYTES, _MOST_PAGE_BYTES
    try:
        yield
    finally:
        MOST_ANSWER_BYTES = before


class TooLongError(Exception):
    """An answer is longer than any of AWS's. Not an OSError, because botocore would hide the reason of that."""


def seconds_of(config: SinkConfig) -> float:
    """Return how many seconds a request may take in all."""
    return config.connect_timeout_seconds + config.read_timeout_seconds


def bind() -> None:
    """Have each request of this process end within its two time-outs together, and each answer within 1 MiB."""
    import botocore.awsrequest as pools

    try:
        plain, with_tls = pools.AWSHTTPConnectionPool, pools.AWSHTTPSConnectionPool
        if not issubclass(plain, _Pool):
            pools.AWSHTTPConnectionPool, pools.AWSHTTPSConnectionPool = _bound(plain), _bound(with_tls)
    except AttributeError as error:
        report("deadline", f"this version of botocore has no place for a total deadline of its requests: {error}.")


def _bound(pool: Any) -> Any:
    """Return the class of a pool whose connections have the deadline."""
    connection = type("Connection", (_Deadline, pool.ConnectionCls), {})
    return type("Pool", (_Pool, pool), {"ConnectionCls": connection})


class _Pool:
    """What is added to the class of a pool (urllib3.connectionpool.HTTPConnectionPool)."""

    timeout: Any

    def _new_conn(self) -> Any:
        steps = self.timeout
        connection = super()._new_conn()  # type: ignore[misc]  # the other base has it, and so on below
        connection.total_seconds = _seconds(steps.connect_timeout) + _seconds(steps.read_timeout)
        return connection


def _seconds(step: Any) -> float:
    return float(step) if isinstance(step, (int, float)) else _STEP_SECONDS


class _Deadline:
    """What is added to the class of a connection (urllib3.connection.HTTPConnection)."""

    total_seconds = 2 * _STEP_SECONDS
    host: str
    sock: Any
    timeout: Any
    _until = 0.0
    # The connection was made for the present request, whose time runs since then.
    _is_new = False

    def connect(self) -> None:
        self._until = time.monotonic() + self.total_seconds
        self._is_new = True
        super().connect()  # type: ignore[misc]

    def request(self, *args: Any, **options: Any) -> Any:
        if not self._is_new:
            self._until = time.monotonic() + self.total_seconds
        try:
            return super().request(*args, **options)  # type: ignore[misc]
        finally:
            self._is_new = False

    def send(self, data: Any) -> None:
        if self.sock is None:
            self.connect()
        is_plain = type(self.sock) is socket.socket
        for part in [data] if is_plain or not isinstance(data, bytes) else _records(data):
            self.sock.settimeout(self.left(self.timeout))
            super().send(part)  # type: ignore[misc]

    def response_class(self, sock: Any, *args: Any, **options: Any) -> Any:
        from botocore.compat import HTTPResponse

        source = SimpleNamespace(makefile=lambda _: io.BufferedReader(_File(sock, self)))  # in the socket's place
        return HTTPResponse(source, *args, **options)

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


def _records(data: bytes) -> Iterator[memoryview]:
    whole = memoryview(data)
    for start in range(0, len(whole), _RECORD_BYTES):
        yield whole[start : start + _RECORD_BYTES]


class _File(io.RawIOBase):
    """Reads one answer from a socket.

    Each read may take the time-out of one step, but no longer than until the deadline. Beyond the most bytes of an
    answer it raises TooLongError.
    """

    def __init__(self, sock: Any, deadline: _Deadline) -> None:
        super().__init__()
        self._sock = sock
        self._deadline = deadline
        self._step_seconds = sock.gettimeout()
        self._file = sock.makefile("rb", buffering=0)
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        if self._count > MOST_ANSWER_BYTES:
            raise TooLongError(f"{self._deadline.host} answers with more than {MOST_ANSWER_BYTES:,} bytes")
        self._sock.settimeout(self._deadline.left(self._step_seconds))
        count: int | None = self._file.readinto(buffer)
        self._count += count or 0
        return count

    def fileno(self) -> int:
        number: int = self._file.fileno()
        return number

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()
