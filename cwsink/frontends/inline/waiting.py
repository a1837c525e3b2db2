"""Tells, before a plugin is called, whether its coroutine could suspend.

A coroutine that never suspends is at its end after one `send(None)`, and needs no event loop.
One that does suspend cannot be driven that way, and by then it has half done its work: calling it
again would do it twice. So this is found out by looking at the code, not by trying.

A coroutine without an `await`, `async for` or `async with` cannot suspend. One that awaits only
coroutines of its own (`await self._look_up(key)`, `await super().enrich(event)`) is followed into
them. Everything else might wait. fapilog's own plugins are taken as read: the tests drive each.
"""

from __future__ import annotations

import ast
import dis
import inspect
import textwrap
import types
from typing import Any, Final

_WAITING: Final = frozenset({"GET_AWAITABLE", "GET_AITER", "GET_ANEXT"})
# Code that names one of these wants the event loop that fapilog's thread has and ours has not.
_NEEDS_LOOP: Final = frozenset(
    "get_running_loop get_event_loop current_task create_task ensure_future run_coroutine_threadsafe".split()
)
_ASYNC_BLOCKS: Final = (ast.AsyncFor, ast.AsyncWith)


def why_it_may_wait(plugin: object, method: str) -> str | None:
    """Return what a plugin's coroutine method might wait for, in a few words; None: it never suspends."""
    if type(plugin).__module__.startswith("fapilog."):
        return None
    try:
        return _why(getattr(plugin, method), set())
    except Exception as error:
        return f"its code cannot be read: {type(error).__name__}"


def _why(function: Any, seen: set[object]) -> str | None:
    owner = getattr(function, "__self__", None)
    function = getattr(function, "__func__", function)
    if not isinstance(function, types.FunctionType) or not inspect.iscoroutinefunction(function):
        return f"{getattr(function, '__qualname__', function)!s} is no `async def`"
    code = function.__code__
    if code in seen:
        return None
    seen.add(code)
    if wanted := sorted(_NEEDS_LOOP.intersection(code.co_names)):
        return f"{wanted[0]} needs an event loop"
    if _WAITING.isdisjoint(each.opname for each in dis.get_instructions(code)):
        return None
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    for node in ast.walk(tree):
        if isinstance(node, _ASYNC_BLOCKS) or bool(getattr(node, "is_async", False)):
            return "it has an `async with` or `async for`"
        if isinstance(node, ast.Await) and (why := _why_awaited(node.value, function, owner, seen)):
            return why
    return None


def _why_awaited(node: ast.expr, function: types.FunctionType, owner: object, seen: set[object]) -> str | None:
    said = f"`await {ast.unparse(node)}`"
    try:
        awaited = _value(node.func, function, owner) if isinstance(node, ast.Call) else None
    except LookupError:
        return said
    return said if awaited is None or _why(awaited, seen) else None


def _value(node: ast.expr, function: types.FunctionType, owner: object) -> Any:
    """Return what a name or a chain of attributes stands for inside the function."""
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
