"""An exit takes no longer than it must, whatever CloudWatch does: who waits for delivery, for how long, and who not.

How long it takes is printed by `python -m benchmarks.exit`. Here it is proven by what an exit asks for: a program
writes down each time that it is put to sleep while it ends, and what must not be waited for would last longer than
the test may.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import asdict

import cwsink
from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.flusher.election import Election
from cwsink.flusher.publisher import LeaderState
from cwsink.spool import directory, flusher_lock, leader_state
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, finish, quick_config

HANG_SECONDS: Final = 30.0
# Longer than any test may take: who waits for it fails.
NEVER_SECONDS: Final = 500.0

# The last line of stdout: each sleep that the exit asked for. The report is registered first, so it runs last.
PRELUDE = """
import atexit, json, os, signal, subprocess, sys, time
slept, really_sleep = [], time.sleep
atexit.register(lambda: print(json.dumps(slept), flush=True))
import cwsink
from cwsink import Writer

settings = json.loads(os.environ["SETTINGS"])
writer = Writer.open(settings)

def burst(count=50):
    for number in range(count):
        assert writer.append(f"record-{number}")

def note(seconds):
    slept.append(seconds)
    really_sleep(seconds)

def until_told():
    print("ready", flush=True)
    sys.stdin.read()
    time.sleep = note
"""
BURST = PRELUDE + "burst()\nuntil_told()\n"
RECORDS: Final = [f"record-{number}" for number in range(50)]


def start(
    spawn: Spawn, code: str, config: SinkConfig, env: Mapping[str, str] | None = None, **settings: object
) -> subprocess.Popen[str]:
    given = {name: value for name, value in asdict(config).items() if value is not None}
    return spawn(code, env={"SETTINGS": json.dumps({**given, **settings}), **(env or {})})


def wait_until_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == "ready\n", child.stderr.read()


def end(child: subprocess.Popen[str]) -> tuple[list[float], str]:
    """Let a program end; returns what its exit slept, and what was said on stderr by then.

    The end of stderr is not waited for: a flusher that has something left to do keeps it for its own lines.
    """
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.close()
    assert child.wait(CHILD_SECONDS) == 0, said_by(child)
    slept: list[float] = json.loads(child.stdout.read().splitlines()[-1])
    return slept, said_by(child)


def said_by(child: subprocess.Popen[str]) -> str:
    """Return what is in a program's stderr now."""
    assert child.stderr is not None
    os.set_blocking(child.stderr.fileno(), False)
    with contextlib.suppress(BlockingIOError):
        return os.read(child.stderr.fileno(), 1 << 20).decode()
    return ""


def parting_words(said: str) -> list[str]:
    """Return what a program itself says of records that stay; its flusher has other words."""
    return [line for line in said.splitlines() if "the next process that logs there sends them" in line.lower()]


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    """Sends only when told to hurry; whoever waits for an answer waits for ever."""
    return quick_config(
        server.endpoint_url,
        batch_timeout_seconds=NEVER_SECONDS,
        read_timeout_seconds=NEVER_SECONDS,
        drain_timeout_seconds=NEVER_SECONDS,
    )


@pytest.fixture
def spool(config: SinkConfig) -> SpoolDirectory:
    return directory.open_for(config)


@pytest.fixture
def another(config: SinkConfig) -> Iterator[Writer]:
    """Another process that logs there, and lives longer than the program."""
    writer = Writer(SinkConfig(**{**asdict(config), "flusher": "external"}))
    assert writer.append("of another process")
    yield writer
    writer.close()


def silence(server: StrictCloudWatch) -> None:
    """From now on no call is answered."""
    server.faults.hang(NEVER_SECONDS, 1_000)


def flusher_of(spool: SpoolDirectory) -> int:
    """Return the pid of who leads, as soon as somebody does."""
    until(lambda: leader_state.read(spool) is not None, "somebody leads")
    published = leader_state.read(spool)
    assert published is not None
    return published.pid


def kill_flusher(spool: SpoolDirectory) -> None:
    """End the flusher and its guard, as the kernel does when memory is short."""
    pid = flusher_of(spool)
    done = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    for each in (int(done.stdout), pid):
        os.kill(each, signal.SIGKILL)
    until(lambda: not flusher_lock.is_taken(spool.root), "both are gone")


