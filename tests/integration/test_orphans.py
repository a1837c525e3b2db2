"""Spools left behind: found by `status`, sent by `replay`, adopted by a leader that may.

The verdict is the strict server's: what arrived where, how often, and who sent it.
"""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from msgspec.structs import asdict

from cwsink import Writer, diagnostics, host
from cwsink.cli import main
from cwsink.config import SinkConfig
from cwsink.flusher import adoption
from cwsink.flusher.adoption import give_back
from cwsink.flusher.claim import Lease
from cwsink.flusher.election import Election
from cwsink.frontends import presence
from cwsink.spool import directory, leader_state, lease, orphans, sending
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import pending, survey
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver, leading, ring_bytes, until
from tests.harness.support import CHILD_SECONDS, finish, quick_config

Spawn = Callable[..., "subprocess.Popen[str]"]
Capture = pytest.CaptureFixture[str]

# Appends as many records as each line of stdin says, and answers; ends with stdin.
WORKER = """
    import json, sys
    from cwsink import SinkConfig, Writer
    writer = Writer(SinkConfig(**json.loads(sys.argv[1])))
    count = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            assert writer.append(f"{sys.argv[2]} {count}")
            count += 1
        print("done", flush=True)
"""

COMMAND = """
    import sys
    from cwsink.cli import main
    sys.exit(main(sys.argv[1:]))
"""


def settings(config: SinkConfig, **changes: object) -> str:
    return json.dumps({name: value for name, value in {**asdict(config), **changes}.items() if value is not None})


def tell(worker: subprocess.Popen[str], records: int) -> None:
    """Have a worker append, and wait until it has."""
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(f"{records}\n")
    worker.stdin.flush()
    assert worker.stdout.readline().strip(), worker.stderr and worker.stderr.read()


def kill(worker: subprocess.Popen[str]) -> None:
    worker.kill()
    worker.wait(CHILD_SECONDS)


@pytest.fixture
def leave_behind(spawn: Spawn, config: SinkConfig) -> Callable[[str, int], SpoolDirectory]:
    """Have a worker that never sends append to a stream, and kill it."""

    def leave(stream: str, records: int) -> SpoolDirectory:
        worker = spawn(WORKER, settings(config, log_stream_name=stream, flusher="external"), stream)
        tell(worker, records)
        kill(worker)
        return directory.open_for(SinkConfig(**json.loads(settings(config, log_stream_name=stream))))

    return leave


def run(*words: object, code: int = 0) -> None:
    assert main([*map(str, words)]) == code


def expected(stream: str, records: int) -> list[str]:
    return [f"{stream} {number}" for number in range(records)]


def everything(spool: SpoolDirectory) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(Path(spool.path).rglob("*")) if path.is_file()}


