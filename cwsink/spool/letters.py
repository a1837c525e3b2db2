"""`letters.json`: how many dead letters were replayed, and how many somebody has thrown away, by reason.

The ledger counts each dead letter for ever. Without this file a letter that was replayed and delivered would still look
like one that is lost. `cwsink replay --dead-letters` writes it after it has taken letters out of their file. If it is
killed in between, some of them count as kept that are not.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Mapping
from typing import Final, Literal

import msgspec

from cwsink.spool import files
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Count

_MOST_BYTES: Final = 64 * 1024


class Done(msgspec.Struct):
    """The dead letters that are none any more, by reason."""

    replayed: dict[str, Count] = {}
    cleared: dict[str, Count] = {}

    def kept(self, dead: Mapping[str, int]) -> dict[str, int]:
        """Return how many are left of all that there ever were."""
        return dict(Counter(dead) - Counter(self.replayed) - Counter(self.cleared))


def read(directory: SpoolDirectory) -> Done:
    """Return the counts; zero if there is no such file, or if it is damaged."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return msgspec.json.decode(files.read(directory.letters, _MOST_BYTES)[0], type=Done)
    return Done()


def add(directory: SpoolDirectory, what: Literal["replayed", "cleared"], counts: Mapping[str, int]) -> None:
    """Count letters. Who calls this is alone in taking letters out. Raises OSError."""
    done = read(directory)
    setattr(done, what, dict(Counter(getattr(done, what)) + Counter(counts)))
    files.replace(directory.letters, msgspec.json.encode(done))
