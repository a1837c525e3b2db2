"""The target, and who may write to it: what is created, by whom, with which permissions and credentials.

The verdict is the strict server's: every call by action, and the access key that signed it. Faked are AWS's
other services, on loopback: STS, and a proxy.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import pytest
from msgspec.structs import asdict

from cwsink import SinkConfig, Writer, diagnostics
from cwsink.config import load_config
from cwsink.errors import ConfigError
from cwsink.flusher import backoff
from cwsink.flusher.election import Election
from cwsink.flusher.instructions import config_of
from cwsink.flusher.outcome import Outcome
from cwsink.spool import cursor, sending
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.spool.stats import look
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from cwsink.testing.actions import ACTIONS
from cwsink.watching.reasons import why
from tests.conftest import Spawn
from tests.harness.interleave import deliver, leading, until
from tests.harness.support import CHILD_SECONDS, finish, quick_config

GROUP = "/test/group"
ROLE = "arn:aws:iam::123456789012:role/logs"
SECRET = "wJalrXUtnFEMIbPxRfiCYEXAMPLEKEY"
KMS_KEY = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
MINUTE = 60.0


class Call(NamedTuple):
    """One call that the server saw."""

    action: str
    access_key: str
    region: str
    token: str | None
    sender: str
    status: int


@pytest.fixture
def calls(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> list[Call]:
    """Every call to the server, with who signed it."""
    seen: list[Call] = []
    judge = server._gateway.judge

    def judge_and_record(request: Any, host: str, peer: str) -> Any:
        reply, delay = judge(request, host, peer)
        credential = re.search(r"Credential=([^/]*)/\d+/([^/]*)/logs/", request.headers.get("authorization", ""))
        pid = re.search(r"pid/(\d+)", request.headers.get("user-agent", ""))
        seen.append(
            Call(
                request.headers["x-amz-target"].rpartition(".")[2],
                credential[1] if credential else "",
                credential[2] if credential else "",
                request.headers.get("x-amz-security-token"),
                pid[1] if pid else "",
                reply.status if reply else 0,
            )
        )
        return reply, delay

    monkeypatch.setattr(server._gateway, "judge", judge_and_record)
    return seen


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What cwsink says about itself: (key, line)."""
    lines: list[tuple[str, str]] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, line: lines.append((key, line))])
    return lines


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Credentials and permissions are tried again at once."""
    monkeypatch.setattr(backoff, "SLOW_DELAY_SECONDS", 0.05)


def settings(server: StrictCloudWatch, **more: object) -> SinkConfig:
    """A leader only where the test runs one."""
    return quick_config(server.endpoint_url, flusher="external", **more)


def filled(config: SinkConfig, *messages: str) -> SpoolDirectory:
    writer = Writer(config)
    assert all(writer.append(message) for message in messages or ("hello",))
    return writer.directory


def allow_only(server: StrictCloudWatch, *actions: str) -> None:
    server.faults.deny(*(action for action in ACTIONS if action not in actions))


def delivered(directory: SpoolDirectory) -> bool:
    books = survey(directory)
    return books.pending == 0 and books.delivered == books.appended


# What is created


def test_group_and_stream_are_created_as_asked(server: StrictCloudWatch, calls: list[Call]) -> None:
    """Retention, tags, class and key of the group; then the stream; then the events. Nothing is described."""
    config = settings(
        server,
        retention_days=30,
        tags={"team": "shop", "stage": "prod"},
        log_group_class="INFREQUENT_ACCESS",
        kms_key_id=KMS_KEY,
    )
    assert delivered_by(config)
    group = server.group(GROUP)
    assert group is not None
    assert (group.retention_days, group.tags, group.group_class, group.kms_key_id) == (
        30,
        {"team": "shop", "stage": "prod"},
        "INFREQUENT_ACCESS",
        KMS_KEY,
    )
    assert list(group.streams) == ["stream"]
    assert [call.action for call in calls] == [
        "PutLogEvents",
        "CreateLogStream",
        "CreateLogGroup",
        "PutRetentionPolicy",
        "CreateLogStream",
        "PutLogEvents",
    ]


def delivered_by(config: SinkConfig, *messages: str) -> bool:
    directory = filled(config, *messages)
    deliver(directory, config)
    return delivered(directory)


def test_nothing_is_asked_for_that_was_not_asked_for(server: StrictCloudWatch) -> None:
    """Without settings for it a group is made without them: no retention is put, no tag, no class."""
    assert delivered_by(settings(server))
    group = server.group(GROUP)
    assert group is not None
    assert (group.retention_days, group.tags, group.group_class, group.kms_key_id) == (None, {}, "STANDARD", None)
    assert "PutRetentionPolicy" not in server.calls


def test_an_existing_group_keeps_its_retention_and_tags(server: StrictCloudWatch) -> None:
    """Somebody else's group is not changed: no PutRetentionPolicy, no TagResource, no attempt to create it."""
    server.create_group(GROUP, retention_days=365)
    assert delivered_by(settings(server, retention_days=1, tags={"team": "shop"}))
    group = server.group(GROUP)
    assert group is not None
    assert (group.retention_days, group.tags) == (365, {})
    assert set(server.calls) == {"PutLogEvents", "CreateLogStream"}


