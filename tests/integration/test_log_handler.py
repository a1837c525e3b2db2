"""`SpoolHandler` in real programs: whatever is logged, from wherever, is one event, once."""

from __future__ import annotations

import http.client
import json
import logging
import logging.config
import logging.handlers
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cwsink
from cwsink import diagnostics
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.pages import blocks
from tests.harness.support import CHILD_SECONDS, finish, quick_config

PRELUDE = """
import atexit, logging, logging.config, os, signal, sys, time
import cwsink
SETTINGS = {"log_group_name": "/test/group", "log_stream_name": "stream", "batch_timeout_seconds": 0.1}
SETTINGS["drain_timeout_seconds"] = 30.0  # on a crowded machine a flusher is not there at once
log = logging.getLogger("app")
def handle(level="INFO", **settings):
    handler = cwsink.SpoolHandler(**SETTINGS, **settings)
    logging.getLogger().addHandler(handler)
    logging.getLogger().setLevel(level)
    return handler
"""


def entries(server: StrictCloudWatch) -> list[dict[str, Any]]:
    return [json.loads(text) for text in server.messages()]


def said(server: StrictCloudWatch) -> list[str]:
    return [entry["message"] for entry in entries(server)]


@pytest.fixture
def logger() -> Iterator[logging.Logger]:
    """A logger that no handler of pytest hears; what handlers it got are closed at the end."""
    found = logging.Logger("shop", logging.DEBUG)  # noqa: LOG001  # one that pytest does not know
    yield found
    for handler in found.handlers:
        handler.close()


def handler_for(server: StrictCloudWatch, **settings: object) -> cwsink.SpoolHandler:
    return cwsink.SpoolHandler(quick_config(server.endpoint_url), **settings)


