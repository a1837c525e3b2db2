"""JSON of whatever an application logs: nothing crashes, nothing hidden is shown, no value spoils another."""

from __future__ import annotations

import dataclasses
import enum
import json
import logging
import threading
from collections import Counter, OrderedDict, defaultdict, namedtuple
from datetime import date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
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
        ({None: 1, (1, 2): 2}, {"None": 1, "(1, 2)": 2}),
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
        (PlainModel(number=1, inner=[Order(2, [])]), {"number": 1, "inner": [{"number": 2, "items": []}]}),
        (ValueError("no"), "no"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_value_arrives_as_documented(value: object, wanted: object) -> None:
    """By itself, and within containers."""
    assert shown(value) == wanted
    assert shown([{"deep": value}]) == [{"deep": wanted}]


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
