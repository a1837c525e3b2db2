"""LocalStack's server as scripts/localstack needs it; runs in LocalStack's environment.

Bound to 127.0.0.1, deaf to the terminal's Ctrl-C (the script stops it when its last client
is gone), and never left behind.
"""

import functools
import os
import signal
import threading
import time

from localstack.runtime.main import main
from twisted.internet import endpoints


def end_with(parent: int) -> None:
    """End when the process that started this one has, even if by SIGKILL."""
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    os.setpgrp()
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    # localstack.runtime.server.twisted leaves the host of GATEWAY_LISTEN out, and listens on all interfaces.
    # Its other server, hypercorn, heeds it, but closes the connection after each request and ignores SIGTERM.
    endpoints.TCP4ServerEndpoint = functools.partial(endpoints.TCP4ServerEndpoint, interface="127.0.0.1")
    main()
