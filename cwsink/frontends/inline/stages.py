"""Runs filters, enrichers and redactors one after the other, in the thread that logs.

Each stage does what fapilog's own (`filter_in_order`, `enrich_parallel`, `redact_in_order`) does
with the same record: the same copies, the same merging, the same words in its diagnostics. An error
of a plugin is contained in the same place. fapilog runs enrichers as tasks side by side. Tasks that
never suspend run in turn, and so do ours.

A plugin is driven by one `send(None)`. It may suspend although `waiting` found nothing in its code
that waits, or fail because of the thread that it runs in. If it were skipped then, a redactor's secret
would arrive in the clear. So `hand_on` raises `Suspended`, which says which stages are done, and
fapilog's queue does the rest.
"""

from __future__ import annotations

import asyncio
import re
import sys
from asyncio import CancelledError
from collections.abc import Callable, Coroutine, Sequence
from functools import cache
from typing import Any, Final

import orjson
from fapilog.core import diagnostics
from fapilog.metrics.metrics import plugin_timer
from fapilog.plugins.enrichers import _deep_merge
from fapilog.plugins.filters import _record_filter_metrics
from fapilog.plugins.redactors import url_credentials
from fapilog.plugins.redactors.url_credentials import UrlCredentialsRedactor

from cwsink.frontends import fapilog_names
from cwsink.frontends.inline.harmless import harmless
from cwsink.frontends.plain import unshowable
from cwsink.interruption import is_interruption, suppress

Entry = dict[str, Any]
_Method = Callable[[Entry], Coroutine[Any, Any, Any]]

FILTERS: Final = 0
ENRICHERS: Final = 1
REDACTORS: Final = 2
PROCESSORS: Final = 3
DONE: Final = 4
KINDS: Final = ("filter", "enricher", "redactor", "processor")
METHODS: Final = ("filter", "enrich", "redact", "process")

_BUILT_IN_REDACTORS: Final = "fapilog.plugins.redactors."
# sha256 of fapilog 0.18.1's UrlCredentialsRedactor: its source, and the URL schemes that it looks for.
_URL_REDACTOR: Final = "464d10dfb925f840e606a75d403017c48ab8aaaf3d6f4743e6511761e6592b9a"


class Suspended(BaseException):
    """A plugin waits for something.

    It is a BaseException, because the code that contains a plugin's errors must not contain this.

    Attributes:
        stage: the stage that fapilog's queue goes on with, such as FILTERS.
        at: how many plugins of that stage are done.
        entry: the record as it was when that stage began; for filters and redactors, before the plugin `at`.
        plugin: the plugin that waits, if it is known.
        kind: the stage of that plugin, if it is not `stage`.
    """

    stage: int = PROCESSORS
    at: int = 0
    entry: Entry | None = None
    plugin: object = None
    kind: int | None = None
    trouble = "may wait"


class NeedsLoop(Suspended):
    """A plugin has asked for an event loop, which fapilog's thread has."""

    trouble = "needs an event loop"


class Interrupted(BaseException):
    """Carries what a signal handler has raised through code of fapilog that contains each Exception.

    Attributes:
        error: what the handler has raised.
    """

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error


class TooDeep(Suspended):
    """The stack of this thread is used up. That of fapilog's thread is not. The logger is not given back."""


class TiedToThread(Suspended):
    """A plugin belongs to another thread, in which it was called first. fapilog's thread could not call it, either."""


# fapilog contains the errors of a plugin. KeyboardInterrupt and SystemExit go on to the application, and so does what a
# signal handler raises while a plugin runs. If it were contained, the record would go on unredacted.
_CONTAINED: Final = (Exception, CancelledError, Suspended)
# How often a coroutine is closed. One that awaits in a `finally` suspends again.
_MOST_CLOSES: Final = 10
_NAMES_LOOP: Final = re.compile(r"event loop|different loop|inside a task|async context", re.IGNORECASE)
_NAMES_THREAD: Final = re.compile(r"\b(same|different|another|other) thread", re.IGNORECASE)
# A thread with more frames than this has clearly fewer left than fapilog's, which has some twenty at a plugin's call.
_FRAMES_OF_QUEUE: Final = 120


def hand_on(error: BaseException, stage: int, at: int, entry: Entry | None, plugin: object = None) -> None:
    """Raise Suspended if a plugin has failed only because of the thread that it runs in, or what a handler has raised.

    All other errors are to be contained.
    """
    left = None
    try:
        if is_interruption(error):
            raise error
        if (left := _left(error, stage)) is None:
            return
        left.stage, left.at, left.entry = stage, at, entry
        left.plugin = left.plugin if plugin is None else plugin
        raise left
    finally:
        del error, left  # the exception keeps this frame, which must not keep the exception


