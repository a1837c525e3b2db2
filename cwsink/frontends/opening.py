"""Opens a writer for a front end, or what takes its place where nothing is spooled (cwsink.frontends.console)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cwsink.errors import ConfigError
from cwsink.frontends import console, static_fields

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.frontends.writer import Writer
    from cwsink.settings import Settings


def open_writer(config: object = None, **settings: Unpack[Settings]) -> Writer | console.Console:
    """Open a writer. A front end adds the static fields itself. Raises ConfigError, SpoolError."""
    where, loaded = console.choose(config, **settings)
    if where != "cloudwatch":
        return console.Console(where, loaded)
    from cwsink.frontends.writer import Writer  # here, because it cannot be imported on Windows

    return Writer(loaded, adds_fields=False)


def fields_of(writer: Writer | console.Console) -> str:
    """Return the static fields of a writer's settings (cwsink.frontends.static_fields). Raises ConfigError."""
    try:
        return static_fields.encode(writer.config, getattr(writer, "directory", None))
    except ConfigError:
        writer.close()
        raise
