"""A member of a world, in its own process: it takes on its identity, and does its acts (see `plan`)."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import fapilog
import msgspec

import cwsink
from cwsink import Writer
from cwsink.cli import main as command_line
from cwsink.config import load_config
from cwsink.frontends import writer as writer_module
from cwsink.spool import ring
from tests.faults.world.book import BEGUN, ENDING, ISSUED, REFUSED, REFUSED_LIMITED, STAYING, TAKEN, Book
from tests.faults.world.plan import EXCUSES, HEARTBEAT_SECONDS, Act, Line, Member, lines_of
from tests.faults.world.surroundings import become

# What `cwsink run` runs. It is a new interpreter, which has to be told where the modules are.
_BELOW_RUN: Final = (
    "import json, sys\nsys.path[:0] = json.loads(sys.argv[1])\n"
    "from tests.faults.world.member import log\nlog(json.loads(sys.argv[2]))\n"
)
_FILE_BYTES: Final = 4096  # under the limit "size"
_OUR_DESCRIPTORS: Final = 3  # 0, 1 and 2 are in use, so under the limit "files" no other number is left

_time, _time_ns = time.time, time.time_ns
_LIMITS: Final = {"files": (resource.RLIMIT_NOFILE, _OUR_DESCRIPTORS), "size": (resource.RLIMIT_FSIZE, _FILE_BYTES)}
_BEFORE: Final = {kind: resource.getrlimit(kind) for kind, _ in _LIMITS.values()}


def work(spec: dict[str, Any]) -> None:
    """Be a member. `spec`: its `member`, the `user` id or None, its `root`, `book`, `stderr` and common `settings`."""
    member = msgspec.convert(spec["member"], Member)
    said = os.open(spec["stderr"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(said, 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # stdout is the pipe on which the warm process answers the test
    os.environ.update({"AWS_ACCESS_KEY_ID": member.key, "HOME": spec["home"], **member.env})
    if spec["user"] is not None:
        become(spec["user"])
    if member.role == "flush":
        sys.exit(command_line(["flush", spec["root"]]))
    if member.role == "run":
        below = [sys.executable, "-c", _BELOW_RUN, json.dumps(sys.path), json.dumps(spec)]
        sys.exit(command_line(["run", "--drain-timeout", "2", "--spool", spec["root"], "--", *below]))
    log(spec)


def log(spec: dict[str, Any]) -> None:
    """Do all acts, log a line now and then until told to end, and end."""
    member = msgspec.convert(spec["member"], Member)
    book = Book(Path(spec["book"]))
    book.begin(os.getpid())
    logger = _Logger(member, book, _appender(member, {**spec["settings"], **member.settings}), spec["next_user"])
    *acts, heartbeats = lines_of(member)
    for act, lines in zip(member.acts, acts, strict=True):
        logger.do(act, lines)
        book.reach(BEGUN)
    book.reach(STAYING)
    for line in heartbeats:
        if book.is_told_to_end or member.leaves_early:
            break
        logger.log(line)
        time.sleep(HEARTBEAT_SECONDS)
    book.reach(ENDING)
    if member.ending == "os._exit":
        os._exit(0)
    elif member.ending == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)


def _appender(member: Member, settings: dict[str, Any]) -> Callable[[str], bool]:
    if member.role != "fapilog":
        return Writer(load_config(settings)).append
    cwsink.install()
    chosen = fapilog.Settings()
    chosen.core.sinks = ["cwsink"]
    chosen.sink_config.extra["cwsink"] = settings
    logger = fapilog.get_logger(settings=chosen)

    def log_it(text: str) -> bool:
        logger.info(text)
        return True

    return log_it


class _Logger:
    """Does one act after the other."""

    def __init__(self, member: Member, book: Book, append: Callable[[str], bool], next_user: int | None) -> None:
        self._member = member
        self._book = book
        self._append = append
        self._next_user = next_user
        self._limit = ""

    def do(self, act: Act, lines: list[Line]) -> None:
        if act.do == "log" and act.threads == 1:
            self._log_all(lines, act.gap_seconds)
        elif act.do == "log":
            self._log_in_threads(act, lines)
        elif act.do == "fork":
            pid = os.fork()
            if pid == 0:
                self._log_all(lines, act.gap_seconds)
                os._exit(0)
            os.waitpid(pid, 0)
        elif act.do == "pause":
            time.sleep(act.seconds)
        elif act.do == "limit":
            self._limit = act.limit
            _limit(act.limit)
        elif act.do == "lift":
            self._limit = ""
            _lift()
        elif act.do == "clock":
            _shift_clock(act.seconds)
        elif act.do == "user" and self._next_user is not None:
            become(self._next_user)

    def log(self, line: Line) -> None:
        self._book.note(line.number, ISSUED)
        refused = REFUSED_LIMITED if self._limit in EXCUSES else REFUSED
        self._book.note(line.number, TAKEN if self._append(line.text) else refused)

    def _log_all(self, lines: list[Line], gap_seconds: float) -> None:
        for line in lines:
            self.log(line)
            if gap_seconds:
                time.sleep(gap_seconds)

    def _log_in_threads(self, act: Act, lines: list[Line]) -> None:
        threads = [
            threading.Thread(target=self._log_all, args=(lines[each :: act.threads], act.gap_seconds))
            for each in range(act.threads)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()


def _limit(name: str) -> None:
    kind, most = _LIMITS[name]
    resource.setrlimit(kind, (most, _BEFORE[kind][1]))


def _lift() -> None:
    for kind, limits in _BEFORE.items():
        resource.setrlimit(kind, limits)


def _shift_clock(seconds: float) -> None:
    """Have this process's clock show so much too much."""
    time.time = lambda: _time() + seconds
    time.time_ns = lambda: _time_ns() + int(seconds * 1e9)
    for module in (ring, writer_module):
        module.time_ns = time.time_ns  # type: ignore[attr-defined]
