"""The rules of CloudWatch Logs, action by action (pure).

Called by `actions`. Each check takes one decoded input, and yields every rule that
the input breaks, in the order in which the service would check them. The first is
answered, and all are recorded. The limits of PutLogEvents are those of
`cwsink.limits`. The limits of the other actions stand here.

Source: CloudWatch Logs API reference and botocore's service model "logs-2014-03-28".
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final, NamedTuple

from cwsink.limits import (
    EVENT_OVERHEAD_BYTES,
    LOG_GROUP_NAME,
    LOG_STREAM_NAME,
    MAX_BATCH_BYTES,
    MAX_BATCH_EVENTS,
    MAX_BATCH_SPAN_MS,
    MAX_FUTURE_MS,
    MAX_PAST_MS,
    MAX_TAG_KEY_CHARACTERS,
    MAX_TAG_VALUE_CHARACTERS,
    MAX_TAGS,
    RESERVED_GROUP_PREFIX,
    RESERVED_TAG_PREFIX,
    RETENTION_DAYS,
    TAG_CHARACTERS,
    is_tag_text,
)

# CreateLogGroup, "logGroupClass": "Valid Values".
GROUP_CLASSES: Final = frozenset(("STANDARD", "INFREQUENT_ACCESS", "ESSENTIALS", "DELIVERY"))

# CreateLogGroup, "kmsKeyId": at most 256 characters.
MAX_KMS_KEY_CHARACTERS: Final = 256

# A timestamp is a "long": 64 bits.
MAX_LONG: Final = 2**63 - 1

DAY_MS: Final = 86_400_000

# Error code -> HTTP status. All client errors of the JSON 1.1 protocol are 400, throttling too.
ERRORS: Final[Mapping[str, int]] = {
    "AccessDeniedException": 400,
    "DataAlreadyAcceptedException": 400,
    "ExpiredTokenException": 400,
    "IncompleteSignatureException": 400,
    "InternalFailure": 500,
    "InvalidParameterException": 400,
    "InvalidSequenceTokenException": 400,
    "InvalidSignatureException": 400,
    "LimitExceededException": 400,
    "MissingAuthenticationTokenException": 400,
    "OperationAbortedException": 400,
    "ResourceAlreadyExistsException": 400,
    "ResourceNotFoundException": 400,
    "SerializationException": 400,
    "ServiceUnavailableException": 500,
    "ThrottlingException": 400,
    "TooManyTagsException": 400,
    "UnknownOperationException": 400,
    "UnrecognizedClientException": 400,
}


class Violation(NamedTuple):
    """A rule that the client broke, as the error code and the message of the answer."""

    code: str
    message: str


class Rejection(NamedTuple):
    """PutLogEvents' `rejectedLogEventsInfo`. A field is None if the call has no such event.

    `too_old_end` and `expired_end` are exclusive, `too_new_start` is inclusive.
    """

    too_old_end: int | None
    too_new_start: int | None
    expired_end: int | None

    def accepted(self, events: int) -> slice:
        """Return the slice of a batch of so many events that is accepted."""
        start = max(self.too_old_end or 0, self.expired_end or 0)
        stop = events if self.too_new_start is None else self.too_new_start
        return slice(start, max(start, stop))

    def answer(self) -> dict[str, int]:
        """Return the members that AWS would send. Empty if no event was rejected."""
        members = {
            "tooOldLogEventEndIndex": self.too_old_end,
            "tooNewLogEventStartIndex": self.too_new_start,
            "expiredLogEventEndIndex": self.expired_end,
        }
        return {name: index for name, index in members.items() if index is not None}


def unsatisfied(where: str, value: object, constraint: str) -> Violation:
    """Return a violation in the service's own words, for a value outside of its declared range."""
    shown = str(value)[:80]
    return Violation(
        "InvalidParameterException",
        f"1 validation error detected: Value '{shown}' at '{where}' failed to satisfy constraint: {constraint}",
    )


