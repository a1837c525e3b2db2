"""Ends, forks and signals: what fapilog's `logger.info` has returned for is in the spool.

Each test runs a program that tells which calls have returned, and is ended in a way that runs no
exit handler; then the spool is read.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from cwsink.config import SinkConfig
from cwsink.frontends import fapilog_names
from cwsink.frontends.inline import seam
from cwsink.spool import directory
from cwsink.spool.survey import events
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, quick_config

PRELUDE = """
import asyncio, json, os, signal, sys, threading, time
import cwsink, fapilog

def settings(**core):
    chosen = fapilog.Settings(core={"sinks": ["cloudwatch"], **core})
    chosen.sink_config.cloudwatch.log_group_name = "/test/group"
    chosen.sink_config.cloudwatch.log_stream_name = "stream"
    return chosen

def returned(name):
    os.write(1, f"{name}\\n".encode())  # one write: it is out whatever ends us next

def burst(logger, name, count=50):
    for number in range(count):
        logger.info(f"{name}-{number}")
        returned(f"{name}-{number}")

def reap(pid):
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
"""
INSTALLED = PRELUDE + "cwsink.install()\nlogger = fapilog.get_logger(settings=settings())\n"

Run = Callable[..., tuple[list[str], list[str]]]


def spooled(config: SinkConfig) -> list[dict[str, Any]]:
    return [json.loads(event.message) for event in events(directory.open_for(config))]


@pytest.fixture
def config() -> SinkConfig:
    return quick_config(flusher="external", segment_bytes=None, spool_max_bytes=256 << 20)


@pytest.fixture
def run(spawn: Spawn, config: SinkConfig) -> Run:
    """Run a program to its end; return the calls that returned and the messages in the spool."""

    def run_program(code: str, *, ends: int = 0, stderr: str = "", **variables: str) -> tuple[list[str], list[str]]:
        # Python 3.12 and later warn of a fork beside threads, which is what some of these are about.
        quiet = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
        child = spawn(code, env={"FAPILOG_CLOUDWATCH__FLUSHER": "external", **quiet, **variables})
        out, err = child.communicate(timeout=CHILD_SECONDS)
        assert child.returncode == ends, err
        assert (stderr in err) if stderr else err == "", err
        return out.splitlines(), [entry.get("log", entry)["message"] for entry in spooled(config)]

    return run_program


@pytest.mark.parametrize(
    ("ending", "code"),
    [
        ("os._exit(0)", 0),
        ("os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
        ("os.kill(os.getpid(), signal.SIGTERM)", -signal.SIGTERM),
        ("os.abort()", -signal.SIGABRT),
    ],
    ids=["_exit", "SIGKILL", "SIGTERM", "abort"],
)
def test_what_was_logged_before_an_end_is_spooled(run: Run, ending: str, code: int) -> None:
    """Right after `logger.info`: every record of a call that returned is there, in order. Invariant 1."""
    returned, found = run(INSTALLED + f"burst(logger, 'a')\n{ending}\n", ends=code)
    assert returned == found == [f"a-{number}" for number in range(50)]


def test_what_was_awaited_before_an_end_is_spooled(run: Run) -> None:
    """The async facade, killed right after its await."""
    returned, found = run(
        PRELUDE
        + """
cwsink.install()
async def main():
    logger = await fapilog.get_async_logger(settings=settings())
    for number in range(50):
        await logger.info(f"a-{number}")
        returned(f"a-{number}")
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
""",
        ends=-signal.SIGKILL,
    )
    assert returned == found == [f"a-{number}" for number in range(50)]


def test_threads_that_are_killed_have_spooled(run: Run) -> None:
    """A kill in the middle of four threads' calls: what had returned is there; at most one more of each thread."""
    returned, found = run(
        INSTALLED
        + """
def log(name):
    for number in range(1_000_000):
        logger.info(f"{name}-{number}")
        returned(f"{name}-{number}")
for name in "abcd":
    threading.Thread(target=log, args=(name,), daemon=True).start()
time.sleep(0.3)
os.kill(os.getpid(), signal.SIGKILL)
""",
        ends=-signal.SIGKILL,
    )
    surplus = Counter(found) - Counter(returned)
    assert returned
    assert not Counter(returned) - Counter(found)
    assert len({name.split("-")[0] for name in surplus}) == len(list(surplus.elements())) <= 4


def test_children_log_through_a_logger_of_the_parent(run: Run) -> None:
    """No thread is started in parent or child, and a child that ends by `os._exit` has spooled."""
    returned, found = run(
        INSTALLED
        + """
burst(logger, "before")
for child in range(3):
    if (pid := os.fork()) == 0:
        assert threading.active_count() == 1
        burst(logger, f"child{child}")
        assert threading.active_count() == 1
        os._exit(0)
    reap(pid)
burst(logger, "after")
os._exit(0)
"""
    )
    assert returned == found
    assert len(found) == 5 * 50


