"""Log group and stream names, and tags: templates, rules, and the spool's name (pure).

A stream template is resolved in two steps. `resolve` fills in the placeholders
that stay the same for the life of a host (`{hostname}`, `{app}`, `{env:NAME}`);
the spool is kept under the result. `stream_at` fills in `{date}` from the time
of each event. An event that is replayed a day later must go to the stream of the
day on which it was logged. Static fields have the same placeholders, but for the date.
"""

from __future__ import annotations

import contextlib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timezone
from typing import Final

from cwsink.errors import ConfigError
from cwsink.limits import (
    LOG_GROUP_NAME,
    MAX_NAME_CHARACTERS,
    MAX_TAG_KEY_CHARACTERS,
    MAX_TAG_VALUE_CHARACTERS,
    MAX_TAGS,
    RESERVED_GROUP_PREFIX,
    RESERVED_TAG_PREFIX,
    TAG_CHARACTERS,
    is_tag_text,
)

_NOT_IN_STREAM: Final = re.compile(r"[:*]")

_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_DATES: Final = ("{date}", "{date:%Y/%m/%d}")
_VARIABLES: Final = ("{env:NAME}", "{env:NAME:default}")
_DEFAULT_DATE: Final = "%Y-%m-%d"

# A record may carry any 64-bit time. This is 9999-12-31T23:59:59Z, the last second that `datetime` can hold.
_LAST_SECOND: Final = 253_402_300_799


def check_group(name: str) -> None:
    """Raise ConfigError unless CloudWatch accepts `name` as a log group name."""
    if not LOG_GROUP_NAME.fullmatch(name):
        raise ConfigError(
            f"log_group_name {name!r} is not a legal log group name: 1 to 512 of the characters "
            "a-z A-Z 0-9 . - _ / #. Nothing was created."
        )
    if name.startswith(RESERVED_GROUP_PREFIX):
        raise ConfigError(f"log_group_name {name!r} starts with 'aws/', which AWS keeps for itself.")


def check_tags(tags: Mapping[str, str]) -> None:
    """Raise ConfigError if CloudWatch would refuse the tags: then a group would never be made. Shows no value."""
    if not 1 <= len(tags) <= MAX_TAGS:
        raise ConfigError(f"tags: {len(tags)} given; a log group takes 1 to {MAX_TAGS}.")
    for key, value in tags.items():
        if not 1 <= len(key) <= MAX_TAG_KEY_CHARACTERS or not is_tag_text(key):
            raise ConfigError(f"tags: the key {key!r} is not 1 to {MAX_TAG_KEY_CHARACTERS} {TAG_CHARACTERS}.")
        if key.lower().startswith(RESERVED_TAG_PREFIX):
            raise ConfigError(f"tags: the key {key!r} begins with {RESERVED_TAG_PREFIX}, as only AWS's own do.")
        if len(value) > MAX_TAG_VALUE_CHARACTERS or not is_tag_text(value):
            raise ConfigError(f"tags: the value of {key!r} is not 0 to {MAX_TAG_VALUE_CHARACTERS} {TAG_CHARACTERS}.")


def fill(
    setting: str, template: str, values: Mapping[str, Callable[[], str]], env: Mapping[str, str], *, dates: bool = False
) -> str:
    """Fill in every placeholder of a template.

    Args:
        setting: what the template is given for, as an error names it.
        template: such as "{hostname}" or "{app}-{env:STAGE:dev}".
        values: for each placeholder, a function that returns its value. It is called only if the
            template holds that placeholder.
        env: the environment that `{env:NAME}` reads.
        dates: whether `{date...}` may be among them. It stays open.

    Raises:
        ConfigError: an unknown placeholder, a missing variable, a character that cannot be printed.
    """

    def value_of(match: re.Match[str]) -> str:
        name, _, argument = match[1].partition(":")
        if name == "date" and dates:
            return match[0]
        if name in values:
            return values[name]()
        if name == "env":
            variable, _, default = argument.partition(":")
            value = env.get(variable, "").strip() or default
            if value:
                return value
            raise ConfigError(
                f"{setting} {template!r} needs the environment variable {variable}, which is not "
                f"set. Set it, or give a default: {{env:{variable}:default}}."
            )
        raise ConfigError(f"{setting} {template!r}: {match[0]} is not known. Known: {known(values, dates=dates)}.")

    filled = _PLACEHOLDER.sub(value_of, template)
    if filled.count("{") != filled.count("{date") * dates or filled.count("{") != filled.count("}"):
        raise ConfigError(f"{setting} {template!r} has a brace without a partner. Known: {known(values, dates=dates)}.")
    if not filled.isprintable():
        raise ConfigError(f"{setting} {template!r} gives {filled!r}, with a character that cannot be printed.")
    return filled