def check_pattern(where: str, value: str, pattern: re.Pattern[str]) -> Iterator[Violation]:
    if pattern.fullmatch(value) is None:
        yield unsatisfied(where, value, f"Member must satisfy regular expression pattern: {pattern.pattern}")


def check_group_name(name: str) -> Iterator[Violation]:
    yield from check_pattern("logGroupName", name, LOG_GROUP_NAME)


def check_new_group_name(name: str) -> Iterator[Violation]:
    yield from check_group_name(name)
    if name.startswith(RESERVED_GROUP_PREFIX):
        yield unsatisfied("logGroupName", name, f"Names starting with {RESERVED_GROUP_PREFIX} are reserved for AWS")


def check_stream_name(name: str) -> Iterator[Violation]:
    yield from check_pattern("logStreamName", name, LOG_STREAM_NAME)


def check_tags(tags: Mapping[str, str]) -> Iterator[Violation]:
    if not 1 <= len(tags) <= MAX_TAGS:
        yield unsatisfied("tags", f"{len(tags)} tags", f"Member must have length between 1 and {MAX_TAGS}")
    for key, value in tags.items():
        if not 1 <= len(key) <= MAX_TAG_KEY_CHARACTERS or not is_tag_text(key):
            yield unsatisfied("tags.key", key, f"1 to {MAX_TAG_KEY_CHARACTERS} {TAG_CHARACTERS}")
        if key.lower().startswith(RESERVED_TAG_PREFIX):
            yield unsatisfied("tags.key", key, f"Keys starting with {RESERVED_TAG_PREFIX} are reserved")
        if len(value) > MAX_TAG_VALUE_CHARACTERS or not is_tag_text(value):
            yield unsatisfied("tags.value", value, f"0 to {MAX_TAG_VALUE_CHARACTERS} {TAG_CHARACTERS}")


def check_group_class(name: str) -> Iterator[Violation]:
    yield from check_choice("logGroupClass", name, GROUP_CLASSES)


def check_kms_key(key: str) -> Iterator[Violation]:
    if len(key) > MAX_KMS_KEY_CHARACTERS:
        yield unsatisfied("kmsKeyId", key, f"Member must have length less than or equal to {MAX_KMS_KEY_CHARACTERS}")


def check_retention(days: int) -> Iterator[Violation]:
    if days not in RETENTION_DAYS:
        yield unsatisfied("retentionInDays", days, f"Member must satisfy enum value set: {sorted(RETENTION_DAYS)}")


def check_choice(where: str, value: str, choices: Collection[str]) -> Iterator[Violation]:
    if value not in choices:
        yield unsatisfied(where, value, f"Member must satisfy enum value set: {sorted(choices)}")


def check_range(where: str, value: int, low: int, high: int) -> Iterator[Violation]:
    if not low <= value <= high:
        yield unsatisfied(where, value, f"Member must have value between {low} and {high}")


def counted_bytes(messages: Sequence[str]) -> int:
    """Return the bytes of a batch as PutLogEvents counts them: UTF-8, plus 26 for each event."""
    # One join is faster than 10,000 encodes. `isascii` reads a flag of the string, and does not scan it.
    joined = "".join(messages)
    utf8_bytes = len(joined) if joined.isascii() else len(joined.encode())
    return utf8_bytes + EVENT_OVERHEAD_BYTES * len(messages)


