"""What a world consists of: members, what each of them does, and what happens to them, drawn from a seed (pure).

A member is one process that logs, or one that only delivers. A group is a log group with its own spool. What a member
logs follows from its acts alone, so the member and the verdict make the same lines, and need not tell each other.
"""

from __future__ import annotations

import hashlib
import random
from typing import Any, Final, NamedTuple

import msgspec

POISON: Final = "POISON"
GOOD_KEYS: Final = ("AKIAGOOD0", "AKIAGOOD1")
DENIED_KEYS: Final = ("AKIADENIED0", "AKIADENIED1")
# What a member that has done all its acts logs at most, one line each HEARTBEAT_SECONDS, until it is told to end.
HEARTBEATS: Final = 1_500
HEARTBEAT_SECONDS: Final = 0.2
SEGMENT_BYTES: Final = 16 * 1024
# More than a world ever logs.
ROOMY_BYTES: Final = 64 << 20
# CloudWatch takes events of the last 14 days, and of the next 2 hours.
DAY: Final = 86_400
TOO_OLD_SECONDS: Final = -14 * DAY
TOO_NEW_SECONDS: Final = 2 * 3_600
MAX_EVENT_BYTES: Final = 2_048
ROLE_ARN: Final = "arn:aws:iam::123456789012:role/{}"
DRAIN_SECONDS: Final = 2.0
# What all members have in common.
SETTINGS: Final = {
    "log_stream_name": "s",
    "region": "us-east-1",
    "batch_timeout_seconds": 0.1,
    "retry_base_delay": 0.05,
    "circuit_breaker_enabled": False,
    "connect_timeout_seconds": 2.0,
    "read_timeout_seconds": 5.0,
    "drain_timeout_seconds": DRAIN_SECONDS,
    "max_event_bytes": MAX_EVENT_BYTES,
}
# No proxy listens there.
DEAD_PROXY: Final = "http://127.0.0.1:9"

# Under these limits a writer may refuse.
EXCUSES: Final = ("size",)

# How often the draw takes each of these.
_DENIED: Final = 0.35
_LIMITS: Final = ("files", "size")
_CLOCKS: Final = (-400 * DAY, -3_600, -2, 2, 3_600, 3 * 3_600)
_SERVER: Final = ("throttle", "drip", "latency", "outage", "lost answers", "errors", "junk")


class Act(msgspec.Struct, frozen=True):
    """One thing that a member does.

    Attributes:
        do: "log", "fork" (a child logs, and ends by os._exit), "pause", "limit", "lift", "clock" or "user".
        count, size: how many lines, and the length of each, in characters.
        gap_seconds: the pause after each line.
        threads: how many threads log the lines, in turn.
        is_poison: the server refuses these lines.
        seconds: of the pause; or what the clock shows too much from now on.
        limit: "files": no file can be opened. "size": no file can grow beyond 4 KiB.
    """

    do: str
    count: int = 0
    size: int = 100
    gap_seconds: float = 0.0
    threads: int = 1
    is_poison: bool = False
    seconds: float = 0.0
    limit: str = ""

    def __str__(self) -> str:
        what = (
            f"{self.count}x{self.size}" if self.count else self.limit or (f"{self.seconds:g}" if self.seconds else "")
        )
        return " ".join(filter(None, [self.do, what, "poison" if self.is_poison else ""]))


