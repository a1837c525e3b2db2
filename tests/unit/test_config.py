"""A wrong setting fails at construction, by name and value, and says what would be right."""

from __future__ import annotations

import os
from pathlib import PurePosixPath
from typing import Any, Literal, get_args, get_origin, get_type_hints

import botocore.session
import pytest
from fapilog.plugins.sinks.contrib.cloudwatch import CloudWatchSinkConfig
from msgspec.structs import replace

import cwsink.errors
from cwsink import limits, regions, units
from cwsink.config import (
    MIN_SEGMENT_BYTES,
    MIN_SEGMENTS,
    OF_A_RECORD,
    SinkConfig,
    load_config,
)
from cwsink.errors import ConfigError
from cwsink.frontends.log_entry import _Entry
from cwsink.settings import Settings
from cwsink.variables import ENVIRONMENT_PREFIX, OWN_PREFIX

DEFAULTS = SinkConfig()


def load(config: object = None, env: dict[str, str] | None = None, **settings: Any) -> SinkConfig:
    return load_config(config, env=env or {}, **settings)


def test_the_defaults_are_those_of_the_design() -> None:
    """The names and values that users of the built-in sink would find, and ours where they differ."""
    assert (DEFAULTS.log_stream_name, DEFAULTS.batch_size, DEFAULTS.batch_timeout_seconds) == ("{hostname}", 1_000, 1.0)
    assert (DEFAULTS.create_log_group, DEFAULTS.create_log_stream) == (True, True)
    assert (DEFAULTS.max_batch_events, DEFAULTS.max_event_bytes) == (10_000, 1_048_550)
    assert (DEFAULTS.spool_max_bytes, DEFAULTS.on_full) == (256 * 1024 * 1024, "drop_oldest")
    assert (DEFAULTS.region, DEFAULTS.endpoint_url, DEFAULTS.spool_directory) == (None, None, None)


