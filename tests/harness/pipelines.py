"""Loggers of fapilog with our sink, plugins and another sink beside it, and what their spools hold."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from typing import Any

import fapilog

from cwsink.config import SinkConfig
from cwsink.spool import directory
from cwsink.spool.survey import events

SMALL_SPOOL = {"segment_bytes": 4096, "spool_max_bytes": 4 * 4096}


class Recorder:
    """Another sink: keeps what it is given, and waits before that if it is told to."""

    name = "recorder"

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.may_go = threading.Event()
        self.may_go.set()

    async def write(self, entry: dict[str, Any]) -> None:
        while not self.may_go.is_set():  # noqa: ASYNC110  # another thread sets it
            await asyncio.sleep(0.001)
        self.entries.append(dict(entry))

    @property
    def messages(self) -> list[str]:
        return [entry["message"] for entry in self.entries]


class Counting:
    """A plugin of every kind, which counts what it sees."""

    name = "counting"

    def __init__(self) -> None:
        self.seen: Counter[tuple[str, str]] = Counter()

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        self.seen["filter", event["message"]] += 1
        return event

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        self.seen["enricher", event["message"]] += 1
        return {"data": {"enriched": True}}

    async def redact(self, event: dict[str, Any]) -> dict[str, Any]:
        self.seen["redactor", event["message"]] += 1
        return event

    async def process(self, view: memoryview) -> memoryview:
        self.seen["processor", json.loads(bytes(view))["log"]["message"]] += 1
        return view


def made(logger: Any, **plugins: list[Any]) -> Any:
    """Give a logger plugins beside its own."""
    for kind, added in plugins.items():
        getattr(logger, f"_{kind}").extend(added)
        getattr(logger, f"_invalidate_{kind}_cache")()
    return logger


def get_logger(*sinks: Any, **settings: Any) -> Any:
    """Make a logger of its own."""
    return fapilog.get_logger("app", sinks=list(sinks), settings=fapilog.Settings(**settings), reuse=False)


def drain(logger: Any) -> tuple[int, int, int]:
    """End a logger; return (submitted, processed, dropped)."""
    result = asyncio.run(logger.stop_and_drain())
    return result.submitted, result.processed, result.dropped


def entries_of(config: SinkConfig) -> list[dict[str, Any]]:
    """Return what the spool of a config holds."""
    found = [event.message for event in events(directory.open_for(config))]
    entries = [json.loads(message) for message in found if message.startswith("{")]
    return [entry.get("log", entry) for entry in entries]


def messages_of(config: SinkConfig) -> list[str]:
    return [entry["message"] for entry in entries_of(config)]
