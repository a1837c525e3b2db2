"""A small web application that logs every request: an example to copy.

Try it by hand, with the AWS settings of your shell:

    FAPILOG_CLOUDWATCH__LOG_GROUP_NAME=/shop/prod gunicorn -w 4 cwsink.demo.app:application

Only two lines are about cwsink: `cwsink.install()`, and the name of the sink. The rest is plain
fapilog and plain WSGI. You need not start, stop or flush anything.
"""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterable
from typing import TYPE_CHECKING

import fapilog
from fapilog.core.settings import CoreSettings

import cwsink

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

cwsink.install()  # from here on "cloudwatch" is cwsink's sink

logger = fapilog.get_logger("shop", settings=fapilog.Settings(core=CoreSettings(sinks=["cloudwatch"])))


def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
    """Answer one request, and log it."""
    began = time.perf_counter()
    body = f"hello from worker {os.getpid()}\n".encode()
    logger.info(
        "request",
        request_id=environ.get("HTTP_X_REQUEST_ID") or uuid.uuid4().hex,
        method=environ["REQUEST_METHOD"],
        path=environ["PATH_INFO"],
        status=200,
        duration_ms=round((time.perf_counter() - began) * 1000, 3),
    )
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
