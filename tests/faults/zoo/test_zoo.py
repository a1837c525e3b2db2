"""The process zoo: every server people run, ended in every way they end it, loses nothing that was promised.

One test for all of `KINDS` x preload x `ENDINGS` x flavour: 100 % of the acknowledged records
arrive, without another start, the books balance, nothing is left running or lying about, ours included,
one stream a host. Here are the cells people really meet; the others are `long`, and run by `scripts/soak zoo`.
"""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cwsink.spool import directory, files, segment
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.faults.zoo import table
from tests.faults.zoo.acknowledged import id_of
from tests.faults.zoo.endings import ENDINGS, RECORDS_BETWEEN
from tests.faults.zoo.kinds import KINDS
from tests.faults.zoo.plain_programs import CHILDREN
from tests.faults.zoo.running_program import GROUP, HANG_SECONDS, Clients, RunningProgram

pytest.importorskip("gunicorn")
pytest.importorskip("uvicorn")
pytest.importorskip("celery")

pytestmark = [
    pytest.mark.faults,
    pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="sees the processes of a session in /proc"),
]
SEED_VARIABLE = "CWSINK_SOAK_SEED"
SERVERS = [name for name, kind in KINDS.items() if kind.serves]
# Servers whose workers return from their work when told to end, and so run what is registered for it.
LEAVING = [name for name in SERVERS if name.startswith(("gunicorn", "uvicorn", "granian", "hypercorn"))]
# Celery's parent replaces ended children once in 5 s, uWSGI's once in 1 s; each of Hypercorn's is a new Python.
GENERATIONS = {"celery": 6, "hypercorn": 9, **{name: 9 for name in KINDS if name.startswith("uwsgi")}}
MOST_GENERATIONS = 18
# Servers whose signal handlers are looked at with every change.
SETTLED = ("gunicorn_sync", "gunicorn_uvicorn", "uvicorn", "uwsgi")
SLOW_SECONDS = 4
STARTS, MANY_STARTS = 3, 50
RECORDS_BEFORE = 100
PASSING_DESCRIPTORS = 6

# What may lie in a spool afterwards. Who was ended while replacing a file leaves the new one beside it.
FILES = {"FORMAT", "ring", "cursor", "evictions", "leader.json", "leader.host", "leader.lock", "leader.next", "hurry"}
FILES |= {"attached.lock", "budget.lock", "settings.json", "capacity.json", "refusals", "told"}
TEMPORARY = re.compile(r"(\.[0-9a-f]{8,16})?\.tmp$")
# In the root, beside the spool.
ROOT_FILES = {f"flusher-{os.geteuid()}.lock", f"flusher-{os.geteuid()}.next"}

# Ends in which the last process out has its say, and waits for the delivery. In all others it was killed, by SIGKILL or
# by a signal it does not handle, or was hurried: the flusher delivers what it left. Celery, shutting down, kills
# children that have not gone in time.
DRAINED = {
    *((server, ending) for server in LEAVING for ending in ("term_parent", "term_group", "hup", "usr2", "recycle")),
    *((program, "plain_exit") for program in ("script", "fork", "spawn", "forkserver", "pool")),
    *((program, "term_parent") for program in ("fork", "spawn", "forkserver", "pool")),
    *((program, "recycle") for program in ("fork", "spawn", "forkserver")),
}

COMMON = set(
    """
    gunicorn_sync-term_parent-writer            gunicorn_sync-preload-term_parent-fapilog
    gunicorn_gthread-term_parent-fapilog        gunicorn_asgi-term_parent-fapilog
    gunicorn_sync-kill_worker-writer            gunicorn_sync-preload-kill_flusher-fapilog
    gunicorn_sync-hup-fapilog                   gunicorn_sync-preload-recycle-fapilog
    gunicorn_gthread-abort_worker-writer        uvicorn-term_parent-fapilog
    script-plain_exit-writer                    script-hard_exit-writer
    fork-preload-plain_exit-fapilog             spawn-plain_exit-fapilog
    fork-kill_ours-writer                       pool-term_parent-writer
    celery-term_parent-fapilog                  gunicorn_sync-kill_host-writer
    uvicorn-kill_flusher-writer                 uwsgi-term_parent-handler
    uwsgi-kill_worker-handler                   uwsgi-hup-handler
    uwsgi-recycle-handler                       uwsgi_lazy-hup-handler
    granian-term_parent-handler                 granian-kill_worker-handler
    hypercorn-term_parent-handler               waitress-term_parent-handler
    tornado-term_group-handler                  rq-term_parent-handler
    """.split()
)


