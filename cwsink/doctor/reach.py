"""Questions about AWS: is the endpoint there, whose credentials are used, and what do they allow."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timezone
from urllib.parse import urlsplit

from cwsink import diagnostics, naming, regions
from cwsink.doctor.finding import Finding, ok, unknown, warning, wrong
from cwsink.doctor.patient import Case, Patient
from cwsink.flusher import confidential, examination, proxy
from cwsink.flusher.examination import Examination
from cwsink.flusher.outcome import Answer, Outcome, classify

# AWS refuses a signature whose time differs by more than five minutes.
_MOST_SKEW_SECONDS = 300.0
_SUSPICIOUS_SECONDS = 60.0
_SOON_SECONDS = 900.0

_FOUND_BY = {
    "env": "the environment (AWS_ACCESS_KEY_ID)",
    "shared-credentials-file": "a profile of ~/.aws/credentials",
    "config-file": "a profile of ~/.aws/config",
    "iam-role": "the role of this instance (metadata service)",
    "container-role": "the role of this task or pod",
    "assume-role": "a role that is assumed",
    "assume-role-with-web-identity": "the role of this service account (web identity)",
    "sso": "IAM Identity Center (aws sso login)",
    "custom-process": "the profile's credential_process",
}


def region(patient: Patient) -> Iterator[Finding]:
    """Which region is it?"""
    for case in _each_place(patient):
        try:
            found = Examination(case.target, case.config).has_region()
        except Exception as error:  # the profile is missing or cannot be read
            is_file = type(error).__name__ == "ConfigParseError"  # which all cases need
            _mark_unreadable(each for each in patient.cases if is_file or _place_of(each) == _place_of(case))
            yield wrong("region", confidential.text_of(error), "aws configure list-profiles")
            if is_file:
                return
            continue
        if found is None:
            yield wrong("region", f"{case.name}: no region is named", "CWSINK_REGION=us-east-1")
        elif case.target.endpoint_url is None and (meant := regions.nearest(found)):
            yield warning("region", f"{found} is no region that botocore knows", f"CWSINK_REGION={meant}")
        else:
            yield ok("region", found)


def name(patient: Patient) -> Iterator[Finding]:
    """Can the name of the endpoint, or of the proxy before it, be looked up?"""
    for case in _each_place(patient):
        url = _url_of(case)
        if url is None:
            continue
        by = examination.proxy_of(url)
        if by is not None and (variable := proxy.wrong_variable(url.partition(":")[0])):
            _mark(patient, case, is_reached=False)
            seen = f"{url} is reached by a proxy, and what {variable} holds is not the URL of one"
            yield wrong("proxy", seen, f"{variable}=http://proxy.example:3128, or leave it out")
            continue
        if by is not None:
            yield ok("proxy", f"{url} is reached by the proxy {by}")
        address = urlsplit(by if by and "://" in by else f"//{by}" if by else url)
        host = address.hostname or ""
        _mark(patient, case, is_reached=False)  # until the name is known: the look-up may hang
        try:
            found = {str(each[4][0]) for each in socket.getaddrinfo(host, address.port or 443, type=socket.SOCK_STREAM)}
        except OSError as error:
            yield wrong("name", f"{host} cannot be looked up: {error.strerror or error}", f"getent hosts {host}")
        else:
            _mark(patient, case, is_reached=None)
            yield ok("name", f"{host} is {', '.join(sorted(found)[:3])}")


def endpoint(patient: Patient) -> Iterator[Finding]:
    """Does the endpoint answer, by TLS, and is this host's clock right?"""
    for case in _each_place(patient):
        if case.is_reached is False:
            yield unknown("endpoint", "not asked, because its name is not known, or the URL of its proxy is none")
            continue
        if case.is_unreadable:
            yield unknown("endpoint", _NOT_ASKED)
            continue
        asked = Examination(case.target, case.config, is_signed=False)
        with diagnostics.collected() as said, contextlib.closing(asked):
            answer = asked.describe()
        outcome = classify(answer)
        if outcome is Outcome.MISCONFIGURED:  # botocore has made no client, so nothing was asked
            _mark_unreadable(each for each in patient.cases if _place_of(each) == _place_of(case))
            yield wrong("settings", _shown(answer), outcome.value.advice)
            continue
        is_reached = outcome is Outcome.STRANGE or (answer.status is not None and outcome is not Outcome.PROXY)
        _mark(patient, case, is_reached=is_reached)
        url = _url_of(case) or "the endpoint"
        if not is_reached:
            yield wrong("endpoint", f"{url}: {_shown(answer)}", _advice(answer, url))
            continue
        for each_said in said:
            yield warning("endpoint", each_said)
        if outcome is Outcome.STRANGE or not _is_of_aws(answer):
            yield wrong(
                "endpoint", f"{url} answers, but not as CloudWatch does: {_shown(answer)}", _advice(answer, url)
            )
        elif not said:
            yield ok("endpoint", f"{url} answers")
        yield from _clock(asked.ahead_seconds)


