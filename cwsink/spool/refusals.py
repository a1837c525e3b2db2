"""`refusals`: how many records writers have refused, by reason, in space that was reserved beforehand.

When a record is refused, the disk may be full to its last block. The process may be killed in the next moment. The
count must be exact all the same. So the file is a page (cwsink.spool.page): it is written once, in full length, while
there is room, and from then on overwritten in place. Its content is `{reason: [count, first_ms, last_ms]}`. A writer
does that before it answers that the record was refused.

Several processes may refuse records at once. One at a time adds its own, under an flock. The others wait for it, but
for 40 ms at most: it may have been stopped. Then they keep their counts in memory, and add them with their next
refusal, their next append, or at their end. So a count can be lost only if a process is killed while another one has
been stopped, or has not been given the processor, in the middle of its counting.

The totals only grow. The ledger in the cursor says how much of them the stream was told of.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from functools import partial
from typing import Any, Final

import msgspec

from cwsink.clock import monotonic
from cwsink.interruption import suppress
from cwsink.spool import cursor, descriptors, disk, files, page
from cwsink.spool.budget import read_evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Count, Loss, TimeMs

# Another process that adds has the lock for some 10 us. A reader may meet a page that is being overwritten.
_TRIES: Final = 50
_WAIT_SECONDS: Final = 0.0005
_LONGEST_WAIT_SECONDS: Final = 0.04
# A process that has waited in vain does not wait again for so long.
_IMPATIENT_SECONDS: Final = 0.4


class Refused(msgspec.Struct, array_like=True):
    """How many records were refused for one reason, ever, and the times of those that the stream was not told of yet.

    Once it was told of all of them, `first_ms` is 1 ms later than `last_ms`, and the next refusal begins anew.
    """

    count: Count = 0
    first_ms: TimeMs = 0
    last_ms: TimeMs = 0


_impatient_until = 0.0
_decode = msgspec.msgpack.Decoder(dict[str, Refused]).decode


def read(directory: SpoolDirectory, *, mends: bool = False) -> dict[str, Refused]:
    """Return the totals by reason; empty if there are none. Of a damaged file only what the stream was told is known.

    `mends`: write a damaged file anew. Else each new process would wait for what the disk cannot read. Raises OSError.
    """
    for _ in range(_TRIES):
        if (data := files.read_if_there(directory.refusals, page.MOST_BYTES)) is None:
            return {}
        if (found := page.unpacked(data, _decode)) is not None:
            return found
        if not data.strip(disk.UNREADABLE):
            break  # to ask a bad sector again may take seconds
    found = _told(directory)
    if mends:
        with suppress(OSError), files.opened(directory.refusals, os.O_RDWR) as file:
            if descriptors.try_lock(file.fd, exclusive=True) and page.read(file.fd, _decode) is None:
                files.replace(directory.refusals, page.packed(found))
    return found


def _told(directory: SpoolDirectory) -> dict[str, Refused]:
    """Return the totals that the stream was told of. Raises OSError."""
    told = Counter(cursor.read(directory.cursor).ledger.refused_reported)
    told -= Counter(read_evictions(directory).refused)  # a leader adds them up
    return {reason: Refused(count, first_ms=1) for reason, count in told.items()}


def counts(directory: SpoolDirectory) -> dict[str, int]:
    """Return only how many, by reason. Raises OSError."""
    return {reason: refused.count for reason, refused in read(directory).items()}


def add(directory: SpoolDirectory, losses: list[Loss]) -> bool:
    """Add these losses to the totals, and remove them from the list. False: they are still there. Never raises.

    A signal handler may raise after any call. So the write and the removal are one step of C code: no loss is counted
    twice, and none is forgotten.
    """
    with suppress(OSError):
        for _ in range(_TRIES):
            page.prepare(directory.refusals, dict)
            with files.opened(directory.refusals, os.O_RDWR) as file:
                if not _take_turn(file.fd):
                    return False
                if not files.is_named(directory.refusals, os.fstat(file.fd)):
                    continue  # a leader has written it anew while we waited. Nobody reads what we have open
                now = len(losses)  # others may append to it meanwhile
                found = page.read(file.fd, _decode)
                data = page.packed(add_up(_told(directory) if found is None else found, losses[:now]))
                write = partial(os.pwrite, file.fd, data, 0)
                steps: list[partial[Any]] = [write, partial(losses.__delitem__, slice(now))]
                deque(map(partial.__call__, steps), maxlen=0)
                return True
    return False


def were_told(directory: SpoolDirectory, told: dict[str, Refused]) -> None:
    """Note that the stream was told of these totals, so that the next notice has the times of later refusals only.

    Never raises, and does not wait: if a writer is counting at this moment, the next notice begins too early.
    """
    with suppress(OSError), files.opened(directory.refusals, os.O_RDWR) as file:
        if descriptors.try_lock(file.fd, exclusive=True) and (totals := page.read(file.fd, _decode)):
            for reason, known in totals.items():
                if (before := told.get(reason)) is not None and known.first_ms == before.first_ms:
                    known.first_ms = before.last_ms + 1
            os.pwrite(file.fd, page.packed(totals), 0)


def _take_turn(fd: int) -> bool:
    """Take the lock, which another process may have for some 10 us, or for longer if it is not given the processor."""
    global _impatient_until
    if any(descriptors.try_lock(fd, exclusive=True) for _ in range(_TRIES)):
        return True
    until = monotonic() + _LONGEST_WAIT_SECONDS
    while _impatient_until < (now := monotonic()) < until:
        time.sleep(_WAIT_SECONDS)
        if descriptors.try_lock(fd, exclusive=True):
            return True
    _impatient_until = max(_impatient_until, now + _IMPATIENT_SECONDS if now >= until else 0.0)
    return False


def add_up(totals: dict[str, Refused], losses: list[Loss]) -> dict[str, Refused]:
    """Add these losses to totals, and return those."""
    for loss in losses:
        known = totals.setdefault(loss.reason, Refused())
        if not known.count or known.first_ms > known.last_ms:
            known.first_ms = known.last_ms = loss.first_ms
        known.count += loss.count
        known.first_ms = min(known.first_ms, loss.first_ms)
        known.last_ms = max(known.last_ms, loss.last_ms)
    return totals
