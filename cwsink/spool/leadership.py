"""Which process leads a spool, for people (only looks). Nobody sends or commits by it: the lease decides that."""

from __future__ import annotations

import os
from typing import Final, NamedTuple

import msgspec

from cwsink.clock import wall
from cwsink.interruption import suppress
from cwsink.spool import cursor, files, flusher_lock, leader_state, lease, sending
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.leader_state import Published

# A leader that has written nothing for this long does not move. No call (connecting, waiting for the answer) takes
# longer, and no pause of an open circuit.
STALLED_SECONDS: Final = 30.0


class Leader(msgspec.Struct, frozen=True):
    """The process that holds the lease.

    Attributes:
        kind: "own" (started by a writer), "run", "service" (`cwsink flush`), "once" (`cwsink flush --once`).
        started_by: the process that started it, or None if a person or a service manager did.
    """

    pid: int
    host: str
    epoch: int
    kind: str
    started_by: str | None = None


class Standstill(NamedTuple):
    """A leader that does not get on: it is proven to be a stopped process, or has shown no sign of life for so long."""

    leader: Leader
    is_stopped: bool
    silent_seconds: float


def leader_of(directory: SpoolDirectory) -> Leader | None:
    """Return the process that leads; None if none does on this host, or if nothing tells which one it is."""
    if not lease.is_taken(directory):
        return None
    epoch = cursor.read(directory.cursor).epoch  # first: a new leader writes it there, and then leader.json
    return named(directory, epoch, leader_state.read(directory))


def named(directory: SpoolDirectory, epoch: int, published: Published | None) -> Leader | None:
    """Return the process that leads, for a caller who knows that one does; None if nothing tells which one it is.

    Args:
        directory: the spool.
        epoch: as the cursor had it before `published` was read.
        published: the content of leader.json.
    """
    if published is not None and published.epoch >= epoch:
        return Leader(published.pid, published.host, published.epoch, published.kind, published.started_by or None)
    # The leader has not written leader.json (a full disk). The cursor names it, too.
    state = cursor.read(directory.cursor)
    host, _, pid = state.holder.rpartition("/")
    return Leader(int(pid), host, state.epoch, "unknown") if pid.isdecimal() else None


def is_stopped(leader: Leader, directory: SpoolDirectory) -> bool:
    """Return True only if the leader's pid is proven to be a stopped process that has the lease's file open.

    A pid alone proves nothing, because it may be one of another container. Where there is no /proc, this is False.
    """
    with suppress(OSError):
        return _stands_with(str(leader.pid), files.status(directory.leader_lock))
    return False


def stopped_flusher(directory: SpoolDirectory) -> int | None:
    """Return the pid of the stopped process that keeps the flusher's lock of the spool's root and user, if one does.

    It is a guard or a flusher. While it has the lock, no writer starts another flusher. The kernel names the writer
    that took the lock and handed it over, so we look at what each process has open. Never raises.
    """
    with suppress(OSError):
        owner = files.seen(directory.path).st_uid
        if flusher_lock.is_taken(directory.root, owner=owner):
            lock = os.stat(flusher_lock.path_of(directory.root, owner=owner), follow_symlinks=False)
            return next((int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and _stands_with(pid, lock)), None)
    return None


def _stands_with(pid: str, lock: os.stat_result) -> bool:
    """Tell whether a process is stopped, and has this file open. False if it is gone, or may not be looked into."""
    process = f"/proc/{pid}"
    with suppress(OSError, IndexError):
        with open(f"{process}/stat", "rb", buffering=0) as file:
            state = file.read().rpartition(b")")[2].split()[0]
        if state not in b"Tt":
            return False
        for fd in os.listdir(f"{process}/fd"):
            with suppress(OSError):
                if os.path.samestat(os.stat(f"{process}/fd/{fd}"), lock):
                    return True
    return False


def standstill(directory: SpoolDirectory) -> Standstill | None:
    """Return how the leader stands still; None if it is not known to. Never raises.

    A leader touches leader.host even while nothing is logged, but not in a request. The wall clock tells how long ago
    that was. So the leader of a host that was suspended may look silent: a person should look before he ends it.
    """
    with suppress(OSError):
        leader = leader_of(directory)
        if leader is None or leader.pid == os.getpid():  # whoever asks moves
            return None
        seen_at = files.written_at_ns(directory.leader_host, directory.cursor, directory.leader_state)
        found = Standstill(leader, is_stopped(leader, directory), wall() - seen_at / 1e9)
        if found.is_stopped:
            return found
        has_mark = files.exists(directory.leader_host)  # without it the other files tell nothing while the spool rests
        if has_mark and found.silent_seconds >= max(STALLED_SECONDS, 2 * _request_seconds(directory)):
            return found
    return None


def _request_seconds(directory: SpoolDirectory) -> float:
    found = sending.read(directory)
    return sending.seconds_in(found.settings if found else {}, *sending.REQUEST)
