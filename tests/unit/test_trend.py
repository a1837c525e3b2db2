"""What `cwsink top` makes of its looks, without files and without a screen."""

from __future__ import annotations

from typing import Any, Final

import pytest
from msgspec.structs import replace

from cwsink.spool.leadership import Leader
from cwsink.spool.stats import SpoolStats
from cwsink.top import columns
from cwsink.top.trend import SORTS, Trend

STATS: Final = SpoolStats(
    path="/root/a",
    log_group_name="/app",
    log_stream_name="web-1",
    region=None,
    state="idle",
    leader=None,
    epoch=0,
    appended=0,
    delivered=0,
    pending=0,
    pending_bytes=0,
    oldest_pending_seconds=None,
    dead_lettered={},
    dead_letters={},
    replayed={},
    evicted=0,
    refused={},
    lost=0,
    is_losing=False,
    lost_since=None,
    lost_until=None,
    lost_why=None,
    resent=0,
    corrupt_bytes=0,
    capacity_bytes=1000,
    last_error=None,
    obstacle="",
    last_success=None,
    failing_since=None,
    is_behind=False,
    requests={},
    sent_bytes=0,
    request_seconds={},
    settings={},
    settings_from=None,
    unable=[],
    used_bytes=0,
    disk_free_bytes=None,
    history_bytes=0,
    history_seconds=None,
    records_per_second=0.0,
    last_success_seconds=None,
    leader_silent_seconds=0.0,
    leader_is_stopped=False,
    led_by_host=None,
    written_by="web-1",
    orphan_seconds=None,
)


def spool(path: str = "/root/a", **changes: Any) -> SpoolStats:
    return replace(STATS, path=path, **changes)


def test_rates_are_the_difference_of_two_looks() -> None:
    """Appended a second, and settled a second: a dead letter is settled, too."""
    trend = Trend()
    trend.add([spool(appended=10, delivered=10)], 100.0)
    assert [(row.into, row.out, list(row.history)) for row in trend.rows()] == [(None, None, [])]
    trend.add([spool(appended=30, delivered=14, dead_lettered={"too_old": 1})], 102.0)
    assert [(row.into, row.out, list(row.history)) for row in trend.rows()] == [(10.0, 2.5, [2.5])]


def test_a_spool_that_was_made_anew_begins_anew() -> None:
    """No rate is negative, and a spool that is gone is forgotten with its history."""
    trend = Trend()
    trend.add([spool(appended=10, delivered=10)], 100.0)
    trend.add([spool(appended=2)], 101.0)
    assert trend.rows()[0].into is None
    trend.add([spool(appended=4)], 102.0)
    assert trend.rows()[0].into == 2.0
    trend.add([], 103.0)
    assert trend.rows() == []
    trend.add([spool(appended=4)], 104.0)
    assert list(trend.rows()[0].history) == []


def test_five_minutes_are_kept() -> None:
    """Older looks go, so the memory is bounded."""
    trend = Trend()
    for second in range(1000):
        trend.add([spool(appended=second, delivered=second)], float(second))
    assert len(trend.rows()[0].history) == 300


def test_each_order() -> None:
    """The worst one first: a state that delivers nothing, then losses, then what waits longest."""
    fine = spool("/r/fine", log_group_name="/a", delivered=100, appended=100, used_bytes=900)
    losing = spool("/r/losing", log_group_name="/b", evicted=7, lost=7, appended=7)
    late = spool("/r/late", log_group_name="/c", state="no_leader", pending=1, appended=1, oldest_pending_seconds=60.0)
    trend = Trend()
    trend.add([fine, losing, late], 0.0)
    trend.add([replace(fine, appended=300, delivered=100), losing, replace(late, delivered=9, appended=10)], 1.0)
    order = {sort: [row.spool.path.removeprefix("/r/") for row in trend.rows(sort)] for sort in SORTS}
    assert order == {
        "worst": ["late", "losing", "fine"],
        "name": ["fine", "losing", "late"],
        "in": ["fine", "late", "losing"],
        "out": ["late", "fine", "losing"],
        "lag": ["late", "fine", "losing"],
        "fill": ["fine", "losing", "late"],
    }


@pytest.mark.parametrize(
    ("values", "width", "line"),
    [
        ([], 5, ""),
        ([0, 0], 5, "▁▁"),
        ([0, 1, 2], 5, "▁▅█"),
        ([1] * 10, 5, "█████"),
        ([8, 8, 0, 0, 0], 2, "█▁"),
        ([1], 0, ""),
    ],
)
def test_a_history_in_a_few_characters(values: list[float], width: int, line: str) -> None:
    """The newest at the right, several looks in one character if there is no room."""
    assert columns.spark(values, width) == line
    assert len(columns.spark(values, width, is_ascii=True)) == len(line)


@pytest.mark.parametrize(
    ("share", "bar"), [(0.0, "░░░░"), (0.001, "█░░░"), (0.5, "██░░"), (1.0, "████"), (1.3, "████")]
)
def test_a_bar(share: float, bar: str) -> None:
    """Never wider than it may be, and never empty for what is not nothing."""
    assert columns.bar(share, 4) == bar
    assert columns.bar(share, 4, is_ascii=True) == bar.replace("█", "#").replace("░", ".")


def test_the_words_of_a_row() -> None:
    """An error only while it lasts; foreign text cannot act."""
    leader = Leader(1, "h", 7, "own")
    trend = Trend()
    found = spool(
        log_stream_name="a\x1b[31m",
        state="retrying",
        leader=leader,
        pending=1,
        last_error="Throttling\x07: rate",
        evicted=3,
        lost=3,
    )
    trend.add([found, spool("/root/b", last_error="Old: over", last_success_seconds=200.0)], 0.0, {"/root/a": 4})
    first, second = trend.rows()
    words = {column.heading: column.of(first, False) for column in columns.shown(200)}
    assert words["last answer"] == "Throttling\\x07"
    assert (words["epoch"], words["writers"], words["lost"], words["in/s"]) == ("7", "4", "3", "-")
    assert columns.answer(second) == "ok 3m ago"
    assert [columns.brief(each) for each in (0.04, 12, 75, 7300, 200_000)] == ["0.0s", "12s", "1m", "2h", "2d"]
    assert [columns.rate(each) for each in (None, 0.0, 0.44, 1234.5)] == ["-", "0", "0.4", "1,234"]


def test_a_narrow_screen_has_fewer_columns() -> None:
    """The state, how far behind it is and what was lost are on each screen."""
    headings = {width: [column.heading for column in columns.shown(width)] for width in (40, 80, 120)}
    assert headings[40] == ["state", "out/s", "lag", "lost"]
    assert headings[80] == ["state", "in/s", "out/s", "lag", "fill", "lost"]
    assert len(headings[120]) == 10
