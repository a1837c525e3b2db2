"""Tells whether a private name of fapilog is there: "module:Class.name"."""

from __future__ import annotations

import importlib
from typing import Any


def of_logger(names: str) -> tuple[str, ...]:
    """Return the full names of attributes of both of fapilog's facades."""
    return tuple(f"fapilog.core.logger:_LoggerMixin.{name}" for name in names.split())


def module(name: str) -> Any:
    """Return a module without naming it in an import, for what may not be there."""
    return importlib.import_module(name)


def exists(name: str) -> bool:
    """Say whether the name is there; what only an instance has is looked for in its initialiser."""
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