def test_a_record_is_an_event_at_the_time_it_was_made(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """JSON with the extra and the traceback in one event; as old as the record, not as its sending."""
    logger.addHandler(handler_for(server))
    record = logger.makeRecord(logger.name, logging.WARNING, "f.py", 3, "order %d", (17,), None, extra={"customer": 4})
    record.created -= 3600
    logger.handle(record)
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("two\nlines")
    assert server.wait_for_events(2)
    first, second = server.events()
    assert first.timestamp == round(record.created * 1000)
    assert json.loads(first.message)["message"] == "order 17"
    assert json.loads(first.message)["data"] == {"customer": 4}
    exception = json.loads(second.message)["diagnostics"]["exception"]
    assert exception["error.type"] == "KeyError"
    assert exception["error.stack"].endswith("KeyError: 'gone'\n")


class Picky(cwsink.SpoolHandler):
    """It has a filter of its own."""

    def filter(self, record: logging.LogRecord) -> bool:
        return record.msg != "secret"


def test_filters_are_asked(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """Those that are added, and that of a subclass."""
    handler = handler_for(server)
    handler.addFilter(lambda record: record.msg != "secret")
    logger.addHandler(handler)
    logger.addHandler(Picky(quick_config(server.endpoint_url)))
    logger.info("secret")
    logger.info("known")
    assert server.wait_for(lambda s: said(s) == ["known", "known"], CHILD_SECONDS)


def test_a_formatter_decides_on_the_text(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """Byte by byte; a traceback belongs to its record; an empty line is a space, which CloudWatch can hold."""
    handler = handler_for(server)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    logger.addHandler(handler)
    logger.info("grün\tund blau")
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("oh")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.info("")
    assert server.wait_for_events(3)
    plain, trouble, empty = server.messages()
    assert (plain, empty) == ("INFO grün\tund blau", " ")
    assert trouble.startswith("ERROR oh\nTraceback (most recent call last):\n")


class Loud(cwsink.SpoolHandler):
    """It has a format of its own."""

    def format(self, record: logging.LogRecord) -> str:
        return record.getMessage().upper()


def test_a_subclass_decides_on_the_text(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """`format` is what logging's handlers have for that. Static fields are added to JSON only."""
    logger.addHandler(Loud(quick_config(server.endpoint_url, fields={"service": "shop"})))
    logger.info("order %d", 17)
    assert server.wait_for_events(1)
    assert server.messages() == ["ORDER 17"]


@pytest.mark.parametrize("options", [{}, {"format": "%(levelname)s %(message)s"}], ids=["default", "a format"])
def test_basic_config_is_nobodys_wish_for_text(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, options: dict[str, str]
) -> None:
    """It gives a formatter to each handler that has none: the records stay JSON. A formatter of one's own is kept."""
    monkeypatch.setattr(logging, "root", logging.RootLogger(logging.INFO))
    own = handler_for(server)
    own.setFormatter(logging.Formatter("own %(message)s"))
    logging.basicConfig(handlers=[handler_for(server), own], **options)
    logging.root.info("order placed", extra={"order": 17})
    logging.root.handlers.clear()
    assert server.wait_for_events(2)
    first, second = server.messages()
    assert json.loads(first)["data"] == {"order": 17}
    assert second == "own order placed"


@pytest.mark.parametrize("hijacks", [True, False])
def test_celery_is_not_silent_about_its_clearing_of_the_root(
    server: StrictCloudWatch, spawn: Spawn, hijacks: bool
) -> None:
    """A worker removes the root logger's handlers, unless it is told not to: one line says what to set."""
    program = f"""
import logging, celery, cwsink
logging.getLogger().addHandler(cwsink.SpoolHandler(log_group_name="/test/group", log_stream_name="stream"))
app = celery.Celery("tasks")
app.conf.worker_hijack_root_logger = {hijacks}
app.log.setup_logging_subsystem(loglevel="INFO")
logging.getLogger("tasks").warning("done")
"""
    child = spawn(program, env=server.environment())
    _, err = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, err
    assert ("Set worker_hijack_root_logger=False in Celery's configuration." in err) == hijacks
    assert [json.loads(message)["message"] for message in server.messages()] == ([] if hijacks else ["done"])


def test_a_handler_that_is_older_than_celery_stays(server: StrictCloudWatch, spawn: Spawn) -> None:
    """Logging is set up before Celery is imported, as Django does: the root's records and those of tasks arrive."""
    program = """
import logging, cwsink
settings = {"log_group_name": "/test/group", "log_stream_name": "stream"}
logging.basicConfig(level="INFO", handlers=[cwsink.SpoolHandler(**settings)])
dropped = cwsink.SpoolHandler(**settings)
import celery
dropped = None
app = celery.Celery("tasks")
app.log.setup_logging_subsystem(loglevel="INFO")
logging.getLogger("tasks").info("of the root")
celery.utils.log.get_task_logger("place").info("of a task")
"""
    child = spawn(program, env=server.environment())
    _, err = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, err
    assert [json.loads(message)["message"] for message in server.messages()] == ["of the root", "of a task"]
    assert "cwsink:" not in err


@pytest.mark.parametrize(("hijacks", "has_one"), [(True, False), (False, False), (True, True)])
def test_a_killed_process_of_celerys_pool_is_told_once(
    server: StrictCloudWatch, spawn: Spawn, hijacks: bool, has_one: bool
) -> None:
    """Celery keeps the records of the pool's logger from the root logger. If it has a handler of ours, that is all."""
    program = f"""
import logging, os, signal, celery, cwsink
settings = {{"log_group_name": "/test/group", "log_stream_name": "stream"}}
logging.basicConfig(level="INFO", handlers=[cwsink.SpoolHandler(**settings)])
if {has_one}:
    logging.getLogger("multiprocessing").addHandler(cwsink.SpoolHandler(**settings))
app = celery.Celery("tasks", broker="memory://")
app.conf.update(worker_hijack_root_logger={hijacks}, broker_connection_retry_on_startup=False)

@celery.signals.worker_ready.connect
def ready(sender, **_):
    os.kill(sender.pool._pool._pool[0].pid, signal.SIGKILL)

@celery.signals.worker_shutting_down.connect
def ends(**_):
    logging.warning("ends")

app.Worker(pool="prefork", concurrency=1, hostname="w@h", without_mingle=True, without_gossip=True).start()
"""

    def told() -> list[str]:
        return [entry["message"] for entry in entries(server) if entry["logger"] == "multiprocessing"]

    child = spawn(program, env=server.environment())
    assert server.wait_for(lambda _: bool(told()), CHILD_SECONDS)
    child.terminate()  # it may wait for ever, for a lock that the killed process held
    assert server.wait_for(lambda _: "ends" in said(server), CHILD_SECONDS)
    (message,) = told()
    assert message.endswith("exited with 'signal 9 (SIGKILL)'")


def test_loguru_and_its_traceback(server: StrictCloudWatch) -> None:
    """`logger.add(SpoolHandler(...))`: the message, its extra, and the traceback once."""
    loguru = pytest.importorskip("loguru")
    sink = loguru.logger.add(handler_for(server), format="{message}")
    try:
        loguru.logger.bind(order=17).info("placed")
        try:
            raise KeyError("gone")
        except KeyError:
            loguru.logger.exception("oh")
    finally:
        loguru.logger.remove(sink)
    assert server.wait_for_events(2)
    placed, oh = map(json.loads, server.messages())
    assert placed["message"] == "placed"
    assert placed["data"]["extra"] == {"order": 17}
    assert json.dumps(oh).count("KeyError: 'gone'") == 1
    assert oh["diagnostics"]["exception"]["error.type"] == "KeyError"


def test_a_queue_handler_before_us_makes_text(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """Of a message that is a dict, the traceback and the stack: no fields, as records.md says. The extra stays."""
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    logger.addHandler(logging.handlers.QueueHandler(records))
    listener = logging.handlers.QueueListener(records, handler_for(server))
    listener.start()
    logger.info("order %d", 17, extra={"customer": 4})
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("oh", extra={"customer": 5}, stack_info=True)
    logger.info({"event": "placed", "order": 17})
    listener.stop()
    assert server.wait_for_events(3)
    first, second, third = map(json.loads, server.messages())
    assert (first["message"], first["data"]) == ("order 17", {"customer": 4})
    assert second["data"] == {"customer": 5}
    assert json.dumps(second).count("KeyError: 'gone'") == second["message"].count("KeyError: 'gone'") == 1
    assert second["message"].count("Stack (most recent call last):") == 1
    assert not second["diagnostics"].keys() & {"exception", "stack"}
    assert (third["message"], third["data"]) == ("{'event': 'placed', 'order': 17}", {})


STRUCTLOG = {
    "JSON": "[structlog.processors.JSONRenderer()]",
    "keywords": "[structlog.stdlib.render_to_log_kwargs]",
    "a formatter's": "[structlog.stdlib.ProcessorFormatter.wrap_for_formatter]",
}


@pytest.mark.parametrize("how", STRUCTLOG.values(), ids=STRUCTLOG)
def test_structlog(server: StrictCloudWatch, spawn: Spawn, how: str) -> None:
    """Whichever way it hands an entry to logging: the event, its keys and the traceback arrive."""
    pytest.importorskip("structlog")
    program = f"""
import logging, structlog, cwsink
logging.getLogger().addHandler(cwsink.SpoolHandler(log_group_name="/test/group", log_stream_name="stream"))
logging.getLogger().setLevel(logging.INFO)
structlog.configure(
    processors=[structlog.stdlib.add_log_level, structlog.processors.format_exc_info, *{how}],
    logger_factory=structlog.stdlib.LoggerFactory(),
    wrapper_class=structlog.stdlib.BoundLogger,
)
log = structlog.get_logger("shop").bind(order=17)
log.info("placed")
try:
    raise KeyError("gone")
except KeyError:
    log.exception("oh")
"""
    finish(spawn(program, env=server.environment()))
    assert server.wait_for_events(2)
    placed, oh = server.messages()
    for wanted in ("placed", "order", "17"):
        assert wanted in placed
    assert "KeyError: 'gone'" in oh
    assert json.loads(placed)["level"] == "INFO"


def test_a_record_that_another_thread_changes_costs_nothing(
    server: StrictCloudWatch, logger: logging.Logger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second handler formats the record meanwhile, and adds to it: the record arrives."""
    logger.addHandler(handler_for(server))
    record = logger.makeRecord(logger.name, logging.INFO, "f.py", 3, "placed", (), None, extra={"order": 17})
    stop = threading.Event()

    def change() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            vars(record)[f"extra{number % 50}"] = number
            vars(record).pop(f"extra{(number + 25) % 50}", None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(500):
            logger.handle(record)
    finally:
        stop.set()
        thread.join()
    assert server.wait_for_events(500)
    assert all(json.loads(text)["data"]["order"] == 17 for text in server.messages())


def test_a_record_that_lacks_what_each_has_is_not_lost(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """A filter has deleted attributes, or the message is a dict whose own code raises: the message arrives."""

    class Broken(dict):  # type: ignore[type-arg]
        def get(self, *_: object) -> object:
            raise RuntimeError

        keys = items = __iter__ = get  # type: ignore[assignment]

    logger.addHandler(handler_for(server))
    record = logger.makeRecord(logger.name, logging.INFO, "f.py", 3, "first", (), None)
    for name in ("process", "thread", "threadName", "pathname", "lineno", "funcName"):
        delattr(record, name)
    logger.handle(record)
    logger.info(Broken(event="second"))
    assert server.wait_for_events(2)
    first, second = map(json.loads, server.messages())
    assert first["message"] == "first"
    assert "second" in second["message"]


def test_what_cannot_be_formatted_is_sent_as_it_is_and_complained_about(
    server: StrictCloudWatch, logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    """A wrong placeholder, a formatter that wants what is not there, and a `repr()` that raises."""

    class Hostile:
        def __repr__(self) -> str:
            raise ValueError("no")

    handler = handler_for(server)
    logger.addHandler(handler)
    logger.info("%d apples", "no")
    logger.info(Hostile())
    handler.setFormatter(logging.Formatter("%(absent)s"))
    logger.info("kept %s", "whole")
    assert server.wait_for_events(3)
    assert said(server) == [
        "%d apples % ('no',)",
        "<Hostile that cannot be shown: ValueError>",
        "kept whole",
    ]
    assert capfd.readouterr().err.count("--- Logging error ---") == 3


def test_an_object_that_logs_while_it_is_shown_ends(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """Its `repr()` logs itself: a few records, no recursion without end."""

    class Chatty:
        def __repr__(self) -> str:
            logger.info("showing %r", self)
            return "chatty"

    logger.addHandler(handler_for(server))
    logger.info("outermost %r", Chatty())
    logger.info("next")
    assert server.wait_for_events(7)
    assert {"outermost chatty", "showing chatty", "next"} <= set(said(server))
    assert len(said(server)) == 7


def test_a_record_factory_of_the_application_loses_nothing(
    server: StrictCloudWatch, logger: logging.Logger, capfd: pytest.CaptureFixture[str]
) -> None:
    """One that takes away what is private, and one that needs a path: records of the last resort arrive, too."""
    before = logging.getLogRecordFactory()
    asked: list[str] = []

    def slim(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = before(*args, **kwargs)
        del record.__dict__["processName"]
        return record

    def folder(name: str, level: int, path: str, *args: Any, **kwargs: Any) -> logging.LogRecord:
        asked.append(path)
        record = before(name, level, path, *args, **kwargs)
        record.folder = Path(path).parts[-2]
        return record

    class Chatty:
        def __repr__(self) -> str:
            logger.info("showing %r", self)
            return "chatty"

    logger.addHandler(handler_for(server))
    try:
        logging.setLogRecordFactory(slim)
        logger.info("slim")
        logging.setLogRecordFactory(folder)
        logger.info("outermost %r", Chatty())
    finally:
        logging.setLogRecordFactory(before)
    assert server.wait_for_events(7)
    assert sorted(set(said(server))) == ["outermost chatty", "showing %r", "showing chatty", "slim"]
    assert set(asked) == {__file__}
    assert "LOST" not in capfd.readouterr().err


def test_an_illegal_setting_is_an_error_at_construction(tmp_path: Path) -> None:
    """With the name that was meant; `dictConfig` keeps it as the cause."""
    with pytest.raises(cwsink.ConfigError, match="Did you mean 'log_group_name'"):
        cwsink.SpoolHandler(log_group="/x")
    bad = {"version": 1, "handlers": {"h": {"class": "cwsink.SpoolHandler", "batch_size": 0}}}
    with pytest.raises(ValueError, match="Unable to configure handler 'h'") as caught:
        logging.config.dictConfig(bad)
    assert isinstance(caught.value.__cause__, cwsink.ConfigError)


DICT_CONFIG = (
    PRELUDE
    + """
def configure():
    logging.config.dictConfig({
        "version": 1, "disable_existing_loggers": False,
        "formatters": {"plain": {"format": "%(levelname)s %(message)s"}},
        "handlers": {
            "json": {"class": "cwsink.SpoolHandler", "level": "INFO", **SETTINGS},
            "text": {"class": "cwsink.SpoolHandler", "formatter": "plain", **SETTINGS},
        },
        "loggers": {"plain": {"handlers": ["text"], "propagate": False}},
        "root": {"level": "DEBUG", "handlers": ["json"]},
    })

configure()
before = logging.getLogger().handlers[0]
log.info("one")
log.debug("below the handler's level")
configure()
log.info("two")
logging.getLogger("plain").warning("three")
assert logging.getLogger().handlers[0] is not before
stale = logging.makeLogRecord({"name": "app", "levelname": "INFO", "msg": "late, by the old one"})
before.handle(stale)
"""
)


def test_dict_config_twice(server: StrictCloudWatch, spawn: Spawn) -> None:
    """The lazy name resolves, settings are the handler's keys; the old handler is closed and still works."""
    finish(spawn(DICT_CONFIG, env=server.environment()))
    wanted = ["one", "two", "late, by the old one"]
    assert [json.loads(text)["message"] for text in server.messages() if text.startswith("{")] == wanted
    assert [text for text in server.messages() if not text.startswith("{")] == ["WARNING three"]


LAST_MOMENTS = (
    PRELUDE
    + """
def late():
    log.info("from atexit, after logging.shutdown")
atexit.register(late)
atexit.register(logging.shutdown)
handle()
sys.excepthook = lambda *error: log.critical("crash", exc_info=error)
raise ValueError("on purpose")
"""
)
TAKEN_APART = (
    PRELUDE
    + """
handle()
class Dying:
    def __del__(self, log=log):  # its module is being taken apart
        log.info("from __del__, the first append of this process")
dying = Dying()
"""
)


def test_the_last_moments_of_a_program_are_logged(server: StrictCloudWatch, spawn: Spawn) -> None:
    """An exception nobody caught, an exit handler that runs after the handler was closed, and the end of the
    interpreter itself. What comes after the last delivery is in the spool, for the next process."""
    finish(spawn(LAST_MOMENTS, env=server.environment()), code=1)
    finish(spawn(TAKEN_APART, env=server.environment()))
    finish(spawn(PRELUDE + "handle()\nlog.info('next start')", env=server.environment()))
    assert said(server) == [
        "crash",
        "from atexit, after logging.shutdown",
        "from __del__, the first append of this process",
        "next start",
    ]
    assert entries(server)[0]["diagnostics"]["exception"]["error.message"] == "on purpose"


SIGNALS = (
    PRELUDE
    + """
handle()
handled = 0
def on_signal(number, frame):
    global handled
    if handled < 5000:
        log.info("signal %d", handled)
        handled += 1
        signal.setitimer(signal.ITIMER_REAL, 0.00001)  # not periodic: handlers would interrupt each other for ever
signal.signal(signal.SIGALRM, on_signal)
signal.setitimer(signal.ITIMER_REAL, 0.00001)
logged = 0
while handled < 5000:
    log.info("main %d", logged)
    logged += 1
print(logged)
"""
)


def test_a_signal_handler_may_log_while_the_program_logs(server: StrictCloudWatch, spawn: Spawn) -> None:
    """5,000 signals that interrupt the handler anywhere: no deadlock, every record once, in order."""
    logged = int(finish(spawn(SIGNALS, env=server.environment())))
    found = said(server)
    assert [text for text in found if text.startswith("signal")] == [f"signal {number}" for number in range(5000)]
    assert [text for text in found if text.startswith("main")] == [f"main {number}" for number in range(logged)]


FORKS = (
    PRELUDE
    + """
handler = handle()
log.info("parent before")
handler.close()
log.info("parent reopens")
pid = os.fork()
if pid == 0:
    log.info("child")
    logging.shutdown()
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
log.info("parent after")
"""
)


def test_it_survives_a_fork_and_a_close(server: StrictCloudWatch, spawn: Spawn) -> None:
    """Parent and child go on with the same handler, also after a `close()`."""
    finish(spawn(FORKS, env=server.environment()))
    assert sorted(said(server)) == ["child", "parent after", "parent before", "parent reopens"]
    pids = {entry["message"].split()[0]: entry["diagnostics"]["pid"] for entry in entries(server)}
    assert pids["child"] != pids["parent"]


LOOP = (
    PRELUDE
    + """
class Others(logging.Handler):
    heard = []
    def emit(self, record):
        if record.name != "app":
            self.heard.append(record.getMessage())
others = Others()
logging.getLogger().addHandler(others)
handle("DEBUG")
log.debug("one")
time.sleep(2.0)  # what is measured is that nothing happens
logging.getLogger("botocore.endpoint").debug("two")
time.sleep(0.5)
print(others.heard)
"""
)


def test_nothing_the_flusher_does_comes_back_as_a_record(server: StrictCloudWatch, spawn: Spawn) -> None:
    """The root logger at DEBUG hears nothing of our requests; what the application's own botocore logs is sent."""
    assert finish(spawn(LOOP, env=server.environment())) == "['two']\n"
    assert said(server) == ["one", "two"]


def test_tail_reads_what_it_spools(tmp_path: Path, logger: logging.Logger) -> None:
    """Level, logger, message, extra and traceback, as of fapilog's entries."""
    logger.addHandler(cwsink.SpoolHandler(quick_config(flusher="external")))
    logger.info("not shown")
    logger.log(45, "severe")
    try:
        raise KeyError("gone")
    except KeyError:
        logger.exception("order failed", extra={"order": 17})
    command = [sys.executable, "-m", "cwsink", "tail", "--level", "ERROR"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=CHILD_SECONDS)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert f"LEVEL 45 {logger.name}: severe" in lines[0]
    assert f"ERROR    {logger.name}: order failed" in lines[1]
    assert "order=17" in lines[1]
    assert "KeyError: 'gone'" in lines[-1]
    assert "not shown" not in done.stdout


APP = """
def app(environ, start_response):
    if environ["PATH_INFO"] == "/bad":
        raise KeyError("on purpose")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
"""


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_gunicorns_own_logs_arrive(server: StrictCloudWatch, tmp_path: Path, options: tuple[str, ...]) -> None:
    """`--log-config` with the manual's file: each request's access line, the master's lines, a traceback."""
    pytest.importorskip("gunicorn")
    (log_config,) = (each.text for each in blocks() if each.heading == "gunicorn's own log" and each.language == "ini")
    (tmp_path / "log.ini").write_text(log_config)
    (tmp_path / "app.py").write_text(APP)
    listener = socket.create_server(("127.0.0.1", 0))
    command = [sys.executable, "-m", "gunicorn", "app:app", "-w", "2", "-b", f"fd://{listener.fileno()}"]
    command += ["--log-config", str(tmp_path / "log.ini"), *options]
    patient = {"FAPILOG_CLOUDWATCH__DRAIN_TIMEOUT_SECONDS": "30"}
    path = os.pathsep.join([str(tmp_path), *sys.path])
    master = subprocess.Popen(
        command,
        cwd=tmp_path,
        env={**os.environ, **server.environment(), **patient, "PYTHONPATH": path},
        pass_fds=[listener.fileno()],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    port = listener.getsockname()[1]
    listener.close()
    try:
        for number in range(50):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=CHILD_SECONDS)
            connection.request("GET", f"/request-{number}" if number else "/bad")
            assert connection.getresponse().status == (200 if number else 500)
            connection.close()
        master.send_signal(signal.SIGTERM)
        output, _ = master.communicate(timeout=CHILD_SECONDS)
    finally:
        try:
            os.killpg(master.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        master.communicate(timeout=CHILD_SECONDS)
    assert master.returncode == 0, output
    found = entries(server)
    access = [entry["message"] for entry in found if entry["logger"] == "gunicorn.access"]
    assert sorted(access) == sorted(set(access))
    for number in range(1, 50):
        assert sum(f'"GET /request-{number} HTTP/1.1" 200' in line for line in access) == 1
    fields = {entry["http"]["path"]: entry["http"] for entry in found if entry["logger"] == "gunicorn.access"}
    assert fields["/bad"]["status"] == 500
    assert fields["/request-1"] == {
        "method": "GET", "path": "/request-1", "status": 200, "client": "127.0.0.1",
        "duration_ms": fields["/request-1"]["duration_ms"],
    }  # fmt: skip
    assert 0 < fields["/request-1"]["duration_ms"] < 1000 * CHILD_SECONDS
    errors = {entry["message"]: entry for entry in found if entry["logger"] == "gunicorn.error"}
    assert any(text.startswith("Starting gunicorn") for text in errors)
    assert any(text.startswith("Shutting down: Master") for text in errors)
    assert errors["Error handling request GET /bad"]["diagnostics"]["exception"]["error.type"] == "KeyError"


INI = """\
[loggers]
keys=root
[handlers]
keys=out
[formatters]
keys=json
[logger_root]
handlers=out
[handler_out]
class=StreamHandler
args=(sys.stdout,)
formatter=json
[formatter_json]
class=cwsink.JsonFormatter
"""


@pytest.mark.parametrize("more", ["", "format=%(message)s"])
@pytest.mark.parametrize("how", ["dict", "ini"])
def test_a_configuration_may_name_our_formatter(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    how: str,
    more: str,
) -> None:
    """As a `class`, to which logging gives a format, whether there is one or not. A format changes nothing."""
    told: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: told.append(key)])
    diagnostics.reset_quiet("json_format")
    root = logging.getLogger()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    if how == "ini":
        (tmp_path / "logging.ini").write_text(INI + more)
        logging.config.fileConfig(tmp_path / "logging.ini", disable_existing_loggers=False)
    else:
        formatter = {"class": "cwsink.JsonFormatter", **({"format": more.partition("=")[2]} if more else {})}
        out = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "json"}
        settings = {"formatters": {"json": formatter}, "handlers": {"out": out}, "root": {"handlers": ["out"]}}
        logging.config.dictConfig({"version": 1, "disable_existing_loggers": False, **settings})
    logging.getLogger("app").error("placed", extra={"order": 17})
    assert json.loads(capsys.readouterr().out)["data"] == {"order": 17}
    assert told == ["json_format"] * bool(more)


def test_a_formatter_may_be_given_at_once(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """As `setFormatter` takes it."""
    logger.addHandler(handler_for(server, formatter=logging.Formatter("%(levelname)s %(message)s")))
    logger.info("placed")
    assert server.wait_for(lambda s: s.messages() == ["INFO placed"], CHILD_SECONDS)


def test_a_record_without_its_time_arrives(server: StrictCloudWatch, logger: logging.Logger) -> None:
    """It has the present time."""
    logger.addHandler(handler_for(server))
    record = logging.LogRecord("app", logging.INFO, "", 0, "placed", (), None)
    del record.created
    logger.handle(record)
    assert server.wait_for(lambda s: said(s) == ["placed"], CHILD_SECONDS)
