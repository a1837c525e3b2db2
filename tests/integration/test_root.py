"""Which directory may hold spools: none in which another user could put something of his own in a spool's place."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from cwsink.errors import SpoolAccessError
from cwsink.spool import root

STRANGER = 12_345

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")


def chosen(path: Path) -> str:
    return root.choose_root(str(path), {})


def refused(path: Path) -> str:
    """Why this root is refused."""
    with pytest.raises(SpoolAccessError) as raised:
        chosen(path)
    assert f"the spool directory {path} cannot be used: " in str(raised.value)
    assert "name another one (spool_directory or CWSINK_SPOOL_DIRECTORY)" in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o2775, 0o720, 0o702])
def test_a_root_that_others_can_write_to_is_refused(tmp_path: Path, mode: int) -> None:
    """Whoever can write to a directory can rename what is in it."""
    (tmp_path / "spools").mkdir()
    (tmp_path / "spools").chmod(mode)
    assert f"other users may write to it (mode {mode:04o})" in refused(tmp_path / "spools")


@as_root
@pytest.mark.parametrize(("owner", "is_taken"), [(0, True), (STRANGER, False)])
def test_a_sticky_root_is_roots(tmp_path: Path, owner: int, is_taken: bool) -> None:
    """In a sticky directory one's own files are safe, but not from its owner."""
    (tmp_path / "spools").mkdir()
    (tmp_path / "spools").chmod(0o1777)
    os.chown(tmp_path / "spools", owner, -1)
    if is_taken:
        assert chosen(tmp_path / "spools") == str(tmp_path / "spools")
    else:
        assert f"it belongs to user {STRANGER}, who could replace what is in it" in refused(tmp_path / "spools")


@as_root
def test_a_strangers_root_is_refused(tmp_path: Path) -> None:
    """A name that anybody can make first, such as /var/tmp/cwsink-1000."""
    (tmp_path / "spools").mkdir(0o700)
    os.chown(tmp_path / "spools", STRANGER, STRANGER)
    assert f"it belongs to user {STRANGER}" in refused(tmp_path / "spools")


def test_a_directory_of_ones_own_in_a_groups_volume_will_do(tmp_path: Path) -> None:
    """Kubernetes' `fsGroup` makes volumes `root:gid 2775`; the root is a directory below, made for this user alone."""
    (tmp_path / "volume").mkdir()
    (tmp_path / "volume").chmod(0o2775)
    assert chosen(tmp_path / "volume" / "spools") == str(tmp_path / "volume" / "spools")
    assert stat.S_IMODE((tmp_path / "volume" / "spools").stat().st_mode) & 0o777 == 0o700


def test_a_root_below_a_directory_of_everybody_is_refused(tmp_path: Path) -> None:
    """Anybody can rename the root itself."""
    (tmp_path / "open" / "spools").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    assert f"anyone may write to {tmp_path}/open, above it" in refused(tmp_path / "open" / "spools")
    (tmp_path / "open").chmod(0o1777)
    assert chosen(tmp_path / "open" / "spools")


def links(tmp_path: Path) -> Path:
    """A root behind two symbolic links, one of them relative."""
    (tmp_path / "disk" / "spools").mkdir(parents=True, mode=0o700)
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / "disk").symlink_to("../disk")
    (tmp_path / "data").symlink_to(tmp_path / "links" / "disk")
    return tmp_path / "data" / "spools"


def test_ones_own_links_are_followed(tmp_path: Path) -> None:
    """Links of this user or of root, in directories that only they can write to."""
    assert chosen(links(tmp_path)) == str(tmp_path / "data" / "spools")


@as_root
@pytest.mark.parametrize("name", ["data", "links/disk", "links"])
def test_a_link_that_another_user_can_change_is_refused(tmp_path: Path, name: str) -> None:
    """The link is his, or the directory in which it lies."""
    path = links(tmp_path)
    os.lchown(tmp_path / name, STRANGER, STRANGER)
    link = tmp_path / ("data" if name == "data" else "links/disk")
    assert f"another user can change the symbolic link {link}" in refused(path)


def test_links_that_lead_nowhere_end(tmp_path: Path) -> None:
    """A loop, a link to nothing, a file: a reason, and nothing is made."""
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "dangling").symlink_to(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    for name in ("loop", "dangling", "file"):
        assert refused(tmp_path / name)
    assert not (tmp_path / "missing").exists()


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o277, 0o777])
def test_each_directory_that_is_made_is_this_users_alone(tmp_path: Path, mask: int) -> None:
    """Whatever the umask is, also those above the root (a home without `.local`)."""
    before = os.umask(mask)
    try:
        chosen(tmp_path / "a" / "b" / "spools")
    finally:
        os.umask(before)
    for made in ("a", "a/b", "a/b/spools"):
        assert stat.S_IMODE((tmp_path / made).stat().st_mode) == 0o700


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A default root that is not absolute is passed over; if no other can be used, the error says what to set."""
    monkeypatch.setenv("HOME", "relative")
    tried: list[str] = []

    def unusable(path: str) -> str:
        tried.append(path)
        return "read-only file system"

    monkeypatch.setattr(root, "_why_unusable", unusable)
    with pytest.raises(SpoolAccessError, match="Set spool_directory or CWSINK_SPOOL_DIRECTORY to a writable"):
        root.choose_root(None, {})
    assert tried == ["/var/lib/cwsink", f"/var/tmp/cwsink-{os.geteuid()}"]
