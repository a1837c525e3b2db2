"""What gzip saves and costs: bytes and CPU of a request of 1 MB, by level.

    python -m benchmarks.compression [--requests N] [--rounds N]

Bodies are those the leader sends: full batches of JSON lines as fapilog makes them, seeded, with
ids, numbers and messages that differ as they do in a web application, and now and then a
traceback. CPU is that of making the body, thread time, rounds interleaved. "none" only encodes;
a level's own cost is what it adds to that, and "us/KB saved" is what it pays for each kilobyte.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import statistics
import time
import uuid
import zlib
from collections.abc import Callable, Iterator

from benchmarks.report import Report, add_options
from cwsink.flusher import chunk
from cwsink.limits import EVENT_OVERHEAD_BYTES
from cwsink.spool import record

LEVELS = (1, 6, 9)
SEED = 20_261_123
START_MS = 1_795_000_000_000

ROUTES = ("/api/orders/{}", "/api/users/{}/cart", "/health", "/api/search", "/static/app.{}.js", "/api/payments/{}")
LOGGERS = ("shop.http", "shop.orders", "shop.payments", "shop.db", "uvicorn.access")
WORDS = "order payment user cart session cache query timeout retry token shipped refunded declined updated".split()
TRACEBACK = """Traceback (most recent call last):
  File "/srv/shop/payments.py", line {}, in charge
    answer = client.post(url, json=body, timeout=5)
  File "/srv/venv/lib/python3.11/site-packages/httpx/_client.py", line 1144, in post
    return self.request("POST", url, content=content, data=data)
httpx.ConnectTimeout: timed out after {} ms
"""


def entry(draw: random.Random, timestamp_ms: int) -> str:
    """Return one line as fapilog writes it."""
    level = draw.choices(("DEBUG", "INFO", "WARNING", "ERROR"), (20, 70, 7, 3))[0]
    at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(timestamp_ms // 1000)) + f".{timestamp_ms % 1000:03d}Z"
    number = draw.randrange(10**6)
    data: dict[str, object] = {
        "path": draw.choice(ROUTES).format(number),
        "status": draw.choices((200, 201, 304, 404, 500), (80, 8, 6, 4, 2))[0],
        "ms": round(draw.lognormvariate(3, 1), 3),
    }
    if level == "ERROR":
        data["error"] = TRACEBACK.format(draw.randrange(400), draw.randrange(9000))
    log = {
        "timestamp": at,
        "level": level,
        "message": f"{' '.join(draw.choices(WORDS, k=draw.randint(2, 6)))} {number}",
        "logger": draw.choice(LOGGERS),
        "context": {
            "message_id": str(uuid.UUID(int=draw.getrandbits(128))),
            "correlation_id": str(uuid.UUID(int=draw.getrandbits(128))),
            "user_id": f"u{draw.randrange(10**5)}",
        },
        "diagnostics": {"host": "web-1", "pid": draw.choice((4711, 4712, 4713, 4714)), "service": "shop"},
        "data": data,
    }
    return json.dumps({"log": log, "schema_version": "1.1"}, separators=(",", ":"))


def batches(count: int) -> Iterator[list[record.Event]]:
    """Yield full batches, as the leader's chunk builder fills them."""
    draw = random.Random(SEED)
    now_ms = START_MS
    for _ in range(count):
        events: list[record.Event] = []
        builder = chunk.ChunkBuilder()
        while True:
            now_ms += draw.randrange(3)
            message = entry(draw, now_ms)
            if not builder.fits(len(message)):
                break
            builder.count += 1
            builder.bytes += len(message) + EVENT_OVERHEAD_BYTES
            events.append(record.Event(now_ms, 7, len(events), message))
        yield events


def body(events: list[record.Event]) -> bytes:
    """Encode, and do nothing else."""
    return chunk.body("/myapp/prod", "web-1", events)


def compressed(level: int) -> Callable[[list[record.Event]], bytes]:
    """Return what encodes and compresses as `cwsink.flusher.cloudwatch` does."""
    return lambda events: gzip.compress(body(events), compresslevel=level, mtime=0)


SUBJECTS: dict[str, Callable[[list[record.Event]], bytes]] = {
    "none": body,
    **{f"gzip {level}": compressed(level) for level in LEVELS},
}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=7)
    add_options(parser)
    options = parser.parse_args()
    if options.quick:
        options.requests, options.rounds = 2, 2
    report = Report("compression", options, "botocore")
    workload = list(batches(options.requests))
    events = statistics.mean(len(each) for each in workload)
    length = statistics.mean(len(event.message) for each in workload for event in each)
    report.say(f"zlib {zlib.ZLIB_RUNTIME_VERSION}; requests of {events:,.0f} events, {length:.0f} bytes each.")
    cpu: dict[str, list[float]] = {name: [] for name in SUBJECTS}
    sizes = {name: statistics.mean(len(make(each)) for each in workload) for name, make in SUBJECTS.items()}
    for _ in range(options.rounds):
        for name, make in SUBJECTS.items():
            began = time.thread_time()
            for each in workload:
                make(each)
            cpu[name].append((time.thread_time() - began) / len(workload) * 1e3)
    rows = []
    for name in SUBJECTS:
        median = statistics.median(cpu[name])
        spread = f"{min(cpu[name]):.1f}-{max(cpu[name]):.1f}"
        saved_kb = (sizes["none"] - sizes[name]) / 1000
        price = f"{(median - statistics.median(cpu['none'])) * 1e3 / saved_kb:.1f}" if saved_kb else ""
        rows.append(
            (name, f"{median:.1f}", spread, f"{sizes[name] / 1000:.0f}", f"{sizes['none'] / sizes[name]:.1f}", price)
        )
    report.table(("a request", "CPU ms", "spread", "KB", "x fewer", "us/KB saved"), rows)
    report.save()


if __name__ == "__main__":
    main()
