"""Every way in which processes begin and end: what was appended is delivered, and the exit is bounded.

Each test runs real programs against the strict server. After an exit "delivered" means: when the last of them has
ended. After a process was killed it means: soon, by the flusher it leaves behind, and nobody has to start another one.
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
from cwsink.spool import directory, flusher_lock
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import until
from tests.harness.support import finish, quick_config
from tests.harness.warm_forker import WarmForker

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
def test_a_process_without_an_exit_has_its_records_delivered(
    server: StrictCloudWatch, run: Run, config: SinkConfig, ending: str
) -> None:
    """os._exit, SIGKILL and abort right after append: the flusher it leaves behind delivers, without another start."""
    run(f"burst('a')\n{ending}\n", code={"os._exit(0)": 0, "os.abort()": -6}.get(ending, -9))
    assert server.wait_for_events(50, HANG_SECONDS)
    assert server.messages() == list(bursts("a"))
    until(lambda: survey(directory.open_for(config)).pending == 0, "the delivery is committed")


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
    patient = {"FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": "30"}
    finish(spawn(code, env={**server.environment(), **patient}))
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
    forker = WarmForker(spawn, leave_together)
    for round_ in range(5):
        gate = os.path.join(tmp_path, f"gate{round_}")
        names = [f"{round_}.{worker}" for worker in range(4)]
        pids = [forker.fork(settings_of(config), name, gate) for name in names]
        spool = directory.open_for(config)
        until = time.monotonic() + HANG_SECONDS
        while survey(spool).appended < 200 * (round_ + 1):
            assert time.monotonic() < until
            time.sleep(0.01)
        open(gate, "w").close()
        assert [forker.wait(pid) for pid in pids] == [0] * 4
        books = survey(spool)
        assert (books.pending, books.delivered) == (0, 200 * (round_ + 1))
    assert len(server.messages()) == 1_000


def test_who_is_not_the_last_one_leaves_without_draining(
    server: StrictCloudWatch, spawn: Spawn, run: Run, config: SinkConfig
) -> None:
    """While another process is attached, an exit does not wait for CloudWatch, even of who started the flusher."""
    server.faults.hang(60.0, 1_000)
    first = spawn(
        PRELUDE + "burst('first')\nprint('ready', flush=True)\nsys.stdin.read()\n",
        env={"SETTINGS": json.dumps(settings_of(config))},
    )
    assert first.stdout is not None
    assert first.stdin is not None
    first.stdout.readline()
    assert server.wait_for(lambda s: s.calls["PutLogEvents"] > 0, HANG_SECONDS)
    writer = Writer(config)
    assert writer.append("another process is here")
    began = time.monotonic()
    first.stdin.close()
    assert first.wait(HANG_SECONDS) == 0
    print(f"the first one left {1000 * (time.monotonic() - began):.0f} ms after it was told to, with a request out")
    assert time.monotonic() - began < config.drain_timeout_seconds / 2
    began = time.monotonic()
    run("burst('second')\n")
    assert time.monotonic() - began < config.drain_timeout_seconds / 2
    server.faults.clear()
    assert writer.flush(HANG_SECONDS)
    assert set(server.messages()) == {"another process is here", *bursts("first", "second")}


def test_the_last_one_out_gives_up_after_its_drain_timeout(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig
) -> None:
    """The endpoint answers nothing: the exit takes the drain timeout and hardly more; the records stay."""
    server.faults.hang(60.0, 1_000)
    settings = {**settings_of(config), "drain_timeout_seconds": 1.0, "read_timeout_seconds": 60.0}
    child = spawn(
        PRELUDE + "burst('a')\nprint(flush=True)\nsys.stdin.read()\n",
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

# What an application can see of a library: threads, handlers of signals, modules that are not Python's own, children.
INVENTORY = """
import json, os, signal, sys, threading

def inventory():
    try:
        children = [os.waitpid(-1, os.WNOHANG)]
    except ChildProcessError:
        children = []
    modules = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
    return {
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "kernel's threads": len(os.listdir("/proc/self/task")),
        "signals": {int(each): repr(signal.getsignal(each)) for each in signal.valid_signals()},
        "modules": sorted(modules - {"__main__", "__mp_main__"}),
        "children": children,
    }
