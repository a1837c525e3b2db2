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
    "header length": (576).to_bytes(2, "little"),
    "compatible flags": bytes(4),
    "incompatible flags": bytes(4),
    "salt": KEY.salt.to_bytes(4, "little"),
    "spool id": SPOOL_ID,
    "segment number": KEY.number.to_bytes(8, "little"),
    "creation time": (1_700_000_000_000).to_bytes(8, "little"),
    "header CRC": zlib.crc32(HEADER[:56]).to_bytes(4, "little"),
    "zero": bytes(4),
    "gap": bytes(448),
    "second copy": HEADER[:64],
}


def resealed(offset: int, data: bytes) -> bytes:
    """The header with other bytes at `offset` of both copies, and checksums that are right again."""
    fields = HEADER[:offset] + data + HEADER[offset + len(data) : 56]
    copy = fields + zlib.crc32(fields).to_bytes(4, "little") + bytes(4)
    return copy + bytes(448) + copy


def test_the_header_is_laid_out_as_its_table_says() -> None:
    """Every row of the docstring's table is the offset, size and content of the bytes written, without a gap."""
    rows = re.findall(r"^ +(\d+) +(\d+)  (\S+(?: \S+)*)", segment.__doc__ or "", re.MULTILINE)
    assert [name for _, _, name in rows] == list(EXPECTED)
    reached = 0
    for offset, size, name in rows:
        assert int(offset) == reached, name
        reached += int(size)
        assert HEADER[int(offset) : reached] == EXPECTED[name], name
    assert reached == len(HEADER) == segment.HEADER_BYTES == 576


def test_a_header_comes_back() -> None:
    """Number, salt and length survive the round trip, whatever follows the header."""
    for data in (HEADER, HEADER + b"frames"):
        assert segment.decode_header(data) == segment.Header(KEY, 576, readable=True)


@pytest.mark.parametrize("copy_at", [0, 512])
def test_every_flipped_bit_of_a_header_is_noticed(copy_at: int) -> None:
    """No bit of the 60 meaningful bytes of a copy can change unseen, if the other copy is gone; its padding is free."""
    alone = bytearray(bytes(576))
    alone[copy_at : copy_at + 64] = HEADER[:64]
    for bit in range(64 * 8):
        flipped = bytearray(alone)
        flipped[copy_at + bit // 8] ^= 1 << bit % 8
        header = segment.decode_header(bytes(flipped))
        assert (header is None) == (bit // 8 < 60), f"bit {bit}"


@pytest.mark.parametrize("sector_at", [0, 512])
def test_a_damaged_sector_costs_one_copy_of_the_header(sector_at: int) -> None:
    """Whatever happens to either sector, the copy in the other one says the same."""
    for junk in (b"\0", b"\xff", b"\xf5"):
        damaged = (HEADER[:sector_at] + junk * 512 + HEADER[sector_at + 512 :])[:576]
        assert segment.decode_header(damaged) == segment.Header(KEY, 576, readable=True)


def test_a_header_cut_anywhere_is_none() -> None:
    """A header that is not whole is not read, though its first copy is: a writer would append in the middle of it."""
    for cut in range(len(HEADER)):
        assert segment.decode_header(HEADER[:cut]) is None


def test_a_short_segment_of_a_later_layout_is_known_for_what_it_is() -> None:
    """The length of our header says nothing about theirs."""
    header = segment.decode_header(resealed(8, b"\x02\x00")[:64])
    assert header is not None
    assert not header.readable


@pytest.mark.parametrize(
    ("change", "readable"),
    [
        pytest.param(resealed(8, b"\x02\x00"), False, id="a later layout"),
        pytest.param(resealed(10, b"\x3f\x02"), False, id="a header too short to be one"),
        pytest.param(resealed(10, b"\x80\x02"), True, id="a longer header"),
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
