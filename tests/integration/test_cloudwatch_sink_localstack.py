"""The sink against LocalStack: runs where LOCALSTACK_ENDPOINT says that there is one.

`scripts/test --localstack` starts one for it. Every test uses a group of its own, so the
LocalStack may be old, shared, and in Docker (scripts/localstack.d/docker-compose.yml).
"""

from __future__ import annotations

import os

import pytest

from tests.harness.emulator_contract import EmulatorContract

ENDPOINT = os.environ.get("LOCALSTACK_ENDPOINT", "")


@pytest.fixture
def endpoint() -> str:
    """The URL of LocalStack."""
    return ENDPOINT


@pytest.mark.skipif(not ENDPOINT, reason="LOCALSTACK_ENDPOINT is not set: scripts/test --localstack starts one")
class TestLocalStack(EmulatorContract):
    """Every test of EmulatorContract."""
