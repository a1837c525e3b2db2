"""What became of the dead letters: how many are still in their file, were dropped, were replayed, or thrown away.

The ledger counts each dead letter for ever, and says nothing of where it is. What is still there is counted in
`dead_letters.jsonl` and `.1` themselves (cwsink.flusher.dead_letter writes them), because their oldest letters go when
the file is full. The same file says how many were dropped.

`letters.json` counts those that were replayed, and those that somebody has thrown away, by reason. Without it a letter
that was replayed and delivered would still look like one that is lost. `cwsink replay --dead-letters` writes it after
it has taken letters out of their file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec

from cwsink.interruption import suppress
from cwsink.spool import files
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.record import Count

_MOST_BYTES: Final = 64 * 1024
# The leader keeps all dead letters below 8 MiB. There may be a little more, and what is far more is not ours.
_MOST_LETTER_BYTES: Final = 9 * 1024 * 1024
# We know six reasons. Somebody else may have written any number of others, and they must not fill our memory.
_MOST_REASONS: Final = 64


class Done(msgspec.Struct):
    """The dead letters that are none any more, by reason."""

    replayed: dict[str, Count] = {}
    cleared: dict[str, Count] = {}

    def left(self, dead: Mapping[str, int]) -> dict[str, int]:
        """Return how many are left of all that there ever were, if none was dropped."""
        return dict(Counter(dead) - Counter(self.replayed) - Counter(self.cleared))


class _Line(msgspec.Struct):
    """A line of the letters' file: a letter, damage, or the number of letters that were dropped so far."""

    reason: Annotated[str, msgspec.Meta(max_length=64)] = ""
    dropped: Count = 0


_line_of: Final = msgspec.json.Decoder(_Line).decode


def there(directory: SpoolDirectory) -> tuple[dict[str, int], int]:
    """Count the dead letters that are in their file, by reason, and those that were dropped. Raises OSError.

    No lock is taken, because whoever only looks must hold up nobody. If the leader begins a new file at this moment,
    one half of the letters may be missed.
    """
    found, dropped = Counter[str](), 0
    for path in (f"{directory.dead_letters}.1", directory.dead_letters):
        for line in files.lines(path, _MOST_LETTER_BYTES):
            with suppress(ValueError, RecursionError):
                each = _line_of(line)
                if each.reason and (each.reason in found or len(found) < _MOST_REASONS):
                    found[each.reason] += 1
                dropped = each.dropped or dropped
    return dict(found), dropped


def read(directory: SpoolDirectory) -> Done:
    """Return the counts; zero if there is no such file, or if it is damaged."""
    with suppress(OSError, ValueError, RecursionError):
        return msgspec.json.decode(files.read(directory.letters, _MOST_BYTES)[0], type=Done)
    return Done()


def add(directory: SpoolDirectory, what: Literal["replayed", "cleared"], counts: Mapping[str, int]) -> None:
    """Count letters. Who calls this is alone in taking letters out. Raises OSError."""
    done = read(directory)
    setattr(done, what, dict(Counter(getattr(done, what)) + Counter(counts)))
    files.replace(directory.letters, msgspec.json.encode(done))
