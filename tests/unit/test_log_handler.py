"""What becomes of a LogRecord: JSON in the shape of fapilog's entries, whatever the record holds."""

from __future__ import annotations

import importlib
import json
import logging
import re
from typing import Any

import pytest

from cwsink.frontends import log_entry
from cwsink.spool.record import Event
from cwsink.watching import lines


class Hostile:
    """Neither JSON nor text."""

    def __repr__(self) -> str:
        raise ValueError("no")


def record_of(message: object = "hello %s", *args: object, **fields: Any) -> logging.LogRecord:
    made = {
        "name": "shop",
        "levelname": "INFO",
        "levelno": 20,
        "msg": message,
        "args": args,
        "created": 1_700_000_000.5,
    }
    return logging.makeLogRecord({**made, **fields})


def entry_of(record: logging.LogRecord) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(log_entry.encode_record(record, "hello"))
    return found


def raised(error: BaseException) -> Any:
    try:
        raise error
    except BaseException as caught:
        return type(caught), caught, caught.__traceback__


def line_of(record: logging.LogRecord) -> lines.Line:
    return lines.read(Event(0, 1, 1, log_entry.encode_record(record, "hello")))


def test_an_entry_has_fapilogs_keys() -> None:
    """Time, level, message and logger at the top, where it was made below `diagnostics`, the extra in `data`."""
    entry = entry_of(record_of(order=17, lineno=3, funcName="place", threadName="T", processName="P", process=9))
    assert {key: entry[key] for key in ("timestamp", "level", "message", "logger", "data")} == {
        "timestamp": "2023-11-14T22:13:20.500Z",
        "level": "INFO",
        "message": "hello",
        "logger": "shop",
        "data": {"order": 17},
    }
    wanted = {"origin": "stdlib", "pid": 9, "process": "P", "thread": "T", "line": 3, "function": "place"}
    assert entry["diagnostics"].items() >= wanted.items()


def test_data_is_only_what_was_given_as_extra() -> None:
    """Not what a formatter, a newer Python, or uvicorn for its terminal, leaves on the record."""
    record = record_of("plain", taskName="Task-1", stack_info="Stack", exc_text=None, color_message="\x1b[32mplain")
    logging.Formatter("%(asctime)s %(message)s").format(record)
    assert entry_of(record)["data"] == {}
    assert entry_of(record)["diagnostics"].items() >= {"task": "Task-1", "stack": "Stack"}.items()


def test_an_exception_is_kept_with_its_traceback() -> None:
    """Type, text and stack, under fapilog's names, which `cwsink tail` shows."""
    record = record_of(exc_info=raised(KeyError("gone")))
    exception = entry_of(record)["diagnostics"]["exception"]
    assert (exception["error.type"], exception["error.message"]) == ("KeyError", "'gone'")
    assert exception["error.stack"].startswith("Traceback (most recent call last):\n")
    assert "KeyError: 'gone'" in line_of(record).more


@pytest.mark.parametrize("info", [None, (None, None, None), True, (1, 2), "text"])
def test_no_exception_is_no_exception(info: object) -> None:
    """`exc_info=True` outside of an except clause, and nonsense."""
    assert "exception" not in entry_of(record_of(exc_info=info))["diagnostics"]


