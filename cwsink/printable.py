"""Makes foreign text harmless for whoever reads it: on a terminal, on stderr, in a log (pure).

Names of directories, what CloudWatch answers and what an application logs may hold characters that act: that move the
cursor, colour or hide what follows, turn its direction, or begin another line. `printable` shows them as escapes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from typing import Final

# Control characters without tab and newline (C0, DEL, C1), the soft hyphen and others that are not seen, those that
# turn the direction of the text, the line and paragraph separators, tags, and surrogates, which no terminal can show.
_ACTING: Final = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180e\u200b-\u200f\u2028-\u202e"
    "\u2060-\u206f\u3164\ufeff\uffa0\ufff0-\ufffb\ud800-\udfff"
    "\U00013430-\U0001343f\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
_PART_CHARACTERS: Final = 65_536


def printable(text: str, *, one_line: bool = False) -> str:
    """Return `text` with each character that acts as an escape. `one_line`: newlines and tabs, too."""
    if len(text) > _PART_CHARACTERS:  # megabytes of escapes would be as many objects at once
        parts = (text[at : at + _PART_CHARACTERS] for at in range(0, len(text), _PART_CHARACTERS))
        return "".join(printable(part, one_line=one_line) for part in parts)
    text = _acting_replaced(_escape, text)
    return text.replace("\n", "\\n").replace("\t", "\\t") if one_line else text


def printable_json(text: str) -> str:
    """Return JSON with each character that acts as JSON's own escape. It means the same."""
    return _acting_replaced(escape_in_json, text)


def _acting_replaced(escape: Callable[[re.Match[str]], str], text: str) -> str:
    return text if text.isascii() and text.isprintable() else _acting().sub(escape, text)


@cache
def _acting() -> re.Pattern[str]:
    """Compile the pattern when a text needs it: that takes 0.2 MiB, which a worker seldom needs."""
    return re.compile(_ACTING)


def escape_in_json(match: re.Match[str]) -> str:
    """Return JSON's escape of the character that was found."""
    units = match[0].encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
