"""The same application where there is no CloudWatch: on a laptop, in CI, in an image build, on Windows."""

from __future__ import annotations

import json
import logging
import os
import signal
from collections.abc import Callable
from pathlib import Path

import loguru
import pytest
import structlog

import cwsink
import cwsink.loguru
import cwsink.structlog
from cwsink import diagnostics
from cwsink.spool.record import MAX_PAYLOAD_BYTES
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS

APPLICATION = """
    import logging, os, sys
    import cwsink, fapilog
    cwsink.install()
    settings = fapilog.Settings()
    settings.core.sinks = ["cloudwatch"]
    logger = fapilog.get_logger(settings=settings)
    logger.info("by fapilog", order=17)
    logging.getLogger("shop").addHandler(cwsink.SpoolHandler(log_group_name="/myapp/prod"))
    logging.getLogger("shop").error("by logging", extra={"order": 18})
    with cwsink.Writer.open(log_group_name="/myapp/prod") as writer:
        assert writer.append("by a writer \\N{SNOWMAN}")
    print("end")
"""


@pytest.mark.parametrize("target", ["stderr", "stdout", "off", " STDERR "])
def test_one_variable_sends_records_elsewhere(spawn: Spawn, tmp_path: Path, target: str) -> None:
    """Each record is one line there, or none anywhere; no spool is made, and no AWS is needed."""
    env = {"CWSINK_TARGET": target, "CWSINK_SPOOL_DIRECTORY": str(tmp_path / "spools")}
    out, errors = spawn(APPLICATION, env=env).communicate(timeout=CHILD_SECONDS)
    assert out.splitlines()[-1:] == ["end"], errors
    lines = (errors if "err" in target.lower() else out).splitlines()
    if target == "off":
        assert (out, errors) == ("end\n", "")
    else:
        entry, record, text = lines[:3]
        assert json.loads(entry)["data"] == {"order": 17}
        assert (json.loads(record)["level"], json.loads(record)["data"]) == ("ERROR", {"order": 18})
        assert text in ("by a writer \N{SNOWMAN}", "by a writer \\u2603")
        assert not (errors if target == "stdout" else out.removesuffix("end\n"))
    assert not (tmp_path / "spools").exists()


def test_another_word_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """It names the four that there are."""
    monkeypatch.setenv("CWSINK_TARGET", "console")
    for make in (cwsink.Writer.open, cwsink.SpoolHandler, cwsink.CloudWatchSpoolSink):
        with pytest.raises(cwsink.ConfigError, match="'console': choose one of cloudwatch, stderr, stdout, off"):
            make(log_group_name="/myapp/prod")


def test_a_wrong_setting_is_found_on_the_laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only where the application is deployed."""
    monkeypatch.setenv("CWSINK_TARGET", "off")
    with pytest.raises(cwsink.ConfigError, match="log_grup_name"):
        cwsink.SpoolHandler(log_grup_name="/myapp/prod")  # type: ignore[call-arg]


def test_a_closed_stream_costs_the_record_and_nothing_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The writer answers False, and the application goes on."""
    monkeypatch.setenv("CWSINK_TARGET", "stderr")
    writer = cwsink.Writer.open()
    with open(tmp_path / "closed", "w") as file:
        pass
    monkeypatch.setattr("sys.stderr", file)
    assert writer.append("x") is False
    monkeypatch.setattr("sys.stderr", None)
    assert writer.append("x") is False


NO_RECORDS = (None, 5, 3.5, ["x"], object(), "", b"", bytearray(), "x" * (MAX_PAYLOAD_BYTES + 1))
RECORDS = ("abc", b"abc", bytearray(b"a"), memoryview(b"a"), "a\nb", "\ud800", b"\xff", " ", "\0")


class SlowStream:
    """A signal arrives while a line is written."""

    def write(self, line: str) -> None:
        signal.raise_signal(signal.SIGUSR1)

    def flush(self) -> None:
        """Do nothing."""


