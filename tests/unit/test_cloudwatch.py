"""Whatever botocore does, the rest of the flusher sees an Answer.

A small object stands for botocore's client, behind the Protocol of the calls we use.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from botocore import exceptions, parsers
from botocore.awsrequest import AWSRequest

from cwsink.config import SinkConfig
from cwsink.flusher import cloudwatch as cloudwatch_module
from cwsink.flusher.cloudwatch import CloudWatch, take_credentials_only
from cwsink.flusher.outcome import Act, Answer, Outcome, classify
from cwsink.spool.directory import SpoolFormat
from cwsink.spool.record import Event

FORMAT = SpoolFormat(
    format=1,
    spool_id="00" * 16,
    log_group_name="/app",
    log_stream_name="host",
    region="eu-west-1",
    endpoint_url="http://127.0.0.1:9",
    create_log_group=True,
    create_log_stream=True,
    spool_max_bytes=1 << 20,
    host="host",
    created="2023-11-14T00:00:00Z",
)
EVENTS = [Event(1_700_000_000_000, 7, 0, "hi")]


@pytest.fixture(autouse=True)
def no_ca_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this machine trusts."""
    for name in ("AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE"):
        monkeypatch.delenv(name, raising=False)


class Client:
    """Answers every call with the same, raising it if it is an exception. `sends` is called first, as by a real one."""

    def __init__(self, answer: Mapping[str, Any] | BaseException, sends: Callable[[], None] = lambda: None) -> None:
        self.answer = answer
        self.sends = sends
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.is_closed = False

    def __getattr__(self, operation: str) -> Any:
        def call(**parameters: Any) -> Mapping[str, Any]:
            self.calls.append((operation, parameters))
            self.sends()
            if isinstance(self.answer, BaseException):
                raise self.answer
            return self.answer

        return call

    def close(self) -> None:
        self.is_closed = True


def connected(answer: Mapping[str, Any] | BaseException) -> tuple[CloudWatch, Client]:
    cloudwatch = CloudWatch(FORMAT, SinkConfig(), 3)

    def sends() -> None:
        cloudwatch._note_sending()
        cloudwatch._note_reading()

    client = Client(answer, sends)
    cloudwatch._client = client  # type: ignore[assignment]
    return cloudwatch, client


def answered(answer: Mapping[str, Any] | BaseException) -> Answer:
    return connected(answer)[0].put("host", EVENTS)


def unsent(error: BaseException) -> Answer:
    """What comes of an exception that is raised while the request is signed."""
    cloudwatch, client = connected(error)
    client.sends = lambda: None
    return cloudwatch.put("host", EVENTS)


def client_error(code: str | None, status: int = 400, **more: Any) -> exceptions.ClientError:
    response: dict[str, Any] = {"Error": {"Message": "why"}, "ResponseMetadata": {"HTTPStatusCode": status}, **more}
    if code is not None:
        response["Error"]["Code"] = code
    return exceptions.ClientError(response, "PutLogEvents")


def success(**more: Any) -> dict[str, Any]:
    return {"ResponseMetadata": {"HTTPStatusCode": 200, "RequestId": "r"}, **more}


def test_a_success_carries_what_decides_about_it() -> None:
    """Status, request id and the rejected indexes are read off the answer."""
    info = {"tooOldLogEventEndIndex": 1}
    answer = answered(success(rejectedLogEventsInfo=info))
    assert (answer.status, answer.code, answer.request_id, answer.rejected) == (200, "", "r", info)
    assert classify(answered(success())) is Outcome.DELIVERED


@pytest.mark.parametrize("junk", [{}, {"ResponseMetadata": {}}, {"ResponseMetadata": {"HTTPStatusCode": 200}}])
def test_junk_that_parses_is_not_believed(junk: dict[str, Any]) -> None:
    """Without a request id it may have been anybody's answer; it counts as one that may have arrived."""
    answer = answered(junk)
    assert classify(answer) is Outcome.STRANGE
    assert answer.is_ambiguous


