"""Every command with a stream closed (`cwsink status >&-`, a cron job), or with output that nobody reads (`| head`).

The next file that a process opens gets the number of a stream that is closed. So what is printed could go into a
segment, and a lock could be taken on what others read. What a command does, and its exit code, is as with open streams.
"""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, quick_config

CLOSED = {"stdin": "<&-", "stdout": ">&-", "stderr": "2>&-", "stdout and stderr": ">&- 2>&-", "all": "<&- >&- 2>&-"}
RECORDS = [f"record {number}" for number in range(20)]

Program = Iterator["subprocess.Popen[bytes]"]
closed = pytest.mark.parametrize("streams", CLOSED.values(), ids=CLOSED)


def start(streams: str, *words: str) -> subprocess.Popen[str]:
    """Start a command with these streams closed. What is open is a pipe."""
    return subprocess.Popen(
        ["sh", "-c", f'exec "$@" {streams}', "sh", sys.executable, "-m", "cwsink", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    """Wait for its end; return what it said where it could."""
    try:
        out, err = process.communicate(timeout=CHILD_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{err}"
    assert "Traceback" not in err
    assert "Exception" not in err
    return out, err


@pytest.fixture
def writer(server: StrictCloudWatch) -> Writer:
    """A writer whose records no flusher sends, but those of the test."""
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))
    for record in RECORDS:
        assert writer.append(record)
    return writer


LOOKING = {
    "status": ("status",),
    "status --json": ("status", "--json"),
    "tail": ("tail",),
    "tail -n": ("tail", "-n", "5", "--json"),
    "replay --dry-run": ("replay", "--all", "--dry-run"),
    "--help": ("--help",),
    "flush --help": ("flush", "--help"),
    "--version": ("--version",),
}


@closed
@pytest.mark.parametrize("words", LOOKING.values(), ids=LOOKING)
def test_a_command_that_looks(writer: Writer, streams: str, words: tuple[str, ...]) -> None:
    """Code 0 and no word on stderr; what is said on an open stdout is what is always said; nothing is changed."""
    usual, _ = finish(start("", *words))
    out, err = finish(start(streams, *words))
    assert err == ""
    if ">&-" not in streams.split():
        assert out.splitlines()[:1] == usual.splitlines()[:1]
    assert survey(writer.directory).pending == len(RECORDS)


@closed
def test_what_is_wrong_has_its_code(writer: Writer, tmp_path: Path, streams: str) -> None:
    """No spool is 1, a wrong word is 2."""
    finish(start(streams, "status", str(tmp_path / "nothing")), code=1)
    finish(start(streams, "frobnicate"), code=2)


@closed
@pytest.mark.parametrize("words", [("flush", "--once"), ("replay", "--all")], ids=" ".join)
def test_a_command_that_delivers(
    server: StrictCloudWatch, writer: Writer, streams: str, words: tuple[str, ...]
) -> None:
    """All is delivered, and nothing that the command prints is in the spool."""
    writer.close()
    from cwsink.frontends import presence

    presence.this.forget(writer.directory)  # who is attached makes it no orphan
    finish(start(streams, *words))
    assert server.messages() == RECORDS
    assert survey(writer.directory).pending == 0


@closed
def test_a_command_that_cannot_deliver(config: SinkConfig, streams: str) -> None:
    """Code 1."""
    writer = Writer(quick_config("http://127.0.0.1:9", flusher="external"))
    assert writer.append("x")
    finish(start(streams, "flush", "--once", "--timeout", "0.5"), code=1)
    assert survey(writer.directory).pending == 1


@closed
def test_a_service(server: StrictCloudWatch, writer: Writer, streams: str) -> None:
    """`cwsink flush` delivers, and ends when it is told to."""
    process = start(streams, "flush", "--timeout", "5")
    try:
        until(lambda: server.messages() == RECORDS, "all is delivered")
        process.send_signal(signal.SIGINT)
        finish(process)
    finally:
        process.kill()
        process.wait()


LOGS_AND_LOOKS = """
import os, sys
def is_open(number):
    try:
        os.fstat(number)
        return True
    except OSError:
        return False
seen = [is_open(number) for number in range(3)]
import cwsink
assert cwsink.Writer.open().append("of the command")
with open(sys.argv[1], "w") as file:
    file.write(str(seen))
sys.exit(7)
"""


@closed
def test_run_and_its_command(
    server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, streams: str
) -> None:
    """The command finds closed what is closed without us, and has its exit code; what it logs is delivered."""
    for name, value in server.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__LOG_GROUP_NAME", "/test/group")
    finish(start(streams, "run", "--", sys.executable, "-c", LOGS_AND_LOOKS, str(tmp_path / "seen")), code=7)
    wanted = [name not in streams.split() for name in ("<&-", ">&-", "2>&-")]
    assert (tmp_path / "seen").read_text() == str(wanted)
    assert server.messages() == ["of the command"]


@pytest.mark.long
@closed
def test_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, streams: str) -> None:
    """It has its verdict, which is its code."""
    pytest.importorskip("gunicorn")
    pytest.importorskip("flask")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    finish(start(streams, "demo"))


