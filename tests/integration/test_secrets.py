"""Canaries: whatever goes wrong with credentials, roles, proxies and endpoints, no secret is seen anywhere.

Each case runs a flusher that cannot deliver, and looks at it by every command. Then all that was printed, and all files
of the spool, are searched for the canaries.
"""

from __future__ import annotations

import http.server
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.cli import main
from cwsink.config import SinkConfig, load_config
from cwsink.errors import ConfigError
from cwsink.flusher import confidential
from cwsink.frontends import presence
from tests.harness.support import CHILD_SECONDS, quick_config

KEY_ID: Final = "AKIACANARYKEYID00001"
SECRET_KEY: Final = "canary/secret+key/0000000000000000000002"
TOKEN: Final = "canaryTOKEN000000000000000003/with=and+more"
PASSWORD: Final = "canary-password-04"
EXTERNAL_ID: Final = "canary-external-id-05"
PRINTED: Final = "canary-printed-06"
CANARIES: Final = (KEY_ID, SECRET_KEY, TOKEN, PASSWORD, EXTERNAL_ID, PRINTED)
KEYS: Final = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_SESSION_TOKEN": TOKEN}
ROLE: Final = "arn:aws:iam::123456789012:role/logs"


class Echo(http.server.BaseHTTPRequestHandler):
    """Answers each request with an error that repeats all of it, as a debugging proxy does."""

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        said = f"{self.requestline}\n{self.headers}\n{body.decode('latin-1')}"
        if b"Action=" in body:  # STS speaks XML
            error = f"<Error><Code>AccessDenied</Code><Message>{escape(body.decode())}</Message></Error>"
            self.answer(403, f"<ErrorResponse>{error}</ErrorResponse>")
        else:
            self.answer(400, json.dumps({"__type": "SignatureDoesNotMatch", "message": said}))

    def do_GET(self) -> None:
        self.answer(500, f"token {PRINTED}")

    def answer(self, status: int, body: str) -> None:
        data = body.encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def echo() -> Iterator[str]:
    """The URL of a server that repeats what it is asked."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join(CHILD_SECONDS)


class Case(NamedTuple):
    """A way not to deliver.

    Attributes:
        says: what stderr says of it.
        env: variables; "{echo}" in them is the URL of the server.
        settings: of the writer.
        profile: lines of the profile "p" in AWS's configuration.
        helper: a program for `credential_process`, in sh.
    """

    says: str
    env: dict[str, str]
    settings: dict[str, str] = {}  # noqa: RUF012  # nobody changes it
    profile: str = ""
    helper: str = ""


AS_P: Final = {"profile": "p"}
CASES: Final = {
    "a server repeats the request": Case("SignatureDoesNotMatch", KEYS, {"endpoint_url": "{echo}"}),
    "STS repeats the request": Case(
        "CredentialRetrievalError",
        {**KEYS, "AWS_ENDPOINT_URL_STS": "{echo}"},
        {"endpoint_url": "{echo}", "role_arn": ROLE, "external_id": EXTERNAL_ID},
    ),
    "a token with a newline": Case(
        "Invalid header value ***", {**KEYS, "AWS_SESSION_TOKEN": f"{TOKEN}\n"}, {"endpoint_url": "{echo}"}
    ),
    "a key id with a newline": Case(
        "Invalid header value ***", {**KEYS, "AWS_ACCESS_KEY_ID": f"{KEY_ID}\n"}, {"endpoint_url": "{echo}"}
    ),
    "a proxy that is not there": Case(
        "ProxyConnectionError",
        {**KEYS, "HTTP_PROXY": f"http://jane:{PASSWORD}@127.0.0.1:9"},
        {"endpoint_url": "http://logs.test"},
    ),
    "a proxy with a wrong URL": Case(
        "cannot deliver",
        {**KEYS, "HTTP_PROXY": f"http://jane:{PASSWORD}/x@127.0.0.1:9"},
        {"endpoint_url": "http://logs.test"},
    ),
    "a proxy without a scheme": Case(
        "cannot deliver", {**KEYS, "HTTP_PROXY": f"jane:{PASSWORD}@[::bad"}, {"endpoint_url": "http://logs.test"}
    ),
    "an endpoint of the profile": Case(
        "cannot deliver", KEYS, AS_P, f"endpoint_url = http://jane:{PASSWORD}@127.0.0.1:9\nregion = us-east-1"
    ),
    "a wrong endpoint of the profile": Case(
        "cannot deliver", KEYS, AS_P, f"endpoint_url = http://jane:{PASSWORD}/x@127.0.0.1:9\nregion = us-east-1"
    ),
    "an STS endpoint with a password": Case(
        "cannot deliver",
        {**KEYS, "AWS_ENDPOINT_URL_STS": f"http://jane:{PASSWORD}@127.0.0.1:9"},
        {"endpoint_url": "{echo}", "role_arn": ROLE, "external_id": EXTERNAL_ID},
    ),
    "a helper that fails": Case("credential_process", {}, AS_P, helper=f"echo {PRINTED} >&2; echo {PRINTED}; exit 1"),
    "a helper that prints no JSON": Case("cannot deliver", {}, AS_P, helper=f"echo {PRINTED}"),
    "a helper of another version": Case(
        "credential_process", {}, AS_P, helper=f"""echo '{{"Version": "{PRINTED}"}}'"""
    ),
    "a helper that leaves a key out": Case(
        "credential_process", {}, AS_P, helper=f"""echo '{{"Version": 1, "SecretAccessKey": "{PRINTED}"}}'"""
    ),
    "a helper's keys are repeated": Case(
        "SignatureDoesNotMatch",
        {},
        {**AS_P, "endpoint_url": "{echo}"},
        helper=f"""echo '{{"Version": 1, "AccessKeyId": "{KEY_ID}", "SecretAccessKey": "{SECRET_KEY}", """
        f""""SessionToken": "{TOKEN}"}}'""",
    ),
    "a container's service": Case(
        "container", {"AWS_CONTAINER_CREDENTIALS_FULL_URI": "{echo}/", "AWS_CONTAINER_AUTHORIZATION_TOKEN": TOKEN}
    ),
}


