"""What a signal handler raises in the middle of a log call is told from all other exceptions."""

from __future__ import annotations

import gc
import inspect
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

import pytest

from cwsink.interruption import is_interruption, suppress


class OverTimeError(Exception):
    """As Celery's."""


def plain(number: int, frame: FrameType | None) -> None:
    raise OverTimeError


def of_any_arguments(*arguments: Any) -> None:
    raise OverTimeError


def deep(number: int, frame: FrameType | None) -> None:
    def over() -> None:
        raise OverTimeError

    over()


def indirect(*arguments: Any) -> None:
    deep(*arguments)


def deleting(number: int, frame: FrameType | None) -> None:
    del number, frame  # Unused.
    raise OverTimeError


def renaming(number: Any, frame: FrameType | None) -> None:
    number = signal.Signals(number).name
    raise OverTimeError(number)


def bound(task: str, number: int, frame: FrameType | None) -> None:
    del frame
    raise OverTimeError(task)


class Penalty:
    """As RQ's: the handler is a method."""

    def handle(self, signum: int, frame: FrameType | None) -> None:
        raise OverTimeError

    def deleting(self, signum: int, frame: FrameType | None) -> None:
        del frame
        raise OverTimeError

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        del signum
        raise OverTimeError


HANDLERS = [plain, of_any_arguments, deep, Penalty().handle, indirect]
FORGETFUL = [deleting, renaming, partial(bound, "task"), Penalty().deleting, Penalty()]


@pytest.fixture
def restored() -> Iterator[None]:
    before = signal.getsignal(signal.SIGUSR1)
    yield
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("handler", [*HANDLERS, *FORGETFUL])
def test_what_a_handler_raises_is_an_interruption(handler: Callable[..., Any]) -> None:
    """However it is written, whatever becomes of its arguments, and through however many of our functions it passes."""
    signal.signal(signal.SIGUSR1, handler)

    def ours() -> None:
        signal.raise_signal(signal.SIGUSR1)

    with pytest.raises(OverTimeError) as raised:
        ours()
    assert is_interruption(raised.value)


class RaisingText:
    def __str__(self) -> str:
        raise OverTimeError


def raising_for(caller: FrameType) -> None:
    raise OverTimeError


def asking_who_calls() -> None:
    caller = inspect.currentframe()
    assert caller is not None
    caller = caller.f_back
    raise OverTimeError(caller)


WORK = [
    lambda: str(RaisingText()),
    lambda: int("x"),
    lambda: os.stat("/nothing/there"),
    asking_who_calls,
    lambda: raising_for(sys._getframe()),
]


@pytest.mark.parametrize("work", WORK)
def test_what_else_is_raised_is_none(work: Callable[[], object]) -> None:
    """By code of the application, by C code, by the kernel, by a function that knows its caller's frame."""
    with pytest.raises(Exception) as raised:  # noqa: PT011  # whatever it is
        work()
    assert not is_interruption(raised.value)
    assert not is_interruption(OverTimeError("never raised"))


@pytest.mark.usefixtures("restored")
@pytest.mark.parametrize("caller", [lambda handler: handler(), lambda handler: handler(1, None)])
def test_a_handler_that_the_application_calls_itself_is_none(caller: Callable[..., None]) -> None:
    """As `reload()` on SIGHUP and in a log call. Its exception is one of what was logged."""

    def reload(number: int | None = None, frame: FrameType | None = None) -> None:
        raise OverTimeError

    signal.signal(signal.SIGUSR1, reload)
    with pytest.raises(OverTimeError) as raised:
        caller(reload)
    assert not is_interruption(raised.value)


@pytest.mark.usefixtures("restored")
def test_what_a_handler_raises_is_not_suppressed() -> None:
    """Though it may be of the kind that is: a TimeoutError is an OSError."""

    def late(number: int, frame: FrameType | None) -> None:
        raise TimeoutError

    signal.signal(signal.SIGUSR1, late)
    with suppress(OSError):
        os.stat("/nothing/there")
    with pytest.raises(TimeoutError), suppress(OSError):
        signal.raise_signal(signal.SIGUSR1)
    with pytest.raises(ValueError, match="int"), suppress(OSError):
        int("x")


class Held:
    """What a caller holds, such as a descriptor."""


def asked_about(held: Held) -> None:
    try:
        os.stat("/nothing/there")
    except OSError as error:
        if is_interruption(error):
            raise


def test_who_asks_keeps_nothing() -> None:
    """Neither the exception nor a variable of a caller lives on, though Python looks for no cycles meanwhile."""
    held = Held()
    is_gone = weakref.ref(held)
    gc.disable()
    try:
        asked_about(held)
        del held
        assert is_gone() is None
    finally:
        gc.enable()


def decorated(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        return function(*arguments)

    return call


@pytest.mark.usefixtures("restored")
def test_a_handler_and_another_function_may_have_one_decorator() -> None:
    """The code that runs first is the same for both. What the other function raises is not the handler's."""
    signal.signal(signal.SIGUSR1, decorated(plain))
    with pytest.raises(ValueError, match="x") as raised:
        decorated(int)("x")
    assert not is_interruption(raised.value)
    with pytest.raises(OverTimeError) as of_handler:
        signal.raise_signal(signal.SIGUSR1)
    assert is_interruption(of_handler.value)


@pytest.mark.usefixtures("restored")
def test_celerys_and_rqs_own_handlers() -> None:
    """The exceptions of the real libraries, raised by their own handlers."""
    timeouts = pytest.importorskip("rq.timeouts")
    with pytest.raises(timeouts.BaseTimeoutException) as raised, timeouts.UnixSignalDeathPenalty(1):
        signal.raise_signal(signal.SIGALRM)
    assert is_interruption(raised.value)
    pool = pytest.importorskip("billiard.pool")
    signal.signal(signal.SIGUSR1, pool.soft_timeout_sighandler)
    with pytest.raises(pool.SoftTimeLimitExceeded) as exceeded:
        signal.raise_signal(signal.SIGUSR1)
    assert is_interruption(exceeded.value)
