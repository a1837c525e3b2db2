"""fapilog loses no record at exit or fork once the repairs are on.

Every test runs a real program; the verdict is the file its sink appended to, one
"pid message" line for each record that left fapilog.
"""

from __future__ import annotations

import ast
import collections
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from pathlib import Path

import pytest

from cwsink.frontends import fapilog_repairs

ROOT = Path(__file__).resolve().parents[2]
Counter = collections.Counter[str]
NEEDED = sorted(set().union(*fapilog_repairs._WITHOUT))
HANG_SECONDS = 60  # guards against a deadlock; says nothing about speed

PRELUDE = """
import asyncio, atexit, os, signal, sys, threading, time
import fapilog
from cwsink.frontends import fapilog_repairs as repairs

gate = threading.Event()  # a cleared gate is a sink that is stuck
gate.set()

class Recorder:
    name = "recorder"
    async def start(self): pass
    async def stop(self): pass
    async def write(self, entry):
        while not gate.is_set():
            await asyncio.sleep(0.001)
        fd = os.open(os.environ["RECORDS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        os.write(fd, f"{os.getpid()} {entry['message']}\\n".encode())
        os.close(fd)

def make_logger(name="app"):
    return fapilog.get_logger(name, sinks=[Recorder()])

def burst(logger, label, count=50):
    for number in range(count):
        logger.info(f"{label}-{number}")

def reap(pid):
    assert os.waitpid(pid, 0)[1] == 0, "the child failed"
"""


class Ended:
    """What a program left behind: exit status, stderr, and records by process."""

    def __init__(self, status: int, stderr: str, lines: list[str]) -> None:
        self.status, self.stderr = status, stderr
        self.by_pid: dict[int, Counter] = collections.defaultdict(collections.Counter)
        for line in lines:
            pid, message = line.split(" ", 1)
            self.by_pid[int(pid)][message] += 1
        self.records = sum(self.by_pid.values(), collections.Counter())


