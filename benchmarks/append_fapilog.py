"""fapilog's rows of `python -m benchmarks.append`: its queue to nothing, its own sink, and cwsink's both ways.

`logger.info` of the message, settings as they come. Its CPU is all of the process's: the caller's, and its thread's
until the queue is empty. No more than fit into its queue of 10,000 are logged, so nothing is dropped.

A burst keeps all caches warm. `paced` is nearer to a web request: three records, then 2 ms of other work, which
throws out of the caches what logging needs. What the caller's thread spends on that work is taken off.
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Final

from benchmarks.append_peers import FORK, MESSAGE, Once, Subject
from cwsink.config import SinkConfig
from cwsink.testing import spawn

RECORDS: Final = 8_000
REQUESTS: Final = 400
RECORDS_A_REQUEST: Final = 3
WORK_SECONDS: Final = 0.002
HANG_SECONDS: Final = 120.0
# Larger than a core's own caches.
_MEMORY_BYTES: Final = 8 << 20


class Fapilog(Subject):
    """A logger of fapilog's; each writer makes its own."""

    package = "fapilog"
    most_records = RECORDS

    def open(self) -> Once:
        self._logger = self.logger()
        info, message = self._logger.info, self.message

        def once() -> None:
            info(message)

        return once

    def logger(self) -> Any:
        """Return the logger."""
        raise NotImplementedError

    def finish(self) -> None:
        result = asyncio.run(self._logger.stop_and_drain())
        if result.dropped:
            raise SystemExit(f"{self.name}: {result.dropped} of {result.submitted} records were dropped")


class Nothing:
    """A sink that does nothing."""

    name = "nothing"

    async def write(self, entry: dict[str, Any]) -> None:
        """Do nothing."""


class ToNothing(Fapilog):
    """What fapilog takes by itself."""

    name = "fapilog to nothing"
    note = "its own `logger.info`, queue and thread, and a sink that does nothing"

    def logger(self) -> Any:
        return self.module.get_logger("bench", sinks=[Nothing()], settings=self.module.Settings())


class OwnSink(Fapilog):
    """fapilog and the sink for CloudWatch that it comes with."""

    name = "fapilog + its own sink"
    note = (
        "delivers from the process, to a strict server on the same cores; how many of its records never arrive is "
        "said below the tables"
    )

    def __init__(self, directory: str, message: str = MESSAGE) -> None:
        super().__init__(directory, message)
        self._server = spawn(keep_events=False)

    def logger(self) -> Any:
        os.environ.update(AWS_ACCESS_KEY_ID="bench", AWS_SECRET_ACCESS_KEY="bench")
        settings = self.module.Settings(core={"sinks": ["cloudwatch"]})
        cloudwatch = settings.sink_config.cloudwatch
        cloudwatch.endpoint_url, cloudwatch.region = self._server.endpoint_url, "us-east-1"
        cloudwatch.log_group_name, cloudwatch.log_stream_name = "/bench/append", f"worker-{os.getpid()}"
        return self.module.get_logger("bench", settings=settings)

    def end(self) -> tuple[float, int | None]:
        with self._server:
            return 0.0, int(self._server.summary()["events"])


class Spooled(Fapilog):
    """fapilog and cwsink."""

    pipeline: ClassVar[str]

    def logger(self) -> Any:
        import cwsink

        cwsink.install()
        config = SinkConfig(
            spool_directory=self.directory, flusher="external", spool_max_bytes=8 << 30, pipeline=self.pipeline
        )
        sinks = [cwsink.CloudWatchSpoolSink(config)]
        return self.module.get_logger("bench", sinks=sinks, settings=self.module.Settings())


class Inline(Spooled):
    """As it comes after `cwsink.install()`."""

    name = "fapilog + cwsink"
    note = "`logger.info` returns when the record is in the spool; elsewhere is of the bare message, as above"
    pipeline = "inline"


class Queued(Spooled):
    """With fapilog's queue and thread in between."""

    name = "fapilog + cwsink, queue"
    note = '`pipeline="queue"`: the record is in the spool about 250 ms later; elsewhere as above'
    pipeline = "queue"


SUBJECTS: Final[tuple[type[Fapilog], ...]] = (ToNothing, OwnSink, Inline, Queued)
OURS: Final[tuple[type[Fapilog], ...]] = (Inline, Queued)


def _work_for(seconds: float) -> Callable[[], object]:
    """Return work of about so long, the same each time, that goes through a lot of memory."""
    memory = bytearray(_MEMORY_BYTES)

    def work(times: int) -> int:
        return sum(memory[(at * 4099) % _MEMORY_BYTES] + len(str(at)) for at in range(times))

    began = time.perf_counter()
    work(20_000)
    times = int(20_000 * seconds / (time.perf_counter() - began))
    return lambda: work(times)


def _serve(subject: Subject, requests: int, results: Any) -> None:
    """Be one process that serves requests: some work, some records."""
    once, work = subject.open(), _work_for(WORK_SECONDS)
    once()
    gc.disable()
    clock, own, waits, aside = time.perf_counter_ns, time.thread_time_ns, [], 0
    work()
    cpu = time.process_time_ns()
    for _ in range(requests):
        began = own()
        work()
        aside += own() - began
        for _ in range(RECORDS_A_REQUEST):
            began = clock()
            once()
            waits.append(clock() - began)
    subject.finish()
    results.put((time.process_time_ns() - cpu - aside, waits))


def paced(root: Callable[[], Any], rounds: int, requests: int = REQUESTS) -> list[list[str]]:
    """Measure the subjects in turn, in other orders; return the rows of a table.

    Args:
        root: makes a context whose value is an empty directory.
    """
    cpus: dict[str, list[float]] = {kind.name: [] for kind in SUBJECTS}
    waits: dict[str, list[int]] = {kind.name: [] for kind in SUBJECTS}
    for index in range(rounds):
        at = index % len(SUBJECTS)
        for kind in (*SUBJECTS[at:], *SUBJECTS[:at]):
            with root() as directory:
                cpu, waited = _measure(kind(directory), requests)
            cpus[kind.name].append(cpu / 1e3 / requests / RECORDS_A_REQUEST)
            waits[kind.name] += waited
    return [_row(kind.name, cpus, waits[kind.name]) for kind in SUBJECTS]


def _measure(subject: Subject, requests: int) -> tuple[int, list[int]]:
    results = FORK.Queue()
    process = FORK.Process(target=_serve, args=(subject, requests, results), daemon=True)
    process.start()
    try:
        found: tuple[int, list[int]] = results.get(timeout=HANG_SECONDS)
        process.join()
        return found
    finally:
        if process.is_alive():
            process.kill()
        subject.end()


def _row(name: str, cpus: dict[str, list[float]], waits: Sequence[int]) -> list[str]:
    mine, ordered = cpus[name], sorted(waits)
    ratio = statistics.median(cpu / least for cpu, least in zip(mine, cpus[ToNothing.name], strict=True))
    return [
        name,
        f"{statistics.median(mine):.1f}",
        f"{min(mine):.1f}-{max(mine):.1f}",
        f"{ratio:.2f}",
        f"{ordered[len(ordered) // 2] / 1e3:.1f}",
        f"{ordered[int(len(ordered) * 0.99)] / 1e3:.1f}",
    ]
