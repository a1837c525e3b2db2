"""Makes an entry of a `logging.LogRecord`: JSON in fapilog's shape (no I/O).

```text
{"timestamp": "2026-01-31T12:00:00.123Z", "level": "INFO", "message": "order placed", "logger": "shop",
 "trace_id": "5759e988bd862e3fe1be46a994272793", "span_id": "53995c3f42cd8ad8",     in a span
 "diagnostics": {"origin": "stdlib", "pid": 17, "process": "MainProcess", "thread": "MainThread", "file": ...,
                 "line": 12, "function": "place", "exception": {"error.type": ..., "error.message": ...,
                 "error.stack": ...}, "stack": ...},
 "data": {the `extra` of the call, and the items of a message that is a dict; "message.KEY" if both have a KEY},
 "http": {"method": "GET", "path": "/", "status": 200, "duration_ms": 1.2, "client": "::1"}}   of an access line only
```

A record may hold any object, and nothing here raises an Exception because of it (cwsink.frontends.plain). A level
that is not one of logging's or fapilog's keeps its name, and its number is in `diagnostics.levelno`.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import lru_cache
from types import TracebackType
from typing import Any, Final

import msgspec

from cwsink.frontends import access_line, trace
from cwsink.frontends.plain import encode, is_flat, unshowable
from cwsink.interruption import is_a, is_interruption

# The attributes that a record has by itself. All others come from `extra`, or from a record factory of the application
# (which `logging.makeLogRecord` would call). Formatters and newer Pythons add some. `color_message` is the message once
# more, with uvicorn's codes for a terminal.
_PLAIN: Final = tuple(vars(logging.LogRecord("", 0, "", 0, "", (), None)))
_OWN: Final = {*_PLAIN, "asctime", "color_message", "exc_text", "message", "stack_info", "taskName"}
# What is added to a record comes behind all that it has by itself. So these two tell whether anything was.
_PLAIN_COUNT: Final = len(_PLAIN)
_PLAIN_LAST: Final = _PLAIN[-1]
# A message that is a dict has its text under one of these keys, if it has one.
TEXT_KEYS: Final = ("message", "event", "msg")
_KNOWN_LEVELS: Final = frozenset("DEBUG INFO WARNING WARN ERROR CRITICAL FATAL AUDIT SECURITY".split())

_NO_SPAN: Final = (msgspec.UNSET, msgspec.UNSET)
_NO_ARGUMENTS: Final = ()
_GET_MESSAGE: Final = logging.LogRecord.getMessage

_encode: Final = msgspec.json.Encoder().encode


# They are gone when the record is encoded, so the garbage collector need not know them.
class _Diagnostics(msgspec.Struct, gc=False):
    origin: str
    pid: object
    process: object
    thread: object
    file: object
    line: object
    function: object
    task: object = msgspec.UNSET
    levelno: object = msgspec.UNSET
    exception: object = msgspec.UNSET
    stack: object = msgspec.UNSET


class _Entry(msgspec.Struct, gc=False):
    timestamp: str
    level: object
    message: str
    logger: object
    trace_id: object
    span_id: object
    diagnostics: _Diagnostics
    data: dict[str, Any]
    http: object = msgspec.UNSET


def encode_usual(record: logging.LogRecord, created_ms: int, has_trace: bool) -> str | None:
    """Return a record as JSON that is a text and no more; None if it has arguments, `extra` or an exception, say.

    Most records are of this kind. No object of the application is asked for anything. A record whose class makes its
    message in another way is no usual one: it may hide a password.
    """
    own = record.__dict__  # once it was asked for, this is the quickest way to what is in it
    if len(own) != _PLAIN_COUNT or next(reversed(own)) != _PLAIN_LAST:
        return None
    try:
        message, name, level = own["msg"], own["name"], own["levelname"]
        if (
            message.__class__ is not str
            or record.__class__.getMessage is not _GET_MESSAGE
            or own["args"] is not _NO_ARGUMENTS
            or own["exc_info"] is not None
            or own["exc_text"] is not None
            or own["stack_info"] is not None
            or level not in _KNOWN_LEVELS
            or name in access_line.LOGGERS
        ):
            return None
        trace_id, span_id = (has_trace and trace.active()) or _NO_SPAN
        diagnostics = _Diagnostics(
            "stdlib",
            own["process"],
            own["processName"],
            own["threadName"],
            own["pathname"],
            own["lineno"],
            own["funcName"],
            own.get("taskName") or msgspec.UNSET,
        )
        timestamp = _timestamp(created_ms)
        return _encode(_Entry(timestamp, level, message, name, trace_id, span_id, diagnostics, {})).decode()
    except Exception as error:  # a text that is no Unicode, or the application has taken away what each record has
        if is_interruption(error):
            raise
        return None


def encode_record(
    record: logging.LogRecord, message: str, *, created_ms: int | None = None, has_trace: bool = True
) -> str:
    """Return the record as JSON, with `message` for its message.

    Args:
        record, message: the record, and the text that it has.
        created_ms: its `time_ms`, if that is known.
        has_trace: add the ids of its span.
    """
    data: dict[str, Any] = {}
    attributes = record.__dict__
    if len(attributes) != _PLAIN_COUNT or next(reversed(attributes)) != _PLAIN_LAST:
        # A copy, because another handler may format the record in another thread, and add to it meanwhile.
        data = {name: value for name, value in dict(attributes).items() if name not in _OWN}
    trace_id, span_id = (has_trace and (trace.of_record(data) or trace.active())) or _NO_SPAN
    if isinstance(record.msg, dict):
        message, data = unfold(record.msg, message, data)
    entry = _Entry(
        _rfc3339(record.created, created_ms),
        record.levelname,
        message,
        record.name,
        trace_id,
        span_id,
        _diagnostics(record),
        data,
    )
    try:
        if record.name in access_line.LOGGERS and (http := access_line.fields(record)):
            entry.http = http
        if not data or is_flat(data):
            return _encode(entry).decode()
    except Exception as error:  # a text that is no Unicode, or a field that the application has replaced
        if is_interruption(error):
            raise
    return encode({**_set_fields(entry), "diagnostics": _set_fields(entry.diagnostics)}).decode()


def encode_entry(
    *,
    timestamp: object,
    level: str,
    message: object,
    logger: object,
    diagnostics: dict[str, Any],
    data: Mapping[Any, Any],
    has_trace: bool = True,
) -> str:
    """Return an entry of another logging library as JSON, in the same shape.

    Args:
        timestamp: see `when`; what is no time: now.
        level, message, logger: as the library has them.
        diagnostics: where the entry was made, and its exception (`exception_fields`).
        data: all else.
        has_trace: add the ids of the active span.
    """
    trace_id, span_id = (has_trace and trace.active()) or _NO_SPAN
    entry = {
        "timestamp": when(timestamp) or _rfc3339(time.time()),
        "level": level,
        "message": said(message),
        "logger": logger,
        "trace_id": trace_id,
        "span_id": span_id,
        "diagnostics": diagnostics,
        "data": dict(data),
    }
    return encode({name: value for name, value in entry.items() if value is not msgspec.UNSET}).decode()


def unfold(message: dict[Any, Any], text: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the message and the data of a record whose message is a dict. A key that `data` has, too, is kept beside.

    `text` is the message if the dict has none.
    """
    items = dict(message)
    texts = (found for key in TEXT_KEYS if isinstance(found := items.get(key), str))
    return next(texts, text), {
        **{f"message.{key}" if key in data else key: value for key, value in items.items()},
        **data,
    }


