"""What gunicorn and uvicorn say of a request, as fields: `http.method`, `http.path`, `http.status` (no I/O).

Their access loggers give all of it as the arguments of the message. gunicorn's are a dict, its atoms (`%(m)s` is the
method). uvicorn's are (client, method, path with query, version, status), and it does not measure how long it took.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

from cwsink.interruption import suppress

_ORIGIN: Final = re.compile(r"^[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)


def fields(record: logging.LogRecord) -> dict[str, str | int | float]:
    """Return the fields of the record of an access logger, as far as it has them."""
    with suppress(Exception):  # arguments of another kind, by whatever has the logger's name
        found = LOGGERS[record.name](record.args)
        return {name: value for name, value in found.items() if value not in (None, "", "-")}
    return {}


def _of_gunicorn(atoms: Mapping[str, Any]) -> dict[str, Any]:
    took_us = atoms.get("D")
    # The atom of the path is decoded, byte by byte, and lacks what `SCRIPT_NAME` says. So the line of the request is
    # asked first: it has what the client sent. A proxy may send the whole URL there.
    line = _text(atoms.get("r")).split(" ")
    target = line[1].partition("?")[0] if len(line) > 1 else ""
    return {
        "method": _text(atoms.get("m")),
        "path": _ORIGIN.sub("", target) or ("/" if target else _text(atoms.get("U"))),
        "status": int(atoms["s"]),
        "duration_ms": took_us / 1000 if isinstance(took_us, int) else None,
        "client": _text(atoms.get("h")),
    }


def _of_uvicorn(arguments: tuple[Any, ...]) -> dict[str, Any]:
    client, method, path, _, status = arguments
    return {
        "method": _text(method),
        "path": _text(path).partition("?")[0],
        "status": int(status),
        "client": _text(client).rpartition(":")[0],
    }


def _text(value: object) -> str:
    """Return a text of gunicorn's without the backslashes that it puts before quotes."""
    return value.replace('\\"', '"') if isinstance(value, str) else ""


LOGGERS: Final[dict[str, Callable[[Any], dict[str, Any]]]] = {
    "gunicorn.access": _of_gunicorn,
    "uvicorn.access": _of_uvicorn,
}
