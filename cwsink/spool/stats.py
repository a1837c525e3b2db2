"""`cwsink.stats()`: is everything delivered, how far behind is it, and what was lost.

`look` makes the `SpoolStats` of one spool from its files. It asks no other process, so it works while all others are
stuck. `cwsink status` shows them to people, and prints them as JSON. The decision `state_of` is pure.
"""

from __future__ import annotations

import os
import time
from itertools import accumulate
from typing import Any, Final, Literal

import msgspec

from cwsink import naming
from cwsink.interruption import suppress
from cwsink.spool import (
    alerts,
    disk,
    files,
    heartbeat,
    history,
    leader_state,
    leadership,
    lease,
    letters,
    loss_causes,
    open_directory,
    orphans,
    room,
    sending,
    told,
)
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory, expect_spools, find_spools, open_existing
from cwsink.spool.leadership import Leader
from cwsink.spool.record import MOST_SECONDS
from cwsink.spool.room import Room
from cwsink.spool.root import choose_root, closed_spools
from cwsink.spool.survey import Survey, last_append, survey

State = Literal["idle", "delivering", "retrying", "circuit_open", "stalled", "no_leader"]

_NOBODY: Final = leader_state.Published(pid=0, host="", epoch=-1, kind="")


class SpoolStats(msgspec.Struct, frozen=True, kw_only=True):
    """One spool at one moment. Counts are of records, unless the name has a unit. Times are UTC, as RFC 3339.

    The books add up: appended = delivered + dead_lettered + evicted + pending. What was refused was never appended.

    Attributes:
        path: the spool's directory.
        log_group_name: where its records go.
        log_stream_name: the stream; it may hold `{date}`.
        region: the region of AWS. None: as the credentials say.
        state: `cwsink status --help` explains each.
        leader: the process that sends, if one does.
        epoch: how many leaderships there were.
        appended: records that were ever safe in the spool.
        delivered: CloudWatch has answered that it has them.
        pending: they wait.
        pending_bytes: the size of those.
        oldest_pending_seconds: how long the oldest has waited.
        dead_lettered: CloudWatch can never take them, by reason.
        dead_letters: how many are still in dead_letters.jsonl: neither replayed nor cleared nor dropped.
        dead_letters_dropped: how many are lost: the oldest go when that file is full, and others when the disk is.
        replayed: dead letters that were appended once more, and are in `appended` a second time, by reason.
        evicted: lost, because the spool was full and the oldest went.
        refused: lost, because they never entered the spool, by reason.
        lost: evicted and refused ones together.
        is_losing: records are being lost, or were within the last two minutes.
        lost_since: when the losses began that were said last, or that are counted last.
        lost_until: when the last of them was seen.
        lost_why: why, and what to do about it, unless that is over.
        lost_is_over: what they were lost for is over: the spool and its disk have room.
        resent: how many were sent again although they may have arrived, because the answer to a request was lost, or
            because a chunk of several requests was begun anew.
        corrupt_bytes: bytes of writes that were cut (a full disk, a kill), and those that changed on the disk.
        capacity_bytes: how much the spool may hold.
        last_error: the last failure of the last leader that had one. It may be over.
        last_failure: when that was; None if that is not known.
        obstacle: which kind of reason the last leader had not to deliver: "credentials", "denied", "unreachable" or
            "busy"; "" if it could.
        last_success: when CloudWatch last took records; None if that is not known.
        failing_since: since when CloudWatch has taken nothing although it was asked.
        is_behind: the oldest record has waited for longer than batch_timeout_seconds and a request may take.
        requests: how many requests to send records were answered, by outcome.
        sent_bytes: the bodies of these.
        request_seconds: how many took at most so many seconds, by bound ("+Inf": all), and their "sum".
        settings: the newest writer's settings for sending that differ from the defaults.
        settings_from: that writer, as host/pid.
        unable: processes that led before and gave way because they could not deliver, with their reasons.
        disk_free_bytes: what the disk has beside it.
        used_bytes: the disk space that the ring takes.
        history_bytes: the disk space that delivered records take beside that (keep_delivered).
        history_seconds: how long the oldest of those have been delivered; None if none is kept.
        records_per_second: how fast the leader delivers.
        last_success_seconds: how long ago CloudWatch last took records.
        leader_silent_seconds: how long the leader has written nothing. It has nothing to write while nothing is
            pending, and between two tries.
        leader_is_stopped: the leader is proven to be a stopped process (SIGSTOP, a debugger).
        stopped_flusher: records wait and no process leads, because this one keeps the flusher's lock, and is proven to
            be a stopped process: its pid.
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
    epoch: int
    appended: int
    delivered: int
    pending: int
    pending_bytes: int
    oldest_pending_seconds: float | None
    dead_lettered: dict[str, int]
    dead_letters: dict[str, int]
    dead_letters_dropped: int = 0
    replayed: dict[str, int]
    evicted: int
    refused: dict[str, int]
    lost: int
    is_losing: bool
    lost_since: str | None
    lost_until: str | None
    lost_why: str | None
    lost_is_over: bool = False
    resent: int
    corrupt_bytes: int
    capacity_bytes: int
    last_error: str | None
    last_failure: str | None = None
    obstacle: leader_state.Obstacle
    last_success: str | None
    failing_since: str | None
    is_behind: bool
    requests: dict[str, int]
    sent_bytes: int
    request_seconds: dict[str, float]
    settings: dict[str, Any]
    settings_from: str | None
    unable: list[dict[str, Any]]
    used_bytes: int
    disk_free_bytes: int | None
    history_bytes: int
    history_seconds: float | None
    records_per_second: float
    last_success_seconds: float | None
    leader_silent_seconds: float
    leader_is_stopped: bool
    stopped_flusher: int | None = None
    led_by_host: str | None
    written_by: str
    orphan_seconds: float | None

    @property
    def fill(self) -> float:
        """How full the spool is, from 0 to 1, of what it may have, and its disk has."""
        return Room(self.used_bytes, self.capacity_bytes, self.disk_free_bytes).fill

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, as `cwsink status --json` prints them."""
        shown: dict[str, Any] = msgspec.to_builtins(self)
        return shown


