"""Says on stderr what is lost of a spool, and what will be: no loss is silent, and none is called safe.

```text
80 % full, records wait     "the spool is 82 % full ..., and nothing is lost yet"    and once a minute
records are lost            "LOST 1,204 records (23,825 in all): the spool is ..."   at once, and once a minute
neither any more            "no record is lost any more: 23,825 were ..."            once
```

The leader looks once a second. A writer looks when it refuses a record, and when it makes another segment, so that
it is said without a leader, too. Of all of them one says it (cwsink.spool.told). A process whose stderr is closed, or
is /dev/null, leaves it to the others. `decide` is pure.
"""

from __future__ import annotations

import contextlib
import stat
import time
from collections import Counter
from collections.abc import Mapping
from typing import Final, NamedTuple

from msgspec.structs import replace

from cwsink import words
from cwsink.clock import monotonic, wall
from cwsink.diagnostics import is_heard, report, reset_quiet
from cwsink.spool import capacity, cursor, disk, files, leader_state, lease, open_directory, refusals, segment, told
from cwsink.spool.budget import read_evictions, used_bytes
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.leader_state import Obstacle
from cwsink.spool.told import Told

# What lasts is said this often.
AGAIN_SECONDS: Final = 60.0
# From this fill on records may soon be lost, and below this one that is over.
NEARLY_FULL: Final = 0.8
CALM: Final = 0.7
EVICTED: Final = "evicted"
_LOOK_SECONDS: Final = 1.0
_PASSING_SECONDS: Final = 3.0
# Of these reasons the spool, or its disk, is full.
_FULL: Final = frozenset((EVICTED, "spool_full"))
_UNENCODABLE: Final = "unencodable"
_OTHER_CAUSES: Final = {
    "io_error": "the disk fails, or the process that logs has reached a limit or may not write there",
    _UNENCODABLE: "they are empty, no text, or too long",
}
# A spool that is emptier than this by now was full when it lost records.
_STILL_FULL: Final = 0.5
_OWNER_WRITES: Final = stat.S_IWUSR | stat.S_IXUSR
SAFE: Final = "The records stay in the spool."
_NOT_SAFE: Final = "Records are being LOST."
_NO_FILE: Final = "No file can be made there, because the inodes are used up"
# An eviction frees an inode or two, so that there may be some while the lack of them costs records.
_FEW_FILES: Final = 8
# If no file can be made on a disk with so much room, it is not the room that lacks.
_PLENTY_BYTES: Final = 1024 * 1024

# What else may be done about a full spool, by what hinders the leader.
_REMEDIES: Final[Mapping[Obstacle, str]] = {
    "credentials": "give the flusher valid AWS credentials",
    "denied": "allow what CloudWatch refuses",
    "unreachable": "see why CloudWatch cannot be reached",
    "busy": "ask AWS for a higher quota",
    "": "log less",
}


class Room(NamedTuple):
    """How full a spool is, in bytes.

    Attributes:
        used: what its records take.
        capacity: what they may take.
        free: what the disk has beside that; None if it does not say.
        segment: what they take at a time.
        files: how many files more the disk takes; None if it does not count them.
    """

    used: int
    capacity: int
    free: int | None
    segment: int = 0
    files: int | None = None

    @property
    def lacks_files(self) -> bool:
        """Tell whether no file can be made on the disk although it has room: its inodes are used up."""
        return self.files is not None and self.files < _FEW_FILES and (self.free is None or self.free >= _PLENTY_BYTES)

    @property
    def is_disk_small(self) -> bool:
        """Tell whether the disk is full before the spool has what it may have."""
        return self.free is not None and self.used + self.free < self.capacity

    @property
    def is_full(self) -> bool:
        """Tell whether what may have been full is full now. It is not if there is room again for many records."""
        if self.lacks_files or self.fill >= _STILL_FULL:
            return True
        return self.is_disk_small and (self.free or 0) < _PLENTY_BYTES

    @property
    def fill(self) -> float:
        """The share of it that is used."""
        most = self.used + (self.free or 0) if self.is_disk_small else self.capacity
        return self.used / max(most, 1)

    @property
    def is_nearly_full(self) -> bool:
        """Tell whether records may soon be lost: it is 80 % full, or has room for one segment at most."""
        return self.fill >= NEARLY_FULL or self.used + 1.5 * self.segment > self.capacity


class Seen(NamedTuple):
    """What a look at a spool has found: how many records were lost and became dead letters, ever, by reason.

    Messages that are no text do not count here: the process that logs them has said so, and no spool is in trouble.
    """

    lost: dict[str, int]
    dead: dict[str, int]
    room: Room
    has_pending: bool


class Decision(NamedTuple):
    """What to say, and what was said then. `more`: how many more records are lost since the last line, by reason."""

    told: Told
    says: tuple[str, ...]
    more: dict[str, int]