def resolve(template: str, values: Mapping[str, Callable[[], str]], env: Mapping[str, str]) -> str:
    """Fill in every placeholder of a stream template, except the date (see `fill`).

    Returns:
        The template in which only `{date...}` is still open. With a date it gives a name of 1 to
        512 characters (see `stream_at`).

    Raises:
        ConfigError: as for `fill`; or an empty or too long name.
    """
    resolved = fill("log_stream_name", template, values, env, dates=True)
    name = stream_at(resolved, 0)
    if not 1 <= len(name) <= MAX_NAME_CHARACTERS:
        raise ConfigError(f"log_stream_name {template!r} gives a name of {len(name)} characters; 1 to 512 are legal.")
    return resolved


def known(values: Iterable[str], *, dates: bool = True) -> str:
    """Return the list of all placeholders, as an error message shows it."""
    return ", ".join([*(f"{{{name}}}" for name in values), *(_DATES if dates else ()), *_VARIABLES])


def utc(timestamp_ms: int) -> datetime:
    """Return an event's time to the second. A time that `datetime` cannot hold becomes the nearest one that it can."""
    return datetime.fromtimestamp(min(max(timestamp_ms // 1000, 0), _LAST_SECOND), timezone.utc)


def rfc3339(timestamp_ms: int) -> str:
    """Return "2026-01-31T12:00:00.000Z"."""
    return f"{utc(timestamp_ms).isoformat()[:19]}.{timestamp_ms % 1000:03}Z"


def stream_at(resolved: str, timestamp_ms: int) -> str:
    """Return the stream name of an event: with the date of its own time (UTC), and '-' for each ':' and '*'."""
    if "{" in resolved:
        day = utc(timestamp_ms)
        resolved = _PLACEHOLDER.sub(lambda match: day.strftime(match[1].partition(":")[2] or _DEFAULT_DATE), resolved)
    return _NOT_IN_STREAM.sub("-", resolved)


def spool_name(
    group: str, stream: str, region: str | None, endpoint_url: str | None, account: str | None = None
) -> str:
    """Return the directory name of a target's spool. It is readable in `ls`, and its hash makes it unique.

    `stream` is the resolved template. Therefore a host that is renamed gets a new spool, and the
    records in the old one still go to the stream they were meant for. `account` is the role or
    profile that writes, if the settings name one: groups of the same name in two accounts are
    two targets.
    """
    target = "\0".join((group, stream, region or "", endpoint_url or "", *([account] if account else [])))
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", f"{group}.{stream}").strip("-.")[:80]
    return f"{readable}.{_sha256(target.encode())[:10]}"


def _sha256(data: bytes) -> str:
    """Return the SHA-256 of data in hexadecimal.

    hashlib would load OpenSSL: 0.6 MiB in each worker. So this takes Python's own code, as the standard library's
    `random` does, and hashlib only where Python was built without it.
    """
    for module in ("_sha2", "_sha256"):  # since Python 3.12, and before
        with contextlib.suppress(ImportError):
            return str(importlib.import_module(module).sha256(data).hexdigest())
    import hashlib

    return hashlib.sha256(data).hexdigest()
