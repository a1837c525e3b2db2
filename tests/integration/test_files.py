"""Small files of a spool: what may lie in their place, who is killed while writing one, who forks while looking."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cwsink.config import SinkConfig
from cwsink.flusher.claim import Lease
from cwsink.frontends import presence
from cwsink.frontends.writer import Writer
from cwsink.spool import (
    attachment,
    budget,
    cursor,
    descriptors,
    directory,
    files,
    flusher_lock,
    heartbeat,
    leader_state,
    lease,
    sending,
)
from cwsink.spool.directory import SpoolDirectory


@pytest.fixture
def spool(small: SinkConfig) -> SpoolDirectory:
    """A spool with one record in it, and nobody attached."""
    writer = Writer(small)
    assert writer.append("one")
    presence.this.forget_below(writer.directory.root)
    writer.close()
    return writer.directory


def test_what_is_replaced_is_the_old_or_the_new_content(tmp_path: Path) -> None:
    """A replaced file has the new content, mode 0600, and no temporary file beside it."""
    path = tmp_path / "file"
    files.replace(str(path), b"old")
    files.replace(str(path), b"new")
    assert files.read(str(path), 100)[0] == b"new"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["file"]


def test_a_write_that_is_cut_leaves_the_old_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk `write` may take a part only: the old file stays, and the part goes."""
    path = tmp_path / "file"
    files.replace(str(path), b"old")
    write = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:1]))
    with pytest.raises(OSError, match="space") as caught:
        files.replace(str(path), b"new")
    assert caught.value.errno == errno.ENOSPC
    assert files.read(str(path), 100)[0] == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_process_was_writing_is_removed_when_it_is_old(tmp_path: Path) -> None:
    """A temporary file of a process that may still write it is left alone."""
    for name, age_seconds in (("settings.json.1a.tmp", 3600), ("settings.json.2b.tmp", 0), ("settings.json", 3600)):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - age_seconds,) * 2)
    files.remove_stale_temporaries(str(tmp_path))
    assert sorted(os.listdir(tmp_path)) == ["settings.json", "settings.json.2b.tmp"]


def put_fifo(path: str) -> None:
    """A FIFO: opening it waits for somebody at its other end."""
    os.mkfifo(path)


def put_directory(path: str) -> None:
    """A directory."""
    os.mkdir(path)


def put_link(path: str) -> None:
    """A symbolic link to a file that is none of our business."""
    os.symlink("/etc/passwd", path)


def put_gigabytes(path: str) -> None:
    """A file that would fill the memory of who reads it."""
    Path(path).touch()
    os.truncate(path, 1 << 40)


READERS: list[tuple[Callable[[SpoolDirectory], str], Callable[[SpoolDirectory], object]]] = [
    (lambda spool: spool.sending, sending.read),
    (lambda spool: spool.leader_state, leader_state.read),
    (lambda spool: spool.leader_host, heartbeat.elsewhere),
    (lambda spool: spool.evictions, budget.read_evictions),
    (lambda spool: spool.leader_lock, lease.is_taken),
    (lambda spool: spool.attached_lock, attachment.is_anyone_attached),
    (lambda spool: spool.cursor, lambda spool: cursor.read(spool.cursor)),
    (lambda spool: f"{spool.path}/FORMAT", lambda spool: directory.open_existing(spool.path)),
    (lambda spool: flusher_lock.path_of(spool.root), lambda spool: flusher_lock.is_taken(spool.root)),
    (lambda spool: f"{flusher_lock.path_of(spool.root)[:-5]}.next", lambda spool: flusher_lock.challenge(spool.root)),
]


@pytest.mark.timeout(20)
@pytest.mark.parametrize("put", [put_fifo, put_directory, put_link, put_gigabytes])
@pytest.mark.parametrize("where", range(len(READERS)), ids=lambda index: READERS[index][0].__code__.co_names[-1])
def test_whatever_lies_in_a_file_s_place_nobody_waits_there(
    spool: SpoolDirectory, where: int, put: Callable[[str], None]
) -> None:
    """Who looks at it gets an answer, or an error of ours or of the system, at once and in little memory."""
    path_of, look = READERS[where]
    path = path_of(spool)
    with contextlib.suppress(FileNotFoundError):
        os.unlink(path)
    put(path)
    with contextlib.suppress(OSError, directory.SpoolError):
        look(spool)
    os.rmdir(path) if put is put_directory else os.unlink(path)


LOOKS: list[Callable[[SpoolDirectory], object]] = [
    lease.is_taken,
    attachment.is_anyone_attached,
    lambda spool: flusher_lock.is_taken(spool.root),
]


@pytest.mark.parametrize("look", LOOKS, ids=["lease", "attached", "flusher"])
def test_a_fork_in_the_middle_of_a_look_leaves_no_lock(
    spool: SpoolDirectory, look: Callable[[SpoolDirectory], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread forks while this one looks whether a file is locked: the child keeps nobody out.

    The child is one that C code has forked, so that no hook of ours runs in it.
    """
    child = 0
    try_lock = descriptors.try_lock

    def and_fork(fd: int, *, exclusive: bool) -> bool:
        nonlocal child
        got = try_lock(fd, exclusive=exclusive)
        if not child:
            child = fork_without_hooks()
        return got

    claim = Lease(spool)
    assert claim.try_acquire()
    claim.release()
    flusher = flusher_lock.FlusherLock(spool.root)
    monkeypatch.setattr(descriptors, "try_lock", and_fork)
    look(spool)
    monkeypatch.undo()
    assert child, "the look has asked for no lock"
    try:
        assert flusher.try_acquire()
        assert claim.try_acquire()
        assert not attachment.is_anyone_attached(spool)
        claim.release()
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        flusher.close()


def fork_without_hooks() -> int:
    """Fork as C code does; the child sleeps until it is killed. Returns its pid."""
    import ctypes

    pid = int(ctypes.PyDLL(None).fork())
    if pid == 0:
        while True:
            signal.pause()
    return pid
