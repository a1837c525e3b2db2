"""The kinds of programs in the zoo: how each is started, what it can do, and which endings it meets.

`KINDS` is the table. The application is the same everywhere, see app.py, plain_programs.py, and the modules of Celery,
RQ and tornado. A kind with `flavours` of its own logs through these front ends only.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from tests.faults.zoo import plain_programs
from tests.faults.zoo.acknowledged import EARLY_VARIABLE
from tests.faults.zoo.plain_programs import CHILDREN

_APP = "tests.faults.zoo.app"

# Those that every kind meets, and those of a kind with workers.
_ALWAYS = ("term_parent", "term_group", "int_twice", "kill_flusher", "kill_ours", "kill_all", "kill_host")
_WORKERS = (*_ALWAYS, "kill_worker")
_SERVER = (*_WORKERS, "vanish", "recycle", "hup")


@dataclass(frozen=True)
class ProgramKind:
    """A kind of program.

    In its arguments `{fd}` is a listening socket, `{socket}` the path of one that it makes itself, `{broker}` the
    address of a Redis. A server without any of them says where it listens.
    """

    arguments: tuple[str, ...]
    endings: tuple[str, ...]
    needs: str = ""  # the module that must be installed
    flavours: tuple[str, ...] = ("writer", "fapilog")
    workers: int = CHILDREN
    serves: bool = False  # answers requests; others log by themselves
    preload: tuple[str, ...] | None = None  # the option, where it exists
    is_preloaded: bool = False  # it always loads the application before it forks
    environment: tuple[tuple[str, str], ...] = ()
    recycling: tuple[str, ...] = ()  # the option that ends a worker after some requests or tasks
    recycling_environment: tuple[tuple[str, str], ...] = ()
    lives_briefly: bool = False  # a worker is gone after one job: no test can choose one
    # Gives up if the same worker is killed twice in five seconds, and a worker that is told to end while it begins does
    # not hear it.
    is_delicate: bool = False
    leaves_children: bool = False  # SIGTERM to the first process ends only that
    answers_to_the_end: bool = True  # a request in flight at SIGTERM is answered


def _script(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def _gunicorn(application: str, options: str = "") -> ProgramKind:
    # The script, not `-m gunicorn`: after USR2 that has gunicorn's own folder first on sys.path, and its package
    # `http` in place of Python's.
    arguments = f"-w {CHILDREN} -b 127.0.0.1:0 --no-control-socket --graceful-timeout 40 --timeout 60 {options}"
    return ProgramKind(
        (_script("gunicorn"), f"{_APP}:{application}", *arguments.split()),
        (*_SERVER, "abort_worker", "usr2"),
        serves=True,
        preload=("--preload",),
        recycling=("--max-requests", "10", "--max-requests-jitter", "5"),
    )


def _uwsgi(options: str = "") -> ProgramKind:
    """Return uWSGI with a record at import: before its fork in C, unless `--lazy-apps` is among the options.

    A worker that is told to end while it loads the application does not hear it; it is killed after the mercy.
    """
    arguments = f"--http-socket {{socket}} --module {_APP}:wsgi --need-app --master --processes {CHILDREN}"
    manners = "--die-on-term --disable-logging --worker-reload-mercy 5"
    return ProgramKind(
        (_script("pyuwsgi"), *arguments.split(), *manners.split(), *options.split()),
        _SERVER,
        needs="pyuwsgi",
        flavours=("handler",),
        serves=True,
        environment=((EARLY_VARIABLE, "1"),),
        recycling=("--max-requests", "10", "--min-worker-lifetime", "1"),
        answers_to_the_end=False,
        is_preloaded="--lazy-apps" not in options,
    )


def _granian(interface: str) -> ProgramKind:
    # A SIGTERM in the first moments of a request: a worker may then end only by this time-out, with cwsink or without.
    arguments = f"--interface {interface} --uds {{socket}} --workers {CHILDREN} --workers-kill-timeout 15"
    respawning = "--respawn-failed-workers --respawn-interval 0.1"
    return ProgramKind(
        (_script("granian"), *arguments.split(), *respawning.split(), f"{_APP}:{interface}"),
        (*_WORKERS, "hup"),  # `vanish` is no failure, and its worker stays away; it recycles after 60 s at least
        needs="granian",
        flavours=("handler",),
        serves=True,
        is_delicate=True,
    )


def _rq(command: str, *, workers: int = 1) -> ProgramKind:
    return ProgramKind(
        (_script("rq"), *command.split(), "--url", "redis://{broker}"),
        _WORKERS,
        needs="rq fakeredis",
        flavours=("handler",),
        workers=workers,
        lives_briefly=True,
    )


def _plain(
    kind: str, *endings: str, preloads: bool = False, recycles: bool = False, workers: int = CHILDREN
) -> ProgramKind:
    return ProgramKind(
        ("-m", plain_programs.__name__, kind),
        (*_ALWAYS, "plain_exit", *endings),
        workers=workers,
        preload=("--preload",) if preloads else None,
        recycling_environment=(("ZOO_RECORDS_PER_CHILD", "20"),) if recycles else (),
    )


_KEPT = ("kill_worker", "hard_exit", "recycle")

KINDS: dict[str, ProgramKind] = {
    "gunicorn_sync": _gunicorn("wsgi"),
    "gunicorn_gthread": _gunicorn("wsgi", "-k gthread --threads 4"),
    "gunicorn_uvicorn": _gunicorn("asgi", "-k uvicorn_worker.UvicornWorker"),
    "gunicorn_asgi": _gunicorn("asgi", "-k asgi"),
    "uvicorn": ProgramKind(
        tuple(f"-m uvicorn {_APP}:asgi --workers {CHILDREN} --fd {{fd}} --timeout-graceful-shutdown 40".split()),
        _SERVER,
        serves=True,
        recycling=("--limit-max-requests", "10"),
    ),
    "uwsgi": _uwsgi(),
    "uwsgi_threads": _uwsgi("--enable-threads --threads 4"),
    "uwsgi_hooks": _uwsgi("--py-call-osafterfork"),
    "uwsgi_lazy": _uwsgi("--lazy-apps"),
    "uwsgi_lazy_threads": _uwsgi("--lazy-apps --enable-threads --threads 4"),
    "granian": _granian("wsgi"),
    "granian_asgi": _granian("asgi"),
    "hypercorn": ProgramKind(
        tuple(f"-m hypercorn {_APP}:asgi --workers {CHILDREN} --bind fd://{{fd}} --graceful-timeout 40".split()),
        (*_ALWAYS, "vanish", "recycle", "hup"),  # a killed worker is the end of all of them
        needs="hypercorn",
        flavours=("handler",),
        serves=True,
        recycling=("--max-requests", "10", "--max-requests-jitter", "5"),
        answers_to_the_end=False,  # whatever --graceful-timeout says
    ),
    "waitress": ProgramKind(
        (_script("waitress-serve"), "--listen=127.0.0.1:0", f"{_APP}:wsgi"),
        _ALWAYS,
        needs="waitress",
        flavours=("handler",),
        workers=1,
        serves=True,
        answers_to_the_end=False,
    ),
    "tornado": ProgramKind(
        ("-m", "tests.faults.zoo.tornado_app", "{fd}"),
        # Not `term_parent`: the children go on for ever, with cwsink or without. Nor `vanish`: none follows who left.
        ("term_group", "int_twice", "kill_worker", "kill_flusher", "kill_ours", "kill_all", "kill_host"),
        needs="tornado",
        flavours=("handler",),
        serves=True,
        preload=("--preload",),
        leaves_children=True,
        answers_to_the_end=False,
    ),
    "script": _plain("script", "hard_exit", workers=1),
    "fork": _plain("fork", *_KEPT, preloads=True, recycles=True),
    "spawn": _plain("spawn", *_KEPT, recycles=True),
    "forkserver": _plain("forkserver", *_KEPT, preloads=True, recycles=True),
    "pool": _plain("pool", "kill_worker", preloads=True),
    "celery": ProgramKind(
        (*f"-m celery -A tests.faults.zoo.celery_app worker -P prefork -c {CHILDREN}".split(), "--loglevel", "WARNING"),
        (*_WORKERS, "recycle"),
        recycling=("--max-tasks-per-child", "5"),
    ),
    "rq": _rq("worker"),
    "rq_spawn": _rq("worker --worker-class rq.worker.SpawnWorker"),
    "rq_pool": _rq(f"worker-pool --num-workers {CHILDREN}", workers=CHILDREN),
}
