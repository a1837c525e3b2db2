"""`cwsink status`: look at spools (cwsink.spool.stats), and print JSON, or text for people (cwsink.cli.status_view)."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator

from cwsink.cli import DONE
from cwsink.cli.spools import Look, Spools
from cwsink.printable import printable_json
from cwsink.spool.stats import look
from cwsink.watching.reasons import why


def run(options: argparse.Namespace) -> int:
    """Print once, or with --watch until Ctrl-C. Returns the exit code."""
    with contextlib.suppress(KeyboardInterrupt):
        looks = _looks_at(Spools(options.path, read_only=True))
        if options.json:
            return _print_json(looks, options.watch)
        from cwsink.cli import status_view

        return status_view.show(looks, options.watch)
    return DONE


def _print_json(looks: Iterator[Look], watch: float | None) -> int:
    for seen in looks:
        content = {
            "spools": [{**spool.as_dict(), "why": why(spool) if spool.pending else None} for spool in seen.spools],
            "unreadable": [{"path": path, "why": message} for path, message in seen.unreadable.items()],
        }
        print(printable_json(json.dumps(content, indent=None if watch else 2)), flush=True)
        if watch is None:
            return seen.code
        time.sleep(watch)
    return DONE


def _looks_at(spools: Spools) -> Iterator[Look]:
    """Look again and again."""
    while True:
        with spools.at_once():
            found = [spool for directory in spools.find() if (spool := spools.looked_at(directory, look))]
        yield Look(found, dict(spools.unreadable))
        spools.unreadable.clear()
