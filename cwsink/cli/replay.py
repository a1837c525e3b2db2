"""`cwsink replay PATH` and `cwsink replay --all`: send the records of spools that nobody looks after.

A replay runs an election (cwsink.flusher.election) for one spool after the other. It takes the lease like any leader,
sends to the target in the spool's FORMAT, and commits as it goes. So an interrupted replay goes on where it was, and
workers that come back meanwhile lose nothing.

An emptied spool stays, with its dead letters and its ledger, because a worker may be opening it at this moment. But its
disk space is given back, and it takes only a few KiB then (without `keep_delivered`).

`cwsink replay --dead-letters` is in cwsink.cli.dead_letters.
"""

from __future__ import annotations

import argparse
import time

from cwsink import naming, words
from cwsink.cli import DONE, NOT_DONE, complain, say
from cwsink.cli.flushing import StopRequests
from cwsink.cli.job import SpoolDrain, follow
from cwsink.cli.progress import Display, display
from cwsink.cli.spools import Spools, leader_name, target
from cwsink.flusher.adoption import give_back
from cwsink.limits import MAX_PAST_MS
from cwsink.spool import orphans, survey
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.stats import look
from cwsink.watching.reasons import stall


def run(options: argparse.Namespace) -> int:
    """Replay what is asked for, or print what would be replayed. Returns the exit code."""
    if wrong := _contradiction(options):
        options.error(wrong)  # it exits with code 2
    if options.dead_letters:
        from cwsink.cli import dead_letters

        return dead_letters.run(options)
    spools = Spools(options.path, read_only=options.dry_run)
    found = spools.find()
    if not found and spools.is_whole:
        return NOT_DONE
    chosen = [each for each in found if spools.looked_at(each, orphans.is_orphan)] if options.all else found
    if options.all and not chosen and spools.is_whole:  # one that cannot be opened may be an orphan
        say(f"No orphans in {spools.place}.")
    if options.dry_run:
        for line in filter(None, (spools.looked_at(each, _would_do) for each in chosen)):
            say(line)
        say("Dry run: nothing was changed.")
        return DONE if spools.is_whole else NOT_DONE
    return DONE if _replay_all(chosen, options.rate) and spools.is_whole else NOT_DONE


def _contradiction(options: argparse.Namespace) -> str | None:
    """Return which arguments do not go together, or which one is missing. None: all is well."""
    if options.dead_letters:
        wrong = [name for name, value in (("--all", options.all), ("--rate", options.rate)) if value]
        if options.clear and options.restamp:
            return "--clear throws letters away, and --restamp sends them."
        return f"{' and '.join(wrong)} cannot be combined with --dead-letters." if wrong else None
    if options.reason or options.restamp or options.clear:
        return "--reason, --restamp and --clear are for --dead-letters."
    if options.path is None and not options.all:
        return "replay what? PATH of a spool (`cwsink status` shows them), --all for every orphan, or --dead-letters."
    return None


def _replay_all(directories: list[SpoolDirectory], rate: int | None) -> bool:
    """Send the spools one after the other. Tell whether all were sent.

    Not at once, because `rate` is for all of them together, and because each spool takes the memory of a client.
    """
    stops = StopRequests()
    lines: list[str] = []
    failures: list[str] = []
    sent: list[SpoolDrain] = []
    with display(has_end=True) as shown:
        for index, directory in enumerate(directories):
            if stops.count:
                failures.append(f"{words.counted(len(directories) - index, 'more spool')} not begun.")
                break
            try:
                if orphans.is_led(directory):
                    if cause := stall(spool := look(directory)):
                        stay = f"{words.stay(spool.pending)} in {directory.path}"
                        failures.append(f"{stay}: {cause} They are kept, and the next leader sends them.")
                    else:
                        name = leader_name(directory)
                        lines.append(f"{target(directory)}: left alone, because {name} leads and sends it.")
                    continue
                drain = _replay(directory, rate, stops, shown)
            except Exception as error:  # the other spools are sent all the same
                failures.append(f"cannot replay {directory.path}: {error}")
                continue
            if drain.failure:
                failures.append(drain.failure)
            if drain.is_done:
                lines.append(drain.summary())
                sent.append(drain)
    for line in lines:
        say(line)
    if len(sent) > 1:
        records = sum(drain.sent for drain in sent)
        say(f"{len(sent):,} spools replayed: {words.records(records)}.")
    for failure in failures:
        complain(failure)
    return not failures


def _replay(directory: SpoolDirectory, rate: int | None, stops: StopRequests, shown: Display) -> SpoolDrain:
    """Send one spool until all is delivered, or until it is given up."""
    drain = SpoolDrain(directory, pace=rate)
    if drain.backlog.is_empty:
        drain.is_done = True
    else:
        shown.say(f"{drain.target}: {words.size(drain.backlog.data_bytes)} to send from {directory.path}")
    follow([drain], stops, shown)
    if drain.failure and stops.count:
        drain.failure += f" {words.to_send(directory.path)} goes on from there."
    if drain.is_done:
        give_back(directory)
    return drain


def _would_do(directory: SpoolDirectory) -> str:
    name = target(directory)
    if orphans.is_led(directory):
        cause = stall(look(directory)) or f"{leader_name(directory)} leads and sends it."
        return f"{name}: would be left alone, because {cause[0].lower()}{cause[1:]}"
    found = survey.pending(directory)
    if not found.records:
        return f"{name}: nothing is pending."
    line = f"{name}: would send {words.records(found.records)} ({words.size(found.data_bytes)})"
    if found.oldest_ms is not None and found.newest_ms is not None:
        line += f" of {_utc(found.oldest_ms)} to {_utc(found.newest_ms)}"
        if found.oldest_ms < time.time_ns() // 1_000_000 - MAX_PAST_MS:
            line += "; the oldest are too old for CloudWatch, and become dead letters"
    return f"{line}; from {directory.path}"


def _utc(timestamp_ms: int) -> str:
    return f"{naming.utc(timestamp_ms):%Y-%m-%d %H:%M:%S}Z"
