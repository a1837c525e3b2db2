"""Attaches this process to each spool that it appends to, and detaches it at exit.

An attached process holds a shared flock, which the kernel drops when the process ends. While it appends it also looks
whether there is a flusher, and starts one if not (cwsink.frontends.starter). It gets no thread, signal handler,
botocore or filelock from us.

At exit a process detaches, and asks whether it was the last one attached. If not, it leaves at once. The last process
waits until the pending records are delivered, for at most `drain_timeout_seconds` (cwsink.frontends.parting). The
flusher lives on, and sends the rest until it is done or its own time is over.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
import weakref
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from cwsink import words
from cwsink.clock import monotonic
from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.errors import ConfigError
from cwsink.frontends import process_exit
from cwsink.frontends.console import is_lambda
from cwsink.frontends.starter import Starter
from cwsink.hosted import is_hosted
from cwsink.interruption import suppress
from cwsink.spool import descriptors, files, leader_state, lease, sending
from cwsink.spool import hurry as hurry_file
from cwsink.spool.attachment import Attachment
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.ring import Ring
from cwsink.version import __version__

if TYPE_CHECKING:
    from typing import Protocol

    class _Appender(Protocol):
        """A writer (cwsink.frontends.writer)."""

        directory: SpoolDirectory
        config: SinkConfig

        def forked(self) -> None:
            """Become another producer, in a child."""

        def mark_losses(self, *, is_last: bool = False) -> None:
            """Write down the counts of refused records. `is_last`: and say what was not said."""


# Looks come with the ring's checks, which are nearly a second apart. A longer time would miss every other one of them.
_LOOK_SECONDS: Final = 0.5
# A caller of `flush`: pauses between two looks whether all is delivered; how often it starts a flusher if there is
# none, and asks the flusher to hurry.
_FLUSH_POLL_SECONDS: Final = 0.02
_ASK_SECONDS: Final = 0.5
# A person presses Ctrl-C while the process waits at its end, or a signal handler of the application raises SystemExit.
# The process ends already. So it can only mean: at once.
_TOLD_TO_END: Final = (KeyboardInterrupt, SystemExit)
# What a flusher could not deliver so long ago it cannot deliver now.
_STILL_TRUE_SECONDS: Final = 5.0
# The pause between two offers of another flusher: the first one, doubled by each offer up to the longest.
_FIRST_OFFER_SECONDS: Final = 5.0
_LONGEST_OFFER_SECONDS: Final = 600.0


def refuse_lambda() -> None:
    """Raise ConfigError in AWS Lambda, where no process runs between two calls, and the disk goes with the sandbox."""
    if is_lambda(os.environ):
        raise ConfigError(
            "this is AWS Lambda, which freezes the process between two calls and throws its disk away: records in a "
            "spool would be late, or lost. Nothing is spooled. Log to stdout (CWSINK_TARGET=stdout): Lambda sends that "
            "to CloudWatch itself."
        )


def _keep(directory: SpoolDirectory, config: SinkConfig) -> None:
    """Make anew what somebody has removed, and a flusher needs to find the spool and to send it. Never raises.

    `rm -r` takes a moment. The spool may be made anew in that moment, and lose its new files to the same `rm`.
    """
    with suppress(OSError):
        directory.keep()
        if not files.exists(directory.sending):
            sending.leave(directory, config)


def hurry(directory: SpoolDirectory, config: SinkConfig) -> None:
    """Ask the leader to send the pending records at once. Start a flusher if no process leads. Never raises."""
    _keep(directory, config)
    hurry_file.ask(directory)
    if config.flusher != "external":
        this.starter_of(directory).ensure(directory)


def flush(
    spools: Iterable[tuple[SpoolDirectory, SinkConfig]], timeout_seconds: float, *, has_patience: bool = True
) -> bool:
    """Wait until all records that are in these spools now are settled. Never raises.

    The spools are watched side by side: one whose flusher hangs does not delay the others.

    Args:
        spools: the spools, and how this process logs to them.
        timeout_seconds: the most to wait.
        has_patience: False: do not wait for what a flusher says that it cannot deliver now.

    Returns:
        False: the time is over and some are not settled, or it cannot be told, because a spool cannot be read.
    """
    with suppress(OSError):
        from cwsink.spool import survey  # it takes 0.1 MiB with the reader, and few wait

        until = monotonic() + timeout_seconds
        ask_at = 0.0
        left = [(directory, config, survey.ends(directory)) for directory, config in spools]
        while left := [
            (directory, config, rest)
            for directory, config, ends in left
            if (rest := survey.unsettled(directory, ends)) != {}
        ]:
            if (now := monotonic()) >= until or not (has_patience or any(_has_hope(each[0]) for each in left)):
                return False
            if now >= ask_at:
                ask_at = now + _ASK_SECONDS
                for directory, config, _ in left:
                    hurry(directory, config)
            time.sleep(_FLUSH_POLL_SECONDS)
        return True
    return False


def _has_hope(directory: SpoolDirectory) -> bool:
    return leader_state.hopeless(directory, within_seconds=_STILL_TRUE_SECONDS) is None


class Presence:
    """The attachment of this process to one spool, until the process ends.

    Attributes:
        directory: the spool; a new object if the spool was removed and made anew.
        config: the config of this process's first writer to the spool.
    """

    def __init__(self, directory: SpoolDirectory, config: SinkConfig) -> None:
        self.directory = directory
        self.config = config
        self._attachment = Attachment(directory)
        hurry_file.take_word_back(directory)
        self._rings: weakref.WeakSet[Ring] = weakref.WeakSet()
        self._starter = this.starter_of(directory)
        self._known = leader_state.hopeless(directory, within_seconds=math.inf)
        self._look_at = 0.0
        self._offer_at = 0.0
        self._offer_seconds = _FIRST_OFFER_SECONDS

    def watch(self, ring: Ring) -> None:
        """Remember a writer's ring. At exit `leave` closes it before it detaches."""
        self._rings.add(ring)
        ring.agree()

    def renew(self, directory: SpoolDirectory) -> None:
        """Attach again if the spool was removed and made anew."""
        if directory.format != self.directory.format:
            self._attachment = Attachment(directory)  # the former one goes with its last reference
            self.directory = directory

    def detach(self) -> None:
        """Detach, without asking whether this process is the last one."""
        self._attachment.close()

    def look(self) -> None:
        """Start a flusher if there is none. Looks at most twice a second. A start takes 2 ms."""
        now = monotonic()
        if now < self._look_at:
            return
        self._look_at = now + _LOOK_SECONDS
        _keep(self.directory, self.config)
        with suppress(OSError):  # no descriptor: the next look tries again
            self._attachment.hold()
        if self.config.flusher == "external":
            return
        self._starter.ensure(self.directory)
        lease.watch_holder(self.directory, self.config.connect_timeout_seconds + self.config.read_timeout_seconds)
        if now >= self._offer_at:
            self._offer(now)

    def leave(self) -> bool:
        """Let go of the spool. True: this process is the last one attached, and is to wait for delivery.

        Below a living `cwsink run` no process waits: `cwsink run` does, once its command has ended.
        """
        _keep(self.directory, self.config)
        for ring in list(self._rings):
            ring.close()
        is_last = self._attachment.detach()
        return is_last and self.config.flusher != "external" and not is_hosted()

    def await_delivery(self, began: float) -> None:
        """Wait until the pending records are delivered, or cannot be delivered now; see `Parting.wait`."""
        from cwsink.frontends.parting import Parting  # it takes 0.1 MiB with the reader, and most never wait

        Parting(self.directory, self.config, self._starter, self._known).wait(began)

    def _offer(self, now: float) -> None:
        """Start a flusher that takes the leader's place, if it may do better.

        It may if a writer has started the leader, and the leader is of an older cwsink, or its files were replaced or
        removed since, or its lines reach nobody. It may also if the leader cannot deliver, and has other credentials or
        another network than we.
        """
        self._offer_at = now + _FIRST_OFFER_SECONDS
        published = leader_state.read(self.directory)
        if published is None:
            return
        is_older = _numbers(published.version) < _numbers(__version__)
        is_gone = published.is_outdated and sending.installation_now() != ""
        if published.kind == "own" and (is_older or published.is_mute or is_gone):
            self._starter.replace(self.directory, "version", published.pid)
        elif published.obstacle in leader_state.HOPELESS and published.credentials != sending.credentials_stamp(
            os.environ
        ):
            self._starter.replace(self.directory, "trouble", published.pid)
        else:
            if not published.obstacle:  # if it has one, another flusher of ours would have it, too
                self._offer_seconds = _FIRST_OFFER_SECONDS
            return
        self._offer_seconds = min(2 * self._offer_seconds, _LONGEST_OFFER_SECONDS)
        self._offer_at = now + self._offer_seconds


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(each) for each in version.split(".") if each.isdecimal())


