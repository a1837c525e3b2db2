"""Tells which sinks get a record: ours in the thread that logs, the others from fapilog's queue.

fapilog writes to its sinks through one function, behind which is either a `SinkWriterGroup`
(every record to every sink) or a `RoutingSinkWriter` (by level). `find` looks behind that function
and makes an `Outlet` of each sink, by which one sink can be written to alone. The circuit
breakers, the fallback sinks and the fallback to stderr stay fapilog's own.
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from fapilog.core.circuit_breaker import CircuitState
from fapilog.core.routing import RoutingSinkWriter
from fapilog.core.sink_writers import SinkWriterGroup

if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    class SpoolSink(Protocol):
        """The methods that only a sink of ours has (see `fapilog_sink`). A view is the serialized record."""

        def spool(self, entry: dict[str, Any], view: Any) -> bool:
            """Append a record. False: refused and counted."""

        def offer(self, entry: dict[str, Any], view: Any) -> bool | bytes:
            """Append a record without waiting. Bytes: there is no room; the caller gives them to `wait_for_room`."""

        async def wait_for_room(self, payload: bytes) -> bool:
            """Append the bytes that `offer` returned as soon as there is room. False: refused and counted."""

        def encoded(self, entry: dict[str, Any], view: Any) -> bytes | None:
            """Return the bytes that would be appended. None: the record can never be, and that was counted."""

        def refuse(self, payload: bytes | None) -> None:
            """Count a record that will not be appended, because there is no room."""

        @property
        def blocks(self) -> bool:
            """Tell whether the sink waits for room (`on_full="block"`)."""

    # Takes a record, and its serialized view if sinks get that, else None.
    Write: TypeAlias = Callable[[dict[str, Any], Any], Coroutine[Any, Any, Any]]
    IsOurs: TypeAlias = Callable[[Any], bool]


class Outlet(NamedTuple):
    """One sink of a logger, and how to write to it alone.

    Attributes:
        sink: the sink.
        ours: the same sink, if it is one of ours that writes through; else None.
        breaker: the sink's circuit breaker, if it has one.
        has_stand_in: another sink takes its place while the breaker is open.
        write: write to the sink as fapilog does, with all that follows from a failure.
        refuse: do what fapilog does after the sink has answered False.
    """

    sink: Any
    ours: SpoolSink | None
    breaker: Any
    has_stand_in: bool
    write: Write
    refuse: Write

    @property
    def is_replaced(self) -> bool:
        """Tell whether another sink takes its place now."""
        return self.has_stand_in and self.breaker is not None and self.breaker.state is not CircuitState.CLOSED


async def _answer_false(_record: object) -> bool:
    return False


class Outlets(NamedTuple):
    """The sinks of one logger.

    Attributes:
        all: all of them.
        of_level: returns the sinks that a record of a level goes to, in fapilog's order.
        is_parallel: whether fapilog writes to the sinks side by side (`core.sink_parallel_writes`).
    """

    all: list[Outlet]
    of_level: Callable[[str], Sequence[Outlet]]
    is_parallel: bool

    def of(self, entry: dict[str, Any], view: Any) -> Sequence[Outlet]:
        """Return the sinks that a record goes to. fapilog 0.18.1 takes each serialized record for one of INFO."""
        level = entry.get("level", "INFO") if view is None else getattr(view, "level", None) or "INFO"
        return self.of_level(str(level))

    async def write_rest(self, entry: dict[str, Any], view: Any, done: frozenset[int]) -> None:
        """Write a record to those of its sinks whose `id` is not in `done`, as fapilog would."""
        writes = [target.write(entry, view) for target in self.of(entry, view) if id(target.sink) not in done]
        if self.is_parallel and len(writes) > 1:
            await asyncio.gather(*writes, return_exceptions=True)
        else:
            for write in writes:
                await write


def find(sink_write: Any, is_ours: IsOurs) -> Outlets | None:
    """Return the sinks behind a logger's `sink_write`. None: this is no writer that we know."""
    owner = getattr(sink_write, "__self__", None)
    if isinstance(owner, SinkWriterGroup):
        targets = [_of_group(owner, at, is_ours) for at in range(len(owner._sinks))]
        return Outlets(targets, lambda _: targets, owner._parallel)
    for cell in getattr(sink_write, "__closure__", None) or ():
        if isinstance(cell.cell_contents, RoutingSinkWriter):
            return _routed(cell.cell_contents, is_ours)
    return None


def _routed(router: Any, is_ours: IsOurs) -> Outlets:
    by_entry = {id(each): _of_routes(router, each, is_ours(each.sink)) for each in router._sink_entries.values()}

    def of(level: str) -> Sequence[Outlet]:
        return [by_entry[id(each)] for each in router.get_sinks_for_level(level)]

    return Outlets(list(by_entry.values()), of, router._parallel)


def _of_group(group: Any, at: int, is_ours: IsOurs) -> Outlet:
    sink = group._sinks[at]

    def through(write: Any, write_serialized: Any) -> Write:
        def to(entry: dict[str, Any], view: Any) -> Any:
            if view is None:
                return group._write_one(at, write, entry)
            return group._write_one_serialized(at, write_serialized, view)

        return to

    return Outlet(
        sink=sink,
        ours=sink if is_ours(sink) else None,
        breaker=group._breakers.get(id(sink)),
        has_stand_in=id(sink) in group._fallback_writers,
        write=through(*group._writers[at]),
        refuse=through(_answer_false, _answer_false),
    )


def _of_routes(router: Any, entry: Any, is_ours: bool) -> Outlet:
    def through(to: Any) -> Write:
        return lambda entry, view: router._write_one(to, entry if view is None else view, serialized=view is not None)

    return Outlet(
        sink=entry.sink,
        ours=entry.sink if is_ours else None,
        breaker=entry.breaker,
        has_stand_in=False,  # a router has its own fallbacks, by level
        write=through(entry),
        refuse=through(dataclasses.replace(entry, write=_answer_false, write_serialized=_answer_false)),
    )
