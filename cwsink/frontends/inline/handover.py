"""Hands a record over to fapilog's queue, and teaches fapilog's worker to go on with it.

The thread that logs hands over a record that has other sinks than ours, or, rarely, one that it
could not finish. Such a record is a dict, as fapilog's own are, which also says which stages are
done. Filters, samplers and redactors must see each record once. Therefore the worker of such a
logger runs only the stages that are left.
"""

from __future__ import annotations

from typing import Any, Final

from fapilog.core.serialization import SerializedView
from fapilog.core.worker import LoggerWorker
from fapilog.plugins.filters import filter_in_order
from fapilog.plugins.redactors import redact_in_order

from cwsink.frontends.inline.outlets import Outlets
from cwsink.frontends.inline.stages import DONE, ENRICHERS, FILTERS, PROCESSORS, REDACTORS, Entry


class Passed(dict[str, Any]):
    """A record that has gone through some stages in the thread that logged it.

    Attributes:
        stage: the first stage that is still to be done.
        at: how many plugins of that stage are done.
        view: the serialized record, if sinks get that.
        done: the `id` of each sink that has the record.
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
    """A serialized record that has gone through the processors, and the `id` of each sink that has it."""

    def __init__(self, data: bytes, done: frozenset[int]) -> None:
        super().__init__(data)
        self.done = done


class Remainder:
    """Methods that take the place of a worker's own, and run only the stages that a record has still to go through."""

    def __init__(self, worker: LoggerWorker, sinks: Outlets, logger: Any) -> None:
        self._sinks = sinks
        self._logger = logger
        self._metrics = worker._metrics
        self._own = {name: getattr(worker, name) for name in _REPLACED}

    def teach(self, worker: LoggerWorker) -> None:
        """Put the methods of this object in the place of the worker's own."""
        vars(worker).update((name, getattr(self, name[1:])) for name in _REPLACED if self._own[name] is not None)

    async def apply_filters(self, entry: Entry) -> Entry | None:
        """Run the filters that have not seen the record. None: one of them has dropped it."""
        if not isinstance(entry, Passed):
            kept: Entry | None = await self._own["_apply_filters"](entry)
            return kept
        if entry.stage > FILTERS:
            return entry
        return await filter_in_order(dict(entry), self._logger._filters_snapshot[entry.at :], metrics=self._metrics)

    async def apply_enrichers(self, entry: Entry) -> Any:
        """Run the enrichers, if they have not run."""
        if isinstance(entry, Passed) and entry.stage > ENRICHERS:
            return entry
        return await self._own["_apply_enrichers"](entry)

    async def apply_redactors(self, entry: Entry) -> Any:
        """Run the redactors that have not seen the record."""
        if not isinstance(entry, Passed) or entry.stage < REDACTORS:
            return await self._own["_apply_redactors"](entry)
        if entry.stage > REDACTORS:
            return entry
        return await redact_in_order(dict(entry), self._logger._redactors_snapshot[entry.at :], metrics=self._metrics)

    async def try_serialize(self, entry: Entry) -> Any:
        """Serialize the record, if that is not done."""
        if isinstance(entry, Passed) and entry.stage > PROCESSORS:
            return entry.view, False
        return await self._own["_try_serialize"](entry)

    async def apply_processors(self, view: SerializedView) -> Any:
        """Run the processors, if they have not run."""
        return view if isinstance(view, PassedView) else await self._own["_apply_processors"](view)

    async def sink_write(self, entry: Entry) -> None:
        """Write the record to the sinks that do not have it."""
        if isinstance(entry, Passed) and entry.done:
            await self._sinks.write_rest(entry, None, entry.done)
        else:
            await self._own["_sink_write"](entry)

    async def sink_write_serialized(self, view: SerializedView) -> None:
        """Write the serialized record to the sinks that do not have it."""
        if isinstance(view, PassedView) and view.done:
            await self._sinks.write_rest({}, view, view.done)
        else:
            await self._own["_sink_write_serialized"](view)


_REPLACED: Final = tuple(
    "_apply_filters _apply_enrichers _apply_redactors _try_serialize _apply_processors _sink_write "
    "_sink_write_serialized".split()
)
