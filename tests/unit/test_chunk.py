"""Requests are legal at the very edge of every limit, and the same whoever makes them."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable

import botocore.loaders
import botocore.model
import botocore.serialize
import pytest

from cwsink import limits, naming
from cwsink.flusher import chunk
from cwsink.flusher.chunk import ChunkBuilder, Request
from cwsink.spool.record import NOTICE, Event
from cwsink.spool.segment import SegmentKey

NOON = 1_700_049_600_000 - 1_700_049_600_000 % 86_400_000 + 43_200_000
DAY = limits.MAX_BATCH_SPAN_MS
KEY = SegmentKey(1, 1)


def at(*times: int) -> list[Event]:
    """Events at these times, numbered in the order of arrival."""
    return [Event(time, 7, number, f"m{number}") for number, time in enumerate(times)]


def times(request: Request) -> list[int]:
    return [event.timestamp_ms for event in request.events]


def numbers(requests: Iterable[Request]) -> list[list[int]]:
    return [[event.sequence for event in request.events] for request in requests]


def one_stream(_: int) -> str:
    return "host"


def dated(template: str) -> Callable[[int], str]:
    return lambda timestamp_ms: naming.stream_at(template, timestamp_ms)


def test_the_limits_are_those_aws_documents() -> None:
    """The numbers of the API reference, here once more, so that a slip in either place is seen."""
    assert limits.MAX_BATCH_EVENTS == 10_000
    assert limits.MAX_BATCH_BYTES == 1_048_576
    assert limits.EVENT_OVERHEAD_BYTES == 26
    assert limits.MAX_EVENT_BYTES == 1_048_550
    assert limits.MAX_BATCH_SPAN_MS == 24 * 60 * 60 * 1000


@pytest.mark.parametrize("most", [1, 2, 100, limits.MAX_BATCH_EVENTS])
def test_a_chunk_takes_exactly_its_most_events(most: int) -> None:
    """The last event of `max_events` fits, the next one does not."""
    builder = ChunkBuilder(most)
    for event in at(*range(most - 1)):
        builder.add(KEY, event, 1)
    assert builder.fits(1)
    builder.add(KEY, Event(0, 7, most, "x"), 1)
    assert not builder.fits(1)
    assert not builder.fits(0)
    assert len(builder.take()) == most


def test_a_chunk_takes_10_000_events_unless_told_otherwise() -> None:
    """The default is CloudWatch's own limit."""
    builder = ChunkBuilder()
    builder.count = 9_999
    assert builder.fits(1)
    builder.count = 10_000
    assert not builder.fits(1)


@pytest.mark.parametrize("already", [0, 1, 2, 999])
def test_a_chunk_takes_exactly_its_most_bytes(already: int) -> None:
    """The byte that makes 1,048,576 fits and the next one does not; each event costs 26 more than its text."""
    builder = ChunkBuilder()
    for event in at(*range(already)):
        builder.add(KEY, event, 100)
    room = 1_048_576 - already * (100 + 26)
    assert builder.bytes == already * 126
    assert builder.fits(room - 26)
    assert not builder.fits(room - 25)
    builder.add(KEY, Event(0, 7, already, "x"), room - 26)
    assert builder.bytes == limits.MAX_BATCH_BYTES
    assert not builder.fits(0)


def test_the_longest_event_fits_an_empty_chunk_and_no_longer_one() -> None:
    """1,048,550 bytes are the most one event can have, 26 included."""
    assert ChunkBuilder().fits(limits.MAX_EVENT_BYTES)
    assert not ChunkBuilder().fits(limits.MAX_EVENT_BYTES + 1)


def test_an_empty_message_still_counts_26_bytes() -> None:
    """40,329 empty messages are a full batch by bytes."""
    builder = ChunkBuilder(max_events=1_000_000)
    builder.bytes = 40_329 * 26
    assert not builder.fits(0)
    builder.bytes = 40_328 * 26
    assert builder.fits(0)


