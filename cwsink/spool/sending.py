"""`settings.json`: how a spool is to be sent, written by its writers, read by the leader.

The flusher is a process of its own, and any writer may happen to start it. FORMAT tells it the target. The other
settings must not come from the environment of that writer, so each writer leaves its own here: batch, oversize,
compression, entity, time-outs, the profile or role to send with. There is no secret among them: a flusher takes
credentials from its own environment.

```text
{"cwsink": "0.1.0", "installation": "...", "written_by": "web-1/4711", "settings": {"batch_size": 1000, ...}}
```

A writer with other settings replaces the file, and the newer settings hold from then on. If another writer lives, the
new one says so on stderr. The leader looks at the file several times a second.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import Any, Final
from zlib import crc32

import msgspec

from cwsink import host, target, version
from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import attachment, disk, files
from cwsink.spool.directory import SpoolDirectory

# Settings that say nothing about sending: they concern the writer's own process, or how much the spool may hold
# (cwsink.spool.capacity), or are in FORMAT.
OF_THE_WRITER: Final = frozenset(
    "spool_directory allow_unsafe_filesystem app_name spool_max_bytes on_full block_timeout_seconds segment_bytes "
    "flusher log_group_name log_stream_name region endpoint_url pipeline fields trace".split()
)
# Variables by which botocore finds its way through a proxy.
_OF_THE_NETWORK: Final = frozenset(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "REQUESTS_CA_BUNDLE"))
# Variables by which botocore, TLS and Python find files: one path, or several with colons between them.
_ONE_PATH: Final = (
    "AWS_CA_BUNDLE AWS_CONFIG_FILE AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE AWS_CREDENTIAL_FILE "
    "AWS_LOGIN_CACHE_DIRECTORY AWS_SHARED_CREDENTIALS_FILE AWS_WEB_IDENTITY_TOKEN_FILE BOTO_CONFIG PYTHONPYCACHEPREFIX "
    "REQUESTS_CA_BUNDLE SSLKEYLOGFILE SSL_CERT_FILE"
).split()
_SEVERAL_PATHS: Final = ("AWS_DATA_PATH", "PYTHONHOME", "SSL_CERT_DIR")
_MOST_BYTES: Final = 256 * 1024
_DEFAULTS: Final = SinkConfig()
# What a request may take, together.
REQUEST: Final = ("connect_timeout_seconds", "read_timeout_seconds")


class Sending(msgspec.Struct, frozen=True, kw_only=True):
    """The content of settings.json.

    Attributes:
        cwsink: the version of the writer.
        installation: of the writer (see the function `installation`).
        written_by: host and pid of the writer, for people.
        settings: the fields of SinkConfig that differ from their defaults.
        app: the name of the writer's application, for metrics.
    """

    cwsink: str
    installation: str
    written_by: str
    settings: dict[str, Any]
    app: str = ""


def leave(directory: SpoolDirectory, config: SinkConfig) -> None:
    """Have leaders send as `config` says from now on. Never raises: on an error the former settings go on to hold."""
    mine = Sending(
        cwsink=version.__version__,
        installation=installation(),
        written_by=host.process(),
        settings=_settings_of(config),
        app=target.app_name(config, os.environ),
    )
    found = read(directory)
    if found is not None and (found.settings, found.installation) == (mine.settings, mine.installation):
        return
    try:
        files.replace(directory.sending, msgspec.json.encode(mine))
        if found is not None and found.settings != mine.settings and attachment.is_anyone_attached(directory):
            report(
                f"settings_{directory.path}",
                f"the settings of {directory.path} differ from those of {found.written_by}, whose application still "
                f"logs there: {_differences(found.settings, mine.settings)}. The newer ones hold from now on.",
            )
    except OSError as error:
        if is_interruption(error):
            raise
        why = f"{error.strerror}{disk.limit_of(error)}"
        report("settings", f"cannot write {directory.sending}: {why}. It is sent as settings before said.")


def compare(directory: SpoolDirectory, config: SinkConfig) -> None:
    """Say if another program has left other settings since this process has left its own. Never raises.

    Two programs may start at the same moment. Each leaves its settings before it is attached, and sees nobody else.
    """
    found, mine = read(directory), _settings_of(config)
    if found is not None and found.settings != mine and found.written_by != host.process():
        report(
            f"settings_{directory.path}",
            f"the settings of {directory.path} differ from those of {found.written_by}, which has left them since "
            f"this process has opened it: {_differences(mine, found.settings)}. The latter hold.",
        )


def read(directory: SpoolDirectory) -> Sending | None:
    """Return what the newest writer left; None if there is no such file, if it is damaged or cannot be read."""
    with suppress(OSError):
        return found_in(directory)
    return None


def seconds_in(settings: Mapping[str, Any], *names: str) -> float:
    """Return the sum of these settings, as a writer left them or by default. Never raises."""
    given = (settings.get(name, getattr(_DEFAULTS, name)) for name in names)
    return sum(value for value in given if isinstance(value, int | float))


def found_in(directory: SpoolDirectory) -> Sending | None:
    """Do as `read`. Raises OSError: there may be such a file, but it cannot be read now (EMFILE, EIO ...)."""
    data = files.read_if_there(directory.sending, _MOST_BYTES)
    with suppress(ValueError, RecursionError):
        return None if data is None else msgspec.json.decode(data, type=Sending)
    return None


def shown(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings as people may see them: without the external id, which is a secret of two parties."""
    return {name: "(not shown)" if name == "external_id" else value for name, value in settings.items()}