@dataclass(frozen=True)
class Cell:
    """One way of one program."""

    kind: str
    ending: str
    flavour: str
    preload: bool

    @property
    def name(self) -> str:
        """Return its name, the parameter's id."""
        return "-".join([self.kind, *(["preload"] if self.preload else []), self.ending, self.flavour])

    @property
    def is_drained(self) -> bool:
        """Tell whether nothing may be left for the next start, and all that was answered must be delivered."""
        return (self.kind, self.ending) in DRAINED

    @property
    def is_common(self) -> bool:
        """Tell whether it runs with every change."""
        return self.name in COMMON


def cells() -> Iterator[Cell]:
    """Yield all combinations that exist."""
    for name, kind in KINDS.items():
        for preload in (False, True) if kind.preload else (False,):
            for ending in kind.endings:
                for flavour in kind.flavours:
                    yield Cell(name, ending, flavour, preload)


def marks(cell: Cell) -> list[pytest.MarkDecorator]:
    """Return what a cell is marked with if it is not common, or cannot run here."""
    return [*([] if cell.is_common else [pytest.mark.long, pytest.mark.timeout(1800)]), *needs(cell.kind)]


def needs(name: str) -> list[pytest.MarkDecorator]:
    """Return what a kind is marked with that is not installed."""
    modules = [each for each in KINDS[name].needs.split() if importlib.util.find_spec(each) is None]
    if not modules:
        return []
    return [pytest.mark.skip(reason=f"{name} needs {' and '.join(modules)}, which the extra `test` installs")]


def often(name: str, names: Collection[str]) -> list[pytest.MarkDecorator]:
    """Return the marks of a test of one kind, which runs with every change for these only."""
    return [*([] if name in names else [pytest.mark.long]), *needs(name)]


Keep = Callable[..., RunningProgram]


@pytest.fixture
def keep(tmp_path: Path, server: StrictCloudWatch) -> Iterator[Keep]:
    """Start programs; whatever is left of them at the end is killed."""
    programs: list[RunningProgram] = []

    def start(name: str, flavour: str, *, preload: bool = False, recycling: bool = False) -> RunningProgram:
        folder = tmp_path / f"program{len(programs)}"
        programs.append(RunningProgram(name, folder, server, flavour, preload=preload, recycling=recycling))
        return programs[-1]

    yield start
    for each in programs:
        each.close()


@pytest.mark.parametrize("cell", [pytest.param(each, id=each.name, marks=marks(each)) for each in cells()])
def test_no_ending_loses_what_was_promised(server: StrictCloudWatch, keep: Keep, cell: Cell) -> None:
    """Whatever runs and however it ends: all that was acknowledged arrives, exactly counted, and nothing is left.

    Invariant 1.
    """
    seed = os.environ.get(SEED_VARIABLE, "1")
    ending = ENDINGS[cell.ending]
    generations = GENERATIONS.get(cell.kind, MOST_GENERATIONS) * (1 if cell.is_common else 8)
    program = keep(cell.kind, cell.flavour, preload=cell.preload, recycling=ending.recycles)
    with Clients(program) as clients:
        if ending.recycles:
            program.wait_for_records(1)
        else:
            program.wait_for_workers()
            program.wait_for_records(RECORDS_BETWEEN if program.kind.lives_briefly else RECORDS_BEFORE)
        ending.act(program, random.Random(f"{seed}-{cell.name}"), generations)
        program.wait_for_end()
    (path,) = directory.find_spools()
    spool = directory.open_existing(path)
    left = survey(spool).pending
    program.wait_until_ours_are_gone()
    if cell.ending == "kill_host":
        run_to_its_end(server, "-m", "cwsink", "flush", "--once", path)
    acknowledged, came = program.acknowledged(), {id_of(event.message) for event in server.events()}
    counts = len(acknowledged), len(acknowledged - came), left
    table.note(table.Result(cell.kind, cell.ending, cell.flavour, cell.preload, *counts))
    arrived = assert_all_is_well(server, program)
    if program.kind.serves:
        assert {id_ for id_ in arrived if id_.startswith("client")} <= clients.issued
    if cell.is_drained:
        assert not left, f"the last one out did not wait for {left} records\n{program.words()}"
    if cell.is_drained or cell.flavour != "fapilog":
        assert clients.answered <= arrived
    print(f"{len(arrived)} records of {len(program.generations())} processes; {left} of them after the end")


