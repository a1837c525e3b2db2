"""Hostile spools: whoever looks at one, writes to it or leads it ends soon, needs little, and touches nothing outside.

Each input is a spool with hostile content (`tests.faults.hostile_spools`), beside one that is as it should be. A forked
child, of another user where the test runs as root, looks at them (`status`, `check`, `tail`, `replay --dry-run`),
appends 20 records and leads the hostile one twice. What must not happen:

* a step computes for more than 2 s, or waits so long; a busy machine is slow, too, so a slow input is tried again;
* the child takes more than 200 MiB;
* an exception comes out, or a command that has looked away says MemoryError;
* two leaders fail one after the other;
* what is printed has a character that acts on a terminal, or does not show the other spool;
* a byte is written outside.

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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, NoReturn
from unittest import mock

import pytest

from cwsink.cli import main
from cwsink.errors import CwsinkError
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.frontends.writer import Writer
from cwsink.printable import printable
from cwsink.spool import directory
from tests.faults import test_damaged_spools
from tests.faults.hostile_spools import mutate
from tests.faults.test_damaged_spools import Image, config_for, forget, lead
from tests.harness.fake_cloudwatch import FakeCloudWatch
from tests.soak import SEED_VARIABLE

pytestmark = pytest.mark.faults
image = test_damaged_spools.image  # the fixture

# Together they take about a minute.
CASES: Final = 80
CHUNK: Final = 40
LONG_CASES: Final = 20_000
USER: Final = 65_534
STEP_SECONDS: Final = 2.0
# Who waits longer than this in all is killed.
MOST_SECONDS: Final = 60.0
TRIES: Final = 3
MOST_MORE_BYTES: Final = 200 << 20
RECORDS: Final = 20
LOOKS: Final = (
    ["status"],
    ["status", "--json"],
    ["check"],
    ["tail", "-n", "50"],
    ["tail", "--since", "24000h"],
    ["replay", "--all", "--dry-run"],
)
NEIGHBOUR: Final = "neighbour.0123456789"


def spent() -> tuple[float, float]:
    """Return for how many seconds this process has computed, and has waited for something else than for the CPU."""
    computed = time.process_time()
    for_cpu = 0.0
    with contextlib.suppress(OSError):
        for_cpu = int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return computed, time.monotonic() - computed - for_cpu


class Told:
    """Says to the parent which step is on, and what has gone wrong in it."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @contextlib.contextmanager
    def of(self, name: str) -> Iterator[None]:
        self._say("begin", name)
        began = spent()
        try:
            yield
        except CwsinkError:  # a clear refusal
            pass
        except BaseException:
            self._say("error", f"{name}: {traceback.format_exc()}")
        computed, waited = (now - before for now, before in zip(spent(), began, strict=True))
        if max(computed, waited) > STEP_SECONDS:
            self._say("slow", f"{name} computes for {computed:.1f} s, and waits for {waited:.1f} s")

    def fail(self, text: str) -> None:
        self._say("error", text)

    def _say(self, kind: str, text: str) -> None:
        os.write(self._fd, json.dumps([kind, text[-3_000:]]).encode() + b"\n")


def live(root: Path, spool: Path, step: Told) -> None:
    """Do to the spool what people and processes do."""
    for words in LOOKS:
        with step.of(" ".join(words)), printed() as words_of_it:
            code = main([words[0], *words[1:], str(root)])
            if code not in (0, 1, 2):
                step.fail(f"{words} ended with {code}")
            said = words_of_it()
            if said != printable(said):
                step.fail(f"{words} prints {said!r}")
            if "MemoryError" in said:
                step.fail(f"{words}: {said}")
            # Without another spool that can be opened, `tail` has no headings.
            shown = {"tail": "pending pending", "check": "spool"}.get(words[0], NEIGHBOUR)
            if NEIGHBOUR not in said and shown not in said:
                step.fail(f"{words} does not show the other spool: {said}")
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


@contextlib.contextmanager
def printed() -> Iterator[Callable[[], str]]:
    """Collect what is printed in the block."""
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(out):
        yield out.getvalue


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


class SlowError(AssertionError):
    """A step took too long, perhaps because the machine is busy."""