def test_forks_while_threads_log_need_no_repair(run: Run) -> None:
    """30 children of a parent whose 4 threads log without a pause, our fork repair taken away: nothing is lost."""
    returned, found = run(
        PRELUDE
        + """
from cwsink.frontends import fapilog_repairs
fapilog_repairs._reset = lambda logger: None
cwsink.install()
logger, stop = fapilog.get_logger(settings=settings()), threading.Event()
def log(name, number=0):
    while not stop.is_set():
        burst(logger, f"{name}-{number}", 1)
        number += 1
threads = [threading.Thread(target=log, args=(name,)) for name in "abcd"]
for thread in threads: thread.start()
for child in range(30):
    if (pid := os.fork()) == 0:
        burst(logger, f"child{child}", 5)
        os._exit(0)
    reap(pid)
stop.set()
for thread in threads: thread.join()
os._exit(0)
"""
    )
    assert Counter(returned) == Counter(found)
    assert sum(name.startswith("child") for name in found) == 150


def test_a_child_has_its_own_queue_for_other_sinks(run: Run) -> None:
    """A logger that has handed over to its thread, in a child: the spool at once, the other sink by the child's own."""
    returned, found = run(
        PRELUDE
        + """
class Other:
    name = "other"
    async def write(self, entry):
        with open(os.environ["OTHER"], "a") as file:
            file.write(f"{os.getpid()} {entry['message']}\\n")

cwsink.install()
sinks = [cwsink.CloudWatchSpoolSink(log_group_name="/test/group", log_stream_name="stream"), Other()]
os.environ["OTHER"] = os.environ["CWSINK_SPOOL_DIRECTORY"] + "/other"
logger = fapilog.get_logger(sinks=sinks, settings=fapilog.Settings(core={"sink_circuit_breaker_enabled": True}))
burst(logger, "parent", 20)
if (pid := os.fork()) == 0:
    burst(logger, "child", 20)
    sys.exit()
reap(pid)
"""
    )
    assert Counter(returned) == Counter(found)
    with open(f"{os.environ['CWSINK_SPOOL_DIRECTORY']}/other", encoding="utf-8") as file:
        lines = [line.split() for line in file]
    assert Counter(name for _, name in lines) == Counter(returned)
    assert len({pid for pid, _ in lines}) == 2


def test_locks_held_at_the_fork_do_not_hang_a_child(run: Run) -> None:
    """Of the breaker, the metrics, the queue: a child's are new, also for a logger that was given back."""
    returned, found = run(
        PRELUDE
        + """
from cwsink.frontends import fapilog_repairs
class Waiting:
    name = "waiting"
    async def enrich(self, event):
        await asyncio.sleep(0)
        return {}

cwsink.install()
core = {"enable_metrics": True, "sink_circuit_breaker_enabled": True}
loggers = [fapilog.get_logger(settings=settings(**core), reuse=False) for _ in range(2)]
loggers[1].enable_enricher(Waiting())
for number, logger in enumerate(loggers):
    burst(logger, f"before{number}", 3)
fapilog_repairs.drain(20)
for logger in loggers:
    for lock in (logger._queue._main._lock, logger._circuit_breakers[0]._lock, logger._metrics._lock._lock):
        threading.Thread(target=lock.acquire).start()
if (pid := os.fork()) == 0:
    for number, logger in enumerate(loggers):
        burst(logger, f"child{number}", 3)
    fapilog_repairs.drain(20)
    os._exit(0)
reap(pid)
os._exit(0)
""",
        stderr="its enricher 'waiting' may wait",
    )
    assert Counter(returned) == Counter(found)
    assert len(found) == 12


def test_a_signal_handler_may_log_at_any_moment(run: Run) -> None:
    """A timer's handler logs 200 times into the middle of other calls, another sink's queue included: all are there."""
    returned, found = run(
        PRELUDE
        + """
class Nothing:
    name = "nothing"
    async def write(self, entry):
        pass

cwsink.install()
sinks = [cwsink.CloudWatchSpoolSink(log_group_name="/test/group", log_stream_name="stream"), Nothing()]
core = {"enable_metrics": True, "sink_circuit_breaker_enabled": True}
logger = fapilog.get_logger(sinks=sinks, settings=fapilog.Settings(core=core))
times = 0
def handle(*_):
    global times
    if times < 200:
        burst(logger, f"signal-{times}", 1)
        times += 1
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # not before: on a slow machine they would pile up
logger.info("first")
returned("first")
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, 0.001)
number = 0
while times < 200:
    burst(logger, f"main-{number}", 1)
    number += 1
"""
    )
    assert Counter(returned) == Counter(found)
    assert sum(name.startswith("signal-") for name in found) == 200


