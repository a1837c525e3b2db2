"""The life of the flusher that starts by itself, as a machine of random steps with real processes.

Programs log into two spools of one root. They start and end, in order and by SIGKILL; some are of a newer cwsink, some
have no credentials; the newer installation is replaced while it runs; the flusher, its guard or both are killed. The
machine knows what was acknowledged and who lives, and compares: with what the strict server stored, and with what
/proc shows.

Invariant 5.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import pytest

import cwsink
from cwsink.spool import flusher_lock, leader_state
from cwsink.spool.directory import open_existing
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.faults.own_processes import FLUSHER, GUARD, kill, named, ours
from tests.harness.support import CHILD_SECONDS
from tests.soak import SEED_VARIABLE

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="not run: looks into /proc"),
]

STEPS: Final = 45
MANY_EPISODES: Final = 25
SPOOLS: Final = ("/life/one", "/life/two")
MOST_PROGRAMS: Final = 5
DRAIN_SECONDS: Final = 2.0
# No process of ours is left so long after drain_timeout_seconds ...
GONE_SECONDS: Final = 5.0
# ... on a machine that has time for it: these tests run beside others.
CROWDED_SECONDS: Final = 10.0
# Guards against a hang. The longest wait that is meant is a guard's whose flusher is killed again and again: 30 s.
HANG_SECONDS: Final = 90.0
BATCH: Final = 20
NO_CREDENTIALS: Final = {
    "AWS_ACCESS_KEY_ID": "",
    "AWS_SECRET_ACCESS_KEY": "",
    "AWS_CONFIG_FILE": os.devnull,
    "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
}

# A program that logs each line of stdin, and says what the append returned.
PROGRAM: Final = """
import sys
sys.path.insert(0, {home!r})
import cwsink
settings = {settings!r}
writer = cwsink.Writer.open(log_stream_name="s", **settings)
print(cwsink.__version__, flush=True)
for line in sys.stdin:
    print(writer.append(line.strip()), flush=True)
"""


class Installation:
    """A copy of the package, of a later version than the one under test, which is upgraded in place."""

    def __init__(self, place: Path) -> None:
        self.home = str(place)
        self._upgrades = 0
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(Path(cwsink.__file__).parent, place / "cwsink", ignore=ignored)
        self._init = place / "cwsink" / "version.py"
        self._text = self._init.read_text(encoding="utf-8")
        self.upgrade()

    @property
    def version(self) -> str:
        return f"99.0.{self._upgrades}"

    def upgrade(self) -> None:
        """Replace a file, as an installer does. Each time it is longer: of one second, Python tells files by size."""
        self._upgrades += 1
        text = self._text.replace(f'"{cwsink.__version__}"', f'"{self.version}"') + "#" * self._upgrades
        assert self.version in text
        new = self._init.with_suffix(".new")
        new.write_text(text, encoding="utf-8")
        os.replace(new, self._init)


class Program:
    """An application that logs what it is told to."""

    def __init__(self, child: subprocess.Popen[str], group: str, *, has_credentials: bool) -> None:
        self.child = child
        self.group = group
        self.has_credentials = has_credentials
        self.version = tuple(map(int, self._line().split(".")))

    def log(self, message: str) -> bool:
        assert self.child.stdin is not None
        self.child.stdin.write(message + "\n")
        self.child.stdin.flush()
        return self._line() == "True"

    def _line(self) -> str:
        assert self.child.stdout is not None
        line = self.child.stdout.readline().strip()
        if not line:
            assert self.child.stderr is not None
            raise AssertionError(f"a program has ended: {self.child.stderr.read()}")
        return line

    def end(self) -> None:
        """Let it come to its end, as a program does."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        assert self.child.wait(CHILD_SECONDS) == 0

    def kill(self) -> None:
        self.child.kill()
        self.child.wait(CHILD_SECONDS)


