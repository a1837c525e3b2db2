"""The zoo's tornado: `python -m tests.faults.zoo.tornado_app FD [--preload]`, children of `fork_processes`.

A child that is killed is started again. SIGTERM is nobody's business: it ends who gets it.
"""

from __future__ import annotations

import asyncio
import socket
import sys

from tornado.httpserver import HTTPServer
from tornado.process import fork_processes
from tornado.web import Application, RequestHandler

from tests.faults.zoo.plain_programs import CHILDREN

MOST_RESTARTS = 1_000


class _Answer(RequestHandler):
    async def get(self, path: str) -> None:
        from tests.faults.zoo.app import answer

        body, wait_seconds = answer(path)
        await asyncio.sleep(wait_seconds)
        self.write(body)


async def _serve(listener: socket.socket) -> None:
    HTTPServer(Application([("/(.*)", _Answer)])).add_socket(listener)
    await asyncio.Event().wait()


def main(fd: str, *options: str) -> None:
    """Fork, and serve in each child."""
    listener = socket.socket(fileno=int(fd))
    listener.setblocking(False)
    if "--preload" in options:
        from tests.faults.zoo.app import log

        log("parent")  # its handler has the spool open when it forks
    fork_processes(CHILDREN, max_restarts=MOST_RESTARTS)
    asyncio.run(_serve(listener))


if __name__ == "__main__":
    main(*sys.argv[1:])
