"""Whether cost stays flat: CPU per record against writers, records pending in the spool, and message size.

    python -m benchmarks.cost [--rounds N]

Append is `Writer.append`, the whole writer process counted; its floor a bare `os.write` of the
same frames. Delivery is the leader (the `Flusher` of the process that delivers) against
the strict server in its own process: one long-lived leader delivers spool after spool, and what
it takes for a spool with one record is subtracted, so that imports, connection and the
calls every spool needs do not count. Figures are medians of rounds, everything in another order each round.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from typing import Final, TypeVar

from benchmarks import report
from benchmarks.append import DISK, WRITERS, Append, Cell, Floor, measure, scratch
from benchmarks.append_peers import MESSAGE, Subject
from cwsink.config import SinkConfig
from cwsink.frontends.writer import Writer
from cwsink.spool import frame, record
from cwsink.testing import SpawnedCloudWatch, spawn

PENDING_MIB: Final = (1, 4, 16, 64, 256)
MESSAGE_BYTES: Final = (100, 300, 1_000, 4_000, 15_000, 60_000, 200_000)
# A spool smaller than this is delivered several times, to be measurable beside the leader's own noise.
LEAST_DELIVERED_BYTES: Final = 8 << 20
# What is spooled and delivered of each message size.
SIZED_MIB: Final = 24
# Of a record of MESSAGE in the spool; its sequence is the only part whose length varies, by 4 bytes.
FRAME_BYTES: Final = len(frame.encode(record.encode(record.Event(1 << 40, 1 << 63, 1 << 16, MESSAGE)), 1))

# One leader for many spools. Prints the CPU seconds that each has taken, as a JSON array.
LEADER: Final = """
import gc, json, sys, time
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.orders import Orders
from cwsink.spool import directory, sending

taken = []
for path in sys.argv[1:]:
    gc.collect()  # a botocore client is a cycle: the next spool must not pay for the one before
    gc.freeze()
    began = time.process_time()
    spool = directory.open_existing(path)
    lease, orders = Lease(spool), Orders()
    assert lease.try_acquire()
    orders.drain(600)
    Flusher(spool, config_of(spool), lease, orders, kind="own").lead()
    lease.release()
    taken.append(time.process_time() - began)
print(json.dumps(taken))
"""

T = TypeVar("T")


def config(directory: str, server: SpawnedCloudWatch) -> SinkConfig:
    """Return the config of a spool whose records go to this server, once a leader is started."""
    return SinkConfig(
        spool_directory=directory,
        log_group_name="/bench/cost",
        log_stream_name="host",
        region="us-east-1",
        endpoint_url=server.endpoint_url,
        flusher="external",
        spool_max_bytes=8 << 30,
    )


def fill(directory: str, server: SpawnedCloudWatch, message: str, records: int) -> str:
    """Spool records that nobody delivers yet. Returns the spool's path."""
    writer = Writer(config(directory, server))
    for _ in range(records):
        if not writer.append(message):
            raise SystemExit("the spool refused a record")
    writer.close()
    return str(writer.directory.path)


