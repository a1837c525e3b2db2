"""The sink against moto: its server runs in a process of its own, as for `cwsink demo`."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from cwsink.doctor import patient, rounds
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
    """Every test of EmulatorContract, and what `cwsink doctor` asks another service."""

    def test_the_doctor_says_whose_credentials_these_are(self, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """STS knows the name behind the key."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("CWSINK_LOG_GROUP_NAME", "/app")
        questions = [question for question in rounds.QUESTIONS if question.topic == "credentials"]
        (found,) = rounds.examine(patient.admit([], os.environ), questions)
        assert (found.verdict, "arn:aws:" in found.seen) == ("ok", True), found
