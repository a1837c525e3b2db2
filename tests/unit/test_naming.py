"""Names are legal, the same after a restart, and say what is wrong with a template."""

from __future__ import annotations

from functools import partial

import pytest

from cwsink import limits, naming
from cwsink.errors import ConfigError

MIDNIGHT = 1_700_092_800_000  # 2023-11-16T00:00:00Z
FOR_EVER_MS = (1 << 53) - 1  # the latest time a writer accepts


def resolve(template: str, **env: str) -> str:
    return naming.resolve(template, {"hostname": lambda: "web-1.example", "app": lambda: "shop"}, env)


@pytest.mark.parametrize(
    ("template", "resolved"),
    [
        ("{hostname}", "web-1.example"),
        ("{app}", "shop"),
        ("plain", "plain"),
        ("{app}-{env:STAGE:dev}/{hostname}", "shop-dev/web-1.example"),
        ("{env:ZONE}", "eu"),
        ("{env:ZONE:us}", "eu"),
        ("{env:EMPTY:us}", "us"),
        ("{env:URL:http://x}", "http://x"),
        ("{date}", "{date}"),
        ("{app}/{date:%Y/%m/%d}", "shop/{date:%Y/%m/%d}"),
        ("{date:%H:%M}", "{date:%H:%M}"),
        ("x" * 512, "x" * 512),
        ("é 😀 [$LATEST]", "é 😀 [$LATEST]"),
    ],
)
def test_a_template_is_filled_in_but_for_the_date(template: str, resolved: str) -> None:
    """What is fixed for a host's life is filled in; `{date}` waits for the event's own time."""
    assert resolve(template, ZONE="eu", EMPTY="") == resolved


def test_where_the_host_runs_is_asked_only_if_the_template_wants_it() -> None:
    """`{pod}`, `{task_id}` and `{instance_id}` are looked up, each by its name; nothing else costs a look."""
    asked: list[str] = []

    def look_up(name: str) -> str:
        asked.append(name)
        return f"my-{name}"

    def named(template: str) -> str:
        names = ("hostname", "app", "pod", "task_id", "instance_id")
        return naming.resolve(template, {name: partial(look_up, name) for name in names}, {})

    assert named("plain/{date}") == "plain/{date}"
    assert asked == []
    assert named("{pod}/{task_id}/{instance_id}") == "my-pod/my-task_id/my-instance_id"
    assert asked == ["pod", "task_id", "instance_id"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        pytest.param("{host}", r"\{host\} is not known.*\{hostname\}", id="unknown"),
        pytest.param("{pid}", r"\{pid\} is not known", id="the process never is part of the name"),
        pytest.param("{}", r"\{\} is not known", id="nothing"),
        pytest.param("{dates}", r"\{dates\} is not known", id="nearly"),
        pytest.param("{env:STAGE}", r"STAGE.*not set.*\{env:STAGE:default\}", id="a variable that is not set"),
        pytest.param("{env:EMPTY}", r"EMPTY.*not set", id="a variable that is empty"),
        pytest.param("{env:STAGE:}", r"STAGE.*not set", id="an empty default"),
        pytest.param("{hostname", "brace without a partner", id="not closed"),
        pytest.param("hostname}", "brace without a partner", id="not opened"),
        pytest.param("a{date}b{", "brace without a partner", id="not closed after a date"),
        pytest.param("{{hostname}}", "brace without a partner", id="braces twice"),
        pytest.param("", "name of 0 characters", id="empty"),
        pytest.param("x" * 513, "name of 513 characters", id="too long"),
        pytest.param("x" * 503 + "{date}", "name of 513 characters", id="too long with its date"),
    ],
)
def test_a_template_that_cannot_be_filled_in_says_why(template: str, says: str) -> None:
    """The error names the setting, the template, and what would be right."""
    with pytest.raises(ConfigError, match=says) as raised:
        resolve(template, EMPTY="")
    assert repr(template) in str(raised.value)
    assert "log_stream_name" in str(raised.value)


