"""Whether a plugin's coroutine could suspend is read in its code, before it is called."""

from __future__ import annotations

import asyncio
import functools
import inspect
import sqlite3
from collections.abc import Callable
from typing import Any

import pytest
from fapilog.plugins.redactors.url_credentials import UrlCredentialsRedactor

from cwsink.frontends.inline.waiting import why_it_may_wait


async def look_up(key: str) -> str:
    return key


async def look_up_slowly(key: str) -> str:
    await asyncio.sleep(0)
    return key


class Base:
    """A plugin to inherit from."""

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return {}


class Plain(Base):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return {"data": [key.upper() for key in event]}


class Own(Base):
    def __init__(self, inner: Any = None) -> None:
        self.inner = inner or Plain()

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        await self.helper(0)
        await look_up("global")
        return await self.inner.enrich(await super().enrich(event))

    async def helper(self, depth: int) -> None:
        if depth < 3:
            await self.helper(depth + 1)


class Sleeping(Base):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {}


class FarDown(Base):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return {"data": await look_up_slowly("key")}


class Inherits(Sleeping):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return await super().enrich(event)


class Locking(Base):
    lock = asyncio.Lock()

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        async with self.lock:
            return {}


class Looping(Base):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return {"data": [each async for each in self.each()]}

    async def each(self) -> Any:
        yield 1


class Future(Base):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        future: asyncio.Future[dict[str, Any]] = event["future"]
        return await future


class Spawning(Base):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        asyncio.get_running_loop().create_task(look_up("later"))
        return {}


class NoCoroutine(Base):
    def enrich(self, event: dict[str, Any]) -> Any:  # type: ignore[override]
        return look_up("key")


def timed(function: Callable[..., Any]) -> Any:
    """A decorator that awaits only what it stands for."""

    @functools.wraps(function)
    async def wrapper(self: object, event: dict[str, Any]) -> Any:
        try:
            return await function(self, event)
        finally:
            len(event)

    return wrapper


def limited(function: Callable[..., Any]) -> Any:
    """A decorator that needs an event loop."""

    @functools.wraps(function)
    async def wrapper(self: object, event: dict[str, Any]) -> Any:
        return await asyncio.wait_for(function(self, event), 1)

    return wrapper


def hidden(function: Callable[..., Any]) -> Any:
    """A decorator of which no code says that it calls what it stands for."""
    inner = [function]

    @functools.wraps(function)
    async def wrapper(self: object, event: dict[str, Any]) -> Any:
        return inner[0](self, event).send(None)

    return wrapper


class Timed(Own):
    @timed
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        await self.helper(0)
        return {}


class TimedLoop(Base):
    @timed
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        asyncio.get_running_loop()
        return {}


class HiddenLoop(Base):
    @hidden
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return {"tasks": len(asyncio.all_tasks())}


class Limited(Base):
    @limited
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return {}


class Table(Base):
    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        return {"db": sqlite3.connect(":memory:")}


class Partial(Base):
    def __init__(self) -> None:
        self.enrich = functools.partial(look_up, "key")  # type: ignore[assignment,method-assign]


class Wrapped(Base):
    def __init__(self) -> None:
        self.enrich = look_up_slowly  # type: ignore[assignment,method-assign]


@pytest.mark.parametrize(
    "plugin", [Base(), Plain(), Own(), Own(Own()), Timed()], ids=["base", "plain", "own", "own of own", "decorated"]
)
def test_what_awaits_only_its_own_does_not_wait(plugin: object) -> None:
    """No `await`, or only of coroutines that end the same way: helpers, an inner plugin, `super()`, recursion."""
    assert why_it_may_wait(plugin, "enrich") is None


@pytest.mark.parametrize(
    ("plugin", "why"),
    [
        (Sleeping(), "`await asyncio.sleep(0)`"),
        (FarDown(), "`await look_up_slowly('key')`"),
        (Inherits(), "`await super().enrich(event)`"),
        (Own(Sleeping()), "`await self.inner.enrich(await super().enrich(event))`"),
        (Locking(), "it has an `async with` or `async for`"),
        (Looping(), "it has an `async with` or `async for`"),
        (Future(), "`await future`"),
        (Spawning(), "create_task needs an event loop"),
        (NoCoroutine(), "NoCoroutine.enrich is no `async def`"),
        (Wrapped(), "`await asyncio.sleep(0)`"),
        (TimedLoop(), "get_running_loop needs an event loop"),
        (HiddenLoop(), "all_tasks needs an event loop"),
        (Limited(), "`await asyncio.wait_for(function(self, event), 1)`"),
        (Table(), "sqlite3 needs one thread"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Base) else "",
)
def test_what_might_wait_is_named(plugin: object, why: str) -> None:
    """Whatever is not proven to end at once is taken to wait, and the reason is the code's own words."""
    assert why_it_may_wait(plugin, "enrich") == why


def test_what_cannot_be_read_might_wait() -> None:
    """A callable without code, a method that is missing."""
    assert "is no `async def`" in str(why_it_may_wait(Partial(), "enrich"))
    assert "cannot be read" in str(why_it_may_wait(object(), "enrich"))


def test_fapilogs_own_are_taken_as_read() -> None:
    """The corpus drives each of them."""
    assert why_it_may_wait(UrlCredentialsRedactor(), "redact") is None


def test_the_code_of_a_class_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application may enable a new enricher for each request; what each of them awaits is asked each time."""
    assert why_it_may_wait(Own(), "enrich") is None
    monkeypatch.delattr(inspect, "getsource")
    assert why_it_may_wait(Own(), "enrich") is None
    assert why_it_may_wait(Own(Partial()), "enrich") is not None