FOREIGN = """
import dataclasses, datetime, enum

class Zone(datetime.tzinfo):
    def utcoffset(self, moment):
        raise ValueError("no such zone")

@dataclasses.dataclass(slots=True)
class Order:
    number: int
    total: int = dataclasses.field(init=False)  # not set yet

class Colour(enum.Enum):
    RED = 1

    @property
    def value(self):
        raise LookupError("not loaded")

class Items(list):
    def __iter__(self):
        raise RuntimeError("not now")

for core in ({}, {"redactors": [], "serialize_in_flush": True}):
    logger = fapilog.get_logger(settings=settings(**core), reuse=False)
    for value in (Order(7), datetime.datetime(2026, 1, 1, tzinfo=Zone()), Colour.RED):
        for nested in (value, [value], (value,), {"deep": Items([{"deeper": value}])}):
            logger.info("a value", value=nested)
            returned(type(value).__name__)
"""


def test_a_value_whose_own_code_raises_crashes_nothing(run: Run) -> None:
    """fapilog's redactors and serializer encode the record in C, and that must not call the value's own code."""
    returned, arrived = run(INSTALLED + FOREIGN)
    assert len(returned) == len(arrived) == 2 * 3 * 4


def test_records_of_an_exit_handler_are_spooled(run: Run) -> None:
    """`atexit` handlers that run before and after ours log as ever."""
    returned, found = run(
        "import atexit\natexit.register(lambda: burst(logger, 'late'))\n"
        + INSTALLED
        + "atexit.register(lambda: burst(logger, 'early'))\nburst(logger, 'a')\n"
    )
    assert returned == found == [f"{name}-{number}" for name in ("a", "early", "late") for number in range(50)]


# OpenTelemetry.

TRACER = """
import pathlib, types
package = pathlib.Path(os.environ["CWSINK_SPOOL_DIRECTORY"] + "-site")
(package / "opentelemetry").mkdir(parents=True)
(package / "opentelemetry/__init__.py").write_text("")
(package / "opentelemetry/trace.py").write_text('''
class Context:
    trace_id, span_id = 0x1234, 0x56
    @property
    def is_valid(self): return True
class Span:
    def get_span_context(self): return Context()
def get_current_span(): return Span()
''')
sys.path.insert(0, str(package))
"""


def test_the_span_of_the_caller_arrives(run: Run, config: SinkConfig) -> None:
    """`is_valid` is a property in OpenTelemetry; the ids arrive as soon as the application has imported it."""
    run(
        INSTALLED
        + TRACER
        + "logger.info('before')\nassert 'opentelemetry' not in sys.modules\n"
        + "import opentelemetry.trace\nlogger.info('after')\n"
    )
    before, after = (entry["context"] for entry in spooled(config))
    assert "trace_id" not in before
    assert (after["trace_id"], after["span_id"]) == (f"{0x1234:032x}", f"{0x56:016x}")


def test_no_import_is_tried_for_a_record(run: Run) -> None:
    """Nothing searches the path while records are logged, and nothing is left in `sys.modules`."""
    returned, found = run(
        INSTALLED
        + """
burst(logger, "warm", 2)
class Finder:
    def find_spec(self, name, path=None, target=None):
        os._exit(3)
before = dict(sys.modules)
sys.meta_path.insert(0, Finder())
burst(logger, "a", 20)
sys.meta_path.pop(0)
assert sys.modules == before
"""
    )
    assert returned == found


# Another fapilog.


@pytest.mark.parametrize("name", seam.NEEDS)
def test_a_name_that_is_gone_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one is looked for: without it, it is missing, and no other."""
    exists = fapilog_names.exists
    assert exists(name)
    monkeypatch.setattr(seam, "exists", lambda each: each != name and exists(each))
    assert seam.missing() == [name]


def test_a_fapilog_without_a_name_keeps_its_queue(run: Run) -> None:
    """One clear line says which and what it costs; all records of a program that ends are there."""
    returned, found = run(
        PRELUDE
        + """
from fapilog.core.worker import LoggerWorker
LoggerWorker._work_on = LoggerWorker._try_serialize
del LoggerWorker._try_serialize
cwsink.install()
cwsink.install()
logger = fapilog.get_logger(settings=settings())
assert threading.active_count() == 2
burst(logger, "a")
""",
        stderr="lacks fapilog.core.worker:LoggerWorker._try_serialize, so its loggers keep its queue: SIGKILL",
    )
    assert returned == found


def test_the_names_that_are_used_are_needed() -> None:
    """A private name of fapilog's that the modules of `inline` use is one of those looked for first."""
    import ast
    from pathlib import Path

    own = {"_data", "_get_running_loop", "_getframe"}  # the standard library's
    used = set()
    for path in Path(seam.__file__).parent.glob("*.py"):
        if path.name == "seam.py":
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        defined |= {
            node.attr
            for node in ast.walk(tree)
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self"
        }
        found = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {name for name in found - defined if name.startswith("_") and not name.startswith("__")}
    assert len(used) > 25
    assert used - own <= {name.rpartition(".")[2].rpartition(":")[2] for name in seam.NEEDS}