@pytest.mark.parametrize(
    ("status", "is_ambiguous"), [(400, False), (413, False), (429, False), (500, True), (503, True)]
)
def test_an_error_carries_code_message_and_status(status: int, is_ambiguous: bool) -> None:
    """A 4xx refused the call; a 5xx may have carried it out."""
    answer = answered(client_error("SomeException", status))
    assert (answer.status, answer.code, answer.message) == (status, "SomeException", "why")
    assert answer.is_ambiguous is is_ambiguous


@pytest.mark.parametrize(
    "error", [AttributeError("'list' object"), parsers.ResponseParserError("no JSON"), KeyError("Error")]
)
def test_what_botocore_cannot_read_is_not_cloudwatchs(error: Exception) -> None:
    """Whatever it raises between sending and the end of reading. The operator reads no error of Python's."""
    cloudwatch, client = connected(error)
    client.sends = cloudwatch._note_sending
    answer = cloudwatch.put("host", EVENTS)
    assert (answer.code, answer.is_ambiguous) == ("NotCloudWatchError", True)
    assert str(error) not in answer.message


@pytest.mark.parametrize("status", [300, 302, 400, 403, 404, 429])
@pytest.mark.parametrize("code", [None, "status"])
def test_a_refusal_that_names_no_error_is_not_cloudwatchs(status: int, code: str | None) -> None:
    """A login page, a firewall, another server. botocore gives the status for the code that is missing."""
    answer = answered(client_error(str(status) if code else None, status))
    assert classify(answer) is Outcome.STRANGE
    assert (f"HTTP {status}" in answer.message, answer.is_ambiguous) == (True, False)
    assert classify(answered(client_error("413", 413))) is Outcome.BISECT, "a gateway finds it too large"


def test_a_token_that_is_no_text_is_none() -> None:
    """Whoever has made it up."""
    assert answered(client_error("InvalidSequenceTokenException", expectedSequenceToken=5)).expected_token is None


def test_an_error_without_a_code_is_still_an_error() -> None:
    """It is never taken for a success, even under the status of one."""
    for status in (200, 400, 502):
        answer = answered(client_error(None, status))
        assert answer.code == ("NotCloudWatchError" if status == 400 else "Unknown")
        assert classify(answer) is not Outcome.DELIVERED


@pytest.mark.parametrize("where", ["top", "error"])
def test_the_expected_token_is_read_wherever_it_stands(where: str) -> None:
    """botocore puts modelled members beside `Error`, emulators inside it."""
    error = client_error("InvalidSequenceTokenException")
    (error.response if where == "top" else error.response["Error"])["expectedSequenceToken"] = "42"
    assert answered(error).expected_token == "42"


@pytest.mark.parametrize("create", [CloudWatch.create_group, lambda cloudwatch: cloudwatch.create_stream("host")])
def test_what_exists_already_counts_as_created(create: Any) -> None:
    """Two leaders, or a person, were at it: a success."""
    cloudwatch, client = connected(client_error("ResourceAlreadyExistsException"))
    assert classify(create(cloudwatch)) is Outcome.DELIVERED
    (call,) = client.calls
    assert call[1]["logGroupName"] == "/app"


NEVER_SENT = [
    exceptions.EndpointConnectionError(endpoint_url="http://x"),
    exceptions.ConnectTimeoutError(endpoint_url="http://x"),
]
OF_CREDENTIALS = [
    exceptions.NoCredentialsError(),
    exceptions.NoRegionError(),
    exceptions.ProfileNotFound(profile="x"),
    exceptions.PartialCredentialsError(provider="x", cred_var="y"),
]
MAY_BE_SENT = [
    exceptions.ReadTimeoutError(endpoint_url="http://x"),
    exceptions.ConnectionClosedError(endpoint_url="http://x"),
    exceptions.SSLError(endpoint_url="http://x", error="x"),
    exceptions.ProxyConnectionError(proxy_url="http://x"),
    exceptions.HTTPClientError(error="x"),
    exceptions.ResponseStreamingError(error="x"),
]