def _left(error: BaseException, stage: int) -> Suspended | None:
    """Return what the stages leave to fapilog's queue, or None. The text of other errors may quote the record."""
    if isinstance(error, Suspended):
        return error
    if isinstance(error, RecursionError):
        return TooDeep() if _is_deeper_than_the_queue() else None
    if isinstance(error, RuntimeError) or type(error).__module__ == "sqlite3":
        said = f"{type(error).__name__}: {text_of(error)}"
        # What fails because a loop runs in this thread fails in fapilog's thread, too.
        if _NAMES_LOOP.search(said) and (asyncio._get_running_loop() is None or "different" in said):
            return NeedsLoop(said)
        if _NAMES_THREAD.search(said) and stage >= REDACTORS:  # without a filter or an enricher, it tells no secret
            return TiedToThread(said)
    return None


def _is_deeper_than_the_queue() -> bool:
    """Tell whether fapilog's thread has many more frames left. Else a plugin calls itself without end there, too."""
    try:
        sys._getframe(_FRAMES_OF_QUEUE)
    except ValueError:
        return False
    return True


def text_of(error: BaseException) -> str:
    """Return `str(error)`; if the application's own `__str__` fails, a text that says so."""
    try:
        return str(error)
    except Exception as failed:
        if is_interruption(failed):
            raise
        return unshowable(error, failed)


def drive(method: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **fields: Any) -> Any:
    """Make a coroutine that does not suspend, run it to its end, and return its value.

    Raises:
        Suspended: the coroutine does suspend. It was closed.
    """
    coroutine = None
    try:
        coroutine = method(*args, **fields)
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    except BaseException:
        if coroutine is not None:
            coroutine.close()  # a signal handler may raise before it begins: Python would say that nobody awaited it
        raise
    for _ in range(_MOST_CLOSES):
        with suppress(Exception):  # its `finally` fails, or suspends again
            coroutine.close()
            break
    raise Suspended


async def _timed(metrics: Any, name: str, method: _Method, entry: Entry) -> Any:
    async with plugin_timer(metrics, name):
        return await method(entry)


