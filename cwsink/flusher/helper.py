"""Bounds of a credential helper: the command that a profile names as its `credential_process`.

botocore starts it, and waits for its answer without end. A helper that hangs would keep the leader from sending and
from ending, and nobody would know why. So a helper may take as long as a request takes at most by default. Then it is
killed, with all that it has started, and a line says so. It is also killed when this process ends.

botocore has no setting for that. As in cwsink.flusher.deadline, its class is replaced by one that is derived from it.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import subprocess
from typing import Any, Final

SECONDS: Final = 13.0

_running: set[_Helper] = set()


def bind() -> None:
    """Have each helper of this process end in time."""
    from botocore import credentials

    if not issubclass(credentials.ProcessProvider, _Provider):
        credentials.ProcessProvider = type("Provider", (_Provider, credentials.ProcessProvider), {})
        atexit.register(end_all)


def end_all() -> None:
    """End the helpers that run now. Never raises."""
    for each in list(_running):
        each.end()


class _Provider:
    """What is added to the class of the provider (botocore.credentials.ProcessProvider)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{"popen": _Helper, **options})


class _Helper(subprocess.Popen[bytes]):
    """A helper that runs, and the leader of a process group of its own."""

    def __init__(self, command: list[str], **options: Any) -> None:
        super().__init__(command, start_new_session=True, **options)
        _running.add(self)

    def communicate(self, *args: Any, **options: Any) -> tuple[bytes, bytes]:
        """Return what it has printed. Raises CredentialRetrievalError: it takes too long."""
        from botocore.exceptions import CredentialRetrievalError

        try:
            return super().communicate(*args, **{"timeout": SECONDS, **options})
        except subprocess.TimeoutExpired:
            with self:  # it closes the pipes, and waits for the end
                self.end()
            raise CredentialRetrievalError(
                provider="credential_process", error_msg=f"it has not ended within {SECONDS:g} s, and was killed"
            ) from None
        finally:
            _running.discard(self)

    def end(self) -> None:
        """Kill it, with all that it has started. Never raises."""
        with contextlib.suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)