"""

# One record, by each front end: the same program with us, and without.
WRITER = """
import cwsink
writer = cwsink.Writer.open(SETTINGS)
assert writer.append("hello")
"""
HANDLER = """
import logging
{install}
logging.getLogger().warning("hello")
"""
SINK = """
import fapilog
{install}
settings = fapilog.Settings()
settings.core.sinks = [{name!r}]
logger = fapilog.get_logger(settings=settings)
logger.info("hello")
"""
PROGRAMS = {
    "writer": ("", WRITER),
    "handler": (
        HANDLER.format(install="logging.getLogger().addHandler(logging.NullHandler())"),
        HANDLER.format(install="import cwsink; logging.getLogger().addHandler(cwsink.SpoolHandler(SETTINGS))"),
    ),
    "sink": (
        SINK.format(install="", name="stdout_json"),
        SINK.format(install="import cwsink; cwsink.install()", name="cloudwatch"),
    ),
}


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="counts the kernel's threads in /proc")
@pytest.mark.parametrize("front_end", PROGRAMS)
@pytest.mark.parametrize("flusher", ["process", "external"])
def test_nothing_of_ours_lives_in_the_application(
    server: StrictCloudWatch, spawn: Spawn, config: SinkConfig, front_end: str, flusher: str
) -> None:
    """No thread more; signal handlers, modules and children as without us, beside cwsink's own few and msgspec."""
    settings = {**settings_of(config), "batch_timeout_seconds": 0.1, "flusher": flusher}
    variables = {f"FAPILOG_CLOUDWATCH__{name.upper()}": str(value) for name, value in settings.items()}
    variables["FAPILOG_CORE__SIGNAL_HANDLER_ENABLED"] = "false"  # fapilog's own handlers, which we turn off
    appended = """
from cwsink.spool import directory, survey
from cwsink.errors import CwsinkError
def settled():
    try:
        books = survey.survey(directory.open_existing(directory.find_spools()[0]))
        return books.appended and (FLUSHER == "external" or not books.pending)
    except (IndexError, CwsinkError):
        return False
import time
while not settled():
    time.sleep(0.01)
"""
    prelude = f"import msgspec\n{INVENTORY}\nSETTINGS, FLUSHER = {settings!r}, {flusher!r}\n"
    show = "\nprint('\\n' + json.dumps(inventory()), flush=True)\n"
    without, within = (
        json.loads(finish(spawn(prelude + body + show, env=variables)).splitlines()[-1])
        for body in (PROGRAMS[front_end][0], PROGRAMS[front_end][1] + appended)
    )
    assert {*within.pop("modules")} - {*without.pop("modules")} == {"cwsink"}
    assert {*within.pop("threads")} <= {*without.pop("threads")}
    assert within.pop("kernel's threads") <= without.pop("kernel's threads")
    assert within == without


def test_a_worker_loads_no_more_than_it_writes_with(server: StrictCloudWatch, run: Run, config: SinkConfig) -> None:
    """Beside a flusher that delivers: no module of the flusher, of the command line or of the test server."""
    out = run("""
burst("a")
assert Writer.open(settings).flush(30)
print(json.dumps(sorted(name for name in sys.modules if name.startswith("cwsink."))))
""")
    rooms = {name.split(".")[1] for name in json.loads(out)}
    assert rooms <= {
        *(
            "clock",
            "config",
            "diagnostics",
            "errors",
            "frontends",
            "host",
            "hosted",
            "limits",
            "naming",
            "printable",
            "spool",
        ),
        *("endpoint", "interruption", "regions", "target", "units", "variables", "version", "words"),
    }
    assert server.messages() == list(bursts("a"))


def test_the_exit_of_a_worker_whose_flusher_is_elsewhere_sends_nothing(
    server: StrictCloudWatch, run: Run, config: SinkConfig, spawn: Spawn
) -> None:
    """flusher="external": nobody is started, and nothing is waited for; the records wait for whoever delivers."""
    settings = {**settings_of(config), "flusher": "external"}
    finish(spawn(PRELUDE + "burst('a')\n", env={"SETTINGS": json.dumps(settings)}))
    spool = directory.open_for(config)
    assert survey(spool).pending == 50
    assert not flusher_lock.is_taken(spool.root)
    assert not server.calls
    run("burst('b')\n")
    assert survey(spool).pending == 0


def test_the_default_signals_end_a_process_as_ever(server: StrictCloudWatch, spawn: Spawn, config: SinkConfig) -> None:
    """SIGTERM without a handler kills: nothing keeps the process, and its flusher delivers what it left."""
    child = spawn(
        PRELUDE + "burst('a')\nprint(flush=True)\ntime.sleep(60)\n", env={"SETTINGS": json.dumps(settings_of(config))}
    )
    assert child.stdout is not None
    child.stdout.readline()
    child.send_signal(signal.SIGTERM)
    assert child.wait(HANG_SECONDS) == -signal.SIGTERM
    assert server.wait_for_events(50, HANG_SECONDS)
    assert server.messages() == list(bursts("a"))
