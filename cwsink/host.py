"""What this host, task or pod is called, and which of its boots this is.

The names are asked for only when a stream template wants them:

* `{instance_id}`: EC2's metadata service, IMDSv2 (token, then the id).
* `{task_id}`: the ECS task metadata endpoint, version 4, which ECS names in the environment.
* `{pod}`: Kubernetes: `POD_NAME` (downward API), else `HOSTNAME`, which a pod sets to its name.

All of it within `BUDGET_SECONDS`. Botocore's own variables are honoured:
`AWS_EC2_METADATA_DISABLED`, `AWS_EC2_METADATA_SERVICE_ENDPOINT`.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from functools import cache
from typing import Final

# A link-local service answers in milliseconds; where there is none, a start must not wait for it.
BUDGET_SECONDS: Final = 1.0

_IMDS: Final = "http://169.254.169.254"
_TOKEN_SECONDS: Final = "60"
_ID: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_MOST_ANSWER_BYTES: Final = 1024 * 1024

_BOOT_ID_FILE: Final = "/proc/sys/kernel/random/boot_id"
_MOST_BOOT_ID_BYTES: Final = 64


def name() -> str:
    """Return the host's name, or the container's."""
    return socket.gethostname()


@cache
def boot_id() -> str:
    """Return what tells this boot of this host from all others, the same in all its containers; "" if unknown."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        if sys.platform == "darwin":
            return _sysctl("kern.bootsessionuuid")
        with open(_BOOT_ID_FILE, encoding="utf-8") as file:
            return file.read(_MOST_BOOT_ID_BYTES).strip()
    return ""


def uptime_seconds() -> float:
    """Return for how long this host is up, with the time it was suspended."""
    # macOS has no CLOCK_BOOTTIME; its CLOCK_MONOTONIC counts a sleep, too.
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _sysctl(key: str) -> str:
    """Return a text the kernel knows (macOS, sysctlbyname(3)). Raises OSError, UnicodeDecodeError."""
    import ctypes  # a megabyte, and only here

    value = ctypes.create_string_buffer(_MOST_BOOT_ID_BYTES)
    size = ctypes.c_size_t(_MOST_BOOT_ID_BYTES)
    if ctypes.CDLL(None).sysctlbyname(key.encode(), value, ctypes.byref(size), None, 0) != 0:
        raise OSError(key)
    return value.value.decode("ascii")


def look_up(name: str, env: Mapping[str, str]) -> str | None:
    """Return the value of a placeholder of `LOOKED_UP`, or None if this is not such a place. Never raises."""
    try:
        found = LOOKED_UP[name](env)
    except Exception:  # whatever answers there, and however: it is no such place
        return None
    # A proxy's error page is no id, and would make a stream name that is refused.
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
    until = time.monotonic() + BUDGET_SECONDS
    token = _ask("PUT", f"{base}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": _TOKEN_SECONDS}, until)
    return _ask("GET", f"{base}/latest/meta-data/instance-id", {"X-aws-ec2-metadata-token": token}, until)


def _task_id(env: Mapping[str, str]) -> str | None:
    if (base := service_of("task_id", env)) is None:
        return None
    task = json.loads(_ask("GET", f"{base}/task", {}, time.monotonic() + BUDGET_SECONDS))
    arn: str = task["TaskARN"]  # arn:aws:ecs:region:account:task/cluster/id
    return arn.rpartition("/")[2]


def _pod(env: Mapping[str, str]) -> str | None:
    return env.get("POD_NAME") or (env.get("HOSTNAME") if env.get("KUBERNETES_SERVICE_HOST") else None)


LOOKED_UP: Final[dict[str, Callable[[Mapping[str, str]], str | None]]] = {
    "instance_id": _instance_id,
    "task_id": _task_id,
    "pod": _pod,
}
"""The placeholders that are asked of where the host runs, and how. Only a template that holds one costs a look."""


def _ask(method: str, url: str, headers: dict[str, str], until: float) -> str:
    """Make one request without a proxy: these addresses are of this host. Raises OSError, ValueError."""
    from urllib import request  # loaded only where a template asks

    opener = request.build_opener(request.ProxyHandler({}))
    left = until - time.monotonic()
    if left <= 0:
        raise TimeoutError
    with opener.open(request.Request(url, headers=headers, method=method), timeout=left) as answer:
        text: str = answer.read(_MOST_ANSWER_BYTES).decode().strip()
        return text
