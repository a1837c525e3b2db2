"""Requests under Hypothesis: every request is legal, every event is in one, and anyone makes the same."""

from __future__ import annotations

import itertools
import json
import random

from hypothesis import given, settings
from hypothesis import strategies as st

from cwsink import limits, naming
from cwsink.flusher import chunk
from cwsink.flusher.chunk import ChunkBuilder, Request
from cwsink.spool import frame, record
from cwsink.spool.frame import Frame
from cwsink.spool.record import Event
from cwsink.spool.segment import SegmentKey

NOW = 1_700_000_000_000
DAY = limits.MAX_BATCH_SPAN_MS

TIMES = st.one_of(
    st.integers(NOW - 3 * DAY, NOW + DAY),
    st.sampled_from([NOW, NOW + 1, NOW + DAY - 1, NOW + DAY, NOW + DAY + 1]),
    st.sampled_from([0, 2**53 - 1, 2**64 - 1]),
)
MESSAGES = st.one_of(
    st.text(min_size=1, max_size=20),
    st.integers(1, 1_048_550).map(lambda size: "x" * size),
    st.sampled_from(["é" * 524_275, "😀" * 262_137, "x" * 1_048_550]),
)
TEMPLATES = st.sampled_from(["host", "{date}", "host/{date:%Y/%m}", "{date:%H}", "{date:%S}", "{date:%H:%M}"])
EXAMPLES = 200
KEY = SegmentKey(1, 1)
# Frames that are no plain event: what each says is why.
ODD = {
    "a loss marker": (frame.LOSS, frame.VERSION),
    "of another version": (frame.EVENT, 2),
    "not to be decoded": (1, 1),
}


def events_of(pairs: list[tuple[int, str]]) -> list[Event]:
    return [Event(time, 7, number, message) for number, (time, message) in enumerate(pairs)]


def frame_of(number: int, message: str) -> Frame:
    """The frame of an event, or of what `ODD` says."""
    kind, version = ODD.get(message, (frame.EVENT, frame.VERSION))
    content = record.encode(Event(NOW, 7, number, message))
    return Frame(0, kind | version << 8, content[:-1] if message == "not to be decoded" else content)


def check_request(request: Request, template: str) -> None:
    """What the API reference asks of a request, but for its size."""
    times = [event.timestamp_ms for event in request.events]
    assert request.events
    assert times == sorted(times)
    assert times[-1] - times[0] < limits.MAX_BATCH_SPAN_MS
    assert {naming.stream_at(template, time) for time in times} == {request.stream}
    assert limits.LOG_STREAM_NAME.fullmatch(request.stream)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(TIMES, st.text(min_size=1, max_size=5)), max_size=40), TEMPLATES)
def test_every_request_is_legal_and_every_event_in_one(pairs: list[tuple[int, str]], template: str) -> None:
    """Any times, any template: chronological, under 24 h, one stream; each event once, stable within its time."""
    events = events_of(pairs)
    found = chunk.requests(events, lambda time: naming.stream_at(template, time))
    for request in found:
        check_request(request, template)
    sent = [event for request in found for event in request.events]
    assert sent == sorted(events, key=lambda event: (event.timestamp_ms, event.sequence))
    # No more requests than needed: neighbours differ in stream, or would span a day together.
    for one, next_one in itertools.pairwise(found):
        gap = next_one.events[0].timestamp_ms - one.events[0].timestamp_ms
        assert one.stream != next_one.stream or gap >= limits.MAX_BATCH_SPAN_MS


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(TIMES, MESSAGES), max_size=30), st.integers(1, 10))
def test_every_chunk_obeys_count_and_bytes(pairs: list[tuple[int, str]], most: int) -> None:
    """Fed by the rule "if it does not fit, take first": no chunk is too large, none is cut without need."""
    builder, chunks = ChunkBuilder(most), []
    events = events_of(pairs)
    for event in events:
        size = chunk.message_bytes(event.message)
        if not builder.fits(size):
            full = builder.take()
            counted = sum(len(each.message.encode()) + 26 for each in full)
            assert len(full) == most or counted + size + 26 > limits.MAX_BATCH_BYTES
            chunks.append(full)
            assert builder.fits(size)
        builder.add(SegmentKey(1, 1), event, size)
    chunks.append(builder.take())
    for taken in chunks:
        assert len(taken) <= most
        assert sum(len(each.message.encode()) + 26 for each in taken) <= limits.MAX_BATCH_BYTES
    assert [event for taken in chunks for event in taken] == events


@settings(max_examples=EXAMPLES, deadline=None)
@given(
    st.lists(st.one_of(MESSAGES, st.sampled_from(sorted(ODD))), max_size=12),
    st.integers(1, 10),
    st.sampled_from([0, 5, 1_000, limits.MAX_EVENT_BYTES]),
    st.integers(0, 12),
)
def test_the_quick_way_into_a_chunk_ends_where_the_slow_one_would(
    messages: list[str], most: int, longest: int, start: int
) -> None:
    """Many frames at once: as many are added as fit one by one, up to the first that is not a plain, short event."""
    frames = [frame_of(number, message) for number, message in enumerate(messages)]
    quick, slow = ChunkBuilder(most), ChunkBuilder(most)
    expected = 0
    for number, message in list(enumerate(messages))[start:]:
        size = chunk.message_bytes(message)
        if message in ODD or size > longest or not slow.fits(size):
            break
        slow.add(KEY, Event(NOW, 7, number, message), size)
        expected += 1
    assert quick.add_while_it_fits(KEY, frames, start, longest) == expected
    assert (quick.count, quick.bytes) == (slow.count, slow.bytes)
    assert quick.take() == slow.take()


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.lists(TIMES, max_size=10), max_size=5), st.randoms(use_true_random=False), TEMPLATES)
def test_requests_do_not_depend_on_how_segments_were_read(
    segments: list[list[int]], rng: random.Random, template: str
) -> None:
    """Two leaders that read the same segments in a different interleaving send the same requests."""
    made = []
    for _ in range(2):
        builder = ChunkBuilder()
        queues = [
            [(SegmentKey(index, 1), Event(time, index, number, "x")) for number, time in enumerate(times)]
            for index, times in enumerate(segments)
        ]
        while waiting := [queue for queue in queues if queue]:
            key, event = rng.choice(waiting).pop(0)
            builder.add(key, event, 1)
        made.append(chunk.requests(builder.take(), lambda time: naming.stream_at(template, time)))
    assert made[0] == made[1]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(TIMES, st.text(max_size=30)), max_size=10))
def test_the_body_is_the_json_of_its_events(pairs: list[tuple[int, str]]) -> None:
    """Any text survives: what a JSON parser reads is what was spooled."""
    events = events_of(pairs)
    assert json.loads(chunk.body("/group", "stream", events)) == {
        "logGroupName": "/group",
        "logStreamName": "stream",
        "logEvents": [{"timestamp": event.timestamp_ms, "message": event.message} for event in events],
    }


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.text())
def test_a_message_is_measured_as_it_is_sent(message: str) -> None:
    """The counted bytes are those of the UTF-8 text."""
    assert chunk.message_bytes(message) == len(message.encode())
