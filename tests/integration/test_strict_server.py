"""The strict CloudWatch Logs server, verdict by verdict, with a real boto3 client."""

from __future__ import annotations

import contextlib
import gzip
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError, ConnectionClosedError, ReadTimeoutError

import cwsink
from cwsink.limits import (
    MAX_BATCH_BYTES,
    MAX_BATCH_EVENTS,
    MAX_BATCH_SPAN_MS,
    MAX_EVENT_BYTES,
    MAX_FUTURE_MS,
    MAX_PAST_MS,
)
from cwsink.testing import Faults, StrictCloudWatch, spawn

NOW_SECONDS = 1_790_000_000.0
NOW = round(NOW_SECONDS * 1000)
DAY = 86_400_000
GROUP, STREAM = "/app/web", "host-1"
SOURCE_ROOT = str(Path(cwsink.__file__).parent.parent)

SIGNED = {"Authorization": "AWS4-HMAC-SHA256 Credential=testing/x", "Content-Type": "application/x-amz-json-1.1"}


def make_client(url: str, **options: Any) -> Any:
    """A boto3 client that sends what it is told to, once."""
    settings: dict[str, Any] = {
        "retries": {"total_max_attempts": 1},
        "parameter_validation": False,
        "connect_timeout": 5,
        "read_timeout": 30,
        "user_agent_extra": "cwsink/0.1.0 epoch/7 pid/4321",
    }
    session = boto3.Session(aws_access_key_id="testing", aws_secret_access_key="testing", region_name="us-east-1")
    return session.client("logs", endpoint_url=url, config=Config(**{**settings, **options}))


@pytest.fixture(scope="module")
def shared_server() -> Iterator[StrictCloudWatch]:
    """One server for the module: a boto3 client takes longer to make than all its calls."""
    with StrictCloudWatch(clock=lambda: NOW_SECONDS) as server:
        yield server


@pytest.fixture(scope="module")
def shared_client(shared_server: StrictCloudWatch) -> Iterator[Any]:
    """Its client."""
    client = make_client(shared_server.endpoint_url)
    yield client
    client.close()


@pytest.fixture
def server(shared_server: StrictCloudWatch) -> StrictCloudWatch:
    """The server, empty but for one stream."""
    shared_server.reset()
    shared_server.create_stream(GROUP, STREAM)
    return shared_server


@pytest.fixture
def client(server: StrictCloudWatch, shared_client: Any) -> Any:
    """A client of that server."""
    return shared_client


def event(timestamp: Any = NOW, message: Any = "hello") -> dict[str, Any]:
    """One event."""
    return {"timestamp": timestamp, "message": message}


def put(client: Any, *events: Any, **members: Any) -> Any:
    """PutLogEvents to the one stream."""
    target = {"logGroupName": GROUP, "logStreamName": STREAM}
    return client.put_log_events(**{**target, "logEvents": list(events), **members})


def refused(call: Any, *arguments: Any, **members: Any) -> tuple[str, str]:
    """Code and message of the error that a call must get."""
    with pytest.raises(ClientError) as caught:
        call(*arguments, **members)
    answer = caught.value.response
    assert answer["ResponseMetadata"]["RequestId"]
    return answer["Error"]["Code"], answer["Error"]["Message"]


def raw(url: str, action: str, body: bytes, headers: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
    """A call without boto3: status and body."""
    connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=30)
    try:
        target = {"X-Amz-Target": f"Logs_20140328.{action}"}
        connection.request("POST", "/", body, {**target, **(SIGNED if headers is None else headers)})
        response = connection.getresponse()
        return response.status, json.loads(response.read() or b"{}")
    finally:
        connection.close()


def server_threads(server: StrictCloudWatch) -> list[str]:
    """Threads of a server that are alive."""
    port = server.endpoint_url.rpartition(":")[2]
    return [t.name for t in threading.enumerate() if t.name == f"strict-cloudwatch-{port}"]


# --- PutLogEvents: the batch as a whole


def test_a_legal_batch_is_stored_as_it_was_sent(server: StrictCloudWatch, client: Any) -> None:
    """Accepted events come back in arrival order with all they were sent with."""
    put(client, event(NOW - 1, "first"), event(NOW, "zweité \u2028 \U0001f600"))
    put(client, event(NOW - 5, "third"))
    assert server.messages() == ["first", "zweité \u2028 \U0001f600", "third"]
    stored = server.events(GROUP, STREAM)[2]
    assert (stored.group, stored.stream, stored.timestamp, stored.epoch, stored.request) == (
        GROUP, STREAM, NOW - 5, 7, 2,
    )  # fmt: skip
    assert server.events(group="other") == server.events(stream="other") == []
    server.assert_clean()


@pytest.mark.parametrize(("count", "is_legal"), [(MAX_BATCH_EVENTS, True), (MAX_BATCH_EVENTS + 1, False)])
def test_a_batch_holds_at_most_10_000_events(server: StrictCloudWatch, client: Any, count: int, is_legal: bool) -> None:
    """10,000 events pass, 10,001 do not."""
    events = [event(NOW, "x")] * count
    if is_legal:
        put(client, *events)
        assert len(server.events()) == count
        server.assert_clean()
    else:
        code, message = refused(put, client, *events)
        assert (code, server.messages()) == ("InvalidParameterException", [])
        assert "less than or equal to 10000" in message
        assert len(server.take_violations()) == 1


