"""Durations and sizes as people write them: "5s", "256MiB" (pure)."""

from __future__ import annotations

import re
from typing import Final

DURATION_FORMS: Final = "a duration is a number of seconds, or a text such as '500ms', '5s', '1.5s', '2m', '1h', '7d'"

_DURATION: Final = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|h|d)?\s*")
_DURATION_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_SIZE: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg])(i?)b?\s*", re.IGNORECASE)
_SIZE_POWER: Final = {"k": 1, "m": 2, "g": 3}


def read(setting: str, text: str) -> float | int | str:
    """Return the seconds or bytes that a text means for a setting of this name; the text itself if it means neither."""
    if is_duration(setting) and (found := seconds(text)) is not None:
        return found
    if is_size(setting) and (match := _SIZE.fullmatch(text)):
        return int(float(match[1]) * (1024 if match[3] else 1000) ** _SIZE_POWER[match[2].lower()])
    return text


def seconds(text: str) -> float | None:
    """Return the seconds that a duration means, with its unit or without; None if the text is no duration."""
    match = _DURATION.fullmatch(text)
    return float(match[1]) * _DURATION_SECONDS[match[2] or "s"] if match else None


def legal_forms(setting: str) -> str | None:
    """Return how a setting of this name can be written, as an error says it; None if it is no duration and no size."""
    if is_duration(setting):
        return DURATION_FORMS
    if is_size(setting):
        return "a size is a whole number of bytes, or a text such as '64KiB', '256MiB', '1GiB', '500kB', '10MB', '2GB'"
    return None


def is_duration(setting: str) -> bool:
    """Tell whether the setting of this name is a time."""
    return setting.endswith("_seconds") or setting in ("retry_base_delay", "keep_delivered")


def is_size(setting: str) -> bool:
    """Tell whether the setting of this name is a number of bytes."""
    return setting.endswith("_bytes")