def test_the_bounds_are_cloudwatchs_own() -> None:
    """The limits that are written here once more, so that config imports nothing above it, agree with the others."""
    with pytest.raises(ConfigError):
        SinkConfig(max_event_bytes=limits.MAX_EVENT_BYTES + 1)
    with pytest.raises(ConfigError):
        SinkConfig(max_batch_events=limits.MAX_BATCH_EVENTS + 1)
    at_most = SinkConfig(max_event_bytes=limits.MAX_EVENT_BYTES, max_batch_events=limits.MAX_BATCH_EVENTS)
    assert at_most == DEFAULTS


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"batch_size": 0}, "batch_size=0: expected `int` >= 1."),
        ({"batch_size": "many"}, "batch_size='many': expected `int`, got `str`."),
        ({"batch_size": 1.5}, "batch_size=1.5: expected `int`, got `float`."),
        ({"batch_timeout_seconds": 0}, "batch_timeout_seconds=0: expected `float` > 0.0."),
        (
            {"batch_timeout_seconds": "soon"},
            "batch_timeout_seconds='soon': a duration is a number of seconds, or a text",
        ),
        ({"retry_base_delay": "5w"}, f"retry_base_delay='5w': {units.legal_forms('retry_base_delay')}."),
        ({"spool_max_bytes": "1TiB"}, f"spool_max_bytes='1TiB': {units.legal_forms('spool_max_bytes')}."),
        ({"segment_bytes": 8192.5}, "segment_bytes=8192.5: a size is a whole number of bytes, or a text"),
        ({"read_timeout_seconds": float("nan")}, "read_timeout_seconds=nan: expected `float` > 0.0."),
        ({"connect_timeout_seconds": float("inf")}, "connect_timeout_seconds=inf: expected `float` <= 31536000.0."),
        ({"drain_timeout_seconds": -1}, "drain_timeout_seconds=-1: expected `float` >= 0.0."),
        ({"max_retries": -1}, "max_retries=-1: expected `int` >= 0."),
        ({"circuit_breaker_threshold": 0}, "circuit_breaker_threshold=0: expected `int` >= 1."),
        ({"max_batch_events": 10_001}, "max_batch_events=10001: expected `int` <= 10000."),
        ({"spool_max_bytes": 16_383}, "spool_max_bytes=16383: expected `int` >= 16384."),
        ({"spool_max_bytes": 10**23}, f"spool_max_bytes={10**23}: expected `int` <= {1 << 50}."),
        ({"segment_bytes": 1}, "segment_bytes=1: expected `int` >= 4096."),
        ({"segment_bytes": (16 << 20) + 1}, "segment_bytes=16777217: expected `int` <= 16777216."),
        ({"on_full": "wait"}, "on_full='wait': choose one of drop_oldest, drop_newest, block."),
        ({"durability": "disk"}, "durability='disk': choose one of process, host."),
        ({"flusher": "fork"}, "flusher='fork': choose one of process, external."),
        ({"flusher": "thread"}, "flusher='thread': choose one of process, external."),
        ({"oversize": "cut"}, "oversize='cut': choose one of drop, truncate, split."),
        ({"log_group_class": "CHEAP"}, "log_group_class='CHEAP': choose one of STANDARD, INFREQUENT_ACCESS"),
        ({"oversize": "split", "max_event_bytes": 100}, "max_event_bytes=100 and oversize='split' contradict"),
        ({"retention_days": 15}, "retention_days=15: CloudWatch keeps logs for one of 1, 3, 5, 7, 14, 30"),
        ({"tags": {}}, "tags: 0 given"),
        ({"tags": {str(number): "x" for number in range(51)}}, "tags: 51 given"),
        ({"tags": "team=shop"}, "tags is not JSON"),
        ({"tags": {"": "v"}}, "tags: the key '' is not 1 to 128 letters, digits, spaces or _.:/=+-@."),
        ({"tags": {"k" * 129: "v"}}, f"tags: the key '{'k' * 129}' is not 1 to 128 "),
        ({"tags": {"a<b": "v"}}, "tags: the key 'a<b' is not 1 to 128 "),
        ({"tags": {"AWS:x": "v"}}, "tags: the key 'AWS:x' begins with aws:, as only AWS's own do."),
        ({"tags": {"team": "hunter2!"}}, "tags: the value of 'team' is not 0 to 256 letters, digits, spaces or"),
        ({"tags": {"team": "v" * 257}}, "tags: the value of 'team' is not 0 to 256 "),
        ({"external_id": 12345}, "external_id: expected `str | null`, got `int`."),
        ({"external_id": "x"}, "external_id is set and role_arn is not"),
        ({"entity": {"keyAttributes": {"Type": "Service"}}}, "entity: keyAttributes has ['Type']"),
        ({"entity": {"keyAttributes": {"Type": "x", "Nmae": "y"}}}, "entity: keyAttributes has ['Nmae', 'Type']"),
        (
            {"create_log_group": "maybe"},
            "create_log_group='maybe': write true or false (yes, no, on, off, 1 and 0 mean",
        ),
        ({"adopt_orphans": 2.5}, "adopt_orphans=2.5: write true or false (yes,"),
        ({"log_group_name": 5}, "log_group_name=5: expected `str`, got `int`."),
        ({"log_group_name": "a b"}, "log_group_name 'a b' is not a legal log group name"),
        ({"log_group_name": "aws/x"}, "log_group_name 'aws/x' starts with 'aws/'"),
        ({"log_stream_name": ""}, "log_stream_name is empty"),
        ({"log_stream_name": "a\nb"}, "log_stream_name='a\\nb' holds a character that cannot be printed."),
        ({"app_name": "\udcff"}, "app_name='\\udcff' holds a character that cannot be printed."),
        ({"region": "us east 1"}, "region='us east 1' is no name of a region."),
        ({"endpoint_url": "localhost:4566"}, "endpoint_url='localhost:4566' is no URL."),
        ({"endpoint_url": "https://"}, "endpoint_url='https://' is no URL."),
        ({"endpoint_url": "http://x:99999"}, "endpoint_url='http://x:99999' is no URL."),
        ({"batch_size": "\udcff"}, "settings: '\\udcff' holds a character that cannot be printed."),
        ({"endpoint_url": "http://ann:hunter2@proxy"}, "endpoint_url holds a user name or a password"),
        ({"fields": {"level": "INFO"}}, "fields: 'level' cannot be a static field's name. Taken are context,"),
        ({"fields": {"_aws": 1}}, "fields: '_aws' cannot be a static field's name."),
        ({"fields": {"": 1}}, "fields: '' cannot be a static field's name."),
        ({"fields": {"a\n": 1}}, "fields: 'a\\n' cannot be a static field's name."),
        ({"fields": {"tags": ["a"]}}, "fields={'tags': ['a']}: expected `bool | int | float | str`, got `array`."),
        ({"fields": "service=shop"}, "fields='service=shop' is not JSON"),
        ({"spool_directory": "spools"}, "spool_directory='spools' is relative"),
        ({"spool_directory": "./spools"}, "spool_directory='./spools' is relative"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_wrong_value_is_named_with_its_setting(settings: dict[str, Any], says: str) -> None:
    """The message begins with the setting and the value, and goes on with what is legal."""
    with pytest.raises(ConfigError) as raised:
        SinkConfig(**settings)
    assert str(raised.value).startswith(says)
    with pytest.raises(ConfigError) as raised:
        load(settings)
    assert str(raised.value).startswith(says)


@pytest.mark.parametrize("name", ["region", "endpoint_url", "log_group_name", "log_stream_name", "profile", "role_arn"])
def test_white_space_around_a_value_is_left_out(name: str) -> None:
    """A secret, a file or a shell's output often ends with a newline."""
    value = "http://localhost:4566" if name == "endpoint_url" else "x-1"
    assert getattr(SinkConfig(**{name: f" {value}\n"}), name) == value


def test_tags_that_cloudwatch_takes_are_taken() -> None:
    """Letters and digits of any script, the longest ones, and an empty value."""
    tags = {"k" * 128: "v" * 256, "Größe 2": "", "a_.:/=+-@": "ё"}
    assert SinkConfig(tags=tags).tags == tags


@pytest.mark.parametrize("blank", ["", " ", "\n"])
@pytest.mark.parametrize(
    "name", [name for name in SinkConfig.__struct_fields__ if getattr(DEFAULTS, name) is None and name[:5] != "spool"]
)
def test_blanks_are_not_a_value(name: str, blank: str) -> None:
    """An empty variable or file is as good as none, and leaves the word to the next in turn."""
    text, value = ENVIRONMENT[name]
    beside = BESIDE.get(name, {})
    assert SinkConfig(**{name: blank}) == load({name: blank}) == load(**{name: blank}) == DEFAULTS
    assert load({name: blank}, {OWN_PREFIX + name.upper(): text}, **beside) == SinkConfig(**{name: value}, **beside)
    env = {OWN_PREFIX + name.upper(): blank, ENVIRONMENT_PREFIX + name.upper(): text}
    assert load({}, env, **beside) == SinkConfig(**{name: value}, **beside)


ODD: list[Any] = [
    *("", " ", "\n", "a\n", "a b", "\0", "\udcff", "a\udcffb", "\u202e", "x" * 600, "{", "}", "{x}", "{0}", "{env:}"),
    *("{app!r}", "{date:\ud800}", "https://", "ftp://x", "http://a b", "http://[::1", "http://x:0", "http://x:99999"),
    *(b"x", 1, 1.5, float("nan"), True, [], {}, {"\ud800": "x"}, {"x": "\ud800"}, object()),
]


@pytest.mark.parametrize("name", SinkConfig.__struct_fields__)
def test_whatever_a_setting_is_given_it_is_taken_or_a_config_error(name: str) -> None:
    """No other exception: none of msgspec, none of Unicode."""
    for odd in ODD:
        try:
            made = SinkConfig(**{"log_group_name": "/app", name: odd})
        except ConfigError:
            continue
        str(getattr(made, name)).encode()  # it can be written down


def test_two_values_that_contradict_each_other_are_both_named() -> None:
    """A segment too large for the spool: both numbers, and both ways out."""
    with pytest.raises(ConfigError) as raised:
        SinkConfig(segment_bytes="1MiB", spool_max_bytes="2MiB")
    for part in ("segment_bytes=1,048,576", "spool_max_bytes=2,097,152", "4,194,304"):
        assert part in str(raised.value)
    assert SinkConfig(segment_bytes="1MiB", spool_max_bytes="4MiB").ring_segment_bytes == 1 << 20


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("log_group", "log_group_name"),
        ("batch_sise", "batch_size"),
        ("batch_timeout", "batch_timeout_seconds"),
        ("spool_dir", "spool_directory"),
        ("max_events_bytes", "max_event_bytes"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest_known_one(name: str, nearest: str) -> None:
    """A slip of the pen is an error that says what was meant."""
    with pytest.raises(ConfigError) as raised:
        SinkConfig(**{name: 1})
    assert str(raised.value) == f"{name!r} is not a cwsink setting. Did you mean {nearest!r}?"
    with pytest.raises(ConfigError, match="Did you mean"):
        load(**{name: 1})


def test_a_name_like_no_other_is_answered_with_all_known_ones() -> None:
    """Without a near one, every known name is listed."""
    with pytest.raises(ConfigError) as raised:
        SinkConfig(xyzzy=1)
    assert all(name in str(raised.value) for name in SinkConfig.__struct_fields__)


def test_an_error_is_cwsinks_and_a_value_error() -> None:
    """It is caught by who catches either, and carries a stable code."""
    with pytest.raises(ValueError, match="batch_size") as raised:
        SinkConfig(batch_size=0)
    assert isinstance(raised.value, cwsink.errors.CwsinkError)
    assert raised.value.code == "config"
    assert raised.value.__suppress_context__ or raised.value.__cause__ is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5.0),
        ("500ms", 0.5),
        ("2m", 120.0),
        ("1h", 3600.0),
        ("7d", 604_800.0),
        (" 1.5 s ", 1.5),
        ("0.25s", 0.25),
        ("7", 7.0),
    ],
)
@pytest.mark.parametrize("name", ["batch_timeout_seconds", "retry_base_delay", "connect_timeout_seconds"])
def test_a_duration_may_carry_its_unit(name: str, text: str, seconds: float) -> None:
    """Text with a unit, text without one, and a number say the same."""
    assert getattr(SinkConfig(**{name: text}), name) == pytest.approx(seconds)
    assert getattr(SinkConfig(**{name: seconds}), name) == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1MiB", 1 << 20),
        ("1 MB", 1_000_000),
        ("64k", 64_000),
        ("64KiB", 65_536),
        ("1.5gib", 3 << 29),
        ("2g", 2_000_000_000),
        ("1048576", 1 << 20),
        (" 20 mib ", 20 << 20),
    ],
)
def test_a_size_may_carry_its_unit(text: str, size: int) -> None:
    """MiB are 1024s, MB are 1000s, no unit is bytes."""
    assert SinkConfig(spool_max_bytes=text).spool_max_bytes == size
    assert SinkConfig(spool_max_bytes=size).spool_max_bytes == size


