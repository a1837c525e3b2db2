"""The environment variables of cwsink: their prefixes, and what a misspelt one may have meant."""

from __future__ import annotations

from collections.abc import Set as AbstractSet
from typing import Final

from cwsink.diagnostics import report

OWN_PREFIX: Final = "CWSINK_"
ENVIRONMENT_PREFIX: Final = "FAPILOG_CLOUDWATCH__"

# Variables of ours that are no settings of a spool: where records go, and the interpreter for the flusher.
_OTHERS: Final = frozenset(("target", "on_unusable", "python"))
# What one process of ours tells another.
_WITHIN: Final = frozenset(("CWSINK_HOSTED", "CWSINK_STARTED_BY"))


def check(variable: str, settings: AbstractSet[str]) -> None:
    """Report a variable of fapilog's prefix that names no setting, or one of ours that looks like a misspelt one.

    An application may have variables of its own that begin like ours.
    """
    is_ours = variable.startswith(OWN_PREFIX)
    if variable in _WITHIN or not (is_ours or variable.startswith(ENVIRONMENT_PREFIX)):
        return
    prefix, known = (OWN_PREFIX, settings | _OTHERS) if is_ours else (ENVIRONMENT_PREFIX, settings)
    name = variable[len(prefix) :].lower()
    near = None if name in known else _nearest(name, known)
    if near:
        report(f"variable_{variable}", f"the variable {variable} has no effect. Did you mean {prefix}{near.upper()}?")
    elif name not in known and not is_ours:
        report(f"variable_{variable}", f"the variable {variable} has no effect: {unknown(name, known)}")


def unknown(name: str, known: AbstractSet[str]) -> str:
    """Return what an error says of a setting that there is not."""
    near = _nearest(name, known)
    hint = f" Did you mean {near!r}?" if near else f" Known: {', '.join(sorted(known))}."
    return f"{name!r} is not a cwsink setting.{hint}"


def _nearest(name: str, known: AbstractSet[str]) -> str | None:
    import difflib  # here, because only a mistake needs it, and every worker would hold it in memory

    return next(iter(difflib.get_close_matches(name, known, n=1)), None)
