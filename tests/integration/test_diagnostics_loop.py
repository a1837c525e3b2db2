"""Nothing that cwsink, or a library at work for it, logs comes back as a record to send.

Programs as users write them: the root logger at DEBUG, fapilog's bridge from the logging
module, our sink. What sends is another process, so the application hears nothing of it; what
it is told is on stderr, once.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import threading
from collections import Counter
from typing import Any

import pytest

from cwsink import diagnostics
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, finish

SETTINGS = """
import asyncio, atexit, logging, sys, time
import cwsink, fapilog
from fapilog.core.stdlib_bridge import enable_stdlib_bridge

class Others(logging.Handler):
    "Another handler of the application, which hears everything."
    heard = []
    def emit(self, record):
        self.heard.append(record.name.partition(".")[0])

cwsink.install()
settings = fapilog.Settings()
settings.core.sinks = ["cloudwatch"]
settings.core.log_level = "DEBUG"
settings.sink_config.cloudwatch.log_group_name = "/test/group"
settings.sink_config.cloudwatch.log_stream_name = "stream"
settings.sink_config.cloudwatch.region = "us-east-1"
settings.sink_config.cloudwatch.batch_timeout_seconds = 0.2
logging.getLogger().addHandler(Others())
app = logging.getLogger("app")
"""
BRIDGED = (
    SETTINGS
    + """
logger = fapilog.get_logger(settings=settings)
enable_stdlib_bridge(logger, level=logging.DEBUG)
"""
)


def entries(server: StrictCloudWatch) -> list[tuple[str, str]]:
    """Logger and message of what arrived, without what fapilog's own event loops log of themselves."""
    found = [json.loads(text) for text in server.messages()]
    pairs = [(entry["data"].get("stdlib_logger", ""), entry["message"]) for entry in found]
    return [pair for pair in pairs if pair[0] != "asyncio"]


SYNC = (
    BRIDGED
    + """
app.debug("one")
time.sleep(2.0)  # what is measured is that nothing happens
logging.getLogger("botocore.endpoint").debug("two")
time.sleep(0.5)
print(*Others.heard)
"""
)
ASYNC = (
    SETTINGS
    + """
logging.getLogger("asyncio").setLevel("INFO")  # at exit fapilog's bridge waits twice 2 s for its own loop's record
async def main():
    logger = await fapilog.get_async_logger(settings=settings)
    enable_stdlib_bridge(logger, level=logging.DEBUG)
    app.debug("one")
    await asyncio.sleep(2.0)
    logging.getLogger("botocore.endpoint").debug("two")
    await asyncio.sleep(0.5)
    await logger.drain()

asyncio.run(main())
print(*Others.heard)
"""
)


@pytest.mark.parametrize("program", [SYNC, ASYNC], ids=["logger", "async logger"])
def test_under_debug_only_the_applications_own_records_are_sent(
    server: StrictCloudWatch, spawn: Spawn, program: str
) -> None:
    """One record, two idle seconds, the exit: nobody in the application logs a line of ours; what it logs itself
    under the names of our libraries is sent."""
    child = spawn(program, env=server.environment())
    heard = Counter(finish(child).split())
    assert (heard["botocore"], heard["filelock"], heard["urllib3"], heard["cwsink"]) == (1, 0, 0, 0)
    assert entries(server) == [("app", "one"), ("botocore.endpoint", "two")]


def test_a_record_of_the_exit_under_debug_is_one_record(server: StrictCloudWatch, spawn: Spawn) -> None:
    """Logged when fapilog has been drained: it is written through an event loop, which logs its selector itself."""
    child = spawn(
        BRIDGED
        + """
from cwsink.frontends import fapilog_repairs
atexit.unregister(fapilog_repairs.exit_drain)
atexit.register(app.debug, "two")  # after the drain: handlers run in reverse order
atexit.register(fapilog_repairs.exit_drain)
app.debug("one")
""",
        env={**server.environment(), "FAPILOG_CLOUDWATCH__PIPELINE": "queue"},  # inline needs no event loop
    )
    finish(child)
    assert entries(server) == [("app", "one"), ("app", "two")]
    assert len(server.messages()) <= 3


