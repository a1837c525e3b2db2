"""Static fields: what every record has at its top, also (setting `fields`).

They are encoded once, when a front end is made, as the end of a JSON object: `,"service":"shop","env":"prod"}`. A
record that we have encoded gets them in the place of its last brace. A text that the application has made may be JSON,
or only look like it, and may have a field of that name already. So it is decoded first.
"""

from __future__ import annotations

import os
from functools import lru_cache
from typing import TYPE_CHECKING, Final

import msgspec

from cwsink import host
from cwsink.config import SinkConfig
from cwsink.target import resolve_fields

if TYPE_CHECKING:
    from cwsink.spool.directory import SpoolDirectory

_encode: Final = msgspec.json.Encoder().encode


def encode(config: SinkConfig, directory: SpoolDirectory | None) -> str:
    """Return the static fields of `config` as the end of a record; "" if there are none.

    Args:
        config: the settings.
        directory: the spool, whose root keeps what was looked up; None: nothing is spooled.

    Raises:
        ConfigError: a placeholder has no value.
    """
    if not config.fields:
        return ""

    def look_up(name: str) -> str | None:
        if directory is None:
            return host.look_up(name, os.environ)
        from cwsink.spool import host_names  # here, because it cannot be imported on Windows

        return host_names.look_up(directory.root, name, os.environ)

    return "," + msgspec.json.encode(resolve_fields(config, os.environ, look_up)).decode()[1:]


def add(record: str | bytes, fields: str) -> str | bytes:
    """Return a record with the static fields, if it is a JSON object."""
    text = record if isinstance(record, str) else bytes(record).decode("utf-8", "backslashreplace")
    return f"{text[:-1]}{fields}" if text[:1] == "{" and text[-1:] == "}" and len(text) > 2 else record


def add_to_text(text: str | bytes, fields: str) -> str | bytes:
    """Return a text of the application with those static fields that it has not, if it is a JSON object."""
    try:
        has = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, UnicodeError, RecursionError, TypeError):  # no JSON, no Unicode, too deep, no text
        return text
    if not has:
        return "{" + fields[1:]
    more = {name: value for name, value in _decoded(fields).items() if name not in has}
    return add(text.strip(), "," + _encode(more).decode()[1:]) if more else text


@lru_cache(maxsize=8)
def _decoded(fields: str) -> dict[str, msgspec.Raw]:
    return msgspec.json.decode("{" + fields[1:], type=dict[str, msgspec.Raw])
