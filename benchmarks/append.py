"""What an append costs the application: CPU, p50 to p99.9 and records/s at 1 to 16 writers, next to its peers.

    python -m benchmarks.append [--records N] [--rounds N] [--directory DIRECTORY]

The same 300-byte message goes everywhere. Writers are processes that start together and log as
fast as they can; every seventh record is timed by itself. CPU is a writer's whole process (user +
system), its threads included, until all it logged has left it; the garbage collector is off for
all. What other processes spend for it stands beside it: for cwsink the leader's delivery, measured
as in `benchmarks.drain`.

The floor is a bare `os.write` of the same frames to an O_APPEND file on the same disk, in
the same run; the subjects take turns, in another order each round. Figures are medians of rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import queue
import shutil
import statistics
import tempfile
import time
from array import array
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from benchmarks import append_fapilog, drain, report
from benchmarks.append_peers import (
    FORK,
    MESSAGE,
    PEERS,
    LoguruToNothing,
    Once,
    StructlogToNothing,
    Subject,
    missing,
)
from cwsink.config import SinkConfig
from cwsink.frontends.writer import Writer
from cwsink.spool import frame, record
from cwsink.testing import spawn

WRITERS: Final = (1, 2, 4, 8, 16)
WARM_UP: Final = 100  # records of each writer; more than the interpreter needs to have specialised its code
# One record of so many is timed by itself. Odd: what happens to every 256th must not always, or never, be among them.
SAMPLE: Final = 7
SECONDS: Final = 1.5  # the most a measurement logs for; what is still queued then is waited for
HANG_SECONDS: Final = 120.0
DISK: Final = "/var/tmp"  # the default spool's; /tmp may be in memory

ENTRY: Final = (
    b'{"log":{"timestamp":"2026-11-23T05:58:05.112Z","level":"INFO","message":"request done","logger":"shop.orders",'
    b'"context":{"message_id":"73ea850c-8c83-423d-8604-42607fe320fb"},"diagnostics":{"host":"web-1","pid":4711},'
    b'"data":{"path":"/api/orders/123456","status":200,"ms":12.5}},"schema_version":"1.1"}'
)


def config(directory: str) -> SinkConfig:
    """Return the default config, but nothing is sent: this measures the application's side."""
    return SinkConfig(spool_directory=directory, flusher="external", spool_max_bytes=8 << 30)