@pytest.mark.parametrize("words", [*LOOKING.values(), ("top", "--once"), ("manual", "settings")], ids=" ".join)
def test_who_reads_no_further_is_no_trouble(writer: Writer, words: tuple[str, ...]) -> None:
    """`cwsink status | head -1`: the command ends in silence, with code 0."""
    process = start("", *words)
    assert process.stdout is not None
    process.stdout.close()
    process.stdout = None
    assert finish(process) == (None, "")


NOBODY_READS = ("closed pipe", "/dev/full")


@pytest.fixture(params=NOBODY_READS)
def unread(request: pytest.FixtureRequest) -> Iterator[int]:
    """A descriptor that takes no output: a pipe without a reader, or a full disk."""
    if request.param == "/dev/full":
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        number = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, number = os.pipe()
        os.close(reader)
    yield number
    os.close(number)


def code_of(*words: str, stdout: int, stderr: int = subprocess.DEVNULL) -> int:
    """Run a command whose output nobody reads; return its exit code."""
    return subprocess.run(
        [sys.executable, "-m", "cwsink", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "CWSINK_TARGET": "off"},
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        timeout=CHILD_SECONDS,
    ).returncode


JUDGING = {
    "check": (("check", "--max-age", "1ms"), 2),
    "check, all is well": (("check",), 0),
    "doctor": (("doctor",), 1),  # CWSINK_TARGET=off is wrong
    "doctor --json": (("doctor", "--json"), 1),
    "verify": (("verify", "--patience", "1s"), 1),
}


@pytest.mark.parametrize(("words", "code"), JUDGING.values(), ids=JUDGING)
def test_a_verdict_is_the_same_whoever_reads_it(writer: Writer, unread: int, words: tuple[str, ...], code: int) -> None:
    """The code says what was found: monitoring must not take it for "all is well" that its own pipe is gone."""
    assert code_of(*words, stdout=unread) == code
    assert code_of(*words, stdout=unread, stderr=unread) == code


def test_what_nobody_reads_on_stderr_changes_no_code(tmp_path: Path, unread: int) -> None:
    """No spool is 1, though the line that says so goes nowhere."""
    assert code_of("status", str(tmp_path / "nothing"), stdout=subprocess.DEVNULL, stderr=unread) == 1


def test_a_delivery_goes_on_whoever_reads(server: StrictCloudWatch, writer: Writer, unread: int) -> None:
    """All records arrive. On a full disk the code is 1, because the report is lost."""
    writer.close()
    is_full = stat.S_ISCHR(os.fstat(unread).st_mode)
    assert code_of("flush", "--once", stdout=unread) == (1 if is_full else 0)
    assert server.messages() == RECORDS
