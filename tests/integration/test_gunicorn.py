"""Real gunicorn, four workers, fapilog: every request's record arrives, whatever happens to the workers."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink.flusher import leader_state
from cwsink.spool import directory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch

pytest.importorskip("gunicorn")

HANG_SECONDS = 60.0
WORKERS = 4

# `append` answers when the record is in the spool; through the logger it may still wait in fapilog's queue.
APP = """
import os, signal
before = {each: signal.getsignal(each) for each in signal.valid_signals()}
import cwsink, fapilog
from cwsink import Writer

cwsink.install()
settings = fapilog.Settings()
settings.core.sinks = ["cloudwatch"]
settings.sink_config.cloudwatch.log_group_name = "/myapp/prod"
settings.sink_config.cloudwatch.log_stream_name = "web-1"
settings.sink_config.cloudwatch.region = "us-east-1"
settings.sink_config.cloudwatch.batch_timeout_seconds = 0.2
logger = fapilog.get_logger(settings=settings)
writer = Writer.open(settings.sink_config.cloudwatch)
assert before == {each: signal.getsignal(each) for each in signal.valid_signals()}
gunicorns = {}

def post_worker_init():
    gunicorns.update({each: signal.getsignal(each) for each in signal.valid_signals()})

def app(environ, start_response):
    name = environ["PATH_INFO"].strip("/")
    if name == "signals":
        body = str(all(signal.getsignal(each) == what for each, what in gunicorns.items()) and bool(gunicorns))
    elif name.startswith("append"):
        assert writer.append('{"message": "%s"}' % name)
        body = str(os.getpid())
    else:
        logger.info(name)
        body = str(os.getpid())
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]
"""
CONFIGURATION = """
def post_worker_init(worker):
    import app
    app.post_worker_init()
"""


class Gunicorn:
    """A running master and its workers."""

    def __init__(self, folder: Path, server: StrictCloudWatch, *options: str) -> None:
        (folder / "app.py").write_text(APP)
        (folder / "gunicorn.conf.py").write_text(CONFIGURATION)
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = listener.getsockname()[1]
        self.log = folder / "gunicorn.log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "app:app", "-w", str(WORKERS)),
                    *("-b", f"fd://{listener.fileno()}", "--graceful-timeout", "20"),
                    *options,
                ],
                cwd=folder,
                env={**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])},
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        listener.close()

    def get(self, path: str) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
        try:
            connection.request("GET", f"/{path}")
            response = connection.getresponse()
            assert response.status == 200
            return response.read().decode()
        finally:
            connection.close()

    def stop(self) -> None:
        """TERM to the master, as an init system does; wait until the last worker is gone."""
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(HANG_SECONDS) == 0, self.log.read_text()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(HANG_SECONDS)


@pytest.fixture
def start(tmp_path: Path, server: StrictCloudWatch) -> Iterator[Callable[..., Gunicorn]]:
    started: list[Gunicorn] = []

    def run(*options: str) -> Gunicorn:
        started.append(Gunicorn(tmp_path, server, *options))
        return started[-1]

    yield run
    for each in started:
        each.kill()


def names(server: StrictCloudWatch) -> list[str]:
    return [json.loads(message)["message"] for message in server.messages("/myapp/prod", "web-1")]


@pytest.mark.parametrize("options", [(), ("--preload",), ("--worker-class", "gthread", "--threads", "4")])
def test_every_request_is_logged_when_gunicorn_has_stopped(
    server: StrictCloudWatch, start: Callable[..., Gunicorn], options: tuple[str, ...]
) -> None:
    """200 requests, TERM: 200 records in one stream, each once; the workers keep gunicorn's signal handlers."""
    gunicorn = start(*options)
    pids = {gunicorn.get(f"request-{number}") for number in range(200)}
    assert gunicorn.get("signals") == "True"
    gunicorn.stop()
    assert sorted(names(server)) == sorted(f"request-{number}" for number in range(200))
    assert {(event.group, event.stream) for event in server.events()} == {("/myapp/prod", "web-1")}
    assert all(len(senders) == 1 for senders in server.senders_by_epoch().values())
    print(f"{len(pids)} workers served, {len(server.senders_by_epoch())} led")
    spool = directory.open_existing(directory.find_spools()[0])
    assert survey(spool).pending == 0


@pytest.mark.faults
def test_killed_workers_and_leaders_lose_nothing_that_was_acknowledged(
    server: StrictCloudWatch, start: Callable[..., Gunicorn]
) -> None:
    """Under load a worker, then the leader is killed, three times: every acknowledged record arrives."""
    gunicorn = start("--preload")
    acknowledged: list[str] = []
    workers: set[int] = set()
    ended = threading.Event()

    def load(client: int) -> None:
        number = 0
        while not ended.is_set():
            name = f"append-{client}-{number}"
            number += 1
            try:
                workers.add(int(gunicorn.get(name)))
            except (OSError, http.client.HTTPException):
                continue  # its worker was killed: not acknowledged
            acknowledged.append(name)

    clients = [threading.Thread(target=load, args=(client,)) for client in range(4)]
    for client in clients:
        client.start()
    try:
        assert server.wait_for_events(1, HANG_SECONDS)
        spool = directory.open_existing(directory.find_spools()[0])
        killed: set[int] = set()
        for _ in range(3):
            leader = leader_state.read(spool).pid
            followers = workers - killed - {leader, gunicorn.process.pid}
            for victim in [*sorted(followers)[:1], *({leader} & workers - killed)]:
                killed.add(victim)
                os.kill(victim, signal.SIGKILL)
                goal = len(acknowledged) + 50
                until = time.monotonic() + HANG_SECONDS
                while len(acknowledged) < goal or leader_state.read(spool).pid == victim:
                    assert time.monotonic() < until
                    time.sleep(0.01)
    finally:
        ended.set()
        for client in clients:
            client.join(HANG_SECONDS)
    gunicorn.stop()
    assert survey(spool).epoch > 2  # a leader that is killed early has sent nothing
    assert set(acknowledged) <= set(names(server))
    assert all(len(senders) == 1 for senders in server.senders_by_epoch().values())
    assert survey(spool).pending == 0