@pytest.mark.parametrize("text", ["5w", "s", "1:30", "-5s", "5s 3ms", "1TiB", "5s\n\nx"])
def test_a_unit_we_do_not_know_is_an_error(text: str) -> None:
    """Nothing is guessed."""
    with pytest.raises(ConfigError):
        SinkConfig(batch_timeout_seconds=text)
    with pytest.raises(ConfigError):
        SinkConfig(spool_max_bytes=text)


def test_a_count_has_no_unit() -> None:
    """`batch_size="1k"` is an error, not 1,000: the name carries no unit."""
    with pytest.raises(ConfigError):
        SinkConfig(batch_size="1k")


@pytest.mark.parametrize("name", SinkConfig.__struct_fields__)
def test_none_means_the_default(name: str) -> None:
    """Keyword, mapping or object: None is as good as not given."""
    assert SinkConfig(**{name: None}) == DEFAULTS
    assert load({name: None}) == DEFAULTS
    assert load(**{name: None}) == DEFAULTS


ENVIRONMENT = {
    "log_group_name": ("/from/env", "/from/env"),
    "log_stream_name": ("{app}", "{app}"),
    "region": ("eu-west-1", "eu-west-1"),
    "endpoint_url": ("http://x", "http://x"),
    "create_log_group": ("false", False),
    "create_log_stream": ("0", False),
    "batch_size": ("7", 7),
    "batch_timeout_seconds": ("250ms", 0.25),
    "max_retries": ("9", 9),
    "retry_base_delay": ("2s", 2.0),
    "circuit_breaker_enabled": ("False", False),
    "circuit_breaker_threshold": ("8", 8),
    "app_name": ("shop", "shop"),
    "max_batch_events": ("100", 100),
    "max_event_bytes": ("262118", 262_118),
    "spool_directory": ("/x", "/x"),
    "spool_max_bytes": ("64MiB", 64 << 20),
    "segment_bytes": ("1MiB", 1 << 20),
    "on_full": ("block", "block"),
    "block_timeout_seconds": ("1", 1.0),
    "durability": ("host", "host"),
    "connect_timeout_seconds": ("1s", 1.0),
    "read_timeout_seconds": ("2s", 2.0),
    "drain_timeout_seconds": ("0", 0.0),
    "flusher": ("external", "external"),
    "pipeline": ("queue", "queue"),
    "allow_unsafe_filesystem": ("true", True),
    "adopt_orphans": ("on", True),
    "oversize": ("split", "split"),
    "compression": ("gzip", "gzip"),
    "self_metrics": ("emf", "emf"),
    "keep_delivered": ("24h", 86_400.0),
    "keep_delivered_bytes": ("2GiB", 2 << 30),
    "retention_days": ("14", 14),
    "tags": ('{"team": "shop"}', {"team": "shop"}),
    "kms_key_id": ("arn:key", "arn:key"),
    "log_group_class": ("INFREQUENT_ACCESS", "INFREQUENT_ACCESS"),
    "profile": ("logs", "logs"),
    "role_arn": ("arn:role", "arn:role"),
    "external_id": ("them", "them"),
    "entity": (
        '{"keyAttributes": {"Type": "Service", "Name": "shop"}}',
        {"keyAttributes": {"Type": "Service", "Name": "shop"}},
    ),
    "trace": ("off", "off"),
    "fields": ('{"service": "shop", "shard": 7}', {"service": "shop", "shard": 7}),
}
# What a setting makes no sense without.
BESIDE: dict[str, dict[str, Any]] = {"external_id": {"role_arn": "arn:role"}}