class Process:
    """All that this process holds of ours. What a fork and the end do with it, and in which order, is here.

    Attributes:
        writers: that are still in use.
        drain_queues: empties fapilog's queues at the end, if fapilog is used.
    """

    def __init__(self) -> None:
        self.writers: weakref.WeakSet[_Appender] = weakref.WeakSet()
        self.drain_queues: Callable[[], None] | None = None
        self._presences: dict[str, Presence] = {}
        self._starters: dict[str, Starter] = {}
        self._left: set[str] = set()  # the spools in which this process has left its settings, and did not log yet
        self._handles_end = False

    def add(self, writer: _Appender) -> None:
        """Know a writer from now on, and handle the end of this process."""
        self.writers.add(writer)
        self._handle_end()

    def leave_settings(self, directory: SpoolDirectory, config: SinkConfig) -> None:
        """Have the spool be sent as `config` says. Never raises."""
        sending.leave(directory, config)
        self._left.add(directory.path)

    def presence_in(self, directory: SpoolDirectory, config: SinkConfig) -> Presence:
        """Return this process's presence in a spool; the first call attaches. Raises OSError."""
        presence = self._presences.get(directory.path)
        if presence is None:
            self._handle_end()
            mine = Presence(directory, config)
            if directory.path in self._left:
                self._left.discard(directory.path)
                sending.compare(directory, config)
            presence = self._presences.setdefault(directory.path, mine)
            if presence is not mine:  # another thread was first. With two locks, no process could tell it is the last
                mine.detach()
        else:
            presence.renew(directory)
        return presence

    def starter_of(self, directory: SpoolDirectory) -> Starter:
        """Return what starts flushers for the spool's root."""
        return self._starters.setdefault(directory.root, Starter(directory.root))

    def forget(self, directory: SpoolDirectory) -> None:
        """Let go of one spool, without waiting for its delivery."""
        if (presence := self._presences.pop(directory.path, None)) is not None:
            presence.leave()

    def presences(self) -> list[Presence]:
        """Return this process's presence in each spool that it is attached to."""
        return list(self._presences.values())

    def flush(self, timeout_seconds: float, *, has_patience: bool = True) -> bool:
        """Wait until all records that this process has appended are delivered. False: some of them stay spooled.

        The records of a writer that is gone already count, too. See `flush` for `has_patience`.
        """
        spools = {each.directory.path: (each.directory, each.config) for each in self._users()}
        return flush(spools.values(), timeout_seconds, has_patience=has_patience)

    @property
    def drain_timeout_seconds(self) -> float:
        """The longest `drain_timeout_seconds` of this process's spools; 0 if it has none."""
        return max((each.config.drain_timeout_seconds for each in self._users()), default=0.0)

    def _users(self) -> list[_Appender | Presence]:
        return [*self.writers, *self.presences()]

    def fork(self) -> None:
        """Become a child of its own. Its descriptors are closed by now."""
        self._presences.clear()
        self._starters.clear()
        self._left.clear()
        self._handles_end = False
        for writer in list(self.writers):
            writer.forked()

    def leave(self) -> None:
        """Empty fapilog's queues, let go of every spool, write down what was refused, wait where this is the last."""
        # In a child that C code forked and that never logged, all open descriptors and attachments are the parent's.
        if not descriptors.fork_sentinel[0]:
            descriptors.become_child()
        if self.drain_queues is not None:
            with contextlib.suppress(Exception, *_TOLD_TO_END):
                self.drain_queues()
        with contextlib.suppress(Exception, *_TOLD_TO_END):
            self._leave_spools()

    def forget_below(self, root: str) -> None:
        """Let go of everything below `root`, and wait for nothing. For a test whose directory is to be removed."""
        for path in [each for each in self._presences if each.startswith(f"{root}/")]:
            if (presence := self._presences.pop(path, None)) is not None:
                presence.leave()
        for path in [each for each in self._starters if f"{each}/".startswith(f"{root}/")]:
            self._starters.pop(path, None)
        for writer in [each for each in self.writers if each.directory.path.startswith(f"{root}/")]:
            self.writers.discard(writer)

    def _handle_end(self) -> None:
        if not self._handles_end:
            self._handles_end = True
            process_exit.register(self.leave)

    def _leave_spools(self) -> None:
        began = monotonic()
        presences = self.presences()
        self._presences.clear()
        last = [presence for presence in presences if presence.leave()]
        for writer in list(self.writers):  # only now, because they may need the descriptors that were just closed
            writer.mark_losses(is_last=True)
        for presence in last:
            with contextlib.suppress(OSError):  # if one spool cannot be read, the others are waited for all the same
                try:
                    presence.await_delivery(began)
                except _TOLD_TO_END:
                    began = -math.inf
                    presence.await_delivery(began)
                except ImportError as error:  # it was replaced or removed while this process ran
                    path = presence.directory.path
                    report(
                        f"stay_{path}",
                        f"records may stay in {path}: the files of cwsink are gone ({error}), so this process does not "
                        f"wait for their delivery. The next process that logs there sends them, or "
                        f"{words.to_send(path)}.",
                    )


this: Final = Process()
descriptors.after_fork(this.fork)
