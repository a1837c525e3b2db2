"""What a worker that does not lead holds for us, in private memory.

    python -m benchmarks.memory [--rounds N]

Two processes that differ in one thing are compared: both log 2,000 entries through
fapilog, one into a sink that does nothing, the other into the spool while another process
leads. Private memory (Private_Clean + Private_Dirty of smaps_rollup) is read after a
garbage collection; what is shared with other workers is not counted. Linux only.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile

from benchmarks import machine

WORKER = """
import asyncio, gc, os, re, sys, time
import fapilog

class Nothing:
    name = "nothing"
    async def write(self, entry): return True

which = sys.argv[1]
if which == "cwsink":
    import cwsink
    cwsink.install()
    sink = cwsink.CloudWatchSpoolSink(region="us-east-1", endpoint_url="http://127.0.0.1:9")
    import fcntl
    lock = os.open(sink._writer.directory.leader_lock, os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(lock, fcntl.LOCK_EX)  # somebody else leads
else:
    sink = Nothing()
logger = fapilog.get_logger("bench", sinks=[sink])
for number in range(2000):
    logger.info("request done", path="/api/orders/123456", status=200, number=number)
    if number % 100 == 0:
        time.sleep(0.01)
time.sleep(1.5)
gc.collect()
text = open("/proc/self/smaps_rollup").read()
clients = [each for each in gc.get_objects() if type(each).__module__ == "botocore.client"]
print(sum(int(each) for each in re.findall(r"Private_\\w+:\\s+(\\d+)", text)), len(clients))
os._exit(0)
"""


def worker(which: str, root: str) -> tuple[int, int]:
    """Return (private KiB, botocore clients) of one worker."""
    environment = {**os.environ, "CWSINK_SPOOL_DIRECTORY": root, "FAPILOG_CORE__LOG_LEVEL": "INFO"}
    out = subprocess.run(
        [sys.executable, "-c", WORKER, which], env=environment, capture_output=True, text=True, check=True
    ).stdout
    kib, clients = out.split()
    return int(kib), int(clients)


def main() -> None:
    """Print both workers and the difference."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(machine.header("fapilog", "boto3"))
    root = tempfile.mkdtemp(prefix="cwsink-bench-", dir="/var/tmp")
    try:
        found = {which: [worker(which, root) for _ in range(options.rounds)] for which in ("nothing", "cwsink")}
    finally:
        shutil.rmtree(root)
    print(f"\n{'fapilog with':14s} {'private MiB':>11s} {'spread':>13s} {'clients':>8s}")
    medians = {}
    for which, rows in found.items():
        sizes = [kib / 1024 for kib, _ in rows]
        medians[which] = statistics.median(sizes)
        spread = f"{min(sizes):.2f}-{max(sizes):.2f}"
        print(f"{which:14s} {medians[which]:11.2f} {spread:>13s} {max(clients for _, clients in rows):8d}")
    print(f"{'difference':14s} {medians['cwsink'] - medians['nothing']:11.2f}")


if __name__ == "__main__":
    main()
