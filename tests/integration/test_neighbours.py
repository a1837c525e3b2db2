"""A spool that cannot be served harms none of its neighbours: whoever looks after a root says which one, and goes on.

Each kind of damage, in each program that delivers for a whole root. All are real processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from zlib import crc32

import pytest

from cwsink import Writer
from cwsink.spool import leader_state
from cwsink.spool.directory import SpoolDirectory, open_existing
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, quick_config

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="prlimit, /proc")


def of_a_newer_version(path: Path) -> None:
    content = json.loads((path / "FORMAT").read_text())
    del content["checksum"]
    content["format"] = 99
    checksum = f"{crc32(json.dumps(content, sort_keys=True).encode()):08x}"
    (path / "FORMAT").write_text(json.dumps({**content, "checksum": checksum}))


def with_a_target_that_a_newer_version_allows(path: Path) -> None:
    content = json.loads((path / "FORMAT").read_text())
    del content["checksum"]
    content["log_group_name"] = "?" * 600
    checksum = f"{crc32(json.dumps(content, sort_keys=True).encode()):08x}"
    (path / "FORMAT").write_text(json.dumps({**content, "checksum": checksum}))


def with_a_damaged_format(path: Path) -> None:
    (path / "FORMAT").write_bytes(b"\xff{")


def without_settings_and_with_wrong_variables(path: Path) -> None:
    (path / "settings.json").unlink()  # FAPILOG_CLOUDWATCH__BATCH_SIZE is wrong in each test


DAMAGES = (
    of_a_newer_version,
    with_a_target_that_a_newer_version_allows,
    with_a_damaged_format,
    without_settings_and_with_wrong_variables,
)


@pytest.fixture(params=DAMAGES, ids=lambda damage: damage.__name__)
def damaged(
    request: pytest.FixtureRequest, server: StrictCloudWatch, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[SpoolDirectory, Writer]]:
    """A damaged spool with a record, and the writer of a good one, which is looked at later."""
    bad = Writer(quick_config(server.endpoint_url, log_group_name="/a/bad", flusher="external"))
    assert bad.append("bad")
    good = Writer(quick_config(server.endpoint_url, log_group_name="/b/good", flusher="external"))
    assert good.append("good")
    bad.close()
    request.param(Path(bad.directory.path))
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__BATCH_SIZE", "many")
    yield bad.directory, good
    shutil.rmtree(bad.directory.path)  # its books cannot be read


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start `cwsink WORDS`, with stderr in a file; ended with the test."""
    with contextlib.ExitStack() as stack:

        def started(*words: str) -> subprocess.Popen[bytes]:
            child = subprocess.Popen(
                [sys.executable, "-m", "cwsink", *words],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=stack.enter_context((tmp_path / "stderr").open("wb")),
            )
            stack.callback(child.wait, CHILD_SECONDS)
            stack.callback(child.kill)
            return child

        yield started


def said(tmp_path: Path) -> str:
    return (tmp_path / "stderr").read_text()


def assert_serves_the_good_one(
    child: subprocess.Popen[bytes], tmp_path: Path, server: StrictCloudWatch, bad: SpoolDirectory, good: Writer
) -> None:
    """Assert that both records of the good one arrive, that the bad one is named, and that the program lives."""
    assert server.wait_for(lambda seen: "good" in seen.messages(), CHILD_SECONDS), said(tmp_path)
    assert good.append("more")
    assert server.wait_for(lambda seen: "more" in seen.messages(), CHILD_SECONDS), said(tmp_path)
    until = time.monotonic() + CHILD_SECONDS
    while bad.path not in said(tmp_path):
        assert time.monotonic() < until, said(tmp_path)
        time.sleep(0.05)
    assert child.poll() is None
    assert "Traceback" not in said(tmp_path)
    assert "bad" not in server.messages()


def test_flush_serves_its_neighbour(
    damaged: tuple[SpoolDirectory, Writer], start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path,
    server: StrictCloudWatch,
) -> None:  # fmt: skip
    """`cwsink flush ROOT` names the damaged spool and delivers the other one, now and later."""
    bad, good = damaged
    child = start("flush", bad.root)
    assert_serves_the_good_one(child, tmp_path, server, bad, good)


def test_run_serves_its_neighbour(
    damaged: tuple[SpoolDirectory, Writer], start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path,
    server: StrictCloudWatch,
) -> None:  # fmt: skip
    """The flusher of `cwsink run` does the same, and is not started again and again."""
    bad, good = damaged
    child = start("run", "--spool", bad.root, "--drain-timeout", "1", "--", "sleep", "600")
    try:
        assert_serves_the_good_one(child, tmp_path, server, bad, good)
        assert "is started again" not in said(tmp_path)
    finally:
        child.terminate()
        child.wait(CHILD_SECONDS)


