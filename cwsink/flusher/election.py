"""An election: a process stands for election for one spool, and delivers while it leads.

Every process that delivers hosts this class: the flusher that starts by itself, `cwsink run`, `cwsink flush` and
`cwsink replay`. An election is a thread that tries to take the spool's lease several times a second. With the lease it
leads until it is told to leave, until another process supersedes it, or until the spool is gone.

When it begins to lead, it reads from the spool how to send (cwsink.spool.sending). When a writer leaves other settings
there, the leader ends after the request that is under way, and leads anew with these.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.errors import SpoolError
from cwsink.flusher import adoption
from cwsink.flusher.delivery import Stopped
from cwsink.flusher.flusher import Flusher, Orders
from cwsink.spool import hurry, lease, sending, survey
from cwsink.spool.cursor import Fenced
from cwsink.spool.directory import SpoolDirectory, open_existing

# The host of an election: the flusher that starts by itself; `cwsink run`; `cwsink flush`; `flush --once` or `replay`.
Kind = Literal["own", "run", "service", "once"]

_TROUBLE_SECONDS: Final = 1.0
_HANDOVER_POLL_SECONDS: Final = 0.02
# How often this process asks another leader to hurry while it waits to leave.
_ASK_SECONDS: Final = 0.5
# A leader that could not deliver lets others try, at first for so long, then for twice that, and so on.
_FIRST_STAY_OUT_SECONDS: Final = 30.0
_LONGEST_STAY_OUT_SECONDS: Final = 600.0


class Election:
    """Stands for election for one spool, and leads it.

    Attributes:
        directory: the spool. It is opened anew if it was removed and made again.
        config: how to send.
        epoch: the epoch of its leadership, or 0 while it does not lead.
        trouble: what kept it from leading when it tried last, or None.
        pace: the most records to send in a second; None for no limit.
    """

    def __init__(
        self, directory: SpoolDirectory, *, kind: Kind, in_a_hurry: bool = False, pace: float | None = None
    ) -> None:
        """Prepare; `start` begins.

        Args:
            directory: the spool.
            kind: which program hosts the election. `cwsink status` shows it.
            in_a_hurry: send records without waiting for batch_size or batch_timeout_seconds.
            pace: the most records to send in a second; None for no limit. With a pace it adopts no orphan.

        Raises:
            ConfigError: the spool has no settings, and `FAPILOG_CLOUDWATCH__*` are wrong.
        """
        self.directory = directory
        self.config: SinkConfig = sending.config_of(directory)
        self.epoch = 0
        self.trouble: str | None = None
        self.pace = pace
        self._kind: Kind = kind
        self._in_a_hurry = in_a_hurry
        self._is_mute = False
        self._leaving = threading.Event()
        self._stand_at = 0.0
        self._stay_out_seconds = _FIRST_STAY_OUT_SECONDS
        self._drain_until: float | None = None
        self._orders: Orders | None = None
        self._flusher: Flusher | None = None
        self._thread = threading.Thread(target=self._stand, name=f"cwsink-{kind}", daemon=True)

    def start(self) -> None:
        """Begin to stand for election."""
        self._thread.start()

    @property
    def is_started(self) -> bool:
        """Tell whether `start` was called, even if the election has ended since."""
        return self._thread.ident is not None

    def leave(self, drain_seconds: float) -> None:
        """Deliver the rest for at most `drain_seconds`, and end. A later call sets the time anew."""
        self._drain_until = time.monotonic() + drain_seconds
        self._leaving.set()
        self._instruct()

    def give_way(self) -> None:
        """Give up the lease, because this process cannot deliver, and do not try to take it for a while."""
        self._stand_at = time.monotonic() + self._stay_out_seconds
        self._stay_out_seconds = min(2 * self._stay_out_seconds, _LONGEST_STAY_OUT_SECONDS)
        if (orders := self._orders) is not None:
            orders.drain(0.0)

    def hurry(self) -> None:
        """If it leads, have it send what is there without waiting for more."""
        if (orders := self._orders) is not None:
            orders.hurry.set()

    def has_ended(self, timeout_seconds: float) -> bool:
        """Wait at most `timeout_seconds` for its end, after any request in flight. Tell whether it has ended."""
        self._thread.join(timeout_seconds)
        return not self._thread.is_alive()

    @property
    def request_seconds(self) -> float:
        """How many seconds a request in flight may take."""
        return self.config.connect_timeout_seconds + self.config.read_timeout_seconds

    @property
    def cannot_deliver(self) -> bool:
        """Tell whether it leads, and fails because of its credentials. Another process may have better ones."""
        flusher = self._flusher
        return flusher is not None and flusher.leader_state.obstacle in ("credentials", "denied")

    def went_mute(self) -> None:
        """Publish in leader.json, now or when it leads, that lines of this process reach nobody any more."""
        self._is_mute = True
        if (flusher := self._flusher) is not None:
            flusher.leader_state.went_mute()

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
            if time.monotonic() >= self._stand_at:
                self._try_to_lead()
            if self._leaving.wait(lease.TRY_SECONDS * (1 + random.random() / 2)):
                self._drain()
                return

    def _drain(self) -> None:
        """Deliver the rest at once, or wait while another leader does."""
        assert self._drain_until is not None, "told to leave"
        ask_at = 0.0
        while (now := time.monotonic()) < self._drain_until and survey.has_pending(self.directory):
            if self._try_to_lead():
                return
            if now >= ask_at:
                ask_at = now + _ASK_SECONDS
                hurry.ask(self.directory)
            time.sleep(_HANDOVER_POLL_SECONDS)

    def _try_to_lead(self) -> bool:
        """Lead if elected. Returns whether this process has led. Trouble is reported, and the caller tries again."""
        try:
            if not self.directory.is_present():
                self.directory = open_existing(self.directory.path)
            return self._lead_if_elected()
        except SpoolError:
            return False  # the spool is gone: there is nothing to flush until a writer makes it anew
        except Exception as error:
            self.trouble = f"{type(error).__name__}: {error}"
            report(
                f"flusher_{self.directory.path}",
                f"cannot flush {self.directory.path}: {self.trouble}. The records stay in the spool. It is tried "
                f"again every {_TROUBLE_SECONDS:.0f} s.",
            )
            self._leaving.wait(_TROUBLE_SECONDS)
            return False

    def _lead_if_elected(self) -> bool:
        claim = lease.Lease(self.directory)
        if not claim.try_acquire():
            return False
        try:
            while True:
                if not self._lead(claim).are_new_settings:
                    return True
        except Fenced:
            return False
        finally:
            claim.release()

    def _lead(self, claim: lease.Lease) -> _OrdersOfSpool:
        """Lead with the present settings until told to stop. Raises Fenced."""
        orders = _OrdersOfSpool(self.directory)
        try:
            self.config = sending.config_of(self.directory)
            flusher = Flusher(self.directory, self.config, claim, orders, kind=self._kind, pace=self.pace)
            self._orders, self._flusher = orders, flusher
            if self._is_mute:
                flusher.leader_state.went_mute()
            self._instruct()  # the host may have told it to leave while it was being elected
            self.epoch, self.trouble = flusher.epoch, None
            with self._adopting():
                flusher.lead()
        except Stopped:
            pass
        finally:
            self._orders = self._flusher = None
            self.epoch = 0
        return orders

    def _adopting(self) -> AbstractContextManager[None]:
        """While the block runs, also send the spools that nobody looks after, if the settings say so."""
        if not self.config.adopt_orphans or self.pace is not None:
            return nullcontext()
        return adoption.beside(self.directory, lambda orphan: Election(orphan, kind=self._kind, pace=adoption.PACE))


class _OrdersOfSpool(Orders):
    """Orders that also come from writers, by files in the spool: to hurry, and to lead anew with other settings."""

    def __init__(self, directory: SpoolDirectory) -> None:
        super().__init__()
        self._directory = directory
        self._settings = sending.stamp(directory)
        self._hurry = hurry.stamp(directory)
        self.are_new_settings = False

    def look(self) -> None:
        """See whether a writer asks to hurry, or has left other settings."""
        if (wish := hurry.stamp(self._directory)) != self._hurry:
            self._hurry = wish
            self.hurry.set()
        if sending.stamp(self._directory) != self._settings:
            self.are_new_settings = True

    @property
    def is_over(self) -> bool:
        """Tell whether to leave now, whether all is delivered or not."""
        return self.are_new_settings or super().is_over
