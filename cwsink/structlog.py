"""structlog's rendered events go straight into the spool, in the shape of all other front ends.

```text
import cwsink.structlog, structlog

structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        cwsink.structlog.render,
    ],
    logger_factory=cwsink.structlog.LoggerFactory(log_group_name="/myapp/prod"),
)
```

Nothing of structlog is imported here: a processor is a function, and a logger factory is a callable.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Mapping, MutableMapping
from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from cwsink.frontends import log_entry, opening, static_fields
from cwsink.interruption import is_a, is_interruption

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.frontends.console import Console
    from cwsink.frontends.writer import Writer
    from cwsink.settings import Settings

# What structlog's own processors call the parts of an event that are no data.
_OWN: Final = frozenset(("level", "logger", "timestamp", "exc_info", "exception", "stack", "stack_info"))
# What CallsiteParameterAdder finds: its name for that, LogRecord's, and that of `diagnostics`.
_CALL_SITE: Final = {
    "process": ("process", "pid"),
    "process_name": ("processName", "process"),
    "thread_name": ("threadName", "thread"),
    "filename": ("filename", "file"),
    "pathname": ("pathname", "file"),
    "lineno": ("lineno", "line"),
    "func_name": ("funcName", "function"),
}
_NAMES_A_PLACE: Final = frozenset(("filename", "pathname", "func_name"))
# How far the call is looked for: structlog's own frames, and wrappers of the application.
_MOST_FRAMES: Final = 30


class LoggerFactory:
    """Makes loggers that spool what they are given: bytes or text, one event each.

    Args:
        config: a SinkConfig or a mapping.
        on_unusable: "stderr", or "raise" (see SpoolHandler): what to do if the spool cannot be used.
        **settings: single settings (see SinkConfig); they win over `config`, which wins over `CWSINK_*`.

    Raises:
        ConfigError, SpoolError: as by SpoolHandler, at construction. Later nothing is raised; a refused event is
            counted (see Writer).
    """

    def __init__(
        self, config: object = None, *, on_unusable: opening.OnUnusable | None = None, **settings: Unpack[Settings]
    ) -> None:
        self._writer = opening.open_writer(config, on_unusable, **settings)
        self._fields = opening.fields_of(self._writer)
        self._has_trace = self._writer.config.trace == "auto"

    def __call__(self, *args: object) -> Logger:
        """Return a logger. structlog passes the arguments of `get_logger`; a name among them is the logger's name."""
        name = next((name for name in args if is_a(name, str)), "")
        return Logger(self._writer, name, self._fields, self._has_trace)


class Logger:
    """The end of structlog's pipeline: every method spools a rendered event."""

    def __init__(self, writer: Writer | Console, name: str, fields: str, has_trace: bool) -> None:
        self._writer = writer
        self._fields = fields
        self.name = name
        self.has_trace = has_trace

    def msg(self, message: str | bytes) -> None:
        """Spool one rendered event. Never raises."""
        self._writer.append(static_fields.add_to_text(message, self._fields) if self._fields else message)

    log = debug = info = warning = warn = error = critical = fatal = exception = failure = msg


def render(logger: Any, method_name: str, event: MutableMapping[str, Any]) -> str:
    """Render an event as JSON, as the last processor: see cwsink.frontends.log_entry for the shape.

    What structlog's processors have found (level, time, exception, stack) has its place; all else is `data`, also what
    has such a name and cannot be used. Processors that format the exception or the stack are not needed, and may have
    been there. If one of these cannot even be asked (a lazy proxy), all but the message is `data`.
    """
    try:
        return _rendered(logger, method_name, event)
    except Exception as error:
        if is_interruption(error):
            raise
        data = {key: value for key, value in event.items() if key != "event"}
        return log_entry.encode_bare("structlog", method_name.upper(), event.get("event", ""), data)


