"""A flusher has the stderr of the program that started it, and outlives that one: who reads it does not wait for us."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from msgspec.structs import asdict

from cwsink.config import SinkConfig
from cwsink.spool import directory, flusher_lock, leader_state
from cwsink.spool.directory import SpoolDirectory
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, finish, quick_config

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux shows who has a pipe")

# Appends each line of stdin, and says so.
WORKER = """
    import json, sys
    from cwsink import SinkConfig, Writer
    writer = Writer(SinkConfig(**json.loads(sys.argv[1])))
    for line in sys.stdin:
        print(writer.append(line.strip()), flush=True)
"""

# Two children and their parent have one stderr. "one" has the first child log, "two" the second, "end" ends the first.
FAMILY = """
    import json, os, sys
    from cwsink import SinkConfig, Writer
    gates = {}
    for name in ("one", "two"):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(writing)
            for gate, _ in gates.values():
                os.close(gate)
            writer = Writer(SinkConfig(**json.loads(sys.argv[1])))
            while os.read(reading, 1):
                os.write(1, f"{writer.append(name)}\\n".encode())
            sys.exit()
        os.close(reading)
        gates[name] = writing, pid
    for line in sys.stdin:
        name = line.strip()
        if name == "end":
            os.close(gates["one"][0])
            os.waitpid(gates["one"][1], 0)
            print("ended", flush=True)
        else:
            os.write(gates[name][0], b".")
"""

Start = Callable[..., "subprocess.Popen[str]"]


def settings(config: SinkConfig, **changes: object) -> str:
    return json.dumps({name: value for name, value in {**asdict(config), **changes}.items() if value is not None})


@pytest.fixture
def start(spawn: Spawn, config: SinkConfig) -> Start:
    """Start a program that logs what it is told to, with a stderr of its own."""

    def begin(code: str = WORKER, **changes: object) -> subprocess.Popen[str]:
        return spawn(code, settings(config, **changes))

    return begin


@pytest.fixture
def spool(config: SinkConfig) -> SpoolDirectory:
    return directory.open_for(config)


def tell(program: subprocess.Popen[str], line: str) -> None:
    assert program.stdin
    assert program.stdout
    program.stdin.write(f"{line}\n")
    program.stdin.flush()
    assert program.stdout.readline().strip() in ("True", "ended"), program.stderr and program.stderr.read()


def leader(spool: SpoolDirectory) -> leader_state.Published:
    """Return who leads, as soon as it has said so."""
    until(lambda: leader_state.read(spool) is not None, "somebody leads")
    found = leader_state.read(spool)
    assert found is not None
    return found


def test_who_reads_a_programs_stderr_does_not_wait_for_other_programs(
    server: StrictCloudWatch, start: Start, spool: SpoolDirectory
) -> None:
    """It has started the flusher, and ends while another one logs on: its stderr ends with it, and the other one soon
    has a flusher that speaks to its own."""
    first, second = start(), start()
    tell(first, "first")
    assert server.wait_for_events(1, CHILD_SECONDS)
    mute = leader(spool).pid
    tell(second, "second")
    assert finish(first) == ""
    until(lambda: leader(spool).is_mute, "it has let go")

    def is_heard_again() -> bool:
        tell(second, "more")
        now = leader(spool)
        if now.pid == mute or now.is_mute:
            return False
        with contextlib.suppress(FileNotFoundError):  # it was replaced once more
            return os.path.samefile(f"/proc/{now.pid}/fd/2", f"/proc/{second.pid}/fd/2")
        return False

    until(is_heard_again, "it is replaced by one that speaks to the second program's stderr")
    finish(second)
    assert [message for message in server.messages() if message != "more"] == ["first", "second"]


def test_a_stderr_that_other_processes_have_is_kept(
    server: StrictCloudWatch, start: Start, spool: SpoolDirectory
) -> None:
    """The worker that has started the flusher ends, as workers do. Siblings have the same stderr: nothing changes."""
    family = start(FAMILY)
    tell(family, "one")
    assert server.wait_for_events(1, CHILD_SECONDS)
    before = leader(spool)
    tell(family, "two")
    tell(family, "end")
    time.sleep(0.5)  # what is measured is that nothing happens: it looks ten times a second
    tell(family, "two")
    assert server.wait_for_events(3, CHILD_SECONDS)
    assert (leader(spool).pid, leader(spool).is_mute) == (before.pid, False)
    assert os.path.samefile(f"/proc/{before.pid}/fd/2", f"/proc/{family.pid}/fd/2")
    finish(family)


def test_what_stays_of_a_killed_program_is_said_before(
    server: StrictCloudWatch, start: Start, spool: SpoolDirectory, config: SinkConfig
) -> None:
    """Another program logs elsewhere below the root. The line about the killed one's records goes to its own stderr."""
    server.faults.fail_next(1_000_000, "ServiceUnavailableException", status=503)
    first, second = start(drain_timeout_seconds=0.5), start(log_stream_name="other")
    tell(first, "kept")
    tell(second, "other")
    first.kill()
    _, said = first.communicate(timeout=CHILD_SECONDS)
    assert f"cwsink: 1 record stays in {spool.path}" in said
    server.faults.clear()
    finish(second)


def test_a_flusher_that_is_started_again_is_as_mute_as_before(
    server: StrictCloudWatch, start: Start, spool: SpoolDirectory
) -> None:
    """Its guard has let go of the stderr, too. Who logs next learns that lines reach nobody."""
    first, second = start(), start()
    tell(first, "first")
    tell(second, "second")
    finish(first)
    until(lambda: leader(spool).is_mute, "it has let go")
    killed = leader(spool)
    os.kill(killed.pid, signal.SIGKILL)
    until(lambda: leader(spool).epoch > killed.epoch, "another one leads")
    until(lambda: leader(spool).is_mute, "it says that it is mute")
    assert Path(f"/proc/{leader(spool).pid}/fd/2").resolve() == Path(os.devnull)
    finish(second)
    assert set(server.messages()) == {"first", "second"}


def test_a_program_that_has_said_what_stays_is_not_read_any_longer(server: StrictCloudWatch, spawn: Spawn) -> None:
    """CloudWatch denies: the program says how many records stay, and its reader waits for no flusher that tries on."""
    server.faults.deny("logs:PutLogEvents")
    config = quick_config(server.endpoint_url, drain_timeout_seconds=600.0)
    child = spawn(WORKER, json.dumps(asdict(config)))
    out, err = child.communicate("x\n", timeout=CHILD_SECONDS)  # until the end of stderr
    assert (child.returncode, out) == (0, "True\n")
    spool = directory.open_for(config)
    assert f"cwsink: 1 record stays in {spool.path}: not delivered yet (AccessDeniedException" in err
    assert flusher_lock.is_taken(spool.root), "the flusher tries on"
    server.faults.clear()
    assert server.wait_for(lambda each: each.messages() == ["x"], CHILD_SECONDS)
