"""`cwsink check`: one line, and 0, 1 or 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from msgspec.structs import replace

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.spool import refusals
from cwsink.spool.record import Loss
from cwsink.testing import StrictCloudWatch
from tests.harness.interleave import deliver
from tests.harness.support import CHILD_SECONDS, quick_config

NAME = "/test/group → stream"


def check(*words: str, below: Sequence[str] = ()) -> tuple[int, str]:
    """Run the command, `below` another one; returns its exit code and its line."""
    done = subprocess.run(
        [*below, sys.executable, "-m", "cwsink", "check", *words],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONUTF8": "1"},
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert done.stderr == "", done.stderr
    return done.returncode, done.stdout.removesuffix("\n")


def now_ms() -> int:
    return int(time.time() * 1000)


def test_nothing_was_logged_yet() -> None:
    """That is no trouble: a probe may ask before the first record."""
    assert check() == (0, "OK: 0 spools, 0 records waiting")


def test_all_is_delivered(small: SinkConfig) -> None:
    """Every limit is kept, however strict."""
    writer = Writer(small)
    assert writer.append("x")
    deliver(writer.directory, small)
    words = ("--max-age", "1ms", "--max-fill", "1%", "--no-losses", "--no-dead-letters")
    assert check(*words) == (0, "OK: 1 spool, 0 records waiting")


@pytest.mark.parametrize(
    ("max_age", "code"), [("60s", 2), ("1m", 2), ("0.5h", 0), ("3000", 0), ("90000ms", 2), ("2h", 0)]
)
def test_a_record_that_waits_too_long(small: SinkConfig, max_age: str, code: int) -> None:
    """Critical, because nobody sends; the line says how long it has waited, and why."""
    writer = Writer(small)
    assert writer.append("x", now_ms() - 100_000)
    found = check("--max-age", max_age, writer.directory.path)
    lines = {
        0: "OK: 1 spool, 1 record waiting",
        2: f"CRITICAL: {NAME}: the oldest record has waited 1 min 40 s (no_leader); 1 spool, 1 record waiting",
    }
    assert found == (code, lines[code]) or "1 min 4" in found[1]
    assert found[0] == code


def test_a_spool_that_fills_up(server: StrictCloudWatch) -> None:
    """Above the limit a warning; nearly full it is critical, because the next records go."""
    config = quick_config(
        server.endpoint_url, flusher="external", segment_bytes=4096, spool_max_bytes=64 * 1024, on_full="drop_newest"
    )
    writer = Writer(config)
    codes = []
    while writer.append("x" * 1000):
        codes.append(check("--max-fill", "50%")[0])
    assert sorted(set(codes)) == [0, 1, 2]
    assert codes == sorted(codes)


def test_losses_and_dead_letters_count_if_asked(small: SinkConfig, server: StrictCloudWatch) -> None:
    """Without the option they are nobody's alarm."""
    server.create_stream("/test/group", "stream")
    server.faults.poison = "BAD"
    writer = Writer(small)
    assert writer.append("BAD")
    assert writer.append("good")
    deliver(writer.directory, small)
    assert refusals.add(writer.directory, [Loss(1204, now_ms(), now_ms(), "spool_full", 0)])
    long_ago = time.time() - 3_600
    for path in (writer.directory.refusals, writer.directory.evictions):
        os.utime(path, (long_ago, long_ago))
    assert check()[0] == 0
    assert check("--no-dead-letters") == (1, f"WARNING: {NAME}: 1 dead letter; 1 spool, 0 records waiting")
    both = f"CRITICAL: {NAME}: 1,204 records lost; {NAME}: 1 dead letter; 1 spool, 0 records waiting"
    assert check("--no-losses", "--no-dead-letters") == (2, both)


def test_while_records_are_being_lost_it_is_critical(small: SinkConfig) -> None:
    """Whatever is asked for. Once there is room again, the line says that they were lost, and until when."""
    writer = Writer(small)
    assert writer.append("x")
    deliver(writer.directory, small)
    assert refusals.add(writer.directory, [Loss(1204, now_ms(), now_ms(), "spool_full", 0)])
    until = time.strftime("%H:%M UTC", time.gmtime(os.stat(writer.directory.refusals).st_mtime))
    was = f"CRITICAL: {NAME}: 1,204 records lost until {until}, and none now; 1 spool, 0 records waiting"
    assert check() == check("--no-losses") == (2, was)
    assert refusals.add(writer.directory, [Loss(3, now_ms(), now_ms(), "io_error", 0)])
    assert check() == (2, f"CRITICAL: {NAME}: records are being lost, 1,207 so far; 1 spool, 0 records waiting")


