"""Asks an object of the application what it is (no I/O).

`isinstance` asks the object, too. A lazy proxy (wrapt, lazy-object-proxy) then answers as what it stands for, which it
looks up at that moment. If it cannot, it raises, and the application would hear of that from its log call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from cwsink.interruption import is_interruption

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Kind = TypeVar("Kind")


def is_a(value: object, kind: type[Kind] | tuple[type[Kind], ...]) -> TypeIs[Kind]:
    """Tell whether a value is of this kind. One that cannot be asked now is of no kind."""
    try:
        return isinstance(value, kind)
    except Exception as error:
        if is_interruption(error):
            raise
        return False
