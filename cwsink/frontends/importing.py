"""What a thread imports, and the end of the process, which must not cut it off.

The interpreter ends a daemon thread where it stands. In the middle of an import that leaves a lock held, and
whatever imports later hangs for ever, the process with it: the warning of an unclosed socket does. To wait until
boto3 is imported is no way out: half a second at rest is many on a crowded machine. So the import is told to end, and
does so at the next module it comes to, by an exception that gives every lock back.
"""

from __future__ import annotations

import contextlib
import sys
import time
from _thread import get_ident
from collections.abc import Iterator, Sequence
from types import ModuleType
from typing import Final

from cwsink import native
from cwsink.spool import descriptors

# Many times what one module takes; an import that hangs for longer (a dead network drive) is left to its fate.
_WAIT_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.005

_under_way: set[int] = set()  # threads
_is_over = False


class Interrupted(BaseException):
    """The process ends, and with it the import. No Exception: a package that goes on without an optional part."""


class _Interrupter:
    """A finder of `sys.meta_path` that finds nothing; every import of a module not yet loaded asks it first."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if _is_over and get_ident() in _under_way:
            raise Interrupted(name)


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Import in this thread, within the `with`, as long as the process does not end.

    Raises:
        Interrupted: `interrupt` was called. What was not imported whole is as if it had never been.
    """
    interrupter = _Interrupter()
    _under_way.add(get_ident())
    sys.meta_path.insert(0, interrupter)
    try:
        if _is_over:
            raise Interrupted
        yield
    finally:
        sys.meta_path.remove(interrupter)
        _under_way.discard(get_ident())


def is_under_way() -> bool:
    """Tell whether a thread is in `interruptible` now."""
    return bool(_under_way)


def interrupt() -> None:
    """End every import that is under way in `interruptible`, and any that begins from now on. Bounded in time."""
    global _is_over
    _is_over = True
    until = time.monotonic() + _WAIT_SECONDS
    while _under_way and time.monotonic() < until:
        native.sleep(_POLL_SECONDS)


descriptors.after_fork(_under_way.clear)