LOOKS: Final = (
    ["status"],
    ["status", "--json"],
    ["replay", "--dry-run"],
    ["replay", "--dead-letters", "--dry-run"],
    ["tail"],
)


def flush(env: dict[str, str], path: str, seconds: float) -> str:
    """Try to deliver for so long, and return all that is printed."""
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", "flush", "--once", "--timeout", str(seconds), path],
        env=env,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", CASES)
def test_no_secret_is_seen(
    name: str, echo: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not on stderr, not in a file, not by a command; only FORMAT and settings.json have the external id."""
    case = CASES[name]
    helper = tmp_path / "helper"
    helper.write_text(f"#!/bin/sh\n{case.helper}\n")
    helper.chmod(0o700)
    aws = tmp_path / "aws"
    process = f"credential_process = {helper}" if case.helper else ""
    aws.write_text(f"[profile p]\n{process}\n{case.profile}\n")
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    settings = {key: value.replace("{echo}", echo) for key, value in case.settings.items()}
    config = quick_config(**{"endpoint_url": None, **settings}, flusher="external")
    writer = Writer(config)
    assert writer.append("a line")
    presence.this.forget_below(writer.directory.root)
    env = {key: value.replace("{echo}", echo) for key, value in case.env.items()}
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AWS_CONFIG_FILE": str(aws), **env}
    path = writer.directory.path
    said = flush(env, path, 1.5)
    if case.says not in said:  # a crowded machine has not come to a first try by then
        said += flush(env, path, CHILD_SECONDS / 4)
    assert case.says in said, said
    assert "stays in" in said, "the record is kept"
    for words in LOOKS:
        main([*words, path])
    printed = capfd.readouterr()
    said += printed.out + printed.err
    assert "a line" in said, "by tail"
    for canary in CANARIES:
        assert canary not in said
    searched = 0
    for file in Path(path).rglob("*"):
        if stat.S_ISREG(file.stat().st_mode):
            searched += 1
            content = file.read_bytes()
            for canary in CANARIES:
                is_allowed = canary == EXTERNAL_ID and file.name in ("FORMAT", "settings.json")
                assert is_allowed or canary.encode() not in content, file
    assert searched >= 5


@pytest.mark.parametrize(
    "wrong",
    [
        {"endpoint_url": f"http://jane:{PASSWORD}@h"},
        {"endpoint_url": f"jane:{PASSWORD}@h"},
        {"endpoint_url": f"http://jane:{PASSWORD}@h\n\x1b"},
        {"endpoint_url": [f"http://jane:{PASSWORD}@h"]},
        {"endpoint_url": f"http://h/?token={PASSWORD}"},
        {"endpoint_url": f"http://h/#{PASSWORD}"},
        {"endpoint_url": f"http://h/?\n\x1b{PASSWORD}"},
        {"endpoint_url": [f"http://h/?token={PASSWORD}"]},
        {"external_id": [EXTERNAL_ID], "role_arn": ROLE},
        {"external_id": {EXTERNAL_ID: EXTERNAL_ID}, "role_arn": ROLE},
        {"external_id": f"{EXTERNAL_ID}\x07", "role_arn": ROLE},
        {"external_id": EXTERNAL_ID},
        {"tags": {"key": [PASSWORD]}},
        {"tags": {PASSWORD: 1}},
        {"tags": f"{{{PASSWORD}"},
    ],
    ids=str,
)
def test_a_wrong_setting_that_may_be_secret_is_named(wrong: dict[str, object]) -> None:
    """The message has the setting's name, and not its value."""
    for settings in (wrong, {**asdict(SinkConfig()), **wrong}):
        with pytest.raises(ConfigError) as caught:
            load_config(settings)
        assert next(iter(wrong)) in str(caught.value)
        assert not [canary for canary in CANARIES if canary in str(caught.value)]


def test_a_secret_in_the_middle_of_a_cut_is_hidden() -> None:
    """First the secrets are hidden, and then a long text is cut."""
    for length in range(560, 720):
        answer = confidential.answer(code="x", message="m" * length + TOKEN * 3 + "m" * 2000)
        confidential.learn(TOKEN)
        answer = confidential.answer(code="x", message="m" * length + TOKEN * 3 + "m" * 2000)
        assert TOKEN[:8] not in answer.message
    confidential._of_settings.clear()


def test_what_is_no_secret_is_left() -> None:
    """A short word that happens to be a key stays readable, and so do addresses and names of roles."""
    text = "user arn:aws:sts::1:assumed-role/admin/jane@example.com may not test http://h/p?a=b@c"
    assert confidential.hidden(text, {"AWS_ACCESS_KEY_ID": "test"}).startswith(text[:70])
