"""Whether a `cwsink run` of our user started this process, and still lives.

`cwsink run` starts a flusher, and leaves a mark in the environment of its command. A command of the same user starts a
flusher only if that one stays away, and waits for nothing at its end: `cwsink run` does. But a process that the command
leaves behind inherits the mark, and may outlive `cwsink run`. Then nobody is there to send what it logs. So the mark
names that `cwsink run`, for whoever has inherited it to ask whether it has ended:

```text
CWSINK_HOSTED=1000:17:8231:4026531836-4026531834      user, pid, time of its start, namespaces of pids and of times
CWSINK_HOSTED=1000                                    of an older cwsink, or none of that is known
```

A pid means another process in another namespace. From there it cannot be told, and the host counts as alive.
"""

from __future__ import annotations

import os
import sys
from typing import Final

from cwsink.interruption import suppress

VARIABLE: Final = "CWSINK_HOSTED"


def mark() -> str:
    """Return what a `cwsink run` sets the variable to for its command."""
    words = [str(os.geteuid())]
    if namespaces := _namespaces():
        pid = os.getpid()
        words += [str(pid), _state_and_start(pid)[1], namespaces]
    return ":".join(words)


def is_hosted() -> bool:
    """Tell whether a living `cwsink run` of our user started us. That of another user (root) cannot send our spool."""
    user, *host = os.environ.get(VARIABLE, "").split(":")
    return user == str(os.geteuid()) and not _has_ended(host)


def _has_ended(host: list[str]) -> bool:
    """Tell whether the process with this pid, start and namespaces has ended. False also if that cannot be told."""
    with suppress(OSError, ValueError, OverflowError):  # it is another user's by now; no mark of ours
        pid, start, namespaces = host
        if namespaces != _namespaces():
            return False
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except PermissionError:  # another user has the pid by now, or we may not ask: its start tells
            pass
        state, began = _state_and_start(int(pid))
        return state in ("Z", "X") or (bool(start and began) and start != began)  # a zombie; another one has its pid
    return False


def _state_and_start(pid: int) -> tuple[str, str]:
    """Return a process's state and when it started, in ticks since the boot; ("", "") if /proc does not tell."""
    with suppress(OSError, IndexError):
        if os.readlink("/proc/self") == str(os.getpid()):  # else it is that of another namespace
            with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
                fields = file.read().decode(errors="replace").rpartition(")")[2].split()
            return fields[0], fields[19]
    return "", ""


def _namespaces() -> str:
    """Return the namespaces in which this process sees pids and times; "" if it is not known."""
    if sys.platform != "linux":
        return "-"  # there is but one
    with suppress(OSError):
        names = [name for name in ("pid", "time") if name in os.listdir("/proc/self/ns")]  # old kernels have no "time"
        return "-".join(str(os.stat(f"/proc/self/ns/{name}").st_ino) for name in names)
    return ""