def _rendered(logger: Any, method_name: str, event: MutableMapping[str, Any]) -> str:
    exception, at = _exception_of(event), log_entry.when(event.get("timestamp"))
    where, keys = _call_site(event)
    diagnostics: dict[str, Any] = {"origin": "structlog", **where, **exception}
    if stack := _stack_of(event):
        diagnostics["stack"] = stack
    name = event.get("logger") or getattr(logger, "name", "")
    text = _key_of_text(event)
    used = {text, *_OWN, *keys}
    if at is None and event.get("timestamp") is not None:
        used.discard("timestamp")
    if not exception and event.get("exc_info") and not isinstance(event["exc_info"], bool | tuple):
        used.discard("exc_info")
    message, data = event.get(text, ""), {key: value for key, value in event.items() if key not in used}
    if is_a(message, dict):
        message, data = log_entry.unfold(message, log_entry.said(message), data)
    return log_entry.encode_entry(
        timestamp=at,
        level=str(event.get("level", method_name)).upper(),
        message=message,
        logger=name,
        diagnostics=diagnostics,
        data=data,
        has_trace=getattr(logger, "has_trace", True),
    )


def _key_of_text(event: Mapping[str, Any]) -> str:
    """Return the key of what was logged: structlog's own, or that which EventRenamer has given it.

    EventRenamer may have put something else under structlog's key, as Elastic's schema has it, and that is a dict.
    """
    there = [key for key in ("event", *log_entry.TEXT_KEYS) if key in event]
    return next((key for key in there if not is_a(event[key], Mapping)), there[0] if there else "event")


def _exception_of(event: Mapping[str, Any]) -> dict[str, Any]:
    """Return the exception of an event: one that a processor has formatted already, or one that is still an object."""
    if (formatted := event.get("exception")) is not None:
        key = "error.stack" if isinstance(formatted, str) else "error.frames"
        return {"exception": {key: formatted}}
    given = event.get("exc_info")
    if isinstance(given, tuple) and len(given) == 3:
        given = given[1]
    elif given and not isinstance(given, BaseException):
        given = sys.exc_info()[1]
    return {"exception": log_entry.exception_fields(given)} if isinstance(given, BaseException) else {}


def _call_site(event: Mapping[str, Any]) -> tuple[dict[str, Any], set[str]]:
    """Return what CallsiteParameterAdder has found, under the names of logging's records, and its keys in the event.

    An application may have fields of these names (`process="billing"`). A value is the adder's if it is true of a frame
    that has called us.
    """
    if type(event.get("lineno")) is int and any(key in event for key in _NAMES_A_PLACE):
        stack = traceback.walk_stack(_async_caller("_ASYNC_CALLING_STACK", sys._getframe()))  # noqa: SLF001
        for frame, line in islice(stack, _MOST_FRAMES):
            if line != event["lineno"]:
                continue
            here = logging.LogRecord("", 0, frame.f_code.co_filename, line, "", (), None, frame.f_code.co_name)
            _, here.threadName = _async_caller("_ASYNC_CALLING_THREAD", (0, here.threadName))
            true = {key: getattr(here, name) for key, (name, _) in _CALL_SITE.items()}
            if "multiprocessing" not in sys.modules and event.get("process_name") == "n/a":  # logging knows better
                event = {**event, "process_name": here.processName}
            keys = {key for key in true if type(event.get(key)) is type(true[key]) and event[key] == true[key]}
            if keys & _NAMES_A_PLACE:
                return {place: true[key] for key, (_, place) in _CALL_SITE.items() if key in keys}, keys
    return {}, set()


def _async_caller(name: str, this: Any) -> Any:
    """Return what structlog notes of who has called `ainfo` and the like: these call us in another thread."""
    noted = getattr(sys.modules.get("structlog.contextvars"), name, None)
    return this if noted is None else noted.get(this)


def _stack_of(event: Mapping[str, Any]) -> object:
    """Return the stack of an event: as a processor has made it, or, if one is asked for, that of the call to structlog.

    The frames of structlog and of this module, which are the innermost ones, are left out.
    """
    wanted = event.get("stack_info")
    if (stack := event.get("stack")) or not wanted or isinstance(wanted, str):
        return stack or wanted
    frame = _async_caller("_ASYNC_CALLING_STACK", sys._getframe())  # noqa: SLF001  # structlog asks it, too
    while frame.f_back is not None and str(frame.f_globals.get("__name__")).partition(".")[0] in (
        "structlog",
        "cwsink",
    ):
        frame = frame.f_back
    return "Stack (most recent call last):\n" + "".join(traceback.format_stack(frame)).rstrip()