@pytest.mark.parametrize("prefix", ["CWSINK_", "FAPILOG_CLOUDWATCH__"])
@pytest.mark.parametrize("name", SinkConfig.__struct_fields__)
def test_every_setting_can_come_from_the_environment(name: str, prefix: str) -> None:
    """CWSINK_<NAME> and FAPILOG_CLOUDWATCH__<NAME> as text give the same as the value itself; none is forgotten."""
    text, value = ENVIRONMENT[name]
    beside = BESIDE.get(name, {})
    loaded = load(env={prefix + name.upper(): text}, **beside)
    assert loaded == SinkConfig(**{name: value}, **beside)
    assert loaded != SinkConfig(**beside)


def test_what_the_environment_says_wrongly_is_an_error_too() -> None:
    """A bad value is named, whoever set it."""
    with pytest.raises(ConfigError, match="batch_size='lots'"):
        load(env={"FAPILOG_CLOUDWATCH__BATCH_SIZE": "lots"})


def test_a_variable_that_is_empty_is_not_set() -> None:
    """`FAPILOG_CLOUDWATCH__REGION=` in a compose file means nothing."""
    for blank in ("", " ", "\n"):
        assert load(env={ENVIRONMENT_PREFIX + name.upper(): blank for name in SinkConfig.__struct_fields__}) == DEFAULTS


