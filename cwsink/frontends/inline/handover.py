"""A record on its way through fapilog's queue, and fapilog's worker that takes it from there.

The thread that logs hands over what it does not finish itself: a finished record that has other
sinks than ours, and, rarely, an unfinished one. It is a dict as fapilog's own, which also says
how far it has come. The worker of such a logger does only what is left to do: filters, samplers
and redactors see each record once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from fapilog.core.serialization import SerializedView
from fapilog.core.worker import LoggerWorker
from fapilog.plugins.filters import filter_in_order
from fapilog.plugins.redactors import redact_in_order

from cwsink.frontends.inline.outlets import Outlets
from cwsink.frontends.inline.stages import DONE, ENRICHERS, FILTERS, PROCESSORS, REDACTORS, Entry


class Passed(dict[str, Any]):
    """A record that the thread that logged it has worked on.

    Attributes:
        stage: the first stage that is still to be done.
        at: how many plugins of that stage are done.
        view: the record serialized, where that is what sinks get.
        done: the `id` of each sink that has it.
    """

    __slots__ = ("at", "done", "stage", "view")

    def __init__(
        self, entry: Entry, stage: int = DONE, at: int = 0, view: Any = None, done: frozenset[int] = frozenset()
    ) -> None:
        super().__init__(entry)
        self.stage = stage
        self.at = at
        self.view = None if view is None else PassedView(view.data, done)
        self.done = done


class PassedView(SerializedView):
    """A serialized record that the processors are done with, and the sinks that have it."""

    def __init__(self, data: bytes, done: frozenset[int]) -> None:
        super().__init__(data)
        self.done = done


def teach(worker: LoggerWorker, outlets: Outlets, filters: Callable[[], Any], redactors: Callable[[], Any]) -> None:
    """Have a worker of fapilog's do with a `Passed` record only what is left to do."""
    metrics = worker._metrics
    apply_filters, apply_enrichers, apply_redactors = (
        worker._apply_filters,
        worker._apply_enrichers,
        worker._apply_redactors,
    )
    try_serialize, apply_processors = worker._try_serialize, worker._apply_processors
    write, write_serialized = worker._sink_write, worker._sink_write_serialized

    async def filters_left(entry: Entry) -> Entry | None:
        if not isinstance(entry, Passed):
            return await apply_filters(entry)
        if entry.stage > FILTERS:
            return entry
        return await filter_in_order(dict(entry), filters()[entry.at :], metrics=metrics)

    async def enrichers_left(entry: Entry) -> Entry:
        if isinstance(entry, Passed) and entry.stage > ENRICHERS:
            return entry
        return await apply_enrichers(dict(entry))

    async def redactors_left(entry: Entry) -> Entry | None:
        if not isinstance(entry, Passed) or entry.stage < REDACTORS:
            return await apply_redactors(entry)
        if entry.stage > REDACTORS:
            return entry
        return await redact_in_order(dict(entry), redactors()[entry.at :], metrics=metrics)

    async def serialize_left(entry: Entry) -> tuple[Any, bool]:
        if isinstance(entry, Passed) and entry.stage > PROCESSORS:
            return entry.view, False
        return await try_serialize(entry)

    async def processors_left(view: SerializedView) -> SerializedView:
        return view if isinstance(view, PassedView) else await apply_processors(view)

    async def write_left(entry: Entry) -> None:
        if isinstance(entry, Passed) and entry.done:
            await outlets.write_rest(entry, level_of(entry), entry.done, serialized=False)
        else:
            await write(entry)

    async def write_serialized_left(view: SerializedView) -> None:
        if isinstance(view, PassedView) and view.done:
            await outlets.write_rest(view, level_of_view(view), view.done, serialized=True)
        elif write_serialized is not None:
            await write_serialized(view)

    vars(worker).update(
        _apply_filters=filters_left,
        _apply_enrichers=enrichers_left,
        _apply_redactors=redactors_left,
        _try_serialize=serialize_left,
        _apply_processors=processors_left,
        _sink_write=write_left,
        _sink_write_serialized=None if write_serialized is None else write_serialized_left,
    )


def level_of(entry: Entry) -> str:
    """Return the level by which fapilog routes an entry."""
    return str(entry.get("level", "INFO"))


def level_of_view(view: object) -> str:
    """Return the level by which fapilog routes what it has serialized; 0.18.1 says INFO of each."""
    return str(getattr(view, "level", None) or "INFO")
