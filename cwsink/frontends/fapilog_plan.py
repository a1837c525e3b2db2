"""What fapilog would do by the settings of this process's environment, for `cwsink doctor`. No logger is made.

An application may say otherwise in its code. That cannot be seen from another process.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any, NamedTuple

from fapilog import Settings

from cwsink.frontends.inline import seam
from cwsink.frontends.inline.stages import KINDS, METHODS
from cwsink.frontends.inline.waiting import why_it_may_wait


class Plan(NamedTuple):
    """What the environment asks fapilog for.

    Attributes:
        sinks: the names of the sinks; empty if the environment names none.
        is_allowed: fapilog may load the sink "cwsink" by its entry point, without `cwsink.install()`.
        lacking: the names that writing through needs and this fapilog lacks.
        waiting: each plugin whose code may wait, with the reason.
    """

    sinks: list[str]
    is_allowed: bool
    lacking: list[str]
    waiting: dict[str, str]


def read() -> Plan:
    """Return the plan. Raises ValueError: a variable of fapilog is wrong. Its value, maybe a secret, is left out."""
    try:
        settings = Settings()
    except ValueError as error:
        if not hasattr(error, "errors"):
            raise
        # pydantic's ValidationError, whose text would show the value
        wrong = (f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors(include_input=False))
        raise ValueError("; ".join(wrong)) from None
    plugins = settings.plugins
    is_allowed = (plugins.allow_external or "cwsink" in plugins.allowlist) and "cwsink" not in plugins.denylist
    return Plan(list(settings.core.sinks), is_allowed, seam.missing(), _waiting(settings.core))


def _waiting(core: Any) -> dict[str, str]:
    """Look at the plugins that are not fapilog's own. Those are found by their entry points."""
    found = {}
    for kind, method in zip(KINDS, METHODS, strict=True):
        others = {each.name.replace("-", "_").lower(): each for each in entry_points(group=f"fapilog.{kind}s")}
        for name in getattr(core, f"{kind}s"):
            entry = others.get(name.replace("-", "_").lower())
            if entry is not None and (why := _why(entry, method)):
                found[name] = why
    return found


def _why(entry: EntryPoint, method: str) -> str | None:
    try:
        made = entry.load()
        plugin = object.__new__(made) if isinstance(made, type) else made  # its code is read, and not run
    except Exception as error:
        return f"it cannot be loaded: {type(error).__name__}: {error}"
    return why_it_may_wait(plugin, method)