@pytest.mark.parametrize(
    ("template", "timestamp_ms", "stream"),
    [
        ("{date}", MIDNIGHT - 1, "2023-11-15"),
        ("{date}", MIDNIGHT, "2023-11-16"),
        ("{date}", MIDNIGHT + 1, "2023-11-16"),
        ("{date:}", MIDNIGHT, "2023-11-16"),
        ("h/{date:%Y/%m/%d}", MIDNIGHT - 1, "h/2023/11/15"),
        ("{date:%H:%M:%S}", MIDNIGHT - 1, "23-59-59"),
        ("{date:%Y} {date:%j}", MIDNIGHT, "2023 320"),
        ("{date}", 0, "1970-01-01"),
        ("{date}", -1, "1970-01-01"),
        ("{date}", 253_402_300_799_999, "9999-12-31"),
        ("{date}", 1_700_000_000_000_000, "9999-12-31"),
        ("{date}", FOR_EVER_MS, "9999-12-31"),
        ("{date}", (1 << 64) - 1, "9999-12-31"),
        ("{date:%f}", MIDNIGHT + 999, "000000"),
    ],
)
def test_the_date_is_that_of_the_event_in_utc(template: str, timestamp_ms: int, stream: str) -> None:
    """A day ends at midnight UTC to the millisecond; a time beyond all calendars is no error."""
    assert naming.stream_at(template, timestamp_ms) == stream


def test_the_date_does_not_depend_on_the_machines_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hosts in different time zones write to the same day's stream."""
    import time

    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    time.tzset()
    try:
        assert naming.stream_at("{date}", MIDNIGHT - 1) == "2023-11-15"
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("name", "stream"),
    [("a:b*c", "a-b-c"), ("::", "--"), ("{date:%H:%M}", "00-00"), ("arn:aws:x", "arn-aws-x"), ("fine", "fine")],
)
def test_a_stream_name_is_sanitised(name: str, stream: str) -> None:
    """What CloudWatch forbids in a stream's name is replaced, whether from a host name, a variable or a date."""
    assert naming.stream_at(name, MIDNIGHT) == stream
    assert limits.LOG_STREAM_NAME.fullmatch(stream)


@pytest.mark.parametrize("name", ["a", "/aws/lambda/x", "a.b-c_d/e#f", "x" * 512, "aws", "/aws/"])
def test_a_legal_group_name_is_accepted(name: str) -> None:
    """1 to 512 of the documented characters."""
    naming.check_group(name)
    assert limits.LOG_GROUP_NAME.fullmatch(name)


@pytest.mark.parametrize("name", ["", "x" * 513, "a b", "a:b", "a*", "é", "a\n", "{hostname}", "aws/x"])
def test_an_illegal_group_name_is_refused(name: str) -> None:
    """The error shows the name and says that nothing was created or that AWS keeps the prefix."""
    with pytest.raises(ConfigError, match="log_group_name") as raised:
        naming.check_group(name)
    assert repr(name) in str(raised.value)


TARGET = ("/myapp/prod", "web-1", "eu-central-1", "http://127.0.0.1:4566")


def test_the_name_of_a_spool_is_stable() -> None:
    """Pinned: another name after an update would leave every host's spool an orphan."""
    assert naming.spool_name(*TARGET) == "myapp-prod.web-1.d01a94c787"
    assert naming.spool_name("/myapp/prod", "web-1", None, None) == "myapp-prod.web-1.19f0c33f95"


def test_each_part_of_a_target_makes_another_spool() -> None:
    """Group, stream, region, endpoint and account: two targets never share a spool."""
    names = {naming.spool_name(*TARGET)}
    for index in range(len(TARGET)):
        changed: list[str | None] = list(TARGET)
        for value in (f"{TARGET[index]}x", *([None] if index >= 2 else [])):
            changed[index] = value
            names.add(naming.spool_name(*changed))  # type: ignore[arg-type]
    names.add(naming.spool_name(*TARGET, "arn:role"))
    assert len(names) == 8


def test_the_parts_of_a_target_are_not_run_together() -> None:
    """("ab", "c") and ("a", "bc") are different targets, and so are region and endpoint."""
    assert naming.spool_name("ab", "c", None, None) != naming.spool_name("a", "bc", None, None)
    assert naming.spool_name("a", "b", "x", None) != naming.spool_name("a", "b", None, "x")


@pytest.mark.parametrize("stream", ["../../etc", "{date:%Y/%m}", "a b\n\0c", "é😀", "x" * 512, ".", "-" * 50])
def test_the_name_of_a_spool_is_one_plain_file_name(stream: str) -> None:
    """Whatever the target is called, its directory is readable in `ls` and stays where it belongs."""
    name = naming.spool_name("/group", stream, None, None)
    assert name.isascii()
    assert not set(name) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.-")
    assert not name.startswith((".", "-"))
    assert len(name) <= 100
