"""In an application: its logger, with the frontend and the sink named by the environment (see `subjects`).

Imports nothing that it does not log with, and that at once: with `--preload`, before the workers are forked.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final

FRONTEND: Final = os.environ["FRONTEND"]
SINK: Final = os.environ["SINK"]
_URL: Final = os.environ["FAPILOG_CLOUDWATCH__ENDPOINT_URL"]
_GROUP: Final = os.environ["FAPILOG_CLOUDWATCH__LOG_GROUP_NAME"]

if FRONTEND == "fapilog":
    import fapilog
if SINK == "cwsink":
    import cwsink
if SINK == "watchtower":
    import boto3

    watchtower = import_module("watchtower")  # not there where types are checked


class Nothing:
    """A sink of fapilog's."""

    name = "nothing"

    async def write(self, entry: dict[str, Any]) -> bool:
        """Do nothing."""
        return bool(entry)


def open_logger() -> Any:
    """Return the logger, fapilog's or a `logging.Logger`."""
    return _fapilog_logger() if FRONTEND == "fapilog" else _stdlib_logger()


def structured(logger: Any) -> Callable[..., object]:
    """Return a function of a message and fields: an event of fapilog's, or a line with JSON at its end."""
    info: Callable[..., object] = logger.info
    if FRONTEND == "fapilog":
        return info
    return lambda message, **fields: info("%s %s", message, json.dumps(fields))


def _fapilog_logger() -> Any:
    if SINK == "nothing":
        return fapilog.get_logger("shop", sinks=[Nothing()])
    if SINK == "cwsink":
        cwsink.install()
    return fapilog.get_logger("shop", settings=fapilog.Settings())


def _stdlib_logger() -> logging.Logger:
    logger = logging.getLogger("shop")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    logger.addHandler(_handler())
    return logger


def _handler() -> logging.Handler:
    if SINK == "cwsink":
        return cwsink.SpoolHandler()
    if SINK == "watchtower":
        client = boto3.client("logs", endpoint_url=_URL, region_name="us-east-1")
        # Its own default is 60 s: it would send nothing before the end.
        handler: logging.Handler = watchtower.CloudWatchLogHandler(_GROUP, boto3_client=client, send_interval=1)
        return handler
    handler = logging.Handler()
    handler.emit = handler.format  # type: ignore[assignment,method-assign]
    return handler
