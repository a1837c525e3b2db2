"""Lets a world happen: starts its members, does to them what the plan says, lifts all faults, and asks for the verdict.

All that was done is in the trace, which a failure shows with the seed. Each wait has a bound, and says what it waited
for. The members of a world are forked by a warm process, so they begin within 10 ms.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from cwsink.errors import SpoolError
from cwsink.spool import directory
from cwsink.spool.directory import SpoolDirectory
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.faults.own_processes import FLUSHER, GUARD, ours
from tests.faults.own_processes import kill as kill_ours
from tests.faults.world import processes, troubles
from tests.faults.world.book import BEGUN, ENDING, STAYING, TAKEN, Book
from tests.faults.world.member import work
from tests.faults.world.plan import (
    DEAD_PROXY,
    DRAIN_SECONDS,
    GOOD_KEYS,
    SETTINGS,
    Member,
    Plan,
    Step,
    heir_of,
    id_of,
    lines_of,
)
from tests.faults.world.surroundings import OTHER_USER, arrange, count_users, mounting_command
from tests.faults.world.verdict import Evidence, arrivals, breaches, letters_of, pending_of
from tests.harness.warm_forker import WarmForker

_YOUNG_SECONDS: Final = 1.0
# Guards against a hang: a member begins, or comes to its end, within this time on a machine that is busy.
MEMBER_SECONDS: Final = 60.0
# From the end of the last member to that of our last process: drain_timeout_seconds, the wait for the next program ...
GONE_SECONDS: Final = 2 * DRAIN_SECONDS + 20.0  # ... and a machine that has time for it


class Happening:
    """One world in a directory of its own, which other users may enter."""

    def __init__(self, plan: Plan, server: StrictCloudWatch, spawn: Spawn, place: Path, *, name: str) -> None:
        """`name`: how a failure names this world, for example by its seed."""
        self.plan = plan
        self.server = server
        self.place = place
        self.counts: Counter[str] = Counter()
        self._name = name
        self._began = time.monotonic()
        self._trace: list[str] = []
        self._pids: dict[int, int] = {}
        self._killed: set[int] = set()
        self._told: set[int] = set()
        self._serving: set[int] = set()
        self._books: dict[int, Book] = {}
        self._dead_senders: set[str] = set()
        for part, mode in (("shared", 0o1777), ("books", 0o755), ("said", 0o1777), ("home", 0o1777)):
            (place / part).mkdir()
            (place / part).chmod(mode)
        self._roots = {"shared": place / "shared", "small": place / "disk" / "spools"}
        self._forker = WarmForker(self._spawn_arranged(spawn) if mounting_command() else spawn, work)
        self._troubles = troubles.Troubles(server, self._seen(place / "disk"))

    def _spawn_arranged(self, spawn: Spawn) -> Spawn:
        """Start the warm process, and so all of its children, in surroundings of their own."""

        def start(code: str) -> subprocess.Popen[str]:
            script = self.place / "warm.py"
            script.write_text(f"from {arrange.__module__} import arrange\narrange({str(self.place)!r})\n{code}")
            launcher = "import os, sys\nos.execvp(sys.argv[1], sys.argv[1:])\n"
            return spawn(launcher, *mounting_command(), sys.executable, script)

        return start

    # What happens.

    def happen(self) -> None:
        """Take all steps, come to an end, and judge. Raises AssertionError, with all that is needed to see why."""
        try:
            for step in self.plan.steps:
                self._say(str(step))
                self.counts[step.do] += 1
                self._take(step)
                self._look()
            self._end()
            found = list(breaches(self._evidence()))
            assert not found, "\n".join(found)
        except (AssertionError, OSError) as error:
            raise AssertionError(f"{error}\n{self._report()}") from error

    def _take(self, step: Step) -> None:
        if step.do == "start":
            self._start(self.plan.members[step.who])
        elif step.do == "kill":
            self._kill_member(step.who)
        elif step.do == "end":
            self._tell_to_end(step.who)
        elif step.do == "interrupt":
            os.kill(self._pids[step.who], signal.SIGINT)
            self._told.add(step.who)
        elif step.do == "kill ours":
            self._kill_ours({"flusher": [FLUSHER], "guard": [GUARD], "both": [GUARD, FLUSHER]}[step.name])
        elif step.do == "starve":
            self._starve(step.seconds)
        elif step.do == "server":
            self._troubles.misbehave(step.name)
        elif step.do == "spoil":
            self._spoil(step.name)
        elif step.do == "await":
            book = self._books[step.who]
            self._until(lambda: book.state >= STAYING, f"member {step.who} has done all its acts", MEMBER_SECONDS)
        elif step.do == "pause":
            time.sleep(step.seconds)
        elif step.do == "settle":
            self._troubles.misbehave("heal")
            self._troubles.free_disk()
            self._settle()
        elif step.do == "wait for call":
            stored = self.server.summary()["events"]
            assert self.server.wait_for_events(stored + 1, MEMBER_SECONDS), "no call stored anything"
        elif step.do == "fill":
            self._troubles.fill_disk()
        elif step.do == "free":
            self._troubles.free_disk()
        else:
            raise ValueError(step.do)

    def _start(self, member: Member) -> None:
        """Start a member. The first one of its group makes the spool, so wait until it has."""
        is_first = member.logs and not any(self.plan.members[number].group == member.group for number in self._pids)
        count = sum(map(len, lines_of(member)))
        path = self.place / "books" / f"{member.number}"
        self._books[member.number] = Book(path, count)
        root = self._roots[member.root]
        spec = {
            "member": msgspec.to_builtins(member),
            "user": OTHER_USER if member.user else None,
            "next_user": OTHER_USER if count_users() > 1 and not member.user else None,
            "root": str(root),
            "home": str(self.place / "home"),
            "book": str(path),
            "stderr": str(self.place / "said" / f"{member.number}"),
            "settings": self._settings(member, root),
        }
        rules = self.plan.rules.get(member.group)
        is_rival = rules is not None and rules.is_roomy and member.is_stingy
        self._pids[member.number] = self._forker.fork(spec)
        if is_first or is_rival:
            self._await_begin(member.number)
        if rules and is_rival and not self._has_roomy_companion(member):
            # Nobody else logs there, so from now on its smaller budget holds.
            self.plan.rules[member.group] = msgspec.structs.replace(rules, is_roomy=False, may_evict=True)

    def _has_roomy_companion(self, member: Member) -> bool:
        others = (self.plan.members[number] for number in self._pids)
        return any(
            other.group == member.group and not other.is_stingy and self._stays(other.number) for other in others
        )

    def _starve(self, seconds: float) -> None:
        """Let our flushers open no file for a while. Who is starved while it begins just ends, and shows nothing."""
        pids = [each.pid for each in self._ours() if processes.age_seconds(each.pid) > _YOUNG_SECONDS]
        for number, pid in self._pids.items():
            if not self.plan.members[number].logs and processes.has_threads(pid):  # one for each spool that it serves
                pids.append(pid)
                self._serving.add(number)
        processes.starve(pids, seconds)

    def _settings(self, member: Member, root: Path) -> dict[str, Any]:
        return {
            "log_group_name": member.group or "/world/none",
            "endpoint_url": self.server.endpoint_url,
            "spool_directory": str(root),
            **SETTINGS,
        }

    def _tell_to_end(self, number: int) -> None:
        member = self.plan.members[number]
        if member.logs:
            self._books[number].tell_to_end()
        elif number not in self._told and not processes.has_ended(self._pids[number]):
            os.kill(self._pids[number], signal.SIGTERM)
        self._told.add(number)

    def _kill_member(self, number: int) -> None:
        """SIGKILL it. Of one below `cwsink run`, kill the supervisor, or the program and let the supervisor end."""
        pid = self._pids[number]
        below = self._books[number].pid
        if self.plan.members[number].role == "run" and number % 2 and below:
            pid = below
        if not processes.has_ended(pid) and processes.kill(pid):
            self._killed.add(number)
            self._dead_senders.add(str(pid))

    def _kill_ours(self, names: list[str]) -> None:
        for root in self._roots.values():
            for each in ours(root):
                if each.name in names and kill_ours(each, root):
                    self.counts[each.name] += 1
                    self._dead_senders.add(str(each.pid))

    def _spoil(self, name: str) -> None:
        root = self._roots["shared"]
        if name == "settings":
            troubles.lose_settings(root)
        else:
            troubles.leave_unusable_spool(self._settings(Member(0, "writer", "/beside"), root))

    # What has to come true.

    def _settle(self) -> None:
        """Wait until all is settled that a process of the world can deliver, while all who live go on logging."""
        for number in self._pids:
            self._await_begin(number)
        able = [group for group in self.plan.rules if self._can_deliver(group, moved=False)]
        self._say(f"(can be delivered: {', '.join(able) or 'nothing'})")
        self._await_delivery(able, self.plan.live_seconds)

    def _await_delivery(self, groups: list[str], seconds: float) -> None:
        wanted = {group: self._taken(group) for group in groups}
        until = time.monotonic() + seconds
        while waiting := self._waiting(wanted):
            self._look()
            if time.monotonic() >= until:
                told = [f"{group}: {len(lines)} ({', '.join(sorted(lines)[:5])})" for group, lines in waiting.items()]
                raise AssertionError(f"not settled within {seconds:g} s, though they could be: {'; '.join(told)}")
            time.sleep(0.1)

    def _waiting(self, wanted: dict[str, set[str]]) -> dict[str, set[str]]:
        """Return the lines of `wanted` that wait in a spool that somebody can deliver."""
        arrived = {arrival.line for arrival in arrivals(self.server.events())}
        waiting = {}
        for group, lines in wanted.items():
            wanted[group] = lines = lines - arrived
            spools = [spool for spool in self._spools(group) if self._is_served(spool, group)] if lines else []
            if pending := lines & pending_of(spools) - letters_of(spools).keys():
                waiting[group] = pending
        return waiting

    def _taken(self, group: str) -> set[str]:
        found = set()
        for number, book in self._books.items():
            member = self.plan.members[number]
            if member.group == group:
                told = book.told()
                every = (line for lines in lines_of(member) for line in lines)
                found |= {id_of(line) for line in every if told[line.number] == TAKEN}
        return found

    def _is_served(self, spool: SpoolDirectory, group: str) -> bool:
        """Tell whether a spool of a deliverable group can be delivered, too. Who becomes another user makes one more.

        That one is served only by a process that has become that user as well.
        """
        return self._can_deliver(group, moved=self.place / "home" in Path(spool.path).parents)

    def _may(self, member: Member, group: str) -> bool:
        """Tell whether a member has the rights, the network and the flusher that delivery to a group takes."""
        has_rights = member.key in GOOD_KEYS or bool(self.plan.rules[group].role)
        return has_rights and DEAD_PROXY not in member.env.values() and member.has_flusher

    def _can_deliver(self, group: str, *, moved: bool) -> bool:
        """Tell whether a process lives that has what it takes, and goes on logging or stands for election.

        `moved`: for the spool of those who have become another user, or else for the group's own.
        """
        users = {(member.user, member.root) for member in self.plan.members if member.group == group}
        for number in self._pids:
            member = self.plan.members[number]
            if member.logs:
                serves = member.group == group and member.changes_user == moved
            else:
                serves = (member.user, member.root) in users and not moved
            if serves and self._may(member, group) and self._stays(number):
                return True
        return False

    def _stays(self, number: int) -> bool:
        """Tell whether a member lives until it is told to end."""
        member, book = self.plan.members[number], self._books[number]
        if processes.has_ended(self._pids[number]) or number in self._killed:
            return False
        has_begun = BEGUN <= book.state < ENDING
        return not member.logs or (has_begun and not book.is_told_to_end and not member.leaves_early)

    def _end(self) -> None:
        """Lift all faults and end all members. Then a healthy one of each group delivers the rest, and all is over."""
        self._say("the end")
        self._troubles.misbehave("heal")
        self._troubles.allow_all()
        self._troubles.free_disk()
        for number in self._serving - self._told - self._killed:
            assert not processes.has_ended(self._pids[number]), f"`cwsink flush`, member {number}, has ended by itself"
        for number in self._pids:
            self._tell_to_end(number)
        self._await_ends(list(self._pids))
        healthy = []
        for group in self.plan.rules:
            started = [m for m in self.plan.members if m.group == group and m.number in self._pids]
            if started:
                first = min(started, key=lambda member: member.is_stingy)
                for changes_user in sorted({False, *(member.changes_user for member in started)}):
                    healthy.append(len(self.plan.members))
                    self.plan.members.append(heir_of(first, healthy[-1], changes_user=changes_user))
                    self._start(self.plan.members[-1])
        for number in healthy:
            self._await_begin(number)
        self._say(f"healthy ones: {healthy}")
        self._await_delivery(list(self.plan.rules), self.plan.live_seconds)
        for number in healthy:
            self._tell_to_end(number)
        self._await_ends(healthy)
        self._say("nobody logs")
        self._until(lambda: not self._left(), "no process of the world is left", GONE_SECONDS, self._left)

    def _await_begin(self, number: int) -> None:
        book, pid = self._books[number], self._pids[number]
        self._until(
            lambda: not book.told() or book.state >= BEGUN or processes.has_ended(pid),
            f"member {number} has begun",
            MEMBER_SECONDS,
        )

    def _await_ends(self, numbers: list[int]) -> None:
        for number in numbers:
            member = self.plan.members[number]
            self._until(lambda number=number: self._is_over(number), f"member {number} has ended", MEMBER_SECONDS)  # type: ignore[misc]
            code = self._forker.wait(self._pids[number])
            if number not in self._killed and code not in self._right_codes(member):
                raise AssertionError(f"member {number} ended with {code} instead of {self._right_codes(member)}")

    def _is_over(self, number: int) -> bool:
        """Tell whether a member has ended. If `cwsink run` was killed, its program may have yet to begin."""
        below = f'/books/{number}"'  # only its program has that on its command line
        has_ended = processes.has_ended(self._pids[number])
        return has_ended and not any(below in words for words in processes.marked(self.place).values())

    def _right_codes(self, member: Member) -> set[int]:
        """Return the exit codes with which a member may end that nobody has killed."""
        if member.role == "run":  # that of its program, below which anything may be killed
            return set(range(256))
        if member.role == "flush":  # 1: not all is delivered. It may be told again while the interpreter ends.
            return {0, 1, -signal.SIGTERM}
        if member.root == "small" and not self._books[member.number].state:  # on a full disk no spool can be made
            return {1}
        return {-signal.SIGKILL if member.ending == "SIGKILL" else 0}

    # What is seen.

    def _look(self) -> None:
        """Note the flushers of `cwsink run`: if the supervisor has to kill one, it does so without us."""
        for pid, words in processes.marked(self.place).items():
            if "--supervised" in words:
                self._dead_senders.add(str(pid))

    def _ours(self) -> list[Any]:
        return [each for root in self._roots.values() for each in ours(root)]

    def _left(self) -> dict[int, str]:
        warm = self._forker.pid
        return {
            pid: words[:300] for pid, words in processes.marked(self.place).items() if pid not in (warm, os.getpid())
        }

    def _seen(self, path: Path) -> Path:
        """Return a path of the world as this process sees it: the small disk is there for the members only."""
        return Path(f"/proc/{self._forker.pid}/root{path}") if path.is_relative_to(self.place / "disk") else path

    def _spools(self, group: str) -> list[SpoolDirectory]:
        found = []
        for place in (self.place, self._seen(self._roots["small"])):
            for path in place.rglob("FORMAT"):
                with contextlib.suppress(SpoolError):
                    spool = directory.open_existing(str(path.parent), read_only=True)
                    if spool.format.log_group_name == group:
                        found.append(spool)
        return found

    def _evidence(self) -> Evidence:
        spools = {group: self._spools(group) for group in self.plan.rules}
        told = {number: book.told() for number, book in self._books.items()}
        seen = self.server.events(), self.server.requests
        return Evidence(self.plan, told, *seen, spools, self._dead_senders, self._troubles.cuts)

    def _until(
        self, condition: Callable[[], bool], claim: str, seconds: float, found: Callable[[], object] | None = None
    ) -> None:
        until = time.monotonic() + seconds
        while not condition():
            self._look()
            assert time.monotonic() < until, f"never within {seconds:g} s: {claim} {found() if found else ''}"
            time.sleep(0.05)

    def _say(self, what: str) -> None:
        self._trace.append(f"{time.monotonic() - self._began:6.2f} {what}")

    def told(self) -> str:
        """Return the figures of this world."""
        taken = sum(book.told().count(TAKEN) for book in self._books.values())
        dead = self.counts[FLUSHER] + self.counts[GUARD]
        return (
            f"{taken} lines acknowledged by {len(self._books)} members, {len(self.server.requests)} requests, "
            f"{len(self._killed)} members and {dead} flushers and guards killed"
        )

    def _report(self) -> str:
        """Return who was in this world, what happened to them, and what they said."""
        lines = [f"{self._name}: members"]
        lines += [f"  {member}" for member in self.plan.members]
        lines += ["steps (seconds)", *(f"  {each}" for each in self._trace), "what members and flushers said"]
        for path in sorted((self.place / "said").iterdir()):
            said = path.read_text(errors="replace").splitlines()
            lines += [f"  {path.name}: {line[:400]}" for line in said[-25:]]
        return "\n".join(lines)
