"""Every answer of CloudWatch and its libraries means one outcome, and each outcome says all there is to do."""

from __future__ import annotations

import inspect
import re

import pytest
from botocore import credentials, exceptions, tokens

from cwsink.flusher.outcome import Act, Answer, Outcome, advice_on, classify, rejected_indexes

THROTTLED = """
ThrottlingException Throttling RequestLimitExceeded TooManyRequestsException RequestThrottled
""".split()
RETRY = """
ServiceUnavailableException ServiceUnavailable InternalFailure InternalServerError RequestTimeout
RequestTimeoutException OperationAbortedException LimitExceededException
""".split()
CREDENTIALS = """
ExpiredTokenException ExpiredToken RequestExpired UnrecognizedClientException InvalidClientTokenId
InvalidSignatureException SignatureDoesNotMatch IncompleteSignature IncompleteSignatureException
MissingAuthenticationToken MissingAuthenticationTokenException
""".split()
DENIED = "AccessDeniedException AccessDenied OptInRequired".split()
BISECT = "InvalidParameterException ValidationException SerializationException RequestEntityTooLargeException".split()

# Raised by botocore before anything is sent.
NO_CREDENTIALS = """
NoCredentialsError PartialCredentialsError CredentialRetrievalError MetadataRetrievalError UnknownCredentialError
RefreshWithMFAUnsupportedError TokenRetrievalError NoAuthTokenError UnknownTokenProviderError SSOError
SSOTokenLoadError UnauthorizedSSOTokenError LoginError LoginRefreshRequired LoginInsufficientPermissions
LoginTokenLoadError LoginAuthorizationCodeError MissingDependencyException NoRegionError
""".split()
MISCONFIGURED = """
ProfileNotFound ConfigParseError ConfigNotFound InvalidConfigError InfiniteLoopConfigError InvalidRegionError
InvalidRetryConfigurationError InvalidMaxRetryAttemptsError InvalidRetryModeError InvalidDefaultsMode
InvalidSTSRegionalEndpointsConfigError InvalidS3UsEast1RegionalEndpointConfigError InvalidChecksumConfigError
InvalidEndpointConfigurationError InvalidIMDSEndpointError InvalidIMDSEndpointModeError
""".split()
# Raised by botocore where no whole answer came.
NO_ANSWER = {
    "EndpointConnectionError": Outcome.UNREACHABLE,
    "ConnectTimeoutError": Outcome.UNREACHABLE,
    "ProxyConnectionError": Outcome.UNREACHABLE,
    "SSLError": Outcome.UNTRUSTED,
    "InvalidProxiesConfigError": Outcome.UNREACHABLE,
    "ReadTimeoutError": Outcome.NO_ANSWER,
    "ConnectionClosedError": Outcome.NO_ANSWER,
    "HTTPClientError": Outcome.RETRY,
    "AnswerTooLong": Outcome.STRANGE,
    "ProxyAuthenticationError": Outcome.PROXY,
    "InvalidProxyError": Outcome.PROXY,
    "NotCloudWatchError": Outcome.STRANGE,
    "OverflowError": Outcome.RETRY,
}

EXPECTED = [
    *((code, Outcome.THROTTLED) for code in THROTTLED),
    *((code, Outcome.RETRY) for code in RETRY),
    *((code, Outcome.CREDENTIALS) for code in CREDENTIALS),
    *((code, Outcome.DENIED) for code in DENIED),
    *((code, Outcome.BISECT) for code in BISECT),
    ("ResourceNotFoundException", Outcome.CREATE_TARGET),
    ("InvalidSequenceTokenException", Outcome.RESEND),
    ("DataAlreadyAcceptedException", Outcome.DELIVERED),
]


# The table.


@pytest.mark.parametrize("outcome", Outcome)
def test_each_outcome_says_what_the_leader_does_and_what_the_operator_is_told(outcome: Outcome) -> None:
    """Whatever is waited for has advice of its own."""
    reaction = outcome.value
    if reaction.act is Act.SETTLE:
        assert (reaction.advice, reaction.is_slow, reaction.is_quota) == ("", False, False)
    else:
        assert reaction.advice.endswith((".", "?"))
        assert [other for other in Outcome if other.value.advice == reaction.advice] == [outcome]


def test_each_act_is_of_some_outcome_and_each_code_of_one() -> None:
    """No act without a row that needs it; no code that means two things."""
    assert {outcome.value.act for outcome in Outcome} == set(Act)
    codes = [code for outcome in Outcome for code in outcome.value.codes.split()]
    assert len(codes) == len(set(codes))


