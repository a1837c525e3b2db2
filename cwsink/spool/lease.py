"""Who has the right to send a spool: whoever has `leader.lock`, as far as others can tell.

How a leader takes the lock, and proves that it still has it: cwsink.flusher.claim. A worker only looks. It asks the
kernel by `flock` (`is_taken`), in a tenth of the time that filelock takes, which also takes up to a megabyte (0.8 MiB
beside `logging`): no worker loads it.
"""

from __future__ import annotations

from typing import Final

from cwsink import host
from cwsink.clock import wall
from cwsink.interruption import suppress
from cwsink.spool import cursor, files, heartbeat, held_lock, leader_state, segment
from cwsink.spool.directory import SpoolDirectory

# A process that may lead tries this often, plus up to half of it in jitter. So a free lease is found within 0.375 s.
TRY_SECONDS: Final = 0.25

# A leader that is in no request touches leader.host more often than this.
_SILENT_SECONDS: Final = heartbeat.BEAT_SECONDS + 1.0

# Who has the lock of a spool, and shows no sign of life.
_silences: dict[str, held_lock.Obstruction] = {}


def challenge(directory: SpoolDirectory) -> None:
    """Ask the leader, which cannot deliver, to let this process try. Never raises.

    This touches `leader.next`. A lock would say for how long a process stands, but it would take a descriptor for each
    spool, and the leader need not know: if nobody takes the lease that it has given up, it takes that again.
    """
    with suppress(OSError):
        files.touch(directory.leader_next, make=True)


def challenged_at(directory: SpoolDirectory) -> int:
    """Return the time of the last challenge, in ns, to be compared with an earlier one; 0 if there was none."""
    return files.written_at_ns(directory.leader_next)


def is_taken(directory: SpoolDirectory) -> bool:
    """Tell whether some process holds the lease now.

    That may change at the next moment, so nobody sends or commits by this. Writers ask before they start a flusher, and
    adoption and `cwsink replay` ask to know which spools nobody looks after.
    """
    with suppress(OSError):
        return files.is_locked(directory.leader_lock)
    return False


def watch_holder(directory: SpoolDirectory, request_seconds: float) -> None:
    """Say so if records wait, and the process that has the lock does not lead. Never raises.

    Whoever counts on a leader asks now and then. A leader shows that it lives: it touches leader.host, commits, and
    writes leader.json. In a request it does none of that. When it leaves in order, it removes leader.host. If it was
    killed, the file is there, and may be young. Then the kernel may know better who has the lock.

    Args:
        directory: the spool.
        request_seconds: how long a request may take.
    """
    # No descriptor may be left, or a file cannot be read: then it is not known, and the next look tells.
    with suppress(OSError):
        silence = _silences.setdefault(directory.path, held_lock.Obstruction())
        seen_at = files.written_at_ns(directory.leader_host, directory.cursor, directory.leader_state)
        patience = _patience(directory, wall() - seen_at / 1e9, request_seconds)
        if patience is None or not is_taken(directory) or not _has_pending(directory):
            silence.is_over()
        elif silence.lasts(seen_at, seconds=patience):
            held_lock.say(
                directory.leader_lock,
                "Only a leader needs the lock, and this process shows no sign that it leads. Meanwhile nobody may send "
                "the records of the spool. They wait there as long as there is room.",
            )


def _patience(directory: SpoolDirectory, silent_seconds: float, request_seconds: float) -> float | None:
    """Return for how long who has the lock must still be silent before that is said; None: it may be a leader.

    Raises OSError.
    """
    if host.boot_id() and not files.exists(directory.leader_host):
        return held_lock.PATIENCE_SECONDS  # a leader leaves its mark when it begins
    if silent_seconds >= _SILENT_SECONDS and _has_stranger(directory):
        return held_lock.PATIENCE_SECONDS
    if silent_seconds < max(heartbeat.FRESH_SECONDS, 2 * request_seconds):
        return None
    # The host may have been suspended, or its clock set ahead, while a healthy leader waits for an answer. Then its
    # files look old at once. So it must be silent for as long as a request may take by a clock that never jumps, too.
    return max(held_lock.PATIENCE_SECONDS, request_seconds)


def _has_stranger(directory: SpoolDirectory) -> bool:
    """Tell whether the kernel names the process that has the lock, and it is none that leads or has led.

    Raises OSError.
    """
    pids = held_lock.holder(directory.leader_lock)
    published = leader_state.read(directory)
    led_by = cursor.read(directory.cursor).holder.rpartition("/")[2]
    return bool(pids) and led_by not in pids and (published is None or str(published.pid) not in pids)


def _has_pending(directory: SpoolDirectory) -> bool:
    with suppress(OSError):
        return segment.has_pending(directory.ring, cursor.read(directory.cursor).committed())
    return False