def test_a_spool_that_cannot_be_read_is_critical(small: SinkConfig, tmp_path: Path) -> None:
    """The line names it, and tells of the others."""
    writer = Writer(small)
    damaged = Path(writer.directory.root, "damaged.0123456789")
    damaged.mkdir(mode=0o700)
    (damaged / "FORMAT").write_text("{")
    code, line = check()
    assert code == 2
    assert line.startswith(f"CRITICAL: cannot read {damaged}: {damaged}/FORMAT cannot be read")
    assert "The records there are kept: the next worker that logs there" in line
    assert line.endswith("; 1 spool, 0 records waiting")


def test_a_spool_that_is_closed_to_who_looks_is_critical(small: SinkConfig) -> None:
    """Where others are seen it is another user's, and they are no less well for it. Where none is, all may be lost."""
    root_without_rights = ("setpriv", "--bounding-set", "-all") if os.geteuid() == 0 else ()
    if root_without_rights and shutil.which("setpriv") is None:
        pytest.skip("not run: needs setpriv, as root")
    spool, neighbour = Writer(small).directory, Writer(replace(small, log_group_name="/test/other")).directory
    try:
        os.chmod(spool.path, 0)
        assert check(spool.root, below=root_without_rights) == (
            0,
            "OK: 1 spool, 0 records waiting; 1 spool of other users not seen",
        )
        shutil.rmtree(neighbour.path)
        why = "permission denied. Run as its owner or as root; 0 spools, 0 records waiting"
        assert check(spool.root, below=root_without_rights) == (2, f"CRITICAL: cannot read {spool.path}: {why}")
    finally:
        os.chmod(spool.path, 0o700)


def test_a_path_that_cannot_be_looked_into_is_critical(tmp_path: Path) -> None:
    """One line on stdout, and code 2: monitoring reads nothing else. It need not be a directory at all."""
    file = tmp_path / "file"
    file.touch()
    assert check(str(file)) == (2, f"CRITICAL: cannot read {file}: cannot look into {file}: Not a directory.")
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    code, line = check(str(loop))
    assert code == 2
    assert line.startswith(f"CRITICAL: cannot read {loop}: cannot look into {loop}: ")


def test_a_path_with_a_slip_of_the_pen_is_critical(small: SinkConfig, tmp_path: Path) -> None:
    """It is not there, or it is no root: monitoring would be content for ever. An empty root is well."""
    missing = tmp_path / "spolls"
    code, line = check(str(missing))
    assert (code, line.startswith(f"CRITICAL: cannot read {missing}: {missing} is not there. ")) == (2, True)
    writer = Writer(small)
    assert writer.append("x")
    for path in (writer.directory.ring, tmp_path):
        (tmp_path / "notes.txt").touch()
        code, line = check(str(path))
        assert code == 2
        assert f"{path} holds no spool, but " in line
    assert check(writer.directory.root)[0] == check(writer.directory.path)[0] == 0
    empty = tmp_path / "empty"
    (empty / "lost+found").mkdir(parents=True)
    (empty / "flusher-1000.lock").touch()
    (empty / f"new.{'0' * 10}").mkdir()
    assert check(str(empty)) == (0, "OK: 0 spools, 0 records waiting")


def test_wrong_words_are_an_error_and_no_code_of_a_worker() -> None:
    """gunicorn takes 3 and 4 for a worker that cannot boot; usage is 2, as everywhere."""
    for words in (["--max-age", "soon"], ["--max-fill", "-3%"], ["--max-age", "5 weeks"]):
        done = subprocess.run(
            [sys.executable, "-m", "cwsink", "check", *words],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            timeout=CHILD_SECONDS,
        )
        assert done.returncode == 2
        assert "usage: cwsink check" in done.stderr


def test_it_loads_nothing_that_takes_long_to_load() -> None:
    """A probe that runs each second must be cheap. Later imports find what is installed, and garbage is collected."""
    slow = {"rich", "botocore", "boto3", "fapilog", "filelock", "socket", "dataclasses", "typing_extensions"}
    script = (
        "import gc, sys; from cwsink.cli import main; main(['check']);"
        f"print(*{{name.split('.')[0] for name in sys.modules}} & {slow});"
        "import typing_extensions; print(gc.isenabled())"
    )
    out = subprocess.check_output([sys.executable, "-c", script], text=True, timeout=CHILD_SECONDS)
    assert out == "OK: 0 spools, 0 records waiting\n\nTrue\n"
