"""Hostile spools: whoever looks at one, writes to it or leads it ends soon, needs little, and touches nothing outside.

Each input is a spool with hostile content (`tests.faults.hostile_spools`). A forked child, of another user where the
test runs as root, looks at it (`status`, `tail`, `replay --dry-run`), appends 20 records and leads it twice. The
parent, outside, measures: time of the CPU, memory, exceptions, and a directory beside the root.

Invariant 7.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NoReturn
from unittest import mock

import pytest

from cwsink.cli import main
from cwsink.errors import CwsinkError
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.frontends.writer import Writer
from cwsink.spool import directory
from tests.faults import test_damaged_spools
from tests.faults.hostile_spools import mutate
from tests.faults.test_damaged_spools import Image, config_for, forget, lead
from tests.harness.fake_cloudwatch import FakeCloudWatch
from tests.soak import SEED_VARIABLE

pytestmark = pytest.mark.faults
image = test_damaged_spools.image  # the fixture

CASES: Final = 120
CHUNK: Final = 40
LONG_CASES: Final = 20_000
USER: Final = 65_534
# Of the CPU, for all that the child does. A machine that is busy with other tests does not count against it.
MOST_CPU_SECONDS: Final = 4
# Who waits for a FIFO or a lock uses no CPU: so long is a hang.
MOST_SECONDS: Final = 40.0
MOST_MORE_BYTES: Final = 200 << 20
RECORDS: Final = 20


class Told:
    """Says to the parent which step is on, and what has gone wrong in it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        self._say("begin", name)
        try:
            yield
        except CwsinkError:  # a clear refusal
            pass
        except BaseException:
            self._say("error", f"{name}: {traceback.format_exc()}")

    def fail(self, text: str) -> None:
        self._say("error", text)

    def _say(self, kind: str, text: str) -> None:
        os.write(self._fd, json.dumps([kind, text[-3_000:]]).encode() + b"\n")


def live(root: Path, spool: Path, step: Told) -> None:
    """Do to the spool what people and processes do."""
    for words in (["status"], ["status", "--json"], ["tail", "-n", "50"], ["replay", "--all", "--dry-run"]):
        with step.of(" ".join(words)):
            code = main([words[0], *words[1:], str(root)])
            if code not in (0, 1):
                step.fail(f"{words} ended with {code}")
    config = config_for(str(root))
    writer = None
    with step.of("append"):
        writer = Writer(config)
        for number in range(RECORDS):
            writer.append(f"live {number}")
    if writer is not None:
        with step.of("close"):
            forget(writer)
    failures = []
    for _ in range(2):
        with step.of("lead"):
            opened = directory.open_existing(str(spool))
            try:
                lead(opened, config)
            except CwsinkError:
                raise
            except Exception as error:
                failures.append("".join(traceback.format_exception(error)))
    if len(failures) == 2:
        step.fail(f"two leaders fail: {failures[1]}")


def child(root: Path, spool: Path, fd: int) -> NoReturn:
    step = Told(fd)
    try:
        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(USER)
            os.setuid(USER)
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        resource.setrlimit(resource.RLIMIT_CPU, (MOST_CPU_SECONDS, MOST_CPU_SECONDS))
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MOST_MORE_BYTES, used + MOST_MORE_BYTES))
        cloudwatch = FakeCloudWatch(lambda: time.time_ns() // 1_000_000)
        with mock.patch.object(CloudWatch, "put", cloudwatch.method()):
            live(root, spool, step)
        step._say("end", "")
    except BaseException:
        step.fail(traceback.format_exc())
    finally:
        os._exit(0)


def outcome_of(root: Path, spool: Path) -> str | None:
    """Run the child. Returns what has gone wrong, or None."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(ours)
        child(root, spool, theirs)
    os.close(theirs)
    until = time.monotonic() + MOST_SECONDS
    ended = 0
    while not ended and time.monotonic() < until:
        ended, status = os.waitpid(pid, os.WNOHANG)
        time.sleep(0.002)
    if not ended:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    with open(ours, "rb") as file:
        said = [json.loads(line) for line in file.read().splitlines()]
    last = next((text for kind, text in reversed(said) if kind == "begin"), "nothing")
    errors = [text for kind, text in said if kind == "error"]
    if not ended:
        return f"hangs in {last}"
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)} in {last}"
    return errors[0] if errors else None if said and said[-1][0] == "end" else f"ended in {last}"


def state_of(place: Path) -> list[tuple[str, bytes, int, int]]:
    return [(each.name, each.read_bytes(), each.stat().st_mode, each.stat().st_mtime_ns) for each in place.iterdir()]


def lay_out(intact: Image, base: Path) -> tuple[Path, Path]:
    """Make the spool below `base`, and a directory outside of its root. Returns the root and the spool."""
    root, outside = base / "roots", base / "outside"
    spool = root / intact.name
    (spool / "ring").mkdir(parents=True, mode=0o700)
    for place in (root, spool, spool / "ring"):
        place.chmod(0o700)
    for name, content in intact.files.items():
        (spool / name).write_bytes(content)
        (spool / name).chmod(0o600)
    os.utime(spool / "leader.host", (1, 1))
    outside.mkdir()
    for name in ("precious", "precious.tmp", "0000000001.seg"):
        (outside / name).write_text("not ours")
        os.utime(outside / name, (1, 1))
    return root, spool


def load(intact: Image, base: Path) -> None:
    """Do it once here with what is no hostile spool: the children, of another user, may not be able to load modules."""
    root, spool = lay_out(intact, base)
    ours, theirs = os.pipe()
    cloudwatch = FakeCloudWatch(lambda: time.time_ns() // 1_000_000)
    with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(CloudWatch, "put", cloudwatch.method()):
        live(root, spool, Told(theirs))
    os.close(theirs)
    with open(ours) as file:
        assert "error" not in file.read()


def check(intact: Image, base: Path, seed: int) -> None:
    """One hostile spool."""
    root, spool = lay_out(intact, base)
    outside = base / "outside"
    changes = mutate(spool, random.Random(seed))
    if os.geteuid() == 0:
        for path in (base, *base.rglob("*")):
            os.lchown(path, USER, USER)
    before = state_of(outside)
    trouble = outcome_of(root, spool)
    assert trouble is None, f"input {seed}, {changes}: {trouble}"
    assert state_of(outside) == before, f"input {seed}, {changes}: something outside was touched"


def check_many(intact: Image, seeds: Iterator[int] | range) -> int:
    place = Path(tempfile.mkdtemp(prefix="cwsink-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    place.chmod(0o755)
    count = 0
    try:
        load(intact, place / "intact")
        for seed in seeds:
            base = place / str(seed)
            base.mkdir()
            check(intact, base, seed)
            for path in base.rglob("*"):
                if path.is_dir() and not path.is_symlink():
                    path.chmod(0o700)
            shutil.rmtree(base)
            count += 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return count


@pytest.mark.parametrize("chunk", range(CASES // CHUNK))
def test_a_hostile_spool_hurts_nobody(image: Image, chunk: int) -> None:
    """Whatever lies in it: no hang, no exception, little memory, no leader that fails twice, nothing outside."""
    check_many(image, range(chunk * CHUNK, (chunk + 1) * CHUNK))


@pytest.mark.long
@pytest.mark.timeout(7_200)
def test_many_hostile_spools(image: Image) -> None:
    """The same, 20,000 times, others in each round of `scripts/soak`."""
    first = int(os.environ.get(SEED_VARIABLE, "100")) * 1_000_000
    print(f"{check_many(image, itertools.islice(itertools.count(first), LONG_CASES))} hostile spools hurt nobody")