def run_to_its_end(server: StrictCloudWatch, *arguments: str) -> None:
    """Run a Python program that must succeed."""
    environment = {**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run(
        [sys.executable, *arguments], env=environment, capture_output=True, text=True, timeout=HANG_SECONDS
    )
    assert done.returncode == 0, done.stderr


def assert_all_is_well(server: StrictCloudWatch, program: RunningProgram) -> set[str]:
    """Compare promises, books, files and the server's view; return what arrived."""
    (path,) = directory.find_spools()
    events = server.events()
    arrived = {id_of(event.message) for event in events}
    acknowledged = program.acknowledged()
    lost = acknowledged - arrived
    assert acknowledged
    assert not lost, f"{len(lost)} of {len(acknowledged)} lost: {sorted(lost)[:10]}\n{program.words()}"

    spool = directory.open_existing(path)
    books = survey(spool)
    assert books.adds_up
    assert (books.delivered, books.pending, books.evicted, books.dead_lettered, books.refused) == (
        *(len(arrived), 0, 0, {}, {}),
    ), program.words()

    assert {event.group for event in events} == {GROUP}
    assert len({event.stream for event in events}) == 1
    assert all(len(senders) == 1 for senders in server.senders_by_epoch().values())

    root = Path(path).parent
    assert set(os.listdir(root)) - ROOT_FILES == {Path(path).name}
    assert {TEMPORARY.sub("", name) for name in os.listdir(path)} <= FILES
    assert len(segment.numbers(spool.ring)) == 1, "delivered segments were not taken away"
    # Who was killed while making a segment leaves a file, which a leader removes when it is a minute old.
    assert len([name for name in os.listdir(spool.ring) if not name.endswith(files.TEMPORARY_SUFFIX)]) == 1
    return arrived


@pytest.mark.parametrize("name", [pytest.param(name, marks=often(name, SETTLED)) for name in SERVERS])
def test_signal_handlers_are_those_of_the_server(server: StrictCloudWatch, keep: Keep, name: str) -> None:
    """In a worker that has logged each signal has the handler it has without us."""
    programs = {flavour: keep(name, flavour) for flavour in ("none", *KINDS[name].flavours)}
    handlers = {}
    for flavour, program in programs.items():
        if flavour == "none":
            program.wait_until(lambda: serves(program), "it serves")  # noqa: B023  # called at once
        else:
            with Clients(program):
                program.wait_for_workers()
        handlers[flavour] = {program.get("signals") for _ in range(5)}
    assert len(handlers["none"]) == 1
    assert all(each == handlers["none"] for each in handlers.values()), handlers
    for program in programs.values():
        program.ask_to_end()
        program.wait_for_end()


def serves(program: RunningProgram) -> bool:
    """Tell whether it answers."""
    try:
        return bool(program.get("any"))
    except (OSError, http.client.HTTPException):
        return False


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=often(name, ("gunicorn_sync", "uvicorn", "granian")))
        for name in SERVERS
        if KINDS[name].answers_to_the_end
    ],
)
def test_a_request_in_flight_is_answered(server: StrictCloudWatch, keep: Keep, name: str) -> None:
    """A request that takes 4 s, and SIGTERM in the middle of it: a 200, and the server ends after that."""
    program = keep(name, KINDS[name].flavours[0])
    program.wait_until(lambda: serves(program), "it serves")
    answers: list[str] = []
    client = threading.Thread(target=lambda: answers.append(program.get(f"slow/{SLOW_SECONDS}/slow")))
    client.start()
    program.wait_until(lambda: "slow" in program.acknowledged(), "the request has begun")
    program.signal(signal.SIGTERM)
    client.join(HANG_SECONDS)
    assert answers, program.words()
    program.wait_for_end()
    assert survey(directory.open_existing(directory.find_spools()[0])).pending == 0


UWSGI = [name for name in KINDS if name.startswith("uwsgi")]
SETTLED_UWSGI = ("uwsgi", "uwsgi_threads", "uwsgi_lazy")


