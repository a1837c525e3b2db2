"""What a benchmark leaves behind: lines and tables on the terminal, the same and its plots in `benchmarks/results/`.

    NAME.md        the header (machine, versions, commit), the command, each table
    NAME[-PLOT].svg

Committed once for each release. A quick run (`--quick`: does it work at all?) writes no files unless told where.
"""

from __future__ import annotations

import argparse
import compileall
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import cwsink
from benchmarks import machine

RESULTS: Final = Path(__file__).parent / "results"
COLOURS: Final = ("#0b6e99", "#d9730d", "#6940a5", "#0f7b6c", "#ad1a72", "#64473a", "#dfab01", "#e03e3e", "#37352f")
FLOOR_COLOUR: Final = "#9b9a97"
MOST_INSIDE: Final = 5  # series whose legend finds room between the lines of a plot
# A page often shows a plot at half its size.
TITLE_POINTS: Final = 15
TEXT_POINTS: Final = 12


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add what all benchmarks understand."""
    parser.add_argument("--quick", action="store_true", help="a short run, to see whether it works; writes no files")
    parser.add_argument(
        "--results", type=Path, help=f"where to write table and plots (default: benchmarks/{RESULTS.name})"
    )


class Report:
    """One run of one benchmark. Everything said is printed at once, and written by `save`."""

    def __init__(self, name: str, options: argparse.Namespace, *packages: str) -> None:
        self._name = name
        self._place: Path | None = options.results or (None if options.quick else RESULTS)
        self._said = [f"# {name}\n"]
        if not options.quick:  # as the peers are, by pip: compiling takes a worker time, and a MiB
            compileall.compile_dir(Path(cwsink.__file__).parent, quiet=2)
        command = " ".join(["python -m", f"benchmarks.{name}", *sys.argv[1:]])
        self.say(machine.header(*packages), f"`{command}`")

    def say(self, *paragraphs: str) -> None:
        """Print paragraphs."""
        for each in paragraphs:
            print(each, end="\n\n", flush=True)
            self._said.append(f"{each}\n")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; the first column is text, the others stand to the right."""
        cells = [list(columns), *([str(cell) for cell in row] for row in rows)]
        widths = [max(3, *(len(row[index]) for row in cells)) for index in range(len(columns))]
        lines = []
        for row in cells:
            padded = [
                cell.rjust(width) if index else cell.ljust(width)
                for index, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append(f"| {' | '.join(padded)} |")
        rules = [("-" * (width - 1) + ":") if index else "-" * width for index, width in enumerate(widths)]
        lines.insert(1, f"| {' | '.join(rules)} |")
        self.say("\n".join(lines))

    def lines(
        self,
        title: str,
        x_label: str,
        y_label: str,
        series: Mapping[str, Sequence[tuple[float, float]]],
        *,
        plot: str = "",
        log_x: bool = False,
        log_y: bool = False,
    ) -> None:
        """Plot each series of (x, y) as a line. A series named "... (floor)" is drawn dashed and grey.

        Args:
            title: the question that the plot answers.
            x_label, y_label: with units.
            series: points of each line, by its name.
            plot: the end of the file's name, where a benchmark has several plots.
            log_x, log_y: logarithmic axes; x is then marked at the points themselves.
        """
        if (axes := self._axes(title, x_label, y_label)) is None:
            return
        for (name, points), style in zip(series.items(), _styles(series), strict=True):
            axes.plot([x for x, _ in points], [y for _, y in points], label=name, marker="o", markersize=4, **style)
        if log_x:
            axes.set_xscale("log", base=2)
            at = sorted({x for points in series.values() for x, _ in points})
            axes.set_xticks(at, [f"{x:,.10g}" for x in at])
            axes.minorticks_off()
        if log_y:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:,g}")
            axes.yaxis.set_minor_formatter(_minor_labels())
        else:
            axes.set_ylim(bottom=0)
        if len(series) > MOST_INSIDE:
            axes.figure.set_figwidth(10.5)
            axes.figure.legend(frameon=False, fontsize=TEXT_POINTS, loc="outside right upper")
        else:
            axes.legend(frameon=False, fontsize=TEXT_POINTS)
        self._save_plot(axes, plot)

    def bars(
        self,
        title: str,
        label: str,
        groups: Mapping[str, Mapping[str, float]],
        *,
        plot: str = "",
        log: bool = False,
    ) -> None:
        """Plot horizontal bars: for each group (up to down) one bar for each series.

        Args:
            title: the question that the plot answers.
            label: of the values, with their unit.
            groups: {group: {series: value}}; a missing value has no bar.
            plot: the end of the file's name, where a benchmark has several plots.
            log: a logarithmic axis.
        """
        if (axes := self._axes(title, label, "")) is None:
            return
        series = list(dict.fromkeys(name for group in groups.values() for name in group))
        height = 0.8 / len(series)
        for index, (name, style) in enumerate(zip(series, _styles(series), strict=True)):
            at = [
                place + height * (index - (len(series) - 1) / 2)
                for place, group in enumerate(groups.values())
                if name in group
            ]
            values = [group[name] for group in groups.values() if name in group]
            drawn = axes.barh(at, values, height * 0.9, label=name, color=style["color"])
            axes.bar_label(
                drawn,
                fmt=lambda value: f"{value:,.0f}" if value >= 100 else f"{value:.3g}",
                fontsize=TEXT_POINTS - 1,
                padding=3,
            )
        axes.set_yticks(range(len(groups)), list(groups))
        axes.invert_yaxis()
        if log:
            axes.set_xscale("log")
        axes.margins(x=0.15)
        if len(series) > 1:
            axes.legend(frameon=False, fontsize=TEXT_POINTS)
        axes.figure.set_figheight(1.5 + 0.32 * len(groups) * max(1.0, len(series) * 0.75))
        self._save_plot(axes, plot)

    def save(self) -> None:
        """Write the table's file."""
        if self._place is not None:
            self._place.mkdir(parents=True, exist_ok=True)
            (self._place / f"{self._name}.md").write_text("\n".join(self._said), encoding="utf-8")

    def _axes(self, title: str, x_label: str, y_label: str) -> Any:
        """Return empty axes, or None if nothing is to be drawn."""
        if self._place is None:
            return None
        import matplotlib as mpl

        mpl.use("svg")
        # Text stays text, and the same numbers give the same file.
        mpl.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "cwsink", "font.family": "sans-serif", "font.size": TEXT_POINTS}
        )
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(8.5, 5), layout="constrained")
        # Of the figure, not of the axes, which stand to the right of long labels.
        figure.suptitle(title, fontsize=TITLE_POINTS, x=0.01, ha="left")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        return axes

    def _save_plot(self, axes: Any, plot: str) -> None:
        from matplotlib import pyplot

        assert self._place is not None
        self._place.mkdir(parents=True, exist_ok=True)
        name = f"{self._name}-{plot}.svg" if plot else f"{self._name}.svg"
        axes.figure.savefig(self._place / name, metadata={"Date": None})
        pyplot.close(axes.figure)
        self._said.append(f"![{axes.figure.get_suptitle()}]({name})\n")


def _minor_labels() -> Any:
    """Return what labels the minor ticks of a logarithmic axis: few enough of them, and none as "6e-01"."""
    from matplotlib.ticker import LogFormatter

    class Plain(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:,g}" if super().__call__(x, pos) else ""

    return Plain(minor_thresholds=(2, 0.4))


def _styles(names: Any) -> list[dict[str, Any]]:
    """Return a colour for each name; floors are grey and dashed."""
    colours = iter(COLOURS * 3)
    return [
        {"color": FLOOR_COLOUR, "linestyle": "--"} if name.endswith("(floor)") else {"color": next(colours)}
        for name in names
    ]
