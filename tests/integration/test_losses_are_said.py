"""No loss is silent, and none is called safe: stderr, `health_check`, and what the leader says meanwhile."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from subprocess import Popen
from unittest.mock import ANY

import msgspec
import pytest
from msgspec.structs import asdict, replace

from cwsink import CloudWatchSpoolSink, Writer, diagnostics, host
from cwsink.config import SinkConfig
from cwsink.flusher import backoff
from cwsink.flusher.claim import Heartbeat
from cwsink.flusher.publisher import LeaderState
from cwsink.naming import rfc3339
from cwsink.spool import alerts, budget, disk, files, frame, leader_state, loss_causes, refusals, told
from cwsink.spool.attachment import Attachment
from cwsink.spool.directory import open_for
from cwsink.spool.record import Loss
from cwsink.spool.room import Room
from cwsink.spool.stats import look
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from cwsink.watching.reasons import loss
from tests.harness.interleave import deliver, leading, segment_path, until
from tests.harness.support import CHILD_SECONDS, finish, notices_in, program_calling, quick_config

Spawn = Callable[..., "Popen[str]"]
LOST = re.compile(r"LOST ([\d,]+) records? \(([\d,]+) in all\): (.*)")


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is said from now on, in this process."""
    found: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda _, message: found.append(message)])
    return found


def tiny(server: StrictCloudWatch, **settings: object) -> SinkConfig:
    """A spool of 16 small segments that nobody sends."""
    given = {"flusher": "external", "segment_bytes": 4096, "spool_max_bytes": 64 * 1024, **settings}
    return quick_config(server.endpoint_url, **given)


def now_ms() -> int:
    return int(time.time() * 1000)


def lost(lines: list[str]) -> list[tuple[int, int, str]]:
    found = [LOST.match(line) for line in lines]
    return [(int(m[1].replace(",", "")), int(m[2].replace(",", "")), m[3]) for m in found if m]


def overflow(config: str) -> None:
    """A worker: it logs more than the spool holds, and ends."""
    writer = Writer(SinkConfig(**json.loads(config)))
    for number in range(600):
        writer.append(f"{number} {'x' * 200}")


def test_without_a_leader_one_of_the_workers_says_it(spawn: Spawn, server: StrictCloudWatch) -> None:
    """Before the first loss that the spool fills up, then how many are lost and what to do; not once a worker."""
    config = json.dumps(asdict(tiny(server)))
    workers = [spawn(program_calling(overflow), config) for _ in range(3)]
    said = "".join(worker.communicate(timeout=60)[1] for worker in workers).splitlines()
    assert [line for line in said if " full (" in line and "nothing is lost yet" in line][1:] == []
    found = lost([line.removeprefix("cwsink: ") for line in said])
    assert 1 <= len(found) <= 1 + len(workers), said
    totals = sorted(total for _, total, _ in found)
    assert sum(count for count, _, _ in found) == totals[-1]
    assert all(
        text.startswith("the spool is full; no process sends. Raise spool_max_bytes, or") for _, _, text in found
    )
    assert not [line for line in said if "stay in the spool" in line or "It is counted" in line]


@pytest.mark.parametrize("on_full", ["drop_oldest", "drop_newest"])
def test_a_loss_is_said_from_its_beginning_to_its_end(
    server: StrictCloudWatch, lines: list[str], monkeypatch: pytest.MonkeyPatch, on_full: str
) -> None:
    """At 80 %, at the first lost record, again with the difference, and when it is over; no line says "safe"."""
    monkeypatch.setattr(alerts, "AGAIN_SECONDS", 0.3)
    monkeypatch.setattr(alerts, "_LOOK_SECONDS", 0.05)
    server.faults.throttle_rate(0.0)
    config = tiny(server, on_full=on_full)
    writer = Writer(config)
    with leading(writer.directory, config):
        assert writer.append("y" * 200)
        until(lambda: any("cannot deliver" in line for line in lines), "throttled")
        assert any("The records stay in the spool." in line for line in lines)

        def is_said_twice() -> bool:
            writer.append("x" * 300)
            return len(lost(lines)) >= 3

        until(is_said_twice, "that records are lost")
        first = next(at for at, line in enumerate(lines) if line.startswith("LOST"))
        assert any("nothing is lost yet; CloudWatch has answered ThrottlingException" in line for line in lines[:first])
        found = lost(lines)
        assert [total for _, total, _ in found] == sorted({total for _, total, _ in found})
        assert all(
            re.match(
                r"the spool is full; CloudWatch has answered ThrottlingException for [\d.]+ s. "
                r"Raise spool_max_bytes, or ask AWS for a higher quota.",
                text,
            )
            for _, _, text in found
        )
        diagnostics._quiet.clear()
        until(lambda: any("cannot deliver" in line for line in lines[first:]), "the trouble again")
        assert not any("stay in the spool" in line for line in lines[first:])
        assert any("cannot deliver" in line and "are being LOST" in line for line in lines[first:])
        server.faults.throttle_rate(None)
        until(lambda: any("no record is lost any more" in line for line in lines), "its end")
    said = told.read(writer.directory)
    assert said is not None
    assert sum(said.lost.values()) == sum(alerts.see(writer.directory).lost.values())


