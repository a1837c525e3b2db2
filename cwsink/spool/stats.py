"""`cwsink.stats()`: is everything delivered, how far behind is it, and what was lost.

`look` makes the `SpoolStats` of one spool from its files. It asks no other process, so it works while all others are
stuck. `cwsink status` shows them to people, and prints them as JSON. The decision `state_of` is pure.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

import msgspec

from cwsink import naming
from cwsink.spool import capacity, files, heartbeat, history, leader_state, leadership, orphans, sending
from cwsink.spool.budget import used_bytes
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.spool.leadership import Leader, leader_of
from cwsink.spool.survey import last_append, survey

State = Literal["idle", "delivering", "retrying", "circuit_open", "stalled", "no_leader"]

# A leader that has written nothing for this long does not move. No call (connecting, waiting for the answer) takes
# longer, and no pause of an open circuit.
STALLED_SECONDS: Final = 30.0


@dataclass(frozen=True)
class SpoolStats:
    """One spool at one moment. Counts are of records, unless the name has a unit. Times are UTC, as RFC 3339.

    The books add up: appended = delivered + dead_lettered + evicted + pending. What was refused was never appended.

    Attributes:
        path: the spool's directory.
        log_group_name: where its records go.
        log_stream_name: the stream; it may hold `{date}`.
        region: the region of AWS. None: as the credentials say.
        state: `cwsink status --help` explains each.
        leader: the process that sends, if one does.
        appended: records that were ever safe in the spool.
        delivered: CloudWatch has answered that it has them.
        pending: they wait.
        pending_bytes: the size of those.
        oldest_pending_seconds: how long the oldest has waited.
        dead_lettered: CloudWatch can never take them, by reason. They are in dead_letters.jsonl.
        evicted: lost, because the spool was full and the oldest went.
        refused: lost, because they never entered the spool, by reason.
        resent: how many were sent again after the answer to a request was lost.
        corrupt_bytes: bytes that changed on the disk after they were written.
        capacity_bytes: how much the spool may hold.
        last_error: the last failure of the last leader that had one. It may be over.
        last_success: when CloudWatch last took records.
        settings: the newest writer's settings for sending that differ from the defaults.
        settings_from: that writer, as host/pid.
        unable: processes that led before and gave way because they could not deliver, with their reasons.
        used_bytes: the disk space that the ring takes.
        history_bytes: the disk space that delivered records take beside that (keep_delivered).
        history_seconds: how long the oldest of those have been delivered; None if none is kept.
        records_per_second: how fast the leader delivers.
        last_success_seconds: how long ago CloudWatch last took records.
        leader_silent_seconds: how long the leader has written nothing. It has nothing to write while nothing is
            pending, and between two tries.
        leader_is_stopped: the leader is proven to be a stopped process (SIGSTOP, a debugger).
        led_by_host: another host that leads this spool, if one does.
        written_by: the host whose processes log there.
        orphan_seconds: how long no process has logged there, if the spool is an orphan; else None.
    """

    path: str
    log_group_name: str
    log_stream_name: str
    region: str | None
    state: State
    leader: Leader | None
    appended: int
    delivered: int
    pending: int
    pending_bytes: int
    oldest_pending_seconds: float | None
    dead_lettered: dict[str, int]
    evicted: int
    refused: dict[str, int]
    resent: int
    corrupt_bytes: int
    capacity_bytes: int
    last_error: str | None
    last_success: str | None
    settings: dict[str, Any]
    settings_from: str | None
    unable: list[dict[str, Any]]
    used_bytes: int
    history_bytes: int
    history_seconds: float | None
    records_per_second: float
    last_success_seconds: float | None
    leader_silent_seconds: float
    leader_is_stopped: bool
    led_by_host: str | None
    written_by: str
    orphan_seconds: float | None

    @property
    def lost(self) -> int:
        """How many records will never be in CloudWatch: refused or evicted. Dead letters are kept, and not lost."""
        return self.evicted + sum(self.refused.values())

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as `cwsink status --json` prints them."""
        return asdict(self)


@dataclass(frozen=True)
class Stats:
    """All spools of a root at one moment.

    Attributes:
        spools: those that can be read.
        unreadable: the path of each other one, with the reason.
    """

    spools: list[SpoolStats]
    unreadable: dict[str, str]


