"""CloudWatch is dead from the first second, in four ways: the application must not notice.

Real gunicorn, two workers, and the flusher that one of them starts. "Nobody waited" is proven by order: a call of the
flusher may take `CALL_SECONDS`, and all that is asserted has happened before the first could have ended.

Invariant 8.
"""

from __future__ import annotations

import http.client
import json
import os
import select
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Final

import pytest

from cwsink.spool import directory, leader_state
from cwsink.spool.survey import Survey, survey
from cwsink.testing import StrictCloudWatch

pytest.importorskip("gunicorn")
pytestmark = pytest.mark.faults

HANG_SECONDS: Final = 60.0
CALL_SECONDS: Final = 100.0
GROUP: Final = "/myapp/prod"

# So many requests log so many records of that size each.
BULKS: Final = 64
BULK_RECORDS: Final = 64
RECORD_BYTES: Final = 16_384
# What a worker may grow by in all of it: pages of its own. What is logged is far more.
WORKER_GROWTH_BYTES: Final = 16 << 20
# botocore's client, which the flusher makes with its first call, and two chunks.
FLUSHER_GROWTH_BYTES: Final = 30 << 20

APP = """
import json, os, time
import cwsink, fapilog

FRONT_END = os.environ["FRONT_END"]
if FRONT_END == "fapilog":
    cwsink.install()
    logger = fapilog.get_logger(settings=fapilog.Settings())
    log = lambda name, padding: logger.info(name, padding=padding)
else:
    writer = cwsink.Writer.open()

    def log(name, padding):
        now_ms = time.time_ns() // 1_000_000
        assert writer.append(json.dumps({"message": name, "time_ms": now_ms, "padding": padding}), now_ms)

def app(environ, start_response):
    what, name, count, size = environ["PATH_INFO"].strip("/").split("/")
    for number in range(int(count)):
        log(f"{name}-{number}", "x" * int(size))
    pages = int(open("/proc/self/statm").read().split()[1]) if os.path.exists("/proc/self/statm") else 0
    body = f"{os.getpid()} {pages * os.sysconf('SC_PAGESIZE')}".encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""

# In the place of the flusher's Python: that, with a resolver that knows no name, and asks no network. Once the file is
# there it knows ours.
RESOLVER = """
import os, socket, sys
look_up = socket.getaddrinfo

def getaddrinfo(host, *rest, **options):
    if str(host).endswith(".invalid"):
        if not os.path.exists(os.environ["REPAIRED"]):
            return look_up(host, None, flags=socket.AI_NUMERICHOST)
        host = "127.0.0.1"
    return look_up(host, *rest, **options)

