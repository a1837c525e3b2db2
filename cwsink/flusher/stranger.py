"""Whether it is CloudWatch that has answered, or somebody on the way there: a proxy, a login page, another server.

Whoever it is, nothing is delivered by such an answer, and nothing is refused: the records stay. Called by
cwsink.flusher.cloudwatch. Pure.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

CODE: Final = "NotCloudWatchError"
NO_OBJECT: Final = "the answer is none that CloudWatch gives"
_NOT_WHOLE: Final = "the answer is no whole JSON of CloudWatch's: it was cut on its way, or is somebody else's"
_AN_ERROR: Final = "the answer names an error, but its HTTP status is 200"
# A gateway before CloudWatch may find a request too large. Smaller ones pass it.
_TOO_LARGE: Final = 413


class NotCloudWatchError(Exception):
    """The answer is not CloudWatch's."""


class _RejectedEvents(msgspec.Struct):
    tooNewLogEventStartIndex: int | None = None  # noqa: N815  # AWS's names
    tooOldLogEventEndIndex: int | None = None  # noqa: N815
    expiredLogEventEndIndex: int | None = None  # noqa: N815


class _RejectedEntity(msgspec.Struct):
    errorType: str | None = None  # noqa: N815


class _Success(msgspec.Struct):
    """The parts of an answer of PutLogEvents that decide about its events.

    `error`: the name of an error. It is where botocore looks for one, too, but only if the status is that of an error.
    """

    error: object = msgspec.field(name="__type", default=None)
    rejectedLogEventsInfo: _RejectedEvents | None = None  # noqa: N815
    rejectedEntityInfo: _RejectedEntity | None = None  # noqa: N815


_decode: Final = msgspec.json.Decoder(_Success).decode


def check(http_response: Any, **_: Any) -> None:
    """Raise NotCloudWatchError if the body of a success of PutLogEvents is no whole one of CloudWatch's, or an error.

    The connection may have been closed in the middle of an answer without a Content-Length. botocore then takes what
    came for a message, and the events that the answer rejects would count as delivered. So they would if an index were
    no number. No body at all rejects nothing.

    Somebody on the way may also turn the status of an error into 200, and leave its body as it is.
    """
    if http_response.status_code != 200 or not (content := http_response.content):
        return
    try:
        success = _decode(content)
    except (ValueError, RecursionError) as error:
        raise NotCloudWatchError(_NOT_WHOLE) from error
    if success.error is not None:
        raise NotCloudWatchError(_AN_ERROR)


def doubt_about(status: int | None, request_id: str) -> str:
    """Return why what looks like a success is not CloudWatch's; "" if it may be."""
    if status != 200:
        return f"HTTP {status} is no answer that CloudWatch gives"
    return "" if request_id else "the answer has no AWS request id"


def has_refused(status: int | None, code: str) -> bool:
    """Tell whether a redirect or a refusal names no error of AWS's, as each one of CloudWatch's does.

    `code`: botocore's. Without an error in the answer, that is the HTTP status.
    """
    is_named = code != "Unknown" and not code.isdecimal()
    return status is not None and 300 <= status < 500 and status != _TOO_LARGE and not is_named
