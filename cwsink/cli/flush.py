"""`cwsink flush`: a dedicated flusher. With `--once` it delivers what is there now, else it serves (cwsink.cli.serve).

The main thread looks at files, shows what it sees and listens to signals. For each spool another thread stands for
election and leads (cwsink.flusher.election).
"""

from __future__ import annotations

import argparse

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, complain, say
from cwsink.cli.flushing import StopRequests
from cwsink.cli.job import SpoolDrain, follow
from cwsink.cli.progress import display
from cwsink.cli.spools import Spools
from cwsink.flusher.adoption import give_back
from cwsink.flusher.instructions import config_of
from cwsink.spool import disk
from cwsink.spool.directory import SpoolDirectory


def run(options: argparse.Namespace) -> int:
    """Flush once, or until told to end. Returns the exit code."""
    if options.once:
        return _once(Spools(options.path, read_only=False, leaves_others=True), options.timeout)
    from cwsink.cli import serve

    return serve.run(options)


def _once(spools: Spools, timeout: float | None) -> int:
    stops = StopRequests()
    drains = [drain for directory in spools.find() if (drain := _drain(directory, spools, timeout))]
    with display(has_end=True) as shown:
        for drain in drains:
            if drain.backlog.data_bytes:
                shown.say(f"{drain.target}: {words.size(drain.backlog.data_bytes)} to deliver.")
        follow(drains, stops, shown)
    for drain in drains:
        if drain.is_done:
            say(drain.summary())
            give_back(drain.directory)
        if drain.failure:
            complain(drain.failure)
    return DONE if drains and spools.is_whole and all(drain.failure is None for drain in drains) else NOT_DONE


def _drain(directory: SpoolDirectory, spools: Spools, timeout: float | None) -> SpoolDrain | None:
    """Return what follows a spool. None: it cannot be sent, which is said. The others are sent all the same."""
    with spools.missing(directory.path, "cannot flush", "Its records stay there."):
        try:
            config_of(directory)
        except OSError as error:
            if not disk.is_unreadable(error):  # else the leader tries again until its patience is over
                raise
        return SpoolDrain(directory, timeout=timeout)
    return None
