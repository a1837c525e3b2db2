"""`SpoolHandler`: a handler of the logging module for the same spool.

For any logger of the standard library: Django's LOGGING, gunicorn's own access and error
log, `sys.excepthook`. One record is one event, at the time it was made; a traceback is part
of it. What is in the spool is safe, so `flush()` has nothing to do.

There is no lock, so a signal handler may log while the code it interrupted is logging. There is no thread either, and
nothing of what delivers: the flusher is a process of its own, and what botocore logs there is not heard here.
"""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import Any, Final

from cwsink.frontends import log_entry
from cwsink.frontends.writer import Writer

# A `repr()` that logs the very object it is about would go on for ever. Signal handlers nest, too, but not so deep.
_MOST_NESTED: Final = 5


class SpoolHandler(logging.Handler):
    """Spools each record: as JSON (see cwsink.frontends.log_entry), or as the text of its formatter, if it has one.

    Args:
        config: a SinkConfig or a mapping.
        level: as of any handler.
        **settings: single settings (see SinkConfig); they win over `config`, and that over `FAPILOG_CLOUDWATCH__*`.

    Raises:
        ConfigError, SpoolError: at construction. Later nothing is raised; what is refused is counted (see Writer).

    Example:
        logging.getLogger().addHandler(SpoolHandler(log_group_name="/myapp/prod"))
    """

    def __init__(self, config: object = None, level: int | str = logging.NOTSET, **settings: Any) -> None:
        self._writer = Writer.open(config, **settings)
        self._nested = threading.local()
        super().__init__(level)

    def createLock(self) -> None:  # noqa: N802  # logging's name
        """Have none: one `write()` needs no other order than the kernel's."""
        self.lock = None

    def handle(self, record: logging.LogRecord) -> bool:
        """Spool a record that passes the filters. Beside the lock, what logging's own `handle` does."""
        passed: object = self.filter(record)
        if isinstance(passed, logging.LogRecord):  # Python 3.12: a filter may replace it
            record = passed
        if passed:
            self.emit(record)
        return bool(passed)

    def emit(self, record: logging.LogRecord) -> None:
        """Spool a record, whatever it holds. Never raises an Exception."""
        nested = self._nested
        depth = nested.depth = getattr(nested, "depth", 0) + 1
        try:
            text = self._text_of(record) if depth <= _MOST_NESTED else _unshown(record)
            self._writer.append(text, log_entry.time_ms(record.created))
        except Exception as error:
            with suppress(Exception):
                self._writer.surprised(error)
        finally:
            nested.depth = depth - 1

    def close(self) -> None:
        """Let go of the spool, as `logging.shutdown` and `dictConfig` want it. A later record opens it again."""
        self._writer.close()
        super().close()

    def _text_of(self, record: logging.LogRecord) -> str:
        """Return the event. What cannot be formatted is sent as it is, and said as any handler says it."""
        try:
            if self.formatter is not None:
                # An empty line is one, but no event for CloudWatch, which wants a character.
                return str(self.formatter.format(record)) or " "
            message = str(record.getMessage())
        except Exception:
            with suppress(Exception):  # stderr may be closed, or busy with what a signal handler has interrupted
                self.handleError(record)
            message = log_entry.unformatted(record)
        return log_entry.encode_record(record, message)


def _unshown(record: logging.LogRecord) -> str:
    """Return what can be said of a record without asking any object of the application."""
    message = record.msg if type(record.msg) is str else f"a record made while a {type(record.msg).__name__} was shown"
    own = {name: getattr(record, name, None) for name in ("name", "levelname", "levelno", "created")}
    return log_entry.encode_record(logging.makeLogRecord(own), message)
