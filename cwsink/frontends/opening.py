"""Opens a writer for a front end, or what takes its place where nothing is spooled (cwsink.frontends.console)."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Literal

from cwsink.diagnostics import report
from cwsink.errors import ConfigError, SpoolError
from cwsink.frontends import console, static_fields

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.frontends.writer import Writer
    from cwsink.settings import Settings


OnUnusable = Literal["stderr", "raise"]
ON_UNUSABLE: Final = "CWSINK_ON_UNUSABLE"


def open_writer(
    config: object = None, on_unusable: OnUnusable | None = None, **settings: Unpack[Settings]
) -> Writer | console.Console:
    """Open a writer. A front end adds the static fields itself.

    Args:
        config: a SinkConfig or a mapping.
        on_unusable: what to do if the spool cannot be made or opened. "stderr": say why, and print the records there,
            because no application should fail to start for its log. "raise": raise SpoolError. By default what the
            variable `CWSINK_ON_UNUSABLE` says, else "stderr".
        **settings: single settings.

    Raises:
        ConfigError: a setting is wrong, or no log group is given.
        SpoolError: the spool cannot be used, and `on_unusable` is "raise".
    """
    then = on_unusable or os.environ.get(ON_UNUSABLE, "").strip().lower() or "stderr"
    if then not in ("stderr", "raise"):
        raise ConfigError(f"{'on_unusable' if on_unusable else ON_UNUSABLE}={then!r}: choose one of stderr, raise.")
    where, loaded = console.choose(config, **settings)
    if where != "cloudwatch":
        return console.Console(where, loaded)
    from cwsink.frontends.writer import Writer  # here, because it cannot be imported on Windows

    try:
        return Writer(loaded, adds_fields=False)
    except SpoolError as error:
        if then == "raise":
            raise
        report("unusable", f"records go to stderr, and not to CloudWatch: {error}")
        return console.Console("stderr", loaded)


def fields_of(writer: Writer | console.Console) -> str:
    """Return the static fields of a writer's settings (cwsink.frontends.static_fields). Raises ConfigError."""
    try:
        return static_fields.encode(writer.config, getattr(writer, "directory", None))
    except ConfigError:
        writer.close()
        raise