@pytest.mark.parametrize("letter", ["x", "é", "\U0001f600"])
def test_a_batch_counts_utf8_bytes_plus_26_per_event(server: StrictCloudWatch, client: Any, letter: str) -> None:
    """Exactly 1,048,576 counted bytes pass, one more does not."""
    half = MAX_BATCH_BYTES // 2 - 26
    width = len(letter.encode())
    message = letter * (half // width) + "." * (half % width)
    put(client, event(NOW, message), event(NOW, message))
    assert server.requests[0].counted_bytes == MAX_BATCH_BYTES
    code, text = refused(put, client, event(NOW, message), event(NOW, message + "."))
    assert (code, text) == (
        "InvalidParameterException",
        f"Upload too large: {MAX_BATCH_BYTES + 1} bytes exceeds limit of {MAX_BATCH_BYTES}",
    )
    assert len(server.take_violations()) == 1


def test_an_event_holds_at_most_1_048_550_bytes(server: StrictCloudWatch, client: Any) -> None:
    """The longest message passes; one byte more is too large as an event and as a batch."""
    put(client, event(NOW, "x" * MAX_EVENT_BYTES))
    code, text = refused(put, client, event(NOW, "x" * (MAX_EVENT_BYTES + 1)))
    assert code == "InvalidParameterException"
    assert text == f"Log event too large: {MAX_BATCH_BYTES + 1} bytes exceeds limit of {MAX_BATCH_BYTES}"
    assert [text.split(": ")[1] for text in server.take_violations()] == ["Log event too large", "Upload too large"]


def test_the_event_limit_of_older_partitions_can_be_set() -> None:
    """With 256 KB, 262,118 bytes pass and 262,119 do not, whatever their script."""
    with StrictCloudWatch(clock=lambda: NOW_SECONDS, max_event_bytes=262_118) as server:
        server.create_stream(GROUP, STREAM)
        for message, status in (("é" * 131_059, 200), ("é" * 131_059 + ".", 400)):
            body = {"logGroupName": GROUP, "logStreamName": STREAM, "logEvents": [event(NOW, message)]}
            assert raw(server.endpoint_url, "PutLogEvents", json.dumps(body).encode())[0] == status
        assert "262145 bytes exceeds limit of 262144" in server.violations[0]


def test_events_are_in_chronological_order(server: StrictCloudWatch, client: Any) -> None:
    """Equal times pass, one millisecond backwards does not."""
    put(client, event(NOW), event(NOW))
    code, text = refused(put, client, event(NOW), event(NOW - 1))
    assert code == "InvalidParameterException"
    assert "chronological order" in text
    assert len(server.take_violations()) == 1


def test_a_batch_spans_less_than_24_hours(server: StrictCloudWatch, client: Any) -> None:
    """86,399,999 ms pass, 86,400,000 do not."""
    put(client, event(NOW - MAX_BATCH_SPAN_MS + 1), event(NOW))
    code, text = refused(put, client, event(NOW - MAX_BATCH_SPAN_MS), event(NOW))
    assert code == "InvalidParameterException"
    assert "cannot span more than 24 hours" in text
    assert len(server.take_violations()) == 1


def test_the_span_counts_valid_events_only(server: StrictCloudWatch, client: Any) -> None:
    """An event that is rejected as too old does not stretch the batch."""
    answer = put(client, event(NOW - 30 * DAY), event(NOW))
    assert answer["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 1}
    server.assert_clean()


@pytest.mark.parametrize(
    ("events", "code", "words"),
    [
        ([], "InvalidParameterException", "greater than or equal to 1"),
        ([event(), event(message="")], "InvalidParameterException", "logEvents.2.member.message"),
        ([event(-1)], "InvalidParameterException", "greater than or equal to 0"),
        ([event(2**63)], "SerializationException", "Long"),
        ([event(1.5)], "SerializationException", "int"),
        ([event("1")], "SerializationException", "int"),
        ([event(True)], "SerializationException", "int"),
        ([event(message=5)], "SerializationException", "str"),
        ([{"timestamp": NOW}], "InvalidParameterException", "message"),
        ([{"message": "x"}], "InvalidParameterException", "timestamp"),
        ([event(message="\ud800")], "SerializationException", "PutLogEvents"),
    ],
)
def test_a_malformed_event_fails_the_whole_call(
    server: StrictCloudWatch, client: Any, events: list[Any], code: str, words: str
) -> None:
    """Each malformed list of events is refused, recorded once, and stores nothing."""
    answer = refused(put, client, *events)
    assert answer[0] == code
    assert words in answer[1]
    (violation,) = server.take_violations()
    assert violation.startswith("PutLogEvents from 127.0.0.1:")
    assert violation.endswith(f"[{code}]")
    assert server.events() == []


def test_timestamp_zero_is_legal_and_too_old(server: StrictCloudWatch, client: Any) -> None:
    """The epoch itself is a timestamp, if not a recent one."""
    assert put(client, event(0))["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 1}
    server.assert_clean()


def test_every_broken_rule_is_recorded(server: StrictCloudWatch, client: Any) -> None:
    """One call that breaks three rules leaves three violations, answered by the first."""
    code, text = refused(put, client, event(NOW, ""), event(-1), logStreamName="a:b")
    assert code == "InvalidParameterException"
    assert "logStreamName" in text
    assert len(server.violations) == 4  # stream name, empty message, negative time, order
    with pytest.raises(AssertionError, match="broke 4 rule") as caught:
        server.assert_clean()
    assert str(caught.value).count("\n  - ") == 4
    assert len(server.take_violations()) == 4
    server.assert_clean()


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"{", "SerializationException"),
        (b"", "SerializationException"),
        (b"[]", "SerializationException"),
        (b'{"logGroupName": null}', "InvalidParameterException"),
        (b'{"logGroupName": "g", "logStreamName": "s", "logEvents": [], "logevents": []}', "InvalidParameterException"),
        (b'{"logGroupName":"g","logStreamName":"s","logEvents":[{"timestamp":1,"message":"m","id":1}]}',
         "InvalidParameterException"),
    ],
)  # fmt: skip
def test_bodies_and_members_are_known_ones(server: StrictCloudWatch, body: bytes, code: str) -> None:
    """Unreadable bodies, missing and unknown members are violations."""
    status, answer = raw(server.endpoint_url, "PutLogEvents", body)
    assert (status, answer["__type"]) == (400, code)
    assert len(server.take_violations()) == 1


# --- PutLogEvents: the windows, answered with HTTP 200


@pytest.mark.parametrize(
    ("ages", "info", "kept"),
    [
        ([0], None, [0]),
        ([MAX_PAST_MS], None, [MAX_PAST_MS]),
        ([MAX_PAST_MS + 1], {"tooOldLogEventEndIndex": 1}, []),
        ([MAX_PAST_MS + 1, MAX_PAST_MS], {"tooOldLogEventEndIndex": 1}, [MAX_PAST_MS]),
        ([-MAX_FUTURE_MS], None, [-MAX_FUTURE_MS]),
        ([-MAX_FUTURE_MS - 1], {"tooNewLogEventStartIndex": 0}, []),
        ([0, -MAX_FUTURE_MS, -MAX_FUTURE_MS - 1], {"tooNewLogEventStartIndex": 2}, [0, -MAX_FUTURE_MS]),
        (
            [MAX_PAST_MS + 9, MAX_PAST_MS + 1, 5, 0, -MAX_FUTURE_MS - 1, -MAX_FUTURE_MS - 2],
            {"tooOldLogEventEndIndex": 2, "tooNewLogEventStartIndex": 4},
            [5, 0],
        ),
    ],
)
def test_indexes_of_rejected_events_are_exact(
    server: StrictCloudWatch, client: Any, ages: list[int], info: dict[str, int] | None, kept: list[int]
) -> None:
    """Too old ends exclusively, too new starts inclusively, what lies between is stored."""
    answer = put(client, *(event(NOW - age) for age in ages))
    assert answer.get("rejectedLogEventsInfo") == info
    assert [NOW - stored.timestamp for stored in server.events()] == kept
    server.assert_clean()


def test_events_beyond_the_retention_are_expired(server: StrictCloudWatch, client: Any) -> None:
    """With 3 days of retention, 3 days pass and one millisecond more is expired."""
    client.put_retention_policy(logGroupName=GROUP, retentionInDays=3)
    answer = put(client, event(NOW - 3 * DAY - 1), event(NOW - 3 * DAY), event(NOW - 3 * DAY))
    assert answer["rejectedLogEventsInfo"] == {"expiredLogEventEndIndex": 1}
    answer = put(client, event(NOW - 15 * DAY), event(NOW - 3 * DAY - 1))
    assert answer["rejectedLogEventsInfo"] == {"tooOldLogEventEndIndex": 1, "expiredLogEventEndIndex": 2}
    assert len(server.events()) == 2
    assert server.summary()["rejected"] == {"tooOldLogEventEndIndex": 1, "expiredLogEventEndIndex": 3}


