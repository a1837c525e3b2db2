"""How the animals of the zoo are ended: every way in which servers really are.

An ending gets an animal at work (its workers have all logged, and go on), and returns when it has
given its last signal. `ENDINGS` is the table; what must be true afterwards is in test_zoo.py.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
from collections.abc import Callable
from dataclasses import dataclass

from tests.faults.own_processes import Process
from tests.faults.zoo.servers import Animal

KILLS = 3
RECORDS_BETWEEN = 30
# An ending strikes this many seconds at most after the animal is ready; drawn from the test's seed.
MOST_JITTER_SECONDS = 0.3
GRACE_SECONDS = 5.0

Act = Callable[[Animal, random.Random, int], None]


@dataclass(frozen=True)
class Ending:
    """What is done. Which animals can be ended so is said by their species."""

    act: Act
    recycles: bool = False


def term_parent(animal: Animal, _: random.Random, __: int) -> None:
    """SIGTERM to the first process, as an init system does."""
    animal.signal(signal.SIGTERM)


def term_group(animal: Animal, _: random.Random, __: int) -> None:
    """SIGTERM to all processes, as systemd does by default, and SIGKILL to those that are not gone after a while."""
    animal.signal_all(signal.SIGTERM)
    if animal.name == "celery" and not animal.has_ended(GRACE_SECONDS):
        animal.signal_all(signal.SIGKILL)


def int_twice(animal: Animal, rng: random.Random, _: int) -> None:
    """Ctrl-C, and again by somebody impatient."""
    animal.signal_group(signal.SIGINT)
    _pause(rng)
    animal.signal_group(signal.SIGINT)


def kill_worker(animal: Animal, rng: random.Random, _: int) -> None:
    """SIGKILL to a worker, as the OOM killer does; some times; then SIGTERM."""
    for _ in range(KILLS):
        _end_one(animal, rng, signal.SIGKILL)
    animal.ask_to_end()


def abort_worker(animal: Animal, rng: random.Random, _: int) -> None:
    """SIGABRT to a worker, as gunicorn does when one is silent for too long; then SIGTERM."""
    for _ in range(KILLS):
        _end_one(animal, rng, signal.SIGABRT)
    animal.signal(signal.SIGTERM)


def kill_flusher(animal: Animal, rng: random.Random, _: int) -> None:
    """SIGKILL to the flusher, which its guard forks again; some times; then SIGTERM."""
    _end_ours(animal, rng, lambda leader: _kill(leader.pid))


def kill_ours(animal: Animal, rng: random.Random, _: int) -> None:
    """SIGKILL to the flusher and its guard: the next append starts both anew; some times; then SIGTERM."""
    _end_ours(animal, rng, lambda leader: animal.kill_ours())


def kill_all(animal: Animal, _: random.Random, __: int) -> None:
    """SIGKILL to all processes of the program: it is over its time. The flusher lives on."""
    animal.kill_all()


def kill_host(animal: Animal, _: random.Random, __: int) -> None:
    """SIGKILL to all processes, ours among them: a container that is over its limit."""
    animal.kill_all(ours=True)


def vanish(animal: Animal, _: random.Random, __: int) -> None:
    """A request makes its worker call `os._exit`; some times; then SIGTERM."""
    for _ in range(KILLS):
        try:
            animal.get("vanish")
        except (OSError, http.client.HTTPException):
            pass
        animal.wait_for_records(RECORDS_BETWEEN)
    animal.signal(signal.SIGTERM)


def plain_exit(animal: Animal, _: random.Random, __: int) -> None:
    """All processes return from their work."""
    animal.stop("exit")


def hard_exit(animal: Animal, _: random.Random, __: int) -> None:
    """All processes that log end by `os._exit`."""
    animal.stop("_exit")


def recycle(animal: Animal, _: random.Random, generations: int) -> None:
    """Workers are replaced after a few requests, for many generations; then SIGTERM."""
    reached = 0
    while reached < generations:  # as long as it takes, but each must come
        animal.wait_until(lambda least=reached: len(animal.generations()) > least, f"more than {reached} generations")
        reached = len(animal.generations())
    animal.signal(signal.SIGTERM)


def hup(animal: Animal, _: random.Random, __: int) -> None:
    """SIGHUP to the first process: all workers are replaced; twice; then SIGTERM."""
    for _ in range(2):
        old = set(animal.workers())
        animal.signal(signal.SIGHUP)
        animal.wait_for_workers(without=old)
    animal.signal(signal.SIGTERM)


def usr2(animal: Animal, _: random.Random, __: int) -> None:
    """gunicorn's rolling restart: a second master, the first one goes, at last the second."""
    old, workers = animal.process.pid, set(animal.workers())
    animal.signal(signal.SIGUSR2)
    animal.wait_until(lambda: {animal.processes().get(pid) for pid in animal.workers()} > {old}, "a second master")
    master = next(animal.processes()[pid] for pid in animal.workers() if pid not in workers)
    animal.signal(signal.SIGTERM)
    animal.process.wait()
    animal.wait_for_workers()
    animal.wait_for_records(RECORDS_BETWEEN)
    os.kill(master, signal.SIGTERM)


def _end_one(animal: Animal, rng: random.Random, number: int) -> None:
    _pause(rng)
    animal.end_one(rng, number)
    animal.wait_for_records(RECORDS_BETWEEN)


def _end_ours(animal: Animal, rng: random.Random, kill: Callable[[Process], None]) -> None:
    for _ in range(KILLS):
        _pause(rng)
        animal.wait_until(animal.leader, "a flusher leads")
        leader = animal.leader()
        assert leader is not None
        kill(leader)
        animal.wait_until(lambda: animal.leader() not in (None, leader), "another one leads")  # noqa: B023  # called at once
        animal.wait_for_records(RECORDS_BETWEEN)
    animal.ask_to_end()


def _kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def _pause(rng: random.Random) -> None:
    import time

    time.sleep(rng.uniform(0.0, MOST_JITTER_SECONDS))


ENDINGS: dict[str, Ending] = {
    "term_parent": Ending(term_parent),
    "term_group": Ending(term_group),
    "int_twice": Ending(int_twice),
    "kill_worker": Ending(kill_worker),
    "kill_flusher": Ending(kill_flusher),
    "kill_ours": Ending(kill_ours),
    "kill_all": Ending(kill_all),
    "kill_host": Ending(kill_host),
    "abort_worker": Ending(abort_worker),
    "vanish": Ending(vanish),
    "plain_exit": Ending(plain_exit),
    "hard_exit": Ending(hard_exit),
    "recycle": Ending(recycle, recycles=True),
    "hup": Ending(hup),
    "usr2": Ending(usr2),
}
