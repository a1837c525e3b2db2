"""What an answer of CloudWatch means for the request it answers (pure).

`Answer` is what the client saw, and `classify` says which `Outcome` that is. Each outcome is one row: the error codes
that lead to it, what the leader does (an `Act`), and what the operator is told. To add an outcome, add its row here and
nothing elsewhere. A new kind of act also needs a branch in cwsink.flusher.delivery.

No outcome drops a record. The worst that can happen to one is that it becomes a dead letter, with a reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto, unique
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:  # that module opens files, and this one must not
    from cwsink.spool.leader_state import Obstacle


# The texts of an answer come from whoever has answered, and are shown to people.
TEXTS: Final = ("code", "message", "request_id", "rejected_entity")
MOST_TEXT_BYTES: Final = 1024
# A token of CloudWatch's has 56 digits. A longer one would only make each request longer.
_MOST_TOKEN_CHARACTERS: Final = 1024
_LEFT_OUT: Final = " ... "


def shortened(text: str, most_bytes: int) -> str:
    """Return `text` in at most so many bytes of UTF-8, with escapes for surrogates. What is left out is its middle.

    The end must stay, because there CloudWatch names the parameter that it finds wrong.
    """
    data = text.encode("utf-8", "backslashreplace")
    if len(data) <= most_bytes:
        return data.decode()
    room = most_bytes - len(_LEFT_OUT)
    begin, end = data[: room - room // 3], data[-(room // 3) :]
    return f"{begin.decode(errors='ignore')}{_LEFT_OUT}{end.decode(errors='ignore')}"


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back from a call. Its texts are cut to 1 KiB here, whoever makes it.

    Attributes:
        status: the HTTP status, or None if no whole answer came.
        code: the error code, or the exception's name if no answer came; empty for success.
        message: the error's text, for people.
        request_id: AWS's id of the call. A success without one is not believed.
        rejected: `rejectedLogEventsInfo`, as received.
        rejected_entity: the error type of a `rejectedEntityInfo`. CloudWatch takes the events all the same.
        already_existed: the group or stream that was to be created was there already.
        expected_token: the sequence token that an InvalidSequenceTokenException names.
        is_ambiguous: CloudWatch may have carried out the call, although the client may have seen no success.
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

    def __post_init__(self) -> None:
        for name in TEXTS:
            if text := getattr(self, name):
                msgspec.structs.force_setattr(self, name, shortened(text, MOST_TEXT_BYTES))
        if (token := self.expected_token) and (len(token) > _MOST_TOKEN_CHARACTERS or not token.isascii()):
            msgspec.structs.force_setattr(self, "expected_token", None)


class Act(Enum):
    """What the leader does with a request that was answered."""

    SETTLE = auto()  # CloudWatch has taken it: count its events, make dead letters of those that the answer rejects
    SPLIT = auto()  # CloudWatch has refused it because of an event: send its halves
    WAIT = auto()  # send the same again, later
    CREATE_TARGET = auto()  # create the group or the stream, and send the same at once
    USE_TOKEN = auto()  # send the same at once, with the sequence token that the answer names


class Reaction(NamedTuple):
    """What follows from an outcome.

    Attributes:
        act: what the leader does.
        advice: what the operator is told while the trouble lasts: its meaning, and what to do.
        codes: the error codes that mean this outcome, and names of exceptions, for calls without an answer.
        obstacle: how the leader publishes the trouble (cwsink.spool.leader_state).
        is_quota: the account's quota is used up, so the leader sends less often for a while.
    """

    act: Act
    advice: str = ""
    codes: str = ""
    obstacle: Obstacle = "busy"
    is_quota: bool = False

    @property
    def is_slow(self) -> bool:
        """Tell whether people or other programs must change something. The leader tries again every 5 to 10 seconds.

        It may be the credentials that they change, so each try reads them anew.
        """
        return self.obstacle in ("credentials", "denied")


@unique  # two rows that say the same would be one outcome with two names
class Outcome(Enum):
    """How a call ended, and what follows from it."""

    DELIVERED = Reaction(Act.SETTLE, codes="DataAlreadyAcceptedException")
    # CloudWatch has taken the request, except the events that the answer names.
    REJECTED = Reaction(Act.SETTLE)
    BISECT = Reaction(
        Act.SPLIT,
        "CloudWatch takes nothing that is sent there, not even a line of cwsink's own: correct the setting it names.",
        "InvalidParameterException ValidationException SerializationException RequestEntityTooLargeException 413",
        obstacle="denied",
    )
    CREATE_TARGET = Reaction(
        Act.CREATE_TARGET,
        "The log group or stream is missing, and could not be created: create it, or let cwsink create it.",
        "ResourceNotFoundException",
        obstacle="denied",
    )
    RESEND = Reaction(
        Act.USE_TOKEN,
        "The endpoint asks for another sequence token at each call. Does another program write to this log stream?",
        "InvalidSequenceTokenException",
    )
    THROTTLED = Reaction(
        Act.WAIT,
        "CloudWatch asks to send more slowly. There is nothing to do unless it lasts.",
        "ThrottlingException Throttling RequestLimitExceeded TooManyRequestsException RequestThrottled",
        is_quota=True,
    )
    # No connection was made.
    UNREACHABLE = Reaction(
        Act.WAIT,
        "CloudWatch cannot be reached: is the network up, the endpoint or region right?",
        "EndpointConnectionError ConnectTimeoutError ProxyConnectionError InvalidProxiesConfigError",
        obstacle="unreachable",
    )
    # A server is there, and TLS with it has failed.
    UNTRUSTED = Reaction(
        Act.WAIT,
        "This host does not trust the certificate of the endpoint, or of a proxy before it. Is it in date by this "
        "host's clock, for the name that is asked, and signed by a CA that is known here? A CA of your own is named by "
        "AWS_CA_BUNDLE=/path/to/ca.pem where the application is started: a file that the flusher can read.",
        "SSLError",
        obstacle="unreachable",
    )
    NO_ANSWER = Reaction(
        Act.WAIT,
        "CloudWatch did not answer in time, or the connection was closed before it did.",
        "ReadTimeoutError ConnectionClosedError",
    )
    CREDENTIALS = Reaction(
        Act.WAIT,
        "Check the AWS credentials, the region and this host's clock. Credentials are read anew at each try.",
        "ExpiredTokenException ExpiredToken RequestExpired UnrecognizedClientException InvalidClientTokenId "
        "InvalidSignatureException SignatureDoesNotMatch IncompleteSignature IncompleteSignatureException "
        "MissingAuthenticationToken MissingAuthenticationTokenException NoCredentialsError PartialCredentialsError "
        "CredentialRetrievalError MetadataRetrievalError UnknownCredentialError RefreshWithMFAUnsupportedError "
        "TokenRetrievalError NoAuthTokenError UnknownTokenProviderError SSOError SSOTokenLoadError "
        "UnauthorizedSSOTokenError LoginError LoginRefreshRequired LoginInsufficientPermissions LoginTokenLoadError "
        "LoginAuthorizationCodeError MissingDependencyException NoRegionError",
        obstacle="credentials",
    )
    # botocore has made no client.
    MISCONFIGURED = Reaction(
        Act.WAIT,
        "One of AWS's variables (AWS_...) where the flusher was started, or a file that it names (~/.aws/config), is "
        "wrong. Correct it. The files are read anew at each try; a variable needs a new start of what logs.",
        "ProfileNotFound ConfigParseError ConfigNotFound InvalidConfigError InfiniteLoopConfigError InvalidRegionError "
        "InvalidRetryConfigurationError InvalidMaxRetryAttemptsError InvalidRetryModeError InvalidDefaultsMode "
        "InvalidSTSRegionalEndpointsConfigError InvalidS3UsEast1RegionalEndpointConfigError InvalidChecksumConfigError "
        "InvalidEndpointConfigurationError InvalidIMDSEndpointError InvalidIMDSEndpointModeError",
        obstacle="credentials",
    )
    # It is not CloudWatch that has answered.
    PROXY = Reaction(
        Act.WAIT,
        "The proxy before CloudWatch refuses, or is named wrongly: correct HTTPS_PROXY or HTTP_PROXY, with the proxy's "
        "user and password in it, and start anew what logs. Or name the endpoint in NO_PROXY.",
        "ProxyAuthenticationError InvalidProxyError 407",
        obstacle="unreachable",
    )
    DENIED = Reaction(
        Act.WAIT,
        "Allow the action that the error names, or correct the setting.",
        "AccessDeniedException AccessDenied OptInRequired",
        obstacle="denied",
    )
    # Whoever answers is hardly CloudWatch (cwsink.flusher.stranger).
    STRANGE = Reaction(
        Act.WAIT,
        "Has a proxy answered? Check endpoint_url and the proxy settings.",
        "AnswerTooLong NotCloudWatchError",
        obstacle="unreachable",
    )
    # All other trouble of the service, and all codes that this table does not know.
    RETRY = Reaction(
        Act.WAIT,
        "CloudWatch is busy or out of reach.",
        "ServiceUnavailableException ServiceUnavailable InternalFailure InternalServerError RequestTimeout "
        "RequestTimeoutException OperationAbortedException LimitExceededException",
    )


_BY_CODE: Final[Mapping[str, Outcome]] = {code: each for each in Outcome for code in each.value.codes.split()}

# If an invalid parameter is not in the events, halving the request cannot find it. Somebody has to correct the setting.
_NOT_IN_EVENTS: Final = ("logGroupName", "logStreamName", "entity", "sequenceToken")
# Only these codes come with the parameter's name ("... at 'logStreamName' failed to satisfy ..."). The entity in
# "Request entity too large" is not the parameter. If `logEvents` is named, the other names may be text of an event.
_NAMES_A_FIELD: Final = frozenset(("InvalidParameterException", "ValidationException"))


def classify(answer: Answer) -> Outcome:
    """Return how the call that got this answer has ended."""
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


def advice_on(error: str, obstacle: str = "") -> str:
    """Return what an error means, and what to do about it: the advice that the leader's line on stderr has.

    Args:
        error: the code, a colon and the message, as the leader publishes them.
        obstacle: the one that it publishes with them. A code that is not in the table was classified by its HTTP
            status, which is not published, and the obstacle tells which way that went.
    """
    code, _, message = error.partition(":")
    status = 400 if obstacle == Outcome.DENIED.value.obstacle else None
    return classify(Answer(status=status, code=code, message=message)).value.advice


def rejected_indexes(info: Mapping[str, Any], count: int) -> dict[int, str]:
    """Return which of `count` events a `rejectedLogEventsInfo` names: index -> reason.

    `tooOldLogEventEndIndex` and `expiredLogEventEndIndex` are exclusive ends of a range from the first event on.
    `tooNewLogEventStartIndex` is the first event of a range to the end (API reference, RejectedLogEventsInfo).
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
