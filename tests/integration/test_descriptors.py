"""Our descriptors in an application that closes, replaces or inherits what it likes.

A number may be lost at any moment. Then nothing is written to whoever has it now, nothing of his is closed, no record
is lost, and nobody is told that the spool was removed.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cwsink.spool import flusher_lock
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, finish

pytestmark = pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="not run: this needs /proc")

OURS = """
import os, sys

def ours():
    "The numbers of what this process has open below the root of the spools."
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            link = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue
        if link.startswith(os.environ["CWSINK_SPOOL_DIRECTORY"]):
            found.append(int(name))
    return found
"""

NUMBERS = (
    OURS
    + """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
import cwsink
writer = cwsink.Writer.open(log_group_name="/test/group")
for number in range(3):
    assert writer.append(f"{number}")
    print(*ours())
    writer.close()
"""
)


@pytest.mark.parametrize(("limit", "least"), [(64, 32), (256, 100), (1024, 102), (4096, 409), (12_000, 1_000)])
def test_ours_are_high(server: StrictCloudWatch, spawn: Spawn, limit: int, least: int) -> None:
    """From a tenth of the limit on, from 100 at least and 1,000 at most; or as high as the limit allows."""
    child = spawn(NUMBERS, limit, env=server.environment())
    lines = finish(child).splitlines()
    assert len(lines) == 3
    for line in lines:
        numbers = list(map(int, line.split()))
        assert len(numbers) == 2, "the segment and the attachment"
        assert min(numbers) >= least


FEW = (
    OURS
    + """
