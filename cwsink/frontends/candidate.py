"""This process's candidacy for leader: one thread for each spool, and the way out.

The only place that starts the flusher, and it imports it (and so boto3), and filelock, only when
nobody has the lease: a worker that never leads holds neither.

The thread begins with the first append in a process, never at import, and anew in a
forked child. It is started with `_thread`, not `threading`: the first append may be
made by a signal handler that interrupted `threading` itself, with its locks held.

At exit the last process out drains what is pending, the others just leave. Each lets go of its
attachment before it asks whether others are left: of several that leave at once, one stays to drain,
and it waits for a leader that is still on its way out. `atexit` does not run in multiprocessing's
children before Python 3.13; its `Finalize` does, everywhere. Neither runs in Celery's, which send a signal.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import sys
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from cwsink import native
from cwsink.config import SinkConfig
from cwsink.diagnostics import own_work, report
from cwsink.errors import ConfigError
from cwsink.frontends import importing
from cwsink.spool import descriptors, disk, lease, segment, survey
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

# How long it waits for such a leader only to take delivered segments away, which the next start does as well.
_TIDY_SECONDS: Final = 0.25

_candidates: dict[str, Candidate] = {}
_exit_registered = False
_exit_foreseen = False


def refuse_lambda() -> None:
    """Raise ConfigError in AWS Lambda: no thread runs between two calls, and the disk goes with the sandbox."""
    if os.environ.get("AWS_LAMBDA_FUNCTION_NAME") and os.environ.get("LAMBDA_TASK_ROOT"):
        raise ConfigError(
            "this is AWS Lambda, which freezes the process between two calls and throws its disk away: what is spooled "
            "would be late, or lost. Nothing is spooled. Log to stdout: Lambda sends that to CloudWatch itself."
        )


def foresee_exit() -> None:
    """Have the exit handled even if it brings the first append: fapilog's queue is emptied at exit."""
    global _exit_foreseen
    if not _exit_foreseen:
        _exit_foreseen = True
        # Part of boto3, and the one part that cannot be imported at exit, where a short program's leader
        # begins: threading then answers "can't register atexit after shutdown". 2 ms.
        import concurrent.futures.thread  # noqa: F401

        atexit.register(_leave_all)
        _foresee_end_of_celery_child()


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


def hurry_all() -> None:
    """Have what is pending sent at once, where the leader is here."""
    for candidate in list(_candidates.values()):
        candidate.hurry()


