"""Ctrl-C in the first moments of a command, while its modules are imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import Final

import pytest

from tests.harness.support import CHILD_SECONDS

INTERRUPTED: Final = """
import os, signal, sys
class CtrlC:
    def find_spec(self, name, path=None, target=None):
        if name == wanted:
            os.kill(os.getpid(), signal.SIGINT)
wanted = sys.argv.pop(1)
sys.meta_path.insert(0, CtrlC())
from cwsink.__main__ import run
sys.exit(run())
"""


@pytest.mark.parametrize(
    ("at", "code", "said"),
    [
        ("cwsink.cli", -signal.SIGINT, ""),
        ("cwsink.cli.arguments", -signal.SIGINT, ""),
        ("cwsink.cli.metrics", -signal.SIGINT, ""),
        ("prometheus_client", 1, "cwsink: interrupted\n"),
    ],
)
@pytest.mark.parametrize("ignored", [False, True])
def test_an_early_interrupt_leaves_no_traceback(at: str, code: int, said: str, ignored: bool) -> None:
    """While modules are imported it ends the process at once, then the command says so. Who ignores it, ignores it."""
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, at, "metrics", "--textfile", "/dev/null"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN if ignored else signal.SIG_DFL),
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert (done.returncode, done.stderr) == ((0, "") if ignored else (code, said))


def test_an_application_keeps_its_signals() -> None:
    """Neither `import cwsink` nor the modules of the command line change what Ctrl-C does."""
    script = "import signal, cwsink.cli, cwsink.__main__; print(signal.getsignal(2) is signal.default_int_handler)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=CHILD_SECONDS)
    assert done.stdout == "True\n"
