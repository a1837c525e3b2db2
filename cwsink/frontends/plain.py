"""JSON of whatever an application logs (no I/O).

An application may log any object. To encode it may run the application's own code: a `__str__`, a property, a tzinfo.
That code may change the very container that is being encoded, or let another thread do so. An encoder in C that is in
the middle of that container would then read freed memory, and the process would crash. So there are two ways:

* The quick way is orjson, told to refuse all but exact JSON types, UUID and Enum. It runs no code of the application,
  and it stops at the first value that it refuses.
* The slow way, for all else, is written in Python. It copies each container first, and makes each value plain by
  itself. A value that cannot be made plain becomes a text that says so, and spoils no other value.

What the slow way makes of a value is never more than the value shows of itself:

| value | becomes |
|---|---|
| text, whole numbers, floats, True, False, None | itself; NaN and infinity: null |
| datetime, date, time | RFC 3339 |
| UUID, Decimal | text |
| dict, list, tuple, set, and their subclasses | object or array |
| Enum | its value |
| bytes | text; bytes that are not UTF-8 become backslash escapes |
| numbers of other types (NumPy's) | number |
| dataclass, attrs | object of the fields that its own `repr()` shows; if that is the application's, its `str()` |
| msgspec.Struct | object; if its `__str__` or `__repr__` is the application's, its `str()` |
| subclasses of text and numbers with a `__str__` or `__repr__` of the application | its `str()` |
| all else | its `str()` |
"""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Callable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from types import FunctionType, NoneType
from typing import Any, Final
from uuid import UUID

import msgspec

_VALUES: Final = frozenset((str, int, float, bool, NoneType, date, UUID, Decimal))
_MOST_LEVELS: Final = 100

_encode: Final = msgspec.json.Encoder().encode


def encode(value: object) -> bytes:
    """Return a value as JSON. Raises no Exception because of what the value is, or does meanwhile."""
    try:
        return _strict()(value)
    except Exception:  # a value of another type, a text that is no Unicode, a number of more than 64 bits
        return _encode(plain(value))


def is_flat(values: Mapping[Any, Any]) -> bool:
    """Tell whether all values of a mapping are texts, numbers and the like: no encoder runs code of the application."""
    return _VALUES.issuperset(map(type, values.values()))


@cache
def _strict() -> Callable[[object], bytes]:
    """Return the quick way. It is loaded by the first entry that needs it; fapilog has loaded it for itself."""
    import orjson

    options = orjson.OPT_PASSTHROUGH_SUBCLASS | orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
    return partial(orjson.dumps, option=options)


def plain(value: object, within: tuple[int, ...] = ()) -> Any:
    """Return what JSON can hold of a value. Raises no Exception. `within`: the ids of the containers that hold it."""
    try:
        return _plain(value, within)
    except Exception as error:
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def text(value: object) -> str:
    """Return `str(value)` as legal Unicode. Raises whatever the value's own code raises."""
    return str(value).encode("utf-8", "backslashreplace").decode()


def _plain(value: Any, within: tuple[int, ...]) -> Any:
    kind = type(value)
    if kind in _VALUES:
        return _scalar(value)
    if id(value) in within:
        return "{...}" if isinstance(value, dict) else "[...]"  # it holds itself; so Python shows it
    if len(within) >= _MOST_LEVELS:
        return f"<{kind.__name__}, nested {_MOST_LEVELS} levels deep>"
    within = (*within, id(value))
    if isinstance(value, dict):
        return {_key(key): plain(each, within) for key, each in list(value.items())}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [plain(each, within) for each in list(value)]
    if isinstance(value, Enum):
        return plain(value.value, within)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, (datetime, time)):
        return msgspec.Raw(_encode(value))  # its tzinfo may run any code, but in the middle of no container
    if (fields := _shown_fields(kind)) is not None:
        return {name: plain(show(getattr(value, name)), within) for name, show in fields.items()}
    if _shows_itself(kind):
        return text(value)
    if isinstance(value, numbers.Number) or (kind.__module__ == "numpy" and getattr(value, "shape", None) == ()):
        return _scalar(_number(value))
    return text(value)


def _scalar(value: Any) -> Any:
    """Return a plain value that msgspec is known to encode."""
    if isinstance(value, str):
        return text(value)
    try:
        return msgspec.Raw(_encode(value))
    except Exception:  # a whole number of more than 64 bits
        return msgspec.Raw(repr(value).encode()) if isinstance(value, int) else text(value)


def _number(value: Any) -> Any:
    if isinstance(value, numbers.Integral):
        return int(value)
    if isinstance(value, numbers.Real):
        return float(value)
    found = value.item() if hasattr(value, "item") else value
    return found if type(found) in _VALUES else text(value)


def _key(key: object) -> str:
    try:
        return text(key)
    except Exception as error:
        return f"<{type(key).__name__} that cannot be shown: {type(error).__name__}>"


def _shows_itself(kind: type) -> bool:
    """Tell whether the application says how its values are shown: by a `__str__` or `__repr__` of its own."""
    return isinstance(kind.__str__, FunctionType) or isinstance(kind.__repr__, FunctionType)


def _is_generated(function: Any) -> bool:
    """Tell whether `dataclasses` or `attrs` has made a method: its code comes from no file."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return code is not None and code.co_filename.startswith("<")


def _as_it_is(value: object) -> object:
    return value


def _shown_fields(kind: type) -> dict[str, Callable[[Any], object]] | None:
    """Return the fields that values of a dataclass, attrs class or Struct show, and how; None for all other classes."""
    if isinstance(kind.__str__, FunctionType):
        return None
    if issubclass(kind, msgspec.Struct):
        return None if _shows_itself(kind) else dict.fromkeys(kind.__struct_fields__, _as_it_is)
    if not _is_generated(kind.__repr__):
        return None
    if dataclasses.is_dataclass(kind):
        return {field.name: _as_it_is for field in dataclasses.fields(kind) if field.repr}
    if (attributes := getattr(kind, "__attrs_attrs__", None)) is not None:
        return {each.name: each.repr if callable(each.repr) else _as_it_is for each in attributes if each.repr}
    return None