def stamp(directory: SpoolDirectory) -> tuple[int, int] | None:
    """Return a value that differs once the settings were replaced; None if there are none."""
    try:
        status = files.status(directory.sending)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def credentials_stamp(env: Mapping[str, str]) -> int:
    """Return a number that differs if a process has other AWS credentials, or another way to AWS.

    That is so with another environment, on another host, and in another container. The number is a checksum of 32 bits
    over all of this together, so nobody can learn a variable from it.
    """
    known = sorted(f"{name}={value}" for name, value in absolute(env).items() if _gives_access(name))
    known.append(host.name())
    with suppress(OSError):
        known.append(str(os.stat("/proc/self/ns/net").st_ino))
    return crc32("\0".join(known).encode("utf-8", "surrogateescape"))


def absolute(env: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for a process in another directory: no path in it is relative to ours.

    What is expanded before it is read (`~`, `$NAME`) stays as it is.
    """
    found = dict(env)
    for name in _ONE_PATH:
        if name in found:
            found[name] = _absolute(found[name])
    for name in _SEVERAL_PATHS:
        if name in found:
            found[name] = ":".join(map(_absolute, found[name].split(":")))
    return found


def _absolute(path: str) -> str:
    if path.strip() and not path.startswith(("/", "~", "$")):
        with suppress(OSError):  # our directory is gone
            return os.path.join(os.getcwd(), path)  # and not `abspath`: "link/.." is not "."
    return path


def _gives_access(name: str) -> bool:
    if name.startswith("AWS_ENDPOINT_URL") or name in ("AWS_REGION", "AWS_DEFAULT_REGION"):
        return False
    return name.startswith("AWS_") or name == "HOME" or name.upper() in _OF_THE_NETWORK


@cache
def installation() -> str:
    """Return a text that differs in another installation of cwsink, and after an upgrade of this one."""
    return installation_now()


def installation_now() -> str:
    """Return `installation` as it is on disk now; "" if it was removed, or if it lies in an archive."""
    with suppress(OSError):
        status = os.stat(version.__file__)
        return f"{status.st_dev:x}.{status.st_ino:x}.{status.st_mtime_ns:x}"
    return ""


def _settings_of(config: SinkConfig) -> dict[str, Any]:
    differing = {
        name: getattr(config, name)
        for name in SinkConfig.__struct_fields__
        if name not in OF_THE_WRITER and getattr(config, name) != getattr(_DEFAULTS, name)
    }
    settings: dict[str, Any] = msgspec.to_builtins(differing)
    return settings


def _differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return ", ".join(f"{name} {_shown(before, name)} -> {_shown(now, name)}" for name in names)


def _shown(settings: dict[str, Any], name: str) -> object:
    return shown(settings).get(name, getattr(_DEFAULTS, name, None))
