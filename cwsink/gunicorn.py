"""Hooks for a gunicorn.conf.py, each optional: no record's safety depends on them.

```text
from cwsink.gunicorn import when_ready, post_fork, on_exit
```

They know the writers of a preloaded application, and the one that `FAPILOG_CLOUDWATCH__*` describes,
if these variables name a log group; not what an application sets that only its workers load.
No hook raises: a server that cannot log still serves.
"""

from __future__ import annotations

import os
from typing import Any, Final

from cwsink.config import ENVIRONMENT_PREFIX
from cwsink.diagnostics import report
from cwsink.errors import CwsinkError
from cwsink.frontends.writer import Writer, open_writers
from cwsink.spool import survey

_LOG_GROUP: Final = f"{ENVIRONMENT_PREFIX}LOG_GROUP_NAME"

_own: Writer | None = None


def when_ready(server: Any) -> None:
    """Open the spool before the first request: a mistake is a line on stderr when the server starts."""
    try:
        for writer in _writers():
            if not writer.is_usable:
                report("gunicorn", f"nothing can be spooled in {writer.directory.path}: is it writable, the disk full?")
            writer.close()
    except (CwsinkError, OSError) as error:
        report("gunicorn", f"nothing can be spooled, and the server goes on: {error}")


def post_fork(server: Any, worker: Any) -> None:
    """Start the flusher, if there is none: it sends what others have left, also if no request ever logs anything."""
    for writer in open_writers():
        writer.attach()


def on_exit(server: Any) -> None:
    """Have the master, as it ends, deliver what killed workers left: for at most `drain_timeout_seconds`, and only
    if no other process is there to do it."""
    try:
        for writer in _writers():
            if survey.has_pending(writer.directory):
                writer.attach()
    except (CwsinkError, OSError) as error:
        report("gunicorn", f"what is left stays in the spool: {error}")


def _writers() -> list[Writer]:
    """Return this process's writers, with one for the environment's settings. Raises CwsinkError."""
    global _own
    if _own is None and os.environ.get(_LOG_GROUP):
        _own = Writer.open()
    return open_writers()
