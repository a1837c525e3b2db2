"""A warm process, which has botocore imported, forks as many processes as a test asks for, and reaps them.

A process that has to import botocore before it leads takes half a second. One that is forked from a process that has
it takes 10 ms, so a test that kills 50 leaders takes seconds. It is also how gunicorn's `--preload` makes workers.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable


class WarmForker:
    """The warm process. Each process that it forks runs `work`, a function of a test module."""

    def __init__(self, spawn: Callable[..., subprocess.Popen[str]], work: Callable[..., None]) -> None:
        self._process = spawn(
            f"from {__name__} import serve\nfrom {work.__module__} import {work.__qualname__} as work\nserve(work)\n"
        )

    @property
    def pid(self) -> int:
        """The pid of the warm process."""
        return self._process.pid

    def fork(self, *arguments: object) -> int:
        """Start a process that calls `work(*arguments)` and then exits as any program does. Returns its pid."""
        return self._ask("fork", *arguments)

    def wait(self, pid: int) -> int:
        """Wait for the end of a process and return its exit code, negative for a signal."""
        return self._ask("wait", pid)

    def kill(self, pid: int) -> None:
        """SIGKILL a process, and return when it is gone."""
        os.kill(pid, signal.SIGKILL)
        self.wait(pid)

    def _ask(self, *request: object) -> int:
        stdin, stdout, stderr = self._process.stdin, self._process.stdout, self._process.stderr
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(request) + "\n")
        stdin.flush()
        answer = stdout.readline()
        assert answer, f"the warm process died:\n{stderr and stderr.read()}"
        return int(answer)


def serve(work: Callable[..., None]) -> None:
    """Be the warm process: fork and reap on request, until stdin is closed."""
    from cwsink.flusher import cloudwatch  # warm; the test itself must not load it

    cloudwatch.load()
    gc.freeze()  # else the end of each child looks through half a million objects for garbage: 0.3 s

    for line in sys.stdin:
        what, *arguments = json.loads(line)
        if what == "fork":
            pid = os.fork()
            if pid == 0:
                os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
                work(*arguments)
                return
            print(pid, flush=True)
        else:
            print(os.waitstatus_to_exitcode(os.waitpid(arguments[0], 0)[1]), flush=True)