class Stats(msgspec.Struct, frozen=True):
    """All spools of a root at one moment.

    Attributes:
        spools: those that can be read.
        unreadable: the path of each other one, and of a file that the disk cannot read, with the reason.
    """

    spools: list[SpoolStats]
    unreadable: dict[str, str]


def stats(path: str | None = None) -> Stats:
    """Look at the spools at `path`. It takes about 1 ms for each, and longer while a large backlog waits.

    Dead letters are counted in their file, up to 8 MiB, which takes some 50 ms. Any process may call this, and it
    writes nothing. It reads files, so an event loop should call it in a thread while a backlog may be large.

    Args:
        path: a spool, or a directory that holds several. The default is where a worker would put its spool.

    Raises:
        SpoolError: the directory cannot be read; or `path` is not there, or holds other files and no spool. A slip of
            the pen must not look like a place where nothing waits. An empty directory is a root without a spool yet.
    """
    expect_spools(path)
    return look_below(path)


def look_below(path: str | None) -> Stats:
    """Do as `stats` for who watches: where nothing is yet, there are no spools. Raises SpoolError."""
    found = Stats([], {})
    paths = find_spools(path)
    for spool in paths:
        _add(spool, found)
    place = os.path.abspath(path) if path else choose_root(None, os.environ, make=False)
    if paths != [place]:
        found.unreadable.update(closed_spools(place))
    return found


def _add(path: str, found: Stats) -> None:
    try:
        with disk.at_once() as failing:
            found.spools.append(look(open_existing(path, read_only=True)))
        found.unreadable.update(dict.fromkeys(sorted(failing), disk.UNREADABLE_FILE))
    except Exception as error:  # whatever another user has planted there, the other spools are shown
        found.unreadable[path] = str(error)


def look(directory: SpoolDirectory) -> SpoolStats:
    """Look at one spool. Raises OSError."""
    with open_directory.staying_in(directory.path):
        return _look(directory)


def _look(directory: SpoolDirectory) -> SpoolStats:
    is_led = lease.is_taken(directory)
    books = survey(directory)
    published = leader_state.read(directory) or _NOBODY
    leader = leadership.named(directory, books.epoch, published) if is_led else None
    now = time.time()
    seen_at_ns = files.written_at_ns(directory.cursor, directory.leader_state, directory.leader_host)
    silent_seconds = max(0.0, now - seen_at_ns / 1e9)
    is_stopped = leader is not None and leadership.is_stopped(leader, directory)
    age = None if books.oldest_pending_ms is None else max(0.0, now - books.oldest_pending_ms / 1000)
    is_current = leader is not None and published.epoch == leader.epoch
    other = heartbeat.elsewhere(directory)
    state = state_of(
        pending=books.pending,
        is_led=leader is not None,
        doing=published.state if is_current else "idle",
        is_stopped=is_stopped,
        is_silent=min(silent_seconds, age or 0.0) >= leadership.STALLED_SECONDS,
    )
    kept: list[history.Kept] = []
    with suppress(OSError):  # whoever has closed it, the books are shown
        kept = history.kept(directory)
    is_orphan = state == "no_leader" and orphans.is_left_alone(directory)
    found = sending.read(directory)
    settings = found.settings if found else {}
    return SpoolStats(
        path=directory.path,
        log_group_name=directory.format.log_group_name,
        log_stream_name=directory.format.log_stream_name,
        region=directory.format.region,
        state=state,
        leader=leader,
        oldest_pending_seconds=None if age is None else round(age, 3),
        is_behind=(age or 0.0) > sending.seconds_in(settings, "batch_timeout_seconds", *sending.REQUEST),
        settings=sending.shown(settings),
        settings_from=found.written_by if found else None,
        history_bytes=sum(each.used_bytes for each in kept),
        history_seconds=round(max(0.0, now - min(each.since for each in kept)), 3) if kept else None,
        records_per_second=published.records_per_second if is_current else 0.0,
        leader_silent_seconds=round(silent_seconds, 3),
        leader_is_stopped=is_stopped,
        stopped_flusher=leadership.stopped_flusher(directory) if state == "no_leader" and not is_orphan else None,
        led_by_host=other.mark.host if other else None,
        written_by=directory.format.host,
        orphan_seconds=round(max(0.0, now - (last_append(directory) or now)), 3) if is_orphan else None,
        **_counts(books),
        **_letters(directory, books),
        **_published(published, now),
        **_losses(directory, books, now),
    )


