"""Pytest fixtures with the strict server (public).

Where cwsink is installed, pytest finds them (entry point `pytest11`). From a source tree, load
them with `-p cwsink.testing.pytest_plugin`. No other module here imports pytest.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from cwsink.testing import StrictCloudWatch


@pytest.fixture
def strict_cloudwatch() -> Iterator[StrictCloudWatch]:
    """A running strict server. If a client has broken a rule, the test fails at its end.

    A test that breaks rules on purpose takes the violations with `take_violations()`.
    """
    from cwsink.testing import StrictCloudWatch

    with StrictCloudWatch() as server:
        yield server
    server.assert_clean()


@pytest.fixture
def strict_cloudwatch_environment(
    strict_cloudwatch: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[StrictCloudWatch]:
    """The same server, and an environment in which boto3 and cwsink use it, in this process and its children.

    All other variables of AWS's and cwsink's are unset, and AWS's files in the home directory are not read. The
    credentials are dummies, and spools are made below `tmp_path`. The flushers for these spools end with the test.
    """
    from cwsink.testing.flushers import end_flushers

    for name in list(os.environ):  # a developer's own settings would win, and the test's records go to the real ones
        if name.startswith(("AWS_", "CWSINK_", "FAPILOG_CLOUDWATCH__")):
            monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):  # else those in the developer's home
        monkeypatch.setenv(name, os.devnull)
    monkeypatch.setenv("CWSINK_SPOOL_DIRECTORY", str(tmp_path / "cwsink"))
    for name, value in strict_cloudwatch.environment().items():
        monkeypatch.setenv(name, value)
    yield strict_cloudwatch
    end_flushers(tmp_path)
