"""One process, from append to CloudWatch. Invariant 9."""

from __future__ import annotations

from cwsink import Writer
from cwsink.config import SinkConfig
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch


def test_what_is_appended_is_delivered_once_and_in_order(server: StrictCloudWatch, config: SinkConfig) -> None:
    """5,000 records over several segments arrive byte for byte, in order, and leave one segment."""
    writer = Writer(config)
    messages = [f"record {number} {'x' * 200}" for number in range(5_000)]
    assert all(writer.append(message) for message in messages)
    assert writer.flush(30)
    assert server.messages() == messages
    books = survey(writer.directory)
    assert (books.appended, books.delivered, books.pending) == (5_000, 5_000, 0)