class Stages:
    """The plugins of one logger, since it last changed them."""

    def __init__(self, filters: Sequence[Any], enrichers: Sequence[Any], redactors: Sequence[Any], metrics: Any):
        self._metrics = metrics
        self._filters = [(each, getattr(each, "name", type(each).__name__)) for each in filters]
        self._enrichers = list(enrichers)
        self._redactors = list(redactors)
        self.has_redactors = bool(redactors)
        # It need not be called for an entry without "//". With metrics it is, because the plugin timer counts calls.
        self._url_redactor = next((each for each in redactors if metrics is None and _finds_urls_only(each)), None)

    def filter(self, entry: Entry) -> Entry | None:
        """Return the entry as the filters leave it. None: a filter has dropped it."""
        if not self._filters:
            return entry
        current = dict(entry)
        for at, (plugin, name) in enumerate(self._filters):
            try:
                result = self._call(name, plugin.filter, dict(current))
            except _CONTAINED as error:
                hand_on(error, FILTERS, at, current, plugin)
                warn("filter", "filter exception", filter=name, reason=text_of(error))
                continue
            if self._metrics is not None:
                drive(_record_filter_metrics, self._metrics, plugin, name)
            if result is None:
                if self._metrics is not None:
                    drive(self._metrics.record_events_filtered, 1)
                return None
            current = result
        return current

    def enrich(self, entry: Entry) -> Entry:
        """Return the entry with the results of all enrichers merged in. Each enricher gets a copy of its own."""
        if not self._enrichers:
            return entry
        results = []
        for plugin in self._enrichers:
            try:
                results.append(self._call(type(plugin).__name__, plugin.enrich, dict(entry)))
            except _CONTAINED as error:  # noqa: PERF203  # the error of one must not keep the next from running
                hand_on(error, ENRICHERS, 0, entry, plugin)
                self._skip_enricher(error)
        try:
            merged = dict(entry)
            for result in results:
                merged = _deep_merge(merged, result)
                if self._metrics is not None:
                    drive(self._metrics.record_event_processed)
            return merged
        except Exception as error:  # the result of one is no mapping. fapilog then drops the results of all
            hand_on(error, ENRICHERS, 0, entry)
            warn("enricher", "enrichment error", _rate_limit_key="enrich")
            return entry

    def _skip_enricher(self, error: BaseException) -> None:
        if self._metrics is not None and self._metrics.is_enabled:
            drive(self._metrics.record_plugin_error, plugin_name=type(error).__name__)
        warn("enricher", "enrichment error", error_type=type(error).__name__, _rate_limit_key="enrich")

    def redact(self, entry: Entry) -> Entry:
        """Return the entry as the redactors leave it.

        A redactor may fail half way, and its traces must not stay. Therefore fapilog gives each one a
        deep copy. fapilog's own redactors change the copy in place and keep no reference to it, so
        here several of them in a row share one copy. If one of them fails, those before it in the row
        run again, from the entry before the row. The redactor that looks for URLs is not called if
        the entry has no "//".
        """
        current, untouched, since, is_ours = dict(entry), entry, 0, False
        for at, plugin in enumerate(self._redactors):
            is_built_in = type(plugin).__module__.startswith(_BUILT_IN_REDACTORS)
            given = current if is_ours and is_built_in else None
            try:
                if given is None:
                    untouched, since = current, at
                    copied = orjson.dumps(harmless(current))
                    given = orjson.loads(copied)
                    if plugin is self._url_redactor is not None and b"//" not in copied:
                        self._url_redactor.last_redacted_count = 0
                        current, is_ours = given, True
                        continue
                result = self._call(type(plugin).__name__, plugin.redact, given)
                if isinstance(result, dict):
                    current, is_ours = result, is_built_in
                if self._metrics is not None:
                    self._count_redacted(plugin)
            except _CONTAINED as error:
                hand_on(error, REDACTORS, since, untouched, plugin)
                if given is None and self._metrics is not None:
                    self._count_uncopied(type(plugin).__name__)
                name = getattr(plugin, "name", type(plugin).__name__)
                warn("redactor", "redactor exception", redactor=name, reason=text_of(error))
                if since < at:
                    current, is_ours = self._redact_again(untouched, since, at), False
        return current

    def _redact_again(self, entry: Entry, since: int, until: int) -> Entry:
        for at in range(since, until):
            try:
                result = drive(self._redactors[at].redact, orjson.loads(orjson.dumps(harmless(entry))))
                entry = result if isinstance(result, dict) else entry
            except _CONTAINED as error:  # noqa: PERF203  # as in `enrich`; the first failure was reported
                hand_on(error, REDACTORS, at, entry, self._redactors[at])
        return entry

    def _count_redacted(self, plugin: Any) -> None:
        if redacted := getattr(plugin, "last_redacted_count", 0):
            drive(self._metrics.record_redacted_fields, redacted)
        if violations := getattr(plugin, "last_policy_violations", 0):
            drive(self._metrics.record_policy_violations, violations)

    def _count_uncopied(self, name: str) -> None:
        """Count a redactor that was not called, because its copy could not be made, as fapilog's plugin timer does."""
        drive(self._metrics.record_plugin_error, plugin_name=name)
        drive(self._metrics.record_plugin_execution, plugin_name=name, duration_seconds=0.0, success=False)

    def _call(self, name: str, method: _Method, entry: Entry) -> Any:
        if self._metrics is not None:
            return drive(_timed, self._metrics, name, method, entry)
        return drive(method, entry)


class Guarded:
    """A processor. fapilog's own code calls it, and contains its errors; those of the thread are handed on before."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self.name = getattr(processor, "name", type(processor).__name__)

    async def process(self, view: memoryview) -> Any:
        """Do what the processor does."""
        try:
            return await self._processor.process(view)
        except Exception as error:
            if is_interruption(error):
                raise Interrupted(error) from None
            hand_on(error, PROCESSORS, 0, None, self._processor)
            raise


def _finds_urls_only(redactor: object) -> bool:
    """Tell whether a redactor is fapilog's `url_credentials`, which changes nothing in an entry without "//"."""
    return type(redactor) is UrlCredentialsRedactor and "redact" not in vars(redactor) and _is_url_redactor_known()


@cache  # to read the source takes 10 ms
def _is_url_redactor_known() -> bool:
    schemes = repr(getattr(url_credentials, "_URL_SCHEMES", None))
    return fapilog_names.has_source(UrlCredentialsRedactor, _URL_REDACTOR, and_also=schemes)


def warn(component: str, message: str, **fields: Any) -> None:
    """Report it in fapilog's diagnostics. Raises only what a signal handler raises."""
    with suppress(Exception):
        diagnostics.warn(component, message, **fields)
