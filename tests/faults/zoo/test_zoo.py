"""The process zoo: every server people run, ended in every way they end it, loses nothing that was promised.

One test for all of `SPECIES` x preload x `ENDINGS` x flavour: 100 % of the acknowledged records
arrive, the books balance, nothing is left running or lying about, one stream a host. Here are the
cells people really meet; the others are `long`, and run by `scripts/soak zoo`.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cwsink.spool import directory, segment
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.faults.zoo.endings import ENDINGS
from tests.faults.zoo.oracle import id_of
from tests.faults.zoo.servers import GROUP, HANG_SECONDS, SPECIES, Animal, Visitors

pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn")
pytest.importorskip("celery")

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="sees the processes of a session in /proc"),
]
SEED_VARIABLE = "CWSINK_SOAK_SEED"
SERVERS = [name for name, species in SPECIES.items() if species.serves]
GENERATIONS = {"celery": 6}  # its parent replaces ended children once in 5 s
MOST_GENERATIONS = 60
SLOW_SECONDS = 4
RECORDS_BEFORE = 100
PASSING_DESCRIPTORS = 6

# What may lie in a spool afterwards. Who was ended while replacing one of the last three leaves the new one beside it,
# under a name that the next to replace it writes over.
REPLACED = ("evictions", "leader.json", "leader.host")
FILES = {"FORMAT", "ring", "cursor", "leader.lock", "attached.lock", "budget.lock", *REPLACED}
FILES |= {f"{name}.tmp" for name in REPLACED}

# Ends in which the last process out has its say. All others may leave records for the next start, or for
# `cwsink flush --once`: the last one was killed, by SIGKILL or by a signal it does not handle, or was
# hurried. Celery, shutting down, kills children that have not gone in time.
DRAINED = {
    *((server, ending) for server in SERVERS for ending in ("term_parent", "term_group", "hup", "usr2", "recycle")),
    *((program, "plain_exit") for program in ("script", "fork", "spawn", "forkserver", "pool")),
    *((program, "term_parent") for program in ("fork", "spawn", "forkserver", "pool")),
    *((program, "recycle") for program in ("fork", "spawn", "forkserver")),
}

COMMON = set(
    """
    gunicorn_sync-term_parent-writer            gunicorn_sync-preload-term_parent-fapilog
    gunicorn_gthread-term_parent-fapilog        gunicorn_uvicorn-term_parent-fapilog
    gunicorn_asgi-term_parent-fapilog           gunicorn_sync-kill_worker-writer
    gunicorn_gthread-kill_worker-fapilog        gunicorn_uvicorn-kill_worker-writer
    gunicorn_asgi-kill_worker-writer            gunicorn_sync-preload-kill_leader-fapilog
    gunicorn_gthread-preload-kill_leader-writer gunicorn_uvicorn-kill_leader-writer
    gunicorn_asgi-preload-kill_leader-writer    gunicorn_sync-hup-fapilog
    gunicorn_sync-usr2-writer                   gunicorn_sync-preload-recycle-fapilog
    gunicorn_gthread-abort_worker-writer        gunicorn_sync-kill_all-writer
    uvicorn-term_parent-fapilog                 uvicorn-int_twice-writer
    script-plain_exit-writer                    script-hard_exit-writer
    script-kill_all-writer                      script-term_parent-writer
    fork-preload-plain_exit-fapilog             spawn-plain_exit-fapilog
    forkserver-preload-plain_exit-fapilog       fork-kill_leader-writer
    spawn-kill_worker-writer                    forkserver-term_parent-writer
    pool-term_parent-writer                     pool-preload-plain_exit-fapilog
    celery-term_parent-fapilog                  celery-recycle-fapilog
    """.split()
)


@dataclass(frozen=True)
class Cell:
    """One way of one animal."""

    species: str
    ending: str
    flavour: str
    preload: bool

    @property
    def name(self) -> str:
        """Return its name, the parameter's id."""
        return "-".join([self.species, *(["preload"] if self.preload else []), self.ending, self.flavour])

    @property
    def is_drained(self) -> bool:
        """Tell whether nothing may be left for the next start, and all that was answered must be delivered."""
        return (self.species, self.ending) in DRAINED

    @property
    def is_common(self) -> bool:
        """Tell whether it runs with every change."""
        return self.name in COMMON


