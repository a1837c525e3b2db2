"""The longest append: a spool that is empty, that rotates, and that is full and evicts, by size of segment.

    python -m benchmarks.worst [--seconds N]

One writer appends as fast as it can, every append is timed by itself. Nothing is delivered. A row is one policy and
segment size. "wall" is what the application waits, with all that the machine does meanwhile; "CPU" is the thread's own
time in the append that took most of it. Beside them, in the same run, the longest of as many bare `os.write` of the
same size: no append can be bounded below what the disk itself takes.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from typing import Final

from benchmarks.report import Report, add_options
from cwsink.config import SinkConfig
from cwsink.frontends.writer import Writer

DISK: Final = "/var/tmp"  # the default spool's; /tmp may be in memory
MIB: Final = 1 << 20
SEGMENTS: Final = (64 << 10, 1 * MIB, 8 * MIB, 16 * MIB)
MESSAGES: Final = (300, 20_000)
LIMIT_MS: Final = 50.0


def measure(once: Callable[[], object], seconds: float) -> tuple[int, float, float, float]:
    """Return the number of calls, the 99.9th percentile and the longest in ms of wall time, and the most ms of CPU."""
    gc.collect()
    gc.disable()
    wall: list[int] = []
    most_cpu = 0
    until = time.monotonic_ns() + int(seconds * 1e9)
    while True:
        cpu, began = time.thread_time_ns(), time.monotonic_ns()
        once()
        ended = time.monotonic_ns()
        most_cpu = max(most_cpu, time.thread_time_ns() - cpu)
        wall.append(ended - began)
        if ended >= until:
            break
    gc.enable()
    wall.sort()
    return len(wall), wall[int(len(wall) * 0.999)] / 1e6, wall[-1] / 1e6, most_cpu / 1e6


def floor(size: int, seconds: float) -> tuple[int, float, float, float]:
    """Measure bare writes of `size` bytes to a file."""
    data = b"x" * size
    with tempfile.TemporaryFile(dir=DISK, buffering=0) as file:
        return measure(lambda: file.write(data), seconds)


def append(size: int, segment_bytes: int, policy: str, seconds: float) -> tuple[int, float, float, float]:
    """Measure appends of `size` bytes to a spool that soon is full. Nobody sends."""
    with tempfile.TemporaryDirectory(dir=DISK) as root:
        writer = Writer(
            SinkConfig(
                log_group_name="/bench",
                spool_directory=root,
                flusher="external",
                spool_max_bytes=4 * segment_bytes,
                segment_bytes=segment_bytes,
                on_full=policy,  # type: ignore[arg-type]
            )
        )
        message = "x" * size
        with writer:
            return measure(lambda: writer.append(message), seconds)


def row(name: str, found: tuple[int, float, float, float]) -> tuple[str, ...]:
    """Return the cells of one measurement."""
    calls, p999, longest, cpu = found
    return name, f"{calls:,}", f"{p999:.2f}", f"{longest:.1f}", f"{cpu:.1f}"


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=6.0)
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.seconds = 0.2
    report = Report("worst", options)
    columns = ("", "appends", "p99.9 ms", "longest ms, wall", "longest ms, CPU")
    for size in MESSAGES:
        rows = [row("os.write (floor)", floor(size, options.seconds))]
        for segment_bytes, policy in itertools.product(SEGMENTS, ("drop_oldest", "drop_newest")):
            found = append(size, segment_bytes, policy, options.seconds)
            rows.append(row(f"{segment_bytes // 1024:,} KiB, {policy}", found))
        report.say(f"Messages of {size:,} bytes; the goal is {LIMIT_MS:.0f} ms, and what the disk takes.")
        report.table(columns, rows)
    report.save()


if __name__ == "__main__":
    main()