def deliver(paths: Sequence[str]) -> list[float]:
    """Run one leader over spools. Returns the CPU seconds for each."""
    keys = {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_EC2_METADATA_DISABLED": "true"}
    command = [sys.executable, "-c", LEADER, *paths]
    ended = subprocess.run(command, env={**os.environ, **keys}, stdout=subprocess.PIPE, text=True, check=True)
    return [float(seconds) for seconds in json.loads(ended.stdout)]


def delivery_us(spools: Sequence[tuple[str, int]], server: SpawnedCloudWatch, directory: str) -> float:
    """Return the CPU us per record of delivering spools (path, records), each after one with a single record."""
    server.reset()
    # The first two start the leader up: modules, the first connection, code that is not specialised yet.
    paths = [fill(f"{directory}/first-{index}", server, MESSAGE, 1) for index in range(2)]
    for index, (path, _) in enumerate(spools):
        paths += [fill(f"{directory}/single-{index}", server, MESSAGE, 1), path]
    seconds = deliver(paths)[2:]
    records, seen = sum(records for _, records in spools), server.summary()
    if seen["events"] != records + len(spools) + 2 or seen["violations"]:
        raise SystemExit(f"of {records:,} records and {len(spools) + 2} single ones, the server saw {seen}")
    idle, busy = statistics.median(seconds[::2]), sum(seconds[1::2])
    return max(0.0, busy - idle * len(spools)) / records * 1e6


def shuffled(values: Sequence[T], index: int) -> list[T]:
    """Return the values in the order of a round: each comes first once, forwards and backwards by turns."""
    at = index % len(values)
    return [*values[at:], *values[:at]][:: -1 if index % 2 else 1]


def against_writers(said: report.Report, counts: Sequence[int], rounds: int, records: int, root: str) -> None:
    """How many processes append at once."""
    cells: dict[tuple[type[Subject], int], list[Cell]] = defaultdict(list)
    for index in range(rounds):
        for kind, writers in shuffled([(kind, writers) for writers in counts for kind in (Floor, Append)], index):
            with scratch(root) as directory:
                cells[kind, writers].append(measure(kind(directory), writers, records))
    cpu = {key: statistics.median(cell.cpu_us for cell in found) for key, found in cells.items()}
    p99 = {key: statistics.median(cell.latencies_us[1] for cell in found) for key, found in cells.items()}
    said.say(f"## Writers\n\n{records:,} records of {len(MESSAGE)} bytes, of all writers together.")
    said.table(
        ["writers", "append CPU us", "spread", "os.write (floor)", "p99 us"],
        [
            [
                writers,
                f"{cpu[Append, writers]:.2f}",
                spread([cell.cpu_us for cell in cells[Append, writers]]),
                f"{cpu[Floor, writers]:.2f}",
                f"{p99[Append, writers]:.1f}",
            ]
            for writers in counts
        ],
    )
    said.lines(
        "Does a record cost more where many processes log?",
        "writers (processes)",
        "µs of CPU a record",
        {
            "os.write (floor)": [(writers, cpu[Floor, writers]) for writers in counts],
            "append": [(writers, cpu[Append, writers]) for writers in counts],
        },
        plot="writers",
        log_x=True,
    )


def against_pending(said: report.Report, sizes: Sequence[int], rounds: int, records: int, root: str) -> None:
    """How much is pending: the append after that much, and delivering that much."""
    appends: dict[int, list[float]] = defaultdict(list)
    deliveries: dict[int, list[float]] = defaultdict(list)
    with spawn(keep_events=False) as server:
        for index in range(rounds):
            for mebibytes in shuffled(sizes, index):
                pending = (mebibytes << 20) // FRAME_BYTES
                with scratch(root) as directory:
                    times = max(1, LEAST_DELIVERED_BYTES // (mebibytes << 20))
                    spools = [(fill(f"{directory}/{each}", server, MESSAGE, pending), pending) for each in range(times)]
                    deliveries[mebibytes].append(delivery_us(spools, server, directory))
                with scratch(root) as directory:
                    fill(directory, server, MESSAGE, pending)
                    cell = measure(Append(directory, MESSAGE, config(directory, server)), 1, records)
                    appends[mebibytes].append(cell.cpu_us)
    said.say(
        f"## Pending\n\nAppend: {records:,} records of {len(MESSAGE)} bytes by one writer, after so much. "
        "Delivery: so much, up to the empty spool."
    )
    table(said, "MiB pending", sizes, {"append": appends, "delivery": deliveries})
    said.lines(
        "Does a record cost more while many wait?",
        "pending, MiB",
        "µs of CPU a record",
        {"append": medians(appends), "delivery": medians(deliveries)},
        plot="pending",
        log_x=True,
    )


def against_message(said: report.Report, sizes: Sequence[int], rounds: int, total_bytes: int, root: str) -> None:
    """How long the message is."""
    costs: dict[str, dict[int, list[float]]] = {
        name: defaultdict(list) for name in ("os.write (floor)", "append", "delivery")
    }
    with spawn(keep_events=False) as server:
        for index in range(rounds):
            for size in shuffled(sizes, index):
                message, records = message_of(size), max(20, min(50_000, total_bytes // size))
                kinds: list[tuple[str, type[Subject]]] = [("os.write (floor)", Floor), ("append", Append)]
                for name, kind in shuffled(kinds, index):
                    with scratch(root) as directory:
                        costs[name][size].append(measure(kind(directory, message), 1, records).cpu_us)
                with scratch(root) as directory:
                    spools = [(fill(f"{directory}/full", server, message, records), records)]
                    costs["delivery"][size].append(delivery_us(spools, server, directory))
    said.say(f"## Message size\n\nOne writer; {total_bytes >> 20} MiB of each size, at most 50,000 records.")
    table(said, "bytes", sizes, costs, per_kilobyte=True)
    said.lines(
        "How much more does a long record cost?",
        "message, bytes",
        "µs of CPU a record",
        {name: medians(found) for name, found in costs.items()},
        plot="message",
        log_x=True,
        log_y=True,
    )


def message_of(size: int) -> str:
    """Return a message of so many bytes."""
    return (MESSAGE * (size // len(MESSAGE) + 1))[:size]


def medians(found: dict[int, list[float]]) -> list[tuple[float, float]]:
    """Return the points of a line."""
    return [(at, statistics.median(values)) for at, values in sorted(found.items())]


def spread(values: Sequence[float]) -> str:
    """Return the least and the most."""
    return f"{min(values):.2f}-{max(values):.2f}"


def table(
    said: report.Report,
    column: str,
    sizes: Sequence[int],
    costs: dict[str, dict[int, list[float]]],
    *,
    per_kilobyte: bool = False,
) -> None:
    """Print the medians and spreads of each cost; with `per_kilobyte`, also what that is for 1,000 bytes."""
    columns = [column]
    rows: list[list[str]] = [[f"{size:,}"] for size in sizes]
    for name, found in costs.items():
        columns += [f"{name} CPU us", "spread", *(["us per KB"] if per_kilobyte else [])]
        for size, row in zip(sizes, rows, strict=True):
            median = statistics.median(found[size])
            row += [f"{median:.2f}", spread(found[size])]
            if per_kilobyte:
                row.append(f"{median / size * 1000:.2f}")
    said.table(columns, rows)


def main() -> None:
    """Print and plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int)
    report.add_options(parser)
    options = parser.parse_args()
    quick: bool = options.quick
    rounds = options.rounds or (1 if quick else 5)
    said = report.Report("cost", options, "botocore")
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir=DISK)
    try:
        against_writers(said, (1, 4) if quick else WRITERS, rounds, 2_000 if quick else 100_000, root)
        against_pending(said, (1, 4) if quick else PENDING_MIB, rounds, 2_000 if quick else 20_000, root)
        against_message(
            said, (100, 30_000) if quick else MESSAGE_BYTES, rounds, (1 if quick else SIZED_MIB) << 20, root
        )
    finally:
        shutil.rmtree(root)
    said.save()


if __name__ == "__main__":
    main()
