"""The application of the zoo, for every server: `wsgi`, `asgi`, and `log` for programs that serve nothing.

Loaded with the flavour in `ZOO_FLAVOUR`: `writer` appends directly, `handler` logs through the
logging module and a `SpoolHandler`, `fapilog` logs through fapilog and the sink of
`cwsink.install()`, `none` has no cwsink at all and logs nothing (to compare with). Settings come
from the environment, as in production. With `ZOO_EARLY` a record is logged at import.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from tests.faults.zoo.acknowledged import EARLY_VARIABLE, FILE_VARIABLE, FLAVOUR_VARIABLE, Acknowledged, message_of

DRAIN_SECONDS = 20.0

Message = MutableMapping[str, Any]


def _nothing(id_: str) -> None:
    """Log nothing: the server without us."""


def _through_the_writer() -> Callable[[str], None]:
    from cwsink import Writer

    writer, acknowledged = Writer.open(), Acknowledged(os.environ[FILE_VARIABLE])

    def log(id_: str) -> None:
        if not writer.append(message_of(id_)):
            raise AssertionError(f"{id_} was refused")
        acknowledged.note(id_)

    return log


def _through_the_handler() -> Callable[[str], None]:
    import logging

    from cwsink import SpoolHandler

    acknowledged = Acknowledged(os.environ[FILE_VARIABLE])
    logger = logging.getLogger("zoo")
    logger.propagate = False
    logger.setLevel(logging.INFO)
    logger.addHandler(SpoolHandler())

    def log(id_: str) -> None:
        logger.info("%s", message_of(id_))
        acknowledged.note(id_)

    return log


def _through_fapilog() -> Callable[[str], None]:
    import fapilog

    import cwsink

    cwsink.install()
    logger, acknowledged = fapilog.get_logger(settings=fapilog.Settings()), Acknowledged(os.environ[FILE_VARIABLE])

    def log(id_: str) -> None:
        logger.info(message_of(id_))
        acknowledged.note(id_)

    return log


_FRONT_ENDS: dict[str, Callable[[], Callable[[str], None]]] = {
    "none": lambda: _nothing,
    "writer": _through_the_writer,
    "handler": _through_the_handler,
    "fapilog": _through_fapilog,
}

log = _FRONT_ENDS[os.environ[FLAVOUR_VARIABLE]]()
if EARLY_VARIABLE in os.environ:
    log(f"early-{os.getpid()}-{time.monotonic_ns():x}")


def signal_handlers() -> dict[str, str]:
    """Return who handles each signal in this process, in words that are the same in every process."""
    names = "TERM INT HUP USR1 USR2 QUIT ABRT CHLD WINCH ALRM PIPE".split()
    handlers: dict[str, Any] = {name: signal.getsignal(getattr(signal, f"SIG{name}")) for name in names}
    functions = {name: getattr(handler, "func", handler) for name, handler in handlers.items()}  # of asyncio's partial
    return {
        name: f"{function.__module__}.{function.__qualname__}" if callable(function) else str(function)
        for name, function in functions.items()
    }


def answer(path: str) -> tuple[str, float]:
    """Serve a request: `/ID`, `/slow/SECONDS/ID`, `/signals`, `/vanish`. Returns the body and how long to wait."""
    *kind, id_ = path.strip("/").split("/")
    if id_ == "signals":
        return json.dumps(signal_handlers()), 0.0
    if id_ == "vanish":
        os._exit(0)
    log(id_)
    return str(os.getpid()), float(kind[1]) if kind else 0.0


def wsgi(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    """Serve as WSGI."""
    body, wait_seconds = answer(environ["PATH_INFO"])
    time.sleep(wait_seconds)
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]


async def asgi(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """Serve as ASGI; drains at the end of its lifespan, as the README says."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        if os.environ[FLAVOUR_VARIABLE] != "none":
            import cwsink

            await asyncio.to_thread(cwsink.drain, DRAIN_SECONDS)
        await send({"type": "lifespan.shutdown.complete"})
        return
    body, wait_seconds = answer(scope["path"])
    await asyncio.sleep(wait_seconds)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": body.encode()})
