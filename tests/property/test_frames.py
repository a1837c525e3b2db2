"""Frames under Hypothesis: whatever is written, damaged or invented, nothing false is read. Invariants 2, 7."""

from __future__ import annotations

from zlib import crc32

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cwsink.spool import frame
from cwsink.spool.frame import DamageKind, Scan

# Not 1, under which some of the pieces below are frames: no writer can quote one of its own segment.
SALTS = st.integers(2, 2**32 - 1)
# Bytes that are likelier than chance to look like a frame, or a part of one.
PIECES = st.one_of(
    st.binary(max_size=60),
    st.just(frame.MAGIC),
    st.just(bytes(30)),
    st.binary(max_size=8).map(lambda data: frame.encode(data, 1)),
    st.binary(max_size=8).map(lambda data: frame.encode(data, 1)[:21]),
)
PAYLOADS = st.lists(PIECES, max_size=12)
# A cut write whose missing end is how the next frame begins would be taken for whole. Records end in UTF-8 text,
# which has no F5.
RECORDS = st.binary(max_size=80).map(lambda data: data.replace(frame.MAGIC[:1], b""))
EXAMPLES = 300


def image_of(payloads: list[bytes], salt: int) -> bytes:
    return b"".join(frame.encode(payload, salt) for payload in payloads)


def check_tiling(found: Scan, data: bytes, base: int) -> None:
    """Frames and damage cover what was consumed once, and frames hold the bytes at their place."""
    ranges = [(damage.start, damage.end) for damage in found.damage]
    for each in found.frames:
        start = each.end - frame.HEADER_BYTES - len(each.payload)
        assert data[start - base : each.end - base][frame.HEADER_BYTES :] == each.payload
        ranges.append((start, each.end))
    reached = base
    for start, end in sorted(ranges):
        assert start == reached < end
        reached = end
    assert reached == base + found.consumed


@settings(max_examples=EXAMPLES, deadline=None)
@given(PAYLOADS, SALTS, st.integers(0, 2**40))
def test_what_was_written_comes_back(payloads: list[bytes], salt: int, base: int) -> None:
    """Any payloads under any salt: all of them, in order, and nothing else."""
    data = image_of(payloads, salt)
    found = frame.scan(data, salt, base=base, at_end=True, final=True)
    assert [each.payload for each in found.frames] == payloads
    assert (found.damage, found.consumed) == ([], len(data))
    check_tiling(found, data, base)


def check_any_bytes(data: bytes, salt: int, at_end: bool, final: bool) -> None:
    found = frame.scan(data, salt, base=7, at_end=at_end, final=final)
    check_tiling(found, data, 7)
    if at_end and final:
        assert found.consumed == len(data)
    if found.consumed == len(data) or at_end:
        assert found.wanted == 0
    else:
        assert found.wanted > len(data) - found.consumed
    for each in found.frames:
        header = data[each.end - 7 - len(each.payload) - frame.HEADER_BYTES :][: frame.HEADER_BYTES]
        assert header[:4] == frame.MAGIC
        assert crc32(header[8:], salt) == int.from_bytes(header[4:8], "little")
        assert crc32(each.payload, salt) == int.from_bytes(header[12:16], "little")


ANY_BYTES = st.lists(PIECES, max_size=12).map(b"".join)


@settings(max_examples=EXAMPLES, deadline=None)
@given(ANY_BYTES, st.sampled_from([0, 1, 2**32 - 1]), st.booleans(), st.booleans())
def test_any_bytes_are_taken_apart_without_an_exception(data: bytes, salt: int, at_end: bool, final: bool) -> None:
    """Whatever lies in a segment: settled without gaps, or asked for more; a frame has both its checksums."""
    check_any_bytes(data, salt, at_end, final)