def cells() -> Iterator[Cell]:
    """Yield all combinations that exist."""
    for name, species in SPECIES.items():
        for preload in (False, True) if species.preload else (False,):
            for ending_name, ending in ENDINGS.items():
                if ending.happens_to(name):
                    for flavour in ("writer", "fapilog"):
                        yield Cell(name, ending_name, flavour, preload)


def marks(cell: Cell) -> list[pytest.MarkDecorator]:
    """Return what a cell that is not common is marked with."""
    return [] if cell.is_common else [pytest.mark.long, pytest.mark.timeout(1800)]


Keep = Callable[..., Animal]


@pytest.fixture
def keep(tmp_path: Path, server: StrictCloudWatch) -> Iterator[Keep]:
    """Start animals; whatever is left of them at the end is killed."""
    animals: list[Animal] = []

    def start(name: str, flavour: str, *, preload: bool = False, recycling: bool = False) -> Animal:
        folder = tmp_path / f"animal{len(animals)}"
        animals.append(Animal(name, folder, server, flavour, preload=preload, recycling=recycling))
        return animals[-1]

    yield start
    for each in animals:
        each.close()


@pytest.mark.parametrize("cell", [pytest.param(each, id=each.name, marks=marks(each)) for each in cells()])
def test_no_ending_loses_what_was_promised(server: StrictCloudWatch, keep: Keep, cell: Cell) -> None:
    """Whatever runs and however it ends: all that was acknowledged arrives, exactly counted, and nothing is left."""
    seed = os.environ.get(SEED_VARIABLE, "1")
    ending = ENDINGS[cell.ending]
    generations = GENERATIONS.get(cell.species, MOST_GENERATIONS) * (1 if cell.is_common else 4)
    animal = keep(cell.species, cell.flavour, preload=cell.preload, recycling=ending.recycles)
    with Visitors(animal) as visitors:
        if ending.recycles:
            animal.wait_for_records(1)
        else:
            animal.wait_for_workers()
            animal.wait_for_records(RECORDS_BEFORE)
        ending.act(animal, random.Random(f"{seed}-{cell.name}"), generations)
        animal.wait_for_end()
    (path,) = directory.find_spools()
    spool = directory.open_existing(path)
    left, segments = survey(spool).pending, len(segment.numbers(spool.ring))
    if left or segments > 1:
        run_to_its_end(server, "-m", "cwsink", "flush", "--once", path)
    arrived = assert_all_is_well(server, animal)
    if animal.species.serves:
        assert arrived <= visitors.issued
    if cell.is_drained:
        assert not left, f"{left} records waited for the next start\n{animal.words()}"
        assert visitors.answered <= arrived
    print(f"{len(arrived)} records of {len(animal.generations())} processes; left: {left} records, {segments} segments")


