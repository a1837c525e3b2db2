"""Functions that tests share; fixtures are in conftest.py."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from cwsink.config import SinkConfig
from cwsink.errors import SpoolError
from cwsink.flusher.past import Past
from cwsink.spool import directory
from cwsink.spool.directory import SpoolDirectory, SpoolFormat
from cwsink.spool.survey import survey

# For tests of what is sent where, without a spool on disk.
SPOOL_FORMAT = SpoolFormat(
    format=1,
    spool_id="00" * 16,
    log_group_name="/app",
    log_stream_name="host",
    region=None,
    endpoint_url=None,
    create_log_group=True,
    create_log_stream=True,
    spool_max_bytes=1 << 20,
    host="host",
    created="2023-11-14T00:00:00Z",
)

CHILD_SECONDS = 60  # guards against a hang, asserts no speed


class Killed(BaseException):
    """Stands for SIGKILL where no process can be killed for it: cwsink catches it nowhere, so nothing more is done."""


def books_balance(root: Path) -> None:
    """Assert that the ledger of every intact spool below `root` adds up."""
    for marker in root.rglob("FORMAT"):
        try:
            spool = directory.open_existing(str(marker.parent), read_only=True)
        except SpoolError:
            continue
        books = survey(spool)
        assert books.adds_up, f"{spool.path}: {books}"


def is_ours(message: str) -> bool:
    """Tell whether cwsink itself has put this event into the stream: a notice of loss, or a trial line."""
    return message.startswith("cwsink: ") or '"logger":"cwsink","_cwsink":{"lost":' in message


def notices_in(messages: list[str]) -> list[dict[str, Any]]:
    """Return the notices of loss among the events of a stream."""
    return [json.loads(message) for message in messages if is_ours(message) and message.startswith("{")]


def told_lost(messages: list[str], reason: str) -> int:
    """Return how many records the stream was told of that are lost for `reason`."""
    found = [notice["_cwsink"] for notice in notices_in(messages)]
    return sum(each["lost"] for each in found if each["reason"] == reason)


def sent_as_history_has_it(spool: SpoolDirectory) -> Counter[tuple[int, str]]:
    """Return time and message of each event that history says was sent, each record once."""
    past = Past(spool)
    found: Counter[tuple[int, str]] = Counter()
    for index in range(len(past.entries)):
        sent = past.sent(index)
        assert sent is not None, past.entries[index]
        found.update((each.event.timestamp_ms, each.event.message) for each in sent if not each.is_again)
    return found


def give(path: str, user: int) -> None:
    """Give a spool with all that is in it to a user. Only root can."""
    for each in (Path(path), *Path(path).rglob("*")):
        os.lchown(each, user, user)


def quick_config(endpoint_url: str | None = None, **settings: object) -> SinkConfig:
    """A config that sends without waiting and retries quickly."""
    defaults: dict[str, object] = {
        "log_group_name": "/test/group",
        "log_stream_name": "stream",
        "region": "us-east-1",
        "endpoint_url": endpoint_url,
        "batch_timeout_seconds": 0.2,
        "retry_base_delay": 0.05,
        "connect_timeout_seconds": 2.0,
        "read_timeout_seconds": 5.0,
        "segment_bytes": 64 * 1024,
        "spool_max_bytes": 64 * 1024 * 1024,
        "drain_timeout_seconds": 30.0,
    }
    return SinkConfig(**{**defaults, **settings})


def program_calling(function: Callable[..., object]) -> str:
    """Return a program for the fixture `spawn`: it calls a function of a test module with its command line's words."""
    name = function.__qualname__
    return f"import sys\nfrom {function.__module__} import {name}\n{name}(*sys.argv[1:])\n"


def peak() -> int:
    """Return the most memory that this process had, in bytes."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Not ru_maxrss: a process that was just started has that of its parent.
    return next(int(line.split()[1]) << 10 for line in status.splitlines() if line.startswith("VmHWM:"))


class Unresolved:
    """A lazy proxy (wrapt, lazy-object-proxy) that cannot find what it stands for: whatever it is asked, it raises."""

    def __getattribute__(self, name: str) -> object:
        raise RuntimeError("cannot be resolved now")

    def __bool__(self) -> bool:
        raise RuntimeError("cannot be resolved now")

    def __mul__(self, other: object) -> object:
        raise RuntimeError("cannot be resolved now")


def finish(child: subprocess.Popen[str], *, code: int = 0, seconds: float = CHILD_SECONDS) -> str:
    """Wait for a child's end, assert its exit code, return its stdout."""
    out, err = child.communicate(timeout=seconds)
    assert child.returncode == code, f"exit code {child.returncode}\n{out}\n{err}"
    return out


@cache
def may_unshare(*flags: str) -> bool:
    """Tell whether namespaces of this kind can be made here."""
    if shutil.which("unshare") is None:
        return False
    probe = subprocess.run(["unshare", *flags, "true"], capture_output=True, timeout=CHILD_SECONDS, check=False)
    return probe.returncode == 0
