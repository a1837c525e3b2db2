"""Programs of the zoo that serve nothing and log by themselves.

Started as `python -m tests.faults.zoo.plain_programs KIND [--preload]`. The kinds are: a script, the children of
multiprocessing by each start method, and a ProcessPoolExecutor. Each goes on until it is ended from outside, or until
the file named by `ZOO_STOP` says how to end: "exit" or "_exit". The parent restarts children that die, as a supervisor
does. SIGTERM tells it to stop in order.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection
from multiprocessing.process import BaseProcess

STOP_VARIABLE = "ZOO_STOP"
VICTIM_VARIABLE = "ZOO_VICTIM"
RECORDS_VARIABLE = "ZOO_RECORDS_PER_CHILD"
CHILDREN = 3
PAUSE_SECONDS = 0.001
RECORDS_OF_A_TASK = 5

_stopping = False


def stop(*_: object) -> None:
    """Handle SIGTERM in the parent."""
    global _stopping
    _stopping = True


def how_to_stop() -> str:
    """Return the word in the stop file, or ''."""
    return _read(os.environ[STOP_VARIABLE])


def is_victim() -> bool:
    """Tell whether this process is to be killed (see `celery_app`)."""
    return _read(os.environ[VICTIM_VARIABLE]) == str(os.getpid())


def _read(path: str) -> str:
    try:
        with open(path) as file:
            return file.read()
    except FileNotFoundError:
        return ""


def log_records(count: int) -> None:
    """Log `count` records, with ids that no other process has."""
    from tests.faults.zoo.app import log

    for _ in range(count):
        log(f"{os.getpid()}-{time.monotonic_ns():x}")
        time.sleep(PAUSE_SECONDS)


def work() -> None:
    """Log until told to stop, the parent is gone, or this generation has had its number of records."""
    parent = multiprocessing.parent_process()
    left = int(os.environ.get(RECORDS_VARIABLE, sys.maxsize))
    while left > 0 and not (way := how_to_stop()):
        if parent is not None and not parent.is_alive():
            return
        log_records(1)
        left -= 1
    if left > 0 and way == "_exit":
        os._exit(0)


def keep_children(method: str, *, preload: bool) -> None:
    """Keep some children of multiprocessing at work."""
    context = multiprocessing.get_context(method)
    if preload and method == "forkserver":
        context.set_forkserver_preload(["tests.faults.zoo.app"])
    children: list[BaseProcess] = []
    while not _stopping and not how_to_stop():
        children = [child for child in children if child.is_alive()]
        while len(children) < CHILDREN:
            children.append(context.Process(target=work))
            children[-1].start()
        connection.wait([child.sentinel for child in children], 0.05)
    ask_to_stop()
    for child in children:
        child.join()


def ask_to_stop() -> None:
    """Tell the children, unless somebody has."""
    if not how_to_stop():
        new = f"{os.environ[STOP_VARIABLE]}.new"
        with open(new, "w") as file:
            file.write("exit")
        os.replace(new, os.environ[STOP_VARIABLE])


def keep_pool() -> None:
    """Keep a ProcessPoolExecutor at work; a new one, when one of its processes has been killed."""
    while not _stopping and not how_to_stop():
        with contextlib.suppress(BrokenProcessPool), ProcessPoolExecutor(CHILDREN) as pool:
            tasks: set[Future[None]] = set()
            while not _stopping and not how_to_stop():
                tasks |= {pool.submit(log_records, RECORDS_OF_A_TASK) for _ in range(2 * CHILDREN - len(tasks))}
                done, tasks = wait(tasks, 1.0, FIRST_COMPLETED)
                for task in done:
                    task.result()


def main(kind: str, *options: str) -> None:
    """Run one kind."""
    preload = "--preload" in options
    if preload and kind != "forkserver":
        import tests.faults.zoo.app  # noqa: F401  # its writer, or logger, is the parent's
    if kind == "script":
        work()
        return
    signal.signal(signal.SIGTERM, stop)
    if kind == "pool":
        keep_pool()
    else:
        keep_children(kind, preload=preload)


if __name__ == "__main__":
    main(*sys.argv[1:])
