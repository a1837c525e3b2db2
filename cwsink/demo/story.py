"""Tells the story: start, load, three kills, stop, read back. It ends within a minute.

```text
start CloudWatch -> start gunicorn -> requests | 1/4: kill a worker
                                               | 2/4: kill the flusher, time how soon its guard has another one
                                               | 3/4: kill another worker
-> stop gunicorn (the last worker out waits for the flusher) -> read back -> judge -> `cwsink verify`
```
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Final, TypeVar

from cwsink.demo import oracle, read_back
from cwsink.demo.load import Load
from cwsink.demo.read_back import LogEvent, Reader
from cwsink.demo.report import Screen
from cwsink.demo.sandbox import DemoError, Sandbox
from cwsink.demo.succession import Takeover, find_flusher, kill, wait_for_successor
from cwsink.demo.verdict import Ending, Evidence, judge
from cwsink.demo.webserver import WebServer
from cwsink.flusher.verification import Verification, in_words
from cwsink.spool import directory, survey
from cwsink.spool.directory import SpoolDirectory

# Seconds since the beginning. With the other waits here, the demo stays below a minute, whatever fails.
START_UNTIL_SECONDS: Final = 25.0
LOAD_UNTIL_SECONDS: Final = 35.0  # requests that are not sent by then are left out
FLUSHER_SECONDS: Final = 5.0
STOP_UNTIL_SECONDS: Final = 55.0
READ_SECONDS: Final = 4.0
CALLS_PER_SECOND: Final = 10.0

_POLL_SECONDS: Final = 0.05

_Found = TypeVar("_Found")


class Story:
    """One run of the demo."""

    def __init__(
        self, sandbox: Sandbox, screen: Screen, *, requests: int, workers: int, endpoint_url: str | None
    ) -> None:
        self._sandbox = sandbox
        self._screen = screen
        self._requests = requests
        self._workers = workers
        self._endpoint_url = endpoint_url
        # In a CloudWatch that outlives the demo, each run has a group of its own.
        self._group = f"/cwsink/demo-{time.strftime('%Y%m%dT%H%M%S')}-{os.getpid()}" if endpoint_url else "/cwsink/demo"

    def run(self) -> Ending:
        """Run it to the end. Raises DemoError."""
        url = self._start_cloudwatch()
        server = self._start_gunicorn(url)
        with Load(server.port, self._requests) as load:
            spool = self._wait_for(self._find_spool, server, "no worker has logged anything")
            flusher = self._wait_for(lambda: find_flusher(spool), server, "no flusher was started")
            self._screen.say(f"flusher {flusher.pid} sends for all of them, started by {flusher.started_by}")
            self._send_until(1 / 4, server, load)
            self._kill_worker(server, load)
            self._send_until(2 / 4, server, load)
            takeover = self._kill_flusher(spool, server, load)
            self._send_until(3 / 4, server, load)
            self._kill_worker(server, load)
            self._send_until(1, server, load)
        over = "" if load.done == load.requests else "; the time for them is over"
        self._screen.say(f"{self._done(load)} are answered, {load.per_second:,.0f} a second{over}")
        self._stop_gunicorn(server, spool)
        return self._read_back(url, spool, server, load, takeover)

    def _start_cloudwatch(self) -> str:
        if self._endpoint_url:
            return read_back.use_another(self._sandbox, self._endpoint_url)
        self._screen.doing("starting CloudWatch")
        url = read_back.start_moto(self._sandbox, START_UNTIL_SECONDS)
        self._screen.say(f"CloudWatch (moto) listens on {url}")
        return url

    def _start_gunicorn(self, url: str) -> WebServer:
        server = WebServer(self._sandbox, self._workers, group=self._group, endpoint_url=url)
        self._screen.say(f"gunicorn {server.pid} serves http://127.0.0.1:{server.port} with {self._workers} workers")
        self._screen.doing("waiting for the first worker")
        return server

    def _kill_worker(self, server: WebServer, load: Load) -> None:
        worker = self._wait_for(
            lambda: next(filter(server.is_worker, load.workers()), None), server, "no worker has answered"
        )
        server.kill(worker)
        self._screen.say(f"{self._done(load)}: killed worker {worker}", "yellow")

    def _kill_flusher(self, spool: SpoolDirectory, server: WebServer, load: Load) -> Takeover:
        before = self._wait_for(lambda: find_flusher(spool), server, "nobody sends")
        killed_at = kill(before)
        self._screen.say(f"{self._done(load)}: killed flusher {before.pid}", "yellow")
        takeover = wait_for_successor(spool, before, killed_at, FLUSHER_SECONDS)
        after = takeover.after
        self._screen.say(
            f"its guard had flusher {after.pid} after {takeover.ms:,.0f} ms (epoch {after.epoch})", "green"
        )
        return takeover

    def _stop_gunicorn(self, server: WebServer, spool: SpoolDirectory) -> None:
        self._screen.doing("stopping gunicorn")
        seconds = server.stop(STOP_UNTIL_SECONDS - self._screen.elapsed_seconds)
        pending = survey.survey(spool).pending
        left = f"{pending:,} records are left in the spool" if pending else "everything is delivered"
        self._screen.say(f"gunicorn stopped in {seconds:.1f} s; {left}")

    def _read_back(self, url: str, spool: SpoolDirectory, server: WebServer, load: Load, takeover: Takeover) -> Ending:
        self._screen.doing("reading back")
        reader = Reader(self._group, url, self._sandbox)
        until = time.monotonic() + READ_SECONDS
        while True:
            events = reader.events()
            verdict = judge(self._evidence(spool, server, load, events))
            # AWS shows an accepted event only a moment later. moto and LocalStack show it at once.
            if not verdict.lost or time.monotonic() > until:
                break
            time.sleep(_POLL_SECONDS)
        self._screen.say(f"{len(events):,} events read back through botocore")
        with self._sandbox.entered():
            work = Verification(spool, lambda *_: None, calls_per_second=CALLS_PER_SECOND)
            account = work.run(patience_seconds=READ_SECONDS)
        if not account.is_whole:
            verdict = replace(verdict, problems=(*verdict.problems, f"cwsink verify: {next(in_words(account))}"))
        return Ending(
            verdict=verdict,
            account=account,
            books=survey.survey(spool),
            takeover=takeover,
            sent=len(load.answers.sent),
            again=len(load.answers.broken),
            streams=reader.streams(),
            events=events,
            spool=spool.path,
        )

    def _evidence(self, spool: SpoolDirectory, server: WebServer, load: Load, events: list[LogEvent]) -> Evidence:
        pending = (oracle.request_id_of(event.message) for event in survey.events(spool))
        delivered = (oracle.request_id_of(event.message) for event in events)
        return Evidence(
            sent=load.answers.sent,
            answered=load.answers.answered,
            logged=oracle.read_logged(server.logged),
            delivered=Counter(name for name in delivered if name),
            pending={name for name in pending if name},
            books=survey.survey(spool),
        )

    def _find_spool(self) -> SpoolDirectory | None:
        found = directory.find_spools(str(self._sandbox.spools))
        return directory.open_existing(found[0]) if found else None

    def _done(self, load: Load) -> str:
        return f"{load.done:,} of {load.requests:,} requests"

    def _send_until(self, share: float, server: WebServer, load: Load) -> None:
        """Wait until this share of the requests is answered, or this share of their time is over."""
        while load.is_running and load.done < share * load.requests:
            server.check()
            if self._screen.elapsed_seconds > share * LOAD_UNTIL_SECONDS:
                return
            self._screen.progress("requests", load.done, load.requests, load.per_second)
            time.sleep(_POLL_SECONDS)

    def _wait_for(self, look: Callable[[], _Found | None], server: WebServer, otherwise: str) -> _Found:
        """Wait until `look` finds something, and return that. Raises DemoError."""
        until = max(START_UNTIL_SECONDS, self._screen.elapsed_seconds + FLUSHER_SECONDS)
        while (found := look()) is None:
            server.check()
            if self._screen.elapsed_seconds > until:
                raise DemoError(f"After {until:.0f} s {otherwise}.")
            time.sleep(_POLL_SECONDS)
        return found
