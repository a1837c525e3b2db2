"""Words for people: counts, durations, sizes, levels, hints, and the command that sends what is in a spool.

Pure, but that a command is for the owner of the spool, whom it looks up.
"""

from __future__ import annotations

import os
import stat
import sys
from collections.abc import Collection, Mapping
from itertools import pairwise
from typing import Final

from cwsink.interruption import suppress
from cwsink.printable import printable

LEVELS: Final = {
    "TRACE": 5,
    "DEBUG": 10,
    "INFO": 20,
    "WARNING": 30,
    "WARN": 30,
    "ERROR": 40,
    "CRITICAL": 50,
    "FATAL": 50,
    "AUDIT": 60,  # 60 and 70 are fapilog's
    "SECURITY": 70,
}
"""The levels of `logging` and fapilog, and their numbers."""

_UNITS: Final = ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """Return "0.4 s", "12 s", "3 min 5 s", "2 h 5 min", "3 d 4 h"."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for (size, name), (smaller, smaller_name) in pairwise(_UNITS):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def size(count: int) -> str:
    """Return "12 B", "1.5 KiB", "256 MiB", "1.2 GiB"."""
    amount, unit = float(count), "B"
    for larger in ("KiB", "MiB", "GiB", "TiB"):
        if amount < 1023.95:
            break
        amount, unit = amount / 1024, larger
    return f"{amount:.0f} {unit}" if amount >= 100 or amount == int(amount) else f"{amount:.1f} {unit}"


def counted(count: int, noun: str) -> str:
    """Return "1 line", "1,234 lines"."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def records(count: int) -> str:
    """Return "1 record", "1,234 records"."""
    return counted(count, "record")


def each_counted(counts: Mapping[str, int]) -> str:
    """Return "1,234 expired, 2 oversize"."""
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def stay(count: int) -> str:
    """Return "1 record stays", "2 records stay"; "records may stay" if none was found where some may be."""
    return "records may stay" if not count else f"{records(count)} stay{'s' if count == 1 else ''}"


def on_damage(path: str) -> str:
    """Return what can be done about dead letters that are nothing but damage."""
    command = f"{as_owner(path)}cwsink replay --dead-letters --clear {quoted(path)}"
    return f"Nothing can send damage; `{command}` throws away what is kept of it for people to look at"


def target(log_group_name: str, log_stream_name: str) -> str:
    """Return the name of a spool: where its records are sent."""
    return printable(f"{log_group_name} → {log_stream_name}", one_line=True)


def quoted(path: str) -> str:
    """Return a path as a shell takes it. What a terminal cannot show is an escape, which bash, zsh and ksh know."""
    import shlex  # here, because a process that has no trouble never needs it

    if path.isprintable():
        return shlex.quote(path)
    name = path.encode(sys.getfilesystemencoding(), sys.getfilesystemencodeerrors())
    shown = (chr(byte) if 0x20 <= byte < 0x7F and byte not in b"'\\" else f"\\{byte:03o}" for byte in name)
    return f"$'{''.join(shown)}'"


def did_you_mean(word: str, known: Collection[str]) -> str:
    """Return " Did you mean status?", to be put behind a sentence; "" if nothing that is known is like the word."""
    import difflib  # here, because only a mistake needs it

    meant = difflib.get_close_matches(word.lower(), known, 1)
    return f" Did you mean {meant[0]}?" if meant else ""


def to_send(path: str) -> str:
    """Return the command that sends what is in a spool now, as all hints name it in a sentence."""
    return f"`{command_to_send(path)}`"


def command_to_send(path: str) -> str:
    """Return that command as it is typed."""
    return f"{as_owner(path)}cwsink flush --once {quoted(path)}"


def as_owner(path: str) -> str:
    """Return what is to be typed before a command that changes a spool: "sudo -u NAME " if it is another user's.

    A root that is another user's is sticky, or this user could have no spool in it. Those in it may be its own.
    """
    with suppress(OSError):
        status = os.stat(path)
        if status.st_uid != os.geteuid() and not status.st_mode & stat.S_ISVTX:
            return f"sudo {_become(status.st_uid)} "
    return ""


def _become(uid: int) -> str:
    import pwd  # here, because only another user's spool needs it

    with suppress(KeyError):
        return f"-u {quoted(pwd.getpwuid(uid).pw_name)}"
    return f"setpriv --reuid {uid} --clear-groups"  # sudo itself refuses a number without a name
