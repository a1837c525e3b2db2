"""JSON of whatever an application logs: nothing crashes, nothing hidden is shown, no value spoils another."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import signal
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from typing import Annotated, Any
from uuid import UUID

import attrs
import msgspec
import numpy
import pydantic
import pydantic.dataclasses
import pytest
from fapilog.core.errors import FapilogError
from fapilog.core.serialization import serialize_envelope

from cwsink.frontends import log_entry, plain

SECRET = "hunter2"


def shown(value: object) -> Any:
    """Return what arrives of a value in a dict, beside another one that must not suffer."""
    found = json.loads(plain.encode({"value": value, "beside": 17}))
    assert found["beside"] == 17
    return found["value"]


class Colour(enum.Enum):
    RED = "red"


class Level(enum.IntEnum):
    HIGH = 3


class Text(str):
    __slots__ = ()


Point = namedtuple("Point", "x y")  # as older code has it


@dataclasses.dataclass
class Order:
    number: int
    items: list[object]


class Struct(msgspec.Struct):
    number: int


class Moment(datetime):
    """As freezegun's and pandas' are."""


class PlainModel(pydantic.BaseModel):
    number: int
    inner: list[Order]


class NoNumber(int):
    """It calls itself a number, as NumPy's timedelta64 does, but refuses to be one."""

    def __int__(self) -> int:
        raise TypeError


