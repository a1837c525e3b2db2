"""A world of processes with different identities, budgets, limits, clocks and ends, drawn from a seed: nothing breaks.

Several real processes of two users log into shared roots: with credentials that CloudWatch denies or takes, with their
own flusher, another one or none, with other settings for the same spool. The server refuses by content, denies by
identity, throttles, drips and goes away. Limits come and go, clocks step, and everybody may be killed at any moment.

The verdict is from outside (tests.faults.world.verdict): each line whose append was acknowledged is delivered, a dead
letter, evicted by its own spool's policy, or pending; the lines of a thread arrive in order, and twice only where an
answer was lost or a leader killed; what can be delivered is delivered within 60 s; the ledger adds up; and nothing of
ours is left. A breach is reported with its seed, the members, the steps, and what was said on stderr.

Invariants 1, 2, 3, 4, 5, 10.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink.testing import StrictCloudWatch
from cwsink.testing.flushers import end_flushers
from tests.conftest import Spawn
from tests.faults.world import processes
from tests.faults.world.engine import Happening
from tests.faults.world.plan import Plan, draw
from tests.faults.world.scenes import SCENES
from tests.faults.world.surroundings import count_users, mounting_command
from tests.integration.test_target import Sts, sts  # noqa: F401
from tests.soak import SEED_VARIABLE

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="not run: looks into /proc"),
]

SHORT_SEEDS = (12, 23)
SHORT_STEPS = 8
MANY_WORLDS = 12
LONG_STEPS = 30

Happen = Callable[[Plan, str], Happening]


@pytest.fixture
def happen(
    server: StrictCloudWatch,
    sts: Sts,  # noqa: F811  # the fixture, which takes care that botocore asks it
    spawn: Spawn,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Happen]:
    """Let a world happen, in a directory that other users may enter; whatever lives of it at the end is killed."""
    place = Path(tempfile.mkdtemp(prefix="cwsink-world-"))
    place.chmod(0o755)
    monkeypatch.setenv(processes.MARK, str(place))
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)

    def start(plan: Plan, name: str) -> Happening:
        happening = Happening(plan, server, spawn, place, name=name)
        happening.happen()
        return happening

    yield start
    for pid in processes.marked(place):
        processes.kill(pid)
    end_flushers(place)
    shutil.rmtree(place)


def happen_by_seed(happen: Happen, seed: int, steps: int) -> None:
    plan = draw(seed, users=count_users(), has_small_disk=bool(mounting_command()), length=steps)
    print(happen(plan, f"seed {seed}, {steps} steps").told())


@pytest.mark.parametrize("seed", SHORT_SEEDS)
def test_a_world_breaks_no_promise(happen: Happen, seed: int) -> None:
    """A few steps of a few worlds: what was acknowledged is accounted for, in order, once, and soon."""
    happen_by_seed(happen, seed, SHORT_STEPS)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("world", range(MANY_WORLDS))
def test_many_worlds_break_no_promise(happen: Happen, world: int) -> None:
    """12 longer ones, others in each round of `scripts/soak world`."""
    happen_by_seed(happen, 1_000 * int(os.environ.get(SEED_VARIABLE, "1")) + world, LONG_STEPS)


@pytest.mark.long
@pytest.mark.parametrize("scene", SCENES)
def test_the_world_finds_what_once_went_wrong(happen: Happen, scene: str) -> None:
    """A small world that has just what it takes for one known defect: no promise is broken."""
    happen(SCENES[scene], scene)
