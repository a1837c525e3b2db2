"""`cwsink check`: one line and an exit code, for Nagios, a cron job, or a readiness probe of Kubernetes.

It reads files only (cwsink.spool.stats), and loads neither rich nor botocore. A liveness probe must not use it, because
it would have Kubernetes restart the application because CloudWatch is away, and a restart mends nothing there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from cwsink import words
from cwsink.cli import say
from cwsink.errors import CwsinkError
from cwsink.spool.directory import expect_spools
from cwsink.spool.root import CLOSED
from cwsink.spool.stats import SpoolStats, stats

OK, WARNING, CRITICAL = 0, 1, 2
_WORDS = {OK: "OK", WARNING: "WARNING", CRITICAL: "CRITICAL"}
# Records that wait longer than `--max-age` by this factor, or in a spool that is nearly full, are about to be lost.
_FAR_BEHIND = 5
_NEARLY_LOST_FILL = 0.95


def run(options: argparse.Namespace) -> int:
    """Print one line. Returns the exit code: 0 all is well, 1 a warning, 2 records are lost or about to be."""
    try:
        expect_spools(options.path)
        found = stats(options.path)
    except (CwsinkError, OSError) as error:
        # Monitoring reads stdout, and takes code 1, which other commands fail with, for a mere warning.
        say(f"{_WORDS[CRITICAL]}: cannot read {options.path or 'the spools'}: {error}")
        return CRITICAL
    # Where several users log to one root, each sees the spools of its own. If there is none, the PATH may be wrong.
    closed = [path for path, why in found.unreadable.items() if why == CLOSED and found.spools]
    cannot = {path: why for path, why in found.unreadable.items() if path not in closed}
    troubles = [(CRITICAL, f"cannot read {path}: {why.rstrip('.')}") for path, why in cannot.items()]
    for spool in found.spools:
        name = words.target(spool.log_group_name, spool.log_stream_name)
        troubles += [(code, f"{name}: {what}") for code, what in _troubles(spool, options)]
    troubles.sort(key=lambda trouble: -trouble[0])
    code = troubles[0][0] if troubles else OK
    waiting = sum(spool.pending for spool in found.spools)
    books = f"{words.counted(len(found.spools), 'spool')}, {words.records(waiting)} waiting"
    books += f"; {words.counted(len(closed), 'spool')} of other users not seen" if closed else ""
    say(f"{_WORDS[code]}: {'; '.join([*(what for _, what in troubles), books])}")
    return code


def _troubles(spool: SpoolStats, options: argparse.Namespace) -> Iterator[tuple[int, str]]:
    """Yield what is wrong with a spool, each with its exit code."""
    age = spool.oldest_pending_seconds or 0.0
    if age > options.max_age:
        code = WARNING if spool.state == "delivering" and age <= _FAR_BEHIND * options.max_age else CRITICAL
        stopped = "" if spool.stopped_flusher is None else f", pid {spool.stopped_flusher} is a stopped process"
        yield code, f"the oldest record has waited {words.duration(age)} ({spool.state}{stopped})"
    fill = spool.fill if spool.pending else 0.0
    if fill > options.max_fill / 100:
        yield CRITICAL if fill > _NEARLY_LOST_FILL else WARNING, f"the spool is {fill:.0%} full"
    if spool.is_losing and spool.lost_is_over:
        until = f"until {spool.lost_until[11:16]} UTC, " if spool.lost_until else ""
        yield CRITICAL, f"{words.records(spool.lost)} lost {until}and none now"
    elif spool.is_losing:
        yield CRITICAL, f"records are being lost, {spool.lost:,} so far"
    elif options.no_losses and spool.lost:
        yield CRITICAL, f"{words.records(spool.lost)} lost"
    if options.no_losses and spool.dead_letters_dropped:
        yield CRITICAL, f"{words.counted(spool.dead_letters_dropped, 'dead letter')} lost"
    if options.no_dead_letters and (dead := sum(spool.dead_letters.values())):
        yield WARNING, f"{words.counted(dead, 'dead letter')}"
