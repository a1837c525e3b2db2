"""The screen of `cwsink status` in each state: what is said first, in which colour, and in what width."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from typing import Any

import pytest
from msgspec.structs import replace
from rich.text import Text

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.naming import rfc3339
from cwsink.spool import refusals
from cwsink.spool.leadership import Leader
from cwsink.spool.record import Loss
from cwsink.spool.stats import SpoolStats, look
from cwsink.watching.screen import page
from tests.harness.support import CHILD_SECONDS, quick_config

WIDTHS = (120, 80, 40)
LEADER = Leader(4711, "web-1", 3, "own")
NOW = rfc3339(int(time.time() * 1000))
FULL = "the spool is full; CloudWatch has answered ThrottlingException for 9 min. Raise spool_max_bytes, or ask AWS."

# Each state: what differs from a spool in which nothing happened, the words that must be there, and the colour of the
# first line below the name.
STATES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "nothing logged": ({}, ["Nothing was logged here yet."], "green"),
    "delivered": (
        {"appended": 12, "delivered": 12, "last_success_seconds": 2.0},
        ["Everything is delivered: 12 records, the last 2.0 s ago."],
        "green",
    ),
    "busy": (
        {"state": "delivering", "leader": LEADER, "appended": 90, "delivered": 50, "pending": 40,
         "oldest_pending_seconds": 0.3, "records_per_second": 20.0},
        ["Delivering: 40 records wait", "the oldest for 0.3 s", "about 2.0 s left"],
        "cyan",
    ),
    "retrying": (
        {"state": "retrying", "leader": LEADER, "appended": 5, "pending": 5, "failing_since": NOW,
         "last_error": "AccessDeniedException: not authorized"},
        ["Retrying: 5 records wait", f"(since {NOW[11:16]} UTC)", "Allow the action that the error names"],
        "yellow",
    ),
    "circuit open": (
        {"state": "circuit_open", "leader": LEADER, "appended": 5, "pending": 5, "last_error": "ReadTimeoutError: x"},
        ["Circuit open, trying every 15 to 30 s: 5 records wait"],
        "red",
    ),
    "stopped": (
        {"state": "stalled", "leader": LEADER, "leader_is_stopped": True, "appended": 5, "pending": 5},
        ["Stalled: 5 records wait", "`kill -CONT 4711` lets it go on"],
        "red",
    ),
    "nobody sends": (
        {"state": "no_leader", "appended": 1, "pending": 1},
        ["Nobody sends: 1 record waits", "`cwsink flush --once /s`"],
        "yellow",
    ),
    "an orphan": (
        {"state": "no_leader", "appended": 1, "pending": 1, "orphan_seconds": 3600.0, "written_by": "web-2"},
        ["Nobody sends: 1 record waits", "An orphan of host web-2", "`cwsink flush --once /s`"],
        "yellow",
    ),
    "nearly full": (
        {"state": "retrying", "leader": LEADER, "appended": 5, "pending": 5, "used_bytes": 85, "capacity_bytes": 100,
         "last_error": "ThrottlingException: slow down"},
        ["Retrying: 5 records wait", "(85%): nothing is lost yet"],
        "yellow",
    ),
    "losing": (
        {"state": "retrying", "leader": LEADER, "appended": 24_219, "evicted": 23_825, "pending": 394, "lost": 23_825,
         "is_losing": True, "lost_since": NOW, "lost_why": FULL, "used_bytes": 99, "capacity_bytes": 100,
         "last_error": "ThrottlingException: slow down"},
        [f"LOST 23,825 records (23,825 evicted), since {NOW[11:16]} UTC: {FULL}", "Retrying: 394 records wait"],
        "bold red",
    ),
    "lost": (
        {"appended": 996, "delivered": 996, "refused": {"spool_full": 2004}, "lost": 2004, "lost_since": NOW,
         "lost_until": NOW},
        ["LOST 2,004 records (refused 2,004 spool_full)", "That is over", "Nothing waits: 996 records delivered"],
        "bold red",
    ),
    "losing until a moment ago": (
        {"appended": 996, "delivered": 996, "evicted": 4, "lost": 4, "is_losing": True, "lost_is_over": True,
         "lost_since": NOW, "lost_until": NOW, "lost_why": "the disk was full. That is over: there is room now."},
        [f"LOST 4 records (4 evicted), {NOW[11:16]} UTC: the disk was full. That is over: there is room now.",
         "Nothing waits: 996 records delivered"],
        "bold red",
    ),
    "all refused": (
        {"refused": {"spool_full": 4}, "lost": 4},
        ["LOST 4 records", "Nothing waits: all that was logged here was refused."],
        "bold red",
    ),
    "dead letters": (
        {"appended": 27, "delivered": 18, "dead_lettered": {"oversize": 1, "too_old": 8}, "replayed": {"too_old": 8},
         "dead_letters": {"oversize": 1}},
        ["Nothing waits: 18 records delivered; 1 dead letter (below).", "1 oversize: kept in /s/dead_letters.jsonl",
         "8 too_old: dead letters that were appended once more", "9 dead (8 of them replayed)",
         "`cwsink replay --dead-letters --reason oversize /s` sends what can be sent", 'the setting oversize="split"'],
        "green",
    ),
    "nothing but damage": (
        {"appended": 2, "delivered": 1, "dead_lettered": {"corrupt": 1}, "dead_letters": {"corrupt": 1}},
        ["Nothing waits: 1 record delivered; 1 dead letter (below).", "1 corrupt: kept in",
         "Nothing can send damage; `cwsink replay --dead-letters --clear /s` throws away what"],
        "green",
    ),
    "dropped letters": (
        {"appended": 65, "delivered": 18, "dead_lettered": {"too_old": 47}, "replayed": {"too_old": 6},
         "dead_letters": {"too_old": 5}, "dead_letters_dropped": 36},
        ["LOST 36 dead letters: the oldest go when all together take 8 MiB", "5 too_old: kept in",
         "47 dead (6 of them replayed, 36 lost)", "`cwsink replay --dead-letters --restamp /s`",
         "Nothing waits: 18 records delivered; 5 dead letters (below)."],
        "bold red",
    ),
    "nothing but dropped letters": (
        {"appended": 2, "delivered": 1, "dead_lettered": {"too_old": 1}, "dead_letters_dropped": 1},
        ["LOST 1 dead letter: ", "Nothing waits: 1 record delivered.", "1 dead (1 lost)"],
        "bold red",
    ),
}  # fmt: skip


@pytest.fixture
def empty(small: SinkConfig) -> SpoolStats:
    """A spool in which nothing has happened."""
    writer = Writer(small)
    return replace(look(writer.directory), path="/s", log_group_name="/shop", log_stream_name="web-1", settings={})


def style_of(screen: Text, text: str) -> str:
    at = screen.plain.index(text)
    return next(str(span.style) for span in screen.spans if span.start <= at < span.end)


@pytest.mark.parametrize("state", STATES)
def test_each_state_says_what_and_why(empty: SpoolStats, state: str) -> None:
    """All of it at each width, in the state's colour, within the width where words allow it, and no colour needed."""
    changes, expected, style = STATES[state]
    spool = replace(empty, **changes)
    for width in WIDTHS:
        screen = page([spool], width)
        flat = " ".join(screen.plain.split())
        for words in expected:
            assert words in flat, (width, screen.plain)
        assert all(len(line) <= width or " " not in line.strip() for line in screen.plain.splitlines()), width
        assert style_of(screen, expected[0].split()[0]) == style


