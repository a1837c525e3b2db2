"""Tells whether fapilog has a private name that we use, written as "module:Class.name", and code that we know."""

from __future__ import annotations

import hashlib
import importlib
import inspect
from typing import Any, Final

from cwsink.interruption import suppress

# The only attribute of ours that a logger has: its pipeline. None: we have looked at the logger, and it keeps
# fapilog's queue.
PIPELINE: Final = "cwsink_pipeline"


def of(place: str, names: str) -> tuple[str, ...]:
    """Return the full names of attributes, given with spaces between them, of a class."""
    return tuple(f"{place}.{name}" for name in names.split())


def of_logger(names: str) -> tuple[str, ...]:
    """Return the full names of attributes that both of fapilog's facades have."""
    return of("fapilog.core.logger:_LoggerMixin", names)


def module(name: str) -> Any:
    """Import a module by its name. An import statement is of no use here, because the module may be missing."""
    return importlib.import_module(name)


def exists(name: str) -> bool:
    """Tell whether the name is there. An attribute that only instances have is looked for in their initialiser."""
    place, _, path = name.partition(":")
    try:
        found = module(place)
        for part in path.split("."):
            initialisers = [getattr(found, each, None) for each in ("_common_init", "__init__")]
            names = {each for init in initialisers for each in getattr(getattr(init, "__code__", None), "co_names", ())}
            if not hasattr(found, part) and part in names:
                return True
            found = getattr(found, part)
    except Exception:
        return False
    return True


def has_source(code: Any, sha256: str, *, and_also: str = "") -> bool:
    """Tell whether the source of a class or function, with a text put behind it, has this SHA-256."""
    with suppress(OSError, TypeError):  # there is no source, or the class has no such method
        return hashlib.sha256((inspect.getsource(code) + and_also).encode()).hexdigest() == sha256
    return False
