"""An exit takes no longer than it must, whatever CloudWatch does; and what a leader had is free at once.

How long it takes is printed by `python -m benchmarks.exit`. Here it is proven by order: what must not
be waited for would last longer than the test may.
"""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Final

import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.flusher import cloudwatch, leader_state
from cwsink.frontends import candidate
from cwsink.spool import directory
from cwsink.spool.lease import Lease
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.interleave import deliver
from tests.support import finish, quick_config

HANG_SECONDS: Final = 30.0
# Longer than any test may take: who waits for it fails.
NEVER_SECONDS: Final = 500.0

PRELUDE = """
import atexit, json, os, subprocess, sys, time
import cwsink
from cwsink import Writer
from cwsink.frontends import candidate

settings = json.loads(os.environ["SETTINGS"])
writer = Writer.open(settings)

def burst(count=50):
    for number in range(count):
        assert writer.append(f"record-{number}")

def until_told():
    print("ready", flush=True)
    sys.stdin.read()
"""


def start(spawn: Spawn, body: str, config: SinkConfig, **settings: object) -> subprocess.Popen[str]:
    given = {name: value for name, value in asdict(config).items() if value is not None}
    return spawn(PRELUDE + body, env={"SETTINGS": json.dumps({**given, **settings})})


def wait_until_ready(child: subprocess.Popen[str]) -> None:
    assert child.stdout is not None
    assert child.stderr is not None
    assert child.stdout.readline() == "ready\n", child.stderr.read()


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    """Sends at once; whoever waits for an answer waits for ever."""
    return quick_config(
        server.endpoint_url,
        batch_timeout_seconds=0.1,
        read_timeout_seconds=NEVER_SECONDS,
        drain_timeout_seconds=NEVER_SECONDS,
    )


def silence(server: StrictCloudWatch) -> None:
    """From now on no call is answered."""
    server.faults.hang(NEVER_SECONDS, 1_000)


def wait_for_a_call(server: StrictCloudWatch) -> None:
    assert server.wait_for(lambda s: s.calls["PutLogEvents"] > 0, HANG_SECONDS)


# Who is not the last one out.

# The exit's own waits, as it asked for them: it runs after cwsink's handler, for it is registered before it.
WAITS = """
import threading
asked = []

def report():
    print(json.dumps(asked), flush=True)

atexit.register(report)

class Recording:
    def __init__(self, flag):
        self.flag = flag
    def wait(self, seconds=None):
        asked.append(seconds)
        return self.flag.wait(seconds)
    def __getattr__(self, name):
        return getattr(self.flag, name)

atexit.unregister(candidate._leave_all)
atexit.register(candidate._leave_all)

def record():
    (mine,) = candidate._candidates.values()
    mine._ended = Recording(mine._ended)
"""


@pytest.mark.parametrize("leads", [True, False], ids=["leader", "follower"])
def test_who_is_not_the_last_one_waits_at_most_50_ms(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, leads: bool
) -> None:
    """Others are left: the exit waits for its own thread once, for so long, though a call is out and never ends."""
    silence(server)
    other: Writer | None = None
    if not leads:
        other = Writer(config)
        assert other.append("the leader")
        wait_for_a_call(server)
    child = start(spawn, WAITS + "burst()\nrecord()\nuntil_told()\n", config)
    wait_until_ready(child)
    if leads:
        wait_for_a_call(server)
        server.faults.clear()  # for whoever leads next; the call that is out stays out
        other = Writer(config)
        assert other.append("another process is left")
    (waited,) = json.loads(finish(child))
    assert waited <= candidate._LEAVE_SECONDS == 0.05
    if leads:
        assert other is not None
        assert other.flush(HANG_SECONDS)
        assert len(server.messages()) == 51


