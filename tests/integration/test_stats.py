"""`cwsink.stats()`: what an application shows of its own spools."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cwsink
from cwsink import SinkConfig, Writer
from cwsink.spool.stats import Stats
from tests.harness.interleave import deliver
from tests.harness.support import CHILD_SECONDS


def test_the_numbers_are_those_of_the_command(small: SinkConfig) -> None:
    """Each number and text is what `cwsink status --json` prints, for records that wait and for delivered ones."""
    writer = Writer(small)
    for _ in range(7):
        writer.append("x" * 100)
    deliver(writer.directory, small)
    for _ in range(5):
        writer.append("y" * 100)
    (found,) = cwsink.stats(writer.directory.root).spools
    assert (found.appended, found.delivered, found.pending, found.lost) == (12, 7, 5, 0)
    assert found.appended == found.delivered + sum(found.dead_lettered.values()) + found.evicted + found.pending
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", "status", "--json", writer.directory.root],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
        check=True,
    )
    (printed,) = json.loads(done.stdout)["spools"]
    passing = {"disk_free_bytes", "oldest_pending_seconds", "last_success_seconds", "leader_silent_seconds", "why"}
    assert {key: value for key, value in printed.items() if key not in passing} == {
        key: value for key, value in found.as_dict().items() if key not in passing
    }


@pytest.mark.parametrize("moment", [1e308, -1e308, 1e12, -1.0])
def test_a_time_that_no_clock_has_shown_is_left_out(small: SinkConfig, moment: float) -> None:
    """One absurd number in leader.json: that time is not shown, and everything else is."""
    writer = Writer(small)
    writer.append("x")
    deliver(writer.directory, small)
    path = Path(writer.directory.leader_state)
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "last_success": moment, "last_error": "Some: error"}))
    found = cwsink.stats(writer.directory.root)
    assert not found.unreadable
    (spool,) = found.spools
    assert (spool.last_success, spool.last_success_seconds) == (None, None)
    assert (spool.delivered, spool.last_error) == (1, "Some: error")


def test_a_spool_that_cannot_be_read_hides_no_other(small: SinkConfig) -> None:
    """The damaged one is named with a reason, and the other one is returned."""
    writer = Writer(small)
    writer.append("x")
    root = writer.directory.root
    damaged = Path(root, "damaged.0123456789")
    damaged.mkdir(mode=0o700)
    (damaged / "FORMAT").write_text("{")
    found = cwsink.stats(root)
    assert [spool.pending for spool in found.spools] == [1]
    assert list(found.unreadable) == [str(damaged)]
    assert "FORMAT cannot be read" in found.unreadable[str(damaged)]


def test_a_path_with_a_slip_of_the_pen_is_an_error(tmp_path: Path) -> None:
    """It is not taken for a place where nothing waits. A root is, in which nothing was logged yet."""
    with pytest.raises(cwsink.SpoolError, match="nonexistent is not there"):
        cwsink.stats(str(tmp_path / "nonexistent"))
    with pytest.raises(cwsink.SpoolError, match="the path is empty"):
        cwsink.stats("")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(cwsink.SpoolError, match="holds no spool, but 1 other file such as notes"):
        cwsink.stats(str(tmp_path))
    (tmp_path / "root").mkdir()
    for fine in (str(tmp_path / "root"), None):  # a worker's own root need not even be there
        assert cwsink.stats(fine) == Stats([], {})


def test_it_loads_nothing_heavy() -> None:
    """A worker that shows its spools carries neither botocore nor rich, and no module of the command line."""
    script = "import cwsink, sys; cwsink.stats; print(*{name.split('.')[0] for name in sys.modules})"
    out = subprocess.check_output([sys.executable, "-c", script], text=True, timeout=CHILD_SECONDS)
    assert not {"botocore", "boto3", "rich", "fapilog", "filelock"} & set(out.split())
