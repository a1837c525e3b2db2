"""The sink against moto: its server runs in a process of its own, as for `cwsink demo`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from tests.harness.emulator_contract import EmulatorContract
from tests.harness.support import CHILD_SECONDS


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """The URL of moto's server."""
    command = [sys.executable, "-m", "cwsink.demo.read_back"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.stdin.close()  # its sign to end
        server.wait(CHILD_SECONDS)


class TestMoto(EmulatorContract):
    """Every test of EmulatorContract."""
