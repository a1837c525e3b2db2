"""structlog, loguru, OpenTelemetry and uncaught exceptions: one shape from every front end, with the real libraries."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import os
import pickle
import queue
import sys
import threading
import warnings
from collections.abc import Iterator
from datetime import datetime, timezone
from logging.handlers import QueueHandler, QueueListener
from pathlib import Path
from typing import Any

import loguru
import pytest
import structlog
from opentelemetry import trace as opentelemetry_trace
from opentelemetry.instrumentation.logging import LoggingInstrumentor

import cwsink
import cwsink.loguru
import cwsink.structlog
from cwsink.frontends import uncaught
from cwsink.spool import survey
from cwsink.spool.directory import find_spools, open_existing
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, Unresolved

GROUP = "/test/adapters"
TOP = ["timestamp", "level", "message", "logger", "diagnostics", "data"]


def entries() -> list[dict[str, Any]]:
    """All that is in the test's spool, in the order in which it was logged."""
    (path,) = find_spools()
    return [json.loads(event.message) for event in survey.events(open_existing(path))]


@pytest.fixture
def structlog_logger() -> Iterator[Any]:
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            cwsink.structlog.render,
        ],
        logger_factory=cwsink.structlog.LoggerFactory(log_group_name=GROUP, flusher="external"),
    )
    yield structlog.get_logger("shop")
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()


@pytest.fixture
def loguru_logger() -> Iterator[Any]:
    logger = loguru.logger
    logger.remove()
    number = logger.add(cwsink.loguru.Sink(log_group_name=GROUP, flusher="external"), format="{message}")
    yield logger
    logger.remove(number)


@pytest.fixture
def logging_logger() -> Iterator[logging.Logger]:
    logger = logging.getLogger("shop")
    logger.addHandler(handler := cwsink.SpoolHandler(log_group_name=GROUP, flusher="external"))
    logger.setLevel("DEBUG")
    yield logger
    logger.removeHandler(handler)
    handler.close()


def test_structlog(structlog_logger: Any) -> None:
    """Bound context and keywords are data; level, logger, time and message have their places."""
    structlog.contextvars.bind_contextvars(request_id="r-1")
    structlog_logger.bind(user="ann").warning("order placed", order=17)
    (found,) = entries()
    assert list(found) == TOP
    assert (found["level"], found["message"], found["logger"]) == ("WARNING", "order placed", "shop")
    assert found["data"] == {"request_id": "r-1", "user": "ann", "order": 17}
    assert found["diagnostics"] == {"origin": "structlog"}
    assert found["timestamp"].endswith("Z")


@pytest.mark.parametrize("processor", [None, structlog.processors.StackInfoRenderer()])
def test_a_stack_that_structlog_is_asked_for_arrives(structlog_logger: Any, processor: Any) -> None:
    """With and without structlog's own processor: down to the call, and with no frame of structlog."""
    if processor is not None:
        processors = structlog.get_config()["processors"]
        structlog.configure(processors=[*processors[:-1], processor, processors[-1]])
    structlog.get_logger("shop").info("here", stack_info=True)
    structlog.get_logger("shop").info("there")
    asked, plain = entries()
    stack = asked["diagnostics"]["stack"]
    assert stack.startswith("Stack (most recent call last):\n")
    assert stack.endswith('structlog.get_logger("shop").info("here", stack_info=True)')
    assert asked["data"] == {}
    assert "stack" not in plain["diagnostics"]


@pytest.mark.parametrize(
    ("given", "wanted", "data"),
    [
        (datetime(2020, 1, 1, 12, tzinfo=timezone.utc), "2020-01-01T12:00:00+00:00", {}),
        (1_577_880_000.5, "2020-01-01T12:00:00.500Z", {}),
        ("noon", "noon", {}),
        (1_577_880_000_000, None, {"timestamp": 1_577_880_000_000}),
        ([12, 0], None, {"timestamp": [12, 0]}),
        (None, None, {}),
    ],
)
def test_structlogs_timestamp_is_the_time_or_data(
    structlog_logger: Any, given: Any, wanted: str | None, data: dict[str, Any]
) -> None:
    """Text, a datetime or seconds; what is no time is kept, and the record has the present one."""
    structlog_logger.info("x", timestamp=given)
    (found,) = entries()
    assert found["data"] == data
    if wanted is None:
        assert datetime.fromisoformat(found["timestamp"].replace("Z", "+00:00")).year > 2020
    else:
        assert found["timestamp"] == wanted


def test_an_exc_info_that_is_no_exception_is_data(structlog_logger: Any) -> None:
    """It is the application's own, then. True where nothing was raised says nothing."""
    for given in ("boom", True):
        structlog_logger.bind(exc_info=given).info("x")
    assert [found["data"] for found in entries()] == [{"exc_info": "boom"}, {}]


@pytest.mark.parametrize(
    "processor", [None, structlog.processors.format_exc_info, structlog.processors.dict_tracebacks]
)
def test_a_traceback_of_structlog_arrives_once(structlog_logger: Any, processor: Any) -> None:
    """As an object, or formatted by one of structlog's own processors."""
    if processor is not None:
        processors = structlog.get_config()["processors"]
        structlog.configure(processors=[*processors[:-1], processor, processors[-1]])
    try:
        raise KeyError("gone")
    except KeyError:
        structlog.get_logger("shop").exception("failed")
    (found,) = entries()
    assert found["level"] == "ERROR"
    exception = found["diagnostics"]["exception"]
    if processor is structlog.processors.dict_tracebacks:
        assert exception["error.frames"][0]["exc_type"] == "KeyError"
    else:
        assert exception["error.stack"].rstrip().endswith("KeyError: 'gone'")
        assert json.dumps(found).count("KeyError: 'gone'") == 1
    assert "exc_info" not in found["data"]
    assert "exception" not in found["data"]


