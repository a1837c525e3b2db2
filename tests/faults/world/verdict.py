"""The verdict on a world, from outside: what members were told, what the server stored, what lies in the spools.

Each rule is a function that yields what breaks it. No rule asks cwsink what it did, but for the books of each spool,
whose sums are a promise of their own.
"""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from cwsink.spool import survey
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import Survey
from cwsink.testing import StoredEvent, StoredRequest
from tests.faults.world.book import ISSUED, NOTHING, REFUSED, TAKEN
from tests.faults.world.plan import (
    DAY,
    ID_CHARACTERS,
    MAX_EVENT_BYTES,
    TOO_NEW_SECONDS,
    TOO_OLD_SECONDS,
    Line,
    Plan,
    id_of,
    lines_of,
)
from tests.harness.support import is_ours

_ID: Final = re.compile(r"w\d{3}\.\d{5}")
# fapilog wraps a line into an entry of at most so many bytes more.
_ENTRY_BYTES: Final = 600
# A request that arrived so shortly before the server went away may have been answered into the void.
_CUT_SECONDS: Final = 3.0
# The calls that are denied if all goes well are one in 5 s, and one more for each leader that begins.
_DENIED_AT_MOST: Final = 40
_DENIED_A_SECOND: Final = 2
_SHOWN: Final = 12


class Arrival(NamedTuple):
    """A line that has arrived, put together again if it was split."""

    line: str
    text: str
    event: StoredEvent


class Evidence(NamedTuple):
    """All that is known of a world that has ended.

    Attributes:
        told: for each member, what became of each of its lines.
        spools: for each group, the spools that were made for it. A worker that becomes another user may make its own.
        dead: the senders (their pids) that were killed, or may have been.
        cuts: when the server began to go away and when it was gone, in seconds since 1970.
    """

    plan: Plan
    told: dict[int, bytes]
    events: list[StoredEvent]
    requests: list[StoredRequest]
    spools: dict[str, list[SpoolDirectory]]
    dead: set[str]
    cuts: list[float]


def arrivals(events: list[StoredEvent]) -> list[Arrival]:
    """Return what has arrived, in order, without what cwsink itself tells the stream."""
    found = []
    parts: dict[str, dict[int, StoredEvent]] = defaultdict(dict)
    for event in events:
        message, first = event.message, event
        if is_ours(message):
            continue
        if message.startswith('{"_cwsink_part"'):
            part = json.loads(message)["_cwsink_part"]
            pieces = parts[part["id"]]
            pieces[part["index"]] = event
            if len(pieces) < part["total"]:
                continue
            message = "".join(json.loads(pieces[index].message)["text"] for index in range(part["total"]))
            first = parts.pop(part["id"])[0]
        text = str(json.loads(message)["message"]) if message.startswith("{") else message
        found.append(Arrival(text[:ID_CHARACTERS], text, first))
    return found


def letters_of(spools: list[SpoolDirectory]) -> dict[str, str]:
    """Return the lines of some spools that are dead letters, with the reason of each."""
    found = {}
    for path in (Path(f"{spool.dead_letters}{older}") for spool in spools for older in (".1", "")):
        for line in path.read_bytes().splitlines() if path.exists() else []:
            letter = json.loads(line)
            if known := _ID.search(letter.get("message", "")):
                found[known[0]] = letter["reason"]
    return found


def pending_of(spools: list[SpoolDirectory]) -> set[str]:
    """Return the lines that wait in some spools."""
    events = (event for spool in spools for event in survey.events(spool))
    return {found[0] for event in events if (found := _ID.search(event.message))}


def books_of(spools: list[SpoolDirectory]) -> Survey:
    """Return the sum of the books of some spools."""
    total = Survey()
    dead: Counter[str] = Counter()
    for books in map(survey.survey, spools):
        for name in ("appended", "delivered", "evicted", "pending"):
            setattr(total, name, getattr(total, name) + getattr(books, name))
        dead.update(books.dead_lettered)
    total.dead_lettered = dict(dead)
    return total


def breaches(evidence: Evidence) -> Iterator[str]:
    """Yield what is not as it was promised."""
    case = _Case(evidence)
    yield from case.strangers()
    for group, spools in evidence.spools.items():
        for breach in case.of_group(group, spools):
            yield f"{group}: {breach}"
    yield from case.disorder()
    yield from case.repeats()
    yield from case.senders()
    yield from case.spinning()


