"""Answers without end: the flusher reads a mebibyte of them at most, says it in one line, and goes on.

The servers here send as long as somebody reads. How much memory a process takes is measured in a child.
"""

from __future__ import annotations

import gzip
import json
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

from cwsink import Writer
from cwsink.flusher import cloudwatch
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.election import Election
from cwsink.flusher.outcome import Outcome, classify
from cwsink.spool import leader_state
from cwsink.spool.record import Event
from tests.harness.interleave import until
from tests.harness.support import SPOOL_FORMAT, finish, peak, program_calling, quick_config
from tests.integration.test_deadline import HANG_SECONDS, self_signed

GIGABYTES: Final = 3 << 30
# What a child may take for an answer: a mebibyte of it, and the objects that it is parsed into.
MOST_BYTES: Final = 48 << 20
ID: Final = b"x-amzn-RequestId: 0123\r\nContent-Type: application/x-amz-json-1.1\r\n"
OK: Final = b"HTTP/1.1 200 OK\r\n" + ID
BAD: Final = b"HTTP/1.1 400 Bad Request\r\n" + ID
BLOCK: Final = b"x" * 65_536


def whole(head: bytes, body: bytes) -> Iterator[bytes]:
    yield head + b"Content-Length: %d\r\n\r\n" % len(body) + body


def endless(begin: bytes, block: bytes) -> Iterator[bytes]:
    """What begins so, and goes on for 3 GB."""
    yield begin
    for _ in range(GIGABYTES // len(block)):
        yield block


def error(message: str, **more: Any) -> bytes:
    return json.dumps({"__type": "ServiceUnavailableException", "message": message, **more}).encode()


ANSWERS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "a body of 3 GB": lambda: endless(OK + b"Content-Length: %d\r\n\r\n" % GIGABYTES, BLOCK),
    "a body of 3 GB in chunks": lambda: endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n%b\r\n" % BLOCK),
    "one chunk whose length does not end": lambda: endless(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"0" * 65_536),
    "a body until the connection ends": lambda: endless(OK + b"\r\n", BLOCK),
    "an error of 3 GB": lambda: endless(BAD + b"Content-Length: %d\r\n\r\n" % GIGABYTES, BLOCK),
    "one header of 3 GB": lambda: endless(OK + b"X: ", BLOCK),
    "headers without end": lambda: endless(OK, b"X: %b\r\n" % (b"x" * 1000)),
    "a status without end": lambda: endless(b"HTTP/1.1 200 ", BLOCK),
    "100 Continue for ever": lambda: endless(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 1000),
    "a message of 50 MB": lambda: whole(BAD, error("m" * 50_000_000)),
    "a message of 900 KB": lambda: whole(BAD, error("m" * 900_000)),
    "a token of 900 KB": lambda: whole(
        BAD, json.dumps({"__type": "InvalidSequenceTokenException", "expectedSequenceToken": "t" * 900_000}).encode()
    ),
    "a megabyte of brackets": lambda: whole(OK, b"[" * 1_000_000),
    "a gzip bomb": lambda: whole(OK + b"Content-Encoding: gzip\r\n", gzip.compress(bytes(100_000_000), 1)),
}


class Server:
    """Reads each request whole, and answers with what `answers()` yields as long as somebody reads.

    Attributes:
        requests: how many requests it has read.
    """

    def __init__(
        self, answers: Callable[[], Iterator[bytes]], wrap: Callable[[socket.socket], socket.socket] | None = None
    ) -> None:
        self._answers = answers
        self._wrap = wrap
        self.requests = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._connections: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def close(self) -> None:
        for each in (self._listener, *self._connections):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(HANG_SECONDS)
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        connection.settimeout(HANG_SECONDS)
        with suppress(OSError), connection, self._wrap(connection) if self._wrap else connection as client:
            while self.read(client):
                self.requests += 1
                for part in self._answers():
                    client.sendall(part)

    def read(self, client: socket.socket) -> bool:
        data = b""
        while b"\r\n\r\n" not in data:
            if not (more := client.recv(65_536)):
                return False
            data += more
        head, _, rest = data.partition(b"\r\n\r\n")
        lines = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-len")]
        while len(rest) < sum(map(int, lines)):
            if not (more := client.recv(65_536)):
                return False
            rest += more
        return True


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def start(*arguments: Any) -> Server:
            server = Server(*arguments)
            stack.callback(server.close)
            return server

        yield start