# --- PutLogEvents: entities

SERVICE = {"Type": "Service", "Name": "web", "Environment": "prod"}


@pytest.mark.parametrize(
    ("entity", "error"),
    [
        ({"keyAttributes": SERVICE}, None),
        ({"keyAttributes": SERVICE, "attributes": {f"k{n}": "v" * 512 for n in range(10)}}, None),
        ({"keyAttributes": SERVICE, "attributes": {f"k{n}": "v" for n in range(11)}}, "InvalidAttributes"),
        ({"keyAttributes": SERVICE, "attributes": {"k": "v" * 513}}, "InvalidAttributes"),
        ({"keyAttributes": SERVICE, "attributes": {"k": ""}}, "InvalidAttributes"),
        ({"keyAttributes": {**SERVICE, "Name": "v" * 513}}, "InvalidKeyAttributes"),
        ({"keyAttributes": {**SERVICE, "Pod": "x"}}, "InvalidKeyAttributes"),
        ({"keyAttributes": {"Type": "Service"}}, "InvalidKeyAttributes"),
        ({"keyAttributes": {**SERVICE, "ResourceType": "x", "Identifier": "y"}}, "InvalidKeyAttributes"),
        ({"keyAttributes": {**SERVICE, "Type": "Server"}}, "InvalidTypeValue"),
        ({"keyAttributes": {"Type": "Service", "Name": "web"}}, "MissingRequiredFields"),
        ({"keyAttributes": {"Name": "web", "Environment": "prod"}}, "MissingRequiredFields"),
        ({"attributes": {"a": "b"}}, "MissingRequiredFields"),
    ],
)
def test_a_bad_entity_is_rejected_and_its_events_are_not(
    server: StrictCloudWatch, client: Any, entity: dict[str, Any], error: str | None
) -> None:
    """The answer names what is wrong with the entity; the events are stored either way."""
    answer = put(client, event(), entity=entity)
    assert answer.get("rejectedEntityInfo") == (None if error is None else {"errorType": error})
    assert server.messages() == ["hello"]
    assert len(server.take_violations()) == (error is not None)


def test_entities_need_a_standard_group(server: StrictCloudWatch, client: Any) -> None:
    """Another log class answers UnsupportedLogGroupType."""
    client.create_log_group(logGroupName="rare", logGroupClass="INFREQUENT_ACCESS")
    client.create_log_stream(logGroupName="rare", logStreamName=STREAM)
    answer = put(client, event(), logGroupName="rare", entity={"keyAttributes": SERVICE})
    assert answer["rejectedEntityInfo"] == {"errorType": "UnsupportedLogGroupType"}
    server.take_violations()


# --- Names, groups, streams


@pytest.mark.parametrize("name", ["a", "x" * 512, "/aws/lambda/f", "a.b-c_d#e/F9", "awsome/x"])
def test_legal_group_names_are_accepted(server: StrictCloudWatch, client: Any, name: str) -> None:
    """Every documented character and length names a group."""
    client.create_log_group(logGroupName=name)
    assert server.group(name) is not None
    server.assert_clean()


@pytest.mark.parametrize("name", ["", "x" * 513, "a b", "a:b", "a*b", "ä", "a\n", "aws/x"])
def test_illegal_group_names_are_violations(server: StrictCloudWatch, client: Any, name: str) -> None:
    """What the pattern, the length or the reservation forbids is refused."""
    assert refused(client.create_log_group, logGroupName=name)[0] == "InvalidParameterException"
    assert server.group(name) is None
    assert len(server.take_violations()) == 1


@pytest.mark.parametrize("name", ["s", "x" * 512, "2026/01/01 [$LATEST] é"])
def test_legal_stream_names_are_accepted(server: StrictCloudWatch, client: Any, name: str) -> None:
    """Anything without ':' and '*' names a stream."""
    client.create_log_stream(logGroupName=GROUP, logStreamName=name)
    put(client, event(), logStreamName=name)
    assert server.messages(stream=name) == ["hello"]
    server.assert_clean()


@pytest.mark.parametrize("name", ["", "x" * 513, "a:b", "a*b"])
def test_illegal_stream_names_are_violations(server: StrictCloudWatch, client: Any, name: str) -> None:
    """Both actions that name a stream refuse it."""
    create = refused(client.create_log_stream, logGroupName=GROUP, logStreamName=name)
    assert create[0] == refused(put, client, event(), logStreamName=name)[0] == "InvalidParameterException"
    assert len(server.take_violations()) == 2


def test_existing_and_missing_targets_are_answers_not_violations(server: StrictCloudWatch, client: Any) -> None:
    """A client may try first and create afterwards."""
    exists, missing = "ResourceAlreadyExistsException", "ResourceNotFoundException"
    assert refused(client.create_log_group, logGroupName=GROUP)[0] == exists
    assert refused(client.create_log_stream, logGroupName=GROUP, logStreamName=STREAM)[0] == exists
    assert refused(client.create_log_stream, logGroupName="no", logStreamName=STREAM)[0] == missing
    assert refused(put, client, event(), logGroupName="no") == (missing, "The specified log group does not exist.")
    assert refused(put, client, event(), logStreamName="no") == (missing, "The specified log stream does not exist.")
    assert refused(client.put_retention_policy, logGroupName="no", retentionInDays=1)[0] == missing
    server.assert_clean()


@pytest.mark.parametrize(("days", "is_legal"), [(1, True), (3653, True), (0, False), (2, False), (-1, False)])
def test_retention_is_one_of_the_listed_days(server: StrictCloudWatch, client: Any, days: int, is_legal: bool) -> None:
    """Only a documented number of days is accepted."""
    if is_legal:
        client.put_retention_policy(logGroupName=GROUP, retentionInDays=days)
        assert server.group(GROUP).retention_days == days  # type: ignore[union-attr]
    else:
        code, _ = refused(client.put_retention_policy, logGroupName=GROUP, retentionInDays=days)
        assert (code, len(server.take_violations())) == ("InvalidParameterException", 1)


@pytest.mark.parametrize(
    ("tags", "is_legal"),
    [
        ({"a": ""}, True),
        ({f"k{n}": "v" for n in range(50)}, True),
        ({"k" * 128: "v" * 256, "é 9_.:/=+-@": "é 9_.:/=+-@"}, True),
        ({}, False),
        ({f"k{n}": "v" for n in range(51)}, False),
        ({"k" * 129: "v"}, False),
        ({"": "v"}, False),
        ({"k": "v" * 257}, False),
        ({"k": "a\tb"}, False),
        ({"k?": "v"}, False),
        ({"aws:k": "v"}, False),
    ],
)
def test_tags_are_within_their_limits(
    server: StrictCloudWatch, client: Any, tags: dict[str, str], is_legal: bool
) -> None:
    """CreateLogGroup and TagResource judge tags alike."""
    arn = f"arn:aws:logs:us-east-1:123456789012:log-group:{GROUP}"
    if is_legal:
        client.create_log_group(logGroupName="new", tags=tags)
        client.tag_resource(resourceArn=arn, tags=tags)
        assert server.group("new").tags == server.group(GROUP).tags == tags  # type: ignore[union-attr]
        server.assert_clean()
    else:
        assert refused(client.create_log_group, logGroupName="new", tags=tags)[0] == "InvalidParameterException"
        assert refused(client.tag_resource, resourceArn=arn, tags=tags)[0] == "InvalidParameterException"
        assert len(server.take_violations()) == 2