@pytest.mark.long
@pytest.mark.timeout(3_600)
@settings(max_examples=50_000, deadline=None)
@given(ANY_BYTES, st.sampled_from([0, 1, 2**32 - 1]), st.booleans(), st.booleans())
def test_any_bytes_are_taken_apart_many_times(data: bytes, salt: int, at_end: bool, final: bool) -> None:
    """The same, 50,000 times."""
    check_any_bytes(data, salt, at_end, final)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=12), SALTS, st.data())
def test_damage_anywhere_alters_no_record(payloads: list[bytes], salt: int, data: st.DataObject) -> None:
    """Overwrite any range with any bytes: the records that it did not touch come back, and none is invented."""
    image = image_of(payloads, salt)
    start = data.draw(st.integers(0, len(image) - 1), "start")
    filling = data.draw(st.binary(min_size=1, max_size=len(image) - start), "filling")
    end = start + len(filling)
    damaged = image[:start] + filling + image[end:]
    expected, reached = [], 0
    for payload in payloads:
        stop = reached + frame.HEADER_BYTES + len(payload)
        if damaged[reached:stop] == image[reached:stop]:
            expected.append(payload)
        reached = stop
    found = frame.scan(damaged, salt, at_end=True, final=True)
    assert [each.payload for each in found.frames] == expected
    check_tiling(found, damaged, 0)


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(RECORDS, st.integers(0, 90)), max_size=10), SALTS)
def test_cut_writes_between_whole_ones_cost_nothing_else(writes: list[tuple[bytes, int]], salt: int) -> None:
    """Any mixture of whole frames and cut ones, as kills leave it: every whole one comes back."""
    data, whole = b"", []
    for payload, cut in writes:
        written = frame.encode(payload, salt)
        if cut >= len(written):
            whole.append(payload)
        data += written[:cut]
    found = frame.scan(data, salt, at_end=True, final=True)
    assert [each.payload for each in found.frames] == whole
    check_tiling(found, data, 0)


@settings(max_examples=EXAMPLES, deadline=None)
@given(RECORDS, SALTS, st.integers(0, 99))
def test_one_cut_write_is_torn_not_corrupt(payload: bytes, salt: int, cut: int) -> None:
    """A record that was never acknowledged is not counted as lost."""
    written = frame.encode(payload, salt)
    cut = cut % (len(written) - 1) + 1
    found = frame.scan(written[:cut] + frame.encode(b"next", salt), salt, at_end=True, final=False)
    assert [each.payload for each in found.frames] == [b"next"]
    assert [(damage.start, damage.end, damage.kind) for damage in found.damage] == [(0, cut, DamageKind.TORN)]


@settings(max_examples=EXAMPLES, deadline=None)
@given(PAYLOADS, SALTS, SALTS)
def test_another_salt_reads_nothing(payloads: list[bytes], salt: int, other: int) -> None:
    """A recycled block of any other segment holds no record."""
    found = frame.scan(image_of([b"quoted", *payloads], other), salt, at_end=True, final=True)
    assert [each.payload for each in found.frames] == ([b"quoted", *payloads] if salt == other else [])


@settings(max_examples=EXAMPLES, deadline=None)
@given(PAYLOADS, SALTS, st.integers(1, 64), st.binary(max_size=40))
def test_a_live_reader_and_a_late_one_find_the_same(
    payloads: list[bytes], salt: int, step: int, garbage: bytes
) -> None:
    """Reading while the segment grows a few bytes at a time gives the records of one look at its end."""
    data = garbage + image_of(payloads, salt)
    offset, frames, damage = 0, [], []
    for size in [*range(0, len(data), step), len(data)]:
        final = size == len(data)
        found = frame.scan(data[offset:size], salt, base=offset, at_end=True, final=final)
        frames += found.frames
        damage += found.damage
        offset += found.consumed
    late = frame.scan(data, salt, at_end=True, final=True)
    assert frames == late.frames
    assert offset == len(data)
    assert [(each.start, each.end) for each in damage] == [(each.start, each.end) for each in late.damage]
