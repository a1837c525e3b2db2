"""The leader's loop against the strict server: when it sends, what it survives, what it leaves behind."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import msgspec
import pytest
from msgspec.structs import asdict

from cwsink import Writer, __version__
from cwsink.config import SinkConfig
from cwsink.flusher import durability, publisher
from cwsink.flusher import flusher as flusher_module
from cwsink.flusher.chunk import Request
from cwsink.flusher.claim import Lease
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.commits import Cursor, Fenced
from cwsink.flusher.delivery import Delivery, Settled
from cwsink.flusher.election import Election
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.orders import Orders
from cwsink.flusher.outcome import Answer
from cwsink.flusher.publisher import LeaderState
from cwsink.limits import MAX_EVENT_BYTES
from cwsink.spool import cursor, disk, files, leader_state, refusals, segment
from cwsink.spool.alerts import Alerts
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Loss
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import SMALL, deliver, leading, segment_path, segments, until
from tests.harness.support import CHILD_SECONDS, Killed, is_ours, notices_in, quick_config

DAY_MS = 86_400_000
NEVER = 3600.0


@pytest.fixture
def external(server: StrictCloudWatch) -> SinkConfig:
    """A leader only where the test runs one."""
    return quick_config(server.endpoint_url, flusher="external", circuit_breaker_enabled=False)


def now_ms() -> int:
    return int(time.time() * 1000)


def changed(config: SinkConfig, **settings: object) -> SinkConfig:
    return SinkConfig(**{**asdict(config), **settings})


def filled(config: SinkConfig, messages: list[str], timestamp_ms: int | None = None) -> Writer:
    writer = Writer(config)
    assert all(writer.append(message, timestamp_ms) for message in messages)
    return writer


def letters(directory: SpoolDirectory) -> list[dict[str, Any]]:
    path = Path(directory.dead_letters)
    return [msgspec.json.decode(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def records(server: StrictCloudWatch) -> list[str]:
    return [text for text in server.messages() if not is_ours(text)]


def notices(server: StrictCloudWatch) -> list[dict[str, Any]]:
    return notices_in(server.messages())


def settled(directory: SpoolDirectory, *, appended: int, delivered: int, **dead: int) -> None:
    """Assert the books of a spool in which nothing is pending."""
    books = survey(directory)
    assert books.adds_up, books
    assert books.pending == 0, books
    assert (books.appended, books.delivered, books.dead_lettered) == (appended, delivered, dead), books


# When it sends.


def test_batch_size_pending_records_are_sent_without_waiting(external: SinkConfig, server: StrictCloudWatch) -> None:
    """One record fewer waits for batch_timeout_seconds; with it all that is pending goes, in one request."""
    config = changed(external, batch_size=50, batch_timeout_seconds=NEVER)
    writer = Writer(config)
    with leading(writer.directory, config) as leader:
        until(lambda: leader._pending_since is None, "the leader has found nothing")
        assert all(writer.append(f"{number}") for number in range(49))
        until(lambda: leader._collector.count == 49, "the leader has read them")
        assert not server.calls
        assert writer.append("the fiftieth")
        assert server.wait_for_events(50, 60)
    assert [request.events for request in server.requests if request.status == 200] == [50]


def test_batch_timeout_sends_what_there_is(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Below batch_size the time since the leader first saw a pending record decides."""
    offset = [0.0]
    clock = SimpleNamespace(**{**vars(time), "monotonic": lambda: time.monotonic() + offset[0]})
    monkeypatch.setattr(flusher_module, "time", clock)
    config = changed(external, batch_size=1_000, batch_timeout_seconds=NEVER)
    writer = Writer(config)
    with leading(writer.directory, config) as leader:
        until(lambda: leader._pending_since is None, "the leader has found nothing")
        assert writer.append("a")
        assert writer.append("b")
        until(lambda: leader._collector.count == 2 and leader._pending_since is not None, "the leader has read them")
        assert not server.calls
        offset[0] = NEVER + 1
        assert server.wait_for_events(2, 60)
        offset[0] = 0.0


def test_what_a_new_leader_finds_has_waited_long_enough(external: SinkConfig, server: StrictCloudWatch) -> None:
    """A takeover does not add batch_timeout_seconds to what its predecessor was gathering already."""
    config = changed(external, batch_size=1_000, batch_timeout_seconds=NEVER)
    writer = filled(config, ["a", "b"])
    with leading(writer.directory, config):
        assert server.wait_for_events(2, 60)
    assert [request.events for request in server.requests if request.status == 200] == [2]


def test_what_is_pending_goes_in_full_batches(external: SinkConfig, server: StrictCloudWatch) -> None:
    """batch_size is a trigger, max_batch_events the cap: a backlog goes in requests of the cap."""
    config = changed(external, batch_size=10, max_batch_events=400)
    writer = filled(config, [f"{number}" for number in range(1_000)])
    deliver(writer.directory, config)
    assert [request.events for request in server.requests if request.status == 200] == [400, 400, 200]
    assert records(server) == [f"{number}" for number in range(1_000)]


