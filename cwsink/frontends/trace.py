"""The ids of the trace in which a record was made, for its `trace_id` and `span_id` (no I/O).

OpenTelemetry's logging instrumentation writes them on the record. That holds also behind a QueueHandler, where another
thread calls us, in which no span is active, or another one. Else OpenTelemetry's API is asked if the application has
loaded it. Without a span of it, AWS X-Ray's header counts, which AWS Lambda sets.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from cwsink.interruption import is_interruption

XRAY_VARIABLE: Final = "_X_AMZN_TRACE_ID"
_XRAY_KEY: Final = getattr(os.environ, "encodekey", str)(XRAY_VARIABLE)
_TRACE_ID: Final = re.compile("(?!0+$)[0-9a-f]{32}")
_SPAN_ID: Final = re.compile("(?!0+$)[0-9a-f]{16}")


def of_record(attributes: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return what OpenTelemetry's logging instrumentation has added; None if that is no id: "0" where no span was."""
    if (trace_id := attributes.get("otelTraceID")) is None:
        return None
    span_id = attributes.get("otelSpanID")
    if type(trace_id) is type(span_id) is str and _TRACE_ID.fullmatch(trace_id) and _SPAN_ID.fullmatch(span_id):
        return trace_id, span_id
    return None


def active() -> tuple[str, str | msgspec.UnsetType] | None:
    """Return the ids of trace and span, as OpenTelemetry and X-Ray write them; None if no span is active.

    X-Ray's header has no span where nobody samples. Then that is UNSET, as a field that a record does not have.
    """
    if found := of_opentelemetry():
        return found
    try:
        # `os.environ.get` takes a microsecond for a variable that is not set: a tenth of a record.
        if _XRAY_KEY not in os.environ._data:  # type: ignore[attr-defined]  # noqa: SLF001
            return None
    except AttributeError:  # the application has put another mapping in its place
        pass
    header = os.environ.get(XRAY_VARIABLE)
    return _of_xray(header) if header else None


def of_opentelemetry() -> tuple[str, str] | None:
    """Return those of OpenTelemetry's active span; None if there is none, or no OpenTelemetry."""
    api: Any = sys.modules.get("opentelemetry.trace")
    if api is None:
        return None
    try:
        context = api.get_current_span().get_span_context()
        return (f"{context.trace_id:032x}", f"{context.span_id:016x}") if context.is_valid else None
    except Exception as error:  # the module is being imported, or is another one of that name
        if is_interruption(error):
            raise
        return None


def _of_xray(header: str) -> tuple[str, str | msgspec.UnsetType] | None:
    """Return the ids in a header such as "Root=1-5759e988-bd862e3fe1be46a994272793;Parent=53995c3f42cd8ad8"."""
    fields = dict(field.strip().partition("=")[::2] for field in header.split(";"))
    return (fields["Root"], fields.get("Parent") or msgspec.UNSET) if fields.get("Root") else None
