"""The names of this host, task or pod, and the id of its boot.

A name is looked up only if a stream template has its placeholder:

* `{instance_id}`: from EC2's metadata service, IMDSv2 (first a token, then the id).
* `{task_id}`: from the ECS task metadata endpoint, version 4. ECS gives its address in the environment.
* `{pod}`: in Kubernetes, `POD_NAME` (downward API), else `HOSTNAME`, which a pod sets to its name.

A look-up takes at most `BUDGET_SECONDS`, however slowly an answer drips. It honours botocore's own variables
`AWS_EC2_METADATA_DISABLED` and `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
"""

from __future__ import annotations

import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

import msgspec

from cwsink.clock import monotonic
from cwsink.interruption import suppress

# A link-local service answers in milliseconds. On a host without one, an application must not wait for it.
BUDGET_SECONDS: Final = 1.0

_IMDS: Final = "http://169.254.169.254"
_TOKEN_SECONDS: Final = "60"
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")

_BOOT_ID_FILE: Final = "/proc/sys/kernel/random/boot_id"
_MOST_BOOT_ID_BYTES: Final = 64


def name() -> str:
    """Return the name of this host, or of the container."""
    if sys.platform == "win32":  # nothing is spooled there
        return os.environ.get("COMPUTERNAME", "localhost")
    return legal(os.uname().nodename)


def process() -> str:
    """Return this process, as the spool's files name it: host/pid."""
    return f"{name()}/{os.getpid()}"


def program() -> str:
    """Return the name of this program: its file, or its package (`python -m`). "" if it is embedded in another one."""
    path = str((getattr(sys, "argv", None) or [""])[0])
    if os.path.basename(path) == "__main__.py":
        path = os.path.dirname(path)
    return legal(os.path.basename(path))


def legal(text: str) -> str:
    """Return a text of the system, which may hold bytes that are not UTF-8, with backslash escapes for these."""
    return text.encode("utf-8", "backslashreplace").decode()


@cache
def boot_id() -> str:
    """Return the id of this boot of this host, which is the same in all containers. "" if it is not known."""
    with suppress(OSError, UnicodeDecodeError):
        if sys.platform == "darwin":
            return _sysctl("kern.bootsessionuuid")
        with open(_BOOT_ID_FILE, "rb", buffering=0) as file:
            return file.read(_MOST_BOOT_ID_BYTES).decode().strip()
    return ""


def uptime_seconds() -> float:
    """Return how long ago this host was booted, with the time for which it was suspended."""
    # macOS has no CLOCK_BOOTTIME, but its CLOCK_MONOTONIC also counts while the host sleeps.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _sysctl(key: str) -> str:
    """Return a text of the kernel (macOS, sysctlbyname(3)). Raises OSError, UnicodeDecodeError."""
    import ctypes  # it takes a megabyte, so only if needed

    value = ctypes.create_string_buffer(_MOST_BOOT_ID_BYTES)
    size = ctypes.c_size_t(_MOST_BOOT_ID_BYTES)
    if ctypes.CDLL(None).sysctlbyname(key.encode(), value, ctypes.byref(size), None, 0) != 0:
        raise OSError(key)
    return value.value.decode("ascii")


def look_up(name: str, env: Mapping[str, str]) -> str | None:
    """Return the value of a placeholder of `LOOKED_UP`, or None if it has none here. Never raises."""
    try:
        found = LOOKED_UP[name](env)
    except Exception:  # whatever went wrong, the placeholder has no value here
        return None
    # A proxy may answer with an error page. CloudWatch would refuse a stream with such a name.
    return found if found and _ID.fullmatch(found) else None


def service_of(name: str, env: Mapping[str, str]) -> str | None:
    """Return the address of the service that a placeholder is asked of; None if none is asked."""
    if name == "instance_id" and env.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        return env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", _IMDS).rstrip("/")
    if name == "task_id" and (base := env.get("ECS_CONTAINER_METADATA_URI_V4")):
        return base.rstrip("/")
    return None


def _instance_id(env: Mapping[str, str]) -> str | None:
    if (base := service_of("instance_id", env)) is None:
        return None
    from cwsink import metadata  # here, because few need it, and it loads an HTTP client

    until = monotonic() + BUDGET_SECONDS
    life = {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_SECONDS}
    token = metadata.ask("PUT", f"{base}/latest/api/token", life, until)
    return metadata.ask("GET", f"{base}/latest/meta-data/instance-id", {"X-aws-ec2-metadata-token": token}, until)


def _task_id(env: Mapping[str, str]) -> str | None:
    if (base := service_of("task_id", env)) is None:
        return None
    from cwsink import metadata

    task = msgspec.json.decode(metadata.ask("GET", f"{base}/task", {}, monotonic() + BUDGET_SECONDS))
    arn: str = task["TaskARN"]  # arn:aws:ecs:region:account:task/cluster/id
    return arn.rpartition("/")[2]


def _pod(env: Mapping[str, str]) -> str | None:
    return env.get("POD_NAME") or (env.get("HOSTNAME") if env.get("KUBERNETES_SERVICE_HOST") else None)


LOOKED_UP: Final[dict[str, Callable[[Mapping[str, str]], str | None]]] = {
    "instance_id": _instance_id,
    "task_id": _task_id,
    "pod": _pod,
}
"""The placeholders whose values come from the surroundings of the host, and how to look each of them up."""