def test_an_error_that_is_over_has_its_time(empty: SpoolStats) -> None:
    """Else nobody can tell whether it was last night or a month ago; a leader of old has not left any."""
    over = replace(empty, appended=1, delivered=1, last_error="Some: error", last_failure="2026-01-02T03:04:05.000Z")
    assert "Some: error (the last one, 2026-01-02 03:04 UTC; it is over)" in page([over], 120).plain
    assert "Some: error (the last one; it is over)" in page([replace(over, last_failure=None)], 120).plain
    waiting = replace(over, appended=2, pending=1, state="no_leader")
    assert "Some: error (the last one, 2026-01-02 03:04 UTC)" in page([waiting], 120).plain


def test_a_write_that_was_cut_is_not_called_damage(empty: SpoolStats) -> None:
    """A full disk cuts the write that it refuses: nothing is damaged, and nobody need look for it."""
    cut = replace(empty, appended=1, delivered=1, corrupt_bytes=321)
    assert "(321 bytes of cut writes)" in page([cut], 120).plain
    assert "(321 bytes damaged)" in page([replace(cut, dead_lettered={"corrupt": 1})], 120).plain


def test_the_worst_is_first_and_the_heading_counts_losses(empty: SpoolStats) -> None:
    """Losing, stuck, lost before, dead letters, busy, idle; in red how many are lost of all."""
    order = ["losing", "retrying", "lost", "dead letters", "busy", "delivered"]
    spools = [replace(empty, **STATES[name][0], log_stream_name=name.replace(" ", "-")) for name in reversed(order)]
    screen = page(spools, 120)
    places = [screen.plain.index(f"/shop → {name.replace(' ', '-')}") for name in order]
    assert places == sorted(places)
    heading = screen.plain.splitlines()[0]
    assert heading == "6 spools: LOST 25,829 records of 27,353, and more now."
    assert style_of(screen, "6 spools") == "bold red"
    assert "2 of 6 spools are behind: 399 records in all." in screen.plain


