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
from cwsink.cli.spools import Look
from cwsink.cli.terminal import Terminal
from cwsink.watching.screen import page

# Lines in a pipe are for grep, so they are not folded.
_UNFOLDED: Final = 10_000


def show(looks: Iterator[Look], watch: float | None) -> int:
    """Print the first look, or with `watch` show each look. Returns the exit code."""
    console = Terminal(highlight=False)
    if watch is None:
        look = next(looks)
        _print(console, look)
        return look.code
    if not console.is_live:
        for look in looks:
            print(time.strftime("-- %Y-%m-%d %H:%M:%S"))
            _print(console, look)
            sys.stdout.flush()
            time.sleep(watch)
        return DONE
    look = Look([], {})
    try:
        live = Live(console=console, screen=True, auto_refresh=False)
        with leaving.in_order(live):
            for look in looks:
                heading = Text(f"{time.strftime('%H:%M:%S')}, every {watch:g} s, Ctrl-C ends\n\n", "dim")
                live.update(heading + page(look.spools, console.width, len(look.unreadable)), refresh=True)
                time.sleep(watch)
    except KeyboardInterrupt:
        _print(console, look)  # the last look stays on the screen
    return DONE


def _print(console: Terminal, look: Look) -> None:
    is_folded = console.is_terminal or "COLUMNS" in os.environ
    shown = page(look.spools, console.width if is_folded else _UNFOLDED, len(look.unreadable))
    console.print(shown, end="", soft_wrap=True)
