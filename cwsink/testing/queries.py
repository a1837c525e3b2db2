"""The reading actions: Describe, Get and FilterLogEvents (pure).

`actions` calls it under the store's lock. Pages are made as AWS makes them, and
obey small limits, so that a test can check how a client reads several pages. A
`nextToken` is "<direction>/<offset>" into the sorted result.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator
from operator import itemgetter
from typing import Any, Final, TypeVar

from cwsink.testing import rules, shapes
from cwsink.testing.rules import Violation
from cwsink.testing.store import Group, Stream

# DescribeLogGroups, DescribeLogStreams: "limit" 1 to 50, default 50.
MAX_DESCRIBED: Final = 50

# GetLogEvents, FilterLogEvents: "limit" 1 to 10,000, default "as many as fit in 1 MB".
MAX_READ_EVENTS: Final = 10_000
MAX_READ_BYTES: Final = 1_048_576

STREAM_ORDERS: Final = frozenset(("LogStreamName", "LastEventTime"))

Members = dict[str, Any]
Row = tuple[int, int, str]
T = TypeVar("T")


def check_describe_groups(args: shapes.DescribeLogGroups) -> Iterator[Violation]:
    yield from _check_page(args.limit, MAX_DESCRIBED, args.next_token)
    if args.log_group_class is not None:
        yield from rules.check_group_class(args.log_group_class)
    if args.log_group_name_prefix is not None:
        yield from rules.check_group_name(args.log_group_name_prefix)
        if args.log_group_name_pattern is not None:
            yield _both("logGroupNamePrefix", "logGroupNamePattern")


def check_describe_streams(args: shapes.DescribeLogStreams) -> Iterator[Violation]:
    yield from _check_group(args.log_group_name, args.log_group_identifier)
    yield from _check_page(args.limit, MAX_DESCRIBED, args.next_token)
    if args.order_by is not None:
        yield from rules.check_choice("orderBy", args.order_by, STREAM_ORDERS)
        if args.order_by == "LastEventTime" and args.log_stream_name_prefix is not None:
            yield _both("orderBy LastEventTime", "logStreamNamePrefix")


def check_get_events(args: shapes.GetLogEvents) -> Iterator[Violation]:
    yield from _check_group(args.log_group_name, args.log_group_identifier)
    yield from rules.check_stream_name(args.log_stream_name)
    yield from _check_page(args.limit, MAX_READ_EVENTS, args.next_token)
    yield from _check_window(args.start_time, args.end_time)


def check_filter_events(args: shapes.FilterLogEvents) -> Iterator[Violation]:
    yield from _check_group(args.log_group_name, args.log_group_identifier)
    yield from _check_page(args.limit, MAX_READ_EVENTS, args.next_token)
    yield from _check_window(args.start_time, args.end_time)
    if args.log_stream_names is not None:
        yield from rules.check_range("logStreamNames", len(args.log_stream_names), 1, 100)
        if args.log_stream_name_prefix is not None:
            yield _both("logStreamNames", "logStreamNamePrefix")
    if (args.filter_pattern or "").lstrip().startswith(("{", "[", "%")):
        yield Violation("InvalidParameterException", "the strict server matches plain terms only, no JSON or fields")


def _check_group(name: str | None, identifier: str | None) -> Iterator[Violation]:
    if name is not None:
        yield from rules.check_group_name(name)
    if (name is None) == (identifier is None):
        yield Violation("InvalidParameterException", "Specify either logGroupName or logGroupIdentifier, not both.")


def _check_page(limit: int | None, most: int, token: str | None) -> Iterator[Violation]:
    if limit is not None:
        yield from rules.check_range("limit", limit, 1, most)
    if token is not None and not token[2:].isdecimal():
        yield Violation("InvalidParameterException", "The specified nextToken is invalid.")


def _check_window(start_ms: int | None, end_ms: int | None) -> Iterator[Violation]:
    if min(start_ms or 0, end_ms or 0) < 0:
        yield rules.unsatisfied("startTime", start_ms, "Member must have value greater than or equal to 0")
    if start_ms is not None and end_ms is not None and start_ms > end_ms:
        yield Violation("InvalidParameterException", "startTime must not be after endTime.")


def _both(one: str, other: str) -> Violation:
    return Violation("InvalidParameterException", f"Cannot specify both {one} and {other}.")


def describe_groups(groups: Iterable[Group], args: shapes.DescribeLogGroups, arn: Callable[[str], str]) -> Members:
    """Return the answer to DescribeLogGroups, ordered by name."""
    found = [
        group
        for group in sorted(groups, key=lambda group: group.name)
        if group.name.startswith(args.log_group_name_prefix or "")
        and (args.log_group_name_pattern or "").lower() in group.name.lower()
        and args.log_group_class in (None, group.group_class)
    ]
    page, token = _page(found, args.next_token, args.limit or MAX_DESCRIBED)
    return {"logGroups": [_described_group(group, arn(group.name)) for group in page], **token}


def _described_group(group: Group, arn: str) -> Members:
    stored_bytes = sum(len(row[2].encode()) for stream in group.streams.values() for row in stream.events())
    members: Members = {
        "logGroupName": group.name,
        "creationTime": group.created_ms,
        "metricFilterCount": 0,
        "arn": f"{arn}:*",
        "logGroupArn": arn,
        "storedBytes": stored_bytes,
        "logGroupClass": group.group_class,
    }
    if group.retention_days is not None:
        members["retentionInDays"] = group.retention_days
    if group.kms_key_id is not None:
        members["kmsKeyId"] = group.kms_key_id
    return members


def describe_streams(group: Group, args: shapes.DescribeLogStreams, arn: Callable[[str], str]) -> Members:
    """Return the answer to DescribeLogStreams, ordered by name or by the last event."""
    prefix = args.log_stream_name_prefix or ""
    found = [(stream, stream.events()) for name, stream in sorted(group.streams.items()) if name.startswith(prefix)]
    if args.order_by == "LastEventTime":
        found.sort(key=lambda pair: pair[1][-1][0] if pair[1] else -1)
    if args.descending:
        found.reverse()
    page, token = _page(found, args.next_token, args.limit or MAX_DESCRIBED)
    return {"logStreams": [_described_stream(stream, rows, arn(group.name)) for stream, rows in page], **token}


def _described_stream(stream: Stream, rows: list[Row], group_arn: str) -> Members:
    members: Members = {
        "logStreamName": stream.name,
        "creationTime": stream.created_ms,
        "arn": f"{group_arn}:log-stream:{stream.name}",
        "uploadSequenceToken": stream.token,
        "storedBytes": 0,
    }
    if rows:
        members["firstEventTimestamp"] = rows[0][0]
        members["lastEventTimestamp"] = rows[-1][0]
        members["lastIngestionTime"] = max(row[1] for row in rows)
    return members


def get_events(stream: Stream, args: shapes.GetLogEvents, until_ms: int) -> Members:
    """Return the answer to GetLogEvents. At the end of a direction it has the same token as the call, as in AWS.

    `until_ms`: events that were accepted later are not shown yet.
    """
    rows = stream.events(until_ms)
    # "startTime" is inclusive, "endTime" exclusive.
    start = 0 if args.start_time is None else bisect_left(rows, args.start_time, key=itemgetter(0))
    rows = rows[start : len(rows) if args.end_time is None else bisect_left(rows, args.end_time, key=itemgetter(0))]
    limit = args.limit or MAX_READ_EVENTS
    forward = args.next_token.startswith("f") if args.next_token else bool(args.start_from_head)
    if args.next_token:
        edge = int(args.next_token[2:])
    else:
        edge = 0 if forward else len(rows)
    if forward:
        start = min(edge, len(rows))
        stop = start + _fitting(rows[start:], limit)
    else:
        stop = min(edge, len(rows))
        start = stop - _fitting(rows[:stop][::-1], limit)
    return {
        "events": [{"timestamp": t, "ingestionTime": i, "message": m} for t, i, m in rows[start:stop]],
        "nextForwardToken": f"f/{stop:056d}",
        "nextBackwardToken": f"b/{start:056d}",
    }


def filter_events(group: Group, args: shapes.FilterLogEvents, until_ms: int) -> Members:
    """Return the answer to FilterLogEvents, with the events of all streams ordered by time."""
    terms = _terms(args.filter_pattern or "")
    found = [
        (name, row)
        for name, stream in group.streams.items()
        if (args.log_stream_names is None or name in args.log_stream_names)
        and name.startswith(args.log_stream_name_prefix or "")
        for row in stream.events(until_ms)
        if _is_within(row, args.start_time, args.end_time) and all(term in row[2] for term in terms)
    ]
    found.sort(key=lambda pair: pair[1][0])
    offset = int(args.next_token[2:]) if args.next_token else 0
    limit = _fitting([row for _, row in found[offset:]], args.limit or MAX_READ_EVENTS)
    page, token = _page(list(enumerate(found)), args.next_token, limit)
    events = [
        {"logStreamName": name, "timestamp": t, "ingestionTime": i, "message": m, "eventId": f"{index:056d}"}
        for index, (name, (t, i, m)) in page
    ]
    return {"events": events, "searchedLogStreams": [], **token}


def _terms(pattern: str) -> list[str]:
    # A "quoted text" is one term, and each word outside quotes is one. All terms must occur in a message.
    pieces = pattern.split('"')
    return [word for piece in pieces[::2] for word in piece.split()] + [piece for piece in pieces[1::2] if piece]


def _is_within(row: Row, start_ms: int | None, end_ms: int | None) -> bool:
    # "startTime" is inclusive, "endTime" exclusive.
    return (start_ms is None or row[0] >= start_ms) and (end_ms is None or row[0] < end_ms)


def _fitting(rows: list[Row], limit: int) -> int:
    """Return how many of the first rows one answer may hold: at least 1, if there are any."""
    total_bytes = 0
    for count, row in enumerate(rows[:limit]):
        total_bytes += len(row[2].encode())
        if total_bytes > MAX_READ_BYTES and count:
            return count
    return min(len(rows), limit)


def _page(found: list[T], token: str | None, limit: int) -> tuple[list[T], Members]:
    start = int(token[2:]) if token else 0
    stop = start + limit
    return found[start:stop], {"nextToken": f"n/{stop}"} if stop < len(found) else {}
