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
| numbers of other types (NumPy's) | number; its `str()`, if Python makes no number of it (NumPy's times) |
| dataclass, attrs, msgspec.Struct | object of the fields that its `repr()` shows; of a dataclass no `_private` ones |
| model of pydantic | object of the fields that both its `repr()` and its `model_dump()` show, see `_both` |
| any of these but an Enum, if its class has a `__str__` or `__repr__` of the application | its `str()` |
| all else | its `str()` |

A key of a dict becomes the text of what the value would become. Numbers, True, False and None become what `json.dumps`
writes for a key: `true`, `null`. A tuple of texts, numbers and the like becomes its `str()`, any other one JSON.
"""

from __future__ import annotations

import numbers
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache, partial
from types import FunctionType, NoneType
from typing import Any, Final
from uuid import UUID

import msgspec

from cwsink.interruption import is_interruption, suppress

_VALUES: Final = frozenset((str, int, float, bool, NoneType, date, UUID, Decimal))
_EXACT: Final = frozenset((str, int, float, bool, NoneType, UUID))
_CONTAINERS: Final = (dict, list, tuple, set, frozenset)
# Values of these types, and of the types of these modules, show all of themselves, and hold no other object that hides.
_OPEN: Final = (bytes, bytearray, memoryview, datetime, time, timedelta, numbers.Number)
_OPEN_MODULES: Final = frozenset("fractions ipaddress numpy pathlib pathlib._local pydantic.networks".split())
# What makes the `str()` and the `repr()` of a pydantic model. (`__repr_name__` makes only the name before the fields.)
_MODEL_METHODS: Final = ("__str__", "__repr__", "__repr_args__", "__repr_str__")
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
    """Tell whether all keys are texts and all values texts, numbers and the like: no encoder runs foreign code."""
    for key, value in values.items():  # noqa: SIM110  # it is asked for each record, and all() takes longer
        if type(key) is not str or type(value) not in _VALUES:
            return False
    return True


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
    if isinstance(value, _CONTAINERS):
        if _shows_itself(kind):
            return text(value)
        if isinstance(value, dict):
            return {_key(key, within): plain(each, within) for key, each in list(value.items())}
        return [plain(each, within) for each in list(value)]
    if isinstance(value, Enum):
        return plain(value.value, within)
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value).decode("utf-8", "backslashreplace")
    if isinstance(value, (datetime, time)):
        return re.sub(r"\+00:00$", "Z", text(value.isoformat()))
    if _is_model(kind):
        return _of_model(value, within)
    if (parts := _parts(value)) is not None:
        return {name: plain(each, within) for name, each in parts.items()}
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
    if getattr(getattr(value, "dtype", None), "kind", "") in ("m", "M"):
        return text(value)  # a time of NumPy's: as a number it says nothing without its unit
    with suppress(Exception):  # it calls itself a number, but Python may make none of it
        if isinstance(value, numbers.Integral):
            return int(value)
        if isinstance(value, numbers.Real):
            return float(value)
        found = value.item() if hasattr(value, "item") else value
        if type(found) in _VALUES:
            return found
    return text(value)


def _key(key: object, within: tuple[int, ...]) -> str:
    """Return the text that stands for a key of a dict. Raises no Exception."""
    try:
        if type(key) in (int, float, bool, NoneType):
            import json  # here, because such keys are rare

            return json.dumps(key)
        if isinstance(key, Enum):
            return _key(key.value, within)
        made = plain(key, within)
        if isinstance(made, str):
            return made
        if isinstance(key, tuple) and _VALUES.issuperset(map(type, key)):
            return text(key)
        return _encode(made).decode().strip('"')
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
    methods = [getattr(kind, name, None) for name in _MODEL_METHODS]
    return hasattr(kind, "__pydantic_decorators__") and all(
        isinstance(each, FunctionType) and str(each.__globals__.get("__name__")).startswith("pydantic.")
        for each in methods
    )


def _of_model(model: Any, within: tuple[int, ...]) -> Any:
    """Return what both the `repr()` and the `model_dump()` of a model of pydantic's show."""
    try:
        return _both(model, _dump(model), within)
    except Exception as error:
        if is_interruption(error) or model.__pydantic_root_model__:
            raise
    # A serializer of the application fails, or pydantic cannot dump a field. The other fields are to arrive.
    found: dict[str, Any] = {}
    for name, live in (_parts(model) or {}).items():
        key = _key(name, within)
        try:
            dumped = _dump(model, include={name})
            found |= {key: _both(live, dumped[name], within)} if name in dumped else {}
        except Exception as error:
            found[key] = unshowable(live, error)
    return found


def _dump(model: Any, **options: Any) -> Any:
    """Return what `model_dump()` makes of a model, with the names of its fields and not their aliases."""
    try:
        try:
            return model.model_dump(by_alias=False, warnings=False, **options)
        except TypeError:  # the application has a `model_dump` of its own, which takes other arguments
            return model.model_dump(**options)
    except BaseException as error:
        failure = _failure(error)
    raise failure


def _failure(error: BaseException) -> BaseException:
    """Return what to raise for an error of `model_dump()`.

    pydantic wraps whatever a serializer raises. What a signal handler has raised meanwhile, or a KeyboardInterrupt, is
    raised as it was. A PanicException, if what is being dumped is changed meanwhile, is no Exception: it becomes one.
    """
    cause: BaseException | None = error
    while cause is not None and type(cause).__name__ != "PanicException":
        if is_interruption(cause) or not isinstance(cause, Exception):
            return cause
        cause = cause.__cause__
    return error if isinstance(error, Exception) else RuntimeError(str(error))


