"""One spool, several containers: one leader. Several hosts: one leader still, and a clear line.

Containers are made of what they are made of: namespaces (unshare(1)). Hosts of one network disk
are told apart by the id of their boot, and do not see each other's locks: both are forged with bind mounts
that only the process in question sees.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from msgspec.structs import asdict

from cwsink import Writer, host
from cwsink.cli import main
from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.spool import directory, flusher_lock, heartbeat, leader_state, orphans
from cwsink.spool.directory import SpoolDirectory, find_spools
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, may_unshare

# Appends as many records as each line of stdin says, and answers; ends with stdin.
WORKER = """
    import json, os, sys
    from cwsink import SinkConfig, Writer
    writer = Writer(SinkConfig(**json.loads(sys.argv[1])))
    count = 0
    print(os.getpid(), flush=True)
    for line in sys.stdin:
        for _ in range(int(line)):
            assert writer.append(f"{sys.argv[2]} {count}")
            count += 1
        print("done", flush=True)
"""

FORGED = """
    hostname web-2
    mount --bind "$1" /proc/sys/kernel/random/boot_id
    mount --bind "$2" "$3"
    mount --bind "$4" "$5"
    mount --bind "$6" "$7"
    shift 7
    exec "$@"
"""


def needs(*flags: str) -> None:
    if not may_unshare(*flags):
        pytest.skip(f"unshare {' '.join(flags)} is not permitted here (needs root, or user namespaces)")


class Container:
    """A worker with namespaces of its own.

    `name` is in its messages, and in the User-Agent of the requests of a flusher that it has started: pids say nothing.
    """

    def __init__(self, name: str, config: SinkConfig, script: Path, *before: str) -> None:
        given = {key: value for key, value in asdict(config).items() if value is not None}
        self.process = subprocess.Popen(
            ["unshare", *before, sys.executable, str(script), json.dumps(given), name],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "AWS_SDK_UA_APP_ID": name},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        self.pid = int(self._answer())

    def append(self, records: int) -> None:
        """Have it append, and wait until it has."""
        assert self.process.stdin
        self.process.stdin.write(f"{records}\n")
        self.process.stdin.flush()
        assert self._answer() == "done"

    def kill(self) -> None:
        """SIGKILL it, and all that is in its pid namespace."""
        self._kill_all()
        self.process.wait(CHILD_SECONDS)

    def end(self) -> str:
        """Have it exit by itself; return its stderr."""
        _, err = self.process.communicate(timeout=CHILD_SECONDS)
        assert self.process.returncode == 0, err
        return err

    def close(self) -> None:
        """Reap it, also if the test failed."""
        if self.process.poll() is None:
            self.kill()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def _kill_all(self) -> None:
        # The first process of a pid namespace takes all others with it; it is unshare's child, if it forked.
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        for pid in [*map(int, path.read_text().split()), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _answer(self) -> str:
        assert self.process.stdout
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        return line.strip()


Start = Callable[..., Container]


@pytest.fixture
def start(tmp_path: Path, config: SinkConfig) -> Iterator[Start]:
    """Start containers that are reaped at the end."""
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    running: list[Container] = []

    def begin(name: str, *before: str, **changes: object) -> Container:
        running.append(Container(name, SinkConfig(**{**asdict(config), **changes}), script, *before))
        return running[-1]

    yield begin
    for each in running:
        each.close()


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def app_of(user_agent: str) -> str:
    return user_agent.partition(" app/")[2].partition(" ")[0]


def senders(server: StrictCloudWatch) -> dict[int, set[str]]:
    """Which containers sent in each epoch."""
    found: dict[int, set[str]] = {}
    for request in server.requests:
        found.setdefault(request.epoch or 0, set()).add(app_of(request.user_agent))
    return found


def leader_of(server: StrictCloudWatch) -> str:
    return app_of(server.requests[-1].user_agent)


# Containers.

PID_NAMESPACE = ("-p", "-f", "--mount-proc", "--kill-child")


def test_containers_with_equal_pids_share_one_leader(server: StrictCloudWatch, start: Start) -> None:
    """Each is pid 1 of its own: the flusher of one sends. Its container is killed as a whole: the other one, when it
    logs, starts its own."""
    needs(*PID_NAMESPACE)
    containers = {name: start(name, *PID_NAMESPACE) for name in ("first", "second")}
    assert [each.pid for each in containers.values()] == [1, 1]
    for each in containers.values():
        each.append(100)
    assert server.wait_for_events(200, CHILD_SECONDS)
    (leaders,) = senders(server).values()
    assert len(leaders) == 1
    victim = containers.pop(leader_of(server))
    (other,) = containers.values()
    victim.append(100)
    victim.kill()
    appended = 300

    def is_delivered() -> bool:
        nonlocal appended
        other.append(1)
        appended += 1
        return len(set(server.messages())) >= appended - 1

    until(is_delivered, "the other one's flusher takes over")
    assert server.wait_for(lambda s: len(set(s.messages())) == appended, CHILD_SECONDS)
    by_epoch = senders(server)
    assert all(len(each) == 1 for each in by_epoch.values()), by_epoch
    assert by_epoch[max(by_epoch)] != leaders
    twice = len(server.messages()) - appended
    assert twice <= max(request.events for request in server.requests)  # at most the batch in flight
    other.end()


def test_the_last_container_out_drains(server: StrictCloudWatch, start: Start, config: SinkConfig) -> None:
    """Who is left is known across pid namespaces: neither leaves the rest to one that is gone."""
    needs(*PID_NAMESPACE)
    first, second = (start(name, *PID_NAMESPACE, batch_timeout_seconds=30.0) for name in ("first", "second"))
    first.append(50)
    second.append(50)
    first.end()
    second.append(50)
    second.end()
    assert Counter(server.messages()).total() == 150
    assert not orphans.is_orphan(directory.open_for(config))


def test_an_own_host_name_makes_an_own_spool_unless_the_stream_is_named(server: StrictCloudWatch, start: Start) -> None:
    """By "{hostname}" each container has its stream and its spool; with a name they share both. One flusher sends all,
    to each stream what is meant for it, whatever its own host name is."""
    needs("-u")
    named = ("-u", "sh", "-c", 'hostname web-2 && exec "$@"', "-")
    here = socket.gethostname()
    own = [start("a", "-u", log_stream_name="{hostname}"), start("b", *named, log_stream_name="{hostname}")]
    shared = [start("c", "-u", log_stream_name="fleet"), start("d", *named, log_stream_name="fleet")]
    for each in (*own, *shared):
        each.append(20)
    assert server.wait_for_events(80, CHILD_SECONDS)
    assert len(find_spools()) == 3
    by_stream = {
        stream: {message.split()[0] for message in server.messages(stream=stream)}
        for stream in (here, "web-2", "fleet")
    }
    assert by_stream == {here: {"a"}, "web-2": {"b"}, "fleet": {"c", "d"}}
    assert len({app_of(request.user_agent) for request in server.requests}) == 1
    for each in (*own, *shared):
        each.end()


# Hosts.


@pytest.fixture
def other_host(tmp_path: Path, config: SinkConfig, start: Start) -> Callable[[], Container]:
    """Start a worker on the same spool that has another boot id and host name, and sees none of our locks."""
    needs("-m", "-u")
    spool = directory.open_for(config)
    boot_id = tmp_path / "boot_id"
    boot_id.write_text("11111111-2222-3333-4444-555555555555\n")
    mounts = [str(boot_id)]
    for name in (spool.leader_lock, spool.attached_lock, flusher_lock.path_of(spool.root)):
        Path(name).touch(0o600)
        mounts += [str(tmp_path / os.path.basename(name)), name]
        Path(mounts[-2]).touch(0o600)

    def begin() -> Container:
        forge = ("sh", "-ec", textwrap.dedent(FORGED), "-", *mounts)
        return start("there", "-m", "-u", *forge)

    return begin


def test_two_hosts_do_not_both_lead(
    server: StrictCloudWatch, config: SinkConfig, start: Start, other_host: Callable[[], Container], tmp_path: Path
) -> None:
    """Each is granted the lease. The second appends, does not send, says why, and takes over when the first is dead."""
    there = other_host()
    there.append(100)
    assert server.wait_for_events(100, CHILD_SECONDS)
    spool = directory.open_for(config)
    claim = Lease(spool)
    assert not claim.try_acquire()  # though nobody here has the lock
    here = start("here", "-u")
    for _ in range(5):
        here.append(20)
        time.sleep(0.3)  # longer than between two tries for the lease
    assert server.wait_for_events(200, CHILD_SECONDS)
    assert senders(server) == {1: {"there"}}
    published = leader_state.read(spool)
    assert published is not None
    there.kill()
    for pid in (parent_of(published.pid), published.pid):  # its guard first
        os.kill(pid, signal.SIGKILL)
    until(lambda: not os.path.exists(f"/proc/{published.pid}"), "its flusher is dead")
    os.utime(spool.leader_host, (time.time() - heartbeat.FRESH_SECONDS - 1,) * 2)
    here.append(100)
    assert server.wait_for_events(300, CHILD_SECONDS)
    assert senders(server) == {1: {"there"}, 2: {"here"}}
    assert len(set(server.messages())) == len(server.messages()) == 300
    err = here.end()
    said = f"host web-2 (boot 11111111) leads {spool.path}, as of "
    assert err.count(said) == 1
    assert f"and this is host {socket.gethostname()} (boot {host.boot_id()[:8]})" in err
    assert "Two hosts must not share a spool" in err


def test_a_host_that_leaves_in_order_holds_nobody_up(
    server: StrictCloudWatch, config: SinkConfig, start: Start, other_host: Callable[[], Container]
) -> None:
    """Its mark goes with its flusher."""
    there = other_host()
    there.append(10)
    assert server.wait_for_events(10, CHILD_SECONDS)
    there.end()
    until(lambda: not os.path.exists(directory.open_for(config).leader_host), "the mark is gone")
    claim = Lease(directory.open_for(config))
    assert claim.try_acquire()
    claim.release()


@pytest.fixture
def spool(config: SinkConfig) -> SpoolDirectory:
    return directory.open_for(SinkConfig(**{**asdict(config), "flusher": "external"}))


def mark(spool: SpoolDirectory, *, age_seconds: float, boot_id: str = "another-boot") -> None:
    """Leave the mark of a leader of another boot."""
    path = Path(spool.leader_host)
    path.write_text(json.dumps({"boot_id": boot_id, "host": "web-2", "later_versions": "may add"}))
    os.utime(path, (time.time() - age_seconds,) * 2)


def can_lead(spool: SpoolDirectory) -> bool:
    claim = Lease(spool)
    try:
        return claim.try_acquire()
    finally:
        claim.release()


@pytest.mark.parametrize(
    ("age_seconds", "uptime_seconds", "leads"),
    [
        (1.0, 1e6, False),
        (heartbeat.FRESH_SECONDS - 2, 1e6, False),
        (heartbeat.FRESH_SECONDS + 1, 1e6, True),  # it is dead
        (3.0, 2.0, True),  # a quick reboot: that beat was this host's own, before
        (1.0, 30.0, False),  # this host is up for longer than that: it was not
        (-5.0, 1e6, False),  # clocks differ a little
        (-1e9, 1e6, True),  # a time that makes no sense must not hold up anybody for ever
    ],
)
def test_only_a_fresh_beat_since_our_own_boot_counts(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch, age_seconds: float, uptime_seconds: float, leads: bool
) -> None:
    """A reboot, a volume that moved, a wrong clock: whoever can be proven dead is not waited for."""
    monkeypatch.setattr(host, "uptime_seconds", lambda: uptime_seconds)
    mark(spool, age_seconds=age_seconds)
    assert can_lead(spool) is leads
    assert (heartbeat.elsewhere(spool) is None) is leads


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff" * 5_000, b"[" * 4_000, b'{"boot_id": 7}'])
def test_a_damaged_mark_holds_up_nobody(spool: SpoolDirectory, content: bytes) -> None:
    """Nothing on disk keeps a host from leading for good, and this not at all."""
    Path(spool.leader_host).write_bytes(content)
    assert can_lead(spool)


def test_containers_have_their_hosts_boot_id(spool: SpoolDirectory) -> None:
    """The mark of a container that was killed does not hold up the next one."""
    assert host.boot_id() == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert 0 < host.uptime_seconds() < 1e10
    mark(spool, age_seconds=0.0, boot_id=host.boot_id())
    assert can_lead(spool)


def test_a_host_without_a_boot_id_leads(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it cannot be known nothing is written, and nobody is refused."""
    mark(spool, age_seconds=0.0)
    monkeypatch.setattr(host, "boot_id", lambda: "")
    assert can_lead(spool)
    assert json.loads(Path(spool.leader_host).read_text())["boot_id"] == "another-boot"