def test_variables_that_are_not_ours_are_ignored() -> None:
    """fapilog has variables of its own under neighbouring names."""
    assert load(env={"FAPILOG_CLOUDWATCH__UNKNOWN": "1", "FAPILOG_CORE__BATCH_SIZE": "1"}) == DEFAULTS


@pytest.mark.parametrize("settings", [{}, {"batch_size": None}])
def test_keyword_beats_object_beats_environment(settings: dict[str, Any]) -> None:
    """Who is nearer to the call wins."""
    env = {"FAPILOG_CLOUDWATCH__BATCH_SIZE": "1", "FAPILOG_CLOUDWATCH__MAX_RETRIES": "1"}
    assert load(None, env, **settings).batch_size == 1
    assert load({"batch_size": 2}, env, **settings).batch_size == 2
    assert load({"batch_size": 2}, env, batch_size=3).batch_size == 3
    assert load({"batch_size": 2}, env, batch_size=3).max_retries == 1


def test_a_none_in_the_object_leaves_the_word_to_the_environment() -> None:
    """fapilog's object holds None for what the user did not say."""
    assert load({"region": None}, {"FAPILOG_CLOUDWATCH__REGION": "eu-west-1"}).region == "eu-west-1"


@pytest.mark.parametrize(
    ("env", "region"),
    [
        ({"AWS_REGION": "a", "AWS_DEFAULT_REGION": "b"}, "a"),
        ({"AWS_DEFAULT_REGION": "b"}, "b"),
        ({"AWS_REGION": "", "AWS_DEFAULT_REGION": "b"}, "b"),
        ({"AWS_REGION": "a", "FAPILOG_CLOUDWATCH__REGION": "c"}, "c"),
        ({}, None),
    ],
)
def test_the_region_is_awss_own_unless_given(env: dict[str, str], region: str | None) -> None:
    """AWS_REGION, then AWS_DEFAULT_REGION, as every AWS tool does; what is said to us comes first."""
    assert load(env=env).region == region
    assert load({"region": "z"}, env).region == "z"


