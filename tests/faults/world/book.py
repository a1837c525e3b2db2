"""What a member was told about each of its lines, in a file that outlives it.

The file is mapped, so neither a limit on files nor a full disk keeps a member from writing into it, and what it wrote
before a SIGKILL stays. It also has the member's pid and how far it is, and the order to end.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path
from typing import Final

NOTHING: Final = 0
ISSUED: Final = 1  # it logs the line now, or was killed while it did
TAKEN: Final = 2
REFUSED: Final = 3
REFUSED_LIMITED: Final = 4  # while it may not make files larger

BEGUN: Final = 1  # it has logged its first line
STAYING: Final = 2  # it has done all its acts
ENDING: Final = 3

_HEAD: Final = struct.Struct("<BBq")
_STATE_AT: Final = 1
_PID_AT: Final = 2


class Book:
    """One member's file."""

    def __init__(self, path: Path, lines: int | None = None) -> None:
        """Open it; make it first if `lines` says for how many."""
        if lines is not None:
            path.write_bytes(bytes(_HEAD.size + lines))
            path.chmod(0o666)
        with path.open("r+b") as file:
            self._bytes = mmap.mmap(file.fileno(), 0)

    def note(self, number: int, told: int) -> None:
        """Note what became of a line."""
        self._bytes[_HEAD.size + number] = told

    def told(self) -> bytes:
        """Return what became of each line."""
        return self._bytes[_HEAD.size :]

    @property
    def is_told_to_end(self) -> bool:
        """Tell whether the member has to end."""
        return bool(self._bytes[0])

    def tell_to_end(self) -> None:
        """Have the member end, once it has done all its acts."""
        self._bytes[0] = 1

    @property
    def state(self) -> int:
        """How far the member is."""
        return self._bytes[_STATE_AT]

    def reach(self, state: int) -> None:
        """Note how far the member is."""
        self._bytes[_STATE_AT] = state

    @property
    def pid(self) -> int:
        """The process that logs; 0 if it has not begun."""
        return int(struct.unpack_from("<q", self._bytes, _PID_AT)[0])

    def begin(self, pid: int) -> None:
        """Note the process that logs."""
        struct.pack_into("<q", self._bytes, _PID_AT, pid)
