"""Hostile content for a spool: what a program cannot write by accident, because every checksum is right.

`mutate` changes a spool on disk in one to three ways: values at their extremes, other types, frames that claim what
is not there, files of another kind, and names that no writer gives.
"""

from __future__ import annotations

import json
import os
import random
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from zlib import crc32

import msgspec

from cwsink.spool import cursor, directory, frame, record, segment

EXTREMES: Final = (-1, 0, 1, -(2**63), 2**31, 2**53, 2**62, 2**63 - 1, 2**64 - 1, 10**15)
ODD: Final = (
    *EXTREMES,
    None,
    True,
    "",
    "zz",
    "\x1b[2J",
    "../../outside",
    "x" * 5_000,
    [],
    {},
    [[]],
    1e308,
    -0.5,
    b"\xff",
)
HOLE_BYTES: Final = 4 << 30

Change = Callable[[Path, random.Random], None]


def mutate(spool: Path, chance: random.Random) -> list[str]:
    """Change the spool. Returns the names of the changes, in order."""
    names = []
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        change = chance.choice(CHANGES)
        try:
            change(spool, chance)
        except (
            OSError,
            ValueError,
            LookupError,
            TypeError,
        ):  # another change has taken the file away, or made it no file
            continue
        names.append(change.__name__)
    return names


