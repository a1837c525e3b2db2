"""cwsink: structured logs of many processes to AWS CloudWatch Logs, without losing any.

`import cwsink` is cheap: what it offers is imported when it is first used (PEP 562),
so a flusher carries no fapilog, and a worker no botocore.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cwsink.config import SinkConfig
    from cwsink.errors import ConfigError, CwsinkError, SpoolError
    from cwsink.frontends.fapilog_sink import CloudWatchSpoolSink, drain, install
    from cwsink.frontends.log_handler import SpoolHandler
    from cwsink.frontends.writer import Writer

__all__ = [
    "CloudWatchSpoolSink",
    "ConfigError",
    "CwsinkError",
    "SinkConfig",
    "SpoolError",
    "SpoolHandler",
    "Writer",
    "__version__",
    "drain",
    "install",
]

_HOME: Final = {
    "CloudWatchSpoolSink": "cwsink.frontends.fapilog_sink",
    "ConfigError": "cwsink.errors",
    "CwsinkError": "cwsink.errors",
    "SinkConfig": "cwsink.config",
    "SpoolError": "cwsink.errors",
    "SpoolHandler": "cwsink.frontends.log_handler",
    "Writer": "cwsink.frontends.writer",
    "drain": "cwsink.frontends.fapilog_sink",
    "install": "cwsink.frontends.fapilog_sink",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'cwsink' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
