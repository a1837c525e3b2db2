"""What delivery costs: CPU per event, events/s, calls, bytes per call; cwsink's leader and others.

    python -m benchmarks.drain [--events N] [--peer-events N] [--rounds N] [--replay-mib N] [--quick]

The strict server runs in a process of its own, and so does each sender: its CPU (user + system) is
measured by the kernel from start to end, and a run with one event is subtracted (the median of all
rounds), so that imports and the first connection do not count. The senders:

* cwsink's leader: the `Flusher` of the process that delivers, on a full spool. What the workers
  spent on appending is a row of its own;
* `cwsink flush --once`, the command that has such a leader in it, and shows how far it is;
* fapilog's own CloudWatchSink: `await sink.write(entry)` for each event, then `stop()`. It does not count
  CloudWatch's 26 bytes an event: at 10,000 most requests are too large, and their events are lost;
* watchtower, as its users run it: a handler with its queue, `logger.info`, then `flush` and `close`.

All send messages of 300 bytes and end when they believe that everything is delivered. The floor encodes
the same events once and posts the same bytes with http.client. `--replay-mib 250` measures the memory
of a replay instead.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

from benchmarks.report import Report, add_options
from cwsink import limits
from cwsink.config import SinkConfig
from cwsink.flusher import chunk
from cwsink.frontends.writer import Writer
from cwsink.spool import record, survey
from cwsink.testing import spawn

LEADER: Final = """
import sys
from cwsink.flusher.flusher import Flusher
from cwsink.flusher.orders import Orders
from cwsink.spool import directory, sending

spool = directory.open_existing(sys.argv[1])
lease, orders = Lease(spool), Orders()
assert lease.try_acquire()
orders.drain(600)
Flusher(spool, config_of(spool), lease, orders, kind="own").lead()
"""

# Arguments of the peers: endpoint_url, events, and what to log.
FAPILOG: Final = """
import asyncio, json, sys
from fapilog.plugins.sinks.contrib.cloudwatch import CloudWatchSink, CloudWatchSinkConfig

endpoint_url, events, entry, batch_size = sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])

async def main():
    sink = CloudWatchSink(CloudWatchSinkConfig(
        log_group_name="/bench/drain", log_stream_name="host", region="us-east-1", endpoint_url=endpoint_url,
        batch_size=batch_size))
    await sink.start()
    for _ in range(events):
        await sink.write(entry)
    await sink.stop()

asyncio.run(main())
"""

WATCHTOWER: Final = """
import logging, sys, warnings
import boto3, watchtower

endpoint_url, events, message = sys.argv[1], int(sys.argv[2]), sys.argv[3]
warnings.simplefilter("ignore")  # it warns of each batch it gives up; what arrived is counted
handler = watchtower.CloudWatchLogHandler(
    log_group_name="/bench/drain", log_stream_name="host", use_queues=True,
    boto3_client=boto3.client("logs", region_name="us-east-1", endpoint_url=endpoint_url))
logger = logging.getLogger("bench")
logger.setLevel(logging.INFO)
logger.propagate = False
logger.addHandler(handler)
for _ in range(events):
    logger.info(message)