socket.getaddrinfo = getaddrinfo
del sys.argv[:sys.argv.index("-c")]
exec(sys.argv.pop(1))
"""


class Outage:
    """An endpoint that is dead, and the strict server that takes its place."""

    def __init__(self, folder: Path) -> None:
        self.server = StrictCloudWatch()
        self.host = "127.0.0.1"
        self.env: dict[str, str] = {}
        self._stack = ExitStack()

    @property
    def endpoint_url(self) -> str:
        return f"http://{self.host}:{self.server.endpoint_url.rpartition(':')[2]}"

    def end(self) -> None:
        """CloudWatch is there."""

    def close(self) -> None:
        self._stack.close()
        self.server.stop()

    def _hold_a_port(self) -> socket.socket:
        """Keep a port from everybody but the strict server, which will listen at it."""
        held = self._stack.enter_context(socket.socket())
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind(("127.0.0.1", 0))
        self.server = StrictCloudWatch(port=held.getsockname()[1])
        return held


class Refused(Outage):
    """Nobody listens."""

    says = "EndpointConnectionError"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._hold_a_port()

    def end(self) -> None:
        self.server.start()


class BlackHole(Outage):
    """No packet is answered: the queue of the listener is full, so the kernel drops each SYN."""

    says = "ConnectTimeoutError"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        listener = self._hold_a_port()
        listener.listen(0)
        for _ in range(10):
            filler = self._stack.enter_context(socket.socket())
            filler.setblocking(False)
            filler.connect_ex(listener.getsockname())
            if not select.select([], [filler], [], 0.1)[1]:
                return
        pytest.skip("this kernel's queue of connections is never full")

    def end(self) -> None:
        self._stack.close()
        self.server.start()


class Silent(Outage):
    """Connections are accepted, requests are read, no answer ever comes."""

    says = "ReadTimeoutError"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server.start()
        self.server.faults.hang(10 * CALL_SECONDS, 10_000)

    def end(self) -> None:
        self.server.stop()  # which ends the connection of the call in flight
        self.server.faults.clear()
        self.server.start()


class NoName(Outage):
    """The name cannot be resolved."""

    says = "EndpointConnectionError"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.server.start()
        self.host = "logs.us-east-1.invalid"
        self._repaired = folder / "repaired"
        script, python = folder / "resolver.py", folder / "python-with-a-resolver"
        script.write_text(RESOLVER)
        python.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -I -S {shlex.quote(str(script))} "$@"\n')
        python.chmod(0o755)
        self.env = {"REPAIRED": str(self._repaired), "CWSINK_PYTHON": str(python)}

    def end(self) -> None:
        self._repaired.touch()


class GunicornInOutage:
    """A running master and its two workers."""

    def __init__(self, folder: Path, outage: Outage, front_end: str, **settings: object) -> None:
        (folder / "deadapp.py").write_text(APP)
        self.log = folder / "gunicorn.log"
        variables = {f"FAPILOG_CLOUDWATCH__{name.upper()}": str(value) for name, value in settings.items()}
        with socket.create_server(("127.0.0.1", 0)) as listener, self.log.open("ab") as log:
            self.port = listener.getsockname()[1]
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "gunicorn", "deadapp:app", "-w", "2", "--graceful-timeout", "20"),
                    *("-b", f"fd://{listener.fileno()}"),
                ],
                cwd=folder,
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join([str(folder), *sys.path]),
                    "NO_PROXY": "*",
                    "FRONT_END": front_end,
                    "FAPILOG_CORE__SINKS": '["cloudwatch"]',
                    "FAPILOG_CORE__MAX_QUEUE_SIZE": "50000",
                    "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": GROUP,
                    "FAPILOG_CLOUDWATCH__LOG_STREAM_NAME": "web-1",
                    "FAPILOG_CLOUDWATCH__REGION": "us-east-1",
                    "FAPILOG_CLOUDWATCH__ENDPOINT_URL": outage.endpoint_url,
                    "FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS": "0.1",
                    # Small: what a long outage makes of them would be waited for at its end.
                    "FAPILOG_CLOUDWATCH__RETRY_BASE_DELAY": "0.001",
                    "FAPILOG_CLOUDWATCH__CIRCUIT_BREAKER_ENABLED": "false",
                    **variables,
                    **outage.env,
                },
                pass_fds=[listener.fileno()],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def request(self, name: str, count: int = 5, size: int = 10) -> tuple[int, int]:
        """Have a worker log; returns its pid and its resident bytes."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HANG_SECONDS)
        try:
            connection.request("GET", f"/log/{name}/{count}/{size}")
            response = connection.getresponse()
            assert response.status == 200, self.log.read_text()
            pid, resident = response.read().split()
            return int(pid), int(resident)
        finally:
            connection.close()

    def said(self) -> list[str]:
        """Return what cwsink has said on stderr."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("cwsink: ")]
        return [line for line in lines if "is asked without TLS" not in line]  # NoName is no loopback

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(HANG_SECONDS) == 0, self.log.read_text()

    def kill(self) -> None:
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait(HANG_SECONDS)


Start = Callable[..., GunicornInOutage]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start gunicorn; its workers log into a spool below tmp_path."""
    started: list[GunicornInOutage] = []

    def run(outage: Outage, front_end: str = "writer", **settings: object) -> GunicornInOutage:
        started.append(GunicornInOutage(tmp_path, outage, front_end, **settings))
        return started[-1]

    yield run
    for each in started:
        each.kill()


@pytest.fixture
def outage(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Outage]:
    """The endpoint that the test is parametrised with; nobody may break a rule of AWS once it is back."""
    made: Outage = request.param(tmp_path)
    yield made
    made.close()
    made.server.assert_clean()


def wait_until(condition: Callable[[], object], why: Callable[[], object]) -> None:
    until = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < until, why()
        time.sleep(0.05)


def books() -> Survey:
    """Return the ledger of the one spool."""
    (path,) = directory.find_spools()
    return survey(directory.open_existing(path))


