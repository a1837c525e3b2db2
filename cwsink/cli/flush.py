"""`cwsink flush`: a dedicated flusher, for as long as it is wanted or for what is there now.

The main thread looks at files, shows what it sees and listens to signals; each spool has a
thread that stands for election and leads (cwsink.cli.dedicated). With `--once` the end is
seen in the cursor, so it does not matter whether this process or a worker delivers.
"""

from __future__ import annotations

import argparse
import signal
import time
from typing import Final

from cwsink.cli import DONE, NOT_DONE, complain, text
from cwsink.cli.backlog import Backlog
from cwsink.cli.dedicated import DedicatedFlusher
from cwsink.cli.progress import display
from cwsink.cli.spools import Spools
from cwsink.cli.status import look, meaning_of, sentence, why
from cwsink.flusher import leader_state
from cwsink.spool import cursor, lease
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey

_POLL_SECONDS: Final = 0.1
_NEW_SPOOLS_SECONDS: Final = 1.0
# --once without --timeout: an outage that lasts longer than this is not waited for.
_PATIENCE_SECONDS: Final = 60.0
# After the last request's time is over, what is left to do is to commit.
_COMMIT_SECONDS: Final = 1.0


class Wish:
    """How often TERM or INT asked us to end.

    Only a number is set by the handler: it may interrupt any line of the main thread, which polls it.
    """

    def __init__(self) -> None:
        self.times = 0
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.times += 1


def run(options: argparse.Namespace) -> int:
    """Flush until told to end, or once."""
    wish = Wish()
    spools = Spools(options.path, read_only=False)
    if options.once:
        return _once(spools, options.timeout, wish)
    return _serve(spools, options.timeout, wish)


class Job:
    """One spool's part of `--once`."""

    def __init__(self, directory: SpoolDirectory, timeout: float | None) -> None:
        self.directory = directory
        self.target = _target(directory)
        self.backlog = Backlog(directory)
        self.flusher = DedicatedFlusher(directory, in_a_hurry=True)
        self.is_done = False
        self.failure: str | None = None
        self._began = self._moved = time.monotonic()
        self._settled = 0
        self._timeout = timeout

    @property
    def is_open(self) -> bool:
        """Tell whether it is neither done nor given up."""
        return not self.is_done and self.failure is None

    @property
    def settled(self) -> int:
        """How many records of the backlog are settled, near enough for a progress bar."""
        return min(self.backlog.settled().appended, self.backlog.records)

    def look(self) -> None:
        """See how far it is, whoever delivers; give up if it takes too long."""
        if self.backlog.is_settled():
            self.is_done = True
            return
        now = time.monotonic()
        if self.settled != self._settled:
            self._settled, self._moved = self.settled, now
        if self._timeout is not None and now - self._began >= self._timeout:
            self.give_up(f"not delivered within {text.duration(self._timeout)}")
        elif self._timeout is None and now - self._moved >= _PATIENCE_SECONDS:
            self.give_up(f"no progress for {text.duration(_PATIENCE_SECONDS)}")

    def give_up(self, reason: str) -> None:
        """Remember why, while it can still be seen."""
        sight = look(self.directory)
        report = sight.report
        if trouble := self.flusher.trouble:
            cause = sentence(trouble)
        elif report.state in ("retrying", "circuit_open") and report.last_error:
            cause = f"{sentence(report.last_error)} {meaning_of(report.last_error)}"
        else:
            cause = why(sight) if report.state == "stalled" else ""
        self.failure = (
            f"{text.stay(report.pending)} in {self.directory.path}: {reason}. "
            f"{cause}{' ' if cause else ''}They are kept, and sent by whoever leads next."
        )

    def summary(self) -> str:
        """Say what was done."""
        seconds = text.duration(time.monotonic() - self._began)
        if not self.backlog.records:
            return f"{self.target}: nothing was pending."
        dead = self.backlog.settled().dead_lettered
        letters = ", ".join(f"{count:,} {reason}" for reason, count in sorted(dead.items()))
        settled = f"{text.records(self.backlog.records)} in {seconds}"
        if dead:
            return f"{self.target}: settled {settled}; not deliverable: {letters} (see dead_letters.jsonl)."
        return f"{self.target}: delivered {settled}."


