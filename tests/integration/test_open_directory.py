"""What is done by name in a spool is done from a directory that was looked at: it is this user's, and so are its files.

Exchanging directories under a running writer and leader: tests/faults/test_exchanged.py.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import pytest

from cwsink import host
from cwsink.config import SinkConfig
from cwsink.errors import SpoolError
from cwsink.flusher.claim import Lease
from cwsink.flusher.commits import Cursor
from cwsink.flusher.dead_letter import DeadLetters
from cwsink.frontends import presence
from cwsink.frontends.writer import Writer
from cwsink.spool import (
    budget,
    capacity,
    cursor,
    files,
    flusher_lock,
    host_names,
    hurry,
    leader_state,
    lease,
    open_directory,
    refusals,
    segment,
    sending,
    survey,
)
from cwsink.spool.attachment import Attachment
from cwsink.spool.directory import SpoolDirectory, open_existing
from cwsink.spool.reader import RingReader
from cwsink.spool.record import Event, Loss
from tests.harness.support import give

STRANGER: Final = 12_345

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


@pytest.fixture
def spool(small: SinkConfig) -> Iterator[SpoolDirectory]:
    """A spool with one record in it, and nobody attached; this user's again in the end."""
    writer = Writer(small)
    assert writer.append("one")
    presence.this.forget_below(writer.directory.root)
    writer.close()
    yield writer.directory
    if os.geteuid() == 0:
        give(writer.directory.root, 0)


def give_away(path: str) -> None:
    """Give a directory and all that is in it to another user, who lets everybody in."""
    for each in (Path(path), *Path(path).rglob("*")):
        each.chmod(0o777 if each.is_dir() else 0o666)
    give(path, STRANGER)


def lead(spool: SpoolDirectory) -> None:
    Lease(spool).try_acquire()


def read_ring(spool: SpoolDirectory) -> None:
    RingReader(spool, {}).read()


def bury(spool: SpoolDirectory) -> None:
    """It never raises, and counts what it cannot keep."""
    letters = DeadLetters(spool.dead_letters)
    letters.add("too_old", "why", [Event(1, 1, 1, "x")])
    if letters._uncounted:
        raise PermissionError(errno.EACCES, "it could not be kept")


def refuse(spool: SpoolDirectory) -> None:
    """It never raises."""
    if not refusals.add(spool, [Loss(1, 1, 1, "spool_full", 1)]):
        raise PermissionError(errno.EACCES, "it could not be counted")


# What reads or writes and says so if it cannot.
WORK: Final[list[Callable[[SpoolDirectory], object]]] = [
    lead,
    read_ring,
    bury,
    refuse,
    Attachment,
    lambda spool: Cursor(spool.cursor),
    lambda spool: cursor.read(spool.cursor),
    lambda spool: budget.Budget(spool, 1, 1).evict(),
    budget.read_evictions,
    lambda spool: segment.create(spool.ring, 7, bytes(16), 0),
    lambda spool: segment.attach_newest(spool.ring),
    lambda spool: segment.numbers(spool.ring),
    lambda spool: segment.remove(spool.ring, 1),
    lambda spool: segment.sync(spool.ring),
    survey.survey,
    refusals.read,
]
# What never raises, and believes nothing.
LOOKS: Final[list[tuple[Callable[[SpoolDirectory], object], object]]] = [
    (sending.read, None),
    (capacity.read, None),
    (leader_state.read, None),
    (lease.is_taken, False),
    (lease.challenged_at, 0),
    (hurry.stamp, 0),
    (lambda spool: hurry.has_word(spool.path), False),
    (sending.stamp, None),
    (SpoolDirectory.is_present, False),
]


def state_of(path: str) -> dict[str, tuple[int, bytes]]:
    return {
        str(each): (each.lstat().st_mtime_ns, each.read_bytes() if each.is_file() else b"")
        for each in Path(path).rglob("*")
    }


@as_root
@pytest.mark.parametrize("what", ["spool", "ring"])
@pytest.mark.parametrize("work", range(len(WORK)))
def test_nobody_works_in_a_directory_of_another_user(spool: SpoolDirectory, work: int, what: str) -> None:
    """In the spool's place, or in that of its ring: an error, and nothing there is changed."""
    give_away(spool.path if what == "spool" else spool.ring)
    before = state_of(spool.path)
    with contextlib.suppress(PermissionError, SpoolError):
        WORK[work](spool)
        assert what == "ring", "nobody has noticed"
    place = spool.path if what == "spool" else spool.ring
    assert state_of(place) == {path: each for path, each in before.items() if path.startswith(f"{place}/")}


@as_root
@pytest.mark.parametrize("look", range(len(LOOKS)))
def test_nobody_believes_what_another_users_directory_says(spool: SpoolDirectory, look: int) -> None:
    """Whatever lies there, it is as if there was nothing."""
    hurry.leave_word(spool)
    lease.challenge(spool)
    Path(spool.leader_state).write_bytes(b'{"pid":1,"host":"h","epoch":1,"kind":"own"}')
    give_away(spool.path)
    ask, answer = LOOKS[look]
    assert ask(spool) == answer


@as_root
@pytest.mark.parametrize("name", ["cursor", "evictions", "refusals", "settings.json", "ring/0000000001.seg"])
def test_a_file_of_another_user_in_ones_own_directory_is_not_read(spool: SpoolDirectory, name: str) -> None:
    """Root has put it there, or has restored it."""
    path = f"{spool.path}/{name}"
    Path(path).touch()
    os.chown(path, STRANGER, STRANGER)
    with pytest.raises(PermissionError, match="it belongs to user 12345, not to user 0"):
        files.read(path, 1 << 20)


