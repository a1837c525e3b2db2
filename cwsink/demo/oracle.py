"""For what `logger.info` has returned, noted where cwsink has no part in it.

gunicorn serves `cwsink.demo.oracle:observed_application()`: the application of
`cwsink.demo.app`, unchanged, whose logger is watched. After `logger.info` has returned
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

FILE_VARIABLE: Final = "CWSINK_DEMO_LOGGED"


def observed_application() -> WSGIApplication:
    """Return the demo's application, with every record it has logged noted in the file of `FILE_VARIABLE`."""
    from cwsink.demo import app

    file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    info = app.logger.info

    def info_and_note(message: str, **fields: Any) -> None:
        info(message, **fields)
        os.write(file, f"{fields['request_id']}\n".encode())

    app.logger.info = info_and_note  # type: ignore[method-assign]  # watched from outside, not subclassed
    return app.application


def read_logged(path: Path) -> set[str]:
    """Return the ids of all records whose call has returned."""
    return set(path.read_text().split()) if path.exists() else set()


def request_id_of(message: str) -> str | None:
    """Return the request id in a delivered event or a spooled record; None if it is not of a request."""
    try:
        entry = json.loads(message)
    except ValueError:
        return None
    context = entry.get("context") if isinstance(entry, dict) else None
    request_id = context.get("request_id") if isinstance(context, dict) else None
    return request_id if isinstance(request_id, str) else None
