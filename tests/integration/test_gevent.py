"""Under gevent and eventlet records are delivered by a real thread, and no wait of ours stops the greenlets.

Programs and servers are real. Both libraries are in the `test` extra: neither test is ever skipped.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.support import CHILD_SECONDS, finish

PATCH = {
    "gevent": "from gevent import monkey; monkey.patch_all()",
    "eventlet": "import eventlet; eventlet.monkey_patch()",
}

# The greenlet counts while `append` and `flush` run: if they stopped it, it would not get on.
PROGRAM = """
import os, sys, warnings
warnings.simplefilter("ignore")  # eventlet announces its own end
{before}
import cwsink, cwsink.frontends.writer
{after}
import threading, time
ended = False
turns = 0
def count():
    global turns
    while not ended:
        turns += 1
        time.sleep(0.001)
counter = threading.Thread(target=count)  # a greenlet
counter.start()
writer = cwsink.Writer.open(log_group_name="/test/group", log_stream_name="stream", **{settings})
for number in range(20):
    assert writer.append(f"record-{{number}}")
    time.sleep(0.005)
before = turns
delivered = writer.flush({timeout})
assert turns > before + 5, "flush stopped the other greenlets"
ended = True
counter.join()
writer.append("last")
print(delivered, len(os.listdir("/proc/self/task")))
"""
RECORDS = [*(f"record-{number}" for number in range(20)), "last"]


def program(library: str, *, first: bool, timeout: float = 30.0, **settings: object) -> str:
    before, after = (PATCH[library], "") if first else ("", PATCH[library])
    return PROGRAM.format(
        before=before, after=after, timeout=timeout, settings={"batch_timeout_seconds": 0.1, **settings}
    )


@pytest.mark.parametrize(
    ("library", "first"), [("gevent", True), ("gevent", False), ("eventlet", True)], ids="gevent late eventlet".split()
)
def test_a_patched_program_delivers(server: StrictCloudWatch, spawn: Spawn, library: str, first: bool) -> None:
    """Patched before or after cwsink was imported: all of it arrives, the last record at the exit; by a thread the
    kernel knows."""
    child = spawn(program(library, first=first), env=server.environment())
    delivered, threads = finish(child).split()
    assert delivered == "True"
    assert int(threads) > 1
    assert server.messages() == RECORDS


def test_eventlet_that_patches_too_late_is_told_so(server: StrictCloudWatch, spawn: Spawn) -> None:
    """It cannot patch locks that exist already. One line says what to do; the records stay, for any other process."""
    settings = {"drain_timeout_seconds": 0.5}
    child = spawn(program("eventlet", first=False, timeout=0.5, **settings), env=server.environment())
    _, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, errors
    said = [line for line in errors.splitlines() if line.startswith("cwsink:")]
    assert len(said) == 1
    assert "The records stay in the spool" in said[0]
    assert "Let gevent or eventlet patch before anything else is imported" in said[0]
    assert "`cwsink flush`" in said[0]
    flush_all(server)
    assert server.messages() == RECORDS


@pytest.mark.parametrize("library", ["gevent", "eventlet"])
@pytest.mark.parametrize("first", [True, False], ids=["first", "late"])
def test_a_flusher_elsewhere_delivers(server: StrictCloudWatch, spawn: Spawn, library: str, first: bool) -> None:
    """`flusher="external"`: the program only appends, `cwsink flush` sends."""
    code = program(library, first=first, timeout=0.5, flusher="external")
    assert finish(spawn(code, env=server.environment())).split()[0] == "False"
    flush_all(server)
    assert server.messages() == RECORDS


def flush_all(server: StrictCloudWatch) -> None:
    command = [sys.executable, "-m", "cwsink", "flush", "--once"]
    environment = {**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS)
    assert done.returncode == 0, done.stderr


APP = """
import logging, os, cwsink
writer = cwsink.Writer.open(log_group_name="/test/group", log_stream_name="stream", batch_timeout_seconds=0.1)
handler = cwsink.SpoolHandler(log_group_name="/test/group", log_stream_name="stream", batch_timeout_seconds=0.1)
handler.setFormatter(logging.Formatter("%(message)s"))
log = logging.getLogger("app")
log.addHandler(handler)
log.setLevel("INFO")
def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    assert writer.append(name)
    log.info("%s, logged", name)
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_gunicorns_gevent_workers_deliver(server: StrictCloudWatch, tmp_path: Path, options: tuple[str, ...]) -> None:
    """`gunicorn -k gevent`, which patches after `--preload` has imported the application: nothing is lost."""
    (tmp_path / "app.py").write_text(APP)
    listener = socket.create_server(("127.0.0.1", 0))
    command = [sys.executable, "-m", "gunicorn", "app:app", "-k", "gevent", "-w", "2", *options]
    master = subprocess.Popen(
        [*command, "-b", f"fd://{listener.fileno()}"],
        cwd=tmp_path,
        env={**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    port = listener.getsockname()[1]
    listener.close()
    try:
        for number in range(100):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CHILD_SECONDS)
            connection.request("GET", f"/request-{number}")
            assert connection.getresponse().read() == b"ok"
            connection.close()
        master.send_signal(signal.SIGTERM)
        output, _ = master.communicate(timeout=CHILD_SECONDS)
    finally:
        try:
            os.killpg(master.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        master.communicate(timeout=CHILD_SECONDS)
    assert master.returncode == 0, output
    assert "cwsink:" not in output
    wanted = [text for number in range(100) for text in (f"request-{number}", f"request-{number}, logged")]
    assert sorted(server.messages()) == sorted(wanted)
    assert all(len(senders) == 1 for senders in server.senders_by_epoch().values())


def test_threads_patched_by_somebody_else_are_an_error_with_advice(server: StrictCloudWatch, spawn: Spawn) -> None:
    """Only a greenlet could be started, by a library we do not know: said at the first append, the record kept."""
    child = spawn(
        """
        import _thread
        real = _thread.start_new_thread
        _thread.start_new_thread = lambda *given: real(*given)
        import cwsink
        writer = cwsink.Writer.open(log_group_name="/test/group", log_stream_name="stream")
        for number in range(3):
            assert writer.append(f"record-{number}")
        """,
        env=server.environment(),
    )
    _, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, errors
    assert errors.count("cwsink: cannot flush") == 1
    assert "Or flush in another process: `cwsink run`" in errors
    assert server.messages() == ["record-0", "record-1", "record-2"]  # at the exit, without a thread
