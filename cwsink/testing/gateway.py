"""Judges one call: everything between a request and the action it asks for (no I/O).

`server` calls it from the thread of each connection. A call passes, in this order, the
script of `faults`, authentication, the rate, denied permissions, then `actions`. It is
recorded before it is answered. A SigV4 signature must be there, but is not verified.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec

from cwsink.testing.actions import ACTIONS, AwsError, Call, Service, perform
from cwsink.testing.faults import AFTER_STORING, PUT, Kind, Step
from cwsink.testing.rules import ERRORS, Violation
from cwsink.testing.store import StoredRequest
from cwsink.testing.wire import HttpRequest, Reply

TARGET_PREFIX: Final = "Logs_20140328."
CONTENT_TYPE: Final = "application/x-amz-json-1.1"

_EPOCH: Final = re.compile(r"(?<!\S)epoch/(\d+)(?!\S)")
_PID: Final = re.compile(r"(?<!\S)pid/(\d+)(?!\S)")
_ACCESS_KEY: Final = re.compile(r"Credential=([^/,\s]+)")

# `StoredRequest.error` of a call that got no answer.
_UNANSWERED: Final = {
    Kind.DROP_BEFORE_STORING: "ConnectionDropped",
    Kind.DROP_AFTER_STORING: "ConnectionDropped",
    Kind.HANG: "Hang",
    Kind.HANG_AFTER_STORING: "Hang",
}


class _Target(msgspec.Struct):
    group: str = msgspec.field(name="logGroupName")
    stream: str = msgspec.field(name="logStreamName")


class Gateway:
    """Judges calls on one service. Thread-safe.

    Args:
        now_ms: the server's clock.
    """

    def __init__(self, service: Service, now_ms: Callable[[], int]) -> None:
        self._service = service
        self._store = service.store
        self._faults = service.faults
        self._now_ms = now_ms

    def judge(self, request: HttpRequest, host: str, peer: str) -> tuple[Reply | None, float]:
        """Carry out and record one call.

        Returns:
            The reply, or None to close the connection without one. Then the seconds
            to wait before the caller does either.
        """
        target = request.headers.get("x-amz-target", "")
        action = target.removeprefix(TARGET_PREFIX)
        if request.method != "POST" or not target.startswith(TARGET_PREFIX) or action not in ACTIONS:
            unknown = Violation("UnknownOperationException", f"{request.method} {request.path} {target!r}")
            with self._store.changed:
                self._record_violation(f"unknown operation from {peer}", unknown)
                self._store.changed.notify_all()
            return _error(unknown.code, unknown.message), self._faults.latency_seconds
        user_agent = request.headers.get("user-agent", "")
        epoch, pid = _EPOCH.search(user_agent), _PID.search(user_agent)
        # One call at a time. Then numbers, records and stored events are in one order, and a test that sees
        # an event sees its request, too. The GIL would make the calls take turns anyway.
        with self._store.changed:
            self._store.calls[action] += 1
            number = self._store.calls[action]
            call = Call(action, number, self._now_ms(), int(epoch[1]) if epoch else None)
            step = self._faults.take(action)
            reply, error = self._answer(request, call, step)
            for violation in call.violations:
                self._record_violation(f"{action} from {peer}", violation)
            status = 0 if reply is None else reply.status
            self._record(call, request, user_agent, pid[1] if pid else host, peer, status, error)
            self._store.changed.notify_all()
        if reply is None and step is not None:
            return None, step.seconds
        return reply, self._faults.latency_seconds

    def _record(
        self, call: Call, request: HttpRequest, user_agent: str, sender: str, peer: str, status: int, error: str | None
    ) -> None:
        if error is not None:
            self._store.errors[error] += 1
        if call.action != PUT:
            return
        self._store.requests.append(
            StoredRequest(
                number=call.number,
                action=call.action,
                group=call.group,
                stream=call.stream,
                user_agent=user_agent,
                epoch=call.epoch,
                sender=sender,
                peer=peer,
                events=call.events,
                counted_bytes=call.counted_bytes,
                body_bytes=len(request.body),
                access_key=_access_key(request),
                status=status,
                error=error,
                time_seconds=call.now_ms / 1000,
            )
        )

    def _record_violation(self, where: str, violation: Violation) -> None:
        self._store.violations.append(f"{where}: {violation.message} [{violation.code}]")

    def _answer(self, request: HttpRequest, call: Call, step: Step | None) -> tuple[Reply | None, str | None]:
        """Return the reply to a call and its error code, after the script's step for it. No reply: close."""
        kind = Kind.PASS if step is None else step.kind
        if step is not None and kind is Kind.FAIL:
            return _error(step.code, step.message, step.status), step.code or f"HTTP {step.status}"
        if step is not None and kind is Kind.JUNK:
            return Reply(200, step.body, {"Content-Type": "text/html"}), "Junk"
        if kind in _UNANSWERED and kind not in AFTER_STORING:
            return None, _UNANSWERED[kind]
        code: str | None = None
        try:
            self._admit(request, call)
            body = self._content(request, call)
            if kind in (Kind.DELETE_STREAM, Kind.DELETE_GROUP):
                self._delete_under_way(kind, body)
            call.kind = kind
            answer = perform(self._service, call, body)
        except AwsError as error:
            reply, code = _error(error.code, error.message, **error.members), error.code
        else:
            reply = Reply(200, msgspec.json.encode(answer) if answer else b"", _headers())
        if step is not None and kind in AFTER_STORING:
            if call.has_stored:
                return None, _UNANSWERED[kind]
            self._faults.give_back(step)
        return reply, code

    def _admit(self, request: HttpRequest, call: Call) -> None:
        authorization = request.headers.get("authorization")
        if authorization is None:
            raise AwsError("MissingAuthenticationTokenException", "Missing Authentication Token")
        if not authorization.startswith("AWS4-HMAC-SHA256 ") or "Credential=" not in authorization:
            raise AwsError("UnrecognizedClientException", "The security token included in the request is invalid.")
        if self._faults.is_over_rate(call.action):
            raise AwsError("ThrottlingException", "Rate exceeded")
        if self._faults.is_denied(call.action, access_key := _access_key(request)):
            raise AwsError(
                "AccessDeniedException",
                f"User: arn:aws:iam::{self._service.account}:user/{access_key} is not authorized to perform: "
                f"logs:{call.action} because no identity-based policy allows the logs:{call.action} action",
            )

    def _content(self, request: HttpRequest, call: Call) -> bytes | bytearray:
        try:
            return request.content()
        except ValueError as error:
            violation = Violation("SerializationException", str(error))
            call.violations.append(violation)
            raise AwsError(*violation) from error

    def _delete_under_way(self, kind: Kind, body: bytes | bytearray) -> None:
        try:
            target = msgspec.json.decode(body, type=_Target)
        except msgspec.DecodeError:
            return
        if kind is Kind.DELETE_GROUP:
            self._store.delete_group(target.group)
        else:
            self._store.delete_stream(target.group, target.stream)


def _access_key(request: HttpRequest) -> str:
    """Return the access key that a call is signed with; "" if it is not signed."""
    found = _ACCESS_KEY.search(request.headers.get("authorization", ""))
    return found[1] if found else ""


def _headers() -> dict[str, str]:
    return {"x-amzn-RequestId": str(uuid.uuid4()), "Content-Type": CONTENT_TYPE}


def _error(code: str, message: str, status: int | None = None, **members: Any) -> Reply:
    if status is None:
        status = ERRORS[code]
    if not code:
        return Reply(status)
    body = msgspec.json.encode({"__type": code, "message": message, **members})
    return Reply(status, body, {**_headers(), "x-amzn-ErrorType": code})
