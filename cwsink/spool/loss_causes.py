"""Why records of a spool are lost, and what to do about it: the words of each line and page that says so."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from typing import Final

from cwsink import words
from cwsink.clock import wall
from cwsink.spool import files, leader_state, leadership, lease
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.leader_state import Obstacle
from cwsink.spool.room import Room

EVICTED: Final = "evicted"
UNENCODABLE: Final = "unencodable"
INTERNAL_ERROR: Final = "internal_error"
# Of these reasons the spool, or its disk, is full.
_FULL: Final = frozenset((EVICTED, "spool_full"))
_OTHER_CAUSES: Final = {
    "io_error": "the disk fails, or the process that logs has reached a limit or may not write there",
    UNENCODABLE: "they are empty, no text, or too long",
    INTERNAL_ERROR: "to spool them raised an exception, which the line `LOST a record` of that process names",
}
_OWNER_WRITES: Final = stat.S_IWUSR | stat.S_IXUSR
NO_FILE: Final = "No file can be made there, because the inodes are used up"

# A line tells of what was lost in the last minute, and may come somewhat later.
_LINE_SECONDS: Final = 90.0

# What else may be done about a full spool, by what hinders the leader.
_REMEDIES: Final[Mapping[Obstacle, str]] = {
    "credentials": "give the flusher valid AWS credentials",
    "denied": "allow what CloudWatch refuses",
    "unreachable": "see why CloudWatch cannot be reached",
    "busy": "ask AWS for a higher quota",
    "": "log less",
}


def by_reason(refused: Mapping[str, int], evicted: int) -> dict[str, int]:
    """Return how many records of a spool are lost, by reason."""
    return {**refused, **({EVICTED: evicted} if evicted else {})}


def in_words(
    directory: SpoolDirectory, reasons: Mapping[str, int], room: Room, *, has_pending: bool, may_return: bool = False
) -> str:
    """Return why records are lost for these reasons, and what to do: some sentences. Raises OSError.

    Args:
        directory, reasons, room, has_pending: see `cause_and_remedy`.
        may_return: none is lost now, but the spool is as full as it was then.
    """
    cause, remedy = cause_and_remedy(directory, reasons, room, has_pending=has_pending)
    now = "None is lost now, but if a process logs, more soon will be. " if may_return else ""
    return f"{cause}. {now}{remedy}"


def cause_and_remedy(
    directory: SpoolDirectory, reasons: Mapping[str, int], room: Room, *, has_pending: bool
) -> tuple[str, str]:
    """Return why records are lost for these reasons, and what to do: a part of a sentence, and a sentence.

    Args:
        directory: the spool.
        reasons: of the records that are lost.
        room: what there is now.
        has_pending: records wait. If none does, nobody is told to send them.

    Raises:
        OSError: the spool cannot be looked at.
    """
    cause = _cause(directory, reasons, room)
    if _FULL & reasons.keys():
        because = why_it_stays_full(directory, room) if has_pending else ""
        return cause + because, remedy(directory, room, has_pending=has_pending)
    if "io_error" not in reasons:
        is_ours = INTERNAL_ERROR in reasons
        return cause, "Correct what logs them{}.".format(", or report that line to cwsink" if is_ours else "")
    if closed := _closed(directory):
        return cause, f"Let its owner write: `chmod u+rwx {words.quoted(closed[0])}`."
    return cause, (
        "The line `cannot append to` of that process names the error: see to that disk, to its permissions, and to "
        "`ulimit -a`."
    )


def over(directory: SpoolDirectory, reasons: Mapping[str, int], room: Room) -> str:
    """Return what made the spool lose records, if that is over; "" if it is not, or cannot be told. Raises OSError."""
    known = reasons.keys() - {UNENCODABLE}
    if not known or known - _FULL or room.is_full:
        return ""
    return f"{_cause(directory, reasons, room)}. That is over: there is room now."


def _cause(directory: SpoolDirectory, reasons: Mapping[str, int], room: Room) -> str:
    found = [_full_of(room)] if _FULL & reasons.keys() else []
    others = dict(_OTHER_CAUSES)
    if "io_error" in reasons and (closed := _closed(directory)):
        others["io_error"] = f"the owner of {closed[0]} may not write there (mode {closed[1]:04o})"
    found += [others.get(reason, reason) for reason in reasons if reason not in _FULL]
    return " and ".join(found)


def _closed(directory: SpoolDirectory) -> tuple[str, int] | None:
    """Return a directory of the spool in which its owner, who logs there, may not write, and its mode."""
    for path in (directory.path, directory.ring):
        mode = stat.S_IMODE(files.seen(path).st_mode)
        if mode & _OWNER_WRITES != _OWNER_WRITES:
            return path, mode
    return None


def _full_of(room: Room) -> str:
    """Return what is full, or was: whose records have left the spool meanwhile, or whose disk has room again."""
    if room.lacks_files:
        return f"the disk is full, with {words.size(room.free or 0)} free: {NO_FILE[0].lower()}{NO_FILE[1:]}"
    if room.is_disk_small:
        return f"the disk is full ({words.size(room.free or 0)} free)" if room.is_full else "the disk was full"
    return "the spool is full" if room.is_full else "the spool, or its disk, was full"


def why_it_stays_full(directory: SpoolDirectory, room: Room) -> str:
    """Return why it does not get emptier, to be put behind a statement."""
    published = leader_state.read(directory)
    if not lease.is_taken(directory):
        if published is None or not (published.obstacle and published.last_error):
            return "; no process sends"
        return f"; no process sends; before that, {_trouble(published.last_error)}"
    if (still := leadership.standstill(directory)) is not None:
        who = f"the leader (pid {still.leader.pid} on {still.leader.host})"
        silent = words.duration(still.silent_seconds)
        return f"; {who} is a stopped process" if still.is_stopped else f"; {who} has not moved for {silent}"
    if published is not None and published.obstacle and published.last_error:
        since = published.failing_since
        how_long = "" if since is None else f" for {words.duration(max(0.0, wall() - since))}"
        return f"; {_trouble(published.last_error, 'has ')}{how_long}"
    if room.lacks_files:
        return ""
    if published is not None and _is_recent(published.outage_until):
        ago = words.duration(wall() - published.outage_until)
        return f"; {_trouble(published.outage)} until {ago} ago"
    if room.is_of_others:
        return f"; other files take {words.size(room.others)} of the disk"
    # The records may have been lost while nobody led.
    is_known = published is not None and not _is_recent(published.since)
    return "; records come faster than they are sent" if is_known else ""


def _trouble(error: str, has: str = "") -> str:
    """Return what hinders, or hindered, the leader. `has`: "has " if it still does."""
    code = error.partition(":")[0]
    return f"delivery {has}failed ({code})" if code.endswith("Error") else f"CloudWatch {has}answered {code}"


def _is_recent(moment: float) -> bool:
    return 0 <= wall() - moment < _LINE_SECONDS


def remedy(directory: SpoolDirectory, room: Room, *, has_pending: bool) -> str:
    """Return what to do about a spool that is full, or nearly: a sentence."""
    if room.lacks_files:
        first = "Remove files from that disk (`df -i` counts them)"
    elif room.is_disk_small:
        first = "Make room on the disk" if room.is_full else "Give the spool a larger disk"
    else:
        first = "Raise spool_max_bytes"
    is_led = lease.is_taken(directory)
    if has_pending and not is_led:
        return f"{first}, or have it sent by {words.to_send(directory.path)}."
    if is_led and (still := leadership.standstill(directory)) is not None:
        pid = still.leader.pid
        if still.is_stopped:
            return f"{first}, or let the leader go on: `kill -CONT {pid}`."
        return f"{first}, or see what keeps the leader (pid {pid}). If it ends, another one leads."
    published = leader_state.read(directory) if is_led else None
    obstacle = published.obstacle if published else ""
    is_no_remedy_to_log_less = (
        room.lacks_files or room.is_of_others or (published is not None and _is_recent(published.outage_until))
    )
    return f"{first}." if is_no_remedy_to_log_less and not obstacle else f"{first}, or {_REMEDIES[obstacle]}."