@pytest.mark.parametrize(
    ("target", "message"),
    [("stderr", "a record"), ("cloudwatch", "%d")],
    ids=["a line", "what is said of a record that cannot be formatted"],
)
def test_what_a_signal_handler_raises_while_a_line_is_written_is_heard(
    target: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for the application, and no trouble of the stream."""

    def stop(number: int, frame: object) -> None:
        raise RuntimeError("the task is over")

    monkeypatch.setenv("CWSINK_TARGET", target)
    monkeypatch.setattr("sys.stderr", SlowStream())
    handler = cwsink.SpoolHandler(log_group_name="/app", region="us-east-1", flusher="external")
    record = logging.LogRecord("app", logging.INFO, "app.py", 1, message, ("text",) if message == "%d" else (), None)
    before = signal.signal(signal.SIGUSR1, stop)
    try:
        with pytest.raises(RuntimeError, match="the task is over"):
            handler.handle(record)
    finally:
        signal.signal(signal.SIGUSR1, before)
        handler.close()


@pytest.mark.parametrize("target", ["cloudwatch", "stdout", "stderr", "off"])
def test_a_console_takes_and_refuses_what_a_spool_does(monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    """A message that is no record on the host is none on the laptop. Nothing is raised in either place."""
    monkeypatch.setenv("CWSINK_TARGET", target)
    with cwsink.Writer.open(log_group_name="/myapp/prod", flusher="external") as writer:
        assert [writer.append(each) for each in NO_RECORDS] == [False] * len(NO_RECORDS)  # type: ignore[arg-type]
        assert [writer.append(each) for each in RECORDS] == [True] * len(RECORDS)
        released = memoryview(b"abc")
        released.release()
        assert writer.append(released) is False


def test_a_console_prints_no_line_for_what_it_refuses(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """But it says on stderr that a record was lost."""
    monkeypatch.setenv("CWSINK_TARGET", "stdout")
    diagnostics.reset_quiet("refused_unencodable")
    writer = cwsink.Writer.open()
    for each in NO_RECORDS:
        writer.append(each)  # type: ignore[arg-type]
    out, errors = capfd.readouterr()
    assert out == ""
    assert errors.startswith("cwsink: LOST a message of type NoneType that is empty or no text.")


@pytest.mark.parametrize("target", ["stderr", "stdout"])
def test_celery_does_not_log_what_a_console_prints(spawn: Spawn, target: str) -> None:
    """A worker has a proxy for stdout and stderr, which makes a warning of each line. Our records go by it."""
    pytest.importorskip("celery")
    program = """
        import logging, sys
        import celery, cwsink
        app = celery.Celery("tasks")
        logging.getLogger("shop").addHandler(cwsink.SpoolHandler(log_group_name="/myapp/prod"))
        app.log.setup(loglevel="ERROR", redirect_stdouts=True, colorize=False)
        assert type(sys.stdout) is type(sys.stderr) is celery.utils.log.LoggingProxy
        logging.getLogger("shop").error("card refused", extra={"order": 17})
    """
    out, errors = spawn(program, env={"CWSINK_TARGET": target}).communicate(timeout=CHILD_SECONDS)
    lines = (out if target == "stdout" else errors).splitlines()
    (record,) = (json.loads(line) for line in lines if line.startswith("{"))
    assert (record["message"], record["data"]) == ("card refused", {"order": 17}), errors
    assert (out + errors).count('"order":17') == 1


@pytest.fixture
def unusable(tmp_path: Path) -> str:
    """A path at which no directory can be made, not even by root."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "spools")


def test_a_handler_without_a_spool_logs_to_stderr(unusable: str, capfd: pytest.CaptureFixture[str]) -> None:
    """The application starts: one line says why, and each record follows as JSON."""
    logger = logging.getLogger("test_console")
    logger.addHandler(handler := cwsink.SpoolHandler(log_group_name="/myapp/prod", spool_directory=unusable))
    try:
        logger.error("order placed", extra={"order": 17})
    finally:
        logger.removeHandler(handler)
        handler.close()
    why, record = capfd.readouterr().err.splitlines()
    assert why.startswith(f"cwsink: records go to stderr, and not to CloudWatch: the spool directory {unusable} cannot")
    assert json.loads(record)["data"] == {"order": 17}


def test_structlog_and_loguru_without_a_spool_log_to_stderr(unusable: str, capfd: pytest.CaptureFixture[str]) -> None:
    """As with a handler: the application starts, and its records follow as JSON. Only a writer of its own raises."""
    diagnostics.reset_quiet("unusable")
    structlog.wrap_logger(
        cwsink.structlog.LoggerFactory(log_group_name="/myapp/prod", spool_directory=unusable)("shop"),
        processors=[cwsink.structlog.render],
    ).error("by structlog")
    sink = loguru.logger.add(cwsink.loguru.Sink(log_group_name="/myapp/prod", spool_directory=unusable))
    loguru.logger.error("by loguru")
    loguru.logger.remove(sink)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith(("{", "cwsink: "))]
    assert lines[0].startswith(f"cwsink: records go to stderr, and not to CloudWatch: the spool directory {unusable} ")
    assert [json.loads(line)["message"] for line in lines[1:]] == ["by structlog", "by loguru"]
    with pytest.raises(cwsink.SpoolError, match="cannot be used"):
        cwsink.Writer.open(log_group_name="/myapp/prod", spool_directory=unusable)


