"""Questions about the disk: where the spools are, whose they are, how much room there is, and what survives."""

from __future__ import annotations

import os
from collections.abc import Iterator

from cwsink import words
from cwsink.config import SinkConfig
from cwsink.doctor import machine
from cwsink.doctor.finding import Finding, ok, unknown, warning, wrong
from cwsink.doctor.patient import Patient
from cwsink.spool import disk
from cwsink.spool.budget import used_bytes
from cwsink.spool.directory import filesystem_at, is_unsafe
from cwsink.spool.root import ROOT_VARIABLE, why_untrusted, why_unusable
from cwsink.spool.stats import look

_IN_MEMORY = frozenset(("tmpfs", "ramfs"))
_OF_CONTAINER = frozenset(("overlay", "aufs"))
_MIB = 1024 * 1024
# A new spool's directories, locks and counts, and files that are there for a moment only.
_FILES_OF_A_SPOOL = 32
_BYTES_OF_A_SPOOL = _FILES_OF_A_SPOOL * 4096


def root(patient: Patient) -> Iterator[Finding]:
    """Is the directory of the spools there, and may it be used?"""
    path = patient.root
    if path is None or patient.root_error:
        yield wrong("root", patient.root_error, f"{ROOT_VARIABLE}=/absolute/path of a local directory")
        return
    there = machine.nearest(path)
    is_named = bool(patient.env.get(ROOT_VARIABLE) or (patient.config and patient.config.spool_directory))
    if there != path:
        if not is_named or not why_unusable(path):  # a worker tries the other default ones, too
            yield ok("root", f"{path} is made by the first record")
        else:
            yield wrong("root", f"{path} is not there, and user {os.geteuid()} cannot make it", _mkdir(path))
    elif why := machine.disk_trouble(path):
        yield wrong("root", f"no file can be made in {path}, and records are lost: {why}", "See to the disk: `dmesg`.")
    elif why := why_untrusted(path):
        yield (wrong if is_named else warning)("root", f"{path} cannot be used: {why}", _mkdir(path))
    else:
        yield ok("root", f"{path}, of user {machine.user_name(machine.owner_of(path))}")
    for spool, error in patient.unreadable.items():
        # SpoolAccessError is a PermissionError, whatever has caused it. Any other error says itself what to do.
        is_closed = isinstance(error.__cause__ or error, PermissionError)
        advice = "Run as its owner, or as root to look." if is_closed else ""
        yield wrong("root", f"{spool} cannot be opened: {error}", advice)


def _mkdir(path: str) -> str:
    return f"sudo install -d -m 0700 -o {os.geteuid()} {path}, or {ROOT_VARIABLE}=another directory"


def survival(patient: Patient) -> Iterator[Finding]:
    """Does what waits there survive a restart?"""
    if patient.root is None:
        return
    path = machine.nearest(patient.root)
    kind = filesystem_at(path)
    at = f"{patient.root} is on {kind or 'a file system that cannot be told'}"
    if is_unsafe(kind):
        yield wrong("disk", f"{at}, which several hosts may share: no worker starts there", f"{ROOT_VARIABLE}=/local")
    elif kind in _IN_MEMORY:
        yield warning("disk", f"{at}: what waits there is lost at a restart of the host", "Use a real disk.")
    elif kind in _OF_CONTAINER:
        yield warning("disk", f"{at}: what waits there goes with the container", f"Mount a volume at {patient.root}.")
    elif kind and f"{patient.root}/".startswith("/tmp/"):
        yield warning("disk", f"{at}, and many systems empty /tmp at a restart", f"{ROOT_VARIABLE}=/var/lib/cwsink")
    elif kind:
        yield ok("disk", f"{at}, and survives a restart")
    else:
        yield unknown("disk", at)


