"""The spool directory: where it lies, what is in it, whether it may be used.

A spool is `<root>/<group.stream>.<hash>/`, one for each target. Its files, and who writes each: `cwsink.spool`.
Which directory is the root, and whether it may be trusted: cwsink.spool.root.
"""

from __future__ import annotations

import errno
import os
import re
import stat
import sys
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Annotated, Final
from zlib import crc32

import msgspec

from cwsink import host, target, words
from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.errors import SpoolAccessError, SpoolError, SpoolFormatError, UnsafeFilesystemError
from cwsink.interruption import is_interruption, suppress
from cwsink.printable import escape_in_json
from cwsink.spool import disk, files, host_names, open_directory
from cwsink.spool.record import Count
from cwsink.spool.repair import put_in_order
from cwsink.spool.root import ROOT_VARIABLE, choose_root, directories, make_directory, strangers
from cwsink.target import Target

FORMAT_VERSION: Final = 1
_MOST_FORMAT_BYTES: Final = 64 * 1024
# So often, and with such pauses, a process that starts tries to read it.
_TRIES: Final = 3
_AGAIN_SECONDS: Final = 0.01
_ANOTHER_PATH: Final = "Nothing was logged into it yet, or the spools are at another PATH."

# On these file systems an append, a flock and a `link` may concern several kernels, which do not know of each other.
_UNSAFE_FILESYSTEMS: Final = frozenset(
    "nfs nfs4 cifs smb smb3 smbfs ncpfs afs coda 9p virtiofs vboxsf vmhgfs prl_fs ceph glusterfs lustre gpfs ocfs2 "
    "gfs2 beegfs orangefs pvfs2 fuse fuseblk".split()
)

_OCTAL_ESCAPE: Final = re.compile(r"\\([0-7]{3})")
_NOT_PRINTABLE: Final = re.compile(r"[^ -~]")


class SpoolFormat(Target, frozen=True, kw_only=True):
    """The FORMAT file: what `cwsink replay` needs to know to send the spool. It is written once."""

    format: int
    spool_id: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    spool_max_bytes: Count
    host: str
    created: str


class SpoolDirectory:
    """A spool: its paths and its FORMAT. It holds no descriptor."""

    def __init__(self, path: str, spool_format: SpoolFormat) -> None:
        self.path = path
        self.root = os.path.dirname(path)
        self.format = spool_format
        self.ring = f"{path}/ring"
        self.history = f"{path}/history"
        self.cursor = f"{path}/cursor"
        self.evictions = f"{path}/evictions"
        self.leader_lock = f"{path}/leader.lock"
        self.leader_state = f"{path}/leader.json"
        self.leader_host = f"{path}/leader.host"
        self.leader_next = f"{path}/leader.next"
        self.attached_lock = f"{path}/attached.lock"
        self.budget_lock = f"{path}/budget.lock"
        self.dead_letters = f"{path}/dead_letters.jsonl"
        self.letters = f"{path}/letters.json"
        self.sending = f"{path}/settings.json"
        self.capacity = f"{path}/capacity.json"
        self.refusals = f"{path}/refusals"
        self.told = f"{path}/told"
        self.hurry = f"{path}/hurry"

    def is_present(self) -> bool:
        """Tell whether the directory is still this spool: nobody has removed or replaced it.

        What the disk cannot read is there, and we know what it said. So a leader goes on.
        """
        try:
            return _read_format(self.path) == self.format
        except OSError as error:  # SpoolError is one too
            if is_interruption(error):
                raise
            return disk.is_unreadable(error)

    def keep(self) -> None:
        """Write FORMAT anew if somebody has removed it: without it no flusher finds the spool. Raises OSError."""
        if not files.exists(f"{self.path}/FORMAT"):
            _write_format(self.path, self.format)


def open_for(
    config: SinkConfig, env: Mapping[str, str] | None = None, resolved: Target | None = None
) -> SpoolDirectory:
    """Open the spool of `config`'s target; make it if it is not there.

    Args:
        config: the settings.
        env: the environment; that of this process by default.
        resolved: the target, if it is known: a spool that was removed is made anew in the middle of an append, which
            must not ask a metadata service.

    Raises:
        ConfigError: the stream template cannot be resolved.
        SpoolError: see the subclasses; nothing was written.
    """
    env = os.environ if env is None else env

    def look_up(name: str) -> str | None:
        return host_names.look_up(choose_root(config.spool_directory, env), name, env)

    wanted = resolved or target.resolve(config, env, look_up)
    root = choose_root(config.spool_directory, env)  # made only now: a wrong name makes no directory
    spool_format = SpoolFormat(
        format=FORMAT_VERSION,
        spool_id=os.urandom(16).hex(),
        **wanted.settings(),
        spool_max_bytes=config.spool_max_bytes,
        host=host.name(),
        created=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    )
    return _create(f"{root}/{wanted.spool_name}", spool_format, config.allow_unsafe_filesystem)


