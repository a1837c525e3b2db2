"""Accepts connections and serves each in a thread; `stop` leaves nothing behind (I/O).

`server` starts it, and gives it one function, which serves a connection until that
ends. One thread accepts, and one more serves each connection. All are daemons, and
`stop` joins them all. The port is kept, so that `stop` and `start` make an outage.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import weakref
from collections.abc import Callable
from typing import Final

from cwsink.testing.wire import Wire

HOST: Final = "127.0.0.1"

# Our own choice: the connections that the kernel queues while the accepting thread waits for the GIL.
BACKLOG: Final = 1_024

# Our own choice. If the process has no descriptors left, accept fails at once, and the thread would spin.
_ACCEPT_RETRY_SECONDS: Final = 0.05


class Listener:
    """Accepts connections on 127.0.0.1 and runs `serve` for each in its own thread.

    Args:
        serve: called with each connection. It may raise OSError. It must return soon after
            `stopping` is set or the wire is interrupted.
        port: 0 lets the kernel choose.
    """

    def __init__(self, serve: Callable[[Wire], None], *, port: int = 0) -> None:
        self.stopping = threading.Event()
        self.port = port
        self._serve = serve
        self._live: dict[threading.Thread, Wire] = {}
        self._socket: socket.socket | None = None
        self._wake: socket.socket | None = None
        self._acceptor: threading.Thread | None = None
        _listeners.add(self)

    @property
    def is_running(self) -> bool:
        """True between `start` and `stop`."""
        return self._acceptor is not None

    def start(self) -> None:
        """Bind the port, and accept in a thread. The kernel queues connections until that thread runs."""
        if self.is_running:
            raise RuntimeError("the server is running already")
        listening = socket.create_server((HOST, self.port), backlog=BACKLOG)
        self.port = listening.getsockname()[1]
        listening.setblocking(False)
        self._socket = listening
        self.stopping.clear()
        woken, self._wake = socket.socketpair()
        self._acceptor = threading.Thread(
            target=self._accept, args=(listening, woken), name=f"strict-cloudwatch-{self.port}", daemon=True
        )
        self._acceptor.start()

    def stop(self) -> None:
        """Close the listening socket and every connection, and join every thread. A second call does nothing."""
        acceptor = self._acceptor
        if acceptor is None or self._wake is None:
            return
        self.stopping.set()
        self._wake.close()
        acceptor.join()
        live, self._live = self._live, {}
        for wire in live.values():
            wire.interrupt()
        for thread in live:
            thread.join()
        self._acceptor = self._wake = self._socket = None

    def _accept(self, listening: socket.socket, woken: socket.socket) -> None:
        with listening, woken, selectors.DefaultSelector() as selector:
            selector.register(listening, selectors.EVENT_READ)
            selector.register(woken, selectors.EVENT_READ)
            while not self.stopping.is_set():
                if listening not in [key.fileobj for key, _ in selector.select()]:
                    continue
                try:
                    connection, address = listening.accept()
                except BlockingIOError:
                    continue
                except OSError:
                    self.stopping.wait(_ACCEPT_RETRY_SECONDS)
                    continue
                self._attend(connection, address)
            # A child that C code forked has not run `abandon`. Its copy of the socket would go on queueing clients.
            # Only a shutdown reaches that copy.
            with contextlib.suppress(OSError):
                listening.shutdown(socket.SHUT_RDWR)

    def _attend(self, connection: socket.socket, address: tuple[str, int]) -> None:
        connection.setblocking(True)
        try:
            wire = Wire(connection, address)
        except OSError:
            connection.close()
            return
        thread = threading.Thread(
            target=self._serve_and_close, args=(wire,), name=f"strict-cloudwatch-{wire.peer}", daemon=True
        )
        # `stop` joins every thread, so a thread that ends does not remove itself: it would do so while it still runs.
        self._live = {each: served for each, served in self._live.items() if each.is_alive()} | {thread: wire}
        thread.start()

    def _serve_and_close(self, wire: Wire) -> None:
        try:
            # The client has gone away, or `stop` has ended the connection. Neither is an error.
            with contextlib.suppress(OSError):
                self._serve(wire)
        finally:
            wire.close()

    def abandon(self) -> None:
        """Close the inherited descriptors in a forked child. The server lives in the parent."""
        for wire in list(self._live.values()):
            wire.abandon()
        for held in (self._socket, self._wake):
            if held is not None:
                held.close()
        self._live = {}
        self._acceptor = self._wake = self._socket = None


_listeners: weakref.WeakSet[Listener] = weakref.WeakSet()


def _abandon_all() -> None:
    for listener in list(_listeners):
        listener.abandon()


# If a forked child kept a connection open, its client would still wait after the server has closed it.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_abandon_all)