def test_requests_keep_the_limit_of_bytes(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Large events of several bytes a character are divided so that each request is legal; none is lost."""
    texts = [f"{number} " + "ü" * 150_000 for number in range(12)]
    writer = filled(external, texts)
    deliver(writer.directory, external)
    assert records(server) == texts
    assert all(request.counted_bytes <= 1_048_576 for request in server.requests)
    settled(writer.directory, appended=12, delivered=12)


@pytest.mark.parametrize("who", ["own", "service"])
def test_hurry_sends_at_once(external: SinkConfig, server: StrictCloudWatch, who: Literal["own", "service"]) -> None:
    """Writer.flush makes whoever leads send at once: the flusher that starts by itself, or another one."""
    config = changed(external, flusher="process" if who == "own" else "external", batch_timeout_seconds=NEVER)
    writer = Writer(config)
    elsewhere = Election(writer.directory, kind="service")
    if who == "service":
        elsewhere.start()
    try:
        # What a leader finds when it begins is sent at once: only the second record shows anything.
        for message in ("found", "now"):
            assert writer.append(message)
            assert writer.flush(60)
        assert (found := leader_state.read(writer.directory)) is not None
        assert found.kind == who
    finally:
        if who == "service":
            elsewhere.leave(0.0)
            assert elsewhere.has_ended(60)
    assert server.messages() == ["found", "now"]


def test_a_leader_that_fails_to_its_end_keeps_no_segment(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails once more while it ends, and its process lives on. A segment that stayed locked would stay for ever."""
    writer = filled(external, ["one"])
    path = segment_path(writer.directory, 1)
    lease = Lease(writer.directory)
    assert lease.try_acquire()

    def fail(self: Alerts, **_: bool) -> None:
        if server.messages():
            raise MemoryError

    monkeypatch.setattr(Alerts, "look", fail)
    with pytest.raises(MemoryError):
        Flusher(writer.directory, external, lease, Orders(), kind="own").lead()
    lease.release()
    assert server.messages() == ["one"]
    writer.close()
    assert not files.is_locked(str(path), shared=True)


def test_an_idle_leader_calls_nobody_and_costs_nothing(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Two idle seconds: not one call, and next to no CPU."""
    writer = filled(external, ["one"])
    with leading(writer.directory, external):
        assert server.wait_for_events(1, 60)
        until(lambda: survey(writer.directory).pending == 0, "committed")
        calls, before = Counter(server.calls), time.process_time()
        time.sleep(2.0)  # what is measured is that nothing happens
        used = time.process_time() - before
        assert server.calls == calls
    assert used < 0.1


# Spans over 24 hours.


def old_and_new() -> list[tuple[str, int]]:
    """Records of six days, appended out of order."""
    now = now_ms()
    days = [5, 0, 3, 1, 4, 2]
    return [(f"day -{day} number {number}", now - day * DAY_MS + number) for day in days for number in range(5)]


def test_a_backlog_of_days_goes_in_legal_requests_oldest_first(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Requests span less than 24 hours and are chronological, whatever order the records were appended in."""
    writer = Writer(external)
    entries = old_and_new()
    assert all(writer.append(text, timestamp) for text, timestamp in entries)
    deliver(writer.directory, external)
    assert records(server) == [text for text, _ in sorted(entries, key=lambda entry: entry[1])]
    assert len(server.requests) >= 6
    settled(writer.directory, appended=30, delivered=30)


@pytest.mark.parametrize("died_after", [1, 3, 5])
@pytest.mark.parametrize("where", ["send", "commit"])
def test_the_next_leader_goes_on_with_the_request_after_the_last_committed(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, died_after: int, where: str
) -> None:
    """Dead before sending request k + 1: no record twice. Dead before committing request k: only that one again.

    Invariant 4.
    """
    writer = Writer(external)
    entries = old_and_new()
    assert all(writer.append(text, timestamp) for text, timestamp in entries)
    sent: list[int] = []
    send, commit = Delivery.send, Flusher._commit

    def dying_send(self: Delivery, request: Request) -> Iterator[Settled]:
        if where == "send" and len(sent) == died_after:
            raise Killed
        for settled in send(self, request):
            sent.append(len(request.events))
            yield settled

    def dying_commit(self: Flusher, state: cursor.State) -> None:
        if where == "commit" and len(sent) == died_after:
            raise Killed
        commit(self, state)

    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "send", dying_send)
        patch.setattr(Flusher, "_commit", dying_commit)
        with pytest.raises(Killed):
            deliver(writer.directory, external)
    assert survey(writer.directory).adds_up
    # The requests are computed again: what came in meanwhile must not change them.
    assert writer.append("meanwhile", now_ms() - 3 * DAY_MS)
    deliver(writer.directory, external)
    counts = Counter(records(server))
    assert set(counts) == {text for text, _ in entries} | {"meanwhile"}
    repeated = sum(count - 1 for count in counts.values())
    assert repeated == (0 if where == "send" else 5)
    settled(writer.directory, appended=31, delivered=31)


def test_an_evicted_part_of_an_unfinished_range_is_not_waited_for(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two leaders a writer evicts a segment of the range: the rest is delivered, the books add up.

    How much of the rest was delivered before is not known any more: it is repeated, and counted as far as it may be.
    """
    config = changed(external, segment_bytes=4096)
    writer = Writer(config)
    entries = [(f"{text} {'.' * 300}", timestamp) for text, timestamp in old_and_new()]
    assert all(writer.append(text, timestamp) for text, timestamp in entries)
    sent: list[int] = []
    send = Delivery.send

    def dying(self: Delivery, request: Request) -> Iterator[Settled]:
        if len(sent) == 2:
            raise Killed
        sent.append(1)
        return send(self, request)

    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "send", dying)
        with pytest.raises(Killed):
            deliver(writer.directory, config)
    assert writer._ring._rotation._budget.evict(at_least_one=True, seconds=CHILD_SECONDS)
    deliver(writer.directory, config)
    books = survey(writer.directory)
    assert (books.adds_up, books.pending, books.appended) == (True, 0, 30)
    assert books.evicted > 0
    assert set(records(server)) >= {text for text, _ in entries[books.evicted :]}
    repeated = sum(count - 1 for count in Counter(records(server)).values())
    assert 0 < repeated <= books.resent <= 10, "all that two requests have delivered may have been repeated"


# What CloudWatch does not take.


def test_an_oversize_event_becomes_a_dead_letter_and_the_stream_is_told(
    external: SinkConfig, server: StrictCloudWatch
) -> None:
    """The longest legal event goes; one byte more is kept whole in the dead letters; others arrive."""
    big = "x" * (MAX_EVENT_BYTES + 1)
    writer = filled(external, ["before", "y" * MAX_EVENT_BYTES, big, "after"])
    deliver(writer.directory, external)
    assert records(server) == ["before", "y" * MAX_EVENT_BYTES, "after"]
    (notice,) = notices(server)
    assert (notice["_cwsink"]["lost"], notice["_cwsink"]["reason"]) == (1, "oversize")
    assert [(letter["reason"], letter["message"]) for letter in letters(writer.directory)] == [("oversize", big)]
    settled(writer.directory, appended=4, delivered=3, oversize=1)


@pytest.mark.parametrize("count", [1, 2, 3, 100])
def test_a_poison_event_is_found_and_the_others_arrive(
    external: SinkConfig, server: StrictCloudWatch, count: int
) -> None:
    """CloudWatch refuses every request that contains it: it ends alone, as a dead letter."""
    server.faults.poison = "BAD"
    texts = [f"good {number}" for number in range(count)]
    texts.insert(count // 2, "BAD egg")
    writer = filled(external, texts)
    deliver(writer.directory, external)
    assert records(server) == [text for text in texts if "BAD" not in text]
    assert [letter["reason"] for letter in letters(writer.directory)] == ["poison"]
    assert letters(writer.directory)[0]["message"] == "BAD egg"
    settled(writer.directory, appended=count + 1, delivered=count, poison=1)


def test_events_that_are_too_old_or_too_new_are_dead_letters_exactly(
    external: SinkConfig, server: StrictCloudWatch
) -> None:
    """CloudWatch names them with HTTP 200; the rest of the same request is delivered, none of them again."""
    now = now_ms()
    writer = Writer(external)
    for number in range(7):
        assert writer.append(f"old {number}", now - 20 * DAY_MS + number)
    for number in range(5):
        assert writer.append(f"good {number}", now - 1000 + number)
    for number in range(3):
        assert writer.append(f"new {number}", now + 4 * 3_600_000 + number)
    deliver(writer.directory, external)
    assert records(server) == [f"good {number}" for number in range(5)]
    kept = [(letter["reason"], letter["message"]) for letter in letters(writer.directory)]
    assert sorted(kept) == sorted(
        [("too_old", f"old {number}") for number in range(7)] + [("too_new", f"new {number}") for number in range(3)]
    )
    settled(writer.directory, appended=15, delivered=5, too_old=7, too_new=3)


def test_events_older_than_the_groups_retention_are_dead_letters(
    external: SinkConfig, server: StrictCloudWatch
) -> None:
    """`expiredLogEventEndIndex` counts as its own reason."""
    server.create_group("/test/group", retention_days=1)
    now = now_ms()
    writer = Writer(external)
    assert writer.append("expired", now - 2 * DAY_MS)
    assert writer.append("good", now)
    deliver(writer.directory, external)
    assert records(server) == ["good"]
    settled(writer.directory, appended=2, delivered=1, expired=1)


def test_a_damaged_range_is_kept_and_its_bytes_counted(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Bytes that changed on disk: a dead letter with segment, offset and content; the neighbours arrive."""
    writer = filled(external, [f"record {number}" for number in range(5)])
    path = segment_path(writer.directory, 1)
    data = path.read_bytes()
    path.write_bytes(data.replace(b"record 2", b"RECORD 2"))
    deliver(writer.directory, external)
    assert records(server) == ["record 0", "record 1", "record 3", "record 4"]
    (letter,) = letters(writer.directory)
    assert (letter["reason"], letter["segment"]) == ("corrupt", 1)
    assert survey(writer.directory).corrupt_bytes == letter["bytes"] > 0
    settled(writer.directory, appended=5, delivered=4, corrupt=1)


# What goes wrong on the way.

TROUBLE = {
    "throttled": lambda faults: faults.fail_next(3, "ThrottlingException", action="PutLogEvents"),
    "5xx": lambda faults: faults.fail_next(3, "ServiceUnavailableException", action="PutLogEvents"),
    "bare 503": lambda faults: faults.fail_next(2, "", 503, action="PutLogEvents"),
    "dropped": lambda faults: faults.drop_connection_before_storing(3),
    "junk": lambda faults: faults.junk_next(2, action="PutLogEvents"),
    "aborted": lambda faults: faults.fail_next(2, "OperationAbortedException", action="CreateLogStream"),
    "deleted stream": lambda faults: faults.delete_stream_under_way(),
    "deleted group": lambda faults: faults.delete_group_under_way(),
    "tokens": lambda faults: setattr(faults, "sequence_tokens", True),
}


@pytest.mark.parametrize("trouble", TROUBLE)
def test_trouble_that_ends_costs_nothing(external: SinkConfig, server: StrictCloudWatch, trouble: str) -> None:
    """Nothing lost, nothing twice, order kept."""
    config = changed(external, max_batch_events=100, retry_base_delay=0.01)
    TROUBLE[trouble](server.faults)
    texts = [f"{number}" for number in range(500)]
    writer = filled(config, texts)
    deliver(writer.directory, config)
    assert records(server) == texts
    settled(writer.directory, appended=500, delivered=500)


def test_a_lost_answer_repeats_at_most_its_batch(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Stored, and the connection dropped: each such answer repeats one batch, and is counted as resent. Invariant 4."""
    config = changed(external, max_batch_events=100, retry_base_delay=0.01)
    server.create_stream("/test/group", "stream")
    server.faults.pass_next(1, action="PutLogEvents")
    server.faults.drop_connection_after_storing(2)
    texts = [f"{number}" for number in range(500)]
    writer = filled(config, texts)
    deliver(writer.directory, config)
    counts = Counter(records(server))
    assert set(counts) == set(texts)
    assert sum(counts.values()) - 500 == 200
    settled(writer.directory, appended=500, delivered=500)
    assert survey(writer.directory).resent == 200


def test_an_answer_that_never_comes_is_given_up_and_sent_again(external: SinkConfig, server: StrictCloudWatch) -> None:
    """A server that hangs costs read_timeout_seconds, not the leader."""
    config = changed(external, read_timeout_seconds=0.3, retry_base_delay=0.01)
    server.create_stream("/test/group", "stream")
    server.faults.hang(NEVER, action="PutLogEvents")
    writer = filled(config, ["one"])
    deliver(writer.directory, config)
    assert records(server) == ["one"]


def test_group_and_stream_are_created_once(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Created when they are missed, and never asked for again, nor described."""
    config = changed(external, max_batch_events=10)
    writer = filled(config, [f"{number}" for number in range(50)])
    deliver(writer.directory, config)
    assert writer.append("later")
    deliver(writer.directory, config)
    assert server.calls["CreateLogGroup"] == 1
    assert 1 <= server.calls["CreateLogStream"] <= 2
    assert set(server.calls) == {"PutLogEvents", "CreateLogGroup", "CreateLogStream"}
    assert len(records(server)) == 51


@pytest.mark.parametrize("off", ["create_log_group", "create_log_stream"])
def test_creation_can_be_turned_off(
    external: SinkConfig, server: StrictCloudWatch, off: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Records wait, with one clear line, until somebody has made what is missing."""
    config = changed(external, **{off: False})
    writer = filled(config, ["waits"])
    with leading(writer.directory, config) as leader:
        until(lambda: leader.leader_state._now.last_error is not None, "an error")
        assert server.calls["CreateLogGroup"] == 0
        assert (server.calls["CreateLogStream"] == 0) == (off == "create_log_stream")
        assert not server.messages()
    assert "ResourceNotFoundException" in capfd.readouterr().err
    server.create_stream("/test/group", "stream")
    deliver(writer.directory, config)
    assert server.messages() == ["waits"]


def test_every_request_says_which_leader_sent_it(external: SinkConfig, server: StrictCloudWatch) -> None:
    """The User-Agent has version and epoch; each leader has its own epoch."""
    for number in range(3):
        writer = filled(external, [f"{number}"])
        deliver(writer.directory, external)
    assert [event.epoch for event in server.events()] == [1, 2, 3]
    assert all(f"cwsink/{__version__} epoch/" in request.user_agent for request in server.requests)
    assert all(len(senders) == 1 for senders in server.senders_by_epoch().values())


def test_events_arrive_byte_for_byte_with_their_own_times(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Multi-byte text, control characters and quotes; the time of the append, not of the send. Invariant 2."""
    texts = ["späte Züge", "\U0001f682\u2028", 'quote " and \\ slash', "nul \0 bell \x07", "a\nb\r\n\tc", "x" * 10_000]
    then = now_ms() - 3_600_000
    writer = Writer(external)
    for number, text in enumerate(texts):
        assert writer.append(text, then + number)
    deliver(writer.directory, external)
    assert [(event.message, event.timestamp - then) for event in server.events()] == [
        (text, number) for number, text in enumerate(texts)
    ]


# Fencing.


@pytest.mark.parametrize("how", ["lock file removed", "lock file replaced", "later epoch"])
def test_a_superseded_leader_sends_and_commits_nothing_more(
    external: SinkConfig, server: StrictCloudWatch, how: str
) -> None:
    """Proof before every step: the same lock file, the same epoch. Else it drops everything."""
    writer = filled(external, ["one"])
    spool = writer.directory
    lease = Lease(spool)
    assert lease.try_acquire()
    flusher = Flusher(spool, external, lease, Orders(), kind="own")
    if how == "later epoch":
        later = Cursor(spool.cursor)
        later.take_over("another")
        later.close()
    else:
        os.unlink(spool.leader_lock)
        if how == "lock file replaced":
            Path(spool.leader_lock).touch()
    before = Path(spool.cursor).read_bytes()
    with pytest.raises(Fenced):
        flusher.lead()
    lease.release()
    assert not server.calls
    assert Path(spool.cursor).read_bytes() == before
    deliver(spool, external)
    assert server.messages() == ["one"]


def test_a_leader_that_is_superseded_while_sending_does_not_commit(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer arrives after another leader took over: the cursor stays the other's; one batch repeats."""
    writer = filled(external, ["one"])
    spool = writer.directory
    send = Delivery.send

    def superseded(self: Delivery, request: Request) -> Iterator[Settled]:
        for settled in send(self, request):
            other = Cursor(spool.cursor)
            other.take_over("another")
            other.close()
            yield settled

    with monkeypatch.context() as patch:
        patch.setattr(Delivery, "send", superseded)
        with pytest.raises(Fenced):
            deliver(spool, external)
    assert cursor.read(spool.cursor).holder == "another"
    assert survey(spool).pending == 1
    deliver(spool, external)
    assert server.messages() == ["one", "one"]
    settled(spool, appended=1, delivered=1)


def test_a_leader_that_is_superseded_between_its_check_and_its_commit_does_not_commit(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The epoch is compared once more under the cursor's lock: a lower one never commits after a higher one."""
    writer = filled(external, ["one"])
    spool = writer.directory
    is_ours = Cursor.is_ours
    taken_over: list[bytes] = []

    def and_then(self: Cursor) -> bool:
        answer = is_ours(self)
        if server.messages() and not taken_over:  # the check before the commit, no longer that before the send
            other = Cursor(spool.cursor)
            other.take_over("another")
            other.close()
            taken_over.append(Path(spool.cursor).read_bytes())
        return answer

    with monkeypatch.context() as patch:
        patch.setattr(Cursor, "is_ours", and_then)
        with pytest.raises(Fenced):
            deliver(spool, external)
    assert [Path(spool.cursor).read_bytes()] == taken_over
    assert survey(spool).pending == 1


# The cursor.


@pytest.mark.parametrize("slots", [(0,), (1,), (0, 1)])
def test_lost_cursor_slots_cost_duplicates_and_no_record(
    external: SinkConfig, server: StrictCloudWatch, slots: tuple[int, ...]
) -> None:
    """One torn slot: the other counts. Both: reading begins at the oldest segment again."""
    writer = filled(external, ["a", "b"])
    deliver(writer.directory, external)
    assert writer.append("c")
    with open(writer.directory.cursor, "r+b") as file:
        for slot in slots:
            file.seek(slot * cursor.SLOT_BYTES + 30)
            file.write(b"\xff\xff\xff")
    deliver(writer.directory, external)
    counts = Counter(server.messages())
    assert set(counts) == {"a", "b", "c"}
    assert max(counts.values()) <= 2
    if len(slots) == 2:
        assert counts == {"a": 2, "b": 2, "c": 1}
    books = survey(writer.directory)
    assert (books.adds_up, books.pending) == (True, 0)


def test_a_cursor_that_is_removed_costs_duplicates_and_no_record(
    external: SinkConfig, server: StrictCloudWatch
) -> None:
    """As with both slots lost."""
    writer = filled(external, ["a", "b"])
    deliver(writer.directory, external)
    os.unlink(writer.directory.cursor)
    assert writer.append("c")
    deliver(writer.directory, external)
    assert Counter(server.messages()) == {"a": 2, "b": 2, "c": 1}


@pytest.mark.parametrize("what", ["removed", "replaced", "overwritten", "emptied"])
def test_a_leader_writes_a_cursor_that_is_gone_anew(external: SinkConfig, server: StrictCloudWatch, what: str) -> None:
    """Nothing is sent again, neither by this leader nor by the next one, and the books go on."""
    writer = filled(external, ["a", "b"])
    path = Path(writer.directory.cursor)

    def is_settled(appended: int) -> bool:
        books = survey(writer.directory)
        return (books.delivered, books.pending) == (appended, 0)

    with leading(writer.directory, external, kind="own"):
        until(lambda: is_settled(2), "the first two are settled")
        if what in ("removed", "replaced"):
            path.unlink()
        if what != "removed":
            path.write_bytes(b"" if what == "emptied" else b"\xff" * 4096)
        until(lambda: is_settled(2), "the cursor is written anew")
        assert writer.append("c")
        until(lambda: is_settled(3), "the third one is settled")
    deliver(writer.directory, external)
    assert server.messages() == ["a", "b", "c"]
    settled(writer.directory, appended=3, delivered=3)


@pytest.mark.parametrize("leaders", [1, 2])
def test_a_cursor_that_is_written_anew_counts_nothing_ahead_of_its_commit(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, leaders: int
) -> None:
    """It goes in the middle of a chunk, and the leader is killed before it commits the request that was answered."""
    writer = Writer(external)
    assert all(writer.append(*entry) for entry in old_and_new())
    commit = Cursor.commit

    def dying(self: Cursor, state: cursor.State) -> None:
        if state.requests_done == 2 and not is_last:
            raise Killed
        commit(self, state)

    def with_its_cursor_removed(self: Flusher) -> None:
        if self._state.requests_done == 1:
            Path(writer.directory.cursor).unlink(missing_ok=True)
        check(self)

    check = Flusher.check
    monkeypatch.setattr(Flusher, "check", with_its_cursor_removed)
    monkeypatch.setattr(Cursor, "commit", dying)
    is_last = False
    for _ in range(leaders):
        with pytest.raises(Killed):
            deliver(writer.directory, external)
        left = cursor.read(writer.directory.cursor)
        assert (left.requests_done, left.partial.delivered) == (1, 5)
    is_last = True
    deliver(writer.directory, external)
    settled(writer.directory, appended=30, delivered=30)


def test_a_leader_that_has_just_seen_its_cursor_whole_leads_on(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody overwrites the cursor between the look whether it is whole and the look whose it is."""
    writer = filled(external, ["a", "b"])
    path, is_ours, overwritten = Path(writer.directory.cursor), Cursor.is_ours, []

    def is_ours_after_all(self: Cursor) -> bool:
        if server.messages() and not overwritten:
            overwritten.append(path.write_bytes(b"\xff" * path.stat().st_size))
        return is_ours(self)

    monkeypatch.setattr(Cursor, "is_ours", is_ours_after_all)
    with leading(writer.directory, external, kind="own"):
        until(lambda: bool(overwritten), "the cursor is overwritten")
        assert writer.append("c")
        until(lambda: len(server.messages()) == 3, "the leader goes on")
    settled(writer.directory, appended=3, delivered=3)


def test_one_drain_reclaims_segments_that_hold_nothing_but_damage(external: SinkConfig) -> None:
    """Else a spool that is full of what killed writers have torn would stay full after `cwsink flush --once`."""
    writer = filled(changed(external, segment_bytes=SMALL), ["x" * 1000 for _ in range(5)])
    numbers = segments(writer.directory)
    assert len(numbers) > 1
    writer.close()
    for number in numbers:
        with open(segment_path(writer.directory, number), "r+b") as file:
            file.seek(segment.HEADER_BYTES)
            file.write(b"\xff" * 1000)
            file.truncate()
    deliver(writer.directory, external)
    assert segments(writer.directory) == numbers[-1:]


# leader.json and durability.


def test_leader_json_says_what_the_leader_is_doing(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who leads, since when, how it goes, and what went wrong last; whole at every moment."""
    monkeypatch.setattr(publisher, "PUBLISH_SECONDS", 0.0)
    began = time.time()
    config = changed(external, circuit_breaker_enabled=True, circuit_breaker_threshold=1, max_retries=1)
    server.create_stream("/test/group", "stream")
    server.faults.fail_next(10_000, "ThrottlingException", action="PutLogEvents")
    writer = filled(config, ["one"])

    def published() -> leader_state.Published:
        found = leader_state.read(writer.directory)
        assert found is not None, "leader.json is not there, or not whole"
        return found

    with leading(writer.directory, config, kind="own"):
        until(lambda: published().state == "retrying", "retrying")
        until(lambda: published().state == "circuit_open", "the circuit opens")
        seen = published()
        assert (seen.pid, seen.host, seen.epoch, seen.kind) == (os.getpid(), socket.gethostname(), 1, "own")
        assert seen.last_error == "ThrottlingException: Rate exceeded"
        assert seen.last_success is None
        assert seen.capacity_bytes == config.spool_max_bytes
        assert began - 1 <= seen.since <= time.time()
    server.faults.clear()
    with leading(writer.directory, config):
        until(lambda: published().last_success is not None, "a success")
        assert published().epoch == 2
        until(lambda: published().state == "idle", "idle")
    assert not list(Path(writer.directory.path).glob("*.tmp"))


def test_leader_json_is_written_at_most_once_a_second(external: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Failing or delivering at any rate: one replacement a second."""
    spool = filled(external, ["one"]).directory
    replaced: list[str] = []
    replace = os.replace

    def count(source: str, target: str, **more: Any) -> None:
        replaced.append(target)
        replace(source, target, **more)

    monkeypatch.setattr(os, "replace", count)
    state = LeaderState(spool, 1, "own", 1)
    began = time.monotonic()
    for number in range(1_000):
        state.failed(f"error {number}", "busy", is_open=False)
        state.delivered(1)
    assert len(replaced) <= 2 + (time.monotonic() - began)


def test_leader_json_says_at_once_what_a_process_that_ends_wants_to_know(external: SinkConfig) -> None:
    """Why it cannot deliver, that it can again, that its lines reach nobody: none of it waits for the next second."""
    spool = filled(external, ["one"]).directory
    state = LeaderState(spool, 1, "own", 1)
    for obstacle in ("busy", "credentials", "denied", "unreachable"):
        state.failed("no", obstacle, is_open=False)
        assert (found := leader_state.read(spool)) is not None
        assert (found.obstacle, found.last_error, found.is_mute) == (obstacle, "no", False)
    state.went_mute()
    assert (found := leader_state.read(spool)) is not None
    assert found.is_mute
    state.succeeded()
    state.delivered(1)
    assert (found := leader_state.read(spool)) is not None
    assert (found.obstacle, found.state) == ("", "delivering")


def test_host_durability_syncs_ring_and_cursor_at_most_every_half_second(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A leader syncs what was read or not, under load and when idle; and no more often than it promises."""
    config = changed(external, durability="host", max_batch_events=10)
    synced: list[float] = []
    sync = disk.sync
    monkeypatch.setattr(disk, "sync", lambda fd: (synced.append(time.monotonic()), sync(fd)))
    writer = Writer(changed(config, durability="process"))
    began = time.monotonic()
    with leading(writer.directory, config):
        for number in range(100):
            assert writer.append(f"{number}")
        assert server.wait_for_events(100, 60)
        until(lambda: bool(synced), "a sync")
        until(lambda: time.monotonic() - began > 1.2, "more than two periods")
    elapsed = time.monotonic() - began
    # Each round syncs the segments that changed; there is one.
    assert 1 <= len(synced) <= elapsed / durability.SYNC_SECONDS + 1


def test_host_durability_reaches_segments_the_leader_has_not_read(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a backlog and CloudWatch down, the newest segment is synced too."""
    config = changed(external, durability="host", segment_bytes=4096, max_batch_events=2)
    server.stop()
    inodes: set[int] = set()
    monkeypatch.setattr(disk, "sync", lambda fd: inodes.add(os.fstat(fd).st_ino))
    writer = filled(changed(config, durability="process"), [f"{number} {'.' * 300}" for number in range(60)])
    wanted = {segment_path(writer.directory, number).stat().st_ino for number in segments(writer.directory)}
    assert len(wanted) > 3
    with leading(writer.directory, config):
        until(lambda: wanted <= inodes, "every segment is synced")
    server.start()


def test_a_writer_syncs_itself_unless_a_leader_does(external: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A leader with other settings writes leader.json, but does not sync; one that cannot sync any more says so."""
    writer = Writer(changed(external, durability="host"))
    synced: list[int] = []
    monkeypatch.setattr(writer._ring, "sync", lambda before: synced.append(1))

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def syncs() -> bool:
        synced.clear()
        writer._syncing._led_until = 0.0
        assert writer.append("x")
        return bool(synced)

    assert syncs()
    with leading(writer.directory, changed(external, durability="process")) as leader:
        leader.leader_state.failed("an error", "busy", is_open=False)  # so leader.json is new
        assert syncs()
    with leading(writer.directory, changed(external, durability="host")):
        until(lambda: not syncs(), "the leader syncs")
        monkeypatch.setattr(disk, "sync", fail)
        until(syncs, "the leader cannot sync, so the writer does")


def is_syncing_beside() -> bool:
    return any(each.name == durability.THREAD for each in threading.enumerate())


@contextlib.contextmanager
def in_a_request(spool: SpoolDirectory, config: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have a leader wait for an answer of CloudWatch for as long as the block runs."""
    entered, answered, put = threading.Event(), threading.Event(), CloudWatch.put

    def hanging_put(*request: Any) -> Answer:
        entered.set()
        assert answered.wait(CHILD_SECONDS)
        return put(*request)

    monkeypatch.setattr(CloudWatch, "put", hanging_put)
    with leading(spool, config):
        assert entered.wait(CHILD_SECONDS)
        try:
            yield
        finally:
            answered.set()
    assert not is_syncing_beside()


def test_host_durability_holds_while_a_request_hangs(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is appended meanwhile is synced, and writers are told so; or they are told that it is not."""
    config = changed(external, durability="host")
    writer = filled(changed(config, durability="process"), ["in the request"])
    path, sync, synced = segment_path(writer.directory, 1), disk.sync, [0]
    monkeypatch.setattr(disk, "sync", lambda fd: (sync(fd), synced.append(os.fstat(fd).st_size)))

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with in_a_request(writer.directory, config, monkeypatch):
        for number in range(3):
            assert writer.append(f"meanwhile {number}")
            until(lambda: synced[-1] == path.stat().st_size, "it is synced")
        os.utime(writer.directory.leader_state, (0, 0))
        until(lambda: leader_state.is_synced(writer.directory), "the leader says so again and again")
        with monkeypatch.context() as patch:
            patch.setattr(disk, "sync", fail)
            assert writer.append("meanwhile, and the disk fails")
            until(lambda: not leader_state.is_synced(writer.directory), "it says that it cannot sync")
        until(lambda: leader_state.is_synced(writer.directory), "it can sync once more")
        assert not server.messages()
    deliver(writer.directory, external)
    settled(writer.directory, appended=5, delivered=5)


def test_a_leader_that_hangs_in_a_call_is_not_believed_to_sync(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thread ends, so that the leader does not look alive. Writers sync by themselves then."""
    config = changed(external, durability="host")
    writer = filled(changed(config, durability="process"), ["in the request"])
    monkeypatch.setattr(durability.deadline, "seconds_of", lambda _: 0.5)
    with in_a_request(writer.directory, config, monkeypatch):
        until(lambda: leader_state.is_synced(writer.directory), "it syncs")
        until(lambda: not is_syncing_beside(), "it syncs no more")
        published = leader_state.read(writer.directory)
        assert published is not None
        assert not published.syncs


@pytest.mark.parametrize("end", ["when all is sent", "while CloudWatch is down"])
def test_a_leader_that_leaves_says_that_it_syncs_no_more(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """And it syncs once more after that: what was appended before writers could read it relies on the leader."""
    config = changed(external, durability="host")
    if end == "while CloudWatch is down":
        server.stop()
    writer = filled(changed(config, durability="process"), ["pending"])
    say, sync, sizes = LeaderState.not_synced, disk.sync, [0]

    def say_after_an_append(self: LeaderState) -> None:
        assert writer.append("the last moment")
        say(self)

    with leading(writer.directory, config):
        until(lambda: leader_state.is_synced(writer.directory), "it syncs")
        monkeypatch.setattr(LeaderState, "not_synced", say_after_an_append)
        monkeypatch.setattr(disk, "sync", lambda fd: (sync(fd), sizes.append(os.fstat(fd).st_size)))
    assert not leader_state.is_synced(writer.directory)
    assert sizes[-1] == segment_path(writer.directory, 1).stat().st_size
    if end == "while CloudWatch is down":
        server.start()


# What writers have refused.


def test_notices_of_refusals_come_at_once_then_less_and_less_often(
    external: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, then after 1 s, 2 s, 4 s as long as it goes on, and at once again after a pause. None goes untold."""
    spool = Writer(external).directory
    clock = SimpleNamespace(**vars(time))
    clock.now = 1000.0
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(flusher_module, "time", clock)
    told: list[tuple[float, int]] = []
    monkeypatch.setattr(
        Flusher, "_tell", lambda _, event: told.append((clock.now - 1000.0, int(event.message.split()[1])))
    )
    lease, orders = Lease(spool), Orders()
    assert lease.try_acquire()
    leader = Flusher(spool, external, lease, orders, kind="own")

    def pass_seconds(seconds: float, *, refused: bool) -> None:
        for _ in range(round(4 * seconds)):
            clock.now += 0.25
            if refused:
                assert refusals.add(spool, [Loss(1, now_ms(), now_ms(), "spool_full", 0)])
            leader._report_evictions()

    pass_seconds(8, refused=True)
    assert told == [(0.25, 1), (1.25, 4), (3.25, 8), (7.25, 16)]
    pass_seconds(200, refused=True)
    assert told[-1][0] - told[-2][0] == flusher_module.LONGEST_REFUSALS_PAUSE_SECONDS
    pass_seconds(100, refused=False)
    assert sum(count for _, count in told) == 4 * 208
    told.clear()
    pass_seconds(0.25, refused=True)
    assert [count for _, count in told] == [1]
    orders.drain(0.0)
    leader.lead()
    lease.release()


# Leaving.


def test_a_leader_told_to_leave_while_cloudwatch_is_down_leaves(external: SinkConfig, server: StrictCloudWatch) -> None:
    """What is not settled stays; the next leader delivers it, once."""
    writer = filled(external, ["one"])
    server.stop()
    with leading(writer.directory, external) as leader:
        until(lambda: leader.leader_state._now.last_error is not None, "an error")
    assert survey(writer.directory).pending == 1
    server.start()
    deliver(writer.directory, external)
    assert server.messages() == ["one"]


def test_a_leader_leaves_no_descriptor_open(external: SinkConfig) -> None:
    """Several leaders in one process: as many descriptors as after the first."""

    def descriptors_open() -> int:
        return len(os.listdir("/proc/self/fd"))

    writer = filled(external, ["one"])
    deliver(writer.directory, external)
    before = descriptors_open()
    for number in range(4):
        assert writer.append(f"{number}")
        deliver(writer.directory, external)
    # The server's ends of the connections are in this process too, and close a moment later.
    until(lambda: descriptors_open() <= before, "all are closed")


@pytest.mark.parametrize("broken", ["_write", "reserve"])
def test_a_leader_that_cannot_begin_leaves_no_descriptor_open(
    external: SinkConfig, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """A disk that is full for a day must not end in EMFILE; nothing is sent that could not be committed."""
    writer = filled(external, ["one"])

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(*((Cursor, "_write", full) if broken == "_write" else (disk, "reserve", full)))
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(5):
            with pytest.raises(OSError, match="No space"):
                deliver(writer.directory, external)
        assert len(os.listdir("/proc/self/fd")) == before
    assert not server.calls
    deliver(writer.directory, external)
    assert server.messages() == ["one"]


def test_stopping_with_a_record_pending_does_not_spin(external: SinkConfig, server: StrictCloudWatch) -> None:
    """Told to drain, the leader sends what is there at once instead of waiting for batch_timeout_seconds."""
    config = changed(external, batch_timeout_seconds=NEVER)
    writer = filled(config, ["one"])
    lease = Lease(writer.directory)
    assert lease.try_acquire()
    orders = Orders()
    orders.drain(60.0)
    orders.hurry.clear()  # as if the loop had found nothing a moment before the last record came
    flusher = Flusher(writer.directory, config, lease, orders, kind="own")
    thread = threading.Thread(target=flusher.lead)
    thread.start()
    thread.join(30)
    alive = thread.is_alive()
    orders.drain(0.0)
    thread.join(60)
    lease.release()
    assert not alive
    assert server.messages() == ["one"]
