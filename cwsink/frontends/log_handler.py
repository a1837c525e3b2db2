"""`SpoolHandler`: a handler of the logging module for the same spool.

It works with any logger of the standard library: Django's LOGGING, gunicorn's own access
and error log, `sys.excepthook`. One log record is one event with the record's own time, and
a traceback is part of it. A record in the spool is safe, so `flush()` has nothing to do.

There is no lock. Therefore a signal handler may log while the code that it interrupted is logging. There is no thread
either. botocore works in the flusher, which is a process of its own, so its log records do not come to this handler.
"""

from __future__ import annotations

import logging
import sys
import threading
from typing import TYPE_CHECKING, Any, Final, Literal

from cwsink.config import load_config
from cwsink.diagnostics import report
from cwsink.frontends import beside_celery, log_entry, opening, static_fields
from cwsink.interruption import is_interruption, suppress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from typing_extensions import Unpack

    from cwsink.settings import Settings

# A `repr()` may log the object that it belongs to, and the handler would call that `repr()` again, for ever. From this
# depth on it calls no code of the application. Signal handlers that log nest, too, but less deep.
_MOST_NESTED: Final = 5
_FILTER: Final = logging.Filterer.filter


class JsonFormatter(logging.Formatter):
    """Makes of a record the JSON that `SpoolHandler` spools, for any other handler (see cwsink.frontends.log_entry).

    Args:
        fields, trace: as of SinkConfig; by default those of the variables `CWSINK_FIELDS` and `CWSINK_TRACE`. A text in
            the place of `fields` is the `format` of a configuration of logging that names this class.
        datefmt, style, validate, defaults: of such a configuration. Like `format`, they change nothing.

    Raises:
        ConfigError: one of them is wrong.

    Example:
        handler = logging.StreamHandler()
        handler.setFormatter(cwsink.JsonFormatter())
    """

    def __init__(
        self,
        fields: Mapping[str, str | int | float | bool] | str | None = None,
        datefmt: str | None = None,
        style: str = "%",
        validate: bool = True,
        *,
        defaults: Mapping[str, Any] | None = None,
        trace: Literal["auto", "off"] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(fields, str):
            report("json_format", f"the format {fields!r} changes nothing: cwsink.JsonFormatter makes JSON.")
            fields = None
        config = load_config(fields=fields, trace=trace)
        self.fields = static_fields.encode(config, None)
        self.has_trace = config.trace == "auto"

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON, in one line. Raises whatever the record's own message raises."""
        text = log_entry.encode_record(record, str(record.getMessage()), has_trace=self.has_trace)
        return str(static_fields.add(text, self.fields)) if self.fields else text


class SpoolHandler(logging.Handler):
    """Spools each record: as JSON (see cwsink.frontends.log_entry), or as the text of its formatter, if it has one.

    A subclass may have a `format` of its own, as with any handler of logging. Then its text is spooled.

    Args:
        config: a SinkConfig or a mapping.
        level: the handler's level, as of any handler of logging.
        on_unusable: what to do if the spool cannot be made or opened. "stderr": say why, and print the records there,
            because no application should fail to start for its log. "raise": raise SpoolError. By default what the
            variable `CWSINK_ON_UNUSABLE` says, else "stderr".
        formatter: makes the text of each record, in the place of JSON (`setFormatter` does the same later).
        **settings: single settings (see SinkConfig); they win over `config`, which wins over `CWSINK_*`.

    Where `CWSINK_TARGET` is not "cloudwatch", records are printed, or left out (cwsink.frontends.console).

    Raises:
        ConfigError: a setting is wrong, or no log group is given. After construction nothing is raised; a refused
            record is counted (see Writer).
        SpoolError: the spool cannot be used, and on_unusable is "raise".

    Example:
        logging.getLogger().addHandler(SpoolHandler(log_group_name="/myapp/prod"))
    """

    def __init__(
        self,
        config: object = None,
        level: int | str = logging.NOTSET,
        *,
        on_unusable: opening.OnUnusable | None = None,
        formatter: logging.Formatter | None = None,
        **settings: Unpack[Settings],
    ) -> None:
        self._writer = opening.open_writer(config, on_unusable, **settings)
        self._fields = opening.fields_of(self._writer)
        self._has_trace = self._writer.config.trace == "auto"
        self._nested = threading.local()
        self._has_own_format = type(self).format is not logging.Handler.format
        super().__init__(level)
        if formatter is not None:
            self.setFormatter(formatter)
        beside_celery.watch(self)

    def setFormatter(self, fmt: logging.Formatter | None) -> None:  # noqa: N802  # logging's name
        """Have records be formatted as text, as the application wishes.

        `logging.basicConfig` gives a formatter to each handler that has none. That is nobody's wish, so it is left out.
        """
        caller = sys._getframe(1)  # noqa: SLF001  # logging asks it, too, who has logged
        if (caller.f_globals.get("__name__"), caller.f_code.co_name) != ("logging", "basicConfig"):
            super().setFormatter(fmt)
            if type(fmt) is JsonFormatter:
                self._fields = self._fields or fmt.fields
                self._has_trace = self._has_trace and fmt.has_trace

    def createLock(self) -> None:  # noqa: N802  # logging's name
        """Make no lock: the kernel puts the `write()` calls of several threads in order."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Spool a record that passes the filters. It does what logging's own `handle` does, without the lock."""
        if not self.filters and type(self).filter is _FILTER:  # there is nothing to ask
            self.emit(record)
            return True
        passed: object = self.filter(record)
        if isinstance(passed, logging.LogRecord):  # since Python 3.12 a filter may replace the record
            record = passed
        if passed:
            self.emit(record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Spool a record, whatever objects it holds. Raises no Exception but that of a signal handler."""
        try:
            created_ms = log_entry.time_ms(getattr(record, "created", None))
            text: str | bytes | None = None
            if self.formatter is None and not self._has_own_format:
                text = log_entry.encode_usual(record, created_ms, self._has_trace)
            if text is None:
                text = self._ask(record, created_ms)
            if self._fields:
                text = (static_fields.add if self._is_json else static_fields.add_to_text)(text, self._fields)
            self._writer.append(text, created_ms)
        except Exception as error:
            if is_interruption(error):
                raise
            with suppress(Exception):
                self._writer.count_internal_error(error)

    @property
    def _is_json(self) -> bool:
        """Tell whether the text of a record is our JSON."""
        return not self._has_own_format and (self.formatter is None or type(self.formatter) is JsonFormatter)

    def close(self) -> None:
        """Let go of the spool. `logging.shutdown` and `dictConfig` call this. A later record opens the spool again."""
        beside_celery.forget(self)
        self._writer.close()
        super().close()

    def __del__(self) -> None:
        """Nobody holds the handler any more. If Celery has dropped it from the root logger, it goes back there."""
        try:  # at the end of the interpreter much is gone, `suppress` too
            beside_celery.dropped(self)
        except Exception:
            pass

    def _ask(self, record: logging.LogRecord, created_ms: int) -> str:
        """Return the text of a record whose objects are asked how they are shown. They may log meanwhile, in here."""
        nested = self._nested
        depth = nested.depth = getattr(nested, "depth", 0) + 1
        try:
            return self._text_of(record, created_ms) if depth <= _MOST_NESTED else _unshown(record)
        finally:
            nested.depth = depth - 1

    def _text_of(self, record: logging.LogRecord, created_ms: int) -> str:
        """Return the text of the event. If formatting fails, that is JSON with the message (log_entry.message_of).

        The failure is reported by `handleError`, as by any handler.
        """
        try:
            if not self._is_json:
                # A formatter may return an empty text, but CloudWatch wants at least one character in an event.
                return str(self.format(record)) or " "
            message = str(record.getMessage())
        except Exception as error:
            if is_interruption(error):
                raise
            with suppress(Exception):  # stderr may be closed, or a signal handler may have interrupted a write to it
                self.handleError(record)
            message = log_entry.message_of(record)
        try:
            return log_entry.encode_record(record, message, created_ms=created_ms, has_trace=self._has_trace)
        except Exception as error:  # the application has taken away what each record has, or a dict of its own raises
            if is_interruption(error):
                raise
            return _unshown(record, message)


def _unshown(record: logging.LogRecord, message: str = "") -> str:
    """Return the text of a record with nothing but its message, without a call to any object of the application.

    By default the message is that of a record that is nested too deep.
    """
    if not message:
        message = (
            record.msg if type(record.msg) is str else f"<{type(record.msg).__name__} that logs while it is shown>"
        )
    own = {name: getattr(record, name, None) for name in ("name", "levelname", "levelno", "created")}
    plain = logging.LogRecord("", 0, "", 0, "", (), None)  # `makeLogRecord` would call the application's record factory
    plain.__dict__.update(own)
    return log_entry.encode_record(plain, message)