def test_tag_resource_wants_a_group_arn_and_room(server: StrictCloudWatch, client: Any) -> None:
    """A describing ARN is malformed, a missing group is not found, a 51st tag is one too many."""
    arn = f"arn:aws:logs:us-east-1:123456789012:log-group:{GROUP}"
    assert refused(client.tag_resource, resourceArn=arn + ":*", tags={"a": "b"})[0] == "InvalidParameterException"
    assert len(server.take_violations()) == 1
    assert refused(client.tag_resource, resourceArn=arn + "x", tags={"a": "b"})[0] == "ResourceNotFoundException"
    client.tag_resource(resourceArn=arn, tags={f"k{n}": "v" for n in range(50)})
    client.tag_resource(resourceArn=arn, tags={"k0": "changed"})
    assert refused(client.tag_resource, resourceArn=arn, tags={"k50": "v"})[0] == "TooManyTagsException"


@pytest.mark.parametrize(
    "members", [{"logGroupClass": "standard"}, {"logGroupClass": "GLACIER"}, {"kmsKeyId": "k" * 257}]
)
def test_group_options_have_declared_values(server: StrictCloudWatch, client: Any, members: dict[str, str]) -> None:
    """An unknown log class and an over-long key id are violations."""
    assert refused(client.create_log_group, logGroupName="new", **members)[0] == "InvalidParameterException"
    assert len(server.take_violations()) == 1
    client.create_log_group(logGroupName="new", logGroupClass="ESSENTIALS", kmsKeyId="k" * 256)


# --- Reading back