def open_existing(path: str, *, read_only: bool = False) -> SpoolDirectory:
    """Open the spool at `path`. `read_only`: only to look at it, so it may be another user's (for root).

    Raises:
        SpoolError: there is no spool, it is not ours, or it is of a newer version.
    """
    path = os.path.abspath(path)
    status = _status_of(path)
    if read_only:
        open_directory.look_at(path, status.st_uid)
    else:
        _check_access(path, status, f"Run this as that user: {words.to_send(path)} sends what waits there.")
    try:
        found = _read_format(path)
        if not read_only:
            put_in_order(path)
        return SpoolDirectory(path, found)
    except FileNotFoundError as error:
        raise SpoolFormatError(f"{path} is not a spool: it has no FORMAT file.", path) from error
    except _DamagedFormatError as error:
        then = "the next worker that logs there with the settings of this spool writes it anew, and has them sent"
        raise SpoolFormatError(f"{error}. The records there are kept: {then}.", path) from error
    except SpoolError:
        raise
    except OSError as error:
        raise SpoolAccessError(f"cannot open the spool {path}: {error.strerror}.", path) from error


def find_spools(path: str | None = None, env: Mapping[str, str] | None = None) -> list[str]:
    """Return the spool at `path`, or the spools directly below it; without a path, those below a writer's root."""
    path = os.path.abspath(path) if path else choose_root(None, os.environ if env is None else env, make=False)
    if files.exists(f"{path}/FORMAT"):
        return [path]
    try:
        below = directories(path)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpoolAccessError(f"cannot look into {path}: {error.strerror}.", path) from error
    return [spool for spool in below if files.exists(f"{spool}/FORMAT")]


def expect_spools(path: str | None) -> None:
    """Raise SpoolAccessError if the path was probably mistyped: empty, not there, or with other files and no spool.

    In such a place nothing waits, and all would seem well. An empty directory may be a root in which nothing was logged
    yet. Without a path the root need not be there.
    """
    if path == "":  # of a variable that is not set, say
        raise SpoolAccessError(f"the path is empty. {_ANOTHER_PATH}", path)
    if path is None or find_spools(path):
        return
    try:
        found = strangers(path)
    except OSError:  # FileNotFoundError: `find_spools` has raised any other
        raise SpoolAccessError(f"{path} is not there. {_ANOTHER_PATH}", path) from None
    if found:
        what = f"{path} holds no spool, but {words.counted(len(found), 'other file')} such as {found[0]}. "
        raise SpoolAccessError(what + _ANOTHER_PATH, path)


def filesystem_of(path: str, mountinfo: str) -> str:
    """Return the type of the file system `path` lies on, from the text of /proc/self/mountinfo."""
    best, kind = "", ""
    for line in mountinfo.splitlines():
        before, _, after = line.partition(" - ")
        fields = before.split(" ")
        if len(fields) < 5 or not after:
            continue
        # The kernel writes spaces and the like in a mount point as octal escapes.
        mount = _OCTAL_ESCAPE.sub(lambda match: chr(int(match[1], 8)), fields[4])
        if (path == mount or path.startswith(mount.rstrip("/") + "/")) and len(mount) >= len(best):
            best, kind = mount, after.split(" ")[0]
    return kind


def _create(path: str, wanted: SpoolFormat, allow_unsafe: bool) -> SpoolDirectory:
    try:
        make_directory(path)
        remedy = "Run it as the same user, or give each user a spool_directory of its own."
        _check_access(path, _status_of(path), remedy)
        if not allow_unsafe:
            _check_filesystem(path)
        put_in_order(path)
        return SpoolDirectory(path, _adopt_or_write_format(path, wanted))
    except SpoolError:
        raise
    except OSError as error:
        if is_interruption(error):
            raise
        limit = disk.limit_of(error)
        remedy = "Raise it" if limit else f"Name a writable local directory (spool_directory or {ROOT_VARIABLE})"
        raise SpoolAccessError(
            f"cannot make the spool {path}: {error.strerror}{limit}. Nothing was written. {remedy}.", path
        ) from error


def _status_of(path: str) -> os.stat_result:
    """Return the status of a spool's directory. Raises SpoolAccessError."""
    try:
        status = files.seen(path)
    except OSError as error:
        if is_interruption(error):
            raise
        raise SpoolAccessError(f"cannot open the spool {path}: {error.strerror}.", path) from error
    if not stat.S_ISDIR(status.st_mode):
        raise SpoolAccessError(f"{path} is not a directory (a symbolic link is not followed).", path)
    return status