@pytest.mark.parametrize(
    ("error", "is_ambiguous"),
    [
        *((error, False) for error in NEVER_SENT),
        *((error, True) for error in MAY_BE_SENT),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_an_exception_of_botocore_becomes_an_answer(error: Exception, is_ambiguous: bool) -> None:
    """Its name is the code, its text the message; what may have arrived is told from what cannot have."""
    answer = answered(error)
    assert (answer.status, answer.code, answer.message) == (None, type(error).__name__, str(error))
    assert answer.is_ambiguous is is_ambiguous
    assert classify(answer).value.act is Act.WAIT


@pytest.mark.parametrize("error", [*NEVER_SENT, *MAY_BE_SENT, *OF_CREDENTIALS], ids=lambda error: type(error).__name__)
def test_what_fails_before_the_request_is_sent_is_never_ambiguous(error: Exception) -> None:
    """A service that gives credentials has not answered: nothing was sent to CloudWatch, and nothing is sent again."""
    answer = unsent(error)
    assert (answer.code, answer.message, answer.is_ambiguous) == (type(error).__name__, str(error), False)


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError(errno.ENOENT, "No such file or directory", "/no/such/token"),
        PermissionError(errno.EACCES, "Permission denied", "/token"),
        OSError(errno.ENOEXEC, "Exec format error", "/helper"),
        KeyError("AccessKeyId"),
        RuntimeError("Credentials were refreshed, but the refreshed credentials are still expired."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_giver_of_credentials_raises_is_told_as_that(error: Exception) -> None:
    """While the request is signed: the operator reads which file it is, and to look at the credentials."""
    answer = unsent(error)
    assert (answer.code, answer.is_ambiguous) == ("CredentialRetrievalError", False)
    assert answer.message == f"{type(error).__name__}: {error}"
    assert classify(answer) is Outcome.CREDENTIALS


def test_what_a_giver_of_credentials_answers_is_not_shown() -> None:
    """botocore shows an answer that it cannot read, and a part of it may be a key."""
    answer = unsent(parsers.ResponseParserError("invalid XML received: <SecretAccessKey>canary"))
    assert (classify(answer), answer.is_ambiguous) == (Outcome.CREDENTIALS, False)
    assert "canary" not in answer.message


@pytest.mark.parametrize("error", [OSError(errno.EMFILE, "Too many open files"), MemoryError()], ids=repr)
def test_a_limit_of_this_process_is_no_fault_of_the_credentials(error: Exception) -> None:
    """Also before anything is sent. It passes, and nothing was sent."""
    answer = unsent(error)
    assert (answer.code, answer.is_ambiguous) == (type(error).__name__, False)
    assert classify(answer) is Outcome.RETRY


@pytest.mark.parametrize("error", [RuntimeError("a hook's own fault"), OSError(24, "Too many open files"), KeyError()])
def test_any_other_exception_becomes_an_answer_too(error: Exception) -> None:
    """Whatever a proxy or a patched library raises after it was sent keeps the batch. It may have arrived."""
    answer = answered(error)
    assert (answer.code, answer.is_ambiguous) == (type(error).__name__, True)
    assert classify(answer) is Outcome.RETRY


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_an_order_to_end_is_not_swallowed(error: BaseException) -> None:
    """What is no error of the call goes on its way."""
    with pytest.raises(type(error)):
        answered(error)


def test_the_body_is_put_in_by_the_hook_and_not_kept() -> None:
    """While the call runs the hook has the encoded events; afterwards a megabyte is not held alive."""
    cloudwatch, client = connected(success())
    seen: dict[str, Any] = {}

    def put_log_events(**_: Any) -> Mapping[str, Any]:
        cloudwatch._set_body(seen)
        return success()

    client.put_log_events = put_log_events  # type: ignore[method-assign]
    cloudwatch.put("host", EVENTS, "42")
    assert json.loads(seen["body"]) == {
        "logGroupName": "/app",
        "logStreamName": "host",
        "logEvents": [{"timestamp": 1_700_000_000_000, "message": "hi"}],
        "sequenceToken": "42",
    }
    assert cloudwatch._body == b""


def test_the_body_is_not_kept_after_a_failure_either() -> None:
    """The next try encodes anew."""
    cloudwatch, _ = connected(RuntimeError())
    cloudwatch.put("host", EVENTS)
    assert cloudwatch._body == b""


def test_closing_makes_a_new_client(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call reads credentials anew; the old connection is closed."""
    cloudwatch, old = connected(success())
    new = Client(success())
    monkeypatch.setattr(cloudwatch, "_connect", lambda: new)
    cloudwatch.put("host", EVENTS)
    cloudwatch.close()
    assert old.is_closed
    cloudwatch.put("host", EVENTS)
    cloudwatch.put("host", EVENTS)
    assert [len(old.calls), len(new.calls)] == [1, 2]


def test_a_client_that_cannot_be_made_is_an_answer_and_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """No region, no profile: each call tries anew."""
    cloudwatch, new = CloudWatch(FORMAT, SinkConfig(), 1), Client(success())
    attempts = iter([exceptions.NoRegionError(), None])

    def connect() -> Client:
        if (error := next(attempts)) is not None:
            raise error
        return new

    monkeypatch.setattr(cloudwatch, "_connect", connect)
    assert classify(cloudwatch.put("host", EVENTS)) is Outcome.CREDENTIALS
    assert classify(cloudwatch.put("host", EVENTS)) is Outcome.DELIVERED


def test_the_real_client_is_told_who_we_are_and_not_to_retry() -> None:
    """One attempt, short time-outs, region and endpoint of the spool, and version and epoch in the User-Agent."""
    cloudwatch = CloudWatch(FORMAT, SinkConfig(connect_timeout_seconds=1.5, read_timeout_seconds=2.5), 41)
    client: Any = cloudwatch._connect()
    try:
        config = client.meta.config
        assert config.retries["total_max_attempts"] == 1
        assert (config.connect_timeout, config.read_timeout) == (1.5, 2.5)
        assert (client.meta.region_name, client.meta.endpoint_url) == ("eu-west-1", "http://127.0.0.1:9")
        assert "cwsink/" in config.user_agent
        assert "epoch/41" in config.user_agent
    finally:
        client.close()


def test_the_environment_of_a_flusher_gives_credentials_only() -> None:
    """Region and endpoint are the spool's. An endpoint for all services stays that of those that give credentials."""
    env = {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_PROFILE": "p",
        "AWS_REGION": "eu-west-1",
        "AWS_DEFAULT_REGION": "eu-west-2",
        "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:2",
        "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:3",
    }
    take_credentials_only(env)
    assert env == {
        "AWS_ACCESS_KEY_ID": "a",
        "AWS_PROFILE": "p",
        "AWS_ENDPOINT_URL_STS": "http://127.0.0.1:3",
        "AWS_ENDPOINT_URL_SSO": "http://127.0.0.1:2",
        "AWS_ENDPOINT_URL_SSO_OIDC": "http://127.0.0.1:2",
    }


def test_an_environment_that_says_nothing_of_the_target_stays_as_it_is() -> None:
    """Nothing is made up."""
    env = {"AWS_ACCESS_KEY_ID": "a", "PATH": "/bin"}
    take_credentials_only(env)
    assert env == {"AWS_ACCESS_KEY_ID": "a", "PATH": "/bin"}


def test_a_server_without_tls_is_said_once(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Whichever service it is; nothing is said of this host, nor of a server with TLS."""
    monkeypatch.setattr(cloudwatch_module, "_told", set())
    for url in ("https://logs.test/", "http://localhost:1/", "http://127.8.0.1:4566/x", "http://[::1]:4566/"):
        cloudwatch_module._before_send(AWSRequest("POST", url))
    assert not capfd.readouterr().err
    for url in ("http://logs.test/", "http://logs.test:80/x", "http://sts.test:4566/", "http://logs.test/"):
        cloudwatch_module._before_send(AWSRequest("POST", url))
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["logs.test:80", "sts.test:4566"]
    assert all("without TLS" in line for line in lines)
