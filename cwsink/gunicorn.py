"""Hooks for a gunicorn.conf.py. Each is optional: no record's safety depends on it.

```text
from cwsink.gunicorn import when_ready, post_fork, on_exit
```

The hooks run in gunicorn's master or in a new worker. They know the writers that a preloaded application
has opened there, and the one that the environment variables describe, if these name a log group. Where these have
records printed or left out (`CWSINK_TARGET`), nothing is opened and no flusher starts.
They do not know the settings of an application that only the workers load.
Where workers run as another user (`user = "www-data"`) the hooks of the master do nothing: a spool that root makes is
closed to them. No hook raises, because a server that cannot log must still serve.
"""

from __future__ import annotations

import os
from typing import Any, Final

from cwsink.config import load_own_config, variables_of
from cwsink.diagnostics import report
from cwsink.errors import CwsinkError
from cwsink.frontends import console, presence
from cwsink.frontends.writer import Writer
from cwsink.spool import survey

_LOG_GROUP: Final = variables_of("log_group_name")

_own: Writer | None = None


def when_ready(server: Any) -> None:
    """Open the spool before the first request, so that a mistake shows on stderr when the server starts."""
    if _is_for_another_user(server):
        return
    try:
        for writer in _writers():
            if not writer.is_usable:
                path = writer.directory.path
                report("gunicorn", f"nothing can be spooled in {path}: is it writable, is the disk full?")
            writer.close()
    except (CwsinkError, OSError) as error:
        report("gunicorn", f"nothing can be spooled, and the server goes on: {error}")


def post_fork(server: Any, worker: Any) -> None:
    """Attach the new worker, and start a flusher if there is none.

    Earlier processes may have left records, which wait until a process logs. The flusher sends them at once.
    """
    if _is_for_another_user(worker):
        return
    for writer in _open_writers():
        writer.attach()


def on_exit(server: Any) -> None:
    """Have the master, as it ends, wait for the delivery of records that killed workers have left.

    It waits for at most `drain_timeout_seconds`, and only if no other process is attached to the spool.
    """
    if _is_for_another_user(server):
        return
    try:
        for writer in _writers():
            if survey.has_pending(writer.directory):
                writer.attach()
    except (CwsinkError, OSError) as error:
        report("gunicorn", f"the records that are left stay in the spool: {error}")


def _is_for_another_user(of_gunicorn: Any) -> bool:
    """Tell whether the workers will change to another user than this process has."""
    return getattr(of_gunicorn.cfg, "uid", os.geteuid()) != os.geteuid()


def _writers() -> list[Writer]:
    """Return this process's writers, with one for the settings of the environment. Raises CwsinkError."""
    global _own
    if _own is None and any(map(os.environ.get, _LOG_GROUP)) and console.place(os.environ) == "cloudwatch":
        _own = Writer(load_own_config())
    return _open_writers()


def _open_writers() -> list[Writer]:
    """Return the writers of this process that are still in use."""
    return [each for each in presence.this.writers if isinstance(each, Writer)]
