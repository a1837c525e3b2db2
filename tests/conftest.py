"""What all tests share: a spool of their own, the strict server, processes that are always reaped.

After every test the books of every spool below its `tmp_path` must balance.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink import diagnostics
from cwsink.config import SinkConfig
from cwsink.frontends import candidate
from cwsink.spool import directory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch

CHILD_SECONDS = 60  # guards against a hang, asserts no speed

Spawn = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the machine's or another test's is seen; nothing is left running."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FAPILOG_", "CWSINK_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("CWSINK_SPOOL_DIRECTORY", str(tmp_path / "spools"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    diagnostics._quiet.clear()
    yield
    for each in list(candidate._candidates.values()):
        each._drain_seconds = 0.0
        each._leaving.set()
        each._instruct()
        assert each._ended.wait(CHILD_SECONDS), "a candidate's thread does not end"
        each._attachment.close()
    candidate._candidates.clear()
    books_balance(tmp_path)


def books_balance(root: Path) -> None:
    """Assert that the ledger of every intact spool below `root` adds up."""
    for marker in root.rglob("FORMAT"):
        try:
            spool = directory.open_existing(str(marker.parent), read_only=True)
        except directory.SpoolError:
            continue
        books = survey(spool)
        assert books.adds_up, f"{spool.path}: {books}"


@pytest.fixture
def server() -> Iterator[StrictCloudWatch]:
    """The strict CloudWatch server; the test fails if it saw an illegal request."""
    with StrictCloudWatch() as running:
        yield running
        running.assert_clean()


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    """A quick config for the strict server: sends at once, small segments."""
    return quick_config(server.endpoint_url)


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


@pytest.fixture
def spawn(tmp_path: Path) -> Iterator[Spawn]:
    """Start `spawn(code, *args)` as a Python process of its own; killed and reaped at the end."""
    children: list[subprocess.Popen[str]] = []

    def start(code: str, *args: object, env: dict[str, str] | None = None) -> subprocess.Popen[str]:
        script = tmp_path / f"child{len(children)}.py"
        script.write_text(textwrap.dedent(code))
        child = subprocess.Popen(
            [sys.executable, str(script), *map(str, args)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(env or {})},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        children.append(child)
        return child

    yield start
    for child in children:
        # The whole session: a child's own children too.
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                stream.close()
        child.wait(CHILD_SECONDS)


def finish(child: subprocess.Popen[str], *, code: int = 0) -> str:
    """Wait for a child's end, assert its exit code, return its stdout."""
    out, err = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == code, f"exit code {child.returncode}\n{out}\n{err}"
    return out