# Who is not the last one out.


@pytest.mark.parametrize("is_silent", [True, False], ids=["silent", "idle"])
def test_who_is_not_the_last_one_leaves_at_once(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, another: Writer, is_silent: bool
) -> None:
    """Others are left: nothing is waited for, though a call is out and never ends; the flusher delivers the rest."""
    if is_silent:
        silence(server)
    child = start(spawn, BURST, config)
    wait_until_ready(child)
    if is_silent:
        another.flush(0.0)  # has the flusher hurry
        assert server.wait_for(lambda s: s.calls.total() > 0, HANG_SECONDS)
    assert end(child) == ([], "")
    if is_silent:
        assert survey(another.directory).pending == 51
    else:
        assert another.flush(HANG_SECONDS)
        assert sorted(server.messages()) == sorted(["of another process", *RECORDS])


def test_who_never_starts_a_flusher_does_not_wait_for_one(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """flusher="external": another process delivers, at its own time. The last one out leaves its records to it."""
    child = start(spawn, BURST, config, flusher="external")
    wait_until_ready(child)
    assert end(child) == ([], "")
    assert survey(spool).pending == 50
    assert not flusher_lock.is_taken(spool.root)
    assert not server.calls


# The last one out of a CloudWatch that answers.


def test_the_last_one_waits_until_all_is_delivered(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """The flusher gathers, and has to hurry; its answer comes late: delivered and committed, once, in one epoch,
    when the program has ended."""
    child = start(
        spawn, PRELUDE + "assert writer.append('first') and writer.flush(60)\nburst()\nuntil_told()\n", config
    )
    wait_until_ready(child)
    server.faults.latency_seconds = 0.5
    slept, said = end(child)
    assert slept
    assert said == ""
    assert server.messages() == ["first", *RECORDS]
    assert survey(spool).pending == 0
    assert set(server.senders_by_epoch()) == {1}


def test_a_call_under_way_is_not_made_again_for_who_waits(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """A call is stored and not answered yet at the exit: it is waited for, and nothing is sent twice."""
    child = start(spawn, BURST, config, batch_timeout_seconds=0.1)
    wait_until_ready(child)
    server.faults.latency_seconds = 1.0
    assert server.wait_for_events(50, HANG_SECONDS)
    end(child)
    assert server.messages() == RECORDS
    assert survey(spool).pending == 0


def test_trouble_that_passes_is_waited_for(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """Throttled, out of order, cut off: the next try may succeed, so the last one out stays for it."""
    server.create_stream("/test/group", "stream")
    server.faults.fail_next(2, "ThrottlingException")
    server.faults.fail_next(2, "ServiceUnavailableException", 503)
    server.faults.drop_connection_before_storing(2)
    child = start(spawn, BURST, config)
    wait_until_ready(child)
    slept, _ = end(child)
    assert slept
    assert server.messages() == RECORDS


def test_the_last_one_starts_a_flusher_if_there_is_none(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """Flusher and guard were killed, and no append has come since: the exit sees to it."""
    child = start(spawn, BURST, config)
    wait_until_ready(child)
    kill_flusher(spool)
    end(child)
    assert server.messages() == RECORDS
    assert survey(spool).pending == 0


def test_with_nothing_to_drain_the_last_one_leaves_at_once(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """Everything is delivered, then CloudWatch and the flusher die: the exit asks for neither."""
    child = start(spawn, PRELUDE + "burst()\nassert writer.flush(60)\nuntil_told()\n", config)
    wait_until_ready(child)
    silence(server)
    kill_flusher(spool)
    calls = server.calls.total()
    assert end(child) == ([], "")
    assert server.calls.total() == calls
    assert not flusher_lock.is_taken(spool.root)
    assert survey(spool).pending == 0


# The last one out of a CloudWatch that cannot be had.


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """A URL that refuses connections. Its port is kept taken, so that no other test's server gets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


Hopeless = Callable[[pytest.MonkeyPatch, StrictCloudWatch], None]


def without_credentials(monkeypatch: pytest.MonkeyPatch, server: StrictCloudWatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)


def denied(monkeypatch: pytest.MonkeyPatch, server: StrictCloudWatch) -> None:
    server.faults.deny("logs:PutLogEvents")


def refused(monkeypatch: pytest.MonkeyPatch, server: StrictCloudWatch) -> None:
    """The URL is another one."""


@pytest.mark.parametrize("is_known", [True, False], ids=["known", "not yet"])
@pytest.mark.parametrize(
    ("make", "obstacle", "named"),
    [
        (without_credentials, "credentials", "NoCredentialsError"),
        (denied, "denied", "AccessDeniedException"),
        (refused, "unreachable", "EndpointConnectionError"),
    ],
)
def test_the_last_one_does_not_wait_for_what_cannot_be_delivered(
    server: StrictCloudWatch,
    spawn: Spawn,
    config: SinkConfig,
    spool: SpoolDirectory,
    nobody_listens: str,
    monkeypatch: pytest.MonkeyPatch,
    make: Hopeless,
    obstacle: str,
    named: str,
    is_known: bool,
) -> None:
    """No credentials, denied, refused: once leader.json says so nothing more is waited for. stderr says how many
    records stay, where, why, and what will send them."""
    make(monkeypatch, server)
    if make is refused:
        config = SinkConfig(**{**asdict(config), "endpoint_url": nobody_listens})
        spool = directory.open_for(config)
    child = start(spawn, BURST, config, **({"batch_timeout_seconds": 0.1} if is_known else {}))
    wait_until_ready(child)
    if is_known:
        flusher_of(spool)
        until(lambda: (state := leader_state.read(spool)) is not None and state.obstacle == obstacle, obstacle)
    slept, said = end(child)
    if is_known:
        assert slept == []
    (line,) = parting_words(said)
    assert line.startswith(f"cwsink: 50 records stay in {spool.path}: not delivered yet ({named}")
    assert line.endswith(f"the next process that logs there sends them, or `cwsink flush --once {spool.path}`.")
    if is_known:
        assert "The flusher tries for 500 s more; then" in line
    assert survey(spool).pending == 50


def without_region(monkeypatch: pytest.MonkeyPatch, server: StrictCloudWatch) -> None:
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.delenv("AWS_REGION")


@pytest.fixture
def no_flusher(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each flusher that is started ends before it can tell anything."""
    monkeypatch.setenv("CWSINK_PYTHON", "/bin/true")


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (without_region, "NoRegionError"),
        (without_credentials, "NoCredentialsError"),
        (refused, "EndpointConnectionError"),
    ],
)
@pytest.mark.usefixtures("no_flusher")
def test_what_can_be_seen_from_outside_needs_no_flusher(
    server: StrictCloudWatch,
    spawn: Spawn,
    config: SinkConfig,
    nobody_listens: str,
    monkeypatch: pytest.MonkeyPatch,
    make: Hopeless,
    named: str,
) -> None:
    """No region, no credentials, refused: the process that has started the flusher says it itself, and goes."""
    make(monkeypatch, server)
    url = nobody_listens if make is refused else server.endpoint_url
    region = None if make is without_region else "us-east-1"
    config = SinkConfig(**{**asdict(config), "endpoint_url": url, "region": region})
    child = start(spawn, BURST, config)
    wait_until_ready(child)
    slept, said = end(child)
    assert slept == []
    (line,) = parting_words(said)
    assert f"not delivered yet ({named}" in line
    assert "The flusher tries" not in line


@pytest.mark.usefixtures("no_flusher")
@pytest.mark.parametrize("drain_seconds", [NEVER_SECONDS, 0.0])
def test_a_flusher_that_has_ended_before_it_led_is_said_at_the_end(
    spawn: Spawn, config: SinkConfig, spool: SpoolDirectory, nobody_listens: str, drain_seconds: float
) -> None:
    """A short program has looked once only, and CloudWatch is out of reach: both are said, and nothing is promised."""
    config = SinkConfig(**{**asdict(config), "endpoint_url": nobody_listens})
    child = start(spawn, BURST, config, drain_timeout_seconds=drain_seconds)
    wait_until_ready(child)
    until(lambda: not flusher_lock.is_taken(spool.root), "what was started has ended")
    slept, said = end(child)
    assert slept == []
    first, last = said.splitlines()
    assert first.startswith("cwsink: the flusher cannot be started: /bin/true has ended before it led any spool. ")
    why = "EndpointConnectionError: " if drain_seconds else "there is no flusher). The next process that "
    assert f": not delivered yet ({why}" in last
    assert ". The next process that logs there sends them, or `cwsink flush --once " in last


SLOW = """\
import pathlib, time
while not pathlib.Path(__file__, "../enough").resolve().exists():
    time.sleep(0.01)
raise SystemExit
"""


def test_who_reads_all_that_a_program_says_does_not_wait_for_its_flusher_to_load(
    spawn: Spawn, config: SinkConfig, nobody_listens: str, tmp_path: Path
) -> None:
    """The flusher has the program's stderr, and takes long to load. When the program has said what stays, it lets go
    of a pipe."""
    (tmp_path / "slow").mkdir()
    path = os.pathsep.join((f"{tmp_path}/slow", *sys.path))
    (tmp_path / "slow" / "filelock.py").write_text(SLOW)
    child = start(spawn, BURST, config, {"PYTHONPATH": path}, endpoint_url=nobody_listens)
    wait_until_ready(child)
    _, said = child.communicate(timeout=CHILD_SECONDS)
    assert len(parting_words(said)) == 1
    (tmp_path / "slow" / "enough").touch()


@pytest.mark.usefixtures("no_flusher")
def test_what_another_one_may_deliver_is_waited_for(server: StrictCloudWatch, spawn: Spawn, config: SinkConfig) -> None:
    """The process has no credentials, but whoever leads by now has: its records are delivered when it has ended."""
    none = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    none |= dict.fromkeys(("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"), os.devnull)
    child = start(spawn, BURST, config, none)
    wait_until_ready(child)
    server.faults.latency_seconds = 0.5
    leader = Election(directory.open_for(config), kind="service")
    leader.start()
    try:
        flusher_of(leader.directory)
        _, said = end(child)
        assert parting_words(said) == []
        assert server.messages() == RECORDS
    finally:
        leader.leave(0.0)
        assert leader.has_ended(CHILD_SECONDS)


def was_denied(spool: SpoolDirectory, seconds_ago: float) -> None:
    """A leader has tried then, and the end of its container has killed it."""
    leader = LeaderState(spool, 1, "own", 0)
    leader.failed("AccessDeniedException: no.", "denied", is_open=False)
    leader.published.last_failure = time.time() - seconds_ago
    leader.publish(at_once=True)
    os.utime(spool.leader_state, (leader.published.last_failure,) * 2)


@pytest.mark.usefixtures("no_flusher")
def test_what_the_program_before_has_learned_is_remembered(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was denied a moment ago, as the same program of now would be: it waits for a moment only, and says when that
    was. With other credentials it would wait until it knows."""
    was_denied(spool, 20)
    child = start(spawn, BURST, config)
    wait_until_ready(child)
    slept, said = end(child)
    assert 0 < sum(slept) < 1.0
    (line,) = parting_words(said)
    assert "50 records stay in " in line
    assert re.search(r"not delivered yet \(AccessDeniedException: no; that was 2\d s ago\)\. ", line)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another one")
    other = start(spawn, BURST, config, drain_timeout_seconds=1.0)
    wait_until_ready(other)
    assert "(there is no flusher)" in parting_words(end(other)[1])[0]


def test_what_was_learned_half_a_minute_ago_keeps_nobody_from_waiting(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """CloudWatch denies no more, and no flusher has lived long enough to ask it: the program waits until one has. Else
    the end of its container would kill that one, too, and all that come after."""
    was_denied(spool, 31)
    child = start(spawn, BURST, config)
    wait_until_ready(child)
    _, said = end(child)
    assert parting_words(said) == []
    assert server.messages() == RECORDS


def test_a_leader_that_has_just_begun_is_not_taken_for_the_one_before(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """It has the lease, and has not yet written its epoch: what stands in leader.json is half a minute old."""
    was_denied(spool, 31)
    lease = Lease(spool)
    assert lease.try_acquire()
    child = start(spawn, BURST, config, drain_timeout_seconds=0.3)
    wait_until_ready(child)
    slept, said = end(child)
    lease.release()
    assert slept
    assert "(AccessDeniedException: no; that was 3" in parting_words(said)[0]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells that a process is stopped")
def test_a_stopped_flusher_is_named(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """It tries for no second more, until somebody lets it go on."""
    silence(server)
    child = start(spawn, BURST, config, drain_timeout_seconds=0.3)
    wait_until_ready(child)
    flusher = flusher_of(spool)
    os.kill(flusher, signal.SIGSTOP)
    try:
        _, said = end(child)
    finally:
        os.kill(flusher, signal.SIGCONT)
    (line,) = parting_words(said)
    assert f"not delivered yet. The flusher is a stopped process: `kill -CONT {flusher}` lets it go on. " in line


def test_who_gives_up_says_how_many_records_stay_and_where(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """No answer in all of drain_timeout_seconds: one line, and the next process has them delivered."""
    silence(server)
    child = start(spawn, BURST, config, drain_timeout_seconds=0.3)
    wait_until_ready(child)
    flusher_of(spool)
    slept, said = end(child)
    assert 0 < sum(slept) < 1.0
    (line,) = parting_words(said)
    assert line == (
        f"cwsink: 50 records stay in {spool.path}: not delivered yet. The flusher tries for 0.3 s more; then the "
        f"next process that logs there sends them, or `cwsink flush --once {spool.path}`."
    )
    assert survey(spool).pending == 50
    until(lambda: not flusher_lock.is_taken(spool.root), "the flusher has ended, with its call in flight")
    server.faults.clear()
    finish(start(spawn, PRELUDE + "assert writer.append('next')\n", config))
    assert server.messages() == [*RECORDS, "next"]


def test_who_gives_up_on_one_record_says_so(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """drain_timeout_seconds=0 waits for nothing, and one is one."""
    child = start(spawn, PRELUDE + "burst(1)\nuntil_told()\n", config, drain_timeout_seconds=0)
    wait_until_ready(child)
    slept, said = end(child)
    assert slept == []
    (line,) = parting_words(said)
    assert line.startswith(f"cwsink: 1 record stays in {spool.path}: not delivered yet. ")


def test_several_spools_are_waited_for_in_the_time_of_one(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, tmp_path: Path
) -> None:
    """Five spools, no answer: the time of all together is drain_timeout_seconds, and each has its line."""
    silence(server)
    five = 'for stream in range(5):\n    assert Writer.open(settings, log_stream_name=f"stream-{stream}").append("x")\n'
    child = start(spawn, PRELUDE + five + "until_told()\n", config, drain_timeout_seconds=1.0)
    wait_until_ready(child)
    slept, said = end(child)
    assert sum(slept) < 2.0  # one after the other: 5 s
    paths = directory.find_spools()
    assert sum(survey(directory.open_existing(path)).pending for path in paths) == 5
    told = [line.split(" stays in ")[1].split(": ")[0] for line in parting_words(said)]
    assert sorted(told) == sorted(path for path in paths if "stream-" in path)


@pytest.mark.parametrize(
    "harm",
    ["shutil.rmtree(first.directory.path)", "os.unlink(cursor)\nos.mkdir(cursor)"],
    ids=["removed", "damaged"],
)
def test_a_spool_in_trouble_does_not_keep_another_from_being_waited_for(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, harm: str
) -> None:
    """Two spools are left. The first is removed before, or cannot be read: the second is delivered."""
    code = f"""
import shutil
first = Writer.open(settings, log_stream_name="first")
cursor = first.directory.cursor
assert first.append("first") and first.flush(60)
assert writer.append("second") and writer.flush(60)
burst()
{harm}
until_told()
"""
    child = start(spawn, PRELUDE + code, config)
    wait_until_ready(child)
    end(child)
    assert server.messages("/test/group", "stream") == ["second", *RECORDS]
    for path in map(Path, directory.find_spools()):
        if (path / "cursor").is_dir():
            (path / "cursor").rmdir()


# Who ends without a handler, and what outlives a program.


@pytest.mark.parametrize(
    ("ending", "code"),
    [("os._exit(3)", 3), ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM)],
    ids=["os._exit", "SIGTERM"],
)
def test_who_ends_without_a_handler_leaves_the_rest_to_the_flusher(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory, ending: str, code: int
) -> None:
    """Nothing of ours runs in it. The flusher sees that nobody is left, hurries, delivers and goes."""
    child = start(spawn, PRELUDE + f"burst()\nuntil_told()\n{ending}\n", config)
    wait_until_ready(child)
    finish(child, code=code)
    assert server.wait_for_events(50, HANG_SECONDS)
    until(lambda: not flusher_lock.is_taken(spool.root), "the flusher goes")
    assert server.messages() == RECORDS
    assert survey(spool).pending == 0


@pytest.mark.parametrize(
    "outlives",
    [
        "subprocess.Popen(['sleep', '500'], close_fds=False, stdout=2)",
        "os.fork() or (os.close(1), os.close(2), really_sleep(500))",
        "os.posix_spawnp('sleep', ['sleep', '500'], os.environ)",
    ],
    ids=["subprocess", "fork", "posix_spawn"],
)
def test_what_outlives_a_program_keeps_no_mark_on_its_spool(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory, outlives: str
) -> None:
    """Children that go on, and log nothing: nobody is attached, so the program was the last one, and the flusher
    goes."""
    code = PRELUDE + f"burst()\nuntil_told()\nout = os.dup(1)\nos.set_inheritable(out, False)\n{outlives}\n"
    child = start(spawn, code, config)
    wait_until_ready(child)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(CHILD_SECONDS) == 0
    assert server.messages() == RECORDS
    assert not is_anyone_attached(spool)
    until(lambda: not flusher_lock.is_taken(spool.root), "the flusher goes")


@pytest.mark.parametrize("how", ["ctrl_c", "exits"])
def test_who_is_told_to_end_at_once_waits_no_longer(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, spool: SpoolDirectory, how: str
) -> None:
    """Ctrl-C, or a SIGTERM handler that calls `sys.exit`, while it waits: no traceback, and it says what stays."""
    silence(server)
    handler = "signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))\n" * (how == "exits")
    child = start(spawn, PRELUDE + handler + "burst()\nuntil_told()\n", config, drain_timeout_seconds=CHILD_SECONDS)
    wait_until_ready(child)
    assert child.stdin is not None
    child.stdin.close()
    until(lambda: not is_anyone_attached(spool), "the process has left the spool")
    child.send_signal(signal.SIGTERM if how == "exits" else signal.SIGINT)
    assert child.wait(CHILD_SECONDS / 2) == 0
    said = said_by(child)
    assert "Traceback" not in said
    assert len(parting_words(said)) == 1


def test_a_program_whose_flusher_cannot_be_started_does_not_wait_for_it(
    spawn: Spawn, config: SinkConfig, spool: SpoolDirectory
) -> None:
    """It says so once, and names no flusher that would try."""
    env = {"CWSINK_PYTHON": "/nonexistent/python"}
    child = start(spawn, BURST, config, env, drain_timeout_seconds=CHILD_SECONDS)
    wait_until_ready(child)
    slept, said = end(child)
    assert slept == []
    first, last = said.splitlines()
    assert "cannot be started: FileNotFoundError: CWSINK_PYTHON='/nonexistent/python' names no program" in first
    assert f"50 records stay in {spool.path}: not delivered yet (there is no flusher). The next process that" in last


def test_an_installation_that_is_gone_is_said(server: StrictCloudWatch, spawn: Spawn, tmp_path: Path) -> None:
    """A deployment has removed it while the program ran: the program ends well, and says what may stay."""
    installed = tmp_path / "installed"
    shutil.copytree(Path(cwsink.__file__).parent, installed / "cwsink")
    server.faults.fail_next(10_000, "ServiceUnavailableException")
    code = """
import os, shutil, sys
sys.path.insert(0, sys.argv[1])
import cwsink
assert cwsink.Writer.open(log_group_name="/test/group", log_stream_name="stream").append("x")
shutil.rmtree(sys.argv[1])
"""
    child = spawn(code, installed, env=server.environment())
    _, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, errors
    assert "cwsink: records may stay in " in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("path", ["''", "None"])
def test_a_working_directory_that_is_gone_keeps_no_flusher_from_starting(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, tmp_path: Path, path: str
) -> None:
    """`sys.path` may name it, or hold what is no path at all; nor has the shell a word to say of it."""
    gone = tmp_path / "gone"
    gone.mkdir()
    leave = f"os.chdir({str(gone)!r}); os.rmdir({str(gone)!r}); sys.path.insert(0, {path})\n"
    child = start(spawn, PRELUDE + leave + "burst()\nuntil_told()\n", config)
    wait_until_ready(child)
    _, said = end(child)
    assert said == ""
    assert server.messages() == RECORDS
