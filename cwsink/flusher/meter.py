"""Counts the requests to CloudWatch: how each ended, how long it took, how many bytes were sent.

The counts go into leader.json, from where `cwsink metrics` and `cwsink.stats()` read them. They cost a few
microseconds a request, and nothing an event.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.outcome import Answer, classify
from cwsink.spool.leader_state import LeaderState
from cwsink.spool.record import Event


class Meter:
    """Stands between a delivery and its client."""

    def __init__(self, client: CloudWatch, leader_state: LeaderState) -> None:
        self._client = client
        self._leader_state = leader_state
        self.create_group = client.create_group
        self.create_stream = client.create_stream
        self.forget_session = client.forget_session
        self.close = client.close

    def put(self, stream: str, events: Sequence[Event], sequence_token: str | None = None) -> Answer:
        """Send events to a log stream."""
        before, began = self._client.sent_bytes, time.monotonic()
        answer = self._client.put(stream, events, sequence_token)
        seconds = time.monotonic() - began
        self._leader_state.answered(classify(answer).name.lower(), seconds, self._client.sent_bytes - before)
        return answer
