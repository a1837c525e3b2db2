"""Points at which a process under test is killed, stopped or made to fail; the package itself has none.

A failpoint is a function of cwsink, which of its calls, and what happens before that call is made:

    failpoint(Flusher._commit, 2, "kill")

Calls are counted from 1, in each process for itself; the actions are `kill` (SIGKILL), `stop` (SIGSTOP) and `raise`
(an OSError, EIO). A process is told by text, `flusher.flusher.Flusher._commit:2:kill`, which `failpoint` returns: a
test gives a process `environment(failpoint)`, whose `armed/sitecustomize.py` arms it before anything else is imported,
also in `cwsink run`, gunicorn and what they start. A process that a test has forked calls `arm` or `at_bytecode`.
"""

from __future__ import annotations

import dis
import errno
import functools
import importlib
import itertools
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType, FunctionType
from typing import Any, Final, NamedTuple

VARIABLE: Final = "CWSINK_FAILPOINT"
_ARMED: Final = str(Path(__file__).parent / "armed")
_PACKAGE: Final = "cwsink"
# What runs code outside of the frame, whatever the version of Python calls it: functions, context managers, iterators.
_CALLS: Final = frozenset(
    name
    for name in dis.opmap
    if name.startswith(("CALL", "FOR_ITER")) or "WITH" in name or name in ("IMPORT_NAME", "LOAD_SPECIAL")
)


# What can happen.


def kill_me() -> None:
    """End this process as the kernel's OOM killer would."""
    os.kill(os.getpid(), signal.SIGKILL)


def stop_me() -> None:
    """Stand still, with all locks held, until somebody sends SIGCONT."""
    # To this thread: one for the whole process may be taken by another thread, while this one goes on for a moment.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)


def fail() -> None:
    """Fail as a disk does."""
    raise OSError(errno.EIO, f"{os.strerror(errno.EIO)} (failpoint)")


ACTIONS: Final = {"kill": kill_me, "stop": stop_me, "raise": fail}


# By the name of a function.


def failpoint(function: Callable[..., object], nth: int, action: str) -> str:
    """Return the text that has this done before the `nth` call of a function.

    Raises:
        LookupError: `arm` would not find the function: it is none of cwsink's, or is nested or decorated.
        ValueError: there is no such action, or no such call.
    """
    name = f"{function.__module__}.{function.__qualname__}".removeprefix(f"{_PACKAGE}.")
    if _find(name)[2] is not function:
        raise LookupError(f"{_PACKAGE} has no function {name}, or another one")
    text = f"{name}:{nth}:{action}"
    Failpoint.parse(text)
    return text


class Failpoint(NamedTuple):
    """Before the `nth` call of a function, do this."""

    name: str
    nth: int
    action: str

    @classmethod
    def parse(cls, text: str) -> Failpoint:
        """Read `name:nth:action`.

        Raises:
            ValueError: it is not of that form.
        """
        name, nth, action = text.split(":")
        if action not in ACTIONS or int(nth) < 1:
            raise ValueError(f"{text}: not name:nth:action, with an action of {', '.join(ACTIONS)}")
        return cls(name, int(nth), action)


def environment(failpoint: str) -> dict[str, str]:
    """Return the variables that arm a Python process, and those it starts."""
    Failpoint.parse(failpoint)
    return {VARIABLE: failpoint, "PYTHONPATH": os.pathsep.join([_ARMED, *sys.path])}


def arm(failpoint: str) -> None:
    """Put a failpoint into this process, in place of the function; who has imported that by name is too early.

    Raises:
        LookupError: there is no such function in cwsink.
    """
    name, nth, action = Failpoint.parse(failpoint)
    owner, attribute, function = _find(name)
    counter = itertools.count(1)  # its `next` is atomic

    @functools.wraps(function)
    def reached(*args: Any, **options: Any) -> Any:
        if next(counter) == nth:
            ACTIONS[action]()
        return function(*args, **options)

    setattr(owner, attribute, reached)


def _find(name: str) -> tuple[object, str, FunctionType]:
    """Return a function, and what has it."""
    parts = [_PACKAGE, *name.split(".")]
    for length in range(len(parts) - 1, 0, -1):
        try:
            owner: Any = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:-1]:
            owner = getattr(owner, part, None)
        function = vars(owner).get(parts[-1]) if owner is not None else None
        if isinstance(function, FunctionType):
            return owner, parts[-1], function
        break
    raise LookupError(f"{VARIABLE}: cwsink has no function {name}")


# By the number of a bytecode.


def is_ours(code: CodeType) -> bool:
    """Tell whether this is the package's own code, the strict server left out."""
    package, testing = _places()
    return code.co_filename.startswith(package) and not code.co_filename.startswith(testing)


@functools.cache
def _places() -> tuple[str, str]:
    package = str(Path(importlib.import_module(_PACKAGE).__file__ or "").parent) + os.sep
    return package, package + "testing" + os.sep


# By identity: the hash of a code object is made of all that is in it, and this is asked at every bytecode.
_calls: dict[int, tuple[CodeType, frozenset[int]]] = {}


def _calls_of(code: CodeType) -> frozenset[int]:
    """Return the offsets of a function's bytecodes that call something; found once, also for forked children."""
    if (known := _calls.get(id(code))) is None:
        offsets = frozenset(each.offset for each in dis.get_instructions(code) if each.opname in _CALLS)
        known = _calls[id(code)] = (code, offsets)
    return known[1]


def at_bytecode(number: int, act: Callable[[], None], *, calls_only: bool = False) -> Callable[[], int]:
    """Have `act` called before the `number`th bytecode that this thread runs in the package, counted from now.

    Args:
        number: from 1.
        act: what to do.
        calls_only: count the bytecodes that call something, nothing else.

    Returns:
        a function that ends this and tells how many have run.
    """
    done = 0

    def reach(code: CodeType, offset: int) -> None:
        nonlocal done
        if not calls_only or offset in _calls_of(code):
            done += 1
            if done == number:
                act()

    end = _monitor(reach) if sys.version_info >= (3, 12) else _trace(reach)

    def count() -> int:
        end()
        return done

    return count


def _trace(reach: Callable[[CodeType, int], None]) -> Callable[[], None]:
    def local(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "opcode":
            reach(frame.f_code, frame.f_lasti)
        return local

    def enter(frame: FrameType, event: str, arg: Any) -> Any:
        if not is_ours(frame.f_code):
            return None
        frame.f_trace_opcodes = True
        return local

    sys.settrace(enter)
    return lambda: sys.settrace(None)


def _monitor(reach: Callable[[CodeType, int], None]) -> Callable[[], None]:
    """As `_trace`: Python 3.12 reports no opcode to a tracer, 3.13 none of a function's first call."""
    monitoring: Any = sys.monitoring  # type: ignore[attr-defined,unused-ignore]  # since Python 3.12
    tool = monitoring.DEBUGGER_ID

    def instruction(code: CodeType, offset: int) -> Any:
        return reach(code, offset) if is_ours(code) else monitoring.DISABLE

    monitoring.use_tool_id(tool, "failpoints")
    monitoring.register_callback(tool, monitoring.events.INSTRUCTION, instruction)
    monitoring.set_events(tool, monitoring.events.INSTRUCTION)

    def end() -> None:
        monitoring.set_events(tool, monitoring.events.NO_EVENTS)
        monitoring.free_tool_id(tool)

    return end