def run_to_its_end(server: StrictCloudWatch, *arguments: str) -> None:
    """Run a Python program that must succeed."""
    environment = {**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr


def assert_all_is_well(server: StrictCloudWatch, animal: Animal) -> set[str]:
    """Compare promises, books, files and the server's view; return what arrived."""
    (path,) = directory.find_spools()
    events = server.events()
    arrived = {id_of(event.message) for event in events}
    acknowledged = animal.acknowledged()
    lost = acknowledged - arrived
    assert acknowledged
    assert not lost, f"{len(lost)} of {len(acknowledged)} lost: {sorted(lost)[:10]}\n{animal.words()}"

    spool = directory.open_existing(path)
    books = survey(spool)
    assert books.adds_up
    assert (books.delivered, books.pending, books.evicted, books.dead_lettered, books.refused) == (
        *(len(arrived), 0, 0, {}, {}),
    ), animal.words()

    # Not asked for at the end itself: uvicorn ends by its signal, and the last one out waits 0.25 s for it, no longer.
    assert len(segment.numbers(spool.ring)) == 1, "delivered segments were not taken away"

    assert {event.group for event in events} == {GROUP}
    assert len({event.stream for event in events}) == 1
    assert all(len(senders) == 1 for senders in server.senders_by_epoch().values())

    root = Path(path).parent
    assert os.listdir(root) == [Path(path).name]
    assert set(os.listdir(path)) <= FILES
    assert len(segment.numbers(spool.ring)) == 1
    # Who was killed while making a segment leaves a file, which a leader removes when it is a minute old.
    assert len([name for name in os.listdir(spool.ring) if not name.endswith(segment._TEMPORARY_SUFFIX)]) == 1
    return arrived


@pytest.mark.parametrize("name", SERVERS)
def test_signal_handlers_are_those_of_the_server(server: StrictCloudWatch, keep: Keep, name: str) -> None:
    """In a worker that has logged, and stands for election, each signal has the handler it has without us."""
    animals = {flavour: keep(name, flavour) for flavour in ("none", "writer", "fapilog")}
    handlers = {}
    for flavour, animal in animals.items():
        if flavour == "none":
            animal.wait_until(lambda: serves(animal), "it serves")  # noqa: B023  # called at once
        else:
            with Visitors(animal):
                animal.wait_for_workers()
        handlers[flavour] = {animal.get("signals") for _ in range(5)}
    assert len(handlers["none"]) == 1
    assert handlers["writer"] == handlers["fapilog"] == handlers["none"], handlers
    for animal in animals.values():
        animal.signal(signal.SIGTERM)
        animal.wait_for_end()


def serves(animal: Animal) -> bool:
    """Tell whether it answers."""
    try:
        return bool(animal.get("any"))
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in ("gunicorn_sync", "uvicorn") else [pytest.mark.long]) for name in SERVERS],
)
def test_a_request_in_flight_is_answered(server: StrictCloudWatch, keep: Keep, name: str) -> None:
    """A request that takes 4 s, and SIGTERM in the middle of it: a 200, and the server ends after that."""
    animal = keep(name, "writer")
    animal.wait_until(lambda: serves(animal), "it serves")
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(animal.get(f"slow/{SLOW_SECONDS}/slow")))
    client.start()
    animal.wait_until(lambda: "slow" in animal.acknowledged(), "the request has begun")
    animal.signal(signal.SIGTERM)
    client.join(HANG_SECONDS)
    assert answers, animal.words()
    animal.wait_for_end()
    assert survey(directory.open_existing(directory.find_spools()[0])).pending == 0


@pytest.mark.parametrize("takeovers", [12, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_worker_keeps_no_descriptor_of_a_takeover(server: StrictCloudWatch, keep: Keep, takeovers: int) -> None:
    """Leaders die one after the other, under load: what the others, the parent and a new leader hold stays the same."""
    animal = keep("gunicorn_sync", "writer", preload=True)
    held: dict[str, list[Counter[str]]] = {"parent": [], "leader": [], "follower": []}
    with Visitors(animal):
        for _ in range(takeovers):
            animal.wait_for_workers()
            animal.wait_until(lambda: animal.leader() in animal.workers(), "a worker leads")
            animal.wait_for_records(50)
            leader = animal.leader()
            assert leader is not None
            held["parent"].append(descriptors_of(animal.process.pid))
            held["leader"].append(descriptors_of(leader))
            held["follower"] += [descriptors_of(pid) for pid in animal.workers() if pid != leader]
            os.kill(leader, signal.SIGKILL)
            animal.wait_until(lambda: animal.leader() not in (None, leader), "another one leads")  # noqa: B023  # as above
        animal.signal(signal.SIGTERM)
        animal.wait_for_end()
    for role, seen in held.items():
        print(role, max(seen, key=Counter.total))
        # A request, a connection to CloudWatch: those come and go.
        assert max(each.total() for each in seen) - min(each.total() for each in seen) <= PASSING_DESCRIPTORS, role
    assert max(each.total() for each in held["parent"][1:]) == held["parent"][1].total()


def descriptors_of(pid: int) -> Counter[str]:
    """Count what a process has open, by kind, segments left out."""
    kinds: Counter[str] = Counter()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        if not target.endswith(".seg"):  # a new leader has all of them open until it has delivered them
            kinds[target.split(":")[0] if ":" in target else Path(target).suffix or Path(target).name] += 1
    return kinds
