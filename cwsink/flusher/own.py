"""The flusher that starts by itself: it leads the spools of one root that are in use, and ends when none is.

A writer starts a guard (cwsink.frontends.starter), and the guard forks the flusher (cwsink.flusher.guard). Each user
has one flusher for all spools of a root. A lock tells the next writer that it is there (cwsink.spool.flusher_lock).

```text
look at the root, ten times a second, or less often if there are many spools:
    a spool in which a process is attached, or has appended since the guard began --> an Election leads it
    no process is attached any more --> deliver what is pending: at most drain_timeout_seconds, then say what stays
    all is delivered, and no process was attached for LINGER_SECONDS --> leave the spool
no spool is left --> free the lock, look once more, end
```

The flusher ends sooner if the lock's file or the root is gone, if a newer cwsink asks for the lock, or if it cannot
deliver and a writer with other credentials or another network asks. If it can deliver some of its spools, it gives up
only the others. If cwsink's files were replaced (an upgrade in place), the guard begins anew with the new ones, and
keeps the lock meanwhile. A spool that was left behind before the guard began is an orphan. The flusher does not touch
it, unless `adopt_orphans` is set.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable
from typing import Final, Literal

from cwsink import words
from cwsink.diagnostics import report
from cwsink.errors import CwsinkError
from cwsink.flusher import mute, stderr
from cwsink.flusher.election import Election
from cwsink.flusher.turns import Turns
from cwsink.spool import attachment, files, flusher_lock, hurry, lease, open_directory, segment, sending, survey
from cwsink.spool.directory import SpoolDirectory, find_spools, open_existing
from cwsink.spool.flusher_lock import FlusherLock

_LOOK_SECONDS: Final = 0.1
# A look at one spool takes some 30 us: is a process attached, and was anything appended?
_LOOK_SECONDS_A_SPOOL: Final = 0.008
# If others ask at the same moment, a look may be wrong. The next one will not be.
_TRIES: Final = 3
# A program may be started again and again (cron, `manage.py`). The flusher waits this long for the next start.
LINGER_SECONDS: Final = 2.0
# How often the flusher looks whether another process is to take over.
_QUESTION_SECONDS: Final = 1.0
# How long the flusher waits for a request in flight when it has to leave.
_HANDOVER_SECONDS: Final = 3.0

# Why the flusher ends although it is needed: cwsink's files were replaced, or another process takes over.
End = Literal["renew", "replaced"]
# Where the ring of each spool ends: the newest segment's number and size. An append changes one of them.
Ends = dict[str, tuple[int, int] | None]


class OwnFlusher:
    """Delivers for one root until nobody needs it."""

    def __init__(
        self, root: str, lock: FlusherLock, *, go_mute: Callable[[], None], is_mute: bool, left_behind: Ends
    ) -> None:
        """Prepare; `run` delivers.

        Args:
            root: the directory that holds the spools.
            lock: this process and its guard hold it.
            go_mute: lets go of stderr, in this process and in the guard.
            is_mute: an earlier flusher has let go of stderr.
            left_behind: where the rings ended that no process logged to any more when the guard began. All other
                spools are in use, even if their writers have ended since.
        """
        self._root = root
        self._lock = lock
        self._mute = go_mute
        self._is_mute = is_mute
        self._stderr = stderr.Stderr()
        self._turns = Turns()
        self._serving: dict[str, _Served] = {}
        self._known: dict[str, SpoolDirectory] = {}
        self._serve_at = 0.0
        self._ends_before = dict(left_behind)
        self._is_told = False
        self._question_at = 0.0
        self._files_seen = ""

    def run(self) -> bool:
        """Deliver until no process needs it any more. Returns whether the guard is to begin anew, with new files."""
        # An earlier flusher may have been killed after it had freed the lock, and another one may have it.
        if not self._lock.try_acquire():
            return False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._note)
        while True:
            if (now := time.monotonic()) >= self._serve_at:
                self._serve()
                self._serve_at = now + max(_LOOK_SECONDS, len(self._known) * _LOOK_SECONDS_A_SPOOL) - _LOOK_SECONDS / 2
            self._turns.look()
            if not self._lock.is_in_place():
                self._leave_all(0.0)
                return False
            if (end := self._why_end()) is not None:
                self._leave_all(_HANDOVER_SECONDS)
                return end == "renew"
            if not self._serving and self._has_ended():
                return False
            time.sleep(_LOOK_SECONDS)

    def _note(self, number: int, *_: object) -> None:
        """Note a signal to end. All processes of a unit get it, and may still log. So go on until they are gone."""
        self._is_told = True

    def _serve(self) -> None:
        """Begin with spools that came into use, and leave those that are not in use any more."""
        linger_seconds = 0.0 if self._is_told else LINGER_SECONDS
        paths = _spools(self._root)
        for path in self._known.keys() - paths:
            del self._known[path]
        for path in paths:
            if path not in self._serving and (served := self._begin(path)) is not None:
                self._serving[path] = served
                self._turns.add(served.election)
        for path, served in list(self._serving.items()):
            if served.has_ended(linger_seconds):
                del self._serving[path]
                self._turns.remove(served.election)
                self._ends_before[path] = served.end
        self._turns.look()
        if not self._is_mute and self._serving and self._is_awaited():
            self._go_mute()

    def _is_awaited(self) -> bool:
        """Tell whether the reader of our stderr may be waiting for its end.

        It may be if all programs that logged have ended and all is delivered. It may also be if other programs still
        log, and none of them has this stderr. While a program that has ended leaves records, stderr is kept to say so,
        unless the program has said it.
        """
        served = self._serving.values()
        if all(each.is_all_said for each in served):
            return True
        return all(each.is_all_said or each.is_in_use for each in served) and self._stderr.is_held_by_us_alone()

    def _go_mute(self) -> None:
        """Let go of stderr if it is a pipe.

        A process that logs here later sees `is_mute` in leader.json, and starts another flusher, which gets its stderr.
        """
        if mute.is_pipe():
            self._is_mute = True
            for served in self._serving.values():
                served.election.went_mute()
            self._mute()

    def _begin(self, path: str) -> _Served | None:
        try:
            directory = self._known.get(path) or open_existing(path)
            self._known[path] = directory
            if attachment.is_anyone_attached(directory, tries=_TRIES) or self._ends_before.get(path) != _end_of(path):
                return _Served(open_existing(path), is_mute=self._is_mute)
        except (CwsinkError, OSError) as error:
            report(
                f"serve_{path}",
                f"cannot deliver from {path}: {error} Records wait as long as it has room. It is tried again.",
            )
        return None

    def _has_ended(self) -> bool:
        """Free the lock, and tell whether to end.

        A writer that came before found the lock taken, and started no flusher. So look once more afterwards.
        """
        self._lock.give_up()
        self._serve()
        if not self._serving:
            return True
        if self._lock.try_acquire():
            return False
        self._leave_all(_HANDOVER_SECONDS)  # another flusher has been started meanwhile
        return True

    def _why_end(self) -> End | None:
        """Return why to end although the flusher is needed, or None. Looks once a second."""
        if time.monotonic() < self._question_at:
            return None
        self._question_at = time.monotonic() + _QUESTION_SECONDS
        before, self._files_seen = self._files_seen, sending.installation_now()
        # An upgrade takes a moment, in which some files are still old. So the new ones must be the same twice.
        if self._files_seen and self._files_seen == before != sending.installation():
            return "renew"
        challenge = flusher_lock.challenge(self._root)
        if challenge is None:
            return None
        elections = [served.election for served in self._serving.values()]
        failing = [election for election in elections if election.cannot_deliver]
        if challenge.reason == "version" or (failing and len(failing) == len(elections)):
            return "replaced"
        for election in failing:  # the others can be delivered, and must not change hands for these
            lease.challenge(election.directory)
        return None

    def _leave_all(self, seconds: float) -> None:
        elections = [served.election for served in self._serving.values()]
        for election in elections:
            election.leave(0.0)
        until = time.monotonic() + seconds
        for election in elections:
            election.has_ended(max(0.0, until - time.monotonic()))


class _Served:
    """One spool that is in use.

    Attributes:
        election: leads the spool.
        end: where the ring ended at the last look. If a process appends after that, the flusher comes back.
    """

    def __init__(self, directory: SpoolDirectory, *, is_mute: bool) -> None:
        self.end = _end_of(directory.path)
        self.election = Election(directory, kind="own")
        if is_mute:
            self.election.went_mute()
        self._alone_since: float | None = None
        self._empty_since: float | None = None
        self._left_at: float | None = None

    @property
    def is_in_use(self) -> bool:
        """Tell whether a process is attached."""
        return self._alone_since is None

    @property
    def is_all_said(self) -> bool:
        """Tell whether no process is attached, and nothing is to be said: all is delivered, the spool is left, or the
        last process has said itself what stays."""
        is_done = self._empty_since is not None or self._left_at is not None
        return is_done or (not self.is_in_use and hurry.has_word(self.election.directory.path))

    def has_ended(self, linger_seconds: float) -> bool:
        """Look whether a process still needs it. Tell whether the flusher has left it."""
        if self._left_at is not None:
            return self.election.has_ended(0.0) or time.monotonic() - self._left_at >= _HANDOVER_SECONDS
        directory, now = self.election.directory, time.monotonic()
        if not files.exists(directory.path):
            self._leave()
        elif attachment.ask(directory, tries=_TRIES):
            self._alone_since = self._empty_since = None
        else:
            self._look_after(directory, now, linger_seconds)
        return False

    def _look_after(self, directory: SpoolDirectory, now: float, linger_seconds: float) -> None:
        """After the last writer: deliver what is there within drain_timeout_seconds, and leave.

        The same if nobody can tell whether there are writers: somebody has put a link or a file in the spool's place.
        """
        self._alone_since = self._alone_since if self._alone_since is not None else now
        self.election.hurry()
        self.end = _end_of(directory.path)
        with contextlib.suppress(OSError):
            if not survey.has_pending(directory):
                self._empty_since = self._empty_since if self._empty_since is not None else now
                if now - self._empty_since >= linger_seconds:
                    self._leave()
                return
        self._empty_since = None
        if now - self._alone_since >= max(self.election.config.drain_timeout_seconds, _LOOK_SECONDS):
            why = self._why_not_delivered()
            self._leave()
            if hurry.has_word(directory.path):  # the process that logged here has said it
                return
            with contextlib.suppress(OSError):
                pending = survey.survey(directory).pending
                report(
                    f"stay_{directory.path}",
                    f"{words.stay(pending)} in {directory.path}: no "
                    f"process logs there any more, and {why}. The next process that logs there has them sent; so does "
                    f"{words.to_send(directory.path)}.",
                )

    def _why_not_delivered(self) -> str:
        """Return why records stay. If this process never led, CloudWatch may not even have been asked."""
        if trouble := self.election.trouble:
            return f"no process could lead: {trouble}"
        return "CloudWatch did not take them in time" if self.election.epoch else "they were not delivered in time"

    def _leave(self) -> None:
        self._left_at = time.monotonic()
        self.election.leave(0.0)


def left_behind(root: str, since_ns: int) -> Ends:
    """Return where the rings end that no process has appended to since `since_ns`, a time of the file system."""
    return {path: _end_of(path) for path in _spools(root) if _appended_at_ns(path) < since_ns}


def _spools(root: str) -> list[str]:
    """Return the spools of this user. Several users may share a root, and each has a flusher of its own."""
    with contextlib.suppress(CwsinkError, OSError):
        return [path for path in find_spools(root) if _is_ours(path)]
    return []


def _is_ours(path: str) -> bool:
    try:
        return files.seen(path).st_uid == os.geteuid()
    except OSError:  # it was removed at this moment
        return False


def _end_of(path: str) -> tuple[int, int] | None:
    """Return the newest segment's number and size, or None if there is none."""
    newest = _newest(path)
    return None if newest is None else (newest[0], newest[1].st_size)


def _appended_at_ns(path: str) -> int:
    newest = _newest(path)
    return 0 if newest is None else newest[1].st_mtime_ns


def _newest(path: str) -> tuple[int, os.stat_result] | None:
    with contextlib.suppress(OSError), open_directory.at(f"{path}/{open_directory.RING}") as ring:
        for number in segment.numbers_in(ring)[-1:]:
            return number, ring.status(segment.name_of(number))
    return None
