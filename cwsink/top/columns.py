"""The columns of `cwsink top`: the words and the bars of a row (pure).

On a narrow screen some are left out, but never what was lost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

from cwsink.printable import printable
from cwsink.top.trend import Row

_HEIGHTS: Final = "▁▂▃▄▅▆▇█"
_ASCII_HEIGHTS: Final = "_.-=+*#@"
_FILL_WIDTH: Final = 6
_SPARK_WIDTH: Final = 12
_ANSWER_WIDTH: Final = 24


class Column(NamedTuple):
    """A column.

    Attributes:
        heading: its name.
        least_width: of a screen that has room for it, in characters.
        of: its text for a row; the second argument: in ASCII.
        is_right: it is aligned at its right end.
    """

    heading: str
    least_width: int
    of: Callable[[Row, bool], str]
    is_right: bool = True


def shown(width: int) -> list[Column]:
    """Return the columns for which a screen has room."""
    return [column for column in _COLUMNS if width >= column.least_width]


def brief(seconds: float) -> str:
    """Return "0.4s", "12s", "3m", "5h", "4d"."""
    if seconds < 10:
        return f"{seconds:.1f}s"
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "m")):
        if seconds >= size:
            return f"{seconds // size:.0f}{unit}"
    return f"{seconds:.0f}s"


def rate(value: float | None) -> str:
    """Return "-" before there were two looks, "0", "0.4", "1,234"."""
    return "-" if value is None else f"{value:,.0f}" if value >= 10 or value == 0 else f"{value:.1f}"


def answer(row: Row) -> str:
    """Return what CloudWatch has said last: the code of an error that lasts, or how long ago it has taken records."""
    spool = row.spool
    if spool.last_error and spool.pending and spool.state != "delivering":
        return printable(spool.last_error.partition(":")[0], one_line=True)[:_ANSWER_WIDTH]
    return "" if spool.last_success_seconds is None else f"ok {brief(spool.last_success_seconds)} ago"


def spark(values: Sequence[float], width: int, *, is_ascii: bool = False) -> str:
    """Return values as a line of at most `width` characters, the newest at its right end, the highest as a full one."""
    if not values or width <= 0:
        return ""
    size = -(-len(values) // width)  # so many values a character; the oldest one may have fewer
    parts = [values[max(0, end - size) : end] for end in range(len(values), 0, -size)][::-1]
    means = [sum(part) / len(part) for part in parts]
    heights = _ASCII_HEIGHTS if is_ascii else _HEIGHTS
    top = max(means)
    return "".join(heights[round((len(heights) - 1) * mean / top)] if top > 0 else heights[0] for mean in means)


def bar(share: float, width: int, *, is_ascii: bool = False) -> str:
    """Return a share as a bar of `width` characters. What is more than nothing has at least one."""
    full = min(width, round(share * width)) or (share > 0)
    return ("#" if is_ascii else "█") * full + ("." if is_ascii else "░") * (width - full)


_COLUMNS: Final = (
    Column("state", 0, lambda row, _: row.spool.state, is_right=False),
    Column("in/s", 60, lambda row, _: rate(row.into)),
    Column("out/s", 0, lambda row, _: rate(row.out)),
    Column("lag", 0, lambda row, _: brief(row.lag_seconds) if row.spool.pending else ""),
    Column("fill", 70, lambda row, ascii: f"{bar(row.spool.fill, _FILL_WIDTH, is_ascii=ascii)} {row.spool.fill:4.0%}"),
    Column("lost", 0, lambda row, _: f"{row.spool.lost:,}"),
    Column("writers", 100, lambda row, _: "?" if row.writers is None else str(row.writers)),
    Column("epoch", 120, lambda row, _: str(row.spool.leader.epoch) if row.spool.leader else ""),
    Column("last answer", 115, lambda row, _: answer(row), is_right=False),
    Column("5 min", 90, lambda row, ascii: spark(row.history, _SPARK_WIDTH, is_ascii=ascii), is_right=False),
)