def test_a_builder_begins_anew_after_take() -> None:
    """Nothing of the last chunk is left in the next one."""
    builder = ChunkBuilder(1)
    builder.add(KEY, at(1)[0], 1)
    assert builder.take() == at(1)
    assert (builder.count, builder.bytes, builder.take()) == (0, 0, [])
    assert builder.fits(limits.MAX_EVENT_BYTES)


@pytest.mark.parametrize(
    ("message", "size"),
    [("", 0), ("abc", 3), ("\0\n", 2), ("é", 2), ("€", 3), ("😀", 4), ("\U0010ffff", 4), ("aé€😀" * 1000, 10_000)],
    ids=["empty", "ascii", "control", "two", "three", "four", "last", "mixed"],
)
def test_a_message_is_measured_in_utf8_bytes(message: str, size: int) -> None:
    """Characters are not bytes: the limit is counted as CloudWatch counts it."""
    assert chunk.message_bytes(message) == size == len(message.encode())


def test_no_events_make_no_request() -> None:
    """An empty chunk sends nothing."""
    assert chunk.requests([], one_stream) == []


@pytest.mark.parametrize(("span", "requests"), [(DAY - 1, 1), (DAY, 2), (DAY + 1, 2)])
@pytest.mark.parametrize("between", [0, 1, 3])
def test_a_request_spans_less_than_24_hours(span: int, requests: int, between: int) -> None:
    """A millisecond below 24 h is one request; exactly 24 h and more are two, cut before the late event."""
    middle = [NOON + (number + 1) * span // (between + 2) for number in range(between)]
    found = chunk.requests(at(NOON + span, NOON, *middle), one_stream)
    assert len(found) == requests
    for request in found:
        assert times(request)[-1] - times(request)[0] < DAY
    assert times(found[-1])[-1] == NOON + span
    assert [time for request in found for time in times(request)] == sorted([NOON, *middle, NOON + span])
    if requests == 2:
        assert times(found[1]) == [NOON + span]


def test_a_long_outage_is_cut_into_days_oldest_first() -> None:
    """Ten days of hourly events: ten requests, in order, none of 24 h, each event once."""
    events = at(*(NOON + hour * 3_600_000 for hour in range(240)))
    random.Random(3).shuffle(events)
    found = chunk.requests(events, one_stream)
    assert len(found) == 10
    assert [time for request in found for time in times(request)] == [NOON + hour * 3_600_000 for hour in range(240)]
    assert all(times(request)[-1] - times(request)[0] < DAY for request in found)


def test_events_are_sent_in_order_of_time_then_arrival() -> None:
    """Clocks of different workers interleave; equal times keep the order of arrival. Invariant 3."""
    found = chunk.requests(at(5, 3, 5, 3, 4, 3), one_stream)
    assert numbers(found) == [[1, 3, 5, 4, 0, 2]]


def test_each_day_goes_to_its_own_stream() -> None:
    """With {date}, the last millisecond of a day and the first of the next are in two streams."""
    midnight = NOON + 43_200_000
    found = chunk.requests(at(midnight, midnight - 1, midnight + 1, NOON), dated("host/{date}"))
    assert [request.stream for request in found] == ["host/2023-11-15", "host/2023-11-16"]
    assert numbers(found) == [[3, 1], [0, 2]]


def test_several_days_go_to_their_streams_oldest_first() -> None:
    """A replay of a week with {date} is one request a day, each to the day it was logged on."""
    found = chunk.requests(at(*(NOON + day * DAY for day in (4, 2, 0, 3, 1))), dated("{date:%d}"))
    assert [request.stream for request in found] == ["15", "16", "17", "18", "19"]
    assert numbers(found) == [[2], [4], [1], [3], [0]]


@pytest.mark.parametrize(
    ("template", "spread"),
    [
        pytest.param("{date:%H}", (0, 5 * 3_600_000, 23 * 3_600_000 + 3_599_999), id="hour"),
        pytest.param("{date:%p}", (3_600_000, 13 * 3_600_000, DAY + 3_599_999), id="half a day"),
        pytest.param("{date:%M}", (0, 60_000, 3_600_000), id="minute"),
        pytest.param("{date:%S}", (0, 1_000, 60_000), id="second"),
    ],
)
def test_a_stream_name_that_comes_back_does_not_swallow_what_lies_between(
    template: str, spread: tuple[int, ...]
) -> None:
    """The first and the last event may be of one stream while those between them are not."""
    stream_of = dated(template)
    found = chunk.requests(at(*(NOON + each for each in spread)), stream_of)
    assert sum(len(request.events) for request in found) == len(spread)
    for request in found:
        assert {stream_of(time) for time in times(request)} == {request.stream}
    assert len(found) == 3


def test_segments_that_arrive_interleaved_make_the_same_chunk() -> None:
    """However the reads of several segments interleave, the events, and so the requests, are the same."""
    rng = random.Random(5)
    segments = {
        SegmentKey(number, 9 - number): at(*(NOON + rng.randrange(2 * DAY) for _ in range(20))) for number in range(4)
    }
    made = []
    for _ in range(20):
        builder = ChunkBuilder()
        queues = {key: list(events) for key, events in segments.items()}
        while any(queues.values()):
            key = rng.choice([key for key, queue in queues.items() if queue])
            event = queues[key].pop(0)
            builder.add(key, event, chunk.message_bytes(event.message))
        made.append(chunk.requests(builder.take(), dated("{date}")))
    assert all(requests == made[0] for requests in made)


def test_take_gives_segments_in_order_of_their_numbers() -> None:
    """A late append to an old segment comes before what newer segments hold."""
    builder = ChunkBuilder()
    builder.add(SegmentKey(10, 1), Event(1, 7, 0, "new"), 3)
    builder.add(SegmentKey(9, 2), Event(1, 8, 0, "old"), 3)
    builder.add(SegmentKey(10, 1), Event(1, 7, 1, "new"), 3)
    assert [event.message for event in builder.take()] == ["old", "new", "new"]


def sent_by_boto3(group: str, stream: str, events: list[Event], token: str | None) -> object:
    """The body botocore itself would send for this call."""
    model = botocore.model.ServiceModel(botocore.loaders.Loader().load_service_model("logs", "service-2"), "logs")
    serializer = botocore.serialize.create_serializer("json", include_validation=True)
    parameters: dict[str, object] = {
        "logGroupName": group,
        "logStreamName": stream,
        "logEvents": [{"timestamp": event.timestamp_ms, "message": event.message} for event in events],
    }
    if token is not None:
        parameters["sequenceToken"] = token
    return json.loads(serializer.serialize_to_request(parameters, model.operation_model("PutLogEvents"))["body"])


@pytest.mark.parametrize("token", [None, "4961"])
def test_the_body_is_what_boto3_would_send(token: str | None) -> None:
    """Field for field the JSON of botocore's own serializer, whatever is in the messages."""
    messages = ["plain", 'quote " \\ slash /', "NUL \0 tab \t line \n\r sep \u2028 del \x7f", "é € 😀 \U0010ffff", "{}"]
    events = [Event(NOON + number, 7, number, message) for number, message in enumerate(messages)]
    events.append(Event(0, 7, NOTICE, "cwsink: 3 records dropped"))
    body = chunk.body("/app/prod", "host/2023", events, token)
    assert json.loads(body) == sent_by_boto3("/app/prod", "host/2023", events, token)


def test_a_body_names_no_token_where_none_is_known() -> None:
    """Sequence tokens are ignored since 2023: the field is left out, not null."""
    assert b"sequenceToken" not in chunk.body("g", "s", at(1))
