"""Every way in which processes begin and end: what was appended is delivered, and the exit is bounded.

Each test runs real programs against the strict server; "delivered" means: when the last of them has ended.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable

import pytest
from msgspec.structs import asdict

from cwsink import Writer
from cwsink.config import SinkConfig, load_config
from cwsink.spool import directory, leader_state
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.nursery import Nursery
from tests.support import finish, quick_config

HANG_SECONDS = 30.0

PRELUDE = """
import atexit, json, multiprocessing, os, sys, threading, time
from concurrent.futures import ProcessPoolExecutor
from cwsink import Writer

settings = json.loads(os.environ["SETTINGS"])

def burst(name, count=50, writer=None):
    writer = writer or Writer.open(settings)
    for number in range(count):
        assert writer.append(f"{name}-{number}")

def reap(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""


def settings_of(config: SinkConfig) -> dict[str, object]:
    return {name: value for name, value in asdict(config).items() if value is not None}


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    """Nothing is sent before the end, unless it comes more than 20 s later."""
    return quick_config(server.endpoint_url, batch_timeout_seconds=20.0, batch_size=10_000)


@pytest.fixture
def run(spawn: Spawn, config: SinkConfig) -> Callable[..., str]:
    """Run a program to its end; returns its stdout."""

    def run_program(body: str, *, code: int = 0) -> str:
        return finish(spawn(PRELUDE + body, env={"SETTINGS": json.dumps(settings_of(config))}), code=code)

    return run_program


Run = Callable[..., str]


def bursts(*names: str, count: int = 50) -> Counter[str]:
    return Counter(f"{name}-{number}" for name in names for number in range(count))


# Endings of a single program.


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("pass", 0),
        ("sys.exit(7)", 7),
        ("raise SystemExit('no')", 1),
        ("try: os.kill(os.getpid(), 2); time.sleep(60)\nexcept KeyboardInterrupt: sys.exit(130)", 130),
    ],
    ids=["plain", "sys.exit", "SystemExit", "interrupt"],
)
def test_the_only_process_drains_at_exit(server: StrictCloudWatch, run: Run, ending: str, code: int) -> None:
    """A plain end, sys.exit and Ctrl-C: every record is delivered when the process has ended."""
    run(f"burst('a')\n{ending}\n", code=code)
    assert server.messages() == list(bursts("a"))


