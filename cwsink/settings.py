"""The settings as type checkers see them, where they are keyword arguments: `SpoolHandler(log_group_name=...)`.

`cwsink.config.SinkConfig` holds what is given, checked, and says what each setting means. This only types the
arguments. So no program loads it. `None` means the default.
"""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:
    from typing import TypeAlias

# "5s", "500ms" or 5.0.
Duration: TypeAlias = float | str
# "256MiB", "10 MB" or 1048576.
Size: TypeAlias = int | str


class Settings(TypedDict, total=False):
    """Each setting of SinkConfig, none of them required."""

    log_group_name: str | None
    log_stream_name: str | None
    region: str | None
    endpoint_url: str | None
    create_log_group: bool | None
    create_log_stream: bool | None
    batch_size: int | None
    batch_timeout_seconds: Duration | None
    max_retries: int | None
    retry_base_delay: Duration | None
    circuit_breaker_enabled: bool | None
    circuit_breaker_threshold: int | None
    app_name: str | None
    max_batch_events: int | None
    max_event_bytes: Size | None
    spool_directory: str | PathLike[str] | None
    spool_max_bytes: Size | None
    segment_bytes: Size | None
    on_full: Literal["drop_oldest", "drop_newest", "block"] | None
    block_timeout_seconds: Duration | None
    durability: Literal["process", "host"] | None
    connect_timeout_seconds: Duration | None
    read_timeout_seconds: Duration | None
    drain_timeout_seconds: Duration | None
    flusher: Literal["process", "external"] | None
    pipeline: Literal["inline", "queue"] | None
    allow_unsafe_filesystem: bool | None
    adopt_orphans: bool | None
    oversize: Literal["drop", "truncate", "split"] | None
    compression: Literal["none", "gzip"] | None
    self_metrics: Literal["off", "emf"] | None
    keep_delivered: Duration | None
    keep_delivered_bytes: Size | None
    retention_days: int | None
    tags: dict[str, str] | None
    kms_key_id: str | None
    log_group_class: Literal["STANDARD", "INFREQUENT_ACCESS", "ESSENTIALS", "DELIVERY"] | None
    profile: str | None
    role_arn: str | None
    external_id: str | None
    entity: dict[str, Any] | None
    fields: Mapping[str, str | int | float | bool] | None
    trace: Literal["auto", "off"] | None