def room_of(directory: SpoolDirectory) -> Room:
    """Return how full a spool is. Raises OSError."""
    held = capacity.read(directory)
    with open_directory.at(directory.ring) as ring:
        free, free_files = disk.free_bytes(ring.fd), disk.free_files(ring.fd)
    most = held.spool_max_bytes if held else directory.format.spool_max_bytes
    return Room(used_bytes(directory.ring), most, free, held.segment_bytes if held else 0, free_files)


def see(directory: SpoolDirectory) -> Seen:
    """Look at a spool. Raises OSError."""
    state, evictions = cursor.read(directory.cursor), read_evictions(directory)
    lost = Counter(state.ledger.refused) + Counter(evictions.refused) + Counter(refusals.counts(directory))
    del lost[_UNENCODABLE]
    if evictions.records:
        lost[EVICTED] = evictions.records
    dead = Counter(state.ledger.dead_lettered) + Counter(state.partial.dead_lettered)
    done = {key.number: end for key, end in state.committed().items()}
    sizes = {number: status.st_size for number, status in segment.statuses(directory.ring).items()}
    has_pending = any(size > max(segment.HEADER_BYTES, done.get(number, 0)) for number, size in sizes.items())
    return Seen(dict(lost), dict(dead), room_of(directory), has_pending)


def decide(said: Told, seen: Seen, now: float, *, is_last: bool = False) -> Decision:
    """Return what is to be said now.

    Args:
        said: what was said before.
        seen: what there is.
        now: seconds since 1970.
        is_last: who looks ends now, so that it cannot say the rest in a minute.
    """
    says: list[str] = []
    new = said
    more = dict(Counter(seen.lost) - Counter(said.lost))
    is_due = not 0 <= now - said.at < AGAIN_SECONDS
    is_full = seen.has_pending and seen.room.is_nearly_full
    if more and (said.trouble != "losing" or is_due or is_last):
        says.append("losing")
        since = said.since if said.trouble == "losing" else now
        new = replace(new, lost=seen.lost, trouble="losing", at=now, since=since, until=now)
    elif more:
        more = {}  # it is said when the minute is over
    elif said.trouble == "losing" and is_due and not is_full:
        says.append("over")
        new = replace(new, trouble="")
    elif said.trouble != "losing" and is_full and (said.trouble != "filling" or is_due):
        says.append("filling")
        new = replace(new, trouble="filling", at=now)
    elif said.trouble == "filling" and not is_full and not (seen.has_pending and seen.room.fill >= CALM):
        says.append("emptied")
        new = replace(new, trouble="")
    if Counter(seen.dead) - Counter(said.dead):
        new = replace(new, dead=seen.dead, dead_at=now)
    elif said.dead_at and not 0 <= now - said.dead_at < AGAIN_SECONDS:
        says.append("no more dead")
        new = replace(new, dead_at=0.0)
    return Decision(new, tuple(says), more)


class Alerts:
    """Says what is due of one spool. Each process that may say it has one."""

    def __init__(self, directory: SpoolDirectory) -> None:
        self.directory = directory
        self._look_at = 0.0
        self._said = Told()  # for a disk that has no room for the file

    def look(self, *, is_last: bool = False, at_once: bool = False) -> None:
        """Look, at most once a second, and say what is due. Never raises.

        Args:
            is_last: this process ends now.
            at_once: look now.
        """
        now = monotonic()
        if not (is_last or at_once) and self._look_at - _LOOK_SECONDS <= now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        with contextlib.suppress(OSError):
            if not is_heard():
                return
            seen, said = see(self.directory), told.read(self.directory)
            verdict = decide(said or self._said, seen, wall(), is_last=is_last)
            if verdict.told == (said or self._said):
                return
            if said is None:
                told.prepare(self.directory, lambda: self._said)

            def changed(before: Told) -> Told:
                nonlocal verdict
                verdict = decide(before, seen, wall(), is_last=is_last)
                return verdict.told

            if not told.change(self.directory, changed):
                if said is not None:
                    return  # another process says it
                self._said = verdict.told
            for kind in verdict.says:
                self._say(kind, verdict, seen)

    def fate(self) -> str:
        """Return what becomes of the records of the spool: a sentence for a line about trouble. Never raises."""
        return fate_of(self.directory)

    def _say(self, kind: str, verdict: Decision, seen: Seen) -> None:
        path, said = self.directory.path, verdict.told
        key = f"{kind}_{path}"
        reset_quiet(key)
        total = sum(seen.lost.values())
        if kind == "losing":
            what = f"LOST {words.records(sum(verdict.more.values()))} ({total:,} in all): "
            what += causes(self.directory, verdict.more, seen.room, has_pending=seen.has_pending)
        elif kind == "filling":
            room = seen.room
            of = f"its disk, {words.size(room.free or 0)} free" if room.is_disk_small else words.size(room.capacity)
            what = f"the spool is {room.fill:.0%} full ({words.size(room.used)} of {of}), and nothing is lost yet"
            what += f"{_because(self.directory, room)}. When it is full, records are LOST. "
            what += _remedy(self.directory, room, has_pending=True)
        elif kind == "over":
            lasted = words.duration(max(0.0, said.until - said.since))
            what = f"no record is lost any more: {total:,} were in all, these within {lasted}."
        elif kind == "emptied":
            what = f"the spool is {seen.room.fill:.0%} full again, and no record was lost meanwhile."
        else:
            command = f"`cwsink replay --dead-letters {words.quoted(path)}`"
            what = f"no more dead letters for a minute: {sum(seen.dead.values()):,} were in all. "
            what += f"{command} sends what can be sent."
        report(key, f"{what} Spool: {path}")


