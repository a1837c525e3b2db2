"""`cwsink top`: draws what cwsink.top.board has, again and again."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import time
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, leaving
from cwsink.cli.spools import Spools
from cwsink.cli.terminal import Terminal
from cwsink.printable import printable
from cwsink.top import columns
from cwsink.top.board import HELP, LOOK_SECONDS, Board
from cwsink.top.keys import Keys
from cwsink.watching import lines
from cwsink.watching.screen import STATES

_WIDTH_OF_PIPE: Final = 160
_HEADINGS: Final = 3  # lines above the rows


def run(options: argparse.Namespace) -> int:
    """Show the board until `q` or Ctrl-C; with --once, and without a terminal that can redraw, one picture."""
    is_folded = sys.stdout.isatty() or "COLUMNS" in os.environ
    console = Terminal(highlight=False, width=None if is_folded else _WIDTH_OF_PIPE)
    spools = Spools(options.path, read_only=True)
    with contextlib.closing(Board(spools.place)) as board:
        if options.once or not (console.is_live and sys.stdin.isatty()):
            board.look()
            time.sleep(LOOK_SECONDS)  # a rate needs two looks
            board.look()
            if spools.find():  # it says what cannot be read
                console.print(_table(board, console, is_marked=False))
            for path, why in board.unreadable.items():
                spools.miss(path, f"cannot read {path}: {why}.")
            return DONE if board.rows and spools.is_whole else NOT_DONE
        live = Live(console=console, screen=True, auto_refresh=False)
        keys = Keys()
        with contextlib.suppress(KeyboardInterrupt, EOFError), leaving.in_order(keys), leaving.in_order(live):
            _show(board, keys, live)
    return DONE


def _show(board: Board, keys: Keys, live: Live) -> None:
    look_at = 0.0
    is_wanted = True
    while is_wanted:
        if time.monotonic() >= look_at:
            board.look()
            look_at = time.monotonic() + LOOK_SECONDS
        live.update(_records(board, live.console) if board.tailed else _page(board, live.console), refresh=True)
        is_wanted = board.obey(keys.next(look_at - time.monotonic()))


def _page(board: Board, console: Console) -> RenderableType:
    waiting = sum(row.spool.pending for row in board.rows)
    heading = f"{time.strftime('%H:%M:%S')}  {words.counted(len(board.rows), 'spool')}, {waiting:,} waiting"
    lines = [_line(f"{heading}, sorted by {board.sort}; h help, q quit", "dim")]
    lines += [Text(HELP, "bold")] if board.has_help else []
    lines += [_line(f"cannot read {path}: {why}", "red") for path, why in board.unreadable.items()]
    return Group(*lines, _table(board, console, is_marked=True))


def _table(board: Board, console: Console, *, is_marked: bool) -> Table:
    is_ascii = console.options.ascii_only
    table = Table(box=None, expand=console.is_terminal, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column("spool", no_wrap=True, overflow="ellipsis", ratio=1)
    wanted = columns.shown(console.width)
    for column in wanted:
        table.add_column(column.heading, justify="right" if column.is_right else "left", no_wrap=True)
    room = console.height - _HEADINGS if is_marked else len(board.rows)
    first = max(0, board.chosen - room + 1)  # the chosen row is on the screen
    for number, row in list(enumerate(board.rows))[first : first + room]:
        style = "reverse" if is_marked and number == board.chosen else ""
        state, _ = STATES[row.spool.state]
        cells = [Text(column.of(row, is_ascii), state if column.heading == "state" else "") for column in wanted]
        table.add_row(Text(words.target(row.spool.log_group_name, row.spool.log_stream_name)), *cells, style=style)
    return table


def _records(board: Board, console: Console) -> RenderableType:
    assert board.tailed is not None
    today = time.strftime("%Y-%m-%d")
    room = console.height - 2
    shown = [lines.render(lines.read(event), today=today, colour=True) for event in list(board.records)[-room:]]
    cut = [line for each in shown for line in each.split("\n")][-room:]
    texts = [Text.from_ansi(line, no_wrap=True, overflow="ellipsis") for line in cut]
    name = words.target(board.tailed.spool.log_group_name, board.tailed.spool.log_stream_name)
    return Group(_line(f"{name}; Esc back, q quit", "dim"), *texts)


def _line(content: str, style: str) -> Text:
    return Text(printable(content, one_line=True), style, no_wrap=True, overflow="ellipsis")
