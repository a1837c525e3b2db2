"""The input shapes of the actions, and the decoding of a body (pure).

Called by `actions`. The real service ignores unknown members. In a test that would
only hide a misspelt parameter, so they are refused here.

Source: botocore's service model "logs-2014-03-28".
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from cwsink.testing.rules import Violation


class Shape(msgspec.Struct, forbid_unknown_fields=True, rename="camel"):
    """An action's input. A member that is null counts as left out, as in AWS."""


class CreateLogGroup(Shape):
    log_group_name: str
    kms_key_id: str | None = None
    tags: dict[str, str] | None = None
    log_group_class: str | None = None
    deletion_protection_enabled: bool | None = None


class CreateLogStream(Shape):
    log_group_name: str
    log_stream_name: str


class PutRetentionPolicy(Shape):
    log_group_name: str
    retention_in_days: int


class TagResource(Shape):
    resource_arn: str
    tags: dict[str, str]


# gc=False, because 10,000 of these must not make the garbage collector run. They cannot be part of a cycle.
class LogEvent(Shape, gc=False):
    timestamp: int
    message: str


class Entity(Shape):
    key_attributes: dict[str, str] | None = None
    attributes: dict[str, str] | None = None


class PutLogEvents(Shape):
    log_group_name: str
    log_stream_name: str
    log_events: list[LogEvent]
    sequence_token: str | None = None
    entity: Entity | None = None


class DescribeLogGroups(Shape):
    account_identifiers: list[str] | None = None
    log_group_name_prefix: str | None = None
    log_group_name_pattern: str | None = None
    next_token: str | None = None
    limit: int | None = None
    include_linked_accounts: bool | None = None
    log_group_class: str | None = None
    log_group_identifiers: list[str] | None = None


class DescribeLogStreams(Shape):
    log_group_name: str | None = None
    log_group_identifier: str | None = None
    log_stream_name_prefix: str | None = None
    order_by: str | None = None
    descending: bool | None = None
    next_token: str | None = None
    limit: int | None = None


class GetLogEvents(Shape):
    log_stream_name: str
    log_group_name: str | None = None
    log_group_identifier: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    next_token: str | None = None
    limit: int | None = None
    start_from_head: bool | None = None
    unmask: bool | None = None


class FilterLogEvents(Shape):
    log_group_name: str | None = None
    log_group_identifier: str | None = None
    log_stream_names: list[str] | None = None
    log_stream_name_prefix: str | None = None
    start_time: int | None = None
    end_time: int | None = None
    filter_pattern: str | None = None
    next_token: str | None = None
    limit: int | None = None
    start_from_head: bool | None = None
    interleaved: bool | None = None
    unmask: bool | None = None


S = TypeVar("S", bound=Shape)

# For a message of msgspec with one of these, AWS says InvalidParameter; for any other, that it cannot read the body.
_INVALID_PARAMETER = ("missing required field", "contains unknown field", "got `null`")


def decode(shape: type[S], body: bytes | bytearray) -> S | Violation:
    """Decode a request body as `shape`, or return what is wrong with it."""
    try:
        return msgspec.json.decode(body, type=shape)
    except msgspec.DecodeError as error:
        text = str(error)
    if any(words in text for words in _INVALID_PARAMETER):
        return Violation("InvalidParameterException", f"1 validation error detected: {text}")
    return Violation("SerializationException", f"the body is not a {shape.__name__}: {text}")
