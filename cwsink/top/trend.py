"""How spools move: rates from two looks, and a history of many (pure)."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from cwsink.spool.stats import SpoolStats

# Five minutes of looks.
_KEPT: Final = 300
_RANKS: Final = {"circuit_open": 0, "stalled": 1, "no_leader": 2, "retrying": 3, "delivering": 4, "idle": 5}

SORTS: Final = ("worst", "name", "in", "out", "lag", "fill")


@dataclass(frozen=True)
class Row:
    """A spool, and how it moves. Rates are of records a second; None until there were two looks.

    Attributes:
        spool: the last look.
        into: how fast records are appended.
        out: how fast records are settled.
        history: `out` at each look, oldest first.
        writers: how many processes are attached; None if that cannot be told.
    """

    spool: SpoolStats
    into: float | None
    out: float | None
    history: Sequence[float]
    writers: int | None

    @property
    def lag_seconds(self) -> float:
        """How long the oldest pending record has waited."""
        return self.spool.oldest_pending_seconds or 0.0


class Trend:
    """All spools, from look to look."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[float, SpoolStats]] = {}
        self._history: dict[str, deque[float]] = {}
        self._rows: list[Row] = []

    def add(
        self, spools: Iterable[SpoolStats], at_seconds: float, writers: Mapping[str, int | None] | None = None
    ) -> None:
        """Add a look at all spools, at a time of a monotonic clock. A spool that is not among them is forgotten.

        `writers`: of each path, how many processes are attached.
        """
        found = {spool.path: spool for spool in spools}
        counts = writers or {}
        self._rows = [self._row(spool, at_seconds, counts.get(spool.path)) for spool in found.values()]
        self._last = {path: (at_seconds, spool) for path, spool in found.items()}
        self._history = {path: self._history[path] for path in found}

    def rows(self, sort: str = "worst") -> list[Row]:
        """Return the rows in an order of `SORTS`: by name, or the largest first."""
        return sorted(self._rows, key=lambda row: (*_key(row, sort), row.spool.log_group_name, row.spool.path))

    def _row(self, spool: SpoolStats, at: float, writers: int | None) -> Row:
        history = self._history.setdefault(spool.path, deque(maxlen=_KEPT))
        before_at, before = self._last.get(spool.path, (at, spool))
        # A spool that was removed and made anew counts from 0 again.
        if (seconds := at - before_at) <= 0 or spool.appended < before.appended or _settled(spool) < _settled(before):
            return Row(spool, None, None, tuple(history), writers)
        into = (spool.appended - before.appended) / seconds
        out = (_settled(spool) - _settled(before)) / seconds
        history.append(out)
        return Row(spool, into, out, tuple(history), writers)


def _settled(spool: SpoolStats) -> int:
    return spool.delivered + sum(spool.dead_lettered.values())


def _key(row: Row, sort: str) -> tuple[float, ...]:
    if sort == "worst":
        return _RANKS[row.spool.state], -row.spool.lost, -row.lag_seconds
    by = {"in": row.into or 0.0, "out": row.out or 0.0, "lag": row.lag_seconds, "fill": row.spool.fill}
    return (-by[sort],) if sort in by else ()