def client_of(url: str, **settings: Any) -> CloudWatch:
    config = quick_config(url, flusher="external", **settings)
    return CloudWatch(msgspec.structs.replace(SPOOL_FORMAT, endpoint_url=url, region="us-east-1"), config, 1)


def put(client: CloudWatch, message: str = "x") -> Any:
    return client.put("stream", [Event(time.time_ns() // 1_000_000, 1, 0, message)])


def send_to(url: str) -> None:
    """In a child: send an event, and print what came of it and how much more memory this has taken."""
    cloudwatch.load()
    client = client_of(url)
    put(client_of("http://127.0.0.1:9"))  # nobody listens there
    before = peak()
    answer = put(client)
    print(json.dumps({"bytes": peak() - before, "answer": msgspec.to_builtins(answer)}))
    client.close()


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_without_end_takes_no_memory(name: str, serve: Callable[..., Server], spawn: Any) -> None:
    """Whatever of it does not end: a mebibyte is read, no text is longer than 1 KiB, and it counts as a failure."""
    server = serve(ANSWERS[name])
    said = json.loads(finish(spawn(program_calling(send_to), f"http://127.0.0.1:{server.port}")))
    assert said["bytes"] < MOST_BYTES
    answer = said["answer"]
    assert answer["code"], "it is no success"
    assert max(len(each) for each in answer.values() if isinstance(each, str)) <= 1024
    assert server.requests == 1
    if name == "100 Continue for ever":
        assert answer["code"] == "AnswerTooLong"
    if "3 GB" in name or "does not end" in name or "without end" in name:
        assert answer["code"] in ("AnswerTooLong", "ConnectionClosedError")


def test_the_leader_says_it_in_one_line(serve: Callable[..., Server], capfd: pytest.CaptureFixture[str]) -> None:
    """It names the endpoint and what to look at; the record stays, the request counts as sent again."""
    server = serve(ANSWERS["a body of 3 GB"])
    writer = Writer(quick_config(f"http://127.0.0.1:{server.port}", flusher="external"))
    assert writer.append("one")
    election = Election(writer.directory, kind="service")
    election.start()
    until = time.monotonic() + HANG_SECONDS
    while server.requests < 3:
        assert time.monotonic() < until
        time.sleep(0.01)
    election.leave(0.0)
    assert election.has_ended(HANG_SECONDS)
    (line,) = capfd.readouterr().err.splitlines()
    assert "AnswerTooLong: 127.0.0.1 answers with more than 1,048,576 bytes" in line
    assert "Check endpoint_url and the proxy settings" in line
    found = leader_state.read(writer.directory)
    assert found is not None
    assert (found.last_error or "").startswith("AnswerTooLong")


@pytest.mark.parametrize("kind", ["ServiceUnavailableException", "InvalidSequenceTokenException"])
def test_an_answer_may_hold_what_is_no_text(kind: str, serve: Callable[..., Server]) -> None:
    """A lone surrogate, which JSON can write and UTF-8 cannot: the leader publishes an escape, and asks again."""
    body = json.dumps({"__type": kind, "message": "n\ud800o", "expectedSequenceToken": "4\ud8002"}).encode()
    server = serve(lambda: whole(BAD, body))
    writer = Writer(quick_config(f"http://127.0.0.1:{server.port}", flusher="external"))
    assert writer.append("one")
    election = Election(writer.directory, kind="service")
    election.start()
    until(lambda: server.requests >= 3, "it asks again")
    election.leave(0.0)
    assert election.has_ended(HANG_SECONDS)
    found = leader_state.read(writer.directory)
    assert found is not None
    assert found.last_error == f"{kind}: n\\ud800o"


class Closing(Server):
    """Answers one request of each connection, and closes it."""

    def __init__(self, *arguments: Any) -> None:
        self._served: set[socket.socket] = set()
        super().__init__(*arguments)

    def read(self, client: socket.socket) -> bool:
        if client in self._served:
            return False
        self._served.add(client)
        return super().read(client)


REJECTING: Final = b'{"rejectedLogEventsInfo":{"tooOldLogEventEndIndex":1}}'


@pytest.fixture
def closing() -> Iterator[Callable[[bytes], str]]:
    """Start a server that answers with a success of this body, whose end is the end of the connection."""
    with ExitStack() as stack:

        def start(body: bytes) -> str:
            server = Closing(lambda: iter([OK + b"Connection: close\r\n\r\n" + body]))
            stack.callback(server.close)
            return f"http://127.0.0.1:{server.port}"

        yield start


@pytest.mark.parametrize("cut", [1, 2, 24, 38, len(REJECTING) - 1])
def test_a_success_that_was_cut_is_unclear(closing: Callable[[bytes], str], cut: int) -> None:
    """What it rejects is not known. So it is no success, and the same is sent again."""
    client = client_of(closing(REJECTING[:cut]))
    answer = put(client)
    assert (answer.code, answer.is_ambiguous) == ("NotCloudWatchError", True)
    assert classify(answer) is Outcome.STRANGE
    assert "no whole JSON" in answer.message
    client.close()


OF_A_STRANGER: Final = (
    b"[1,2]",
    b"null",
    b'"x"',
    b"5",
    b"<html>welcome</html>",
    b"\xff",
    b"[" * 1_000_000,
    b'{"rejectedLogEventsInfo":[1]}',
    b'{"rejectedLogEventsInfo":"x"}',
    b'{"rejectedLogEventsInfo":{"tooOldLogEventEndIndex":"x"}}',
    b'{"rejectedLogEventsInfo":{"tooNewLogEventStartIndex":1.5}}',
    b'{"rejectedLogEventsInfo":{"expiredLogEventEndIndex":true}}',
    b'{"rejectedEntityInfo":{"errorType":5}}',
    b'{"rejectedEntityInfo":7}',
)


@pytest.mark.parametrize("body", OF_A_STRANGER, ids=lambda body: body[:40].decode("latin-1"))
def test_a_success_of_another_form_is_unclear(serve: Callable[..., Server], body: bytes) -> None:
    """It has an id of AWS's form, but that is no answer of CloudWatch: nothing is delivered, and it is told as that."""
    server = serve(lambda: whole(OK, body))
    client = client_of(f"http://127.0.0.1:{server.port}")
    answer = put(client)
    assert (answer.code, classify(answer), answer.is_ambiguous) == ("NotCloudWatchError", Outcome.STRANGE, True)
    assert "object" not in answer.message, "no words of Python's"
    client.close()


@pytest.mark.parametrize("name", ["ServiceUnavailableException", "com.amazonaws.logs#ThrottlingException", "", 5])
def test_an_error_in_a_success_delivers_nothing(serve: Callable[..., Server], name: Any) -> None:
    """Somebody on the way has turned the status of an error into 200: the records stay."""
    server = serve(lambda: whole(OK, json.dumps({"__type": name, "message": "try again"}).encode()))
    client = client_of(f"http://127.0.0.1:{server.port}")
    answer = put(client)
    assert (answer.code, classify(answer), answer.is_ambiguous) == ("NotCloudWatchError", Outcome.STRANGE, True)
    assert "names an error" in answer.message
    client.close()


@pytest.mark.parametrize("status", ["300 x", "302 Found", "401 x", "403 Forbidden", "404 Not Found", "499 x"])
@pytest.mark.parametrize(
    "body", [b"", b"<html>login</html>", b"[1]", b'{"message":"no"}', b'{"__type":5}', b'{"__type":[]}']
)
def test_a_refusal_of_another_form_is_not_cloudwatchs(serve: Callable[..., Server], status: str, body: bytes) -> None:
    """Somebody else is there: a firewall, a login page. It is no permission that is missing."""
    server = serve(lambda: whole(b"HTTP/1.1 %b\r\n" % status.encode(), body))
    client = client_of(f"http://127.0.0.1:{server.port}")
    assert (answer := put(client)).code == "NotCloudWatchError", answer
    assert classify(answer) is Outcome.STRANGE
    client.close()


@pytest.mark.parametrize("token", [5, [1], {"a": 1}, None, True])
def test_a_token_that_is_no_text_is_none(serve: Callable[..., Server], token: Any) -> None:
    """Whoever has answered: the leader goes on."""
    body = json.dumps({"__type": "InvalidSequenceTokenException", "message": 5, "expectedSequenceToken": token})
    server = serve(lambda: whole(BAD, body.encode()))
    client = client_of(f"http://127.0.0.1:{server.port}")
    answer = put(client)
    assert (classify(answer), answer.expected_token) == (Outcome.RESEND, None)
    client.close()


@pytest.mark.parametrize(("body", "outcome"), [(REJECTING, Outcome.REJECTED), (b"{}", Outcome.DELIVERED)])
def test_a_whole_success_that_ends_with_its_connection_is_believed(
    closing: Callable[[bytes], str], body: bytes, outcome: Outcome
) -> None:
    """It needs no Content-Length."""
    client = client_of(closing(body))
    assert classify(put(client)) is outcome
    client.close()


def test_an_answer_of_nearly_a_mebibyte_is_read(serve: Callable[..., Server]) -> None:
    """What CloudWatch may say, and far more, is believed."""
    server = serve(lambda: whole(OK, b"{" + b" " * 1_000_000 + b"}"))
    client = client_of(f"http://127.0.0.1:{server.port}")
    assert [put(client).request_id for _ in range(3)] == ["0123"] * 3, "each answer has its own mebibyte"
    client.close()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_who_reads_slowly_cannot_hold_a_request(
    serve: Callable[..., Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With TLS each record of 16 KiB has a time-out of its own. All of them together end by the deadline."""
    context = self_signed(tmp_path, monkeypatch)
    is_over = threading.Event()
    clients: list[socket.socket] = []

    class Slow(Server):
        def read(self, client: socket.socket) -> bool:
            while client.recv(4096):
                if is_over.wait(0.1):
                    return False
            return False

    def wrap(connection: socket.socket) -> socket.socket:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        clients.append(context.wrap_socket(connection, server_side=True))
        return clients[-1]

    server = Slow(lambda: iter(()), wrap)
    try:
        client = client_of(f"https://localhost:{server.port}", connect_timeout_seconds=0.5, read_timeout_seconds=0.5)
        began = time.monotonic()
        answer = put(client, "x" * 8_000_000)
        assert answer.code in ("ReadTimeoutError", "ConnectTimeoutError", "ConnectionClosedError", "HTTPClientError")
        assert time.monotonic() - began < 10, "at 40 KB a second it would take minutes"
        client.close()
    finally:
        is_over.set()
        for each in clients:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        server.close()


def test_requests_of_credential_providers_are_bound_too(serve: Callable[..., Server]) -> None:
    """The metadata service, STS and SSO are asked by connections that botocore makes by itself."""
    from botocore.credentials import InstanceMetadataProvider
    from botocore.utils import ContainerMetadataFetcher, InstanceMetadataFetcher

    cloudwatch.load()
    server = serve(ANSWERS["a body of 3 GB"])
    url = f"http://127.0.0.1:{server.port}/"
    fetcher = ContainerMetadataFetcher(sleep=lambda _: None)
    with pytest.raises(Exception, match="answers with more than"):
        fetcher.retrieve_full_uri(url)
    imds = InstanceMetadataFetcher(base_url=url, env={}, config={"ec2_metadata_v1_disabled": False})
    with pytest.raises(Exception, match="answers with more than"):
        InstanceMetadataProvider(iam_role_fetcher=imds).load()
