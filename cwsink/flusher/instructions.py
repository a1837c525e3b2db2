"""How a leader, or a command, is to send a spool: FORMAT and what its writers have left (cwsink.spool.sending)."""

from __future__ import annotations

import os
from typing import Any

from msgspec.structs import asdict

from cwsink.config import SinkConfig, load_config, variables_of
from cwsink.diagnostics import report
from cwsink.errors import ConfigError
from cwsink.spool import capacity, sending
from cwsink.spool.directory import SpoolDirectory


def config_of(directory: SpoolDirectory) -> SinkConfig:
    """Return how to send this spool: the target as FORMAT names it, the rest as the newest writer left it.

    Where no writer has left settings, the environment variables say how.

    Raises:
        ConfigError: these variables are wrong.
        OSError: it cannot be told whether a writer has left settings. To send by those of this environment could mean
            to send with the identity of another application.
    """
    found = sending.found_in(directory)
    held = capacity.read(directory)
    where = directory.format.settings()
    budget: dict[str, Any] = {"spool_max_bytes": held.spool_max_bytes if held else directory.format.spool_max_bytes}
    if found is None:
        # What FORMAT leaves open is left open: another application's role or segment size must not get in.
        left_out = {each for name in (*where, *budget, "segment_bytes") for each in variables_of(name)}
        env = {name: value for name, value in os.environ.items() if name not in left_out}
        return SinkConfig(**{**asdict(load_config(env=env)), **where, **budget, "segment_bytes": None})
    known = set(SinkConfig.__struct_fields__) - sending.OF_THE_WRITER
    settings = {name: value for name, value in found.settings.items() if name in known}  # a newer writer has more
    of_format = {name: value for name, value in where.items() if value is not None}
    try:
        config: SinkConfig = SinkConfig(**{**of_format, **settings, **budget})
    except ConfigError as error:
        report(f"settings_{directory.path}", f"{directory.sending} cannot be used: {error} Defaults are used.")
        config = SinkConfig(**of_format, **budget)
    return config