Run = Callable[..., Ended]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a program in its own process group, which never outlives the test."""

    def run_program(body: str, *options: str, **variables: str) -> Ended:
        program, records = tmp_path / "program.py", tmp_path / "records"
        program.write_text(PRELUDE + textwrap.dedent(body))
        records.touch()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("FAPILOG_")}
        environment |= {"PYTHONPATH": str(ROOT), "RECORDS": str(records), **variables}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore::DeprecationWarning", *options, str(program)],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            _, stderr = process.communicate(timeout=HANG_SECONDS)
        finally:
            try:
                os.killpg(process.pid, 9)
            except ProcessLookupError:
                pass
            process.wait()
        return Ended(process.returncode, stderr, records.read_text().splitlines())

    return run_program


def burst(*labels: str, count: int = 50) -> Counter:
    return collections.Counter(f"{label}-{n}" for label in labels for n in range(count))


def test_this_fapilog_has_every_private_name_the_repairs_use() -> None:
    """When fapilog changes, this fails and names what `fapilog_repairs` has to learn."""
    assert fapilog_repairs.missing() == []


@pytest.mark.parametrize(("ending", "status"), [("pass", 0), ("sys.exit(7)", 7), ("raise ValueError('on purpose')", 1)])
def test_every_record_reaches_the_sink_at_exit(run: Run, ending: str, status: int) -> None:
    """A plain end, `sys.exit` and an uncaught exception all deliver 50 of 50 records."""
    ended = run(f"""
        repairs.enable()
        repairs.enable()
        burst(make_logger(), "a")
        {ending}
        """)
    assert (ended.status, ended.records) == (status, burst("a"))
    assert "on purpose" in ended.stderr or not ended.stderr


def test_an_async_logger_is_drained_at_exit(run: Run) -> None:
    """Records of the async facade arrive, even after its event loop is gone."""
    ended = run("""
        repairs.enable()
        async def main():
            logger = await fapilog.get_async_logger("app", sinks=[Recorder()])
            for number in range(50):
                await logger.info(f"a-{number}")
        asyncio.run(main())
        """)
    assert (ended.status, ended.stderr, ended.records) == (0, "", burst("a"))


def test_a_record_logged_after_the_exit_drain_is_written(run: Run) -> None:
    """An older `atexit` handler, which runs later, still gets its records out."""
    ended = run("""
        logger = None
        atexit.register(lambda: burst(logger, "late", 3))
        repairs.enable()
        logger = make_logger()
        burst(logger, "a", 3)
        """)
    assert (ended.status, ended.stderr, ended.records) == (0, "", burst("a", "late", count=3))


def test_a_stuck_sink_delays_the_exit_by_no_more_than_the_timeout(run: Run) -> None:
    """All exit hooks share one deadline: the second one does not wait for the sink again."""
    ended = run(
        """
        repairs.enable()
        gate.clear()
        burst(make_logger(), "a", 5)
        repairs.exit_drain()
        waited = time.monotonic()
        repairs.exit_drain()
        assert time.monotonic() - waited < 1
        burst(make_logger(), "late", 2)
        """,
        FAPILOG_CORE__ATEXIT_DRAIN_TIMEOUT_SECONDS="2",
    )
    assert (ended.status, ended.stderr) == (0, "")


def test_what_a_sink_logs_during_the_last_flush_is_written(run: Run) -> None:
    """A record queued while the worker is leaving is not counted as dropped."""
    ended = run("""
        class Echo(Recorder):
            async def write(self, entry):
                await super().write(entry)
                if entry["message"] == "a-4":
                    burst(make_logger(), "echo", 5)
        repairs.enable()
        logger = fapilog.get_logger("app", sinks=[Echo()])
        burst(logger, "a", 5)
        """)
    assert (ended.status, ended.stderr, ended.records) == (0, "", burst("a", "echo", count=5))


def test_the_users_choice_not_to_drain_is_obeyed(run: Run) -> None:
    """`core.atexit_drain_enabled=false` leaves a stuck sink behind at once."""
    ended = run(
        """
        repairs.enable()
        gate.clear()
        burst(make_logger(), "a")
        """,
        FAPILOG_CORE__ATEXIT_DRAIN_ENABLED="false",
    )
    assert (ended.status, ended.stderr, ended.records) == (0, "", burst())


def test_logging_goes_on_after_a_drain(run: Run) -> None:
    """After a drain, finished or timed out, later records arrive as well, from two loggers."""
    ended = run("""
        repairs.enable()
        one, two = make_logger("one"), make_logger("two")
        burst(one, "a", 5)
        repairs.drain(5)
        burst(one, "b", 5)
        gate.clear()
        burst(two, "c", 5)
        started = time.monotonic()
        repairs.drain(0.3)
        assert time.monotonic() - started < 10
        gate.set()
        for worker in threading.enumerate():
            if worker.daemon:
                worker.join()  # the workers the drain did not wait for
        burst(one, "d", 5)
        burst(two, "e", 5)
        """)
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.records == burst(*"abcde", count=5)


@pytest.mark.parametrize("ending", ["repairs.drain(5); os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_logs_through_an_older_logger(run: Run, ending: str) -> None:
    """Parent and child each deliver their own records, whichever way the child leaves."""
    ended = run(f"""
        repairs.enable()
        logger = make_logger()
        burst(logger, "before")
        pid = os.fork()
        if not pid:
            burst(logger, "child")
            {ending}
        burst(logger, "after")
        reap(pid)
        """)
    assert (ended.status, ended.stderr) == (0, "")
    assert sorted(ended.by_pid.values(), key=len) == [burst("child"), burst("before", "after")]


def test_records_queued_at_the_fork_stay_with_the_parent(run: Run) -> None:
    """With records in the queue and in the stuck sink, none is lost or sent twice."""
    ended = run("""
        repairs.enable()
        logger = make_logger()
        gate.clear()
        burst(logger, "parent")
        time.sleep(0.5)  # some are in the worker's batch now
        burst(logger, "queued")
        pid = os.fork()
        if not pid:
            gate.set()
            burst(logger, "child")
            sys.exit(0)
        reap(pid)
        gate.set()
        """)
    assert (ended.status, ended.stderr) == (0, "")
    assert sorted(ended.by_pid.values(), key=len) == [burst("child"), burst("parent", "queued")]


def test_a_child_that_does_not_log_has_no_thread(run: Run) -> None:
    """The pipeline is restarted by the first record, not by the fork; also in a grandchild."""
    ended = run("""
        repairs.enable()
        logger = make_logger()
        burst(logger, "parent")
        pid = os.fork()
        if not pid:
            assert threading.active_count() == 1
            grandchild = os.fork()
            if not grandchild:
                assert threading.active_count() == 1
                burst(logger, "grandchild")
                assert threading.active_count() == 2
                sys.exit(0)
            reap(grandchild)
            assert threading.active_count() == 1
            sys.exit(0)
        reap(pid)
        """)
    assert (ended.status, ended.stderr, ended.records) == (0, "", burst("parent", "grandchild"))


def test_locks_held_at_the_fork_do_not_hang_the_child(run: Run) -> None:
    """All locks fapilog would take in the child are new there."""
    ended = run("""
        from fapilog.core import shutdown
        repairs.enable()
        core = {"enable_metrics": True, "sink_circuit_breaker_enabled": True}
        settings = fapilog.Settings(core=core)
        logger = fapilog.get_logger("app", sinks=[Recorder()], settings=settings)
        burst(logger, "before", 3)
        repairs.drain(5)
        held = [logger._queue._main._lock, logger._queue._protected._lock,
                shutdown._install_lock, fapilog._cache_lock]
        held += [breaker._lock for breaker in logger._circuit_breakers]
        assert len(held) == 5
        for lock in held:
            lock.acquire()
        asyncio.run(logger._metrics._lock.acquire())
        pid = os.fork()
        if not pid:
            burst(logger, "old", 3)
            burst(make_logger("new"), "new", 3)
            sys.exit(0)
        reap(pid)
        for lock in held:
            lock.release()
        """)
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.records == burst("before", "old", "new", count=3)


def test_an_import_under_way_at_the_fork_does_not_hang_the_child(run: Run) -> None:
    """The lock and the half module of the parent's worker are not there in the child."""
    ended = run("""
        import pathlib
        fake = "import __main__, time; __main__.importing.set()\\n"
        fake += "while not __main__.gate.is_set(): time.sleep(0.01)\\nWHOLE = 1\\n"
        pathlib.Path(sys.path[0], "opentelemetry.py").write_text(fake)
        importing = threading.Event()
        repairs.enable()
        logger = make_logger()
        gate.clear()
        burst(logger, "parent")  # for each, fapilog's worker tries to import opentelemetry
        importing.wait()
        pid = os.fork()
        if not pid:
            gate.set()
            burst(logger, "child")
            import opentelemetry
            assert opentelemetry.WHOLE
            sys.exit(0)
        reap(pid)
        gate.set()
        """)
    assert (ended.status, ended.stderr, ended.records) == (0, "", burst("parent", "child"))


