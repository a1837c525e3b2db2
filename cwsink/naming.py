"""Log group and stream names: templates, rules, and the spool's name (pure).

A stream template is resolved in two steps. `resolve` fills in what is fixed for
the life of a host (`{hostname}`, `{app}`, `{env:NAME}`) and gives the name under
which the spool is kept; `stream_at` fills in `{date}` from the time of each
event, so that a replay a day later still goes to the day it was logged on.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Final

from cwsink.errors import ConfigError

# CreateLogGroup and CreateLogStream, see cwsink.flusher.limits for the quotations.
_GROUP: Final = re.compile(r"[.\-_/#A-Za-z0-9]{1,512}")
_NOT_IN_STREAM: Final = re.compile(r"[:*]")
_MAX_NAME_CHARACTERS: Final = 512

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_DATES_AND_VARIABLES: Final = ("{date}", "{date:%Y/%m/%d}", "{env:NAME}", "{env:NAME:default}")
_DEFAULT_DATE: Final = "%Y-%m-%d"

# 9999-12-31T23:59:59Z, the last second `datetime` can tell. A record may carry any 64-bit time.
_LAST_SECOND: Final = 253_402_300_799


def check_group(name: str) -> None:
    """Raise ConfigError unless `name` is a log group name CloudWatch accepts."""
    if not _GROUP.fullmatch(name):
        raise ConfigError(
            f"log_group_name {name!r} is not a legal log group name: 1 to 512 of the characters "
            "a-z A-Z 0-9 . - _ / #. Nothing was created."
        )
    if name.startswith("aws/"):
        raise ConfigError(f"log_group_name {name!r} starts with 'aws/', which AWS keeps for itself.")


def resolve(template: str, values: Mapping[str, Callable[[], str]], env: Mapping[str, str]) -> str:
    """Fill in everything but the date.

    Args:
        template: such as "{hostname}" or "{app}-{env:STAGE:dev}/{date}".
        values: what gives the value of each placeholder; called only for what the template holds.
        env: the environment that `{env:NAME}` reads.

    Returns:
        A name of 1 to 512 characters without ':' and '*' (replaced by '-'), in
        which only `{date...}` is still open.

    Raises:
        ConfigError: an unknown placeholder, a missing variable, an empty or too long name.
    """

    def fill(match: re.Match[str]) -> str:
        name, _, argument = match[1].partition(":")
        if name == "date":
            return match[0]
        if name in values:
            return values[name]()
        if name == "env":
            variable, _, default = argument.partition(":")
            value = env.get(variable) or default
            if value:
                return value
            raise ConfigError(
                f"log_stream_name {template!r} needs the environment variable {variable}, which is not "
                f"set. Set it, or give a default: {{env:{variable}:default}}."
            )
        raise ConfigError(f"log_stream_name {template!r}: {match[0]} is not known. Known: {known(values)}.")

    resolved = _PLACEHOLDER.sub(fill, template)
    if resolved.count("{") != resolved.count("{date") or resolved.count("{") != resolved.count("}"):
        raise ConfigError(f"log_stream_name {template!r} has a brace without a partner. Known: {known(values)}.")
    name = stream_at(resolved, 0)
    if not 1 <= len(name) <= _MAX_NAME_CHARACTERS:
        raise ConfigError(f"log_stream_name {template!r} gives a name of {len(name)} characters; 1 to 512 are legal.")
    return resolved


def known(values: Iterable[str]) -> str:
    """Return all placeholders as a message lists them."""
    return ", ".join([*(f"{{{name}}}" for name in values), *_DATES_AND_VARIABLES])


def utc(timestamp_ms: int) -> datetime:
    """Return an event's time to the second; the nearest one that can be told, never an error."""
    return datetime.fromtimestamp(min(max(timestamp_ms // 1000, 0), _LAST_SECOND), timezone.utc)


def stream_at(resolved: str, timestamp_ms: int) -> str:
    """The stream name of an event: the date filled in (UTC, the second of the event's own time), sanitised."""
    if "{" in resolved:
        day = utc(timestamp_ms)
        resolved = _PLACEHOLDER.sub(lambda match: day.strftime(match[1].partition(":")[2] or _DEFAULT_DATE), resolved)
    return _NOT_IN_STREAM.sub("-", resolved)


def spool_name(
    group: str, stream: str, region: str | None, endpoint_url: str | None, account: str | None = None
) -> str:
    """The directory name of a target's spool: readable in `ls`, unique by its hash.

    `stream` is the resolved template, so a host that is renamed gets a new spool, and the
    old one keeps the name it was meant for. `account` is the role or profile that writes, if
    one is named: groups of the same name in two accounts are two targets.
    """
    target = "\0".join((group, stream, region or "", endpoint_url or "", *([account] if account else [])))
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{group}.{stream}").strip("-.")[:80]
    return f"{readable}.{hashlib.sha256(target.encode()).hexdigest()[:10]}"
