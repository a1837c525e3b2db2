"""`told`: what stderr was told of a spool's losses, so that each is said once, whoever says it.

The leader looks for losses, and so do writers, because there may be no leader. Without this file each worker would say
the same. Who has something to say writes it down here first, under an flock that nobody waits for. The file is a page
(cwsink.spool.page), because a full disk is what there is to say.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, Literal

import msgspec

from cwsink.interruption import suppress
from cwsink.spool import descriptors, files, page
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Count, Seconds

Trouble = Literal["", "filling", "losing"]


class Told(msgspec.Struct, array_like=True, frozen=True):
    """What was said. Times are seconds since 1970.

    Attributes:
        lost: how many records were lost in all when that was said last, by reason.
        dead: how many dead letters there were, by reason.
        trouble: what lasts: the spool becomes full, or records are lost.
        at: when a line about it was said last.
        since, until: when the losses began that were said last, and when they were said last.
        dead_at: when there were new dead letters last; 0: their end was said.
    """

    lost: dict[str, Count] = {}
    dead: dict[str, Count] = {}
    trouble: Trouble = ""
    at: Seconds = 0.0
    since: Seconds = 0.0
    until: Seconds = 0.0
    dead_at: Seconds = 0.0


_decode: Final = msgspec.msgpack.Decoder(Told).decode


def read(directory: SpoolDirectory) -> Told | None:
    """Return what was said; None if there is no such file, or if it is damaged. Never raises."""
    with suppress(OSError):
        return page.unpacked(files.read(directory.told, page.MOST_BYTES)[0], _decode)
    return None


def change(directory: SpoolDirectory, changed: Callable[[Told], Told]) -> bool:
    """Replace what the file says. False: another process is at it, or the file cannot be written. Never raises."""
    with suppress(OSError), files.opened(directory.told, os.O_RDWR) as file:
        if descriptors.try_lock(file.fd, exclusive=True):
            before = page.read(file.fd, _decode) or Told()
            os.pwrite(file.fd, page.packed(changed(before)), 0)
            return True
    return False
