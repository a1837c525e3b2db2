"""The fapilog sink, and `install()`, which puts it in place of the built-in one.

A logger with this sink writes through (see `inline`): its pipeline ends in `spool`, in the thread
that logs. `write` and `write_serialized` are for loggers that keep fapilog's queue; they append
and return. fapilog calls a sink's `start()` late, twice or never, and its `stop()` never.
Therefore none of the three needs them.
If the writer refuses an entry, the sink answers False (see `Writer.append`). fapilog then
uses its own fallback, which shows the entry on stderr.
"""

from __future__ import annotations

import asyncio
import os
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import msgspec
from fapilog.core import diagnostics as fapilog_diagnostics
from fapilog.plugins import loader
from fapilog.plugins.sinks.contrib.cloudwatch import CloudWatchSinkConfig

from cwsink import diagnostics
from cwsink.clock import monotonic
from cwsink.config import SinkConfig, load_config, variables_of
from cwsink.errors import CwsinkError
from cwsink.frontends import console, fapilog_repairs, opening, presence, static_fields
from cwsink.frontends.console import Console
from cwsink.frontends.inline import seam
from cwsink.frontends.plain import encode
from cwsink.frontends.writer import Writer
from cwsink.interruption import is_a, is_interruption
from cwsink.spool.ring import Append
from cwsink.version import __version__

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.settings import Settings

PLUGIN_METADATA: Final = {
    "name": "cwsink",
    "version": __version__,
    "plugin_type": "sink",
    "entry_point": "cwsink.frontends.fapilog_sink:CloudWatchSpoolSink",
    "description": "AWS CloudWatch Logs for several processes: spooled on disk, sent by one elected process.",
    "author": "cwsink authors",
    "compatibility": {"min_fapilog_version": "0.18.1"},
    "api_version": "1.0",
    "dependencies": [],
}

_BLOCK_POLL_SECONDS: Final = 0.005


class CloudWatchSpoolSink:
    """A fapilog sink that spools entries for CloudWatch Logs.

    Args:
        config: the built-in sink's config object, a SinkConfig, or a mapping.
        **settings: single settings (see SinkConfig); they win over `config`.

    Raises:
        ConfigError, SpoolError: fapilog swallows what a sink's constructor raises, so the
            error is said on stderr, too.
    """

    name = "cwsink"
    _writer: Writer | Console

    def __init__(self, config: object = None, **settings: Unpack[Settings]) -> None:
        if config is not None and not isinstance(config, (SinkConfig, dict)):
            self.name = "cloudwatch"  # fapilog's routing rules name the built-in sink like this
        try:
            loaded = load_config(_what_is_set(config), **settings)
            where = console.place(os.environ)
            self._writer = Writer(loaded, adds_fields=False) if where == "cloudwatch" else Console(where, loaded)
            self._fields = opening.fields_of(self._writer)
        except CwsinkError as error:
            diagnostics.report("sink", f"the sink cannot start, and fapilog will log elsewhere: {error}")
            raise
        self.blocks = loaded.on_full == "block" and where == "cloudwatch"
        # If a subclass has a `write` of its own, that must be called: it keeps fapilog's queue, which calls it.
        is_plain = (type(self).write, type(self).write_serialized) == _OWN
        self.writes_through = loaded.pipeline == "inline" and is_plain
        enable_repairs()

    async def start(self) -> None:
        """Do nothing: the first append attaches."""

    async def stop(self) -> None:
        """Let go of the spool. A later write opens it again."""
        self._writer.close()

    async def write(self, entry: dict[str, Any]) -> bool:
        """Spool one entry. False: refused and counted."""
        return await self._append(entry)

    async def write_serialized(self, view: Any) -> bool:
        """Spool one entry that fapilog has serialized already (`view.data`: JSON bytes)."""
        return await self._append({}, view)

    async def health_check(self) -> bool:
        """Tell whether entries can be spooled, are delivered, and none is lost now. It asks the spool, not CloudWatch.

        False does not mean that a restart helps: let no liveness probe depend on it.
        """
        return self._writer.is_healthy

    def spool(self, entry: dict[str, Any], view: Any = None) -> bool:
        """Spool one entry, or its serialized view. False: refused and counted.

        Under `on_full="block"` the calling thread waits for room.
        """
        return self._writer.append(*self._text_of(entry, view))

    def offer(self, entry: dict[str, Any], view: Any = None) -> bool | bytes:
        """Spool one entry, or its serialized view, without waiting.

        Returns:
            True: spooled. False: refused and counted. Bytes: the encoded record; under
            `on_full="block"` there is no room for it now. Give it to `wait_for_room`.
        """
        if not self.blocks:
            return self.spool(entry, view)
        assert isinstance(self._writer, Writer)  # a console does not block
        payload = self.encoded(entry, view)
        if payload is None:
            return False
        answer = self._writer.try_append(payload)
        return payload if answer is Append.FULL else answer is Append.APPENDED

    def encoded(self, entry: dict[str, Any], view: Any = None) -> bytes | None:
        """Return the bytes to append. None: they can never be, and that was counted; or the sink is a console."""
        if not isinstance(self._writer, Writer):
            return None
        return self._writer.prepare(*self._text_of(entry, view))

    def refuse(self, payload: bytes | None) -> None:
        """Count a record as refused, because there was no room for it. None: nothing is to be counted."""
        if payload is not None and isinstance(self._writer, Writer):
            self._writer.refuse(payload)

    async def wait_for_room(self, payload: bytes) -> bool:
        """Await room for the record that `offer` returned, and spool it. False: refused and counted."""
        assert isinstance(self._writer, Writer)
        until = monotonic() + self._writer.config.block_timeout_seconds
        while monotonic() < until:
            try:
                await asyncio.sleep(_BLOCK_POLL_SECONDS)
            except BaseException:  # the task is cancelled, or its loop has ended (GeneratorExit)
                self._writer.refuse(payload)
                raise
            if (answer := self._writer.try_append(payload)) is not Append.FULL:
                return answer is Append.APPENDED
        self._writer.refuse(payload)
        return False

    async def _append(self, entry: dict[str, Any], view: Any = None) -> bool:
        answer = self.offer(entry, view)
        return await self.wait_for_room(answer) if isinstance(answer, bytes) else answer

    def _text_of(self, entry: dict[str, Any], view: Any) -> tuple[str | bytes, int | None]:
        if view is None:
            text, time_ms = encode(entry).decode(), entry_time(entry.get("timestamp"))
        else:
            data = bytes(view.data)
            text, time_ms = data.decode("utf-8", "backslashreplace"), envelope_time(data)
        return static_fields.add(text, self._fields) if self._fields else text, time_ms


