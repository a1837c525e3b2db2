"""Prints what `cwsink status` shows to people (cwsink.watching.screen), once or again and again."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from typing import Final

from rich.live import Live
from rich.text import Text

from cwsink.cli import DONE, leaving
from cwsink.cli.terminal import Terminal
from cwsink.spool.stats import SpoolStats
from cwsink.watching.screen import page

# Lines in a pipe are for grep, so they are not folded.
_UNFOLDED: Final = 10_000


def show(looks: Iterator[tuple[list[SpoolStats], int]], watch: float | None) -> int:
    """Print the first look, or with `watch` show each look. Returns the exit code."""
    console = Terminal(highlight=False)
    if watch is None:
        spools, code = next(looks)
        _print(console, spools)
        return code
    if not console.is_live:
        for spools, _ in looks:
            print(time.strftime("-- %Y-%m-%d %H:%M:%S"))
            _print(console, spools)
            sys.stdout.flush()
            time.sleep(watch)
        return DONE
    spools = []
    try:
        live = Live(console=console, screen=True, auto_refresh=False)
        with leaving.in_order(live):
            for spools, _ in looks:
                heading = Text(f"{time.strftime('%H:%M:%S')}, every {watch:g} s, Ctrl-C ends\n\n", "dim")
                live.update(heading + page(spools, console.width), refresh=True)
                time.sleep(watch)
    except KeyboardInterrupt:
        _print(console, spools)  # the last look stays on the screen
    return DONE


def _print(console: Terminal, spools: list[SpoolStats]) -> None:
    is_folded = console.is_terminal or "COLUMNS" in os.environ
    shown = page(spools, console.width if is_folded else _UNFOLDED)
    console.print(shown, end="", soft_wrap=True)
