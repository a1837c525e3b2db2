"""What an answer of CloudWatch means for the batch it answers (pure).

`Answer` is what the client saw; `classify` looks it up in a table. Nothing in the
table drops a record: the worst that can happen to one is a dead letter, with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any, Final

import msgspec


class Outcome(Enum):
    """How a call ended."""

    DELIVERED = "delivered"  # CloudWatch has it
    REJECTED = "rejected"  # it has most of it: dead-letter the indexes it names
    RETRY = "retry"  # transient: keep the batch, back off
    CREDENTIALS = "credentials"  # keep, retry slowly with a session built anew
    DENIED = "denied"  # keep, retry slowly: somebody has to change a policy or a setting
    CREATE_TARGET = "create_target"  # group or stream is missing: create it, send again
    RESEND = "resend"  # send again at once with the sequence token it names
    BISECT = "bisect"  # some event is not legal: find it


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back from a call.

    Attributes:
        status: the HTTP status, or None if no whole answer came.
        code: the error code, or the exception's name where no answer came; empty for success.
        message: for people.
        request_id: AWS's id of the call; a success without one is not believed.
        rejected: `rejectedLogEventsInfo`, as received.
        rejected_entity: the error type of a `rejectedEntityInfo`; the events are accepted all the same.
        already_existed: what was to be created is there.
        expected_token: of an InvalidSequenceTokenException.
        is_ambiguous: the call may have been carried out although no success was seen.
    """

    status: int | None = None
    code: str = ""
    message: str = ""
    request_id: str = ""
    rejected: Mapping[str, Any] | None = None
    rejected_entity: str | None = None
    already_existed: bool = False
    expected_token: str | None = None
    is_ambiguous: bool = False


# The account's quota is used up.
THROTTLING: Final = frozenset(
    "ThrottlingException Throttling RequestLimitExceeded TooManyRequestsException RequestThrottled".split()
)

# No connection was made: nothing of ours can change that.
UNREACHABLE: Final = frozenset(
    "EndpointConnectionError ConnectTimeoutError ProxyConnectionError SSLError InvalidProxiesConfigError".split()
)

_BY_CODE: Final[Mapping[str, Outcome]] = {
    **dict.fromkeys(THROTTLING, Outcome.RETRY),
    **dict.fromkeys(
        (
            "ServiceUnavailableException ServiceUnavailable InternalFailure InternalServerError RequestTimeout "
            "RequestTimeoutException OperationAbortedException LimitExceededException"
        ).split(),
        Outcome.RETRY,
    ),
    **dict.fromkeys(
        (
            "ExpiredTokenException ExpiredToken RequestExpired UnrecognizedClientException InvalidClientTokenId "
            "InvalidSignatureException SignatureDoesNotMatch IncompleteSignature IncompleteSignatureException "
            "MissingAuthenticationToken MissingAuthenticationTokenException NoCredentialsError "
            "PartialCredentialsError CredentialRetrievalError TokenRetrievalError SSOTokenLoadError "
            "UnauthorizedSSOTokenError NoRegionError ProfileNotFound"
        ).split(),
        Outcome.CREDENTIALS,
    ),
    **dict.fromkeys(("AccessDeniedException", "AccessDenied", "OptInRequired"), Outcome.DENIED),
    **dict.fromkeys(
        "InvalidParameterException ValidationException SerializationException RequestEntityTooLargeException".split(),
        Outcome.BISECT,
    ),
    "ResourceNotFoundException": Outcome.CREATE_TARGET,
    "InvalidSequenceTokenException": Outcome.RESEND,
    "DataAlreadyAcceptedException": Outcome.DELIVERED,
}

# An invalid parameter that is not in the events cannot be found by bisection: every event would
# be taken for the culprit and dead-lettered, one by one.
_NOT_IN_EVENTS: Final = ("logGroupName", "logStreamName", "entity", "sequenceToken")
# Only these say which one it is ("... at 'logStreamName' failed to satisfy ..."); "Request entity too
# large" does not. Where they name `logEvents`, the rest may be the quoted text of an event.
_NAMES_A_FIELD: Final = frozenset(("InvalidParameterException", "ValidationException"))


def classify(answer: Answer) -> Outcome:
    """Return what to do about `answer`."""
    if answer.status == 200 and not answer.code:
        if not answer.request_id:
            return Outcome.RETRY
        return Outcome.REJECTED if answer.rejected else Outcome.DELIVERED
    outcome = _BY_CODE.get(answer.code)
    if outcome is Outcome.BISECT and answer.code in _NAMES_A_FIELD and "logEvents" not in answer.message:
        return Outcome.DENIED if any(name in answer.message for name in _NOT_IN_EVENTS) else outcome
    if outcome is not None:
        return outcome
    if answer.status == 413:
        return Outcome.BISECT
    if answer.status is not None and 400 <= answer.status < 500 and answer.status not in (408, 429):
        return Outcome.DENIED
    return Outcome.RETRY


def rejected_indexes(info: Mapping[str, Any], count: int) -> dict[int, str]:
    """Return index -> reason of the events that a `rejectedLogEventsInfo` names, of `count` sent.

    `tooOldLogEventEndIndex` and `expiredLogEventEndIndex` are exclusive ends from the beginning,
    `tooNewLogEventStartIndex` an inclusive start to the end (API reference, RejectedLogEventsInfo).
    """
    reasons: dict[int, str] = {}
    for name, reason in (("tooOldLogEventEndIndex", "too_old"), ("expiredLogEventEndIndex", "expired")):
        end = info.get(name)
        if isinstance(end, int):
            for index in range(min(end, count)):
                reasons.setdefault(index, reason)
    start = info.get("tooNewLogEventStartIndex")
    if isinstance(start, int):
        for index in range(max(0, start), count):
            reasons.setdefault(index, "too_new")
    return reasons
