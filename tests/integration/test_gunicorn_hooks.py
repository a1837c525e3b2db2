"""`cwsink.gunicorn` in a real gunicorn.conf.py: early news of mistakes, and nothing left behind at the end."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from cwsink.testing import StrictCloudWatch
from tests.harness.pages import blocks
from tests.harness.support import CHILD_SECONDS, finish

pytest.importorskip("gunicorn")

APP = """
import os, cwsink
writer = cwsink.Writer.open()
def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    if name != "silent":
        assert writer.append(name)
    body = str(os.getpid()).encode()
    start_response("200 OK", [("Content-Length", str(len(body)))])
    return [body]
"""
SILENT_APP = """
def app(environ, start_response):
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""
(HOOKS,) = (each.text for each in blocks() if each.text.startswith("# gunicorn.conf.py"))  # as the manual has it
SETTINGS = {
    "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": "/test/group",
    "FAPILOG_CLOUDWATCH__LOG_STREAM_NAME": "stream",
    "FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS": "0.1",
    "FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": "30",  # on a crowded machine a flusher is not there at once
}
Start = Callable[..., "Gunicorn"]


class Gunicorn:
    """A running master and one worker."""

    def __init__(
        self,
        folder: Path,
        server: StrictCloudWatch,
        app: str,
        options: tuple[str, ...],
        hooks: str,
        *,
        within: Sequence[str] = (),
        **variables: str,
    ) -> None:
        (folder / "app.py").write_text(app)
        (folder / "gunicorn.conf.py").write_text(hooks)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        command = [*within, sys.executable, "-m", "gunicorn", "app:app", "-w", "1", "-b", f"fd://{listener.fileno()}"]
        command += options
        path = os.pathsep.join([str(folder), *sys.path])
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, **server.environment(), **SETTINGS, "PYTHONPATH": path, **variables},
            pass_fds=[listener.fileno()],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        listener.close()

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=CHILD_SECONDS)
        try:
            connection.request("GET", f"/{path}")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def stop(self) -> str:
        self.process.send_signal(signal.SIGTERM)
        return finish(self.process)

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.wait(CHILD_SECONDS)


@pytest.fixture
def start(tmp_path: Path, server: StrictCloudWatch) -> Iterator[Start]:
    started: list[Gunicorn] = []

    def run(app: str, *options: str, hooks: str = HOOKS, **variables: str) -> Gunicorn:
        started.append(Gunicorn(tmp_path, server, app, options, hooks, **variables))
        return started[-1]

    yield run
    for each in started:
        each.kill()


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_with_all_hooks_every_record_arrives_once(
    server: StrictCloudWatch, start: Start, options: tuple[str, ...]
) -> None:
    """Also what a worker logged that was killed; nothing is complained about."""
    gunicorn = start(APP, *options)
    for number in range(20):
        gunicorn.get(f"request-{number}")
    victim = int(gunicorn.get("last-words"))
    os.kill(victim, signal.SIGKILL)
    until = time.monotonic() + CHILD_SECONDS
    while True:
        try:
            if int(gunicorn.get("silent")) != victim:
                break
        except (OSError, http.client.HTTPException):
            pass  # the request the worker died with
        assert time.monotonic() < until
    output = gunicorn.stop()
    assert sorted(set(server.messages())) == sorted([*(f"request-{number}" for number in range(20)), "last-words"])
    assert "cwsink:" not in output


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_a_wrong_setting_is_said_at_the_start_and_the_server_runs(start: Start, options: tuple[str, ...]) -> None:
    """One clear line; requests are served."""
    gunicorn = start(SILENT_APP, *options, FAPILOG_CLOUDWATCH__BATCH_SIZE="many")
    assert gunicorn.get("") == "ok"
    output = gunicorn.stop()
    assert output.count("cwsink: nothing can be spooled, and the server goes on: batch_size='many'") == 1


def test_a_worker_that_never_logs_has_sent_what_others_left(server: StrictCloudWatch, start: Start) -> None:
    """The server starts again after all of it was killed: nobody has to log for the old records to go."""
    first = start(APP, FAPILOG_CLOUDWATCH__FLUSHER="external")
    first.get("left-behind")
    first.kill()
    second = start(APP, "--preload")
    assert server.wait_for_events(1)
    second.stop()
    assert server.messages() == ["left-behind"]


def test_the_master_delivers_what_its_last_worker_left(server: StrictCloudWatch, start: Start) -> None:
    """The worker only appends and starts nobody: the master has a flusher deliver, as it ends, and waits for it."""
    gunicorn = start(APP.replace("open()", 'open(flusher="external")'), hooks="from cwsink.gunicorn import on_exit\n")
    gunicorn.get("last-words")
    gunicorn.stop()
    assert server.messages() == ["last-words"]


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_where_records_are_printed_no_spool_is_made(tmp_path: Path, start: Start, options: tuple[str, ...]) -> None:
    """Neither the master nor a worker opens one, although the environment names a log group."""
    spools = tmp_path / "spools"
    gunicorn = start(APP, *options, CWSINK_TARGET="stdout", CWSINK_SPOOL_DIRECTORY=str(spools))
    gunicorn.get("printed")
    output = gunicorn.stop()
    assert "printed" in output.splitlines()
    assert not spools.exists()
    assert "cwsink:" not in output


def test_a_wrong_target_is_said_and_the_server_runs(start: Start) -> None:
    """No hook raises because of it."""
    gunicorn = start(SILENT_APP, CWSINK_TARGET="nowhere")
    assert gunicorn.get("") == "ok"
    assert gunicorn.stop().count("cwsink: nothing can be spooled, and the server goes on: CWSINK_TARGET='nowhere'") == 1
