"""The spool directory: where it lies, what is in it, whether it may be used.

```text
<root>/<group.stream>.<hash>/          one per target, 0700
    FORMAT          JSON, never changed: layout version, spool id, target. No secret
    ring/           the segments
    cursor          committed offsets, epoch, ledger                 (a leader writes it)
    settings.json   how to send (cwsink.spool.sending)               (writers)
    capacity.json   how much it may hold (cwsink.spool.capacity)     (writers)
    refusals        totals of what was refused                       (writers, under an flock on it)
    evictions       totals of what was evicted                       (writers, under budget.lock)
    leader.lock     the lease                                        (filelock)
    leader.json     what the leader is doing                         (a leader)
    leader.host     which host leads (cwsink.spool.heartbeat)        (a leader)
    attached.lock   shared flock: a process that has appended lives  (every writer)
    budget.lock     flock of the one that evicts; never waited for   (writers)
    dead_letters.jsonl  records that can never be delivered          (a leader)
    hurry           touched by a process that waits for delivery     (writers)
<root>/flusher-<user>.lock, .next   the flusher that starts by itself (cwsink.spool.flusher_lock)
<root>/host-<user>.json              the host's name, if a stream's name asks for it (cwsink.spool.host_names)
```

The root is `spool_directory`, else $CWSINK_SPOOL_DIRECTORY, else the first usable of
/var/lib/cwsink, $XDG_STATE_HOME/cwsink or ~/.local/state/cwsink, /var/tmp/cwsink-<uid>.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import stat
import sys
import time
from collections.abc import Iterator, Mapping
from typing import Final
from zlib import crc32

import msgspec

from cwsink import host, target
from cwsink.config import SinkConfig
from cwsink.diagnostics import report
from cwsink.errors import SpoolAccessError, SpoolError, SpoolFormatError, UnsafeFilesystemError
from cwsink.spool import files, host_names
from cwsink.target import Target

FORMAT_VERSION: Final = 1
_MOST_FORMAT_BYTES: Final = 64 * 1024
DIRECTORY_MODE: Final = 0o700
ROOT_VARIABLE: Final = "CWSINK_SPOOL_DIRECTORY"

# On these file systems an append, a flock and a `link` may concern several kernels, which do not know of each other.
_UNSAFE_FILESYSTEMS: Final = frozenset(
    "nfs nfs4 cifs smb smb3 smbfs ncpfs afs 9p ceph glusterfs lustre gpfs ocfs2 gfs2 beegfs fuse fuseblk".split()
)

_OCTAL_ESCAPE: Final = re.compile(r"\\([0-7]{3})")


class SpoolFormat(Target, frozen=True, kw_only=True):
    """The FORMAT file: what `cwsink replay` needs to know to send the spool. It is written once."""

    format: int
    spool_id: str
    spool_max_bytes: int
    host: str
    created: str


class SpoolDirectory:
    """A spool: its paths and its FORMAT. It holds no descriptor."""

    def __init__(self, path: str, spool_format: SpoolFormat) -> None:
        self.path = path
        self.root = os.path.dirname(path)
        self.format = spool_format
        self.ring = f"{path}/ring"
        self.cursor = f"{path}/cursor"
        self.evictions = f"{path}/evictions"
        self.leader_lock = f"{path}/leader.lock"
        self.leader_state = f"{path}/leader.json"
        self.leader_host = f"{path}/leader.host"
        self.attached_lock = f"{path}/attached.lock"
        self.budget_lock = f"{path}/budget.lock"
        self.dead_letters = f"{path}/dead_letters.jsonl"
        self.sending = f"{path}/settings.json"
        self.capacity = f"{path}/capacity.json"
        self.refusals = f"{path}/refusals"
        self.hurry = f"{path}/hurry"

    def is_present(self) -> bool:
        """Tell whether the directory is still this spool: nobody has removed or replaced it."""
        try:
            return _read_format(self.path) == self.format
        except OSError:  # SpoolError is one too
            return False


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
    if not read_only:
        _check_access(path)
    try:
        return SpoolDirectory(path, _read_format(path))
    except FileNotFoundError as error:
        raise SpoolFormatError(f"{path} is not a spool: it has no FORMAT file.", path) from error
    except SpoolError:
        raise
    except OSError as error:
        raise SpoolAccessError(f"cannot open the spool {path}: {error.strerror}.", path) from error


def find_spools(path: str | None = None, env: Mapping[str, str] | None = None) -> list[str]:
    """Return the spool at `path`, or the spools directly below it; without a path, those below a writer's root."""
    path = os.path.abspath(path) if path else choose_root(None, os.environ if env is None else env, make=False)
    if os.path.lexists(f"{path}/FORMAT"):
        return [path]
    try:
        below = sorted(entry.path for entry in os.scandir(path) if entry.is_dir(follow_symlinks=False))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise SpoolAccessError(f"cannot look into {path}: {error.strerror}.", path) from error
    return [spool for spool in below if os.path.lexists(f"{spool}/FORMAT")]


def choose_root(configured: str | None, env: Mapping[str, str], *, make: bool = True) -> str:
    """Return the root: the directory that holds the spools. `make`: make it if it is not there.

    Raises:
        SpoolAccessError: the configured root cannot be used, or none of the default ones can.
    """
    named = configured or env.get(ROOT_VARIABLE)
    if named:
        root = os.path.expanduser(named)
        if not os.path.isabs(root):
            raise SpoolAccessError(
                f"{ROOT_VARIABLE}={named!r} is relative: workers with different working directories would each get "
                "a spool of their own. Nothing was written. Give an absolute path.",
                root,
            )
        root = os.path.abspath(root)
        if make and (reason := _why_unusable(root)):
            raise SpoolAccessError(
                f"the spool directory {root} cannot be used: {reason}. Nothing was written. Make it writable for "
                f"user {os.geteuid()}, or name another one (spool_directory or {ROOT_VARIABLE}).",
                root,
            )
        return root
    reasons = []
    for root in _default_roots(env):
        if not make:
            if os.path.isdir(root) and os.access(root, os.R_OK | os.X_OK):
                return root
        elif reason := _why_unusable(root):
            reasons.append(f"{root} ({reason})")
        else:
            return root
    if not make:
        return next(iter(_default_roots(env)))
    raise SpoolAccessError(
        f"no directory for the spool can be used: {'; '.join(reasons)}. Nothing was written. "
        f"Set spool_directory or {ROOT_VARIABLE} to a writable local directory.",
        "",
    )


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