def _clock(ahead: float | None) -> Iterator[Finding]:
    if ahead is None:
        yield unknown("clock", "the answer has no Date")
        return
    shown = f"this host's clock is {abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} the server's"
    if abs(ahead) > _MOST_SKEW_SECONDS:
        yield wrong("clock", f"{shown}: AWS refuses what is signed like that", "timedatectl set-ntp true")
    elif abs(ahead) > _SUSPICIOUS_SECONDS:
        yield warning("clock", shown, "timedatectl set-ntp true")
    else:
        yield ok("clock", f"within {abs(ahead):.0f} s of the server's")


def credentials(patient: Patient) -> Iterator[Finding]:
    """Whose credentials are used, and until when?"""
    for case in _each_account(patient):
        who = case.config.role_arn or (f"profile {case.config.profile}" if case.config.profile else "")
        of = f"{who}: " if who else ""
        if case.is_unreadable:
            yield unknown("credentials", f"{of}{_NOT_ASKED}")
            continue
        try:
            found = Examination(case.target, case.config).credentials(asks_sts=case.is_reached is not False)
        except Exception as error:
            if classify(Answer(code=type(error).__name__)) is Outcome.MISCONFIGURED:
                _mark_unreadable(each for each in patient.cases if _account_of(each) == _account_of(case))
            yield wrong("credentials", f"{of}{type(error).__name__}: {confidential.text_of(error)}", _LIST)
            continue
        if found is None:
            yield wrong("credentials", f"{of}there are none", _LIST)
            continue
        shown = f"{of}{_FOUND_BY.get(found.found_by, found.found_by)}, key ...{found.key}"
        shown += f", {found.arn}" if found.arn else ""
        if found.until is None:
            yield ok("credentials", shown)
            continue
        left = (found.until - datetime.now(timezone.utc)).total_seconds()
        until = f"{shown}, until {found.until:%H:%M:%S} UTC"
        if left < 0:
            yield wrong("credentials", f"{until}: that is over", "aws sso login, or whatever renews them")
        elif left < _SOON_SECONDS and found.found_by in ("env", "shared-credentials-file"):
            yield warning("credentials", until, "They are not renewed: a role would be.")
        else:
            yield ok("credentials", until)


_NOT_ASKED = "not asked, because the configuration cannot be read"
_LIST = "aws configure list (as the workers' user)"


def permissions(patient: Patient) -> Iterator[Finding]:
    """What do the credentials allow, as far as that can be tried without an effect?"""
    for case in patient.cases:
        if case.is_reached is False:
            yield unknown("permissions", f"{case.name}: not tried, because the endpoint does not answer")
            continue
        if case.is_unreadable:
            yield unknown("permissions", f"{case.name}: not tried, because the configuration cannot be read")
            continue
        asked = Examination(case.target, case.config)
        with diagnostics.collected(), contextlib.closing(asked):
            yield from _permissions(case, asked)


def _permissions(case: Case, asked: Examination) -> Iterator[Finding]:
    target, stream = case.target, naming.stream_at(case.target.log_stream_name, int(time.time() * 1000))
    sent = asked.send_nothing(stream)
    outcome = classify(sent)
    if outcome is Outcome.CREATE_TARGET:
        yield ok("PutLogEvents", f"{case.name}: allowed; the group or the stream is missing")
        yield from _creation(case, asked, stream)
    elif outcome in (Outcome.REJECTED, Outcome.DELIVERED):
        yield ok("PutLogEvents", f"{case.name}: allowed (an event of 1970 was offered, and refused for its time)")
        yield from _needless(target.create_log_stream, "CreateLogStream", asked.create_stream(stream))
        yield from _needless(target.create_log_group, "CreateLogGroup", asked.group_again())
    elif outcome is Outcome.DENIED:
        yield wrong("PutLogEvents", f"{case.name}: {_shown(sent)}", _allow(case, "logs:PutLogEvents"))
    elif outcome is Outcome.THROTTLED:
        yield unknown("PutLogEvents", f"{case.name}: {_shown(sent)}", "Ask again later.")
    else:
        yield wrong("PutLogEvents", f"{case.name}: {_shown(sent)}", outcome.value.advice)