import resource
import cwsink
writer = cwsink.Writer.open(log_group_name="/test/group")
taken = [os.open("/dev/null", os.O_RDONLY) for _ in range(10)]
resource.setrlimit(resource.RLIMIT_NOFILE, (max(taken) + 1, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
for fd in taken[-4:]:
    os.close(fd)
for number in range(3):
    assert writer.append(f"{number}")
    writer.close()
    writer._ring.check_due_ns = 0
assert min(ours()) > 2
"""
)


def test_the_last_ones_will_do(server: StrictCloudWatch, spawn: Spawn) -> None:
    """At the limit nothing is left to move to: whatever number there is, is taken."""
    finish(spawn(FEW, env=server.environment()))


STREAMS = (
    OURS
    + """
import cwsink
writer = cwsink.Writer.open(log_group_name="/test/group", segment_bytes="4KiB", spool_max_bytes="64KiB")
for number in range(100):
    assert writer.append(f"{number} {'x' * 100}")
numbers = ours()
free = os.open("/dev/null", os.O_RDONLY)
with open(sys.argv[1], "w") as file:
    file.write(f"{min(numbers)} {free}")
"""
)


@pytest.mark.parametrize(("streams", "lowest"), [("<&-", 0), (">&-", 1), ("2>&-", 2), ("<&- >&- 2>&-", 0)])
def test_none_of_ours_takes_the_number_of_a_stream(
    server: StrictCloudWatch, tmp_path: Path, streams: str, lowest: int
) -> None:
    """`>&-`: who prints there writes into none of our files, and the number is left to the application."""
    (tmp_path / "app.py").write_text(STREAMS)
    subprocess.run(
        ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, str(tmp_path / "app.py"), str(tmp_path / "seen")],
        env={**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
        timeout=CHILD_SECONDS,
    )
    least, free = map(int, (tmp_path / "seen").read_text().split())
    assert least > 2
    assert free == lowest
    assert server.wait_for(lambda each: len(each.messages()) == 100, CHILD_SECONDS)


# What an application does to descriptors that are not its own. Each is given `writer`, and `ledgers`, which it fills
# with files of its own.
ACTS = {
    "closerange": "os.closerange(3, 256)",
    "all are closed": "os.closerange(3, 65_536)",
    "all but the streams, one by one": """
for number in range(3, 4096):
    try:
        os.close(number)
    except OSError:
        pass
""",
    "its own files over ours": """
for number in ours():
    file = open(f"{sys.argv[1]}/over{number}", "w+b", buffering=0)
    os.dup2(file.fileno(), number)
    ledgers.append(open(number, "r+b", buffering=0))
""",
    "closed, and its own files there": """
for number in ours():
    os.close(number)
while (file := open(f"{sys.argv[1]}/low{len(ledgers)}", "w+b", buffering=0)).fileno() < 200:
    ledgers.append(file)
ledgers.append(file)
""",
    "a daemon that does not fork": """
import daemon
context = daemon.DaemonContext(detach_process=False, stdout=sys.stdout, stderr=sys.stderr, working_directory="/")
context.open()
""",
    "children": """
import subprocess
for close in (True, False):
    subprocess.run([sys.executable, "-c", "import os; os.closerange(3, 4096)"], close_fds=close, check=True)
if (pid := os.fork()) == 0:
    os.closerange(3, 4096)
    os._exit(0)
os.waitpid(pid, 0)
""",
}

ACTING = (
    OURS
    + """
import time
import cwsink

where, act = sys.argv[1:3]
early = [open(f"{where}/early{number}", "w+b", buffering=0) for number in range(4)]
writer = cwsink.Writer.open(log_group_name="/test/group", log_stream_name="stream", segment_bytes="4KiB")
for number in range(20):
    assert writer.append(f"before {number}")
ledgers = []
exec(act)
for number in range(100):
    ledgers.append(open(f"{where}/ledger{number}", "w+b", buffering=0))
time.sleep(1.1)  # a writer looks at its segment about once a second
for number in range(100):
    assert writer.append(f"after {number} {'x' * 100}")
time.sleep(1.1)
assert writer.append("later")
writer.close()
for ledger in ledgers:
    assert ledger.seek(0, 2) == 0, (ledger.name, ledger.read())
    ledger.write(b"still open")
print("well", flush=True)
"""
)


@pytest.mark.parametrize("act", ACTS.values(), ids=ACTS)
def test_descriptors_that_are_lost(server: StrictCloudWatch, spawn: Spawn, tmp_path: Path, act: str) -> None:
    """No record is lost, none of the application's files gets a byte or is closed, and nobody speaks of a removal."""
    if "daemon" in act:
        pytest.importorskip("daemon")
    child = spawn(ACTING, tmp_path, act, env=server.environment())
    out, err = child.communicate(timeout=CHILD_SECONDS)
    assert (child.returncode, out) == (0, "well\n"), err
    assert "removed" not in err
    assert "cwsink:" not in err
    wanted = [*(f"before {number}" for number in range(20)), *(f"after {number}" for number in range(100)), "later"]
    assert server.wait_for(lambda each: len(each.messages()) >= len(wanted), CHILD_SECONDS)
    assert [text.partition(" x")[0] for text in server.messages()] == wanted


DAEMON = (
    OURS
    + """
import logging, daemon, cwsink
where = sys.argv[1]
log = logging.getLogger("app")
log.addHandler(cwsink.SpoolHandler(log_group_name="/test/group", log_stream_name="stream"))
log.warning("before")
context = daemon.DaemonContext(detach_process=True, working_directory="/", umask=0o077)
with context:
    ledgers = [open(f"{where}/ledger{number}", "w+b", buffering=0) for number in range(100)]
    log.warning("after")
    assert not any(os.fstat(ledger.fileno()).st_size for ledger in ledgers)
    for ledger in ledgers:
        ledger.write(b"still open")
open(f"{where}/done", "w").close()
"""
)


def test_a_daemon(server: StrictCloudWatch, spawn: Spawn, tmp_path: Path) -> None:
    """python-daemon forks twice, closes all, and has no stderr any more: what both have logged is delivered."""
    pytest.importorskip("daemon")
    finish(spawn(DAEMON, tmp_path, env=server.environment()))
    until((tmp_path / "done").exists, "the daemon has ended")
    assert server.wait_for(lambda each: len(each.messages()) == 2, CHILD_SECONDS)
    until(lambda: not flusher_lock.is_taken(os.environ["CWSINK_SPOOL_DIRECTORY"]), "the flusher has ended")


INHERITS = (
    OURS
    + """
import cwsink
inherited = sorted(map(int, sys.argv[2].split(",")))
before = [os.fstat(number).st_ino for number in inherited]
writer = cwsink.Writer.open(log_group_name="/test/group")
assert writer.append("x")
assert not set(ours()) & set(inherited)
assert [os.fstat(number).st_ino for number in inherited] == before
"""
)


def test_descriptors_that_are_inherited(server: StrictCloudWatch, tmp_path: Path) -> None:
    """A program that is started with descriptors up to 300 finds them as they were; its flusher has none of them."""
    (tmp_path / "app.py").write_text(INHERITS)
    reading, writing = os.pipe()
    numbers = [fcntl.fcntl(writing, fcntl.F_DUPFD_CLOEXEC, 90) for _ in range(200)]
    try:
        subprocess.run(
            [sys.executable, str(tmp_path / "app.py"), str(tmp_path), ",".join(map(str, numbers))],
            env={**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            pass_fds=numbers,
            check=True,
            timeout=CHILD_SECONDS,
        )
    finally:
        for number in (*numbers, writing):
            os.close(number)
    began = time.monotonic()
    assert os.read(reading, 1) == b""  # nobody has the other end any more
    os.close(reading)
    assert time.monotonic() - began < CHILD_SECONDS