class Floor(Subject):
    """A bare write of a frame that is ready."""

    name = "os.write (floor)"
    note = "the frame is ready; nothing is encoded, checked or counted"

    def open(self) -> Once:
        event = record.Event(time.time_ns() // 1_000_000, 1 << 63, 4711, self.message)
        data = frame.encode(record.encode(event), 1)
        fd = os.open(f"{self.directory}/floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        write = os.write

        def once() -> None:
            write(fd, data)

        return once


class Append(Subject):
    """`Writer.append` of a message."""

    name = "cwsink Writer.append"
    note = "elsewhere is the leader, which delivers for all"

    def __init__(self, directory: str, message: str = MESSAGE, config: SinkConfig | None = None) -> None:
        super().__init__(directory, message)
        self._config = config

    def open(self) -> Once:
        append, message = Writer(self._config or config(self.directory)).append, self.message

        def once() -> None:
            append(message)

        return once


class WriteSerialized(Subject):
    """The fapilog sink's `write_serialized` of a JSON entry, driven without an event loop."""

    name = "cwsink write_serialized"
    note = f"fapilog's entry of {len(ENTRY)} bytes, as its pipeline hands it over; elsewhere as above"

    def open(self) -> Once:
        from cwsink.frontends.fapilog_sink import CloudWatchSpoolSink

        class View:
            data = memoryview(ENTRY)

        write, view = CloudWatchSpoolSink(config(self.directory)).write_serialized, View()

        def once() -> None:
            try:
                write(view).send(None)
            except StopIteration:
                return

        return once


class Handler(Subject):
    """`SpoolHandler` as people use it: `logger.info`, no formatter, so an entry in JSON."""

    name = "cwsink SpoolHandler"
    note = (
        "`logger.info`; spools JSON with level, logger, process and place around the message, about twice as long; "
        "elsewhere is of the bare message, as above"
    )

    def open(self) -> Once:
        from cwsink import SpoolHandler

        return self.through_logging(SpoolHandler(config(self.directory)))


class Structlog(StructlogToNothing):
    """`cwsink.structlog` as the manual has it."""

    name = "cwsink.structlog"
    note = "spools JSON with level and logger around the message; elsewhere as above"

    def open(self) -> Once:
        import cwsink.structlog

        return self.through_structlog(cwsink.structlog.render, cwsink.structlog.LoggerFactory(config(self.directory)))


class Loguru(LoguruToNothing):
    """`cwsink.loguru` as the manual has it."""

    name = "cwsink.loguru"
    note = "spools JSON with level, logger, process and place around the message; elsewhere as above"

    def open(self) -> Once:
        import cwsink.loguru

        return self.through_loguru(cwsink.loguru.Sink(config(self.directory)))


OURS: Final[tuple[type[Subject], ...]] = (Append, WriteSerialized, Handler, Structlog, Loguru, *append_fapilog.OURS)


class Cell(NamedTuple):
    """One measurement: `writers` processes at once."""

    records: int
    cpu_us: float  # per record, of the writers
    elsewhere_us: float  # per record, of other processes
    per_second: float
    latencies_us: tuple[float, float, float]  # p50, p99, p99.9
    unarrived: int


def write(subject: Subject, records: int, barrier: Any, results: Any) -> None:
    """Be one writer."""
    once = subject.open()
    for _ in range(WARM_UP):
        once()
    gc.disable()
    clock, untimed, latencies = time.perf_counter_ns, (None,) * (SAMPLE - 1), array("q")
    barrier.wait(HANG_SECONDS)
    cpu, began = time.process_time_ns(), clock()
    until = began + int(SECONDS * 1e9)
    for _ in range(max(1, records // SAMPLE)):
        for _ in untimed:
            once()
        start = clock()
        once()
        end = clock()
        latencies.append(end - start)
        if end > until:
            break
    subject.finish()
    results.put((time.process_time_ns() - cpu, began, clock(), latencies))


def measure(subject: Subject, writers: int, records: int) -> Cell:
    """Measure `writers` processes that log `records` together, or for SECONDS. Ends the subject."""
    barrier, results = FORK.Barrier(writers), FORK.Queue()
    processes = [
        FORK.Process(target=write, args=(subject, records // writers, barrier, results), daemon=True)
        for _ in range(writers)
    ]
    try:
        for process in processes:
            process.start()
        found = [results.get(timeout=HANG_SECONDS) for _ in processes]
        for process in processes:
            process.join()
    except queue.Empty:
        raise SystemExit(f"{subject.name}: a writer of {writers} has failed or hangs") from None
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
        elsewhere_seconds, arrived = subject.end()
    latencies = sorted(each for *_, seen in found for each in seen)
    done = len(latencies) * SAMPLE
    seconds = (max(end for _, _, end, _ in found) - min(began for _, began, _, _ in found)) / 1e9
    return Cell(
        records=done,
        cpu_us=sum(cpu for cpu, *_ in found) / done / 1e3,
        elsewhere_us=elsewhere_seconds / done * 1e6,
        per_second=done / seconds,
        latencies_us=(_share(latencies, 0.5), _share(latencies, 0.99), _share(latencies, 0.999)),
        unarrived=0 if arrived is None else done + writers * WARM_UP - arrived,
    )


def _share(ordered: Sequence[int], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] / 1000


@contextlib.contextmanager
def scratch(root: str) -> Iterator[str]:
    """A directory for one measurement."""
    directory = tempfile.mkdtemp(dir=root)
    try:
        yield directory
    finally:
        shutil.rmtree(directory)


def delivery_us(root: str, records: int) -> float:
    """Return the leader's CPU us per record, start-up not counted."""
    with spawn(keep_events=False) as server, scratch(root) as directory:
        empty = drain.fill(f"{directory}/empty", server.endpoint_url, 1)
        full = drain.fill(f"{directory}/full", server.endpoint_url, records)
        idle_seconds, *_ = drain.flush(empty.directory.path)
        seconds, *_ = drain.flush(full.directory.path)
    return max(0.0, seconds - idle_seconds) / records * 1e6


def measure_all(
    subjects: Sequence[type[Subject]], writers: int, rounds: int, records: int, root: str
) -> dict[str, list[Cell]]:
    """Measure each subject once in each round, in another order each time."""
    cells: dict[str, list[Cell]] = {subject.name: [] for subject in subjects}
    for index in range(rounds):
        at = index * len(subjects) // rounds
        for kind in [*subjects[at:], *subjects[:at]][:: -1 if index % 2 else 1]:
            with scratch(root) as directory:
                cells[kind.name].append(measure(kind(directory), writers, min(records, kind.most_records)))
    return cells


def rows_of(cells: dict[str, list[Cell]], delivered_us: float) -> list[list[str]]:
    """Return the table of one number of writers."""
    ours, floor = {kind.name for kind in OURS}, cells[Floor.name]
    rows = []
    for name, found in cells.items():
        cpus = [cell.cpu_us for cell in found]
        elsewhere = delivered_us if name in ours else statistics.median(cell.elsewhere_us for cell in found)
        ratio = statistics.median(cell.cpu_us / least.cpu_us for cell, least in zip(found, floor, strict=True))
        rows.append(
            [
                name,
                f"{statistics.median(cpus):.2f}",
                f"{min(cpus):.2f}-{max(cpus):.2f}",
                f"{ratio:.1f}",
                f"{elsewhere:.2f}" if elsewhere else "",
                f"{statistics.median(cpus) + elsewhere:.2f}",
                *(f"{statistics.median(cell.latencies_us[at] for cell in found):,.1f}" for at in range(3)),
                f"{statistics.median(cell.per_second for cell in found):,.0f}",
            ]
        )
    return rows


def main() -> None:
    """Print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, help="of all writers together, per round (200,000; slow peers: fewer)")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--directory", default=DISK, help="where to spool, queue and log (%(default)s)")
    report.add_options(parser)
    options = parser.parse_args()
    records = options.records or (2_000 if options.quick else 200_000)
    rounds = options.rounds or (1 if options.quick else 5)
    counts = (2,) if options.quick else WRITERS
    peers = (append_fapilog.ToNothing, append_fapilog.OwnSink, *PEERS)
    subjects: list[type[Subject]] = [Floor, *OURS, *(peer for peer in peers if peer.is_installed())]
    said = report.Report("append", options, "fapilog", "loguru", "concurrent-log-handler", "litequeue", "watchtower")
    said.say("\n".join(f"* {kind.name}: {kind.note}." for kind in subjects))
    if missing():
        said.say(f"Not installed, so not measured: {', '.join(missing())}.")
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir=options.directory)
    try:
        delivered_us = statistics.median(delivery_us(root, max(records, 20_000)) for _ in range(rounds))
        found = {writers: measure_all(subjects, writers, rounds, records, root) for writers in _told(counts)}
        paced = append_fapilog.paced(lambda: scratch(root), rounds, 40 if options.quick else append_fapilog.REQUESTS)
    finally:
        shutil.rmtree(root)
    columns = "CPU us;spread;x floor;elsewhere us;sum us;p50 us;p99 us;p99.9 us;records/s".split(";")
    for writers, cells in found.items():
        said.table([f"{writers} writer{'s' * (writers > 1)}", *columns], rows_of(cells, delivered_us))
    said.table(PACED, paced)
    said.say(
        *unarrived(found, subjects),
        f"With more writers than the {os.cpu_count()} cores, p99.9 is the scheduler's: a writer that has to give way.",
    )
    plot(said, found)
    said.save()


# What an application may choose among. All rows together could not be told apart.
PLOTTED: Final = (
    "os.write (floor)",
    "cwsink Writer.append",
    "cwsink SpoolHandler",
    "fapilog + cwsink",
    "fapilog + its own sink",
    "concurrent-log-handler",
    "loguru enqueue=True",
    "watchtower",
)
# Three records and 2 ms of other work in turn, in one process.
PACED: Final = "as in a web request;CPU us;spread;x fapilog to nothing;p50 us;p99 us".split(";")


def _told(counts: Sequence[int]) -> Iterator[int]:
    """Yield the numbers of writers; it takes a while, so say where it is."""
    for writers in counts:
        print(f"... {writers} writer{'s' * (writers > 1)}", flush=True)
        yield writers


def unarrived(found: dict[int, dict[str, list[Cell]]], subjects: Sequence[type[Subject]]) -> Iterator[str]:
    """Yield a line for each subject that lost records, where that can be counted."""
    for kind in subjects:
        cells = [cell for by_name in found.values() for cell in by_name[kind.name]]
        if lost := sum(cell.unarrived for cell in cells):
            yield f"{kind.name}: {lost:,} of {sum(cell.records for cell in cells):,} records never arrived."


def plot(said: report.Report, found: dict[int, dict[str, list[Cell]]]) -> None:
    """Plot CPU and p99 against writers."""
    names = [name for name in next(iter(found.values())) if name in PLOTTED]
    cpu = {
        name: [(n, statistics.median(cell.cpu_us for cell in cells[name])) for n, cells in found.items()]
        for name in names
    }
    p99 = {
        name: [(n, statistics.median(cell.latencies_us[1] for cell in cells[name])) for n, cells in found.items()]
        for name in names
    }
    said.lines(
        "How much CPU does a record cost the application?",
        "writers (processes)",
        "µs a record",
        cpu,
        log_x=True,
        log_y=True,
    )
    said.lines(
        "How long does the slowest record in 100 keep the application?",
        "writers (processes)",
        "µs (p99)",
        p99,
        plot="p99",
        log_x=True,
        log_y=True,
    )


if __name__ == "__main__":
    main()