@pytest.mark.parametrize(
    ("names", "heading"),
    [
        (["delivered", "nothing logged"], "2 spools: everything is delivered."),
        (["busy", "delivered"], "2 spools, none behind: 40 records on the way."),
        (["dead letters", "delivered"], "2 spools: nothing waits; 1 dead letter."),
        (["dropped letters", "delivered"], "2 spools: LOST 36 dead letters."),
        (["nothing but dropped letters", "delivered"], "2 spools: LOST 1 dead letter."),
        (["lost", "delivered"], "2 spools: LOST 2,004 records of 3,012."),
        (["an orphan", "delivered"], "1 of 2 spools is behind: 1 record in all."),
    ],
)
def test_the_heading_is_no_better_than_the_spools(empty: SpoolStats, names: list[str], heading: str) -> None:
    """Everything is delivered only if it is; a busy host is not behind."""
    assert page([replace(empty, **STATES[name][0]) for name in names], 120).plain.splitlines()[0] == heading


def test_behind_is_who_waits_longer_than_a_batch_and_a_request(small: SinkConfig) -> None:
    """Time to gather and the time-outs of one request are no delay."""
    settled = small.batch_timeout_seconds + small.connect_timeout_seconds + small.read_timeout_seconds
    writer = Writer(small)
    writer.append("young")
    assert not look(writer.directory).is_behind
    old = Writer(quick_config(log_stream_name="old", flusher="external", segment_bytes=4096))
    old.append("old", int((time.time() - settled - 60) * 1000))
    assert look(old.directory).is_behind


@pytest.mark.parametrize(
    ("changes", "has_colour", "width"),
    [({"COLUMNS": "80"}, True, 80), ({"COLUMNS": "40", "NO_COLOR": "1"}, False, 40), (None, False, None)],
)
def test_the_command_itself(
    small: SinkConfig, changes: dict[str, str] | None, has_colour: bool, width: int | None
) -> None:
    """In a terminal with colours, and folded; with NO_COLOR without; in a pipe unfolded, for grep."""
    writer = Writer(small)
    assert refusals.add(writer.directory, [Loss(7, 1, 1, "spool_full", 0)])
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "TERM": "xterm", "PYTHONUTF8": "1", **(changes or {})}
    if changes is None:
        env.pop("COLUMNS", None)
    words = [sys.executable, "-m", "cwsink", "status"]
    if changes is None:
        out = subprocess.check_output(words, env=env, text=True, timeout=CHILD_SECONDS)
    else:
        main, other = os.openpty()
        child = subprocess.Popen(words, env=env, stdin=other, stdout=other, stderr=other)
        os.close(other)
        out = ""
        while True:
            try:
                data = os.read(main, 65536)
            except OSError:
                break
            if not data:
                break
            out += data.decode()
        os.close(main)
        assert child.wait(CHILD_SECONDS) == 0
    assert "LOST 7 records" in out
    assert (re.search(r"\x1b\[[\d;]*3\d", out) is not None) == has_colour
    longest = max(map(len, re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()))
    assert longest > 120 if width is None else longest <= width