def test_threads_may_log_the_first_record_of_a_child_together(run: Run) -> None:
    """Eight threads released at once start one worker and lose nothing."""
    ended = run("""
        repairs.enable()
        sys.setswitchinterval(1e-5)
        logger = make_logger()
        for child in range(5):
            pid = os.fork()
            if not pid:
                barrier = threading.Barrier(8)
                def log(number):
                    barrier.wait()
                    burst(logger, f"{child}{number}", 5)
                threads = [threading.Thread(target=log, args=(n,)) for n in range(8)]
                for thread in threads: thread.start()
                for thread in threads: thread.join()
                sys.exit(0)
            reap(pid)
        """)
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.records == burst(*(f"{c}{n}" for c in range(5) for n in range(8)), count=5)


def test_forking_while_threads_log_neither_hangs_nor_loses(run: Run) -> None:
    """30 children of a parent with 4 logging threads all deliver, and so does the parent."""
    ended = run("""
        repairs.enable()
        logger, stop, logged = make_logger(), threading.Event(), [0] * 4
        def log(number):
            while not stop.is_set():
                logger.info(f"parent{number}-{logged[number]}")
                logged[number] += 1
                time.sleep(0.001)  # a queue that overflows would lose records, by design
        threads = [threading.Thread(target=log, args=(n,)) for n in range(4)]
        for thread in threads: thread.start()
        for child in range(30):
            pid = os.fork()
            if not pid:
                burst(logger, f"child{child}", 5)
                repairs.drain(10)
                os._exit(0)
            reap(pid)
        stop.set()
        for thread in threads: thread.join()
        logger.info(f"total-{sum(logged)}")
        """)
    assert (ended.status, ended.stderr) == (0, "")
    children = {r: n for r, n in ended.records.items() if r.startswith("child")}
    assert children == burst(*(f"child{n}" for n in range(30)), count=5)
    [total] = [int(r.split("-")[1]) for r in ended.records if r.startswith("total-")]
    parents = [n for r, n in ended.records.items() if r.startswith("parent")]
    assert (len(parents), set(parents)) == (total, {1})


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver", "late fork", "billiard"])
def test_a_multiprocessing_child_that_just_returns_delivers(run: Run, method: str) -> None:
    """Also where `atexit` does not run, and when multiprocessing is imported after `enable`."""
    package, start = "multiprocessing", method.split()[-1]
    if method == "billiard":
        package, start = "billiard", "fork"
        if importlib.util.find_spec("billiard") is None:
            pytest.skip("billiard is not installed")
    ended = run(f"""
        if {method!r} != "late fork":
            import {package} as mp
        repairs.enable()
        import {package} as mp

        def work(label):
            burst(make_logger(), label)

        if __name__ == "__main__":
            make_logger()
            context = mp.get_context({start!r})
            children = [context.Process(target=work, args=(label,)) for label in ("x", "y")]
            for child in children: child.start()
            for child in children: child.join()
            assert [child.exitcode for child in children] == [0, 0]
        """)
    assert (ended.status, ended.stderr) == (0, "")
    assert sorted(map(sorted, ended.by_pid.values())) == [sorted(burst("x")), sorted(burst("y"))]