def leave_trouble_behind(
    server: StrictCloudWatch, child: subprocess.Popen[str]
) -> tuple[list[str], list[dict[str, Any]]]:
    """Let a program end whose record has arrived; return what was said on stderr: our lines, and fapilog's own."""
    assert server.wait_for_events(1, CHILD_SECONDS)
    _, err = child.communicate("\n", timeout=CHILD_SECONDS)
    assert child.returncode == 0
    lines = err.splitlines()
    return [each for each in lines if each.startswith("cwsink: ")], [
        json.loads(each) for each in lines if each.startswith("{")
    ]


def test_credentials_that_are_looked_for_again_are_not_logged(server: StrictCloudWatch, spawn: Spawn) -> None:
    """botocore says at INFO where it found credentials, with each new session: to nobody in the application."""
    server.create_stream("/test/group", "stream")
    server.faults.fail_next(1, "ExpiredTokenException", action="PutLogEvents")
    child = spawn(
        BRIDGED.replace("level=logging.DEBUG", "level=logging.INFO")
        + """
app.error("one")
sys.stdin.readline()
assert Others.heard == ["app"], Others.heard
""",
        env=server.environment(),
    )
    lines, _ = leave_trouble_behind(server, child)
    assert [request.status for request in server.requests][:2] == [400, 200]
    assert entries(server) == [("app", "one")]
    assert len(lines) == 2


def test_an_outage_is_told_once_and_its_end_too(server: StrictCloudWatch, spawn: Spawn) -> None:
    """Five failures: the flusher says on the application's stderr when it begins and when it ends, and there is not
    one record about it in the stream."""
    server.create_stream("/test/group", "stream")
    server.faults.fail_next(5, "ServiceUnavailableException", 503, action="PutLogEvents")
    child = spawn(
        BRIDGED
        + """
app.debug("one")
sys.stdin.readline()
""",
        env={
            **server.environment(),
            "FAPILOG_CLOUDWATCH__RETRY_BASE_DELAY": "0.01",
            "FAPILOG_CLOUDWATCH__CIRCUIT_BREAKER_ENABLED": "false",
        },
    )
    lines, _ = leave_trouble_behind(server, child)
    assert [request.status for request in server.requests][:6] == [503] * 5 + [200]
    assert len(lines) == 2
    assert "cannot deliver to /test/group: ServiceUnavailableException" in lines[0]
    assert "accepts records again" in lines[1]
    assert entries(server) == [("app", "one")]


def test_what_the_application_itself_is_told_is_told_to_fapilog_too(server: StrictCloudWatch, spawn: Spawn) -> None:
    """A record that is refused in this process: one line on stderr, and the same as fapilog's diagnostics."""
    child = spawn(
        BRIDGED
        + """
from cwsink.frontends import presence
app.debug("one")
(writer,) = presence.this.writers
assert not writer.append("")
assert not writer.append("")
sys.stdin.readline()
""",
        env={**server.environment(), "FAPILOG_CORE__INTERNAL_LOGGING_ENABLED": "true"},
    )
    (line,), told = leave_trouble_behind(server, child)
    assert "LOST a message of type str that is empty or no text" in line
    assert [f"cwsink: {each['message']}" for each in told if each["component"] == "cwsink"] == [line]


# Whose record it is.


def made_by(thread: int | None, process: int | None) -> logging.LogRecord:
    record = logging.makeLogRecord({"msg": "x"})
    record.thread, record.process = thread, process
    return record


def test_own_work_is_that_of_this_thread_while_it_lasts() -> None:
    """Not before, not after, not another thread's; work within work does not end it."""
    me, here = threading.get_ident(), os.getpid()
    mine = made_by(me, here)
    assert not diagnostics.is_own(mine)
    with diagnostics.own_work():
        with diagnostics.own_work():
            assert diagnostics.is_own(mine)
        assert diagnostics.is_own(mine)
        assert diagnostics.is_own(made_by(None, None))  # logging.logThreads and logProcesses are off
        assert not diagnostics.is_own(made_by(me + 1, here))
        # A forked child's threads have the same numbers, and their records may come here by a queue.
        assert not diagnostics.is_own(made_by(me, here + 1))
    assert not diagnostics.is_own(mine)


def failing_work() -> None:
    with diagnostics.own_work():
        raise OSError(28, "No space left on device")


def test_own_work_that_fails_is_over() -> None:
    """The mark goes with the exception; a leader's thread number is used again."""
    with pytest.raises(OSError, match="No space"):
        failing_work()
    assert not diagnostics.is_own(made_by(threading.get_ident(), os.getpid()))
