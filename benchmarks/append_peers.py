"""The peers of `python -m benchmarks.append`: other ways for many processes to log to one place.

Each is used as its documentation says, with the settings that are quickest for it: a large file
that never rotates, the bare message as format, no reader that would slow the writers down
where the peer works without one.
"""

from __future__ import annotations

import fcntl
import importlib
import importlib.util
import itertools
import logging
import mmap
import multiprocessing
import os
import time
from collections.abc import Callable
from struct import Struct
from typing import Any, ClassVar, Final

from cwsink.spool import frame, record
from cwsink.testing import spawn

# 300 bytes: an access log's line with what people add to it.
MESSAGE: Final = "GET /api/orders/123456 200 12ms " + "x" * 268

FORK: Final = multiprocessing.get_context("fork")
RING_BYTES: Final = 16 << 20
# SQLite raises "database is locked" after this long; its default of 5 s is not always enough for 16 writers.
LOCK_TIMEOUT_SECONDS: Final = 60.0

Once = Callable[[], object]


class Subject:
    """A way to log. Made before the writers are forked, opened and finished in each of them, ended after them.

    Args:
        directory: an empty one, on the disk where spools are.
        message: what to log, again and again.
    """

    name: ClassVar[str]
    package: ClassVar[str] = ""  # what must be installed, as it is imported
    note: ClassVar[str] = ""  # what a reader of the table must know
    most_records: ClassVar[int] = 200_000  # of a measurement: a slow peer need not take as many to be known

    def __init__(self, directory: str, message: str = MESSAGE) -> None:
        self.directory = directory
        self.message = message
        # Here, not in the writers: 16 times an import of boto3 would take longer than all that is measured.
        self.module: Any = importlib.import_module(self.package) if self.package else None

    @classmethod
    def is_installed(cls) -> bool:
        """Tell whether this can be measured here."""
        return not cls.package or importlib.util.find_spec(cls.package) is not None

    def open(self) -> Once:
        """Return what logs once. Called in each writer."""
        raise NotImplementedError

    def finish(self) -> None:
        """Have all that this writer has logged leave the process, where it does not at once. Measured, too."""

    def end(self) -> tuple[float, int | None]:
        """Let go. Returns (CPU seconds that other processes have spent on it, how many records arrived if known)."""
        return 0.0, None

    def through_logging(self, handler: logging.Handler) -> Once:
        """Return a `logger.info` of the message to this handler alone."""
        logger = logging.getLogger("benchmark")
        logger.propagate = False
        logger.setLevel(logging.INFO)
        logger.handlers = [handler]
        info, message = logger.info, self.message

        def once() -> None:
            info(message)

        return once


class ToNothing(Subject):
    """What `logging` itself takes, before any handler."""

    name = "logger.info to nothing"
    note = "what `logging` itself takes, before any handler"

    def open(self) -> Once:
        return self.through_logging(logging.NullHandler())


class StructlogToNothing(Subject):
    """What `structlog` itself takes, before anything is rendered."""

    name = "structlog to nothing"
    package = "structlog"
    note = "context and level are added, nothing is rendered"

    def open(self) -> Once:
        return self.through_structlog(lambda *_: "", lambda *_: _Nothing())

    def through_structlog(self, render: Callable[..., object], logger_factory: Callable[..., object]) -> Once:
        """Return an `info` of the message with this last processor and these loggers."""
        add_level, merge = self.module.processors.add_log_level, self.module.contextvars.merge_contextvars
        self.module.configure(processors=[merge, add_level, render], logger_factory=logger_factory)
        info, message = self.module.get_logger("benchmark").info, self.message

        def once() -> None:
            info(message)

        return once


class _Nothing:
    def info(self, message: object) -> None:
        """Do nothing."""


class LoguruToNothing(Subject):
    """What loguru itself takes, with a sink that does nothing."""

    name = "loguru to nothing"
    package = "loguru"
    note = "its own `logger.info`, and a sink that does nothing"

    def open(self) -> Once:
        return self.through_loguru(lambda _: None)

    def through_loguru(self, sink: Callable[[Any], object]) -> Once:
        """Return a `logger.info` of the message to this sink alone."""
        logger = self.module.logger
        logger.remove()
        logger.add(sink, format="{message}")
        info, message = logger.info, self.message

        def once() -> None:
            info(message)

        return once


