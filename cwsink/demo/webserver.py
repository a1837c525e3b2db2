"""Runs gunicorn with the demo's application, and kills its workers."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from typing import Final

from cwsink.demo import oracle
from cwsink.demo.sandbox import DemoError, Sandbox

APPLICATION: Final = "cwsink.demo.oracle:observed_application()"


class WebServer:
    """gunicorn's master and its workers, as one process group."""

    def __init__(self, sandbox: Sandbox, workers: int, *, group: str, endpoint_url: str) -> None:
        """Start gunicorn. Requests may be sent at once: they wait until a worker has started."""
        self.logged = sandbox.path / "logged"
        self.killed: list[int] = []
        sandbox.environment[oracle.FILE_VARIABLE] = str(self.logged)
        sandbox.environment["FAPILOG_CLOUDWATCH__LOG_GROUP_NAME"] = group
        sandbox.environment["FAPILOG_CLOUDWATCH__ENDPOINT_URL"] = endpoint_url
        sandbox.environment["CWSINK_KEEP_DELIVERED"] = "1h"
        # The socket is bound here and passed on. So the demo need not guess a port, or read it in a log.
        with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
            self.port: int = listener.getsockname()[1]
            self._master = sandbox.run_python(
                "gunicorn",
                *("-m", "gunicorn", "--bind", f"fd://{listener.fileno()}", "--workers", str(workers), APPLICATION),
                pass_fds=[listener.fileno()],
            )

    @property
    def pid(self) -> int:
        """The process id of the master."""
        return self._master.pid

    def is_worker(self, pid: int) -> bool:
        """Tell whether a living process is one of the workers."""
        try:
            return pid != self.pid and os.getpgid(pid) == self.pid
        except ProcessLookupError:
            return False

    def kill(self, worker: int) -> float:
        """SIGKILL a worker: no handler runs, nothing is flushed. Returns the time of it, on the monotonic clock."""
        self.killed.append(worker)
        killed_at = time.monotonic()  # read before the kill, because after it this process may have to wait for the CPU
        os.kill(worker, signal.SIGKILL)
        return killed_at

    def check(self) -> None:
        """Raise DemoError if the master has ended."""
        if self._master.poll() is not None:
            raise DemoError(f"gunicorn ended with exit code {self._master.returncode}.")

    def stop(self, timeout_seconds: float) -> float:
        """Stop gunicorn as a deployment does, with SIGTERM. Returns the seconds that it took. Raises DemoError."""
        began = time.monotonic()
        self._master.terminate()
        try:
            self._master.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            raise DemoError(f"gunicorn did not stop within {timeout_seconds:.0f} s.") from None
        return time.monotonic() - began
