"""Small worlds, each made for one thing that once went wrong. The verdict is that of every world."""

from __future__ import annotations

from typing import Any, Final

from tests.faults.world.plan import DENIED_KEYS, GOOD_KEYS, ROLE_ARN, Act, Member, Plan, Rules, Step

GROUP: Final = "/world/0"
_ROOMY: Final = {"spool_max_bytes": 64 << 20, "segment_bytes": 16 << 10}
_EXTERNAL: Final = {**_ROOMY, "flusher": "external"}
_ANOTHER_ROLE: Final = {"FAPILOG_CLOUDWATCH__ROLE_ARN": ROLE_ARN.format("other")}
# A scene whose defect is there fails after this time. Without it, each takes a few seconds.
_SECONDS: Final = 25.0


def log(count: int, size: int = 100, **more: Any) -> Act:
    return Act("log", count, size, **more)


def poison(count: int) -> Act:
    return Act("log", count, 60, is_poison=True)


def pause(seconds: float) -> Act:
    return Act("pause", seconds=seconds)


def start(*numbers: int) -> list[Step]:
    return [Step("start", number) for number in numbers]


def server(name: str) -> Step:
    return Step("server", name=name)


def scene(members: list[Member], *steps: Step, most_calls: int = 0) -> Plan:
    groups = {member.group: Rules() for member in members if member.group}
    return Plan(members, [*steps, Step("settle")], groups, _SECONDS, most_calls)


def writer(number: int, *acts: Act, key: str = GOOD_KEYS[0], settings: Any = None, **more: Any) -> Member:
    return Member(number, "writer", GROUP, key=key, settings=settings or _ROOMY, acts=list(acts), **more)


def flush(number: int, key: str = GOOD_KEYS[0], **more: Any) -> Member:
    return Member(number, "flush", "", key=key, **more)


# Beside what a world costs anyway, 2 * refused * log2(batch) + 10 for the refused ones.
_CALLS: Final = 150

SCENES: Final[dict[str, Plan]] = {
    "refused lines among others": scene(
        [writer(0, log(100), poison(64), log(100))], *start(0), most_calls=2 * 64 * 8 + 10 + _CALLS
    ),
    "refused lines alone, then others": scene(
        [writer(0, log(1), pause(0.8), poison(40), pause(0.8), log(100))],
        *start(0),
        most_calls=2 * 40 * 6 + 10 + _CALLS,
    ),
    "a leader that is denied, beside those that are not": scene(
        [writer(0, log(5), key=DENIED_KEYS[0]), writer(1, log(60)), writer(2, log(60))],
        *start(0),
        Step("pause", seconds=1.0),
        *start(1, 2),
    ),
    "the role of the flusher's environment, which is another application's": scene(
        [
            writer(0, log(50), settings=_EXTERNAL),
            flush(1, env=_ANOTHER_ROLE),
        ],
        *start(0, 1),
    ),
    "a leader that can open no file while a request is answered": scene(
        [writer(0, log(1), log(400, gap_seconds=0.01))],
        server("latency"),
        *start(0),
        *[Step("wait for call"), Step("starve", seconds=0.6), Step("pause", seconds=0.4)] * 3,
    ),
    "a leader that has to end while a request is answered": scene(
        [writer(0, log(1), log(400, gap_seconds=0.01), settings=_EXTERNAL), flush(1), flush(2), flush(3)],
        server("slow"),
        *start(0),
        *[
            step
            for number in (1, 2)
            for step in (Step("start", number), Step("wait for call"), Step("interrupt", number))
        ],
        *start(3),
    ),
}
