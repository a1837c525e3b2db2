"""A page: a small file whose space is reserved when it is made, and that is overwritten in place under its own flock.

It is for what must be written down when the disk is full to its last block. To overwrite needs no new block (but for
file systems that copy on write).

```text
offset  size  field          little-endian
     0     4  CRC            zlib.crc32 of bytes 4 .. 8 + length
     4     4  length         of the content
     8     n  content        MessagePack
               zeros up to 4,096 bytes
```
"""

from __future__ import annotations

from collections.abc import Callable
from struct import Struct
from typing import Final, TypeVar
from zlib import crc32

import msgspec

from cwsink.interruption import suppress
from cwsink.spool import disk, files

PAGE_BYTES: Final = 4096
# A file that is longer than a page is read as well, as far as this.
MOST_BYTES: Final = 64 * 1024
_HEADER: Final = Struct("<II")
_CHECKED_FROM: Final = 4
_Content = TypeVar("_Content")


def prepare(path: str, content: Callable[[], object]) -> None:
    """Make a page if it is not there. Never raises: on a full disk the next one who needs it tries again."""
    with suppress(OSError):
        if not files.exists(path):
            files.create(path, packed(content()))


def packed(content: object) -> bytes:
    """Return the page with this content."""
    body = msgspec.msgpack.encode(content)
    checked = _HEADER.pack(0, len(body))[_CHECKED_FROM:] + body
    return (crc32(checked).to_bytes(_CHECKED_FROM, "little") + checked).ljust(PAGE_BYTES, b"\0")


def read(fd: int, decode: Callable[[bytes], _Content]) -> _Content | None:
    """Return the content of an open page, as `unpacked`. Raises OSError, also if the disk cannot read it now."""
    return unpacked(disk.read(fd, PAGE_BYTES, 0, patience_seconds=disk.PATIENCE_SECONDS), decode)


def unpacked(page: bytes, decode: Callable[[bytes], _Content]) -> _Content | None:
    """Return the content of a page; None if it is damaged, or was read while it was overwritten."""
    if len(page) < _HEADER.size:
        return None
    crc, length = _HEADER.unpack_from(page)
    end = _HEADER.size + length
    if end > len(page) or crc32(page[_CHECKED_FROM:end]) != crc:
        return None
    with suppress(ValueError):  # msgspec's errors are of that kind, and so is UnicodeDecodeError
        return decode(page[_HEADER.size : end])
    return None