def test_groups_and_streams_are_described_in_pages(server: StrictCloudWatch, client: Any) -> None:
    """boto3's own paginators find every group and stream once."""
    for n in range(5):
        server.create_stream(f"g{n}", f"s{n}")
        server.create_stream("g0", f"t{n}")
    pages = client.get_paginator("describe_log_groups").paginate(
        logGroupNamePrefix="g", PaginationConfig={"PageSize": 2}
    )
    assert [group["logGroupName"] for page in pages for group in page["logGroups"]] == ["g0", "g1", "g2", "g3", "g4"]
    pages = client.get_paginator("describe_log_streams").paginate(
        logGroupName="g0", descending=True, PaginationConfig={"PageSize": 4}
    )
    names = [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
    assert names == ["t4", "t3", "t2", "t1", "t0", "s0"]
    assert client.describe_log_groups(logGroupNamePattern="APP")["logGroups"][0]["logGroupName"] == GROUP
    assert refused(client.describe_log_groups, limit=51)[0] == "InvalidParameterException"
    assert refused(client.describe_log_streams)[0] == "InvalidParameterException"
    server.take_violations()


def test_streams_are_described_by_last_event(server: StrictCloudWatch, client: Any) -> None:
    """orderBy LastEventTime shows the stream that was written to last, and its times."""
    server.create_stream(GROUP, "zz")
    put(client, event(NOW - 9), event(NOW - 3))
    found = client.describe_log_streams(logGroupName=GROUP, orderBy="LastEventTime", descending=True)["logStreams"]
    assert [stream["logStreamName"] for stream in found] == [STREAM, "zz"]
    assert (found[0]["firstEventTimestamp"], found[0]["lastEventTimestamp"]) == (NOW - 9, NOW - 3)


def test_events_are_read_back_in_both_directions(server: StrictCloudWatch, client: Any) -> None:
    """GetLogEvents pages by time; at the end it returns the token it was given."""
    put(client, *(event(NOW + n, f"m{n}") for n in range(5)))
    put(client, event(NOW, "late"))
    target = {"logGroupName": GROUP, "logStreamName": STREAM}
    page = client.get_log_events(**target, startFromHead=True, limit=4)
    assert [row["message"] for row in page["events"]] == ["m0", "late", "m1", "m2"]
    page = client.get_log_events(**target, nextToken=page["nextForwardToken"], limit=4)
    assert [row["message"] for row in page["events"]] == ["m3", "m4"]
    last = client.get_log_events(**target, nextToken=page["nextForwardToken"])
    assert (last["events"], last["nextForwardToken"]) == ([], page["nextForwardToken"])
    page = client.get_log_events(**target, limit=2)
    assert [row["message"] for row in page["events"]] == ["m3", "m4"]
    page = client.get_log_events(**target, limit=2, nextToken=page["nextBackwardToken"])
    assert [row["message"] for row in page["events"]] == ["m1", "m2"]
    window = client.get_log_events(**target, startTime=NOW + 1, endTime=NOW + 3, startFromHead=True)
    assert [row["message"] for row in window["events"]] == ["m1", "m2"]


def test_events_are_filtered_over_streams(server: StrictCloudWatch, client: Any) -> None:
    """FilterLogEvents merges streams by time, matches plain and quoted terms, and pages."""
    server.create_stream(GROUP, "host-2")
    put(client, event(NOW, "red apple"), event(NOW + 2, "green apple"))
    put(client, event(NOW + 1, "red pear"), logStreamName="host-2")
    pages = client.get_paginator("filter_log_events").paginate(logGroupName=GROUP, PaginationConfig={"PageSize": 2})
    found = [row["message"] for page in pages for row in page["events"]]
    assert found == ["red apple", "red pear", "green apple"]
    for pattern, expected in (("red", 2), ("apple red", 1), ('"apple red"', 0), ('"red pear"', 1)):
        assert len(client.filter_log_events(logGroupName=GROUP, filterPattern=pattern)["events"]) == expected
    only = client.filter_log_events(logGroupName=GROUP, logStreamNames=["host-2"])["events"]
    assert [(row["logStreamName"], row["message"]) for row in only] == [("host-2", "red pear")]


def test_an_answer_holds_at_most_one_megabyte(server: StrictCloudWatch, client: Any) -> None:
    """Readers get large events page by page, none twice."""
    for n in range(3):
        put(client, event(NOW + n, str(n) * 600_000))
    pages = list(client.get_paginator("filter_log_events").paginate(logGroupName=GROUP))
    assert [row["message"][0] for page in pages for row in page["events"]] == ["0", "1", "2"]
    assert len(pages) == 3


# --- The record of calls


def test_a_call_is_recorded_with_its_sender(server: StrictCloudWatch, client: Any) -> None:
    """Epoch and pid come from the User-Agent; refused calls are recorded too."""
    put(client, event(NOW, "ab"))
    refused(put, client, event(), logGroupName="no")
    first, second = server.requests
    assert (first.number, first.epoch, first.sender, first.events, first.counted_bytes) == (1, 7, "4321", 1, 28)
    assert (first.status, first.error, first.group, first.stream) == (200, None, GROUP, STREAM)
    assert (second.status, second.error, second.group) == (400, "ResourceNotFoundException", "no")
    assert first.peer.startswith("127.0.0.1:")
    assert first.time_seconds == NOW_SECONDS
    assert "epoch/7" in first.user_agent
    assert server.calls == {"PutLogEvents": 2}
    assert server.senders_by_epoch() == {7: {"4321"}}


def test_senders_are_told_apart_by_epoch_and_pid(server: StrictCloudWatch) -> None:
    """Two senders in one epoch show; without a pid the address stands in; without an epoch nothing."""
    agents = ["x epoch/1 pid/10", "x epoch/1 pid/11", "x epoch/2", "x pid/12", "x epoch/3x"]
    for agent in agents:
        raw(server.endpoint_url, "PutLogEvents", b"{}", {**SIGNED, "User-Agent": agent})
    assert server.senders_by_epoch() == {1: {"10", "11"}, 2: {"127.0.0.1"}}
    server.take_violations()


def test_a_test_can_wait_for_what_arrives(server: StrictCloudWatch, client: Any) -> None:
    """wait_for returns when a call makes the condition true, and False when none does."""
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(server.wait_for_events, 2, 30.0)
        put(client, event(), event())
        assert waiting.result(30)
    assert not server.wait_for(lambda seen: len(seen.requests) > 1, timeout_seconds=0.01)


# --- Misbehaviour


def test_a_throttled_call_is_answered_like_aws(server: StrictCloudWatch, client: Any) -> None:
    """fail_next(2) fails two calls of any action, and the third passes."""
    server.faults.fail_next(2, code="ThrottlingException", status=400)
    assert refused(put, client, event()) == ("ThrottlingException", "Rate exceeded")
    assert refused(client.create_log_group, logGroupName="new")[0] == "ThrottlingException"
    put(client, event())
    assert server.messages() == ["hello"]
    assert [request.error for request in server.requests] == ["ThrottlingException", None]
    server.assert_clean()


@pytest.mark.parametrize(
    ("code", "status"),
    [("ServiceUnavailableException", 500), ("InternalFailure", 500), ("ExpiredTokenException", 400), ("Made.Up", 418)],
)
def test_any_error_can_be_asked_for(server: StrictCloudWatch, client: Any, code: str, status: int) -> None:
    """The code and status asked for arrive."""
    server.faults.fail_next(1, code, status)
    with pytest.raises(ClientError) as caught:
        put(client, event())
    assert caught.value.response["Error"]["Code"] == code
    assert caught.value.response["ResponseMetadata"]["HTTPStatusCode"] == server.requests[0].status == status


def test_a_bare_503_has_no_body(server: StrictCloudWatch) -> None:
    """An empty code is a proxy's answer: status alone."""
    server.faults.fail_next(1, code="", status=503)
    assert raw(server.endpoint_url, "PutLogEvents", b"{}") == (503, {})


def test_a_fault_can_be_meant_for_one_action(server: StrictCloudWatch, client: Any) -> None:
    """A step for CreateLogGroup leaves PutLogEvents alone."""
    server.faults.fail_next(1, "OperationAbortedException", action="CreateLogGroup")
    put(client, event())
    assert server.faults.pending == 1
    assert refused(client.create_log_group, logGroupName="new")[0] == "OperationAbortedException"
    assert server.faults.pending == 0


def test_faults_are_met_in_the_order_asked_for(server: StrictCloudWatch, client: Any) -> None:
    """pass_next places a fault later in the script."""
    server.faults.pass_next(1)
    server.faults.fail_next(1, "ThrottlingException")
    server.faults.fail_next(1, "InternalFailure")
    put(client, event())
    assert refused(put, client, event())[0] == "ThrottlingException"
    assert refused(put, client, event())[0] == "InternalFailure"


def test_calls_above_the_rate_are_throttled(server: StrictCloudWatch, client: Any) -> None:
    """What exceeds the rate gets ThrottlingException; other actions are not counted."""
    server.faults.throttle_rate(0.001, action="PutLogEvents")  # a burst of 1, the next one in 1,000 seconds
    put(client, event())
    assert refused(put, client, event()) == ("ThrottlingException", "Rate exceeded")
    client.create_log_group(logGroupName="new")
    server.faults.throttle_rate(None)
    put(client, event())
    server.assert_clean()


def test_the_rate_allows_a_burst_of_one_second() -> None:
    """At 2 calls per second two pass at once, and one more each half second."""
    now = [100.0]
    faults = Faults(monotonic=lambda: now[0])
    faults.throttle_rate(2.0)
    assert [faults.is_over_rate("PutLogEvents") for _ in range(3)] == [False, False, True]
    now[0] += 0.5
    assert [faults.is_over_rate("PutLogEvents") for _ in range(2)] == [False, True]
    now[0] += 3600
    assert [faults.is_over_rate("PutLogEvents") for _ in range(3)] == [False, False, True]


def test_each_action_may_have_a_rate_of_its_own() -> None:
    """As in an account: one action's calls take nothing from another's; None turns off one, or all."""
    faults = Faults(monotonic=lambda: 100.0)
    faults.throttle_rate(1.0, action="PutLogEvents")
    faults.throttle_rate(2.0, action="CreateLogStream")
    asked = ["PutLogEvents", "CreateLogStream"] * 3
    assert [faults.is_over_rate(action) for action in asked] == [False, False, True, False, True, True]
    faults.throttle_rate(None, action="PutLogEvents")
    assert [faults.is_over_rate(action) for action in asked[:2]] == [False, True]
    faults.throttle_rate(None)
    assert not faults.is_over_rate("CreateLogStream")


def test_a_connection_dropped_before_storing_stores_nothing(server: StrictCloudWatch, client: Any) -> None:
    """The client sees a closed connection, the server has nothing, the retry passes."""
    server.faults.drop_connection_before_storing(1)
    with pytest.raises(ConnectionClosedError):
        put(client, event())
    assert server.events() == []
    assert [(request.status, request.error) for request in server.requests] == [(0, "ConnectionDropped")]
    put(client, event())
    assert server.messages() == ["hello"]


def test_a_connection_dropped_after_storing_loses_the_answer_only(server: StrictCloudWatch, client: Any) -> None:
    """The events are there; a call that stored nothing does not use the fault up."""
    server.faults.drop_connection_after_storing(1)
    assert refused(put, client, event(), logStreamName="no")[0] == "ResourceNotFoundException"
    with pytest.raises(ConnectionClosedError):
        put(client, event())
    assert server.messages() == ["hello"]
    put(client, event())
    assert server.messages() == ["hello", "hello"]


@pytest.mark.parametrize(("after_storing", "stored"), [(False, 0), (True, 1)])
def test_a_hanging_call_times_out(server: StrictCloudWatch, after_storing: bool, stored: int) -> None:
    """No answer comes within the client's read timeout; stored or not, as asked."""
    server.faults.hang(0.5, after_storing=after_storing)
    client = make_client(server.endpoint_url, read_timeout=0.1)
    with contextlib.closing(client), pytest.raises(ReadTimeoutError):
        put(client, event())
    assert len(server.events()) == stored
    assert (server.requests[0].status, server.requests[0].error) == (0, "Hang")


def test_junk_is_200_without_a_request_id(server: StrictCloudWatch, client: Any) -> None:
    """boto3 takes a junk 200 for success: only the missing request id tells."""
    server.faults.junk_next(1)
    answer = put(client, event())
    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 200
    assert "nextSequenceToken" not in answer
    assert not answer["ResponseMetadata"].get("RequestId")
    assert server.events() == []


def test_a_denied_action_is_refused_until_allowed(server: StrictCloudWatch, client: Any) -> None:
    """deny takes the IAM name; other actions go on."""
    server.faults.deny("logs:CreateLogGroup", "logs:PutRetentionPolicy")
    code, text = refused(client.create_log_group, logGroupName="new")
    assert code == "AccessDeniedException"
    assert "not authorized to perform: logs:CreateLogGroup" in text
    put(client, event())
    server.faults.allow("logs:CreateLogGroup")
    client.create_log_group(logGroupName="new")
    server.assert_clean()


def test_a_denied_key_is_refused_until_allowed(server: StrictCloudWatch, client: Any) -> None:
    """deny_key takes an access key: calls that it signs are refused, and recorded with it."""
    server.faults.deny_key("another", "testing")
    code, text = refused(put, client, event())
    assert (code, "user/testing is not authorized to perform: logs:PutLogEvents" in text) == (
        "AccessDeniedException",
        True,
    )
    server.faults.allow_key("testing")
    put(client, event())
    assert [(request.access_key, request.error) for request in server.requests] == [
        ("testing", "AccessDeniedException"),
        ("testing", None),
    ]
    server.assert_clean()


def test_answers_drip_until_they_need_not(server: StrictCloudWatch, client: Any) -> None:
    """One byte at a time, with drip_seconds before each; once that is 0, the rest comes at once."""
    server.faults.drip_seconds = 0.001
    started = time.monotonic()
    put(client, event())
    assert time.monotonic() - started >= 0.1
    server.faults.drip_seconds = 0.5
    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(put, client, event())
        assert server.wait_for_events(2)
        assert not call.done()
        server.faults.drip_seconds = 0.0
        call.result(30)


def test_latency_delays_the_answer(server: StrictCloudWatch, client: Any) -> None:
    """No answer comes before latency_seconds have passed."""
    server.faults.latency_seconds = 0.1
    started = time.monotonic()
    put(client, event())
    assert time.monotonic() - started >= 0.1


def test_latency_does_not_delay_the_record() -> None:
    """A call is stored and recorded when it arrives, long before it is answered."""
    with StrictCloudWatch(clock=lambda: NOW_SECONDS) as server, ThreadPoolExecutor(1) as pool:
        server.create_stream(GROUP, STREAM)
        server.faults.latency_seconds = 3600.0
        with contextlib.closing(make_client(server.endpoint_url)) as client:
            call = pool.submit(put, client, event())
            assert server.wait_for_events(1)
            assert (server.messages(), server.requests[0].status) == (["hello"], 200)
            assert not call.done()
            server.stop()
            with pytest.raises(ConnectionClosedError):
                call.result(30)


def test_a_poisoned_message_fails_its_call(server: StrictCloudWatch, client: Any) -> None:
    """The call with the poison is refused without a violation; without it the rest passes."""
    server.faults.poison = "BAD"
    assert refused(put, client, event(), event(NOW, "so BAD"))[0] == "InvalidParameterException"
    put(client, event())
    assert server.messages() == ["hello"]
    server.assert_clean()


def test_targets_are_deleted_under_way(server: StrictCloudWatch, client: Any) -> None:
    """The call that meets the fault finds its stream, or its group, gone."""
    put(client, event())
    server.faults.delete_stream_under_way()
    assert refused(put, client, event()) == ("ResourceNotFoundException", "The specified log stream does not exist.")
    client.create_log_stream(logGroupName=GROUP, logStreamName=STREAM)
    server.faults.delete_group_under_way()
    assert refused(put, client, event()) == ("ResourceNotFoundException", "The specified log group does not exist.")
    assert server.messages() == ["hello"]


def test_deleted_targets_are_gone(server: StrictCloudWatch, client: Any) -> None:
    """delete_stream and delete_group act at once; what was accepted is still known."""
    put(client, event())
    server.delete_stream(GROUP, STREAM)
    assert refused(put, client, event())[1] == "The specified log stream does not exist."
    server.delete_group(GROUP)
    assert refused(put, client, event())[1] == "The specified log group does not exist."
    assert client.describe_log_groups()["logGroups"] == []
    assert server.messages() == ["hello"]


def test_legacy_sequence_tokens_are_demanded(server: StrictCloudWatch, client: Any) -> None:
    """A stale token is answered with the expected one, a repeated batch as accepted already."""
    server.faults.sequence_tokens = True
    token = put(client, event(NOW, "a"))["nextSequenceToken"]
    with pytest.raises(client.exceptions.InvalidSequenceTokenException) as caught:
        put(client, event(NOW, "b"))
    assert caught.value.response["expectedSequenceToken"] == token
    with pytest.raises(client.exceptions.DataAlreadyAcceptedException) as repeated:
        put(client, event(NOW, "a"), sequenceToken="0")
    assert repeated.value.response["expectedSequenceToken"] == token
    put(client, event(NOW, "b"), sequenceToken=token)
    assert server.messages() == ["a", "b"]


def test_sequence_tokens_are_ignored_by_default(server: StrictCloudWatch, client: Any) -> None:
    """As AWS does since 2023: any token, and a repeat is stored twice."""
    put(client, event(), sequenceToken="nonsense")
    put(client, event(), sequenceToken="nonsense")
    assert server.messages() == ["hello", "hello"]


# --- HTTP


def test_unsigned_calls_are_refused(server: StrictCloudWatch) -> None:
    """Without Authorization there is no service; a signature is looked for, not verified."""
    client = make_client(server.endpoint_url, signature_version=UNSIGNED)
    with contextlib.closing(client):
        assert refused(put, client, event())[0] == "MissingAuthenticationTokenException"
    answer = raw(server.endpoint_url, "PutLogEvents", b"{}", {"Authorization": "Basic eDp5"})
    assert answer[1]["__type"] == "UnrecognizedClientException"


def test_unknown_operations_are_violations(server: StrictCloudWatch) -> None:
    """An action the server does not have is refused and recorded."""
    assert raw(server.endpoint_url, "DeleteEverything", b"{}")[1]["__type"] == "UnknownOperationException"
    assert "DeleteEverything" in server.take_violations()[0]


def test_gzip_bodies_are_accepted(server: StrictCloudWatch) -> None:
    """A compressed call is stored as if it were plain; a damaged one is a violation."""
    body = json.dumps({"logGroupName": GROUP, "logStreamName": STREAM, "logEvents": [event()] * 100}).encode()
    packed = gzip.compress(body)
    headers = {**SIGNED, "Content-Encoding": "gzip"}
    assert raw(server.endpoint_url, "PutLogEvents", packed, headers)[0] == 200
    assert len(server.events()) == 100
    assert server.requests[0].body_bytes == len(packed) < len(body)
    for damaged in (packed[:-9], body):
        status, answer = raw(server.endpoint_url, "PutLogEvents", damaged, headers)
        assert (status, answer["__type"]) == (400, "SerializationException")
    assert len(server.take_violations()) == 2


def test_a_client_that_expects_100_continue_gets_it(server: StrictCloudWatch) -> None:
    """The body is asked for before it is sent, and the connection is kept alive after it."""
    address = ("127.0.0.1", int(server.endpoint_url.rpartition(":")[2]))
    body = json.dumps({"logGroupName": GROUP, "logStreamName": STREAM, "logEvents": [event()]}).encode()
    head = (
        "POST / HTTP/1.1\r\nHost: x\r\nX-Amz-Target: Logs_20140328.PutLogEvents\r\n"
        f"Authorization: {SIGNED['Authorization']}\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n\r\n"
    )
    with socket.create_connection(address, timeout=30) as connection, connection.makefile("rb") as answers:
        for count in (1, 2):
            connection.sendall(head.encode())
            assert answers.readline() == b"HTTP/1.1 100 Continue\r\n"
            assert answers.readline() == b"\r\n"
            connection.sendall(body)
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            lines = list(iter(answers.readline, b"\r\n"))
            length = next(int(line.split()[1]) for line in lines if line.lower().startswith(b"content-length"))
            assert b"nextSequenceToken" in answers.read(length)
            assert len(server.events()) == count


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", b"411"),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", b"413"),
        (b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n", b"400"),
        (b"X" * 70_000, b"431"),
    ],
)
def test_foreign_http_is_refused_and_closed(server: StrictCloudWatch, head: bytes, status: bytes) -> None:
    """What is not the HTTP that AWS clients speak ends the connection."""
    address = ("127.0.0.1", int(server.endpoint_url.rpartition(":")[2]))
    with socket.create_connection(address, timeout=30) as connection:
        connection.sendall(head)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while chunk := connection.recv(4096):
                answer += chunk
    assert answer.startswith(b"HTTP/1.1 " + status)


