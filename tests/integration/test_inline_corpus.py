"""What arrives inline is what fapilog's own worker makes of the same calls.

Each case is a set-up of fapilog and the calls below, made twice in one process: once with
`pipeline="queue"`, once inline. Ids, times and line numbers differ; nothing else may.
"""

from __future__ import annotations

import asyncio
import json
import random
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fapilog
import pytest
from fapilog.core import diagnostics as fapilog_diagnostics
from fapilog.core.presets import get_preset

import cwsink
from cwsink.frontends.inline.seam import pipeline_of
from cwsink.spool.survey import events
from tests.harness.support import quick_config

PIPELINES = ("queue", "inline")
# The queue lets protected levels overtake the others, and two workers overtake each other: a filter that counts would
# see another order, which is not what is asked here.
IN_ORDER = {"protected_levels": [], "worker_count": 1}


class Showable:
    """Something JSON has no word for."""

    def __str__(self) -> str:
        return "<shown>"


class Model:
    """What fapilog's own serialization has a way for."""

    def model_dump(self, **_: object) -> dict[str, int]:
        return {"inner": 1}


def call(logger: Any) -> Iterator[Any]:
    """Make all kinds of calls; of the async facade, yield what is to be awaited."""
    for level in ("debug", "info", "warning", "error", "critical", "audit", "security", "unsafe_debug"):
        yield getattr(logger, level)(f"{level}-1", number=1, url="https://user:secret@example.com/x")
    yield logger.info("nested", data={"password": "hunter2", "list": [{"token": "t"}, "plain"], "user_id": "u-1"})
    yield logger.info("masked", sensitive={"card": "4111"}, pii={"mail": "a@b.c"}, ssn="078-05-1120", authorization="x")
    yield logger.info("deep", a={"b": {"c": {"d": {"e": {"f": {"g": {"h": {"password": "deep"}}}}}}}})
    yield logger.info("wide", **{f"key_{at}": at for at in range(50)})
    yield logger.info('text: \u2028 naïve 日本 🧣 "quoted"\n', number=-1.5, nothing=None, flag=True, pair=(1, 2))
    yield logger.info("x" * 3000, padding="y" * 3000)
    logger.bind(request_id="r-1", tenant_id="t-1", colour="red")
    yield logger.info("bound", colour="blue")
    logger.unbind("colour")
    yield logger.info("unbound")
    logger.clear_context()
    for thing in (Showable(), Model(), {1: "a number as key"}, {"a set"}, float("nan"), b"bytes", object):
        yield logger.info("odd", thing=thing)
    try:
        raise ValueError("on purpose")
    except ValueError as error:
        yield logger.exception("caught", number=2)
        yield logger.error("given", exc=error)
    for _ in range(3):
        yield logger.error("the same error again")


class Bad:
    """A plugin of each kind that fails in every way."""

    name = "bad"

    async def filter(self, event: dict[str, Any]) -> dict[str, Any]:
        event["data"]["seen_by_filter"] = True
        if event["message"] == "nested":
            raise KeyError("filter")
        return event

    async def enrich(self, event: dict[str, Any]) -> Any:
        event["message"] = "each enricher has a copy of its own"
        if event["level"] == "ERROR":
            raise RuntimeError("enricher")
        return None if event["level"] == "WARNING" else {"data": {"enriched": True}, "extra": 1}

    async def redact(self, event: dict[str, Any]) -> Any:
        event["data"]["half"] = "done"
        if event["level"] == "CRITICAL":
            raise RuntimeError("redactor")
        return None if event["level"] == "AUDIT" else event

    async def process(self, view: memoryview) -> memoryview:
        if b"caught" in bytes(view):
            raise RuntimeError("processor")
        return memoryview(bytes(view).replace(b"hello", b"HELLO"))


class Careful(Bad):
    """What stands before and after it in the row sees none of its failures."""

    name = "careful"

    async def filter(self, event: dict[str, Any]) -> Any:
        return None if event["message"] == "unbound" else {**event, "filtered": True}

    async def enrich(self, event: dict[str, Any]) -> Any:
        return {"context": {"careful": event["message"]}, "data": {"number": "overwritten"}}

    async def redact(self, event: dict[str, Any]) -> Any:
        return {**event, "redacted": True}


def add(**plugins: list[Any]) -> Callable[[Any], None]:
    """Return what gives a logger these plugins, in front of or behind its own."""

    def to(logger: Any) -> None:
        for kind, added in plugins.items():
            own = getattr(logger, f"_{kind}")
            own[:] = [*added[:1], *own, *added[1:]]
            getattr(logger, f"_invalidate_{kind}_cache")()

    return to


