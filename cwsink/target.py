"""Targets: where records go (log group, stream, region, endpoint), and with which role or profile.

An application names a target in its settings, and the stream's name may have placeholders. `resolve` fills in those
that are fixed for the life of a host. The spool keeps the result in FORMAT, so that each later leader sends to the same
place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import msgspec

from cwsink import host, naming
from cwsink.config import SinkConfig
from cwsink.diagnostics import report

# fapilog, too, takes the application's name from this variable.
APP_VARIABLE: Final = "FAPILOG_CORE__APP_NAME"


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a leader needs to know to send, and to create group and stream. Each field is a setting of the writers."""

    log_group_name: str
    log_stream_name: str
    region: str | None
    endpoint_url: str | None
    create_log_group: bool
    create_log_stream: bool
    profile: str | None = None
    role_arn: str | None = None
    external_id: str | None = None
    retention_days: int | None = None
    tags: dict[str, str] | None = None
    kms_key_id: str | None = None
    log_group_class: str | None = None

    def settings(self) -> dict[str, Any]:
        """Return the target as settings of a SinkConfig."""
        return {name: getattr(self, name) for name in Target.__struct_fields__}

    @property
    def spool_name(self) -> str:
        """The directory name of the target's spool. Groups of one name in two accounts are two targets."""
        account = self.role_arn or self.profile
        return naming.spool_name(self.log_group_name, self.log_stream_name, self.region, self.endpoint_url, account)


def resolve(config: SinkConfig, env: Mapping[str, str], look_up: Callable[[str], str | None]) -> Target:
    """Return the target of `config` on this host.

    Args:
        config: the settings.
        env: the environment that `{env:NAME}` reads.
        look_up: gives the value of a placeholder of `host.LOOKED_UP`, or None if there is none here.

    Raises:
        ConfigError: the stream's name cannot be resolved.
    """
    stream = naming.resolve(config.log_stream_name, _values(config, env, look_up), env)
    fields = {name: getattr(config, name) for name in Target.__struct_fields__}
    return Target(**{**fields, "log_stream_name": stream})


def resolve_fields(
    config: SinkConfig, env: Mapping[str, str], look_up: Callable[[str], str | None]
) -> dict[str, str | int | float | bool]:
    """Return the static fields of `config` on this host. The arguments are those of `resolve`.

    Raises:
        ConfigError: a placeholder has no value.
    """
    values = _values(config, env, look_up)
    return {
        name: naming.fill(f"fields[{name!r}]", each, values, env) if isinstance(each, str) else each
        for name, each in (config.fields or {}).items()
    }


def app_name(config: SinkConfig, env: Mapping[str, str]) -> str:
    """Return what the application is called."""
    return config.app_name or host.legal(env.get(APP_VARIABLE, "")) or host.program() or "app"


def _values(
    config: SinkConfig, env: Mapping[str, str], look_up: Callable[[str], str | None]
) -> dict[str, Callable[[], str]]:
    """Return the placeholders beside `{date}` and `{env:NAME}`, and how to resolve each."""

    def looked_up(name: str) -> str:
        if (found := look_up(name)) is not None:
            return found
        report(f"name_{name}", f"{{{name}}} cannot be found here. The host's name is taken, {host.name()}.")
        return host.name()

    return {
        "hostname": host.name,
        "app": lambda: app_name(config, env),
        **{name: partial(looked_up, name) for name in host.LOOKED_UP},
    }
