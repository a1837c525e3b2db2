"""`adopt_orphans`: a leader also sends the spools beside its own that nobody looks after.

Live records must never wait for old ones. So the adopter is a thread of its own. Every `SCAN_SECONDS` it looks
through the root for orphans (cwsink.spool.orphans) of the same owner, and leads one at a time:

```text
lease of the orphan -> at most PACE records a second, for at most STINT_SECONDS
-> on to the next one; sooner if the orphan is empty, if a process logs there again, or if the leader stops
```

If several leaders adopt, the orphan's own lease decides between them. An orphan that cannot be delivered (no
permission, a region out of reach) holds up the other orphans for one stint in each round.
"""

from __future__ import annotations

import contextlib
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import Final

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.errors import CwsinkError
from cwsink.flusher.delivery import Stopped
from cwsink.flusher.flusher import Flusher, Orders
from cwsink.spool import cursor, orphans, sending
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.cursor import Fenced
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.spool.lease import Lease

# Records a second. This is about one request a second, which takes 4 ms of a core.
PACE: Final = 1_000.0
STINT_SECONDS: Final = 60.0
SCAN_SECONDS: Final = 10.0
# A leader that only drains at the end of a short program has ended before the first look, and adopts nothing.
_FIRST_SCAN_SECONDS: Final = 1.0
# How often the adopter looks whether a process logs to the orphan again, which then gets its spool back.
_LOOK_SECONDS: Final = 0.25


@contextlib.contextmanager
def beside(directory: SpoolDirectory, config: SinkConfig, *, kind: str) -> Iterator[None]:
    """Adopt orphans while the block leads `directory`, if the config says so. Its end waits for nothing."""
    if not config.adopt_orphans:
        yield
        return
    adopter = Adopter(directory, kind=kind)
    threading.Thread(target=adopter.run, name="cwsink-adopter", daemon=True).start()
    try:
        yield
    finally:
        adopter.stop.set()


class _Stint(Orders):
    """Orders to deliver all there is and leave, or to leave sooner, once `must_leave` says so."""

    def __init__(self, must_leave: Callable[[], bool]) -> None:
        super().__init__()
        self._must_leave = must_leave
        self.drain(math.inf)

    @property
    def is_over(self) -> bool:
        """Tell whether to leave now, delivered or not."""
        return self._must_leave()


class Adopter:
    """Adopts the orphans that lie in the same root as one spool.

    Attributes:
        stop: set it, and `run` returns as soon as the request in flight is over.
    """

    def __init__(self, directory: SpoolDirectory, *, kind: str) -> None:
        self._own = directory
        self._kind = kind
        self._adopted: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        """Adopt orphans until `stop` is set."""
        wait_seconds = _FIRST_SCAN_SECONDS
        while not self.stop.wait(wait_seconds):
            wait_seconds = SCAN_SECONDS
            for directory in self._orphans():
                self._try_to_adopt(directory)

    def _orphans(self) -> Iterator[SpoolDirectory]:
        with contextlib.suppress(CwsinkError, OSError):
            for path in find_spools(os.path.dirname(self._own.path)):
                if self.stop.is_set():
                    return
                if path == self._own.path:
                    continue
                with contextlib.suppress(CwsinkError, OSError):  # it is another user's, or damaged, or was just removed
                    directory = open_existing(path)
                    if orphans.is_orphan(directory):
                        yield directory

    def _try_to_adopt(self, directory: SpoolDirectory) -> None:
        """Send one orphan for a stint. If anything goes wrong, say so; the next round tries again."""
        claim = Lease(directory)
        try:
            if claim.try_acquire():
                self._adopt(directory, claim)
        except Exception as error:
            if directory.is_present():
                report(
                    f"adopt_{directory.path}",
                    f"cannot adopt {directory.path}: {type(error).__name__}: {error}. Its records stay there.",
                )
        finally:
            claim.release()

    def _adopt(self, directory: SpoolDirectory, claim: Lease) -> None:
        before = cursor.read(directory.cursor).ledger.delivered
        if directory.path not in self._adopted:
            self._adopted.add(directory.path)
            spool_format = directory.format
            report(
                f"adopt_{directory.path}",
                f"adopts the orphan {directory.path}, written by host {spool_format.host}: it is sent to "
                f"{spool_format.log_group_name} at up to {PACE:,.0f} records a second.",
            )
        with contextlib.suppress(Stopped, Fenced):
            orders = _Stint(self._leave_when(directory))
            Flusher(directory, sending.config_of(directory), claim, orders, kind=self._kind, pace=PACE).lead()
            if not orders.is_over:
                self._adopted.discard(directory.path)
                orphans.give_back(directory)
                delivered = cursor.read(directory.cursor).ledger.delivered - before
                report(
                    f"adopted_{directory.path}",
                    f"the orphan {directory.path} is done: {delivered:,} records were delivered in this go.",
                )

    def _leave_when(self, directory: SpoolDirectory) -> Callable[[], bool]:
        until = time.monotonic() + STINT_SECONDS
        look_at = 0.0
        is_wanted = False

        def must_leave() -> bool:
            nonlocal look_at, is_wanted
            now = time.monotonic()
            if not is_wanted and now >= look_at:
                look_at = now + _LOOK_SECONDS
                is_wanted = is_anyone_attached(directory)
            return is_wanted or now >= until or self.stop.is_set()

        return must_leave
