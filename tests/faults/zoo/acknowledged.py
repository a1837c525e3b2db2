"""What the programs of the zoo have been promised: ids noted after `append` or the sink's `write` had returned True.

A line "ID PID" is added with one `os.write` to an O_APPEND file, so it survives whatever happens to
the process that wrote it. A process killed between the append and the note leaves a record that
is delivered and was never promised; the other way round is a loss.
"""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

FILE_VARIABLE = "ZOO_ACKNOWLEDGED"
FLAVOUR_VARIABLE = "ZOO_FLAVOUR"
EARLY_VARIABLE = "ZOO_EARLY"


def message_of(id_: str) -> str:
    """Return the message with this id: 40 to 300 characters that are a function of it."""
    digest = hashlib.sha256(id_.encode()).hexdigest()
    return f"{id_} {(digest * 5)[: 40 + int(digest[:2], 16)]}"


def id_of(message: str) -> str:
    """Return the id in a delivered message, of fapilog (JSON) or plain; AssertionError if it was altered."""
    text: str = json.loads(message)["message"] if message.startswith("{") else message
    id_ = text.split(" ", 1)[0]
    assert text == message_of(id_), f"not what was logged: {message}"
    return id_


class Acknowledged:
    """The file; written by the programs, read by the test."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._path = path
        self._pid_of: dict[str, int] = {}
        self._read_to = 0

    def note(self, id_: str) -> None:
        """Note an id as acknowledged, by this process."""
        os.write(self._file, f"{id_} {os.getpid()}\n".encode())

    def by_id(self) -> dict[str, int]:
        """Return the process that noted each id, in order."""
        data = os.pread(self._file, os.path.getsize(self._path) - self._read_to, self._read_to)
        whole = data[: data.rfind(b"\n") + 1]
        self._read_to += len(whole)
        self._pid_of.update((id_, int(pid)) for id_, pid in map(str.split, whole.decode().splitlines()))
        return self._pid_of

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)