def encode_bare(origin: str, level: str, message: object, data: Mapping[Any, Any]) -> str:
    """Return an entry of a library whose own fields cannot be asked: `data` has them, as they are shown."""
    diagnostics = {"origin": origin}
    return encode_entry(timestamp=None, level=level, message=message, logger="", diagnostics=diagnostics, data=data)


def is_known(level: object) -> bool:
    """Tell whether a level's name is one of logging's or fapilog's. Asks no object: one may be unhashable."""
    return type(level) is str and level in _KNOWN_LEVELS


def _set_fields(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: value for name in struct.__struct_fields__ if (value := getattr(struct, name)) is not msgspec.UNSET}


def message_of(record: logging.LogRecord) -> str:
    """Return the message of a record whose formatter fails; if the fault is in the message, that and its arguments."""
    try:
        return str(record.getMessage())
    except Exception as error:
        if is_interruption(error):
            raise
    text, args = shown(record.msg), record.args
    has_none = args is None or (type(args) is tuple and not args)  # another object may raise if it is asked
    return text if has_none else f"{text} % {shown(args)}"


def time_ms(created: object) -> int:
    """Return a record's time in ms since 1970. The present time, if `created` is no number that has one."""
    try:
        return round(created * 1000)  # type: ignore[operator]  # if it is no number: a TypeError, caught below
    except Exception as error:
        if is_interruption(error):
            raise
        return time.time_ns() // 1_000_000