class _Case:
    def __init__(self, evidence: Evidence) -> None:
        self._evidence = evidence
        plan = evidence.plan
        self._members = {member.number: member for member in plan.members}
        self._lines: dict[str, Line] = {}
        self._told: dict[str, int] = {}
        for member in plan.members:
            if member.number in evidence.told:
                every = [line for lines in lines_of(member) for line in lines]
                self._lines.update((id_of(line), line) for line in every)
                self._told.update((id_of(line), evidence.told[member.number][line.number]) for line in every)
        self._arrivals = arrivals(evidence.events)
        self._first: dict[str, Arrival] = {}
        for arrival in self._arrivals:
            self._first.setdefault(arrival.line, arrival)

    def group_of(self, line: str) -> str:
        return self._members[self._lines[line].member].group

    def strangers(self) -> Iterator[str]:
        """What arrived was logged, to that group, with that text, and the server takes it."""
        for line, text, event in self._arrivals:
            if self._told.get(line, NOTHING) == NOTHING:
                yield f"arrived and was never logged: {text[:100]!r} in {event.group}"
                continue
            logged = self._lines[line]
            may_be_cut = logged.size + _ENTRY_BYTES > MAX_EVENT_BYTES
            if text != logged.text and not may_be_cut:
                yield f"{line} arrived altered: {text[:100]!r}"
            if event.group != self.group_of(line):
                yield f"{line} was logged to {self.group_of(line)}, and arrived in {event.group}"

    def of_group(self, group: str, spools: list[SpoolDirectory]) -> Iterator[str]:
        """Each line of a group is accounted for, as the rules of its spool say."""
        told = {line: code for line, code in self._told.items() if self.group_of(line) == group}
        letters = letters_of(spools)
        books = books_of(spools)
        pending = pending_of(spools)
        taken = {line for line, code in told.items() if code == TAKEN}
        possible = taken | {line for line, code in told.items() if code == ISSUED}
        arrived = self._first.keys() & told.keys()
        missing = taken - arrived - letters.keys() - pending
        unkept = max(0, sum(books.dead_lettered.values()) - len(letters))
        if len(missing) > books.evicted + unkept:
            known = f"{books.evicted} evicted, {unkept} dead letters not kept"
            yield f"{len(missing)} lines lost, {known}: {_some(missing)}"
        if pending:
            yield f"{len(pending)} lines wait though all is over: {_some(pending)}"
        yield from self._wrong_letters(letters)
        yield from self._wrong_books(books, taken, possible, len(arrived))
        rules = self._evidence.plan.rules[group]
        if books.evicted and (rules.is_roomy or not rules.may_evict):
            yield f"{books.evicted} lines evicted, which the spool's own policy does not allow: {_some(missing)}"
        refused = [line for line, code in told.items() if code == REFUSED]
        if refused and rules.is_roomy:
            yield f"{len(refused)} lines refused though there is room: {_some(refused)}"
        keys = {request.access_key for request in self._stored() if request.group == group}
        mine = re.compile(rf"ASIA\d+{rules.role.upper()}" if rules.role else r"AKIA\w+")
        if wrong := [key for key in sorted(keys) if not mine.fullmatch(key)]:
            yield f"sent with the identity {', '.join(wrong)} instead of {rules.role or 'that of the sender'}"

    def _stored(self) -> list[StoredRequest]:
        return [request for request in self._evidence.requests if request.status in (0, 200) and request.events]

    def _wrong_letters(self, letters: dict[str, str]) -> Iterator[str]:
        for line, reason in letters.items():
            logged = self._lines.get(line)
            if logged is None or self._told[line] == NOTHING:
                yield f"a dead letter of what was never logged: {line}"
                continue
            shift = logged.shift_seconds
            is_right = {
                "poison": logged.is_poison,
                "too_old": shift <= TOO_OLD_SECONDS,
                "too_new": shift >= TOO_NEW_SECONDS,
                "oversize": logged.size + _ENTRY_BYTES > MAX_EVENT_BYTES,
            }.get(reason, False)
            if not is_right:
                yield f"{line} is a dead letter for no reason: {reason}"

    def _wrong_books(self, books: Survey, taken: set[str], possible: set[str], arrived: int) -> Iterator[str]:
        if not books.adds_up:
            yield f"the ledger does not add up: {books}"
        if not len(taken) <= books.appended <= len(possible):
            yield f"appended {books.appended}, but {len(taken)} to {len(possible)} lines were: {books}"
        # What a killed leader had sent and not committed may have been evicted later: it counts as that.
        if books.delivered > arrived or (books.delivered < arrived and not books.evicted):
            yield f"delivered {books.delivered}, but {arrived} lines have arrived: {books}"
        if "corrupt" in books.dead_lettered:
            yield f"nothing was damaged, but the ledger says so: {books}"

    def disorder(self) -> Iterator[str]:
        """The lines of one thread arrive in the order in which it logged them."""
        latest: dict[tuple[int, int, int], Line] = {}
        for line in self._first:
            # A line that is too long is a dead letter to one leader, and the next one may send it, by newer settings.
            if (logged := self._lines.get(line)) is None or logged.size + _ENTRY_BYTES > MAX_EVENT_BYTES:
                continue
            before = latest.get(logged.lane)
            if before is not None and logged.number < before.number:
                yield f"{line} arrived after {id_of(before)}, which the same thread logged later"
            else:
                latest[logged.lane] = logged

    def repeats(self) -> Iterator[str]:
        """A line arrives twice only if the answer to its request was lost, or the leader that sent it was killed."""
        evidence = self._evidence
        # A group may have two spools, since a member that has changed its user goes on in one of its own.
        last = {(request.group, request.epoch, request.sender): request for request in self._stored()}
        by_number = {request.number: request for request in evidence.requests}
        # A chunk that spans days, or holds poison, is several requests. Other settings, by which it is led anew, may
        # then repeat more than one of them.
        spans = {self.group_of(line) for line, each in self._lines.items() if abs(each.shift_seconds) >= DAY}
        poisoned = {self.group_of(line) for line, each in self._lines.items() if each.is_poison}
        before: dict[str, StoredRequest] = {}
        wrong: Counter[tuple[int, int]] = Counter()
        for line, _, event in self._arrivals:
            request = by_number[event.request]
            if (earlier := before.get(line)) is not None and event.group not in spans:
                is_last = last[earlier.group, earlier.epoch, earlier.sender] is earlier
                is_excused = is_last and earlier.sender in evidence.dead
                is_excused |= event.group in poisoned and earlier.epoch != request.epoch
                if not is_excused and not self._is_unanswered(earlier):
                    wrong[earlier.number, request.number] += 1
            before[line] = request
        for (first, again), count in wrong.items():
            both = f"{_shown(by_number[first])}, and again by {_shown(by_number[again])}"
            yield f"{count} lines were sent twice, although the first answer came: {both}"

    def _is_unanswered(self, request: StoredRequest) -> bool:
        at = request.time_seconds
        return request.status == 0 or any(at <= cut <= at + _CUT_SECONDS for cut in self._evidence.cuts)

    def senders(self) -> Iterator[str]:
        """At most one process sends under one epoch of a spool."""
        senders: dict[tuple[str | None, int | None], set[str]] = defaultdict(set)
        for request in self._evidence.requests:
            if request.group is not None:
                senders[request.group, request.epoch].add(request.sender)
        for (group, epoch), pids in senders.items():
            if len(pids) > max(1, len(self._evidence.spools.get(group or "", ()))):
                yield f"{group}: epoch {epoch} has several senders: {', '.join(sorted(pids))}"

    def spinning(self) -> Iterator[str]:
        """Who is denied tries seldom: after seconds, and whoever takes the lease tries once."""
        denied: dict[str | None, list[StoredRequest]] = defaultdict(list)
        for request in self._evidence.requests:
            if request.error == "AccessDeniedException":
                denied[request.group].append(request)
        if (most := self._evidence.plan.most_calls) and len(self._evidence.requests) > most:
            yield f"{len(self._evidence.requests)} calls; {most} are the most"
        for group, requests in denied.items():
            seconds = requests[-1].time_seconds - requests[0].time_seconds
            if len(requests) > _DENIED_AT_MOST + _DENIED_A_SECOND * seconds:
                yield f"{group}: {len(requests)} calls were denied in {seconds:.1f} s"


def _some(lines: object) -> str:
    every = sorted(lines)  # type: ignore[call-overload]
    return ", ".join(every[:_SHOWN]) + (f" ... {every[-1]}" if len(every) > _SHOWN else "")


def _shown(request: StoredRequest) -> str:
    return (
        f"request {request.number} to {request.group} (epoch {request.epoch}, pid {request.sender}, "
        f"{request.events} events, {request.time_seconds:.2f})"
    )
