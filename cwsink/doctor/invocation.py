"""Reads the words of a command as a shell would (pure): what is started in the end, as whom, with which variables.

`env`, `sudo -u`, a shell's `-c`, `cwsink run --` and their like start another program. Each of them is taken off, until
the program itself is left: `python -m gunicorn` is gunicorn.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Callable, Container, Mapping
from dataclasses import dataclass
from typing import Final

_ASSIGNMENT: Final = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)=(.*)", re.DOTALL)
SHELLS: Final = frozenset("sh bash dash ash zsh ksh busybox".split())
# They start the rest of their words, after options of their own.
_WRAPPERS: Final = frozenset(
    "exec nohup nice ionice time stdbuf tini dumb-init catatonit ddtrace-run opentelemetry-instrument command".split()
)
_RUNNERS: Final = {"poetry": "run", "uv": "run", "pipenv": "run", "pdm": "run", "hatch": "run", "newrelic-admin": None}
_PYTHON: Final = re.compile(r"(python|pypy)[\d.]*t?")
# A shell goes on after a part of a script, and is then the parent of what the part starts.
_MORE_TO_DO: Final = re.compile(r"&&|\|\||[;|&\n]")
_CD: Final = re.compile(r"cd\s+['\"]?([^'\"\s]+)['\"]?")
_WITH_VALUE: Final = frozenset("-n -c -u -C --chdir -p".split())
# Servers whose options are variables as well: UVICORN_PORT is --port.
_PREFIXES: Final = {"uvicorn": "UVICORN_", "granian": "GRANIAN_", "uwsgi": "UWSGI_", "pyuwsgi": "UWSGI_"}
_YES: Final = ("1", "true", "yes", "on")
_KEPT_BY_SUDO: Final = ("PATH", "TERM", "LANG", "DISPLAY")
_MOST_WRAPPERS: Final = 20


@dataclass
class Invocation:
    """What is started in the end.

    Attributes:
        words: the program and its arguments; the program without its directory. The options that it takes from
            variables come last, because those of the command line win.
        env: its variables.
        directory: its working directory.
        user: the user whom a wrapper has it run as; None: nobody changes that.
        below_shell: a shell stays its parent.
        drain_seconds: `--drain-timeout` of a `cwsink run` around it; None: there is none.
        typed: the program as it was typed; "" if Python runs it, as a module or a script.
    """

    words: list[str]
    env: dict[str, str]
    directory: str = "."
    user: str | None = None
    below_shell: bool = False
    drain_seconds: float | None = None
    typed: str = ""

    @property
    def program(self) -> str:
        """The name of the program; "" if there is none."""
        return self.words[0] if self.words else ""

    def option(self, *names: str) -> str | None:
        """Return the value of an option, however it is written (`--name value`, `--name=value`, `-n5`)."""
        for at, word in enumerate(self.words[1:], 1):
            for name in names:
                if word == name:
                    return self.words[at + 1] if at + 1 < len(self.words) else ""
                if word.startswith(f"{name}=") or (not name.startswith("--") and word.startswith(name)):
                    return word[len(name) :].removeprefix("=")
        return None

    def has(self, *flags: str) -> bool:
        """Tell whether one of these flags is among the words."""
        return any(word in flags for word in self.words[1:])


def read(words: list[str], env: Mapping[str, str]) -> Invocation:
    """Return what the words start in an environment. Raises ValueError: a quotation in them has no end."""
    found = Invocation(list(words), dict(env))
    for _ in range(_MOST_WRAPPERS):
        if not found.words:
            break
        before = os.path.basename(found.typed)  # such a program finds the next one in an environment of its own
        found.typed = "" if _PYTHON.fullmatch(before) or before in _RUNNERS else found.words[0]
        found.words[0] = os.path.basename(found.words[0])
        if not _take_off(found):
            break
    found.words += _options_of(found.program, found.env)
    return found


def _options_of(program: str, env: Mapping[str, str]) -> list[str]:
    """Return the options that a server takes from variables."""
    if program == "gunicorn":
        with contextlib.suppress(ValueError):  # a quotation has no end, as gunicorn will say
            return shlex.split(env.get("GUNICORN_CMD_ARGS", ""))
    prefix = _PREFIXES.get(program)
    named = {name.removeprefix(prefix): env[name] for name in env if name.startswith(prefix)} if prefix else {}
    options = {f"--{name.lower().replace('_', '-')}": value for name, value in named.items()}
    flags = [option for option, value in options.items() if value.lower() in _YES]
    return [f"{option}={value}" for option, value in options.items()] + flags  # "1" may be a number as well


def _take_off(found: Invocation) -> bool:
    """Take one wrapper off. False: there is none."""
    name = found.program
    if _ASSIGNMENT.fullmatch(name):
        found.words.insert(0, "env")
    elif name in _WRAPPERS:
        _skip_options(found)
    elif name in _RUNNERS and len(found.words) > 1:
        del found.words[:2]
    elif _PYTHON.fullmatch(name) and "-m" in found.words:
        del found.words[: found.words.index("-m") + 1]
    elif _PYTHON.fullmatch(name) and len(found.words) > 1 and not found.words[1].startswith("-"):
        del found.words[0]  # a script of an environment, such as /venv/bin/gunicorn
        return os.path.basename(found.words[0]) != found.words[0]
    elif how := _HOW.get(name) or (_shell if name in SHELLS else None):
        return how(found)
    else:
        return False
    return True


def _skip_options(found: Invocation, with_value: Container[str] = _WITH_VALUE) -> None:
    """Take off a program with its options. `with_value`: options that are followed by a value."""
    words = found.words
    del words[0]
    while words and words[0].startswith("-"):
        word = words.pop(0)
        if word == "--":
            break
        if word in with_value and words:
            del words[0]


def _env(found: Invocation) -> bool:
    words = found.words
    del words[0]
    while words:
        if assignment := _ASSIGNMENT.fullmatch(words[0]):
            found.env[assignment[1]] = assignment[2]
        elif words[0] in ("-i", "-", "--ignore-environment"):
            found.env.clear()
        elif words[0] in ("-u", "--unset") and len(words) > 1:
            found.env.pop(words.pop(1), None)
        elif words[0].startswith("--unset="):
            found.env.pop(words[0].partition("=")[2], None)
        elif words[0] in ("-C", "--chdir") and len(words) > 1:
            found.directory = os.path.join(found.directory, words.pop(1))
        elif words[0].startswith("--chdir="):
            found.directory = os.path.join(found.directory, words[0].partition("=")[2])
        elif words[0] in ("-S", "--split-string") and len(words) > 1:
            words[:2] = ["", *shlex.split(words[1])]
        elif not words[0].startswith("-"):
            break
        del words[0]
    return True


def _as_user(*names: str) -> Callable[[Invocation], bool]:
    """Return how to take off a program that changes the user: by one of these options, or by its first word."""

    def take_off(found: Invocation) -> bool:
        if not names and len(found.words) > 1:
            found.user = found.words[1].partition(":")[0]
            del found.words[:2]
            return True
        found.user = found.option(*names) or ("root" if found.program == "sudo" else found.user)
        if found.program == "sudo" and not found.has("-E", "--preserve-env"):
            found.env = {name: found.env[name] for name in _KEPT_BY_SUDO if name in found.env}
        _skip_options(found, {*names, *_WITH_VALUE})
        return True

    return take_off


def _su(found: Invocation) -> bool:
    script = found.option("-c", "--command")
    named = [word for word in found.words[1:] if not word.startswith("-") and word != script]
    found.user = named[0] if named else "root"
    found.words = ["sh", "-c", script] if script else []
    return True


def _shell(found: Invocation) -> bool:
    script = next((word for word in found.words[1:] if not word.startswith("-") and word not in SHELLS), None)
    if script is None or not any(re.fullmatch("-[a-z]*c", word) for word in found.words[1:]):
        return False
    parts = [part.strip() for part in _MORE_TO_DO.split(script) if part.strip()]
    last = parts[-1] if parts else ""
    for part in parts[:-1]:
        if match := _CD.fullmatch(part):
            found.directory = os.path.join(found.directory, match[1])
    found.below_shell |= len(parts) > 1 and not last.startswith("exec ")
    found.words = shlex.split(last)
    return True


def _cwsink(found: Invocation) -> bool:
    if found.words[1:2] != ["run"] or "--" not in found.words:
        return False
    at = found.words.index("--")
    own = Invocation(found.words[:at], {})
    if spool := own.option("--spool"):
        found.env["CWSINK_SPOOL_DIRECTORY"] = os.path.abspath(spool)
    found.drain_seconds = 10.0
    with contextlib.suppress(ValueError):
        found.drain_seconds = float(own.option("--drain-timeout") or "")
    del found.words[: at + 1]
    return True


_HOW: Final[dict[str, Callable[[Invocation], bool]]] = {
    "env": _env,
    "sudo": _as_user("-u", "--user"),
    "runuser": _as_user("-u", "--user"),
    "setpriv": _as_user("--reuid"),
    "gosu": _as_user(),
    "su-exec": _as_user(),
    "chpst": _as_user("-u"),
    "su": _su,
    "cwsink": _cwsink,
}
