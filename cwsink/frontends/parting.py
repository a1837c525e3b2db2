"""The end of the last process that logs to a spool: it waits for delivery, but not for what cannot be delivered.

That nothing can be delivered is known from one of these, and the first one that tells ends the wait:

* The leader has tried, and says in leader.json what stands in the way.
* The process has started the flusher itself, and sees what that one will find (cwsink.frontends.outlook).
* A leader before has said so, and neither has this process other credentials, nor has CloudWatch taken anything since.
  Trouble may be over, so the present flusher is given a moment to show that, and the leader's last try counts for half
  a minute only. The end of a container kills each flusher, maybe before it has asked once. Then one process waits for
  the first answer.

The flusher lives on in each case. So whoever does not wait loses nothing: what can be delivered after all is delivered
a moment later.
"""

from __future__ import annotations

import math
import os
import time
from typing import TYPE_CHECKING, Final

from cwsink import words
from cwsink.clock import monotonic, wall
from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.frontends.starter import Starter
from cwsink.spool import cursor, hurry, leader_state, leadership, lease, sending, survey
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.leader_state import Published

if TYPE_CHECKING:
    from cwsink.frontends.outlook import Outlook

# Pauses between two looks whether all is delivered.
_POLL_SECONDS: Final = 0.01
# How often the process starts a flusher if there is none, and asks the flusher to hurry.
_ASK_SECONDS: Final = 0.5
# A leader's obstacle counts for this long after the leader has ended: a short program need not wait for the next one.
_STILL_TRUE_SECONDS: Final = 5.0
_NO_FLUSHER: Final = "there is no flusher"
# What was known before this process began counts only after so long.
_MOMENT_SECONDS: Final = 0.1
# And only if the try was no longer ago. A program that cron starts each minute waits for the first answer.
_REMEMBERED_SECONDS: Final = 30.0


class Parting:
    """The end of the last process of one spool."""

    def __init__(
        self, directory: SpoolDirectory, config: SinkConfig, starter: Starter, known: Published | None
    ) -> None:
        """Prepare; `wait` waits.

        Args:
            directory: the spool. The process has detached from it.
            config: the config of this process's first writer to the spool.
            starter: of the spool's root.
            known: what a leader that could not deliver had published when this process attached, if one had.
        """
        self._directory = directory
        self._config = config
        self._starter = starter
        self._known = known
        self._credentials = sending.credentials_stamp(os.environ)
        self._outlook: Outlook | None = None

    def wait(self, began: float) -> None:
        """Wait until the pending records are delivered, or cannot be delivered now. Raises OSError.

        Args:
            began: when the process began to leave its spools (monotonic). All spools share one
                `drain_timeout_seconds`, which begins here. Minus infinity: only say what stays.
        """
        try:
            self._wait(began)
        finally:
            if self._outlook is not None:
                self._outlook.close()

    def _wait(self, began: float) -> None:
        until = began + self._config.drain_timeout_seconds
        ends = survey.ends(self._directory)
        ask_at, why = 0.0, ""
        while ends != {} and (now := monotonic()) < until and not (why := self._why_hopeless(now - began)):
            if now >= ask_at:
                ask_at = now + _ASK_SECONDS
                hurry.ask(self._directory)
                self._starter.ensure(self._directory)
            time.sleep(_POLL_SECONDS)
            ends = survey.unsettled(self._directory, ends)
        if ends != {} and (pending := survey.survey(self._directory).pending):
            self._say_what_stays(pending, why)

    def _why_hopeless(self, waited_seconds: float) -> str:
        """Return why nothing can be delivered now; "" if something may be."""
        is_led = lease.is_taken(self._directory)
        published = leader_state.read(self._directory)
        if published is not None and published.obstacle in leader_state.HOPELESS:
            is_of_leader = is_led and published.epoch >= cursor.read(self._directory.cursor).epoch
            # A leader that fails rewrites leader.json every 10 s. An older one is of the leader before: the present one
            # has the lease, and has not written its epoch yet.
            within_seconds = _REMEMBERED_SECONDS if is_of_leader else _STILL_TRUE_SECONDS
            if leader_state.hopeless(self._directory, within_seconds=within_seconds):
                return _reason(published)
        if published is not None and is_led and published.credentials != self._credentials:
            return ""  # another process delivers, which may have what we lack
        if not is_led and self._starter.has_failed:
            return _NO_FLUSHER
        known = self._known if waited_seconds >= _MOMENT_SECONDS else None
        has_taken = known and published and published.last_success != known.last_success
        is_recent = known is not None and 0 <= _failed_ago(known) < _REMEMBERED_SECONDS
        if known is not None and is_recent and known.credentials == self._credentials and not has_taken:
            return _reason(known)
        if not self._starter.has_started:
            return ""
        if self._outlook is None:
            from cwsink.frontends.outlook import Outlook  # it is rarely needed

            self._outlook = Outlook(self._directory.format, self._config, os.environ)
        return self._outlook.why_hopeless()

    def _say_what_stays(self, pending: int, why: str) -> None:
        published = leader_state.read(self._directory)
        if not why and published is not None and published.obstacle:
            why = _reason(published)
        if (leader := leadership.leader_of(self._directory)) and leadership.is_stopped(leader, self._directory):
            before = f"The flusher is a stopped process: `kill -CONT {leader.pid}` lets it go on. If it ends, the"
        elif lease.is_taken(self._directory):
            before = f"The flusher tries for {self._config.drain_timeout_seconds:g} s more; then the"
        elif self._starter.look_back(self._directory):
            before = "If the flusher that is starting does not deliver them, the"
        else:
            before, why = "The", why or _NO_FLUSHER
        reason = f" ({why.rstrip('.')})" if why else ""
        report(
            f"stay_{self._directory.path}",
            f"{words.stay(pending)} in {self._directory.path}: not "
            f"delivered yet{reason}. {before} next process that logs there sends them, or "
            f"{words.to_send(self._directory.path)}.",
        )
        hurry.leave_word(self._directory)


def _reason(published: Published) -> str:
    """Return why a leader could not deliver; and when that was, unless it was a moment ago."""
    why, ago = (published.last_error or published.obstacle).rstrip("."), _failed_ago(published)
    return f"{why}; that was {words.duration(ago)} ago" if _STILL_TRUE_SECONDS <= ago < math.inf else why


def _failed_ago(published: Published) -> float:
    """Return how long ago a leader has last tried in vain. One of an older cwsink does not say: long ago."""
    return math.inf if published.last_failure is None else wall() - published.last_failure