def test_an_exception_without_a_text_is_kept() -> None:
    """Its `str()` raises."""

    class MuteError(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    exception = entry_of(record_of(exc_info=raised(MuteError())))["diagnostics"]["exception"]
    assert exception["error.type"] == "MuteError"
    assert exception["error.message"]


def test_the_text_a_queue_handler_leaves_of_an_exception_is_kept() -> None:
    """It takes the exception away, which cannot be pickled."""
    assert entry_of(record_of(exc_text="Traceback"))["diagnostics"]["exception"] == {"error.stack": "Traceback"}


def test_a_formatter_that_shows_no_traceback_takes_none_away() -> None:
    """A console's formatter leaves an empty `exc_text`. That is not our message."""
    exception = entry_of(record_of(exc_info=raised(KeyError("gone")), exc_text=""))["diagnostics"]["exception"]
    assert exception["error.stack"].startswith("Traceback (most recent call last):\n")


def test_a_traceback_that_is_given_beside_the_exception_is_kept() -> None:
    """The exception has lost its own, or there is none any more."""
    kind, error, frames = raised(KeyError("gone"))
    for value in (error.with_traceback(None), None):
        exception = entry_of(record_of(exc_info=(kind, value, frames)))["diagnostics"]["exception"]
        assert exception["error.type"] == "KeyError"
        assert exception["error.stack"].startswith("Traceback (most recent call last):\n  File ")


def test_a_traceback_that_the_message_has_already_is_not_sent_twice() -> None:
    """loguru puts it into the message, and says so by a blank `exc_text`; type and text of the exception stay."""
    exception = entry_of(record_of(exc_info=raised(KeyError("gone")), exc_text="\n"))["diagnostics"]["exception"]
    assert exception == {"error.type": "KeyError", "error.message": "'gone'"}


@pytest.mark.parametrize(
    ("message", "text", "data"),
    [
        ({"event": "placed", "order": 17}, "placed", {"event": "placed", "order": 17, "customer": 4}),
        ({"order": 17, "customer": 5}, "hello", {"order": 17, "message.customer": 5, "customer": 4}),
        ({"message": None, "msg": "placed"}, "placed", {"message": None, "msg": "placed", "customer": 4}),
    ],
    ids=["event", "no text", "msg"],
)
def test_a_message_that_is_a_dict_keeps_its_keys(message: dict[str, Any], text: str, data: dict[str, Any]) -> None:
    """They are in `data`, beside the extra of the call, with other names if need be; its text is the message."""
    entry = entry_of(record_of(message, customer=4))
    assert (entry["message"], entry["data"]) == (text, data)


def test_what_a_record_factory_adds_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also if the factory was there before this module was loaded (OpenTelemetry's trace ids)."""

    def factory(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = logging.LogRecord(*args, **kwargs)
        record.otelTraceID = "0af7"
        return record

    before = logging.getLogRecordFactory()
    logging.setLogRecordFactory(factory)
    try:
        importlib.reload(log_entry)
        record = logging.getLogger("factory").makeRecord("shop", 20, "f.py", 1, "hello", (), None)
    finally:
        logging.setLogRecordFactory(before)
    assert entry_of(record)["data"] == {"otelTraceID": "0af7"}


LOOP: list[Any] = []
LOOP.append(LOOP)


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        (object, str(object)),
        (1 << 70, 1 << 70),
        ("\udce4", "\\udce4"),
        ({(1, 2): 3}, {"(1, 2)": 3}),
        ({1: "one"}, {"1": "one"}),
        (LOOP, ["[...]"]),
        (Hostile(), "<Hostile that cannot be shown: ValueError>"),
        (float("nan"), None),
        ({"a": [1, {"b": None}]}, {"a": [1, {"b": None}]}),
    ],
    ids=["class", "long int", "surrogate", "tuple key", "int key", "loop", "hostile", "nan", "json"],
)
def test_any_extra_is_kept_and_spoils_no_other(value: object, wanted: object) -> None:
    """What has no JSON is its `str()`; what has none is named."""
    assert entry_of(record_of(strange=value, order=17))["data"] == {"strange": wanted, "order": 17}


def test_a_message_of_illegal_unicode_is_kept_as_escapes() -> None:
    """A lone surrogate, as of a file name that is no UTF-8, in message and logger."""
    found = json.loads(log_entry.encode_record(record_of(name="sh\udce4p"), "\udce4"))
    assert (found["message"], found["logger"]) == ("\\udce4", "sh\\udce4p")


@pytest.mark.parametrize("created", [float("nan"), float("inf"), -1e30, 1e18, None, "yesterday"])
def test_a_record_without_a_time_that_a_calendar_has_gets_the_present_one(created: object) -> None:
    """Nothing is raised."""
    assert isinstance(log_entry.time_ms(created), int)
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT[\d:.]+Z", entry_of(record_of(created=created))["timestamp"])


def test_a_level_of_the_applications_own_keeps_name_and_number() -> None:
    """`cwsink tail --level` goes by the number."""
    line = line_of(record_of(levelname="NOTICE", levelno=25))
    assert (line.level, line.rank) == ("NOTICE", 25)
    assert not lines.is_at_least(line, logging.WARNING)
    assert lines.is_at_least(line, logging.INFO)


@pytest.mark.parametrize("level", [10, 20, 30, 40, 50])
def test_loggings_levels_are_those_of_tail(level: int) -> None:
    """DEBUG to CRITICAL."""
    assert line_of(record_of(levelname=logging.getLevelName(level), levelno=level)).rank == level


def test_what_cannot_be_formatted_is_shown_as_it_is() -> None:
    """Message and arguments, by `repr()`."""
    assert log_entry.message_of(record_of("%d apples", "no")) == "%d apples % ('no',)"
    assert log_entry.message_of(record_of(Hostile())) == "<Hostile that cannot be shown: ValueError>"


@pytest.mark.parametrize(
    "fields", [{}, {"threadName": None}, {"levelname": "AUDIT"}, {"created": 0.001}, {"msg": "ü\n"}]
)
def test_a_usual_record_is_encoded_in_two_ways_that_agree(fields: dict[str, Any]) -> None:
    """The quick way, and the one for all."""
    record = record_of("hello", **fields)
    created_ms = log_entry.time_ms(record.created)
    text = log_entry.encode_usual(record, created_ms, True)
    assert text == log_entry.encode_record(record, record.getMessage(), created_ms=created_ms)


class MakesItsMessage(logging.LogRecord):
    """Its message is another one than its text."""

    def getMessage(self) -> str:  # noqa: N802  # logging's name
        return "***"


def test_a_record_that_makes_its_message_itself_is_no_usual_one() -> None:
    """It may hide a password."""
    record = MakesItsMessage("shop", 20, "f.py", 1, "secret", (), None)
    assert log_entry.encode_usual(record, 1, True) is None


def without_a_thread() -> logging.LogRecord:
    record = record_of("hello")
    kept = dict(vars(record))
    vars(record).clear()
    vars(record).update({"other" if name == "threadName" else name: value for name, value in kept.items()})
    return record


@pytest.mark.parametrize(
    "record",
    [
        record_of("hello %s", 1),
        record_of({"msg": "hello"}),
        record_of("hello", order=17),
        record_of("hello", exc_info=raised(ValueError("x"))),
        record_of("hello", exc_text="Traceback"),
        record_of("hello", stack_info="Stack"),
        record_of("hello", levelname="NOTICE"),
        record_of("hello", levelname=[]),
        record_of("hello", name="uvicorn.access"),
        record_of("\udce4"),
        record_of("hello", name="sh\udce4p"),
        record_of("hello", pathname=object()),
        without_a_thread(),
    ],
)
def test_any_other_record_is_left_to_the_careful_way(record: logging.LogRecord) -> None:
    """Nothing is raised, and nothing is left out."""
    assert log_entry.encode_usual(record, 1, True) is None
