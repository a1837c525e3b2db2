"""Events longer than CloudWatch takes, end to end: each policy against the strict server, ledger and all."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher import dead_letter
from cwsink.flusher.commits import Cursor
from cwsink.limits import EVENT_OVERHEAD_BYTES, MAX_BATCH_BYTES, MAX_EVENT_BYTES
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import deliver
from tests.harness.support import Killed, finish, is_ours, notices_in, quick_config

MIB = 1 << 20
# What partitions take that still have 256 KB, without the 26 bytes of each event.
OLD_LIMIT = 256 * 1024 - EVENT_OVERHEAD_BYTES
BIG = "x" * (MAX_EVENT_BYTES + 1)
METRIC = {
    "_aws": {
        "Timestamp": 1_700_000_000_000,
        "CloudWatchMetrics": [{"Namespace": "shop", "Dimensions": [[]], "Metrics": [{"Name": "ms"}]}],
    },
    "ms": 12.5,
}


def settings(server: StrictCloudWatch, **more: object) -> SinkConfig:
    """A leader only where the test runs one."""
    return quick_config(server.endpoint_url, flusher="external", **{"segment_bytes": None, **more})


def filled(config: SinkConfig, *messages: str) -> SpoolDirectory:
    writer = Writer(config)
    assert all(writer.append(message) for message in messages)
    return writer.directory


def letters(directory: SpoolDirectory) -> list[dict[str, Any]]:
    found = []
    for path in (Path(f"{directory.dead_letters}.1"), Path(directory.dead_letters)):
        if path.exists():
            found += [msgspec.json.decode(line) for line in path.read_bytes().splitlines()]
    return [letter for letter in found if "message" in letter]


def books(directory: SpoolDirectory) -> tuple[int, int, dict[str, int]]:
    """Return (appended, delivered, dead letters) of a spool in which nothing is pending."""
    seen = survey(directory)
    assert seen.adds_up, seen
    assert seen.pending == 0, seen
    return seen.appended, seen.delivered, seen.dead_lettered


def notices(server: StrictCloudWatch) -> list[str]:
    return [notice["message"] for notice in notices_in(server.messages())]


def joined(messages: list[str]) -> str:
    """Reassemble a message as documented."""
    parts = sorted((json.loads(message) for message in messages), key=lambda part: part["_cwsink_part"]["index"])
    (header,) = {(part["_cwsink_part"]["id"], part["_cwsink_part"]["total"]) for part in parts}
    assert [part["_cwsink_part"]["index"] for part in parts] == list(range(header[1]))
    return "".join(part["text"] for part in parts)


# drop, the default


def test_by_default_an_oversize_event_becomes_a_dead_letter(
    server: StrictCloudWatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Kept whole, told to the stream and on stderr, counted exactly; the others arrive."""
    config = settings(server)
    assert (config.oversize, config.max_event_bytes) == ("drop", MAX_EVENT_BYTES)
    directory = filled(config, "before", BIG, "between", BIG + "y", "after")
    deliver(directory, config)
    assert [text for text in server.messages() if not is_ours(text)] == ["before", "between", "after"]
    (notice,) = notices(server)
    assert notice.startswith("cwsink: 2 records dropped ")
    assert notice.endswith(", reason oversize")
    assert [(letter["reason"], letter["message"]) for letter in letters(directory)] == [
        ("oversize", BIG),
        ("oversize", BIG + "y"),
    ]
    assert all("1,048,550 bytes" in letter["error"] for letter in letters(directory))
    assert books(directory) == (5, 3, {"oversize": 2})
    said = [line for line in capfd.readouterr().err.splitlines() if "oversize" in line]
    assert len(said) == 1
    assert directory.dead_letters in said[0]