def _creation(case: Case, asked: Examination, stream: str) -> Iterator[Finding]:
    """The group or the stream is missing: which, and can it be created?"""
    target = case.target
    seen = asked.describe(stream)
    if seen.code == "ResourceNotFoundException":
        missing, action = f"the group {target.log_group_name}", "CreateLogGroup"
        may, create = target.create_log_group, f"aws logs create-log-group --log-group-name {target.log_group_name}"
    elif not seen.code:
        missing, action, may = f"the stream {stream}", "CreateLogStream", target.create_log_stream
        create = f"aws logs create-log-stream --log-group-name {target.log_group_name} --log-stream-name {stream}"
    else:
        yield unknown("group", f"what is missing cannot be seen: {_shown(seen)}", "cwsink doctor --probe")
        return
    if may:
        more = ", PutRetentionPolicy" if target.retention_days and action == "CreateLogGroup" else ""
        more += ", TagResource" if target.tags and action == "CreateLogGroup" else ""
        yield unknown(
            action,
            f"{missing} is missing. A flusher creates it, if it may ({action}{more}); to try that would create it",
            "cwsink doctor --probe",
        )
    else:
        yield wrong(action, f"{missing} is missing, and cwsink is not to create it", create)


def _needless(wanted: bool, action: str, answer: Answer) -> Iterator[Finding]:
    """It exists, so it was safe to try to create it again."""
    if not wanted:
        return
    if answer.already_existed:
        yield ok(action, "allowed (tried with one that exists)")
    elif classify(answer) is Outcome.DENIED:
        yield ok(action, "not allowed, and not needed: it exists")
    else:
        yield unknown(action, _shown(answer))


def _allow(case: Case, action: str) -> str:
    region = case.target.region or "*"
    return f"Allow {action} on arn:aws:logs:{region}:*:log-group:{case.target.log_group_name}:*"


def _advice(answer: Answer, url: str) -> str:
    advice = classify(answer).value.advice
    if classify(answer) is Outcome.PROXY:
        return advice
    if answer.code == "ProxyConnectionError":
        return "Is HTTPS_PROXY right? Or leave the proxy out: NO_PROXY=.amazonaws.com"
    return f"{advice} Try: curl -v {url}"


def _is_of_aws(answer: Answer) -> bool:
    """Tell whether the one that has answered knows what AWS's errors look like."""
    return not answer.code or (answer.code.isidentifier() and not answer.code.isdecimal() and answer.code != "Unknown")


def _shown(answer: Answer) -> str:
    return f"{answer.code}: {answer.message}" if answer.message else answer.code or f"HTTP {answer.status}"


def _url_of(case: Case) -> str | None:
    if case.target.endpoint_url:
        return case.target.endpoint_url
    try:
        region = Examination(case.target, case.config).has_region()
        return examination.endpoint_of(region) if region else None
    except Exception:  # the question about the region tells of it
        return None


def _place_of(case: Case) -> tuple[str | None, str | None]:
    return case.target.region, case.target.endpoint_url


def _mark(patient: Patient, case: Case, *, is_reached: bool | None) -> None:
    """Note whether an endpoint answers, in each case that has this one."""
    for each in patient.cases:
        if _place_of(each) == _place_of(case):
            each.is_reached = is_reached


def _mark_unreadable(cases: Iterable[Case]) -> None:
    """Note that the configuration of these cases cannot be read. One finding says so; other questions are moot."""
    for each in cases:
        each.is_unreadable = True


def _account_of(case: Case) -> tuple[str | None, str | None]:
    return case.config.role_arn, case.config.profile


def _each_place(patient: Patient) -> list[Case]:
    """Return a case of each endpoint."""
    return list({_place_of(case): case for case in reversed(patient.cases)}.values())[::-1]


def _each_account(patient: Patient) -> list[Case]:
    """Return a case of each identity that sends."""
    return list({_account_of(case): case for case in reversed(patient.cases)}.values())[::-1]