def test_the_process_environment_is_read_when_loading_not_when_importing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable set after the import counts; SinkConfig itself reads none."""
    monkeypatch.setenv("FAPILOG_CLOUDWATCH__BATCH_SIZE", "77")
    assert load_config().batch_size == 77
    assert SinkConfig().batch_size == 1_000


def test_the_built_in_sinks_object_is_accepted() -> None:
    """fapilog's CloudWatchSinkConfig means here what it means there; its unset stream name is ours."""
    theirs = CloudWatchSinkConfig(log_group_name="/theirs", region="eu-west-1", batch_size=50, create_log_group=False)
    loaded = load(theirs)
    assert (loaded.log_group_name, loaded.region, loaded.batch_size) == ("/theirs", "eu-west-1", 50)
    assert loaded.create_log_group is False
    assert loaded.log_stream_name == "{hostname}"
    assert load(theirs, log_group_name="/ours").log_group_name == "/ours"


def test_every_setting_of_the_built_in_sink_is_known() -> None:
    """Whatever its users set, they can set here."""
    assert set(CloudWatchSinkConfig.model_fields) <= set(SinkConfig.__struct_fields__)


def test_a_config_passes_through_unaltered() -> None:
    """A SinkConfig is its own configuration, with what is None in it. Only AWS's own variables add what it has not."""
    config = SinkConfig(batch_size=5, log_group_name="/x")
    for prefix in (OWN_PREFIX, ENVIRONMENT_PREFIX):
        env = {prefix + name.upper(): text for name, (text, _) in ENVIRONMENT.items()}
        assert load(config, env) == config
    aws = {"AWS_REGION": "eu-west-1", "AWS_ENDPOINT_URL": "http://x"}
    assert load(config, aws) == replace(config, region="eu-west-1", endpoint_url="http://x")
    assert load(config, {}, batch_size=6).batch_size == 6


@pytest.mark.parametrize("config", ["text", 5, ["log_group_name"], object()])
def test_what_is_no_configuration_is_named_by_its_type(config: object) -> None:
    """The error says what would be accepted."""
    with pytest.raises(ConfigError, match=f"not {type(config).__name__}") as raised:
        load(config)
    assert str(raised.value).endswith(" Did you mean log_group_name='text'?") == (config == "text")


def test_a_path_is_as_good_as_text() -> None:
    """`spool_directory` takes a pathlib path, and `~`."""
    assert SinkConfig(spool_directory=PurePosixPath("/x/y")).spool_directory == "/x/y"
    assert SinkConfig(spool_directory="~/spools").spool_directory == "~/spools"


def test_a_config_cannot_be_changed() -> None:
    """What was checked stays what it was."""
    with pytest.raises(AttributeError):
        SinkConfig().batch_size = 0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("spool", "segment"),
    [
        (16 * 1024, 4096),
        (32 * 1024, 4096),
        (64 * 1024, 8 * 1024),
        (1 << 20, 128 * 1024),
        (64 << 20, 8 << 20),
        (1 << 40, 8 << 20),
    ],
)
def test_a_spool_is_a_ring_of_several_segments(spool: int, segment: int) -> None:
    """An eighth of a small budget, 8 MiB of a large one; always at least four to the spool."""
    assert SinkConfig(spool_max_bytes=spool).ring_segment_bytes == segment
    assert segment >= MIN_SEGMENT_BYTES
    assert segment * MIN_SEGMENTS <= spool


def test_nothing_of_the_environment_is_read_unasked() -> None:
    """`load_config` with an environment of its own does not look at the process's."""
    assert "AWS_REGION" in os.environ
    assert load_config(env={}).region is None