_OWN: Final = (CloudWatchSpoolSink.write, CloudWatchSpoolSink.write_serialized)


def _what_is_set(config: object) -> object:
    """Return what the application has set of the built-in sink's config object; any other config as it is.

    fapilog gives that object every field. What nobody has set has fapilog's default there, and what a variable has set
    looks like an argument. Both would win over our variables, and fapilog's defaults over ours.
    """
    if not isinstance(config, CloudWatchSinkConfig):
        return config
    given = config.model_dump(exclude_defaults=True)
    for name, text in [(name, os.environ.get(variables_of(name)[1])) for name in given]:
        if text is not None and getattr(load_config({name: text}, env={}), name) == given[name]:
            del given[name]
    return given


def install() -> None:
    """Make "cloudwatch" (and "cwsink") mean this sink, and put fapilog's repairs in place.

    Call it before the first logger is made. The settings of the built-in sink keep their names
    and places; cwsink's own settings come from `CWSINK_<NAME>`. To call it again
    changes nothing.
    """
    for name in ("cloudwatch", "cwsink"):
        loader.register_builtin("fapilog.sinks", name, CloudWatchSpoolSink)
    enable_repairs()


def enable_repairs() -> None:
    """Put in place the repairs, the hook for writing through, and the drain of fapilog's queues at exit. Idempotent."""
    fapilog_repairs.enable()
    seam.enable()
    presence.this.drain_queues = fapilog_repairs.exit_drain
    diagnostics.subscribe(_tell_fapilog)


class _REAL:
    """The class `datetime`. While a test library freezes the clock, it puts a class of its own in its place."""

    datetime: Final[type[datetime]] = next(each for each in datetime.__mro__ if each.__module__ == "datetime")


def entry_time(timestamp: object) -> int | None:
    """Return an entry's time in ms since 1970, from RFC 3339 text, a datetime or seconds. None: it has no such time."""
    try:
        if is_a(timestamp, str):
            timestamp = msgspec.convert(timestamp, _REAL.datetime)
        if is_a(timestamp, _REAL.datetime):
            timestamp = timestamp.timestamp()
        if is_a(timestamp, (int, float)):
            return round(timestamp * 1000)
    except (ValueError, OverflowError, OSError) as error:
        if is_interruption(error):
            raise
    return None


class _Log(msgspec.Struct, gc=False):
    timestamp: str | float | None = None


class _Envelope(msgspec.Struct, gc=False):
    """The time in what fapilog serializes, which is {"log": {...}} or the entry itself."""

    log: _Log | None = None
    timestamp: str | float | None = None


_decode_envelope: Final = msgspec.json.Decoder(_Envelope).decode


def envelope_time(data: bytes) -> int | None:
    """Return the time in a serialized entry, in ms since 1970. None: no time can be read there."""
    try:
        envelope = _decode_envelope(data)
    except msgspec.MsgspecError:
        return None
    return entry_time(envelope.log.timestamp if envelope.log else envelope.timestamp)


def _tell_fapilog(key: str, message: str) -> None:
    fapilog_diagnostics.warn("cwsink", message, _rate_limit_key=f"cwsink-{key}")