def told_now(directory: SpoolDirectory) -> Told:
    """Return a file's first content: what was lost before there was one is not said any more. Raises OSError."""
    seen = see(directory)
    return Told(lost=seen.lost, dead=seen.dead)


def fate_of(directory: SpoolDirectory) -> str:
    """Return what becomes of the records of a spool: a sentence for a line about trouble. Never raises."""
    with contextlib.suppress(OSError):
        said, seen = told.read(directory) or Told(), see(directory)
        if said.trouble == "losing" or Counter(seen.lost) - Counter(said.lost):
            return _NOT_SAFE
        if seen.has_pending and seen.room.is_nearly_full:
            return f"The spool is {seen.room.fill:.0%} full: soon records will be LOST."
        if seen.room.lacks_files:
            return f"{SAFE} {_NO_FILE}: see `df -i`."
    return SAFE


def is_healthy(directory: SpoolDirectory) -> bool:
    """Tell whether no record is lost now, and the leader, if there is one, can deliver. Never raises.

    Trouble that passes by itself (throttling, a lost connection) counts once it has lasted.
    """
    published = leader_state.read(directory)
    if published is not None and published.obstacle and lease.is_taken(directory):
        since = published.failing_since or 0.0
        if published.obstacle != "busy" or time.time() - since >= _PASSING_SECONDS:
            return False
    return fate_of(directory) != _NOT_SAFE


def reasons_of(refused: Mapping[str, int], evicted: int) -> dict[str, int]:
    """Return how many records of a spool are lost, by reason."""
    return {**refused, **({EVICTED: evicted} if evicted else {})}


def causes(directory: SpoolDirectory, reasons: Mapping[str, int], room: Room, *, has_pending: bool) -> str:
    """Return why records are lost for these reasons, and what to do: one or two sentences. Raises OSError."""
    return "{}. {}".format(*cause_and_remedy(directory, reasons, room, has_pending=has_pending))


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
        because = _because(directory, room) if has_pending else ""
        return cause + because, _remedy(directory, room, has_pending=has_pending)
    if "io_error" not in reasons:
        return cause, "Correct what logs them."
    if closed := _closed(directory):
        return cause, f"Let its owner write: `chmod u+rwx {words.quoted(closed[0])}`."
    return cause, (
        "The line `cannot append to` of that process names the error: see to that disk, to its permissions, and to "
        "`ulimit -a`."
    )


def over(directory: SpoolDirectory, reasons: Mapping[str, int], room: Room) -> str:
    """Return what made the spool lose records, if that is over; "" if it is not, or cannot be told. Raises OSError."""
    known = reasons.keys() - {_UNENCODABLE}
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
        return f"the disk is full, with {words.size(room.free or 0)} free: {_NO_FILE[0].lower()}{_NO_FILE[1:]}"
    if room.is_disk_small:
        return f"the disk is full ({words.size(room.free or 0)} free)" if room.is_full else "the disk was full"
    return "the spool is full" if room.is_full else "the spool, or its disk, was full"


def _because(directory: SpoolDirectory, room: Room) -> str:
    """Return why it does not get emptier, to be put behind a statement."""
    published = leader_state.read(directory)
    if not lease.is_taken(directory):
        return "; no process sends"
    if published is None or not published.obstacle or not published.last_error:
        return "" if room.lacks_files else "; records come faster than they are sent"
    code = published.last_error.partition(":")[0]
    what = f"delivery has failed ({code})" if code.endswith("Error") else f"CloudWatch has answered {code}"
    since = published.failing_since
    return f"; {what}" + ("" if since is None else f" for {words.duration(max(0.0, time.time() - since))}")


def _remedy(directory: SpoolDirectory, room: Room, *, has_pending: bool) -> str:
    if room.lacks_files:
        first = "Remove files from that disk (`df -i` counts them)"
    elif room.is_disk_small:
        first = "Make room on the disk" if room.is_full else "Give the spool a larger disk"
    else:
        first = "Raise spool_max_bytes"
    is_led = lease.is_taken(directory)
    if has_pending and not is_led:
        return f"{first}, or have it sent by {words.to_send(directory.path)}."
    published = leader_state.read(directory) if is_led else None
    obstacle = published.obstacle if published else ""
    return f"{first}." if room.lacks_files and not obstacle else f"{first}, or {_REMEDIES[obstacle]}."
