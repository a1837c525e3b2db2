"""A cwsink of format 1 and this one on the same spool, as in a deployment that goes from one worker to the next.

The other one is `format_1.py`, which is frozen. Unknown flags, types and layouts are in
tests/integration/test_reader.py, the spools that released versions have left in test_golden_spool.py.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cwsink.config import SinkConfig
from cwsink.frontends.writer import Writer
from cwsink.spool.directory import SpoolDirectory
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.faults import format_1
from tests.harness.interleave import SMALL, deliver, leading, segments, until
from tests.harness.support import CHILD_SECONDS

pytestmark = pytest.mark.faults

Append = Callable[[str], None]
ROUNDS = 60
TEXT = "späte Züge 🚂 " + "." * 200


@pytest.fixture
def writer(small: SinkConfig) -> Iterator[Writer]:
    """A writer of this version, which has made the spool."""
    opened = Writer(small)
    yield opened
    opened.close()


@pytest.fixture
def old(writer: Writer) -> Iterator[Append]:
    """The append of a writer of format 1, in a process of its own."""
    spool: SpoolDirectory = writer.directory
    child = subprocess.Popen(
        [sys.executable, format_1.__file__, spool.ring, spool.format.spool_id, str(SMALL)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env={"PYTHONUTF8": "1"},
    )
    stdin, stdout = child.stdin, child.stdout
    assert stdin is not None
    assert stdout is not None

    def append(message: str) -> None:
        stdin.write(message + "\n")
        stdin.flush()
        assert stdout.readline() == "appended\n"

    yield append
    stdin.close()
    stdout.close()
    assert child.wait(CHILD_SECONDS) == 0


def messages() -> list[tuple[str, str]]:
    """What the old one and the new one append, in turn."""
    return [(f"old {number:03d} {TEXT}", f"new {number:03d} {TEXT}") for number in range(ROUNDS)]


def test_a_writer_of_format_1_and_one_of_this_version_share_a_spool(
    writer: Writer, old: Append, server: StrictCloudWatch, small: SinkConfig
) -> None:
    """Both append and rotate, while a leader of this version delivers and reclaims: all arrives once, in order."""
    with leading(writer.directory, small):
        for of_old, of_new in messages():
            old(of_old)
            assert writer.append(of_new)
        until(lambda: len(server.messages()) >= 2 * ROUNDS, "all of it")
    arrived = server.messages()
    for each in zip(*messages(), strict=True):
        assert [text for text in arrived if text in each] == list(each)
    assert len(arrived) == 2 * ROUNDS
    assert segments(writer.directory)[-1] > 4
    books = survey(writer.directory)
    assert (books.adds_up, books.delivered, books.pending, books.corrupt_bytes) == (True, 2 * ROUNDS, 0, 0)


def test_what_a_writer_of_format_1_left_is_delivered(
    writer: Writer, old: Append, server: StrictCloudWatch, small: SinkConfig
) -> None:
    """Nobody of this version has appended."""
    for of_old, _ in messages():
        old(of_old)
    deliver(writer.directory, small)
    assert server.messages() == [of_old for of_old, _ in messages()]


def test_a_reader_of_format_1_reads_what_this_version_appends(writer: Writer, old: Append) -> None:
    """Events byte for byte, in order, without gaps in a producer's sequence."""
    for of_old, of_new in messages():
        old(of_old)
        assert writer.append(of_new)
    found = list(format_1.read(writer.directory.ring))
    assert [message for *_, message in found] == [text for pair in messages() for text in pair]
    for producer in {each[1] for each in found}:
        assert [sequence for _, of, sequence, _ in found if of == producer] == list(range(ROUNDS))


def test_the_frozen_format_is_independent_of_the_package() -> None:
    """Else it would change with what it is there to check."""
    source = Path(format_1.__file__).read_text(encoding="utf-8")
    assert "import cwsink" not in source
    assert "from cwsink" not in source