handler.flush()
handler.close()
"""

MESSAGE: Final = "GET /api/orders/123456 200 12ms " + "x" * 268
ENVIRONMENT: Final = {
    "AWS_ACCESS_KEY_ID": "bench",
    "AWS_SECRET_ACCESS_KEY": "bench",
    "AWS_EC2_METADATA_DISABLED": "true",
}
OURS: Final = "cwsink's leader"
COMMAND: Final = "cwsink flush --once"
OURS_IN_ALL: Final = "cwsink's leader and appending"
FLOOR: Final = "http.client (floor)"
# A row of which less arrives is left out of the plot: not sending is cheap.
_MOSTLY: Final = 0.5


def fill(root: str, endpoint_url: str, events: int) -> Writer:
    """Spool `events` records of 300 bytes that nobody delivers yet."""
    writer = Writer(
        SinkConfig(
            spool_directory=root,
            log_group_name="/bench/drain",
            log_stream_name="host",
            region="us-east-1",
            endpoint_url=endpoint_url,
            flusher="external",
            spool_max_bytes=8 << 30,
        )
    )
    for _ in range(events):
        if not writer.append(MESSAGE):
            raise SystemExit("the spool refused a record")
    writer.close()
    return writer


def flush(path: str) -> tuple[float, float, int]:
    """Run the leader on a spool. Returns (CPU seconds, wall seconds, peak resident bytes)."""
    return _run(LEADER, path)


def _run(code: str, *arguments: str) -> tuple[float, float, int]:
    """Run a sender in its own process. Returns (CPU seconds, wall seconds, peak resident bytes)."""
    return _run_program("-c", code, *arguments)


def _run_program(*words: str) -> tuple[float, float, int]:
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, *words], env={**os.environ, **ENVIRONMENT}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the sender ended with {child.returncode}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss * 1024


@contextlib.contextmanager
def workspace() -> Iterator[str]:
    """A temporary directory on a disk, not in memory."""
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
    try:
        yield root
    finally:
        shutil.rmtree(root)


class Usage(NamedTuple):
    """What one run took, in seconds; `append_cpu` is what the workers spent before."""

    cpu: float
    wall: float
    append_cpu: float = 0.0


class Sender(NamedTuple):
    """One row: `run(endpoint_url, events)` sends."""

    name: str
    run: Callable[[str, int], Usage]
    is_ours: bool = False


@dataclass
class Row:
    """What was seen of one sender. A run is what `Usage` says, and the server's summary after it."""

    events: int
    idle: list[Usage] = field(default_factory=list)
    runs: list[tuple[Usage, Mapping[str, Any]]] = field(default_factory=list)

    def cpu(self) -> list[float]:
        """Return the CPU of each run, us an event."""
        idle = statistics.median(each.cpu for each in self.idle)
        return [(usage.cpu - idle) / self.events * 1e6 for usage, _ in self.runs]

    def cpu_in_all(self) -> list[float]:
        """Return the same with what the workers spent."""
        return [
            cpu + usage.append_cpu / self.events * 1e6 for cpu, (usage, _) in zip(self.cpu(), self.runs, strict=True)
        ]

    def rates(self) -> list[float]:
        """Return the events/s of each run."""
        idle = statistics.median(each.wall for each in self.idle)
        return [seen["events"] / max(usage.wall - idle, 1e-3) for usage, seen in self.runs]

    def seen(self, name: str) -> float:
        """Return the median of one of the server's numbers."""
        return statistics.median(float(seen[name]) for _, seen in self.runs)

    @property
    def is_whole(self) -> bool:
        """Tell whether everything arrived, each time, in legal calls."""
        return all(seen["events"] == self.events and not seen["violations"] for _, seen in self.runs)


def senders() -> Iterator[Sender]:
    """Yield who takes part; a peer only if it is installed."""
    yield Sender(FLOOR, floor, is_ours=True)
    yield Sender(OURS, leader, is_ours=True)
    yield Sender(COMMAND, command, is_ours=True)
    if find_spec("fapilog"):
        for batch_size in (100, 3_000, 10_000):
            yield Sender(f"fapilog's sink, batch_size={batch_size:,}", fapilog(batch_size))
    if find_spec("watchtower"):
        yield Sender("watchtower", watchtower)


def leader(endpoint_url: str, events: int) -> Usage:
    """Fill a spool, and have a leader empty it."""
    with workspace() as root:
        before = _cpu()
        writer = fill(root, endpoint_url, events)
        append_cpu = _cpu() - before
        cpu, wall, _ = flush(writer.directory.path)
        return Usage(cpu, wall, append_cpu)


def command(endpoint_url: str, events: int) -> Usage:
    """Fill a spool, and have the command empty it."""
    with workspace() as root:
        writer = fill(root, endpoint_url, events)
        return Usage(*_run_program("-m", "cwsink", "flush", "--once", writer.directory.path)[:2])


