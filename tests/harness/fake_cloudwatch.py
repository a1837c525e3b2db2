"""A CloudWatch in the test's own process, for tests that need thousands of leaders: no socket, no botocore.

`FakeCloudWatch.method()` takes the place of `CloudWatch.put`, which is all that a leader asks of CloudWatch once its
stream exists. Requests are judged by the rules of the strict server.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.outcome import Answer
from cwsink.limits import MAX_EVENT_BYTES
from cwsink.spool.record import Event
from cwsink.testing import rules
from tests.harness.support import is_ours

# An event whose message holds this is refused, and with it every request it is in.
POISON: Final = "poison"


class StoredEvent(NamedTuple):
    """One event that CloudWatch has taken."""

    timestamp_ms: int
    message: str


class FakeCloudWatch:
    """Stores what it is sent, or does as it is told.

    Attributes:
        stored: what it took, in order.
        answers: how to answer the next requests; "ok" when it is empty. "error": not stored. "lost": stored, and
            the answer never comes. "junk": stored, and the answer is not one of AWS.
        before, after: called before a request is looked at, and after it is stored.
        unanswered: how many requests were stored without an answer to be believed.
        senders: which clients sent under each epoch.
    """

    def __init__(self, now_ms: Callable[[], int]) -> None:
        self.stored: list[StoredEvent] = []
        self.answers: list[str] = []
        self.before: Callable[[CloudWatch], None] = lambda client: None
        self.after: Callable[[CloudWatch], None] = lambda client: None
        self.unanswered = 0
        self.senders: dict[int, set[int]] = {}
        self.puts: Counter[int] = Counter()
        self._now_ms = now_ms

    def method(self) -> Callable[..., Answer]:
        """Return what to put in the place of `CloudWatch.put`."""

        def put(client: CloudWatch, stream: str, events: Iterable[Event], token: str | None = None) -> Answer:
            return self._put(client, list(events))

        return put

    def messages(self) -> list[str]:
        """Return the messages of records, without what cwsink itself told the stream."""
        return [sent.message for sent in self.stored if not is_ours(sent.message)]

    def _put(self, client: CloudWatch, events: list[Event]) -> Answer:
        self.before(client)
        self.puts[client._epoch] += 1
        self.senders.setdefault(client._epoch, set()).add(id(client))
        times, messages = [each.timestamp_ms for each in events], [each.message for each in events]
        now_ms = self._now_ms()
        broken = list(
            rules.check_events(
                times,
                messages,
                batch_bytes=rules.counted_bytes(messages),
                now_ms=now_ms,
                max_event_bytes=MAX_EVENT_BYTES,
            )
        )
        assert not broken, broken
        how = self.answers.pop(0) if self.answers else "ok"
        if how == "error":
            return Answer(status=503, code="ServiceUnavailableException", request_id="r", is_ambiguous=True)
        if any(POISON in message for message in messages):
            return Answer(
                status=400, code="InvalidParameterException", message="Log event is poison: logEvents", request_id="r"
            )
        verdict = rules.rejected(times, now_ms=now_ms, retention_days=None)
        taken = verdict.accepted(len(events))
        self.stored += [StoredEvent(*pair) for pair in zip(times[taken], messages[taken], strict=True)]
        if how != "ok":
            self.unanswered += 1
        self.after(client)
        if how == "lost":
            return Answer(code="ReadTimeoutError", is_ambiguous=True)
        if how == "junk":
            return Answer(status=200, code="NotCloudWatchError", is_ambiguous=True)
        return Answer(status=200, request_id="r", rejected=verdict.answer() or None)
