"""The command line as people use it: real processes, real spools, the strict server."""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import pytest
from msgspec.structs import asdict

from cwsink import Writer, __version__
from cwsink.cli.arguments import COMMANDS
from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.spool import segment
from cwsink.spool.record import Event
from cwsink.testing import StrictCloudWatch
from tests.harness.support import CHILD_SECONDS, finish, give

Spawn = Callable[..., "subprocess.Popen[str]"]

CONTRACT = {
    "path", "log_group_name", "log_stream_name", "region", "state", "leader", "appended", "delivered", "pending",
    "pending_bytes", "oldest_pending_seconds", "dead_lettered", "evicted", "refused", "resent", "corrupt_bytes",
    "capacity_bytes", "last_error", "last_success", "settings", "settings_from", "unable", "used_bytes",
    "records_per_second", "last_success_seconds", "leader_silent_seconds", "leader_is_stopped", "led_by_host",
    "stopped_flusher",
    "written_by", "orphan_seconds", "why", "epoch", "dead_letters", "replayed", "lost", "is_losing", "lost_since",
    "lost_until", "lost_why", "lost_is_over", "failing_since", "is_behind", "requests", "sent_bytes", "request_seconds",
    "disk_free_bytes", "obstacle", "dead_letters_dropped", "last_failure",
    "history_bytes", "history_seconds",
}  # fmt: skip

# Appends as many records as each line of stdin says; exits (and drains) at its end.
WORKER = """
    import json, sys
    from cwsink import Writer

    writer = Writer.open(**json.loads(sys.argv[1]))
    number = 0
    for line in sys.stdin:
        for _ in range(int(line)):
            assert writer.append(f"record {number} {'x' * 200}")
            number += 1
        print(number, flush=True)
"""


def environment() -> dict[str, str]:
    """This process's, with the source tree."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "200"}


def cwsink(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and assert its exit code."""
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", *map(str, words)],
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert done.returncode == code, f"exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
    assert "Traceback" not in done.stderr
    return done


def spools_of(*words: object, code: int = 0) -> list[dict[str, Any]]:
    """What `status --json` tells of each spool."""
    spools: list[dict[str, Any]] = json.loads(cwsink("status", "--json", *words, code=code).stdout)["spools"]
    return spools


