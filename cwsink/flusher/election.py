"""An election: a process stands for election for one spool, and delivers while it leads.

Every process that delivers hosts this class: the flusher that starts by itself, `cwsink run`, `cwsink flush` and
`cwsink replay`. An election is a thread that tries to take the spool's lease several times a second. With the lease it
leads until it is told to leave or to rest (cwsink.flusher.turns), until another process supersedes it, or until the
spool is gone.

When it begins to lead, it reads from the spool how to send (cwsink.spool.sending). When a writer leaves other settings
there, the leader ends after the request that is under way, and leads anew with these.

**Who cannot deliver gives way.** The credentials, the role, the region or the network of one process may be wrong, and
those of another one on this spool right. So a process that stands, and sees in leader.json that the leader fails,
challenges it (cwsink.spool.lease). A leader that has failed for some seconds and is challenged gives up the lease. It
stays out for 30 s, the next time for twice that, up to 600 s, until CloudWatch has taken something of it. If nobody
leads although it has given way, nobody else could. Then it takes the lease again after 3 s. So nothing waits for a
process that is not there, and processes that all fail take turns ever more rarely. `leader.json` keeps the reason of
each one that gave way. This does not help if the leader is stopped (SIGSTOP, a debugger), or waits for a long call of C
code that holds the GIL. It keeps the lease until it ends; `cwsink status` names it.
"""

from __future__ import annotations

import random
import threading
import time
from contextlib import nullcontext, suppress
from typing import Final, Literal

from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.errors import ConfigError, SpoolError
from cwsink.flusher import adoption, deadline
from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Fenced
from cwsink.flusher.delivery import Stopped
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.instructions import config_of
from cwsink.flusher.orders import Orders
from cwsink.flusher.publisher import LeaderState
from cwsink.spool import alerts, disk, files, flusher_lock, hurry, leader_state, lease, sending, survey
from cwsink.spool.directory import SpoolDirectory, open_existing
from cwsink.spool.repair import put_in_order

# The host of an election: the flusher that starts by itself; `cwsink run`; `cwsink flush`; `flush --once` or `replay`.
Kind = Literal["own", "run", "service", "once"]

_TROUBLE_SECONDS: Final = 1.0
_HANDOVER_POLL_SECONDS: Final = 0.02
# How often this process asks another leader: to hurry while it waits to leave, and to give way while that one fails.
_ASK_SECONDS: Final = 0.5
_CHALLENGE_SECONDS: Final = 2.0
# A leader that could not deliver lets others try: at first for so long, then for twice that.
_FIRST_STAY_OUT_SECONDS: Final = 30.0
_LONGEST_STAY_OUT_SECONDS: Final = 600.0
# If nobody has taken the lease for so long, nobody stands. A flusher that a writer starts needs a second for it.
_VACANT_SECONDS: Final = 3.0


