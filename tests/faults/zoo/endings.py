"""How the programs of the zoo are ended: every way in which servers really are.

An ending gets a program at work (its workers have all logged, and go on), and returns when it has
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
from tests.faults.zoo.running_program import RunningProgram

KILLS = 3
RECORDS_BETWEEN = 30
# An ending strikes this many seconds at most after the program is ready; drawn from the test's seed.
MOST_JITTER_SECONDS = 0.3
GRACE_SECONDS = 5.0

Act = Callable[[RunningProgram, random.Random, int], None]


@dataclass(frozen=True)
class Ending:
    """What is done. Its kind says which programs can be ended so."""

    act: Act
    recycles: bool = False


def term_parent(program: RunningProgram, _: random.Random, __: int) -> None:
    """SIGTERM to the first process, as an init system does."""
    program.signal(signal.SIGTERM)


def term_group(program: RunningProgram, _: random.Random, __: int) -> None:
    """SIGTERM to all processes, as systemd does by default, and SIGKILL to those that are not gone after a while."""
    program.signal_all(signal.SIGTERM)
    if program.name == "celery" and not program.has_ended(GRACE_SECONDS):
        program.signal_all(signal.SIGKILL)


def int_twice(program: RunningProgram, rng: random.Random, _: int) -> None:
    """Ctrl-C, and again by somebody impatient."""
    program.signal_group(signal.SIGINT)
    _pause(rng)
    program.signal_group(signal.SIGINT)


def kill_worker(program: RunningProgram, rng: random.Random, _: int) -> None:
    """SIGKILL to a worker, as the OOM killer does; some times; then SIGTERM."""
    for _ in range(KILLS):
        _end_one(program, rng, signal.SIGKILL)
    program.ask_to_end()


def abort_worker(program: RunningProgram, rng: random.Random, _: int) -> None:
    """SIGABRT to a worker, as gunicorn does when one is silent for too long; then SIGTERM."""
    for _ in range(KILLS):
        _end_one(program, rng, signal.SIGABRT)
    program.signal(signal.SIGTERM)


def kill_flusher(program: RunningProgram, rng: random.Random, _: int) -> None:
    """SIGKILL to the flusher, which its guard forks again; some times; then SIGTERM."""
    _end_ours(program, rng, lambda leader: _kill(leader.pid))


def kill_ours(program: RunningProgram, rng: random.Random, _: int) -> None:
    """SIGKILL to the flusher and its guard: the next append starts both anew; some times; then SIGTERM."""
    _end_ours(program, rng, lambda leader: program.kill_ours())


def kill_all(program: RunningProgram, _: random.Random, __: int) -> None:
    """SIGKILL to all processes of the program: it is over its time. The flusher lives on."""
    program.kill_all()


def kill_host(program: RunningProgram, _: random.Random, __: int) -> None:
    """SIGKILL to all processes, ours among them: a container that is over its limit."""
    program.kill_all(ours=True)


def vanish(program: RunningProgram, _: random.Random, __: int) -> None:
    """A request makes its worker call `os._exit`; some times; then SIGTERM."""
    for _ in range(KILLS):
        try:
            program.get("vanish")
        except (OSError, http.client.HTTPException):
            pass
        program.wait_for_records(RECORDS_BETWEEN)
    program.signal(signal.SIGTERM)


def plain_exit(program: RunningProgram, _: random.Random, __: int) -> None:
    """All processes return from their work."""
    program.stop("exit")


def hard_exit(program: RunningProgram, _: random.Random, __: int) -> None:
    """All processes that log end by `os._exit`."""
    program.stop("_exit")


def recycle(program: RunningProgram, _: random.Random, generations: int) -> None:
    """Workers are replaced after a few requests, for many generations; then SIGTERM."""
    reached = 0
    while reached < generations:  # as long as it takes, but each must come
        program.wait_until(lambda least=reached: len(program.generations()) > least, f"more than {reached} generations")
        reached = len(program.generations())
    program.signal(signal.SIGTERM)


def hup(program: RunningProgram, _: random.Random, __: int) -> None:
    """SIGHUP to the first process: all workers are replaced; twice; then SIGTERM."""
    for _ in range(2):
        old = set(program.workers())
        program.signal(signal.SIGHUP)
        program.wait_for_workers(without=old)
    program.signal(signal.SIGTERM)


def usr2(program: RunningProgram, _: random.Random, __: int) -> None:
    """gunicorn's rolling restart: a second master, the first one goes, at last the second."""
    old, workers = program.process.pid, set(program.workers())
    program.signal(signal.SIGUSR2)
    program.wait_until(lambda: {program.processes().get(pid) for pid in program.workers()} > {old}, "a second master")
    master = next(program.processes()[pid] for pid in program.workers() if pid not in workers)
    program.signal(signal.SIGTERM)
    program.process.wait()
    program.wait_for_workers()
    program.wait_for_records(RECORDS_BETWEEN)
    os.kill(master, signal.SIGTERM)


def _end_one(program: RunningProgram, rng: random.Random, number: int) -> None:
    _pause(rng)
    program.end_one(rng, number)
    program.wait_for_records(RECORDS_BETWEEN)


def _end_ours(program: RunningProgram, rng: random.Random, kill: Callable[[Process], None]) -> None:
    for _ in range(KILLS):
        _pause(rng)
        program.wait_until(program.leader, "a flusher leads")
        leader = program.leader()
        assert leader is not None
        kill(leader)
        program.wait_until(lambda: program.leader() not in (None, leader), "another one leads")  # noqa: B023  # called at once
        program.wait_for_records(RECORDS_BETWEEN)
    program.ask_to_end()


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
