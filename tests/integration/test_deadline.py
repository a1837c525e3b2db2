"""A server that answers a byte at a time: a request ends within its total deadline, and the leader says so.

botocore's time-outs are for one step. These servers never exceed them: each byte of theirs comes in time.
"""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Final

import msgspec
import pytest

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.election import Election
from cwsink.spool import leader_state
from cwsink.spool.record import Event
from cwsink.spool.survey import survey
from tests.harness.support import SPOOL_FORMAT, quick_config

HANG_SECONDS: Final = 30.0
CONNECT_SECONDS: Final = 0.4
READ_SECONDS: Final = 0.6
# Each byte comes well within the time-out of one step, and all of them would take minutes.
BYTE_SECONDS: Final = 0.1
MAKE_CERTIFICATE: Final = (
    "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
)
HEAD: Final = (
    b"HTTP/1.1 200 OK\r\nx-amzn-RequestId: 0123\r\nContent-Type: application/x-amz-json-1.1\r\n"
    b"Content-Length: 2000\r\n\r\n"
)
BODY: Final = b"{" + b" " * 1998 + b"}"


class Dripping:
    """A server that reads each request whole, and answers slowly from byte `whole` on.

    Attributes:
        whole: how many bytes of the answer come at once.
        requests: how many requests it has read.
    """

    def __init__(self, whole: int, wrap: Callable[[socket.socket], socket.socket] = lambda each: each) -> None:
        self.whole = whole
        self.requests = 0
        self._wrap = wrap
        self._ended = threading.Event()
        self._stack = ExitStack()
        self._listener = self._stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        self._ended.set()
        self._listener.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(HANG_SECONDS)
        self._stack.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while not self._ended.is_set():
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._answer, args=(connection,)))
                self._threads[-1].start()

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError), connection, self._wrap(connection) as client:
            while not self._ended.is_set():
                data = b""
                while b"\r\n\r\n" not in data:
                    if not (more := client.recv(65536)):
                        return
                    data += more
                head, _, rest = data.partition(b"\r\n\r\n")
                lines = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-len")]
                while len(rest) < int(lines[0]):
                    rest += client.recv(65536)
                self.requests += 1
                answer = HEAD + BODY
                client.sendall(answer[: self.whole])
                for byte in answer[self.whole :]:
                    if self._ended.wait(BYTE_SECONDS):
                        return
                    client.sendall(bytes([byte]))


@pytest.fixture
def drip() -> Iterator[Callable[..., Dripping]]:
    """Start servers that drip."""
    with ExitStack() as stack:

        def start(*arguments: object) -> Dripping:
            server = Dripping(*arguments)  # type: ignore[arg-type]
            stack.callback(server.close)
            return server

        yield start


def config_for(url: str) -> SinkConfig:
    return quick_config(
        url, connect_timeout_seconds=CONNECT_SECONDS, read_timeout_seconds=READ_SECONDS, flusher="external"
    )


def put(url: str, times: int = 1) -> None:
    """Send events, and assert that each time the answer is taken for lost when the deadline is over."""
    cloudwatch = CloudWatch(
        msgspec.structs.replace(SPOOL_FORMAT, endpoint_url=url, region="us-east-1"), config_for(url), 1
    )
    for _ in range(times):
        answer = cloudwatch.put("stream", [Event(time.time_ns() // 1_000_000, 1, 0, "x")])
        assert (answer.code, answer.is_ambiguous) == ("ReadTimeoutError", True)
    cloudwatch.close()


def self_signed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """Return the context of a TLS server at "localhost" whose certificate this process trusts."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        [*MAKE_CERTIFICATE.split(), "-keyout", str(key), "-out", str(certificate)],
        check=True,
        capture_output=True,
        timeout=HANG_SECONDS,
    )
    monkeypatch.setenv("AWS_CA_BUNDLE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@pytest.mark.parametrize("whole", [3, len(HEAD) + 3], ids=["headers", "body"])
def test_an_answer_that_drips_is_a_lost_answer(drip: Callable[..., Dripping], whole: int) -> None:
    """Whether headers or body drip: the request ends by the deadline, and CloudWatch may have taken it."""
    server = drip(whole)
    put(f"http://127.0.0.1:{server.port}", times=2)
    assert server.requests == 2


def test_the_time_of_a_connection_begins_anew_with_each_request(drip: Callable[..., Dripping]) -> None:
    """Quick answers on one connection, for longer than the deadline in all, and then one that drips."""
    server = drip(len(HEAD + BODY))
    url = f"http://127.0.0.1:{server.port}"
    cloudwatch = CloudWatch(
        msgspec.structs.replace(SPOOL_FORMAT, endpoint_url=url, region="us-east-1"), config_for(url), 1
    )
    until = time.monotonic() + 1.5 * (CONNECT_SECONDS + READ_SECONDS)
    while time.monotonic() < until:
        answer = cloudwatch.put("stream", [Event(time.time_ns() // 1_000_000, 1, 0, "x")])
        assert (answer.code, answer.request_id) == ("", "0123")
        time.sleep(0.2)
    server.whole = 3
    assert cloudwatch.put("stream", [Event(time.time_ns() // 1_000_000, 1, 0, "x")]).code == "ReadTimeoutError"
    cloudwatch.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_it_is_the_same_with_tls(
    drip: Callable[..., Dripping], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bytes come encrypted, one packet each."""
    context = self_signed(tmp_path, monkeypatch)
    server = drip(len(HEAD) + 3, lambda each: context.wrap_socket(each, server_side=True))
    put(f"https://localhost:{server.port}")
    assert server.requests == 1


def test_the_leader_says_so(drip: Callable[..., Dripping]) -> None:
    """leader.json does not say "idle" but what is wrong, the request counts as sent again, and the record stays."""
    server = drip(len(HEAD) + 3)
    writer = Writer(config_for(f"http://127.0.0.1:{server.port}"))
    assert writer.append("one")
    election = Election(writer.directory, kind="service")
    election.start()
    until = time.monotonic() + HANG_SECONDS
    while (found := leader_state.read(writer.directory)) is None or found.state == "idle":
        assert time.monotonic() < until
        time.sleep(0.01)
    assert found.state == "retrying"
    assert found.obstacle == "busy"
    assert found.last_error is not None
    assert found.last_error.startswith("ReadTimeoutError")
    election.leave(0.0)
    assert election.has_ended(HANG_SECONDS)
    assert survey(writer.directory).pending == 1