@pytest.mark.parametrize("make", [cwsink.SpoolHandler, cwsink.structlog.LoggerFactory, cwsink.loguru.Sink])
def test_who_wants_it_strict_gets_the_error(
    make: Callable[..., object], unusable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`on_unusable="raise"`, or the variable; and another word is a ConfigError."""
    with pytest.raises(cwsink.SpoolError, match="cannot be used"):
        make(log_group_name="/myapp/prod", spool_directory=unusable, on_unusable="raise")
    monkeypatch.setenv("CWSINK_ON_UNUSABLE", "raise")
    with pytest.raises(cwsink.SpoolError, match="cannot be used"):
        make(log_group_name="/myapp/prod", spool_directory=unusable)
    with pytest.raises(cwsink.ConfigError, match="on_unusable='stdout': choose one of stderr, raise"):
        make(log_group_name="/myapp/prod", on_unusable="stdout")
    monkeypatch.setenv("CWSINK_ON_UNUSABLE", " Raise ")  # as CWSINK_TARGET may be written
    with pytest.raises(cwsink.SpoolError, match="cannot be used"):
        make(log_group_name="/myapp/prod", spool_directory=unusable)
    monkeypatch.setenv("CWSINK_ON_UNUSABLE", "stdout")
    with pytest.raises(cwsink.ConfigError, match="CWSINK_ON_UNUSABLE='stdout': choose one of stderr, raise"):
        make(log_group_name="/myapp/prod")


def test_on_windows_records_go_to_stderr(spawn: Spawn) -> None:
    """No module of Unix is needed there to import cwsink and log. (Windows itself is not tried.)"""
    script = """
        import logging, os, sys, time
        missing = ("fcntl", "resource", "termios", "pwd", "grp")
        sys.modules.update(dict.fromkeys(missing))
        del os.register_at_fork, os.fork, os.geteuid, time.clock_gettime, time.CLOCK_MONOTONIC
        sys.platform = "win32"
        import cwsink
        logging.getLogger().addHandler(cwsink.SpoolHandler(log_group_name="/myapp/prod"))
        logging.getLogger("shop").error("order placed")
    """
    _, errors = spawn(script).communicate(timeout=CHILD_SECONDS)
    lines = errors.splitlines()
    assert lines[0] == "cwsink: cwsink spools on Linux and macOS only. On Windows records go to stderr."
    assert json.loads(lines[1])["message"] == "order placed"


def test_without_a_log_group_an_error_shows_the_ways_to_give_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """An argument, a config, a variable: each of them is enough."""
    monkeypatch.delenv("FAPILOG_CLOUDWATCH__LOG_GROUP_NAME", raising=False)
    for make in (cwsink.Writer.open, cwsink.SpoolHandler):
        for config in (None, {"region": "eu-west-1"}, cwsink.SinkConfig(region="eu-west-1")):
            with pytest.raises(
                cwsink.ConfigError, match='Give log_group_name="/myapp/prod" as an argument or in the config'
            ) as raised:
                make(config, flusher="external")
            # It says nothing that does not help: no variable changes a SinkConfig.
            assert ("CWSINK_LOG_GROUP_NAME" in str(raised.value)) == (not isinstance(config, cwsink.SinkConfig))
        make({"log_group_name": "/a"}, flusher="external").close()
        make(log_group_name="/a", flusher="external").close()
        for variable in ("CWSINK_LOG_GROUP_NAME", "FAPILOG_CLOUDWATCH__LOG_GROUP_NAME"):
            monkeypatch.setenv(variable, "/a")
            make(flusher="external").close()
            monkeypatch.delenv(variable)
    assert os.environ.get("CWSINK_LOG_GROUP_NAME") is None
