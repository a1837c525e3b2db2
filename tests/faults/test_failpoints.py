"""Failpoints in whole processes, armed by their environment: `cwsink flush` is killed, stopped and fails as told."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Cursor
from cwsink.flusher.delivery import Delivery
from cwsink.flusher.flusher import Flusher
from cwsink.frontends.writer import Writer
from cwsink.spool import cursor
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.faults import failpoints
from tests.faults.failpoints import failpoint
from tests.harness.interleave import deliver, leading
from tests.harness.support import finish, is_ours

pytestmark = pytest.mark.faults

RECORDS = 20
FLUSH = "import sys\nfrom cwsink.cli import main\nsys.exit(main(['flush', '--once', sys.argv[1]]))"


@pytest.fixture
def spool(small: SinkConfig) -> SpoolDirectory:
    """A spool with something to send."""
    writer = Writer(small)
    assert all(writer.append(f"{number:02d}") for number in range(RECORDS))
    writer.close()
    return writer.directory


def flush(spawn: Spawn, spool: SpoolDirectory, text: str) -> subprocess.Popen[str]:
    return spawn(FLUSH, spool.path, env=failpoints.environment(text))


def delivered(server: StrictCloudWatch) -> list[str]:
    return [text for text in server.messages() if not is_ours(text)]


@pytest.mark.parametrize(
    ("function", "repeats"),
    [
        (Lease.try_acquire, 0),
        (Cursor.take_over, 0),
        (Delivery.send, 0),
        (Flusher._commit, RECORDS),
        (Flusher._reclaim, 0),
    ],
)
def test_a_flusher_is_killed_where_the_environment_says(
    spool: SpoolDirectory,
    server: StrictCloudWatch,
    spawn: Spawn,
    small: SinkConfig,
    function: Callable[..., object],
    repeats: int,
) -> None:
    """SIGKILL of a whole process there: the next one delivers all, and repeats the batch in flight, if there is one."""
    finish(flush(spawn, spool, failpoint(function, 1, "kill")), code=-signal.SIGKILL)
    deliver(spool, small)
    assert len(delivered(server)) == RECORDS + repeats
    assert set(delivered(server)) == {f"{number:02d}" for number in range(RECORDS)}
    assert (survey(spool).delivered, survey(spool).pending) == (RECORDS, 0)


def test_a_flusher_that_fails_where_the_environment_says_tries_that_again(
    spool: SpoolDirectory, server: StrictCloudWatch, spawn: Spawn
) -> None:
    """An EIO in its commit ends nothing: the commit is repeated, and not what was sent."""
    finish(flush(spawn, spool, failpoint(Cursor.commit, 1, "raise")))
    assert delivered(server) == [f"{number:02d}" for number in range(RECORDS)]
    assert (survey(spool).delivered, survey(spool).pending) == (RECORDS, 0)
    assert survey(spool).epoch == 1


def test_a_flusher_stopped_in_its_commit_is_waited_for_by_no_writer(
    spool: SpoolDirectory, server: StrictCloudWatch, spawn: Spawn, small: SinkConfig
) -> None:
    """Stopped with the cursor locked, while others append; continued, it delivers that too, in the same epoch."""
    child = flush(spawn, spool, failpoint(Cursor._write, 2, "stop"))
    assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
    writer = Writer(small)
    assert all(writer.append(f"{number:02d}") for number in range(RECORDS, 2 * RECORDS))
    writer.close()
    assert cursor.read(spool.cursor).ledger.delivered == 0
    os.kill(child.pid, signal.SIGCONT)
    finish(child)
    assert delivered(server) == [f"{number:02d}" for number in range(2 * RECORDS)]
    assert len(server.senders_by_epoch()) == 1


def test_without_the_variable_nothing_is_armed(spool: SpoolDirectory, server: StrictCloudWatch, spawn: Spawn) -> None:
    """The path alone does nothing."""
    path = failpoints.environment(failpoint(Cursor.commit, 1, "kill"))["PYTHONPATH"]
    finish(spawn(FLUSH, spool.path, env={"PYTHONPATH": path}))
    assert len(delivered(server)) == RECORDS


@pytest.mark.parametrize("text", ["", "spool.ring.Ring.append", "spool.ring.Ring.append:0:kill", "a:1:dance"])
def test_what_is_no_failpoint_is_said(text: str) -> None:
    """A test that mistypes one must not pass."""
    with pytest.raises(ValueError, match=r"name:nth:action|not enough values"):
        failpoints.environment(text)


@pytest.mark.parametrize("name", ["spool.ring.Ring.nothing", "spool.nothing", "nothing.at.all", "spool.cursor.Ledger"])
def test_a_failpoint_is_a_function_of_the_package(name: str) -> None:
    """A function that was renamed fails the tests that name it."""
    with pytest.raises(LookupError, match=name):
        failpoints.arm(f"{name}:1:kill")


def test_a_failpoint_is_made_from_a_function_that_can_be_found_again() -> None:
    """Its text names that function; one of another package, a nested or a decorated one cannot be armed."""
    assert failpoint(Flusher._commit, 2, "kill") == "flusher.flusher.Flusher._commit:2:kill"
    for other in (os.kill, Path.is_file, lambda: None, leading):
        with pytest.raises(LookupError):
            failpoint(other, 1, "kill")
    with pytest.raises(ValueError, match="name:nth:action"):
        failpoint(Flusher._commit, 0, "kill")


def test_the_package_knows_nothing_of_failpoints() -> None:
    """No line of it is there for a test."""
    for path in Path(cursor.__file__).parents[1].rglob("*.py"):
        assert failpoints.VARIABLE not in path.read_text(encoding="utf-8")
