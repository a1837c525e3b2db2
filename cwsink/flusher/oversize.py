"""Events longer than CloudWatch takes: cut to size, or in pieces (pure).

`truncate` keeps one event. JSON stays JSON: the longest texts of an object are cut to one
length, and it says so under `"_cwsink"`; JSON without long texts becomes the `"text"` of such
an object. What is no JSON is cut at a character and ends in a note. `split` keeps everything,
as several events:

```text
{"_cwsink_part": {"id": "<producer>-<sequence>", "index": 0, "total": 3}, "text": "..."}
```

Reassembly: take the events of one `id`, sort by `index`, join `text`; the result is the
message as it was logged.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

from cwsink.flusher.chunk import message_bytes

_PART_ENVELOPE_BYTES: Final = 160
_MARK: Final = "..."
# An object with so many texts that each would be cut below this says more as the beginning of its own text.
_MIN_TEXT_BYTES: Final = 32


def truncate(message: str, limit_bytes: int) -> str:
    """Return `message` in at most `limit_bytes` of UTF-8, its original size noted.

    A JSON object stays a JSON object; no character is cut in two.
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
        pass  # JSON all the same: a number of thousands of digits, or nested deeper than Python goes
    note = {"truncated": True, "original_bytes": size}
    if isinstance(content, dict) and (text := _shorten({**content, "_cwsink": note}, limit_bytes)):
        return text
    # The object of one text always gets short enough.
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
    """A text somewhere in an object: `container[key]`, and what it takes as JSON."""

    size_bytes: int
    container: Any
    key: Any


def _shorten(content: dict[str, Any], limit_bytes: int) -> str | None:
    """Return `content` as JSON within the limit, its longest texts cut; None if they are not enough."""
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
        return None  # a number beyond a double's, which is no JSON in Python; or nested too deep, see above


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
    """Return the size to cut the longest to, so that all together lose `excess`; below 0 if they cannot.

    Args:
        sizes: longest first.
        excess: how much to lose.
    """
    most, total = -1, 0
    for count, size in enumerate(sizes, start=1):
        total += size
        most = (total - excess) // count
        if count < len(sizes) and most >= sizes[count]:
            break
    return most


def _fitting(text: str, start: int, room_bytes: int) -> int:
    """Return the end of the longest piece of `text` from `start` on that takes at most `room_bytes` as JSON."""
    content = dump(text[start : start + room_bytes])[1:-1]
    room_bytes -= 2  # the quotes
    kept = content[:room_bytes].decode("utf-8", "ignore")
    while True:
        try:
            return start + len(json.loads(f'"{kept}"'))
        except json.JSONDecodeError:  # noqa: PERF203  # six rounds at most, the length of the longest escape
            kept = kept[:-1]  # an escape was cut in two


def _truncate_text(message: str, size: int, limit_bytes: int) -> str:
    note = f"{_MARK} [truncated by cwsink, {size} bytes]"
    kept = message.encode()[: limit_bytes - len(note)].decode("utf-8", "ignore")
    return kept + note


def dump(content: object) -> bytes:
    """Encode as JSON. Raises ValueError, RecursionError: see `_shorten`."""
    text = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    # A lone surrogate came from an escape; backslashreplace happens to write JSON's own.
    return text.encode("utf-8", "backslashreplace")