def outcome_of(root: Path, spool: Path) -> str | None:
    """Run the child. Returns what has gone wrong, or None. Raises SlowError."""
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
        raise SlowError(f"hangs in {last}")
    if os.WIFSIGNALED(status):
        return f"ended by signal {os.WTERMSIG(status)} in {last}"
    if slow := [text for kind, text in said if kind == "slow"]:
        raise SlowError(slow[0])
    return errors[0] if errors else None if said and said[-1][0] == "end" else f"ended in {last}"


def state_of(base: Path) -> list[object]:
    """All that is outside of the root, with the names in the root itself."""
    outside = [base / "outside" / name for name in os.listdir(base / "outside")]
    held = sorted((each.name, each.read_bytes(), each.stat().st_mode, each.stat().st_mtime_ns) for each in outside)
    return [sorted(os.listdir(base)), sorted(os.listdir(base / "roots")), held]


def lay_out(intact: Image, base: Path) -> tuple[Path, Path]:
    """Make the spool below `base`, and a directory outside of its root. Returns the root and the spool."""
    root, outside = base / "roots", base / "outside"
    spool = root / intact.name
    root.mkdir(parents=True)
    for place in (spool, root / NEIGHBOUR):
        (place / "ring").mkdir(parents=True, mode=0o700)
        for each in (root, place, place / "ring"):
            each.chmod(0o700)
        for name, content in intact.files.items():
            (place / name).write_bytes(content)
            (place / name).chmod(0o600)
        os.utime(place / "leader.host", (1, 1))
    own_name(root / NEIGHBOUR)
    outside.mkdir()
    for name in ("precious", "precious.tmp", "0000000001.seg"):
        (outside / name).write_text("not ours")
        os.utime(outside / name, (1, 1))
    return root, spool


def own_name(spool: Path) -> None:
    """Give a spool the name of its directory as its log group, so that it is known in what is printed."""
    content = json.loads((spool / "FORMAT").read_text())
    del content["checksum"]
    content["log_group_name"] = spool.name
    (spool / "FORMAT").write_text(json.dumps({**content, "checksum": directory._checksum(content)}))


def load(intact: Image, base: Path) -> None:
    """Do it once here with what is no hostile spool: the children, of another user, may not be able to load modules."""
    root, spool = lay_out(intact, base)
    ours, theirs = os.pipe()
    cloudwatch = FakeCloudWatch(lambda: time.time_ns() // 1_000_000)
    with contextlib.redirect_stderr(io.StringIO()), mock.patch.object(CloudWatch, "put", cloudwatch.method()):
        live(root, spool, Told(theirs))
    os.close(theirs)
    with open(ours) as file:
        assert "error" not in file.read()


def check(intact: Image, base: Path, seed: int) -> str | None:
    """One hostile spool. Returns what has gone wrong, or None. Raises SlowError."""
    base.mkdir()
    try:
        root, spool = lay_out(intact, base)
        changes = mutate(spool, random.Random(seed))
        if os.geteuid() == 0:
            for path in (base, *base.rglob("*")):
                os.lchown(path, USER, USER)
        before = state_of(base)
        try:
            trouble = outcome_of(root, spool)
        except SlowError as error:
            raise SlowError(f"input {seed}, {changes}: {error}") from None
        if trouble is None and state_of(base) != before:
            trouble = f"something outside was touched: {before} {state_of(base)}"
        return None if trouble is None else f"input {seed}, {changes}: {trouble}"
    finally:
        for path in base.rglob("*"):
            if path.is_dir() and not path.is_symlink():
                path.chmod(0o700)
        shutil.rmtree(base)


def check_again_if_slow(intact: Image, base: Path, seed: int) -> str | None:
    """Do as `check`, and believe that an input is slow if it is so each time."""
    for _ in range(TRIES):
        try:
            return check(intact, base, seed)
        except SlowError as error:  # noqa: PERF203  # once a thousand inputs
            slow = str(error)
    return slow


def check_many(intact: Image, seeds: Iterator[int] | range) -> int:
    """Returns how many there were. Fails with all that has gone wrong."""
    place = Path(tempfile.mkdtemp(prefix="cwsink-fuzz-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None))
    place.chmod(0o755)
    count, troubles = 0, []
    try:
        load(intact, place / "intact")
        for seed in seeds:
            trouble = check_again_if_slow(intact, place / str(seed), seed)
            troubles += [trouble] if trouble is not None else []
            count += 1
    finally:
        shutil.rmtree(place, ignore_errors=True)
    assert not troubles, "\n".join([f"{len(troubles)} of {count} inputs:", *troubles[:20]])
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
