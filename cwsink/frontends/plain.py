"""JSON of whatever an application logs (no I/O).

An application may log any object. To encode it may run the application's own code: a `__str__`, a property, a tzinfo.
That code may change the very container that is being encoded, or let another thread do so. An encoder in C that is in
the middle of that container would then read freed memory, and the process would crash. So there are two ways:

* The quick way is orjson, told to refuse all but exact JSON types, UUID and Enum. It runs no code of the application,
  and it stops at the first value that it refuses. But it asks an Enum for its `value`, which is Python code, during
  which other threads may run. So a value goes the quick way only after a look that found no Enum in it.
* The slow way, for all else, is written in Python. It copies each container first, and makes each value plain by
  itself. A value that cannot be made plain becomes a text that says so, and spoils no other value.

What the slow way makes of a value is never more than the value shows of itself:

| value | becomes |
|---|---|
| text, whole numbers, floats, True, False, None | itself; NaN and infinity: null |
| datetime, date, time | RFC 3339 |
| UUID, Decimal | text |
| dict, list, tuple, set | object or array |
| Enum | its value |
| bytes | text; bytes that are not UTF-8 become backslash escapes |
| numbers of other types (NumPy's) | number |
| dataclass, attrs, msgspec.Struct | object of the fields that its `repr()` shows; of a dataclass no `_private` ones |
| model of pydantic | object of the fields that both its `repr()` and its `model_dump()` show |
| any of these but an Enum, if its class has a `__str__` or `__repr__` of the application | its `str()` |
| all else | its `str()` |
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from types import FunctionType, NoneType
from typing import Any, Final
from uuid import UUID

import msgspec

from cwsink.frontends.interruption import is_interruption

_VALUES: Final = frozenset((str, int, float, bool, NoneType, date, UUID, Decimal))
_EXACT: Final = frozenset((str, int, float, bool, NoneType, UUID))
_MOST_LEVELS: Final = 100

_encode: Final = msgspec.json.Encoder().encode


def encode(value: object) -> bytes:
    """Return a value as JSON. Raises no Exception because of what the value is, or does meanwhile."""
    try:
        if _is_exact((value,)):
            return _strict()(value)
    except Exception as error:  # a value of another type, a text that is no Unicode, a number of more than 64 bits
        if is_interruption(error):
            raise
    return _encode(plain(value))


def _is_exact(values: Iterable[object]) -> bool:
    """Tell whether all values, and all in them, are of types of which orjson runs no code."""
    for value in values:
        kind = type(value)
        if kind in _EXACT:
            continue
        if kind is dict:
            value = value.values()  # type: ignore[attr-defined]  # it is a dict
        elif kind is not list and kind is not tuple:
            return False
        if not _is_exact(value):  # type: ignore[arg-type]  # it can be iterated
            return False
    return True


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
        return unshowable(value, error)


def unshowable(value: object, error: Exception) -> str:
    """Return what to show instead of a value that has raised this. Raises what a signal handler has raised."""
    if is_interruption(error):
        raise error
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
    if isinstance(value, (dict, list, tuple, set, frozenset)):
        if _shows_itself(kind):
            return text(value)
        if isinstance(value, dict):
            return {_key(key): plain(each, within) for key, each in list(value.items())}
        return [plain(each, within) for each in list(value)]
    if isinstance(value, Enum):
        return plain(value.value, within)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, (datetime, time)):
        return re.sub(r"\+00:00$", "Z", text(value.isoformat()))
    if _is_model(kind):
        return {name: plain(each, within) for name, each in _of_model(value).items()}
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
    except Exception as error:  # a whole number of more than 64 bits
        if is_interruption(error):
            raise
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
        return unshowable(key, error)


def _shows_itself(kind: type) -> bool:
    """Tell whether the application says how its values are shown: by a `__str__` or `__repr__` of its own."""
    return _is_written(kind.__str__) or _is_written(kind.__repr__)


def _is_written(method: Any) -> bool:
    """Tell whether a method is Python code of the application. That of a namedtuple or Counter is of `collections`."""
    return isinstance(method, FunctionType) and method.__globals__.get("__name__") != "collections"


def _is_generated(function: Any) -> bool:
    """Tell whether `dataclasses` or `attrs` has made a method: its code comes from no file."""
    code = getattr(getattr(function, "__wrapped__", function), "__code__", None)
    return code is not None and code.co_filename.startswith("<")


def _is_model(kind: type) -> bool:
    """Tell whether it is a class of pydantic's models that is shown as pydantic shows it."""
    methods = (kind.__str__, kind.__repr__)
    return hasattr(kind, "__pydantic_decorators__") and all(
        isinstance(each, FunctionType) and str(each.__globals__.get("__name__")).startswith("pydantic.")
        for each in methods
    )


def _of_model(model: Any) -> dict[str, object]:
    """Return the fields of a model of pydantic's that both its `repr()` and its `model_dump()` show, as both do."""
    decorators = model.__pydantic_decorators__
    fields = {name: each for name, each in model.__pydantic_fields__.items() if each.repr and not each.exclude}
    changed = {name for each in decorators.field_serializers.values() for name in each.info.fields}
    changed |= {
        name for name, each in fields.items() if any(type(how).__name__.endswith("Serializer") for how in each.metadata)
    }
    if decorators.model_serializers or "*" in changed:
        changed = set(fields)
    dumped = model.model_dump(include=changed) if changed else {}
    return {name: dumped.get(name) if name in changed else getattr(model, name) for name in fields}


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
    # A class that has no `__repr__` made for itself has that of another class, with the fields of that class.
    owner = next(each for each in kind.__mro__ if "__repr__" in vars(each))
    if hasattr(owner, "__dataclass_fields__"):
        import dataclasses  # here, because the application has loaded it then, and no other one is to pay for it

        fields = dataclasses.fields(owner)
        return {each.name: _as_it_is for each in fields if each.repr and not each.name.startswith("_")}
    if (attributes := getattr(owner, "__attrs_attrs__", None)) is not None:
        return {each.name: each.repr if callable(each.repr) else _as_it_is for each in attributes if each.repr}
    return None