def fapilog(batch_size: int) -> Callable[[str, int], Usage]:
    """Return a run of fapilog's sink."""
    entry = {"timestamp": "2026-11-23T05:58:05.112Z", "level": "INFO", "logger": "bench", "message": ""}
    entry["message"] = MESSAGE[: len(MESSAGE) - len(json.dumps(entry))]

    def run(endpoint_url: str, events: int) -> Usage:
        return Usage(*_run(FAPILOG, endpoint_url, str(events), json.dumps(entry), str(batch_size))[:2])

    return run


def watchtower(endpoint_url: str, events: int) -> Usage:
    """Run watchtower's handler."""
    return Usage(*_run(WATCHTOWER, endpoint_url, str(events), MESSAGE)[:2])


def floor(endpoint_url: str, events: int) -> Usage:
    """Encode batches of the same events once, post them."""
    _create_target(endpoint_url)
    per_batch = limits.MAX_BATCH_BYTES // (len(MESSAGE) + limits.EVENT_OVERHEAD_BYTES)
    now_ms = time.time_ns() // 1_000_000
    spooled = [record.Event(now_ms, 1, number, MESSAGE) for number in range(per_batch)]
    connection = http.client.HTTPConnection(urlsplit(endpoint_url).netloc)
    headers = {
        "X-Amz-Target": "Logs_20140328.PutLogEvents",
        "Content-Type": "application/x-amz-json-1.1",
        "Authorization": "AWS4-HMAC-SHA256 Credential=bench/20260101/us-east-1/logs/aws4_request, "
        "SignedHeaders=host, Signature=0",
        "User-Agent": f"cwsink/floor epoch/0 pid/{os.getpid()}",
    }
    cpu, wall, left = _cpu(), time.monotonic(), events
    while left > 0:
        connection.request("POST", "/", chunk.body("/bench/drain", "host", spooled[: min(left, per_batch)]), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the floor's request was refused: {text!r}")
        left -= per_batch
    connection.close()
    return Usage(_cpu() - cpu, time.monotonic() - wall)


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _create_target(endpoint_url: str) -> None:
    import boto3

    client = boto3.Session().client(
        "logs",
        region_name="us-east-1",
        endpoint_url=endpoint_url,
        aws_access_key_id="bench",
        aws_secret_access_key="bench",
    )
    with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
        client.create_log_group(logGroupName="/bench/drain")
    with contextlib.suppress(client.exceptions.ResourceAlreadyExistsException):
        client.create_log_stream(logGroupName="/bench/drain", logStreamName="host")


def measure(events: int, peer_events: int, rounds: int) -> dict[str, Row]:
    """Run every sender `rounds` times, in another order each time."""
    taking_part = list(senders())
    rows = {each.name: Row(events if each.is_ours else peer_events) for each in taking_part}
    for number in range(rounds):
        with spawn(keep_events=False) as server:
            turn = number % len(taking_part)
            for sender in taking_part[turn:] + taking_part[:turn]:
                row = rows[sender.name]
                row.idle.append(sender.run(server.endpoint_url, 1))
                server.reset()
                row.runs.append((sender.run(server.endpoint_url, row.events), server.summary()))
                server.reset()
                if sender.is_ours and not row.is_whole:
                    raise SystemExit(f"{sender.name}: the server saw {row.runs[-1][1]}")
    return rows


def show(report: Report, rows: Mapping[str, Row]) -> None:
    """Print the table, the ratios, the plot."""
    bottom = statistics.median(rows[FLOOR].cpu())
    table = []
    for name, row in rows.items():
        requests = row.seen("requests")
        table.append(
            [
                *_costs(name, row.cpu(), bottom),
                f"{statistics.median(row.rates()):,.0f}",
                f"{requests / row.events * 1e6:,.0f}",
                f"{row.seen('bytes') / requests / 1000:,.0f}" if requests else "-",
                f"{row.seen('events') / row.events:.1%}",
                f"{row.seen('violations'):,.0f}",
            ]
        )
        if name == OURS:
            table.append([*_costs(OURS_IN_ALL, row.cpu_in_all(), bottom), *"-----"])
    report.table(
        (
            *("sender", "CPU us/event", "spread", "x floor", "arrived/s", "calls/million"),
            *("KB/call", "arrived", "illegal calls"),
        ),
        table,
    )
    report.say(*_comparison(rows))
    shown: dict[str, Mapping[str, float]] = {}
    for name, row in rows.items():
        if (arrived := row.seen("events") / row.events) >= _MOSTLY:
            shown[name if row.is_whole else f"{name} ({arrived:.1%} arrive)"] = {"CPU": statistics.median(row.cpu())}
        if name == OURS:
            shown[OURS_IN_ALL] = {"CPU": statistics.median(row.cpu_in_all())}
    report.bars(
        "How much CPU does it take to send an event?", "µs an event of 300 bytes (logarithmic)", shown, log=True
    )


def _costs(name: str, cpus: Sequence[float], bottom: float) -> list[str]:
    median = statistics.median(cpus)
    return [name, f"{median:.2f}", f"{min(cpus):.2f}-{max(cpus):.2f}", f"{median / bottom:.1f}"]


def _comparison(rows: Mapping[str, Row]) -> Iterator[str]:
    """Yield a sentence for each kind of peer: its best row, of those that lose nothing if there is one."""
    ours, in_all = rows[OURS].cpu(), rows[OURS].cpu_in_all()
    yield f"{COMMAND} takes {_times(rows[COMMAND].cpu(), ours)} times the CPU of cwsink's leader for each event."
    for peer in ("fapilog", "watchtower"):
        of_it = {name: row for name, row in rows.items() if name.startswith(peer)}
        if not of_it:
            yield f"{peer} is not installed: no row."
            continue
        eligible = {name: row for name, row in of_it.items() if row.is_whole} or of_it
        best = min(eligible, key=lambda name: statistics.median(eligible[name].cpu()))
        theirs = eligible[best].cpu()
        yield (
            f"{best} takes {_times(theirs, ours)} times the CPU of cwsink's leader for each event, "
            f"{_times(theirs, in_all)} times what leader and workers take together."
        )


def _times(theirs: Sequence[float], ours: Sequence[float]) -> str:
    """Return the median, the least and the most of the ratios of each round: the machine is not as fast in all."""
    ratios = [each / mine for each, mine in zip(theirs, ours, strict=True)]
    return f"{statistics.median(ratios):.1f} ({min(ratios):.1f} to {max(ratios):.1f})"


def replay(report: Report, mebibytes: int) -> None:
    """Print the memory a leader takes to replay a spool of this size, over an almost empty one."""
    with spawn(keep_events=False) as server, workspace() as root:
        empty = fill(f"{root}/empty", server.endpoint_url, 1)
        events = (mebibytes << 20) // 346
        writer = fill(f"{root}/full", server.endpoint_url, events)
        pending = survey.survey(writer.directory).pending_bytes
        _, _, small = flush(empty.directory.path)
        _, wall, large = flush(writer.directory.path)
        report.say(
            f"replay of {pending / 2**20:.0f} MiB ({events:,} events) in {wall:.1f} s: peak {large / 2**20:.0f} MiB "
            f"resident, {(large - small) / 2**20:.0f} MiB more than for one event ({small / 2**20:.0f} MiB)"
        )


def main() -> None:
    """Print the table, or the replay's line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, help="of cwsink and the floor (default: 400,000)")
    parser.add_argument("--peer-events", type=int, help="of the others, which are slower (default: 100,000)")
    parser.add_argument("--rounds", type=int, help="how often (default: 5)")
    parser.add_argument("--replay-mib", type=int, help="measure the memory of a replay of this much instead")
    add_options(parser)
    options = parser.parse_args()
    report = Report("drain", options, "botocore", "boto3", "fapilog", "watchtower")
    if options.replay_mib:
        replay(report, options.replay_mib)
        return
    events, peer_events, rounds = (20_000, 3_000, 1) if options.quick else (400_000, 100_000, 5)
    show(report, measure(options.events or events, options.peer_events or peer_events, options.rounds or rounds))
    report.save()


if __name__ == "__main__":
    main()
