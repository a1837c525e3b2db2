"""Gives the demo a directory, an environment and processes of its own.

The children see no settings of the user. At the end, whatever has happened, every child is
reaped, and the flusher that the children have started is ended. The directory is removed,
unless it is to be kept.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import cwsink
from cwsink.testing.flushers import end_flushers

_SETTINGS_OF_THE_USER: Final = ("FAPILOG_", "CWSINK_", "GUNICORN_")
_GONE_SECONDS: Final = 2.0
_LOG_TAIL_LINES: Final = 15


class DemoError(Exception):
    """The demo cannot go on. The message says why."""


class Sandbox:
    """A context manager that cleans up at its end.

    Attributes:
        path: the directory.
        keep: whether the directory stays.
        spools: where the children's spools are.
        environment: the children's environment.
    """

    def __init__(self, *, keep: bool) -> None:
        self.keep = keep
        # A short path, because a Unix socket's path may not be long: /tmp/cwsink-demo-x1y2z3. The user may look for it.
        self.path = Path(tempfile.mkdtemp(prefix="cwsink-demo-")).resolve()
        self.spools = self.path / "spool"
        self.spools.mkdir(0o700)
        self.environment = {name: value for name, value in os.environ.items() if not _is_setting(name)}
        # A source tree may be on sys.path only. A child does not inherit that.
        root = str(Path(cwsink.__file__).parent.parent)
        self.environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")]))
        self.environment["CWSINK_SPOOL_DIRECTORY"] = str(self.spools)
        # gunicorn puts its control socket there. Otherwise two servers of one user would share it.
        self.environment["XDG_RUNTIME_DIR"] = str(self.path)
        self._children: list[subprocess.Popen[str]] = []

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in self._children:  # all of them first, because something may go wrong while one is waited for
            _kill(child)
        for child in self._children:
            _reap(child)
        with contextlib.suppress(TimeoutError):  # the flusher is stopped, or hangs. It ends once it sees its lock gone
            end_flushers(self.spools, _GONE_SECONDS)
        if not self.keep:
            shutil.rmtree(self.path, ignore_errors=True)

    def run_python(self, name: str, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        """Start `python arguments...` in a process group of its own. Its output goes to `<name>.log`."""
        with self.log(name).open("w") as log:
            child = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=self.path,  # gunicorn would read a gunicorn.conf.py in the user's directory
                env=self.environment,
                stderr=log,
                text=True,
                start_new_session=True,
                **{"stdin": subprocess.DEVNULL, "stdout": log, **options},
            )
        self._children.append(child)
        return child

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Give this process the sandbox's environment meanwhile."""
        saved = dict(os.environ)
        try:
            os.environ.clear()
            os.environ.update(self.environment)
            yield
        finally:
            os.environ.clear()
            os.environ.update(saved)

    def log(self, name: str) -> Path:
        """Return the path of a child's log."""
        return self.path / f"{name}.log"

    def what_was_said(self) -> str:
        """Return the last lines of each log, to be shown with an error."""
        tails = []
        for log in sorted(self.path.glob("*.log")):
            lines = log.read_text(errors="replace").splitlines()[-_LOG_TAIL_LINES:]
            tails += [f"{log.name}: {line}" for line in lines]
        return "\n".join(tails)


def _is_setting(name: str) -> bool:
    return name.startswith(_SETTINGS_OF_THE_USER)


def _kill(child: subprocess.Popen[str]) -> None:
    with contextlib.suppress(OSError):
        os.killpg(child.pid, signal.SIGKILL)


def _reap(child: subprocess.Popen[str]) -> None:
    """Wait for the child, and then until its whole group is gone: gunicorn's workers are not our children."""
    child.wait()
    until = time.monotonic() + _GONE_SECONDS
    with contextlib.suppress(OSError):
        while time.monotonic() < until:
            os.killpg(child.pid, signal.SIGKILL)
            time.sleep(0.01)
    for stream in (child.stdin, child.stdout):
        if stream is not None:
            stream.close()
