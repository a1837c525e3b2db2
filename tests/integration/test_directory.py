"""The spool directory: ours alone, on a safe file system, and never a reason not to start."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
from msgspec.structs import asdict

from cwsink import diagnostics
from cwsink.config import SinkConfig
from cwsink.errors import ConfigError, SpoolAccessError, SpoolFormatError, UnsafeFilesystemError
from cwsink.frontends.writer import Writer
from cwsink.spool import directory, flusher_lock
from cwsink.spool import root as spool_root
from cwsink.spool.directory import SpoolDirectory, filesystem_of, find_spools, open_existing, open_for
from tests.harness.support import quick_config

CONFIG = quick_config(flusher="external")


@pytest.fixture
def spool() -> SpoolDirectory:
    """A spool that was made just now."""
    return open_for(CONFIG)


@pytest.fixture
def no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of files need not reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda fd: None)


@pytest.fixture
def umask() -> Iterator[Any]:
    """Sets the process's umask for a test."""
    before = os.umask(0o022)
    os.umask(before)
    yield os.umask
    os.umask(before)


def mode_of(path: str | Path) -> int:
    return stat.S_IMODE(os.lstat(path).st_mode)


def sealed(content: dict[str, Any]) -> str:
    """FORMAT's text for this content, with the checksum that belongs to it."""
    checksum = f"{crc32(json.dumps(content, sort_keys=True).encode()):08x}"
    return json.dumps({**content, "checksum": checksum}, indent=2) + "\n"


def content_of(spool: SpoolDirectory) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(spool.path, "FORMAT").read_text())
    del content["checksum"]
    return content


def everything_below(path: str) -> dict[str, bytes | None]:
    return {str(each): each.read_bytes() if each.is_file() else None for each in Path(path).rglob("*")}


@pytest.mark.parametrize("mask", [0o000, 0o022, 0o077, 0o177, 0o007, 0o277, 0o777])
def test_directories_are_0700_and_files_0600_whatever_the_umask(mask: int, umask: Any, tmp_path: Path) -> None:
    """Nobody else reads the logs, and we ourselves are never kept out."""
    umask(mask)
    writer = Writer(SinkConfig(**{**asdict(CONFIG), "spool_directory": str(tmp_path / "made" / "for" / "it")}))
    assert writer.append("x")
    assert not writer.append("")
    writer.close()
    flusher_lock.FlusherLock(writer.directory.root).close()
    paths = [writer.directory.root, *everything_below(writer.directory.root)]
    assert len(paths) >= 10
    assert mode_of(tmp_path / "made") & 0o700 == 0o700
    for path in paths:
        assert mode_of(path) == (0o700 if os.path.isdir(path) else 0o600), path


def test_a_spool_is_found_again(spool: SpoolDirectory) -> None:
    """The second process, and the restart, open what the first one made: same path, same id."""
    again = open_for(CONFIG)
    assert (again.path, again.format) == (spool.path, spool.format)
    assert open_existing(spool.path).format == spool.format
    assert spool.is_present()


