"""`cwsink export`: delivered and pending records as JSON lines, oldest first."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import heapq
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from cwsink.cli import DONE, NOT_DONE
from cwsink.cli.spools import Spools, period
from cwsink.spool import past_records
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Event
from cwsink.watching.output import replacing


def run(options: argparse.Namespace) -> int:
    """Write the records of all spools, merged. Returns the exit code."""
    spools = Spools(options.path, read_only=True)
    found = spools.find()

    def records(directory: SpoolDirectory) -> Iterator[Event]:
        with spools.missing(directory.path, "cannot read the spool"):
            yield from past_records.between(directory, *period(options))

    if not found:
        return NOT_DONE
    with _opened(options.output) as output:
        for each in heapq.merge(*map(records, found), key=lambda each: each.timestamp_ms):
            content = {"id": each.id, "timestamp_ms": each.timestamp_ms, "message": each.message}
            output.write(msgspec.json.encode(content) + b"\n")
    return DONE if spools.is_whole else NOT_DONE


@contextlib.contextmanager
def _opened(path: str | None) -> Iterator[IO[bytes] | Any]:
    with replacing(path or "-") as file:
        if path is None or not path.endswith(".gz"):
            yield file
            return
        with gzip.GzipFile(path, "wb", compresslevel=6, fileobj=file) as compressed:
            yield compressed
