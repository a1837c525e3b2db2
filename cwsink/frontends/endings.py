"""The last act of a process: empty what is queued into the spool, and wait for its delivery.

A process that ends in order needs none of this. A process that ends without exit handlers (by a signal, `os._exit`,
uvicorn's shutdown) may call `drain` itself, and an ASGI application may name `lifespan`.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from cwsink.clock import monotonic

_QUEUES_SECONDS: Final = 5.0


def drain(timeout_seconds: float = 5.0) -> bool:
    """Empty fapilog's queues into the spool, and wait until the spool is delivered.

    It blocks; in an event loop, `await asyncio.to_thread(cwsink.drain)`. The process may log after it. Never raises.

    Args:
        timeout_seconds: the most to wait, for both together.

    Returns:
        True: everything was delivered. False: the rest stays in the spool.
    """
    until = monotonic() + timeout_seconds
    _empty_queues(timeout_seconds)
    return _await_delivery(max(0.0, until - monotonic()), has_patience=True)


def _empty_queues(timeout_seconds: float) -> None:
    # A process that has not loaded this has nothing to drain, and is not to load fapilog for that.
    if repairs := sys.modules.get("cwsink.frontends.fapilog_repairs"):
        repairs.drain(timeout_seconds)


def _await_delivery(timeout_seconds: float | None, *, has_patience: bool) -> bool:
    """Wait for so long, or for `drain_timeout_seconds`."""
    if (presence := sys.modules.get("cwsink.frontends.presence")) is None:
        return True
    if timeout_seconds is None:
        timeout_seconds = presence.this.drain_timeout_seconds
    return bool(presence.this.flush(timeout_seconds, has_patience=has_patience))


@asynccontextmanager
async def lifespan(app: object) -> AsyncIterator[None]:
    """Drain when an ASGI application ends: `FastAPI(lifespan=cwsink.lifespan)`, and the same for Starlette.

    An application with a lifespan of its own enters this one in it:

        @asynccontextmanager
        async def lifespan(app):
            async with cwsink.lifespan(app):
                ...
                yield

    It waits as the end of a process does: for at most `drain_timeout_seconds`, and not for what cannot be delivered.
    """
    try:
        yield
    finally:
        try:
            asyncio.get_running_loop()
        except RuntimeError:  # the application runs on trio
            await sys.modules["trio"].to_thread.run_sync(_drain_at_end)
        else:
            await asyncio.to_thread(_drain_at_end)


def _drain_at_end() -> None:
    _empty_queues(_QUEUES_SECONDS)  # what is in memory only must not wait for what the setting says of delivery
    _await_delivery(None, has_patience=False)
