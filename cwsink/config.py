"""Settings: one validated object, from keywords, fapilog's objects or variables.

`SinkConfig` is pure: it checks the values it is given, and holds them. The front
ends call `load_config`. It also accepts a mapping or the built-in sink's config
object, reads settings that were not given from `CWSINK_<NAME>` or
`FAPILOG_CLOUDWATCH__<NAME>`, and reports a variable that names no setting.
A wrong setting is a ConfigError here, and cannot cause trouble later, while logging.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args, get_origin, get_type_hints

import msgspec
from msgspec.structs import asdict

from cwsink import endpoint, regions, units, variables
from cwsink.diagnostics import report
from cwsink.errors import ConfigError
from cwsink.limits import (
    ENTITY_KEYS,
    MAX_BATCH_EVENTS,
    MAX_ENTITY_ATTRIBUTES,
    MAX_ENTITY_KEYS,
    MAX_EVENT_BYTES,
    MIN_ENTITY_KEYS,
    REGION,
    RETENTION_DAYS,
)
from cwsink.naming import check_group, check_tags
from cwsink.variables import ENVIRONMENT_PREFIX, OWN_PREFIX

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from cwsink.settings import Settings

# A segment is reclaimed or evicted as a whole. With fewer segments, one eviction would take a large part of the spool.
MIN_SEGMENTS: Final = 4
DEFAULT_SEGMENT_BYTES: Final = 8 * 1024 * 1024
MIN_SEGMENT_BYTES: Final = 4096
# A segment is reserved, given back and evicted as a whole, in the thread that logs. With larger ones an append could
# take longer than 50 ms: a RAM disk needs a millisecond for each mebibyte that it reserves.
MOST_SEGMENT_BYTES: Final = 16 * 1024 * 1024

# An event that is cut to size must hold a note about the cut, a few texts that were cut, and some content.
MIN_SHORTENED_BYTES: Final = 1024

# What a record has at its top, from our front ends or fapilog. A static field cannot have such a name.
OF_A_RECORD: Final = frozenset(
    "timestamp level message logger trace_id span_id http diagnostics data context correlation_id log schema_version "
    "metadata".split()
)

# Settings that may hold a secret, or what is nobody else's business.
NOT_SHOWN: Final = frozenset(("external_id", "tags"))

# A longer time or a larger spool is a mistake in the unit. A socket's timer or a file could not hold it, either.
_MOST_SECONDS: Final = 365 * 86_400.0
_MOST_SPOOL_BYTES: Final = 1 << 50

_Positive = Annotated[float, msgspec.Meta(gt=0, le=_MOST_SECONDS)]
_NotNegative = Annotated[float, msgspec.Meta(ge=0, le=_MOST_SECONDS)]


def _checked(cls: type[msgspec.Struct], **settings: Any) -> Any:
    known = set(cls.__struct_fields__)
    for name in settings:
        if name not in known:
            raise ConfigError(variables.unknown(name, known))
    plain = {name: _plain(name, value) for name, value in settings.items() if _is_given(name, value)}
    try:
        made = msgspec.convert(plain, cls, strict=False)
        msgspec.json.encode(made)  # a text that is no Unicode could not be written down for the leader
        return made
    except UnicodeEncodeError as error:
        raise ConfigError(f"settings: {error.object!r} holds a character that cannot be printed.") from None
    except msgspec.ValidationError as error:
        if isinstance(error.__cause__, ConfigError):
            raise error.__cause__ from None
        raise ConfigError(_explain(str(error), plain)) from None


class _Validated(msgspec.StructMeta):
    """Makes `SinkConfig(...)` check names, types and bounds of its settings. By itself a msgspec struct does not."""

    if not TYPE_CHECKING:  # for a type checker, SinkConfig is called as its `__init__` says
        __call__ = _checked


class Entity(msgspec.Struct, frozen=True, kw_only=True, rename={"key_attributes": "keyAttributes"}):
    """The entity that the logs are about, for CloudWatch's "related telemetry" (API reference, Entity)."""

    key_attributes: dict[str, str]
    attributes: dict[str, str] = {}

    def check(self) -> None:
        """Raise ConfigError if CloudWatch would reject the entity for its keys or its number of attributes."""
        wrong = self.key_attributes.keys() - ENTITY_KEYS
        if wrong or not MIN_ENTITY_KEYS <= len(self.key_attributes) <= MAX_ENTITY_KEYS:
            raise ConfigError(
                f"entity: keyAttributes has {sorted(self.key_attributes)}; it takes 2 to 4 of {', '.join(ENTITY_KEYS)}."
            )
        if len(self.attributes) > MAX_ENTITY_ATTRIBUTES:
            raise ConfigError(f"entity: {len(self.attributes)} attributes given; {MAX_ENTITY_ATTRIBUTES} are the most.")


