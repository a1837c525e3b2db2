"""A file beside the ring that cannot be read: no record is refused for it, counts stay, and it is made anew."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink import Writer, host
from cwsink.cli import main
from cwsink.config import SinkConfig
from cwsink.doctor import course
from cwsink.doctor.patient import Case, Patient
from cwsink.errors import SpoolAccessError
from cwsink.flusher.commits import Cursor
from cwsink.flusher.instructions import config_of
from cwsink.frontends import presence
from cwsink.spool import budget, cursor, directory, disk, files, refusals
from cwsink.spool.budget import Evictions
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Loss
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness.bad_sectors import unreadable
from tests.harness.interleave import deliver, segment_path, segments
from tests.harness.support import quick_config


@pytest.fixture(autouse=True)
def another_process() -> Iterator[None]:
    """What this process could not read before is forgotten."""
    disk._failing.clear()
    yield
    disk._failing.clear()


@pytest.fixture
def config(server: StrictCloudWatch) -> SinkConfig:
    return quick_config(server.endpoint_url, flusher="external")


def logged_in(config: SinkConfig) -> SpoolDirectory:
    """A spool with a record that waits. No process logs there any more."""
    writer = Writer(config)
    assert writer.append("first")
    leave(writer)
    return writer.directory


def leave(writer: Writer) -> None:
    writer.close()
    presence.this.forget_below(writer.directory.root)


@pytest.mark.parametrize(
    ("name", "written", "made"), [("evictions", -1, 0), ("evictions", 60, 1), ("cursor", 0, 0), ("refusals", 0, 0)]
)
def test_a_program_logs_at_once_although_a_file_beside_the_ring_cannot_be_read(
    server: StrictCloudWatch, config: SinkConfig, name: str, written: int, made: int
) -> None:
    """It begins a segment only if the newest one may count as evicted. Each record arrives once.

    `written`: when the file was written last, in seconds after the segment. `made`: so many segments are begun.
    """
    spool = logged_in(config)
    deliver(spool, config)
    path = Path(spool.path, name)
    refusals.add(spool, [Loss(1, 1, 1, "io_error", 0)])
    written_at = segment_path(spool, 1).stat().st_mtime + written
    os.utime(path, (written_at, written_at))
    with unreadable(path, [0]):
        for number in range(2):
            writer = Writer(config)
            assert writer.append(f"at once {number}")
            assert len(segments(spool)) == 1 + made * (number + 1)
            leave(writer)
    deliver(spool, config)
    assert [message for message in server.messages() if "at once" in message] == ["at once 0", "at once 1"]


def test_a_segment_of_before_the_boot_may_have_been_cut(config: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the cursor cannot be read, nobody knows up to where it is settled. So nothing is appended to it."""
    spool = logged_in(config)
    deliver(spool, config)
    monkeypatch.setattr(host, "uptime_seconds", lambda: 0.0)
    with unreadable(Path(spool.cursor), [0]):
        writer = Writer(config)
        assert writer.append("after a power failure")
        assert len(segments(spool)) == 2
        leave(writer)


def test_a_full_disk_keeps_no_leader_from_a_cursor_that_cannot_be_read(
    config: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is written over in whole pages, which needs no room and reads nothing."""
    spool = logged_in(config)
    deliver(spool, config)
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 0.0)

    def is_full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with unreadable(Path(spool.cursor), [0]), monkeypatch.context() as patch:
        patch.setattr(files, "replace", is_full)
        opened = Cursor(spool.cursor)
        epoch = opened.take_over("holder").epoch
        opened.close()
    assert cursor.read(spool.cursor).epoch == epoch


def test_the_counts_that_the_stream_was_told_of_outlast_their_files(
    server: StrictCloudWatch, config: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Evicted and refused records are counted on from there, told once, and the files can be read again."""
    spool = logged_in(config)
    now = int(time.time() * 1000)
    files.replace(spool.evictions, budget._packed(Evictions(7, now, now, {"spool_full": 2})))
    assert refusals.add(spool, [Loss(3, now, now, "io_error", 0)])
    deliver(spool, config)
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 0.0)
    with unreadable(Path(spool.evictions), [0]), unreadable(Path(spool.refusals), [0]):
        assert survey(spool).evicted == 7
        deliver(spool, config)
        told = len(server.messages())
        assert budget._found(spool) == Evictions(7)
        assert refusals.add(spool, [Loss(4, now, now, "io_error", 0)])
        deliver(spool, config)
    (notice,) = server.messages()[told:]
    assert "cwsink: 4 records dropped" in notice
    Path(spool.refusals).write_bytes(b"damaged")
    assert refusals.add(spool, [Loss(1, now, now, "io_error", 0)])
    books = survey(spool)
    assert (books.adds_up, books.evicted, books.refused) == (True, 7, {"spool_full": 2, "io_error": 8})


