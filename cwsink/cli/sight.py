"""What can be seen of a spool: is everything delivered, how far behind is it, and why.

`look` makes a `SpoolView` of one spool from its files. It needs no leader and no cooperation, so it works while
everything else is stuck. `cwsink status` shows views, and `flush --once` says by one why it gives up. What is decided
here (`state_of`, `meaning_of`, `why`) is pure.
"""

from __future__ import annotations

import os
import shlex
import time
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any, Final, Literal

from cwsink.cli import text
from cwsink.flusher.outcome import Answer, Outcome, classify
from cwsink.spool import cursor, heartbeat, host, leader_state, lease, orphans, sending
from cwsink.spool.budget import used_bytes
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import Survey, last_append, survey

State = Literal["idle", "delivering", "retrying", "circuit_open", "stalled", "no_leader"]

# Longer than any call of the leader's takes (connecting, waiting for the answer), and than a pause
# of an open circuit.
STALLED_SECONDS: Final = 30.0

_MEANING: Final = {
    Outcome.RETRY: "CloudWatch is busy or out of reach.",
    Outcome.CREDENTIALS: "Check the AWS credentials and region of the leader; they are read anew at each try.",
    Outcome.DENIED: "Allow the action it names, or correct the setting.",
    Outcome.CREATE_TARGET: "The log group or stream is missing, and it may not be created.",
}
_BY_CODE: Final = {
    "EndpointConnectionError": "CloudWatch cannot be reached: is the network up, the endpoint or region right?",
    "ConnectTimeoutError": "CloudWatch cannot be reached: is the network up, the endpoint or region right?",
    "ConnectionClosedError": "The connection was closed before CloudWatch answered.",
    "ReadTimeoutError": "CloudWatch did not answer in time.",
    "ThrottlingException": "CloudWatch asks to send more slowly; there is nothing to do unless it lasts.",
}


@dataclass
class Leader:
    """Who holds the lease.

    Attributes:
        kind: "own" (started by a writer), "run", "service" (`cwsink flush`), "once" (`cwsink flush --once`).
        started_by: the process that started it, or None if a person or a service manager did.
    """

    pid: int
    host: str
    epoch: int
    kind: str
    started_by: str | None = None


@dataclass
class Report:
    """One spool, as `--json` prints it. Counts are records unless the name has a unit.

    Attributes:
        settings: how it is sent, as far as that differs from the defaults; the newest writer's.
        settings_from: that writer, as host/pid.
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

    @property
    def target(self) -> str:
        """Where the records go, for people."""
        return f"{self.log_group_name} → {self.log_stream_name}"


@dataclass
class Orphan:
    """What is known of a spool that was left behind. `silent_seconds`: since the last append."""

    written_by: str
    silent_seconds: float


@dataclass
class SpoolView:
    """A report, and what only people are shown.

    Attributes:
        is_stopped: the leader is proven to be a stopped process (SIGSTOP, a debugger).
        silent_seconds: how long the leader has written nothing.
        success_seconds: how long ago CloudWatch took the last records, or None.
        records_per_second: the leader's rate.
        used_bytes: of the disk, by the ring.
        orphan: set if nobody looks after the spool.
        elsewhere: the host whose leader has the spool, if it is not this one.
    """

    report: Report
    is_stopped: bool
    silent_seconds: float
    success_seconds: float | None
    records_per_second: float
    used_bytes: int
    orphan: Orphan | None = None
    elsewhere: str | None = None


def look(directory: SpoolDirectory) -> SpoolView:
    """Look at one spool. Raises OSError."""
    books = survey(directory)
    published = leader_state.read(directory)
    leader = _leader_of(directory, books, published)
    now = time.time()
    silent_seconds = max(0.0, now - max(map(_modified, (directory.cursor, directory.leader_state))))
    is_stopped = leader is not None and _is_stopped(leader.pid, directory.leader_lock)
    age = None if books.oldest_pending_ms is None else max(0.0, now - books.oldest_pending_ms / 1000)
    is_current = published is not None and leader is not None and published.epoch == leader.epoch
    last_success = published.last_success if published else None
    other = heartbeat.elsewhere(directory)
    found = sending.read(directory)
    state = state_of(
        pending=books.pending,
        is_led=leader is not None,
        doing=published.state if published and is_current else "idle",
        is_stopped=is_stopped,
        is_silent=min(silent_seconds, age or 0.0) >= STALLED_SECONDS,
    )
    report = Report(
        path=directory.path,
        log_group_name=directory.format.log_group_name,
        log_stream_name=directory.format.log_stream_name,
        region=directory.format.region,
        state=state,
        leader=leader,
        appended=books.appended,
        delivered=books.delivered,
        pending=books.pending,
        pending_bytes=books.pending_bytes,
        oldest_pending_seconds=None if age is None else round(age, 3),
        dead_lettered=books.dead_lettered,
        evicted=books.evicted,
        refused=books.refused,
        resent=books.resent,
        corrupt_bytes=books.corrupt_bytes,
        capacity_bytes=(published.capacity_bytes if published else 0) or directory.format.spool_max_bytes,
        last_error=published.last_error if published else None,
        last_success=None if last_success is None else _rfc3339(last_success),
        settings=sending.shown(found.settings) if found else {},
        settings_from=found.written_by if found else None,
    )
    return SpoolView(
        report,
        is_stopped=is_stopped,
        silent_seconds=silent_seconds,
        success_seconds=None if last_success is None else max(0.0, now - last_success),
        records_per_second=published.records_per_second if published and is_current else 0.0,
        used_bytes=used_bytes(directory.ring),
        orphan=_orphan_of(directory, now) if report.state == "no_leader" else None,
        elsewhere=other.mark.host if other else None,
    )


def state_of(*, pending: int, is_led: bool, doing: leader_state.Doing, is_stopped: bool, is_silent: bool) -> State:
    """Return the spool's state; the closed set is in `cwsink status --help`.

    Args:
        pending: records that are not settled.
        is_led: some process holds the lease.
        doing: what it said of itself.
        is_stopped: it is proven to be a stopped process.
        is_silent: it has written nothing for long although records were pending. A leader that waits
            between two tries has nothing to write.
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


