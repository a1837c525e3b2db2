"""This process's candidacy for leader: one thread for each spool, and the way out.

The only place that starts the flusher, and it imports it (and so boto3) only once
the lease is won: a worker that never leads holds no client.

The thread begins with the first append in a process, never at import, and anew in a
forked child. It is started with `_thread`, not `threading`: the first append may be
made by a signal handler that interrupted `threading` itself, with its locks held.

At exit the last process out drains what is pending, the others just leave. Each lets go of its
attachment before it asks whether others are left: of several that leave at once, one stays to drain,
and it waits for a leader that is still on its way out. `atexit` does not run in multiprocessing's
children before Python 3.13; its `Finalize` does, everywhere.
"""

from __future__ import annotations

import _thread
import atexit
import contextlib
import os
import random
import sys
import time
import weakref
from collections.abc import Callable
from threading import Event
from typing import TYPE_CHECKING, Final

from cwsink.config import SinkConfig
from cwsink.diagnostics import own_work, report
from cwsink.spool import descriptors, lease, survey
from cwsink.spool.attachment import Attachment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.ring import Ring

if TYPE_CHECKING:
    from cwsink.flusher.flusher import Orders

# Runs before multiprocessing's own finalizers of queues and pools (priorities 10 and below).
_EXIT_PRIORITY: Final = 100
# A worker that is not the last one out must not be noticed leaving.
_LEAVE_SECONDS: Final = 0.05
_TROUBLE_SECONDS: Final = 1.0
# The last one out has a few seconds only, and still does not spin.
_LAST_TRIES_SECONDS: Final = 1.0
# How often the last one out looks whether a leader that is leaving, too, has gone.
_DRAIN_POLL_SECONDS: Final = 0.02

_candidates: dict[str, Candidate] = {}
_exit_registered = False
_exit_foreseen = False


def foresee_exit() -> None:
    """Have the exit handled even if it brings the first append: fapilog's queue is emptied at exit."""
    global _exit_foreseen
    if not _exit_foreseen:
        _exit_foreseen = True
        # Part of boto3, and the one part that cannot be imported at exit, where a short program's leader
        # begins: threading then answers "can't register atexit after shutdown". 2 ms.
        import concurrent.futures.thread  # noqa: F401

        atexit.register(_leave_all)


def stand(directory: SpoolDirectory, config: SinkConfig) -> Candidate:
    """Return this process's candidate for the spool; the first call makes it and starts its thread."""
    candidate = _candidates.get(directory.path)
    if candidate is None:
        _register_exit()
        mine = Candidate(directory, config)
        candidate = _candidates.setdefault(directory.path, mine)
        if candidate is not mine:  # another thread was first; two marks of one process would hide who is last
            mine.discard()
        candidate.start()
    else:
        candidate.renew(directory)
    return candidate