def test_many_clients_are_served_at_once(server: StrictCloudWatch) -> None:
    """64 clients with a connection each lose nothing, and no two calls get the same number."""
    server.faults.latency_seconds = 0.2
    body = {"logGroupName": GROUP, "logStreamName": STREAM}

    def send(n: int) -> int:
        packed = json.dumps({**body, "logEvents": [event(NOW, f"m{n}")]}).encode()
        return raw(server.endpoint_url, "PutLogEvents", packed)[0]

    with ThreadPoolExecutor(64) as pool:
        assert set(pool.map(send, range(64))) == {200}
    assert sorted(server.messages()) == sorted(f"m{n}" for n in range(64))
    assert sorted({stored.request for stored in server.events()}) == list(range(1, 65))
    assert len({request.peer for request in server.requests}) == 64


# --- Its life


def test_stop_leaves_no_thread_and_no_connection() -> None:
    """Kept-alive and hanging connections end with the server, at once."""
    server = StrictCloudWatch().start()
    server.create_stream(GROUP, STREAM)
    port = int(server.endpoint_url.rpartition(":")[2])
    idle = socket.create_connection(("127.0.0.1", port), timeout=30)
    hanging = socket.create_connection(("127.0.0.1", port), timeout=30)
    server.faults.hang(3600)
    hanging.sendall(b"POST / HTTP/1.1\r\nX-Amz-Target: Logs_20140328.PutLogEvents\r\nContent-Length: 0\r\n\r\n")
    with idle, hanging:
        assert server.wait_for(lambda seen: len(seen.requests) == 1)
        serving = list(server._listener._live)
        assert len(serving) == 2
        assert server_threads(server)
        server.stop()
        server.stop()
        assert idle.recv(1) == hanging.recv(1) == b""
    assert not any(thread.is_alive() for thread in serving)
    assert server_threads(server) == []
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=1)


