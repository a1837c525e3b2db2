"""Says on stderr what is lost of a spool, and what will be: no loss is silent, and none is called safe.

```text
80 % full, records wait     "the spool is 82 % full ..., and nothing is lost yet"    at most once a minute
records are lost            "LOST 1,204 records (23,825 in all): the spool is ..."   at once, and once a minute
neither any more            "no record is lost any more: 23,825 were ..."            once
```

The leader looks once a second. A writer looks when it refuses a record, and when it makes another segment, so that
it is said without a leader, too. Of all of them one says it (cwsink.spool.told). A process whose stderr is closed, or
is /dev/null, leaves it to the others. `decide` is pure.
"""

from __future__ import annotations

from collections import Counter
from typing import Final, NamedTuple

from msgspec.structs import replace

from cwsink import words
from cwsink.clock import monotonic, wall
from cwsink.diagnostics import is_heard, report, reset_quiet
from cwsink.interruption import suppress
from cwsink.spool import cursor, leader_state, lease, loss_causes, page, refusals, room, segment, told
from cwsink.spool.budget import read_evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.room import Room
from cwsink.spool.told import Told

# What lasts is said this often.
AGAIN_SECONDS: Final = 60.0
# A spool that was nearly full is so no more below this fill.
_CALM: Final = 0.7
_LOOK_SECONDS: Final = 1.0
_PASSING_SECONDS: Final = 3.0
SAFE: Final = "The records stay in the spool."
_NOT_SAFE: Final = "Records are being LOST."


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


def see(directory: SpoolDirectory) -> Seen:
    """Look at a spool. Raises OSError."""
    state, evictions = cursor.read(directory.cursor), read_evictions(directory)
    lost = Counter(state.ledger.refused) + Counter(evictions.refused) + Counter(refusals.counts(directory))
    del lost[loss_causes.UNENCODABLE]
    dead = Counter(state.ledger.dead_lettered) + Counter(state.partial.dead_lettered)
    has_pending = segment.has_pending(directory.ring, state.committed())
    return Seen(loss_causes.by_reason(lost, evictions.records), dict(dead), room.measure(directory), has_pending)


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
    elif said.trouble != "losing" and is_full and is_due:
        # Bursts may fill a spool again and again. So it is said once a minute, whether it was emptied meanwhile or not.
        # The end is said at once, but only if the beginning was. So the last line is always true.
        says.append("filling")
        new = replace(new, trouble="filling", at=now)
    elif said.trouble == "filling" and not is_full and not (seen.has_pending and seen.room.fill >= _CALM):
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
        with suppress(OSError):
            if not is_heard():
                return
            seen, said = see(self.directory), told.read(self.directory)
            verdict = decide(said or self._said, seen, wall(), is_last=is_last)
            if verdict.told == (said or self._said):
                return
            if said is None:
                page.prepare(self.directory.told, lambda: self._said)

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

    def _say(self, kind: str, verdict: Decision, seen: Seen) -> None:
        path, said = self.directory.path, verdict.told
        key = f"{kind}_{path}"
        reset_quiet(key)
        total = sum(seen.lost.values())
        if kind == "losing":
            what = f"LOST {words.records(sum(verdict.more.values()))} ({total:,} in all): "
            what += loss_causes.in_words(self.directory, verdict.more, seen.room, has_pending=seen.has_pending)
        elif kind == "filling":
            has = seen.room
            of = f"its disk, {words.size(has.free or 0)} free" if has.is_disk_small else words.size(has.capacity)
            what = f"the spool is {has.fill:.0%} full ({words.size(has.used)} of {of}), and nothing is lost yet"
            what += f"{loss_causes.why_it_stays_full(self.directory, has)}. When it is full, records are LOST. "
            what += loss_causes.remedy(self.directory, has, has_pending=True)
        elif kind == "over":
            lasted = words.duration(max(0.0, said.until - said.since))
            what = f"no record is lost any more: {total:,} were in all, these within {lasted}."
        elif kind == "emptied" and seen.has_pending:
            what = f"the spool is {seen.room.fill:.0%} full again, and no record was lost meanwhile."
        elif kind == "emptied":  # it may look full until its segments are unlinked
            what = "no record waits any more, and none was lost meanwhile."
        else:
            sends = f"`cwsink replay --dead-letters {words.quoted(path)}` sends what can be sent"
            what = f"no more dead letters for a minute: {sum(seen.dead.values()):,} were in all. "
            what += f"{words.on_damage(path) if seen.dead.keys() == {'corrupt'} else sends}."
        report(key, f"{what} Spool: {path}")


def told_now(directory: SpoolDirectory) -> Told:
    """Return a file's first content: what was lost before there was one is not said any more. Raises OSError."""
    seen = see(directory)
    return Told(lost=seen.lost, dead=seen.dead)


def fate_of(directory: SpoolDirectory) -> str:
    """Return what becomes of the records of a spool: a sentence for a line about trouble. Never raises."""
    with suppress(OSError):
        said, seen = told.read(directory) or Told(), see(directory)
        if said.trouble == "losing" or Counter(seen.lost) - Counter(said.lost):
            return _NOT_SAFE
        if seen.has_pending and seen.room.is_nearly_full:
            return f"The spool is {seen.room.fill:.0%} full: soon records will be LOST."
        if seen.room.lacks_files:
            return f"{SAFE} {loss_causes.NO_FILE}: see `df -i`."
    return SAFE


def is_healthy(directory: SpoolDirectory) -> bool:
    """Tell whether no record is lost now, and the leader, if there is one, can deliver. Never raises.

    Trouble that passes by itself (throttling, a lost connection) counts once it has lasted.
    """
    published = leader_state.read(directory)
    if published is not None and published.obstacle and lease.is_taken(directory):
        since = published.failing_since or 0.0
        if published.obstacle != "busy" or wall() - since >= _PASSING_SECONDS:
            return False
    return fate_of(directory) != _NOT_SAFE
