"""What can be seen of a spool: is everything delivered, how far behind is it, and why.

`look` makes a `SpoolView` of one spool from its files. It asks no other process, so it works while all others are
stuck. `cwsink status` shows views. `flush --once` takes from a view why it gives up. The decisions (`state_of`, `why`)
are pure.
"""

from __future__ import annotations

import contextlib
import shlex
import time
from dataclasses import dataclass
from typing import Any, Final, Literal

from msgspec.structs import asdict

from cwsink import host
from cwsink.cli import text
from cwsink.flusher.outcome import advice_on
from cwsink.spool import capacity, files, heartbeat, leader_state, leadership, orphans, sending
from cwsink.spool.budget import used_bytes
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.leadership import Leader, leader_of
from cwsink.spool.survey import last_append, survey

State = Literal["idle", "delivering", "retrying", "circuit_open", "stalled", "no_leader"]

# A leader that has written nothing for this long does not move. No call (connecting, waiting for the answer) takes
# longer, and no pause of an open circuit.
STALLED_SECONDS: Final = 30.0


@dataclass
class Report:
    """One spool, as `--json` prints it. Counts are records unless the name has a unit.

    Attributes:
        settings: the newest writer's settings for sending that differ from the defaults.
        settings_from: that writer, as host/pid.
        unable: processes that led before and gave way because they could not deliver, with their reasons.
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


@dataclass
class SpoolView:
    """A report, and what only `cwsink status` for people shows.

    Attributes:
        is_stopped: the leader is proven to be a stopped process (SIGSTOP, a debugger).
        silent_seconds: how long the leader has written nothing.
        success_seconds: how long ago CloudWatch took the last records, or None.
        records_per_second: the leader's rate.
        used_bytes: the disk space that the ring takes.
        written_by: the host whose processes log there.
        orphan_seconds: how long no process has logged there, if the spool is an orphan; else None.
        elsewhere: the host of the leader, if that is another host; else None.
    """

    report: Report
    is_stopped: bool
    silent_seconds: float
    success_seconds: float | None
    records_per_second: float
    used_bytes: int
    written_by: str
    orphan_seconds: float | None
    elsewhere: str | None


def look(directory: SpoolDirectory) -> SpoolView:
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
    counts = asdict(books)  # a report has fields of the same names, except for these two
    del counts["epoch"], counts["oldest_pending_ms"]
    is_orphan = state == "no_leader" and orphans.is_left_alone(directory)
    report = Report(
        path=directory.path,
        log_group_name=directory.format.log_group_name,
        log_stream_name=directory.format.log_stream_name,
        region=directory.format.region,
        state=state,
        leader=leader,
        oldest_pending_seconds=None if age is None else round(age, 3),
        capacity_bytes=held.spool_max_bytes if held else directory.format.spool_max_bytes,
        last_error=published.last_error,
        last_success=None if last_success is None else text.rfc3339(int(last_success * 1000)),
        settings=sending.shown(found.settings) if found else {},
        settings_from=found.written_by if found else None,
        unable=[asdict(each) for each in published.unable],
        **counts,
    )
    return SpoolView(
        report,
        is_stopped=is_stopped,
        silent_seconds=silent_seconds,
        success_seconds=None if last_success is None else max(0.0, now - last_success),
        records_per_second=published.records_per_second if is_current else 0.0,
        used_bytes=used_bytes(directory.ring),
        written_by=directory.format.host,
        orphan_seconds=max(0.0, now - (last_append(directory) or now)) if is_orphan else None,
        elsewhere=other.mark.host if other else None,
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


def sentence(error: str) -> str:
    """Return an error's text with one full stop at its end."""
    return f"{error.rstrip('. ')}."


def why(view: SpoolView) -> str:
    """Return why records are pending: a few sentences, which are shown after the label "why"."""
    report, leader = view.report, view.report.leader
    if report.state == "no_leader":
        if view.elsewhere is not None:
            return f"Host {view.elsewhere} leads this spool, and sends them. Two hosts must not share a spool."
        if view.orphan_seconds is not None:
            return _why_orphan(view, view.orphan_seconds)
        return "No process leads. They are sent when a worker logs again, or by `cwsink flush --once`."
    if report.state == "stalled" and leader is not None:
        who = f"The leader (pid {leader.pid} on {leader.host})"
        if view.is_stopped:
            return (
                f"{who} is a stopped process. `kill -CONT {leader.pid}` lets it go on. If it ends, another one leads."
            )
        return f"{who} has not moved for {text.duration(view.silent_seconds)}. If it ends, another one leads."
    if report.state in ("retrying", "circuit_open") and report.last_error:
        return (
            f"{sentence(report.last_error)}\n{advice_on(report.last_error)} The leader tries again until it succeeds."
        )
    return "They are being sent."


def _why_orphan(view: SpoolView, silent_seconds: float) -> str:
    """Return how the spool came to be left behind, as far as that can be known, and which command sends it."""
    silent = text.duration(silent_seconds)
    command = f"`cwsink replay {shlex.quote(view.report.path)}`"
    if view.written_by != host.name():
        return (
            f"An orphan of host {view.written_by} (this one is {host.name()}): nobody has logged there for "
            f"{silent}.\n{command} sends them where they were meant to go."
        )
    return (
        f"No process leads, and none that logged there is left: nobody has for {silent}.\nThey are sent when a worker "
        f"with these settings logs again. If none will: {command}."
    )