def test_stop_and_start_are_an_outage() -> None:
    """The same port answers again, and what was accepted is still there."""
    with StrictCloudWatch() as server:
        url = server.endpoint_url
        server.create_stream(GROUP, STREAM)
        body = json.dumps({"logGroupName": GROUP, "logStreamName": STREAM, "logEvents": []}).encode()
        assert raw(url, "PutLogEvents", body)[0] == 400
        server.stop()
        with pytest.raises(ConnectionRefusedError):
            raw(url, "PutLogEvents", body)
        server.start()
        assert server.endpoint_url == url
        assert raw(url, "PutLogEvents", body)[0] == 400
        assert len(server.requests) == 2
        with pytest.raises(RuntimeError, match="running already"):
            server.start()


def test_a_server_has_no_url_before_it_starts() -> None:
    """Asking too early says so, instead of naming port 0."""
    with pytest.raises(RuntimeError, match="not been started"):
        _ = StrictCloudWatch().endpoint_url


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_does_not_keep_the_port() -> None:
    """A child that outlives the server neither accepts for it nor holds its connections open."""
    with StrictCloudWatch() as server:
        address = ("127.0.0.1", int(server.endpoint_url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=30) as held:
            held.sendall(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
            assert held.recv(4096).startswith(b"HTTP/1.1 400")
            read_end, write_end = os.pipe()
            child = os.fork()
            if child == 0:
                os.close(write_end)
                os.read(read_end, 1)
                os._exit(0)
            try:
                server.stop()
                assert held.recv(1) == b""
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection(address, timeout=1)
            finally:
                os.close(write_end)
                os.close(read_end)
                os.waitpid(child, 0)
        server.take_violations()


def test_a_spawned_server_is_asked_over_http() -> None:
    """Another process accepts, counts ids, misbehaves and forgets on request."""
    with spawn(id_pattern=r"id=(\d+)") as server:
        client = make_client(server.endpoint_url)
        with contextlib.closing(client):
            client.create_log_group(logGroupName=GROUP)
            client.create_log_stream(logGroupName=GROUP, logStreamName=STREAM)
            now = round(time.time() * 1000)
            put(client, event(now, "id=1 a"), event(now, "id=2 b"))
            put(client, event(now, "id=1 a"))
            counts = server.summary()
            assert (counts["events"], counts["requests"], counts["violations"]) == (3, 2, 0)
            assert (counts["distinct_ids"], counts["repeated_ids"]) == (2, 1)
            assert counts["bytes"] == 3 * (6 + 26)
            assert counts["epochs"] == {"7": ["4321"]}
            assert server.messages() == ["id=1 a", "id=2 b", "id=1 a"]
            assert server.ids() == {"1", "2"}
            assert [request.events for request in server.requests()] == [2, 1]
            server.misbehave(latency_seconds=0.0, fail_next={"n": 1}, deny=["logs:TagResource"])
            assert refused(put, client, event(now))[0] == "ThrottlingException"
            with pytest.raises(ValueError, match="explode"):
                server.misbehave(explode=1)
        server.reset()
        assert server.summary()["events"] == 0
        pid = server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_events_can_be_counted_without_being_kept() -> None:
    """With keep_events off, counts go on and memory does not grow."""
    with StrictCloudWatch(clock=lambda: NOW_SECONDS, keep_events=False) as server:
        server.create_stream(GROUP, STREAM)
        body = json.dumps({"logGroupName": GROUP, "logStreamName": STREAM, "logEvents": [event()]}).encode()
        assert raw(server.endpoint_url, "PutLogEvents", body)[0] == 200
        assert (server.events(), server.summary()["events"]) == ([], 1)


def test_by_hand_it_prints_its_url_and_ends_with_ctrl_c() -> None:
    """python -m cwsink.testing prints the endpoint and an export line; SIGINT is a clean end."""
    command = [sys.executable, "-m", "cwsink.testing", "--port", "0"]
    environment = {**os.environ, "PYTHONPATH": SOURCE_ROOT}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().strip()
            assert url.startswith("http://127.0.0.1:")
            assert process.stdout.readline() == f"export AWS_ENDPOINT_URL_CLOUDWATCH_LOGS={url}\n"
            raw(url, "DeleteEverything", b"{}")
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=30)
        finally:
            process.kill()
    assert (process.returncode, err) == (0, "")
    assert "0 events in 0 requests, 1 violations" in out


def test_the_package_imports_without_pytest_or_boto3() -> None:
    """A benchmark process carries neither."""
    code = (
        "import sys; from cwsink.testing import Faults, StrictCloudWatch, spawn; "
        "print(sorted({'pytest', 'boto3', 'botocore', 'fapilog'} & set(sys.modules)))"
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE_ROOT}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize("header", [{"Origin": "https://example.com"}, {"Host": "example.com:8800"}])
def test_a_web_page_cannot_control_the_server(server: StrictCloudWatch, header: dict[str, str]) -> None:
    """A browser tells by `Origin`, or by the page's name in `Host`, that it asks for a page; both are refused."""
    request = urllib.request.Request(f"{server.endpoint_url}/_cwsink/reset", data=b"", headers=header, method="POST")
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with pytest.raises(urllib.error.HTTPError, match="403"):
        opener.open(request, timeout=30)
    del request.headers[next(iter(header))]
    assert opener.open(request, timeout=30).status == 200


def test_who_only_announces_long_bodies_gets_little_memory() -> None:
    """100 idle connections that announce 16 MB each: the server does not reserve what has not come."""
    with spawn() as server, contextlib.ExitStack() as connections:
        host, port = server.endpoint_url.removeprefix("http://").split(":")
        for _ in range(100):
            connection = connections.enter_context(socket.create_connection((host, int(port))))
            connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 16000000\r\n\r\nx")
        assert server.summary()["events"] == 0, "it has read the heads, or reads them now"
        time.sleep(0.5)
        pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    assert pages * os.sysconf("SC_PAGE_SIZE") < 300e6


def test_the_fixture_fails_a_test_whose_client_breaks_a_rule(tmp_path: Path) -> None:
    """The plugin's fixtures point boto3 at the server and end with assert_clean."""
    (tmp_path / "test_user.py").write_text(
        """
import os
import boto3

def test_legal(strict_cloudwatch_environment):
    assert not [name for name in os.environ if name.startswith("FAPILOG_CLOUDWATCH__") or name == "AWS_PROFILE"]
    boto3.client("logs").create_log_group(logGroupName="g")
    assert strict_cloudwatch_environment.calls == {"CreateLogGroup": 1}

def test_illegal(strict_cloudwatch_environment):
    try:
        boto3.client("logs").create_log_group(logGroupName="a b")
    except Exception:
        pass
"""
    )
    environment = {**os.environ, "PYTHONPATH": SOURCE_ROOT, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    environment |= {"FAPILOG_CLOUDWATCH__ENDPOINT_URL": "http://127.0.0.1:9", "AWS_PROFILE": "a-developers-own"}
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / "config").write_text("[default]\nignore_configured_endpoint_urls = true\n")
    environment["HOME"] = str(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cwsink.testing.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", ".", "test_user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert "2 passed, 1 error" in done.stdout, done.stdout + done.stderr
    assert "clients broke 1 rule(s) of CloudWatch Logs" in done.stdout
    assert "a b" in done.stdout


USERS_TEST = """
import os, subprocess, sys
from pathlib import Path

import pytest

import cwsink

BEFORE = []

def flushers(root):
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            words = Path("/proc", name, "cmdline").read_bytes().split(b"\\0")
        except OSError:
            continue
        if b"cwsink-flusher" in words and any(word.startswith(str(root).encode()) for word in words):
            found.append(int(name))
    return found

def writer(**settings):
    return cwsink.Writer.open(log_group_name="/app", log_stream_name="s", batch_timeout_seconds=0.1, **settings)

@pytest.mark.parametrize("says_where", [False, True])
def test_it_is_delivered(strict_cloudwatch_environment, tmp_path, says_where):
    assert writer(**{"spool_directory": str(tmp_path)} if says_where else {}).append("hello")
    assert cwsink.drain(30)
    assert strict_cloudwatch_environment.messages() == ["hello"]
    assert len(flushers(tmp_path)) == 2  # the guard, too
    BEFORE.append(tmp_path)

def test_these_have_ended():
    assert [flushers(each) for each in BEFORE] == [[], []]

def test_a_child_process_is_reached(strict_cloudwatch_environment, monkeypatch):
    # On a crowded machine a flusher is not there at once.
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS", "30")
    code = "import cwsink; cwsink.Writer.open(log_group_name='/app', log_stream_name='s').append('of a child')"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
    assert strict_cloudwatch_environment.messages() == ["of a child"]

@pytest.mark.parametrize("again", range(3))
def test_who_does_not_wait_holds_nobody_up(strict_cloudwatch_environment, again):
    assert writer().append("not waited for")

def test_nothing_is_held_of_tests_before():
    held = [os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")]
    assert not [path for path in held if path.endswith((".lock", ".seg"))]
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
def test_the_fixture_reaches_the_flusher_and_ends_it_with_the_test(tmp_path: Path) -> None:
    """A test that logs has its records in the server, by `drain` or the end of a child. After it no flusher is left,
    and none is started when pytest ends, whatever was not waited for."""
    (tmp_path / "test_user.py").write_text(USERS_TEST)
    environment = {**os.environ, "PYTHONPATH": SOURCE_ROOT, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "PYTEST_ADDOPTS": ""}
    environment["PYTEST_DEBUG_TEMPROOT"] = str(tmp_path)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "cwsink.testing.pytest_plugin", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--rootdir", ".", "test_user.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert "8 passed" in done.stdout, done.stdout + done.stderr
    assert done.stderr == ""
    assert not list(tmp_path.rglob("flusher-*.lock"))


def test_an_unreachable_server_is_an_error_of_the_client(server: StrictCloudWatch) -> None:
    """After stop, boto3 raises a connection error, not an answer."""
    with StrictCloudWatch() as other:
        client = make_client(other.endpoint_url)
    with contextlib.closing(client), pytest.raises(BotoCoreError):
        put(client, event())
