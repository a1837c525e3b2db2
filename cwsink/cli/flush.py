"""`cwsink flush`: a dedicated flusher. With `--once` it delivers what is there now, else it serves (cwsink.cli.serve).

The main thread looks at files, shows what it sees and listens to signals. For each spool another thread stands for
election and leads (cwsink.flusher.election).
"""

from __future__ import annotations

import argparse

from cwsink.cli import DONE, NOT_DONE, complain, text
from cwsink.cli.flushing import StopRequests
from cwsink.cli.job import SpoolDrain, follow
from cwsink.cli.progress import display
from cwsink.cli.spools import Spools


def run(options: argparse.Namespace) -> int:
    """Flush once, or until told to end. Returns the exit code."""
    if options.once:
        return _once(Spools(options.path, read_only=False), options.timeout)
    from cwsink.cli import serve

    return serve.run(options)


def _once(spools: Spools, timeout: float | None) -> int:
    stops = StopRequests()
    drains = [SpoolDrain(directory, timeout=timeout) for directory in spools.find()]
    with display(has_end=True) as shown:
        for drain in drains:
            if drain.backlog.records:
                shown.say(f"{drain.target}: {text.records(drain.backlog.records)} to deliver.")
            if drain.backlog.is_empty and drain.is_tidy:
                drain.is_done = True
            else:
                drain.election.start()
        follow(drains, stops, shown)
    for drain in drains:
        if drain.is_done:
            print(drain.summary(), flush=True)
        if drain.failure:
            complain(drain.failure)
    return DONE if drains and spools.is_whole and all(drain.failure is None for drain in drains) else NOT_DONE
