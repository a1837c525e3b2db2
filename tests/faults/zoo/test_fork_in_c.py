"""A fork by C code, as uWSGI's is: no Python hook runs in the child, which may end without ever having logged."""

from __future__ import annotations

import sys

import pytest

from cwsink.spool import directory
from cwsink.spool.attachment import Attachment, is_anyone_attached
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import finish

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs MADV_WIPEONFORK")

PROGRAM = """
import ctypes, os, sys
from cwsink import Writer

writer = Writer.open(log_group_name="/fork", log_stream_name="c", batch_timeout_seconds=0.1)
assert writer.append("parent")
child = ctypes.PyDLL(None).fork()
if child == 0:
    if "logs" in sys.argv:
        assert writer.append("child")
    sys.exit()  # with all that is registered for the end
os.waitpid(child, 0)
print("waiting", flush=True)
sys.stdin.readline()
assert writer.append("parent again")
"""


@pytest.mark.parametrize("child", ["logs", "is silent"])
def test_a_child_takes_no_mark_of_its_parent_along(server: StrictCloudWatch, spawn: Spawn, child: str) -> None:
    """The child has ended: its parent is still attached, as one among others, and is the last one out."""
    parent = spawn(PROGRAM, child, env=server.environment())
    assert parent.stdout is not None
    assert parent.stdout.readline() == "waiting\n"
    (path,) = directory.find_spools()
    spool = directory.open_existing(path)
    assert is_anyone_attached(spool)
    other = Attachment(spool)
    assert other._is_held, "the parent's shared lock has become an exclusive one"
    other.close()
    finish(parent)  # which closes its stdin
    delivered = ["parent", "parent again", *(["child"] if child == "logs" else [])]
    assert sorted(server.messages()) == sorted(delivered)
