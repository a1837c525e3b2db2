"""`host-<user>.json` in the root: what this host is called, as its metadata service has said it once in this boot.

A stream that is named `{instance_id}` or `{task_id}` asks a service. One worker may get an answer, and the next one may
not, because the service was slow for a second. Their records would go into two spools and two streams. So the first
process that asks writes the answer down for all others, until the host is booted again. The others wait for it.

"There is no such service" is an answer, too, and stays for as long. A service that has not answered in time is asked
`_TRIES` times before that is believed. To have it asked again, remove the file.

```text
{"boot_id": "...", "names": {"instance_id": "i-0abc", "task_id http://169.254.170.2/v4/...": null}}
```
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from cwsink import host
from cwsink.clock import monotonic
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import descriptors, open_directory
from cwsink.spool.open_directory import OpenDirectory

_TRIES: Final = 3
# A process waits so long for another one that asks: for all its tries, and a moment.
_LONGEST_WAIT_SECONDS: Final = _TRIES * host.BUDGET_SECONDS + 1.0
_POLL_SECONDS: Final = 0.01
_MOST_BYTES: Final = 64 * 1024


class Names(msgspec.Struct):
    """The content of the file. `names`: by what was asked; None: there is no such name here."""

    boot_id: str = ""
    names: dict[str, str | None] = {}


def look_up(root: str, name: str, env: Mapping[str, str]) -> str | None:
    """Return the value of a placeholder of `host.LOOKED_UP`, the same in all processes of this boot. Never raises.

    Args:
        root: the directory that holds the spools.
        name: "instance_id", "task_id" or "pod".
        env: where the service is, or what the name is.
    """
    service = host.service_of(name, env)
    if service is None or not host.boot_id():
        return host.look_up(name, env)
    ours, asked = f"host-{os.geteuid()}", f"{name} {service}"
    try:
        with open_directory.root(root) as held, _alone(held, f"{ours}.lock"):
            known = _read(held, f"{ours}.json")
            if asked not in known.names:
                known.names[asked] = _ask(name, env)
                held.replace(f"{ours}.json", msgspec.json.encode(known))
            return known.names[asked]
    except OSError as error:  # no root, no space: what is wrong with it is told when the spool is made
        if is_interruption(error):
            raise
        return host.look_up(name, env)


def _ask(name: str, env: Mapping[str, str]) -> str | None:
    for _ in range(_TRIES):
        began = monotonic()
        if (found := host.look_up(name, env)) is not None:
            return found
        if monotonic() - began < host.BUDGET_SECONDS / 2:
            break  # an answer, or a refusal: only a service that keeps silent is asked again
    return None


def _read(root: OpenDirectory, name: str) -> Names:
    with suppress(OSError, ValueError, RecursionError):
        found = msgspec.json.decode(root.read(name, _MOST_BYTES)[0], type=Names)
        if found.boot_id == host.boot_id():
            return found
    return Names(host.boot_id(), {})


@contextlib.contextmanager
def _alone(root: OpenDirectory, name: str) -> Iterator[None]:
    """Hold a lock while the block asks. Raises OSError; TimeoutError: another process keeps it for too long."""
    with root.opened(name, os.O_RDWR | os.O_CREAT) as file:
        until = monotonic() + _LONGEST_WAIT_SECONDS
        while not descriptors.try_lock(file.fd, exclusive=True):
            if monotonic() >= until:
                raise TimeoutError(f"{root.path}/{name}")
            time.sleep(_POLL_SECONDS)
        yield
