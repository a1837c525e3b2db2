"""What `write()` accepted, noted where cwsink has no part in it.

gunicorn serves `cwsink.demo.oracle:observed_application()`: the application of
`cwsink.demo.app`, unchanged, whose sink is watched. After `write()` has returned True
its worker appends the request's id to a file, with one `os.write`. A worker killed
between the two leaves a record that is delivered and was never promised: that is
allowed, the other way round is a loss.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

FILE_VARIABLE: Final = "CWSINK_DEMO_ACCEPTED"


def observed_application() -> WSGIApplication:
    """Return the demo's application, with every accepted record noted in the file of `FILE_VARIABLE`."""
    from cwsink.frontends.fapilog_sink import CloudWatchSpoolSink

    file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    write = CloudWatchSpoolSink.write

    async def write_and_note(sink: CloudWatchSpoolSink, entry: dict[str, Any]) -> bool:
        is_accepted = await write(sink, entry)
        request_id = _request_id(entry)
        if is_accepted and request_id:
            os.write(file, f"{request_id}\n".encode())
        return is_accepted

    CloudWatchSpoolSink.write = write_and_note  # type: ignore[assignment, method-assign]  # watched from outside, not subclassed
    from cwsink.demo.app import application

    return application


def read_accepted(path: Path) -> set[str]:
    """Return the ids of all accepted records."""
    return set(path.read_text().split()) if path.exists() else set()


def request_id_of(message: str) -> str | None:
    """Return the request id in a delivered event or a spooled record; None if it is not of a request."""
    try:
        return _request_id(json.loads(message))
    except ValueError:
        return None


def _request_id(entry: Any) -> str | None:
    context = entry.get("context") if isinstance(entry, dict) else None
    request_id = context.get("request_id") if isinstance(context, dict) else None
    return request_id if isinstance(request_id, str) else None