def status_when(condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """The status of the only spool, as soon as it is so."""
    until = time.monotonic() + CHILD_SECONDS
    while True:
        spools = spools_of()
        if spools and condition(spools[0]):
            return spools[0]
        assert time.monotonic() < until, spools


def settings(config: SinkConfig, **changes: object) -> str:
    """A config as an argument for a worker."""
    return json.dumps({**asdict(config), **changes})


def external(config: SinkConfig, **changes: object) -> Writer:
    """A writer of this process that never leads."""
    return Writer(SinkConfig(**{**asdict(config), "flusher": "external", **changes}))


def tell(worker: subprocess.Popen[str], records: int) -> None:
    """Have a worker append, and wait until it has."""
    assert worker.stdin
    assert worker.stdout
    worker.stdin.write(f"{records}\n")
    worker.stdin.flush()
    assert worker.stdout.readline().strip(), worker.stderr and worker.stderr.read()


class Background:
    """A command that runs while the test goes on; its output is read as it comes."""

    def __init__(self, *words: object) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cwsink", *map(str, words)],
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._lines: Queue[str] = Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def line(self) -> str:
        """The next line of its output."""
        try:
            return self._lines.get(timeout=CHILD_SECONDS)
        except Empty:
            raise AssertionError("no more output") from None

    def lines_until(self, text: str) -> list[str]:
        """The lines up to the one that contains `text`."""
        lines = [self.line()]
        while text not in lines[-1]:
            lines.append(self.line())
        return lines

    def end(self, number: int, *, code: int = 0) -> tuple[str, str]:
        """Signal it; assert its exit code; return what was not read of stdout, and stderr."""
        self.process.send_signal(number)
        assert self.process.wait(CHILD_SECONDS) == code
        self._reader.join(CHILD_SECONDS)
        assert self.process.stderr
        return "".join(self._lines.queue), self.process.stderr.read()

    def close(self) -> None:
        """Kill and reap it."""
        self.process.kill()
        self.process.wait(CHILD_SECONDS)
        self._reader.join(CHILD_SECONDS)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _read(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self._lines.put(line)


@pytest.fixture
def background() -> Iterator[Callable[..., Background]]:
    """Start commands that are reaped at the end."""
    running: list[Background] = []

    def start(*words: object) -> Background:
        running.append(Background(*words))
        return running[-1]

    yield start
    for each in running:
        each.close()


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Have a process stand still for a while; it goes on whatever happens meanwhile."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def parent_of(pid: int) -> int:
    done = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(done.stdout)


def leave_behind(spawn: Spawn, config: SinkConfig, records: int) -> None:
    """Have a worker append records and be killed before anything is delivered."""
    worker = spawn(WORKER, settings(config, flusher="external"))
    tell(worker, records)
    worker.kill()
    worker.wait(CHILD_SECONDS)


@pytest.fixture
def nobody_listens() -> Iterator[str]:
    """A URL that refuses connections. Its port is kept taken, so that no other test's server gets it."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


# status


def test_status_json_is_the_contract(config: SinkConfig) -> None:
    """Exactly the promised keys, with the right numbers, while nobody leads."""
    writer = external(config)
    for _ in range(12):
        writer.append("x" * 100)
    content = json.loads(cwsink("status", "--json").stdout)
    assert (set(content), content["unreadable"]) == ({"spools", "unreadable"}, [])
    (spool,) = content["spools"]
    assert set(spool) == CONTRACT
    assert spool["path"] == writer.directory.path
    assert (spool["log_group_name"], spool["log_stream_name"], spool["region"]) == (
        "/test/group",
        "stream",
        "us-east-1",
    )
    assert (spool["state"], spool["leader"]) == ("no_leader", None)
    assert (spool["appended"], spool["delivered"], spool["pending"]) == (12, 0, 12)
    assert spool["pending_bytes"] > 12 * 100
    assert 0 <= spool["oldest_pending_seconds"] < CHILD_SECONDS
    assert spool["capacity_bytes"] == config.spool_max_bytes
    assert (spool["dead_lettered"], spool["refused"], spool["evicted"]) == ({}, {}, 0)
    assert (spool["last_error"], spool["last_success"]) == (None, None)
    command = f"`cwsink flush --once {writer.directory.path}`"
    assert spool["why"] == f"No process leads. They are sent when a worker logs again, or by {command}."
    assert (spool["used_bytes"] > 12 * 100, spool["leader_is_stopped"], spool["led_by_host"]) == (True, False, None)
    assert (spool["written_by"], spool["orphan_seconds"]) == (socket.gethostname(), None)
    assert spool["settings"]["batch_timeout_seconds"] == config.batch_timeout_seconds
    assert spool["settings_from"] == f"{socket.gethostname()}/{os.getpid()}"


def test_status_does_not_show_an_external_id(config: SinkConfig) -> None:
    """A secret of two parties: that there is one is shown, not what it is."""
    external(config, role_arn="arn:aws:iam::123456789012:role/logs", external_id="between-us").append("x")
    (spool,) = spools_of()
    assert spool["settings"]["external_id"] == "(not shown)"
    table = cwsink("status").stdout
    assert "role_arn arn:aws:iam::123456789012:role/logs" in " ".join(table.split())
    assert "between-us" not in table


def test_status_while_a_worker_runs(spawn: Spawn, server: StrictCloudWatch, config: SinkConfig) -> None:
    """The flusher is named, and who started it; what it delivered is counted."""
    worker = spawn(WORKER, settings(config))
    tell(worker, 3_000)
    spool = status_when(lambda spool: spool["delivered"] == 3_000 and spool["last_success"])
    assert (spool["state"], spool["appended"], spool["pending"]) == ("idle", 3_000, 0)
    leader = spool["leader"]
    assert leader.pop("pid") != worker.pid
    assert leader.pop("started_by").startswith(f"pid {worker.pid} (")
    assert leader == {"host": socket.gethostname(), "epoch": 1, "kind": "own"}
    assert spool["last_success"].endswith("Z")
    assert spool["oldest_pending_seconds"] is None
    table = cwsink("status").stdout
    assert "Everything is delivered: 3,000 records" in table
    assert f"started by itself by pid {worker.pid}" in table


def test_status_never_counts_less_than_before(spawn: Spawn, config: SinkConfig) -> None:
    """While segments are delivered and reclaimed under its eyes, no record is in neither count."""
    worker = spawn(WORKER, settings(config, segment_bytes=4096, spool_max_bytes=1 << 20))
    for round_number in range(1, 21):
        tell(worker, 50)
        (spool,) = spools_of()
        assert spool["appended"] == round_number * 50
        dead = sum(spool["dead_lettered"].values())
        assert spool["appended"] == spool["delivered"] + dead + spool["evicted"] + spool["pending"]


@pytest.mark.parametrize("size", ["0", "-5", "", "wide", "²"])
@pytest.mark.parametrize("words", [("status",), ("top", "--once")], ids=" ".join)
def test_a_size_of_the_terminal_that_is_none_hides_nothing(
    config: SinkConfig, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], size: str
) -> None:
    """COLUMNS and LINES come from anywhere. What is no size does not count: the lines in a pipe are whole."""
    directory = external(config).directory
    monkeypatch.setenv("COLUMNS", size)
    monkeypatch.setenv("LINES", size)
    done = subprocess.run(
        [sys.executable, "-m", "cwsink", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "/test/group → stream" in done.stdout
    assert words == ("top", "--once") or f"{directory.path}\n" in done.stdout


def test_status_while_the_leader_is_stopped(spawn: Spawn, config: SinkConfig) -> None:
    """It needs nothing from the leader, says that it is stopped, and how to go on."""
    worker = spawn(WORKER, settings(config))
    tell(worker, 5)
    flusher = status_when(lambda spool: spool["delivered"] == 5)["leader"]["pid"]
    with stopped(flusher):
        writer = external(config)
        for _ in range(7):
            writer.append("while it is stopped")
        (spool,) = spools_of()
        assert (spool["state"], spool["leader"]["pid"]) == ("stalled", flusher)
        assert (spool["appended"], spool["delivered"], spool["pending"]) == (12, 5, 7)
        table = cwsink("status").stdout
        assert "7 records wait" in table
        assert f"`kill -CONT {flusher}`" in table
    status_when(lambda spool: spool["delivered"] == 12)


def test_status_while_the_guard_is_stopped(spawn: Spawn, config: SinkConfig) -> None:
    """Its flusher was killed, and the guard keeps the lock without which no other one starts: they name the guard."""
    worker = spawn(WORKER, settings(config))
    tell(worker, 5)
    flusher = status_when(lambda spool: spool["delivered"] == 5)["leader"]["pid"]
    guard = parent_of(flusher)
    with stopped(guard):
        os.kill(flusher, signal.SIGKILL)
        external(config).append("while it is stopped")
        spool = status_when(lambda spool: spool["state"] == "no_leader")
        assert spool["stopped_flusher"] == guard
        assert f"`kill -CONT {guard}` lets it go on" in " ".join(cwsink("status").stdout.split())
        assert f"(no_leader, pid {guard} is a stopped process)" in cwsink("check", "--max-age", "1ms", code=2).stdout
    assert status_when(lambda spool: spool["delivered"] == 6)["stopped_flusher"] is None


def test_status_says_why(spawn: Spawn, server: StrictCloudWatch, config: SinkConfig) -> None:
    """While CloudWatch refuses, the error stands there with what it means."""
    server.faults.deny("logs:PutLogEvents")
    worker = spawn(WORKER, settings(config))
    tell(worker, 3)
    spool = status_when(lambda spool: spool["state"] == "retrying")
    assert spool["last_error"].startswith("AccessDeniedException: ")
    assert spool["failing_since"] <= spool["last_failure"]
    table = cwsink("status").stdout
    for words in ("Retrying: 3 records wait", "AccessDeniedException", "Allow the action that the error names"):
        assert words in table


def test_status_says_that_nobody_leads(config: SinkConfig) -> None:
    """Pending records without a leader are told with the way out, and without colour in a pipe."""
    writer = external(config)
    writer.append("x")
    table = cwsink("status", writer.directory.path).stdout
    for words in ("/test/group → stream", "1 record waits", "cwsink flush", writer.directory.path):
        assert words in table
    assert "\x1b" not in table


def test_status_of_several_spools(tmp_path: Path, config: SinkConfig) -> None:
    """A root shows all its spools, a path to one shows that one."""
    first = external(config)
    second = external(config, log_group_name="/other")
    first.append("x")
    both = spools_of(tmp_path / "spools")
    assert {spool["path"] for spool in both} == {first.directory.path, second.directory.path}
    assert [spool["log_group_name"] for spool in spools_of(second.directory.path)] == ["/other"]
    assert "2 spools, none behind: 1 record on the way." in cwsink("status").stdout
    second.append("x", int((time.time() - 60) * 1000))
    second.append("x")
    assert "1 of 2 spools is behind: 2 records in all." in cwsink("status").stdout


@pytest.mark.parametrize("damage", [b"{", b"", None])
def test_a_damaged_spool_does_not_hide_the_others(config: SinkConfig, damage: bytes | None) -> None:
    """It is named on stderr, the others are shown, and the exit code is 1."""
    whole, damaged = external(config), external(config, log_group_name="/damaged")
    for writer in (whole, damaged):
        writer.append("x")
    marker = Path(damaged.directory.path, "FORMAT")
    original = marker.read_bytes()
    marker.unlink()
    if damage is not None:
        marker.write_bytes(damage)
    for words in (["status", "--json"], ["status"], ["tail"]):
        done = cwsink(*words, code=1)
        assert damaged.directory.path in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert cwsink("status", code=1).stdout.startswith("1 more cannot be read, or not as a whole. All else:\n\n● ")
    shown = json.loads(cwsink("status", "--json", code=1).stdout)
    assert [spool["path"] for spool in shown["spools"]] == [whole.directory.path]
    assert [each["path"] for each in shown["unreadable"]] == [damaged.directory.path]
    assert damaged.directory.path in shown["unreadable"][0]["why"]
    assert cwsink("replay", "--all", code=1).stdout == ""  # the damaged one may be an orphan
    marker.write_bytes(original)


def test_no_spool_at_all(tmp_path: Path) -> None:
    """It is said, and is code 1: whether all is delivered cannot be told."""
    assert spools_of(code=1) == []
    assert str(tmp_path / "spools") in cwsink("status", code=1).stderr
    for words in (["status", tmp_path], ["tail", tmp_path], ["flush", "--once", tmp_path]):
        assert "holds no spool" in cwsink(*words, code=1).stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at another user's spool")
def test_another_users_spool(config: SinkConfig) -> None:
    """Root can look at it; flushing it is refused with the reason."""
    writer = external(config)
    writer.append("x")
    give(writer.directory.path, 12345)
    assert spools_of()[0]["pending"] == 1
    assert "x" in cwsink("tail").stdout
    path = writer.directory.path
    command = f"sudo setpriv --reuid 12345 --clear-groups cwsink flush --once {path}"
    for words in (["flush", "--once"], ["flush"], ["replay", "--all"]):
        refusal = cwsink(*words, code=1).stderr
        assert "belongs to user 12345" in refusal
        assert f"`{command}` sends" in refusal
        assert "spool_directory" not in refusal  # that is for an application
    give(path, 65_534)
    command = f"sudo -u {pwd.getpwuid(65_534).pw_name} cwsink flush --once {path}"
    assert f"`{command}`" in spools_of()[0]["why"]
    assert f"→ {command}" in cwsink("doctor", code=1).stdout


def test_watch_looks_again_until_it_is_interrupted(config: SinkConfig, background: Callable[..., Background]) -> None:
    """With --json each look is one line; Ctrl-C ends it with code 0."""
    writer = external(config)
    watch = background("status", "--json", "--watch", "0.05")
    assert json.loads(watch.line())["spools"][0]["pending"] == 0
    writer.append("x")
    while json.loads(watch.line())["spools"][0]["pending"] != 1:
        pass
    assert watch.end(signal.SIGINT)[1] == ""


# tail


def test_tail_prints_what_is_pending(config: SinkConfig) -> None:
    """For people a line each; with --json id, time and the very message."""
    writer = external(config)
    writer.append("first", 1_700_000_000_123)
    writer.append('{"message": "second", "level": "INFO", "logger": "app", "data": {"a": 1}}')
    first, second = cwsink("tail").stdout.splitlines()
    assert first.endswith(".123 first")
    assert second.endswith("INFO     app: second  a=1")
    lines = [json.loads(line) for line in cwsink("tail", "--json").stdout.splitlines()]
    assert [set(line) for line in lines] == [{"id", "timestamp_ms", "message"}] * 2
    assert (lines[0]["timestamp_ms"], lines[0]["message"]) == (1_700_000_000_123, "first")
    assert len({line["id"] for line in lines}) == 2


def test_tail_with_a_number_shows_delivered_records_too(server: StrictCloudWatch, config: SinkConfig) -> None:
    """Without -n nothing is left to show after delivery; with it what is on disk still is."""
    writer = external(config)
    for number in range(5):
        writer.append(f"record {number}")
    cwsink("flush", "--once")
    nothing = cwsink("tail")
    assert (nothing.stdout, nothing.returncode) == ("", 0)
    assert "`-n 20` prints delivered records" in nothing.stderr
    assert cwsink("tail", "-n", 2, "--grep", "no such text").stderr == ""
    shown = [json.loads(line)["message"] for line in cwsink("tail", "-n", 2, "--json").stdout.splitlines()]
    assert shown == ["record 3", "record 4"]


def test_tail_filters(config: SinkConfig) -> None:
    """--grep finds text as it was logged or as it is shown; --level compares; both together."""
    writer = external(config)
    for level, number in (("DEBUG", 1), ("WARNING", 2), ("ERROR", 3)):
        writer.append(json.dumps({"message": "did it", "level": level, "logger": "app", "data": {"number": number}}))
    writer.append("plain text")

    def shown(*words: object) -> int:
        return len(cwsink("tail", *words).stdout.splitlines())

    assert shown() == 4
    assert shown("--level", "warning") == 2
    assert shown("--grep", "DID IT") == 3
    assert shown("--grep", "number=2") == 1
    assert shown("--grep", "number=2", "--json") == 1
    assert shown("--grep", "did", "--level", "ERROR") == 1
    assert shown("-n", 1, "--grep", "did") == 1


def test_tail_tells_spools_apart(config: SinkConfig) -> None:
    """With several spools each stretch of records stands below its target."""
    for group in ("/a", "/b"):
        external(config, log_group_name=group).append(f"in {group}")
    lines = cwsink("tail").stdout.splitlines()
    assert [line for line in lines if line.startswith("==>")] == ["==> /a → stream <==", "==> /b → stream <=="]


def test_tail_follows_through_rotation_delivery_and_reclaim(
    spawn: Spawn, server: StrictCloudWatch, config: SinkConfig, background: Callable[..., Background]
) -> None:
    """Each record is printed once, in order, while segments are filled, delivered and unlinked."""
    rounds, each = 80, 10  # a round is less than a segment, so none can come and go unseen
    worker = spawn(WORKER, settings(config, segment_bytes=4096, spool_max_bytes=1 << 20))
    tell(worker, 1)
    tail = background("tail", "-f", "-n", "1000", "--json")
    printed = tail.lines_until("record 0 ")
    for number in range(1, rounds + 1):
        tell(worker, each)
        printed += tail.lines_until(f"record {number * each} ")
    numbers = [int(json.loads(line)["message"].split()[1]) for line in printed]
    assert numbers == list(range(rounds * each + 1))
    assert server.wait_for_events(len(numbers), CHILD_SECONDS)
    status_when(lambda spool: spool["pending"] == 0)
    (spool,) = spools_of()
    assert min(segment.numbers(f"{spool['path']}/ring")) > 1, "nothing was reclaimed"
    assert tail.end(signal.SIGINT) == ("", "")


def test_tail_says_what_it_could_not_see(
    spawn: Spawn, config: SinkConfig, background: Callable[..., Background]
) -> None:
    """Segments that came and went while it was stopped are told on stderr; it goes on with the next."""
    worker = spawn(WORKER, settings(config, segment_bytes=4096, spool_max_bytes=1 << 20))
    tell(worker, 1)
    tail = background("tail", "-f", "-n", "1", "--json")
    tail.lines_until("record 0 ")
    tail.process.send_signal(signal.SIGSTOP)
    tell(worker, 500)
    status_when(lambda spool: spool["delivered"] == 501)
    ring = f"{spools_of()[0]['path']}/ring"
    until = time.monotonic() + CHILD_SECONDS
    while len(segment.numbers(ring)) > 1:
        assert time.monotonic() < until, "nothing is reclaimed"
        time.sleep(0.01)
    tail.process.send_signal(signal.SIGCONT)
    assert tail.process.stderr
    assert "came and went unseen" in tail.process.stderr.readline()
    tell(worker, 1)
    tail.lines_until("record 501 ")
    tail.end(signal.SIGINT)


def test_tail_may_be_started_first(config: SinkConfig, background: Callable[..., Background]) -> None:
    """With -f it waits for a spool to come."""
    tail = background("tail", "-f")
    assert tail.process.stderr
    assert "nothing was logged into it yet" in tail.process.stderr.readline()
    external(config).append("at last")
    assert "at last" in tail.line()
    assert tail.end(signal.SIGINT) == ("", "")


@pytest.mark.parametrize("words", [["tail", "-f"], ["tail"]])
def test_a_closed_pipe_ends_tail_quietly(config: SinkConfig, words: list[str]) -> None:
    """As with `| head -1`: code 0 and no traceback, also if no further record ever comes."""
    writer = external(config)
    for _ in range(2_000):
        writer.append("x" * 200)
    process = subprocess.Popen(
        [sys.executable, "-m", "cwsink", *words], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout
    assert process.stderr
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(CHILD_SECONDS) == 0
    assert process.stderr.read() == b""
    process.stderr.close()


# flush


def test_flush_once_delivers_what_dead_workers_left(spawn: Spawn, server: StrictCloudWatch, config: SinkConfig) -> None:
    """Everything a killed worker appended arrives, once and in order; a second run finds nothing."""
    leave_behind(spawn, config, 5_000)
    done = cwsink("flush", "--once")
    assert "delivered 5,000 records" in done.stdout
    assert done.stderr == ""
    assert [message.split()[1] for message in server.messages()] == [str(number) for number in range(5_000)]
    assert "nothing was pending" in cwsink("flush", "--once").stdout
    assert spools_of()[0]["state"] == "idle"


def test_flush_once_gives_up(config: SinkConfig, nobody_listens: str) -> None:
    """An endpoint that refuses: code 1, and how many records stay. They do stay."""
    writer = external(config, endpoint_url=nobody_listens)
    for _ in range(5):
        writer.append("x")
    done = cwsink("flush", "--once", "--timeout", 1, code=1)
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"cwsink: 5 records stay in {writer.directory.path}: not delivered within 1.0 s.")
    assert spools_of()[0]["pending"] == 5


def test_flush_once_says_why_it_gives_up(
    config: SinkConfig, nobody_listens: str, background: Callable[..., Background]
) -> None:
    """The reason is the leader's last error and what it means, whoever leads."""
    writer = external(config, endpoint_url=nobody_listens)
    writer.append("x")
    background("flush")
    status_when(lambda spool: spool["state"] == "retrying")
    last = cwsink("flush", "--once", "--timeout", 0.5, code=1).stderr.splitlines()[-1]
    for words in ("1 record stays in", "EndpointConnectionError", "is the network up"):
        assert words in last


def test_flush_once_lets_the_leader_do_it(spawn: Spawn, server: StrictCloudWatch, config: SinkConfig) -> None:
    """With a flusher leading it waits until everything is delivered, and never takes over."""
    server.faults.latency_seconds = 0.5
    worker = spawn(WORKER, settings(config))
    tell(worker, 2_000)
    status_when(lambda spool: spool["leader"] is not None)
    cwsink("flush", "--once")
    assert len(server.messages()) == 2_000
    assert set(server.summary()["epochs"]) == {"1"}


def test_flush_once_is_not_fooled_by_a_stopped_leader(spawn: Spawn, config: SinkConfig) -> None:
    """A leader that is stopped delivers nothing: code 1, and stderr names it."""
    worker = spawn(WORKER, settings(config))
    tell(worker, 1)
    flusher = status_when(lambda spool: spool["delivered"] == 1)["leader"]["pid"]
    with stopped(flusher):
        external(config).append("x")
        done = cwsink("flush", "--once", "--timeout", 1, code=1)
        assert "1 record stays in" in done.stderr
        assert f"pid {flusher}" in done.stderr
        assert "stopped process" in done.stderr
    status_when(lambda spool: spool["delivered"] == 2)


@pytest.mark.parametrize(
    "words",
    [
        *[[name, "--listen", ":0"] if name == "metrics" else [name] for name, row in COMMANDS.items() if row.has_path],
        ["replay", "--dead-letters", "--clear"],
        ["export", "-o"],
        ["metrics", "--textfile"],
        ["run", "--spool"],
    ],
    ids=" ".join,
)
def test_an_empty_path_is_wrong_usage(config: SinkConfig, words: list[str]) -> None:
    """It is a variable of a shell that is not set. To take it for all spools would send, or throw away, too much."""
    letters = DeadLetters(external(config).directory.dead_letters)
    letters.add("poison", "y", [Event(time.time_ns() // 10**6, 7, 0, "z")])
    done = cwsink(*words, "", code=2)
    assert "it is empty. Give a path, or leave the argument out for the default" in done.stderr
    assert done.stdout == ""
    assert len(letters.read().letters) == 1


def test_replay_is_not_fooled_by_a_stopped_leader(spawn: Spawn, config: SinkConfig) -> None:
    """A leader that is stopped sends nothing, so its spool is not well looked after: code 1, and stderr names it."""
    worker = spawn(WORKER, settings(config))
    tell(worker, 1)
    found = status_when(lambda spool: spool["delivered"] == 1)
    flusher, path = found["leader"]["pid"], found["path"]
    with stopped(flusher):
        writer = external(config)
        writer.append("x")
        stopped_process = f"he leader (pid {flusher} on {socket.gethostname()}) is a stopped process."
        done = cwsink("replay", path, code=1)
        assert done.stderr.startswith(f"cwsink: 1 record stays in {path}: T{stopped_process} `kill -CONT {flusher}`")
        assert "leads and sends" not in done.stdout
        assert f"would be left alone, because t{stopped_process}" in cwsink("replay", path, "--dry-run").stdout
        DeadLetters(writer.directory.dead_letters).add("oversize", "y", [Event(time.time_ns() // 10**6, 7, 0, "z")])
        assert f"T{stopped_process}" in cwsink("replay", "--dead-letters", path).stdout
    status_when(lambda spool: spool["delivered"] == 3)


def test_flush_runs_until_ctrl_c_and_drains(
    server: StrictCloudWatch, config: SinkConfig, background: Callable[..., Background]
) -> None:
    """Started before any spool is there, it leads what comes; on Ctrl-C what is pending is sent at once."""
    flusher = background("flush")
    assert "waiting for the first worker" in flusher.line()
    writer = external(config, batch_timeout_seconds=600)
    # First it leads, then it is logged: what a leader finds when it begins is sent at once.
    # It has the lease a moment before leader.json says which kind of leader it is.
    leader = status_when(lambda spool: spool["leader"] and spool["leader"]["kind"] != "unknown")["leader"]
    assert (leader["pid"], leader["kind"]) == (flusher.process.pid, "service")
    for number in range(10):
        writer.append(f"record {number}")
    assert status_when(lambda spool: spool["pending"] == 10)["delivered"] == 0
    out, err = flusher.end(signal.SIGINT)
    assert "told to end; delivering what is there" in out
    assert "10 records delivered" in out
    assert err == ""
    assert server.messages() == [f"record {number}" for number in range(10)]


def test_flush_that_cannot_drain_says_so(
    config: SinkConfig, nobody_listens: str, background: Callable[..., Background]
) -> None:
    """On TERM with CloudWatch out of reach: code 1 and how many records stay, soon."""
    writer = external(config, endpoint_url=nobody_listens)
    writer.append("x")
    flusher = background("flush", "--timeout", "0.5")
    status_when(lambda spool: spool["state"] == "retrying")
    _, err = flusher.end(signal.SIGTERM, code=1)
    assert f"1 record stays in {writer.directory.path}" in err


def test_flush_takes_over_when_the_flusher_dies(
    spawn: Spawn, server: StrictCloudWatch, config: SinkConfig, background: Callable[..., Background]
) -> None:
    """Beside a flusher that leads it stands by; once that and its guard are killed it delivers, and workers start
    no other."""
    worker = spawn(WORKER, settings(config))
    tell(worker, 1)
    own = status_when(lambda spool: spool["delivered"] == 1)["leader"]["pid"]
    service = background("flush")
    assert "standing for election" in service.line()
    for pid in (parent_of(own), own):
        os.kill(pid, signal.SIGKILL)
    spool = status_when(lambda spool: spool["leader"] and spool["leader"]["pid"] != own)
    assert spool["leader"]["pid"] == service.process.pid
    tell(worker, 1)
    assert server.wait_for_events(2, CHILD_SECONDS)
    spool = status_when(lambda spool: spool["delivered"] == 2)
    assert spool["leader"]["pid"] == service.process.pid
    service.end(signal.SIGINT)


# Prints which of the heavy packages a command loaded.
LOADED = """
    import sys
    from cwsink.cli import main

    code = main(sys.argv[1:])
    print("loaded", *sorted({"boto3", "botocore", "fapilog", "rich"} & set(sys.modules)))
    sys.exit(code)
"""


def test_what_a_command_loads(spawn: Spawn, config: SinkConfig) -> None:
    """Looking loads nothing heavy; flushing loads botocore only once it leads, boto3 and fapilog never."""
    writer = external(config)
    writer.append("x")
    for words in (["status", "--json"], ["tail"]):
        assert finish(spawn(LOADED, *words)).splitlines()[-1] == "loaded"
    lease = Lease(writer.directory)
    assert lease.try_acquire()
    assert finish(spawn(LOADED, "flush", "--once", "--timeout", "1"), code=1).splitlines()[-1] == "loaded"
    lease.release()
    assert finish(spawn(LOADED, "flush", "--once")).splitlines()[-1] == "loaded botocore"


@pytest.mark.parametrize("command", [[], *([name] for name in COMMANDS)])
def test_every_command_has_help(command: list[str]) -> None:
    """--help prints usage and examples, and is code 0."""
    shown = cwsink(*command, "--help")
    assert shown.stdout.startswith("usage: cwsink")
    assert shown.stderr == ""


def test_usage_errors_and_the_version() -> None:
    """Wrong words are code 2, and so is no word at all."""
    assert cwsink("--version").stdout == f"cwsink {__version__}\n"
    for words in ([], ["frobnicate"], ["status", "--frobnicate"], ["tail", "--level", "LOUD"]):
        assert "usage: cwsink" in cwsink(*words, code=2).stderr
    for command in ("tail", "export", "verify"):
        assert "no event is both" in cwsink(command, "--since", "1m", "--until", "2h", code=2).stderr
    assert "'120%' is more than 100%" in cwsink("check", "--max-fill", "120%", code=2).stderr


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("words", [["status"], ["status", "--json"], ["tail"]])
def test_output_that_cannot_be_written_is_one_line(config: SinkConfig, words: list[str]) -> None:
    """A full disk behind stdout: code 1 and the reason, no traceback."""
    external(config).append("x")
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cwsink", *words], env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "cwsink: [Errno 28] No space left on device\n"


def test_a_wrong_setting_is_one_line(config: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A spool of an older cwsink says nothing of how to send: variables do, and an error in them has no traceback."""
    writer = external(config)
    writer.append("x")
    os.unlink(writer.directory.sending)
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__BATCH_SIZE", "many")
    done = cwsink("flush", "--once", code=1)
    (line,) = done.stderr.splitlines()
    assert writer.directory.path in line
    assert "batch_size='many'" in line


def test_settings_that_cannot_be_used_are_one_line(server: StrictCloudWatch, config: SinkConfig) -> None:
    """A wrong value in settings.json: the records are delivered with defaults, and stderr names the file."""
    writer = external(config)
    writer.append("x")
    path = Path(writer.directory.sending)
    left = json.loads(path.read_text())
    path.write_text(json.dumps({**left, "settings": {**left["settings"], "batch_size": "many"}}))
    done = cwsink("flush", "--once")
    (line,) = done.stderr.splitlines()
    assert str(path) in line
    assert "batch_size='many'" in line
    assert server.messages() == ["x"]


def test_flush_sends_as_the_newest_writer_says(
    server: StrictCloudWatch, config: SinkConfig, background: Callable[..., Background]
) -> None:
    """A leader takes new settings from the spool at once, and `status` shows them and whose they are."""
    patient = external(config, batch_timeout_seconds=600)
    service = background("flush")
    spool = status_when(lambda spool: spool["leader"] is not None)
    assert spool["settings"]["batch_timeout_seconds"] == 600
    patient.append("waits for more")  # what a leader finds when it begins, it sends at once
    assert status_when(lambda spool: spool["pending"] == 1)["leader"] is not None
    hasty = external(config)
    assert server.wait_for_events(1, CHILD_SECONDS)
    spool = status_when(lambda spool: spool["pending"] == 0)
    assert spool["settings"]["batch_timeout_seconds"] == config.batch_timeout_seconds
    assert spool["settings_from"] == f"{socket.gethostname()}/{os.getpid()}"
    assert f"batch_timeout_seconds {config.batch_timeout_seconds}" in cwsink("status").stdout
    service.end(signal.SIGINT)
    hasty.close()