def put(path: Path, data: bytes, *, at_end: bool = False) -> None:
    """Write a file. Raises OSError: also if another change has put a FIFO there, which nobody reads."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | (os.O_APPEND if at_end else os.O_TRUNC)
    with open(os.open(path, flags, 0o644), "wb") as file:
        file.write(data)


def odd_format(spool: Path, chance: random.Random) -> None:
    """FORMAT, with a right checksum, and a value of the wrong kind or size."""
    content = json.loads(content_of(spool / "FORMAT"))
    content.pop("checksum")
    name = chance.choice(sorted(content))
    content[name] = odd(chance, json_only=True)
    if chance.random() < 0.2:
        del content[name]
    put(spool / "FORMAT", json.dumps({**content, "checksum": directory._checksum(content)}).encode())


def odd_cursor(spool: Path, chance: random.Random) -> None:
    """A slot with a right CRC, whose generation, epoch, offsets or counts are out of this world."""
    data = bytearray(content_of(spool / "cursor").ljust(2 * cursor.SLOT_BYTES, b"\0"))
    slot = chance.randrange(2)
    state, generation = state_of(bytes(data), slot)
    wild(state, chance)
    generation = chance.choice((generation, generation, 2**64 - 1, 2**63, 0))
    body = msgspec.msgpack.encode(state)[: cursor.SLOT_BYTES - 20]
    checked = generation.to_bytes(8, "little") + len(body).to_bytes(4, "little") + body
    packed = cursor.MAGIC + crc32(checked).to_bytes(4, "little") + checked
    data[slot * cursor.SLOT_BYTES : slot * cursor.SLOT_BYTES + len(packed)] = packed
    put(spool / "cursor", bytes(data[: 2 * cursor.SLOT_BYTES]))


def state_of(data: bytes, slot: int) -> tuple[dict[str, Any], int]:
    at = slot * cursor.SLOT_BYTES
    length = int.from_bytes(data[at + 16 : at + 20], "little")
    try:
        return msgspec.msgpack.decode(data[at + 20 : at + 20 + length]), int.from_bytes(
            data[at + 8 : at + 16], "little"
        )
    except msgspec.DecodeError:
        return msgspec.to_builtins(cursor.State()), 0


def wild(content: Any, chance: random.Random) -> None:
    """Change one value, at any depth."""
    while isinstance(content, (dict, list)) and content:
        key = chance.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if not isinstance(content[key], (dict, list)) or not content[key] or chance.random() < 0.3:
            content[key] = odd(chance)
            return
        content = content[key]


def odd(chance: random.Random, *, json_only: bool = False) -> Any:
    values = [each for each in ODD if not (json_only and isinstance(each, bytes))]
    return chance.choice(EXTREMES if chance.random() < 0.5 else values)


def odd_evictions(spool: Path, chance: random.Random) -> None:
    """`evictions`, with a right CRC."""
    content = [5, 1, 2, {"spool_full": 3}, 1, 1]
    content[chance.randrange(len(content))] = odd(chance)
    body = msgspec.msgpack.encode(content)
    put(spool / "evictions", crc32(body).to_bytes(4, "little") + body)


def odd_json(spool: Path, chance: random.Random) -> None:
    """leader.json, leader.host, settings.json: another value, no object at all, or 20 MB."""
    path = spool / chance.choice(("leader.json", "leader.host", "settings.json"))
    try:
        content = json.loads(content_of(path))
    except (ValueError, FileNotFoundError):
        content = {"last_success": 1, "last_error": "", "epoch": 1}
    if chance.random() < 0.2:
        content = odd(chance, json_only=True)
    elif chance.random() < 0.1:
        content["last_error"] = "x" * 20_000_000
    else:
        content[chance.choice(sorted(content))] = odd(chance, json_only=True)
    put(path, json.dumps(content).encode())
    if path.name == "leader.host":
        os.utime(path, (1, 1))  # a fresh mark says that another host leads


def odd_letters(spool: Path, chance: random.Random) -> None:
    """Dead letters that are none, or one of 20 MB."""
    line = chance.choice(
        ('{"reason": 5}', "[]", "{", '{"reason":"poison","message":"\\u001b[2J"}', "x" * 20_000_000, "\0")
    )
    put(spool / "dead_letters.jsonl", f"{line}\n".encode() * chance.choice((1, 3)), at_end=True)


def odd_frames(spool: Path, chance: random.Random) -> None:
    """Frames with right checksums: losses and events at their extremes, or headers that claim all that follows."""
    path = chance.choice(segments(spool))
    header = segment.decode_header(content_of(path)[: segment.HEADER_BYTES])
    salt = header.key.salt if header is not None else 1
    kind = chance.randrange(3)
    if kind == 0:
        loss = [odd(chance) for _ in range(5)] if chance.random() < 0.5 else [2**64 - 1, -5, 2**63, "spool_full", 1]
        data = frame.encode(msgspec.msgpack.encode(loss), salt, frame.LOSS) * chance.choice((1, 2))
    elif kind == 1:
        event = [chance.choice(EXTREMES), chance.choice(EXTREMES), chance.choice(EXTREMES), "hostile"]
        if chance.random() < 0.3:
            event[chance.randrange(4)] = odd(chance)
        data = frame.encode(msgspec.msgpack.encode(event), salt, frame.EVENT)
    elif chance.random() < 0.5:  # each claims all that follows
        count = chance.choice((100, 50_000))
        data = b"".join(claim(salt, (count - number - 1) * frame.HEADER_BYTES) for number in range(count))
    else:
        data = b"".join(claim(salt, chance.choice((1_000, 1 << 20, record.MAX_PAYLOAD_BYTES))) for _ in range(2_000))
    put(path, data, at_end=True)


def claim(salt: int, length: int) -> bytes:
    """The header of a frame that is right in itself, with a payload that never comes."""
    checked = frame.pack_checked(length, 1, frame.PLAIN_EVENT)
    return frame.pack_header(frame.MAGIC_NUMBER, crc32(checked, salt), length, 1, frame.PLAIN_EVENT)


def noise(spool: Path, chance: random.Random) -> None:
    """Bytes flipped, cut, doubled or zeroed in any file."""
    path = chance.choice(segments(spool) + [each for each in spool.iterdir() if each.is_file()])
    content = bytearray(content_of(path))
    at = chance.randrange(len(content))
    length = chance.choice((1, 16, 512))
    content[at : at + length] = chance.choice(
        (b"", bytes(length), chance.randbytes(length), content[at : at + length] * 2)
    )
    put(path, bytes(content))
    if path.name == "leader.host":
        os.utime(path, (1, 1))  # as above


def another_kind(spool: Path, chance: random.Random) -> None:
    """A FIFO, a directory, a link, a socket, a hole of 4 GiB or an unreadable file in the place of any file."""
    names = [each for each in os.listdir(spool) if each not in ("ring", "history")] + [
        "attached.lock",
        "budget.lock",
        "leader.lock",
        "hurry",
    ]
    path = spool / chance.choice(names) if chance.random() < 0.7 else chance.choice(segments(spool))
    kind = chance.choice(("fifo", "directory", "link", "dangling", "loop", "socket", "hole", "mode", "device"))
    if kind == "hole":
        os.truncate(path, HOLE_BYTES)
        return
    if kind == "mode":
        path.chmod(0)
        return
    path.unlink(missing_ok=True)
    outside = spool.parent.parent / "outside" / "precious"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listener:
            here = os.open(path.parent, os.O_RDONLY)
            try:
                listener.bind(f"/proc/self/fd/{here}/{path.name}")
            finally:
                os.close(here)
    else:
        path.symlink_to({"link": outside, "dangling": "nowhere", "loop": path.name, "device": "/dev/zero"}[kind])


def odd_ring(spool: Path, chance: random.Random) -> None:
    """`ring` is a link to a directory outside, a file, or closed; or it holds names that no writer gives."""
    ring = spool / "ring"
    kind = chance.choice(("link", "file", "mode", "number", "names", "names"))
    if kind == "mode":
        ring.chmod(chance.choice((0, 0o500)))
    elif kind == "number":
        number = chance.choice((0, 10**18 - 1, 10**18, 10**10, 2**63, 99))
        put(ring / f"{number:010d}.seg", chance.choice((b"", content_of(segments(spool)[-1]))))
    elif kind == "names":
        for name in ("-1.seg", "x.seg", ".seg", "0000000002.seg.tmp", "\x1b[2J", "0" * 200 + ".seg", "precious.tmp"):
            (ring / name).write_bytes(b"x")
            os.utime(ring / name, (1, 1))
    else:
        ring.rename(spool / "ring.away")
        if kind == "link":
            ring.symlink_to(spool.parent.parent / "outside")
        else:
            ring.write_text("no directory")


def odd_history(spool: Path, chance: random.Random) -> None:
    """`history` is a link to a directory outside, or a file; or it holds what no leader has put there."""
    history = spool / "history"
    kind = chance.choice(("link", "file", "files", "files"))
    if kind == "link":
        history.symlink_to(spool.parent.parent / "outside")
    elif kind == "file":
        history.write_text("no directory")
    else:
        history.mkdir(0o700)
        (history / "0000000001.seg").write_bytes(chance.choice((b"", b"x" * 5_000, content_of(segments(spool)[0]))))
        (history / "0000000001.jsonl").write_bytes(chance.choice((b"x" * 20_000_000, b"[]\n{}\n" * 50_000, b"\0")))
        os.mkfifo(history / "0000000002.seg")
        (history / "0000000003.jsonl").symlink_to("/dev/zero")


def content_of(path: Path) -> bytes:
    """Return a file's content. Raises OSError, also for a device, a FIFO or a hole, which another change has left."""
    status = path.lstat()
    if not stat.S_ISREG(status.st_mode) or status.st_size >= HOLE_BYTES:
        raise OSError(path)
    return path.read_bytes()


def segments(spool: Path) -> list[Path]:
    if (spool / "ring").is_symlink():  # what lies behind it is not the spool's
        return []
    return [each for each in sorted((spool / "ring").glob("*.seg")) if each.is_file() and not each.is_symlink()]


CHANGES: Final[list[Change]] = [
    odd_format, odd_cursor, odd_cursor, odd_evictions, odd_json, odd_letters, odd_frames, odd_frames, noise,
    another_kind, another_kind, odd_ring, odd_history,
]  # fmt: skip