def test_what_is_refused_while_the_counts_are_written_anew_is_counted(
    config: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that has waited for its turn does not write into the file that nobody reads any more."""
    spool = logged_in(config)
    losses = [Loss(1, 1, 1, "io_error", 0)]
    assert refusals.add(spool, list(losses))
    take_turn = refusals._take_turn

    def replaced_meanwhile(fd: int) -> bool:
        files.replace(spool.refusals, Path(spool.refusals).read_bytes())
        return take_turn(fd)

    with monkeypatch.context() as patch:
        patch.setattr(refusals, "_take_turn", replaced_meanwhile)
        assert not refusals.add(spool, losses)
    assert refusals.add(spool, losses)
    assert refusals.counts(spool) == {"io_error": 2}


@pytest.mark.parametrize("name", ["cursor", "evictions", "refusals"])
def test_people_see_at_once_what_can_be_read(
    config: SinkConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Each command shows the rest, and names the file; its exit code is that of trouble. Nobody waits."""
    spool = logged_in(config)
    deliver(spool, config)
    refusals.add(spool, [Loss(1, 1, 1, "io_error", 0)])
    writer = Writer(config)
    assert writer.append("still here")
    leave(writer)
    path, metrics = Path(spool.path, name), tmp_path / "metrics"
    with unreadable(path, [0]):
        for command, shown in (
            (["status", spool.path], " wait"),
            (["status", "--json", spool.path], '"pending": '),
            (["top", "--once", spool.path], "/test/group"),
            (["check", spool.path], " waiting"),
            (["tail", spool.path], "still here"),
        ):
            capsys.readouterr()
            code = main(command)
            said = capsys.readouterr()
            assert shown in said.out
            is_asked = command[0] != "tail" or name == "cursor"
            assert code == (2 if command[0] == "check" else is_asked)
            assert (f"cannot read {path}: the disk cannot read it" in said.err + said.out) == is_asked
        assert main(["metrics", "--textfile", str(metrics), spool.path]) == 0
        case = Case(spool.format, config, spool)
        found = list(course.delivery(Patient({}, cases=[case])))
        assert f"{path}: the disk cannot read it" in found[0].seen
        assert (len(found) > 1, len(list(course.leader(Patient({}, cases=[case]))))) == (True, 1)
    assert "cwsink_unreadable_spools 1.0" in metrics.read_text()
    assert not disk._failing


def test_a_format_that_cannot_be_read_is_set_aside(config: SinkConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """An application starts at once, and so does a flusher afterwards. A failure of a moment changes nothing."""
    spool = logged_in(config)
    path = Path(spool.path, "FORMAT")
    intact = path.read_bytes()
    disk_fails = contextlib.ExitStack()
    monkeypatch.setattr(time, "sleep", lambda _: disk_fails.close())
    with disk_fails:
        disk_fails.enter_context(unreadable(path, [0]))
        assert directory.open_for(config).format == spool.format
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with unreadable(path, [0]):
        assert spool.is_present()
        with pytest.raises(SpoolAccessError, match="Input/output error"):
            directory.open_existing(spool.path)
        opened = directory.open_for(config)
        assert directory.open_existing(spool.path).format == opened.format
    assert Path(spool.path, "FORMAT.damaged").read_bytes() == intact
    assert survey(opened).pending == 1


def make_socket(path: Path) -> None:
    os.mknod(path, stat.S_IFSOCK | 0o600)


@pytest.mark.parametrize("make", [make_socket, os.mkfifo, os.mkdir], ids=["socket", "FIFO", "directory"])
@pytest.mark.parametrize("before", [None, Path.touch, Path.mkdir], ids=["", "a file", "a directory"])
def test_whatever_is_in_formats_place_is_set_aside(
    config: SinkConfig, make: Callable[[Path], object], before: Callable[[Path], object] | None
) -> None:
    """So it is beside what was set aside before, of the same or another kind."""
    spool = logged_in(config)
    path, aside = Path(spool.path, "FORMAT"), Path(spool.path, "FORMAT.damaged")
    path.unlink()
    make(path)
    mode = path.stat().st_mode
    if before is not None:
        before(aside)
        if aside.is_dir():
            (aside / "kept").touch()
    assert directory.open_for(config).is_present()
    assert mode in [each.stat().st_mode for each in aside.parent.glob("FORMAT.damaged*")]
    assert not aside.is_dir() or mode == aside.stat().st_mode or (aside / "kept").exists()


def test_settings_that_cannot_be_read_end_no_flush(
    server: StrictCloudWatch, config: SinkConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They count as damaged after a while, and the command waits for that."""
    spool = logged_in(config)
    monkeypatch.setattr(disk, "PATIENCE_SECONDS", 0.2)
    with unreadable(Path(spool.sending), [0]):
        with pytest.raises(OSError, match="Input/output error"):
            config_of(spool)
        disk._failing.clear()
        assert main(["flush", "--once", spool.path]) == 0
    assert server.messages() == ["first"]