class SinkConfig(msgspec.Struct, metaclass=_Validated, frozen=True, kw_only=True):
    """How records are spooled, and where they go. Durations in seconds, sizes in bytes.

    Durations may be written "5s", "500ms" or 5.0; sizes "256MiB", "10 MB" or 1048576.
    `None` means the default. `cwsink.settings`, and so `cwsink manual settings`, says what each one does.

    Raises:
        ConfigError: an unknown name (with the nearest known one), a value of the wrong
            type or out of bounds, or two values that contradict each other.
    """

    # The built-in sink's names, in its order.
    log_group_name: str = "/fapilog/default"
    log_stream_name: str = "{hostname}"
    region: str | None = None
    endpoint_url: str | None = None
    create_log_group: bool = True
    create_log_stream: bool = True
    batch_size: Annotated[int, msgspec.Meta(ge=1)] = 1_000
    batch_timeout_seconds: _Positive = 1.0
    max_retries: Annotated[int, msgspec.Meta(ge=0)] = 3
    retry_base_delay: _NotNegative = 0.5
    circuit_breaker_enabled: bool = True
    circuit_breaker_threshold: Annotated[int, msgspec.Meta(ge=1)] = 5
    # Settings that the built-in sink does not have.
    app_name: str | None = None
    max_batch_events: Annotated[int, msgspec.Meta(ge=1, le=MAX_BATCH_EVENTS)] = MAX_BATCH_EVENTS
    max_event_bytes: Annotated[int, msgspec.Meta(ge=1, le=MAX_EVENT_BYTES)] = MAX_EVENT_BYTES
    spool_directory: str | None = None
    spool_max_bytes: Annotated[int, msgspec.Meta(ge=MIN_SEGMENTS * MIN_SEGMENT_BYTES, le=_MOST_SPOOL_BYTES)] = (
        256 * 1024 * 1024
    )
    segment_bytes: Annotated[int, msgspec.Meta(ge=MIN_SEGMENT_BYTES, le=MOST_SEGMENT_BYTES)] | None = None
    on_full: Literal["drop_oldest", "drop_newest", "block"] = "drop_oldest"
    block_timeout_seconds: _NotNegative = 5.0
    durability: Literal["process", "host"] = "process"
    connect_timeout_seconds: _Positive = 3.0
    read_timeout_seconds: _Positive = 10.0
    drain_timeout_seconds: _NotNegative = 5.0
    flusher: Literal["process", "external"] = "process"
    pipeline: Literal["inline", "queue"] = "inline"
    allow_unsafe_filesystem: bool = False
    adopt_orphans: bool = False
    oversize: Literal["drop", "truncate", "split"] = "drop"
    compression: Literal["none", "gzip"] = "none"
    self_metrics: Literal["off", "emf"] = "off"
    keep_delivered: _Positive | None = None
    keep_delivered_bytes: Annotated[int, msgspec.Meta(ge=MIN_SEGMENT_BYTES, le=_MOST_SPOOL_BYTES)] = 1 << 30
    # How the target is created, and the role or profile that writes to it.
    retention_days: int | None = None
    tags: dict[str, str] | None = None
    kms_key_id: str | None = None
    log_group_class: Literal["STANDARD", "INFREQUENT_ACCESS", "ESSENTIALS", "DELIVERY"] | None = None
    profile: str | None = None
    role_arn: str | None = None
    external_id: str | None = None
    entity: Entity | None = None
    # What each record has at its top, also. Text may have the placeholders of a stream's name, but for the date.
    fields: dict[str, str | int | float | bool] | None = None
    # Whether a record has the ids of the span that is active.
    trace: Literal["auto", "off"] = "auto"

    if TYPE_CHECKING:

        def __init__(self, **settings: Unpack[Settings]) -> None: ...

    def __post_init__(self) -> None:
        """Check the rules that a field's type cannot express. Raises ConfigError."""
        check_group(self.log_group_name)
        for name, value in asdict(self).items():
            if isinstance(value, str) and name != "spool_directory" and not value.isprintable():
                raise ConfigError(f"{_named(name, value)} holds a character that cannot be printed.")
        if self.region is not None and not REGION.fullmatch(self.region):
            raise ConfigError(f"region={self.region!r} is no name of a region. Write it like us-east-1.")
        if self.endpoint_url is not None:
            endpoint.check(self.endpoint_url)
        if not self.log_stream_name:
            raise ConfigError("log_stream_name is empty. Leave it out for the host's name.")
        if self.segment_bytes is not None and self.segment_bytes * MIN_SEGMENTS > self.spool_max_bytes:
            raise ConfigError(
                f"segment_bytes={self.segment_bytes:,} and spool_max_bytes={self.spool_max_bytes:,} contradict "
                f"each other: a spool holds at least {MIN_SEGMENTS} segments. Raise spool_max_bytes to "
                f"{self.segment_bytes * MIN_SEGMENTS:,} or leave segment_bytes out."
            )
        if self.oversize != "drop" and self.max_event_bytes < MIN_SHORTENED_BYTES:
            raise ConfigError(
                f"max_event_bytes={self.max_event_bytes:,} and oversize={self.oversize!r} contradict each other: an "
                f"event cut to size needs at least {MIN_SHORTENED_BYTES:,} bytes."
            )
        if self.retention_days is not None and self.retention_days not in RETENTION_DAYS:
            raise ConfigError(
                f"retention_days={self.retention_days}: CloudWatch keeps logs for one of "
                f"{', '.join(map(str, RETENTION_DAYS))} days, or for ever (leave it out)."
            )
        if self.tags is not None:
            check_tags(self.tags)
        if self.external_id is not None and self.role_arn is None:
            raise ConfigError("external_id is set and role_arn is not: an external_id is sent only to assume a role.")
        if self.entity is not None:
            self.entity.check()
        for name in self.fields or ():
            if name in OF_A_RECORD or not name.isprintable() or name[:1] in ("", "_", "@"):
                taken = ", ".join(sorted(OF_A_RECORD))
                raise ConfigError(
                    f"fields: {name!r} cannot be a static field's name. Taken are {taken}, and what begins with _ or @."
                )
        if self.spool_directory is not None and not os.path.isabs(os.path.expanduser(self.spool_directory)):
            raise ConfigError(
                f"spool_directory={self.spool_directory!r} is relative: workers with different working "
                "directories would each get a spool of their own. Give an absolute path."
            )

    @property
    def ring_segment_bytes(self) -> int:
        """The size at which a segment is full, in bytes: `segment_bytes`, or 8 MiB, or an eighth of a small budget."""
        return self.segment_bytes or max(MIN_SEGMENT_BYTES, min(DEFAULT_SEGMENT_BYTES, self.spool_max_bytes // 8))


def load_config(
    config: object = None, *, env: Mapping[str, str] | None = None, **settings: Unpack[Settings]
) -> SinkConfig:
    """Build a SinkConfig from a config object of fapilog or the application, single settings, and the environment.

    Args:
        config: a SinkConfig, a mapping, or any object with a `model_dump()`. None: there is none. A SinkConfig has all
            settings. Only AWS's own variables for the region and the endpoint count beside it, and, if it names no
            spool_directory, `CWSINK_SPOOL_DIRECTORY`.
        env: the environment that holds `CWSINK_*` and `FAPILOG_CLOUDWATCH__*`; by default, the process's.
        **settings: single settings; they win over `config`, which wins over the environment.

    Raises:
        ConfigError: see SinkConfig.
    """
    loaded: SinkConfig = SinkConfig(**_collect(config, os.environ if env is None else env, settings))
    return loaded


def load_own_config(config: object = None, **settings: Unpack[Settings]) -> SinkConfig:
    """Do as `load_config`, for an application without fapilog: the log group must be given.

    Raises:
        ConfigError: see SinkConfig; or no log group is given.
    """
    given = _collect(config, os.environ, settings)
    loaded: SinkConfig = SinkConfig(**given)
    is_whole = isinstance(config, SinkConfig)  # it has a group also if it was given none: the default
    if "log_group_name" not in given or (is_whole and loaded.log_group_name == SinkConfig().log_group_name):
        variable = "" if is_whole else f", or set the variable {OWN_PREFIX}LOG_GROUP_NAME"
        raise ConfigError(
            f'where do the logs go? Give log_group_name="/myapp/prod" as an argument or in the config{variable}. '
            "Nothing was written."
        )
    return loaded


def variables_of(name: str) -> tuple[str, str]:
    """Return the two environment variables of a setting: ours, which wins, and fapilog's."""
    return OWN_PREFIX + name.upper(), ENVIRONMENT_PREFIX + name.upper()


def _collect(config: object, env: Mapping[str, str], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all settings that are given anywhere. Reports variables that have no effect. Raises ConfigError."""
    both = (*_as_mapping(config).items(), *settings.items())
    given = {name: value for name, value in both if _is_given(name, value)}
    known = set(SinkConfig.__struct_fields__)
    # A SinkConfig has all settings, also those that are None. Only AWS's own variables, below, count beside it.
    for name in () if isinstance(config, SinkConfig) else known - given.keys():
        ours, theirs = (text if (text := env.get(each, "")).strip() else "" for each in variables_of(name))
        if ours and theirs and ours != theirs:
            wins, loses = variables_of(name)
            report(
                f"variables_{name}", f"the variable {loses} has no effect: {wins} is set to another value, and wins."
            )
        if text := ours or theirs:
            given[name] = text
    for variable in env:
        variables.check(variable, known)
    if "region" not in given and (region := env.get("AWS_REGION") or env.get("AWS_DEFAULT_REGION")):
        given["region"] = region
    if "endpoint_url" not in given and (url := endpoint.of_variables(env)):
        given["endpoint_url"] = url
    region = given.get("region")
    if isinstance(region, str) and not given.get("endpoint_url") and (doubt := regions.doubt(region.strip())):
        report("region", doubt)
    return given


def _as_mapping(config: object) -> Mapping[str, Any]:
    if config is None:
        return {}
    if isinstance(config, SinkConfig):
        return asdict(config)
    if isinstance(config, Mapping):
        return config
    dump = getattr(config, "model_dump", None)
    if callable(dump):
        dumped: Mapping[str, Any] = dump()
        return dumped
    meant = f" Did you mean log_group_name={config!r}?" if isinstance(config, str) else ""
    raise ConfigError(
        f"config must be a SinkConfig, a mapping or a pydantic object, not {type(config).__name__}.{meant}"
    )


def _is_given(name: str, value: object) -> bool:
    """Tell whether this is a value. A text of blanks is none for a setting that is None by default.

    Else an empty variable or file would be a role or a key that AWS refuses, far away from the mistake.
    """
    return value is not None and not (isinstance(value, str) and not value.strip() and name in _none_by_default())


def _plain(name: str, value: Any) -> Any:
    """Turn a text such as "5s", "256MiB" or "yes", or a path, into the value that the setting takes."""
    if isinstance(value, str):
        if name != "spool_directory":
            value = value.strip()  # a secret or a file often ends with a newline
        if name in ("tags", "entity", "fields"):
            return _decoded(name, value)
        if name in _switches():
            return {"yes": True, "on": True, "no": False, "off": False}.get(value.strip().lower(), value)
        return units.read(name, value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value


def _decoded(name: str, text: str) -> Any:
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeEncodeError) as error:
        raise ConfigError(f'{_named(name, text)} is not JSON: {error}. Write it like {{"team": "shop"}}.') from None


def _explain(error: str, settings: Mapping[str, Any]) -> str:
    """Return msgspec's message, such as "Expected `int` >= 1 - at `$.batch_size`", with name and value first."""
    what, _, where = error.partition(" - at `$.")
    name = where.rstrip("`").partition("[")[0]
    if choices := _choices_of(name) if name in settings else ():
        what = f"choose one of {', '.join(choices)}"
    elif name in _switches():
        what = "write true or false (yes, no, on, off, 1 and 0 mean the same)"
    elif ", got `" in what and (forms := units.legal_forms(name)):
        what = forms
    return f"{_named(name, settings.get(name))}: {what[:1].lower()}{what[1:]}." if name else f"settings: {error}"


def _named(name: str, value: object) -> str:
    """Return a setting as an error message shows it: with its value, unless that may be a secret."""
    is_secret = name.partition("[")[0].partition(".")[0] in NOT_SHOWN or (name == "endpoint_url" and "@" in repr(value))
    text = repr(value)
    return name if is_secret else f"{name}={endpoint.shown(text) if name == 'endpoint_url' else text}"


@cache
def _switches() -> frozenset[str]:
    """Return the names of the settings that are on or off."""
    return frozenset(field.name for field in msgspec.structs.fields(SinkConfig) if field.type is bool)


@cache
def _none_by_default() -> frozenset[str]:
    """Return the names of such settings, but for that of a directory, whose name may have blanks in it."""
    return frozenset(each.name for each in msgspec.structs.fields(SinkConfig) if each.default is None) - {
        "spool_directory"
    }


@cache
def _choices_of(name: str) -> tuple[str, ...]:
    """Return the values of a setting that takes one of a few texts. Empty for any other setting."""
    hint = get_type_hints(SinkConfig)[name]
    for each in (hint, *get_args(hint)):
        if get_origin(each) is Literal:
            return get_args(each)
    return ()
