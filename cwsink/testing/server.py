"""`StrictCloudWatch`: the strict server in threads of this process (I/O).

Tests use it directly, and `__main__` uses it for a process of its own. This module
has the methods for tests. `listener` has the threads, and `gateway` judges the calls.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from types import TracebackType
from typing import Any

from cwsink.limits import MAX_EVENT_BYTES
from cwsink.testing import control
from cwsink.testing.actions import Service
from cwsink.testing.faults import Faults
from cwsink.testing.gateway import Gateway
from cwsink.testing.listener import HOST, Listener
from cwsink.testing.store import Group, Store, StoredEvent, StoredRequest, Stream
from cwsink.testing.wire import BadRequestError, Reply, Wire


class StrictCloudWatch:
    """A local CloudWatch Logs that enforces every documented limit.

    ```python
    with StrictCloudWatch() as server:
        client = boto3.client("logs", endpoint_url=server.endpoint_url, ...)
        ...
        server.assert_clean()
    ```

    Args:
        clock: returns the time, in seconds since 1970, by which an event is too old or too new.
        port: 0 lets the kernel choose. `stop` and `start` keep the port.
        region: the region of ARNs, and of `environment()`.
        max_event_bytes: the longest message; 262,118 for partitions that still have 256 KB.
        keep_events: False counts accepted events without keeping them.
        id_pattern: regular expression of an event's id, to count repeated ones (see `Store`).

    After `stop`, a test can still read events, requests and violations.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        port: int = 0,
        region: str = "us-east-1",
        max_event_bytes: int = MAX_EVENT_BYTES,
        keep_events: bool = True,
        id_pattern: str | None = None,
    ) -> None:
        self.clock = clock
        self.faults = Faults()
        self._store = Store(keep_events=keep_events, id_pattern=id_pattern)
        self._service = Service(self._store, self.faults, region=region, max_event_bytes=max_event_bytes)
        self._gateway = Gateway(self._service, self._now_ms)
        self._listener = Listener(self._serve, port=port)

    def start(self) -> StrictCloudWatch:
        """Listen, and serve in daemon threads."""
        self._listener.start()
        return self

    def stop(self) -> None:
        """Close every connection and join every thread. `start` begins again at the same port."""
        self._listener.stop()

    def __enter__(self) -> StrictCloudWatch:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def endpoint_url(self) -> str:
        """The URL to give a client as its `endpoint_url`."""
        if not self._listener.port:
            raise RuntimeError("the server has not been started: it has no port yet")
        return f"http://{HOST}:{self._listener.port}"

    def environment(self) -> dict[str, str]:
        """Return variables with which boto3 in a child process uses this server, with dummy credentials."""
        return {
            "AWS_ENDPOINT_URL_CLOUDWATCH_LOGS": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing",
            "AWS_DEFAULT_REGION": self._service.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    # Accepted events, and calls.

    def events(self, group: str | None = None, stream: str | None = None) -> list[StoredEvent]:
        """Return the accepted events in arrival order. If a group or stream is named, only its events."""
        return list(self._store.events(group, stream))

    def messages(self, group: str | None = None, stream: str | None = None) -> list[str]:
        """Return the messages of `events(group, stream)`."""
        return [event.message for event in self._store.events(group, stream)]

    @property
    def requests(self) -> list[StoredRequest]:
        """Every PutLogEvents call, in arrival order. Its status is 0 if it got no answer."""
        with self._store.changed:
            return list(self._store.requests)

    @property
    def calls(self) -> Counter[str]:
        """The number of calls by action, with those that were refused or not answered."""
        with self._store.changed:
            return Counter(self._store.calls)

    @property
    def violations(self) -> list[str]:
        """The rules that clients broke, as text."""
        with self._store.changed:
            return list(self._store.violations)

    def take_violations(self) -> list[str]:
        """Return the violations and forget them. A test that breaks rules on purpose calls this."""
        with self._store.changed:
            taken, self._store.violations = self._store.violations, []
            return taken

    def assert_clean(self) -> None:
        """Raise an AssertionError that lists the violations, if there are any."""
        broken = self.violations
        if broken:
            listed = "\n".join(f"  - {text}" for text in broken)
            raise AssertionError(f"clients broke {len(broken)} rule(s) of CloudWatch Logs:\n{listed}")

    def senders_by_epoch(self) -> dict[int, set[str]]:
        """Return the senders of PutLogEvents calls by epoch. If an epoch has two senders, fencing has failed."""
        senders: dict[int, set[str]] = {}
        for request in self.requests:
            if request.epoch is not None:
                senders.setdefault(request.epoch, set()).add(request.sender)
        return senders

    def wait_for(self, condition: Callable[[StrictCloudWatch], bool], timeout_seconds: float = 10.0) -> bool:
        """Wait until `condition(server)` holds. It is asked after each call. False: the time is over."""
        with self._store.changed:
            return self._store.changed.wait_for(lambda: condition(self), timeout_seconds)

    def wait_for_events(self, count: int, timeout_seconds: float = 10.0) -> bool:
        """Wait until at least `count` events were accepted. False: the time is over."""
        return self.wait_for(lambda _: self._store.accepted_events >= count, timeout_seconds)

    def summary(self) -> dict[str, Any]:
        """Return the counts of everything, see `control.summary`. GET /_cwsink/summary gives the same as JSON."""
        return control.summary(self._store)

    def reset(self) -> None:
        """Forget groups, events, requests, violations and faults."""
        self._store.reset()
        self.faults.clear()

    # Groups and streams of the service.

    def create_group(self, name: str, *, group_class: str = "STANDARD", retention_days: int | None = None) -> None:
        """Make a log group, as if another program had made it."""
        with self._store.changed:
            self._store.groups[name] = Group(name, self._now_ms(), group_class, retention_days=retention_days)

    def create_stream(self, group: str, name: str) -> None:
        """Make a log stream, as if another program had made it, and its group if that is missing."""
        with self._store.changed:
            if group not in self._store.groups:
                self.create_group(group)
            self._store.groups[group].streams[name] = Stream(name, self._now_ms())

    def delete_group(self, name: str) -> None:
        """Delete a log group, if there is one. The events that it has accepted stay in `events`."""
        self._store.delete_group(name)

    def delete_stream(self, group: str, name: str) -> None:
        """Delete a log stream, if there is one. The events that it has accepted stay in `events`."""
        self._store.delete_stream(group, name)

    def group(self, name: str) -> Group | None:
        """Return a group with its retention, tags, class and streams. None: there is no such group."""
        with self._store.changed:
            return self._store.groups.get(name)

    def _now_ms(self) -> int:
        return round(self.clock() * 1000)

    def _drips(self) -> bool:
        """Wait before the next byte of an answer, if answers drip. False: the rest is to be sent at once."""
        seconds = self.faults.drip_seconds
        return seconds > 0 and not self._listener.stopping.wait(seconds)

    def _serve(self, wire: Wire) -> None:
        stopping = self._listener.stopping
        while not stopping.is_set():
            try:
                request = wire.receive()
            except BadRequestError as error:
                wire.send(Reply(error.status, str(error).encode(), {"Connection": "close"}))
                return
            if request is None:
                return
            reply: Reply | None
            if request.path.startswith(control.PREFIX):
                reply, delay_seconds = control.reply(self._store, self.faults, request), 0.0
            else:
                reply, delay_seconds = self._gateway.judge(request, wire.host, wire.peer)
            if stopping.wait(delay_seconds) or reply is None:
                return
            wire.send(reply, self._drips)
            if not request.keep_alive:
                return