def resident_bytes_of_the_flusher() -> int | None:
    """Return its resident bytes; None where that cannot be seen."""
    (path,) = directory.find_spools()
    spool = directory.open_existing(path)
    wait_until(lambda: leader_state.read(spool), lambda: "nobody leads")
    published = leader_state.read(spool)
    assert published is not None
    statm = Path(f"/proc/{published.pid}/statm")
    return int(statm.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") if statm.exists() else None


def wait_for_spooled_bytes(count: int) -> None:
    """Cheaper than to read the spool."""
    (path,) = directory.find_spools()
    wait_until(lambda: sum(each.stat().st_size for each in Path(path, "ring").glob("*.seg")) >= count, books)


def time_of(message: str) -> int:
    """Return the time that the application gave a record, in ms."""
    record = json.loads(message)
    if "time_ms" in record:
        return int(record["time_ms"])
    return round(datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00")).timestamp() * 1000)


@pytest.mark.parametrize(
    ("outage", "front_end"),
    [
        pytest.param(Refused, "fapilog", id="refused, fapilog"),
        pytest.param(Refused, "writer", id="refused"),
        pytest.param(BlackHole, "writer", id="black hole"),
        pytest.param(Silent, "writer", id="silent"),
        pytest.param(NoName, "writer", id="no name"),
    ],
    indirect=["outage"],
)
def test_the_application_does_not_notice(outage: Outage, start: Start, front_end: str) -> None:
    """Requests are answered, memory stays flat while megabytes are logged (the flusher's, too), and all of it arrives
    with its own time."""
    began = time.monotonic()
    gunicorn = start(outage, front_end, connect_timeout_seconds=CALL_SECONDS, read_timeout_seconds=CALL_SECONDS)
    expected = [f"early-{request}-{number}" for request in range(40) for number in range(5)]
    resident: dict[int, list[int]] = {}
    for request in range(40):
        pid, size = gunicorn.request(f"early-{request}")
        resident.setdefault(pid, []).append(size)
    flusher = [resident_bytes_of_the_flusher()]
    for bulk in range(BULKS):
        expected += [f"bulk-{bulk}-{number}" for number in range(BULK_RECORDS)]
        pid, size = gunicorn.request(f"bulk-{bulk}", BULK_RECORDS, RECORD_BYTES)
        resident.setdefault(pid, []).append(size)
        wait_for_spooled_bytes((bulk + 1) * BULK_RECORDS * RECORD_BYTES)
        flusher.append(resident_bytes_of_the_flusher())
    wait_until(lambda: books().pending == len(expected), books)
    assert time.monotonic() - began < CALL_SECONDS, "a call may have ended: the order proves nothing"
    logged = len(expected) * RECORD_BYTES
    growth = {pid: max(sizes) - sizes[0] for pid, sizes in resident.items()}
    print(f"{logged >> 20} MiB logged; the workers grew by {[size >> 10 for size in growth.values()]} KiB")
    assert max(growth.values()) < WORKER_GROWTH_BYTES < logged / 3
    if flusher[0] is not None:
        grown = max(size or 0 for size in flusher) - flusher[0]
        print(f"the flusher grew by {grown >> 10} KiB")
        assert grown < FLUSHER_GROWTH_BYTES < logged / 2
    assert books().pending == len(expected)

    came_back_ms = time.time_ns() // 1_000_000
    outage.end()
    assert outage.server.wait_for_events(len(expected), HANG_SECONDS), gunicorn.log.read_text()
    gunicorn.stop()
    events = outage.server.events(GROUP, "web-1")
    assert Counter(json.loads(event.message)["message"] for event in events) == Counter(expected)
    assert all(event.timestamp == time_of(event.message) <= came_back_ms for event in events)
    assert books().pending == 0


@pytest.mark.parametrize("outage", [Refused, BlackHole, Silent, NoName], indirect=True)
def test_it_is_said_once_and_so_is_the_end_of_it(outage: Outage, start: Start) -> None:
    """Many calls fail: stderr has one line that names the failure, and one when CloudWatch is back."""
    gunicorn = start(outage, connect_timeout_seconds=0.1, read_timeout_seconds=0.1)
    for request in range(20):
        gunicorn.request(f"early-{request}")
    wait_until(gunicorn.said, gunicorn.log.read_text)
    for request in range(20):
        gunicorn.request(f"late-{request}")
    outage.end()
    assert outage.server.wait_for_events(200, HANG_SECONDS), gunicorn.log.read_text()
    wait_until(lambda: len(gunicorn.said()) > 1, gunicorn.log.read_text)
    gunicorn.stop()
    trouble, end = gunicorn.said()
    assert trouble.startswith(f"cwsink: cannot deliver to {GROUP}: {outage.says}: ")
    assert trouble.endswith("The records stay in the spool. The leader tries again until it succeeds.")
    assert end == f"cwsink: CloudWatch accepts records again. What is pending for {GROUP} is being delivered."
    assert books().pending == 0


@pytest.mark.parametrize("outage", [Refused, BlackHole, Silent, NoName], indirect=True)
def test_it_ends_and_begins_again_while_cloudwatch_is_dead(outage: Outage, start: Start) -> None:
    """gunicorn stops with a call in flight, within drain_timeout_seconds; the next one delivers for both."""
    patience = {"connect_timeout_seconds": CALL_SECONDS, "read_timeout_seconds": CALL_SECONDS}
    began = time.monotonic()
    first = start(outage, drain_timeout_seconds=0.5, **patience)
    for request in range(20):
        first.request(f"first-{request}")
    first.stop()
    assert time.monotonic() - began < CALL_SECONDS
    assert books().pending == 100
    second = start(outage, **patience)
    for request in range(20):
        second.request(f"second-{request}")
    outage.end()
    assert outage.server.wait_for_events(200, HANG_SECONDS), second.log.read_text()
    second.stop()
    assert len({json.loads(message)["message"] for message in outage.server.messages(GROUP)}) == 200
    assert books().pending == 0