class Life:
    """A root with its programs, and what must hold."""

    def __init__(self, server: StrictCloudWatch, spawn: Spawn, place: Path, seed: int) -> None:
        self.root = place / "spools"
        self.chance = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self._server = server
        self._spawn = spawn
        self._newer = Installation(place / "newer")
        self._programs: list[Program] = []
        self._acknowledged: dict[str, str] = {}  # message: group
        self._issued = 0
        self._trace: list[str] = []
        self._longest_end_seconds = 0.0

    # Steps.

    def run(self, steps: int) -> None:
        """Take so many steps, and come to an end; say which ones they were if something does not hold."""
        able: dict[str, Callable[[], None]] = {
            "start": self.start,
            "log": self.log,
            "end": self.end_one,
            "kill_program": self.kill_program,
            "kill_flusher": lambda: self.kill_ours(FLUSHER),
            "kill_guard": lambda: self.kill_ours(GUARD),
            "kill_both": lambda: self.kill_ours(FLUSHER, GUARD),
            "upgrade": self._newer.upgrade,
            "rest": lambda: time.sleep(self.chance.choice((0.05, 0.5, 2.5))),
            "settle": self.settle,
        }
        weights = [6, 8, 3, 3, 3, 2, 3, 1, 2, 2]
        try:
            for name in ["start", *self.chance.choices(list(able), weights, k=steps), "settle", "leave"]:
                self._trace.append(name)
                self.counts[name] += 1
                (able.get(name) or self.leave)()
                self._look()
        except AssertionError as error:
            raise AssertionError(f"{error}\nafter {' '.join(self._trace)}") from error

    def start(self, *, group: str = "", is_plain: bool = False) -> None:
        if len(self._programs) >= MOST_PROGRAMS:
            return
        is_newer = not is_plain and self.chance.random() < 0.3
        has_credentials = is_plain or self.chance.random() < 0.8
        group = group or self.chance.choice(SPOOLS)
        settings = {
            "log_group_name": group,
            "endpoint_url": self._server.endpoint_url,
            "batch_timeout_seconds": 0.1,
            "max_batch_events": BATCH,
            "retry_base_delay": 0.05,
            "drain_timeout_seconds": DRAIN_SECONDS,
        }
        home = self._newer.home if is_newer else str(Path(cwsink.__file__).parent.parent)
        env = {} if has_credentials else NO_CREDENTIALS
        child = self._spawn(PROGRAM.format(home=home, settings=settings), env={"PYTHONPATH": "", **env})
        self._programs.append(Program(child, group, has_credentials=has_credentials))
        self._trace.append(f"({len(self._programs)}: {group}{', newer' * is_newer}{', no credentials' * bool(env)})")
        self._log(self._programs[-1])

    def log(self) -> None:
        for program in self._programs:
            for _ in range(self.chance.choice((0, 1, 2, BATCH))):
                self._log(program)

    def end_one(self) -> None:
        if self._programs:
            self._pop().end()

    def kill_program(self) -> None:
        if self._programs:
            self._pop().kill()

    def kill_ours(self, *names: str) -> None:
        for each in ours(self.root):
            if each.name in names:
                self.counts[f"{each.name} killed"] += kill(each, self.root)

    def settle(self) -> None:
        """While a program with credentials logs, nothing waits where one lives, the newest version leads."""
        able = [program for program in self._programs if program.has_credentials]
        if not able:
            return
        in_use = {program.group for program in self._programs}
        expected = {message for message, group in self._acknowledged.items() if group in in_use}
        self._until(lambda: expected <= set(self._server.messages()), "all that was acknowledged has arrived")
        newest = max(self._programs, key=lambda program: program.version)
        if newest.has_credentials:
            self._until(lambda: self._version_of(newest.group) >= newest.version, "the newest version leads")
        self._until(lambda: len(ours(self.root)) == 1 + len(named(self.root, GUARD)) <= 2, "one flusher, one guard")

    def leave(self) -> None:
        """All programs end. The flusher goes, and what it could not send a later program's does."""
        while self._programs:
            (self.end_one if self.chance.random() < 0.5 else self.kill_program)()
        began = time.monotonic()
        until = began + DRAIN_SECONDS + GONE_SECONDS + CROWDED_SECONDS
        while left := ours(self.root):
            assert time.monotonic() < until, f"still there after {time.monotonic() - began:.1f} s: {left}"
            self._look()
            time.sleep(0.02)
        self._longest_end_seconds = max(self._longest_end_seconds, time.monotonic() - began)
        assert not flusher_lock.is_taken(str(self.root))
        for group in SPOOLS:
            self.start(group=group, is_plain=True)
        self.settle()
        while self._programs:
            self.end_one()
        self._verify()

    # What must hold.

    def _look(self) -> None:
        assert len(found := named(self.root, FLUSHER)) <= 1, f"two flushers: {found}"

    def _verify(self) -> None:
        messages = self._server.messages()
        assert self._acknowledged.keys() <= set(messages), f"lost: {self._acknowledged.keys() - set(messages)}"
        senders: dict[tuple[str | None, int | None], set[str]] = {}
        for request in self._server.requests:
            senders.setdefault((request.group, request.epoch), set()).add(request.sender)
        assert all(len(each) == 1 for each in senders.values()), senders
        # Who is killed may have had a batch under way in each spool.
        killed = self.counts[f"{FLUSHER} killed"]
        assert len(messages) - len(set(messages)) <= BATCH * len(SPOOLS) * killed, f"{killed} flushers were killed"

    def _until(self, condition: Callable[[], bool], claim: str) -> None:
        """Wait, while all programs go on logging: it is an append that sees that somebody leads."""
        until = time.monotonic() + HANG_SECONDS
        poke_at = 0.0
        while not condition():
            assert time.monotonic() < until, f"never: {claim}; {ours(self.root)}; {self._leaders()}"
            self._look()
            if time.monotonic() >= poke_at:
                poke_at = time.monotonic() + 0.3
                for program in self._programs:
                    self._log(program)
            time.sleep(0.02)

    def _log(self, program: Program) -> None:
        self._issued += 1
        message = f"{self._issued:06d} of {program.child.pid}"
        if program.log(message):
            self._acknowledged[message] = program.group

    def _pop(self) -> Program:
        return self._programs.pop(self.chance.randrange(len(self._programs)))

    def _leaders(self) -> list[Any]:
        spools = [marker.parent for marker in self.root.glob("*/FORMAT")]
        return [leader_state.read(open_existing(str(spool))) for spool in spools]

    def _version_of(self, group: str) -> tuple[int, ...]:
        for marker in self.root.glob("*/FORMAT"):
            spool = open_existing(str(marker.parent))
            if spool.format.log_group_name == group and (found := leader_state.read(spool)) is not None:
                return tuple(map(int, found.version.split(".")))
        return ()

    def told(self) -> str:
        counts = self.counts
        return (
            f"{sum(counts[name] for name in ('start', 'end', 'kill_program', 'log'))} steps of programs, "
            f"{counts[f'{FLUSHER} killed']} flushers and {counts[f'{GUARD} killed']} guards killed, "
            f"{len(self._acknowledged)} records acknowledged and delivered, "
            f"the last process gone after {self._longest_end_seconds:.1f} s"
        )


def live(server: StrictCloudWatch, spawn: Spawn, place: Path, seed: int) -> None:
    life = Life(server, spawn, place, seed)
    life.run(STEPS)
    print(life.told())


@pytest.mark.timeout(400)
def test_the_flusher_lives_as_long_as_it_is_needed(server: StrictCloudWatch, spawn: Spawn, tmp_path: Path) -> None:
    """45 random steps: one sender an epoch, all arrives, nobody waits for ever, and no process stays."""
    live(server, spawn, tmp_path, int(os.environ.get(SEED_VARIABLE, "1")))


@pytest.mark.long
@pytest.mark.timeout(1_200)
@pytest.mark.parametrize("episode", range(MANY_EPISODES))
def test_the_flusher_lives_many_lives(server: StrictCloudWatch, spawn: Spawn, tmp_path: Path, episode: int) -> None:
    """25 other lives of as many steps, others in each round of `scripts/soak`."""
    live(server, spawn, tmp_path, 1_000 * int(os.environ.get(SEED_VARIABLE, "1")) + episode)
