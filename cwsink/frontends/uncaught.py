"""`capture_uncaught()`: exceptions that nobody catches, and warnings, become records of the logging module."""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from types import TracebackType
from typing import Any, Final, TextIO

_MESSAGE: Final = "uncaught exception"
_ON_PURPOSE: Final = (KeyboardInterrupt, SystemExit)
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
    is_first = not _installed
    _installed[:] = [logger or logging.getLogger()]
    # A hook that others have set since may call ours. If ours were set once more, to be called before that one, the two
    # would call each other for ever. But if the hook before ours is back, somebody has taken ours away.
    if is_first or sys.excepthook is _hooks.before_process:
        _hooks.before_process, sys.excepthook = sys.excepthook, _hooks.on_process
    if is_first or threading.excepthook is _hooks.before_thread:
        _hooks.before_thread, threading.excepthook = threading.excepthook, _hooks.on_thread
    if is_first or warnings.showwarning is _hooks.before_warning:
        _hooks.before_warning, warnings.showwarning = warnings.showwarning, _hooks.on_warning


class _Hooks:
    """Our hooks, and those that were there before."""

    def __init__(self) -> None:
        self.before_process = sys.excepthook
        self.before_thread = threading.excepthook
        self.before_warning: Any = warnings.showwarning

    def on_process(self, kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        """Log what ends the process."""
        try:
            if not issubclass(kind, _ON_PURPOSE):
                _installed[0].critical(_MESSAGE, exc_info=(kind, error, where))
        finally:
            self.before_process(kind, error, where)

    def on_thread(self, failed: threading.ExceptHookArgs) -> None:
        """Log what ends a thread."""
        try:
            if not issubclass(failed.exc_type, _ON_PURPOSE) and failed.exc_value is not None:
                name = failed.thread.name if failed.thread else "?"
                about = failed.exc_type, failed.exc_value, failed.exc_traceback
                _installed[0].error("uncaught exception in thread %s", name, exc_info=about)
        finally:
            self.before_thread(failed)

    def on_warning(
        self,
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        """Log a warning, as `logging.captureWarnings` does. If that has been asked for, it does."""
        try:
            if file is None and self.before_warning.__module__ != "logging":
                said = warnings.formatwarning(message, category, filename, lineno, line)
                logging.getLogger("py.warnings").warning("%s", said)
        finally:
            self.before_warning(message, category, filename, lineno, file, line)


_hooks: Final = _Hooks()