@pytest.mark.parametrize(
    ("value", "wanted"),
    [
        ({"a": [1, (2.5, None, True)], "b": {}}, {"a": [1, [2.5, None, True]], "b": {}}),
        (OrderedDict(a=1), {"a": 1}),
        (defaultdict(list, a=[1]), {"a": [1]}),
        (Counter(a=1), {"a": 1}),
        (Point(1, 2), [1, 2]),
        ({1}, [1]),
        (Text("text"), "text"),
        (Colour.RED, "red"),
        (Level.HIGH, 3),
        (b"hello \xff", "hello \\xff"),
        (bytearray(b"hello"), "hello"),
        (memoryview(b"hello"), "hello"),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2026-01-02T03:04:05Z"),
        (Moment(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2026-01-02T03:04:05Z"),
        (time(3, 4, 5), "03:04:05"),
        (timedelta(days=1), "1 day, 0:00:00"),
        (UUID(int=1), str(UUID(int=1))),
        (Decimal("1.50"), "1.50"),
        (Fraction(1, 3), "1/3"),
        (1j, "1j"),
        (1 << 70, 1 << 70),
        (float("inf"), None),
        ("\ud800", "\\ud800"),
        ({"\ud800": 1}, {"\\ud800": 1}),
        ({None: 1, (1, 2): 2}, {"null": 1, "(1, 2)": 2}),
        (Order(1, [Order(2, [])]), {"number": 1, "items": [{"number": 2, "items": []}]}),
        (attrs.make_class("Made", ["x"])(1), {"x": 1}),
        (Struct(1), {"number": 1}),
        (numpy.int64(7), 7),
        (numpy.float64(1.5), 1.5),
        (numpy.float32(1.5), 1.5),
        (numpy.bool_(True), True),
        (numpy.array([1, 2]), "[1 2]"),
        (numpy.array(7), 7),
        (numpy.datetime64("2026-01-02"), "2026-01-02"),
        (numpy.datetime64("2026-01-02", "ns"), "2026-01-02T00:00:00.000000000"),
        (numpy.timedelta64(5, "s"), "5 seconds"),
        (numpy.timedelta64(5, "ns"), "5 nanoseconds"),
        (numpy.array(numpy.timedelta64(5, "ns")), "5 nanoseconds"),
        (NoNumber(7), "7"),
        (PlainModel(number=1, inner=[Order(2, [])]), {"number": 1, "inner": [{"number": 2, "items": []}]}),
        (ValueError("no"), "no"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_arrives_as_documented(value: object, wanted: object) -> None:
    """By itself, and within containers."""
    assert shown(value) == wanted
    assert shown([{"deep": value}]) == [{"deep": wanted}]


class TextColour(str, enum.Enum):
    RED = "red"


@dataclasses.dataclass(frozen=True)
class FrozenOrder:
    number: int


@pytest.mark.parametrize(
    ("key", "wanted"),
    [
        (b"user-agent", "user-agent"),
        (b"\xff", "\\xff"),
        (Colour.RED, "red"),
        (TextColour.RED, "red"),
        (Level.HIGH, "3"),
        (Text("text"), "text"),
        (7, "7"),
        (1 << 70, str(1 << 70)),
        (1.5, "1.5"),
        (1e16, "1e+16"),
        (float("inf"), "Infinity"),
        (True, "true"),
        (None, "null"),
        (numpy.int64(7), "7"),
        (datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc), "2026-01-02T03:04:05Z"),
        (date(2026, 1, 2), "2026-01-02"),
        (UUID(int=1), str(UUID(int=1))),
        (Decimal("1.50"), "1.50"),
        (timedelta(days=1), "1 day, 0:00:00"),
        ((1, "a"), "(1, 'a')"),
        (Point(1, 2), "Point(x=1, y=2)"),
        (FrozenOrder(1), '{"number":1}'),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_key_of_a_dict_arrives_as_documented(key: Any, wanted: str) -> None:
    """In a message that is a dict, in `extra`, and deeper; whatever is beside it."""
    for beside in (1, object()):
        found = json.loads(plain.encode({key: 1, "beside": beside}))
        assert found.keys() == {wanted, "beside"}
        record = logging.makeLogRecord({"msg": {key: 1, "beside": beside}})
        assert json.loads(log_entry.encode_record(record, "x"))["data"].keys() == {wanted, "beside"}
        assert shown({"deep": {key: 1, "beside": beside}})["deep"].keys() == {wanted, "beside"}


class MaskedText(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "***"


class MaskedNumber(int):
    def __repr__(self) -> str:
        return "***"


class MaskedStruct(msgspec.Struct):
    password: str

    def __repr__(self) -> str:
        return "***"


@dataclasses.dataclass
class Hidden:
    user: str
    password: str = dataclasses.field(repr=False)


@dataclasses.dataclass
class Masked:
    password: str

    def __str__(self) -> str:
        return "***"


@dataclasses.dataclass(repr=False)
class MaskedByRepr:
    password: str

    def __repr__(self) -> str:
        return "***"


@dataclasses.dataclass(repr=False)
class Unrepresented:
    password: str


@attrs.define
class HiddenAttrs:
    user: str
    password: str = attrs.field(repr=False)


@attrs.define
class MaskedAttrs:
    user: str
    password: str = attrs.field(repr=lambda _: "***")


@dataclasses.dataclass(repr=False)
class HiddenByBase(Order):
    password: str


@dataclasses.dataclass
class Private:
    user: str
    _password: str


@attrs.define(repr=False)
class HiddenByAttrsBase(HiddenAttrs):
    secret: str = SECRET


class MaskedDict(dict):  # type: ignore[type-arg]
    def __repr__(self) -> str:
        return "***"


class MaskedList(list):  # type: ignore[type-arg]
    def __str__(self) -> str:
        return "***"


class MaskedPoint(Point):
    __slots__ = ()

    def __repr__(self) -> str:
        return "***"


class HiddenModel(pydantic.BaseModel):
    user: str
    password: str = pydantic.Field(repr=False)


class ExcludingModel(pydantic.BaseModel):
    user: str
    password: str = pydantic.Field(exclude=True)


class SerializingModel(pydantic.BaseModel):
    user: str
    password: str
    token: Annotated[str, pydantic.PlainSerializer(lambda _: "***")]

    @pydantic.field_serializer("password")
    def mask(self, _: str) -> str:
        return "***"


class SerializedModel(pydantic.BaseModel):
    password: str

    @pydantic.model_serializer
    def mask(self) -> dict[str, str]:
        return {"password": "***"}


class MaskedModel(pydantic.BaseModel):
    password: str

    def __str__(self) -> str:
        return "***"


@pydantic.dataclasses.dataclass
class HiddenPydantic:
    user: str
    password: str = pydantic.Field(repr=False)


class MaskedByArgs(pydantic.BaseModel):
    password: str

    def __repr_args__(self) -> Any:
        return [("password", "***")]


class MaskedByReprStr(pydantic.BaseModel):
    password: str

    def __repr_str__(self, join_str: str) -> str:
        return f"password={join_str}***"


Star = Annotated[str, pydantic.PlainSerializer(lambda _: "***")]


class SerializedWithin(pydantic.BaseModel):
    listed: list[Star]
    optional: Star | None
    named: dict[str, Star]
    paired: tuple[int, Star]
    keyed: dict[Star, int]
    deep: dict[str, list[Star | None]]
    model: SerializingModel
    models: list[SerializingModel]
    data: HiddenPydantic


class HidingWithin(pydantic.BaseModel):
    """A serializer makes something of each, in which all that `model_dump()` shows is."""

    model: HiddenModel
    models: dict[str, tuple[HiddenModel, ...]]
    excluding: ExcludingModel
    data: Hidden
    masked: MaskedModel
    secret: pydantic.SecretStr
    secrets: list[pydantic.SecretStr] | None
    unmasked: pydantic.SecretStr
    any: Any

    @pydantic.field_serializer("model", "models", "data", "masked", "secret", "secrets", mode="wrap")
    def serialize(self, value: Any, handler: Any) -> Any:
        return handler(value)

    @pydantic.field_serializer("unmasked")
    def unmask(self, value: pydantic.SecretStr) -> str:
        return value.get_secret_value()


class NamedUser(pydantic.BaseModel):
    user: str


class DerivedUser(NamedUser):
    password: str


class HoldingBase(pydantic.BaseModel):
    """Of a field, `model_dump()` shows what the type of the field has, and not what a derived one adds."""

    base: NamedUser


class OtherKeysHiding(pydantic.BaseModel):
    password: str = pydantic.Field(repr=False)
    user: str

    @pydantic.model_serializer
    def serialize(self) -> dict[str, str]:
        return {"user": self.user, "secret": self.password}


class TextHiding(OtherKeysHiding):
    @pydantic.model_serializer
    def serialize(self) -> str:  # type: ignore[override]
        return self.password


class TextOfPrivate(pydantic.BaseModel):
    _password: str = SECRET

    @pydantic.model_serializer
    def serialize(self) -> str:
        return self._password


class ComputingHidden(pydantic.BaseModel):
    user: str

    @pydantic.computed_field(repr=False)  # type: ignore[prop-decorator]
    @property
    def password(self) -> str:
        return SECRET


class ComputingExcluding(pydantic.BaseModel):
    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def model(self) -> ExcludingModel:
        return ExcludingModel(user="ann", password=SECRET)


class MaskedByDump(pydantic.BaseModel):
    password: str

    def model_dump(self) -> dict[str, Any]:  # type: ignore[override]
        return {"password": "***"}


class Token:
    """Its `str()` shows it."""

    def __str__(self) -> str:
        return SECRET


class SerializingToken(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    token: Annotated[Token, pydantic.PlainSerializer(lambda _: "***")]


class HiddenRoot(pydantic.RootModel[list[HiddenModel]]):
    pass


@dataclasses.dataclass(frozen=True)
class HiddenKey:
    password: str = dataclasses.field(repr=False)


class ExcludingKey(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(frozen=True)
    password: str = pydantic.Field(exclude=True)


HIDING = [
    MaskedText(SECRET),
    MaskedNumber(4711),
    MaskedStruct(SECRET),
    Hidden("ann", SECRET),
    Masked(SECRET),
    MaskedByRepr(SECRET),
    Unrepresented(SECRET),
    HiddenAttrs("ann", SECRET),
    MaskedAttrs("ann", SECRET),
    HiddenByBase(1, [], SECRET),
    Private("ann", SECRET),
    HiddenByAttrsBase("ann", SECRET),
    MaskedDict(password=SECRET),
    MaskedList([SECRET]),
    MaskedPoint(SECRET, 4711),
    HiddenModel(user="ann", password=SECRET),
    ExcludingModel(user="ann", password=SECRET),
    SerializingModel(user="ann", password=SECRET, token=SECRET),
    SerializedModel(password=SECRET),
    MaskedModel(password=SECRET),
    HiddenPydantic(user="ann", password=SECRET),
    pydantic.SecretStr(SECRET),
    MaskedByArgs(password=SECRET),
    MaskedByReprStr(password=SECRET),
    SerializedWithin(
        listed=[SECRET],
        optional=SECRET,
        named={"a": SECRET},
        paired=(1, SECRET),
        keyed={SECRET: 1},
        deep={"a": [SECRET]},
        model=SerializingModel(user="ann", password=SECRET, token=SECRET),
        models=[SerializingModel(user="ann", password=SECRET, token=SECRET)],
        data=HiddenPydantic(user="ann", password=SECRET),
    ),
    HidingWithin(
        model=HiddenModel(user="ann", password=SECRET),
        models={"a": (HiddenModel(user="ann", password=SECRET),)},
        excluding=ExcludingModel(user="ann", password=SECRET),
        data=Hidden("ann", SECRET),
        masked=MaskedModel(password=SECRET),
        secret=pydantic.SecretStr(SECRET),
        secrets=[pydantic.SecretStr(SECRET)],
        unmasked=pydantic.SecretStr(SECRET),
        any=[HiddenModel(user="ann", password=SECRET), HiddenAttrs("ann", SECRET), MaskedDict(a=SECRET)],
    ),
    HoldingBase(base=DerivedUser(user="ann", password=SECRET)),
    OtherKeysHiding(user="ann", password=SECRET),
    TextHiding(user="ann", password=SECRET),
    TextOfPrivate(),
    ComputingHidden(user="ann"),
    ComputingExcluding(),
    MaskedByDump(password=SECRET),
    SerializingToken(token=Token()),
    HiddenRoot([HiddenModel(user="ann", password=SECRET)]),
    {HiddenKey(SECRET): 1},
    {ExcludingKey(password=SECRET): 1},
    {(ExcludingKey(password=SECRET),): 1},
    {MaskedText(SECRET): 1},
    {pydantic.SecretStr(SECRET): 1},
]


@pytest.mark.parametrize("value", HIDING, ids=lambda value: type(value).__name__)
def test_a_value_that_hides_something_is_not_shown_in_full(value: object) -> None:
    """As `repr=False`, a `__str__` or a `__repr__` of the application's asks for; also within others."""
    for each in (value, [value], {"a": (value,)}, Order(1, [value])):
        text = json.dumps(shown(each))
        assert SECRET not in text
        assert "4711" not in text
        record = logging.makeLogRecord({"msg": "x", "login": each})
        assert SECRET not in log_entry.encode_record(record, "x")


def test_a_key_that_masks_itself_is_not_shown_in_full() -> None:
    """Also where all values are texts and numbers, and a record would go the quickest way."""
    for key in (MaskedText(SECRET), pydantic.SecretStr(SECRET)):
        record = logging.makeLogRecord({"msg": {key: 1}})
        assert SECRET not in log_entry.encode_record(record, "x")


class Event(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    number: int


class Computing(pydantic.BaseModel):
    number: int

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return self.number * 2


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(serialize_by_alias=True)
    user_name: str = pydantic.Field(alias="userName")
    token: Star = pydantic.Field(alias="accessToken")


class OtherKeys(pydantic.BaseModel):
    number: int

    @pydantic.model_serializer
    def serialize(self) -> dict[str, object]:
        return {"id": self.number, "type": Colour.RED}


class AsText(pydantic.BaseModel):
    number: int

    @pydantic.model_serializer
    def serialize(self) -> str:
        return f"order {self.number}"


class Numbers(pydantic.RootModel[list[int]]):
    pass


class DumpedByAlias(pydantic.BaseModel):
    number: int = pydantic.Field(alias="orderNumber")

    def model_dump(self, **options: Any) -> dict[str, Any]:
        return super().model_dump(by_alias=True, **options)


class Failing(pydantic.BaseModel):
    """Two of its fields cannot be had."""

    number: int
    bad: Annotated[str, pydantic.PlainSerializer(lambda _: 1 / 0)] = ""

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def worse(self) -> int:
        return 1 // 0


class Holding(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)
    path: Annotated[PurePosixPath, pydantic.PlainSerializer(lambda path: path.name)]
    masked: MaskedModel
    secrets: dict[str, pydantic.SecretStr]
    moments: dict[datetime, Colour]
    order: Order
    numbers: Annotated[numpy.ndarray, pydantic.PlainSerializer(lambda array: array.tolist())]


BAD = "<str that cannot be shown: PydanticSerializationError>"
WORSE = "<str that cannot be shown: ZeroDivisionError>"


@pytest.mark.parametrize(
    ("model", "wanted"),
    [
        (Event(number=1, kind="paid"), {"number": 1, "kind": "paid"}),  # type: ignore[call-arg]
        (Computing(number=1), {"number": 1, "twice": 2}),
        (Aliased(userName="ann", accessToken=SECRET), {"user_name": "ann", "token": "***"}),
        (OtherKeys(number=1), {"id": 1, "type": "red"}),
        (AsText(number=1), "order 1"),
        (Numbers([1, 2]), [1, 2]),
        (DumpedByAlias(orderNumber=1), {"orderNumber": 1}),
        (PlainModel.model_construct(number=1), {"number": 1}),
        (PlainModel.model_construct(number="one"), {"number": "one"}),
        (Failing(number=1), {"number": 1, "bad": BAD, "worse": WORSE}),
        (HiddenModel(user="ann", password=SECRET), {"user": "ann"}),
        (OtherKeysHiding(user="ann", password=SECRET), {"user": "ann"}),
        (HoldingBase(base=DerivedUser(user="ann", password=SECRET)), {"base": {"user": "ann"}}),
        (SerializingToken(token=Token()), {"token": "<Token that its repr() and its model_dump() show differently>"}),
        (
            Holding(
                path=PurePosixPath("/srv/shop"),
                masked=MaskedModel(password=SECRET),
                secrets={"a": pydantic.SecretStr(SECRET)},
                moments={datetime(2026, 1, 2, tzinfo=timezone.utc): Colour.RED},
                order=Order(1, [Order(2, [])]),
                numbers=numpy.array([1, 2]),
            ),
            {
                "path": "shop",
                "masked": "***",
                "secrets": {"a": "**********"},
                "moments": {"2026-01-02T00:00:00Z": "red"},
                "order": {"number": 1, "items": [{"number": 2, "items": []}]},
                "numbers": [1, 2],
            },
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_all_that_a_model_shows_in_both_ways_arrives(model: pydantic.BaseModel, wanted: object) -> None:
    """Its fields by their names, as its serializers have them."""
    assert shown(model) == wanted
    assert shown([{"deep": model}]) == [{"deep": wanted}]


class Interrupted(pydantic.BaseModel):
    number: int

    @pydantic.field_serializer("number")
    def serialize(self, _: int) -> int:
        signal.raise_signal(signal.SIGUSR1)
        return 1


def raise_timeout(number: int, frame: object) -> None:
    raise TimeoutError


@pytest.mark.parametrize(
    ("handler", "wanted"), [(raise_timeout, TimeoutError), (signal.default_int_handler, KeyboardInterrupt)]
)
def test_what_a_signal_handler_raises_in_a_serializer_leaves_as_it_is(handler: Any, wanted: type) -> None:
    """pydantic would wrap it, and the task would never hear that its time is over."""
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with pytest.raises(wanted):
            plain.encode(Interrupted(number=1))
    finally:
        signal.signal(signal.SIGUSR1, before)


class Growing(pydantic.BaseModel):
    """Its serializer changes the dict that pydantic is in the middle of."""

    named: dict[str, Annotated[str, pydantic.PlainSerializer(lambda _: MODELS[-1].named.update(new="") or "x")]]
    number: int


MODELS: list[Growing] = []


def test_a_serializer_that_changes_its_container_spoils_no_other_field(capfd: Any) -> None:
    """pydantic panics then, with an exception that is no Exception, and says so on stderr."""
    MODELS.append(Growing(named={"a": "b", "c": "d"}, number=1))
    assert shown(MODELS[-1])["number"] == 1
    capfd.readouterr()


class Node(pydantic.BaseModel):
    parent: Node | None = None
    children: list[Node] = []


def test_models_that_hold_each_other_end() -> None:
    """Of fields, pydantic refuses to dump them. The other fields arrive."""
    node = Node()
    node.children.append(Node.model_construct(parent=node))
    assert shown(node) == {"parent": None, "children": "<list that cannot be shown: ValueError>"}
    event = Event(number=1)
    event.child = Event(number=2, parent=event)  # type: ignore[attr-defined,call-arg]
    assert shown(event) == {"number": 1, "child": {"number": 2, "parent": {"number": 1, "child": "[...]"}}}


class Shrinking:
    """Its `__str__` empties the list that holds it, and fills the freed memory with something else."""

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    def __str__(self) -> str:
        self._holder.clear()
        globals()["junk"] = [bytes(64) for _ in range(1000)]
        return "job"


class Offset(tzinfo):
    """A time zone in Python, whose code empties the list that holds the time."""

    def __init__(self, holder: Any) -> None:
        self._holder = holder

    def utcoffset(self, _: datetime | None) -> timedelta:
        self._holder.clear()
        return timedelta(hours=1)


class ChangingEnum(enum.Enum):
    """Its `value`, which an encoder in C asks for, is code of the application."""

    JOB = "job"

    @property
    def value(self) -> str:
        HOLDERS[-1].clear()
        globals()["junk"] = [bytes(64) for _ in range(1000)]
        return "job"


HOLDERS: list[Any] = []


def changing(holder: Any) -> ChangingEnum:
    HOLDERS.append(holder)
    return ChangingEnum.JOB


@pytest.mark.parametrize("make", [Shrinking, changing, lambda holder: datetime(2026, 1, 2, tzinfo=Offset(holder))])
def test_a_value_that_changes_its_container_crashes_nothing(make: Any) -> None:
    """Of the container, what it held when its turn came arrives."""
    jobs: list[object] = []
    jobs += [make(jobs), *(f"job {number}" for number in range(5000))]
    assert len(shown(jobs)) == 5001
    named: dict[object, object] = {}
    named.update({0: make(named), **{number: f"job {number}" for number in range(1, 5000)}})
    assert len(shown(named)) == 5000


def test_another_thread_may_change_what_is_logged() -> None:
    """Each record arrives, with what the containers held at some moment."""
    jobs: dict[str, list[object]] = {"jobs": []}
    stop = threading.Event()

    def change() -> None:
        while not stop.is_set():
            jobs["jobs"] = [object(), *range(50)]
            jobs["jobs"].clear()
            jobs[str(len(jobs) % 100)] = []
            jobs.pop("1", None)

    thread = threading.Thread(target=change)
    thread.start()
    try:
        for _ in range(300):
            assert isinstance(json.loads(plain.encode(jobs)), dict)
    finally:
        stop.set()
        thread.join()


def test_a_container_that_holds_itself_ends() -> None:
    """So does one that is nested deeper than a person reads."""
    loop: list[object] = [1]
    loop.append(loop)
    assert shown(loop) == [1, "[...]"]
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    assert "levels deep" in json.dumps(shown(deep))


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError

    __repr__ = __hash__ = __str__  # type: ignore[assignment]


def test_a_value_that_cannot_be_shown_is_named() -> None:
    """Whatever of it fails."""
    assert shown(Unshowable()) == "<Unshowable that cannot be shown: RuntimeError>"
    assert shown([Unshowable(), 1]) == ["<Unshowable that cannot be shown: RuntimeError>", 1]


@dataclasses.dataclass
class AsFapilogShows:
    user: str
    _token: str
    order: Order


MORE = [*HIDING, AsFapilogShows("ann", SECRET, Order(1, [])), PlainModel(number=1, inner=[Order(2, [])]), UUID(int=1)]


@pytest.mark.parametrize("value", MORE, ids=lambda value: type(value).__name__)
def test_no_more_of_a_value_arrives_than_fapilogs_own_sink_shows(value: object) -> None:
    """As its sinks for stdout and files serialize an entry, if they can."""
    entry = {"timestamp": 1.5, "level": "INFO", "message": "x", "data": {"value": value}}
    try:
        theirs = json.loads(serialize_envelope(entry).data)["log"]["data"]["value"]
    except FapilogError:
        return  # its sinks show nothing of such an entry
    ours = shown(value)
    assert isinstance(ours, str) or paths_of(ours) <= paths_of(theirs)  # a text is what the object shows of itself


def paths_of(value: Any, path: str = "") -> set[str]:
    """Return where something is in a value of JSON."""
    if isinstance(value, dict):
        return {each for key, item in value.items() for each in paths_of(item, f"{path}/{key}")}
    if isinstance(value, list):
        return {each for number, item in enumerate(value) for each in paths_of(item, f"{path}/{number}")}
    return {path}
