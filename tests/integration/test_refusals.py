"""An event that CloudWatch refuses neither blocks nor repeats what is beside it, whatever else happens meanwhile."""

from __future__ import annotations

import contextlib
import errno
import itertools
import math
import os
import resource
import time
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import pytest
from msgspec.structs import asdict, replace

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher import backoff, durability
from cwsink.flusher import flusher as flusher_module
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.commits import Cursor
from cwsink.spool import cursor, disk, files, frame, record
from cwsink.spool.cursor import read as read_cursor
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from cwsink.testing.store import StoredEvent
from tests.harness.interleave import deliver, leading, segment_path, until
from tests.harness.support import Killed, is_ours, quick_config

PUT = "PutLogEvents"
# What the server refuses, each event and each request that holds one.
BAD = "BAD"


# Stands for the last request of a leader that has sent none.
NONE = StoredEvent("", "", 0, "", None, 0)


@pytest.fixture
def external(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> SinkConfig:
    """A leader only where the test runs one; it waits for nobody. The stream is there, and does not take BAD."""
    monkeypatch.setattr(backoff, "SLOW_DELAY_SECONDS", 0.02)
    server.create_stream("/test/group", "stream")
    server.faults.poison = BAD
    return quick_config(server.endpoint_url, flusher="external", circuit_breaker_enabled=False)


def changed(config: SinkConfig, **settings: object) -> SinkConfig:
    return SinkConfig(**{**asdict(config), **settings})


def texts(arrangement: str) -> list[str]:
    """The messages of "3 good, 2 bad", numbered."""
    kinds = [kind for part in arrangement.split(", ") for kind in [part.split()[1]] * int(part.split()[0])]
    return [f"{number} {'good' if kind == 'good' else BAD}" for number, kind in enumerate(kinds)]


def spooled(config: SinkConfig, messages: list[str]) -> SpoolDirectory:
    writer = Writer(config)
    began = int(time.time() * 1000) - len(messages)
    assert all(writer.append(message, began + number) for number, message in enumerate(messages))
    return writer.directory


def arrived(server: StrictCloudWatch) -> list[str]:
    """What arrived of the records, without what cwsink itself told the stream."""
    return [message for message in server.messages() if not is_ours(message)]


def buried(spool: SpoolDirectory) -> list[str]:
    path = Path(spool.dead_letters)
    return [msgspec.json.decode(line)["message"] for line in path.read_bytes().splitlines()] if path.exists() else []


def good(messages: list[str]) -> list[str]:
    return [message for message in messages if BAD not in message]


def bad(messages: list[str]) -> list[str]:
    return [message for message in messages if BAD in message]


def assert_settled(spool: SpoolDirectory, messages: list[str]) -> None:
    """Assert that the ledger has each record once: delivered, or a dead letter."""
    books = survey(spool)
    dead = {"poison": len(bad(messages))} if bad(messages) else {}
    assert (books.pending, books.appended, books.delivered) == (0, len(messages), len(good(messages)))
    assert books.dead_lettered == dead
    assert books.adds_up


def most_calls(messages: list[str], requests: int = 1) -> int:
    """How many calls the promise allows."""
    return math.floor(2 * len(bad(messages)) * math.log2(len(messages))) + 10 * requests


@pytest.mark.parametrize(
    "arrangement",
    [
        "100 good, 64 bad, 100 good",
        "40 bad",
        "1 bad",
        "2 bad, 1 good",
        "1 bad, 50 good, 1 bad",
        "300 bad, 1 good",
        "1 good, 300 bad",
        ", ".join(["1 good, 1 bad"] * 60),
        ", ".join(["7 good, 33 bad"] * 9),
    ],
)
def test_what_is_beside_refused_events_arrives_once_and_in_order(
    external: SinkConfig, server: StrictCloudWatch, arrangement: str
) -> None:
    """However many are refused, and wherever they are: each of them is a dead letter, and the calls are bounded."""
    messages = texts(arrangement)
    spool = spooled(external, messages)
    deliver(spool, external)
    assert arrived(server) == good(messages)
    assert buried(spool) == bad(messages)
    assert_settled(spool, messages)
    assert survey(spool).resent == 0
    assert server.calls[PUT] <= most_calls(messages)


def test_what_is_logged_after_a_batch_that_is_refused_as_a_whole_arrives(
    external: SinkConfig, server: StrictCloudWatch
) -> None:
    """Batches of refused events alone: nothing legal ever joins them, and they hold up nothing."""
    messages = texts("1 good, 120 bad, 100 good")
    config = changed(external, max_batch_events=40)
    spool = spooled(config, messages)
    deliver(spool, config)
    assert arrived(server) == good(messages)
    assert buried(spool) == bad(messages)
    assert_settled(spool, messages)
    assert server.calls[PUT] <= most_calls(messages, requests=6)


@pytest.mark.parametrize("count", [1, 5, 31, 500])
def test_a_target_that_takes_nothing_costs_no_event(
    external: SinkConfig, server: StrictCloudWatch, count: int, capfd: pytest.CaptureFixture[str]
) -> None:
    """Not even our own line is taken: few calls, no dead letter, one line on stderr; all arrive when it is mended."""
    server.faults.poison = ""  # every message holds it
    messages = texts(f"{count} good")
    spool = spooled(external, messages)
    with leading(spool, external) as leader:
        until(lambda: leader._delivery._backoff.failures >= 5, "it has tried a few times")
        assert server.calls[PUT] <= 2 * (leader._delivery._backoff.failures + 1) + 60
        assert (survey(spool).pending, buried(spool), server.messages()) == (count, [], [])
        assert leader.leader_state.published.obstacle == "denied"
        server.faults.poison = None
        until(lambda: survey(spool).pending == 0, "all is delivered")
    assert server.messages() == messages
    assert buried(spool) == []
    assert "cannot deliver to /test/group: InvalidParameterException" in capfd.readouterr().err


def test_a_target_that_becomes_right_has_the_events_judged_anew(external: SinkConfig, server: StrictCloudWatch) -> None:
    """First it takes nothing, then all but the bad events: only those are dead letters."""
    server.faults.poison = ""
    messages = texts("3 good, 2 bad, 1 good")
    spool = spooled(external, messages)
    with leading(spool, external) as leader:
        until(lambda: leader._delivery._backoff.failures >= 3, "it has tried a few times")
        server.faults.poison = BAD
        until(lambda: survey(spool).pending == 0, "all is settled")
    assert arrived(server) == good(messages)
    assert buried(spool) == bad(messages)
    assert_settled(spool, messages)


# Leaders that die on the way.


def die_at(monkeypatch: pytest.MonkeyPatch, where: str, number: int) -> list[str]:
    """Have the leader die at a call of CloudWatch, or at a commit, counted from 1. Returns where it has."""
    put, commit = CloudWatch.put, Cursor.commit
    numbers = itertools.count(1)
    died: list[str] = []

    def die() -> None:
        if next(numbers) == number:
            died.append(where)
            raise Killed

    def dying_put(self: CloudWatch, *request: Any) -> Any:
        if where == "call":
            die()
        return put(self, *request)

    def dying_commit(self: Cursor, state: Any) -> None:
        if where == "commit":
            die()
        commit(self, state)

    monkeypatch.setattr(CloudWatch, "put", dying_put)
    monkeypatch.setattr(Cursor, "commit", dying_commit)
    return died


@pytest.mark.parametrize("next_settings", [{}, {"max_batch_events": 3, "batch_size": 1}], ids=["same", "others"])
@pytest.mark.parametrize("where", ["call", "commit"])
def test_a_leader_that_dies_among_refused_events_repeats_one_request_at_most(
    external: SinkConfig, server: StrictCloudWatch, where: str, next_settings: dict[str, object]
) -> None:
    """Dead before any call: nothing arrives twice. Dead before any commit: only what that commit was about."""
    messages = texts("9 good, 3 bad, 4 good, 1 bad, 5 good")
    for number in itertools.count(1):
        config = changed(external, log_stream_name=f"{number}")
        server.create_stream("/test/group", f"{number}")
        spool = spooled(config, messages)
        with pytest.MonkeyPatch.context() as patch:
            died = die_at(patch, where, number)
            with contextlib.suppress(Killed):
                deliver(spool, config)
        first_leaders_last = max(event.request for event in [*server.events(stream=f"{number}"), NONE])
        deliver(spool, changed(config, **next_settings))
        events = server.events(stream=f"{number}")
        counts = Counter(event.message for event in events if not is_ours(event.message))
        repeated = {message for message, count in counts.items() if count > 1}
        assert set(counts) == set(good(messages))
        assert max(counts.values()) <= 2
        assert repeated <= {event.message for event in events if event.request == first_leaders_last}
        assert where == "commit" or not repeated
        assert set(buried(spool)) == set(bad(messages))
        assert_settled(spool, messages)
        if not died:
            return


def test_a_leader_that_does_not_know_how_far_a_request_is_counts_nothing_twice(
    external: SinkConfig, server: StrictCloudWatch
) -> None:
    """An older version in between drops what it does not know: that request is begun anew, and the ledger is right."""
    messages = texts("9 good, 1 bad, 6 good")
    spool = spooled(external, messages)
    with pytest.MonkeyPatch.context() as patch:
        assert die_at(patch, "commit", 3) == []
        with pytest.raises(Killed):
            deliver(spool, external)
    assert read_cursor(spool.cursor).events_done == 8 + 1
    older = Cursor(spool.cursor)
    older.commit(replace(older.take_over("older"), events_done=0))
    older.close()
    deliver(spool, external)
    assert set(arrived(server)) == set(good(messages))
    assert max(Counter(arrived(server)).values()) == 2
    assert_settled(spool, messages)


# Commits that fail, and descriptors that are short.


def test_a_commit_that_fails_is_repeated_and_not_what_was_sent(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A full disk for a while, in the middle of refused events too: the same leader goes on, and nothing repeats."""
    monkeypatch.setattr(flusher_module, "COMMIT_AGAIN_SECONDS", 0.001)
    messages = texts("5 good, 1 bad, 5 good")
    spool = spooled(external, messages)
    write, writes = Cursor._write, itertools.count()

    def full(self: Cursor, *state: Any) -> None:
        if next(writes) % 4 in (1, 2):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(self, *state)

    monkeypatch.setattr(Cursor, "_write", full)
    deliver(spool, external)
    assert next(writes) > 4
    assert arrived(server) == good(messages)
    assert buried(spool) == bad(messages)
    assert_settled(spool, messages)
    assert survey(spool).epoch == 1
    assert "cannot write down how far" in capfd.readouterr().err


@pytest.mark.parametrize("what", ["the lease", "the cursor"])
def test_a_look_that_fails_between_an_answer_and_its_commit_repeats_nothing(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """An I/O error does not prove that another process leads: the same leader looks again, and commits."""
    monkeypatch.setattr(flusher_module, "COMMIT_AGAIN_SECONDS", 0.001)
    messages = texts("6 good")
    spool = spooled(external, messages)
    failures: list[str] = []

    def may_fail(path: str) -> None:
        if server.messages() and len(failures) < 9 and (what == "the cursor" or path == spool.leader_lock):
            failures.append(what)
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    owner, name = (cursor, "best") if what == "the cursor" else (files, "seen")
    look = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda place: (may_fail(str(place)), look(place))[1])
    deliver(spool, external)
    assert len(failures) == 9
    assert server.messages() == messages
    assert_settled(spool, messages)
    assert survey(spool).epoch == 1


def test_a_disk_that_cannot_be_synced_ends_no_leader(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """durability="host" while a commit fails, too: the same leader goes on, nothing repeats, and one line says so."""
    monkeypatch.setattr(flusher_module, "COMMIT_AGAIN_SECONDS", 0.001)
    monkeypatch.setattr(durability, "SYNC_SECONDS", 0.0)
    config = changed(external, durability="host", max_batch_events=2)
    messages = texts("6 good")
    spool = spooled(changed(config, durability="process"), messages)
    write, writes = Cursor._write, itertools.count()

    def failing(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(disk, "sync", failing)
    monkeypatch.setattr(Cursor, "_write", lambda *state: failing() if next(writes) % 2 else write(*state))
    deliver(spool, config)
    assert server.messages() == messages
    assert survey(spool).epoch == 1
    assert capfd.readouterr().err.count("durable") == 1


def test_a_leader_that_is_to_leave_does_not_wait_for_its_commit(external: SinkConfig, server: StrictCloudWatch) -> None:
    """The disk stays full: it ends with the error, and the next leader repeats that one request."""
    spool = spooled(external, texts("3 good"))

    def full(self: Cursor, state: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Cursor, "commit", full)
        patch.setattr(flusher_module.Orders, "is_over", property(lambda self: len(server.messages()) > 0))
        with pytest.raises(OSError, match="No space"):
            deliver(spool, external)
    deliver(spool, external)
    assert Counter(server.messages()) == Counter(2 * texts("3 good"))


def test_nothing_is_opened_between_an_answer_and_its_commit(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process is out of descriptors whenever CloudWatch has just answered: each record is sent once."""
    messages = texts("50 good")
    config = changed(external, max_batch_events=5)
    spool = spooled(config, messages)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    put, commit = CloudWatch.put, Cursor.commit
    shortages: list[int] = []

    def then_none_is_left(self: CloudWatch, *request: Any) -> Any:
        answer = put(self, *request)
        shortages.append(1)
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        return answer

    def then_there_are_some(self: Cursor, state: Any) -> None:
        commit(self, state)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    monkeypatch.setattr(CloudWatch, "put", then_none_is_left)
    monkeypatch.setattr(Cursor, "commit", then_there_are_some)
    try:
        deliver(spool, config)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert len(shortages) == 10
    assert server.messages() == messages
    assert survey(spool).epoch == 1


# Damage, and markers.


def test_damage_is_counted_once_however_many_leaders_read_it(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Each one reads as far as the damage and dies before it gets there: it counts when it is reached."""
    messages = [f"record {number}" for number in range(6)]
    config = changed(external, max_batch_events=1)
    spool = spooled(config, messages)
    path = segment_path(spool, 1)
    path.write_bytes(path.read_bytes().replace(b"record 4", b"RECORD 4"))
    for _ in range(3):
        with pytest.MonkeyPatch.context() as patch:
            die_at(patch, "call", 2)
            with pytest.raises(Killed):
                deliver(spool, config)
    deliver(spool, config)
    assert server.messages() == [message for message in messages if message != "record 4"]
    books = survey(spool)
    assert (books.appended, books.delivered, books.dead_lettered, books.pending) == (6, 5, {"corrupt": 1}, 0)


@pytest.mark.parametrize("times", [(-5, -3), (-(1 << 62), 5), (1 << 62, 1 << 63)])
def test_a_loss_marker_of_an_impossible_time_holds_up_nothing(
    external: SinkConfig, server: StrictCloudWatch, times: tuple[int, int]
) -> None:
    """Whatever it holds, what is beside it arrives at once, and its count is in the ledger."""
    messages = texts("3 good")
    writer = Writer(external)
    assert writer.append(messages[0])
    attached = writer._ring.attached
    assert attached is not None
    loss = record.encode(record.Loss(7, *times, "io_error", 1))
    os.write(attached.fd, frame.encode(loss, attached.salt, frame.LOSS))
    assert all(writer.append(message) for message in messages[1:])
    with leading(writer.directory, external) as leader:
        until(lambda: survey(writer.directory).pending == 0, "all is settled")
        assert leader._delivery._backoff.failures == 0
    assert arrived(server) == messages
    assert survey(writer.directory).refused == {"io_error": 7}


@pytest.mark.parametrize("length", [70_000, 1_100_000])
def test_a_loss_marker_with_a_long_reason_is_damage(
    external: SinkConfig, server: StrictCloudWatch, length: int
) -> None:
    """Its checksum is right, but neither a slot of the cursor nor an event has room for it: the rest arrives, once."""
    writer = Writer(external)
    assert writer.append("before")
    attached = writer._ring.attached
    assert attached is not None
    loss = record.encode(record.Loss(7, 1, 2, "r" * length, 1))
    os.write(attached.fd, frame.encode(loss, attached.salt, frame.LOSS))
    assert writer.append("after")
    with leading(writer.directory, external):
        until(lambda: survey(writer.directory).pending == 0, "all is settled")
    assert server.messages() == ["before", "after"]
    books = survey(writer.directory)
    assert (books.delivered, books.dead_lettered, books.refused) == (2, {"corrupt": 1}, {})


def test_what_is_told_about_oversize_events_repeats_nothing(external: SinkConfig, server: StrictCloudWatch) -> None:
    """The stream is told in the same request: a leader that dies has told it and sent all else, or nothing."""
    config = changed(external, max_event_bytes=1_000)
    spool = spooled(config, ["before", "x" * 1_001, "after"])
    with pytest.MonkeyPatch.context() as patch:
        die_at(patch, "call", 2)
        deliver(spool, config)
    assert arrived(server) == ["before", "after"]
    assert len(server.messages()) == 3
    assert server.calls[PUT] == 1
