"""`cwsink replay PATH` and `--all`: send what lies in spools that nobody looks after.

An election (cwsink.flusher.election) for one spool after the other: it takes the lease like
any leader, sends to the target in the spool's FORMAT and commits as it goes. So an
interrupted replay goes on where it was, and workers that come back meanwhile lose nothing.

What is emptied stays, with its dead letters and its ledger, and a worker may be opening it at this very
moment; but it gives its disk space back, and takes a few KiB then.
"""

from __future__ import annotations

import argparse
import shlex
import time
from typing import Final

from cwsink import naming
from cwsink.cli import DONE, NOT_DONE, complain, text
from cwsink.cli.flush import Job, Wish
from cwsink.cli.progress import Display, display
from cwsink.cli.spools import Spools
from cwsink.errors import CwsinkError
from cwsink.flusher.limits import MAX_PAST_MS
from cwsink.spool import heartbeat, leader_state, lease, orphans
from cwsink.spool.directory import SpoolDirectory

_POLL_SECONDS: Final = 0.1
# After the last request's time is over, what is left to do is to commit.
_COMMIT_SECONDS: Final = 1.0


def run(options: argparse.Namespace) -> int:
    """Replay, or say what would be."""
    spools = Spools(options.path, read_only=options.dry_run)
    found = spools.open()
    if not found and spools.is_whole:
        spools.say_there_is_none()
        return NOT_DONE
    chosen = [directory for directory in found if orphans.is_orphan(directory)] if options.all else found
    if options.all and not chosen:
        print(f"No orphans in {spools.place}.")
    if options.dry_run:
        for directory in chosen:
            print(_would_do(directory))
        print("Dry run: nothing was changed.")
        return DONE if spools.is_whole else NOT_DONE
    is_done = Replay(chosen, options.rate).run()
    return DONE if is_done and spools.is_whole else NOT_DONE


class Replay:
    """Sends spools, one after the other: a rate is of all of them, and each one takes a client's memory."""

    def __init__(self, directories: list[SpoolDirectory], rate: int | None) -> None:
        self._directories = directories
        self._rate = rate
        self._sent = self._records = 0
        self._failures: list[str] = []
        self._is_interrupted = False

    def run(self) -> bool:
        """Send them. Returns whether all of it was done."""
        wish = Wish()
        lines: list[str] = []
        with display(has_end=True) as shown:
            for index, directory in enumerate(self._directories):
                if self._is_interrupted:
                    left = len(self._directories) - index
                    self._failures.append(f"{left:,} more spool{'' if left == 1 else 's'} not begun.")
                    break
                try:
                    lines.append(self._replay(directory, shown, wish))
                except (CwsinkError, OSError) as error:  # the others must not wait for it
                    self._failures.append(f"cannot replay {directory.path}: {error}")
        for line in filter(None, lines):
            print(line)
        if self._sent > 1:
            print(f"{self._sent:,} spools replayed: {text.records(self._records)}.", flush=True)
        for failure in self._failures:
            complain(failure)
        return not self._failures

    def _replay(self, directory: SpoolDirectory, shown: Display, wish: Wish) -> str:
        """Send one. Returns what to say of it, "" if it is a failure."""
        if orphans.is_led(directory):
            return f"{_target(directory)}: left alone, {_leader(directory)} leads and sends it."
        job = Job(directory, None)
        job.flusher.pace = self._rate
        if not job.backlog.is_empty:
            shown.say(f"{job.target}: {text.records(job.backlog.records)} to send from {directory.path}")
            job.flusher.start()
            self._watch(job, shown, wish)
            _end(job, wish)
            job.count()
        else:
            job.is_done = True
        if job.backlog.foreign:
            job.failure = f"segments {job.backlog.foreign} of {directory.path} are for a newer cwsink: they stay."
        if job.failure:
            again = (
                f" `cwsink replay {shlex.quote(directory.path)}` goes on from there." if self._is_interrupted else ""
            )
            self._failures.append(f"{job.failure}{again}")
        if not job.is_done:
            return ""
        _give_back(directory)
        self._sent += 1
        self._records += job.backlog.records
        return job.summary()

    def _watch(self, job: Job, shown: Display, wish: Wish) -> None:
        """Follow it until it is done or given up."""
        while job.is_open:
            if wish.times:
                self._is_interrupted = True
                job.give_up("interrupted")
            elif self._rate is not None and orphans.is_attached(job.directory):
                job.give_up("processes log there again, and a replay with --rate would slow them down")
            else:
                job.look()
            if job.backlog.records:
                shown.show(job.target, job.settled, job.backlog.records, "" if job.flusher.epoch else "being elected")
            if job.is_open:
                time.sleep(_POLL_SECONDS)


def _end(job: Job, wish: Wish) -> None:
    """Wait for the request in flight, unless a further signal says not to."""
    asked = wish.times
    job.flusher.leave(0.0)
    until = time.monotonic() + job.flusher.request_seconds + _COMMIT_SECONDS
    while time.monotonic() < until and wish.times == asked and not job.flusher.has_ended(_POLL_SECONDS):
        pass


def _give_back(directory: SpoolDirectory) -> None:
    """Have an emptied spool take next to no space, unless somebody is there."""
    claim = lease.Lease(directory)
    try:
        if claim.try_acquire():
            orphans.give_back(directory)
    finally:
        claim.release()


def _would_do(directory: SpoolDirectory) -> str:
    target = _target(directory)
    if orphans.is_led(directory):
        return f"{target}: would be left alone, {_leader(directory)} leads and sends it."
    found = orphans.pending(directory)
    if not found.records:
        return f"{target}: nothing is pending."
    line = f"{target}: would send {text.records(found.records)} ({text.size(found.data_bytes)})"
    if found.oldest_ms is not None and found.newest_ms is not None:
        line += f" of {_utc(found.oldest_ms)} to {_utc(found.newest_ms)}"
        if found.oldest_ms < time.time_ns() // 1_000_000 - MAX_PAST_MS:
            line += ", the oldest too old for CloudWatch: they become dead letters"
    return f"{line}; from {text.printable(directory.path, one_line=True)}"


def _utc(timestamp_ms: int) -> str:
    return f"{naming.utc(timestamp_ms):%Y-%m-%d %H:%M:%S}Z"


def _leader(directory: SpoolDirectory) -> str:
    if other := heartbeat.elsewhere(directory):
        return f"host {text.printable(other.mark.host, one_line=True)}"
    published = leader_state.read(directory)
    return f"pid {published.pid} on {published.host}" if published else "another process"


def _target(directory: SpoolDirectory) -> str:
    spool_format = directory.format
    return text.printable(f"{spool_format.log_group_name} → {spool_format.log_stream_name}", one_line=True)
