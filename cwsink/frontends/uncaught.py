"""`capture_uncaught()`: exceptions that nobody catches, and warnings, become records of the logging module."""

from __future__ import annotations

import logging
import sys
import threading
from types import TracebackType
from typing import Final

_MESSAGE: Final = "uncaught exception"
_installed: list[logging.Logger] = []


def capture_uncaught(logger: logging.Logger | None = None) -> None:
    """Log what would only be printed on stderr. To call it again changes the logger only.

    * An exception that ends the process (`sys.excepthook`), level CRITICAL.
    * An exception that ends a thread (`threading.excepthook`), level ERROR, with the thread's name.
    * A warning (`warnings`), level WARNING, by the logger `py.warnings`.

    What was called before is called after it, so stderr shows the same. Ctrl-C and `sys.exit()` are not logged. asyncio
    logs exceptions that nobody awaits by itself, with the logger `asyncio`.

    Args:
        logger: the logger for the exceptions; by default the root logger. It needs a handler of cwsink.
    """
    _installed[:] = [logger or logging.getLogger()]
    logging.captureWarnings(True)
    if sys.excepthook is not _hooks.on_process:
        _hooks.before_process, sys.excepthook = sys.excepthook, _hooks.on_process
    if threading.excepthook is not _hooks.on_thread:
        _hooks.before_thread, threading.excepthook = threading.excepthook, _hooks.on_thread


class _Hooks:
    """Our hooks, and those that were there before."""

    def __init__(self) -> None:
        self.before_process = sys.excepthook
        self.before_thread = threading.excepthook
        # A method is a new object each time it is asked for; these are to be compared.
        self.on_process = self._on_process
        self.on_thread = self._on_thread

    def _on_process(self, kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        try:
            if issubclass(kind, Exception):
                _installed[0].critical(_MESSAGE, exc_info=(kind, error, where))
        finally:
            self.before_process(kind, error, where)

    def _on_thread(self, failed: threading.ExceptHookArgs) -> None:
        try:
            if issubclass(failed.exc_type, Exception) and failed.exc_value is not None:
                name = failed.thread.name if failed.thread else "?"
                about = failed.exc_type, failed.exc_value, failed.exc_traceback
                _installed[0].error("uncaught exception in thread %s", name, exc_info=about)
        finally:
            self.before_thread(failed)


_hooks: Final = _Hooks()