@pytest.mark.parametrize("name", ["message", "msg"])
def test_structlogs_renamed_event_is_the_message(structlog_logger: Any, name: str) -> None:
    """Whatever was logged. Something else may have taken its old name, and a keyword of that name is data."""
    renderer = cwsink.structlog.render
    renamer = structlog.processors.EventRenamer(name, replace_by="_event")
    for processors in ([renamer, renderer], [renderer]):
        structlog.configure(processors=processors)
        logger = structlog.get_logger("shop")
        logger.info("order placed", order=17)
        logger.info({1, 2})
        logger.info({"a": 1})
        logger.info("logged in", _event={"category": "session"})
    logger.info("order placed", **{name: "of the caller"})
    logger.info(None, order=18)
    found = [(each["message"], each["data"]) for each in entries()]
    session = {"category": "session"}
    renamed = [("order placed", {"order": 17}), ("{1, 2}", {}), ("{'a': 1}", {"a": 1})]
    renamed += [("logged in", {"event": session})]
    assert found == [
        *renamed,
        *renamed[:3],
        ("logged in", {"_event": session}),
        ("order placed", {name: "of the caller"}),
        ("", {"order": 18}),
    ]


@pytest.mark.parametrize("message", [{"event": "paid", "n": 1}, {"n": 1}, ValueError("asmsg"), b"bytes", 17, Path("a")])
def test_a_message_that_is_no_text_is_the_same_by_structlog_and_logging(
    structlog_logger: Any, logging_logger: logging.Logger, message: Any
) -> None:
    """A dict is the message and `data`, with what is beside it; of all else the message is the `str()`."""
    structlog_logger.info(message, n=2)
    logging_logger.info(message, extra={"n": 2})
    one, other = entries()
    assert (one["message"], one["data"]) == (other["message"], other["data"])


def where_logging_has_it(_: object) -> dict[str, Any]:
    """The call site of this call, and of the one that is its argument, as a LogRecord has it."""
    frame = sys._getframe(1)
    return {
        "pid": os.getpid(),
        "process": "MainProcess",
        "thread": threading.current_thread().name,
        "file": frame.f_code.co_filename,
        "line": frame.f_lineno,
        "function": frame.f_code.co_name,
    }


@pytest.mark.parametrize("is_loaded", [True, False])
def test_what_structlogs_adder_finds_has_its_place(
    structlog_logger: Any, monkeypatch: pytest.MonkeyPatch, is_loaded: bool
) -> None:
    """Where it was logged is in `diagnostics`, as logging has it; what has no place there is data."""
    if not is_loaded:
        monkeypatch.delitem(sys.modules, "multiprocessing", raising=False)
    *before, render = structlog.get_config()["processors"]
    structlog.configure(processors=[*before, structlog.processors.CallsiteParameterAdder(), render])
    logger = structlog.get_logger("shop")
    where = where_logging_has_it(logger.info("order placed", order=17))

    async def log() -> None:
        await logger.ainfo("order paid", order=17)

    asyncio.run(log())
    found, awaited = entries()
    assert found["diagnostics"] == {"origin": "structlog", **where}
    assert found["data"].keys() - {"qual_name", "qual_module"} == {"order", "thread", "module"}
    assert awaited["diagnostics"].items() >= {"thread": where["thread"], "file": __file__, "function": "log"}.items()
    assert awaited["data"].keys() == found["data"].keys()


@pytest.mark.parametrize("has_adder", [True, False])
def test_fields_of_an_application_that_are_called_as_those_of_a_call_site_are_data(
    structlog_logger: Any, has_adder: bool
) -> None:
    """They tell of something else, and no frame of the call is there."""
    own = {"process": "billing", "thread_name": "crawler", "filename": "orders.csv", "pathname": 5}
    if has_adder:
        *before, render = structlog.get_config()["processors"]
        of = structlog.processors.CallsiteParameter
        adder = structlog.processors.CallsiteParameterAdder({of.LINENO, of.FUNC_NAME})
        structlog.configure(processors=[*before, adder, render])
    else:
        own |= {"lineno": 3, "func_name": "place"}
    structlog.get_logger("shop").info("read", **own)
    (found,) = entries()
    assert found["data"] == own
    assert found["diagnostics"].keys() == ({"origin", "line", "function"} if has_adder else {"origin"})


def test_structlog_with_values_that_are_no_json(structlog_logger: Any) -> None:
    """An object arrives as its own text; a message that is no text, too."""
    structlog_logger.info({1, 2}, thing=object, text="\ud800")
    (found,) = entries()
    assert found["message"] == "{1, 2}"
    assert found["data"] == {"thing": "<class 'object'>", "text": "\\ud800"}


@pytest.mark.parametrize("fields", [{}, {"service": "shop"}])
def test_an_object_that_cannot_be_asked_reaches_no_application(fields: dict[str, str]) -> None:
    """As the event it is shown as it is, and as the text of another renderer it is refused and counted."""
    spool = cwsink.structlog.LoggerFactory(log_group_name=GROUP, flusher="external", fields=fields)(Unresolved())
    spool.msg(cwsink.structlog.render(spool, "info", {"event": Unresolved(), "timestamp": Unresolved()}))
    spool.msg(Unresolved())  # type: ignore[arg-type]
    (found,) = entries()
    assert "Unresolved object at" in found["message"]
    (path,) = find_spools()
    assert survey.survey(open_existing(path)).refused == {"unencodable": 1}


@pytest.mark.parametrize("key", ["stack", "stack_info", "exc_info", "exception", "logger", "timestamp"])
def test_what_structlog_is_given_in_the_place_of_its_own_fields_raises_nothing(key: str) -> None:
    """A lazy proxy that cannot be resolved there costs that field, and the message arrives."""
    found = json.loads(cwsink.structlog.render(None, "info", {"event": "order placed", key: Unresolved()}))
    assert (found["message"], found["level"]) == ("order placed", "INFO")


