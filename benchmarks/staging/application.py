"""The application that logs: `app` for gunicorn, or a script; with the frontend and the sink named by its environment.

    python -m benchmarks.staging.application COUNT PER_SECOND exit|_exit|shut-down     # 0 a second: as fast as it goes

cwsink is in no process that logs without it. Every id is added to the file `RETURNED` once the logging call has
returned.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.staging.logger import FRONTEND, open_logger

LINES = int(os.environ["LINES"])
PADDING = "x" * 200


def open_notes(path: str) -> int:
    """Open a file of ids. What one `os.write` has added survives this process."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


RETURNED = open_notes(os.environ["RETURNED"])


def note(file: int, id_: str) -> None:
    """Add an id to a file."""
    os.write(file, f"{id_} {os.getpid()}\n".encode())


logger = open_logger()


def log(id_: str) -> None:
    """Log a record of about 250 bytes; once that has returned, note it."""
    message = f"id={id_} {PADDING}"
    logger.info(message)
    note(RETURNED, id_)


def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """Serve `/ID`: log, and say ok."""
    for line in range(LINES):
        log(f"{environ['PATH_INFO'].strip('/')}.{line}")
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "3")])
    return [b"ok\n"]


def main(count: int, per_second: float, end: str) -> None:
    """Log, and end in that way."""
    began = time.monotonic()
    for number in range(count):
        if per_second:
            time.sleep(max(0.0, began + number / per_second - time.monotonic()))
        log(f"script.{number}")
    if end == "_exit":
        os._exit(0)
    if end == "shut-down":
        sys.stdin.read()
        if FRONTEND == "fapilog":
            asyncio.run(logger.stop_and_drain())
        logging.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
