"""Limits that keep the flusher from starting: one line of cwsink's own says which, and nothing else is on stderr."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cwsink.spool.flusher_lock import FlusherLock
from cwsink.testing import StrictCloudWatch
from tests.harness.pages import ROOT
from tests.harness.support import CHILD_SECONDS

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(sys.platform != "linux", reason="other systems do not limit memory like this"),
]

LOGS = """
import sys, time
from cwsink import Writer
from tests.harness.support import quick_config
url, root, waits = sys.argv[1:]
writer = Writer(quick_config(url, spool_directory=root, drain_timeout_seconds=8.0))
assert writer.append("a record")
until = time.monotonic() + float(waits)
while time.monotonic() < until:
    time.sleep(0.2)
    writer.append("another one")
"""


def stderr_of(
    server: StrictCloudWatch, root: Path, *before: str, limit: int | None = None, to: int = 0, waits: float = 4.0
) -> list[str]:
    """Run an application that logs, with a limit. Returns the lines of its stderr, and that of its flusher."""

    def lower() -> None:
        if limit is not None:
            resource.setrlimit(limit, (to, to))

    done = subprocess.run(
        [*before, sys.executable, "-c", LOGS, server.endpoint_url, str(root), str(waits)],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        text=True,
        timeout=CHILD_SECONDS,
        check=True,
        preexec_fn=lower,  # only a system call
    )
    lines = done.stderr.splitlines()
    assert all(line.startswith("cwsink: ") for line in lines), done.stderr
    return lines


def test_a_flusher_without_memory_is_said_to_have_none(server: StrictCloudWatch, tmp_path: Path) -> None:
    """No traceback of it: the line says that no memory was left, and names the limit."""
    lines = stderr_of(server, tmp_path / "spools", limit=resource.RLIMIT_AS, to=32_000 * 1024)
    (line,) = [each for each in lines if "cannot be started" in each]
    assert "it may have only 31.2 MiB of memory (ulimit -v)" in line


@pytest.mark.parametrize("count", [10, 12])
def test_few_descriptors_are_enough_to_start(server: StrictCloudWatch, tmp_path: Path, count: int) -> None:
    """The shell needs none for a redirection, and has no word of its own about it."""
    lines = stderr_of(server, tmp_path / "spools", limit=resource.RLIMIT_NOFILE, to=count)
    assert not [each for each in lines if "cannot be started" in each]
    assert "a record" in server.messages()


def test_a_missing_dev_null_is_named(server: StrictCloudWatch, tmp_path: Path) -> None:
    """Not the shell, which is there."""
    if not (unshare := shutil.which("unshare")):
        pytest.skip("not run: an empty /dev needs unshare(1)")
    command = (unshare, "--mount", "--propagation", "private", "sh", "-c", 'mount -t tmpfs t /dev && exec "$@"', "sh")
    probe = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if probe.returncode:
        pytest.skip(f"not run: a tmpfs cannot be mounted here ({probe.stderr.strip()}); it needs root")
    lines = stderr_of(server, tmp_path / "spools", *command, waits=0.5)
    (line,) = [each for each in lines if "cannot be started" in each]
    assert "No such file or directory: '/dev/null'" in line
    assert "/bin/sh" not in line


def test_the_word_of_a_flusher_that_could_not_begin_is_kept_for_the_next_look(tmp_path: Path) -> None:
    """In the lock's file, through the number that it was started with; a start takes it away."""
    lock = FlusherLock(str(tmp_path))
    assert lock.word() == ""
    lock.leave_word("OSError: [Errno 24] Too many open files")
    assert lock.word() == "OSError: [Errno 24] Too many open files"
    lock.leave_word("")
    assert lock.word() == ""
    lock.close()