def check_events(
    timestamps: Sequence[int], messages: Sequence[str], *, batch_bytes: int, now_ms: int, max_event_bytes: int
) -> Iterator[Violation]:
    """Judge one batch. It is fast: unless a rule is broken, no Python code runs for each event.

    Args:
        timestamps: in milliseconds, one for each message.
        messages: the texts of the events.
        batch_bytes: `counted_bytes(messages)`.
        now_ms: the server's clock.
        max_event_bytes: the longest message that is allowed, without the 26 bytes.
    """
    count = len(timestamps)
    if count == 0:
        yield unsatisfied("logEvents", "[]", "Member must have length greater than or equal to 1")
        return
    if count > MAX_BATCH_EVENTS:
        at_most = f"Member must have length less than or equal to {MAX_BATCH_EVENTS}"
        yield unsatisfied("logEvents", f"{count} events", at_most)
    if "" in messages:
        at = f"logEvents.{messages.index('') + 1}.member.message"
        yield unsatisfied(at, "", "Member must have length greater than or equal to 1")
    lowest, highest = min(timestamps), max(timestamps)
    if lowest < 0:
        at = f"logEvents.{timestamps.index(lowest) + 1}.member.timestamp"
        yield unsatisfied(at, lowest, "Member must have value greater than or equal to 0")
    if highest > MAX_LONG:
        yield Violation("SerializationException", f"{highest} can not be converted to a Long")
    yield from _check_event_size(messages, max_event_bytes)
    if batch_bytes > MAX_BATCH_BYTES:
        yield Violation(
            "InvalidParameterException", f"Upload too large: {batch_bytes} bytes exceeds limit of {MAX_BATCH_BYTES}"
        )
    if not all(map(operator.le, timestamps, islice(timestamps, 1, None))):
        yield Violation(
            "InvalidParameterException", "Log events in a single PutLogEvents request must be in chronological order."
        )
    elif _valid_span_ms(timestamps, now_ms) >= MAX_BATCH_SPAN_MS:
        yield Violation(
            "InvalidParameterException",
            "The batch of log events in a single PutLogEvents request cannot span more than 24 hours.",
        )


def _check_event_size(messages: Sequence[str], max_event_bytes: int) -> Iterator[Violation]:
    # A character has at most 4 bytes. In most batches the longest message is short enough by that alone.
    if len(max(messages, key=len)) * 4 <= max_event_bytes:
        return
    largest = max(len(message.encode()) for message in messages)
    if largest > max_event_bytes:
        size, limit = largest + EVENT_OVERHEAD_BYTES, max_event_bytes + EVENT_OVERHEAD_BYTES
        yield Violation("InvalidParameterException", f"Log event too large: {size} bytes exceeds limit of {limit}")


def _valid_span_ms(timestamps: Sequence[int], now_ms: int) -> int:
    # "For valid events (within 14 days in the past to 2 hours in future), the time span in a
    # single batch cannot exceed 24 hours." So an event that is rejected for its time does not count.
    valid = timestamps[rejected(timestamps, now_ms=now_ms, retention_days=None).accepted(len(timestamps))]
    return valid[-1] - valid[0] if valid else 0


def rejected(timestamps: Sequence[int], *, now_ms: int, retention_days: int | None) -> Rejection:
    """Return which events of a chronological batch are rejected as too old, too new or expired.

    The documentation says "older than" and "more than". So an event of exactly 14 days, exactly
    the retention, or exactly 2 hours is still accepted.
    """
    too_old_end = bisect_left(timestamps, now_ms - MAX_PAST_MS)
    too_new_start = bisect_right(timestamps, now_ms + MAX_FUTURE_MS)
    expired_end = 0 if retention_days is None else bisect_left(timestamps, now_ms - retention_days * DAY_MS)
    return Rejection(
        too_old_end or None, too_new_start if too_new_start < len(timestamps) else None, expired_end or None
    )


GROUP_ARN: Final = re.compile(r"arn:[\w-]+:logs:[\w-]+:\d{12}:log-group:(?P<group>[.\-_/#A-Za-z0-9]{1,512})")


def check_group_arn(arn: str) -> Iterator[Violation]:
    # TagResource takes a log group's ARN without the ":*" at its end, which DescribeLogGroups shows.
    if GROUP_ARN.fullmatch(arn) is None:
        yield Violation("InvalidParameterException", f"{arn[:200]!r} is not the ARN of a log group (without ':*')")
