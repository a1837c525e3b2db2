"""The pictures of README and manual: who loses what, and what `cwsink status` and `cwsink top` show.

    python -m benchmarks.pictures

The numbers are those of benchmarks/results/losses.md. The screen is that of real spools, of which one could not be
delivered, beside a strict server.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

import matplotlib as mpl

from cwsink.testing import StrictCloudWatch

mpl.use("svg")
from matplotlib import pyplot

RESULTS: Final = Path(__file__).parent / "results"
PICTURES: Final = Path(__file__).parents[1] / "cwsink" / "manual" / "pictures"
# Reads on white and on black.
INK, LOSS, NONE = "#808890", "#e5534b", "#2da44e"
SHOWN: Final = {
    "kill-worker": "a worker is killed",
    "recycle": "workers are recycled",
    "preload": "gunicorn --preload",
    "refused": "CloudWatch is down for 10 s",
    "power-button": "all processes are killed",
    "os-exit": "os._exit",
}
# Starts what logs, with what the two commands then show; the host has a plain name.
SCENE: Final = """\
import os, sys, time
import cwsink
import cwsink.host
cwsink.host.name = lambda: "web-1"
from cwsink.cli import status_view, top
from cwsink.spool.stats import stats
from cwsink.top.board import Board
from rich.console import Console

def settled(spool):
    return spool.pending == 0 if spool.log_group_name == "/shop/prod" else spool.state == "circuit_open"

here = dict(region="eu-central-1", endpoint_url=sys.argv[1], batch_timeout_seconds=0.2)
shop = cwsink.Writer.open(log_group_name="/shop/prod", **here)
audit = cwsink.Writer.open(log_group_name="/shop/audit", region="eu-central-1", endpoint_url="http://127.0.0.1:9",
                           circuit_breaker_threshold=1, max_retries=0, batch_timeout_seconds=0.2)
for number in range(12_345):
    shop.append(f"order {number} placed")
    if number < 321:
        audit.append(f"order {number} audited")
while not all(map(settled, (spools := stats().spools))):
    time.sleep(0.2)
console = Console(record=True, width=100, highlight=False, file=open(os.devnull, "w"), force_terminal=True)
console.print("$ cwsink status", style="bold")
shown = status_view.page(sorted(spools, key=lambda spool: -spool.pending), 98)
console.print(shown)

board = Board(os.environ["CWSINK_SPOOL_DIRECTORY"])
for second in range(12):
    for number in range(300 + second % 4 * 150):
        shop.append(f"order {number} shipped")
    time.sleep(1.0)
    board.look()
console.print()
console.print("$ cwsink top", style="bold")
console.print(top._table(board, console, is_marked=False))
print(console.export_svg(title="", clear=False))
"""


def lost() -> dict[str, list[tuple[int, int]]]:
    """Return, by row of the benchmark, how many of how many were lost, for each column."""
    found = {}
    for line in (RESULTS / "losses.md").read_text(encoding="utf-8").splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[-1] in SHOWN:
            numbers = [re.findall(r"[\d,]+", cell)[:2] for cell in cells[1:-1]]
            found[cells[-1]] = [(int(one.replace(",", "")), int(all_.replace(",", ""))) for one, all_ in numbers]
    return found


def draw_losses() -> None:
    """Draw a bar for each share of records that was lost, and a word where there is none."""
    columns = ["fapilog's own sink", "watchtower", "fapilog + cwsink", "logging + cwsink"]
    rows = lost()
    pyplot.rcParams.update({"svg.hashsalt": "cwsink", "font.size": 9, "text.color": INK})
    figure, axes = pyplot.subplots(1, len(columns), figsize=(8.8, 2.6), sharey=True)
    for number, (axis, title) in enumerate(zip(axes, columns, strict=True)):
        for place, (name, values) in enumerate(rows.items()):
            one, whole = values[number]
            share = 100 * one / whole
            axis.barh(place, 100, color=INK, alpha=0.12, height=0.62)
            axis.barh(place, share, color=LOSS, height=0.62)
            label = f"{share:.0f} % lost" if share >= 1 else f"{share:.1f} % lost" if one else "none lost"
            colour = "white" if share > 50 else LOSS if one else NONE
            axis.text(
                97 if share <= 50 else 4,
                place,
                label,
                color=colour,
                va="center",
                weight="bold",
                ha="right" if share <= 50 else "left",
            )
            if number == 0:
                axis.text(-4, place, SHOWN[name], ha="right", va="center")
        axis.set_title(title, color=INK, fontsize=9.5, weight="bold" if number > 1 else "normal")
        axis.set_xlim(0, 100)
        if number == 0:
            axis.invert_yaxis()
        axis.axis("off")
    figure.subplots_adjust(left=0.25, right=0.995, top=0.88, bottom=0.02, wspace=0.06)
    figure.savefig(PICTURES / "losses.svg", transparent=True, metadata={"Date": None})


def draw_status() -> None:
    """Draw what the commands show of a spool that is delivered, and one that cannot be."""
    with StrictCloudWatch() as server, tempfile.TemporaryDirectory(prefix="cwsink-") as place:
        done = subprocess.run(
            [sys.executable, "-c", SCENE, server.endpoint_url],
            env={**os.environ, **server.environment(), "CWSINK_SPOOL_DIRECTORY": f"{place}/spools"},
            stdout=subprocess.PIPE,
            text=True,
            timeout=120,
            check=True,
        )
        shown = done.stdout.replace(f"{place}/spools", "/var/lib/cwsink")
        shown = shown.replace(f"on&#160;{socket.gethostname()}", "on&#160;web-1")
    (PICTURES / "status.svg").write_text(shown, encoding="utf-8")


def main() -> None:
    """Draw all, into the manual."""
    draw_losses()
    draw_status()
    shutil.copy(RESULTS / "append.svg", PICTURES)


if __name__ == "__main__":
    main()
