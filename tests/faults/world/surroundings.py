"""What the members of a world see of the machine: a small disk of their own, and a Python that each user may run.

Both are mounts in a namespace of the members' own, so nothing of them is seen outside or left behind. That needs root
and unshare(1); without them there is one user, and no small disk.
"""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Final

OTHER_USER: Final = 54_321
_DISK_BYTES: Final = 1 << 20
_MS_BIND_RECURSIVE: Final = 4096 | 16384  # <linux/mount.h>
_REPOSITORY: Final = Path(__file__).parents[3]


@functools.cache
def mounting_command() -> list[str]:
    """Return the command that runs a program in a mount namespace of its own; empty if that is not possible here."""
    unshare = shutil.which("unshare")
    if sys.platform != "linux" or unshare is None:
        return []
    command = [unshare, "--mount", "--propagation", "private"]
    probe = subprocess.run([*command, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True)
    return command if probe.returncode == 0 else []


@functools.cache
def count_users() -> int:
    """Return 2 if a member may be another user, who can run what is tested; else 1."""
    if not mounting_command():
        return 1
    with tempfile.TemporaryDirectory() as place:
        code = f"import sys\nsys.path[:0] = {sys.path!r}\n"
        arranged = f"{code}from {__name__} import arrange, try_other_user\narrange({place!r})\ntry_other_user()\n"
        probe = subprocess.run([*mounting_command(), sys.executable, "-c", arranged], capture_output=True)
    return 2 if probe.returncode == 0 else 1


def arrange(place: str) -> None:
    """Mount the small disk, and make Python's and our own directories reachable for each user; see this process's."""
    disk = Path(place, "disk")
    disk.mkdir()
    _mount("tmpfs", disk, options=f"size={_DISK_BYTES},mode=755")
    kept = {Path(path) for path in (sys.base_prefix, sys.prefix, _REPOSITORY)}
    closed: dict[Path, list[Path]] = {}
    for path in kept:
        for above in reversed(path.parents):  # from the root on
            if not above.stat().st_mode & 1:
                closed.setdefault(above, []).append(path)
                break
    for number, (above, paths) in enumerate(closed.items()):
        held = [disk.parent / f"held{number}.{index}" for index in range(len(paths))]
        for path, elsewhere in zip(paths, held, strict=True):
            elsewhere.mkdir()
            _mount(str(path), elsewhere, _MS_BIND_RECURSIVE)
        _mount("tmpfs", above, options="mode=755")
        for path, elsewhere in zip(paths, held, strict=True):
            path.mkdir(parents=True, exist_ok=True)
            _mount(str(elsewhere), path, _MS_BIND_RECURSIVE)


def become(user: int) -> None:
    """Become another user for good; nothing happens if it is that one already."""
    if os.getresuid() == (user,) * 3:
        return
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)


def try_other_user() -> None:
    """Be the other user, and import in a new interpreter what a flusher needs. Raises CalledProcessError."""
    become(OTHER_USER)
    code = f"import sys; sys.path[:0] = {sys.path!r}; from cwsink.flusher import cloudwatch; cloudwatch.load()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd="/", env={"HOME": "/"})


def _mount(source: str, target: Path, flags: int = 0, options: str = "") -> None:
    kind = None if flags else b"tmpfs"
    if ctypes.CDLL(None, use_errno=True).mount(source.encode(), str(target).encode(), kind, flags, options.encode()):
        raise OSError(ctypes.get_errno(), f"cannot mount {target}")