def room(patient: Patient) -> Iterator[Finding]:
    """Is there room for all that the spools may hold?"""
    if patient.root is None:
        return
    there = machine.nearest(patient.root)
    free, free_files = disk.free_bytes(there), disk.free_files(there)
    if free is None:
        yield unknown("room", "the disk does not say how much is free")
        return
    needed = 0
    for case in patient.cases:
        used = used_bytes(case.directory.ring) if case.directory else 0
        needed += max(0, case.config.spool_max_bytes - used)
    configs = [case.config for case in patient.cases] or [patient.config or SinkConfig()]
    segment = max(config.ring_segment_bytes for config in configs)
    shown = f"{free / _MIB:,.0f} MiB free"
    if free_files is not None and free_files < _FILES_OF_A_SPOOL:
        yield (warning if free_files else wrong)(
            "room",
            f"{shown}, but {free_files or 'no'} more files can be made: the inodes are used up. Records may be lost",
            f"Remove files: `df -i {words.quoted(there)}` counts them. Or a file system with more inodes.",
        )
    elif free < segment:
        yield _little_room(patient, f"{shown}, and a segment takes {words.size(segment)}", free)
    elif (most := disk.most_file_bytes()) is not None and most < segment:
        yield wrong("room", f"this user's files may have {most:,} bytes (ulimit -f)", "ulimit -f unlimited")
    elif free < needed:
        yield warning(
            "room",
            f"{shown}, and the spools may take {needed / _MIB:,.0f} MiB more",
            f"Free some space, or CWSINK_SPOOL_MAX_BYTES={max(1, free // 2 // _MIB)}MiB",
        )
    else:
        yield ok("room", f"{shown}; the spools may take {needed / _MIB:,.0f} MiB more")


def _little_room(patient: Patient, seen: str, free: int) -> Finding:
    """There is no room for another whole segment. Records use what there is, so that alone costs none."""
    with disk.at_once():  # the question about delivery tells what cannot be read
        spools = [look(case.directory) for case in patient.cases if case.directory]
    if any(spool.is_losing and not spool.lost_is_over for spool in spools):
        return wrong("room", f"{seen}. Records are lost", "Free some space.")
    if not spools and free < _BYTES_OF_A_SPOOL:
        return wrong("room", f"{seen}: nothing can be logged there", "Free some space.")
    return warning("room", f"{seen}: what waits soon fills the disk", "Free some space, or use a larger disk.")


def users(patient: Patient) -> Iterator[Finding]:
    """Do the workers run as the user whose spools these are?"""
    me, named = os.geteuid(), _user_of(patient)
    if named is not None:
        uid = machine.uid_of(named)
        if uid is None:
            yield wrong("user", f"the command is to run as {named}, and there is no such user here")
            return
        if uid != me:
            yield warning(
                "user",
                f"the command runs as {machine.user_name(uid)}, and this as {machine.user_name(me)}: "
                "root, disk and credentials may differ",
                f"sudo -u {named} cwsink doctor -- ...",
            )
            return
    owners = {machine.owner_of(case.directory.path) for case in patient.cases if case.directory} - {me}
    if owners:
        shown = ", ".join(map(machine.user_name, sorted(owners)))
        yield warning(
            "user", f"this is {machine.user_name(me)}, and spools are of {shown}", "Run it as the workers' user."
        )
    elif named is None and me == 0 and patient.started and (file := machine.options_file(patient.started)):
        yield unknown("user", f"this is {machine.user_name(me)}; the workers' user may be in {file}")
    else:
        yield ok("user", machine.user_name(me))


def _user_of(patient: Patient) -> str | None:
    """Return the user whom the command's workers run as, if it says so."""
    if (started := patient.started) is None:
        return None
    own = {"gunicorn": ("--user", "-u"), "uwsgi": ("--uid",), "pyuwsgi": ("--uid",), "celery": ("--uid",)}
    user = started.option(*names) if (names := own.get(started.program)) else None
    return (user or started.user or "").partition(":")[0] or None