@pytest.mark.parametrize("name", [pytest.param(name, marks=often(name, SETTLED_UWSGI)) for name in UWSGI])
@pytest.mark.parametrize(
    "starts", [STARTS, pytest.param(MANY_STARTS, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_each_start_of_uwsgi_answers_its_first_request(
    server: StrictCloudWatch, keep: Keep, name: str, starts: int
) -> None:
    """A record at import, before the fork in C, and the first requests after it: each is answered, and delivered.

    It ends as it does without us, and prints how long that takes.
    """
    promised: set[str] = set()
    seconds: dict[str, list[float]] = {"none": [], "handler": []}
    for number in range(starts):
        codes = {}
        for flavour, took in seconds.items():
            program = keep(name, flavour)
            program.get_first([f"slow/0.05/start{number}-{each}" for each in range(2 * CHILDREN)])
            began = time.monotonic()
            program.signal(signal.SIGTERM)
            program.wait_for_end()
            took.append(time.monotonic() - began)
            codes[flavour] = program.process.returncode
            promised |= program.acknowledged()
        # With --lazy-apps a worker may still be loading the application. uWSGI calls that a failure if it is to end.
        assert codes["handler"] == codes["none"] or not program.kind.is_preloaded
    program.wait_until_ours_are_gone()
    delivered = [id_of(event.message) for event in server.events()]
    assert len(delivered) == len(set(delivered))
    # A worker that SIGTERM ends while it is loading may have logged, and not yet noted that it has.
    assert promised <= set(delivered)
    assert all(id_.startswith("early-") for id_ in set(delivered) - promised)
    assert len(promised) >= starts * (2 * CHILDREN + 1)
    without, with_us = (statistics.median(took) for took in seconds.values())
    print(f"{name}: {starts} starts answered; it stops in {with_us:.3f} s, and without us in {without:.3f}")


@pytest.mark.parametrize("takeovers", [12, pytest.param(200, marks=[pytest.mark.long, pytest.mark.timeout(900)])])
def test_a_worker_keeps_no_descriptor_of_a_takeover(server: StrictCloudWatch, keep: Keep, takeovers: int) -> None:
    """The flusher dies again and again, under load, each second time with its guard: what each role holds stays."""
    program = keep("gunicorn_sync", "writer", preload=True)
    held: dict[str, list[Counter[str]]] = {"parent": [], "worker": [], "guard": [], "flusher": []}
    with Clients(program):
        for number in range(takeovers):
            program.wait_for_workers()
            program.wait_for_records(50)
            leader = program.wait_until(program.leader, "a flusher leads")
            held["parent"].append(descriptors_of(program.process.pid))
            held["worker"] += [descriptors_of(pid) for pid in program.workers()]
            held["guard"].append(descriptors_of(leader.parent))
            held["flusher"].append(descriptors_of(leader.pid))
            if number % 2:
                program.kill_ours()
            else:
                os.kill(leader.pid, signal.SIGKILL)
            program.wait_until(lambda: program.leader() not in (None, leader), "another one leads")  # noqa: B023  # as above
        program.signal(signal.SIGTERM)
        program.wait_for_end()
    for role, seen in held.items():
        print(role, max(seen, key=Counter.total))
        # A request, a connection to CloudWatch: those come and go.
        assert max(each.total() for each in seen) - min(each.total() for each in seen) <= PASSING_DESCRIPTORS, role
    for role in ("parent", "guard"):
        assert max(each.total() for each in held[role][1:]) == held[role][1].total(), role


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


def test_the_table_adds_up_what_was_seen() -> None:
    """A server in a row: lost and late of all cells of a column; what was not tried, and what it has not, is said."""
    seen = [
        table.Result("uwsgi", "term_parent", "handler", False, 1_000, 0, 3),
        table.Result("uwsgi", "hup", "handler", False, 1_500, 0, 4),
        table.Result("gunicorn_sync", "kill_worker", "writer", True, 200, 1, 0),
    ]
    lines = list(table.table(table.read(json.dumps(each._asdict()) for each in [seen[0]._replace(lost=9), *seen])))
    assert lines[0] == "| server | deploy | kill | the flusher is killed | recycle | preload |"
    gunicorn, uwsgi = lines[2:]
    assert gunicorn == (
        "| `gunicorn_sync` | not tried | 1 lost, 0 late of 200 | not tried | not tried | 1 lost, 0 late of 200 |"
    )
    assert uwsgi == (
        "| `uwsgi` | 0 lost, 7 late of 2,500 | not tried | not tried | not tried | 0 lost, 7 late of 2,500 |"
    )
