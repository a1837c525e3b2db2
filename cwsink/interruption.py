"""Tells what a signal handler of the application has raised from all other exceptions (no I/O).

Python runs a signal handler between any two steps of the main thread, so also in the middle of a log call. The handler
may raise: Celery does when a task's soft time limit is over, and RQ when a job's time is. The exception is meant for
the task. If we took it for trouble of our own and went on, the task would never hear that its time is over. So whoever
catches an Exception while a record is logged asks here, and raises what is not ours again.
"""

from __future__ import annotations

import contextlib
from _signal import NSIG, getsignal  # type: ignore[import-not-found]  # `signal` makes an Enum of each: 0.1 ms
from functools import partial
from itertools import pairwise
from types import CodeType, FrameType, FunctionType, MethodType, TracebackType
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from typing_extensions import TypeIs

Kind = TypeVar("Kind")

_HAS_REST: Final = 0x04  # of a code object: it takes `*arguments` (inspect.CO_VARARGS)


def is_interruption(error: BaseException) -> bool:
    """Tell whether a signal handler has raised an exception, or has called what has.

    Python calls a handler with the number of the signal and the frame that it interrupts, which is also the frame that
    has called it. No other function is called with a number and the frame of its caller. But a handler may have deleted
    them (`del signum, frame  # unused`), or given their names to other values. Such a one is known by its code.
    """
    # The first frame is that of whoever has caught the exception. If we looked at its variables, Python would keep a
    # copy of them with the frame: also of the exception, which keeps the frame. Whatever the frame and its callers
    # hold, such as a descriptor, would then stay until Python looks for cycles.
    traceback = error.__traceback__ and error.__traceback__.tb_next
    installed: set[CodeType | None] = set()
    while traceback is not None:
        frame = traceback.tb_frame
        if frame.f_back is not None and _is_called_with(frame, frame.f_back):
            return True
        # The code that takes `*arguments` may be a decorator's, which runs for other functions, too.
        if not frame.f_code.co_flags & _HAS_REST and _has_lost(frame):
            if not installed:
                installed = {_code_of(getsignal(number)) for number in range(1, NSIG)}
            if frame.f_code in installed:
                return True
        traceback = traceback.tb_next
    return False


def _code_of(handler: object) -> CodeType | None:
    """Return the code that runs when a handler is called. None: it is none of Python's."""
    while isinstance(handler, (partial, MethodType)):
        handler = handler.func if isinstance(handler, partial) else handler.__func__
    if not isinstance(handler, FunctionType):
        handler = getattr(type(handler), "__call__", None)  # noqa: B004  # it is asked for its code
    return getattr(handler, "__code__", None)


def _has_lost(frame: FrameType) -> bool:
    """Tell whether an argument was deleted, or is the caller's frame beside a number that was replaced.

    An application may also call its handler (`reload()` on SIGHUP, and by itself). Then neither is so.
    """
    code, variables = frame.f_code, frame.f_locals
    names = code.co_varnames[: code.co_argcount]
    return any(name not in variables or variables[name] is frame.f_back for name in names)


def _is_called_with(frame: FrameType, caller: FrameType) -> bool:
    code, variables = frame.f_code, frame.f_locals
    values = [variables.get(name) for name in code.co_varnames[: code.co_argcount]]
    if code.co_flags & _HAS_REST:
        rest = variables.get(code.co_varnames[code.co_argcount + code.co_kwonlyargcount])
        values += rest if isinstance(rest, tuple) else ()
    return any(value is caller and isinstance(number, int) for number, value in pairwise(values))


class suppress(contextlib.suppress):  # noqa: N801  # as Python's own
    """Suppress exceptions of these kinds, as contextlib's does, but not what a signal handler has raised.

    A handler may raise one of any kind. Many raise TimeoutError, which is an OSError.
    """

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        return super().__exit__(kind, error, traceback) and error is not None and not is_interruption(error)


def is_a(value: object, kind: type[Kind] | tuple[type[Kind], ...]) -> TypeIs[Kind]:
    """Tell whether a value is of this kind. One that cannot be asked now is of no kind.

    `isinstance` asks the object, too. A lazy proxy (wrapt, lazy-object-proxy) then answers as what it stands for, which
    it looks up at that moment. If it cannot, it raises, and the application would hear of that from its log call.
    """
    try:
        return isinstance(value, kind)
    except Exception as error:
        if is_interruption(error):
            raise
        return False