@pytest.fixture(autouse=True)
def unfolded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines of the status are not folded."""
    monkeypatch.delenv("COLUMNS", raising=False)


# What is one.


def test_an_orphan_is_told_by_locks(config: SinkConfig, leave_behind: Callable[[str, int], SpoolDirectory]) -> None:
    """Pending, and neither a leader nor anybody who has appended; looking leaves no trace."""
    spool = leave_behind("left", 3)
    assert orphans.is_orphan(spool)
    held = Lease(spool)
    assert held.try_acquire()
    assert not orphans.is_orphan(spool)
    held.release()
    assert orphans.is_orphan(spool)
    writer = Writer(SinkConfig(**json.loads(settings(config, log_stream_name="left", flusher="external"))))
    assert orphans.is_orphan(spool)  # it was opened, and nothing appended
    assert writer.append("left 3")
    assert not orphans.is_orphan(spool)
    found = pending(spool)
    assert found.records == 4
    assert found.oldest_ms is not None
    assert found.newest_ms is not None
    assert found.oldest_ms <= found.newest_ms


def test_a_spool_without_pending_records_is_none(config: SinkConfig) -> None:
    """Empty, or delivered: there is nothing to send."""
    assert not orphans.is_orphan(directory.open_for(config))


# status


def test_status_tells_of_another_hosts_spool(
    config: SinkConfig, capsys: Capture, monkeypatch: pytest.MonkeyPatch, spawn: Spawn
) -> None:
    """Whose it is, since when, and what to type; --json has no other state for it."""
    here = socket.gethostname()
    with monkeypatch.context() as patch:
        patch.setattr(host, "name", lambda: "web-7")
        spool = directory.open_for(config)
    worker = spawn(WORKER, settings(config, flusher="external"), "x")
    tell(worker, 1_234)
    run("status")
    out = capsys.readouterr().out
    assert "They are sent when a worker logs again" in out
    assert "orphan" not in out  # somebody logs
    kill(worker)
    for segment in Path(spool.ring).iterdir():
        os.utime(segment, (time.time() - 3 * 3600 - 90,) * 2)
    run("status")
    out = capsys.readouterr().out
    assert "Nobody sends: 1,234 records wait" in out
    assert f"An orphan of host web-7 (this one is {here}): nobody has logged there for 3 h" in out
    assert f"`cwsink flush --once {spool.path}` sends them" in out
    run("status", "--json")
    (report,) = json.loads(capsys.readouterr().out)["spools"]
    assert (report["state"], report["leader"], report["pending"]) == ("no_leader", None, 1_234)
    assert (report["written_by"], report["orphan_seconds"] > 3 * 3600) == ("web-7", True)


def test_status_tells_of_several(capsys: Capture, leave_behind: Callable[[str, int], SpoolDirectory]) -> None:
    """Of this host, they may as well be waiting for a start; a line at the top says how to send all."""
    spools = [leave_behind(stream, 2) for stream in "ab"]
    run("status")
    out = capsys.readouterr().out
    assert "2 of them are orphans: `cwsink replay --all`" in out
    for spool in spools:
        assert f"If none will: `cwsink flush --once {spool.path}`." in out


# replay


def test_all_are_sent_to_where_they_were_meant_for(
    server: StrictCloudWatch, capsys: Capture, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """Each to the stream in its FORMAT, in order, once; a second replay finds none."""
    spools = {stream: leave_behind(stream, 300) for stream in ("a", "b")}
    run("replay", "--all")
    out = capsys.readouterr().out
    for stream, spool in spools.items():
        assert server.messages(stream=stream) == expected(stream, 300)
        assert f"/test/group → {stream}: 13.6 KiB to send from {spool.path}" in out
        assert f"/test/group → {stream}: delivered 300 records in " in out
        assert f"/test/group → {stream}: delivered 300 records in " in out
        assert survey(spool).pending == 0
    assert "2 spools replayed: 600 records." in out
    run("replay", "--all")
    assert capsys.readouterr().out.startswith("No orphans in ")
    assert len(server.messages()) == 600


def test_an_emptied_orphan_takes_no_space(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last segment's reservation and its delivered records go; who logs there again finds all in order."""
    large = settings(config, log_stream_name="left", flusher="external", segment_bytes=4 << 20)
    worker = spawn(WORKER, large, "left")
    tell(worker, 3_000)
    kill(worker)
    spool = directory.open_for(SinkConfig(**json.loads(large)))
    if ring_bytes(spool) < 4 << 20:
        pytest.skip("this file system reserves nothing")
    run("replay", "--all")
    assert ring_bytes(spool) <= 16 << 10
    writer = Writer(SinkConfig(**json.loads(large)))
    assert writer.append("left 3000")
    give_back(spool)  # it is open: nothing of it goes
    deliver(spool, writer.config)
    assert server.messages(stream="left") == expected("left", 3_001)


