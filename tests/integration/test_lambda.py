"""In AWS Lambda records go to stdout by themselves, which Lambda sends to CloudWatch; nothing is spooled there."""

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
def test_writer_handler_and_sink_print(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a record, and nothing is made on disk."""
    writer = cwsink.Writer.open()
    assert writer.append("by the writer")
    assert writer.flush(0)
    logging.getLogger("test_lambda").addHandler(handler := cwsink.SpoolHandler())
    try:
        logging.getLogger("test_lambda").warning("by the handler")
    finally:
        logging.getLogger("test_lambda").removeHandler(handler)
        handler.close()
    assert cwsink.CloudWatchSpoolSink(on_full="block").offer({"message": "by the sink"}) is True
    out, _ = capsys.readouterr()
    assert [f"by the {who}" in line for who, line in zip(("writer", "handler", "sink"), out.splitlines(), strict=True)]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("target", [None, "cloudwatch"])
def test_a_spool_is_refused(in_lambda: None, monkeypatch: pytest.MonkeyPatch, target: str | None) -> None:
    """Who asks for one there gets an error with the reason, and the advice to use stdout."""
    if target is None:
        with pytest.raises(cwsink.ConfigError, match=ADVICE):
            cwsink.Writer(cwsink.SinkConfig(log_group_name="/myapp/prod"))
    else:
        monkeypatch.setenv("CWSINK_TARGET", target)
        for make in (cwsink.Writer.open, cwsink.SpoolHandler, cwsink.CloudWatchSpoolSink):
            with pytest.raises(cwsink.ConfigError, match=ADVICE):
                make(log_group_name="/myapp/prod")


@pytest.mark.parametrize("name", LAMBDA)
def test_one_of_the_two_variables_is_not_lambda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some set a function's name for tests of their own."""
    monkeypatch.setenv(name, LAMBDA[name])
    assert isinstance(cwsink.Writer.open(log_group_name="/myapp/prod", flusher="external"), cwsink.Writer)


def test_a_fapilog_application_logs_to_stdout_instead(spawn: Spawn) -> None:
    """Our sink prints each entry, which is what Lambda wants, and says nothing."""
    child = spawn(
        """
        import cwsink, fapilog
        cwsink.install()
        settings = fapilog.Settings()
        settings.core.sinks = ["cloudwatch"]
        logger = fapilog.get_logger(settings=settings)
        logger.info("order placed")
        """,
        env=LAMBDA,
    )
    out, errors = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, errors
    assert '"message":"order placed"' in out
    assert "cwsink" not in errors
