"""What all tests share: a spool of their own, the strict server, processes that are always reaped.

After every test the books of every spool below its `tmp_path` must balance.
"""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import pytest

pytest.register_assert_rewrite("tests.harness")

from cwsink import diagnostics
from cwsink.config import SinkConfig
from cwsink.frontends import presence
from cwsink.testing import StrictCloudWatch
from cwsink.testing.flushers import end_flushers
from tests.harness.interleave import SMALL
from tests.harness.support import CHILD_SECONDS, books_balance, quick_config
from tests.soak import SEED_VARIABLE

Spawn = Callable[..., "subprocess.Popen[str]"]

# Each run tries the same examples, and writes none down. The long runs of the spool machine try others each time.
hypothesis.settings.register_profile("alike", derandomize=True, database=None)
hypothesis.settings.load_profile("alike")

# A shell has what it starts in the background of a script ignore SIGINT, and that is inherited: no test could
# interrupt the processes it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Spread the tests of the zoo over the whole run: they wait for servers, while the others compute."""
    is_zoo = {item: "zoo" in item.path.parts for item in items}
    place = {}
    for kind in (False, True):
        alike = [item for item in items if is_zoo[item] is kind]
        place.update({item: index / len(alike) for index, item in enumerate(alike)})
    items.sort(key=place.__getitem__)


@pytest.fixture(autouse=True, scope="session")
def less_garbage() -> Iterator[None]:
    """Collecting the tests makes half a million objects, which stay. No garbage collection looks at them again."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def own_world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing of the machine's or another test's is seen; nothing is left running."""
    for name in list(os.environ):
        if name.startswith(("AWS_", "FAPILOG_", "CWSINK_")) and name != SEED_VARIABLE:
            monkeypatch.delenv(name)
    monkeypatch.setenv("CWSINK_SPOOL_DIRECTORY", str(tmp_path / "spools"))
    monkeypatch.setenv("GUNICORN_CMD_ARGS", "--no-control-socket")  # it would lie in the home directory
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    diagnostics._quiet.clear()
    yield
    end_flushers(tmp_path)
    presence.this.forget_below("")  # also spools outside of the test's directory
    books_balance(tmp_path)


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


@pytest.fixture
def small(server: StrictCloudWatch) -> SinkConfig:
    """The smallest segments, and a leader only where the test runs one."""
    return quick_config(server.endpoint_url, segment_bytes=SMALL, flusher="external")


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
