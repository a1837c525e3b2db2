"""Tells, before a plugin is called, whether its coroutine might suspend.

A coroutine that never suspends has ended after one `send(None)`, and needs no event loop. A
coroutine that suspends cannot be driven like that. When it suspends, half of its work is done, and
a second call would do that half twice. Therefore we do not try a plugin, but read its code.

A coroutine without `await`, `async for` and `async with` cannot suspend. If it awaits coroutines
that the code names (`await self._look_up(key)`, `await super().enrich(event)`), those are read,
too, and so is what a decorator of `functools.wraps` stands for. All other code might wait. fapilog's
own plugins are not read: the tests drive each of them.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
import types
from functools import lru_cache
from typing import Any, Final

from cwsink.interruption import is_interruption

_WAITING: Final = frozenset({"GET_AWAITABLE", "GET_AITER", "GET_ANEXT"})
# Code that names one of these needs an event loop. fapilog's thread has one; the thread that logs has none.
_NEEDS_LOOP: Final = frozenset(
    "get_running_loop get_event_loop current_task all_tasks create_task ensure_future run_coroutine_threadsafe".split()
)
# What it makes may be used in one thread only.
_ONE_THREAD: Final = "sqlite3"
_ASYNC_BLOCKS: Final = (ast.AsyncFor, ast.AsyncWith)


def why_it_may_wait(plugin: object, method: str) -> str | None:
    """Return in a few words why a plugin's coroutine method might wait. None: it never suspends."""
    if type(plugin).__module__.startswith("fapilog."):
        return None
    try:
        return _why(getattr(plugin, method), set())
    except Exception as error:
        if is_interruption(error):
            raise
        return f"its code cannot be read: {type(error).__name__}"


def _why(function: Any, seen: set[object], owner: object = None) -> str | None:
    owner = getattr(function, "__self__", owner)
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or not function.__code__.co_flags & inspect.CO_COROUTINE:
        return f"{getattr(function, '__qualname__', function)!s} is no `async def`"
    if function.__code__ in seen:
        return None
    seen.add(function.__code__)
    wrapped = getattr(function, "__wrapped__", None)
    is_async = isinstance(wrapped, types.FunctionType) and bool(wrapped.__code__.co_flags & inspect.CO_COROUTINE)
    if is_async and (why := _why(wrapped, seen, owner)):
        return why
    found = _awaited(function.__code__)
    if isinstance(found, str):
        return found
    return next(filter(None, (_why_awaited(each, function, owner, seen) for each in found)), None)


@lru_cache(maxsize=256)  # a logger may get a new plugin of the same class for each request
def _awaited(code: types.CodeType) -> str | list[ast.expr]:
    """Return the expressions that code awaits; or why it might wait, whatever they are."""
    if wanted := sorted(_NEEDS_LOOP.intersection(code.co_names)):
        return f"{wanted[0]} needs an event loop"
    if _ONE_THREAD in code.co_names:
        return f"{_ONE_THREAD} needs one thread"
    if _WAITING.isdisjoint(each.opname for each in dis.get_instructions(code)):
        return []
    nodes = list(ast.walk(ast.parse(textwrap.dedent(inspect.getsource(code)))))
    if any(isinstance(node, _ASYNC_BLOCKS) or bool(getattr(node, "is_async", False)) for node in nodes):
        return "it has an `async with` or `async for`"
    return [node.value for node in nodes if isinstance(node, ast.Await)]


def _why_awaited(node: ast.expr, function: types.FunctionType, owner: object, seen: set[object]) -> str | None:
    said = f"`await {ast.unparse(node)}`"
    try:
        awaited = _value(node.func, function, owner) if isinstance(node, ast.Call) else None
    except LookupError:
        return said
    return said if awaited is None or _why(awaited, seen) else None


def _value(node: ast.expr, function: types.FunctionType, owner: object) -> Any:
    """Return the object that a name or a chain of attributes means inside the function. Raises LookupError."""
    names = inspect.getclosurevars(function)
    if isinstance(node, ast.Name):
        if owner is not None and node.id == function.__code__.co_varnames[0]:
            return owner
        return {**names.globals, **names.nonlocals}[node.id]
    if isinstance(node, ast.Attribute):
        if isinstance(node.value, ast.Call) and ast.unparse(node.value) == "super()":
            return getattr(super(names.nonlocals["__class__"], owner), node.attr)
        found = getattr(_value(node.value, function, owner), node.attr, None)
        if found is not None:
            return found
    raise LookupError(ast.unparse(node))
