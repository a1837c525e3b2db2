"""A flusher of its own process: stands for election for one spool, and delivers while it leads.

Like a worker's candidate (cwsink.frontends.candidate), but it appends nothing, so it is not
attached to the spool, and it is told what to do by signals. The flusher, and with it boto3,
is imported only once the lease is won. It loads nothing of `cwsink.frontends`, so no fapilog.
"""

from __future__ import annotations

import os
import random
import threading
import time
from typing import TYPE_CHECKING, Final

from cwsink.config import ENVIRONMENT_PREFIX, SinkConfig, load_config
from cwsink.diagnostics import report
from cwsink.errors import SpoolError
from cwsink.spool import lease, survey
from cwsink.spool.directory import SpoolDirectory, SpoolFormat, open_existing

if TYPE_CHECKING:
    from cwsink.flusher.flusher import Orders

_TROUBLE_SECONDS: Final = 1.0
# A leader that is leaving, too, is gone by then; one that is not will deliver what we leave.
_HANDOVER_SECONDS: Final = 1.0
_HANDOVER_POLL_SECONDS: Final = 0.02


class DedicatedFlusher:
    """One spool's candidate in this process.

    Attributes:
        directory: the spool; opened anew if it was removed and made again.
        config: how to send.
        epoch: of its leadership; 0 while it does not lead.
        trouble: what went wrong when it led last, or None.
        pace: the most records to send in a second; None for as many as it takes.
    """

    def __init__(self, directory: SpoolDirectory, *, in_a_hurry: bool) -> None:
        """Raises ConfigError: `FAPILOG_CLOUDWATCH__*` are wrong.

        Args:
            directory: the spool.
            in_a_hurry: send what is there without waiting for batch_size or batch_timeout_seconds.
        """
        self.directory = directory
        self.config = config_for(directory.format)
        self.epoch = 0
        self.trouble: str | None = None
        self.pace: float | None = None
        self._in_a_hurry = in_a_hurry
        self._leaving = threading.Event()
        self._drain_until: float | None = None
        self._orders: Orders | None = None
        self._thread = threading.Thread(target=self._stand, name="cwsink-flush", daemon=True)

    def start(self) -> None:
        """Begin to stand for election."""
        self._thread.start()

    @property
    def is_started(self) -> bool:
        """Tell whether it has been started, ended or not."""
        return self._thread.ident is not None

    def leave(self, drain_seconds: float) -> None:
        """Deliver the rest, for at most this long, and end. A later call shortens it."""
        self._drain_until = time.monotonic() + drain_seconds
        self._leaving.set()
        self._instruct()

    def hurry(self) -> None:
        """Send what is there now without waiting for more, if it leads."""
        if (orders := self._orders) is not None:
            orders.hurry.set()

    def has_ended(self, timeout_seconds: float) -> bool:
        """Wait for the end for so long; tell whether it has come. A request in flight is waited for."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def request_seconds(self) -> float:
        """How long a request in flight may take."""
        return self.config.connect_timeout_seconds + self.config.read_timeout_seconds

    def _instruct(self) -> None:
        orders, until = self._orders, self._drain_until
        if orders is None:
            return
        if self._in_a_hurry:
            orders.hurry.set()
        if until is not None:
            orders.drain(max(0.0, until - time.monotonic()))

    def _stand(self) -> None:
        while True:
            self._try_to_lead()
            if self._leaving.wait(lease.TRY_SECONDS * (1 + random.random() / 2)):
                self._drain()
                return

    def _drain(self) -> None:
        """Deliver the rest if nobody else leads."""
        assert self._drain_until is not None, "told to leave"
        until = min(self._drain_until, time.monotonic() + _HANDOVER_SECONDS)
        while time.monotonic() < until and survey.has_pending(self.directory):
            if self._try_to_lead():
                return
            time.sleep(_HANDOVER_POLL_SECONDS)

    def _try_to_lead(self) -> bool:
        """Lead if elected. Returns whether this process has led; what goes wrong is said, and tried again."""
        try:
            if not self.directory.is_present():
                self.directory = open_existing(self.directory.path)
            return self._lead_if_elected()
        except SpoolError:
            return False  # it is gone: nothing to flush until somebody makes it again
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"
            report(
                "flusher",
                f"cannot flush {self.directory.path}: {self.trouble}. The records stay in the spool; it is tried "
                f"again every {_TROUBLE_SECONDS:.0f} s.",
            )
            self._leaving.wait(_TROUBLE_SECONDS)
            return False

    def _lead_if_elected(self) -> bool:
        claim = lease.Lease(self.directory)
        if not claim.try_acquire():
            return False
        from cwsink.flusher import adoption
        from cwsink.flusher.delivery import Stopped
        from cwsink.flusher.flusher import Flusher, Orders
        from cwsink.spool.cursor import Fenced

        try:
            orders = Orders()
            flusher = Flusher(self.directory, self.config, claim, orders, kind="process", pace=self.pace)
            self._orders = orders
            self._instruct()  # the wish to leave may have come while we were being elected
            self.epoch, self.trouble = flusher.epoch, None
            with adoption.beside(self.directory, self.config, kind="process"):
                flusher.lead()
        except Fenced:
            return False
        except Stopped:
            pass
        finally:
            self._orders = None
            self.epoch = 0
            claim.release()
        return True


def config_for(spool_format: SpoolFormat) -> SinkConfig:
    """Return how to send: the target as the spool's FORMAT has it, all else from the environment."""
    is_sized = os.environ.get(f"{ENVIRONMENT_PREFIX}SPOOL_MAX_BYTES")
    return load_config(**spool_format.settings(), spool_max_bytes=None if is_sized else spool_format.spool_max_bytes)