class Election:
    """Stands for election for one spool, and leads it.

    Attributes:
        directory: the spool. It is opened anew if it was removed and made again.
        config, config_of: how to send; what reads that from a spool. If it raises ConfigError, nobody leads the spool.
        epoch: the epoch of its leadership, or 0 while it does not lead.
        trouble: what kept it from leading when it tried last, or None.
        pace: the most records to send in a second; None for no limit. With a pace it adopts no orphan.
    """

    def __init__(
        self, directory: SpoolDirectory, *, kind: Kind, in_a_hurry: bool = False, pace: float | None = None
    ) -> None:
        """Prepare; `start` begins. `in_a_hurry`: wait for no batch_size or batch_timeout_seconds."""
        self.directory = directory
        self.config = SinkConfig()  # until it leads. What is wrong with the spool's own is said when it tries to
        with suppress(ConfigError, OSError):
            self.config = config_of(directory)
        self.config_of: adoption.ConfigOf = config_of
        self.epoch = 0
        self.trouble: str | None = None
        self.pace = pace
        self._kind: Kind = kind
        self._in_a_hurry = in_a_hurry
        self._is_mute = False
        self._leaving = threading.Event()
        self._drain_until: float | None = None
        self._rest_until: float | None = None
        self._keeps_lease = False
        self._claim: Lease | None = None  # kept while it rests
        self._stand_at = self._challenge_at = 0.0
        self._stay_out_seconds = _FIRST_STAY_OUT_SECONDS
        self._vacant_since: float | None = None
        self._is_behind = False
        self._orders: Orders | None = None
        self._flusher: Flusher | None = None
        self._state: LeaderState | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to stand for election, or go on after a rest. Raises RuntimeError: no thread can be started now."""
        self._rest_until, self._state, self._is_behind, self.trouble = None, None, False, None
        thread = threading.Thread(target=self._stand, name=f"cwsink-{self._kind}", daemon=True)
        thread.start()
        self._thread = thread

    @property
    def is_started(self) -> bool:
        """Tell whether `start` was called, even if the election has ended since."""
        return self._thread is not None

    @property
    def is_running(self) -> bool:
        """Tell whether it stands or leads. It does not before `start`, while it rests, and after its end."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def is_leaving(self) -> bool:
        """Tell whether `leave` was called."""
        return self._leaving.is_set()

    def leave(self, drain_seconds: float) -> None:
        """Deliver the rest for at most `drain_seconds`, and end. A later call sets the time anew."""
        self._drain_until = time.monotonic() + drain_seconds
        self._leaving.set()
        self._instruct()
        if not self.is_running:
            self.let_go()

    def rest(self, drain_seconds: float, *, keep_lease: bool) -> None:
        """Deliver what is there for at most `drain_seconds`, and end the thread until `start` is called again.

        `keep_lease`: stay the leader. The caller knows that all is delivered, and looks for new records.
        """
        self._keeps_lease = keep_lease
        self._rest_until = time.monotonic() + drain_seconds
        self._instruct()

    def let_go(self) -> None:
        """Give the lease back that it keeps while it rests."""
        claim, self._claim = self._claim, None
        if claim is not None:
            claim.release()

    def beat(self) -> bool:
        """While it rests, show other hosts that it leads. Tell whether it still keeps the lease."""
        claim = self._claim
        if claim is None or not claim.is_held():
            return False
        claim.beat()
        return True

    def hurry(self) -> None:
        """If it leads, have it send what is there without waiting for more."""
        if (orders := self._orders) is not None:
            orders.hurry.set()

    def has_ended(self, timeout_seconds: float) -> bool:
        """Wait at most `timeout_seconds` for its end, after any request in flight. Tell whether it has ended."""
        if self._thread is not None:
            self._thread.join(timeout_seconds)
        if self.is_running:
            return False
        if self.is_leaving:
            self.let_go()  # it had just begun to rest when it was told to leave
        return True

    @property
    def request_seconds(self) -> float:
        """How many seconds a request in flight may take."""
        return deadline.seconds_of(self.config)

    @property
    def is_idle(self) -> bool:
        """Tell whether it has nothing to do: it leads and all is settled, or another process leads."""
        return flusher.is_idle if (flusher := self._flusher) is not None else self._is_behind

    @property
    def is_failing(self) -> bool:
        """Tell whether it cannot lead, or its last request has failed, if it has led since its last `start`."""
        return self.trouble is not None or ((state := self._state) is not None and state.published.obstacle != "")

    @property
    def adopts(self) -> bool:
        """Tell whether it adopts orphans while it leads."""
        return self.config.adopt_orphans and self.pace is None

    @property
    def has_succeeded(self) -> bool:
        """Tell whether CloudWatch has taken a request in its last epoch since `start`."""
        return (state := self._state) is not None and state.has_succeeded

    @property
    def cannot_deliver(self) -> bool:
        """Tell whether it leads, and has failed for some seconds. Another process may be able to deliver."""
        return (flusher := self._flusher) is not None and flusher.leader_state.cannot_deliver

    def went_mute(self) -> None:
        """Publish in leader.json, now or when it leads, that lines of this process reach nobody any more."""
        self._is_mute = True
        if (self._flusher is not None or self._claim is not None) and (state := self._state) is not None:
            state.went_mute()

    def _instruct(self) -> None:
        orders = self._orders
        if orders is None:
            return
        if self._in_a_hurry:
            orders.hurry.set()
        for until in (self._rest_until, self._drain_until):  # the second one counts if there are both
            if until is not None:
                orders.drain(max(0.0, until - time.monotonic()))

    def _stand(self) -> None:
        while self._rest_until is None:
            self._is_behind = self._is_out()
            if not self._is_behind:
                self._try_to_lead()
            if self._leaving.wait(lease.TRY_SECONDS * (1 + random.random() / 2)):
                self._drain()
                return

    def _is_out(self) -> bool:
        """Tell whether to leave the lease to others: it has given way, and another one leads or may be about to."""
        now = time.monotonic()
        if now >= self._stand_at:
            return False
        if lease.is_taken(self.directory):
            self._vacant_since = None
            return True
        self._vacant_since = now if self._vacant_since is None else self._vacant_since
        return now - self._vacant_since < _VACANT_SECONDS

    def _drain(self) -> None:
        """Deliver the rest at once, or wait while another leader does."""
        assert self._drain_until is not None, "told to leave"
        ask_at = 0.0
        while (now := time.monotonic()) < self._drain_until and self.has_pending():
            if not self._is_out() and self._try_to_lead():
                return
            if now >= ask_at:
                ask_at = now + _ASK_SECONDS
                hurry.ask(self.directory)
            time.sleep(_HANDOVER_POLL_SECONDS)

    def has_pending(self) -> bool:
        """Tell whether there is something to send."""
        try:
            return survey.has_pending(self.directory)
        except OSError:  # no descriptor is left, or the user has changed: it cannot be told, so do not give up yet
            return True

    def _try_to_lead(self) -> bool:
        """Lead if elected. Returns whether this process has led. Trouble is reported, and the caller tries again."""
        try:
            if not self.directory.is_present():
                self.let_go()
                self.directory = open_existing(self.directory.path)
            return self._lead_if_elected()
        except Exception as error:
            if isinstance(error, SpoolError) and not files.exists(f"{self.directory.path}/FORMAT"):
                return False  # the spool is gone: there is nothing to flush until a writer makes it anew
            self.trouble = f"{type(error).__name__}: {error}{disk.limit_of(error)}"
            report(
                f"flusher_{self.directory.path}",
                f"cannot flush {self.directory.path}: {self.trouble}. {alerts.fate_of(self.directory)} It is tried "
                f"again every {_TROUBLE_SECONDS:.0f} s.",
            )
            self._leaving.wait(_TROUBLE_SECONDS)
            with suppress(OSError):  # in the place of a file of ours there may be something else
                put_in_order(self.directory.path)
            return False

    def _lead_if_elected(self) -> bool:
        claim, self._claim = self._claim, None
        if claim is not None and not claim.is_held():
            claim.release()
            claim = None
        if claim is None:
            claim = Lease(self.directory)
            if not claim.try_acquire():
                self._is_behind = True
                lease.watch_holder(self.directory, self.request_seconds)
                self._challenge()
                return False
        self._is_behind = False
        kept = False
        try:
            while True:
                orders = self._lead(claim)
                if orders.gives_way or not orders.are_new_settings:
                    kept = self._rest_until is not None and self._keeps_lease and orders.is_all_settled
                    return True
        except Fenced:
            return False
        finally:
            if kept:
                self._claim = claim
            else:
                claim.release()

    def _challenge(self) -> None:
        """If the leader cannot deliver, ask it to let this process try."""
        if (now := time.monotonic()) >= self._challenge_at:
            self._challenge_at = now + _CHALLENGE_SECONDS
            published = leader_state.read(self.directory)
            if published is not None and published.obstacle:
                lease.challenge(self.directory)

    def _lead(self, claim: Lease) -> _OrdersOfSpool:
        """Lead with the present settings until told to stop. Raises Fenced."""
        orders = _OrdersOfSpool(self.directory, self._kind)
        try:
            self.config = self.config_of(self.directory)
            flusher = Flusher(self.directory, self.config, claim, orders, kind=self._kind, pace=self.pace)
            self._state = orders.leader_state = flusher.leader_state
            self._orders, self._flusher = orders, flusher
            if self._is_mute:
                flusher.leader_state.went_mute()
            self._instruct()  # the host may have told it to leave while it was being elected
            self.epoch, self.trouble = flusher.epoch, None
            with adoption.beside(self, self._elect) if self.adopts else nullcontext():
                flusher.lead()
        except Stopped:
            pass
        finally:
            self._orders = self._flusher = None
            self.epoch = 0
        orders.is_all_settled = flusher.is_idle
        if flusher.leader_state.has_succeeded:
            self._stay_out_seconds = _FIRST_STAY_OUT_SECONDS
        if orders.gives_way:
            self._give_way(flusher.leader_state)
        return orders

    def _give_way(self, state: LeaderState) -> None:
        """Do not try to take the lease for a while, because this process cannot deliver and another one stands."""
        error = state.gave_way()
        report(
            f"give_way_{self.directory.path}",
            f"cannot deliver from {self.directory.path} ({error.rstrip('.')}), and another process stands: it gives "
            f"way for {self._stay_out_seconds:.0f} s. {alerts.fate_of(self.directory)}",
        )
        self._vacant_since = None
        self._stand_at = time.monotonic() + self._stay_out_seconds
        self._stay_out_seconds = min(2 * self._stay_out_seconds, _LONGEST_STAY_OUT_SECONDS)

    def _elect(self, orphan: SpoolDirectory) -> Election:
        return Election(orphan, kind=self._kind, pace=adoption.PACE)