@pytest.mark.parametrize(("code", "outcome"), EXPECTED)
def test_what_the_leader_publishes_is_explained(code: str, outcome: Outcome) -> None:
    """`cwsink status` shows the advice of the same row."""
    assert advice_on(f"{code}: why: because") == outcome.value.advice


@pytest.mark.parametrize("code", ["InvalidOperationException", "403", "407", "413", "Unknown", "503", "AccessDenied"])
@pytest.mark.parametrize("status", [None, 302, 400, 403, 407, 408, 429, 500, 503])
def test_status_advises_what_stderr_does(status: int | None, code: str) -> None:
    """Also for a code that the table does not know, although its HTTP status is not published."""
    reaction = classify(Answer(status=status, code=code, message="why")).value
    assert advice_on(f"{code}: why", reaction.obstacle) == reaction.advice


@pytest.mark.parametrize(("code", "outcome"), EXPECTED)
@pytest.mark.parametrize("status", [400, 500])
def test_each_error_code_means_what_the_documentation_says(code: str, outcome: Outcome, status: int) -> None:
    """The code decides, whatever the HTTP status: AWS sends throttling as 400."""
    assert classify(Answer(status=status, code=code, message="why", request_id="r")) is outcome


@pytest.mark.parametrize("code", NO_CREDENTIALS)
def test_what_botocore_raises_for_want_of_credentials_rebuilds_the_session(code: str) -> None:
    """No call was made: keep the batch, look for credentials again."""
    assert classify(Answer(code=code, message="why")) is Outcome.CREDENTIALS


def test_all_that_botocore_raises_for_want_of_credentials_is_in_the_table() -> None:
    """Whatever its providers of credentials and tokens raise by name. A newer botocore may have more of them."""
    found: set[str] = set()
    for module in (credentials, tokens):
        found |= set(re.findall(r"\braise (\w+)\(", inspect.getsource(module)))
    found = {name for name in found if issubclass(getattr(exceptions, name, int), exceptions.BotoCoreError)}
    assert {"LoginTokenLoadError", "CredentialRetrievalError", "TokenRetrievalError"} <= found
    known = {code: classify(Answer(code=code, message="why")) for code in found}
    assert set(known.values()) <= {Outcome.CREDENTIALS, Outcome.MISCONFIGURED}, known


@pytest.mark.parametrize("code", MISCONFIGURED)
def test_what_botocore_raises_for_a_wrong_configuration_rebuilds_the_session(code: str) -> None:
    """The file that is wrong may be corrected. botocore knows all of these."""
    assert hasattr(exceptions, code)
    assert classify(Answer(code=code, message="why")) is Outcome.MISCONFIGURED


@pytest.mark.parametrize("code", NO_ANSWER)
def test_what_botocore_raises_without_an_answer_is_tried_again(code: str) -> None:
    """Timeouts, resets, proxies and junk keep the batch."""
    outcome = classify(Answer(code=code, message="why", is_ambiguous=True))
    assert outcome is NO_ANSWER[code]
    assert outcome.value.act is Act.WAIT


def test_a_success_is_delivered() -> None:
    """200 with a request id is the only thing that is believed."""
    assert classify(Answer(status=200, request_id="r")) is Outcome.DELIVERED


@pytest.mark.parametrize("rejected", [None, {"tooOldLogEventEndIndex": 1}])
def test_a_success_without_a_request_id_is_not_believed(rejected: dict[str, int] | None) -> None:
    """A proxy's or captive portal's friendly 200 delivers nothing."""
    assert classify(Answer(status=200, rejected=rejected)) is Outcome.RETRY


def test_a_success_that_names_rejected_events_is_rejected() -> None:
    """`rejectedLogEventsInfo` is read; an empty one is no rejection."""
    assert classify(Answer(status=200, request_id="r", rejected={"tooOldLogEventEndIndex": 1})) is Outcome.REJECTED
    assert classify(Answer(status=200, request_id="r", rejected={})) is Outcome.DELIVERED


@pytest.mark.parametrize("status", [None, 201, 204, 301, 408, 418 + 11, 500, 502, 503, 504, 599])
def test_an_unknown_answer_that_may_pass_is_tried_again(status: int | None) -> None:
    """No answer, redirects, 408, 429 and every 5xx are transient, whatever they call themselves."""
    assert classify(Answer(status=status, code="SomethingNew", request_id="r")) is Outcome.RETRY
    assert classify(Answer(status=status, request_id="r")) is Outcome.RETRY


