"""Small worlds, each made for one thing that once went wrong. The verdict is that of every world."""

from __future__ import annotations

from typing import Any, Final

from tests.faults.world.plan import DEAD_PROXY, DENIED_KEYS, GOOD_KEYS, ROLE_ARN, Act, Member, Plan, Rules, Step

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
    "a leader behind a dead proxy, beside those that are not": scene(
        [writer(0, log(5), env={"HTTP_PROXY": DEAD_PROXY, "http_proxy": DEAD_PROXY}), writer(1, log(60))],
        *start(0),
        Step("pause", seconds=1.0),
        *start(1),
    ),
    "a flusher that is denied, beside one that is not": scene(
        [writer(0, log(60), settings=_EXTERNAL), flush(1, DENIED_KEYS[0]), flush(2)],
        *start(0, 1),
        Step("pause", seconds=1.5),
        *start(2),
    ),
    "a flusher that is denied, beside the program of a good one": scene(
        [
            writer(0, log(5), settings=_EXTERNAL),
            flush(1, DENIED_KEYS[0]),
            Member(2, "run", GROUP, settings=_ROOMY, acts=[log(60)]),
        ],
        *start(0, 1),
        Step("pause", seconds=1.5),
        *start(2),
    ),
    "a spool beside it whose target cannot be used": scene(
        [writer(0, log(60), settings=_EXTERNAL), flush(1)],
        Step("spoil", name="target"),
        *start(0, 1),
    ),
    "a segment size in the flusher's environment that does not fit": scene(
        [
            writer(0, log(60), settings={**_EXTERNAL, "spool_max_bytes": 1 << 20}),
            flush(1, env={"FAPILOG_CLOUDWATCH__SEGMENT_BYTES": "32MiB"}),
        ],
        *start(0),
        Step("spoil", name="settings"),
        *start(1),
    ),
    "the role of another application, and the spool's settings are lost": scene(
        [writer(0, log(50), settings=_EXTERNAL), flush(1, env=_ANOTHER_ROLE)],
        *start(0),
        Step("spoil", name="settings"),
        *start(1),
    ),
    "another application with a small budget": scene(
        [
            writer(0, log(4_000, 300), settings={**_ROOMY, "on_full": "drop_newest"}),
            writer(1, log(500), settings={"spool_max_bytes": 128 << 10, "on_full": "drop_oldest"}),
        ],
        server("outage"),
        *start(0),
        Step("await", 0),
        *start(1),
        Step("await", 1),
    ),
    "no descriptor for the next segment": scene(
        [writer(0, log(60, 200), Act("limit", limit="files"), log(60, 200), Act("lift"), log(60))],
        *start(0),
    ),
    "a flusher that a writer with a limit has started": scene(
        [
            writer(0, log(5), settings=_EXTERNAL),
            writer(1, Act("limit", limit="size"), log(1), pause(3.0), Act("lift"), log(20)),
        ],
        *start(0, 1),
        Step("await", 1),
    ),
    "a worker that becomes another user": scene(
        [writer(0, log(20), Act("user"), log(600)), writer(1, log(20))],
        *start(1, 0),
    ),
}
