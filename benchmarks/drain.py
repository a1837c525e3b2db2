"""What delivery costs the leader: events/s, CPU per event, calls, and memory.

    python -m benchmarks.drain [--events N] [--rounds N] [--replay-mib N]

The strict server runs in a process of its own, and so does the leader (the `Flusher` that
workers and `cwsink flush` run): its CPU (user + system) is measured by the kernel from start to
end, and a run with one record is subtracted, so that imports and the first connection do not
count. The floor encodes the same events once and posts the same bytes with http.client.
`--replay-mib 250` measures the memory of a replay instead.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

from benchmarks import machine
from cwsink.config import SinkConfig
from cwsink.flusher import batch
from cwsink.frontends.writer import Writer
from cwsink.spool import record, survey
from cwsink.testing import spawn

LEADER = """
import sys
from cwsink.config import load_config
from cwsink.flusher.flusher import Flusher, Orders
from cwsink.spool import directory
from cwsink.spool.lease import Lease

spool = directory.open_existing(sys.argv[1])
lease, orders = Lease(spool), Orders()
assert lease.try_acquire()
orders.drain(600)
Flusher(spool, load_config(spool.format.settings()), lease, orders, kind="process").lead()
"""

MESSAGE = "GET /api/orders/123456 200 12ms " + "x" * 268


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
    environment = {
        **os.environ,
        "AWS_ACCESS_KEY_ID": "bench",
        "AWS_SECRET_ACCESS_KEY": "bench",
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    began = time.monotonic()
    child = subprocess.Popen([sys.executable, "-c", LEADER, path], env=environment)
    _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"the leader ended with {child.returncode}")
    return usage.ru_utime + usage.ru_stime, time.monotonic() - began, usage.ru_maxrss * 1024


def floor(endpoint_url: str, events: int) -> tuple[float, float]:
    """Encode batches of the same events once, post them. Returns (CPU seconds, wall seconds)."""
    per_batch = batch.MAX_BATCH_BYTES // (len(MESSAGE) + batch.EVENT_OVERHEAD_BYTES)
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
        connection.request("POST", "/", batch.body("/bench/drain", "host", spooled[: min(left, per_batch)]), headers)
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the floor's request was refused: {text!r}")
        left -= per_batch
    connection.close()
    return _cpu() - cpu, time.monotonic() - wall


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@contextlib.contextmanager
def workspace() -> Iterator[str]:
    """A temporary directory on a disk, not in memory."""
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
    try:
        yield root
    finally:
        shutil.rmtree(root)


def speed(events: int, rounds: int) -> None:
    """Print CPU per event and events/s, the floor interleaved."""
    print(f"\n{'':28s} {'CPU us/event':>12s} {'spread':>11s} {'events/s':>9s} {'calls':>6s} {'KB/call':>8s}")
    rows: dict[str, list[tuple[float, float]]] = {"http.client (floor)": [], "cwsink's leader": []}
    for _ in range(rounds):
        with spawn(keep_events=False) as server, workspace() as root:
            empty = fill(f"{root}/empty", server.endpoint_url, 1)
            writer = fill(f"{root}/full", server.endpoint_url, events)
            idle_cpu, idle_wall, _ = flush(empty.directory.path)
            server.reset()
            cpu, wall, _ = flush(writer.directory.path)
            seen = server.summary()
            if seen["events"] != events or seen["violations"]:
                raise SystemExit(f"the server saw {seen}")
            calls, size = seen["requests"], seen["bytes"]
            rows["cwsink's leader"].append(((cpu - idle_cpu) / events * 1e6, events / (wall - idle_wall)))
            server.reset()
            # The floor needs the group and the stream, which the first flush has made... anew after a reset.
            _create_target(server.endpoint_url)
            floor_cpu, floor_wall = floor(server.endpoint_url, events)
            rows["http.client (floor)"].append((floor_cpu / events * 1e6, events / floor_wall))
    for name, found in rows.items():
        cpus, rates = [cpu for cpu, _ in found], [rate for _, rate in found]
        print(
            f"{name:28s} {statistics.median(cpus):12.2f} {f'{min(cpus):.2f}-{max(cpus):.2f}':>11s} "
            f"{statistics.median(rates):9,.0f} {calls:6d} {size / calls / 1000:8.0f}"
        )


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


def replay(mebibytes: int) -> None:
    """Print the memory a leader takes to replay a spool of this size, over an almost empty one."""
    with spawn(keep_events=False) as server, workspace() as root:
        empty = fill(f"{root}/empty", server.endpoint_url, 1)
        events = (mebibytes << 20) // 346
        writer = fill(f"{root}/full", server.endpoint_url, events)
        pending = survey.survey(writer.directory).pending_bytes
        _, _, small = flush(empty.directory.path)
        _, wall, large = flush(writer.directory.path)
        print(
            f"\nreplay of {pending / 2**20:.0f} MiB ({events:,} events) in {wall:.1f} s: peak {large / 2**20:.0f} MiB "
            f"resident, {(large - small) / 2**20:.0f} MiB more than for one event ({small / 2**20:.0f} MiB)"
        )


def main() -> None:
    """Print the table, or the replay's line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replay-mib", type=int)
    options = parser.parse_args()
    print(machine.header("boto3"))
    if options.replay_mib:
        replay(options.replay_mib)
    else:
        speed(options.events, options.rounds)


if __name__ == "__main__":
    main()
