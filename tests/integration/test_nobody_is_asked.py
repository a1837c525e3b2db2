"""Nobody is asked for credentials: stdin and the terminal belong to the application, or to the person at the command.

A helper of a profile (`credential_process`) may read its stdin, and a profile may want an MFA code. Neither gets a line
that was meant for somebody else, and what cannot be had is one line on stderr.
"""

from __future__ import annotations

import contextlib
import os
import pty
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cwsink import Writer
from cwsink.flusher import helper
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.outcome import Outcome, classify
from cwsink.frontends import presence
from cwsink.spool import flusher_lock
from cwsink.spool.record import Event
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import until
from tests.harness.support import CHILD_SECONDS, SPOOL_FORMAT, quick_config

HELPER = """\
import json, sys
read = sys.stdin.readline()
print(json.dumps({"Version": 1, "AccessKeyId": f"AKID{len(read)}", "SecretAccessKey": "secret"}))
"""
PROGRAM = """
import sys
from cwsink import Writer
writer = Writer.open(log_group_name="/test/group", log_stream_name="stream", profile=sys.argv[1], retry_base_delay=0.05)
assert writer.append("asked")
print(sys.stdin.readline().strip(), flush=True)
writer.flush(5 if sys.argv[1] == "mfa" else 60)
print(sys.stdin.readline().strip(), flush=True)
"""


@pytest.fixture(autouse=True)
def profiles(server: StrictCloudWatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A profile with a helper that reads its stdin, and one that wants an MFA code."""
    (tmp_path / "helper.py").write_text(HELPER)
    (tmp_path / "config").write_text(
        f"[profile helper]\nregion = us-east-1\ncredential_process = {sys.executable} {tmp_path}/helper.py\n"
        "[profile source]\naws_access_key_id = AKID\naws_secret_access_key = secret\n"
        "[profile mfa]\nregion = us-east-1\nrole_arn = arn:aws:iam::1:role/logs\nsource_profile = source\n"
        "mfa_serial = arn:aws:iam::1:mfa/ann\n"
    )
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name, value in server.environment().items():
        if name.startswith("AWS_ENDPOINT"):
            monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a pseudo-terminal: a person's, and the program's."""
    person, program = pty.openpty()
    yield person, program
    os.close(person)
    os.close(program)


def take_terminal() -> None:
    """In a child with a session of its own: have its stdin be its controlling terminal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def start_in(terminal: int, *words: str) -> subprocess.Popen[str]:
    """Start a Python whose terminal this is."""
    return subprocess.Popen(
        [sys.executable, *words],
        stdin=terminal,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=take_terminal,  # noqa: PLW1509  # only of the child
    )


@pytest.mark.parametrize("profile", ["helper", "mfa"])
def test_an_applications_terminal_is_its_own(
    server: StrictCloudWatch, tmp_path: Path, terminal: tuple[int, int], profile: str
) -> None:
    """It reads each line that is typed, and no prompt appears."""
    person, program = terminal
    (tmp_path / "app.py").write_text(PROGRAM)
    child = start_in(program, str(tmp_path / "app.py"), profile)
    os.write(person, b"first\nsecond\n")
    out, err = child.communicate(timeout=CHILD_SECONDS)
    assert (child.returncode, out) == (0, "first\nsecond\n"), err
    shown = b""
    while select.select([person], [], [], 0)[0]:
        shown += os.read(person, 4096)
    assert b"MFA" not in shown
    if profile == "helper":
        assert server.messages() == ["asked"]
    else:
        assert "the profile wants an MFA code" in err


@pytest.mark.parametrize("profile", ["helper", "mfa"])
def test_a_commands_terminal_is_the_persons(server: StrictCloudWatch, terminal: tuple[int, int], profile: str) -> None:
    """`cwsink flush --once` in a terminal: what is typed meanwhile is for the shell."""
    person, program = terminal
    config = quick_config(server.endpoint_url, flusher="external", profile=profile)
    assert Writer(config).append("asked")
    child = start_in(program, "-m", "cwsink", "flush", "--once", "--timeout", "3" if profile == "mfa" else "60")
    os.write(person, b"for the shell\n")
    err = child.communicate(timeout=CHILD_SECONDS)[1]
    assert select.select([program], [], [], CHILD_SECONDS)[0], err
    assert os.read(program, 100) == b"for the shell\n"
    if profile == "helper":
        assert (child.returncode, server.messages()) == (0, ["asked"]), err
    else:
        assert child.returncode == 1
        assert "the profile wants an MFA code" in err


HANGS = """\
sleep 500 &
echo $! $$ > "$0.started"
sleep 500
"""


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A profile's helper that never answers, nor does what it starts. Returns where their pids are."""
    (tmp_path / "hangs").write_text(HANGS)
    (tmp_path / "config").write_text(f"[profile hangs]\ncredential_process = /bin/sh {tmp_path}/hangs\n")
    return tmp_path / "hangs.started"


def are_gone(pids: Path) -> bool:
    """Tell whether no process of a helper is left; one that nobody has reaped yet is gone, too."""
    for pid in pids.read_text().split():
        with contextlib.suppress(OSError):
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                return False
    return True


def test_a_helper_that_hangs_is_killed_and_named(hanging: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all that it has started."""
    monkeypatch.setattr(helper, "SECONDS", 0.3)
    client = CloudWatch(SPOOL_FORMAT, quick_config(profile="hangs"), 1)
    answer = client.put("stream", [Event(1, 1, 1, "text")])
    client.close()
    assert classify(answer) is Outcome.CREDENTIALS
    assert "from credential_process: it has not ended within 0.3 s, and was killed" in answer.message
    until(lambda: are_gone(hanging), "both have ended")


def test_a_helper_that_hangs_does_not_outlive_the_flusher(hanging: Path, server: StrictCloudWatch) -> None:
    """The flusher's time is over, and it leaves while the helper still runs."""
    writer = Writer(quick_config(server.endpoint_url, profile="hangs", drain_timeout_seconds=0.1))
    assert writer.append("asked")
    until(hanging.exists, "the helper is asked")
    presence.this.leave()
    until(lambda: not flusher_lock.is_taken(writer.directory.root) and are_gone(hanging), "both are gone")
