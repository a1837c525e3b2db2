"""Records: small, exact, and readable by the version before and after."""

from __future__ import annotations

import re

import msgspec
import pytest

from cwsink.spool import record
from cwsink.spool.record import Event, Loss

EXAMPLE = Event(1_700_000_000_000, 7, 2, "hi")


def test_the_worked_example_is_what_encode_writes() -> None:
    """The record drawn in the module's docstring is byte for byte what an implementer gets."""
    block = re.search(r"Worked example.*?```text\n(.*?)```", record.__doc__ or "", re.DOTALL)
    assert block is not None
    drawn = "".join(re.split(r"\s{2,}", line)[0] for line in block[1].splitlines())
    assert record.encode(EXAMPLE) == bytes.fromhex(drawn)


@pytest.mark.parametrize(
    "event",
    [
        EXAMPLE,
        Event(0, 0, 0, "x"),
        Event(1 << 53, (1 << 64) - 1, (1 << 64) - 1, "x"),
        Event(0, 1, record.NOTICE, "x"),
        Event(1, 1, 1, "NUL \0, newline \n, é € 😀, \U0010ffff"),
        Event(1, 1, 1, "x" * 1_048_550),
    ],
    ids=lambda event: event.message[:10],
)
def test_an_event_comes_back_unaltered(event: Event) -> None:
    """Time, producer, sequence and every character survive the round trip."""
    assert record.decode_event(record.encode(event)) == event


@pytest.mark.parametrize("time_ms", [-1, (1 << 53) + 1, (1 << 64) - 1])
def test_a_time_that_cloudwatch_cannot_be_told_is_not_read(time_ms: int) -> None:
    """No writer gives it; one request with it would be refused as a whole."""
    assert record.event_of(record.encode((time_ms, 1, 1, "x"))) is None


def test_an_event_without_a_character_is_not_read() -> None:
    """As above: no writer makes one, and one request with it would be refused as a whole."""
    assert record.event_of(record.encode((1, 1, 1, ""))) is None


@pytest.mark.parametrize("count", [-1, (1 << 40) + 1, (1 << 64) - 1])
def test_a_loss_out_of_this_world_is_not_believed(count: int) -> None:
    """Two of them would make the totals overflow, and no leader could commit any more."""
    assert record.loss_of(record.encode((count, 0, 1, "spool_full", 1))) is None


def test_a_loss_with_a_long_reason_is_not_believed() -> None:
    """A cursor keeps each reason for as long as the spool lives, and no leader could commit one of 64 KiB."""
    longest = Loss(1, 0, 1, "x" * 64, 1)
    assert record.loss_of(record.encode(longest)) == longest
    assert record.loss_of(record.encode((1, 0, 1, "x" * 65, 1))) is None


def test_a_tuple_is_encoded_like_the_event_it_stands_for() -> None:
    """The append path saves building an Event: the bytes are the same."""
    assert record.encode((EXAMPLE.timestamp_ms, 7, 2, "hi")) == record.encode(EXAMPLE)


def test_a_loss_comes_back_unaltered() -> None:
    """A loss marker keeps count, times, reason and producer."""
    loss = Loss(1_234, 1, 2, "spool_full", (1 << 64) - 1)
    assert record.decode_loss(record.encode(loss)) == loss


def test_the_id_is_stable_and_tells_events_apart() -> None:
    """The id is a function of producer and sequence alone, the same in every send."""
    assert EXAMPLE.id == "0000000000000007-2"
    assert Event(5, 7, 2, "other text").id == EXAMPLE.id
    assert Event(1, 0x72, 1, "").id != Event(1, 7, 21, "").id


def test_a_notice_is_no_sequence_of_a_writer() -> None:
    """Writers count from 0, so what marks a notice can never be one of their numbers."""
    assert record.NOTICE < 0


def test_fields_that_a_newer_version_adds_are_ignored() -> None:
    """A record with more fields is read as far as this version knows it."""
    newer = msgspec.msgpack.encode([1_700_000_000_000, 7, 2, "hi", {"trace": "1-2-3"}, 9])
    assert record.decode_event(newer) == EXAMPLE


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x94",
        b"\x93\x01\x02\x03",
        b"\x94\x01\x02\x03\x04",
        b"\x94\x00\x07\x02\xa1\xff",
        b"\x81\xa1a\x01",
        record.encode(EXAMPLE)[:-1],
        record.encode(EXAMPLE) + b"\0",
    ],
    ids=bytes.hex,
)
def test_what_is_no_event_is_told_without_an_exception(payload: bytes) -> None:
    """Bytes that are no event, not even UTF-8, give None and the time 0."""
    assert record.event_of(payload) is None
    assert record.timestamp_of(payload) == 0


@pytest.mark.parametrize("payload", [b"", b"\x95\x01\x01\x01\xa1\xff\x01", record.encode(EXAMPLE)], ids=bytes.hex)
def test_what_is_no_loss_is_told_without_an_exception(payload: bytes) -> None:
    """Bytes that are no loss marker, not even UTF-8, give None."""
    assert record.loss_of(payload) is None


def test_what_is_readable_is_read() -> None:
    """An event's time is read from its payload alone."""
    assert record.event_of(record.encode(EXAMPLE)) == EXAMPLE
    assert record.timestamp_of(record.encode(EXAMPLE)) == EXAMPLE.timestamp_ms
    loss = Loss(1, 2, 3, "io_error", 4)
    assert record.loss_of(record.encode(loss)) == loss


@pytest.mark.parametrize(
    ("event", "error"),
    [(Event(1, 1, 1, "\ud800"), UnicodeEncodeError), (Event(1 << 64, 1, 1, "x"), OverflowError)],
    ids=["lone surrogate", "beyond 64 bits"],
)
def test_what_cannot_be_encoded_says_so(event: Event, error: type[Exception]) -> None:
    """The errors the writer turns into counted refusals are these, not silent changes."""
    with pytest.raises(error):
        record.encode(event)


def test_the_longest_payload_holds_the_longest_event() -> None:
    """An event far beyond CloudWatch's limit still fits a frame, so that it is kept whole for the dead letters."""
    assert len(record.encode(Event(1 << 62, (1 << 64) - 1, 1 << 62, "x" * 8_000_000))) < record.MAX_PAYLOAD_BYTES
