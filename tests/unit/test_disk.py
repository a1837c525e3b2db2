"""cwsink.spool.disk: blocks are reserved and given back by the kernel; a damaged disk is read as far as it can be."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import struct
import sys
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from cwsink.flusher.commits import Cursor
from cwsink.spool import disk, files
from tests.harness.bad_sectors import PAGE_BYTES, unreadable

MIB = 1 << 20
BLOCK = 512  # of st_blocks

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the ioctls")


def held(fd: int) -> int:
    return os.fstat(fd).st_blocks * BLOCK


def test_reserve_takes_blocks_and_leaves_size_and_bytes(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        file.write(b"a record")
        assert disk.reserve(file.fileno(), MIB)
        assert held(file.fileno()) >= MIB
        assert (tmp_path / "file").read_bytes() == b"a record"


def test_reserve_from_an_offset_on(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        assert disk.reserve(file.fileno(), MIB, 8 * MIB)
        assert MIB <= held(file.fileno()) < 2 * MIB


def test_punch_hole_gives_blocks_back_and_leaves_the_rest(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        file.write(b"x" * 3 * MIB)
        assert disk.punch_hole(file.fileno(), MIB, 2 * MIB)
        assert held(file.fileno()) < 3 * MIB
        assert (tmp_path / "file").read_bytes() == b"x" * MIB + b"\0" * MIB + b"x" * MIB


def test_nothing_to_reserve(tmp_path: Path) -> None:
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        assert not disk.reserve(file.fileno(), 0)
        assert not disk.punch_hole(file.fileno(), 10, 10)


def test_more_than_the_disk_has_is_an_error(tmp_path: Path) -> None:
    too_much = pytest.raises(OSError, match=r"No space left on device|File too large")
    with open(tmp_path / "file", "w+b", buffering=0) as file, too_much:
        disk.reserve(file.fileno(), 1 << 60)
    assert (tmp_path / "file").stat().st_blocks == 0


def test_a_file_that_cannot_be_reserved_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    fd = os.open(tmp_path / "pipe", os.O_RDWR)
    try:
        assert not disk.reserve(fd, MIB)  # the kernel answers ENOTTY
    finally:
        os.close(fd)


def test_a_signal_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """tmpfs gives up with EINTR on older kernels. So the kernel's answer is made here, and its second one is real."""
    calls = 0
    real = fcntl.ioctl

    def interrupted(fd: int, request: int, space: bytes) -> int | bytes:
        nonlocal calls
        calls += 1
        if calls == 1:
            raise InterruptedError(errno.EINTR, "interrupted")
        return real(fd, request, space)

    monkeypatch.setattr(fcntl, "ioctl", interrupted)
    with open(tmp_path / "file", "w+b", buffering=0) as file:
        assert disk.reserve(file.fileno(), MIB)
        assert held(file.fileno()) >= MIB
    assert calls == 2


def test_only_the_kernels_own_efbig_is_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is longer than is read of it has the same errno, and a name."""
    monkeypatch.setattr(disk, "most_file_bytes", lambda: 4096)
    assert "`ulimit -f` lets its files have 4,096 bytes" in disk.limit_of(OSError(errno.EFBIG, ""))
    for other in (OSError(errno.EFBIG, "", "/s/FORMAT"), OSError(errno.ENOSPC, ""), ValueError()):
        assert disk.limit_of(other) == ""


@pytest.mark.parametrize("fails_as_a_whole", [False, True])
@pytest.mark.parametrize("error", [errno.EIO, errno.EBADMSG, errno.EUCLEAN, errno.ENODATA])
@pytest.mark.parametrize("pages", [(), (0,), (1, 2), (0, 3), (4,), range(5)])
def test_what_cannot_be_read_costs_its_pages(
    tmp_path: Path, pages: tuple[int, ...], error: int, fails_as_a_whole: bool
) -> None:
    """Wherever the range begins and ends, all other bytes are as they were; the file ends where it ends."""
    content = os.urandom(4 * PAGE_BYTES + 100)
    expected = bytearray(content)
    for page in pages:
        bad = slice(page * PAGE_BYTES, (page + 1) * PAGE_BYTES)
        expected[bad] = b"\xff" * len(expected[bad])
    path = tmp_path / "file"
    path.write_bytes(content)
    with open(path, "rb") as file, unreadable(path, pages, error=error, fails_as_a_whole=fails_as_a_whole):
        for start, end in [(0, len(content)), (1, 5), (100, PAGE_BYTES), (4000, 9000), (3 * PAGE_BYTES, len(content))]:
            assert disk.read(file.fileno(), end - start, start) == bytes(expected[start:end])
        assert disk.read(file.fileno(), 10, len(content)) == b""
        if 4 not in pages:
            assert disk.read(file.fileno(), MIB, 0) == bytes(expected)


def test_each_failure_that_passes_has_patience_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a page was read, it matters no more how long ago it failed before. Other pages prove nothing of it."""
    now = [1000.0]
    monkeypatch.setattr(disk, "monotonic", lambda: now[0])
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4 * PAGE_BYTES)

    def is_lost(pages: Collection[int], size_bytes: int = 4 * PAGE_BYTES) -> bool:
        """Read 6 s later, while these pages are bad."""
        now[0] += 6.0
        with unreadable(path, pages), contextlib.suppress(OSError):
            return b"\xff" in disk.read(file.fileno(), size_bytes, 0, patience_seconds=10.0)
        return False

    with open(path, "rb") as file:
        assert not any(is_lost([page]) or is_lost([]) for page in (2, 2, 2, 1, 3, 2))
        assert not is_lost([2])
        assert not is_lost([2], 2 * PAGE_BYTES)  # this says nothing of page 2
        assert is_lost([2])
        assert is_lost([2, 3])  # a file that is damaged in many places holds up its reader once