def test_bursts_are_said_once_a_minute(server: StrictCloudWatch, lines: list[str]) -> None:
    """Each nearly fills the spool, and is delivered at once. Nothing waits then, however much room its files take."""
    writer = Writer(tiny(server))
    for _ in range(3):
        while not alerts.see(writer.directory).room.is_nearly_full:
            assert writer.append("x" * 500)
        alerts.Alerts(writer.directory).look()
        deliver(writer.directory, writer.config)
    filling, emptied = lines
    assert re.match(r"the spool is [89]\d% full .* nothing is lost yet", filling)
    assert emptied == f"no record waits any more, and none was lost meanwhile. Spool: {writer.directory.path}"


def test_at_its_end_a_process_says_the_rest(server: StrictCloudWatch, lines: list[str]) -> None:
    """One line at the first refusal, one at the end; together they are all that was refused."""
    writer = Writer(tiny(server, on_full="drop_newest"))
    refused = sum(not writer.append("x" * 500) for _ in range(300))
    assert [count for count, _, _ in lost(lines)] == [1]
    writer.close()
    assert [count for count, _, _ in lost(lines)] == [1, refused - 1]
    writer.close()
    assert len(lost(lines)) == 2


def test_at_its_end_a_process_says_what_else_was_evicted(server: StrictCloudWatch, lines: list[str]) -> None:
    """It says at once that it evicts, and at its end, within the same minute, how many it has evicted since."""
    writer = Writer(tiny(server))
    assert all(writer.append("x" * 500) for _ in range(600))
    (first,) = lost(lines)
    writer.close()
    assert lost(lines)[1:] == [(survey(writer.directory).evicted - first[0], survey(writer.directory).evicted, ANY)]


