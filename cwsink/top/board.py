"""What `cwsink top` shows, and what the keys change about it."""

from __future__ import annotations

import time
from collections import deque
from typing import Final

from cwsink.errors import SpoolError
from cwsink.spool.attachment import attached_pids
from cwsink.spool.directory import open_existing
from cwsink.spool.follower import Follower
from cwsink.spool.record import Event
from cwsink.spool.stats import look_below
from cwsink.top.trend import SORTS, Row, Trend

LOOK_SECONDS: Final = 1.0
HELP: Final = "q quit, s sort, j k or arrows choose, t or Enter tail the chosen one, Esc back, h help"
_MOST_LINES: Final = 500


class Board:
    """The spools at a path.

    Attributes:
        rows: all spools, sorted.
        unreadable: the others, with the reasons.
        sort: the order, one of `SORTS`.
        chosen: the number of the row that is chosen.
        has_help: the help is shown.
        tailed: the spool whose records are shown instead; None: none.
        records: its last ones.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._trend = Trend()
        self._follower: Follower | None = None
        self.rows: list[Row] = []
        self.unreadable: dict[str, str] = {}
        self.sort = SORTS[0]
        self.chosen = 0
        self.has_help = False
        self.tailed: Row | None = None
        self.records: deque[Event] = deque(maxlen=_MOST_LINES)

    def look(self) -> None:
        """Look at all spools. Raises SpoolError: their directory cannot be read."""
        found = look_below(self._path)
        writers = {spool.path: _writers(spool.path) for spool in found.spools}
        self._trend.add(found.spools, time.monotonic(), writers)
        self.unreadable = found.unreadable
        self._read()
        self._order()

    def obey(self, key: str) -> bool:
        """Do what a key says. False: it says to end."""
        if key in ("q", "Q"):
            return False
        if key == "esc":
            self.has_help = False
            self._tail(None)
        elif key in ("h", "?"):
            self.has_help = not self.has_help
        elif key == "s":
            self.sort = SORTS[(SORTS.index(self.sort) + 1) % len(SORTS)]
        elif key in ("j", "down", "k", "up"):
            self.chosen += 1 if key in ("j", "down") else -1
        elif key in ("t", "enter") and self.rows and self.tailed is None:
            self._tail(self.rows[self.chosen])
        self._order()
        return True

    def close(self) -> None:
        """Close what is open."""
        self._tail(None)

    def _order(self) -> None:
        self.rows = self._trend.rows(self.sort)
        self.chosen = max(0, min(self.chosen, len(self.rows) - 1))

    def _tail(self, row: Row | None) -> None:
        if self._follower is not None:
            self._follower.close()
        self._follower, self.tailed = None, row
        self.records.clear()
        if row is not None:
            try:
                directory = open_existing(row.spool.path, read_only=True)
                self._follower = Follower(directory, all_present=True, missed=lambda _: None)
                self._read()
            except (SpoolError, OSError) as error:
                self.unreadable[row.spool.path] = str(error)
                self._tail(None)

    def _read(self) -> None:
        if self._follower is not None:
            self.records.extend(self._follower.read())


def _writers(path: str) -> int | None:
    try:
        pids = attached_pids(open_existing(path, read_only=True))
    except (SpoolError, OSError):
        return None
    return None if pids is None else len(pids)