@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 410, 415, 422, 451, 499])
def test_an_unknown_client_error_waits_for_somebody_to_change_something(status: int) -> None:
    """What we do not know and what load did not cause is tried slowly; nothing is dropped for it."""
    assert classify(Answer(status=status, code="SomethingNew", message="logEvents")) is Outcome.DENIED


def test_a_proxy_that_finds_the_request_too_large_gets_smaller_ones() -> None:
    """413 without a known code is bisected; it can only be the size."""
    assert classify(Answer(status=413, code="413", message="Request Entity Too Large")) is Outcome.BISECT


def unsatisfied(where: str, value: str = "") -> str:
    """The service's wording for a value outside its declared range."""
    return f"1 validation error detected: Value '{value}' at '{where}' failed to satisfy constraint: Member must ..."


@pytest.mark.parametrize("code", ["InvalidParameterException", "ValidationException"])
@pytest.mark.parametrize("where", ["logStreamName", "logGroupName", "entity.keyAttributes", "sequenceToken"])
def test_an_invalid_parameter_that_is_not_in_the_events_is_not_bisected(code: str, where: str) -> None:
    """Bisection would take every event for the culprit and dead-letter them all."""
    assert classify(Answer(status=400, code=code, message=unsatisfied(where, "a:b"))) is Outcome.DENIED


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidParameterException", unsatisfied("logEvents.1.member.message")),
        ("InvalidParameterException", unsatisfied("logEvents", "[InputLogEvent(message=no entity in logGroupName)]")),
        ("InvalidParameterException", "Log event too large: 1048577 bytes exceeds limit of 1048576"),
        ("RequestEntityTooLargeException", "Request entity too large"),
        ("SerializationException", "Unexpected entity"),
    ],
)
def test_an_invalid_parameter_that_is_in_the_events_is_bisected(code: str, message: str) -> None:
    """Where the events are to blame, words that they quote change nothing."""
    assert classify(Answer(status=400, code=code, message=message)) is Outcome.BISECT


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        pytest.param({}, {}, id="nothing"),
        pytest.param({"tooOldLogEventEndIndex": 0}, {}, id="too old: none"),
        pytest.param({"tooOldLogEventEndIndex": 1}, {0: "too_old"}, id="too old: the first"),
        pytest.param({"tooOldLogEventEndIndex": 4}, dict.fromkeys(range(4), "too_old"), id="too old: all but one"),
        pytest.param({"tooOldLogEventEndIndex": 5}, dict.fromkeys(range(5), "too_old"), id="too old: all"),
        pytest.param({"tooOldLogEventEndIndex": 9}, dict.fromkeys(range(5), "too_old"), id="too old: more than sent"),
        pytest.param({"expiredLogEventEndIndex": 0}, {}, id="expired: none"),
        pytest.param({"expiredLogEventEndIndex": 2}, {0: "expired", 1: "expired"}, id="expired: two"),
        pytest.param({"expiredLogEventEndIndex": 6}, dict.fromkeys(range(5), "expired"), id="expired: more than sent"),
        pytest.param({"tooNewLogEventStartIndex": 0}, dict.fromkeys(range(5), "too_new"), id="too new: all"),
        pytest.param({"tooNewLogEventStartIndex": 4}, {4: "too_new"}, id="too new: the last"),
        pytest.param({"tooNewLogEventStartIndex": 5}, {}, id="too new: none"),
        pytest.param({"tooNewLogEventStartIndex": -1}, dict.fromkeys(range(5), "too_new"), id="too new: nonsense"),
        pytest.param({"tooOldLogEventEndIndex": -1}, {}, id="too old: nonsense"),
        pytest.param(
            {"tooOldLogEventEndIndex": 1, "expiredLogEventEndIndex": 3, "tooNewLogEventStartIndex": 4},
            {0: "too_old", 1: "expired", 2: "expired", 4: "too_new"},
            id="all three",
        ),
        pytest.param(
            {"expiredLogEventEndIndex": 2, "tooOldLogEventEndIndex": 2, "tooNewLogEventStartIndex": 1},
            {0: "too_old", 1: "too_old", 2: "too_new", 3: "too_new", 4: "too_new"},
            id="overlapping",
        ),
        pytest.param({"tooOldLogEventEndIndex": None, "tooNewLogEventStartIndex": "4"}, {}, id="no numbers"),
        pytest.param({"somethingNew": 3}, {}, id="unknown"),
    ],
)
def test_exactly_the_rejected_events_are_named(info: dict[str, object], expected: dict[int, str]) -> None:
    """Ends are exclusive, the start is inclusive, each event has one reason, and no index is beyond what was sent."""
    assert rejected_indexes(info, 5) == expected
