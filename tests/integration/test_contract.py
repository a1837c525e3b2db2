"""What CloudWatch may answer, and what becomes of the records then: each outcome, end to end.

A real Writer and a real Flusher with botocore, against the strict server. The waits the leader asks
for are written down, not slept through; what happens in the world meanwhile happens in one of them.
Limits and outcomes as such are proven in tests/unit; here it is the whole way that counts.
"""

from __future__ import annotations

import gzip
import itertools
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import asdict

from cwsink import Writer, stats
from cwsink.config import SinkConfig
from cwsink.flusher import flusher as flusher_module
from cwsink.flusher import publisher
from cwsink.flusher.flusher import Flusher
from cwsink.spool import leader_state
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey
from cwsink.testing import Faults, StrictCloudWatch
from cwsink.testing.wire import HttpRequest, Reply
from cwsink.watching.reasons import why
from tests.harness.interleave import deliver, leading, segments
from tests.harness.support import books_balance, is_ours, quick_config

PUT = "PutLogEvents"
GROUP, STREAM = "/test/group", "stream"
NEVER = 3600.0
DAY_MS = 86_400_000
# PutLogEvents' limits as documented, not as the code has them: the server judges by the code's.
MAX_BATCH_BYTES, EVENT_OVERHEAD_BYTES, MAX_BATCH_EVENTS = 1_048_576, 26, 10_000
MAX_PAST_MS, MAX_FUTURE_MS = 14 * DAY_MS, 2 * 3_600_000
MOST_WAITS = 200  # guards against a leader that never gets on


class Waits(list[float]):
    """The waits a leader asked for, in seconds. `during[n]` happens in the n-th one."""

    def __init__(self) -> None:
        self.during: dict[int, Callable[[], object]] = {}

    def wait(self, seconds: float) -> bool:
        self.append(seconds)
        assert len(self) < MOST_WAITS, "the leader does not get on"
        if (event := self.during.pop(len(self), None)) is not None:
            event()
        return True

    def replace_those_of_leaders(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Flusher, "wait", self.wait)


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    """The waits of every leader in this test."""
    waits = Waits()
    waits.replace_those_of_leaders(monkeypatch)
    return waits


class RequestInspector:
    """Sees each request before the server judges it, whole; refuses credentials, lets others in first."""

    def __init__(self, server: StrictCloudWatch) -> None:
        self._server = server
        self._judge = server._gateway.judge
        self.requests: list[HttpRequest] = []
        self.refuses: tuple[str, int] | None = None  # error code and status
        self.valid_key = ""
        self.on_the_way: dict[str, Callable[[], object]] = {}  # action -> what another does just before it

    def judge(self, request: HttpRequest, host: str, peer: str) -> tuple[Reply | None, float]:
        self.requests.append(request)
        if (event := self.on_the_way.pop(action_of(request), None)) is not None:
            event()
        if self.refuses and key_of(request) != self.valid_key:
            code, status = self.refuses
            self._server.faults.fail_next(1, code, status)
        return self._judge(request, host, peer)

    @property
    def actions(self) -> list[str]:
        """What was asked, in order."""
        return [action_of(request) for request in self.requests]

    @property
    def keys(self) -> list[str]:
        """With which access key each request was signed."""
        return [key_of(request) for request in self.requests]

    @property
    def bodies(self) -> list[dict[str, Any]]:
        """What each request said."""
        return [msgspec.json.decode(request.content()) for request in self.requests]


