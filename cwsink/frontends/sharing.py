"""What a writer and a console have in common: they are used with `with`, and their copies are themselves.

An application copies what holds a writer, and does not know that it does: a bound logger of structlog, loguru's logger,
a context that it hands to a worker. A writer has locks and descriptors, which cannot be copied. But it is safe from
threads, so all copies in a process share it. To close one closes all; a later append opens the spool again.

Another process cannot share it. There a pickle opens the spool of the same settings, as a producer of its own. It
raises what the constructor raises, if that process may not use the spool.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from typing_extensions import Self


class Shared:
    """Closed at the end of a `with`, and never copied."""

    def close(self) -> None:
        """Let go of what is held."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self
