"""`adopt_orphans`: a leader also sends the spools beside its own that nobody looks after.

Live records must never wait for old ones. So the adopter is a thread of its own. Every `SCAN_SECONDS` it looks
through the root for orphans (cwsink.spool.orphans) of the same owner, and stands for election in one at a time:

```text
an election of the orphan -> at most PACE records a second, for at most STINT_SECONDS
-> on to the next one; sooner if the orphan is empty, if a process logs there again, or if the leader stops
```

Another container with our uid may have planted a spool, whose FORMAT names a server of its own, or whose settings.json
names a role of its own. To send it there would give away our session token. So a leader adopts only what goes to the
same endpoint as its own spool, by the same role and profile. The files may be exchanged at any moment, so this is
looked at each time that an orphan's settings are read. `cwsink replay` sends the others, if a person wants it.

If several leaders adopt, the orphan's own lease decides between them. An orphan that cannot be delivered (no
permission, a region out of reach) holds up the other orphans for one stint in each round.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from typing import Final, Protocol

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.errors import ConfigError, CwsinkError
from cwsink.flusher.claim import Lease
from cwsink.flusher.instructions import config_of
from cwsink.interruption import suppress
from cwsink.spool import cursor, disk, orphans, segment, survey
from cwsink.spool.attachment import is_anyone_attached
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.spool.open_segment import OpenSegment

# Records a second. This is about one request a second, which takes 4 ms of a core.
PACE: Final = 1_000.0
STINT_SECONDS: Final = 60.0
SCAN_SECONDS: Final = 10.0
# A leader that only drains at the end of a short program has ended before the first look, and adopts nothing.
_FIRST_SCAN_SECONDS: Final = 1.0
# How often the adopter looks whether a process logs to the orphan again, which then gets its spool back.
_LOOK_SECONDS: Final = 0.25


ConfigOf = Callable[[SpoolDirectory], SinkConfig]


class OrphansElection(Protocol):
    """What the adopter asks of an election, its own and those that it has for orphans (cwsink.flusher.election)."""

    directory: SpoolDirectory
    config: SinkConfig
    config_of: ConfigOf

    def start(self) -> None:
        """Begin to stand for election."""

    def leave(self, drain_seconds: float) -> None:
        """Deliver what is there for at most `drain_seconds`, and end."""

    def has_ended(self, timeout_seconds: float) -> bool:
        """Wait at most `timeout_seconds` for its end. Tell whether it has ended."""


Elect = Callable[[SpoolDirectory], OrphansElection]


@contextlib.contextmanager
def beside(leading: OrphansElection, elect: Elect) -> Iterator[None]:
    """Adopt the orphans beside its spool while the block leads. Its end waits for nothing."""
    adopter = Adopter(leading.directory, leading.config, elect)
    try:
        threading.Thread(target=adopter.run, name="cwsink-adopter", daemon=True).start()
    except RuntimeError as error:  # no thread can be started now, and live records must not wait for that
        report(
            f"adopt_{leading.directory.path}",
            f"cannot adopt orphans beside {leading.directory.path}: {error}{disk.limit_of(error)}. Their records stay "
            "where they are. It is tried again when this process leads that spool anew.",
        )
    try:
        yield
    finally:
        adopter.stop.set()


class Adopter:
    """Adopts the orphans that lie in the same root as one spool.

    Attributes:
        stop: set it, and `run` returns as soon as the request in flight is over.
    """

    def __init__(self, directory: SpoolDirectory, config: SinkConfig, elect: Elect) -> None:
        """Prepare; `run` adopts. `directory` and `config` are those of the spool that this process leads."""
        self._own = directory
        self._account = _account(config)
        self._elect = elect
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
                # It is another user's, or damaged, or was just removed, or goes elsewhere.
                with contextlib.suppress(CwsinkError, OSError):
                    directory = open_existing(path)
                    self._config_of(directory)
                    if orphans.is_orphan(directory):
                        yield directory

    def _config_of(self, orphan: SpoolDirectory) -> SinkConfig:
        """Return how to send an orphan. Raises ConfigError: it does not go where our own spool goes."""
        config = config_of(orphan)
        if _account(config) != self._account:
            raise ConfigError("it goes to another endpoint, or by another role or profile.")
        return config

    def _try_to_adopt(self, directory: SpoolDirectory) -> None:
        """Send one orphan for a stint. If anything goes wrong, say so; the next round tries again."""
        try:
            self._adopt(directory)
        except Exception as error:
            if directory.is_present():
                report(
                    f"adopt_{directory.path}",
                    f"cannot adopt {directory.path}: {type(error).__name__}: {error}{disk.limit_of(error)}. "
                    "Its records stay there.",
                )

    def _adopt(self, directory: SpoolDirectory) -> None:
        before = cursor.read(directory.cursor).ledger.delivered
        election = self._elect(directory)
        election.config_of = self._config_of
        if directory.path not in self._adopted:
            self._adopted.add(directory.path)
            spool_format = directory.format
            report(
                f"adopt_{directory.path}",
                f"adopts the orphan {directory.path}, written by host {spool_format.host}: it is sent to "
                f"{spool_format.log_group_name} at up to {PACE:,.0f} records a second.",
            )
        election.start()
        election.leave(STINT_SECONDS)
        while not election.has_ended(_LOOK_SECONDS):
            if self.stop.is_set() or is_anyone_attached(directory):
                election.leave(0.0)
        if not survey.has_pending(directory):
            self._adopted.discard(directory.path)
            give_back(directory)
            delivered = cursor.read(directory.cursor).ledger.delivered - before
            report(
                f"adopted_{directory.path}",
                f"the orphan {directory.path} is done: {delivered:,} records were delivered in this go.",
            )


def _account(config: SinkConfig) -> tuple[str | None, ...]:
    """Return what says whose credentials go where."""
    return config.endpoint_url, config.profile, config.role_arn, config.external_id


def give_back(directory: SpoolDirectory) -> None:
    """Give the disk blocks of a spool back in which all is settled, unless another process leads it. Never raises.

    The last segment of a spool stays, with the blocks that were reserved for it. There may be an orphan for each
    container that ever ran, and none of them may be needed again: their reserved blocks would fill the disk. If a
    writer has the segment open, or opens it now, its lock keeps us out.

    With `keep_delivered` the last segment is all there is of the records in it. They stay there, and only the reserved
    blocks go.
    """
    claim = Lease(directory)
    with contextlib.ExitStack() as stack, suppress(OSError):
        is_kept = True  # if nobody can tell
        with suppress(ConfigError):
            is_kept = config_of(directory).keep_delivered is not None
        if not claim.try_acquire():
            return
        stack.callback(claim.release)
        committed = cursor.read(directory.cursor).committed()
        for number in segment.numbers(directory.ring):
            if (opened := OpenSegment.at(directory.ring, number, os.O_RDWR)) is None:
                continue
            with contextlib.closing(opened):
                size = opened.size()
                if opened.finalise() and opened.is_final and size <= committed.get(opened.key, 0) == opened.size():
                    if not is_kept:
                        opened.hollow(size)
                    os.ftruncate(opened.fd, size)  # the same size: the blocks reserved behind it are given back
