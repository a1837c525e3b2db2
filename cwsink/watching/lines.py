"""A record as people read it (pure).

All that comes from a spool is foreign text, so it is shown by `printable`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any, Final

import msgspec

from cwsink.limits import MAX_EVENT_BYTES
from cwsink.printable import printable
from cwsink.spool.record import Event
from cwsink.words import LEVELS

_PLAIN: Final = re.compile(r"[^\s=\"']+")

# CloudWatch takes no longer ones. A spool may hold them, to be sent in pieces.
_MOST_CHARACTERS: Final = MAX_EVENT_BYTES
# Deeper than this, data is shown as JSON.
_MOST_FLAT: Final = 3
_INDENT: Final = " " * 4
# This context tells a reader nothing, because fapilog draws a message_id at random for each entry.
_NOISE: Final = frozenset({"message_id"})

_RESET: Final = "\x1b[0m"
_DIM: Final = "2"
_AUDIT: Final = LEVELS["AUDIT"]
_ERROR: Final = LEVELS["ERROR"]
# Colours from these ranks on: magenta, bold red, yellow, green, dim.
_LEVEL_COLOURS: Final = ((_AUDIT, "35"), (_ERROR, "1;31"), (LEVELS["WARNING"], "33"), (LEVELS["INFO"], "32"), (0, "2"))


@dataclass(frozen=True)
class Line:
    """A record as people read it.

    Attributes:
        level: the name of the level, or None for plain text.
        rank: the number of the level, as in `logging`; None if it is not known.
        details: pairs of key and value, in order.
        more: text for lines of its own: a traceback, and the stack that `stack_info=True` asks for.
    """

    timestamp_ms: int
    level: str | None
    rank: int | None
    logger: str
    message: str
    details: tuple[tuple[str, str], ...] = ()
    more: str = ""


def read(event: Event) -> Line:
    """Return a record as a line. Its message is one of fapilog's two shapes of JSON, or any text. Never raises."""
    try:
        entry = _entry_of(event.message)
        if entry is not None:
            return _line_of(event, entry)
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # it only looks like an entry, or is nested so deep that its parts cannot be shown
    return Line(event.timestamp_ms, None, None, "", event.message)


def _line_of(event: Event, entry: Mapping[str, Any]) -> Line:
    level = entry.get("level")
    name = level.upper() if isinstance(level, str) else None
    diagnostics = _mapping(entry.get("diagnostics"))
    rank = LEVELS.get(name) if name else None
    if rank is None and isinstance(number := diagnostics.get("levelno"), int):  # a level that the application has made
        rank = number
    return Line(
        event.timestamp_ms,
        name,
        rank,
        str(entry.get("logger") or ""),
        str(entry["message"]),
        (*_context(entry), *_flat("", _mapping(entry.get("data")))),
        "\n".join(_stacks(diagnostics)),
    )


def is_at_least(line: Line, rank: int) -> bool:
    """Tell whether a line's level is `rank` or above. An unknown level passes. A line without a level does not."""
    return line.level is not None and (line.rank is None or line.rank >= rank)


def render(line: Line, *, today: str, colour: bool) -> str:
    """Return the line as text, with its time as local time.

    Args:
        line: what to show.
        today: the local date, such as "2026-01-31". Other dates are part of the line.
        colour: whether to use escape sequences.
    """

    def paint(text: str, code: str) -> str:
        return f"\x1b[{code}m{text}{_RESET}" if colour and text else text

    parts = [paint(_clock(line.timestamp_ms, today), _DIM)]
    if line.level is not None:
        code = next(code for least, code in _LEVEL_COLOURS if max(line.rank or 0, 0) >= least)
        parts.append(paint(f"{printable(line.level, one_line=True):8}", code))
    if line.logger:
        parts.append(paint(f"{printable(line.logger, one_line=True)}:", "36"))
    first, *rest = printable(_begin(line.message)).splitlines() or [""]
    parts.append(paint(first, "1") if _ERROR <= (line.rank or 0) < _AUDIT else first)
    if line.details:
        parts.append("")  # two spaces between the message and its details
    parts.extend(
        f"{paint(f'{printable(key, one_line=True)}=', _DIM)}{printable(value, one_line=True)}"
        for key, value in line.details
    )
    below = [*rest, *printable(line.more).splitlines()]
    return "\n".join([" ".join(parts), *(_INDENT + paint(each, _DIM) for each in below)])


def _begin(message: str) -> str:
    """Return a message as long as people can read it."""
    if len(message) <= _MOST_CHARACTERS:
        return message
    return f"{message[:_MOST_CHARACTERS]}\n... of {len(message):,} characters; --json shows all of them."


def _entry_of(message: str) -> Mapping[str, Any] | None:
    """Return fapilog's entry, or None if the message is none."""
    if not message.startswith("{") or len(message) > _MOST_CHARACTERS:
        return None
    content = msgspec.json.decode(message)
    entry = content.get("log", content)
    return entry if isinstance(entry, dict) and "message" in entry else None


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _context(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in _mapping(entry.get("context")).items():
        if key not in _NOISE and value is not None:
            yield key, _value(value)


def _flat(prefix: str, data: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for key, value in data.items():
        if isinstance(value, dict) and value and prefix.count(".") < _MOST_FLAT:
            yield from _flat(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key}", _value(value)


def _value(value: object) -> str:
    if isinstance(value, str) and _PLAIN.fullmatch(value):
        return value
    return msgspec.json.encode(value).decode()


def _stacks(diagnostics: Mapping[str, Any]) -> Iterator[str]:
    exception = _mapping(diagnostics.get("exception"))
    if stack := exception.get("error.stack"):
        yield str(stack).rstrip()
    elif exception:
        yield f"{exception.get('error.type', 'exception')}: {exception.get('error.message', '')}"
    if stack := diagnostics.get("stack"):
        yield str(stack).rstrip()


def _clock(timestamp_ms: int, today: str) -> str:
    second = _local(timestamp_ms // 1000)
    return f"{second.removeprefix(f'{today} ')}.{timestamp_ms % 1000:03}" if second else f"{timestamp_ms} ms"


@lru_cache(maxsize=1024)
def _local(second: int) -> str:
    """Return the local date and time, or "" if there is none."""
    try:
        # Naive on purpose, because people expect the time that their own clock showed.
        return datetime.fromtimestamp(second).isoformat(sep=" ")  # noqa: DTZ006
    except (ValueError, OverflowError, OSError):
        return ""
