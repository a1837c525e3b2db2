"""`cwsink doctor`: the view of what cwsink.doctor has found: one line each, OK or what to type."""

from __future__ import annotations

import argparse
import os
from typing import Final

import msgspec
from rich.table import Column, Table
from rich.text import Text

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, whoever_reads
from cwsink.cli.terminal import Terminal
from cwsink.doctor import patient, rounds
from cwsink.doctor.finding import Finding
from cwsink.printable import printable_json

_SHOWN: Final = {
    "ok": ("OK", "green"),
    "warning": ("WARN", "yellow"),
    "wrong": ("WRONG", "red"),
    "unknown": ("?", "dim"),
}
_TOPIC_WIDTH: Final = 15


def run(options: argparse.Namespace) -> int:
    """Ask all questions. Returns the exit code: 1 if something is wrong."""
    command = options.words[1:] if options.words[:1] == ["--"] else options.words
    try:
        admitted = patient.admit(command, os.environ)
    except ValueError as error:
        options.error(f"the command cannot be read: {error}")
    console, found = Terminal(highlight=False), []
    patient.become(admitted)
    for finding in rounds.examine(admitted, probe=options.probe):
        found.append(finding)
        if not options.json:
            with whoever_reads():
                _print(console, finding)
    count = sum(finding.verdict == "wrong" for finding in found)
    with whoever_reads():
        if options.json:
            print(printable_json(msgspec.json.encode({"wrong": count, "findings": found}).decode()))
        else:
            print(f"\n{words.counted(count, 'thing')} wrong." if count else "\nNothing is wrong.")
    return NOT_DONE if count else DONE


def _print(console: Terminal, finding: Finding) -> None:
    word, style = _SHOWN[finding.verdict]
    seen = Text(finding.seen)
    if not console.is_terminal:  # a line each, for grep
        advice = f" → {finding.advice}" if finding.advice else ""
        print(f"{word:5} {finding.topic:{_TOPIC_WIDTH}} {finding.seen}{advice}")
        return
    if finding.advice:
        seen.append("\n→ ", style).append(finding.advice)
    line = Table.grid(Column(width=5), Column(width=_TOPIC_WIDTH), Column(overflow="fold"), padding=(0, 1, 0, 0))
    line.add_row(Text(word, style), Text(finding.topic, "bold"), seen)
    console.print(line)