def test_loguru(loguru_logger: Any) -> None:
    """`bind` and `extra` are data; the record's own time and place arrive; an own level keeps its number."""
    loguru_logger.level("NOTICE", no=25)
    loguru_logger.bind(order=17).log("NOTICE", "order {} placed", 17)
    (found,) = entries()
    assert list(found) == TOP
    assert (found["level"], found["message"], found["logger"]) == ("NOTICE", "order 17 placed", __name__)
    assert found["data"] == {"order": 17}
    assert (found["diagnostics"]["levelno"], found["diagnostics"]["function"]) == (25, "test_loguru")


LOGURU_PATCHES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "time as text": ({"time": "noon"}, {"timestamp": "noon"}),
    "time as seconds": ({"time": 1_577_880_000.5}, {"timestamp": "2020-01-01T12:00:00.500Z"}),
    "no file": ({"file": None}, {"file": None}),
    "plain values": ({"process": 17, "thread": "T"}, {"pid": 17, "thread": "T"}),
    "no data": ({"extra": None}, {"data": {"extra": None}}),
    "an exception of parts": (
        {"exception": (KeyError, KeyError("x"), None)},
        {"exception": {"error.type": "KeyError"}},
    ),
    "a message that is no text": ({"message": {1}}, {"message": "{1}"}),
    "no time that is one": ({"time": Unresolved()}, {"message": "order placed", "level": "INFO"}),
    "no thread that is one": ({"thread": Unresolved()}, {"message": "order placed", "level": "INFO"}),
}


@pytest.mark.parametrize(("patch", "wanted"), LOGURU_PATCHES.values(), ids=LOGURU_PATCHES)
def test_what_a_patcher_of_loguru_puts_into_a_record_loses_none(patch: dict[str, Any], wanted: dict[str, Any]) -> None:
    """It arrives with what can be told, and with `catch=False` the application hears of nothing."""
    logger = loguru.logger
    logger.remove()
    sink = cwsink.loguru.Sink(log_group_name=GROUP, flusher="external")
    number = logger.add(sink, format=lambda _: "{level}", catch=False)
    try:
        logger.patch(lambda record: record.update(patch)).info("order placed")  # type: ignore[typeddict-item]
    finally:
        logger.remove(number)
    (found,) = entries()
    shown = {**found["diagnostics"], **found}
    shown["exception"] = {"error.type": shown.get("exception", {}).get("error.type")}
    assert shown.items() >= wanted.items()


def test_a_traceback_of_loguru_arrives_once(loguru_logger: Any) -> None:
    """In its own field, and not in the message as well."""
    try:
        raise KeyError("gone")
    except KeyError:
        loguru_logger.exception("failed")
    (found,) = entries()
    assert (found["level"], found["message"]) == ("ERROR", "failed")
    assert found["diagnostics"]["exception"]["error.type"] == "KeyError"
    assert json.dumps(found).count("KeyError: 'gone'") == 1


@pytest.fixture
def span() -> Iterator[None]:
    """An active span with the ids 1 and 2."""
    context = opentelemetry_trace.SpanContext(1, 2, is_remote=False)
    with opentelemetry_trace.use_span(opentelemetry_trace.NonRecordingSpan(context)):
        yield


@pytest.mark.parametrize("name", ["logging_logger", "structlog_logger", "loguru_logger"])
def test_the_ids_of_the_active_span_are_at_the_top(name: str, span: None, request: pytest.FixtureRequest) -> None:
    """As OpenTelemetry writes them, from each front end."""
    request.getfixturevalue(name).error("order placed")
    (found,) = entries()
    assert (found["trace_id"], found["span_id"]) == (f"{1:032x}", f"{2:016x}")


