"""The application that logs: `app` for gunicorn, or a script; with the library and sink named by its environment.

    python application.py COUNT PER_SECOND exit|_exit|shut-down     # 0 a second: as fast as it goes

Run from this file alone, so that cwsink is in no process that logs without it. Every id is added to the file
`RETURNED` once the logging call has returned, and to `ACCEPTED` once cwsink's sink has taken it over from fapilog.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable, Iterable
from importlib import import_module
from typing import Any

LIBRARY, SUBJECT = os.environ["LIBRARY"], os.environ["SUBJECT"]
LINES = int(os.environ["LINES"])

Info = Callable[[str], object]


def open_notes(path: str) -> int:
    """Open a file of ids. What one `os.write` has added survives this process."""
    return os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)


RETURNED, ACCEPTED = (open_notes(os.environ[name]) for name in ("RETURNED", "ACCEPTED"))


def note(file: int, id_: str) -> None:
    """Add an id to a file."""
    os.write(file, f"{id_} {os.getpid()}\n".encode())


def watch(sink: Any) -> None:
    """Have the sink's class note what its `write` has accepted."""
    write = sink.write

    async def write_and_note(self: Any, entry: dict[str, Any]) -> object:
        is_accepted = await write(self, entry)
        if is_accepted:
            note(ACCEPTED, str(entry["message"]).split()[0].removeprefix("id="))
        return is_accepted

    sink.write = write_and_note


def log_with_fapilog() -> tuple[Info, Callable[[], object]]:
    """Return how to log, and how to end in order."""
    import asyncio

    import fapilog

    if SUBJECT == "cwsink":
        import cwsink

        watch(cwsink.CloudWatchSpoolSink)
        cwsink.install()
    logger = fapilog.get_logger("shop", settings=fapilog.Settings())
    return logger.info, lambda: asyncio.run(logger.stop_and_drain())


def log_with_logging() -> tuple[Info, Callable[[], object]]:
    """Return how to log, and how to end in order."""
    handler: logging.Handler
    if SUBJECT == "cwsink":
        import cwsink

        handler = cwsink.SpoolHandler()
    else:
        import boto3

        group, url = os.environ["FAPILOG_CLOUDWATCH__LOG_GROUP_NAME"], os.environ["FAPILOG_CLOUDWATCH__ENDPOINT_URL"]
        client = boto3.client("logs", endpoint_url=url, region_name="us-east-1")
        handler_class = import_module("watchtower").CloudWatchLogHandler  # not there where types are checked
        handler = handler_class(log_group_name=group, boto3_client=client, send_interval=1)
    logger = logging.getLogger("shop")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(handler)
    return logger.info, logging.shutdown


info, shut_down = log_with_logging() if LIBRARY == "logging" else log_with_fapilog()


def log(id_: str) -> None:
    """Log a record of about 250 bytes; once that has returned, note it."""
    info(f"id={id_} " + "x" * 200)
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
        shut_down()


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3])