def test_signal_dispositions_are_left_to_the_server(run: Run) -> None:
    """SIGTERM and SIGINT are handled as before, after `enable`, `get_logger` and a record."""
    ended = run("""
        def dispositions():
            return [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
        before = dispositions()
        repairs.enable()
        burst(make_logger(), "a")
        assert dispositions() == before, dispositions()
        """)
    assert (ended.status, ended.stderr, ended.records) == (0, "", burst("a"))


def test_the_users_choice_of_signal_handlers_is_obeyed(run: Run) -> None:
    """A FAPILOG_CORE__SIGNAL_HANDLER_ENABLED that is set already stays as it is."""
    ended = run(
        """
        repairs.enable()
        make_logger()
        assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL
        """,
        FAPILOG_CORE__SIGNAL_HANDLER_ENABLED="true",
    )
    assert (ended.status, ended.stderr) == (0, "")


@pytest.mark.parametrize("warning_filter", ["default", "error"])
def test_a_fapilog_without_a_name_costs_one_warning(run: Run, warning_filter: str) -> None:
    """The warning names it; the application and the other repair go on, even under -W error."""
    ended = run(
        """
        from fapilog.core.logger import _LoggerMixin
        del _LoggerMixin._flush_batch
        repairs.enable()
        repairs.enable()
        assert repairs.missing() == ["fapilog.core.logger:_LoggerMixin._flush_batch"]
        logger = make_logger()
        pid = os.fork()
        if not pid:
            burst(logger, "child")
            repairs.drain(5)
            os._exit(0)
        reap(pid)
        """,
        "-W",
        f"{warning_filter}::RuntimeWarning",
    )
    assert (ended.status, ended.records) == (0, burst("child"))
    assert ended.stderr.count("cwsink: ") == 1
    assert "lacks fapilog.core.logger:_LoggerMixin._flush_batch" in ended.stderr
    assert "before a process exits" in ended.stderr


