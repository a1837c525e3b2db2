"""A look at a ring, which reads none of it, misses nothing that was appended."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.frontends.presence import Presence
from cwsink.spool import descriptors, files, segment, survey
from cwsink.spool.attachment import Attachment, is_anyone_attached
from cwsink.spool.survey import Backlog
from cwsink.spool.watch import RingWatch


@pytest.fixture
def writer(small: SinkConfig) -> Writer:
    return Writer(small)


def test_an_append_shows_and_nothing_else_does(writer: Writer) -> None:
    """Before the first mark all is new; then only what was appended since."""
    watch = RingWatch(writer.directory.ring)
    assert writer.append("one")
    assert watch.has_grown()
    watch.mark()
    assert not watch.has_grown()
    assert writer.append("two")
    assert watch.has_grown()
    watch.mark()
    assert not watch.has_grown()


def test_a_new_segment_shows_at_once(writer: Writer, small: SinkConfig) -> None:
    """Also if the directory's time does not: the clock of a file system may stand still between two changes."""
    assert writer.append("one")
    ring = writer.directory.ring
    watch = RingWatch(ring)
    watch.mark()
    assert not watch.has_grown()
    before = os.stat(ring)
    segment.create(ring, 2, bytes.fromhex(writer.directory.format.spool_id), 0)
    os.utime(ring, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert watch.has_grown()


def test_a_segment_that_goes_is_not_growth(writer: Writer) -> None:
    """A leader has reclaimed it, perhaps another process's."""
    ring = writer.directory.ring
    while segment.numbers(ring) != [1, 2]:
        assert writer.append("x" * 900)
    watch = RingWatch(ring)
    watch.mark()
    os.unlink(segment.path_of(ring, 1))
    assert not watch.has_grown()


def test_a_spool_that_was_made_anew_shows(writer: Writer, small: SinkConfig) -> None:
    """It has the same numbers, and less in them."""
    for _ in range(3):
        assert writer.append("x" * 500)
    watch = RingWatch(writer.directory.ring)
    watch.mark()
    shutil.rmtree(writer.directory.path)
    assert not watch.has_grown()
    again = Writer(small)
    assert again.append("y")
    assert watch.has_grown()


# Backlog: how far a spool is delivered, without counting its records.


def test_a_fragment_is_no_backlog(writer: Writer) -> None:
    """A writer was killed in the middle of a record, and it is all that is left: nothing is pending."""
    assert writer.append("one")
    writer.close()
    path = Path(segment.path_of(writer.directory.ring, 1))
    whole = path.read_bytes()
    path.write_bytes(whole[:-5])
    backlog = Backlog(writer.directory)
    assert backlog.is_empty
    assert backlog.data_bytes == 0
    path.write_bytes(whole)
    assert not Backlog(writer.directory).is_empty


def test_what_is_appended_later_is_not_of_the_backlog(writer: Writer) -> None:
    """Its end is where the ring ended when it was asked, also if that is in the middle of nothing yet settled."""
    assert writer.append("one")
    backlog = Backlog(writer.directory)
    size = os.path.getsize(segment.path_of(writer.directory.ring, 1))
    assert backlog.data_bytes == backlog.left_bytes == size - segment.HEADER_BYTES
    assert writer.append("two")
    assert not backlog.is_settled()
    assert backlog.left_bytes == backlog.data_bytes
    assert survey.ends(writer.directory) != {}


# The lock of who is attached.


def test_a_lock_that_was_in_the_way_is_taken_at_a_later_append(small: SinkConfig) -> None:
    """Another process held it for longer than we try, just to ask: the next look takes it, with no flusher either."""
    writer = Writer(small)
    directory = writer.directory
    asking = files.opened(directory.attached_lock, os.O_RDWR | os.O_CREAT).keep()
    assert descriptors.try_lock(asking, exclusive=True)
    presence = Presence(directory, small)
    descriptors.release(asking, descriptors.incarnation())
    assert not is_anyone_attached(directory)
    presence.look()
    assert is_anyone_attached(directory)
    presence.detach()


def test_who_has_detached_takes_no_lock(small: SinkConfig) -> None:
    """A look that comes late does not attach again."""
    directory = Writer(small).directory
    attachment = Attachment(directory)
    assert attachment.detach()
    attachment.hold()
    assert not is_anyone_attached(directory)