def test_a_dry_run_changes_nothing(
    server: StrictCloudWatch, capsys: Capture, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """How many, how large, of when, from where, to where."""
    spool = leave_behind("a", 1_000)
    before = everything(spool)
    run("replay", "--all", "--dry-run")
    out = capsys.readouterr().out
    moment = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\dZ"
    what = rf"would send 1,000 records \(\d+(\.\d)? KiB\) of {moment} to {moment}"
    assert re.search(rf"/test/group → a: {what}; from {re.escape(spool.path)}\n", out)
    assert "Dry run: nothing was changed." in out
    assert everything(spool) == before
    assert server.requests == []


def test_a_spool_with_workers_is_sent_only_if_it_is_named(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, capsys: Capture
) -> None:
    """--all leaves it to its workers; PATH means it."""
    worker = spawn(WORKER, settings(config, flusher="external"), "live")
    tell(worker, 10)
    run("replay", "--all")
    assert "No orphans" in capsys.readouterr().out
    run("replay", directory.open_for(config).path)
    assert "delivered 10 records" in capsys.readouterr().out
    tell(worker, 5)
    run("replay", os.path.dirname(directory.open_for(config).path))
    assert server.messages() == expected("live", 15)


def test_a_led_spool_is_left_alone(server: StrictCloudWatch, small: SinkConfig, capsys: Capture) -> None:
    """Its leader is named, and goes on; that is no failure."""
    writer = Writer(small)
    assert writer.append("live 0")
    with leading(writer.directory, small) as flusher:
        run("replay", writer.directory.path)
        run("replay", "--dry-run", writer.directory.path)
        assert writer.flush(CHILD_SECONDS)
        assert flusher.epoch == 1
    out = capsys.readouterr().out
    assert f"left alone, because pid {os.getpid()} on {socket.gethostname()} leads and sends it." in out
    assert "would be left alone" in out
    assert server.senders_by_epoch() == {1: {str(os.getpid())}}


def test_a_rate_is_kept(server: StrictCloudWatch, leave_behind: Callable[[str, int], SpoolDirectory]) -> None:
    """At most so many records a request, and a second between two."""
    leave_behind("a", 25)
    run("replay", "--all", "--rate", "10")
    taken = [request for request in server.requests if request.status == 200]  # the first asks for the stream
    assert [request.events for request in taken] == [10, 10, 5]
    times = [request.time_seconds for request in taken]
    assert all(later - earlier >= 0.9 for earlier, later in pairwise(times))


def test_an_interrupted_replay_goes_on_where_it_was(
    server: StrictCloudWatch, spawn: Spawn, capsys: Capture, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """Ctrl-C: code 1, how many stay, how to go on. What was sent is not sent again, nor told to stay."""
    spools = [leave_behind(stream, 400) for stream in "ab"]
    server.faults.latency_seconds = 0.3  # it comes between what is stored and its answer
    replay = spawn(COMMAND, "replay", "--all", "--rate", "50")
    assert server.wait_for_events(100, CHILD_SECONDS)
    replay.send_signal(signal.SIGINT)
    _, err = replay.communicate(timeout=CHILD_SECONDS)
    assert replay.returncode == 1
    left = survey(spools[0]).pending
    assert 0 < left <= 300
    assert f"{left} records stay in {spools[0].path}: interrupted." in err
    assert f"`cwsink flush --once {spools[0].path}` goes on from there." in err
    assert "1 more spool not begun." in err
    assert "Traceback" not in err
    server.faults.clear()
    run("replay", "--all")
    assert server.messages(stream="a") == expected("a", 400)
    assert server.messages(stream="b") == expected("b", 400)


def test_a_replay_interrupted_while_its_last_request_is_answered_has_done_it(
    server: StrictCloudWatch, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """Nothing stays, so nothing is said to."""
    spool = leave_behind("a", 50)
    server.faults.latency_seconds = 1.0
    replay = spawn(COMMAND, "replay", "--all", "--rate", "50")
    assert server.wait_for_events(50, CHILD_SECONDS)
    replay.send_signal(signal.SIGINT)
    out, err = replay.communicate(timeout=CHILD_SECONDS)
    assert (replay.returncode, err.count("stay")) == (0, 0), err
    assert "delivered 50 records" in out
    assert survey(spool).pending == 0


def test_a_paced_replay_makes_way_for_workers(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """One logs there again, once: its flusher sends the rest, at its own speed; nothing is lost or sent twice."""
    leave_behind("a", 2_000)
    replay = spawn(COMMAND, "replay", "--all", "--rate", "100")
    assert server.wait_for_events(100, CHILD_SECONDS)
    worker = spawn(WORKER, settings(config, log_stream_name="a"), "again")
    tell(worker, 1)
    assert server.wait_for_events(2_001, CHILD_SECONDS)
    _, err = replay.communicate(timeout=CHILD_SECONDS)
    assert replay.returncode == 1
    assert "processes log there again" in err
    assert server.messages() == [*expected("a", 2_000), "again 0"]


def test_what_cannot_be_sent_stays(
    server: StrictCloudWatch, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """CloudWatch refuses: the replay tries on until it is interrupted, and says why it could not."""
    server.faults.deny("logs:PutLogEvents")
    spool = leave_behind("a", 3)
    replay = spawn(COMMAND, "replay", spool.path)
    until(lambda: bool((state := leader_state.read(spool)) and state.last_error), "it was refused")
    replay.send_signal(signal.SIGINT)
    _, err = replay.communicate(timeout=CHILD_SECONDS)
    assert replay.returncode == 1
    assert f"3 records stay in {spool.path}: interrupted. AccessDeniedException" in err
    assert orphans.is_orphan(spool)


# adopt_orphans


def adopting(config: SinkConfig, **changes: object) -> str:
    return settings(config, adopt_orphans=True, **changes)


def end(worker: subprocess.Popen[str]) -> str:
    """Let a worker exit; return its stderr."""
    _, err = worker.communicate(timeout=CHILD_SECONDS)
    assert worker.returncode == 0, err
    return err


def test_no_leader_adopts_unasked() -> None:
    """It is off."""
    assert SinkConfig().adopt_orphans is False


def test_the_flusher_of_a_worker_adopts(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """To the orphan's own stream, at its pace, with a line at the beginning and one at the end."""
    spool = leave_behind("left", 1_500)
    worker = spawn(WORKER, adopting(config, log_stream_name="live"), "live")
    tell(worker, 10)
    assert server.wait_for(lambda s: len(s.messages(stream="left")) == 1_500, CHILD_SECONDS)
    until(lambda: not lease.is_taken(spool), "the orphan is let go of")
    tell(worker, 10)
    assert server.wait_for(lambda s: len(s.messages(stream="live")) == 20, CHILD_SECONDS)
    assert server.messages(stream="left") == expected("left", 1_500)
    assert max(request.events for request in server.requests if request.stream == "left") <= adoption.PACE
    err = end(worker)
    assert err.count(f"cwsink: adopts the orphan {spool.path}, written by host {socket.gethostname()}: ") == 1
    assert err.count(f"cwsink: the orphan {spool.path} is done: 1,500 records were delivered in this go.") == 1
    assert survey(spool).pending == 0


@pytest.mark.parametrize("place", ["spool", "environment"])
def test_a_dedicated_flusher_adopts(
    server: StrictCloudWatch,
    config: SinkConfig,
    spawn: Spawn,
    leave_behind: Callable[[str, int], SpoolDirectory],
    place: str,
) -> None:
    """`cwsink flush SPOOL` does as its writers say; as the environment says, if none has left its settings there. What
    has a process attached, and comes first, is not touched."""
    attached = spawn(WORKER, settings(config, log_stream_name="attached", flusher="external"), "attached")
    tell(attached, 10)
    own = SinkConfig(**json.loads(adopting(config, log_stream_name="own")))
    path = directory.open_for(own).path
    if place == "spool":
        sending.leave(directory.open_for(own), own)
    leave_behind("left", 20)
    flusher = spawn(COMMAND, "flush", path, env={"FAPILOG_CLOUDWATCH__ADOPT_ORPHANS": str(place == "environment")})
    until(lambda: len(server.events()) == 20 or flusher.poll() is not None, "it arrived")
    assert server.messages(stream="left") == expected("left", 20), flusher.communicate()
    assert server.messages(stream="attached") == []
    flusher.send_signal(signal.SIGTERM)
    finish(flusher)


def test_of_two_that_adopt_one_does(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """The orphans' own leases decide between the flusher of workers and a dedicated one: each record once, one sender
    an epoch."""
    for stream in ("x", "y", "z"):
        leave_behind(stream, 1_100)
    dedicated = SinkConfig(**json.loads(adopting(config, log_stream_name="dedicated")))
    sending.leave(directory.open_for(dedicated), dedicated)
    service = spawn(COMMAND, "flush", directory.open_for(dedicated).path)
    workers = [spawn(WORKER, adopting(config, log_stream_name=stream), stream) for stream in ("live-1", "live-2")]
    for worker in workers:
        tell(worker, 1)
    assert server.wait_for_events(3_302, CHILD_SECONDS)
    for stream in ("x", "y", "z"):
        assert server.messages(stream=stream) == expected(stream, 1_100)
        senders = Counter((request.epoch, request.sender) for request in server.requests if request.stream == stream)
        assert len(senders) == len({epoch for epoch, _ in senders})
    service.send_signal(signal.SIGTERM)
    finish(service)
    for worker in workers:
        end(worker)


def test_an_adopter_makes_way_for_workers(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """A worker logs there again: its spool is led for it within moments, and nothing waits for the adopter's pace."""
    spool = leave_behind("left", 100 * int(adoption.PACE))
    adopter = spawn(WORKER, adopting(config, log_stream_name="live"), "live")
    tell(adopter, 1)
    assert server.wait_for(lambda s: len(s.messages(stream="left")) >= adoption.PACE, CHILD_SECONDS)
    adopted = leader_state.read(spool)
    assert adopted is not None
    worker = spawn(WORKER, settings(config, log_stream_name="left"), "again")
    tell(worker, 1)
    until(lambda: (state := leader_state.read(spool)) is not None and state.epoch > adopted.epoch, "it is led anew")
    assert server.wait_for(lambda s: s.messages(stream="left")[-1] == "again 0", CHILD_SECONDS)
    assert server.messages(stream="left") == [*expected("left", 100 * int(adoption.PACE)), "again 0"]
    end(adopter)
    end(worker)


def test_a_killed_adopter_leaves_an_orphan(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """SIGKILL in the middle: the next one goes on behind the last commit, at most one batch twice."""
    spool = leave_behind("left", 3 * int(adoption.PACE))
    own = SinkConfig(**json.loads(adopting(config, log_stream_name="live")))
    sending.leave(directory.open_for(own), own)
    adopter = spawn(COMMAND, "flush", directory.open_for(own).path)
    assert server.wait_for(lambda s: len(s.messages(stream="left")) >= adoption.PACE, CHILD_SECONDS)
    kill(adopter)
    assert orphans.is_orphan(spool)
    run("replay", spool.path)
    arrived = Counter(server.messages(stream="left"))
    assert set(arrived) == set(expected("left", 3 * int(adoption.PACE)))
    assert arrived.total() <= 4 * adoption.PACE


def test_an_adopter_that_its_guard_starts_again_goes_on(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """SIGKILL of the flusher in the middle of an orphan: the next one adopts the rest, at most one batch twice."""
    spool = leave_behind("left", 3 * int(adoption.PACE))
    worker = spawn(WORKER, adopting(config, log_stream_name="live"), "live")
    tell(worker, 1)
    assert server.wait_for(lambda s: len(s.messages(stream="left")) >= adoption.PACE, CHILD_SECONDS)
    adopted = leader_state.read(spool)
    assert adopted is not None
    os.kill(adopted.pid, signal.SIGKILL)
    until(lambda: not survey(spool).pending, "all of it is sent")
    arrived = Counter(server.messages(stream="left"))
    assert set(arrived) == set(expected("left", 3 * int(adoption.PACE)))
    assert arrived.total() <= 4 * adoption.PACE
    end(worker)


@pytest.mark.parametrize("planted", ["endpoint_url", "profile", "role_arn"])
def test_an_orphan_that_wants_other_credentials_elsewhere_is_not_adopted(
    server: StrictCloudWatch,
    config: SinkConfig,
    spawn: Spawn,
    leave_behind: Callable[[str, int], SpoolDirectory],
    planted: str,
) -> None:
    """Who can make a spool in the root cannot have our credentials sent to his server; the next orphan is adopted."""
    with StrictCloudWatch() as foreign:
        value = {"endpoint_url": foreign.endpoint_url, "profile": "admin", "role_arn": "arn:aws:iam::1:role/admin"}
        theirs = quick_config(**{"endpoint_url": server.endpoint_url, planted: value[planted]}, log_stream_name="a")
        writer = Writer(SinkConfig(**{**asdict(theirs), "flusher": "external"}))
        assert writer.append("planted")
        presence.this.forget_below(writer.directory.root)
        leave_behind("b", 5)
        worker = spawn(WORKER, adopting(config, log_stream_name="live"), "live")
        tell(worker, 1)
        assert server.wait_for(lambda s: s.messages(stream="b") == expected("b", 5), CHILD_SECONDS)
        assert orphans.is_orphan(writer.directory)
        end(worker)
        assert not foreign.requests


@pytest.mark.parametrize("setting", ["profile", "role_arn", "external_id"])
def test_an_orphan_whose_settings_want_other_credentials_is_not_adopted(
    server: StrictCloudWatch,
    config: SinkConfig,
    spawn: Spawn,
    leave_behind: Callable[[str, int], SpoolDirectory],
    setting: str,
) -> None:
    """FORMAT is as ours, and settings.json names another role or profile: it stays, and the next orphan is adopted."""
    planted = leave_behind("a", 5)
    held = json.loads(Path(planted.sending).read_text())
    held["settings"] |= {"role_arn": "arn:aws:iam::1:role/admin", setting: "arn:aws:iam::1:role/admin"}
    Path(planted.sending).write_text(json.dumps(held))
    leave_behind("b", 5)
    worker = spawn(WORKER, adopting(config, log_stream_name="live"), "live")
    tell(worker, 1)
    assert server.wait_for(lambda s: s.messages(stream="b") == expected("b", 5), CHILD_SECONDS)
    end(worker)
    assert orphans.is_orphan(planted)
    assert not server.messages(stream="a")


def test_an_orphan_that_changes_its_mind_is_not_led(config: SinkConfig, small: SinkConfig) -> None:
    """The settings are exchanged after the adopter has looked: its election reads them by the same rule."""
    writer = Writer(small)
    assert writer.append("one")
    presence.this.forget_below(writer.directory.root)
    adopter = adoption.Adopter(writer.directory, small, lambda orphan: Election(orphan, kind="own"))
    election = Election(writer.directory, kind="own")
    election.config_of = adopter._config_of
    held = json.loads(Path(writer.directory.sending).read_text())
    held["settings"] |= {"profile": "admin"}
    Path(writer.directory.sending).write_text(json.dumps(held))
    election.start()
    until(lambda: election.trouble is not None, "it is refused")
    assert election.trouble is not None
    assert "by another role or profile" in election.trouble
    election.leave(0.0)
    assert election.has_ended(CHILD_SECONDS)
    assert orphans.is_orphan(writer.directory)


def test_a_wrong_orphan_does_not_hide_the_others(
    server: StrictCloudWatch, config: SinkConfig, spawn: Spawn, leave_behind: Callable[[str, int], SpoolDirectory]
) -> None:
    """A damaged FORMAT, a removed ring, a file in a spool's place: they are left, the next one is adopted."""
    damaged, ringless = leave_behind("a", 1), leave_behind("b", 1)
    Path(damaged.path, "FORMAT").write_text("{")
    for segment in Path(ringless.ring).iterdir():
        segment.unlink()
    os.rmdir(ringless.ring)
    Path(os.path.dirname(damaged.path), "a-file").write_text("x")
    leave_behind("c", 5)
    worker = spawn(WORKER, adopting(config, log_stream_name="live"), "live")
    tell(worker, 1)
    assert server.wait_for(lambda s: s.messages(stream="c") == expected("c", 5), CHILD_SECONDS)
    end(worker)


def test_an_adopter_that_is_not_leading_any_more_stops(config: SinkConfig) -> None:
    """The block ends at once, whatever the adopter is doing."""
    spool = directory.open_for(quick_config(config.endpoint_url, adopt_orphans=True))
    elect = functools.partial(Election, kind="own", pace=adoption.PACE)
    with adoption.beside(elect(spool), elect):
        pass
    adopter = adoption.Adopter(spool, quick_config(config.endpoint_url), elect)
    adopter.stop.set()
    adopter.run()
    assert sys.exc_info() == (None, None, None)


def test_a_leader_that_can_start_no_thread_leads_without_an_adopter(
    server: StrictCloudWatch, config: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RLIMIT_NPROC, or the limit of a container. Its own records are sent, and the next time it tries again."""
    start, tried = threading.Thread.start, []

    def limited(thread: threading.Thread) -> None:
        if thread.name == "cwsink-adopter":
            tried.append(thread)
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", limited)
    writer = Writer(quick_config(config.endpoint_url, adopt_orphans=True, flusher="external"))
    assert writer.append("live")
    before = len(os.listdir("/dev/fd"))
    election = Election(writer.directory, kind="service")
    for turn in range(1, 3):
        with diagnostics.collected() as said:
            election.start()
            until(lambda: server.messages() == ["live"] and election.is_idle, "all is delivered")
            election.rest(0.0, keep_lease=False)
            assert election.has_ended(CHILD_SECONDS)
        assert (len(tried), server.messages()) == (turn, ["live"])
        assert ["cannot adopt orphans" in line for line in said] == [True]
    assert len(os.listdir("/dev/fd")) == before