def test_who_is_not_the_last_one_does_not_wait_for_an_import(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """A worker that was just elected is still importing boto3 when it ends: nobody waits for that, either."""
    other = Writer(quick_config(server.endpoint_url, flusher="external"))
    assert other.append("another process is here")
    attached = candidate.stand(other.directory, other.config)
    child = start(
        spawn,
        f"""
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "boto3.session" or name == "botocore.credentials":
            print("ready", flush=True)
            time.sleep({NEVER_SECONDS})

sys.meta_path.insert(0, Slow())
burst()
sys.stdin.read()
""",
        config,
    )
    wait_until_ready(child)
    finish(child)
    assert Lease(attached._directory).try_acquire()


# The last one out.


def test_with_nothing_to_drain_the_last_one_leaves_at_once(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """Everything is delivered, then CloudWatch dies: the exit asks it nothing."""
    child = start(spawn, "burst()\nassert writer.flush(60)\nuntil_told()\n", config)
    wait_until_ready(child)
    silence(server)
    calls = sum(server.calls.values())
    finish(child)
    assert sum(server.calls.values()) == calls
    assert survey(directory.open_for(config)).pending == 0


def test_with_nothing_to_drain_nobody_becomes_leader(server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has never led would import boto3 only to find nothing to do."""
    config = quick_config(server.endpoint_url, flusher="external")
    writer = Writer(config)
    assert writer.append("delivered before")
    deliver(writer.directory, config)
    last = candidate.Candidate(writer.directory, config)
    monkeypatch.setattr(last, "_try_to_lead", lambda: pytest.fail("there is nothing to lead for"))
    last._drain_seconds = 1.0
    last._drain()
    assert writer.append("pending")
    with pytest.raises(pytest.fail.Exception):
        last._drain()
    last.discard()
    deliver(writer.directory, config)


def test_several_spools_are_drained_in_the_time_of_one(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """Five spools, no answer: the thread of each gets its time beside the others, not one after the other."""
    silence(server)
    child = start(
        spawn,
        """
for stream in range(5):
    assert Writer.open(settings, log_stream_name=f"stream-{stream}").append("a record")
until_told()
began = time.monotonic()
atexit.unregister(candidate._leave_all)
atexit.register(lambda: print(time.monotonic() - began))
atexit.register(candidate._leave_all)
""",
        config,
        drain_timeout_seconds=2.0,
    )
    wait_until_ready(child)
    took = float(finish(child))
    print(f"{took:.2f} s for five spools, drain_timeout_seconds=2")
    assert 2.0 <= took < 2 * 2.0  # one after the other: 10 s
    assert sum(survey(directory.open_existing(path)).pending for path in directory.find_spools()) == 5


# A leader that is still loading boto3.

# A crowded machine: every module takes long, 20 s in all, and as on any machine the import lock is held while it is
# looked for. A module of its own: what the thread has in use is no garbage.
SLOW = """
import _imp, sys, threading, time
loading = threading.Event()

class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "boto3":
            loading.set()
        if loading.is_set() and threading.current_thread() is not threading.main_thread():
            _imp.acquire_lock()
            time.sleep(0.05)
            _imp.release_lock()

sys.meta_path.insert(0, Finder())
"""
LOADING = """
import slow, socket
burst(1)
assert slow.loading.wait(60)
unclosed = [socket.socket()]
unclosed.append(unclosed)  # collected in the last moments of the interpreter: its warning imports
"""


def test_an_exit_while_the_leader_is_being_loaded_ends(spawn: Spawn, config: SinkConfig, tmp_path: Path) -> None:
    """Others are left, so it waits for nothing else; but a thread that is cut off in an import leaves its lock held."""
    (tmp_path / "slow.py").write_text(SLOW)
    with_warnings = {"PYTHONWARNINGS": "always::ResourceWarning"}
    given = {name: value for name, value in asdict(config).items() if value is not None}
    other = Writer(SinkConfig(**{**given, "flusher": "external"}))
    assert other.append("attached")
    child = spawn(PRELUDE + LOADING, env={"SETTINGS": json.dumps(given), **with_warnings})
    try:
        _, said = child.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        child.kill()
        raise
    assert child.returncode == 0, said
    assert "unclosed <socket" in said
    other.close()


# Whatever a thread looks for that is not loaded yet, as long as no exit would wait for it.
LATE = """
import sys, threading
main = threading.main_thread()
late = []

class Finder:
    def find_spec(self, name, path=None, target=None):
        importing = sys.modules.get("cwsink.frontends.importing")
        if threading.current_thread() is not main and not (importing and importing.is_under_way()):
            late.append(name)

sys.meta_path.insert(0, Finder())
"""


@pytest.mark.parametrize("is_troubled", [False, True], ids=["up", "troubled"])
def test_a_leader_imports_only_where_an_exit_ends_it(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, tmp_path: Path, is_troubled: bool
) -> None:
    """From its first try for the lease to its last: it is a thread, and can be cut off anywhere."""
    earlier = Writer(quick_config(server.endpoint_url, flusher="external"))
    assert earlier.append("the spool's files are made; a leader that finds them takes other ways")
    if is_troubled:
        server.faults.drop_connection_before_storing()
        server.faults.fail_next(code="ThrottlingException")
        server.faults.junk_next()
    (tmp_path / "late.py").write_text(LATE)
    child = start(spawn, "import late\nburst()\nassert writer.flush(60)\nprint(late.late)\n", config)
    assert finish(child) == "[]\n"
    earlier.close()


def test_who_is_told_to_leave_does_not_begin_to_load(config: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease was won a moment before: it is handed on, and nothing is begun that the exit would cut off."""
    loaded: list[str] = []
    monkeypatch.setattr(cloudwatch, "load", lambda: loaded.append("boto3"))
    spool = Writer(config).directory
    told = candidate.Candidate(spool, config)
    told._drain_seconds = 0.0
    assert not told._lead_if_elected()
    assert not loaded
    next_one = Lease(spool)
    assert next_one.try_acquire()
    next_one.release()
    told.discard()


# What a leader had is free.


@pytest.mark.parametrize(
    "outlives",
    [
        "pass",
        "subprocess.Popen(['sleep', '500'], close_fds=False)",
        "os.fork() or (os.close(1), os.close(2), time.sleep(500))",
        "os.posix_spawnp('sleep', ['sleep', '500'], os.environ)",
    ],
    ids=["nobody", "subprocess", "fork", "posix_spawn"],
)
def test_the_lease_is_free_when_a_leader_has_ended_with_a_call_in_flight(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, tmp_path: Path, outlives: str
) -> None:
    """The last one out gives up after its drain timeout. Whatever outlives it, the next process leads at once."""
    silence(server)
    body = f"burst()\nuntil_told()\nout = os.dup(1)\nos.set_inheritable(out, False)\n{outlives}\n"
    child = start(spawn, body, config, drain_timeout_seconds=0.1)
    wait_until_ready(child)
    wait_for_a_call(server)
    assert child.stdin is not None
    child.stdin.close()
    assert child.wait(HANG_SECONDS) == 0
    spool = directory.open_for(config)
    claim = Lease(spool)
    assert claim.try_acquire(), "the lease is stuck"
    claim.release()
    ended = leader_state.read(spool)
    assert ended is not None
    assert ended.pid == child.pid

    server.faults.clear()
    writer = Writer(config)
    assert writer.append("next")
    assert writer.flush(HANG_SECONDS)
    assert server.messages()[-1] == "next"
    assert set(server.messages()) == {"next", *(f"record-{number}" for number in range(50))}


def test_a_leader_finishes_a_call_that_is_answered_in_time(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """The answer comes while the last one out drains: delivered and committed, once."""
    server.faults.latency_seconds = 0.5
    child = start(spawn, "burst()\nuntil_told()\n", config)
    wait_until_ready(child)
    wait_for_a_call(server)
    began = time.monotonic()
    finish(child)
    assert time.monotonic() - began < NEVER_SECONDS
    assert server.messages() == [f"record-{number}" for number in range(50)]
    assert survey(directory.open_for(config)).pending == 0


def test_a_leader_keeps_its_lease_until_it_has_drained(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """A call is stored and not answered yet at the exit: nobody gives its lease back, nothing is sent twice."""
    first = "assert writer.append('first') and writer.flush(60)\nprint('ready', flush=True)\nsys.stdin.readline()\n"
    child = start(spawn, first + "burst()\nuntil_told()\n", config)
    wait_until_ready(child)
    server.faults.latency_seconds = 1.5
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()
    assert server.wait_for_events(51, HANG_SECONDS)
    finish(child)
    assert server.messages() == ["first", *(f"record-{number}" for number in range(50))]
    assert {request.user_agent.partition("epoch/")[2].split()[0] for request in server.requests} == {"1"}
