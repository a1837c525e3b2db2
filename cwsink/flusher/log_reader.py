"""Reads a log stream back, page by page, below AWS's quota (`cwsink verify`).

botocore would make a dict of each event, and check each against its model, which takes 150 ms for a page. So a hook
takes the body of the answer before botocore parses it, and msgspec decodes it. Errors are botocore's.

GetLogEvents may be called 10 to 25 times a second for each account and region (AWS's older pages say 5), and everybody
who looks at the console takes a part of that. So it is called `calls_per_second` times at most. A call that is
throttled, or not answered, is made again after a pause that grows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, Final

import msgspec

from cwsink.config import SinkConfig
from cwsink.errors import ReadBackError
from cwsink.flusher.cloudwatch import CloudWatch
from cwsink.flusher.outcome import Act, Answer, Outcome, classify
from cwsink.spool.directory import SpoolFormat

# Less than half of the quota of most regions, and below that of any.
CALLS_PER_SECOND: Final = 4.0
_BEFORE_PARSE: Final = "before-parse.cloudwatch-logs.GetLogEvents"
# A call is tried again for about two minutes.
_TRIES: Final = 8
_FIRST_PAUSE_SECONDS: Final = 0.5


class Shown(msgspec.Struct, gc=False):
    """An event as CloudWatch shows it."""

    timestamp: int
    message: str


class _Page(msgspec.Struct, rename={"token": "nextForwardToken"}):
    events: list[Shown] = []
    token: str = ""


_decode: Final = msgspec.json.Decoder(_Page).decode


class LogReader(CloudWatch):
    """Reads the streams of one log group."""

    def __init__(
        self, spool_format: SpoolFormat, config: SinkConfig, calls_per_second: float = CALLS_PER_SECOND
    ) -> None:
        super().__init__(spool_format, config, epoch=0)
        self._group = spool_format.log_group_name
        self._pause_seconds = 1 / calls_per_second
        self._next_at = 0.0
        self._page_body = b""

    def events(self, stream: str, start_ms: int, end_ms: int) -> Iterator[Shown]:
        """Yield the events of a stream in [start_ms, end_ms); none if there is no such stream.

        Raises:
            ReadBackError: CloudWatch does not answer, or does not allow it.
        """
        window = {"startTime": start_ms, "endTime": end_ms, "startFromHead": True}
        token = ""
        while (page := self._page(stream, **window, **({"nextToken": token} if token else {}))) is not None:
            yield from page.events
            # A page may be empty, and others follow. At the end CloudWatch returns the token that it was given.
            if page.token in ("", token):
                return
            token = page.token

    def _page(self, stream: str, **parameters: Any) -> _Page | None:
        pause, answer = _FIRST_PAUSE_SECONDS, Answer()
        for _ in range(_TRIES):
            time.sleep(max(0.0, self._next_at - time.monotonic()))
            self._next_at = time.monotonic() + self._pause_seconds
            answer = self._call("get_log_events", logGroupName=self._group, logStreamName=stream, **parameters)
            outcome = classify(answer)
            if outcome is Outcome.DELIVERED:
                body, self._page_body = self._page_body, b""
                try:
                    return _decode(body)
                except ValueError as error:
                    answer = Answer(code="Unreadable", message=str(error))
            elif outcome is Outcome.CREATE_TARGET:
                return None
            elif outcome.value.act is not Act.WAIT or outcome.value.is_slow:
                break
            self.close()
            time.sleep(pause)
            pause *= 2
        raise ReadBackError(
            f"cannot read {self._group}, stream {stream}: {answer.code}: {answer.message.rstrip('.')}. "
            f"{classify(answer).value.advice} `cwsink verify` needs logs:GetLogEvents. Called again, it goes on."
        )

    def _connect(self, **options: Any) -> Any:
        client = super()._connect(**options)
        client.meta.events.register(_BEFORE_PARSE, self._take_body)
        return client

    def _take_body(self, response_dict: dict[str, Any], **_: Any) -> None:
        if response_dict["status_code"] == 200:
            self._page_body, response_dict["body"] = response_dict["body"], b"{}"
