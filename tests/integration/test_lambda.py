"""AWS Lambda is refused at the start, with the advice to use stdout; an application is never stopped by it."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

import cwsink
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS

LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "orders", "LAMBDA_TASK_ROOT": "/var/task"}
ADVICE = "this is AWS Lambda.*Nothing is spooled. Log to stdout"


@pytest.fixture
def in_lambda(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in LAMBDA.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("in_lambda")
@pytest.mark.parametrize("flusher", ["process", "external"])
def test_writer_handler_and_sink_are_refused(tmp_path: Path, flusher: str) -> None:
    """By the same error, and nothing is made on disk."""
    for make in (cwsink.Writer.open, cwsink.SpoolHandler, cwsink.CloudWatchSpoolSink):
        with pytest.raises(cwsink.ConfigError, match=ADVICE):
            make(flusher=flusher)
    assert not list(tmp_path.iterdir())
    assert not [each for each in logging._handlerList if isinstance(each(), cwsink.SpoolHandler)]


@pytest.mark.parametrize("name", LAMBDA)
def test_one_of_the_two_variables_is_not_lambda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some set a function's name for tests of their own."""
    monkeypatch.setenv(name, LAMBDA[name])
    cwsink.Writer.open(flusher="external").close()


def test_a_fapilog_application_logs_to_stdout_instead(spawn: Spawn) -> None:
    """fapilog's own fallback, which is what Lambda wants; one line on stderr says why."""
    child = spawn(
        """
        import cwsink, fapilog
        cwsink.install()
        settings = fapilog.Settings()
        settings.core.sinks = ["cloudwatch"]
        logger = fapilog.get_logger(settings=settings)
        logger.info("order placed")
        cwsink.drain()  # fapilog's stdout sink cannot write any more at exit
        """,
        env=LAMBDA,
    )
    out, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, errors
    assert '"message":"order placed"' in out
    assert errors.count("cwsink: the sink cannot start, and fapilog will log elsewhere: this is AWS Lambda") == 1
