"""cwsink is a guest in the application: nothing of it lives there but its modules and its hold on the spool.

The same program is run twice, without cwsink and with it, and says what can be seen of the interpreter: before the
first record, after many, after all of it is delivered, and in a child of a fork. The answers must be the same.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from cwsink import Writer
from cwsink.spool import flusher_lock
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, finish, quick_config, told_lost

# What sends. It belongs to the flusher's process.
SENDERS = {"boto3", "botocore", "filelock", "s3transfer", "urllib3", "jmespath", "dateutil", "rich"}
# msgspec loads typing_extensions if there is one.
OURS = {"cwsink", "msgspec", "typing_extensions"}
# The standard library's large ones: none of them is needed to write to a file.
HEAVY = {"asyncio", "concurrent", "email", "http", "multiprocessing", "ssl", "subprocess", "unittest", "urllib.request"}
if sys.version_info < (3, 11):
    HEAVY.remove("subprocess")  # msgspec loads uuid, which loads platform, which loads it there

PRELUDE = """
import _thread, json, os, signal, sys, threading, time

WITH_US = sys.argv[1] == "with"

def look():
    return {
        "threads": sorted(thread.name.partition("-")[0] for thread in threading.enumerate()),
        "count": _thread._count(),
        "signals": {int(number): str(signal.getsignal(number)) for number in sorted(signal.valid_signals())},
        "mask": sorted(map(int, signal.pthread_sigmask(signal.SIG_BLOCK, []))),
        "wakeup": wakeup_fd(),
        "hooks": [str(each) for each in (sys.excepthook, threading.excepthook, sys.gettrace(), sys.getprofile())],
        "finders": [getattr(each, "__name__", type(each).__name__) for each in (*sys.meta_path, *sys.path_hooks)],
        "path": sys.path,
        "environment": sorted(os.environ),
        "place": [os.getcwd(), oct(umask()), os.getpgrp() == os.getsid(0)],
        "children": has_children(),
        "modules": sorted(sys.modules),
    }

def wakeup_fd():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return fd

def umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask

def has_children():
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return True
    except ChildProcessError:
        return False

def wait_until_delivered():
    if WITH_US:
        from cwsink.frontends.presence import this
        assert this.flush(60)

