"""Cuts events that are longer than CloudWatch takes: to size, or in pieces (pure).

`truncate` keeps one event. JSON stays JSON: the longest texts of an object are cut to one length, and `"_cwsink"` says
so. JSON without long texts becomes the `"text"` of such an object. Plain text is cut at a character, and ends with a
note. `split` keeps everything, as several events:

```text
{"_cwsink_part": {"id": "<producer>-<sequence>", "index": 0, "total": 3}, "text": "..."}
```

To put a message together again, take the events of one `id`, sort them by `index` and join their `text`.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from cwsink.flusher.chunk import message_bytes

_PART_ENVELOPE_BYTES: Final = 160
_MARK: Final = "..."
# An object may have so many texts that each would be cut below this. Then the beginning of its JSON says more.
_MIN_TEXT_BYTES: Final = 32


def truncate(message: str, limit_bytes: int) -> str:
    """Return `message` in at most `limit_bytes` of UTF-8, with a note of its original size if it is cut.

    A JSON object stays a JSON object. No character is cut in two.
    """
    size = message_bytes(message)
    if size <= limit_bytes:
        return message
    content = None
    try:
        content = json.loads(message)
    except json.JSONDecodeError:
        return _truncate_text(message, size, limit_bytes)
    except (ValueError, RecursionError):
        pass  # it is JSON that Python cannot read: a number of thousands of digits, or nested too deep
    note = {"truncated": True, "original_bytes": size}
    if isinstance(content, dict) and (text := _shorten({**content, "_cwsink": note}, limit_bytes)):
        return text
    # An object with one text always gets short enough.
    return _shorten({"_cwsink": note, "text": message}, limit_bytes) or dump({"_cwsink": note}).decode()


def split(message: str, limit_bytes: int, event_id: str) -> list[str]:
    """Return JSON parts of at most `limit_bytes` of UTF-8 each, which together hold `message`."""
    room = limit_bytes - _PART_ENVELOPE_BYTES - len(event_id)
    pieces = []
    start = 0
    while start < len(message):
        end = _fitting(message, start, room)
        pieces.append(message[start:end])
        start = end
    total = len(pieces)
    return [
        dump({"_cwsink_part": {"id": event_id, "index": index, "total": total}, "text": piece}).decode()
        for index, piece in enumerate(pieces)
    ]


def is_embedded_metric(message: str) -> bool:
    """Tell whether CloudWatch makes metrics of this event (embedded metric format: JSON with `_aws`)."""
    if '"_aws"' not in message:
        return False
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and "_aws" in content


class _Text(NamedTuple):
    """A text somewhere in an object: `container[key]`, and its size as JSON."""

    size_bytes: int
    container: Any
    key: Any


def _shorten(content: dict[str, Any], limit_bytes: int) -> str | None:
    """Return `content` as JSON within the limit, its longest texts cut. None: that is not enough."""
    try:
        excess = len(dump(content)) - limit_bytes
        texts = sorted(_texts(content), key=lambda text: text.size_bytes, reverse=True)
        most = _most_bytes([text.size_bytes for text in texts], excess)
        if most < _MIN_TEXT_BYTES:
            return None
        for size, container, key in texts:
            if size <= most:
                break
            value = container[key]
            container[key] = value[: _fitting(value, 0, most - len(_MARK))] + _MARK
        return dump(content).decode()
    except (ValueError, RecursionError):
        return None  # a number too large for a double, which Python does not write as JSON; or nested too deep


def _texts(content: dict[str, Any]) -> list[_Text]:
    """Return the texts anywhere in `content` that are long enough to be cut."""
    found = []
    pending: list[Any] = [content]
    while pending:
        container = pending.pop()
        for key, value in container.items() if isinstance(container, dict) else enumerate(container):
            if isinstance(value, str) and len(value) > _MIN_TEXT_BYTES:
                found.append(_Text(len(dump(value)), container, key))
            elif isinstance(value, (dict, list)):
                pending.append(value)
    return found


def _most_bytes(sizes: list[int], excess: int) -> int:
    """Return the size to which the longest texts must be cut, so that all together lose `excess` bytes.

    Args:
        sizes: of the texts in bytes, longest first.
        excess: how many bytes are too many.

    Returns:
        The size in bytes; below 0 if the texts are not long enough.
    """
    most, total = -1, 0
    for count, size in enumerate(sizes, start=1):
        total += size
        most = (total - excess) // count
        if count < len(sizes) and most >= sizes[count]:
            break
    return most


def _fitting(text: str, start: int, room_bytes: int) -> int:
    """Return the end of the longest piece of `text` that begins at `start` and takes at most `room_bytes` as JSON."""
    content = dump(text[start : start + room_bytes])[1:-1]
    room_bytes -= 2  # the quotes
    kept = content[:room_bytes].decode("utf-8", "ignore")
    while True:
        try:
            return start + len(json.loads(f'"{kept}"'))
        except json.JSONDecodeError:  # noqa: PERF203  # at most six rounds, the length of the longest escape
            kept = kept[:-1]  # an escape was cut in two


def _truncate_text(message: str, size: int, limit_bytes: int) -> str:
    note = f"{_MARK} [truncated by cwsink, {size} bytes]"
    kept = message.encode()[: limit_bytes - len(note)].decode("utf-8", "ignore")
    return kept + note


def dump(content: object) -> bytes:
    """Encode as JSON. Raises ValueError and RecursionError, as `_shorten` explains."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate came from an escape. `backslashreplace` writes it as JSON would.
    return text.encode("utf-8", "backslashreplace")
