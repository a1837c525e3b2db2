"""`adopt_orphans`: a leader sends, beside its own, the spools nobody looks after.

A thread of its own, so that live records never wait for it, looks through the root every
`SCAN_SECONDS` for orphans (cwsink.spool.orphans) of the same owner and leads one at a time:

```text
lease of the orphan -> at most PACE records a second, for at most STINT_SECONDS
-> on to the next one; sooner if it is empty, if a process logs there again, or if we leave
```

Of several leaders that adopt, the orphan's own lease decides. An orphan that cannot be delivered
(no permission, a region out of reach) holds up the others for one stint in each round.
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

# Records a second, in about one request: 4 ms of a core.
PACE: Final = 1_000.0
STINT_SECONDS: Final = 60.0
SCAN_SECONDS: Final = 10.0
# A leader that only drains at the end of a short program adopts nothing.
_FIRST_SCAN_SECONDS: Final = 1.0
# How soon one that logs again has its spool back.
_LOOK_SECONDS: Final = 0.25


@contextlib.contextmanager
def beside(directory: SpoolDirectory, config: SinkConfig, *, kind: str) -> Iterator[None]:
    """Adopt orphans while the block leads `directory`, if the config says so; the end waits for nothing."""
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
    """Deliver all there is, then leave; or sooner, once `must_leave` says so."""

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
        stop: set it to have `run` return as soon as the request in flight is over.
    """

    def __init__(self, directory: SpoolDirectory, *, kind: str) -> None:
        self._own = directory
        self._kind = kind
        self._adopted: set[str] = set()
        self.stop = threading.Event()

    def run(self) -> None:
        """Adopt until told to stop."""
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
                with contextlib.suppress(CwsinkError, OSError):  # another user's, damaged, or just removed
                    directory = open_existing(path)
                    if orphans.is_orphan(directory):
                        yield directory

    def _try_to_adopt(self, directory: SpoolDirectory) -> None:
        """Send one orphan, for a stint. What goes wrong is said, and tried again in the next round."""
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