class Candidate:
    """Stands for election until the process ends."""

    def __init__(self, directory: SpoolDirectory, config: SinkConfig) -> None:
        self._directory = directory
        self._config = config
        self._attachment = Attachment(directory)
        self._rings: weakref.WeakSet[Ring] = weakref.WeakSet()
        self._leaving = Event()
        self._orders: Orders | None = None
        self._drain_seconds: float | None = None
        self._ended = Event()
        self._started = False
        self._has_left = False

    def start(self) -> None:
        """Start the thread (once), unless flushing is left to another process."""
        if self._started:
            return
        self._started = True
        if self._config.flusher == "external":
            self._ended.set()
            return
        try:
            _thread.start_new_thread(self._stand, ())
        except RuntimeError:
            # No thread starts any more: Python 3.12 and later, at exit. `leave` drains by itself.
            self._ended.set()

    def discard(self) -> None:
        """Take back what making it did."""
        self._attachment.close()

    def renew(self, directory: SpoolDirectory) -> None:
        """Attach again if the spool was removed and made anew."""
        if directory.format != self._directory.format:
            self._attachment.close()
            self._attachment = Attachment(directory)
            self._directory = directory

    def watch(self, ring: Ring) -> None:
        """Take a writer's ring along: before reclaiming it is asked to leave an old segment."""
        self._rings.add(ring)

    def hurry(self) -> None:
        """Send what is pending without waiting for more, if the leader is here."""
        if (orders := self._orders) is not None:
            orders.hurry.set()

    @property
    def is_leading(self) -> bool:
        """Tell whether the leader is in this process."""
        return self._orders is not None

    def leave(self) -> None:
        """Go: drain if nobody else is left, else just hand the lease on. Bounded in time."""
        if self._has_left or self._config.flusher == "external":
            return
        self._has_left = True
        timeout = self._config.drain_timeout_seconds if self._attachment.leave() else 0.0
        self._drain_seconds = timeout
        self._leaving.set()
        self._instruct()
        if self._ended.is_set():  # there is no thread
            self._drain()
        else:
            self._ended.wait(timeout + _LEAVE_SECONDS)

    def _instruct(self) -> None:
        """Pass the wish to leave on to the flusher, if there is one."""
        orders, seconds = self._orders, self._drain_seconds
        if orders is not None and seconds is not None:
            orders.drain(seconds)

    def _stand(self) -> None:
        pid = os.getpid()
        try:
            while os.getpid() == pid:
                self._attachment.hold()
                self._try_to_lead()
                if self._leaving.wait(lease.TRY_SECONDS * (1 + random.random() / 2)):
                    self._drain()
                    return
        finally:
            self._ended.set()

    def _drain(self) -> None:
        """Deliver what is pending, as soon as whoever leads now has gone."""
        until = time.monotonic() + (self._drain_seconds or 0.0)
        while (left := until - time.monotonic()) > 0:
            self._drain_seconds = left
            if self._try_to_lead() or not survey.has_pending(self._directory):
                return
            time.sleep(min(left, _DRAIN_POLL_SECONDS))

    def _try_to_lead(self) -> bool:
        """Lead if elected; whatever goes wrong is said, and tried again after a while: things get repaired.

        Returns whether this process has led, and was not superseded.
        """
        try:
            with own_work():
                return self._lead_if_elected()
        except Exception as error:
            if self._directory.is_present():
                report(
                    "flusher",
                    f"cannot flush {self._directory.path}: {type(error).__name__}: {error}. The records stay in the "
                    f"spool; it is tried again every {_TROUBLE_SECONDS:.0f} s.",
                )
                if self._leaving.wait(_TROUBLE_SECONDS):
                    time.sleep(min(_LAST_TRIES_SECONDS, self._drain_seconds or 0.0))
            return False

    def _lead_if_elected(self) -> bool:
        claim = lease.Lease(self._directory)
        if not claim.try_acquire():
            return False
        with descriptors.no_fork():
            from cwsink.flusher.cloudwatch import load
            from cwsink.flusher.delivery import Stopped
            from cwsink.flusher.flusher import Flusher, Orders
            from cwsink.spool.cursor import Fenced

            load()
        try:
            orders = Orders()
            flusher = Flusher(
                self._directory, self._config, claim, orders, kind="thread", before_reclaim=self._refresh_rings
            )
            self._orders = orders
            self._instruct()  # the wish to leave may have come while we were being elected
            flusher.lead()
        except Fenced:
            return False
        except Stopped:
            pass
        finally:
            self._orders = None
            claim.release()
        return True

    def _refresh_rings(self) -> None:
        for ring in list(self._rings):
            ring.refresh()


def _register_exit() -> None:
    """Have `_leave_all` called when this process ends, whoever started it."""
    global _exit_registered
    if _exit_registered:
        return
    _exit_registered = True
    # Only if the module is there already: a child of multiprocessing has it, others need not pay for it.
    util = sys.modules.get("multiprocessing.util")
    if util is not None and _is_multiprocessing_child():
        util.Finalize(None, _leave_all, exitpriority=_EXIT_PRIORITY)
    billiard = sys.modules.get("billiard.util")  # Celery's fork of multiprocessing
    if billiard is not None:
        billiard.Finalize(None, _leave_all, exitpriority=_EXIT_PRIORITY)
    atexit.register(_leave_all)


def _is_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


before_leaving: list[Callable[[], None]] = []
"""Called, in order, before the candidates leave: the drain of fapilog, the writers' last loss markers."""


def _leave_all() -> None:
    for call in before_leaving:
        with contextlib.suppress(Exception):
            call()
    until = time.monotonic() + 60.0
    for candidate in list(_candidates.values()):
        if time.monotonic() < until:
            with contextlib.suppress(Exception):
                candidate.leave()


def _forked() -> None:
    global _exit_registered
    _candidates.clear()
    _exit_registered = False


descriptors.after_fork(_forked)
