"""Mends fapilog's two default enrichers, and makes them cheap.

| fapilog 0.18.1                                      | here                                          |
|-----------------------------------------------------|-----------------------------------------------|
| `context_vars` calls `ctx.is_valid()`. In           | The property is read (`trace`).               |
| OpenTelemetry that is a property: the TypeError is  |                                               |
| swallowed, and no trace id ever arrives.            |                                               |
| It imports `opentelemetry.trace` for each record.   | It is looked up in `sys.modules`. While the   |
| Where that is not installed, Python searches the    | application has not imported it, there is no  |
| whole path each time: 80 us.                        | span. We never import it.                     |
| `runtime_info` asks `os.getenv` for four variables  | The mapping behind `os.environ` is asked.     |
| each time, 0.9 us for one that is not set.          |                                               |

Ours takes the place of fapilog's own only if the source of that one is, letter for letter, known.
"""

from __future__ import annotations

import os
import platform
import socket
from typing import Any, Final

from fapilog.core.errors import request_id_var, user_id_var
from fapilog.plugins.enrichers.context_vars import ContextVarsEnricher
from fapilog.plugins.enrichers.runtime_info import RuntimeInfoEnricher

from cwsink.frontends import fapilog_names, trace

# sha256 of the source of each `enrich` that we replace, in fapilog 0.18.1.
_KNOWN: Final[dict[type[Any], str]] = {
    ContextVarsEnricher: "f8305a6a54b9f5c87a6aaf9b8601ffe4f2b9ae10f29f0f538f2f90fa53d929b9",
    RuntimeInfoEnricher: "b0da5354ed3851f0a7e5841ab65d8af5eb5d68aea6d391fd8ad2b7f12a78e640",
}
_PYTHON: Final = platform.python_version()
# The mapping that `os.environ` wraps. `os.environ` itself raises and catches a KeyError for a variable that is not set.
_VARIABLES: Final[dict[Any, Any] | None] = getattr(os.environ, "_data", None)
_KEYS: Final = {name: os.environ.encodekey(name) for name in "FAPILOG_SERVICE FAPILOG_ENV ENV FAPILOG_VERSION".split()}


def enable() -> None:
    """Put ours in the place of those of fapilog's enrichers that are known. Idempotent."""
    for kind, replacement in ((ContextVarsEnricher, _enrich_context), (RuntimeInfoEnricher, _enrich_runtime)):
        if fapilog_names.has_source(getattr(kind, "enrich", None), _KNOWN[kind]):
            kind.enrich = replacement  # type: ignore[method-assign]


async def _enrich_context(self: object, event: dict[str, Any]) -> dict[str, Any]:
    context: dict[str, Any] = {}
    if (request_id := request_id_var.get(None)) is not None:
        context["request_id"] = request_id
    if (user_id := user_id_var.get(None)) is not None:
        context["user_id"] = user_id
    if (ids := trace.of_opentelemetry()) is not None:
        context["trace_id"], context["span_id"] = ids
    if "tenant_id" in event:
        context["tenant_id"] = event["tenant_id"]
    return {"context": context}


async def _enrich_runtime(self: object, event: dict[str, Any]) -> dict[str, Any]:
    # Host and environment are read each time, because the application may change them.
    environment = _variable("FAPILOG_ENV")
    found = {
        "service": _variable("FAPILOG_SERVICE", "fapilog"),
        "env": _variable("ENV", "dev") if environment is None else environment,
        "version": _variable("FAPILOG_VERSION"),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "python": _PYTHON,
    }
    if found["version"] is None:
        del found["version"]
    return {"diagnostics": found}


def _variable(name: str, default: str | None = None) -> str | None:
    if _VARIABLES is None:
        return os.environ.get(name, default)
    value = _VARIABLES.get(_KEYS[name])
    return default if value is None else os.environ.decodevalue(value)
