"""The service's actions: each judges its input, changes the store, and answers.

`gateway` calls `perform` with one decoded HTTP body at a time. `ACTIONS` is the
table of all actions. The answers of the reading actions are made in `queries`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple

import msgspec

from cwsink.limits import MAX_EVENT_BYTES, MAX_TAGS
from cwsink.testing import queries, rules, shapes
from cwsink.testing.entity import entity_error
from cwsink.testing.faults import Faults, Kind
from cwsink.testing.rules import Violation
from cwsink.testing.store import Group, Store, StoredBatch, Stream

Answer = Mapping[str, Any]


class AwsError(Exception):
    """An error to answer with, e.g. ResourceNotFoundException. It need not be a fault of the client."""

    def __init__(self, code: str, message: str, **members: Any) -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.members = members


class Call(msgspec.Struct):
    """One call of an action. The first four fields are known when it arrives; judging it fills in the others.

    `kind` is what the script of `faults` has for it.
    """

    action: str
    number: int
    now_ms: int
    epoch: int | None
    violations: list[Violation] = []
    group: str | None = None
    stream: str | None = None
    events: int = 0
    counted_bytes: int = 0
    has_stored: bool = False
    kind: Kind = Kind.PASS


class Service(NamedTuple):
    """Everything that the actions work on."""

    store: Store
    faults: Faults
    region: str = "us-east-1"
    account: str = "123456789012"
    max_event_bytes: int = MAX_EVENT_BYTES

    def group_arn(self, group: str) -> str:
        return f"arn:aws:logs:{self.region}:{self.account}:log-group:{group}"

    def group(self, name: str) -> Group:
        found = self.store.groups.get(name)
        if found is None:
            raise AwsError("ResourceNotFoundException", "The specified log group does not exist.")
        return found

    def stream(self, group: str, name: str) -> Stream:
        found = self.group(group).streams.get(name)
        if found is None:
            raise AwsError("ResourceNotFoundException", "The specified log stream does not exist.")
        return found


def perform(service: Service, call: Call, body: bytes | bytearray) -> Answer:
    """Carry out a call. The caller holds the store's `changed`.

    Returns:
        The members of the answer. If there are none, the body is empty.

    Raises:
        AwsError: the error to answer. If the client broke rules, all of them are in
            `call.violations`, and the error is the first of them.
    """
    action = ACTIONS[call.action]
    args = shapes.decode(action.shape, body)
    if isinstance(args, Violation):
        call.violations.append(args)
    else:
        call.violations.extend(action.check(service, call, args))
    if call.violations:
        raise AwsError(*call.violations[0])
    answer: Answer = action.perform(service, call, args)
    return answer


def check_create_log_group(service: Service, call: Call, args: shapes.CreateLogGroup) -> Iterator[Violation]:
    yield from rules.check_new_group_name(args.log_group_name)
    if args.tags is not None:
        yield from rules.check_tags(args.tags)
    if args.log_group_class is not None:
        yield from rules.check_group_class(args.log_group_class)
    if args.kms_key_id is not None:
        yield from rules.check_kms_key(args.kms_key_id)


def create_log_group(service: Service, call: Call, args: shapes.CreateLogGroup) -> Answer:
    groups = service.store.groups
    if args.log_group_name in groups:
        raise AwsError("ResourceAlreadyExistsException", "The specified log group already exists")
    groups[args.log_group_name] = Group(
        args.log_group_name,
        call.now_ms,
        args.log_group_class or "STANDARD",
        args.kms_key_id,
        tags=dict(args.tags or {}),
    )
    return {}


def check_target(
    service: Service, call: Call, args: shapes.CreateLogStream | shapes.PutLogEvents
) -> Iterator[Violation]:
    call.group, call.stream = args.log_group_name, args.log_stream_name
    yield from rules.check_group_name(args.log_group_name)
    yield from rules.check_stream_name(args.log_stream_name)


def create_log_stream(service: Service, call: Call, args: shapes.CreateLogStream) -> Answer:
    streams = service.group(args.log_group_name).streams
    if args.log_stream_name in streams:
        raise AwsError("ResourceAlreadyExistsException", "The specified log stream already exists")
    streams[args.log_stream_name] = Stream(args.log_stream_name, call.now_ms)
    return {}


def check_put_retention_policy(service: Service, call: Call, args: shapes.PutRetentionPolicy) -> Iterator[Violation]:
    yield from rules.check_group_name(args.log_group_name)
    yield from rules.check_retention(args.retention_in_days)


def put_retention_policy(service: Service, call: Call, args: shapes.PutRetentionPolicy) -> Answer:
    service.group(args.log_group_name).retention_days = args.retention_in_days
    return {}


def check_tag_resource(service: Service, call: Call, args: shapes.TagResource) -> Iterator[Violation]:
    yield from rules.check_group_arn(args.resource_arn)
    yield from rules.check_tags(args.tags)


def tag_resource(service: Service, call: Call, args: shapes.TagResource) -> Answer:
    named = rules.GROUP_ARN.fullmatch(args.resource_arn)
    assert named is not None, "check_tag_resource let a malformed ARN through"
    group = service.group(named["group"])
    tags = {**group.tags, **args.tags}
    if len(tags) > MAX_TAGS:
        raise AwsError("TooManyTagsException", f"A resource can have at most {MAX_TAGS} tags.")
    group.tags = tags
    return {}


def check_put_log_events(service: Service, call: Call, args: shapes.PutLogEvents) -> Iterator[Violation]:
    yield from check_target(service, call, args)
    messages = [event.message for event in args.log_events]
    call.events = len(messages)
    call.counted_bytes = rules.counted_bytes(messages)
    yield from rules.check_events(
        [event.timestamp for event in args.log_events],
        messages,
        batch_bytes=call.counted_bytes,
        now_ms=call.now_ms,
        max_event_bytes=service.max_event_bytes,
    )


def put_log_events(service: Service, call: Call, args: shapes.PutLogEvents) -> Answer:
    group = service.group(args.log_group_name)
    stream = service.stream(args.log_group_name, args.log_stream_name)
    timestamps = [event.timestamp for event in args.log_events]
    messages = [event.message for event in args.log_events]
    poison = service.faults.poison
    if poison is not None and any(poison in message for message in messages):
        raise AwsError("InvalidParameterException", "Log event is not valid")
    if service.faults.sequence_tokens:
        _check_sequence_token(stream, args.sequence_token, (timestamps, messages))
    rejection = rules.rejected(timestamps, now_ms=call.now_ms, retention_days=group.retention_days)
    for reason, index in rejection.answer().items():
        service.store.rejected[reason] += len(messages) - index if reason.startswith("tooNew") else index
    accepted = rejection.accepted(len(messages))
    kept = timestamps[accepted], messages[accepted]
    if call.kind is Kind.KEEP_ALL_BUT_ONE and kept[0]:
        for each in kept:
            del each[len(each) // 2]
    batch = StoredBatch(group.name, stream.name, *kept, call.epoch, call.number, call.now_ms)
    for _ in range(2 if call.kind is Kind.STORE_TWICE else 1):
        if batch.messages:
            service.store.accept(stream, batch, rules.counted_bytes(batch.messages))
            call.has_stored = True
    stream.sequence += 1
    # This keeps the whole batch in memory. It is needed only to tell a repeated call from a new one.
    stream.last_call = (timestamps, messages) if service.faults.sequence_tokens else None
    answer: dict[str, Any] = {"nextSequenceToken": stream.token}
    if rejection.answer():
        answer["rejectedLogEventsInfo"] = rejection.answer()
    error_type = _entity_error(args.entity, group)
    if error_type is not None:
        answer["rejectedEntityInfo"] = {"errorType": error_type}
        call.violations.append(Violation(error_type, "the entity was rejected, the events were accepted"))
    return answer


def _entity_error(entity: shapes.Entity | None, group: Group) -> str | None:
    if entity is None:
        return None
    return entity_error(entity.key_attributes, entity.attributes, group_class=group.group_class)


def _check_sequence_token(stream: Stream, token: str | None, sent: tuple[list[int], list[str]]) -> None:
    if token == stream.token or (token is None and stream.sequence == 0):
        return
    if stream.last_call == sent:
        raise AwsError(
            "DataAlreadyAcceptedException",
            "The given batch of log events has already been accepted. "
            f"The next batch can be sent with sequenceToken: {stream.token}",
            expectedSequenceToken=stream.token,
        )
    raise AwsError(
        "InvalidSequenceTokenException",
        f"The given sequenceToken is invalid. The next expected sequenceToken is: {stream.token}",
        expectedSequenceToken=stream.token,
    )


# A reading action takes a group's name, or an "identifier", which is a name or an ARN.
def _named_group(service: Service, name: str | None, identifier: str | None) -> Group:
    chosen = name or (identifier or "").removeprefix(service.group_arn(""))
    return service.group(chosen)


def describe_log_groups(service: Service, call: Call, args: shapes.DescribeLogGroups) -> Answer:
    return queries.describe_groups(service.store.groups.values(), args, service.group_arn)


def describe_log_streams(service: Service, call: Call, args: shapes.DescribeLogStreams) -> Answer:
    group = _named_group(service, args.log_group_name, args.log_group_identifier)
    return queries.describe_streams(group, args, service.group_arn)


def get_log_events(service: Service, call: Call, args: shapes.GetLogEvents) -> Answer:
    group = _named_group(service, args.log_group_name, args.log_group_identifier)
    return queries.get_events(service.stream(group.name, args.log_stream_name), args, _shown_until_ms(service, call))


def filter_log_events(service: Service, call: Call, args: shapes.FilterLogEvents) -> Answer:
    group = _named_group(service, args.log_group_name, args.log_group_identifier)
    for name in args.log_stream_names or ():
        service.stream(group.name, name)
    return queries.filter_events(group, args, _shown_until_ms(service, call))


def _shown_until_ms(service: Service, call: Call) -> int:
    return call.now_ms - int(service.faults.late_seconds * 1000)


class Action(NamedTuple):
    """One row of the table. `check` and `perform` take the service, the call and a `shape`."""

    shape: type[shapes.Shape]
    check: Callable[[Service, Call, Any], Iterator[Violation]]
    perform: Callable[[Service, Call, Any], Answer]


def _query(check: Callable[[Any], Iterator[Violation]]) -> Callable[[Service, Call, Any], Iterator[Violation]]:
    return lambda service, call, args: check(args)


ACTIONS: Final[Mapping[str, Action]] = {
    "CreateLogGroup": Action(shapes.CreateLogGroup, check_create_log_group, create_log_group),
    "CreateLogStream": Action(shapes.CreateLogStream, check_target, create_log_stream),
    "PutLogEvents": Action(shapes.PutLogEvents, check_put_log_events, put_log_events),
    "PutRetentionPolicy": Action(shapes.PutRetentionPolicy, check_put_retention_policy, put_retention_policy),
    "TagResource": Action(shapes.TagResource, check_tag_resource, tag_resource),
    "DescribeLogGroups": Action(shapes.DescribeLogGroups, _query(queries.check_describe_groups), describe_log_groups),
    "DescribeLogStreams": Action(
        shapes.DescribeLogStreams, _query(queries.check_describe_streams), describe_log_streams
    ),
    "GetLogEvents": Action(shapes.GetLogEvents, _query(queries.check_get_events), get_log_events),
    "FilterLogEvents": Action(shapes.FilterLogEvents, _query(queries.check_filter_events), filter_log_events),
}