ALL_REDACTORS = ["field_mask", "regex_mask", "url_credentials", "field_blocker", "string_truncate"]
MASKS = {
    "field_mask": {"fields_to_mask": ["data.password", "data.list", "data.a.b"]},
    "regex_mask": {"patterns": [r".*token", r"data\.ssn"]},
}
PRESETS = ("dev", "production", "minimal", "serverless", "hardened")
CASES: dict[str, tuple[dict[str, Any], Callable[[Any], None] | None]] = {
    "default": ({}, None),
    "debug": ({"core": {"log_level": "DEBUG"}}, None),
    "gate": ({"core": {"log_level": "ERROR"}}, None),
    "serialized": ({"core": {"serialize_in_flush": True}}, None),
    "strict": ({"core": {"serialize_in_flush": True, "strict_envelope_mode": True}}, None),
    "no plugins": ({"core": {"enrichers": [], "redactors": [], "log_level": "DEBUG"}}, None),
    "redactors": ({"core": {"redactors": ALL_REDACTORS}, "redactor_config": MASKS}, None),
    "metrics": ({"core": {"redactors": ALL_REDACTORS, "enable_metrics": True}, "redactor_config": MASKS}, None),
    "enrichers": ({"core": {"enrichers": ["kubernetes", "context_vars", "runtime_info"]}}, None),
    "breaker": ({"core": {"sink_circuit_breaker_enabled": True}}, None),
    "level": ({"core": {"filters": ["level"]}, "filter_config": {"level": {"config": {"min_level": "ERROR"}}}}, None),
    "dedupe": ({"core": {"error_dedupe_window_seconds": 60.0, "protected_levels": []}}, None),
    "old sampling": ({"observability": {"logging": {"sampling_rate": 0.5}}}, None),
    "no exceptions": ({"core": {"exceptions_enabled": False}}, None),
    "processors": (
        {
            "core": {"serialize_in_flush": True, "processors": ["zero_copy", "size_guard"], "enable_metrics": True},
            "processor_config": {"size_guard": {"max_bytes": 2000}},
        },
        None,
    ),
    "bad": ({"core": {"redactors": ALL_REDACTORS}}, add(filters=[Bad()], enrichers=[Bad()], redactors=[Bad()])),
    "bad between": (
        {"core": {"redactors": ALL_REDACTORS, "serialize_in_flush": True, "enable_metrics": True}},
        add(
            filters=[Bad(), Careful()],
            enrichers=[Careful(), Bad()],
            redactors=[Careful(), Bad(), Careful()],
            processors=[Bad()],
        ),
    ),
    **{
        f"filter {name}": (
            {"core": {"filters": [name], "log_level": "DEBUG"}, "filter_config": {name: {"config": config}}},
            None,
        )
        for name, config in {
            "sampling": {"sample_rate": 0.5, "seed": 7},
            "rate_limit": {"capacity": 3, "refill_rate_per_sec": 0.0, "overflow_action": "mark"},
            "adaptive_sampling": {"max_sample_rate": 0.5, "min_sample_rate": 0.5},
            "trace_sampling": {"sample_rate": 0.5},
            "first_occurrence": {},
        }.items()
    },
    **{f"fail {mode}": ({"core": {"redaction_fail_mode": mode}}, None) for mode in ("open", "closed", "warn")},
    **{
        f"preset {name}": (get_preset(name), None)
        for name in ("dev", "production", "minimal", "serverless", "hardened")
    },
}


def plain(message: str) -> Any:
    """Return an entry without what differs from call to call."""
    entry = json.loads(message)
    entry = entry.get("log", entry)
    entry.pop("timestamp", None)
    entry.get("context", {}).pop("message_id", None)
    return json.loads(re.sub(r"0x[0-9a-f]+|line \d+|\"lineno\": \d+", "#", json.dumps(entry)))


async def log_all(settings: fapilog.Settings, sink: Any, extra: Any, *, is_async: bool) -> tuple[Any, Any]:
    """Make all calls; return the logger and how it drained."""
    if is_async:
        logger: Any = await fapilog.get_async_logger("app", settings=settings, sinks=[sink], reuse=False)
    else:
        logger = await asyncio.to_thread(fapilog.get_logger, "app", settings=settings, sinks=[sink], reuse=False)
    if extra:
        extra(logger)
    random.seed(1)
    for awaited in call(logger):
        if is_async:
            await awaited
    is_inline = pipeline_of(logger) is not None
    return is_inline, await logger.stop_and_drain()


@pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])
@pytest.mark.parametrize("case", CASES)
def test_the_same_arrives_either_way(
    case: str, is_async: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All calls through the queue and inline: the same entries, in the same order, and the same counts."""
    monkeypatch.chdir(tmp_path)  # a preset's file sink makes a folder
    monkeypatch.setattr(fapilog_diagnostics, "_internal_logging_enabled", False)
    settings, extra = CASES[case]
    settings = {name: value for name, value in settings.items() if not name.startswith("_")}
    settings["core"] = {**settings.get("core", {}), **IN_ORDER}
    found, counts = {}, {}
    for pipeline in PIPELINES:
        config = quick_config(flusher="external", pipeline=pipeline, log_stream_name=pipeline)
        sink = cwsink.CloudWatchSpoolSink(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # "old sampling" is deprecated
            is_inline, result = asyncio.run(log_all(fapilog.Settings(**settings), sink, extra, is_async=is_async))
        assert is_inline == (pipeline == "inline")
        found[pipeline] = [plain(event.message) for event in events(sink._writer.directory)]
        counts[pipeline] = result.submitted, result.processed, result.dropped
    assert found["inline"] == found["queue"]
    assert counts["inline"] == counts["queue"]
    assert found["inline"]
