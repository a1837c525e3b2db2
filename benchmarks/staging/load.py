"""Requests to a web server on this machine: as many as it answers, or at a fixed rate."""

from __future__ import annotations

import re
import shutil
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from typing import Final

CONNECTIONS: Final = 8
ANSWER_SECONDS: Final = 30.0
_PATH: Final = "/orders/4711"


def loader() -> str:
    """Return what `flat_out` sends with."""
    return "wrk" if shutil.which("wrk") else "Python threads"


def get(port: int) -> None:
    """Send one request."""
    connection = HTTPConnection("127.0.0.1", port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", _PATH)
        connection.getresponse().read()
    finally:
        connection.close()


def flat_out(port: int, seconds: float) -> tuple[float, int]:
    """Return requests per second, and how many there were."""
    if wrk := shutil.which("wrk"):
        command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", "--timeout", f"{ANSWER_SECONDS:.0f}s"]
        command.append(f"http://127.0.0.1:{port}{_PATH}")
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        rate, count = re.search(r"Requests/sec:\s+([\d.]+)", out), re.search(r"(\d+) requests in", out)
        assert rate is not None and count is not None, out  # noqa: PT018  # both, or it is another wrk
        return float(rate[1]), int(count[1])
    counts = [0] * CONNECTIONS
    until = time.perf_counter() + seconds

    def load(number: int) -> None:
        while time.perf_counter() < until:
            get(port)
            counts[number] += 1

    _in_threads(load)
    return sum(counts) / seconds, sum(counts)


def paced(port: int, seconds: float, rate: float) -> list[float]:
    """Return the latencies, in ms, of requests sent at a fixed rate. Each counts from when it was due."""
    count = round(seconds * rate)
    began = time.perf_counter() + 0.05
    latencies: list[float] = []

    def load(number: int) -> None:
        for index in range(number, count, CONNECTIONS):
            due = began + index / rate
            time.sleep(max(0.0, due - time.perf_counter()))
            get(port)
            latencies.append((time.perf_counter() - due) * 1000)

    _in_threads(load)
    return latencies


def _in_threads(load: Callable[[int], None]) -> None:
    """Call `load(number)` for each connection, at once. Raises what one of them raises."""
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        for each in [pool.submit(load, number) for number in range(CONNECTIONS)]:
            each.result()