def _both(live: Any, dumped: Any, within: tuple[int, ...]) -> Any:
    """Return what both forms of a value in a model show. Raises no Exception.

    `live` is the value itself, whose `repr()` the model's `repr()` has. `dumped` is what `model_dump()` has for it. One
    may hide what the other shows: by `Field(repr=False)`, or by `Field(exclude=True)` and serializers. So:

    * If the `repr()` hides nothing, all that `model_dump()` has may be shown.
    * Else, of a model or dataclass the fields are shown that are in both, and of a dict or list the items, in this way.
    * Else, if both are the same text, that is shown. If not, either may be a mask, and we do not know which one is. So
      a text says that they differ. Of pydantic's secrets the `str()` is known to be a mask.
    """
    try:
        return _shared(live, dumped, within)
    except Exception as error:
        return unshowable(live, error)


def _shared(live: Any, dumped: Any, within: tuple[int, ...]) -> Any:
    kind = type(live)
    if dumped is live or not _hides(live) or (type(dumped) is kind and not isinstance(dumped, _CONTAINERS)):
        return plain(dumped, within)
    within = (*within, id(live))
    parts = _parts(live)
    if parts is not None:
        if parts and getattr(kind, "__pydantic_root_model__", False):
            return _both(parts["root"], dumped, within)
        if isinstance(dumped, dict):
            names = [name for name in parts if name in dumped]
            return {_key(name, within): _both(parts[name], dumped[name], within) for name in names}
    elif _shows_itself(kind) or not isinstance(live, _CONTAINERS):
        is_model = hasattr(kind, "__pydantic_fields__") or hasattr(kind, "__dataclass_fields__")
        if isinstance(dumped, _CONTAINERS) and (is_model or isinstance(live, _CONTAINERS)):
            return text(live)  # pydantic takes it apart, but by itself it is shown as its `str()`
    elif isinstance(live, dict) and isinstance(dumped, dict) and len(live) == len(dumped):
        pairs = zip(list(live.items()), list(dumped.items()), strict=True)
        return {_shared_key(key, named, within): _both(each, made, within) for (key, each), (named, made) in pairs}
    elif isinstance(live, (list, tuple)) and isinstance(dumped, (list, tuple)) and len(live) == len(dumped):
        return [_both(each, made, within) for each, made in zip(list(live), list(dumped), strict=True)]
    elif isinstance(dumped, (set, frozenset)) and {*map(id, list(dumped))} <= {*map(id, list(live))}:
        return [plain(each, within) for each in list(dumped)]  # of a set, the items that are in both
    return _unlike(live, dumped)


def _shared_key(key: object, dumped: object, within: tuple[int, ...]) -> str:
    return _key(dumped if dumped is key or not _hides(key) else _unlike(key, dumped), within)


def _unlike(live: Any, dumped: object) -> str:
    shown = text(live)
    if hasattr(type(live), "get_secret_value") or shown == text(dumped):
        return shown
    return f"<{type(live).__name__} that its repr() and its model_dump() show differently>"


def _hides(value: Any, levels: int = _MOST_LEVELS) -> bool:
    """Tell whether the `repr()` of a value may show less than all that is in it. If in doubt: yes."""
    kind = type(value)
    if kind in _VALUES:
        return False
    if levels == 0:
        return True
    if isinstance(value, Enum):
        return _hides(value.value, levels - 1)
    if (parts := _parts(value)) is not None:
        if _has_more(value, parts):
            return True
        inner = list(parts.values())
    elif _shows_itself(kind) or not isinstance(value, _CONTAINERS):
        is_open = isinstance(value, _OPEN) and not _shows_itself(kind)
        return not (is_open or kind.__module__ in _OPEN_MODULES)
    else:
        inner = [*value.keys(), *value.values()] if isinstance(value, dict) else list(value)
    return any(_hides(each, levels - 1) for each in inner)


def _has_more(value: Any, parts: dict[str, object]) -> bool:
    """Tell whether an object has more than the parts that its `repr()` shows, or other ones."""
    kind = type(value)
    if not hasattr(value, "__dict__") or not parts.keys() >= vars(value).keys():
        return True
    if _is_model(kind):
        is_private = bool(getattr(value, "__pydantic_private__", None))
        return is_private or not all(each.repr for each in kind.__pydantic_computed_fields__.values())
    return any(show is not _as_it_is for show in (_shown_fields(kind) or {}).values())


def _parts(value: Any) -> dict[str, object] | None:
    """Return what the `repr()` of a model, dataclass, attrs object or Struct shows, by name; None for all else."""
    kind = type(value)
    if not _is_model(kind):
        fields = _shown_fields(kind)
        return None if fields is None else {name: show(getattr(value, name)) for name, show in fields.items()}
    fields = kind.__pydantic_fields__
    found = {name: each for name, each in dict(vars(value)).items() if name in fields and fields[name].repr}
    found |= getattr(value, "__pydantic_extra__", None) or {}
    for name, computed in kind.__pydantic_computed_fields__.items():
        if computed.repr:
            try:
                found[name] = getattr(value, name)
            except Exception as error:
                found[name] = unshowable(value, error)
    return found


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
