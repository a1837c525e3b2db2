"""A proxy that refuses whoever does not log in, and variables that name no proxy: a real proxy, and the real client."""

from __future__ import annotations

import base64
import socketserver
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from msgspec.structs import replace

from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.outcome import Outcome, advice_on, classify
from cwsink.spool.record import Event
from tests.harness.pages import ROOT
from tests.harness.support import CHILD_SECONDS, SPOOL_FORMAT, quick_config
from tests.integration.test_doctor import GROUP, ask, one

REFUSAL = (
    b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic realm=x\r\nContent-Type: text/html\r\n"
    b"Content-Length: 4\r\nConnection: close\r\n\r\n<p/>"
)
PASSWORD = "not-the-right-one"
LOGS = """
import sys
from cwsink import Writer
from tests.harness.support import quick_config
writer = Writer(quick_config("http://logs.test", drain_timeout_seconds=8.0, spool_directory=sys.argv[1]))
assert writer.append("a record")
"""


class Refusing(socketserver.StreamRequestHandler):
    """Reads a request or a CONNECT, and wants another password."""

    def handle(self) -> None:
        while self.rfile.readline().strip():
            pass
        self.wfile.write(REFUSAL)


@pytest.fixture
def refusing(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a proxy that lets nobody through."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,)).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def answered(url: str) -> tuple[str, str]:
    """Send through whatever the variables name. Returns the advice, and what the leader would publish."""
    client = CloudWatch(replace(SPOOL_FORMAT, endpoint_url=url, region="us-east-1"), quick_config(), 1)
    answer = client.put("stream", [Event(1, 0, 0, "text")])
    client.close()
    assert classify(answer) is Outcome.PROXY
    assert not answer.is_ambiguous
    error = f"{answer.code}: {answer.message}"
    assert advice_on(error, "unreachable") == Outcome.PROXY.value.advice
    return Outcome.PROXY.value.advice, error


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_wants_another_password(scheme: str, refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It answers our request, or our CONNECT: the advice names its user and password, and no permission of AWS."""
    monkeypatch.setenv(f"{scheme}_PROXY".upper(), f"http://jane:{PASSWORD}@{refusing}")
    advice, error = answered(f"{scheme}://logs.test")
    assert error.startswith("ProxyAuthenticationError: the proxy asks for a user and a password")
    assert "HTTPS_PROXY or HTTP_PROXY, with the proxy's user and password" in advice
    env = {**GROUP, "CWSINK_ENDPOINT_URL": f"{scheme}://logs.test"}
    found = one(ask("endpoint", env=env), "wrong", "with the proxy's user and password")
    assert "curl" not in found.advice


@pytest.mark.parametrize(
    "value",
    [
        "http://[bad",
        f"jane:{PASSWORD}@[::bad",
        "http://host:port",
        "a host",
        "http://",
        "socks5://[::1]:9",
        "HTTP://[::1]",
    ],
)
@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy"])
def test_a_variable_that_names_no_proxy(name: str, value: str, refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The line and `cwsink doctor` name the variable, and not the endpoint."""
    monkeypatch.setenv(name, value)
    url = f"{name.partition('_')[0].lower()}://logs.test"
    _, error = answered(url)
    assert error == f"InvalidProxyError: what the variable {name} holds is not the URL of a proxy"
    found = one(ask("name", env={**GROUP, "CWSINK_ENDPOINT_URL": url}), "wrong", f"what {name} holds is not the URL")
    assert found.topic == "proxy"


@pytest.mark.parametrize("begin", ["", "http://", "//"])
def test_a_proxy_without_a_scheme_is_one(begin: str, refusing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """botocore adds the scheme: what answers is the proxy itself."""
    monkeypatch.setenv("HTTP_PROXY", f"{begin}{refusing}")
    _, error = answered("http://logs.test")
    assert error.startswith("ProxyAuthenticationError")


def test_a_flusher_tries_again_behind_a_proxy_that_refuses(
    refusing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A real process: its line says what to correct, and shows neither the password nor a permission."""
    monkeypatch.setenv("HTTP_PROXY", f"http://jane:{PASSWORD}@{refusing}")
    done = subprocess.run(
        [sys.executable, "-c", LOGS, str(tmp_path / "spools")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        check=True,
    )
    assert "1 record stays in" in done.stderr
    assert "ProxyAuthenticationError" in done.stderr
    assert "Allow the action" not in done.stderr
    assert PASSWORD not in done.stderr
    assert base64.b64encode(f"jane:{PASSWORD}".encode()).decode() not in done.stderr