def _check_access(path: str, status: os.stat_result, remedy: str) -> None:
    """Say clearly why a spool is not to be used: what opens its files would only say that it is another user's.

    `remedy`: what to do about it, which is another thing for an application than for a command.

    Raises:
        SpoolAccessError: it is another user's, or others may write to it.
    """
    open_directory.work_on(path)
    if status.st_uid != os.geteuid():
        raise SpoolAccessError(
            f"the spool {path} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}. {remedy}",
            path,
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SpoolAccessError(
            f"the spool {path} can be written by other users (mode {stat.S_IMODE(status.st_mode):04o}). "
            f"If it is yours: chmod 0700 {path}",
            path,
        )


def filesystem_at(path: str) -> str:
    """Return the type of the file system that a path lies on; "" if that cannot be told here."""
    if sys.platform == "linux":
        mounts = "/proc/self/mountinfo"
        with suppress(OSError), open(mounts, encoding="utf-8", errors="surrogateescape") as file:
            return filesystem_of(os.path.realpath(path), file.read())
    return ""


def is_unsafe(kind: str) -> bool:
    """Tell whether a file system of this type may be one of several hosts."""
    return kind in _UNSAFE_FILESYSTEMS or kind.startswith("fuse.")


def _check_filesystem(path: str) -> None:
    if is_unsafe(kind := filesystem_at(path)):
        raise UnsafeFilesystemError(
            f"the spool {path} lies on a {kind} file system, where appends and locks of several processes are not "
            "safe. Nothing was written. Name a local directory (spool_directory), or set "
            "allow_unsafe_filesystem if you know that only one host uses it.",
            path,
        )


def _adopt_or_write_format(path: str, wanted: SpoolFormat) -> SpoolFormat:
    """Return the FORMAT that is there; write ours if there is none, or if it is damaged.

    The directory's name says which target the spool is for, so a damaged FORMAT costs nothing: it is renamed, and
    written anew. Only an intact FORMAT of another version is refused.
    """
    try:
        found = _read_format_soon(path)
        if found.spool_name == wanted.spool_name:
            return found
        damage = "it names another target"
    except FileNotFoundError:
        damage = ""
    except _DamagedFormatError as error:
        damage = str(error)
    if damage:
        aside = _set_aside(path)
        report("format", f"{path}/FORMAT is damaged ({damage}). It was kept as {aside} and written anew.")
    _write_format(path, wanted)
    return _read_format(path)


def _set_aside(path: str) -> str:
    """Rename FORMAT, unless another process was first. Returns its new name. Raises OSError."""
    aside = "FORMAT.damaged"
    with suppress(FileNotFoundError):
        try:
            files.rename(f"{path}/FORMAT", f"{path}/{aside}")
        except OSError as error:
            if isinstance(error, FileNotFoundError) or is_interruption(error):
                raise
            # A former one has the name: a directory takes no file's place, and no file that of a directory.
            aside += f".{os.urandom(4).hex()}"
            files.rename(f"{path}/FORMAT", f"{path}/{aside}")
    return aside


def _write_format(path: str, wanted: SpoolFormat) -> None:
    content = msgspec.to_builtins(wanted)
    data = msgspec.json.format(msgspec.json.encode({**content, "checksum": _checksum(content)}))
    files.create(f"{path}/FORMAT", data + b"\n", is_durable=True)


class _DamagedFormatError(SpoolFormatError):
    """FORMAT was changed since it was written: its checksum is wrong, or it cannot be parsed."""


def _checksum(content: Mapping[str, object]) -> str:
    """Return the CRC of the content as JSON: keys sorted, ": " and ", " between, all but ASCII as escapes."""
    text = msgspec.json.format(msgspec.json.encode(content, order="sorted"), indent=0).decode()
    return f"{crc32(_NOT_PRINTABLE.sub(escape_in_json, text).encode()):08x}"


def _read_format_soon(path: str) -> SpoolFormat:
    """Do as `_read_format`. What the disk cannot read in a few tries counts as damaged: no application waits longer."""
    for _ in range(_TRIES):
        with disk.suppress_unreadable():
            return _read_format(path)
        time.sleep(_AGAIN_SECONDS)
    raise _DamagedFormatError("the disk cannot read it", path)


def _read_format(path: str) -> SpoolFormat:
    """Read FORMAT. Raises FileNotFoundError, SpoolFormatError."""
    try:
        text, _ = files.read(f"{path}/FORMAT", _MOST_FORMAT_BYTES)
    except OSError as error:
        if is_interruption(error):
            raise
        kind = stat.S_IFMT(files.seen(f"{path}/FORMAT").st_mode)
        if error.errno == errno.EFBIG or kind not in (stat.S_IFREG, stat.S_IFLNK):
            raise _DamagedFormatError(f"{path}/FORMAT is no file, or far too long", path) from error
        raise
    return _parsed(path, text)


@lru_cache(maxsize=16)  # it is written once, and read at each look
def _parsed(path: str, text: bytes) -> SpoolFormat:
    """Return what the text of FORMAT says. Raises SpoolFormatError."""
    try:
        content = msgspec.json.decode(text)
        intact = content.pop("checksum") == _checksum(content)
        version = content["format"]
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise _DamagedFormatError(f"{path}/FORMAT cannot be read: {type(error).__name__}: {error}", path) from error
    if not intact:
        raise _DamagedFormatError(f"{path}/FORMAT does not match its checksum", path)
    if version != FORMAT_VERSION:
        raise SpoolFormatError(
            f"the spool {path} has format {version}; this cwsink reads format {FORMAT_VERSION}. Nothing was "
            "changed, and its records stay. Update cwsink, or name another spool_directory.",
            path,
        )
    try:
        return msgspec.convert(content, SpoolFormat)
    except msgspec.ValidationError as error:
        raise _DamagedFormatError(f"{path}/FORMAT cannot be read: {error}", path) from error