def _default_roots(env: Mapping[str, str]) -> Iterator[str]:
    yield "/var/lib/cwsink"
    state = env.get("XDG_STATE_HOME")
    yield f"{state}/cwsink" if state and os.path.isabs(state) else os.path.expanduser("~/.local/state/cwsink")
    yield f"/var/tmp/cwsink-{os.geteuid()}"


def _why_unusable(root: str) -> str | None:
    try:
        _make_root(root)
        status = os.stat(root)
    except OSError as error:
        return f"{error.strerror}".lower()
    if status.st_mode & stat.S_IWOTH and not status.st_mode & stat.S_ISVTX:
        return "anyone may write to it"
    if not os.access(root, os.R_OK | os.W_OK | os.X_OK):
        return "permission denied"
    return None


def _make_root(path: str, mode: int = DIRECTORY_MODE) -> None:
    """Make a directory and what is missing above it. Its owner can use them whatever the umask is. Raises OSError."""
    if os.path.isdir(path):
        return
    _make_root(os.path.dirname(path), 0o777)
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, mode)
        os.chmod(path, stat.S_IMODE(os.stat(path).st_mode) | DIRECTORY_MODE)


def _create(path: str, wanted: SpoolFormat, allow_unsafe: bool) -> SpoolDirectory:
    try:
        _make_directory(path)
        _check_access(path)
        if not allow_unsafe:
            _check_filesystem(path)
        _make_directory(f"{path}/ring")
        return SpoolDirectory(path, _adopt_or_write_format(path, wanted))
    except SpoolError:
        raise
    except OSError as error:
        raise SpoolAccessError(
            f"cannot make the spool {path}: {error.strerror}. Nothing was written. Name a writable local directory "
            f"(spool_directory or {ROOT_VARIABLE}).",
            path,
        ) from error


def _make_directory(path: str) -> None:
    """Make a directory that only its owner may enter, if there is none. Raises OSError."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(path, DIRECTORY_MODE)
        os.chmod(path, DIRECTORY_MODE)  # under a umask such as 0177 even its owner could not enter


def _check_access(path: str) -> None:
    try:
        status = os.lstat(path)
    except OSError as error:
        raise SpoolAccessError(f"cannot open the spool {path}: {error.strerror}.", path) from error
    if not stat.S_ISDIR(status.st_mode):
        raise SpoolAccessError(f"{path} is not a directory (a symbolic link is not followed).", path)
    if status.st_uid != os.geteuid():
        raise SpoolAccessError(
            f"the spool {path} belongs to user {status.st_uid}, and this process runs as user {os.geteuid()}. "
            "Run it as the same user, or give each user a spool_directory of its own.",
            path,
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise SpoolAccessError(
            f"the spool {path} can be written by other users (mode {stat.S_IMODE(status.st_mode):04o}). "
            f"If it is yours: chmod 0700 {path}",
            path,
        )


def _check_filesystem(path: str) -> None:
    if sys.platform != "linux":
        return
    try:
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as file:
            kind = filesystem_of(os.path.realpath(path), file.read())
    except OSError:
        return
    if kind in _UNSAFE_FILESYSTEMS or kind.startswith("fuse."):
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
        found = _read_format(path)
        if (found.log_group_name, found.log_stream_name) == (wanted.log_group_name, wanted.log_stream_name):
            return found
        damage = "it names another target"
    except FileNotFoundError:
        damage = ""
    except _DamagedFormatError as error:
        damage = str(error)
    if damage:
        report("format", f"{path}/FORMAT is damaged ({damage}). It was kept as FORMAT.damaged and written anew.")
        with contextlib.suppress(FileNotFoundError):  # another process was first
            os.replace(f"{path}/FORMAT", f"{path}/FORMAT.damaged")
    _write_format(path, wanted)
    return _read_format(path)


def _write_format(path: str, wanted: SpoolFormat) -> None:
    temporary = f"{path}/FORMAT.{os.urandom(8).hex()}.tmp"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        with open(fd, "w", encoding="utf-8") as file:
            os.fchmod(fd, 0o600)  # under a umask such as 0777 nobody could read it later
            content = msgspec.to_builtins(wanted)
            json.dump({**content, "checksum": _checksum(content)}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):  # another process was first: its FORMAT counts
            os.link(temporary, f"{path}/FORMAT")
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)


class _DamagedFormatError(SpoolFormatError):
    """FORMAT was changed since it was written: its checksum is wrong, or it cannot be parsed."""


def _checksum(content: Mapping[str, object]) -> str:
    return f"{crc32(json.dumps(content, sort_keys=True).encode()):08x}"


def _read_format(path: str) -> SpoolFormat:
    """Read FORMAT. Raises FileNotFoundError, SpoolFormatError."""
    try:
        text, _ = files.read(f"{path}/FORMAT", _MOST_FORMAT_BYTES)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.EFBIG):
            raise _DamagedFormatError(f"{path}/FORMAT is no file, or far too long", path) from error
        raise
    try:
        content = json.loads(text)
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
