"""Start a process of our own quickly: a probe waits for `cwsink check`, and a program that ends for its flusher.

An import makes thousands of objects, and none of them is garbage. Python looks for garbage among them again and again
all the same, and once more among all of them at its end.

msgspec takes two names from typing_extensions if that is installed, and from typing if it is not. cwsink uses neither
name, and the module takes 15 ms and 0.9 MiB. So we have msgspec believe that it is not installed.

None of this is done in an application, where others may need what we do not.
"""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def loading() -> Iterator[None]:
    """Import in the block. What is there at its end is never taken for garbage."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def import_msgspec() -> None:
    """Import msgspec without typing_extensions."""
    name = "typing_extensions"
    if name not in sys.modules:
        sys.modules[name] = None  # type: ignore[assignment]  # so an import of it fails (Python reference, 5.3.1)
        try:
            import msgspec  # noqa: F401
        finally:
            del sys.modules[name]