def test_the_ids_can_be_left_out(span: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """`trace="off"`, given to a front end or by the variable."""
    record = logging.makeLogRecord({"msg": "placed"})
    settings: dict[str, Any] = {"log_group_name": GROUP, "flusher": "external"}
    with_ids = cwsink.SpoolHandler(**settings)
    with_ids.handle(record)
    assert "trace_id" in cwsink.JsonFormatter().format(record)
    assert "trace_id" not in cwsink.JsonFormatter(trace="off").format(record)
    monkeypatch.setenv("CWSINK_TRACE", "off")
    assert "trace_id" not in cwsink.JsonFormatter().format(record)
    cwsink.SpoolHandler(**settings).handle(record)
    structlog.configure(processors=[cwsink.structlog.render], logger_factory=cwsink.structlog.LoggerFactory(**settings))
    structlog.get_logger().info("placed")
    structlog.reset_defaults()
    number = loguru.logger.add(cwsink.loguru.Sink(**settings), format="{message}")
    loguru.logger.info("placed")
    loguru.logger.remove(number)
    assert ["trace_id" in each for each in entries()] == [True, False, False, False]


OF_RECORD = {"otelTraceID": f"{3:032x}", "otelSpanID": f"{4:016x}"}


@pytest.mark.parametrize("header", [None, "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8"])
def test_the_ids_of_a_record_pass_a_queue(span: None, monkeypatch: pytest.MonkeyPatch, header: str | None) -> None:
    """OpenTelemetry's logging instrumentation has them on the record. The listener's thread has no span, or X-Ray's."""
    if header:
        monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    records: queue.SimpleQueue[logging.LogRecord] = queue.SimpleQueue()
    listener = QueueListener(records, cwsink.SpoolHandler(log_group_name=GROUP, flusher="external"))
    listener.start()
    logger = logging.Logger("shop")  # noqa: LOG001  # one that pytest does not know
    logger.addHandler(QueueHandler(records))
    LoggingInstrumentor().instrument(inject_trace_context=True)
    try:
        logger.error("order placed")
    finally:
        LoggingInstrumentor().uninstrument()
    listener.stop()
    (found,) = entries()
    assert (found["trace_id"], found["span_id"]) == (f"{1:032x}", f"{2:016x}")
    assert found["data"]["otelTraceID"] == found["trace_id"]


def test_the_ids_of_a_record_are_those_where_it_was_made(span: None) -> None:
    """Not those of a span that is active where another thread handles it."""
    found = json.loads(cwsink.JsonFormatter().format(logging.makeLogRecord(OF_RECORD)))
    assert (found["trace_id"], found["span_id"]) == (f"{3:032x}", f"{4:016x}")


@pytest.mark.parametrize(
    ("changes", "trace"),
    [
        ({"otelTraceID": "0", "otelSpanID": "0"}, "auto"),
        ({"otelTraceID": "0" * 32}, "auto"),
        ({"otelTraceID": 3}, "auto"),
        ({"otelTraceID": Unresolved()}, "auto"),
        ({"otelTraceID": "order 17".rjust(32)}, "auto"),
        ({"otelSpanID": None}, "auto"),
        ({"otelSpanID": f"{4:032x}"}, "auto"),
        ({}, "off"),
    ],
)
def test_what_is_no_id_stays_in_the_data(changes: dict[str, Any], trace: Any) -> None:
    """A "0" is what the instrumentation says where no span is. `trace="off"` holds for the ids of a record, too."""
    record = logging.makeLogRecord({**OF_RECORD, **changes})
    found = json.loads(cwsink.JsonFormatter(trace=trace).format(record))
    assert list(found) == TOP
    assert found["data"].keys() == OF_RECORD.keys()


def test_without_a_span_there_are_no_ids(logging_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless X-Ray's header is set."""
    logging_logger.error("outside")
    header = "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8;Sampled=1"
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    logging_logger.error("inside")
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "garbage;=;")
    logging_logger.error("garbage")
    outside, inside, garbage = entries()
    assert list(outside) == list(garbage) == TOP
    assert inside["trace_id"] == "1-5759e988-bd862e3fe1be46a994272793"
    assert inside["span_id"] == "53995c3f42cd8ad8"


@pytest.mark.parametrize("extra", [{}, {"order": 17}, {"thing": object()}])
@pytest.mark.parametrize("header", ["Root=1-5759e988-bd862e3f;Sampled=0", "Root=1-5759e988-bd862e3f;Parent=;Sampled=0"])
def test_without_a_span_in_x_rays_header_there_is_no_id_of_one(
    logging_logger: logging.Logger, monkeypatch: pytest.MonkeyPatch, header: str, extra: dict[str, Any]
) -> None:
    """Nobody samples there. An empty id would be a value."""
    monkeypatch.setenv("_X_AMZN_TRACE_ID", header)
    logging_logger.error("x", extra=extra)
    (found,) = entries()
    assert found["trace_id"] == "1-5759e988-bd862e3f"
    assert "span_id" not in found


def test_the_json_of_a_record_for_any_handler(capsys: pytest.CaptureFixture[str]) -> None:
    """`JsonFormatter` gives another handler what `SpoolHandler` spools, and `SpoolHandler` takes it as no change."""
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(cwsink.JsonFormatter())
    spool = cwsink.SpoolHandler(log_group_name=GROUP, flusher="external")
    spool.setFormatter(cwsink.JsonFormatter())
    record = logging.makeLogRecord({"name": "shop", "levelname": "INFO", "msg": "a %s", "args": ("b",), "order": 17})
    for handler in (stream, spool):
        handler.handle(record)
    assert [json.loads(capsys.readouterr().err)] == entries()
    spool.close()


class Unhashable:
    """As a text of rich: it can be compared, and so has no hash."""

    __hash__ = None  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        return str(other) == "INFO"

    def __str__(self) -> str:
        return "INFO"


ODD = (
    None,
    Unhashable(),
    [1],
    {"a": 1},
    b"\xff",
    "\ud800",
    "",
    float("nan"),
    10**400,
    -1,
    object,
    (1, 2, 3),
    ValueError(),
)


@pytest.mark.parametrize("name", [*vars(logging.makeLogRecord({})), "taskName", "message", "asctime"])
def test_a_record_arrives_whatever_stands_in_a_field_of_it(logging_logger: logging.Logger, name: str) -> None:
    """A filter of the application may have put it there, and other handlers print the record."""
    for value in ODD:
        logging_logger.handlers[-1].handle(logging.makeLogRecord({"name": "shop", "msg": "order placed", name: value}))
    assert len(entries()) == len(ODD)


def test_a_level_that_is_an_object_arrives_as_its_text(logging_logger: logging.Logger) -> None:
    """With its number, because no reader knows the name."""
    logging_logger.handlers[-1].handle(logging.makeLogRecord({"levelname": Unhashable(), "levelno": 25}))
    (found,) = entries()
    assert (found["level"], found["diagnostics"]["levelno"]) == ("INFO", 25)


def test_arguments_that_cannot_be_asked_are_shown(logging_logger: logging.Logger) -> None:
    """Not even whether there are any."""
    logging.raiseExceptions = False
    try:
        logging_logger.handlers[-1].handle(logging.makeLogRecord({"msg": "order placed", "args": Unresolved()}))
    finally:
        logging.raiseExceptions = True
    (found,) = entries()
    assert found["message"].startswith("order placed % <")


# Copies.


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
def test_a_copy_shares_the_writer(structlog_logger: Any, copied: Any) -> None:
    """Of structlog's bound logger and of the other objects that hold a writer: all are one producer."""
    bound = structlog_logger.bind(items=[1])
    made = copied(bound)
    bound.info("bound")
    made.info("copy of it")
    factory = structlog.get_config()["logger_factory"]
    copied(factory)("shop").info("{}")
    with cwsink.Writer.open(log_group_name=GROUP, flusher="external") as writer:
        assert copied(writer) is writer
    (path,) = find_spools()
    events = list(survey.events(open_existing(path)))
    assert [json.loads(each.message).get("message") for each in events[:2]] == ["bound", "copy of it"]
    assert [(each.producer, each.sequence) for each in events] == [(events[0].producer, n) for n in range(3)]


def test_a_deep_copy_of_logurus_logger_spools(loguru_logger: Any) -> None:
    """loguru's manual has it for loggers with different sinks."""
    loguru_logger.info("first")
    copied = copy.deepcopy(loguru_logger)
    copied.info("second")
    copied.remove()
    loguru_logger.info("third")
    assert [each["message"] for each in entries()] == ["first", "second", "third"]


@pytest.mark.parametrize("target", ["cloudwatch", "stdout"])
def test_a_pickled_logger_spools_in_another_process(
    structlog_logger: Any, spawn: Spawn, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """Into the same spool, by the settings that the first process was given, and with its static fields."""
    monkeypatch.setenv("CWSINK_TARGET", target)
    settings: dict[str, Any] = {"log_group_name": GROUP, "flusher": "external", "fields": {"service": "shop"}}
    structlog.configure(logger_factory=cwsink.structlog.LoggerFactory(**settings))
    writer = cwsink.Writer.open(**settings)
    pickled = pickle.dumps([structlog.get_logger("shop").bind(user="ann"), writer])
    script = f"""
        import pickle
        logger, writer = pickle.loads({pickled!r})
        logger.info("order placed")
        assert writer.append('{{"message": "by a writer"}}')
    """
    out, errors = spawn(script).communicate(timeout=CHILD_SECONDS)
    found = [json.loads(line) for line in out.splitlines()] if target == "stdout" else entries()
    assert [(each["message"], each["service"]) for each in found] == [
        ("order placed", "shop"),
        ("by a writer", "shop"),
    ], errors
    assert found[0]["data"] == {"user": "ann"}


# Static fields.


FIELDS: dict[str, str | int | float | bool] = {"service": "shop", "env": "{env:STAGE}", "shard": 7, "canary": True}


def test_static_fields_are_at_the_top_of_every_record(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From each front end, given to it or by the variable; placeholders are filled in. Other text stays as it is."""
    monkeypatch.setenv("STAGE", "prod")
    monkeypatch.setenv("CWSINK_FIELDS", json.dumps(FIELDS))
    settings: dict[str, Any] = {"log_group_name": GROUP, "flusher": "external"}
    record = logging.makeLogRecord({"name": "shop", "msg": "by logging"})
    by_logging = cwsink.SpoolHandler(fields=FIELDS, **settings)
    by_logging.handle(record)
    formatter = cwsink.JsonFormatter()
    by_logging.setFormatter(formatter)
    by_logging.handle(record)
    structlog.configure(processors=[cwsink.structlog.render], logger_factory=cwsink.structlog.LoggerFactory(**settings))
    structlog.get_logger().info("by structlog")
    structlog.configure(processors=[structlog.processors.JSONRenderer()])
    structlog.get_logger().info("by another renderer")
    structlog.reset_defaults()
    number = loguru.logger.add(cwsink.loguru.Sink(**settings), format="{message}")
    loguru.logger.info("by loguru")
    loguru.logger.remove(number)
    sink = cwsink.CloudWatchSpoolSink(**settings)
    assert sink.spool({"message": "by fapilog"})
    found = entries()
    assert len(found) == 6
    for each in found:
        assert list(each.items())[-4:] == [("service", "shop"), ("env", "prod"), ("shard", 7), ("canary", True)]
    assert json.loads(formatter.format(record)) == found[0]
    by_logging.setFormatter(logging.Formatter("%(message)s"))
    by_logging.handle(record)
    (path,) = find_spools()
    assert [event.message for event in survey.events(open_existing(path))][-1:] == ["by logging"]
    monkeypatch.setenv("CWSINK_TARGET", "stdout")
    cwsink.SpoolHandler(**settings).handle(record)
    assert json.loads(capsys.readouterr().out) == found[0]


@pytest.mark.parametrize("target", ["cloudwatch", "stdout"])
@pytest.mark.parametrize("way", ["open", "constructor"])
def test_a_writer_adds_the_static_fields_to_json(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str, way: str
) -> None:
    """To a JSON object, as text or as bytes, where they are not in it. Any other message stays as it is."""
    monkeypatch.setenv("CWSINK_TARGET", target)
    settings: dict[str, Any] = {"log_group_name": GROUP, "flusher": "external", "fields": {"service": "shop"}}
    given: dict[Any, str] = {
        '{"a": 1}': '{"a": 1,"service":"shop"}',
        b'{"a": 1}': '{"a": 1,"service":"shop"}',
        memoryview(b'{"a": 1}'): '{"a": 1,"service":"shop"}',
        ' \n{"a": 1}\r\n': '{"a": 1,"service":"shop"}',  # such white space belongs to JSON
        b'\t{"a": 1}': '{"a": 1,"service":"shop"}',
        "{}": '{"service":"shop"}',
        '{"service": "own"}': '{"service": "own"}',
        "[1]": "[1]",
        b"text": "text",
        '{"a": 1': '{"a": 1',
        "\ud800": "\\ud800",
    }
    with cwsink.Writer.open(**settings) if way == "open" else cwsink.Writer(cwsink.SinkConfig(**settings)) as writer:
        for message in given:
            assert writer.append(message)
        assert writer.append('{"b": 2}', 1_700_000_000_000)
        assert not any(writer.append(each) for each in (None, 5, ["x"], ""))
    if target == "stdout" and way == "open":
        found = capsys.readouterr().out.splitlines()
    else:
        (path,) = find_spools()
        events = list(survey.events(open_existing(path)))
        found = [event.message for event in events]
        assert events[-1].timestamp_ms == 1_700_000_000_000
    assert found == [*given.values(), '{"b": 2,"service":"shop"}']


@pytest.mark.parametrize("target", ["cloudwatch", "stdout"])
def test_no_front_end_adds_the_static_fields_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], target: str
) -> None:
    """Each adds them to what it has encoded, and the writer that it appends to adds none."""
    monkeypatch.setenv("CWSINK_TARGET", target)
    settings: dict[str, Any] = {"log_group_name": GROUP, "flusher": "external", "fields": {"service": "shop"}}
    cwsink.SpoolHandler(**settings).handle(logging.makeLogRecord({"msg": "by logging"}))
    structlog.configure(processors=[cwsink.structlog.render], logger_factory=cwsink.structlog.LoggerFactory(**settings))
    structlog.get_logger().info("by structlog")
    structlog.reset_defaults()
    number = loguru.logger.add(cwsink.loguru.Sink(**settings), format="{message}")
    loguru.logger.info("by loguru")
    loguru.logger.remove(number)
    for on_full in ("drop_oldest", "block"):
        sink = cwsink.CloudWatchSpoolSink(**settings, on_full=on_full)
        assert asyncio.run(sink.write({"message": "by fapilog"}))
    if target == "stdout":
        found = [line for line in capsys.readouterr().out.splitlines() if line.startswith("{")]
    else:
        (path,) = find_spools()
        found = [event.message for event in survey.events(open_existing(path))]
    assert [text.count("service") for text in found] == [1] * 5


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{env:NO_SUCH}", "fields['env'] '{env:NO_SUCH}' needs the environment variable NO_SUCH, which is not set."),
        ("{date}", "fields['env'] '{date}': {date} is not known. Known: {hostname}, {app}, {instance_id}, {task_id}, "),
        ("{stage", "fields['env'] '{stage' has a brace without a partner."),
    ],
)
def test_a_static_field_without_a_value_is_an_error_at_construction(text: str, says: str) -> None:
    """Of each front end, by its name and what is wrong."""
    fields: dict[str, str] = {"env": text}
    for make in (
        cwsink.SpoolHandler,
        cwsink.CloudWatchSpoolSink,
        cwsink.structlog.LoggerFactory,
        cwsink.loguru.Sink,
        cwsink.JsonFormatter,
        cwsink.Writer.open,
    ):
        given: dict[str, Any] = {"log_group_name": GROUP} if make is not cwsink.JsonFormatter else {}
        with pytest.raises(cwsink.ConfigError) as raised:
            make(fields=fields, **given)
        assert str(raised.value).startswith(says)


# Access lines.


ACCESS: dict[str, tuple[Any, ...]] = {
    "gunicorn.access": ({"m": "GET", "U": '/a\\"b', "s": "404", "D": 1500, "h": "::1"},),
    "uvicorn.access": ("::1:5000", "GET", '/a"b?x=1', "1.1", 404),
}


@pytest.mark.parametrize("name", ACCESS)
def test_an_access_line_has_fields(logging_logger: logging.Logger, name: str) -> None:
    """Of the request, as far as the server knows them. Anything else under that name is a record as any other."""
    (handler,) = logging_logger.handlers
    for arguments in (ACCESS[name], (), ("odd",), ({"s": "-"},), (1, 2, 3, 4, "5")):
        handler.handle(logging.LogRecord(name, logging.INFO, "", 0, "request", arguments, None))
    handler.handle(logging.LogRecord("shop", logging.INFO, "", 0, "request", ACCESS[name], None))
    first, *others = entries()
    took = {"duration_ms": 1.5} if name == "gunicorn.access" else {}
    assert first["http"] == {"method": "GET", "path": '/a"b', "status": 404, **took, "client": "::1"}
    assert all(set(each.get("http", {})) <= {"status"} for each in others)
    assert "http" not in others[-1]
    assert len(others) == 5


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/api/caf%C3%A9?x=1", "/api/caf%C3%A9"),  # below SCRIPT_NAME=/api, which is not in PATH_INFO
        ("/api/a%2Fb%20c", "/api/a%2Fb%20c"),
        ("/api?to=http://b/c", "/api"),
        ("/go/http://b/c", "/go/http://b/c"),
        ("//a//b", "//a//b"),
        ("http://other/abs?x", "/abs"),
        ("HTTPS://other:443", "/"),
        ("http://other?x=/y", "/"),
        ("*", "*"),
    ],
)
def test_gunicorns_path_is_as_the_client_sent_it(logging_logger: logging.Logger, target: str, path: str) -> None:
    """With the prefix at which the application is, not decoded, and without scheme, host and query."""
    (handler,) = logging_logger.handlers
    atoms = {"r": f"GET {target} HTTP/1.1", "m": "GET", "U": "/cafÃ©", "s": "200"}
    handler.handle(logging.LogRecord("gunicorn.access", logging.INFO, "", 0, "request", (atoms,), None))
    (event,) = entries()
    assert event["http"]["path"] == path


# What nobody catches.


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The hooks and filters of the process, as they were before, when the test has ended."""
    monkeypatch.setattr(uncaught, "_installed", [])
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", lambda failed: None)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        yield


def test_threads_and_warnings_are_captured(logging_logger: logging.Logger, hooks: None) -> None:
    """To call it twice captures each once."""
    py_warnings = logging.getLogger("py.warnings")
    py_warnings.addHandler(logging_logger.handlers[0])
    cwsink.capture_uncaught(logging_logger)
    cwsink.capture_uncaught(logging_logger)
    thread = threading.Thread(target=lambda: 1 // 0, name="worker-7")
    thread.start()
    thread.join(CHILD_SECONDS)
    warnings.warn("old", DeprecationWarning, stacklevel=1)
    py_warnings.removeHandler(logging_logger.handlers[0])
    failed, warned = entries()
    assert (failed["level"], failed["message"]) == ("ERROR", "uncaught exception in thread worker-7")
    assert failed["diagnostics"]["exception"]["error.type"] == "ZeroDivisionError"
    assert (warned["level"], warned["logger"]) == ("WARNING", "py.warnings")
    assert "DeprecationWarning: old" in warned["message"]


@pytest.mark.parametrize("first", ["", "logging.captureWarnings(True)"])
def test_a_warning_is_on_stderr_as_before(spawn: Spawn, first: str) -> None:
    """And in the spool once, also if the application has `logging` capture it before or after."""
    script = f"""
        import logging, warnings
        import cwsink
        logging.getLogger().addHandler(cwsink.SpoolHandler(log_group_name="{GROUP}", flusher="external"))
        {first}
        cwsink.capture_uncaught()
        cwsink.capture_uncaught()
        warnings.warn("disk nearly full")
        logging.captureWarnings(True)
        warnings.warn("disk full")
    """
    _, errors = spawn(script).communicate(timeout=CHILD_SECONDS)
    assert errors.count("UserWarning") == (0 if first else 1), errors
    assert [each["message"].split(": ")[1] for each in entries()] == ["UserWarning", "UserWarning"]


def test_hooks_that_call_each_other_do_not_do_so_for_ever(logging_logger: logging.Logger, hooks: None) -> None:
    """Another library sets a hook that calls ours, and the application calls `capture_uncaught` again."""
    printed: list[BaseException] = []
    sys.excepthook = lambda kind, error, where: printed.append(error)
    cwsink.capture_uncaught()
    ours = sys.excepthook
    sys.excepthook = lambda *failed: [ours(*failed)]
    cwsink.capture_uncaught(logging_logger)
    error = ValueError("end")
    sys.excepthook(ValueError, error, None)
    assert printed == [error]
    assert [each["level"] for each in entries()] == ["CRITICAL"]


class PanicException(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.parametrize("error", [PanicException("end"), asyncio.CancelledError()])
def test_an_exception_that_is_no_exception_is_captured(
    logging_logger: logging.Logger, hooks: None, error: BaseException
) -> None:
    """It ends a process, too."""
    sys.excepthook = lambda kind, error, where: None
    cwsink.capture_uncaught(logging_logger)
    sys.excepthook(type(error), error, None)
    assert [each["diagnostics"]["exception"]["error.type"] for each in entries()] == [type(error).__name__]


@pytest.mark.parametrize(("end", "code"), [("1 // 0", 1), ("sys.exit(3)", 3), ("raise KeyboardInterrupt", -2)])
def test_the_exception_that_ends_a_process_is_captured(spawn: Spawn, end: str, code: int) -> None:
    """stderr and exit code are as without it; an end that was wished for is no exception."""
    script = f"""
        import logging, sys
        import cwsink
        logging.getLogger().addHandler(cwsink.SpoolHandler(log_group_name="{GROUP}", flusher="external"))
        cwsink.capture_uncaught()
        logging.error("begun")
        {end}
    """
    child = spawn(script)
    _, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == code
    assert errors.count("Traceback (most recent call last)") == (end != "sys.exit(3)")
    found = [(each["level"], each["message"]) for each in entries()]
    assert found == [("ERROR", "begun"), *([("CRITICAL", "uncaught exception")] if code == 1 else [])]


# The end of a server.


def test_a_lifespan_drains(spawn: Spawn, server: StrictCloudWatch) -> None:
    """An ASGI application's own lifespan enters ours; what was logged in it is delivered when it has ended."""
    script = f"""
        import asyncio, logging
        from contextlib import asynccontextmanager
        import cwsink
        from starlette.applications import Starlette
        import sys

        handler = cwsink.SpoolHandler(log_group_name="{GROUP}", endpoint_url="{server.endpoint_url}")
        logging.getLogger("shop").addHandler(handler)

        @asynccontextmanager
        async def own(app):
            async with cwsink.lifespan(app):
                logging.getLogger("shop").error("own")
                yield

        async def serve(lifespan):
            app = Starlette(lifespan=lifespan)
            async with app.router.lifespan_context(app):
                logging.getLogger("shop").error("served")
            (spool,) = cwsink.stats().spools
            print(spool.appended, spool.pending)

        asyncio.run(serve(cwsink.lifespan))
        asyncio.run(serve(own))
        loaded = {{name.partition(".")[0] for name in sys.modules}}
        print(*loaded & {{"fapilog", "botocore", "pydantic", "httpx", "rich"}})
    """
    out, errors = spawn(script).communicate(timeout=CHILD_SECONDS)
    assert out.splitlines() == ["1 0", "3 0", ""], errors
    assert [json.loads(text)["message"] for text in server.messages()] == ["served", "own", "served"]


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_lifespan_waits_as_the_end_of_a_process_does(spawn: Spawn, backend: str) -> None:
    """Nobody is at the endpoint: it does not wait for `drain_timeout_seconds`. Starlette runs on trio, too."""
    pytest.importorskip(backend)
    script = f"""
        import logging, time
        import anyio, cwsink

        handler = cwsink.SpoolHandler(
            log_group_name="{GROUP}", endpoint_url="http://127.0.0.1:9", drain_timeout_seconds={CHILD_SECONDS}
        )
        logging.getLogger("shop").addHandler(handler)

        async def serve():
            async with cwsink.lifespan(None):
                logging.getLogger("shop").error("served")

        began = time.monotonic()
        anyio.run(serve, backend="{backend}")
        assert time.monotonic() - began < {CHILD_SECONDS} / 2
    """
    child = spawn(script)
    _, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, errors


def test_a_lifespan_waits_no_longer_than_the_setting_says(spawn: Spawn, server: StrictCloudWatch) -> None:
    """`drain_timeout_seconds` is 0."""
    script = f"""
        import asyncio, logging, os, time
        import cwsink

        handler = cwsink.SpoolHandler(
            log_group_name="{GROUP}", endpoint_url="{server.endpoint_url}", drain_timeout_seconds=0
        )
        logging.getLogger("shop").addHandler(handler)
        slept, really_sleep = [], time.sleep
        time.sleep = lambda seconds: (slept.append(seconds), really_sleep(seconds))

        async def serve():
            async with cwsink.lifespan(None):
                logging.getLogger("shop").error("served")

        asyncio.run(serve())
        print(slept)
    """
    out, errors = spawn(script).communicate(timeout=CHILD_SECONDS)
    assert out == "[]\n", errors


@pytest.mark.parametrize("enqueue", [False, True])
def test_loguru_where_there_is_no_exception(enqueue: bool) -> None:
    """`logger.exception` outside an `except` block: the record arrives without one."""
    logger = loguru.logger
    logger.remove()
    sink = cwsink.loguru.Sink(log_group_name=GROUP, flusher="external")
    number = logger.add(sink, format="{message}", enqueue=enqueue)
    logger.exception("odd")  # noqa: LOG004  # that is what is tested
    logger.remove(number)
    (entry,) = entries()
    assert entry["message"] == "odd"
    assert "exception" not in entry["diagnostics"]


class UnpicklableError(Exception):
    def __reduce__(self) -> str:
        raise TypeError


@pytest.mark.parametrize("kind", [ValueError, UnpicklableError])
def test_loguru_with_a_queue_keeps_the_traceback(kind: type[Exception]) -> None:
    """loguru pickles the record, without the traceback, and without an exception that cannot be pickled."""
    logger = loguru.logger
    logger.remove()
    number = logger.add(cwsink.loguru.Sink(log_group_name=GROUP, flusher="external"), format="{message}", enqueue=True)
    try:
        raise kind("end")
    except kind:
        logger.exception("boom")
    logger.remove(number)
    (entry,) = entries()
    assert entry["message"] == "boom"
    exception = entry["diagnostics"]["exception"]
    assert (exception["error.type"], exception["error.message"]) == (kind.__name__, "end")
    assert exception["error.stack"].count("Traceback (most recent call last)") == 1


def spooled_by_loguru(error: Exception | None = None, message: str = "boom", **options: Any) -> dict[str, Any]:
    """Return the entry of an exception that was logged through loguru's queue; by default of one with a cause."""
    logger = loguru.logger
    logger.remove()
    sink = cwsink.loguru.Sink(log_group_name=GROUP, flusher="external")
    # diagnose: loguru would show the values in this test's frames, and the message is one of them.
    number = logger.add(sink, enqueue=True, diagnose=False, **options)
    try:
        try:
            raise KeyError("gone")
        except KeyError as cause:
            if error is not None:
                raise error from None
            raise ValueError("end") from cause
    except Exception:
        logger.exception(message)
    logger.remove(number)
    (entry,) = entries()
    return entry


HEADER = "Traceback (most recent call last):"


@pytest.mark.parametrize(
    "options",
    [
        {"format": "{message}"},
        {"format": "{level} {message} {extra}"},
        {"format": "{time}"},
        {"format": "{message}", "serialize": True},
        {"format": "<red>{message}</red>", "colorize": True},
        {"format": "{level}", "colorize": True, "serialize": True},
        {"format": lambda record: "{level} {message}\n{exception}"},
        {"backtrace": False},
    ],
)
@pytest.mark.parametrize("message", ["boom", f"it says\n{HEADER}\n  File\nOSError: own\n", "", "end"])
def test_loguru_with_a_queue_keeps_the_traceback_whatever_the_format(options: dict[str, Any], message: str) -> None:
    """From its first frame to its last, without colours, and without a traceback that is in the message."""
    entry = spooled_by_loguru(message=message, **options)
    assert entry["message"] == message
    exception = entry["diagnostics"]["exception"]
    assert (exception["error.type"], exception["error.message"]) == ("ValueError", "end")
    stack = exception["error.stack"]
    assert stack.startswith(f"{HEADER}\n")
    assert stack.endswith("ValueError: end")
    assert stack.count(HEADER) == 2
    assert "KeyError: 'gone'" in stack
    assert "\x1b" not in stack
    assert "OSError: own" not in stack


def test_loguru_with_a_queue_and_a_text_without_a_traceback() -> None:
    """A format that leaves it out: what the exception itself says is all that there is."""
    entry = spooled_by_loguru(format=lambda record: "{level} {message}\n")
    assert entry["diagnostics"]["exception"] == {
        "error.type": "ValueError",
        "error.message": "end",
        "error.stack": "ValueError: end\n",
    }


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there are no exception groups")
@pytest.mark.parametrize("options", [{"format": "{level} {message}"}, {"format": "{message}", "colorize": True}])
def test_loguru_with_a_queue_keeps_an_exception_group(options: dict[str, Any]) -> None:
    """Its first line is another one."""
    group = ExceptionGroup("several", [ValueError("a"), TypeError("b")])  # noqa: F821  # of Python 3.11
    stack = spooled_by_loguru(group, **options)["diagnostics"]["exception"]["error.stack"]
    assert stack.startswith(f"  + Exception Group {HEADER}\n")
    assert "ValueError: a" in stack
    assert "TypeError: b" in stack
    assert "\x1b" not in stack


def test_static_fields_stay_out_of_what_only_looks_like_json() -> None:
    """Text of a formatter of the application's own; and a field that the record has itself wins."""
    handler = cwsink.SpoolHandler(log_group_name=GROUP, flusher="external", fields={"service": "shop", "env": "dev"})
    handler.setFormatter(logging.Formatter("%(message)s"))
    deep = '{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"
    texts = ["{id} of {user}", "{'a': 1}", "{ }", '{"service": "own", "a": 1}', "[1]", '{"a": 1}\n', deep]
    for text in texts:
        handler.handle(logging.LogRecord("shop", logging.INFO, "", 0, text, (), None))
    handler.close()
    (path,) = find_spools()
    found = [event.message for event in survey.events(open_existing(path))]
    assert found[:2] == texts[:2]
    assert found[4] == texts[4]
    assert found[6] == deep
    assert json.loads(found[3]) == {"service": "own", "a": 1, "env": "dev"}
    assert json.loads(found[5]) == {"a": 1, "service": "shop", "env": "dev"}
    assert json.loads(found[2]) == {"service": "shop", "env": "dev"}