def stats(path: str | None = None) -> Stats:
    """Look at the spools at `path`. It takes less than 1 ms for each, and longer while a large backlog waits.

    Any process may call it, and it writes nothing. It reads files, so an event loop should call it in a thread while a
    backlog may be large.

    Args:
        path: a spool, or a directory that holds several. The default is where a worker would put its spool.

    Raises:
        SpoolError: the directory itself cannot be read.
    """
    found = Stats([], {})
    for spool in find_spools(path):
        _add(spool, found)
    return found


def _add(path: str, found: Stats) -> None:
    try:
        found.spools.append(look(open_existing(path, read_only=True)))
    except Exception as error:  # whatever another user has planted there, the other spools are shown
        found.unreadable[path] = str(error)


def look(directory: SpoolDirectory) -> SpoolStats:
    """Look at one spool. Raises OSError."""
    books = survey(directory)
    published = leader_state.read(directory) or leader_state.Published(pid=0, host="", epoch=0, kind="")
    leader = leader_of(directory)
    now = time.time()
    silent_seconds = max(0.0, now - _written_at(directory))
    is_stopped = leader is not None and leadership.is_stopped(leader, directory)
    age = None if books.oldest_pending_ms is None else max(0.0, now - books.oldest_pending_ms / 1000)
    is_current = leader is not None and published.epoch == leader.epoch
    last_success = published.last_success
    other = heartbeat.elsewhere(directory)
    found, held = sending.read(directory), capacity.read(directory)
    state = state_of(
        pending=books.pending,
        is_led=leader is not None,
        doing=published.state if is_current else "idle",
        is_stopped=is_stopped,
        is_silent=min(silent_seconds, age or 0.0) >= STALLED_SECONDS,
    )
    counts = msgspec.structs.asdict(books)  # the fields have the same names here, except for these two
    del counts["epoch"], counts["oldest_pending_ms"]
    kept: list[history.Kept] = []
    with contextlib.suppress(OSError):  # whoever has closed it, the books are shown
        kept = history.kept(directory)
    is_orphan = state == "no_leader" and orphans.is_left_alone(directory)
    return SpoolStats(
        path=directory.path,
        log_group_name=directory.format.log_group_name,
        log_stream_name=directory.format.log_stream_name,
        region=directory.format.region,
        state=state,
        leader=leader,
        oldest_pending_seconds=None if age is None else round(age, 3),
        capacity_bytes=held.spool_max_bytes if held else directory.format.spool_max_bytes,
        last_error=published.last_error,
        last_success=None if last_success is None else naming.rfc3339(int(last_success * 1000)),
        settings=sending.shown(found.settings) if found else {},
        settings_from=found.written_by if found else None,
        unable=[msgspec.structs.asdict(each) for each in published.unable],
        used_bytes=used_bytes(directory.ring),
        history_bytes=sum(each.used_bytes for each in kept),
        history_seconds=round(max(0.0, now - min(each.since for each in kept)), 3) if kept else None,
        records_per_second=published.records_per_second if is_current else 0.0,
        last_success_seconds=None if last_success is None else round(max(0.0, now - last_success), 3),
        leader_silent_seconds=round(silent_seconds, 3),
        leader_is_stopped=is_stopped,
        led_by_host=other.mark.host if other else None,
        written_by=directory.format.host,
        orphan_seconds=round(max(0.0, now - (last_append(directory) or now)), 3) if is_orphan else None,
        **counts,
    )


def _written_at(directory: SpoolDirectory) -> float:
    """Return when a leader has written last, in seconds since 1970; 0 if none has."""
    times = [0.0]
    for path in (directory.cursor, directory.leader_state):
        with contextlib.suppress(FileNotFoundError):
            times.append(files.status(path).st_mtime)
    return max(times)


def state_of(*, pending: int, is_led: bool, doing: leader_state.Doing, is_stopped: bool, is_silent: bool) -> State:
    """Return the spool's state. All states are explained in `cwsink status --help`.

    Args:
        pending: how many records are not settled.
        is_led: a process holds the lease.
        doing: the state that the leader has published.
        is_stopped: the leader is proven to be a stopped process.
        is_silent: the leader has written nothing for long although records were pending. That proves nothing while it
            waits between two tries, because it has nothing to write then.
    """
    if not pending:
        return "idle"
    if not is_led:
        return "no_leader"
    if is_stopped:
        return "stalled"
    if doing in ("retrying", "circuit_open"):
        return doing
    return "stalled" if is_silent else "delivering"