def test_format_holds_what_a_replay_needs_and_no_secret(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Target, region, endpoint and host; nothing of the credentials in the environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cr3t")
    other = open_for(quick_config("http://127.0.0.1:9", log_stream_name="{hostname}/{date}"))
    text = Path(other.path, "FORMAT").read_text()
    assert "s3cr3t" not in text
    content = content_of(other)
    assert content["log_group_name"] == "/test/group"
    assert content["log_stream_name"] == f"{socket.gethostname()}/{{date}}"
    assert (content["region"], content["endpoint_url"]) == ("us-east-1", "http://127.0.0.1:9")
    assert (content["format"], content["host"]) == (1, socket.gethostname())
    assert text == sealed(content)


def test_a_spool_belongs_to_one_target() -> None:
    """Another group, stream, region or endpoint is another directory."""
    changes = [{}, {"log_group_name": "/other"}, {"log_stream_name": "other"}, {"region": "eu-west-1"}]
    paths = {open_for(quick_config(**change)).path for change in changes}
    paths.add(open_for(quick_config("http://127.0.0.1:9")).path)
    assert len(paths) == 5


def test_other_settings_do_not_make_another_spool(spool: SpoolDirectory) -> None:
    """A changed batch size or budget finds the same records, and FORMAT stays as it was written."""
    again = open_for(quick_config(batch_size=5, spool_max_bytes="1MiB", create_log_group=False))
    assert (again.path, again.format) == (spool.path, spool.format)


def test_a_directory_of_another_user_is_refused(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both users are named, and nothing is written."""
    before = everything_below(spool.path)
    owner = os.lstat(spool.path).st_uid
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    for attempt in (lambda: open_for(CONFIG), lambda: open_existing(spool.path)):
        with pytest.raises(SpoolAccessError, match=f"belongs to user {owner}.*runs as user {owner + 1}") as raised:
            attempt()
        assert raised.value.path == spool.path
    assert open_existing(spool.path, read_only=True).format == spool.format
    monkeypatch.undo()
    assert everything_below(spool.path) == before


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o770, 0o777])
def test_a_directory_that_others_can_write_is_refused(spool: SpoolDirectory, mode: int) -> None:
    """The error gives the mode and the command that mends it."""
    os.chmod(spool.path, mode)
    with pytest.raises(SpoolAccessError, match=f"mode {mode:04o}.*chmod 0700"):
        open_for(CONFIG)
    os.chmod(spool.path, 0o700)
    assert open_for(CONFIG).format == spool.format


def test_a_directory_that_others_can_only_read_is_accepted(spool: SpoolDirectory) -> None:
    """An administrator may have opened it for reading."""
    os.chmod(spool.path, 0o750)
    assert open_for(CONFIG).format == spool.format


def test_a_symbolic_link_in_the_spools_place_is_refused(spool: SpoolDirectory, tmp_path: Path) -> None:
    """Nobody makes us write somewhere else."""
    elsewhere = tmp_path / "elsewhere"
    os.rename(spool.path, elsewhere)
    os.symlink(elsewhere, spool.path)
    before = everything_below(str(elsewhere))
    with pytest.raises(SpoolAccessError, match="symbolic link is not followed"):
        open_for(CONFIG)
    assert everything_below(str(elsewhere)) == before


def test_a_symbolic_link_in_formats_place_is_refused(spool: SpoolDirectory, tmp_path: Path) -> None:
    """It is neither read nor replaced."""
    target = tmp_path / "target"
    os.rename(f"{spool.path}/FORMAT", target)
    os.symlink(target, f"{spool.path}/FORMAT")
    with pytest.raises(SpoolAccessError):
        open_for(CONFIG)
    assert os.path.islink(f"{spool.path}/FORMAT")


def test_a_file_in_the_spools_place_is_refused(spool: SpoolDirectory) -> None:
    """It is not ours to remove."""
    os.rename(spool.path, f"{spool.path}.away")
    Path(spool.path).write_text("a file")
    with pytest.raises(SpoolAccessError, match="not a directory"):
        open_for(CONFIG)
    assert Path(spool.path).read_text() == "a file"
    os.unlink(spool.path)


@pytest.mark.parametrize("below", ["", "/spools", "/a/b"])
def test_a_root_that_cannot_be_made_is_refused_with_a_way_out(below: str, tmp_path: Path) -> None:
    """The configured place is not silently swapped for another: where, why, and what to set."""
    file = tmp_path / "file"
    file.write_text("a file")
    with pytest.raises(SpoolAccessError) as raised:
        open_for(quick_config(spool_directory=f"{file}{below}"))
    for part in (f"{file}{below}", "Nothing was written", "spool_directory", "CWSINK_SPOOL_DIRECTORY"):
        assert part in str(raised.value)


def test_a_root_that_is_not_writable_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the test runs as root, to whom everything is writable."""
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(SpoolAccessError, match=r"permission denied.*Make it writable for user"):
        open_for(quick_config(spool_directory=str(tmp_path)))


MOUNTINFO = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
23 22 0:21 / /proc rw - proc proc rw
30 22 0:40 / /mnt/nfs rw,relatime shared:9 master:2 - nfs4 server:/export rw
31 30 0:41 / /mnt/nfs/local rw - xfs /dev/sdb rw
32 22 0:42 / /mnt/with\\040space rw - fuse.sshfs x rw
33 22 0:43 / /mnt/back\\134slash rw - cifs x rw
34 22 0:44 / /mnt/\u0434\u0430\u043d\u043d\u044b\u0435 rw - nfs x rw
35 22 0:45 / /mnt/n\\303 rw - 9p x rw
36 22 0:46 / /over rw - nfs x rw
37 36 0:47 / /over rw - tmpfs x rw
broken line
38 22 0:48 / /mnt/half
39 1 8:1 /sub / rw - ext4 /dev/sda1 rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "ext4"),
        ("/var/lib/cwsink", "ext4"),
        ("/mnt/nfs", "nfs4"),
        ("/mnt/nfs/spool", "nfs4"),
        ("/mnt/nfsx", "ext4"),
        ("/mnt/nfs/local/spool", "xfs"),
        ("/mnt/with space/x", "fuse.sshfs"),
        ("/mnt/back\\slash/x", "cifs"),
        ("/mnt/\u0434\u0430\u043d\u043d\u044b\u0435/x", "nfs"),
        ("/mnt/n\u00c3/x", "9p"),
        ("/over/x", "tmpfs"),
        ("/mnt/half/x", "ext4"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(path: str, kind: str) -> None:
    """Names with spaces and of any script, a mount within another, a mount over another; broken lines are passed."""
    assert filesystem_of(path, MOUNTINFO) == kind


def test_without_any_mount_the_file_system_is_unknown() -> None:
    """An empty or foreign text names none, and none is not refused."""
    assert filesystem_of("/x", "") == ""
    assert filesystem_of("/x", "nonsense - nonsense\n") == ""


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse", "fuseblk", "fuse.sshfs"])
def test_a_network_or_fuse_file_system_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error names the file system and both ways out; nothing is left in the directory."""
    monkeypatch.setattr(directory, "filesystem_of", lambda path, mountinfo: kind)
    monkeypatch.setattr(directory.sys, "platform", "linux")
    with pytest.raises(UnsafeFilesystemError, match=f"on a {kind} file system") as raised:
        open_for(CONFIG)
    assert "allow_unsafe_filesystem" in str(raised.value)
    assert everything_below(raised.value.path) == {}
    allowed = open_for(quick_config(allow_unsafe_filesystem=True))
    assert allowed.path == raised.value.path


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "zfs", "overlay", "tmpfs", "fusectl", ""])
def test_a_local_file_system_is_accepted(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that cannot be told."""
    monkeypatch.setattr(directory, "filesystem_of", lambda path, mountinfo: kind)
    assert open_for(CONFIG).is_present()


def test_a_spool_of_a_newer_version_is_refused_and_left_alone(spool: SpoolDirectory) -> None:
    """Intact, but of a format we do not know: both numbers, what becomes of the records, what to do."""
    content = {**content_of(spool), "format": 2, "something": {"new": True}}
    Path(spool.path, "FORMAT").write_text(sealed(content))
    before = everything_below(spool.path)
    for attempt in (lambda: open_for(CONFIG), lambda: open_existing(spool.path)):
        with pytest.raises(SpoolFormatError) as raised:
            attempt()
        for part in ("format 2", "reads format 1", "Nothing was changed", "its records stay", "Update cwsink"):
            assert part in str(raised.value)
    assert everything_below(spool.path) == before
    assert not spool.is_present()


def test_a_field_that_a_newer_version_added_is_ignored(spool: SpoolDirectory) -> None:
    """The same format with more in it is read as far as it is known."""
    Path(spool.path, "FORMAT").write_text(sealed({**content_of(spool), "something": "new"}))
    assert open_for(CONFIG).format == spool.format


@pytest.mark.usefixtures("no_fsync")
def test_a_format_flipped_at_any_byte_never_stops_a_start(spool: SpoolDirectory) -> None:
    """Every byte, three ways: it still says the same, or it is kept aside and written anew. Invariant 7."""
    path = Path(spool.path, "FORMAT")
    intact = path.read_bytes()
    for index in range(len(intact)):
        for mask in (0x01, 0x20, 0xFF):
            damaged = bytearray(intact)
            damaged[index] ^= mask
            path.write_bytes(damaged)
            opened = open_for(CONFIG)
            assert opened.format.log_group_name == spool.format.log_group_name
            assert opened.format.log_stream_name == spool.format.log_stream_name
            if opened.format != spool.format:
                assert Path(spool.path, "FORMAT.damaged").read_bytes() == damaged
            assert open_existing(spool.path).format == opened.format


@pytest.mark.usefixtures("no_fsync")
def test_a_format_cut_at_any_byte_never_stops_a_start(spool: SpoolDirectory) -> None:
    """A host that lost power while FORMAT was on its way. Invariant 7."""
    path = Path(spool.path, "FORMAT")
    intact = path.read_bytes()
    for cut in range(len(intact)):
        path.write_bytes(intact[:cut])
        assert open_for(CONFIG).is_present()


@pytest.mark.parametrize(
    "text",
    [
        "[" * 60_000,
        "null",
        "[]",
        '"text"',
        "1",
        "{}",
        '{"checksum": 1}',
        "\0" * 100,
        "x" * 200_000,
        sealed({"format": 1}),
    ],
    ids=lambda text: text[:12],
)
def test_a_format_that_is_something_else_never_stops_a_start(spool: SpoolDirectory, text: str) -> None:
    """Whatever JSON or noise it is, also with a checksum that is right."""
    Path(spool.path, "FORMAT").write_text(text)
    opened = open_for(CONFIG)
    assert opened.format.log_group_name == "/test/group"
    assert Path(spool.path, "FORMAT.damaged").read_text() == text


@pytest.mark.parametrize(
    ("field", "value"),
    [("endpoint_url", "http://elsewhere"), ("region", "eu-central-1"), ("role_arn", "arn:aws:iam::1:role/other")],
)
def test_a_format_that_names_another_target_is_not_believed(spool: SpoolDirectory, field: str, value: str) -> None:
    """Its checksum is right, but the directory's name says where the records go, and whose they are."""
    Path(spool.path, "FORMAT").write_text(sealed({**content_of(spool), field: value}))
    assert getattr(open_for(CONFIG).format, field) == getattr(spool.format, field)
    assert value in Path(spool.path, "FORMAT.damaged").read_text()


def test_damage_is_told_once(spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line that says what was damaged and where it was kept."""
    lines: list[str] = []
    monkeypatch.setattr(diagnostics, "_subscribers", [lambda key, message: lines.append(message)])
    Path(spool.path, "FORMAT").write_text("damaged")
    open_for(CONFIG)
    open_for(CONFIG)
    (line,) = lines
    assert "FORMAT.damaged" in line
    assert spool.path in line


def test_a_damaged_spool_that_is_only_looked_at_is_not_repaired(spool: SpoolDirectory) -> None:
    """`open_existing` does not know the target, so it leaves FORMAT for who does."""
    Path(spool.path, "FORMAT").write_text("damaged")
    with pytest.raises(SpoolFormatError):
        open_existing(spool.path)
    assert Path(spool.path, "FORMAT").read_text() == "damaged"
    assert not spool.is_present()


def test_two_processes_that_find_the_same_damage_both_start(
    spool: SpoolDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one has put FORMAT aside between our look and our own repair."""
    path = Path(spool.path, "FORMAT")
    path.write_text("damaged")
    replace = os.replace
    calls: list[str] = []

    def other_first(source: str, target: str, **more: Any) -> None:
        calls.append(source)
        replace(source, f"{target}.by-the-other", **more)
        replace(source, target, **more)

    monkeypatch.setattr(os, "replace", other_first)
    assert open_for(CONFIG).is_present()
    assert calls == [path.name]


def test_two_processes_that_make_a_spool_agree_on_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    """The FORMAT that was linked first counts for both, and no temporary file is left."""
    link = os.link
    others: list[SpoolDirectory] = []

    def other_first(source: str, target: str, **more: Any) -> None:
        monkeypatch.setattr(os, "link", link)
        others.append(open_for(CONFIG))
        link(source, target, **more)

    monkeypatch.setattr(os, "link", other_first)
    spool = open_for(CONFIG)
    assert spool.format == others[0].format
    assert sorted(os.listdir(spool.path)) == ["FORMAT", "ring"]


def test_a_spool_that_was_removed_or_replaced_is_noticed(spool: SpoolDirectory) -> None:
    """`is_present` is about this spool, not about any of its name."""
    os.rename(spool.path, f"{spool.path}.away")
    assert not spool.is_present()
    other = open_for(CONFIG)
    assert other.path == spool.path
    assert other.is_present()
    assert not spool.is_present()


def test_what_is_no_spool_is_not_opened(tmp_path: Path) -> None:
    """Missing, without FORMAT, or a file: an error that names the path, and nothing is made."""
    with pytest.raises(SpoolAccessError, match="No such file"):
        open_existing(str(tmp_path / "missing"))
    (tmp_path / "empty").mkdir(0o700)
    with pytest.raises(SpoolFormatError, match="has no FORMAT file"):
        open_existing(str(tmp_path / "empty"))
    assert list((tmp_path / "empty").iterdir()) == []


def test_a_relative_directory_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Workers with other working directories would each have a spool of their own, by setting or by variable."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="relative"):
        quick_config(spool_directory="spools")
    monkeypatch.setenv("CWSINK_SPOOL_DIRECTORY", "spools")
    with pytest.raises(SpoolAccessError, match=r"CWSINK_SPOOL_DIRECTORY='spools' is relative"):
        open_for(CONFIG)
    assert list(tmp_path.iterdir()) == []


def test_a_stream_that_cannot_be_named_makes_no_directory(tmp_path: Path) -> None:
    """The template is resolved first."""
    with pytest.raises(ConfigError, match="STAGE"):
        open_for(quick_config(log_stream_name="{env:STAGE}"))
    assert list(tmp_path.iterdir()) == []


def chosen(env: dict[str, str], *, usable: set[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The default root that is chosen if only these can be used."""
    monkeypatch.setattr(spool_root, "_why_unusable", lambda root: None if root in usable else "read-only file system")
    return spool_root.choose_root(None, env)


def test_the_default_root_is_the_first_that_can_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """/var/lib/cwsink, then the state directory, then /var/tmp; XDG's own, or below HOME."""
    monkeypatch.setenv("HOME", "/home/u")
    last = f"/var/tmp/cwsink-{os.geteuid()}"
    system, home, xdg = "/var/lib/cwsink", "/home/u/.local/state/cwsink", "/x/cwsink"
    everything = {system, home, xdg, last}
    assert chosen({}, usable=everything, monkeypatch=monkeypatch) == system
    assert chosen({}, usable=everything - {system}, monkeypatch=monkeypatch) == home
    assert chosen({"XDG_STATE_HOME": "/x"}, usable=everything - {system}, monkeypatch=monkeypatch) == xdg
    assert chosen({"XDG_STATE_HOME": "x"}, usable=everything - {system}, monkeypatch=monkeypatch) == home
    assert chosen({}, usable={last}, monkeypatch=monkeypatch) == last
    with pytest.raises(SpoolAccessError) as raised:
        chosen({}, usable=set(), monkeypatch=monkeypatch)
    for part in (system, home, last, "read-only file system", "Set spool_directory or CWSINK_SPOOL_DIRECTORY"):
        assert part in str(raised.value)


def test_what_is_named_is_taken_or_refused_never_swapped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The setting beats the variable, which beats the defaults; `~` is the home directory."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    env = {"CWSINK_SPOOL_DIRECTORY": str(tmp_path / "env")}
    assert spool_root.choose_root(str(tmp_path / "set"), env) == str(tmp_path / "set")
    assert spool_root.choose_root(None, env) == str(tmp_path / "env")
    assert spool_root.choose_root("~/spools", env) == str(tmp_path / "home" / "spools")
    for made in ("set", "env", "home/spools"):
        assert mode_of(tmp_path / made) == 0o700


def test_looking_for_spools_makes_nothing(tmp_path: Path) -> None:
    """A root that is not there holds no spool, and is not made by asking."""
    env = {"CWSINK_SPOOL_DIRECTORY": str(tmp_path / "spools")}
    assert find_spools(env=env) == []
    assert find_spools(str(tmp_path / "other")) == []
    assert list(tmp_path.iterdir()) == []


def test_spools_are_found_by_their_root_or_themselves(tmp_path: Path) -> None:
    """A root gives all that lie in it, sorted; a spool gives itself; what is no spool is passed over."""
    one, two = open_for(CONFIG), open_for(quick_config(log_stream_name="other"))
    root = os.path.dirname(one.path)
    (Path(root) / "no-spool").mkdir()
    (Path(root) / "file").write_text("x")
    os.symlink(one.path, f"{root}/link")
    assert find_spools(root) == sorted([one.path, two.path])
    assert find_spools() == sorted([one.path, two.path])
    assert find_spools(one.path) == [one.path]
    Path(one.path, "FORMAT").write_text("damaged")
    assert find_spools(root) == sorted([one.path, two.path])
    with pytest.raises(SpoolAccessError, match="Not a directory"):
        find_spools(f"{root}/file")


def test_a_default_root_can_be_looked_into_without_being_chosen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a setting, `status` and `flush` look where a writer would have written."""
    monkeypatch.delenv("CWSINK_SPOOL_DIRECTORY")
    roots = [str(tmp_path / "missing"), str(tmp_path / "there")]
    monkeypatch.setattr(spool_root, "_default_roots", lambda env: iter(roots))
    (tmp_path / "there").mkdir()
    spool = open_for(SinkConfig(spool_directory=str(tmp_path / "there"), flusher="external"))
    assert find_spools(env={}) == [spool.path]
    assert not (tmp_path / "missing").exists()