def test_a_variable_that_is_no_setting_is_said(capfd: pytest.CaptureFixture[str]) -> None:
    """A typing mistake in the environment is not ignored in silence; it names the nearest setting."""
    load_config(env={"FAPILOG_CLOUDWATCH__LOG_GROP_NAME": "/app"})
    assert "FAPILOG_CLOUDWATCH__LOG_GROP_NAME has no effect" in (said := capfd.readouterr().err)
    assert "Did you mean FAPILOG_CLOUDWATCH__LOG_GROUP_NAME?" in said


def test_of_two_variables_that_differ_ours_wins_and_one_line_says_so(capfd: pytest.CaptureFixture[str]) -> None:
    """No value is shown, for it may be a secret. Equal ones are no trouble."""
    env = {"CWSINK_EXTERNAL_ID": "ours", "FAPILOG_CLOUDWATCH__EXTERNAL_ID": "theirs", "CWSINK_ROLE_ARN": "arn:role"}
    assert load_config(env=env).external_id == "ours"
    said = "cwsink: the variable FAPILOG_CLOUDWATCH__EXTERNAL_ID has no effect: CWSINK_EXTERNAL_ID is set to another "
    assert capfd.readouterr().err == f"{said}value, and wins.\n"
    assert load_config(env={**env, "FAPILOG_CLOUDWATCH__EXTERNAL_ID": "ours"}).external_id == "ours"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("CWSINK_LOG_GRUP_NAME", "CWSINK_LOG_GROUP_NAME"),
        ("CWSINK_TARGT", "CWSINK_TARGET"),
        ("CWSINK_TARGETS", "CWSINK_TARGET"),
        ("CWSINK_ON_UNUSEABLE", "CWSINK_ON_UNUSABLE"),
        ("CWSINK_PYTHN", "CWSINK_PYTHON"),
    ],
)
def test_a_variable_that_looks_like_one_of_ours_is_said(
    capfd: pytest.CaptureFixture[str], misspelt: str, meant: str
) -> None:
    """Whether it is a setting or not. The others of that prefix are ours or the application's, and none is misspelt."""
    others = ("TARGET", "ON_UNUSABLE", "PYTHON", "HOSTED", "STARTED_BY", "VERSION_OF_THE_APP")
    load_config(env={misspelt: "x", **{OWN_PREFIX + each: "7" for each in others}})
    assert capfd.readouterr().err == f"cwsink: the variable {misspelt} has no effect. Did you mean {meant}?\n"


def choices(hint: object) -> set[object]:
    return {value for each in (hint, *get_args(hint)) if get_origin(each) is Literal for value in get_args(each)}


def test_type_checkers_know_each_setting() -> None:
    """`cwsink.settings` has the settings of SinkConfig in their order, and the same choices where there are any."""
    typed, held = get_type_hints(Settings), get_type_hints(SinkConfig)
    assert list(typed) == list(SinkConfig.__struct_fields__)
    assert {name: choices(typed[name]) for name in typed} == {name: choices(held[name]) for name in typed}


@pytest.mark.parametrize(
    ("region", "nearest"),
    [("us-esat-1", "us-east-1"), ("eu-central1", "eu-central-1"), ("US-East-1", "us-east-1"), ("Frankfurt", None)],
)
def test_an_unknown_region_is_answered_with_the_nearest_one(
    region: str, nearest: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """By a line, because botocore's list may be older than the region: nobody is refused for that."""
    assert load(env={"AWS_REGION": region}).region == region
    said = capfd.readouterr().err
    assert f"region={region!r} is no region that the installed botocore knows." in said
    assert (f"Did you mean {nearest!r}?" in said) if nearest else ("Did you mean" not in said)
    load(region=region, endpoint_url="http://localhost:4566")
    assert capfd.readouterr().err == ""


def test_no_region_is_doubted_that_botocore_knows() -> None:
    """The list is botocore's own, which a worker reads without an import of botocore."""
    session = botocore.session.Session()
    known = [
        name for each in session.get_available_partitions() for name in session.get_available_regions("logs", each)
    ]
    assert len(known) > 20
    assert [name for name in known if regions.doubt(name)] == []


def test_what_a_record_has_at_its_top_is_no_static_field() -> None:
    """A key of a record would be there twice."""
    assert set(_Entry.__struct_fields__) <= OF_A_RECORD
