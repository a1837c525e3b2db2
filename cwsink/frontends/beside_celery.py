"""Keeps a handler of the root logger where it is, although Celery removes it.

Celery's commands set up their own logging. They remove all handlers of the root logger, add one there, and one to the
loggers `celery.task` and `multiprocessing`, whose records they keep from the root logger. The latter is the pool's: it
tells of a child that was killed. Signals tell of the set-up before and after. Before, we note where our handlers are.
After, we put them back, and give those of the root logger to these two, unless they have one of ours already. A handler
that was made before Celery was loaded is dropped meanwhile; then it puts itself back.

If Celery's logging is set up by hand there is no signal before. Then a handler that is attached to nothing any more may
be one that it has removed, and one line says what to set.
"""

from __future__ import annotations

import logging
import sys
from importlib import import_module
from typing import Any, Final

from cwsink.diagnostics import report

# Handlers that are not closed yet. Celery drops them without a word, and nothing else would hold them.
_handlers: set[logging.Handler] = set()
_SET_UP: Final = ("", "celery", "celery.task", "celery.redirected", "multiprocessing")
_KEPT_FROM_ROOT: Final = ("celery.task", "multiprocessing")
# Which of ours each of these loggers had.
_places: dict[str, list[logging.Handler]] = {}


def watch(handler: logging.Handler) -> None:
    """Have a new handler of ours outlive Celery's set-up, if the process has loaded Celery."""
    if "celery" not in sys.modules:
        return
    _handlers.add(handler)
    signals = import_module("celery.signals")
    for signal, receiver in (
        (signals.import_modules, _note),  # of any command
        (signals.celeryd_init, _note),  # of a worker, later
        (signals.after_setup_logger, _put_back),
        (signals.after_setup_task_logger, _put_back),
    ):
        signal.connect(receiver, weak=False, dispatch_uid="cwsink-handler")


def dropped(handler: logging.Handler) -> None:
    """Go on with a handler that Celery has just dropped, in the middle of its set-up.

    The handler was made before Celery was loaded, so no signal has told us where it was. But only the root logger's
    handlers are dropped there.
    """
    frame = sys._getframe(1) if "celery" in sys.modules else None  # noqa: SLF001  # who drops it, nobody else can tell
    while frame is not None:
        if frame.f_globals.get("__name__") == "celery.app.log":
            watch(handler)
            _places.setdefault("", []).append(handler)
            return
        frame = frame.f_back


def forget(handler: logging.Handler) -> None:
    """Let go of a handler that is closed."""
    _handlers.discard(handler)


def _note(**_: Any) -> None:
    _places.update((name, [each for each in logging.getLogger(name).handlers if each in _handlers]) for name in _SET_UP)


def _put_back(**_: Any) -> None:
    """Add the handlers again, after Celery has set up a logger. What a logger has already it does not get twice."""
    places = dict(_places)
    for name in _KEPT_FROM_ROOT:
        if not logging.getLogger(name).propagate:  # once Celery has set it up
            places[name] = _places.get(name) or _places.get("", [])
    for name, handlers in places.items():
        for each in _handlers.intersection(handlers):
            logging.getLogger(name).addHandler(each)
    loggers = [logging.root, *logging.root.manager.loggerDict.values()]
    attached = {handler for each in loggers for handler in getattr(each, "handlers", ())}
    if not attached.issuperset(_handlers):
        report(
            "celery",
            "Celery has removed the handlers of the root logger, SpoolHandler with them: what is logged there is not "
            "spooled. Set worker_hijack_root_logger=False in Celery's configuration.",
        )
