"""A sink for loguru, in the shape of all other front ends. A traceback arrives once.

```text
import cwsink.loguru
from loguru import logger

logger.add(cwsink.loguru.Sink(log_group_name="/myapp/prod"), format="{message}")
```

`format="{message}"` spares loguru the work of a text that the sink does not use. The sink is safe in several processes
and returns when the record is in the spool, so `enqueue=True` is not needed. With it another thread calls the sink, in
which no span is active: the ids of the trace are lost. Nothing of loguru is imported here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from cwsink.frontends import log_entry, opening, static_fields
from cwsink.interruption import is_a, is_interruption

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.settings import Settings

_COLOUR: Final = re.compile(r"\x1b\[[0-9;]*m")
_SERIALIZED: Final = '{"text": '
_TRACEBACK: Final = re.compile(r"^ *(\+ Exception Group )?Traceback \(most recent call last\):$", re.MULTILINE)


class Sink:
    """Spools each message of loguru.

    Args:
        config: a SinkConfig or a mapping.
        on_unusable: "stderr", or "raise" (see SpoolHandler): what to do if the spool cannot be used.
        **settings: single settings (see SinkConfig); they win over `config`, which wins over `CWSINK_*`.

    Raises:
        ConfigError, SpoolError: as by SpoolHandler, at construction. Later nothing is raised; a refused record is
            counted (see Writer).
    """

    def __init__(
        self, config: object = None, *, on_unusable: opening.OnUnusable | None = None, **settings: Unpack[Settings]
    ) -> None:
        self._writer = opening.open_writer(config, on_unusable, **settings)
        self._fields = opening.fields_of(self._writer)
        self._has_trace = self._writer.config.trace == "auto"

    def __call__(self, message: Any) -> None:
        """Spool one message of loguru: a text with the attribute `record`.

        A patcher of the application may have put anything in the place of a part. That is shown as it is. If it cannot
        be asked (a lazy proxy), all but the message and the level is `data`.
        """
        record, created = message.record, None
        text: str | bytes
        try:
            created = record.get("time")
            created = created.timestamp() if hasattr(created, "timestamp") else created
            text = self._rendered(message, created)
        except Exception as error:
            if is_interruption(error):
                raise
            data = {key: value for key, value in record.items() if key not in ("message", "level")}
            text = log_entry.encode_bare("loguru", _part(record, "level", "name"), record.get("message", ""), data)
        if self._fields:
            text = static_fields.add(text, self._fields)
        self._writer.append(text, log_entry.time_ms(created))

    def _rendered(self, message: Any, created: object) -> str:
        record = message.record
        diagnostics: dict[str, Any] = {
            "origin": "loguru",
            "pid": _part(record, "process", "id"),
            "process": _part(record, "process", "name"),
            "thread": _part(record, "thread", "name"),
            "file": _part(record, "file", "path"),
            "line": record.get("line"),
            "function": record.get("function"),
        }
        level, extra = _part(record, "level", "name"), record.get("extra")
        if not log_entry.is_known(level):
            diagnostics["levelno"] = _part(record, "level", "no")
        if (failure := record.get("exception")) and (exception := _exception(message, *failure)):
            diagnostics["exception"] = exception
        return log_entry.encode_entry(
            timestamp=created,
            level=level,
            message=record.get("message", ""),
            logger=record.get("name"),
            diagnostics=diagnostics,
            data=extra if is_a(extra, Mapping) else {"extra": extra},
            has_trace=self._has_trace,
        )


def _part(record: Mapping[str, Any], key: str, name: str) -> Any:
    """Return an attribute of a part of loguru's record; if that is a plain value by now, the value."""
    return getattr(record.get(key), name, record.get(key))


def _exception(message: Any, kind: Any, error: Any, frames: Any) -> dict[str, str]:
    """Return the fields of an exception.

    With `enqueue=True` loguru pickles the record, and the exception loses its traceback; one that cannot be pickled is
    gone altogether. But the text of the message was made before that, and nearly always holds the whole of it.
    """
    if kind is None:  # `logger.exception` was called where there is no exception
        return {}
    found = {} if error is None else log_entry.exception_fields(error)
    if frames is None and (stack := _stack_in(message, is_all=not found)):
        said = stack.rpartition("\n")[2].partition(": ")[2]
        found = {"error.type": kind.__name__, "error.message": said, **found, "error.stack": stack}
    return found


def _stack_in(message: Any, *, is_all: bool) -> str:
    """Return the traceback in the text that loguru has made of a message; "" if none is found.

    It reaches to the end of the text: loguru adds it to each format. A format that is a function decides itself.
    `is_all`: nothing else is known of the exception, so what follows the message will do.
    """
    text, said = (_COLOUR.sub("", each) for each in (_text_of(message), message.record["message"]))
    found = _TRACEBACK.search(text)
    if found and 0 <= (at := text.find(said)) <= found.start():  # the message may hold a traceback of its own
        found = _TRACEBACK.search(text, at + len(said))
    if found:
        return text[found.start() :].rstrip()
    return text.partition(f"{said}\n")[2].strip() if is_all else ""


def _text_of(message: Any) -> str:
    """Return the text of a message. Under `serialize=True` loguru has put it into JSON."""
    text = str(message)
    if text.startswith(_SERIALIZED):
        with suppress(ValueError, KeyError, TypeError, RecursionError):  # it is no JSON of loguru's, or nested too deep
            return str(json.loads(text)["text"])
    return text