@as_root
def test_who_looks_at_a_spool_of_another_user_reads_and_changes_nothing(spool: SpoolDirectory) -> None:
    """`cwsink status` of root. Whoever opens the spool to work in it is refused as before."""
    give_away(spool.path)
    os.chmod(spool.path, 0o700)
    with pytest.raises(OSError, match="belongs to user 12345"):
        survey.survey(spool)
    looked_at = open_existing(spool.path, read_only=True)
    assert survey.survey(looked_at).pending == 1
    before = state_of(spool.path)
    for change in (
        lambda: files.remove(spool.cursor),
        lambda: files.replace(spool.cursor, b""),
        lambda: files.create(f"{spool.path}/new", b""),
        lambda: files.rename(spool.cursor, f"{spool.path}/new"),
        lambda: files.touch(spool.cursor),
        lambda: files.opened(spool.cursor, os.O_RDWR),
        lambda: files.opened(spool.cursor, os.O_RDONLY | os.O_TRUNC),
        lambda: segment.remove(spool.ring, 1),
        lambda: segment.create(spool.ring, 2, bytes(16), 0),
    ):
        with pytest.raises(PermissionError, match="may only be looked at"):
            change()
    files.remove_stale_temporaries(spool.path)
    assert state_of(spool.path) == before
    with pytest.raises(OSError, match="belongs to user 12345"):
        open_existing(spool.path)
    with pytest.raises(OSError, match="belongs to user 12345"):
        survey.survey(looked_at)


def test_a_link_in_the_place_of_a_spool_or_its_ring_is_not_followed(spool: SpoolDirectory) -> None:
    """Even if it leads to a directory of one's own."""
    os.rename(spool.ring, f"{spool.path}/away")
    os.symlink("away", spool.ring)
    assert segment.numbers(spool.ring) == []
    with pytest.raises(NotADirectoryError):
        segment.create(spool.ring, 7, bytes(16), 0)
    os.unlink(spool.ring)
    os.rename(f"{spool.path}/away", spool.ring)
    os.rename(spool.path, f"{spool.path}.away")
    os.symlink(f"{spool.path}.away", spool.path)
    with pytest.raises(NotADirectoryError):
        files.touch(spool.hurry, make=True)
    for attempt in (lambda: open_existing(spool.path), lambda: open_existing(spool.path, read_only=True)):
        with pytest.raises(OSError, match="is not a directory"):
            attempt()


def test_what_is_done_from_an_open_directory_is_done_there(tmp_path: Path) -> None:
    """Its name leads elsewhere meanwhile."""
    (tmp_path / "spool").mkdir()
    with open_directory.at(str(tmp_path / "spool")) as held:
        (tmp_path / "spool").rename(tmp_path / "away")
        (tmp_path / "spool").mkdir()
        held.replace("file", b"content")
        held.link("file", "other")
        held.touch("touched", make=True)
        assert held.read("other", 100)[0] == b"content"
    assert not list((tmp_path / "spool").iterdir())
    assert {each.name for each in (tmp_path / "away").iterdir()} == {"file", "other", "touched"}


# The files that lie in the root, where other users may write, too.


def root_with(tmp_path: Path, name: str, content: bytes = b"") -> Path:
    """A root of root's that all may write to, with a file of another user, who has locked it."""
    tmp_path.chmod(0o1777)
    path = tmp_path / name
    path.write_bytes(content)
    path.chmod(0o666)
    os.chown(path, STRANGER, STRANGER)
    return path


@as_root
def test_a_flushers_lock_that_another_user_has_made_is_not_used(tmp_path: Path) -> None:
    """He could keep all flushers of this user from starting. The error names his file, and it is not changed."""
    path = root_with(tmp_path, "flusher-0.lock")
    before = state_of(str(tmp_path))
    with pytest.raises(PermissionError, match=f"it belongs to user 12345, not to user 0: '{path}'"):
        flusher_lock.FlusherLock(str(tmp_path))
    assert not flusher_lock.is_taken(str(tmp_path))
    assert state_of(str(tmp_path)) == before


@as_root
def test_a_challenge_of_another_user_is_none(tmp_path: Path) -> None:
    """He could have each flusher of this user end."""
    path = root_with(tmp_path, "flusher-0.next", b'{"reason":"version","leader":0}')
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert flusher_lock.challenge(str(tmp_path)) is None


def test_a_link_to_ones_own_file_is_not_written_to(tmp_path: Path) -> None:
    """Where others may write they may link a file of this user's, which would be emptied."""
    precious = tmp_path / "precious"
    precious.write_text("not ours to write")
    os.link(precious, tmp_path / f"flusher-{os.geteuid()}.next")
    with pytest.raises(OSError, match="another name"), flusher_lock.challenging(str(tmp_path), "trouble", 0):
        pass
    assert precious.read_text() == "not ours to write"


@as_root
@pytest.mark.parametrize("name", ["host-0.json", "host-0.lock"])
def test_the_hosts_name_is_not_taken_from_another_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """He could have the lines of this user sent to a stream of his choice."""
    told = f'{{"boot_id": "{host.boot_id()}", "names": {{"instance_id http://service": "mallory"}}}}'
    root_with(tmp_path, name, told.encode())
    monkeypatch.setattr(host, "service_of", lambda name, env: "http://service")
    monkeypatch.setattr(host, "look_up", lambda name, env: "i-0abc")
    assert host_names.look_up(str(tmp_path), "instance_id", {}) == "i-0abc"
    assert name == "host-0.json" or (tmp_path / name).read_text() == told  # root may put its own in the other's place