class Candidate:
    """Stands for election until the process ends."""

    def __init__(self, directory: SpoolDirectory, config: SinkConfig) -> None:
        self._directory = directory
        self._config = config
        self._attachment = Attachment(directory)
        self._rings: weakref.WeakSet[Ring] = weakref.WeakSet()
        self._leaving = native.Flag()
        self._orders: Orders | None = None
        self._drain_seconds: float | None = None
        self._ended = native.Flag()
        self._started = False
        self._has_left = False
        self._leave_until = 0.0

    def start(self) -> None:
        """Start the thread (once), unless flushing is left to another process."""
        if self._started:
            return
        self._started = True
        if self._config.flusher == "external":
            self._ended.set()
            return
        try:
            native.start_thread(self._stand)
        except RuntimeError as error:
            # No thread starts any more: Python 3.12 and later, at exit. `leave` drains by itself.
            self._ended.set()
            if isinstance(error, native.PatchedError):
                report("thread", f"cannot flush {self._directory.path}: {error}. The records stay in the spool.")

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

    def begin_to_leave(self) -> None:
        """Have the thread go: drain if nobody else is left, else just hand the lease on. Does not wait."""
        if self._has_left or self._config.flusher == "external":
            return
        self._has_left = True
        for ring in list(self._rings):
            ring.close()  # we may take long to end: who drains must not find a segment held by us
        self._drain_seconds = self._config.drain_timeout_seconds if self._attachment.leave() else 0.0
        self._leave_until = time.monotonic() + self._drain_seconds
        self._leaving.set()
        self._instruct()

    def leave(self) -> None:
        """Wait until it has gone. Bounded in time, by the moment when it began to leave."""
        if not self._leave_until:
            return
        left = max(0.0, self._leave_until - time.monotonic())
        self._leave_until = 0.0
        if self._ended.is_set():  # there is no thread
            self._drain_seconds = left
            self._drain()
        else:
            self._ended.wait(left + _LEAVE_SECONDS)

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
        """Deliver what is pending, and leave one segment, as soon as whoever leads now has gone."""
        began = time.monotonic()
        until = began + (self._drain_seconds or 0.0)
        while (left := until - time.monotonic()) > 0:
            self._drain_seconds = left
            is_tidy = len(segment.numbers(self._directory.ring)) <= 1 or time.monotonic() >= began + _TIDY_SECONDS
            # Asked first: who has never led would import boto3 for nothing, half a second.
            if (is_tidy and not survey.has_pending(self._directory)) or self._try_to_lead():
                return
            native.sleep(min(left, _DRAIN_POLL_SECONDS))

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
                    f"spool; it is tried again every {_TROUBLE_SECONDS:.0f} s.{native.advice()}",
                )
                if self._leaving.wait(_TROUBLE_SECONDS):
                    native.sleep(min(_LAST_TRIES_SECONDS, self._drain_seconds or 0.0))
            return False

    def _lead_if_elected(self) -> bool:
        with lease.vacancy(self._directory) as is_vacant:
            if not (is_vacant and self._load()):
                return False
        claim = lease.Lease(self._directory)
        if not claim.try_acquire():
            return False
        try:
            return self._lead(claim)
        finally:
            self._orders = None
            claim.release()

    def _load(self) -> bool:
        """Import what leading needs. False: the process ends, and it is not needed any more. Raises PatchedError."""
        native.refuse_late_patch()
        try:
            with descriptors.no_fork(), importing.interruptible():
                if self._drain_seconds == 0.0:  # told to leave, to others
                    return False
                import filelock  # noqa: F401

                from cwsink.flusher import adoption  # noqa: F401
                from cwsink.flusher.cloudwatch import load

                load()
                disk.load()
        except importing.Interrupted:
            return False
        return True

    def _lead(self, claim: lease.Lease) -> bool:
        from cwsink.flusher import adoption
        from cwsink.flusher.delivery import Stopped
        from cwsink.flusher.flusher import Flusher, Orders
        from cwsink.spool.cursor import Fenced

        try:
            orders = Orders()
            flusher = Flusher(
                self._directory, self._config, claim, orders, kind="thread", before_reclaim=self._refresh_rings
            )
            self._orders = orders
            self._instruct()  # the wish to leave may have come while we were being elected
            with adoption.beside(self._directory, self._config, kind="thread"):
                flusher.lead()
        except Fenced:
            return False
        except Stopped:
            pass
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
    _foresee_end_of_celery_child()
    atexit.register(_leave_all)


def _foresee_end_of_celery_child() -> None:
    """A child of Celery's pool ends by `os._exit`, past atexit and Finalize; there is a signal before that."""
    signals = sys.modules.get("celery.signals")
    if signals is not None:
        signals.worker_process_shutdown.connect(_leave_celery_child, weak=False, dispatch_uid="cwsink")


def _leave_celery_child(**_: object) -> None:
    _leave_all()


def _is_multiprocessing_child() -> bool:
    process = sys.modules.get("multiprocessing.process")
    return process is not None and process.parent_process() is not None


before_leaving: list[Callable[[], None]] = []
"""Called, in order, before the candidates leave: the drain of fapilog, the writers' last loss markers."""


def _leave_all() -> None:
    for call in before_leaving:
        with contextlib.suppress(Exception):
            call()
    leaving = list(_candidates.values())
    for candidate in leaving:  # all at once: several spools take no longer than one
        with contextlib.suppress(Exception):
            candidate.begin_to_leave()
    for candidate in leaving:
        with contextlib.suppress(Exception):
            candidate.leave()
    importing.interrupt()


def _forked() -> None:
    global _exit_registered
    _candidates.clear()
    _exit_registered = False


descriptors.after_fork(_forked)
