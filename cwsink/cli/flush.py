"""`cwsink flush`: a dedicated flusher, for as long as it is wanted or for what is there now.

The main thread looks at files, shows what it sees and listens to signals; each spool has a
thread that stands for election and leads (cwsink.flusher.election). With `--once` the end is
seen in the cursor, so it does not matter whether this process or a worker delivers. Without
it: cwsink.cli.serve.
"""

from __future__ import annotations

import argparse
import signal
import time
from typing import Final

from cwsink.cli import DONE, NOT_DONE, complain, text
from cwsink.cli.backlog import Backlog
from cwsink.cli.progress import display
from cwsink.cli.spools import Spools
from cwsink.cli.status import look, meaning_of, sentence, why
from cwsink.flusher.election import Election
from cwsink.spool import cursor, leader_state, lease, segment
from cwsink.spool.directory import SpoolDirectory

POLL_SECONDS: Final = 0.1
# --once without --timeout: an outage that lasts longer than this is not waited for.
_PATIENCE_SECONDS: Final = 60.0
# How long --once waits only for delivered segments to be taken away: the next leader does that, too.
_TIDY_SECONDS: Final = 1.0
# After the last request's time is over, what is left to do is to commit.
_COMMIT_SECONDS: Final = 1.0
# Of a time that has to be kept, so much is for delivering, and the rest for the request that is in flight then.
_DRAIN_SHARE: Final = 0.9


class Wish:
    """How often TERM or INT asked us to end, and how.

    Only plain values are set by the handler: it may interrupt any line of the main thread, which polls them.

    Attributes:
        times: how often.
        is_patient: the first one was TERM, which a process manager sends, perhaps to our workers at the same time.
        is_orphaned: who started us has ended without asking.
    """

    def __init__(self) -> None:
        self.times = 0
        self.is_patient = False
        self.is_orphaned = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def look(self) -> None:
        """See whether there are wishes that do not come as signals."""

    def _note(self, number: int, *_: object) -> None:
        if not self.times:
            self.is_patient = number == signal.SIGTERM
        self.times += 1


def run(options: argparse.Namespace) -> int:
    """Flush until told to end, or once."""
    if not options.once:
        from cwsink.cli import serve

        return serve.run(options)
    wish = Wish()
    return _once(Spools(options.path, read_only=False), options.timeout, wish)


class Job:
    """One spool's part of `--once`."""

    def __init__(self, directory: SpoolDirectory, timeout: float | None) -> None:
        self.directory = directory
        self.target = target(directory)
        self.backlog = Backlog(directory)
        self.flusher = Election(directory, kind="once", in_a_hurry=True)
        self.is_done = False
        self.failure: str | None = None
        self._why = ""
        self._began = self._moved = time.monotonic()
        self._settled = 0
        self._timeout = timeout
        self._tidy_until = 0.0

    @property
    def is_tidy(self) -> bool:
        """Tell whether one segment is left, as there is when all is delivered and no idle worker holds another."""
        return len(segment.numbers(self.directory.ring)) <= 1

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
        now = time.monotonic()
        if self.backlog.is_settled():
            self._tidy_until = self._tidy_until or now + _TIDY_SECONDS
            self.is_done = self.is_tidy or now >= self._tidy_until
            return
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
        self._why = f"{reason}. {cause}{' ' if cause else ''}They are kept, and sent by whoever leads next."
        self.count()

    def count(self) -> None:
        """Say how many stay if it was given up: again once its flusher has ended, which may have got an answer."""
        if self._why and not self.backlog.is_settled():
            self.failure = f"{text.stay(look(self.directory).report.pending)} in {self.directory.path}: {self._why}"
        elif self._why:
            self.failure, self.is_done = None, True

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
            if job.backlog.is_empty and job.is_tidy:
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
                    shown.show(job.target, job.settled, job.backlog.records, whose(job.flusher))
            if any(job.is_open for job in jobs):
                time.sleep(POLL_SECONDS)
    end([job.flusher for job in jobs if job.flusher.is_started], 0.0, wish)
    for job in jobs:
        job.count()
        if job.is_done:
            print(job.summary(), flush=True)
        if job.backlog.foreign:
            job.failure = f"segments {job.backlog.foreign} of {job.directory.path} are for a newer cwsink: they stay."
        if job.failure:
            complain(job.failure)
    return DONE if jobs and spools.is_whole and all(job.failure is None for job in jobs) else NOT_DONE


def end(flushers: list[Election], drain_seconds: float | None, wish: Wish, ends_at: float | None = None) -> None:
    """Have all of them leave, and wait for it; a wish beyond the first makes them leave at once.

    Args:
        flushers: of all spools.
        drain_seconds: how long each may deliver; its drain_timeout_seconds by default.
        wish: to be asked again.
        ends_at: when it has to be over (monotonic), a request in flight or not. None: that one is waited for.
    """
    began = until = time.monotonic()
    for flusher in flushers:
        seconds = flusher.config.drain_timeout_seconds if drain_seconds is None else drain_seconds
        if ends_at is not None:
            seconds = min(seconds, max(0.0, ends_at - began) * _DRAIN_SHARE)
        flusher.leave(seconds)
        until = max(until, began + seconds + flusher.request_seconds + _COMMIT_SECONDS)
    if ends_at is not None:
        until = min(until, ends_at)
    asked = min(wish.times, 1)
    while time.monotonic() < until and not all(flusher.has_ended(POLL_SECONDS) for flusher in flushers):
        wish.look()
        if wish.times > asked:
            asked = wish.times
            until = min(until, time.monotonic() + _COMMIT_SECONDS)
            for flusher in flushers:
                flusher.leave(0.0)


def delivered(flusher: Election) -> int:
    """Return how many records of the spool were delivered ever, by any process."""
    return cursor.read(flusher.directory.cursor).ledger.delivered


def whose(flusher: Election) -> str:
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


def target(directory: SpoolDirectory) -> str:
    spool_format = directory.format
    return text.printable(f"{spool_format.log_group_name} → {spool_format.log_stream_name}", one_line=True)
