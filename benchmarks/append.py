"""What an append costs the application: CPU per record, p50 and p99, at 1 to 8 writers.

    python -m benchmarks.append [--records N] [--rounds N]

The floor is a bare `os.write` of the same frames to an O_APPEND file on the same file
system, in the same run, rounds interleaved. Writers are processes that start together.
CPU is the whole process's (user + system), so a leader's or election thread's work would show.
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

from benchmarks import machine
from cwsink.config import SinkConfig
from cwsink.frontends.writer import Writer
from cwsink.spool import frame, record

MESSAGE = "GET /api/orders/123456 200 12ms " + "x" * 268
ENTRY = (
    b'{"log":{"timestamp":"2026-11-23T05:58:05.112Z","level":"INFO","message":"request done","logger":"shop.orders",'
    b'"context":{"message_id":"73ea850c-8c83-423d-8604-42607fe320fb"},"diagnostics":{"host":"web-1","pid":4711},'
    b'"data":{"path":"/api/orders/123456","status":200,"ms":12.5}},"schema_version":"1.1"}'
)
WRITERS = (1, 2, 4, 8)


def floor(directory: str, records: int) -> Callable[[], None]:
    """Return a bare write of a frame as long as a record's."""
    data = frame.encode(record.encode(record.Event(time.time_ns() // 1_000_000, 1 << 63, 4711, MESSAGE)), 1)
    fd = os.open(f"{directory}/floor", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    write = os.write

    def once() -> None:
        write(fd, data)

    return once


def append(directory: str, records: int) -> Callable[[], None]:
    """Return `Writer.append` of a 300-byte message."""
    writer = Writer(config(directory))
    writer_append = writer.append

    def once() -> None:
        writer_append(MESSAGE)

    return once


def write_serialized(directory: str, records: int) -> Callable[[], None]:
    """Return the sink's `write_serialized` of a 300-byte entry, driven without an event loop."""
    from cwsink.frontends.fapilog_sink import CloudWatchSpoolSink

    class View:
        data = memoryview(ENTRY)

    sink = CloudWatchSpoolSink(config(directory))
    view = View()

    def once() -> None:
        try:
            sink.write_serialized(view).send(None)
        except StopIteration:
            return

    return once


def config(directory: str) -> SinkConfig:
    """Return the default config, but nothing is sent: this measures the application's side."""
    return SinkConfig(spool_directory=directory, flusher="external", spool_max_bytes=4 << 30)


SUBJECTS = {"os.write (floor)": floor, "Writer.append": append, "write_serialized": write_serialized}


def worker(subject: str, directory: str, records: int, barrier: Any, results: Any) -> None:
    """Measure one writer: CPU per record over all, then latencies of a tenth one by one."""
    once = SUBJECTS[subject](directory, records)
    for _ in range(1000):
        once()
    gc.disable()
    barrier.wait()
    cpu = time.process_time()
    for _ in range(records):
        once()
    cpu = time.process_time() - cpu
    clock = time.perf_counter_ns
    latencies = []
    barrier.wait()
    for _ in range(records // 10):
        began = clock()
        once()
        latencies.append(clock() - began)
    results.put((cpu / records * 1e6, latencies))


def measure(subject: str, writers: int, records: int, root: str) -> tuple[float, list[int]]:
    """Return (CPU us per record, latencies in ns) of `writers` processes at once."""
    directory = tempfile.mkdtemp(dir=root)
    context = multiprocessing.get_context("fork")
    barrier, results = context.Barrier(writers), context.Queue()
    processes = [
        context.Process(target=worker, args=(subject, directory, records, barrier, results)) for _ in range(writers)
    ]
    for process in processes:
        process.start()
    found = [results.get() for _ in processes]
    for process in processes:
        process.join()
    shutil.rmtree(directory)
    return statistics.mean(cpu for cpu, _ in found), [each for _, latencies in found for each in latencies]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=50_000, help="per writer and round")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", help="where to spool (a temporary directory on the default spool's disk)")
    options = parser.parse_args()
    print(machine.header("fapilog"))
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir=options.directory or "/var/tmp")
    print(f"\n{'':18s} {'writers':>7s} {'CPU us':>8s} {'spread':>13s} {'x floor':>7s} {'p50 us':>7s} {'p99 us':>7s}")
    try:
        for writers in WRITERS:
            cpus: dict[str, list[float]] = {subject: [] for subject in SUBJECTS}
            latencies: dict[str, list[int]] = {subject: [] for subject in SUBJECTS}
            for _ in range(options.rounds):
                for subject in SUBJECTS:
                    cpu, seen = measure(subject, writers, options.records // writers, root)
                    cpus[subject].append(cpu)
                    latencies[subject] += seen
            for subject in SUBJECTS:
                median = statistics.median(cpus[subject])
                ratio = statistics.median(a / b for a, b in zip(cpus[subject], cpus["os.write (floor)"], strict=True))
                ordered = sorted(latencies[subject])
                p50, p99 = (ordered[int(len(ordered) * share)] / 1000 for share in (0.5, 0.99))
                spread = f"{min(cpus[subject]):.2f}-{max(cpus[subject]):.2f}"
                print(f"{subject:18s} {writers:7d} {median:8.2f} {spread:>13s} {ratio:7.2f} {p50:7.1f} {p99:7.1f}")
    finally:
        shutil.rmtree(root)


if __name__ == "__main__":
    main()