def meaning_of(error: str) -> str:
    """Say what an error of the leader's means, and what to do."""
    code = error.partition(":")[0]
    return _BY_CODE.get(code) or _MEANING.get(classify(Answer(code=code)), _MEANING[Outcome.RETRY])


def sentence(error: str) -> str:
    """Return an error's text as a sentence, to be followed by another."""
    return f"{error.rstrip('. ')}."


def why(view: SpoolView) -> str:
    """Say why records are pending: one sentence or two, to be read after "why"."""
    report, leader = view.report, view.report.leader
    if report.state == "no_leader":
        if view.elsewhere is not None:
            return f"Host {view.elsewhere} leads this spool: two hosts must not share one. It sends them."
        if view.orphan is not None:
            return _why_orphan(view.orphan, report.path)
        return "No process leads. They are sent when a worker logs again, or by `cwsink flush --once`."
    if report.state == "stalled" and leader is not None:
        who = f"The leader (pid {leader.pid} on {leader.host})"
        if view.is_stopped:
            return (
                f"{who} is a stopped process. `kill -CONT {leader.pid}` lets it go on; if it ends, another one leads."
            )
        return f"{who} has not moved for {text.duration(view.silent_seconds)}. If it ends, another one leads."
    if report.state in ("retrying", "circuit_open") and report.last_error:
        return (
            f"{sentence(report.last_error)}\n{meaning_of(report.last_error)} The leader tries again until it succeeds."
        )
    return "They are being sent."


def _orphan_of(directory: SpoolDirectory, now: float) -> Orphan | None:
    if not orphans.is_left_alone(directory):
        return None
    appended_at = last_append(directory)
    return Orphan(directory.format.host, 0.0 if appended_at is None else max(0.0, now - appended_at))


def _why_orphan(orphan: Orphan, path: str) -> str:
    """Say how it came to be left behind, as far as can be known, and what to type."""
    silent = text.duration(orphan.silent_seconds)
    command = f"`cwsink replay {shlex.quote(path)}`"
    if orphan.written_by != host.name():
        return (
            f"An orphan of host {orphan.written_by} (this one is {host.name()}): nobody has logged there for "
            f"{silent}.\n{command} sends them where they were meant to go."
        )
    return (
        f"No process leads, and none that logged there is left: nobody has for {silent}.\nThey are sent when a worker "
        f"with these settings logs again. If none will: {command}."
    )


def _leader_of(directory: SpoolDirectory, books: Survey, published: leader_state.Published | None) -> Leader | None:
    if not lease.is_taken(directory):
        return None
    if published is not None and published.epoch >= books.epoch:
        return Leader(published.pid, published.host, published.epoch, published.kind, published.started_by or None)
    # It has not written leader.json (a full disk): the cursor names it, too.
    host, _, pid = cursor.read(directory.cursor).holder.rpartition("/")
    return Leader(int(pid), host, books.epoch, "unknown") if pid.isdecimal() else None


def _is_stopped(pid: int, lock_path: str) -> bool:
    """Return True only if process `pid` is proven to have the lease's file open, and to be stopped.

    A pid alone proves nothing: it may be of another container. False where there is no /proc.
    """
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state = file.read().rpartition(")")[2].split()[0]
        if state not in "Tt":
            return False
        lock = os.stat(lock_path)
        return any(_is_same(f"/proc/{pid}/fd/{fd}", lock) for fd in os.listdir(f"/proc/{pid}/fd"))
    except (OSError, IndexError):
        return False


def _is_same(path: str, status: os.stat_result) -> bool:
    try:
        return os.path.samestat(os.stat(path), status)
    except OSError:
        return False


def _modified(path: str) -> float:
    try:
        return os.stat(path).st_mtime
    except OSError:
        return 0.0


def _rfc3339(seconds: float) -> str:
    moment = datetime.fromtimestamp(seconds, timezone.utc)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