def test_a_notice_has_the_times_of_its_own_losses(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Losses that the stream was told of do not count for the next notice's times; those that wait do."""
    writer = Writer(small)
    start = now_ms() - 100_000
    told_of = []
    for begins in ([0], [20_000], [40_000, 80_000]):
        for begin in begins:
            refusals.add(writer.directory, [Loss(3, start + begin, start + begin + 2_000, "io_error", 0)])
        deliver(writer.directory, small)
        told_of.append(notices_in(server.messages())[-1]["_cwsink"])
    times = [
        (rfc3339(start + 1000 * begin), rfc3339(start + 1000 * end)) for begin, end in ((0, 2), (20, 22), (40, 82))
    ]
    assert [(each["first"], each["last"]) for each in told_of] == times
    assert [each["lost"] for each in told_of] == [3, 3, 6]


def told_so_far(server: StrictCloudWatch) -> int:
    return sum(each["_cwsink"]["lost"] for each in notices_in(server.messages()))


def test_a_notice_of_evictions_begins_where_the_one_before_ended(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Also if the evictor had not seen the report when it counted on."""
    writer = Writer(small)
    start = now_ms() - 100_000
    with leading(writer.directory, small):
        for count, end in ((3, 2_000), (5, 9_000)):
            totals = budget.Evictions(records=count, first_ms=start, last_ms=start + end)
            files.replace(writer.directory.evictions, budget._packed(totals))
            until(lambda count=count: told_so_far(server) == count, "the stream is told")
    told_of = [each["_cwsink"] for each in notices_in(server.messages())]
    times = [start, start + 2_000, start + 9_000]
    assert [(each["first"], each["last"]) for each in told_of] == [
        (rfc3339(first), rfc3339(last)) for first, last in pairwise(times)
    ]


@pytest.mark.parametrize("days", [-20.0, -1.5, 0.5])
def test_a_notice_of_records_that_cloudwatch_would_refuse_is_taken(
    small: SinkConfig, server: StrictCloudWatch, days: float
) -> None:
    """Records of any time may be lost. The notice has that time in its text, and one that CloudWatch takes."""
    server.create_group(small.log_group_name, retention_days=1)
    writer = Writer(small)
    moment = now_ms() + int(days * 86_400_000)
    refusals.add(writer.directory, [Loss(3, moment, moment, "io_error", 0)])
    deliver(writer.directory, small)
    (notice,) = notices_in(server.messages())
    assert (notice["_cwsink"]["lost"], notice["_cwsink"]["last"]) == (3, rfc3339(moment))


def test_a_full_disk_is_called_one(server: StrictCloudWatch, lines: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and while it costs records: the remedy is another one than for a full spool."""
    writer = Writer(tiny(server))
    writer.append("x")
    monkeypatch.setattr(disk, "free_bytes", lambda fd: 100)
    alerts.Alerts(writer.directory).look()
    assert any("of its disk, 100 B free" in line and "Make room on the disk, or" in line for line in lines)
    refusals.add(writer.directory, [Loss(7, now_ms(), now_ms(), "spool_full", 0)])
    alerts.Alerts(writer.directory).look()
    assert lost(lines)[0][2].startswith("the disk is full (100 B free); no process sends. Make room on the disk, or")


LEADER = "import sys; from cwsink.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.usefixtures("lines")
def test_a_loss_is_over_when_nobody_logs(server: StrictCloudWatch, spawn: Spawn) -> None:
    """However full the spool is. The last leader, which was refused, is not forgotten when it has ended."""
    server.faults.deny("PutLogEvents")
    config = tiny(server)
    directory = open_for(config)
    with leading(directory, config):
        finish(spawn(program_calling(overflow), json.dumps(asdict(config))))
        until(lambda: "Denied" in str(look(directory).lost_why), "refused")
    alerts.Alerts(directory).look(is_last=True)
    assert told.change(directory, lambda said: replace(said, at=0.0, since=3_600.0, until=3_720.0))
    logging = Attachment(directory)
    assert look(directory).is_losing  # what is logged next will cost records
    logging.close()
    spool = look(directory)
    assert (spool.is_losing, spool.lost_is_over) == (False, False)
    cause = "the spool is full; no process sends; before that, CloudWatch answered AccessDeniedException"
    now = "None is lost now, but if a process logs, more soon will be. Raise spool_max_bytes, or have it sent by"
    assert f", 1970-01-01 01:00 UTC to 1970-01-01 01:02 UTC: {cause}. {now}" in loss(spool)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells that a process is stopped")
def test_a_stopped_leader_is_the_cause(server: StrictCloudWatch, spawn: Spawn, lines: list[str]) -> None:
    """Nothing is sent: to log less would not help, but to let the leader go on."""
    writer = Writer(tiny(server))
    assert writer.append("first")
    leader = spawn(LEADER, "flush", writer.directory.path)
    until(lambda: server.messages() == ["first"], "delivered")
    os.kill(leader.pid, signal.SIGSTOP)
    until(lambda: Path(f"/proc/{leader.pid}/stat").read_text().rpartition(")")[2].split()[0] == "T", "stopped")
    for _ in range(600):
        assert writer.append("x" * 500)
    who, remedy = f"the leader (pid {leader.pid} on {host.name()}) is a stopped process", f"`kill -CONT {leader.pid}`."
    filling, losing = lines
    assert f"nothing is lost yet; {who}. When" in filling
    assert lost([losing])[0][2].startswith(f"the spool is full; {who}. Raise spool_max_bytes, or let the leader go on")
    assert remedy in filling
    assert remedy in losing
    assert who in str(look(writer.directory).lost_why)


@pytest.mark.parametrize(("silent_seconds", "is_still"), [(0, False), (29, False), (41, True), (-3600, False)])
@pytest.mark.parametrize("read_timeout_seconds", [5.0, 60.0])
def test_a_leader_that_shows_no_sign_of_life_is_the_cause(
    server: StrictCloudWatch, lines: list[str], silent_seconds: int, is_still: bool, read_timeout_seconds: float
) -> None:
    """It is silent for longer than a request may take."""
    writer = Writer(tiny(server, read_timeout_seconds=read_timeout_seconds))
    assert writer.append("first")
    with leading(writer.directory, writer.config):
        until(lambda: server.messages() == ["first"], "delivered")
    published = leader_state.read(writer.directory)
    assert published is not None
    published.pid, published.since = 1, time.time() - 3600
    files.replace(writer.directory.leader_state, msgspec.json.encode(published))
    Heartbeat(writer.directory).begin()
    for path in (writer.directory.leader_host, writer.directory.cursor, writer.directory.leader_state):
        os.utime(path, (time.time() - silent_seconds,) * 2)
    with open(writer.directory.leader_lock, "r+", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        for _ in range(600):
            assert writer.append("x" * 500)
    if is_still and read_timeout_seconds < 20:
        expected = r"the spool is full; the leader \(pid 1 on .*\) has not moved for 4\d s. .*what keeps the leader"
    else:
        expected = "the spool is full; records come faster than they are sent. Raise spool_max_bytes, or log less."
    assert re.match(expected, lost(lines)[0][2])


@pytest.mark.parametrize(
    ("leads_for", "ended_ago", "others", "cause", "remedy"),
    [
        (100, None, 0, "; records come faster than they are sent", "Make room on the disk, or log less."),
        (30, None, 0, "", "Make room on the disk, or log less."),
        (100, 89, 0, "; CloudWatch answered AccessDenied until 1 min 29 s ago", "Make room on the disk."),
        (100, 95, 0, "; records come faster than they are sent", "Make room on the disk, or log less."),
        (100, None, 2048, "; other files take 2 KiB of the disk", "Make room on the disk."),
        (100, 89, 2048, "; CloudWatch answered AccessDenied until 1 min 29 s ago", "Make room on the disk."),
    ],
)
def test_a_cause_is_said_if_it_was_one_when_records_were_lost(
    small: SinkConfig,
    monkeypatch: pytest.MonkeyPatch,
    leads_for: int,
    ended_ago: int | None,
    others: int,
    cause: str,
    remedy: str,
) -> None:
    """A line comes up to a minute after the loss. By then CloudWatch may be well again, or another process may lead."""
    writer = Writer(small)
    assert writer.append("x")
    now = time.time()
    monkeypatch.setattr(loss_causes, "wall", lambda: now)
    published = leader_state.Published(pid=1, host="h", epoch=1, kind="own", since=now - leads_for)
    if ended_ago is not None:
        published.outage, published.outage_until = "AccessDenied: no", now - ended_ago
    files.replace(writer.directory.leader_state, msgspec.json.encode(published))
    room = Room(used=1024, capacity=10_000_000, free=100, others=others)
    with open(writer.directory.leader_lock, "w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        found = loss_causes.cause_and_remedy(writer.directory, {"spool_full": 1}, room, has_pending=True)
    assert found == (f"the disk is full (100 B free){cause}", remedy)


@pytest.mark.parametrize(("seconds", "outage"), [(2.9, ""), (3.1, "AccessDenied: no")])
def test_an_outage_is_remembered_when_it_is_over(small: SinkConfig, seconds: float, outage: str) -> None:
    """The next leader remembers it, too; what passed by itself costs no records."""
    spool = open_for(small)
    state = LeaderState(spool, 1, "own", 1)
    state.failed("AccessDenied: no", "denied", is_open=False)
    state.published.failing_since = time.time() - seconds
    state.succeeded()
    state.publish()
    found = LeaderState(spool, 2, "own", 1).published
    assert (found.outage, 0 <= time.time() - found.outage_until < 30) == (outage, bool(outage))


def test_other_losses_have_their_own_cause(small: SinkConfig, lines: list[str]) -> None:
    """No budget helps against a disk that fails, or a message that is none, of which the type is said."""
    writer = Writer(small)
    refusals.add(writer.directory, [Loss(3, now_ms(), now_ms(), "io_error", 0)])
    alerts.Alerts(writer.directory).look()
    ((count, total, text),) = lost(lines)
    assert (count, total) == (3, 3)
    cause = (
        "the disk fails, or the process that logs has reached a limit or may not write there. The line `cannot append"
    )
    assert text.startswith(cause)
    lines.clear()
    assert not writer.append("")
    assert lines == ["LOST a message of type str that is empty or no text. It is counted; the application goes on."]


def test_an_error_of_our_own_is_not_called_one_of_the_disk(
    small: SinkConfig, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line names it, and the one with the count says so."""
    writer = Writer(small)

    def fail(*_: object) -> None:
        raise RecursionError("too deep")

    monkeypatch.setattr(frame, "encode", fail)
    assert not writer.append("x" * 100_000)
    ((_, total, text),) = lost(lines)
    assert total == 1
    assert text.startswith(
        "to spool them raised an exception, which the line `LOST a record` of that process names. Correct what logs "
        "them, or report that line to cwsink. Spool: "
    )
    assert "LOST a record, which is counted: RecursionError: too deep" in lines
    assert look(writer.directory).refused == {"internal_error": 1}


@pytest.mark.parametrize("name", ["", "/ring"])
def test_a_directory_that_its_owner_has_closed_is_named(small: SinkConfig, name: str) -> None:
    """Neither the disk fails then, nor has a process reached a limit. Whoever may look there sees it by the mode."""
    directory = Writer(small).directory
    refusals.add(directory, [Loss(3, now_ms(), now_ms(), "io_error", 0)])
    closed = Path(directory.path + name)
    closed.chmod(0o500)
    spool = look(directory)
    closed.chmod(0o700)
    cause = f"the owner of {closed} may not write there (mode 0500)."
    assert spool.lost_why == f"{cause} Let its owner write: `chmod u+rwx {closed}`."
    assert str(look(directory).lost_why).startswith("the disk fails, or")


def test_what_was_lost_before_is_not_said_as_new(small: SinkConfig, lines: list[str]) -> None:
    """A spool of a cwsink that wrote nothing down of what it said: its old losses are not news."""
    writer = Writer(small)
    refusals.add(writer.directory, [Loss(5, now_ms(), now_ms(), "spool_full", 0)])
    Path(writer.directory.told).unlink()
    alerts.Alerts(Writer(small).directory).look()
    assert lost(lines) == []


def test_who_has_no_stderr_leaves_it_to_others(
    small: SinkConfig, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cron job with its stderr in /dev/null does not silence the web server."""
    writer = Writer(small)
    refusals.add(writer.directory, [Loss(5, now_ms(), now_ms(), "spool_full", 0)])
    with monkeypatch.context() as patch:
        patch.setattr(alerts, "is_heard", lambda: False)
        alerts.Alerts(writer.directory).look()
    assert lines == []
    alerts.Alerts(writer.directory).look()
    assert [count for count, _, _ in lost(lines)] == [5]


def test_who_says_it_has_the_lock(small: SinkConfig, lines: list[str]) -> None:
    """While another process is about to say it, this one does not."""
    writer = Writer(small)
    refusals.add(writer.directory, [Loss(5, now_ms(), now_ms(), "spool_full", 0)])
    with open(writer.directory.told, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        alerts.Alerts(writer.directory).look()
    assert lines == []


def test_health_is_honest(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """False while CloudWatch refuses everything, and while records are lost; true again when that is over."""
    monkeypatch.setattr(backoff, "SLOW_DELAY_SECONDS", 0.2)
    config = tiny(server)
    sink = CloudWatchSpoolSink(**{name: value for name, value in asdict(config).items() if value is not None})

    async def health() -> bool:
        return await sink.health_check()

    asyncio.run(sink.start())
    assert asyncio.run(health())
    server.faults.deny("logs:PutLogEvents")
    asyncio.run(sink.write({"message": "x"}))
    directory = sink._writer.directory
    with leading(directory, config):
        until(lambda: not asyncio.run(health()), "it cannot deliver")
        server.faults.allow("logs:PutLogEvents")
        until(lambda: asyncio.run(health()), "it can")
    refusals.add(directory, [Loss(5, now_ms(), now_ms(), "spool_full", 0)])
    assert not asyncio.run(health())


def test_each_spool_says_how_many_dead_letters_it_has(
    small: SinkConfig, server: StrictCloudWatch, lines: list[str]
) -> None:
    """A process serves two spools: each has lines of its own, and together they count all letters."""
    server.faults.poison = "BAD"
    found = []
    for group in ("/test/group", "/test/other"):
        server.create_stream(group, "stream")
        config = replace(small, log_group_name=group)
        writer = Writer(config)
        with leading(writer.directory, config):
            for count in (1, 4, 6):
                if count == 6:
                    diagnostics._quiet.clear()  # a minute later
                while survey(writer.directory).dead_lettered.get("poison", 0) < count:
                    assert writer.append("BAD")
                    assert writer.flush(CHILD_SECONDS)
        found.append(writer.directory.dead_letters)
    dead = [line for line in lines if "cannot be delivered (poison)" in line]
    where = [(line.split()[0], line.partition("kept in ")[2].partition(". ")[0]) for line in dead]
    assert where == [("1", found[0]), ("4", found[0]), ("1", found[1]), ("4", found[1])]


def test_what_is_denied_is_named_for_each_group(
    small: SinkConfig, server: StrictCloudWatch, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One group is allowed again, another one is not: the line about the end names the first only."""
    monkeypatch.setattr(backoff, "SLOW_DELAY_SECONDS", 0.2)
    server.create_stream("/test/group", "stream")
    server.faults.deny("logs:PutLogEvents")
    server.faults.deny("logs:CreateLogGroup")
    old, new = small, replace(small, log_group_name="/test/new")
    writers = [Writer(old), Writer(new)]
    assert all(writer.append("x") for writer in writers)
    with leading(writers[0].directory, old), leading(writers[1].directory, new):
        until(lambda: len({line.split(":")[0] for line in lines if "cannot deliver to" in line}) == 2, "both are named")
        server.faults.allow("logs:PutLogEvents")
        until(lambda: any("accepts records again" in line for line in lines), "its end")
        server.faults.allow("logs:CreateLogGroup")
        until(lambda: sum("accepts records again" in line for line in lines) == 2, "the other's end")
    ends = [line for line in lines if "accepts records again" in line]
    assert [group in end for group, end in zip(("/test/group", "/test/new"), ends, strict=True)] == [True, True]


def test_dead_letters_end_with_a_line(
    small: SinkConfig, server: StrictCloudWatch, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the beginning how many and why; a while after the last one, what to do with them."""
    monkeypatch.setattr(alerts, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(alerts, "_LOOK_SECONDS", 0.05)
    server.create_stream("/test/group", "stream")
    server.faults.poison = "BAD"
    writer = Writer(small)
    for message in ("BAD", "good", "BAD"):
        assert writer.append(message)
    with leading(writer.directory, small):
        until(lambda: any("no more dead letters" in line for line in lines), "their end")
    assert any("cannot be delivered (poison)" in line for line in lines)
    assert any(f"`cwsink replay --dead-letters {writer.directory.path}`" in line for line in lines)
    assert any("no more dead letters for a minute: 2 were in all." in line for line in lines)


def test_damage_ends_with_a_line_that_promises_nothing(
    small: SinkConfig, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing but damage is dead, and no replay can send it."""
    monkeypatch.setattr(alerts, "AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(alerts, "_LOOK_SECONDS", 0.05)
    writer = Writer(small)
    for number in range(3):
        assert writer.append(f"record {number}")
    path = segment_path(writer.directory, 1)
    path.write_bytes(path.read_bytes().replace(b"record 1", b"RECORD 1"))
    with leading(writer.directory, small):
        until(lambda: any("no more dead letters" in line for line in lines), "their end")
    assert any("Nothing can send damage; `cwsink replay --dead-letters --clear" in line for line in lines)
    assert not any("sends what can be sent" in line for line in lines)
