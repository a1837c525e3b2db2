"""Makes a record harmless for fapilog's redactors and serializer: to encode it runs no code of the application.

fapilog copies and serializes a record with orjson, and orjson asks some objects for their values: an Enum, a dataclass,
a datetime with a timezone of the application. If that code raises, orjson crashes the process. If it changes the record
meanwhile, orjson reads freed memory. So a record with such a value is made plain first (cwsink.frontends.plain).

Where no value runs code, all stay as they are. What orjson refuses (a Decimal, a set, an object) it still refuses, and
fapilog then does what it does for such a record: it runs no redactor.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from enum import Enum
from types import NoneType
from typing import Any, Final

import msgspec

from cwsink.frontends.plain import encode
from cwsink.interruption import is_interruption

_EXACT: Final = frozenset((str, int, float, bool, NoneType))
# The modules of Python's own timezones, and of None. They are written in C, and raise nothing.
_OF_PYTHON: Final = frozenset(("builtins", "datetime", "zoneinfo"))
# orjson's would take a whole number of more than 64 bits for a float.
_decode: Final = msgspec.json.Decoder(dict[str, Any]).decode


def harmless(entry: dict[str, Any]) -> dict[str, Any]:
    """Return the record, or a plain copy of it if to encode it would run code of the application.

    Raises:
        RecursionError: there is no room on the stack to look at the record.
    """
    try:
        if not _runs_code(entry.values()):
            return entry
    except Exception as error:  # it holds itself, or is nested too deep
        if is_interruption(error):
            raise
    made = encode(dict(entry))
    if not made.startswith(b"{"):  # it is a text that says that the record cannot be shown
        raise RecursionError(made.decode())
    return _decode(made)


def _runs_code(values: Iterable[Any]) -> bool:
    """Tell whether orjson runs Python code for one of the values, or for one in them."""
    for value in values:
        kind = type(value)
        if kind in _EXACT:
            continue
        if issubclass(kind, dict):
            found = _runs_code(list(dict.values(value)))  # a copy, because another thread may change it
        elif issubclass(kind, list):
            found = _runs_code(list.__iter__(value))
        elif issubclass(kind, tuple):
            found = _runs_code(tuple.__iter__(value))
        elif issubclass(kind, datetime):
            found = type(value.tzinfo).__module__ not in _OF_PYTHON
        else:
            found = issubclass(kind, Enum) or hasattr(kind, "__dataclass_fields__")
        if found:
            return True
    return False
