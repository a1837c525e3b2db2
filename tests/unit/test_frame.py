"""Frames: what is written comes back, and nothing that was not written ever does.

Every case is fed whole, cut, flipped, and followed by garbage. Offsets are checked too: the
frames and the damage that `scan` reports must tile what it consumed, without gap or overlap.
"""

from __future__ import annotations

import random
import re
import struct
import zlib
from collections.abc import Callable

import pytest

from cwsink.spool import frame, record
from cwsink.spool.frame import Damage, DamageKind, Scan
from cwsink.spool.record import MAX_PAYLOAD_BYTES, Event

SALT = 0x5EED_1E55
OTHER_SALTS = [0, 1, SALT ^ 1, SALT ^ 0x8000_0000, 0xFFFF_FFFF]
SECTOR_BYTES = 512
HANG_SECONDS = 20  # guards against a scan that is not linear; says nothing about speed

TORN, CORRUPT = DamageKind.TORN, DamageKind.CORRUPT


def mixed_payloads(count: int, most_bytes: int, seed: int = 7) -> list[bytes]:
    """Payloads from empty to `most_bytes`: text, random bytes, zeros, the magic, quoted frames."""
    rng = random.Random(seed)
    kinds: list[Callable[[int], bytes]] = [
        lambda size: record.encode(Event(1_700_000_000_000, rng.getrandbits(64), 3, "é" * (size // 2))),
        rng.randbytes,
        bytes,
        lambda size: (frame.MAGIC * size)[:size],
        lambda size: frame.encode(rng.randbytes(size), SALT ^ 1),
        lambda size: b"x" * size,
    ]
    sizes = [0, 1, 2, 3, 4, 19, 20, 21, most_bytes]
    sizes += [rng.randrange(most_bytes) for _ in range(count - len(sizes))]
    return [kinds[index % len(kinds)](size) for index, size in enumerate(sizes)]


def image_of(payloads: list[bytes], salt: int = SALT) -> bytes:
    """The frames of `payloads`, one after the other."""
    return b"".join(frame.encode(payload, salt) for payload in payloads)


def header_of(
    length: int, payload_crc: int, salt: int = SALT, kind: int = 1, version: int = 1, flags: int = 0
) -> bytes:
    """A header whose own checksum is right, whatever else it says."""
    checked = struct.pack("<IIBBH", length, payload_crc, kind, version, flags)
    return b"\xf5CWF" + zlib.crc32(checked, salt).to_bytes(4, "little") + checked


def bounds_of(payloads: list[bytes]) -> list[tuple[int, int]]:
    """Where each frame of `image_of(payloads)` begins and ends."""
    bounds, start = [], 0
    for payload in payloads:
        end = start + frame.HEADER_BYTES + len(payload)
        bounds.append((start, end))
        start = end
    return bounds


def scan(data: bytes, *, salt: int = SALT, base: int = 0, at_end: bool = True, final: bool = True) -> Scan:
    """Scan, and check that frames and damage tile what was consumed."""
    found = frame.scan(data, salt, base=base, at_end=at_end, final=final)
    ranges = [(each.end - frame.HEADER_BYTES - len(each.payload), each.end) for each in found.frames]
    ranges += [(damage.start, damage.end) for damage in found.damage]
    reached = base
    for start, end in sorted(ranges):
        assert start == reached
        assert end > start
        reached = end
    assert reached == base + found.consumed
    assert found.consumed <= len(data)
    return found


def payloads_of(found: Scan) -> list[bytes]:
    return [each.payload for each in found.frames]


MIXED = mixed_payloads(40, 130)
IMAGE = image_of(MIXED)
BOUNDS = bounds_of(MIXED)
ENDS = {0} | {end for _, end in BOUNDS}


def test_the_worked_example_is_what_encode_writes() -> None:
    """The frame drawn in the module's docstring is byte for byte what an implementer gets."""
    example = re.search(r"Worked example.*?```text\n(.*?)```", frame.__doc__ or "", re.DOTALL)
    assert example is not None
    assert frame.encode(b"", 0) == bytes.fromhex(example[1])


def test_the_header_is_laid_out_as_its_table_says() -> None:
    """Each field stands at the offset the docstring gives, little-endian."""
    payload = b"payload"
    data = frame.encode(payload, SALT, kind=0x21, flags=0x4321)
    assert data[0:4] == b"\xf5CWF"
    assert data[4:8] == zlib.crc32(data[8:20], SALT).to_bytes(4, "little")
    assert data[8:12] == len(payload).to_bytes(4, "little")
    assert data[12:16] == zlib.crc32(payload, SALT).to_bytes(4, "little")
    assert data[16:20] == b"\x21\x01\x21\x43"
    assert data[20:] == payload


def test_what_is_encoded_comes_back() -> None:
    """Payload, type, version and flags survive the round trip, and offsets count from the base."""
    data = frame.encode(b"one", SALT) + frame.encode(b"", SALT, frame.LOSS, frame.FLAG_OPTIONAL)
    found = scan(data, base=1_000)
    assert [(each.payload, each.kind, each.version, each.flags, each.end) for each in found.frames] == [
        (b"one", frame.EVENT, frame.VERSION, 0, 1_023),
        (b"", frame.LOSS, frame.VERSION, frame.FLAG_OPTIONAL, 1_043),
    ]
    assert (found.damage, found.consumed, found.wanted) == ([], 43, 0)


def test_which_event_or_loss_a_frame_holds() -> None:
    """Only what this version can read is given; what is an event counts as one all the same."""
    event, loss = record.Event(5, 7, 0, "x"), record.Loss(3, 1, 2, "spool_full", 7)
    events = [(record.encode(event), frame.EVENT), (b"\xc1", frame.EVENT)]
    payloads = [events[0], (record.encode(loss), frame.LOSS), events[1], (b"", 9)]
    frames = scan(b"".join(frame.encode(payload, SALT, kind) for payload, kind in payloads)).frames
    newer = frame.Frame(0, frame.EVENT | (frame.VERSION + 1) << 8, record.encode(event))
    frames.append(newer)
    assert [frame.event_of(each) for each in frames] == [event, None, None, None, None]
    assert [frame.loss_of(each) for each in frames] == [None, loss, None, None, None]
    assert [each.is_event for each in frames] == [True, False, True, False, True]
    assert [each.is_known for each in frames] == [True, True, True, False, False]


def test_nothing_is_nothing() -> None:
    """No bytes are no frames, no damage and no wish for more."""
    for final in (False, True):
        assert frame.scan(b"", SALT, at_end=True, final=final) == Scan([], [], 0, 0)


def test_the_magic_is_never_part_of_utf8_text() -> None:
    """No log line can contain the magic, so a search for it skips text at full speed."""
    assert frame.MAGIC[0] == 0xF5
    with pytest.raises(UnicodeDecodeError):
        frame.MAGIC[:1].decode()
    lead_and_continuation = {byte for code in (0x7F, 0x80, 0x7FF, 0xFFFF, 0x10FFFF) for byte in chr(code).encode()}
    assert max(lead_and_continuation) < 0xF5


def test_every_flipped_bit_costs_at_most_its_own_record() -> None:
    """Flip each bit of 40 frames: all other records come back unaltered, and the range is named as damage."""
    image = bytearray(IMAGE)
    cases = 0
    for index, (start, end) in enumerate(BOUNDS):
        others = MIXED[:index] + MIXED[index + 1 :]
        expected_damage = [Damage(start, end, CORRUPT)]
        for offset in range(start, end):
            for bit in range(8):
                image[offset] ^= 1 << bit
                found = frame.scan(bytes(image), SALT, at_end=True, final=True)
                image[offset] ^= 1 << bit
                assert [each.payload for each in found.frames] == others, f"bit {bit} of byte {offset}"
                assert found.damage == expected_damage, f"bit {bit} of byte {offset}"
                assert found.consumed == len(IMAGE)
                cases += 1
    assert cases >= 22_000


def test_every_flipped_bit_of_a_live_segment_is_settled_by_the_next_record() -> None:
    """While writers live, a flip in any but the last frame is damage at once; in the last one it may be unfinished."""
    image = bytearray(IMAGE)
    last_start = BOUNDS[-1][0]
    for offset in range(0, len(image), 3):
        image[offset] ^= 0x10
        found = frame.scan(bytes(image), SALT, at_end=True, final=False)
        image[offset] ^= 0x10
        if offset < last_start:
            assert len(found.frames) == len(MIXED) - 1
            assert [damage.kind for damage in found.damage] == [CORRUPT]
            assert found.consumed == len(IMAGE)
        else:
            assert payloads_of(found) == MIXED[:-1]
            assert (found.damage, found.consumed, found.wanted) == ([], last_start, 0)


def test_a_tail_that_is_cut_anywhere_is_not_yet_there() -> None:
    """A live segment cut at every byte: whole frames are given, the rest is neither consumed nor called damage."""
    for cut in range(len(IMAGE) + 1):
        found = frame.scan(IMAGE[:cut], SALT, at_end=True, final=False)
        whole = [payload for payload, (_, end) in zip(MIXED, BOUNDS, strict=True) if end <= cut]
        assert payloads_of(found) == whole
        assert found.damage == []
        assert found.consumed == max(end for end in ENDS if end <= cut)
        assert found.wanted == 0


def test_a_final_tail_that_is_cut_anywhere_is_torn() -> None:
    """A final segment cut at every byte: the cut record is torn, not corrupt, and no other is lost."""
    for cut in range(len(IMAGE) + 1):
        found = scan(IMAGE[:cut])
        boundary = max(end for end in ENDS if end <= cut)
        assert payloads_of(found) == [p for p, (_, end) in zip(MIXED, BOUNDS, strict=True) if end <= cut]
        assert found.damage == ([] if cut == boundary else [Damage(boundary, cut, TORN)])
        assert found.consumed == cut


def test_a_record_cut_by_a_kill_costs_nothing_but_itself() -> None:
    """A write cut at every byte and followed by other writers' records is torn, and they all come back."""
    before, victim, after = MIXED[:3], MIXED[8], MIXED[9:12]
    head, whole, tail = image_of(before), frame.encode(victim, SALT), image_of(after)
    for cut in range(1, len(whole)):
        found = scan(head + whole[:cut] + tail, final=False)
        assert payloads_of(found) == before + after
        assert found.damage == [Damage(len(head), len(head) + cut, TORN)]


def test_a_block_that_ends_anywhere_asks_for_what_it_lacks() -> None:
    """A read that ends at every byte gives the whole frames and asks for no more than the next one needs."""
    for cut in range(len(IMAGE) + 1):
        found = scan(IMAGE[:cut], at_end=False, final=bool(cut % 2))
        boundary = max(end for end in ENDS if end <= cut)
        assert (found.consumed, found.damage) == (boundary, [])
        if cut == boundary:
            assert found.wanted == 0
            continue
        need = min(end for end in ENDS if end > cut) - boundary
        assert cut - boundary < found.wanted <= need
        # With a header it is known exactly how much.
        assert found.wanted == (need if cut - boundary >= frame.HEADER_BYTES else frame.HEADER_BYTES)


@pytest.mark.parametrize("block_bytes", [1, 7, 20, 64, 1_000])
def test_reading_by_blocks_finds_the_same_as_reading_whole(block_bytes: int) -> None:
    """Whatever the size of a read, records and damage are the same."""
    image = bytearray(IMAGE)
    image[BOUNDS[5][0]] ^= 1
    image[BOUNDS[20][0] + 9] ^= 1
    data = bytes(image) + IMAGE[:33]
    whole = scan(data)
    frames, damage, offset, want = [], [], 0, block_bytes
    for _ in range(10 * len(data)):
        block = data[offset : offset + want]
        found = scan(block, base=offset, at_end=offset + len(block) >= len(data), final=True)
        frames += found.frames
        damage += found.damage
        offset += found.consumed
        want = block_bytes if found.consumed else max(found.wanted, 2 * want)
        if offset == len(data):
            break
    assert offset == len(data)
    assert frames == whole.frames
    assert damage == whole.damage


def test_a_lost_sector_costs_only_the_records_that_lay_in_it() -> None:
    """Zeros, garbage, text or another segment's frames in each sector: the records beside it come back unaltered."""
    payloads = mixed_payloads(60, 400, seed=11)
    image, bounds = image_of(payloads), bounds_of(payloads)
    rng = random.Random(13)
    foreign = image_of(payloads, SALT ^ 2)
    for start in range(0, len(image) - SECTOR_BYTES, 128):
        end = start + SECTOR_BYTES
        for filling in (bytes(SECTOR_BYTES), rng.randbytes(SECTOR_BYTES), b"log " * 128, foreign[start:end]):
            damaged = image[:start] + filling + image[end:]
            intact = [p for p, (a, b) in zip(payloads, bounds, strict=True) if damaged[a:b] == image[a:b]]
            found = scan(damaged)
            assert payloads_of(found) == intact
            assert bool(found.damage) == (damaged != image)


def test_zeros_are_not_a_lost_record() -> None:
    """Blocks that were given back or never reached the disk are skipped without counting a record as lost."""
    data = image_of([b"a"]) + bytes(4096) + image_of([b"b"]) + bytes(100)
    found = scan(data)
    assert payloads_of(found) == [b"a", b"b"]
    assert [damage.kind for damage in found.damage] == [TORN, TORN]


@pytest.mark.parametrize("other", OTHER_SALTS)
def test_frames_of_another_segment_are_never_accepted(other: int) -> None:
    """Whole frames under another salt, at any place between ours, are damage; ours all come back."""
    foreign = image_of([b"stale record", b"", bytes(100)], other)
    for index in range(len(MIXED) + 1):
        at = BOUNDS[index][0] if index < len(MIXED) else len(IMAGE)
        found = scan(IMAGE[:at] + foreign + IMAGE[at:])
        assert payloads_of(found) == MIXED
        assert found.damage == [Damage(at, at + len(foreign), CORRUPT)]


@pytest.mark.parametrize("other", OTHER_SALTS)
def test_frames_of_another_segment_alone_give_nothing(other: int) -> None:
    """A segment full of another's frames holds no record of ours."""
    assert payloads_of(scan(image_of(MIXED, other))) == []
    assert payloads_of(scan(image_of(MIXED, other), final=False)) == []


def test_foreign_frames_inside_a_broken_record_are_never_accepted() -> None:
    """A record that quotes raw frames of another segment: resynchronising inside it finds none of them."""
    quoting = frame.encode(image_of([b"quoted"] * 5, SALT ^ 4), SALT)
    for offset in range(frame.HEADER_BYTES):
        broken = bytearray(quoting)
        broken[offset] ^= 0x40
        found = scan(image_of([b"before"]) + bytes(broken) + image_of([b"after"]))
        assert payloads_of(found) == [b"before", b"after"]


@pytest.mark.parametrize(
    "quote",
    [
        pytest.param(lambda dump: dump.decode("latin-1"), id="latin-1"),
        pytest.param(lambda dump: dump.decode("utf-8", "backslashreplace"), id="backslash escapes"),
        pytest.param(lambda dump: dump.decode("utf-8", "replace"), id="replaced"),
        pytest.param(repr, id="repr"),
        pytest.param(bytes.hex, id="hex"),
    ],
)
def test_a_log_line_that_contains_a_spool_dump_never_validates(quote: Callable[[bytes], str]) -> None:
    """The same segment's own bytes, with its own salt, quoted in a log line: no record is found inside the line."""
    dump = image_of([record.encode(Event(1, 2, 3, "quoted")), b"", b"x" * 50])
    line = record.encode(Event(1_700_000_000_000, 7, 0, quote(dump)))
    spooled = image_of([b"before", line, b"after"])
    assert payloads_of(scan(spooled)) == [b"before", line, b"after"]
    start, end = bounds_of([b"before", line])[1]
    for offset in [*range(start, start + frame.HEADER_BYTES), (start + end) // 2, end - 1]:
        broken = bytearray(spooled)
        broken[offset] ^= 0x01  # now the reader has to search through the line
        assert payloads_of(scan(bytes(broken))) == [b"before", b"after"]


def test_a_type_or_version_we_do_not_know_is_still_a_frame() -> None:
    """What a newer writer appended is handed over with its type and version, for the caller to judge."""
    found = scan(header_of(3, zlib.crc32(b"new", SALT), kind=9, version=2, flags=frame.FLAG_OPTIONAL) + b"new")
    assert [(each.kind, each.version, each.flags, each.payload) for each in found.frames] == [
        (9, 2, frame.FLAG_OPTIONAL, b"new")
    ]


def test_a_length_beyond_the_limit_is_not_believed() -> None:
    """A header whose checksums hold but whose length no writer makes is damage, not a wish for gigabytes."""
    for length in (MAX_PAYLOAD_BYTES + 1, 0xFFFF_FFFF):
        found = scan(header_of(length, 0) + image_of([b"next"]), at_end=False)
        assert payloads_of(found) == [b"next"]
        assert found.damage == [Damage(0, frame.HEADER_BYTES, CORRUPT)]


def test_the_longest_payload_is_waited_for() -> None:
    """A header with the longest legal length is not damage: the block is asked for as a whole."""
    payload = bytes(MAX_PAYLOAD_BYTES)
    data = frame.encode(payload, SALT)
    assert scan(data[:100], at_end=False).wanted == len(data)
    assert payloads_of(scan(data)) == [payload]


def fake_headers(length: Callable[[int], int], salt: int, step: int, total: int = 1 << 20) -> bytes:
    """`total` bytes of headers, one each `step` bytes, whose lengths depend on the place."""
    data = bytearray()
    while len(data) < total:
        data += header_of(max(0, length(total - len(data))), 0xDEAD_BEEF, salt)[:step]
    return bytes(data[:total])


HOSTILE = {
    "the magic alone": lambda: frame.MAGIC * (1 << 18),
    "the magic's first byte alone": lambda: frame.MAGIC[:1] * (1 << 20),
    "lengths to the end, no checksum": lambda: fake_headers(lambda left: left - 20, SALT ^ 1, 20),
    "the longest lengths, no checksum": lambda: fake_headers(lambda left: MAX_PAYLOAD_BYTES, SALT ^ 1, 20),
    "lengths beyond the limit": lambda: fake_headers(lambda left: 0xFFFF_FFFF, SALT, 20),
    "headers cut short": lambda: fake_headers(lambda left: left - 20, SALT, 19),
    "the longest lengths, checksums right": lambda: fake_headers(lambda left: MAX_PAYLOAD_BYTES, SALT, 20),
    "lengths just past the end, checksums right": lambda: fake_headers(lambda left: left + 100, SALT, 20),
}


@pytest.mark.timeout(HANG_SECONDS)
@pytest.mark.parametrize("shape", HOSTILE)
def test_a_hostile_region_is_got_over_in_linear_work(shape: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB of fake headers with the longest lengths: each byte is summed a few times, and what follows is found."""
    data = HOSTILE[shape]()
    summed = calls = 0

    def counting(piece: bytes, seed: int = 0) -> int:
        nonlocal summed, calls
        calls += 1
        summed += len(piece)
        return zlib.crc32(piece, seed)

    monkeypatch.setattr(frame, "crc32", counting)
    found = scan(data + frame.encode(b"after", SALT))
    assert payloads_of(found) == [b"after"]
    assert found.damage == [Damage(0, len(data), found.damage[0].kind)]
    assert summed <= 4 * len(data)
    assert calls <= len(data) // len(frame.MAGIC) + 10


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("at_end", [False, True])
@pytest.mark.parametrize("shape", HOSTILE)
def test_a_hostile_region_alone_gives_nothing(shape: str, at_end: bool, final: bool) -> None:
    """Without a record behind it, a hostile region is unfinished, damage, or asked for more; never a record."""
    data = HOSTILE[shape]()[: 64 * 1024]
    found = scan(data, at_end=at_end, final=final)
    assert found.frames == []
    assert found.consumed == (len(data) if final and at_end else 0)
    assert found.wanted > len(data) or at_end