def when(given: object) -> str | None:
    """Return a time as text: of seconds since 1970, of a datetime, or the library's own text. None: it is no time."""
    if is_a(given, str):
        return given
    try:
        if is_a(given, datetime):
            return given.isoformat()
        return _timestamp(round(given * 1000))  # type: ignore[operator]  # if it is no number: a TypeError
    except Exception as error:  # or its own code raises: a timezone, a lazy proxy
        if is_interruption(error):
            raise
        return None


def shown(value: object) -> str:
    """Return a text as it is, and any other value as its `repr()`. If that fails, return the type and the error."""
    if is_a(value, str):
        return str(value).encode("utf-8", "backslashreplace").decode()
    try:
        return repr(value).encode("utf-8", "backslashreplace").decode()
    except Exception as error:
        return unshowable(value, error)


def said(value: object) -> str:
    """Return a message as logging has it, by `str()`. If that fails: as `shown`."""
    try:
        return shown(str(value))
    except Exception as error:
        if is_interruption(error):
            raise
        return shown(value)


def _diagnostics(record: logging.LogRecord) -> _Diagnostics:
    found = _Diagnostics(
        "stdlib",
        record.process,
        record.processName,
        record.threadName,
        record.pathname,
        record.lineno,
        record.funcName,
    )
    if task := record.__dict__.get("taskName"):
        found.task = task
    if not is_known(record.levelname):
        found.levelno = record.levelno
    if (record.exc_info or record.exc_text) and (exception := _exception(record)):
        found.exception = exception
    if record.stack_info:
        found.stack = record.stack_info
    return found


def _exception(record: logging.LogRecord) -> dict[str, str]:
    """Return fapilog's keys for the record's exception.

    `exc_text` is the traceback as a formatter has made it. It may be all that is left of the exception. If it is a
    blank line, the message has the traceback already (loguru), and need not have it twice. If it is empty, a formatter
    of another handler shows no tracebacks, which says nothing of ours.
    """
    info: Any = record.exc_info
    kind, error, frames = info if isinstance(info, tuple) and len(info) == 3 else (None, None, None)
    frames = frames if isinstance(frames, TracebackType) else None
    has_stack = not record.exc_text or not str(record.exc_text).isspace()
    if isinstance(error, BaseException):
        return exception_fields(error, frames, has_stack=has_stack)
    if isinstance(kind, type) and issubclass(kind, BaseException) and frames is not None:
        return {"error.type": kind.__name__, "error.stack": "".join(traceback.format_exception(kind, None, frames))}
    return {"error.stack": record.exc_text} if record.exc_text else {}


def exception_fields(
    error: BaseException, frames: TracebackType | None = None, *, has_stack: bool = True
) -> dict[str, str]:
    """Return fapilog's keys for an exception, with its traceback unless the message has that already.

    `frames` is its traceback if the exception has none of its own.
    """
    try:
        text = str(error)
    except Exception as failure:
        if is_interruption(failure):
            raise
        text = shown(error)
    named = {"error.type": type(error).__name__, "error.message": text}
    if not has_stack:
        return named
    try:
        stack = "".join(traceback.format_exception(type(error), error, error.__traceback__ or frames))
    except Exception as failure:
        stack = unshowable(error.__traceback__ or frames, failure)
    return {**named, "error.stack": stack}


def _rfc3339(created: object, milliseconds: int | None = None) -> str:
    if milliseconds is None:
        milliseconds = time_ms(created)
    try:
        return _timestamp(milliseconds)
    except (ValueError, OverflowError, OSError) as error:  # no calendar has it
        if is_interruption(error):
            raise
        return _timestamp(time_ms(None))


@lru_cache(maxsize=1)
def _timestamp(milliseconds: int) -> str:
    """Return a time. Cached: the records of a burst have the same millisecond."""
    return "%s.%03dZ" % (_second(milliseconds // 1000), milliseconds % 1000)  # noqa: UP031  # the quickest


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    """Return a time without its fraction. Cached: between two requests, datetime leaves the CPU's caches."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()[:19]