def test_an_error_that_is_not_the_disks_stays_one(tmp_path: Path) -> None:
    """Without memory, for example, all of the file may be intact."""
    path = tmp_path / "file"
    path.write_bytes(b"x" * 100)
    with open(path, "rb") as file, unreadable(path, [0], error=errno.ENOMEM), pytest.raises(OSError, match="memory"):
        disk.read(file.fileno(), 100, 0)


# macOS, which is not here: what the kernel is asked for.


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """The calls of fcntl(2), none of which reaches the kernel."""
    calls: list[tuple[object, ...]] = []
    monkeypatch.setattr(fcntl, "fcntl", lambda *arguments: calls.append(arguments))
    return calls


def refuse(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    """Have fcntl(2) fail."""

    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "fcntl", fail)


def test_macos_is_asked_for_a_hole(monkeypatch: pytest.MonkeyPatch, asked: list[tuple[object, ...]]) -> None:
    """F_PUNCHHOLE with a struct fpunchhole_t. Nothing is reserved."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "platform", "darwin")
        assert disk.punch_hole(7, 4096, 3 * 4096)
        assert not disk.punch_hole(7, 4096, 4096)
        assert not disk.reserve(7, 4096)
        assert asked == [(7, 99, struct.pack("<IIqq", 0, 0, 4096, 8192))]
        refuse(patch, errno.ENOTSUP)
        assert not disk.punch_hole(7, 4096, 3 * 4096)
        refuse(patch, errno.EIO)
        with pytest.raises(OSError, match="Input/output"):
            disk.punch_hole(7, 4096, 3 * 4096)


@pytest.mark.parametrize("sync", [disk.sync, disk.sync_whole])
def test_macos_is_asked_to_write_the_cache_of_the_drive(
    monkeypatch: pytest.MonkeyPatch, asked: list[tuple[object, ...]], sync: Callable[[int], None]
) -> None:
    """Where there is F_FULLFSYNC, it is used; a file system that does not know it is synced as elsewhere."""
    synced: list[int] = []
    for name in ("fsync", "fdatasync"):
        monkeypatch.setattr(os, name, synced.append)
    sync(7)
    assert (asked, synced) == ([], [7])
    monkeypatch.setattr(fcntl, "F_FULLFSYNC", 51, raising=False)
    sync(7)
    assert (asked, synced) == ([(7, 51)], [7])
    refuse(monkeypatch, errno.ENOTSUP)
    sync(7)
    assert synced == [7, 7]
    refuse(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        sync(7)
    assert synced == [7, 7]


def test_all_that_must_outlive_the_host_is_synced_by_the_same_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cursor, a new file, and the names in a directory."""
    whole: list[int] = []
    monkeypatch.setattr(disk, "sync_whole", whole.append)
    held = Cursor(str(tmp_path / "cursor"))
    held.sync()
    held.close()
    files.sync_directory(str(tmp_path))
    files.create(str(tmp_path / "new"), b"", is_durable=True)
    assert len(whole) == 3
