"""`cwsink status`: look at spools (cwsink.cli.sight), and print JSON, or text for people (cwsink.cli.status_view)."""

from __future__ import annotations

import argparse
import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict

from cwsink.cli import DONE, NOT_DONE
from cwsink.cli.sight import SpoolView, look
from cwsink.cli.spools import Spools
from cwsink.printable import printable_json
from cwsink.spool.directory import SpoolDirectory


def run(options: argparse.Namespace) -> int:
    """Print once, or with --watch until Ctrl-C. Returns the exit code."""
    with contextlib.suppress(KeyboardInterrupt):
        looks = _looks_at(Spools(options.path, read_only=True))
        if options.json:
            return _print_json(looks, options.watch)
        from cwsink.cli import status_view

        return status_view.show(looks, options.watch)
    return DONE


def _print_json(looks: Iterator[tuple[list[SpoolView], int]], watch: float | None) -> int:
    for views, code in looks:
        content = {"spools": [asdict(view.report) for view in views]}
        print(printable_json(json.dumps(content, indent=None if watch else 2)), flush=True)
        if watch is None:
            return code
        time.sleep(watch)
    return DONE


def _looks_at(spools: Spools) -> Iterator[tuple[list[SpoolView], int]]:
    """Look again and again. Yields the views of all spools, and the exit code."""
    while True:
        views = [view for directory in spools.find() if (view := _try_to_look(directory, spools))]
        yield views, DONE if views and spools.is_whole else NOT_DONE
        spools.is_whole = True


def _try_to_look(directory: SpoolDirectory, spools: Spools) -> SpoolView | None:
    with spools.missing(directory.path, "cannot read the spool"):
        return look(directory)
    return None
