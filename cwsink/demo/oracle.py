"""Notes each record whose `logger.info` has returned, in a file that cwsink does not touch.

gunicorn serves `cwsink.demo.oracle:observed_application()`. That is the application of
`cwsink.demo.app`, unchanged, with a logger that is watched. When `logger.info` has returned,
the worker appends the request's id to the file, with one `os.write`. If a worker is killed
between the two, a record is delivered that is not in the file. That is allowed. A record that
is in the file and is not delivered is lost.
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
    """Return the demo's application. Each record that it logs is noted in the file that `FILE_VARIABLE` names."""
    from cwsink.demo import app

    file = os.open(os.environ[FILE_VARIABLE], os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    info = app.logger.info

    def info_and_note(message: str, **fields: Any) -> None:
        info(message, **fields)
        os.write(file, f"{fields['request_id']}\n".encode())

    app.logger.info = info_and_note  # type: ignore[method-assign]  # watched from outside, not subclassed
    return app.application


def read_logged(path: Path) -> set[str]:
    """Return the ids of all records whose `logger.info` has returned. Empty if the file is not there yet."""
    return set(path.read_text().split()) if path.exists() else set()


def request_id_of(message: str) -> str | None:
    """Return the request id in a delivered event or a spooled record. None: the message is not about a request."""
    try:
        entry = json.loads(message)
    except ValueError:
        return None
    context = entry.get("context") if isinstance(entry, dict) else None
    request_id = context.get("request_id") if isinstance(context, dict) else None
    return request_id if isinstance(request_id, str) else None
