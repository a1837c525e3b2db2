"""Starts a CloudWatch on this machine, and reads the events back.

`python -m cwsink.demo.read_back` is moto's server on a free port of 127.0.0.1. It prints its
URL, and ends when its stdin is closed. Therefore it cannot outlive the demo, however that ends.
moto accepts more than AWS does, so the demo proves nothing about limits. (The tests run against
`cwsink.testing`, which is as strict as AWS.)
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import botocore.session
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cwsink.demo.sandbox import DemoError, Sandbox

REGION: Final = "us-east-1"
# moto accepts any credentials. With these, the user's own are not even read.
_FOR_MOTO: Final[Mapping[str, str]] = {
    "AWS_ACCESS_KEY_ID": "demo",
    "AWS_SECRET_ACCESS_KEY": "demo",
    "AWS_REGION": REGION,
    "AWS_DEFAULT_REGION": REGION,
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    "AWS_EC2_METADATA_DISABLED": "true",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}
_READ_LIMIT: Final = 10_000


@dataclass(frozen=True)
class LogEvent:
    """One event, as GetLogEvents returns it."""

    timestamp_ms: int
    message: str
    stream: str


def start_moto(sandbox: Sandbox, timeout_seconds: float) -> str:
    """Start moto's server in the sandbox, and return its URL. Raises DemoError."""
    for name in [name for name in sandbox.environment if name.startswith("AWS_")]:
        del sandbox.environment[name]
    sandbox.environment.update(_FOR_MOTO)
    child = sandbox.run_python("moto", "-m", "cwsink.demo.read_back", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdout is not None, "asked for a pipe"
    # readline() has no time-out. If the server takes too long, the timer kills it, and the line is empty.
    guard = threading.Timer(timeout_seconds, child.kill)
    guard.start()
    url = child.stdout.readline().strip()
    guard.cancel()
    if not url.startswith("http://"):
        raise DemoError("moto's server did not start.")
    return url


def use_another(sandbox: Sandbox, endpoint_url: str) -> str:
    """Use the CloudWatch at `endpoint_url`, with the user's own AWS settings. Returns the URL."""
    if urlsplit(endpoint_url).hostname in {"127.0.0.1", "::1", "localhost"}:
        # LocalStack and the like accept any credentials and region, but the client needs some.
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            sandbox.environment.setdefault(name, _FOR_MOTO[name])
    return endpoint_url


class Reader:
    """Reads one log group back, with plain calls of botocore."""

    def __init__(self, group: str, endpoint_url: str, sandbox: Sandbox) -> None:
        """Make a client with the credentials and the region of the workers."""
        self._group = group
        with sandbox.entered():
            # botocore's own retries may stay on, because the demo does not judge the reading side.
            config = Config(connect_timeout=3, read_timeout=10)
            # botocore reads AWS_DEFAULT_REGION only. The other SDKs, and cwsink, read AWS_REGION, too.
            self._client = botocore.session.Session().create_client(
                "logs", region_name=os.environ.get("AWS_REGION"), endpoint_url=endpoint_url, config=config
            )

    def streams(self) -> list[str]:
        """Return the names of the group's streams. Empty if there is no such group."""
        pages = self._client.get_paginator("describe_log_streams").paginate(logGroupName=self._group)
        try:
            return [stream["logStreamName"] for page in pages for stream in page["logStreams"]]
        except self._client.exceptions.ResourceNotFoundException:
            return []

    def events(self) -> list[LogEvent]:
        """Return every event of every stream, in the stream's order. Raises DemoError."""
        try:
            return [event for stream in self.streams() for event in self._events_of(stream)]
        except (BotoCoreError, ClientError) as error:
            raise DemoError(f"The events cannot be read back: {error}") from error

    def _events_of(self, stream: str) -> Iterator[LogEvent]:
        where: dict[str, Any] = {"logGroupName": self._group, "logStreamName": stream}
        token = None
        while True:
            page = self._client.get_log_events(
                **where, startFromHead=True, limit=_READ_LIMIT, **({"nextToken": token} if token else {})
            )
            for event in page["events"]:
                yield LogEvent(event["timestamp"], event["message"], stream)
            if page["nextForwardToken"] == token:  # at the end, as documented, the same token comes back
                return
            token = page["nextForwardToken"]


def _serve() -> None:
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # it would write a line for each request
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    print(f"http://{host}:{port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    _serve()