class FlockRing(Subject):
    """A ring in a shared mapping, its head moved under a flock: the textbook alternative to O_APPEND."""

    name = "flock + mmap ring"
    note = "the same records and frames into a shared mapping; laps its reader without looking"

    _head = Struct("<Q")

    def __init__(self, directory: str, message: str = MESSAGE) -> None:
        super().__init__(directory, message)
        self._path = f"{directory}/ring"
        with open(self._path, "wb") as file:
            os.posix_fallocate(file.fileno(), 0, RING_BYTES)
            file.write(self._head.pack(self._head.size))

    def open(self) -> Once:
        # A descriptor of its own: a flock belongs to the open file, which a fork shares.
        fd = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        ring = mmap.mmap(fd, RING_BYTES)
        message, producer, sequence = self.message, time.time_ns() ^ os.getpid(), itertools.count()
        flock, first, head_of, move_head = fcntl.flock, self._head.size, self._head.unpack_from, self._head.pack_into

        def once() -> None:
            event = record.Event(time.time_ns() // 1_000_000, producer, next(sequence), message)
            data = frame.encode(record.encode(event), 1)
            flock(fd, fcntl.LOCK_EX)
            try:
                at = head_of(ring)[0]
                if at + len(data) > RING_BYTES:
                    at = first
                ring[at : at + len(data)] = data
                move_head(ring, 0, at + len(data))
            finally:
                flock(fd, fcntl.LOCK_UN)

        return once


class MultiprocessingQueue(Subject):
    """The standard library's own: a feeder thread in each writer, a pipe under a lock, one consumer."""

    name = "multiprocessing.Queue"
    note = (
        "in memory only; a put appends to a list, the process's feeder thread does the work later; elsewhere is its "
        "consumer, which takes the records and throws them away"
    )

    def __init__(self, directory: str, message: str = MESSAGE) -> None:
        super().__init__(directory, message)
        self._queue: multiprocessing.Queue[str | None] = FORK.Queue()
        self._cpu_seconds, self._arrived = FORK.Value("d", 0.0), FORK.Value("q", 0)
        self._consumer = FORK.Process(target=self._consume, daemon=True)
        self._consumer.start()

    def open(self) -> Once:
        put, message = self._queue.put, self.message

        def once() -> None:
            put(message)

        return once

    def finish(self) -> None:
        self._queue.close()
        self._queue.join_thread()

    def end(self) -> tuple[float, int | None]:
        self._queue.put(None)
        self._queue.close()
        self._queue.join_thread()
        self._consumer.join()
        return self._cpu_seconds.value, self._arrived.value

    def _consume(self) -> None:
        arrived = 0
        while self._queue.get() is not None:
            arrived += 1
        self._arrived.value, self._cpu_seconds.value = arrived, time.process_time()


class SqliteQueue(Subject):
    """A queue in SQLite, WAL mode, synchronous=NORMAL: also survives a kill, also on local disk."""

    name = "SQLite WAL (litequeue)"
    package = "litequeue"
    note = "nobody reads; a busy handler sleeps where it would wait for its lock"
    most_records = 20_000

    def __init__(self, directory: str, message: str = MESSAGE) -> None:
        super().__init__(directory, message)
        self._path = f"{directory}/queue.sqlite"
        # The schema and the mode are made once: many at once would find the database locked.
        self._connect().close()

    def _connect(self) -> Any:
        return self.module.LiteQueue(self._path, timeout=LOCK_TIMEOUT_SECONDS)

    def open(self) -> Once:
        put, message = self._connect().put, self.message

        def once() -> None:
            put(message)

        return once


class ConcurrentLogHandler(Subject):
    """A rotating file for many processes: a file lock for each record."""

    name = "concurrent-log-handler"
    package = "concurrent_log_handler"
    note = "`logger.info`, the bare message to a file that does not rotate; delivers nothing"
    most_records = 20_000

    def open(self) -> Once:
        path = f"{self.directory}/lines.log"
        handler: logging.Handler = self.module.ConcurrentRotatingFileHandler(path, maxBytes=4 << 30, backupCount=1)
        return self.through_logging(handler)


class Loguru(Subject):
    """loguru with `enqueue=True`, its way to log from many processes and not to wait for the file."""

    name = "loguru enqueue=True"
    package = "loguru"
    note = "its own `logger.info`, the bare message to a file; its thread is in the process; delivers nothing"
    most_records = 30_000

    def open(self) -> Once:
        logger = self.module.logger
        logger.remove()
        logger.add(f"{self.directory}/lines.log", enqueue=True, format="{message}")
        info, message = logger.info, self.message

        def once() -> None:
            info(message)

        return once

    def finish(self) -> None:
        self.module.logger.remove()


class Watchtower(Subject):
    """CloudWatch's best known handler: a queue and a thread in each process, which sends to the strict server."""

    name = "watchtower"
    package = "watchtower"
    note = (
        "`logger.info`, the bare message; its thread, which delivers, is in the process, and so in its CPU; its "
        "strict server, on the same cores, is not, but makes it wait; it drops what is logged while it makes its stream"
    )
    most_records = 40_000

    def __init__(self, directory: str, message: str = MESSAGE) -> None:
        super().__init__(directory, message)
        self._boto3: Any = importlib.import_module("boto3")
        self._server = spawn(keep_events=False)
        self._close: Callable[[], None] = lambda: None

    def open(self) -> Once:
        client = self._boto3.Session().client(
            "logs",
            region_name="us-east-1",
            endpoint_url=self._server.endpoint_url,
            aws_access_key_id="bench",
            aws_secret_access_key="bench",
        )
        handler: logging.Handler = self.module.CloudWatchLogHandler(
            log_group_name="/bench/append", log_stream_name="worker-{process_id}", boto3_client=client
        )
        self._close = handler.close
        return self.through_logging(handler)

    def finish(self) -> None:
        self._close()

    def end(self) -> tuple[float, int | None]:
        with self._server:
            return 0.0, int(self._server.summary()["events"])


PEERS: Final[tuple[type[Subject], ...]] = (
    ToNothing,
    StructlogToNothing,
    LoguruToNothing,
    FlockRing,
    MultiprocessingQueue,
    SqliteQueue,
    ConcurrentLogHandler,
    Loguru,
    Watchtower,
)


def missing() -> list[str]:
    """Return the names of the peers that are not installed."""
    return [peer.name for peer in PEERS if not peer.is_installed()]