def test_flush_once_serves_its_neighbour(
    damaged: tuple[SpoolDirectory, Writer], start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path,
    server: StrictCloudWatch,
) -> None:  # fmt: skip
    """`cwsink flush --once` delivers the good one, names the damaged one, and exits with 1: not all is done."""
    bad, _ = damaged
    child = start("flush", "--once", "--timeout", "3", bad.root)
    assert child.wait(CHILD_SECONDS) == 1
    assert server.messages() == ["good"]
    assert bad.path in said(tmp_path)
    assert "Traceback" not in said(tmp_path)


@pytest.mark.usefixtures("damaged")
def test_the_flusher_that_starts_by_itself_serves_its_neighbour(spawn: Spawn, server: StrictCloudWatch) -> None:
    """A program logs to the good one: its flusher delivers that, whatever lies beside it."""
    code = """
        import sys, cwsink
        from cwsink.config import SinkConfig
        settings = dict(log_group_name="/b/good", log_stream_name="stream", endpoint_url=sys.argv[1])
        writer = cwsink.Writer(SinkConfig(**settings, region="us-east-1", batch_timeout_seconds=0.2))
        assert writer.append("own")
        print(writer.flush(30))
    """
    child = spawn(code, server.endpoint_url)
    out, err = child.communicate(timeout=CHILD_SECONDS)
    assert (out, child.returncode) == ("True\n", 0), err
    assert sorted(server.messages()) == ["good", "own"]
    assert "Traceback" not in err


def test_flush_goes_on_when_it_may_open_no_file_for_a_while(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, server: StrictCloudWatch
) -> None:
    """Out of descriptors for seconds, while it leads, shows and looks for spools: it lives, and delivers afterwards."""
    writers = [Writer(quick_config(server.endpoint_url, log_group_name=f"/{n}", flusher="external")) for n in "abc"]
    child = start("flush", writers[0].directory.root)
    for writer in writers:
        assert writer.append("before")
    assert server.wait_for_events(3, CHILD_SECONDS), said(tmp_path)
    before = resource.prlimit(child.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    for writer in writers:
        assert writer.append("meanwhile")
    time.sleep(3.0)
    assert child.poll() is None, said(tmp_path)
    resource.prlimit(child.pid, resource.RLIMIT_NOFILE, before)
    assert server.wait_for_events(6, CHILD_SECONDS), said(tmp_path)
    assert sorted(server.messages()) == ["before"] * 3 + ["meanwhile"] * 3
    assert "Traceback" not in said(tmp_path)
    assert child.poll() is None


def test_the_flusher_that_starts_by_itself_goes_on_when_it_may_open_no_file_for_a_while(
    spawn: Spawn, server: StrictCloudWatch
) -> None:
    """Out of descriptors for seconds, it lives: the same process delivers afterwards what was logged meanwhile."""
    code = """
        import sys, cwsink
        writer = cwsink.Writer.open(log_group_name="/own", endpoint_url=sys.argv[1], batch_timeout_seconds=0.1)
        print(writer.directory.path, flush=True)
        for line in sys.stdin:
            assert writer.append(line.strip())
    """
    child = spawn(code, server.endpoint_url)
    assert child.stdin is not None
    assert child.stdout is not None
    spool = open_existing(child.stdout.readline().strip())
    child.stdin.write("before\n")
    child.stdin.flush()
    assert server.wait_for_events(1, CHILD_SECONDS)
    leader = leader_state.read(spool)
    assert leader is not None
    before = resource.prlimit(leader.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(leader.pid, resource.RLIMIT_NOFILE, (3, before[1]))
    child.stdin.write("meanwhile\n")
    child.stdin.flush()
    time.sleep(3.0)
    resource.prlimit(leader.pid, resource.RLIMIT_NOFILE, before)
    assert server.wait_for_events(2, CHILD_SECONDS)
    now = leader_state.read(spool)
    assert now is not None
    assert now.pid == leader.pid
    assert server.messages() == ["before", "meanwhile"]


@pytest.mark.parametrize("name", ["ring", "cursor", "leader.lock", "attached.lock", "settings.json", "evictions"])
@pytest.mark.parametrize("kind", ["directory", "link"])
def test_what_is_no_file_of_the_spool_is_set_aside(
    server: StrictCloudWatch, tmp_path: Path, name: str, kind: str
) -> None:
    """It is named, what is missing is made anew, and the records are delivered; nothing outside is touched."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "old.tmp").write_text("not ours")
    os.utime(outside / "old.tmp", (1, 1))
    writer = Writer(quick_config(server.endpoint_url, flusher="external"))
    assert writer.append("before")
    writer.close()
    path = Path(writer.directory.path, name)
    if name == "ring":
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if kind == "link":
        path.symlink_to(outside)
    elif name == "ring":
        path.write_text("a file")
    else:
        path.mkdir()
    words = [sys.executable, "-m", "cwsink", "flush", "--once", writer.directory.root]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"{path} is no file of this user and this spool. It was set aside as {path}.damaged." in done.stderr
    assert server.messages() == ([] if name == "ring" else ["before"])
    assert [each.name for each in outside.iterdir()] == ["old.tmp"]
    again = Writer(quick_config(server.endpoint_url, flusher="external"))
    assert again.append("after")
