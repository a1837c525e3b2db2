"""`cwsink export`: delivered and pending records as JSON lines, oldest first."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import heapq
import sys
from collections.abc import Iterator
from typing import IO, Any

import msgspec

from cwsink.cli import DONE, NOT_DONE
from cwsink.cli.spools import Spools, period
from cwsink.spool import past_records
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Event


def run(options: argparse.Namespace) -> int:
    """Write the records of all spools, merged. Returns the exit code."""
    spools = Spools(options.path, read_only=True)
    found = spools.find()

    def records(directory: SpoolDirectory) -> Iterator[Event]:
        with spools.missing(directory.path, "cannot read the spool"):
            yield from past_records.between(directory, *period(options))

    with _opened(options.output) as output:
        for each in heapq.merge(*map(records, found), key=lambda each: each.timestamp_ms):
            content = {"id": each.id, "timestamp_ms": each.timestamp_ms, "message": each.message}
            output.write(msgspec.json.encode(content) + b"\n")
    return DONE if found and spools.is_whole else NOT_DONE


def _opened(path: str | None) -> contextlib.AbstractContextManager[IO[bytes] | Any]:
    if path is None:
        return contextlib.nullcontext(sys.stdout.buffer)
    return gzip.open(path, "wb", compresslevel=6) if path.endswith(".gz") else open(path, "wb")