def _counts(books: Survey) -> dict[str, Any]:
    counts = msgspec.structs.asdict(books)  # the fields have the same names here, except for this one
    del counts["oldest_pending_ms"]
    return counts


def _letters(directory: SpoolDirectory, books: Survey) -> dict[str, Any]:
    """Return what became of the dead letters."""
    done = letters.read(directory)
    left, dropped = done.left(books.dead_lettered), 0
    with suppress(OSError):  # whoever has closed their file, the books say how many there should be
        left, dropped = letters.there(directory)
    return {"dead_letters": left, "dead_letters_dropped": dropped, "replayed": done.replayed}


def _published(published: leader_state.Published, now: float) -> dict[str, Any]:
    """Return what is known by the last leader."""
    last_success = _possible(published.last_success)
    bounds = [f"{bound:g}" for bound in leader_state.REQUEST_SECONDS]
    seconds = published.request_seconds
    so_far = (
        dict(zip([*bounds, "+Inf"], accumulate(seconds[:-1]), strict=True)) if len(seconds) == len(bounds) + 2 else {}
    )
    return {
        "last_error": published.last_error,
        "last_failure": _moment(published.last_failure),
        "obstacle": published.obstacle,
        "last_success": _moment(last_success),
        "last_success_seconds": _ago(last_success, now),
        "failing_since": _moment(published.failing_since),
        "requests": published.requests,
        "sent_bytes": published.sent_bytes,
        "request_seconds": {**so_far, "sum": round(seconds[-1], 6)} if so_far else {},
        "unable": [msgspec.structs.asdict(each) for each in published.unable],
    }


def _losses(directory: SpoolDirectory, books: Survey, now: float) -> dict[str, Any]:
    """Return how much room there is, and what was lost for want of it, or for other reasons."""
    held = room.measure(directory)
    lost = books.evicted + sum(books.refused.values())
    said = told.read(directory) or told.Told()
    since, until = said.since, said.until
    is_unsaid = lost > sum(said.lost.values()) + books.refused.get("unencodable", 0)
    if is_unsaid:  # it will be said in a minute, or never, because all stderr is /dev/null
        until = files.written_at_ns(directory.refusals, directory.evictions) / 1e9
        since = since or until
    is_recent = now - until < 2 * alerts.AGAIN_SECONDS
    is_full = bool(books.pending) and held.is_nearly_full
    may_go_on = is_recent or (is_full and is_anyone_attached(directory))  # nobody logs: no more is lost, however full
    is_losing = (is_unsaid and is_recent) or (said.trouble == "losing" and may_go_on)
    reasons = loss_causes.by_reason(books.refused, books.evicted)
    over = loss_causes.over(directory, reasons, held)
    may_return = is_full and not is_losing
    why = over or loss_causes.in_words(directory, reasons, held, has_pending=books.pending > 0, may_return=may_return)
    return {
        "lost": lost,
        "is_losing": is_losing,
        "lost_since": _moment(since or None),
        "lost_until": _moment(until or None),
        "lost_why": why if lost else None,
        "lost_is_over": bool(over),
        "used_bytes": held.used,
        "capacity_bytes": held.capacity,
        "disk_free_bytes": held.free,
    }


def _moment(seconds: float | None) -> str | None:
    return None if seconds is None else naming.rfc3339(int(seconds * 1000))


def _ago(seconds: float | None, now: float) -> float | None:
    return None if seconds is None else round(max(0.0, now - seconds), 3)


def _possible(seconds: float | None) -> float | None:
    """Return a time, or None if no clock can have shown it: the file is damaged, and no time is shown."""
    return seconds if seconds is not None and 0 <= seconds <= MOST_SECONDS else None


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