def _once(spools: Spools, timeout: float | None, wish: Wish) -> int:
    jobs = [Job(directory, timeout) for directory in spools.open()]
    if not jobs and spools.is_whole:
        spools.say_there_is_none()
    with display(has_end=True) as shown:
        for job in jobs:
            if job.backlog.records:
                shown.say(f"{job.target}: {text.records(job.backlog.records)} to deliver.")
            if job.backlog.is_empty:
                job.is_done = True
            else:
                job.flusher.start()
        while any(job.is_open for job in jobs):
            for job in filter(lambda job: job.is_open, jobs):
                if wish.times:
                    job.give_up("interrupted")
                else:
                    job.look()
                if job.backlog.records:
                    shown.show(job.target, job.settled, job.backlog.records, _whose(job.flusher))
            if any(job.is_open for job in jobs):
                time.sleep(_POLL_SECONDS)
    _end([job.flusher for job in jobs if not job.backlog.is_empty], 0.0, wish)
    for job in jobs:
        if job.is_done:
            print(job.summary(), flush=True)
        if job.backlog.foreign:
            job.failure = f"segments {job.backlog.foreign} of {job.directory.path} are for a newer cwsink: they stay."
        if job.failure:
            complain(job.failure)
    return DONE if jobs and spools.is_whole and all(job.failure is None for job in jobs) else NOT_DONE


def _serve(spools: Spools, drain_seconds: float | None, wish: Wish) -> int:
    flushers: dict[str, DedicatedFlusher] = {}
    counts: dict[str, int] = {}
    look_for_spools_at = 0.0
    is_waiting = False
    with display(has_end=False) as shown:
        while not wish.times:
            if time.monotonic() >= look_for_spools_at:
                look_for_spools_at = time.monotonic() + _NEW_SPOOLS_SECONDS
                for directory in spools.open():
                    if directory.path not in flushers:
                        flushers[directory.path] = DedicatedFlusher(directory, in_a_hurry=False)
                        counts[directory.path] = _delivered(flushers[directory.path])
                        flushers[directory.path].start()
                        shown.say(f"{_target(directory)}: standing for election in {directory.path}")
                if not flushers and not spools.is_whole:
                    return NOT_DONE
                if not flushers and not is_waiting:
                    shown.say(f"No spool in {spools.place} yet: waiting for the first worker to log.")
                    is_waiting = True
            for path, flusher in flushers.items():
                delivered = _delivered(flusher) - counts[path]
                shown.show(_target(flusher.directory), delivered, None, _whose(flusher))
            time.sleep(_POLL_SECONDS)
        for flusher in flushers.values():
            if flusher.epoch:
                shown.say(f"{_target(flusher.directory)}: told to end; delivering what is there.")
        _end(list(flushers.values()), drain_seconds, wish)
    code = DONE
    for path, flusher in flushers.items():
        delivered = _delivered(flusher) - counts[path]
        print(f"{_target(flusher.directory)}: ended; {text.records(delivered)} delivered meanwhile.", flush=True)
        pending = survey(flusher.directory).pending
        if pending and (flusher.gave_up or not flusher.has_ended(0.0)):
            complain(f"{text.stay(pending)} in {flusher.directory.path}: not delivered in time. They are kept.")
            code = NOT_DONE
    return code


def _end(flushers: list[DedicatedFlusher], drain_seconds: float | None, wish: Wish) -> None:
    """Have all of them leave, and wait for it; a further signal makes them leave at once."""
    asked = wish.times
    until = 0.0
    for flusher in flushers:
        seconds = flusher.config.drain_timeout_seconds if drain_seconds is None else drain_seconds
        flusher.leave(seconds)
        until = max(until, time.monotonic() + seconds + flusher.request_seconds + _COMMIT_SECONDS)
    while time.monotonic() < until and not all(flusher.has_ended(_POLL_SECONDS) for flusher in flushers):
        if wish.times > asked:
            asked = wish.times
            for flusher in flushers:
                flusher.leave(0.0)


def _delivered(flusher: DedicatedFlusher) -> int:
    """Return how many records of the spool were delivered ever, by any process."""
    return cursor.read(flusher.directory.cursor).ledger.delivered


def _whose(flusher: DedicatedFlusher) -> str:
    """Say who leads, and whether it gets on."""
    published = leader_state.read(flusher.directory)
    if flusher.epoch:
        is_in_trouble = (
            published and published.epoch == flusher.epoch and published.state in ("retrying", "circuit_open")
        )
        return "leading, retrying" if is_in_trouble else "leading"
    if not lease.is_taken(flusher.directory):
        return "being elected"
    return f"pid {published.pid} on {published.host} leads" if published else "another process leads"


def _target(directory: SpoolDirectory) -> str:
    spool_format = directory.format
    return text.printable(f"{spool_format.log_group_name} → {spool_format.log_stream_name}", one_line=True)