def test_an_uncaught_exception_is_delivered_with_what_came_before(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """A program that dies of an exception has logged it in sys.excepthook: all of it arrives."""
    child = spawn(
        PRELUDE + "burst('a')\n"
        "sys.excepthook = lambda kind, error, trace: Writer.open(settings).append(repr(error))\n"
        "raise ValueError('on purpose')\n",
        env={"SETTINGS": json.dumps(settings_of(config))},
    )
    finish(child, code=1)
    assert server.messages() == [*bursts("a"), "ValueError('on purpose')"]


@pytest.mark.parametrize("ending", ["os._exit(0)", "os.kill(os.getpid(), 9)", "os.abort()"])
def test_a_process_without_an_exit_leaves_its_records_in_the_spool(
    server: StrictCloudWatch, run: Run, config: SinkConfig, ending: str
) -> None:
    """os._exit, SIGKILL and abort right after append: the records are there, and the next process delivers them."""
    run(f"burst('a')\n{ending}\n", code={"os._exit(0)": 0, "os.abort()": -6}.get(ending, -9))
    assert survey(directory.open_for(config)).pending == 50
    assert server.messages() == []
    run("burst('b')\n")
    assert Counter(server.messages()) == bursts("a", "b")


def test_records_of_an_atexit_handler_are_delivered(server: StrictCloudWatch, run: Run) -> None:
    """An atexit handler that was registered after the first record may still log."""
    run("burst('a')\natexit.register(burst, 'b')\n")
    assert server.messages() == [*bursts("a"), *bursts("b")]


def test_the_first_record_may_come_at_exit(server: StrictCloudWatch, run: Run) -> None:
    """A program that opened a writer and logs for the first time in an atexit handler: delivered."""
    run("writer = Writer.open(settings)\natexit.register(burst, 'a', writer=writer)\n")
    assert server.messages() == list(bursts("a"))


# Forks.


def test_children_by_fork_deliver_and_leave(server: StrictCloudWatch, run: Run) -> None:
    """Forked before and after the first append, twice, ended by exit and os._exit: each record arrives once."""
    run("""
writer = Writer.open(settings)
if (early := os.fork()) == 0:
    burst("early", writer=writer)
    sys.exit()
reap(early)
burst("parent", writer=writer)
if (late := os.fork()) == 0:
    burst("late", writer=writer)
    sys.exit()
if (hasty := os.fork()) == 0:
    burst("hasty", writer=writer)
    os._exit(0)
if (outer := os.fork()) == 0:
    burst("outer", writer=writer)
    if (inner := os.fork()) == 0:
        burst("inner", writer=writer)
        sys.exit()
    reap(inner)
    sys.exit()
for pid in (late, hasty, outer):
    reap(pid)
burst("again", writer=writer)
""")
    assert Counter(server.messages()) == bursts("early", "parent", "late", "hasty", "outer", "inner", "again")


def test_children_that_outlive_their_parent_deliver(server: StrictCloudWatch, run: Run) -> None:
    """A daemon (double fork) logs after the program that made it has ended: its records arrive."""
    run("""
writer = Writer.open(settings)
burst("parent", writer=writer)
reader, gate = os.pipe()
if (outer := os.fork()) == 0:
    if os.fork() == 0:
        os.close(gate)
        os.read(reader, 1)  # until the parent has ended
        burst("daemon", writer=writer)
        sys.exit()
    os._exit(0)
reap(outer)
""")
    assert server.wait_for_events(100, HANG_SECONDS)
    assert Counter(server.messages()) == bursts("parent", "daemon")


def test_a_fork_waits_until_the_leader_has_its_client(run: Run) -> None:
    """A child forked while OpenSSL's locks are held would hang when it makes its own client, with the lease."""
    run("""
from cwsink.flusher.cloudwatch import CloudWatch

connecting, connected = threading.Event(), threading.Event()
connect = CloudWatch._connect

def connect_slowly(self):
    connecting.set()
    time.sleep(0.3)
    client = connect(self)
    connected.set()
    return client

CloudWatch._connect = connect_slowly
burst("parent")
assert connecting.wait(30)
pid = os.fork()
if pid == 0:
    os._exit(0 if connected.is_set() else 1)
reap(pid)
""")


@pytest.mark.parametrize("module", ["cwsink.flusher.delivery", "boto3.session", "botocore.parsers"])
def test_a_fork_waits_for_an_import_of_the_leader(server: StrictCloudWatch, run: Run, module: str) -> None:
    """A child forked while the leader imports would inherit half a module, and could never lead itself."""
    run(f"""
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == {module!r}:
            importing.set()
            time.sleep(0.3)

importing = threading.Event()
sys.meta_path.insert(0, Slow())
writer = Writer.open(settings)
reader, gate = os.pipe()
assert writer.append("parent")
assert importing.wait(30)
if os.fork() == 0:
    os.close(gate)
    os.read(reader, 1)  # until the parent has ended
    burst("child", writer=writer)
    sys.exit()
""")
    assert Counter(server.messages()) == bursts("child") + Counter(["parent"])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
@pytest.mark.parametrize("parent", ["silent", "logging"])
def test_children_of_multiprocessing_deliver(server: StrictCloudWatch, run: Run, method: str, parent: str) -> None:
    """multiprocessing ends its children past atexit: their records arrive, whether the parent has logged or not."""
    run(f"""
if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    if {parent == "logging"}:
        burst("parent")
    children = [context.Process(target=burst, args=(name,)) for name in "abc"]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
""")
    assert Counter(server.messages()) == bursts(*(["parent"] if parent == "logging" else []), *"abc")


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_fapilog_in_children_of_multiprocessing_delivers(server: StrictCloudWatch, spawn: Spawn, method: str) -> None:
    """A child that logs through fapilog and ends at once, before the pipeline has written: its records arrive."""
    code = f"""
import multiprocessing
import cwsink, fapilog

def work(name):
    cwsink.install()
    settings = fapilog.Settings()
    settings.core.sinks = ["cloudwatch"]
    settings.sink_config.cloudwatch.log_group_name = "/test/group"
    logger = fapilog.get_logger(settings=settings)
    for number in range(50):
        logger.info(f"{{name}}-{{number}}")

if __name__ == "__main__":
    context = multiprocessing.get_context({method!r})
    children = [context.Process(target=work, args=(name,)) for name in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
"""
    finish(spawn(code, env=server.environment()))
    assert Counter(json.loads(message)["message"] for message in server.messages()) == bursts("a", "b")


def test_a_process_pool_delivers(server: StrictCloudWatch, run: Run) -> None:
    """Tasks of a ProcessPoolExecutor log, the parent does not: all of it arrives."""
    run("""
if __name__ == "__main__":
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(burst, "abcdef"))
""")
    assert Counter(server.messages()) == bursts(*"abcdef")


# Leaving.


def leave_together(settings: dict[str, object], name: str, gate: str) -> None:
    """Append, wait until the gate is there, and exit."""
    writer = Writer(load_config(settings))
    for number in range(50):
        writer.append(f"{name}-{number}")
    while not os.path.exists(gate):
        time.sleep(0.001)


def test_of_processes_that_leave_at_once_one_stays_to_drain(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, tmp_path: os.PathLike[str]
) -> None:
    """Four workers that end in the same moment, five times: no round leaves a record behind."""
    nursery = Nursery(spawn, leave_together)
    for round_ in range(5):
        gate = os.path.join(tmp_path, f"gate{round_}")
        names = [f"{round_}.{worker}" for worker in range(4)]
        pids = [nursery.fork(settings_of(config), name, gate) for name in names]
        spool = directory.open_for(config)
        until = time.monotonic() + HANG_SECONDS
        while survey(spool).appended < 200 * (round_ + 1):
            assert time.monotonic() < until
            time.sleep(0.01)
        open(gate, "w").close()
        assert [nursery.wait(pid) for pid in pids] == [0] * 4
        books = survey(spool)
        assert (books.pending, books.delivered) == (0, 200 * (round_ + 1))
    assert len(server.messages()) == 1_000


def test_who_is_not_the_last_one_leaves_without_draining(
    server: StrictCloudWatch, spawn: Spawn, run: Run, config: SinkConfig
) -> None:
    """While another process is attached, an exit does not wait for CloudWatch, even that of the leader."""
    server.faults.hang(60.0, 1_000)
    leader = spawn(
        PRELUDE + "burst('leader')\nprint('ready', flush=True)\nsys.stdin.read()\n",
        env={"SETTINGS": json.dumps({**settings_of(config), "batch_timeout_seconds": 0.1, "read_timeout_seconds": 60})},
    )
    assert leader.stdout is not None
    assert leader.stdin is not None
    leader.stdout.readline()
    assert server.wait_for(lambda s: s.calls["PutLogEvents"] > 0, HANG_SECONDS)
    writer = Writer(config)
    assert writer.append("another process is here")
    began = time.monotonic()
    leader.stdin.close()
    assert leader.wait(HANG_SECONDS) == 0
    print(f"the leader left {1000 * (time.monotonic() - began):.0f} ms after it was told to, with a request out")
    assert time.monotonic() - began < config.drain_timeout_seconds / 2
    began = time.monotonic()
    run("import time\nburst('follower')\n")
    assert time.monotonic() - began < config.drain_timeout_seconds / 2
    server.faults.clear()
    assert writer.flush(HANG_SECONDS)
    assert set(server.messages()) == {"another process is here", *bursts("leader", "follower")}


def test_the_last_one_out_gives_up_after_its_drain_timeout(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """The endpoint answers nothing: the exit takes the drain timeout and hardly more; the records stay."""
    server.faults.hang(60.0, 1_000)
    settings = {**settings_of(config), "drain_timeout_seconds": 1.0, "read_timeout_seconds": 60.0}
    child = spawn(
        PRELUDE + "import boto3\nburst('a')\nprint(flush=True)\nsys.stdin.read()\n",
        env={"SETTINGS": json.dumps(settings)},
    )
    assert child.stdout is not None
    assert child.stdin is not None
    child.stdout.readline()
    child.stdin.close()
    began = time.monotonic()
    assert child.wait(HANG_SECONDS) == 0
    took = time.monotonic() - began
    print(f"exit with an endpoint that answers nothing: {took:.2f} s, drain_timeout_seconds=1")
    assert 0.9 < took < 20
    assert survey(directory.open_for(config)).pending == 50


# What a worker does not have.

INVENTORY = """
heavy = {"boto3", "botocore", "fapilog", "filelock", "cwsink.flusher.flusher"}
print(json.dumps({"threads": len(os.listdir("/proc/self/task")), "modules": sorted(heavy & set(sys.modules))}))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts the kernel's threads in /proc")
def test_an_external_flusher_leaves_the_worker_alone(run: Run, config: SinkConfig, spawn: Spawn) -> None:
    """flusher="external": the worker starts no thread, loads no boto3, and its exit sends nothing."""
    settings = {**settings_of(config), "flusher": "external"}
    child = spawn(PRELUDE + "burst('a')\n" + INVENTORY, env={"SETTINGS": json.dumps(settings)})
    assert json.loads(finish(child)) == {"threads": 1, "modules": []}
    assert survey(directory.open_for(config)).pending == 50
    run("burst('b')\n")
    assert survey(directory.open_for(config)).pending == 0


def test_a_worker_that_does_not_lead_has_no_client(run: Run, config: SinkConfig) -> None:
    """Beside a leader, a worker stands for election and loads neither boto3 nor filelock nor the flusher."""
    writer = Writer(config)
    assert writer.append("the leader")
    spool = directory.open_for(config)
    until = time.monotonic() + HANG_SECONDS
    while leader_state.read(spool) is None:
        assert time.monotonic() < until
        time.sleep(0.01)
    inventory = json.loads(run("burst('a')\ntime.sleep(1)  # what is measured is that nothing happens\n" + INVENTORY))
    assert inventory == {"threads": 2, "modules": []}
    assert leader_state.read(spool).pid == os.getpid()
    assert writer.flush(HANG_SECONDS)


def test_the_default_signals_end_a_process_as_ever(server: StrictCloudWatch, spawn: Spawn, config: SinkConfig) -> None:
    """SIGTERM without a handler kills: our thread does not keep the process, the next one delivers."""
    child = spawn(
        PRELUDE + "burst('a')\nprint(flush=True)\ntime.sleep(60)\n", env={"SETTINGS": json.dumps(settings_of(config))}
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    assert child.wait(HANG_SECONDS) == -signal.SIGTERM
    assert server.messages() == []
    writer = Writer(config)
    assert writer.append("next")
    assert writer.flush(HANG_SECONDS)
    assert set(server.messages()) == {"next", *bursts("a")}
