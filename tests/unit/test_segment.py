"""The segment's header: where each field stands, and what a reader makes of a damaged or foreign one."""

from __future__ import annotations

import re
import zlib

import pytest

from cwsink.spool import segment
from cwsink.spool.segment import SegmentKey

KEY = SegmentKey(0x0102030405060708, 0x5EED1E55)
SPOOL_ID = bytes(range(16))
HEADER = segment.encode_header(KEY, SPOOL_ID, 1_700_000_000_000)

# What the header above holds, by the name its field has in the docstring's table.
EXPECTED = {
    "magic": b"CWSINKSG",
    "layout major": (1).to_bytes(2, "little"),
    "header length": (64).to_bytes(2, "little"),
    "compatible flags": bytes(4),
    "incompatible flags": bytes(4),
    "salt": KEY.salt.to_bytes(4, "little"),
    "spool id": SPOOL_ID,
    "segment number": KEY.number.to_bytes(8, "little"),
    "creation time": (1_700_000_000_000).to_bytes(8, "little"),
    "header CRC": zlib.crc32(HEADER[:56]).to_bytes(4, "little"),
    "zero": bytes(4),
}


def resealed(offset: int, data: bytes) -> bytes:
    """The header with other bytes at `offset`, and a checksum that is right again."""
    fields = HEADER[:offset] + data + HEADER[offset + len(data) : 56]
    return fields + zlib.crc32(fields).to_bytes(4, "little") + HEADER[60:]


def test_the_header_is_laid_out_as_its_table_says() -> None:
    """Every row of the docstring's table is the offset, size and content of the bytes written, without a gap."""
    rows = re.findall(r"^ +(\d+) +(\d+)  (\S+(?: \S+)*)", segment.__doc__ or "", re.MULTILINE)
    assert [name for _, _, name in rows] == list(EXPECTED)
    reached = 0
    for offset, size, name in rows:
        assert int(offset) == reached, name
        reached += int(size)
        assert HEADER[int(offset) : reached] == EXPECTED[name], name
    assert reached == len(HEADER) == segment.HEADER_BYTES == 64


def test_a_header_comes_back() -> None:
    """Number, salt and length survive the round trip, whatever follows the header."""
    for data in (HEADER, HEADER + b"frames"):
        assert segment.decode_header(data) == segment.Header(KEY, 64, readable=True)


def test_every_flipped_bit_of_a_header_is_noticed() -> None:
    """No bit of the 60 meaningful bytes can change unseen; the padding means nothing."""
    for bit in range(len(HEADER) * 8):
        flipped = bytearray(HEADER)
        flipped[bit // 8] ^= 1 << bit % 8
        header = segment.decode_header(bytes(flipped))
        assert (header is None) == (bit // 8 < 60), f"bit {bit}"


def test_a_header_cut_anywhere_is_none() -> None:
    """A header that is not whole is not read."""
    for cut in range(len(HEADER)):
        assert segment.decode_header(HEADER[:cut]) is None


@pytest.mark.parametrize(
    ("change", "readable"),
    [
        pytest.param(resealed(8, b"\x02\x00"), False, id="a later layout"),
        pytest.param(resealed(10, b"\x3f\x00"), False, id="a header too short to be one"),
        pytest.param(resealed(10, b"\x80\x00"), True, id="a longer header"),
        pytest.param(resealed(12, b"\x01\x00\x00\x80"), True, id="unknown compatible flags"),
        pytest.param(resealed(16, b"\x01\x00\x00\x00"), False, id="an unknown incompatible flag"),
        pytest.param(resealed(16, b"\x00\x00\x00\x80"), False, id="the last incompatible flag"),
    ],
)
def test_what_a_newer_version_writes_is_read_or_left_alone(change: bytes, readable: bool) -> None:
    """Compatible changes are read, incompatible ones are recognised as a segment that is not ours to judge."""
    header = segment.decode_header(change)
    assert header is not None
    assert (header.key, header.readable) == (KEY, readable)


def test_segments_sort_by_number_not_by_name() -> None:
    """A number with more digits than usual is still found, and its path leads back to it."""
    for number in (1, 9_999_999_999, 10_000_000_000):
        name = segment.path_of("/spool/ring", number).rpartition("/")[2]
        match = segment._NAME.fullmatch(name)
        assert match is not None
        assert int(match[1]) == number


@pytest.mark.parametrize("name", ["1.seg", "0000000001.seg.tmp", "0000000001.tmp", "x0000000001.seg", "0000000001.SEG"])
def test_other_files_in_the_ring_are_no_segments(name: str) -> None:
    """What is not named like a segment is not taken for one."""
    assert segment._NAME.fullmatch(name) is None