class Member(msgspec.Struct, frozen=True):
    """One process with its identity.

    Attributes:
        number: of the member in its world.
        role: "writer", "fapilog", "run" (a writer below `cwsink run`) or "flush" (`cwsink flush`, which logs nothing).
        group: the log group; "" for `cwsink flush`, which serves all spools of its user.
        root: "shared" or "small", which is a small disk.
        user: 0 for the user of the test, 1 for another one.
        key: its AWS access key.
        settings: the settings of its sink beside those that all have.
        env: more variables of its environment.
        acts: what it does, before it logs a line now and then until it is told to end.
        ending: "in order", "os._exit" or "SIGKILL".
        leaves_early: it does not wait until it is told to end.
    """

    number: int
    role: str
    group: str
    root: str = "shared"
    user: int = 0
    key: str = GOOD_KEYS[0]
    settings: dict[str, Any] = {}
    env: dict[str, str] = {}
    acts: list[Act] = []
    ending: str = "in order"
    leaves_early: bool = False

    def __str__(self) -> str:
        place = f"{self.group or 'all'} in {self.root}"
        end = f"ends {self.ending}{' early' if self.leaves_early else ''}"
        details = [f"{name}={value}" for name, value in {**self.settings, **self.env}.items()]
        head = f"{self.number} {self.role} of {place}, user {self.user}, {self.key}, {end}"
        return f"{head}: {' '.join(details)} | {', '.join(map(str, self.acts))}"

    @property
    def is_stingy(self) -> bool:
        """Tell whether it asks for less room than a group needs that may lose nothing."""
        return bool(self.settings.get("spool_max_bytes", ROOMY_BYTES) < ROOMY_BYTES)

    @property
    def has_flusher(self) -> bool:
        """Tell whether it delivers by itself, or starts what does."""
        return self.settings.get("flusher") != "external"

    @property
    def changes_user(self) -> bool:
        """Tell whether it becomes another user."""
        return any(act.do == "user" for act in self.acts)

    @property
    def logs(self) -> bool:
        """Tell whether it logs at all."""
        return self.role != "flush"


def heir_of(member: Member, number: int, *, changes_user: bool) -> Member:
    """Return a healthy member that logs to the same group, and delivers what the others have left there.

    Args:
        member: one of the others.
        number: the heir's number.
        changes_user: it also delivers what is in the spool of those who have become another user.
    """
    return Member(
        number,
        "writer",
        member.group,
        member.root,
        member.user,
        settings={**member.settings, "flusher": "process"},
        acts=[Act("log", 1), *([Act("user"), Act("log", 1)] if changes_user else [])],
    )


class Rules(msgspec.Struct, frozen=True):
    """What holds for the spool of a group.

    Attributes:
        is_roomy: all that the world logs fits into its budget, so that no line may be refused or evicted.
        may_evict: what waits may be thrown away for what is new.
        role: its records are sent with this role; "": with the access key of the process that sends.
    """

    is_roomy: bool = True
    may_evict: bool = False
    role: str = ""


class Step(msgspec.Struct, frozen=True):
    """One thing that happens in the world.

    Attributes:
        do: "start", "kill", "end" or "interrupt" a member; "kill ours"; "starve" (our flushers can open no file for
            `seconds`); "server" (`name` says how it misbehaves, "heal" that it stops); "fill" and "free" the small
            disk; "pause"; "wait for call" (until the server has stored more); "await" (until a member has done all its
            acts); "spoil" (lose the "settings" of all spools, or put one beside them with a "target" that cannot be
            used); "settle" (server and disk heal, and what can be delivered has to be).
        who: the number of the member.
        name: which misbehaviour, or which processes of ours: "flusher", "guard" or "both".
    """

    do: str
    who: int = -1
    name: str = ""
    seconds: float = 0.0

    def __str__(self) -> str:
        parts = [self.do, str(self.who) if self.who >= 0 else "", self.name]
        return " ".join(filter(None, [*parts, f"{self.seconds:g} s" if self.seconds else ""]))


class Plan(msgspec.Struct, frozen=True):
    """A world.

    Attributes:
        live_seconds: what can be delivered is delivered within this time.
        most_calls: of PutLogEvents; 0 for no bound.
    """

    members: list[Member]
    steps: list[Step]
    rules: dict[str, Rules]
    live_seconds: float = 60.0
    most_calls: int = 0