def test_a_group_that_another_host_makes_meanwhile_keeps_its_retention(
    server: StrictCloudWatch, calls: list[Call], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two hosts race to create the group: who finds it there leaves it as it is, and delivers."""
    judge = server._gateway.judge

    def race(request: Any, host: str, peer: str) -> Any:
        if request.headers["x-amz-target"].endswith("CreateLogGroup"):
            server.create_group(GROUP, retention_days=365)
        return judge(request, host, peer)

    monkeypatch.setattr(server._gateway, "judge", race)
    assert delivered_by(settings(server, retention_days=1))
    group = server.group(GROUP)
    assert group is not None
    assert group.retention_days == 365
    assert "PutRetentionPolicy" not in server.calls


LOGS = """
import sys, time
from cwsink import Writer
writer = Writer.open(
    log_group_name="/test/group", log_stream_name="stream", retention_days=7, batch_timeout_seconds=0.1,
    drain_timeout_seconds=30.0,
)
assert writer.append(f"{sys.argv[1]}")
print("appended", flush=True)
sys.stdin.readline()
"""


def test_one_leader_creates_the_target_once_for_the_host(
    server: StrictCloudWatch, calls: list[Call], spawn: Spawn
) -> None:
    """Three processes log: all create calls come from one flusher, and there is one of each that succeeds."""
    children = [spawn(LOGS, number, env=server.environment()) for number in range(3)]
    for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "appended\n"
    assert server.wait_for_events(3, CHILD_SECONDS)
    for child in children:
        finish(child)
    assert len({call.sender for call in calls if call.action != "PutLogEvents"}) == 1
    made = [call.action for call in calls if call.status == 200 and call.action != "PutLogEvents"]
    assert made == ["CreateLogGroup", "PutRetentionPolicy", "CreateLogStream"]


def test_a_retention_that_is_denied_does_not_stop_delivery(
    server: StrictCloudWatch, said: list[tuple[str, str]]
) -> None:
    """The group is made, the events arrive, and one line says what to do by hand."""
    server.faults.deny("logs:PutRetentionPolicy")
    assert delivered_by(settings(server, retention_days=14))
    group = server.group(GROUP)
    assert group is not None
    assert group.retention_days is None
    (line,) = [line for key, line in said if key == "retention"]
    for part in (GROUP, "14 days", "AccessDeniedException", "logs:PutRetentionPolicy", "by hand"):
        assert part in line
    assert server.calls["PutRetentionPolicy"] == 1


@pytest.mark.parametrize("days", [0, -1, 2, 10, 15, 3654, 10_000])
def test_a_retention_that_cloudwatch_does_not_have_is_refused_at_once(days: int) -> None:
    """Before anything is made, with the ones there are."""
    with pytest.raises(ConfigError, match=f"retention_days={days}: .* 1, 3, 5, 7, 14, 30"):
        SinkConfig(retention_days=days)


@pytest.mark.usefixtures("impatient")
def test_a_missing_stream_that_may_not_be_created_is_waited_for(
    server: StrictCloudWatch, said: list[tuple[str, str]]
) -> None:
    """Creation off: the line names stream, group and setting; the records stay, and go once somebody made it."""
    server.create_group(GROUP)
    config = settings(server, create_log_stream=False, create_log_group=False)
    directory = filled(config)
    with leading(directory, config):
        until(lambda: bool(said), "something is said")
        server.create_stream(GROUP, "stream")
        until(lambda: delivered(directory), "the record is delivered")
    (line,) = [line for key, line in said if key == f"send_denied_{GROUP}"]
    for part in (GROUP, "log stream stream", "create_log_stream is off", "stay in the spool"):
        assert part in line
    assert set(server.calls) == {"PutLogEvents"}


@pytest.mark.usefixtures("impatient")
def test_a_missing_group_that_may_not_be_created_is_waited_for(
    server: StrictCloudWatch, said: list[tuple[str, str]]
) -> None:
    """create_log_group off, or denied: nothing is lost, one line, and delivery once the group is there."""
    server.faults.deny("logs:CreateLogGroup")
    for allowed in (False, True):
        config = settings(server, create_log_group=allowed, log_stream_name=f"{allowed}")
        directory = filled(config)
        server.delete_group(GROUP)
        said.clear()
        diagnostics._quiet.clear()
        with leading(directory, config):
            until(lambda: bool(said), "something is said")
            server.create_group(GROUP)
            until(lambda: delivered(directory), "the record is delivered")  # noqa: B023  # within the iteration
        assert ("logs:CreateLogGroup" in said[0][1]) is allowed
        assert [key for key, _ in said].count(f"send_denied_{GROUP}") == 1
        assert ("CreateLogGroup" in server.calls) is allowed


# Permissions. The README's IAM table stands on these.

MINIMAL = {"PutLogEvents", "CreateLogStream"}
CREATING = {*MINIMAL, "CreateLogGroup"}
EVERYTHING = {*CREATING, "PutRetentionPolicy"}


@pytest.mark.parametrize(
    ("more", "is_there", "actions"),
    [
        pytest.param({"create_log_group": False, "create_log_stream": False}, "stream", {"PutLogEvents"}, id="none"),
        pytest.param({}, "stream", {"PutLogEvents"}, id="all is there"),
        pytest.param({}, "group", MINIMAL, id="minimal"),
        pytest.param({"create_log_group": False, "retention_days": 7}, "group", MINIMAL, id="minimal, group off"),
        pytest.param({}, "", CREATING, id="creation"),
        pytest.param({"tags": {"team": "shop"}, "kms_key_id": KMS_KEY}, "", CREATING, id="creation with tags and key"),
        pytest.param({"retention_days": 7, "tags": {"team": "shop"}}, "", EVERYTHING, id="extras"),
    ],
)
def test_these_actions_are_enough_and_no_other_is_tried(
    server: StrictCloudWatch, more: dict[str, object], is_there: str, actions: set[str]
) -> None:
    """All else is denied: everything arrives, exactly these actions were called, and no Describe on any path."""
    if is_there:
        server.create_group(GROUP)
    if is_there == "stream":
        server.create_stream(GROUP, "stream")
    allow_only(server, *actions)
    config = settings(server, **more)
    assert delivered_by(config, "one", "two")
    server.delete_stream(GROUP, "stream")
    if config.create_log_stream and "CreateLogStream" in actions:
        assert delivered_by(config, "three")
    assert set(server.calls) == actions
    assert not server.faults.pending
    assert not any(name.startswith("Describe") for name in server.calls)


# Where it is


@pytest.mark.parametrize("variable", ["AWS_REGION", "AWS_DEFAULT_REGION"])
def test_the_region_comes_from_awss_own_variables(
    server: StrictCloudWatch, calls: list[Call], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """It signs the requests, and a replay by another process knows it."""
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv(variable, "eu-central-1")
    config = load_config(asdict(settings(server, region=None)))
    directory = filled(config)
    deliver(directory, config)
    assert {call.region for call in calls} == {"eu-central-1"}
    assert open_existing(directory.path).format.region == "eu-central-1"


def test_the_endpoint_comes_from_botocores_own_variable(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored in FORMAT, so that a replay whose environment lacks it goes to the same place."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS", server.endpoint_url)
    config = load_config(asdict(quick_config(flusher="external")))
    directory = filled(config, "one")
    monkeypatch.delenv("AWS_ENDPOINT_URL_CLOUDWATCH_LOGS")
    assert open_existing(directory.path).format.endpoint_url == server.endpoint_url
    deliver(directory, config_of(directory))
    assert server.messages() == ["one"]


# Who writes: profiles and roles


@pytest.fixture
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS configuration files with the profiles `logs` and `other`, and no credentials in the environment."""
    (tmp_path / "config").write_text(
        "[profile logs]\nregion = eu-west-1\n[profile other]\nregion = eu-west-2\n"
        f"[profile chained]\nrole_arn = {ROLE}\nsource_profile = logs\nregion = eu-west-3\n"
    )
    (tmp_path / "credentials").write_text(
        f"[logs]\naws_access_key_id = AKIDLOGS\naws_secret_access_key = {SECRET}\n"
        f"[other]\naws_access_key_id = AKIDOTHER\naws_secret_access_key = {SECRET}\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
        monkeypatch.delenv(name)


@pytest.mark.usefixtures("profiles")
def test_a_profile_gives_credentials_and_region(server: StrictCloudWatch, calls: list[Call]) -> None:
    """As the setting `profile`; no key of it is written to the spool."""
    config = settings(server, profile="logs", region=None)
    directory = filled(config)
    deliver(directory, config)
    assert {(call.access_key, call.region) for call in calls} == {("AKIDLOGS", "eu-west-1")}
    assert open_existing(directory.path).format.profile == "logs"
    assert_no_secret(directory, "AKIDLOGS")


@pytest.mark.usefixtures("profiles", "impatient")
def test_a_profile_that_does_not_exist_keeps_the_records(
    server: StrictCloudWatch, said: list[tuple[str, str]], tmp_path: Path
) -> None:
    """One line names it; once it is there the records go."""
    config = settings(server, profile="late")
    directory = filled(config)
    with leading(directory, config):
        until(lambda: bool(said), "something is said")
        with (tmp_path / "credentials").open("a") as file:
            file.write(f"[late]\naws_access_key_id = AKIDLATE\naws_secret_access_key = {SECRET}\n")
        until(lambda: delivered(directory), "the record is delivered")
    (line,) = [line for key, line in said if key == "send_credentials"]
    assert "(late)" in line
    assert "stay in the spool" in line


def assert_no_secret(directory: SpoolDirectory, *others: str) -> None:
    for path in Path(directory.path).rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            for secret in (SECRET, *others):
                assert secret.encode() not in content, path


class Sts:
    """A Security Token Service: each AssumeRole gets the next key, which expires `lifetime_seconds` later."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.lifetime_seconds = 60 * MINUTE
        self.is_denied = False
        self.asked: list[dict[str, str]] = []
        self.expirations: dict[str, float] = {}

    def answer(self, headers: Any, form: dict[str, str]) -> tuple[int, str]:
        credential = re.search(r"Credential=([^/]*)/\d+/([^/]*)/sts/", headers["Authorization"])
        assert credential is not None
        self.asked.append({**form, "by": credential[1], "region": credential[2]})
        if self.is_denied:
            error = f"User: x is not authorized to perform: sts:AssumeRole on resource: {form['RoleArn']}"
            code = "AccessDenied"
            return 403, f"<ErrorResponse><Error><Code>{code}</Code><Message>{error}</Message></Error></ErrorResponse>"
        key = f"ASIA{len(self.asked)}{form['RoleArn'].rpartition('/')[2].upper()}"
        expires = time.time() + self.lifetime_seconds
        self.expirations[key] = expires
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(expires))
        return 200, (
            '<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><AssumedRoleUser>'
            f"<Arn>{form['RoleArn']}/x</Arn><AssumedRoleId>AROA:x</AssumedRoleId></AssumedRoleUser><Credentials>"
            f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>{SECRET}-{key}</SecretAccessKey><SessionToken>token-"
            f"{key}</SessionToken><Expiration>{at}</Expiration></Credentials></AssumeRoleResult><ResponseMetadata>"
            "<RequestId>1</RequestId></ResponseMetadata></AssumeRoleResponse>"
        )


@contextlib.contextmanager
def serving(handle: Callable[[BaseHTTPRequestHandler, bytes], tuple[int, dict[str, str], bytes]]) -> Iterator[int]:
    """Run an HTTP server on loopback; yields its port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status, headers, answer = handle(self, body)
            self.send_response_only(status)
            for name, value in {**headers, "Content-Length": str(len(answer)), "Connection": "close"}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch) -> Iterator[Sts]:
    """A fake STS that botocore is pointed at."""

    def handle(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
        status, text = fake.answer(request.headers, form)
        return status, {"Content-Type": "text/xml"}, text.encode()

    with serving(handle) as port:
        fake = Sts(port)
        monkeypatch.setenv("AWS_ENDPOINT_URL_STS", fake.url)
        yield fake


def test_a_role_is_assumed_with_its_external_id(server: StrictCloudWatch, calls: list[Call], sts: Sts) -> None:
    """Its credentials sign every call; the spool knows the role, and none of the secrets."""
    config = settings(server, role_arn=ROLE, external_id="them")
    directory = filled(config)
    deliver(directory, config)
    (asked,) = sts.asked
    assert (asked["Action"], asked["RoleArn"], asked["ExternalId"]) == ("AssumeRole", ROLE, "them")
    assert asked["RoleSessionName"].startswith("cwsink-")
    assert asked["by"] == "test"
    assert {(call.access_key, call.token) for call in calls} == {("ASIA1LOGS", "token-ASIA1LOGS")}
    stored = open_existing(directory.path).format
    assert (stored.role_arn, stored.external_id) == (ROLE, "them")
    assert_no_secret(directory, "ASIA1LOGS")


def test_the_region_of_the_setting_is_also_that_of_sts(
    server: StrictCloudWatch, sts: Sts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With no region in the environment, the one that is set is enough."""
    monkeypatch.delenv("AWS_REGION")
    assert delivered_by(settings(server, role_arn=ROLE, region="eu-north-1"))
    assert [asked["region"] for asked in sts.asked] == ["eu-north-1"]


@pytest.mark.usefixtures("profiles")
def test_a_role_is_assumed_with_the_credentials_of_the_profile(
    server: StrictCloudWatch, calls: list[Call], sts: Sts
) -> None:
    """Profile and role together: the profile signs AssumeRole, the role signs PutLogEvents, in the profile's region."""
    assert delivered_by(settings(server, profile="logs", role_arn=ROLE, region=None))
    assert [(asked["by"], asked["region"]) for asked in sts.asked] == [("AKIDLOGS", "eu-west-1")]
    assert {(call.access_key, call.region) for call in calls} == {("ASIA1LOGS", "eu-west-1")}


@pytest.mark.usefixtures("profiles")
def test_a_role_in_the_profile_itself_works_too(server: StrictCloudWatch, calls: list[Call], sts: Sts) -> None:
    """`role_arn` and `source_profile` in AWS's own configuration file: botocore assumes it."""
    assert delivered_by(settings(server, profile="chained", region=None))
    assert [asked["by"] for asked in sts.asked] == ["AKIDLOGS"]
    assert {(call.access_key, call.region) for call in calls} == {("ASIA1LOGS", "eu-west-3")}


@pytest.mark.parametrize("minutes", [1, 14])
def test_a_roles_credentials_are_refreshed_before_they_expire(
    server: StrictCloudWatch, calls: list[Call], sts: Sts, minutes: int
) -> None:
    """Each request is signed with credentials that are valid, and none is refused on the way there."""
    sts.lifetime_seconds = minutes * MINUTE
    server.create_stream(GROUP, "stream")
    config = settings(server, role_arn=ROLE, max_batch_events=1)
    assert delivered_by(config, "one", "two", "three")
    puts = [call for call in calls if call.action == "PutLogEvents"]
    assert [call.status for call in puts] == [200, 200, 200]
    assert [call.access_key for call in puts] == list(sts.expirations)[-3:]
    assert all(sts.expirations[call.access_key] > time.time() for call in puts)


def test_credentials_that_last_are_not_asked_for_again(server: StrictCloudWatch, sts: Sts) -> None:
    """One AssumeRole for an hour, not one for each request."""
    assert delivered_by(settings(server, role_arn=ROLE, max_batch_events=1), "one", "two", "three")
    assert len(sts.asked) == 1


@pytest.mark.usefixtures("impatient")
def test_a_role_that_may_not_be_assumed_keeps_the_records(
    server: StrictCloudWatch, calls: list[Call], sts: Sts, said: list[tuple[str, str]]
) -> None:
    """One line with STS's own words; nothing is sent with other credentials; once it may be, the records go."""
    sts.is_denied = True
    config = settings(server, role_arn=ROLE)
    directory = filled(config)
    with leading(directory, config):
        until(lambda: len(sts.asked) > 2, "it was tried again")
        assert calls == []
        sts.is_denied = False
        until(lambda: delivered(directory), "the record is delivered")
    (line,) = [line for key, line in said if key == "send_credentials"]
    for part in ("AccessDenied", "sts:AssumeRole", ROLE, "stay in the spool"):
        assert part in line
    assert survey(directory).resent == 0


@pytest.mark.usefixtures("impatient")
def test_a_role_without_credentials_to_assume_it_with_says_so(
    server: StrictCloudWatch, sts: Sts, said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not an AttributeError of botocore's insides."""
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    config = settings(server, role_arn=ROLE)
    directory = filled(config)
    with leading(directory, config):
        until(lambda: bool(said), "something is said")
    assert "Unable to locate credentials" in said[0][1]
    assert survey(directory).pending == 1


def test_the_same_group_in_two_accounts_is_two_spools(
    server: StrictCloudWatch, calls: list[Call], sts: Sts, tmp_path: Path
) -> None:
    """Two roles: each spool is sent with its own role's credentials, by a flusher that knows only the spools."""
    configs = [settings(server, role_arn=f"{ROLE}-{name}", external_id=name) for name in "ab"]
    spools = [filled(config, f"of {config.external_id}") for config in configs]
    assert sorted(spool.path for spool in spools) == find_spools(str(tmp_path / "spools"))
    assert len({spool.path for spool in spools}) == 2
    for spool in spools:
        deliver(spool, config_of(open_existing(spool.path)))
    assert server.messages() == ["of a", "of b"]
    assert [asked["ExternalId"] for asked in sts.asked] == ["a", "b"]
    keys = [call.access_key for call in calls if call.action == "PutLogEvents" and call.status == 200]
    assert keys == ["ASIA1LOGS-A", "ASIA2LOGS-B"]


@pytest.mark.usefixtures("profiles")
def test_two_profiles_are_two_spools(server: StrictCloudWatch) -> None:
    """A profile names an account, too; none is a third."""
    configs = [settings(server, profile=name) for name in ("logs", "other", None)]
    assert len({filled(config).path for config in configs}) == 3


def test_a_flusher_creates_as_the_writers_ask(server: StrictCloudWatch) -> None:
    """Retention, tags, class and key are in the spool: whoever sends it makes the same group."""
    config = settings(
        server, retention_days=90, tags={"team": "shop"}, log_group_class="INFREQUENT_ACCESS", kms_key_id=KMS_KEY
    )
    directory = filled(config)
    deliver(directory, config_of(open_existing(directory.path)))
    group = server.group(GROUP)
    assert group is not None
    assert (group.retention_days, group.tags, group.group_class) == (90, {"team": "shop"}, "INFREQUENT_ACCESS")
    assert group.kms_key_id == KMS_KEY


# How to send

NEWER = """
import json, sys
from cwsink import SinkConfig, Writer
writer = Writer(SinkConfig(**json.loads(sys.argv[1])))
sys.stdin.readline()
assert all(writer.append(f"newer {number}") for number in range(20))
"""


def test_a_newer_writers_settings_hold_from_then_on(
    server: StrictCloudWatch, spawn: Spawn, said: list[tuple[str, str]]
) -> None:
    """The leader goes on with them, under a new epoch. As another writer lives, one line says what is different."""
    older = settings(server, max_batch_events=1)
    newer = {name: value for name, value in asdict(settings(server, max_batch_events=50)).items() if value is not None}
    directory = filled(older, "older 0", "older 1")
    election = Election(directory, kind="service")
    election.start()
    try:
        until(lambda: delivered(directory), "the older one's records are delivered")
        before = len(server.requests)
        child = spawn(NEWER, json.dumps(newer))
        until(lambda: cursor.read(directory.cursor).epoch == 2, "it leads anew")
        _, errors = child.communicate("\n", timeout=CHILD_SECONDS)
        until(lambda: delivered(directory), "the newer one's records are delivered")
    finally:
        election.leave(0.0)
        assert election.has_ended(CHILD_SECONDS)
    assert server.messages() == ["older 0", "older 1", *(f"newer {number}" for number in range(20))]
    assert max(request.events for request in server.requests[:before]) == 1
    assert max(request.events for request in server.requests[before:]) > 1
    (line,) = [line for line in errors.splitlines() if "settings" in line]
    for part in (directory.path, f"/{os.getpid()}", "max_batch_events 1 -> 50.", "The newer ones hold from now on"):
        assert part in line
    assert not [key for key, _ in said if key.startswith("settings")]


def test_a_writer_with_the_same_settings_changes_nothing(server: StrictCloudWatch, said: list[tuple[str, str]]) -> None:
    """As the second worker of an application has: the file is left as it is, and nothing is said."""
    config = settings(server)
    directory = filled(config)
    before = sending.stamp(directory)
    assert filled(config).path == directory.path
    assert sending.stamp(directory) == before
    assert not said


# The way there


@pytest.fixture
def proxy(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An HTTP proxy that the environment names; what it was asked for."""
    asked: list[str] = []

    def forward(request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, dict[str, str], bytes]:
        asked.append(request.path)
        url = urlsplit(request.path)
        connection = http.client.HTTPConnection(url.netloc, timeout=CHILD_SECONDS)
        with contextlib.closing(connection):
            connection.request("POST", url.path, body, dict(request.headers))
            response = connection.getresponse()
            answer = response.read()
        return response.status, {"x-amzn-RequestId": response.headers["x-amzn-RequestId"]}, answer

    with serving(forward) as port:
        for name in ("NO_PROXY", "no_proxy", "http_proxy", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{port}")
        yield asked


def test_a_proxy_is_used_as_botocore_does(server: StrictCloudWatch, proxy: list[str]) -> None:
    """HTTP_PROXY carries every call."""
    assert delivered_by(settings(server))
    assert len(proxy) == sum(server.calls.values()) == 5
    assert {urlsplit(url)._replace(path="").geturl() for url in proxy} == {server.endpoint_url}


def test_no_proxy_leaves_the_proxy_out(
    server: StrictCloudWatch, proxy: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """NO_PROXY names the endpoint's host."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    assert delivered_by(settings(server))
    assert proxy == []


@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"])
def test_a_ca_bundle_that_is_not_there_is_named(
    server: StrictCloudWatch, said: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    """A variable with a slip: the line names it and the file, and what to do. The records stay until it is right."""
    monkeypatch.setenv(variable, "/nowhere/ca.pem")
    config = quick_config(
        server.endpoint_url.replace("http:", "https:"), flusher="external", circuit_breaker_enabled=False
    )
    directory = filled(config)
    with leading(directory, config):
        until(lambda: bool(said), "something is said")
        assert Outcome.UNTRUSTED.value.advice in why(look(directory)), "the status says the same"
    (key, line) = said[0]
    assert key == "send_retry"
    for part in (f"{variable} is /nowhere/ca.pem", "AWS_CA_BUNDLE=/path/to/ca.pem", "stay in the spool"):
        assert part in line
    assert "is the network up" not in line
    assert survey(directory).pending == 1
    assert not server.calls


def test_compressed_requests_carry_the_same_events(server: StrictCloudWatch) -> None:
    """compression="gzip": a tenth of the bytes, the same events in the same requests."""
    messages = [f'{{"level": "INFO", "message": "request {number} done, é😀"}}' for number in range(2_000)]
    sizes = []
    for compression in ("none", "gzip"):
        config = settings(server, compression=compression, log_stream_name=compression)
        assert delivered_by(config, *messages)
        assert server.messages(stream=compression) == messages
        sizes.append(server.requests[-1].body_bytes)
    assert sizes[1] * 5 < sizes[0]