def test_an_event_of_the_very_limit_is_sent(server: StrictCloudWatch) -> None:
    """1,048,550 bytes arrive as they are, whatever the policy, and in whatever characters."""
    for policy in ("drop", "truncate", "split"):
        config = settings(server, oversize=policy, log_stream_name=policy)
        longest = [BIG[:-1], "é" * (MAX_EVENT_BYTES // 2)]
        deliver(filled(config, *longest), config)
        assert server.messages(stream=policy) == longest


def test_many_oversize_events_are_not_held_at_once(server: StrictCloudWatch) -> None:
    """A backlog of them fills neither the leader's memory nor the disk: the dead letters keep their cap."""
    config = settings(server, spool_max_bytes="256MiB")
    directory = filled(config, *(f"{number:02}" + "x" * (2 * MIB) for number in range(32)))
    tracemalloc.start()
    deliver(directory, config)
    _, most_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert books(directory) == (32, 0, {"oversize": 32})
    assert letters(directory)[-1]["message"].startswith("31")
    assert sum(Path(directory.dead_letters + suffix).stat().st_size for suffix in ("", ".1")) <= dead_letter.MAX_BYTES
    # All at once they are 64 MiB of messages, as much again of JSON, and that once more in one piece.
    assert most_bytes < 64 * MIB, f"{most_bytes / MIB:.0f} MiB"


def test_a_letter_that_takes_most_of_the_cap_is_kept_whole(server: StrictCloudWatch) -> None:
    """6 MiB of 8: to the character."""
    config = settings(server)
    message = "\u0001é" + "x" * (6 * MIB)
    directory = filled(config, message)
    deliver(directory, config)
    assert [letter["message"] for letter in letters(directory)] == [message]


# truncate


def test_truncate_delivers_a_shorter_event(server: StrictCloudWatch) -> None:
    """JSON stays JSON with its short fields; text ends in a note; both count as delivered, none as dead."""
    config = settings(server, oversize="truncate")
    entry = json.dumps({"level": "ERROR", "message": BIG, "data": {"order": 7}})
    directory = filled(config, "before", entry, BIG, "after")
    deliver(directory, config)
    before, shortened, cut, after = server.messages()
    assert (before, after) == ("before", "after")
    read = json.loads(shortened)
    assert (read["level"], read["data"], read["_cwsink"]["original_bytes"]) == ("ERROR", {"order": 7}, len(entry))
    assert cut.endswith(f"... [truncated by cwsink, {len(BIG)} bytes]")
    assert books(directory) == (4, 4, {})
    assert letters(directory) == []
    assert notices(server) == []


def test_an_event_that_python_cannot_give_back_does_not_stop_delivery(server: StrictCloudWatch) -> None:
    """Half a surrogate pair, an infinite number, deep nesting: each is delivered as legal JSON, and so is the rest."""
    config = settings(server, oversize="truncate")
    awkward = [r'"\ud83d"', "1e999", "[" * 100_000 + "]" * 100_000]
    directory = filled(config, *(f'{{"a": {each}, "text": "{BIG}"}}' for each in awkward), "after")
    deliver(directory, config)
    assert len(server.messages()) == 4
    assert server.messages()[-1] == "after"
    assert all(json.loads(text)["_cwsink"]["truncated"] for text in server.messages()[:3])
    assert books(directory) == (4, 4, {})


# split


@pytest.mark.parametrize("limit", [MAX_EVENT_BYTES, OLD_LIMIT])
def test_split_delivers_all_of_it_in_parts(limit: int) -> None:
    """5 MiB as several requests, each legal for its partition; the ledger counts one delivered record."""
    message = "".join(f"{number:09} é😀\0\\" for number in range(5 * MIB // 18))
    with StrictCloudWatch(max_event_bytes=limit) as server:
        config = settings(server, oversize="split", max_event_bytes=limit)
        directory = filled(config, "before", message, "after")
        deliver(directory, config)
        server.assert_clean()
        before, *parts, after = server.messages()
        assert (before, after) == ("before", "after")
        assert joined(parts) == message
        puts = [request for request in server.requests if request.status == 200]
        assert len(puts) > 6
        assert all(request.counted_bytes <= MAX_BATCH_BYTES for request in puts)
    assert books(directory) == (3, 3, {})
    assert letters(directory) == []


def test_small_limits_share_requests(server: StrictCloudWatch) -> None:
    """Parts that fit into one request go in one, and what comes after them goes along."""
    config = settings(server, oversize="split", max_event_bytes=2048)
    directory = filled(config, "x" * 5000, "after")
    deliver(directory, config)
    assert [request.events for request in server.requests if request.status == 200] == [4]
    assert joined(server.messages()[:-1]) == "x" * 5000
    assert books(directory) == (2, 2, {})


@pytest.mark.parametrize("after_commit", [False, True], ids=["before the commit", "after the commit"])
@pytest.mark.parametrize("request_number", range(1, 7))
def test_a_leader_that_dies_between_parts_repeats_one_request_at_most(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, request_number: int, after_commit: bool
) -> None:
    """The next one goes on at the part that is not committed; every part arrives, and the ledger counts one record."""
    config = settings(server, oversize="split")
    message = "".join(f"{number:09}" for number in range(5 * MIB // 9))
    directory = filled(config, message, "after")
    server.create_stream("/test/group", "stream")
    commit = Cursor.commit
    commits = 0

    def die(cursor: Cursor, state: Any) -> None:
        nonlocal commits
        commits += 1
        if after_commit or commits != request_number:
            commit(cursor, state)
        if commits == request_number:
            raise Killed

    monkeypatch.setattr(Cursor, "commit", die)
    with pytest.raises(Killed):
        deliver(directory, config)
    monkeypatch.setattr(Cursor, "commit", commit)
    sent = len(server.requests)
    assert sent == request_number
    deliver(directory, config)

    parts = [text for text in server.messages() if text != "after"]
    assert joined(sorted(set(parts))) == message
    repeated = len(parts) - len(set(parts))
    assert repeated <= (0 if after_commit else 1)
    assert server.messages().count("after") == 1
    assert books(directory) == (2, 2, {})


def test_parts_that_cloudwatch_refuses_are_one_dead_letter_record(server: StrictCloudWatch) -> None:
    """Too old: every part is kept, and the ledger counts the record once."""
    config = settings(server, oversize="split", max_event_bytes=2048)
    writer = Writer(config)
    assert writer.append("x" * 5000, 1_000_000_000_000)
    assert writer.append("after")
    deliver(writer.directory, config)
    assert server.messages() == ["after"]
    assert joined([letter["message"] for letter in letters(writer.directory)]) == "x" * 5000
    assert books(writer.directory) == (2, 1, {"too_old": 1})


# Limits and metrics


@pytest.mark.parametrize("policy", ["drop", "truncate", "split"])
def test_a_partition_with_256_kb_is_served(policy: str) -> None:
    """max_event_bytes is the limit of all policies: nothing longer is sent."""
    with StrictCloudWatch(max_event_bytes=OLD_LIMIT) as server:
        config = settings(server, oversize=policy, max_event_bytes=OLD_LIMIT)
        directory = filled(config, "x" * OLD_LIMIT, "y" * (OLD_LIMIT + 1), "after")
        deliver(directory, config)
        server.assert_clean()
        assert server.messages()[0] == "x" * OLD_LIMIT
        assert "after" in server.messages()
    dead = {"oversize": 1} if policy == "drop" else {}
    assert books(directory) == (3, 3 - len(dead), dead)


@pytest.mark.parametrize("policy", ["drop", "truncate", "split"])
def test_a_metric_event_goes_untouched_or_not_at_all(server: StrictCloudWatch, policy: str) -> None:
    """EMF within the limit passes to the byte; longer ones are dead letters, whole: a cut metric is a wrong metric."""
    small = json.dumps(METRIC, indent=1)
    large = json.dumps({**METRIC, "note": BIG})
    config = settings(server, oversize=policy)
    directory = filled(config, small, large, "after")
    deliver(directory, config)
    assert [text for text in server.messages() if not is_ours(text)] == [small, "after"]
    assert [(letter["reason"], letter["message"]) for letter in letters(directory)] == [("oversize", large)]
    assert books(directory) == (3, 2, {"oversize": 1})


# With fapilog's own size guard before us

GUARDED = """
import sys
import cwsink, fapilog
cwsink.install()
settings = fapilog.Settings()
settings.core.sinks = ["cloudwatch"]
settings.core.processors = ["size_guard"]
settings.core.serialize_in_flush = True
settings.processor_config.size_guard.max_bytes = int(sys.argv[1])
settings.sink_config.cloudwatch.log_group_name = "/test/group"
settings.sink_config.cloudwatch.log_stream_name = "stream"
logger = fapilog.get_logger(settings=settings)
logger.info("short")
logger.info("long " + "x" * 400_000)
logger.info("after")
"""


def test_fapilogs_size_guard_cuts_before_we_see_it(spawn: Spawn) -> None:
    """size_guard.max_bytes below max_event_bytes: nothing reaches our policy, and all three entries arrive."""
    with StrictCloudWatch(max_event_bytes=OLD_LIMIT) as server:
        environment = {**server.environment(), "FAPILOG_CLOUDWATCH__MAX_EVENT_BYTES": str(OLD_LIMIT)}
        finish(spawn(GUARDED, OLD_LIMIT - 1000, env=environment))
        server.assert_clean()
        entries = [json.loads(text) for text in server.messages()]
        assert len(entries) == 3, server.messages()
        assert not notices(server)
        cut = [entry for entry in entries if entry.get("_truncated")]
        assert len(cut) == 1
        assert cut[0]["_original_size"] > 400_000


@pytest.mark.parametrize(
    ("change", "outcome"),
    [
        pytest.param({"oversize": "drop"}, (2, 1, {"oversize": 1}), id="another policy"),
        pytest.param({"oversize": "truncate"}, (2, 2, {}), id="another policy that delivers"),
        pytest.param({"max_event_bytes": MAX_EVENT_BYTES - 1}, (2, 2, {}), id="other parts, as many"),
    ],
)
def test_a_leader_with_other_settings_begins_a_split_event_anew(
    server: StrictCloudWatch,
    monkeypatch: pytest.MonkeyPatch,
    change: dict[str, object],
    outcome: tuple[int, int, dict[str, int]],
) -> None:
    """Its parts are not those of the leader that died: nothing is left out between them, or counted twice."""
    config = settings(server, oversize="split")
    message = "".join(f"{number:09}" for number in range(5 * MIB // 9))
    directory = filled(config, message, "after")
    server.create_stream("/test/group", "stream")
    commit = Cursor.commit

    def die(cursor: Cursor, state: Any) -> None:
        commit(cursor, state)
        if state.requests_done == 3:
            raise Killed

    monkeypatch.setattr(Cursor, "commit", die)
    with pytest.raises(Killed):
        deliver(directory, config)
    monkeypatch.setattr(Cursor, "commit", commit)
    begun = len(server.messages())
    deliver(directory, SinkConfig(**{**asdict(config), **change}))
    assert books(directory) == outcome
    anew = server.messages()[begun:-1]
    if change.get("oversize") == "truncate":
        assert len(anew) == 1
    elif "oversize" not in change:
        assert joined(anew) == message
    assert server.messages().count("after") == 1