class _OrdersOfSpool(Orders):
    """Orders that also come from other processes, by files: to hurry, to lead anew with other settings, to give way."""

    def __init__(self, directory: SpoolDirectory, kind: Kind) -> None:
        super().__init__()
        self._directory = directory
        self._kind = kind
        self._settings = sending.stamp(directory)
        self._hurry = hurry.stamp(directory)
        self._challenged_at = lease.challenged_at(directory)
        self.leader_state: LeaderState | None = None
        self.are_new_settings = False
        self.gives_way = False
        self.is_all_settled = False

    def look(self) -> None:
        """See whether a writer asks to hurry, or has left other settings, or another process can deliver and we not."""
        if (wish := hurry.stamp(self._directory)) != self._hurry:
            self._hurry = wish
            self.hurry.set()
        if sending.stamp(self._directory) != self._settings:
            self.are_new_settings = True
        if self.leader_state is not None and self.leader_state.cannot_deliver and self._is_challenged():
            self.gives_way = True

    def _is_challenged(self) -> bool:
        """Tell whether another process stands, or is a flusher that a writer has started to take over."""
        if lease.challenged_at(self._directory) != self._challenged_at:
            return True
        # The flusher that starts by itself does not give up one spool for that, but ends (cwsink.flusher.own).
        return self._kind != "own" and flusher_lock.challenge(self._directory.root) is not None

    @property
    def is_over(self) -> bool:
        """Tell whether to leave now, whether all is delivered or not."""
        return self.are_new_settings or self.gives_way or super().is_over