def story(log):
    "Log, and say at each point what can be seen."
    seen = {}
    for number in range(100):
        log(number)
    wait_until_delivered()
    time.sleep(1.1)  # the next append looks after the flusher again
    log(100)
    seen["after appends"] = look()
    wait_until_delivered()
    seen["after flush"] = look()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        log(101)
        wait_until_delivered()
        os.write(writing, json.dumps(look()).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        seen["in a child"] = json.load(file)
    assert os.waitpid(pid, 0)[1] == 0
    seen["after a child"] = look()
    print(json.dumps(seen), flush=True)
"""

WRITER = """
if WITH_US:
    import cwsink
    writer = cwsink.Writer.open(log_group_name="/test/group", batch_timeout_seconds=0.1)
    story(lambda number: writer.append(f"record {number}"))
else:
    story(lambda number: None)
"""

HANDLER = """
import logging, queue
logger = logging.getLogger("app")
logger.propagate = False
if WITH_US:
    import cwsink
    logger.addHandler(cwsink.SpoolHandler(log_group_name="/test/group", batch_timeout_seconds=0.1))
else:
    logger.addHandler(logging.NullHandler())
story(lambda number: logger.warning("record %d", number))
"""

# Beside ours: another sink. What fapilog imports is in both.
SINK = """
os.environ["FAPILOG_CORE__SIGNAL_HANDLER_ENABLED"] = "false"
import fapilog

class Null:
    name = "null"
    def __init__(self, config=None, **settings): pass
    async def start(self): pass
    async def stop(self): pass
    async def write(self, entry): return True
    async def write_serialized(self, view): return True

if WITH_US:
    import cwsink
    cwsink.install()
else:
    from fapilog.plugins import loader
    loader.register_builtin("fapilog.sinks", "cloudwatch", Null)
settings = fapilog.Settings()
settings.core.sinks = ["cloudwatch"]
settings.sink_config.cloudwatch.log_group_name = "/test/group"
settings.sink_config.cloudwatch.batch_timeout_seconds = 0.1
logger = fapilog.get_logger(settings=settings)

def log(number):
    logger.info("record", number=number)

story(log)
"""
PROGRAMS = {"Writer": WRITER, "SpoolHandler": HANDLER, "fapilog": SINK}
MOMENTS = ["after appends", "after flush", "in a child", "after a child"]


def seen(spawn: Spawn, server: StrictCloudWatch, program: str, how: str) -> dict[str, dict[str, Any]]:
    code = textwrap.dedent(PRELUDE) + PROGRAMS[program]
    found: dict[str, dict[str, Any]] = json.loads(finish(spawn(code, how, env=server.environment())).splitlines()[-1])
    return found


def roots(modules: list[str]) -> set[str]:
    return {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_application_looks_as_without_us(server: StrictCloudWatch, spawn: Spawn, program: str) -> None:
    """Threads, signals, hooks, environment, children: the same at each moment. Modules: cwsink's own, msgspec, and a
    little of the standard library."""
    without, with_us = (seen(spawn, server, program, how) for how in ("without", "with"))
    assert set(without) == set(with_us) == set(MOMENTS)
    delivered = [text for text in server.messages("/test/group") if "record" in text]
    assert len(delivered) in (101, 102), "it was no use"
    for moment in MOMENTS:
        before, after = without[moment], with_us[moment]
        more = set(after.pop("modules")) - set(before.pop("modules"))
        if program == "fapilog":
            # fapilog alone has a thread that writes. A logger that writes through has none.
            before.update(threads=["MainThread"], count=0)
        assert after == before, moment
        brought = OURS | ({"fapilog"} if program == "fapilog" else set())  # parts of it that it had not loaded yet
        assert roots(list(more)) - set(sys.stdlib_module_names) <= brought, moment
        assert not roots(list(more)) & SENDERS, moment
        assert not more & HEAVY, moment
        assert not {name for name in more if name.startswith(("cwsink.flusher", "cwsink.cli"))}, moment


SET = {
    "warnings are errors": "import warnings; warnings.simplefilter('error')",
    "little recursion": "import inspect; sys.setrecursionlimit(len(inspect.stack()) + 200)",
    "no umask": "import os; os.umask(0)",
    "a strict umask": "import os; os.umask(0o777)",
    "its directory is gone": "import os, tempfile; place = tempfile.mkdtemp(); os.chdir(place); os.rmdir(place)",
    "all else": """
import builtins, decimal, gc, locale, socket
socket.setdefaulttimeout(0.000001)
sys.setswitchinterval(1e-6)
locale.setlocale(locale.LC_ALL, "C")
decimal.getcontext().traps = dict.fromkeys(decimal.getcontext().traps, True)
real = builtins.__import__
builtins.__import__ = lambda *args, **kwargs: real(*args, **kwargs)
sys.settrace(lambda *_: None)
gc.disable()
""",
}


@pytest.mark.parametrize("setting", SET.values(), ids=SET)
def test_whatever_the_application_sets_for_itself(server: StrictCloudWatch, spawn: Spawn, setting: str) -> None:
    """What is the whole interpreter's is the application's to set: cwsink is imported, and its records are kept."""
    program = f"""
import sys
{setting}
import cwsink, decimal, logging
logging.getLogger().addHandler(cwsink.SpoolHandler(log_group_name="/test/group", log_stream_name="stream"))
logging.warning("kept", extra={{"order": 17, "price": decimal.Decimal("1.50")}})
"""
    finish(spawn(program, env=server.environment()))
    assert server.wait_for(lambda s: [json.loads(each)["message"] for each in s.messages()] == ["kept"], CHILD_SECONDS)


FREEZERS = {
    "freezegun": "import freezegun; frozen = freezegun.freeze_time(datetime.datetime.now())",
    "time_machine": "import time_machine; frozen = time_machine.travel(datetime.datetime.now(), tick=False)",
}
FROZEN = """
import datetime, sys, time
exec(sys.argv[2])
if sys.argv[1] == "imported before":
    import cwsink, cwsink.frontends.fapilog_sink
with frozen:
    import cwsink
    full = cwsink.Writer.open(log_stream_name="full", on_full="block", block_timeout_seconds=0.1,
                              spool_max_bytes="16KiB", segment_bytes="4KiB", flusher="external")
    while full.append("x" * 1000):
        pass
    writer = cwsink.Writer.open(log_stream_name="sent")
    assert writer.append("frozen")
    assert not full.flush(0.1)
    assert writer.flush(60)
    cwsink.drain(0.1)
    sink = cwsink.CloudWatchSpoolSink(log_stream_name="fapilog")
    assert sink.spool({"timestamp": "2026-01-31T12:00:00.123Z", "message": "frozen"})
    assert sink._writer.flush(60)
    emptied = cwsink.Writer.open(log_stream_name="emptied", on_full="drop_newest",
                                 spool_max_bytes="16KiB", segment_bytes="4KiB")
    assert not all(emptied.append("x" * 1000) for _ in range(1000))
    assert emptied.flush(60)
    assert any(emptied.append("there is room again") or time.sleep(0.01) for _ in range(6000))
"""


@pytest.mark.parametrize("library", FREEZERS)
@pytest.mark.parametrize("when", ["imported before", "imported within"])
def test_a_clock_that_stands_still_makes_no_wait_endless(
    server: StrictCloudWatch, spawn: Spawn, when: str, library: str
) -> None:
    """Full spools, `flush` and `drain` end in time; the record has the frozen time, as the test wants."""
    pytest.importorskip(library)
    finish(
        spawn(
            FROZEN,
            when,
            FREEZERS[library],
            env={**server.environment(), "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": "/test/group"},
        )
    )
    (event,) = server.events(stream="sent")
    assert event.message == "frozen"


FAKED = """
import logging, sys, time
import cwsink
from pyfakefs.fake_filesystem_unittest import Patcher

def add_handler():
    log.addHandler(cwsink.SpoolHandler(log_group_name="/test/group", log_stream_name="stream"))

log = logging.getLogger("app")
log.setLevel("INFO")
if sys.argv[1] == "before":
    add_handler()
    log.info("before")
with Patcher():
    if sys.argv[1] == "within":
        add_handler()
    log.info("within")
    time.sleep(1.0)  # now it looks at its segment, and at its flusher
    for _ in range(3):
        log.info("within")
log.info("after")
"""


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_fake_file_system_stops_no_program(server: StrictCloudWatch, spawn: Spawn, when: str) -> None:
    """An application's tests run in pyfakefs, which replaces `os` in our modules, too: no call hangs or raises. The
    records stand on stderr, or are in the spool, or are counted."""
    pytest.importorskip("pyfakefs")
    child = spawn(FAKED, when, env=server.environment())
    _, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, errors
    if when == "within":
        assert [json.loads(line)["message"] for line in errors.splitlines()] == ["within"] * 4 + ["after"]
        return

    def arrived() -> list[str]:
        return [json.loads(each)["message"] for each in server.messages() if '"_cwsink"' not in each]

    assert server.wait_for(lambda _: {"before", "after"} <= set(arrived()), CHILD_SECONDS)

    def counted() -> int:
        return sum(told_lost(server.messages(), reason) for reason in ("io_error", "internal_error"))

    assert server.wait_for(lambda _: arrived().count("within") + counted() == 4, CHILD_SECONDS)


AUDITED = """
import sys
import cwsink
from cwsink.spool.survey import survey

writer = cwsink.Writer.open(log_group_name="/test/group", log_stream_name="stream", flusher="external")
count, is_on = 0, True

def hook(event, arguments):
    global count
    if is_on and event == "open":
        count += 1
        writer.append(f"opens {arguments[0]}")

sys.addaudithook(hook)
assert writer.append("first")
is_on = False
books = survey(writer.directory)
print(count, books.appended, sum(books.refused.values()))
"""


def test_a_program_that_logs_each_file_that_is_opened_does_not_recurse(spawn: Spawn) -> None:
    """Also those that an append opens. What cannot be spooled before the segment is open is refused, and counted."""
    opened, appended, refused = map(int, finish(spawn(AUDITED)).split())
    assert appended + refused == opened + 1
    assert appended > 1
    assert opened < 1000


def test_one_refused_record_is_counted_once(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """A function of the system raises what it never does: the record is counted once, and the line says what it was."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))

    def fail(*arguments: object, **options: object) -> int:
        raise RuntimeError("no open")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", fail)
        assert not writer.append("refused")
    assert writer.append("spooled")
    assert survey(writer.directory).refused == {"internal_error": 1}
    assert "LOST a record, which is counted: RuntimeError: no open" in capfd.readouterr().err


@pytest.mark.parametrize("arguments", ["[]", "None"])
def test_a_program_without_arguments_logs(server: StrictCloudWatch, spawn: Spawn, arguments: str) -> None:
    """`sys.argv` may be empty or missing in an embedded interpreter: `{app}` is "app" there."""
    program = f"""
import sys
sys.argv = {arguments}
if sys.argv is None:
    del sys.argv
import cwsink
writer = cwsink.Writer.open(log_stream_name="{{app}}")
assert writer.append("embedded")
assert writer.flush(60)
"""
    finish(spawn(program, env={**server.environment(), "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": "/test/group"}))
    assert server.messages(stream="app") == ["embedded"]


QUICK = {"FAPILOG_CLOUDWATCH__LOG_GROUP_NAME": "/test/group", "FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": "2.0"}
CLOSED = """
import os, sys
if sys.argv[1] == "later":
    from cwsink import Writer
    os.close(2)
ledger = open(sys.argv[2], "w+b", buffering=0)
assert ledger.fileno() == 2, ledger.fileno()
import cwsink
writer = cwsink.Writer.open()
assert not writer.append("")  # a line says so, where there is a stderr
assert writer.append("kept")
ledger.seek(0)
assert ledger.read() == b"", ledger.read()
"""


@pytest.mark.parametrize("closed", ["at the start", "later"])
def test_a_file_with_the_number_of_stderr_gets_no_line(server: StrictCloudWatch, tmp_path: Path, closed: str) -> None:
    """`python app.py 2>&-`, or `os.close(2)`: the next file that the application opens gets the number 2."""
    (tmp_path / "app.py").write_text(CLOSED)
    server.faults.deny("logs:PutLogEvents")  # so the flusher, too, has something to say
    environment = {**os.environ, **server.environment(), **QUICK}
    command = [sys.executable, str(tmp_path / "app.py"), closed, str(tmp_path / "ledger")]
    subprocess.run(
        ["sh", "-c", '"$@" 2>&-' if closed == "at the start" else '"$@"', "sh", *command],
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=CHILD_SECONDS,
    )
    assert server.wait_for(lambda s: len(s.requests) > 0, CHILD_SECONDS)
    until(lambda: not flusher_lock.is_taken(str(tmp_path / "spools")), "the flusher has ended, with records left")
    assert (tmp_path / "ledger").read_bytes() == b""


@pytest.mark.parametrize("program", ["Writer", "SpoolHandler"])
def test_no_sender_is_loaded_whoever_logs(server: StrictCloudWatch, spawn: Spawn, program: str) -> None:
    """Without fapilog, which may bring some of them itself, none of what sends is there at all."""
    for moment, found in seen(spawn, server, program, "with").items():
        assert not roots(found["modules"]) & (SENDERS | {"fapilog", "pydantic", "httpx"}), moment
        assert found["threads"] == ["MainThread"]
        assert (found["count"], found["children"]) == (0, False)


SELDOM = """
import json, sys
import cwsink

with cwsink.Writer.open(log_group_name="/shop", region="eu-west-1", flusher="external") as writer:
    assert writer.append("one")
print(json.dumps(sorted(sys.modules)))
"""


def test_a_worker_without_trouble_does_not_load_what_only_trouble_needs(tmp_path: Path) -> None:
    """Each worker would hold it. The first process makes the spool's files, so it is a later one that is looked at."""
    environment = {**os.environ, "CWSINK_SPOOL_DIRECTORY": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    loaded: list[set[str]] = []
    for _ in range(2):
        said = subprocess.run(
            [sys.executable, "-c", SELDOM],
            env=environment,
            check=True,
            timeout=CHILD_SECONDS,
            capture_output=True,
            text=True,
        ).stdout
        loaded.append(set(json.loads(said)))
    assert "ctypes" not in loaded[0]
    assert not loaded[1] & {"ctypes", "hashlib", "cwsink.spool.alerts", "cwsink.spool.history", "cwsink.spool.survey"}