def test_a_leader_beats_and_leaves_no_mark(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file is touched while the lease is held, written anew if it was removed, gone in the end."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.0)
    path = Path(spool.leader_host)
    claim = Lease(spool)
    assert claim.try_acquire()
    assert json.loads(path.read_text()) == {"boot_id": host.boot_id(), "host": socket.gethostname()}
    assert path.stat().st_mode & 0o777 == 0o600
    os.utime(path, (1, 1))
    claim.beat()
    assert path.stat().st_mtime > 1
    path.unlink()
    claim.beat()
    assert path.exists()
    claim.release()
    assert not path.exists()


def test_a_superseded_leader_leaves_the_others_mark(spool: SpoolDirectory) -> None:
    """It takes away no mark but its own."""
    claim = Lease(spool)
    assert claim.try_acquire()
    mark(spool, age_seconds=0.0)
    claim.release()
    assert Path(spool.leader_host).exists()


def test_while_another_host_leads_records_are_appended(
    config: SinkConfig, spool: SpoolDirectory, server: StrictCloudWatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Nothing is refused or lost meanwhile; status and replay name the host; afterwards all is sent."""
    mark(spool, age_seconds=0.0)
    writer = Writer(config)
    assert all(writer.append(f"meanwhile {number}") for number in range(100))
    until(lambda: "leads" in capfd.readouterr().err, "it is said why nothing is sent")
    assert main(["status"]) == 0
    out = " ".join(capfd.readouterr().out.split())
    assert "Host web-2 leads this spool, and sends them. Two hosts must not share a spool." in out
    assert main(["replay", spool.path]) == 0
    assert "left alone, because host web-2 leads and sends it." in capfd.readouterr().out
    assert server.requests == []
    mark(spool, age_seconds=heartbeat.FRESH_SECONDS + 1)
    assert writer.flush(CHILD_SECONDS)
    assert server.messages() == [f"meanwhile {number}" for number in range(100)]
