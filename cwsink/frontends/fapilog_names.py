"""Tells whether fapilog has a private name that we use, written as "module:Class.name"."""

from __future__ import annotations

import importlib
from typing import Any, Final

# The only attribute of ours that a logger has: its pipeline. None: we have looked at the logger, and it keeps
# fapilog's queue.
PIPELINE: Final = "cwsink_pipeline"


def of_logger(names: str) -> tuple[str, ...]:
    """Return the full names of attributes, given with spaces between them, that both of fapilog's facades have."""
    return tuple(f"fapilog.core.logger:_LoggerMixin.{name}" for name in names.split())


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
