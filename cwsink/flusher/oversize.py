"""Events longer than CloudWatch takes: cut to size, or in pieces (pure).

`truncate` keeps one event. JSON stays JSON: the longest texts of an object are shortened,
and it says so under `"_cwsink"`; JSON without long texts becomes the `"text"` of such an
object. What is no JSON is cut at a character and ends in a note. `split` keeps everything, as several events:

```text
{"_cwsink_part": {"id": "<producer>-<sequence>", "index": 0, "total": 3}, "text": "..."}
```

Reassembly: take the events of one `id`, sort by `index`, join `text`; the result is the
message as it was logged.
"""

from __future__ import annotations

import json
from typing import Any, Final

from cwsink.flusher.batch import message_bytes

_PART_ENVELOPE_BYTES: Final = 160
_MARK: Final = "..."
# Each round shortens the longest text of the object; one with so many long texts is cut as text.
_MAX_ROUNDS: Final = 256


def truncate(message: str, limit_bytes: int) -> str:
    """Return `message` in at most `limit_bytes` of UTF-8, its original size noted.

    A JSON object stays a JSON object; no character is cut in two.
    """
    size = message_bytes(message)
    if size <= limit_bytes:
        return message
    try:
        content = json.loads(message)
    except (ValueError, RecursionError):
        return _truncate_text(message, size, limit_bytes)
    note = {"truncated": True, "original_bytes": size}
    if isinstance(content, dict) and (text := _shorten({**content, "_cwsink": note}, limit_bytes)):
        return text
    # The object of one text always gets short enough.
    return _shorten({"_cwsink": note, "text": message}, limit_bytes) or _dump({"_cwsink": note})


def split(message: str, limit_bytes: int, event_id: str) -> list[str]:
    """Return JSON parts of at most `limit_bytes` of UTF-8 each, which together hold `message`."""
    room = limit_bytes - _PART_ENVELOPE_BYTES - len(event_id)
    pieces = []
    start = 0
    while start < len(message):
        length = min(room, len(message) - start)
        # Escapes and multi-byte characters make a piece longer than its characters: shrink by what it is over.
        while (size := message_bytes(_dump(message[start : start + length]))) > room:
            length = max(1, min(length - 1, length * room // size))
            if length == 1:
                break
        pieces.append(message[start : start + length])
        start += length
    total = len(pieces)
    return [
        _dump({"_cwsink_part": {"id": event_id, "index": index, "total": total}, "text": piece})
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


def _shorten(content: dict[str, Any], limit_bytes: int) -> str | None:
    """Return `content` as JSON within the limit, its texts shortened, longest first; None if they are not enough."""
    for _ in range(_MAX_ROUNDS):
        text = _dump(content)
        excess = message_bytes(text) - limit_bytes
        if excess <= 0:
            return text
        if not _shorten_longest(content, excess):
            return None
    return None


def _shorten_longest(content: dict[str, Any], excess_bytes: int) -> bool:
    """Shorten the longest text anywhere in `content` by about `excess_bytes`. False: there is none to shorten."""
    longest: tuple[Any, Any, str] | None = None
    pending: list[Any] = [content]
    while pending:
        container = pending.pop()
        items = container.items() if isinstance(container, dict) else enumerate(container)
        for key, value in items:
            if isinstance(value, str):
                if len(value) > 2 * len(_MARK) and (longest is None or len(value) > len(longest[2])):
                    longest = (container, key, value)
            elif isinstance(value, (dict, list)):
                pending.append(value)
    if longest is None:
        return False
    container, key, value = longest
    per_character = message_bytes(_dump(value)) / len(value)
    keep = len(value) - int(excess_bytes / per_character) - 2 * len(_MARK)
    container[key] = value[: max(0, keep)] + _MARK
    return True


def _truncate_text(message: str, size: int, limit_bytes: int) -> str:
    note = f"{_MARK} [truncated by cwsink, {size} bytes]"
    kept = message.encode()[: limit_bytes - len(note)].decode("utf-8", "ignore")
    return kept + note


def _dump(content: object) -> str:
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))
