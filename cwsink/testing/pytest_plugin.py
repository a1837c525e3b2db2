"""Pytest fixtures with the strict server (public).

There once cwsink is installed (entry point `pytest11`); from a source tree load them with
`-p cwsink.testing.pytest_plugin`. The only module here that imports pytest.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from cwsink.testing import StrictCloudWatch


@pytest.fixture
def strict_cloudwatch() -> Iterator[StrictCloudWatch]:
    """A running server. The test fails at its end if a client broke a rule.

    A test that breaks rules on purpose collects them with `take_violations()`.
    """
    from cwsink.testing import StrictCloudWatch

    with StrictCloudWatch() as server:
        yield server
    server.assert_clean()


@pytest.fixture
def strict_cloudwatch_environment(
    strict_cloudwatch: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[StrictCloudWatch]:
    """The same server, and boto3 and cwsink of this and child processes pointed at it.

    With dummy credentials, and spools below `tmp_path`. The flushers that cwsink starts for them end with the test.
    """
    from cwsink.testing.flushers import end_flushers

    monkeypatch.setenv("CWSINK_SPOOL_DIRECTORY", str(tmp_path / "cwsink"))
    for name, value in strict_cloudwatch.environment().items():
        monkeypatch.setenv(name, value)
    yield strict_cloudwatch
    end_flushers(tmp_path)
