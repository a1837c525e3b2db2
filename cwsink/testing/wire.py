"""One HTTP/1.1 connection: bytes to requests, replies to bytes (I/O).

`server` uses one `Wire` for each connection, in a thread of its own. It speaks only the
HTTP that AWS clients send: Content-Length bodies, keep-alive, `Expect: 100-continue`,
gzip.

It parses the head itself. A library takes more of the server's CPU, and a sender in a
benchmark waits for each answer. With h11 0.16, a PutLogEvents of 1.1 MB without gzip
cost 18 to 23 % more CPU (about 0.5 ms on 3.0 ms), most of it because h11 copies the body
several times. One of 1 KB cost twice as much (0.39 ms, not 0.17 ms). `http.server`
spends more time on a head than a small call costs.

To measure it again, start `python -m cwsink.testing --forget-events`, send equal
requests on one connection, and before and after them add up the first numbers of
`cat /proc/PID/task/*/schedstat`, which are nanoseconds of CPU.
"""

from __future__ import annotations

import contextlib
import socket
import zlib
from collections.abc import Callable, Mapping
from email.utils import formatdate
from typing import Final, NamedTuple

import msgspec

# Our own limit: botocore's heads have about 1 KB, so a longer one is none of its requests.
MAX_HEAD_BYTES: Final = 65_536

# Our own limit: 1,048,576 counted bytes are at most 6 MB of JSON escapes, plus the syntax of 10,000 events.
MAX_BODY_BYTES: Final = 16 * 1_048_576

_RECEIVE_BYTES: Final = 65_536

_REASONS: Final = {200: "OK", 400: "Bad Request", 403: "Forbidden", 404: "Not Found", 500: "Internal Server Error"}


class HttpRequest(NamedTuple):
    """One HTTP request. Header names are in lower case; the body is as it was sent."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytearray
    keep_alive: bool

    def content(self) -> bytes | bytearray:
        """Return the body, decompressed if its Content-Encoding is gzip.

        Raises:
            ValueError: the body is not gzip, has an unknown encoding, or is too large.
        """
        encoding = self.headers.get("content-encoding", "identity").lower()
        if encoding == "identity":
            return self.body
        if encoding != "gzip":
            raise ValueError(f"unknown Content-Encoding {encoding!r}")
        inflater = zlib.decompressobj(wbits=31)
        try:
            plain = inflater.decompress(self.body, MAX_BODY_BYTES)
        except zlib.error as error:
            raise ValueError(f"the body is not gzip: {error}") from error
        if not inflater.eof:
            raise ValueError("the gzip body is cut off, or too large")
        return plain


class Reply(msgspec.Struct, frozen=True):
    """One HTTP reply."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = {}


class BadRequestError(Exception):
    """The client sends HTTP that we do not speak. It gets `status`, and the connection is closed."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Wire:
    """A connected socket. One thread serves it; any other thread may call `interrupt`."""

    def __init__(self, connection: socket.socket, peer: tuple[str, int]) -> None:
        self._socket = connection
        self._buffer = bytearray()
        self.host = peer[0]
        self.peer = f"{peer[0]}:{peer[1]}"
        # Without this, Nagle's algorithm and delayed ACK add 40 ms to a reply on a kept-alive connection.
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def receive(self) -> HttpRequest | None:
        """Wait for the next request. None: the client has closed the connection.

        Raises:
            BadRequestError: the caller must answer its status, and close.
            OSError: the connection is broken, or `interrupt` has ended it.
        """
        head = self._receive_head()
        if head is None:
            return None
        start_line, _, rest = head.decode("latin-1").partition("\r\n")
        words = start_line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequestError(400, f"not an HTTP/1.1 request line: {start_line[:80]!r}")
        headers = {}
        for line in rest.split("\r\n"):
            name, colon, value = line.partition(":")
            if colon:
                headers[name.strip().lower()] = value.strip()
        if "transfer-encoding" in headers:
            raise BadRequestError(411, "Transfer-Encoding is not spoken, send Content-Length")
        length = headers.get("content-length", "0")
        if not length.isdecimal():
            raise BadRequestError(400, f"Content-Length {length!r}")
        if int(length) > MAX_BODY_BYTES:
            raise BadRequestError(413, f"a body of {length} bytes")
        if headers.get("expect", "").lower() == "100-continue":
            self._socket.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection = headers.get("connection", "").lower()
        keep_alive = "close" not in connection if words[2] == "HTTP/1.1" else "keep-alive" in connection
        return HttpRequest(words[0], words[1], headers, self._receive_body(int(length)), keep_alive)

    def _receive_head(self) -> bytes | None:
        while (end := self._buffer.find(b"\r\n\r\n")) < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadRequestError(431, "the head does not end")
            chunk = self._socket.recv(_RECEIVE_BYTES)
            if not chunk:
                return None
            self._buffer += chunk
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        return head

    def _receive_body(self, length: int) -> bytearray:
        body = self._buffer[:length]
        del self._buffer[:length]
        have = len(body)
        while have < length:
            if have == len(body):  # it grows with what has come: who only announces a long body gets little memory
                body.extend(bytes(min(max(have, _RECEIVE_BYTES), length - have)))
            with memoryview(body) as whole, whole[have:] as rest:
                got = self._socket.recv_into(rest)
            if not got:
                raise ConnectionResetError("the client closed the connection in the middle of a body")
            have += got
        return body

    def send(self, reply: Reply, drips: Callable[[], bool] | None = None) -> None:
        """Send the head and the body of a reply, with one `sendall`. With `drips`, one byte each time it is True."""
        lines = [f"HTTP/1.1 {reply.status} {_REASONS.get(reply.status, 'Status')}"]
        lines += [f"{name}: {value}" for name, value in reply.headers.items()]
        lines += [f"Date: {formatdate(usegmt=True)}", f"Content-Length: {len(reply.body)}", "", ""]
        data = "\r\n".join(lines).encode("latin-1") + reply.body
        while drips is not None and data and drips():
            self._socket.sendall(data[:1])
            data = data[1:]
        self._socket.sendall(data)

    def interrupt(self) -> None:
        """End the connection from another thread. The serving thread returns from `receive`, and closes the socket."""
        # To close it here would free the descriptor's number while the other thread is in a recv on it.
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection and close the socket. Only the thread that serves the connection may call this."""
        # A forked child may hold a copy of the socket, which only a shutdown reaches.
        self.interrupt()
        self._socket.close()

    def abandon(self) -> None:
        """Close only this process's descriptor. A forked child calls this, whose parent still uses the connection."""
        self._socket.close()