@pytest.fixture
def inspector(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> RequestInspector:
    """It sees every request of this test."""
    inspector = RequestInspector(server)
    monkeypatch.setattr(server._gateway, "judge", inspector.judge)
    return inspector


def action_of(request: HttpRequest) -> str:
    return request.headers["x-amz-target"].partition(".")[2]


def key_of(request: HttpRequest) -> str:
    return request.headers["authorization"].partition("Credential=")[2].partition("/")[0]


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    """A leader only where the test runs one; ten records a request, one retry, no breaker."""
    return quick_config(
        server.endpoint_url, flusher="external", circuit_breaker_enabled=False, max_batch_events=10, max_retries=1
    )


def changed(config: SinkConfig, **settings: object) -> SinkConfig:
    return SinkConfig(**{**asdict(config), **settings})


def spooled(config: SinkConfig, records: list[tuple[str, int | None]]) -> SpoolDirectory:
    writer = Writer(config)
    assert all(writer.append(text, timestamp_ms) for text, timestamp_ms in records)
    return writer.directory


def delivered(config: SinkConfig, texts: list[str]) -> SpoolDirectory:
    """Append `texts`, deliver all, and check that the books say so."""
    directory = spooled(config, [(text, None) for text in texts])
    deliver(directory, config)
    settled(directory, delivered=len(texts))
    return directory


def settled(directory: SpoolDirectory, *, delivered: int, **dead: int) -> None:
    """Assert the books of a spool in which nothing is pending, and that the dead letters are in the file."""
    books = survey(directory)
    assert books.adds_up, books
    assert (books.pending, books.evicted, books.refused) == (0, 0, {}), books
    assert (books.delivered, books.dead_lettered) == (delivered, dead), books
    assert Counter(letter["reason"] for letter in letters(directory)) == dead


def letters(directory: SpoolDirectory) -> list[dict[str, Any]]:
    path = Path(directory.dead_letters)
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def records(server: StrictCloudWatch) -> list[str]:
    return [text for text in server.messages() if not is_ours(text)]


def said(capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on stderr."""
    return capfd.readouterr().err.splitlines()


TEXTS = [f"{number}" for number in range(30)]  # three requests


# Transient.


class Transient:
    """A trouble of `times` calls. `arrives`: the batch may have arrived; `repeats`: it had."""

    def __init__(
        self, begin: Callable[[Faults, int], object], *, arrives: bool, repeats: bool = False, times: int = 5
    ) -> None:
        self.begin = begin
        self.arrives = arrives
        self.repeats = repeats
        self.times = times


def failing(code: str, status: int | None = None) -> Callable[[Faults, int], object]:
    return lambda faults, times: faults.fail_next(times, code, status, action=PUT)


def junk(body: bytes) -> Callable[[Faults, int], object]:
    return lambda faults, times: faults.junk_next(times, body, action=PUT)


TRANSIENT = {
    "ThrottlingException": Transient(failing("ThrottlingException", 400), arrives=False),
    "429": Transient(failing("TooManyRequestsException", 429), arrives=False),
    "429 of a proxy": Transient(failing("", 429), arrives=False),
    "RequestTimeout": Transient(failing("RequestTimeout", 400), arrives=False),
    "ServiceUnavailable": Transient(failing("ServiceUnavailable", 503), arrives=True),
    "InternalFailure": Transient(failing("InternalFailure", 500), arrives=True),
    "502 of a proxy": Transient(failing("", 502), arrives=True),
    "redirect": Transient(failing("", 302), arrives=False),
    "dropped": Transient(lambda faults, times: faults.drop_connection_before_storing(times), arrives=True),
    "answer lost": Transient(
        lambda faults, times: faults.drop_connection_after_storing(times), arrives=True, repeats=True
    ),
    "hangs": Transient(lambda faults, times: faults.hang(NEVER, times, action=PUT), arrives=True, times=2),
    "hangs after storing": Transient(
        lambda faults, times: faults.hang(NEVER, times, after_storing=True), arrives=True, repeats=True, times=2
    ),
    "HTML": Transient(junk(b"<html><body>It works!</body></html>"), arrives=True),
    "empty": Transient(junk(b""), arrives=True),
    "another's JSON": Transient(junk(b'{"status": "ok"}'), arrives=True),
    "JSON that is no object": Transient(junk(b"[1]"), arrives=True),
    "half an answer": Transient(junk(b'{"nextSequenceTok'), arrives=True),
    "no text": Transient(junk(b"\xff\xfe\x00"), arrives=True),
}


@pytest.mark.parametrize("trouble", TRANSIENT)
def test_a_transient_failure_drops_nothing(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits, capfd: pytest.CaptureFixture[str], trouble: str
) -> None:
    """More failures than max_retries: all is delivered in order; only a lost answer repeats, and only its batch."""
    row = TRANSIENT[trouble]
    server.create_stream(GROUP, STREAM)
    server.faults.pass_next(1, action=PUT)
    row.begin(server.faults, row.times)
    directory = delivered(changed(config, read_timeout_seconds=0.2), TEXTS)
    assert len(waits) == row.times
    assert records(server) == TEXTS[:10] + TEXTS[10:20] * (1 + row.times * row.repeats) + TEXTS[20:]
    assert survey(directory).resent == 10 * row.times * row.arrives
    told, ended = said(capfd)
    assert f"cannot deliver to {GROUP}: " in told
    assert ": . " not in told  # it says what is wrong, whatever it is
    assert "stay in the spool" in told
    assert "accepts records again" in ended


def test_a_quota_slows_delivery_and_drops_nothing(config: SinkConfig, server: StrictCloudWatch) -> None:
    """Above so many calls a second all are throttled: what is pending arrives once, in order, at that rate."""
    server.create_stream(GROUP, STREAM)
    server.faults.throttle_rate(10.0, action=PUT)
    delivered(changed(config, max_batch_events=1, retry_base_delay=0.02), TEXTS[:14])
    assert records(server) == TEXTS[:14]
    assert Counter(request.error for request in server.requests)["ThrottlingException"] >= 1


# Credentials.

REFUSED = [
    ("ExpiredTokenException", 400),
    ("UnrecognizedClientException", 400),
    ("InvalidSignatureException", 400),
    ("SignatureDoesNotMatch", 403),
    ("RequestExpired", 400),
]


@pytest.mark.parametrize("refused", REFUSED, ids=lambda refused: refused[0])
def test_refused_credentials_are_read_anew(
    config: SinkConfig,
    server: StrictCloudWatch,
    waits: Waits,
    inspector: RequestInspector,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    refused: tuple[str, int],
) -> None:
    """Slow tries with the old key, then the new one from the environment, without a restart; one line tells of it."""
    server.create_stream(GROUP, STREAM)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "OLD")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "old token")
    inspector.refuses, inspector.valid_key = refused, "NEW"

    def rotate() -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "NEW")
        monkeypatch.setenv("AWS_SESSION_TOKEN", "new token")

    waits.during[3] = rotate
    delivered(config, TEXTS[:10])
    assert records(server) == TEXTS[:10]
    assert inspector.keys == ["OLD"] * 3 + ["NEW"]
    assert inspector.requests[-1].headers["x-amz-security-token"] == "new token"
    assert all(5.0 <= wait <= 10.0 for wait in waits)
    told, _ = said(capfd)
    assert f"{refused[0]}: " in told
    assert "Check the AWS credentials" in told


def credentials_file(path: Path, key: str, profile: str = "default") -> None:
    path.write_text(f"[{profile}]\naws_access_key_id = {key}\naws_secret_access_key = secret\n")


@pytest.mark.parametrize("refusal", ["ExpiredTokenException", "AccessDeniedException"])
@pytest.mark.parametrize("source", ["shared file", "profile", "credential_process"])
def test_rotated_credentials_are_used_wherever_they_come_from(
    config: SinkConfig,
    server: StrictCloudWatch,
    waits: Waits,
    inspector: RequestInspector,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    source: str,
    refusal: str,
) -> None:
    """An agent rewrites the file, a process gives a new key, a person corrects a wrong one: the next try has it."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    file, key_file = tmp_path / "credentials", tmp_path / "key"
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    profile = "logs" if source == "profile" else None

    def issue(key: str) -> None:
        if source == "credential_process":
            answer = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": "secret"}
            key_file.write_text(json.dumps(answer))
            file.write_text(f"[default]\ncredential_process = cat {key_file}\n")
        else:
            credentials_file(file, key, profile or "default")

    issue("OLD")
    server.create_stream(GROUP, STREAM)
    inspector.refuses, inspector.valid_key = (refusal, 400), "NEW"
    waits.during[2] = lambda: issue("NEW")
    delivered(changed(config, profile=profile), TEXTS[:10])
    assert records(server) == TEXTS[:10]
    assert inspector.keys == ["OLD", "OLD", "NEW"]


def test_credentials_that_are_not_there_yet_are_waited_for(
    config: SinkConfig,
    server: StrictCloudWatch,
    waits: Waits,
    inspector: RequestInspector,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """A host that gets its credentials minutes after its workers began loses nothing, and calls nobody before."""
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    server.create_stream(GROUP, STREAM)
    called: list[int] = []

    def issue() -> None:
        called.append(len(inspector.requests))
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FIRST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    waits.during[3] = issue
    delivered(config, TEXTS[:10])
    assert (called, inspector.keys, records(server)) == ([0], ["FIRST"], TEXTS[:10])
    assert "NoCredentialsError" in said(capfd)[0]


# Who was to give credentials -> variables, and the profile's file. {there} is a file that nobody may execute.
BROKEN_GIVERS = {
    "a web identity's token": (
        {"AWS_WEB_IDENTITY_TOKEN_FILE": "/no/such/token", "AWS_ROLE_ARN": "arn:aws:iam::123456789012:role/x"},
        "",
    ),
    "a container's token": (
        {
            "AWS_CONTAINER_CREDENTIALS_FULL_URI": "http://127.0.0.1:9/x",
            "AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE": "/no/such/token",
        },
        "",
    ),
    "a helper": ({}, "credential_process = /no/such/program"),
    "a helper that may not be executed": ({}, "credential_process = {there}"),
}


@pytest.mark.parametrize("giver", BROKEN_GIVERS)
def test_a_giver_of_credentials_that_is_missing_is_told_as_that(
    config: SinkConfig,
    server: StrictCloudWatch,
    waits: Waits,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    giver: str,
) -> None:
    """A token's file or a helper that is not there: CloudWatch is not "busy", and nothing counts as sent again."""
    env, profile = BROKEN_GIVERS[giver]
    (tmp_path / "there").write_text("")
    (tmp_path / "config").write_text(f"[default]\n{profile.format(there=tmp_path / 'there')}\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    server.create_stream(GROUP, STREAM)

    def issue() -> None:
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "FIRST")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    waits.during[3] = issue
    directory = delivered(config, TEXTS[:10])
    assert (records(server), survey(directory).resent) == (TEXTS[:10], 0)
    assert all(5.0 <= wait <= 10.0 for wait in waits)
    told = said(capfd)[0]
    assert "Check the AWS credentials" in told
    assert ("/no/such/" in told) == ("/no/such/" in f"{env} {profile}"), "it names what is not there"


def test_a_clock_that_is_wrong_recovers_when_it_is_set(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits, capfd: pytest.CaptureFixture[str]
) -> None:
    """AWS's words about the signature's time and a hint at the clock in one line; delivered once it is right."""
    why = "Signature expired: 20260101T000000Z is now earlier than 20260101T001500Z (20260101T002000Z - 5 min.)"
    server.create_stream(GROUP, STREAM)
    server.faults.fail_next(4, "InvalidSignatureException", 400, action=PUT, message=why)
    delivered(config, TEXTS[:10])
    assert records(server) == TEXTS[:10]
    told, _ = said(capfd)
    assert why in told
    assert "this host's clock" in told


# Access denied.

DENIED = (
    "User: arn:aws:iam::123456789012:user/x is not authorized to perform: logs:PutLogEvents on resource: "
    "arn:aws:logs:us-east-1:123456789012:log-group:/test/group:log-stream:stream because no identity-based policy "
    "allows the logs:PutLogEvents action"
)


def test_denied_access_is_said_once_in_awss_words_and_retried_slowly(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits, capfd: pytest.CaptureFixture[str]
) -> None:
    """One line with user, action and resource, however often it is tried; then all arrives."""
    server.create_stream(GROUP, STREAM)
    server.faults.fail_next(20, "AccessDeniedException", action=PUT, message=DENIED)
    delivered(config, TEXTS)
    assert records(server) == TEXTS
    assert len(waits) == 20
    assert all(5.0 <= wait <= 10.0 for wait in waits)
    told, ended = said(capfd)
    assert DENIED in told
    assert "accepts records again" in ended


@pytest.mark.parametrize(
    ("code", "status"),
    [("InvalidOperationException", 400), ("", 403), ("", 407), ("", 404), ("", 503), ("AccessDeniedException", 400)],
)
def test_the_status_advises_what_stderr_does(
    config: SinkConfig,
    server: StrictCloudWatch,
    waits: Waits,
    capfd: pytest.CaptureFixture[str],
    code: str,
    status: int,
) -> None:
    """Whatever the answer is: one that the table does not know is classified by its HTTP status."""
    server.create_stream(GROUP, STREAM)
    server.faults.fail_next(4, code, status, action=PUT)
    seen: list[str] = []
    waits.during[3] = lambda: seen.extend(why(spool) for spool in stats().spools)
    delivered(config, TEXTS[:10])
    (shown,) = seen
    advice = shown.splitlines()[1].removesuffix(" The leader tries again until it succeeds.")
    assert f". {advice} " in said(capfd)[0]


@pytest.mark.parametrize("action", ["CreateLogStream", "CreateLogGroup"])
def test_denied_creation_names_the_permission_and_waits_for_somebody_else(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits, capfd: pytest.CaptureFixture[str], action: str
) -> None:
    """A policy without it: one line names it; once an administrator made group and stream, all arrives."""
    if action == "CreateLogStream":
        server.create_group(GROUP)
    server.faults.deny(f"logs:{action}")
    waits.during[3] = lambda: server.create_stream(GROUP, STREAM)
    delivered(config, TEXTS)
    assert records(server) == TEXTS
    assert all(5.0 <= wait <= 10.0 for wait in waits)
    told, _ = said(capfd)
    assert f"logs:{action}" in told


# A missing target.


def nothing(_: StrictCloudWatch, __: RequestInspector) -> None:
    """Neither group nor stream is there."""


def a_group(server: StrictCloudWatch, _: RequestInspector) -> None:
    server.create_group(GROUP)


def stream_deleted(server: StrictCloudWatch, _: RequestInspector) -> None:
    server.create_stream(GROUP, STREAM)
    server.faults.delete_stream_under_way()


def group_deleted(server: StrictCloudWatch, _: RequestInspector) -> None:
    server.create_stream(GROUP, STREAM)
    server.faults.delete_group_under_way()


def stream_raced(server: StrictCloudWatch, inspector: RequestInspector) -> None:
    server.create_group(GROUP)
    inspector.on_the_way["CreateLogStream"] = lambda: server.create_stream(GROUP, STREAM)


def group_raced(server: StrictCloudWatch, inspector: RequestInspector) -> None:
    inspector.on_the_way["CreateLogGroup"] = lambda: server.create_group(GROUP)


def both_raced(server: StrictCloudWatch, inspector: RequestInspector) -> None:
    inspector.on_the_way["CreateLogGroup"] = lambda: server.create_stream(GROUP, STREAM)


def group_aborted(server: StrictCloudWatch, inspector: RequestInspector) -> None:
    server.faults.fail_next(1, "OperationAbortedException", action="CreateLogGroup")
    inspector.on_the_way["CreateLogGroup"] = lambda: server.create_group(GROUP)


MAKE_STREAM = ["CreateLogStream"]
MAKE_BOTH = ["CreateLogStream", "CreateLogGroup", "CreateLogStream"]


@pytest.mark.parametrize(
    ("world", "calls", "waited"),
    [
        (nothing, MAKE_BOTH, 0),
        (a_group, MAKE_STREAM, 0),
        (stream_deleted, MAKE_STREAM, 0),
        (group_deleted, MAKE_BOTH, 0),
        (stream_raced, MAKE_STREAM, 0),
        (group_raced, MAKE_BOTH, 0),
        (both_raced, MAKE_BOTH, 0),
        (group_aborted, ["CreateLogStream", "CreateLogGroup", PUT, "CreateLogStream"], 1),
    ],
)
def test_a_missing_target_is_made_and_costs_no_retry(
    config: SinkConfig,
    server: StrictCloudWatch,
    waits: Waits,
    inspector: RequestInspector,
    world: Callable[[StrictCloudWatch, RequestInspector], None],
    calls: list[str],
    waited: int,
) -> None:
    """Exactly these calls between two sends of the same batch; who else makes it at the same time is no matter."""
    world(server, inspector)
    delivered(config, TEXTS[:10])
    assert records(server) == TEXTS[:10]
    assert inspector.actions == [PUT, *calls, PUT]
    assert len(waits) == waited


# What CloudWatch does not take.


@pytest.fixture
def frozen() -> Iterator[StrictCloudWatch]:
    """A strict server whose clock stands still."""
    now = float(int(time.time()))
    with StrictCloudWatch(clock=lambda: now) as running:
        yield running
        running.assert_clean()


@pytest.mark.parametrize("kept", range(4))
@pytest.mark.parametrize(
    ("reason", "edge_ms", "retention_days"),
    [("too_old", -MAX_PAST_MS, None), ("expired", -3 * DAY_MS, 3), ("too_new", MAX_FUTURE_MS, None)],
)
def test_rejected_events_are_dead_letters_to_the_millisecond(
    config: SinkConfig,
    frozen: StrictCloudWatch,
    waits: Waits,
    reason: str,
    edge_ms: int,
    retention_days: int | None,
    kept: int,
) -> None:
    """A request across the edge of the window: exactly those beyond it, in one call, the exact edge delivered."""
    frozen.create_stream(GROUP, STREAM)
    group = frozen.group(GROUP)
    assert group is not None
    group.retention_days = retention_days
    edge = int(frozen.clock() * 1000) + edge_ms
    beyond = 1 if reason == "too_new" else -1
    inside = [(f"inside {number}", edge - beyond * number) for number in range(kept)]
    outside = [(f"outside {number}", edge + beyond * (number + 1)) for number in range(3)]
    config = changed(config, endpoint_url=frozen.endpoint_url)
    directory = spooled(config, [*outside, *inside])
    deliver(directory, config)
    settled(directory, delivered=kept, **{reason: 3})
    assert sorted(frozen.messages()) == sorted(text for text, _ in inside)
    assert sorted(letter["message"] for letter in letters(directory)) == [text for text, _ in outside]
    assert len(frozen.requests) == 1
    assert list(waits) == []


def test_one_backlog_with_everything_wrong_loses_only_what_must_be(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits
) -> None:
    """Too old, expired, poison, oversize and too new among good ones of two weeks: each its own dead letter."""
    server.create_stream(GROUP, STREAM)
    group = server.group(GROUP)
    assert group is not None
    group.retention_days = 7
    server.faults.poison = "BAD"
    server.faults.fail_next(2, "ThrottlingException", action=PUT)
    server.faults.drop_connection_before_storing(1)
    now = int(time.time() * 1000)
    good = [(f"good {number}", now - (40 - number) * DAY_MS // 10) for number in range(40)]
    bad = [
        ("too old", now - 15 * DAY_MS),
        ("expired", now - 8 * DAY_MS),
        ("BAD one", now - 3 * DAY_MS),
        ("BAD two", now - 3 * DAY_MS),
        ("x" * (MAX_BATCH_BYTES - EVENT_OVERHEAD_BYTES + 1), now - DAY_MS),
        ("too new", now + DAY_MS),
    ]
    both = [*good[::2], *bad, *good[1::2]]
    config = changed(config, max_batch_events=MAX_BATCH_EVENTS)
    directory = spooled(config, both)
    deliver(directory, config)
    settled(directory, delivered=40, too_old=1, expired=1, poison=2, oversize=1, too_new=1)
    assert records(server) == [text for text, _ in good]
    kept = {(letter["reason"], letter["message"]) for letter in letters(directory)}
    reasons = ["too_old", "expired", "poison", "poison", "oversize", "too_new"]
    assert kept == {(reason, text) for reason, (text, _) in zip(reasons, bad, strict=True)}


# Sequence tokens, which emulators still ask for.


def test_an_expected_token_is_used_at_once(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits, inspector: RequestInspector
) -> None:
    """Refused for want of a token: sent again with the one that was named, without a wait."""
    server.create_stream(GROUP, STREAM)
    server.faults.sequence_tokens = True
    delivered(config, TEXTS)
    assert records(server) == TEXTS
    tokens = [body.get("sequenceToken") for body in inspector.bodies]
    assert tokens == [None, None, f"{1:056d}", None, f"{2:056d}"]
    assert list(waits) == []


def test_data_that_was_accepted_already_is_not_sent_again(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits
) -> None:
    """The answer was lost, and the second send told that the first had arrived: delivered, once."""
    server.create_stream(GROUP, STREAM)
    server.faults.sequence_tokens = True
    server.faults.drop_connection_after_storing(1)
    delivered(config, TEXTS[:10])
    assert records(server) == TEXTS[:10]
    assert [request.error for request in server.requests] == ["ConnectionDropped", "DataAlreadyAcceptedException"]


# Entity and compression.

ENTITY = {
    "keyAttributes": {"Type": "Service", "Name": "shop", "Environment": "prod"},
    "attributes": {"PlatformType": "AWS::EC2"},
}


def test_the_entity_is_in_every_request(
    config: SinkConfig, server: StrictCloudWatch, inspector: RequestInspector
) -> None:
    """As it was set; the strict server accepts it."""
    server.create_stream(GROUP, STREAM)
    delivered(changed(config, entity=ENTITY), TEXTS)
    assert [body["entity"] for body in inspector.bodies] == [ENTITY] * 3


def test_a_rejected_entity_costs_one_line_and_no_event(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits, capfd: pytest.CaptureFixture[str]
) -> None:
    """CloudWatch takes the events without it, each once; the line says why, and what to do."""
    server.create_group(GROUP, group_class="INFREQUENT_ACCESS")
    server.create_stream(GROUP, STREAM)
    delivered(changed(config, entity=ENTITY), TEXTS)
    assert records(server) == TEXTS
    (told,) = said(capfd)
    assert "entity (UnsupportedLogGroupType)" in told
    assert "`entity`" in told
    assert len(server.take_violations()) == 3
    assert list(waits) == []


AWKWARD = ["späte Züge \U0001f682\u2028", 'quote " and \\ slash', "nul \0 bell \x07", "x" * 100_000]


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_every_body_is_what_was_signed(
    config: SinkConfig,
    server: StrictCloudWatch,
    inspector: RequestInspector,
    monkeypatch: pytest.MonkeyPatch,
    compression: str,
) -> None:
    """Compressed or not, the same events arrive, and the signature is that of the very bytes on the wire."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "KEY")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the secret")
    delivered(changed(config, compression=compression), AWKWARD)
    assert records(server) == AWKWARD
    puts = [request for request in inspector.requests if action_of(request) == PUT]
    for request in puts:
        assert request.headers.get("content-encoding") == ("gzip" if compression == "gzip" else None)
        assert (len(request.body) < 10_000) == (compression == "gzip")
    if compression == "gzip":
        assert gzip.decompress(puts[-1].body).startswith(b'{"logGroupName":"/test/group"')
    assert len(inspector.requests) > len(puts)  # the creating calls are signed, and not compressed
    for request in inspector.requests:
        assert signature_of(server.endpoint_url, request) == request.headers["authorization"].rpartition("=")[2]


def signature_of(url: str, request: HttpRequest) -> str:
    """Return the SigV4 signature that AWS would compute of what arrived."""
    signed = request.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    arrived = AWSRequest(
        request.method, url + request.path, {name: request.headers[name] for name in signed}, bytes(request.body)
    )
    arrived.context["timestamp"] = request.headers["x-amz-date"]
    auth = SigV4Auth(Credentials("KEY", "the secret"), "logs", "us-east-1")
    signature: str = auth.signature(auth.string_to_sign(arrived, auth.canonical_request(arrived)), arrived)
    return signature


# Back-off and circuit breaker.


@pytest.mark.parametrize(
    ("max_retries", "base", "threshold", "expected"),
    [
        # Half of base x 2^n each; open (half of 30 s, and half of the half) from (max_retries + 1) x threshold on.
        (2, 0.1, 2, [0.1, 0.2, 0.4, 0.8, 1.6, 22.5, 22.5, 22.5]),
        (0, 1.0, 3, [1.0, 2.0, 22.5, 22.5]),
        (0, 0.5, 1, [22.5]),
        (3, 4.0, 5, [4.0, 8.0, 10.0, 10.0, 10.0]),
        (1, 4.0, None, [4.0, 8.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0]),
    ],
)
def test_back_off_and_breaker_are_as_configured_and_drop_nothing(
    config: SinkConfig,
    server: StrictCloudWatch,
    waits: Waits,
    monkeypatch: pytest.MonkeyPatch,
    max_retries: int,
    base: float,
    threshold: int | None,
    expected: list[float],
) -> None:
    """max_retries, retry_base_delay and threshold decide the waits; leader.json tells open from retrying; one probe
    ends it, and the next failure is the first one again."""
    monkeypatch.setattr(flusher_module, "random", SimpleNamespace(random=lambda: 0.5))
    monkeypatch.setattr(publisher, "PUBLISH_SECONDS", 0.0)
    config = changed(
        config,
        max_retries=max_retries,
        retry_base_delay=base,
        circuit_breaker_enabled=threshold is not None,
        circuit_breaker_threshold=threshold or 1,
    )
    server.create_stream(GROUP, STREAM)
    server.faults.fail_next(len(expected), "ServiceUnavailableException", 503, action=PUT)
    server.faults.pass_next(1, action=PUT)
    server.faults.fail_next(1, "ThrottlingException", action=PUT)
    directory = spooled(config, [(text, None) for text in TEXTS])
    states: list[str] = []

    def look() -> None:
        published = leader_state.read(directory)
        assert published is not None
        states.append(published.state)

    waits.during = dict.fromkeys(range(1, len(expected) + 2), look)
    deliver(directory, config)
    assert list(waits) == pytest.approx([*expected, expected[0]])
    is_open = [wait > 20.0 for wait in expected]
    assert states[:-1] == ["circuit_open" if each else "retrying" for each in is_open]
    assert states[-1] == states[0]
    assert len(server.requests) == len(expected) + 1 + 3  # one probe after each wait, no more
    published = leader_state.read(directory)
    assert published is not None
    assert published.state in ("delivering", "idle")
    assert records(server) == TEXTS
    settled(directory, delivered=30)


# Limits, on the wire.

TRAIN = "\U0001f682"  # four bytes


@pytest.mark.parametrize(("more", "requests"), [(-1, 1), (0, 1), (1, 2)])
def test_a_request_has_at_most_so_many_bytes(
    config: SinkConfig, server: StrictCloudWatch, more: int, requests: int
) -> None:
    """Multi-byte events that together are one byte under, at, and over the limit."""
    half = MAX_BATCH_BYTES // 2 - EVENT_OVERHEAD_BYTES
    first = TRAIN * (half // 4) + "x" * (half % 4)
    second = TRAIN * (half // 4 - 1) + "x" * (half % 4 + 4 + more)
    delivered(changed(config, max_batch_events=MAX_BATCH_EVENTS), [first, second])
    assert records(server) == [first, second]
    accepted = [request.counted_bytes for request in server.requests if request.status == 200]
    assert len(accepted) == requests
    assert sum(accepted) == MAX_BATCH_BYTES + more


@pytest.mark.parametrize(("more", "requests"), [(-1, 1), (0, 1), (1, 2)])
def test_a_request_has_at_most_so_many_events(
    config: SinkConfig, server: StrictCloudWatch, more: int, requests: int
) -> None:
    """9,999, 10,000 and 10,001 short multi-byte events."""
    texts = [TRAIN] * (MAX_BATCH_EVENTS + more)
    delivered(changed(config, max_batch_events=MAX_BATCH_EVENTS), texts)
    assert records(server) == texts
    accepted = [request.events for request in server.requests if request.status == 200]
    assert accepted == [MAX_BATCH_EVENTS + min(more, 0), *[1] * (requests - 1)]


@pytest.mark.parametrize(("more", "requests"), [(-1, 1), (0, 2), (1, 2)])
def test_a_request_spans_less_than_24_hours(
    config: SinkConfig, server: StrictCloudWatch, more: int, requests: int
) -> None:
    """One millisecond less than a day in one request; a day in two."""
    begin = int(time.time() * 1000) - 3 * DAY_MS
    server.create_stream(GROUP, STREAM)
    directory = spooled(config, [(f"{TRAIN} first", begin), (f"{TRAIN} last", begin + DAY_MS + more)])
    deliver(directory, config)
    settled(directory, delivered=2)
    assert records(server) == [f"{TRAIN} first", f"{TRAIN} last"]
    assert len(server.requests) == requests


# Replay.


def test_a_replay_keeps_order_with_live_records_and_never_pauses(
    config: SinkConfig, server: StrictCloudWatch, waits: Waits, inspector: RequestInspector
) -> None:
    """A live record waits for the backlog before it, which order asks for, and for nothing else: a dedicated flusher
    does not pause between two requests, whatever is appended meanwhile."""
    config = changed(config, segment_bytes=4096, max_batch_events=50, batch_size=50, batch_timeout_seconds=NEVER)
    server.create_stream(GROUP, STREAM)
    texts = [f"{number} {'.' * 100}" for number in range(1_000)]
    writer = Writer(config)
    assert all(writer.append(text) for text in texts)
    assert len(segments(writer.directory)) > 20
    live = [f"live {number}" for number in range(50)]

    def append_live() -> None:
        assert all(writer.append(text) for text in live)

    inspector.on_the_way[PUT] = append_live
    with leading(writer.directory, config, kind="process"):
        assert server.wait_for_events(1_050, 60)
    assert records(server) == [*texts, *live]
    assert [request.events for request in server.requests] == [50] * 21
    assert list(waits) == []


# Anything at all.

CHARACTERS = st.one_of(st.characters(), st.sampled_from("\0\x07\n\u2028é\U0001f682\U0010ffff\ud800\udfff"))
HOUR_MS = 3_600_000
OFFSETS_MS = st.one_of(
    st.integers(-21 * DAY_MS, 4 * HOUR_MS),
    st.integers(-5_000, 0),
    st.sampled_from([-MAX_PAST_MS - 1, -MAX_PAST_MS, MAX_FUTURE_MS, MAX_FUTURE_MS + 1, -DAY_MS, 1 - DAY_MS]),
)
HARMLESS: list[Callable[[Faults], object]] = [
    lambda faults: faults.pass_next(2, action=PUT),
    lambda faults: faults.fail_next(2, "ThrottlingException", action=PUT),
    lambda faults: faults.fail_next(1, "ExpiredTokenException", action=PUT),
    lambda faults: faults.drop_connection_before_storing(1),
    lambda faults: faults.junk_next(1, action=PUT),
    lambda faults: faults.delete_stream_under_way(1),
]


@pytest.fixture(scope="module")
def any_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[StrictCloudWatch, Path]]:
    """One server with a clock that stands still, and one root for the spools of all examples."""
    now = float(int(time.time()))
    with StrictCloudWatch(clock=lambda: now) as running:
        yield running, tmp_path_factory.mktemp("any")


@settings(max_examples=40, deadline=None)
@given(
    entries=st.lists(st.tuples(st.text(CHARACTERS, max_size=20), OFFSETS_MS), max_size=30),
    in_order=st.booleans(),
    max_batch_events=st.integers(1, 12),
    faults=st.lists(st.sampled_from(HARMLESS), max_size=4),
)
def test_anything_appended_arrives_or_is_accounted_for(
    any_world: tuple[StrictCloudWatch, Path],
    entries: list[tuple[str, int]],
    in_order: bool,
    max_batch_events: int,
    faults: list[Callable[[Faults], object]],
) -> None:
    """Any text at any time of three weeks, through any trouble: once each or a dead letter, every request legal."""
    server, root = any_world
    server.reset()
    for begin in faults:
        begin(server.faults)
    if in_order:
        entries = sorted(entries, key=lambda entry: entry[1])
    now = int(server.clock() * 1000)
    with pytest.MonkeyPatch.context() as monkeypatch, tempfile.TemporaryDirectory(dir=root) as spools:
        Waits().replace_those_of_leaders(monkeypatch)
        config = quick_config(
            server.endpoint_url,
            flusher="external",
            spool_directory=spools,
            max_batch_events=max_batch_events,
            segment_bytes=4096,
        )
        writer = Writer(config)
        appended = [(text, offset) for text, offset in entries if writer.append(text, now + offset)]
        assert [text for text, _ in entries if text] == [text for text, _ in appended]
        writer.close()
        deliver(writer.directory, config)
        server.assert_clean()
        expected = [(text.encode("utf-8", "backslashreplace").decode(), offset) for text, offset in appended]
        texts = {text for text, _ in expected}  # one of them may look like a line of ours
        events = [event for event in server.events() if event.message in texts or not is_ours(event.message)]
        arrived = [(event.message, event.timestamp - now) for event in events]
        buried = [(letter["message"], letter["timestamp_ms"] - now) for letter in letters(writer.directory)]
        assert sorted(arrived) == sorted(each for each in expected if -MAX_PAST_MS <= each[1] <= MAX_FUTURE_MS)
        assert sorted(arrived + buried) == sorted(expected)
        if in_order:  # then first deliveries are in append order
            assert [offset for _, offset in arrived] == sorted(offset for _, offset in arrived)
            assert arrived == [each for each in expected if -MAX_PAST_MS <= each[1] <= MAX_FUTURE_MS]
        for one, next_one in itertools.pairwise(request.number for request in server.requests):
            assert next_one == one + 1
        books = survey(writer.directory)
        assert (books.appended, books.pending, books.delivered) == (len(appended), 0, len(arrived)), books
        assert sum(books.dead_lettered.values()) == len(buried)
        assert sum(books.refused.values()) == len(entries) - len(appended)
        books_balance(Path(spools))
        assert len(segments(writer.directory)) <= 1
