"""The processes of the kill soak: four kinds of writers, `cwsink flush`, and the oracle that outlives them all.

The oracle is a file that every writer maps, one byte for "issued" and one for "acknowledged" of each id. A message is
a function of its id. Ids are issued in lanes; a lane has one thread, task or logger, which goes on where the process
before it was killed. The first id of each of them is marked: order is promised for one writing thread.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
import json
import mmap
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import fapilog

import cwsink
from cwsink import Writer
from cwsink.cli import main as command_line
from cwsink.config import load_config
from cwsink.spool import directory

# The lanes of each kind of writer, and their share of all records.
WRITERS: Final = {"plain": [0.34], "threads": [0.2, 0.2], "asyncio": [0.1, 0.1], "fapilog": [0.06]}
# Beside `cwsink flush`, the flusher that starts by itself stands for election: the writers start that one.
ROLES: Final = [*WRITERS, "flusher"]
LANES: Final = [share for shares in WRITERS.values() for share in shares]
# So many between two pauses; all pauses together are half the time that the soak is to take.
BURST: Final = 10
_FURTHER: Final = 1
_FIRST: Final = 2


def message_of(number: int) -> str:
    """Return the message with this id: 40 to 400 characters, and one in 256 longer than two pages."""
    digest = hashlib.sha256(str(number).encode()).hexdigest()
    length = 9_000 if number % 256 == 0 else 40 + int(digest[:4], 16) % 360
    return f"{number:07d} " + (digest * (length // len(digest) + 1))[:length]


def text_of(message: str) -> str:
    """Return what was logged; from fapilog comes its entry."""
    return str(json.loads(message)["message"]) if message.startswith("{") else message


class Oracle:
    """What was issued and what was acknowledged, in a file that outlives its writers."""

    def __init__(self, path: Path, records: int) -> None:
        ends = list(itertools.accumulate(int(share * records) for share in LANES))
        self.lanes = [range(begin, end) for begin, end in zip([0, *ends], ends, strict=False)]
        self.records = ends[-1]
        if not path.exists():
            path.write_bytes(bytes(2 * self.records + 1))
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)

    def is_issued(self, number: int) -> bool:
        return bool(self._bytes[number])

    def issue(self, number: int, mark: int) -> None:
        self._bytes[number] = mark

    def acknowledge(self, number: int) -> None:
        self._bytes[self.records + number] = 1

    def issued(self) -> set[int]:
        return {number for number, is_set in enumerate(self._bytes[: self.records]) if is_set}

    def acknowledged(self) -> set[int]:
        return {number for number, is_set in enumerate(self._bytes[self.records : -1]) if is_set}

    def progress(self) -> int:
        return self.records - self._bytes[: self.records].count(0)

    def begins(self) -> list[int]:
        """Return the first id of each process in each of its lanes, in order."""
        return [number for number in range(self.records) if self._bytes[number] == _FIRST]

    def is_waiting(self) -> bool:
        """Tell whether every lane has come to its last id."""
        return self.progress() >= self.records - len(self.lanes)

    def close(self) -> None:
        """Tell all writers to issue their last ids, and to leave."""
        self._bytes[-1] = 1

    def is_closed(self) -> bool:
        return bool(self._bytes[-1])

    def left(self, lane: int, seconds: float) -> Iterator[tuple[int, float]]:
        """Issue the ids of a lane that are left; with each comes how long to pause before it is used.

        The last one is kept until no more is killed, so that every writer takes part in the end.
        """
        numbers = self.lanes[lane]
        mark = _FIRST
        for number in numbers:
            if self.is_issued(number):
                continue
            while number == numbers[-1] and not self.is_closed():
                yield -1, 0.02
            self.issue(number, mark)
            mark = _FURTHER
            yield number, 0.5 * BURST * seconds / len(numbers) if number % BURST == 0 else 0.0


def work(role: str, path: str, records: int, seconds: float, settings: dict[str, Any]) -> None:
    """Be one process of that role, until it has nothing left to do or is killed."""
    if role == "flusher":
        return flush(settings)
    oracle = Oracle(Path(path), records)
    first = sum(len(WRITERS[kind]) for kind in itertools.takewhile(lambda kind: kind != role, WRITERS))
    lanes = list(range(first, first + len(WRITERS[role])))
    if role == "fapilog":
        return log(oracle, lanes[0], seconds, settings)
    writer = Writer(load_config(settings))

    def append(number: int) -> None:
        if number >= 0 and writer.append(message_of(number)):
            oracle.acknowledge(number)

    def run(lane: int) -> None:
        for number, pause in oracle.left(lane, seconds):
            time.sleep(pause)
            append(number)

    async def run_task(lane: int) -> None:
        for number, pause in oracle.left(lane, seconds):
            await asyncio.sleep(pause)
            append(number)

    async def run_tasks() -> None:
        await asyncio.gather(*map(run_task, lanes))

    if role == "plain":
        run(lanes[0])
    elif role == "asyncio":
        asyncio.run(run_tasks())
    else:
        threads = [threading.Thread(target=run, args=(lane,)) for lane in lanes]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def log(oracle: Oracle, lane: int, seconds: float, settings: dict[str, Any]) -> None:
    """Log through fapilog; a record is acknowledged once `logger.info` has returned."""
    cwsink.install()
    chosen = fapilog.Settings()
    chosen.core.sinks = ["cwsink"]
    chosen.sink_config.extra["cwsink"] = settings
    logger = fapilog.get_logger(settings=chosen)
    for number, pause in oracle.left(lane, seconds):
        time.sleep(pause)
        if number >= 0:
            logger.info(message_of(number))
            oracle.acknowledge(number)


def flush(settings: dict[str, Any]) -> None:
    """Be a dedicated flusher, until SIGTERM."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # stdout is the pipe on which the warm process answers the test
    assert command_line(["flush", directory.open_for(load_config(settings)).path]) == 0
