"""Where records go in the place of a spool: to stderr or stdout, a line each, or nowhere.

The same application also runs on a laptop, in CI, in an image build, in AWS Lambda and on Windows. There it has no
CloudWatch to send to, or nothing that could send. It must start and log all the same. `CWSINK_TARGET` says where to:

| `CWSINK_TARGET` | records go |
|---|---|
| `cloudwatch` | into the spool, and from there to CloudWatch. This is the default |
| `stderr`, `stdout` | there, a line each. In AWS Lambda, which sends its stdout to CloudWatch, that is the default |
| `off` | nowhere |

A `Console` takes the place of a writer (cwsink.frontends.writer), and has all that an application may use of one. So
the annotation `Writer` is right for both. It holds no file, and starts no process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from cwsink.config import load_config, load_own_config
from cwsink.diagnostics import report
from cwsink.errors import ConfigError
from cwsink.frontends import sharing, static_fields
from cwsink.interruption import is_interruption, suppress
from cwsink.spool import record

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.config import SinkConfig
    from cwsink.settings import Settings

Place = Literal["cloudwatch", "stderr", "stdout", "off"]
VARIABLE: Final = "CWSINK_TARGET"


def place(env: Mapping[str, str]) -> Place:
    """Return where this process's records go. Raises ConfigError: `CWSINK_TARGET` is none of the four."""
    wanted = env.get(VARIABLE, "").strip().lower()
    if not wanted:
        if sys.platform == "win32":
            report("windows", "cwsink spools on Linux and macOS only. On Windows records go to stderr.")
            return "stderr"
        return "stdout" if is_lambda(env) else "cloudwatch"
    for each in get_args(Place):
        if wanted == each:
            return each  # type: ignore[no-any-return]  # a member of Place
    raise ConfigError(f"{VARIABLE}={env[VARIABLE]!r}: choose one of {', '.join(get_args(Place))}.")


def is_lambda(env: Mapping[str, str]) -> bool:
    """Tell whether this is AWS Lambda. It freezes the process between two calls, and throws its disk away."""
    return bool(env.get("AWS_LAMBDA_FUNCTION_NAME") and env.get("LAMBDA_TASK_ROOT"))


def choose(config: object = None, **settings: Unpack[Settings]) -> tuple[Place, SinkConfig]:
    """Return where this process's records go, and the settings. Raises ConfigError."""
    where = place(os.environ)
    if where != "cloudwatch":
        return where, load_config(config, **settings)  # a mistake shows on the laptop, not only on the host
    return where, load_own_config(config, **settings)


def _text_of(message: object) -> str | None:
    """Return the text that a spool would take; None if it would refuse the message."""
    text = record.text_of(message)
    if not text:
        what = f"a message of type {type(message).__name__} that is empty or no text"
    elif (size := len(record.encode(record.Event(0, 0, 0, text)))) > record.MAX_PAYLOAD_BYTES:
        what = f"a message of {size:,} bytes; {record.MAX_PAYLOAD_BYTES:,} is the most"
    else:
        return text
    report("refused_unencodable", f"LOST {what}. A spool refuses it, too; the application goes on.")
    return None


def _stream(name: str) -> Any:
    """Return the stream of this name. None: this process has none.

    A worker of Celery logs what is printed, as a warning. With `-l ERROR` nothing of it would be seen, and else our
    record would be in a line of Celery's. So what is printed here goes where the process began to print.
    """
    stream = getattr(sys, name, None)
    proxy = getattr(sys.modules.get("celery.utils.log"), "LoggingProxy", ())
    return getattr(sys, f"__{name}__") if isinstance(stream, proxy) else stream


class Console(sharing.Shared):
    """Prints records, a line each. Safe from threads and across forks; raises only what a signal handler raises."""

    is_usable = is_healthy = True

    def __init__(self, where: Place, config: SinkConfig, *, adds_fields: bool = False) -> None:
        """`where`: the stream; "off": no stream. `config`, `adds_fields`: as of a writer. Raises ConfigError."""
        self.config = config
        self._fields = static_fields.encode(config, None) if adds_fields else ""
        self._where = where

    def append(self, message: str | bytes, timestamp_ms: int | None = None) -> bool:
        """Print one event. Its time is not shown.

        False: the stream cannot be written, or a spool would refuse the message, too, which is said on stderr.
        """
        try:
            text = _text_of(message)
        except Exception as error:
            return self.count_internal_error(error)
        if text is None:
            return False
        if self._fields:
            text = str(static_fields.add_to_text(text, self._fields))
        if self._where == "off":
            return True
        with suppress(Exception):  # the stream may be closed, or gone, or any object that the application has put there
            stream = _stream(self._where)
            encoding = getattr(stream, "encoding", None) or "utf-8"
            stream.write(f"{text}\n".encode(encoding, "backslashreplace").decode(encoding))
            stream.flush()
            return True
        return False

    def count_internal_error(self, error: Exception) -> bool:
        """Say that a record was lost to an error of cwsink itself. Returns False. A signal handler's is raised."""
        if is_interruption(error):
            raise error
        report("internal_error", f"a record was lost: {type(error).__name__}: {error}")
        return False

    def flush(self, timeout: float) -> bool:
        """Return True: nothing waits here. `timeout` is as for a writer."""
        return True

    def attach(self) -> None:
        """Do nothing: there is no spool."""

    def close(self) -> None:
        """Do nothing: there is no spool."""