class Line(NamedTuple):
    """One line that a member logs.

    Attributes:
        lane: the lines of one lane are logged by one thread, and their times do not go backwards.
        shift_seconds: what the member's clock shows too much.
    """

    member: int
    number: int
    size: int
    is_poison: bool
    lane: tuple[int, int, int]
    shift_seconds: float

    @property
    def text(self) -> str:
        """What is logged: a function of the line."""
        digest = hashlib.sha256(f"{self.member}.{self.number}".encode()).hexdigest()
        head = f"{id_of(self)} {POISON if self.is_poison else ''} "
        return (head + digest * (self.size // len(digest) + 1))[: max(self.size, len(head))]


def id_of(line: Line) -> str:
    """Return the text by which a line is known; all have the same length."""
    return f"w{line.member:03d}.{line.number:05d}"


ID_CHARACTERS: Final = 10


def lines_of(member: Member) -> list[list[Line]]:
    """Return the lines of each act of a member; at the end those of its heartbeats."""
    found: list[list[Line]] = []
    number, shift, era = 0, 0.0, 0
    has_moved = False
    for index, act in enumerate([*member.acts, Act("log", HEARTBEATS, 40)] if member.logs else []):
        lines = []
        if act.do == "clock":
            shift, era = act.seconds, era + 1
        has_moved = has_moved or act.do == "user"
        for each in range(act.count):
            is_main = act.do == "log" and act.threads == 1
            lane = (member.number, era, 0) if is_main else (member.number, index + 1, each % act.threads + 1)
            if has_moved:  # soon, but not at once, its records go to another spool
                lane = (member.number, -1, number)
            lines.append(Line(member.number, number, act.size, act.is_poison, lane, shift))
            number += 1
        found.append(lines)
    return found


def draw(seed: int, *, users: int, has_small_disk: bool, length: int) -> Plan:
    """Draw a world of so many steps."""
    return _Drawing(random.Random(seed), users, has_small_disk).plan(length)


class _Drawing:
    def __init__(self, chance: random.Random, users: int, has_small_disk: bool) -> None:
        self._chance = chance
        self._users = users
        self._has_small_disk = has_small_disk
        self._members: list[Member] = []

    def plan(self, length: int) -> Plan:
        chance = self._chance
        rules = {}
        for index in range(chance.choice((2, 2, 3))):
            self._group(f"/world/{index}", rules, index)
        if self._has_small_disk and chance.random() < 0.5:
            self._group("/world/small", rules, 0, root="small")
        for user in sorted({member.user for member in self._members}):
            if chance.random() < 0.5 or any(m.user == user and not m.has_flusher for m in self._members):
                self._members.append(self._flush(user))
        return Plan(self._members, list(self._steps(length, rules)), rules)

    def _group(self, name: str, rules: dict[str, Rules], index: int, *, root: str = "shared") -> None:
        chance = self._chance
        user = 0 if root == "small" else index % self._users
        is_roomy = root != "small" and chance.random() < 0.6
        budget: dict[str, Any] = {"spool_max_bytes": ROOMY_BYTES, "segment_bytes": SEGMENT_BYTES}
        if not is_roomy:
            policy = {"on_full": chance.choice(("drop_oldest", "drop_oldest", "drop_newest", "block"))}
            budget = {"spool_max_bytes": chance.choice((32, 64, 128)) << 10, "block_timeout_seconds": 0.05, **policy}
        role = chance.choice(("", "", "", f"role{index}"))
        if role:
            budget["role_arn"] = ROLE_ARN.format(role)
        rules[name] = Rules(is_roomy=is_roomy, may_evict=budget.get("on_full") == "drop_oldest", role=role)
        for index in range(chance.choice((1, 2, 3))):
            self._members.append(self._writer(name, root, user, budget, is_roomy=is_roomy))
            # The first one's budget holds. (fapilog does not say whether a line was refused.)
            if index and is_roomy and chance.random() < 0.3 and self._members[-1].role != "fapilog":
                self._members[-1].settings.update(spool_max_bytes=64 << 10, on_full="drop_oldest")
                self._members[-1].settings.pop("segment_bytes", None)

    def _writer(self, group: str, root: str, user: int, budget: dict[str, Any], *, is_roomy: bool) -> Member:
        chance = self._chance
        roles = ["writer"] * 6 + ["fapilog", "run"] * is_roomy
        role = chance.choice(roles if root == "shared" else ["writer"])
        settings = dict(budget)
        settings["batch_size"] = chance.choice((1, 20, 1_000))
        settings["max_batch_events"] = chance.choice((20, 50, 50, 200))
        settings["compression"] = chance.choice(("none", "gzip"))
        settings["oversize"] = chance.choice(("drop", "drop", "truncate", "split"))
        settings["durability"] = chance.choice(("process", "process", "host"))
        if role == "writer" and root == "shared" and chance.random() < 0.2:
            settings["flusher"] = "external"
        return Member(
            len(self._members),
            role,
            group,
            root,
            user,
            chance.choice(DENIED_KEYS if chance.random() < _DENIED else GOOD_KEYS),
            settings,
            acts=list(self._acts(role, is_roomy=is_roomy)),
            ending=chance.choice(("in order", "in order", "os._exit", "SIGKILL")),
            leaves_early=chance.random() < 0.3,
        )

    def _flush(self, user: int) -> Member:
        chance = self._chance
        key = chance.choice(DENIED_KEYS if chance.random() < _DENIED else GOOD_KEYS)
        return Member(len(self._members), "flush", "", user=user, key=key)

    def _acts(self, role: str, *, is_roomy: bool) -> Any:
        chance = self._chance
        yield Act("log", chance.choice((1, 5, 30)))
        for _ in range(chance.choice((3, 4, 6))):
            draw = chance.random()
            gap = chance.choice((0.0, 0.0, 0.002, 0.01))
            if draw < 0.3:
                yield Act("log", chance.choice((10, 60, 200)), chance.choice((60, 100, 300)), gap)
            elif draw < 0.4:
                yield Act("log", chance.choice((1, 3, 40, 80)), 60, is_poison=True)
            elif draw < 0.5:
                yield Act("log", 30, 80, gap, threads=3)
            elif draw < 0.58:
                yield Act("log", 3, 3_000)
            elif draw < 0.7:
                yield Act("pause", seconds=chance.choice((0.1, 0.5, 1.2)))
            elif role == "fapilog":  # it does not say whether a line was refused
                yield Act("log", 20, 80, 0.01)
            elif draw < 0.77:
                yield Act("fork", 20, 80)
            elif draw < 0.79:
                yield Act("user") if role == "writer" else Act("pause", seconds=0.2)
                # The writer notices it within a second. It opens a spool of the new user now, while it can open files.
                yield Act("pause", seconds=1.0)
                yield Act("log", 1, 80)
            elif draw < 0.9:
                limit = chance.choice(_LIMITS)
                yield Act("limit", limit=limit)
                # Under "files" no more than fits into a segment: with that, a writer need not open a file.
                yield Act("log", 20, 100, 0.02)
                yield Act("pause", seconds=chance.choice((0.1, 0.9)))
                yield Act("lift")
            else:
                yield Act("clock", seconds=chance.choice(_CLOCKS))
                yield Act("log", 10, 80, gap)
                yield Act("clock")

    def _steps(self, length: int, rules: dict[str, Rules]) -> Any:
        chance = self._chance
        waiting = [member.number for member in self._members]
        chance.shuffle(waiting)
        started: list[int] = []
        is_full = False
        for index in range(length):
            if waiting and (index < 3 or chance.random() < 0.6):
                started.append(waiting.pop())
                yield Step("start", started[-1])
            draw = chance.random()
            if draw < 0.35:
                yield Step("pause", seconds=chance.choice((0.05, 0.2, 0.6)))
            elif draw < 0.55:
                yield Step("server", name=chance.choice(_SERVER))
            elif draw < 0.65:
                yield Step("server", name="heal")
            elif draw < 0.8:
                yield Step("kill ours", name=chance.choice(("flusher", "flusher", "guard", "both")))
            elif draw < 0.87:
                yield Step("starve", seconds=chance.choice((0.2, 0.8)))
            elif draw < 0.93 and started:
                yield Step(chance.choice(("kill", "end")), started.pop(chance.randrange(len(started))))
            elif "/world/small" in rules:
                is_full = not is_full
                yield Step("fill" if is_full else "free")
        yield from (Step("start", number) for number in waiting)
        yield Step("pause", seconds=0.3)
        yield Step("settle")