# Private names of others than fapilog, and of this module itself.
NOT_FAPILOGS = frozenset(
    "__dict__ __init__ __module__ __code__ __spec__ _common_init _get_running_loop _initializing _module_locks".split()
)


def test_every_private_name_the_repairs_use_is_checked_first() -> None:
    """None is used without being one of those whose absence costs a warning and nothing else."""
    tree = ast.parse(Path(fapilog_repairs.__file__).read_text(encoding="utf-8"))
    used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    used |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword) and node.arg}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):  # the needs themselves are at the top level
            texts = [each.value for each in ast.walk(node) if isinstance(each, ast.Constant)]
            docstring = ast.get_docstring(node, clean=False)
            used |= {word for text in texts if isinstance(text, str) and text != docstring for word in text.split()}
    private = {name for name in used if re.fullmatch(r"_[a-z]\w+", name)} - NOT_FAPILOGS
    assert len(private) > 20
    assert private <= {re.split("[:.]", name)[-1] for name in NEEDED}


@pytest.mark.parametrize("name", NEEDED)
def test_a_name_that_is_gone_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each one, taken away from the real fapilog: it is missing, and no other."""
    module, _, path = name.partition(":")
    *owners, last = path.split(".")
    owner = importlib.import_module(module)
    for each in owners:
        owner = getattr(owner, each)
    if last in vars(owner):
        monkeypatch.delattr(owner, last)
    else:  # of instances only: their initialiser calls it something else
        code = owner._common_init.__code__
        names = tuple("renamed" if each == last else each for each in code.co_names)
        renamed = types.FunctionType(code.replace(co_names=names), {})
        monkeypatch.setattr(owner, "_common_init", renamed)
    found = fapilog_repairs.missing()
    # Without this one Python 3.10 can import nothing.
    assert found == [name] or (module == "importlib._bootstrap" and name in found)


# One process for all: each name is missed in a forked child that starts afresh.
WITHOUT_EACH = """
import warnings
make_logger("warm")  # imports what fapilog imports
exists = repairs._exists
for name in sorted(set().union(*repairs._WITHOUT)):
    pid = os.fork()
    if not pid:
        repairs._exists = lambda each: each != name and exists(each)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            repairs.enable()
            repairs.enable()
            logger = make_logger("new")
            burst(logger, name, 3)
        said = [str(each.message) for each in caught if "cwsink" in str(each.message)]
        assert len(said) == 1 and f"lacks {name}. It will lose" in said[0], (name, said)
        healthy = [needs for needs in repairs._WITHOUT if name not in needs]
        assert all(repairs._works[needs] for needs in healthy)
        until = time.monotonic() + 30
        while open(os.environ["RECORDS"]).read().count(f"{name}-") < 3:
            assert time.monotonic() < until, name
            time.sleep(0.005)
        os._exit(0)
    reap(pid)
"""


def test_a_fapilog_without_any_one_name_still_delivers(run: Run) -> None:
    """For each name: exactly one warning that names it, the other repairs are on, records arrive as ever."""
    ended = run(WITHOUT_EACH, FAPILOG_CORE__BATCH_TIMEOUT_SECONDS="0.01", FAPILOG_CORE__BATCH_MAX_SIZE="1")
    assert (ended.status, ended.stderr) == (0, "")
    assert ended.records == burst(*NEEDED, count=3)
