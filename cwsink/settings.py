"""The settings as type checkers see them, where they are keyword arguments: `SpoolHandler(log_group_name=...)`.

`cwsink.config.SinkConfig` holds what is given, checked. This types the arguments, and says what each one means. No
program loads it, so that no worker holds these texts in memory. `None` means the default.
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
    """Each setting of SinkConfig, none of them required. The manual's table of settings is made of these texts."""

    log_group_name: str | None
    """The log group. It must be given; only with fapilog it has a default, as fapilog's own sink has it."""
    log_stream_name: str | None
    """The stream. It may have placeholders, such as `{app}-{hostname}`."""
    region: str | None
    """The region. Without it AWS's own variables and files say which."""
    endpoint_url: str | None
    """Where CloudWatch is: for LocalStack, or a VPC endpoint. Without it AWS's variables or the region say where."""
    create_log_group: bool | None
    """The leader creates the group if it is missing."""
    create_log_stream: bool | None
    """The leader creates the stream if it is missing."""
    batch_size: int | None
    """This many pending events are sent at once. It is a trigger, and no cap."""
    batch_timeout_seconds: Duration | None
    """Pending events are sent when the oldest has waited this long, also if they are few."""
    max_retries: int | None
    """How many times a call is tried again in one round. No number of failures drops a record."""
    retry_base_delay: Duration | None
    """The first pause before a call is tried again. The pauses double."""
    circuit_breaker_enabled: bool | None
    """After some rounds of retries, make one try every 15 to 30 s."""
    circuit_breaker_threshold: int | None
    """After how many rounds that is."""
    app_name: str | None
    """`{app}` in the stream's name. Without it the program's name; `FAPILOG_CORE__APP_NAME` sets it, too."""
    max_batch_events: int | None
    """The most events in one call. The parts of one split record (`oversize`) may be more, up to AWS's 10,000."""
    max_event_bytes: Size | None
    """The longest event. Some of AWS's partitions still take 262118 only."""
    spool_directory: str | PathLike[str] | None
    """The root of the spools: an absolute path on a local disk. Without it cwsink looks for a usable one."""
    spool_max_bytes: Size | None
    """The disk space of the records that wait, within about one segment."""
    segment_bytes: Size | None
    """The size of one file of the spool, up to 16 MiB. Without it an eighth of `spool_max_bytes`, at most 8 MiB."""
    on_full: Literal["drop_oldest", "drop_newest", "block"] | None
    """What a full spool does: evict the oldest records, refuse the new one, or `block` until there is room (an async
    caller awaits).
    """
    block_timeout_seconds: Duration | None
    """The most that `block` waits. Then it refuses the record."""
    durability: Literal["process", "host"] | None
    """What a record survives when the call returns: the end of its `process`, or that of the `host`, too (fdatasync at
    most every 500 ms).
    """
    connect_timeout_seconds: Duration | None
    """The most that a connection may take."""
    read_timeout_seconds: Duration | None
    """The most that an answer may take. A whole call may take both together."""
    drain_timeout_seconds: Duration | None
    """The most that the last process to end waits for the delivery of what is pending."""
    flusher: Literal["process", "external"] | None
    """`process`: the first record starts a flusher. `external`: this process starts none; run `cwsink flush`."""
    pipeline: Literal["inline", "queue"] | None
    """`inline`: fapilog's pipeline runs in the thread that logs. `queue`: in fapilog's own thread, about 250 ms later.
    """
    allow_unsafe_filesystem: bool | None
    """Spool on NFS, FUSE and the like, too, where appends of several hosts are not safe."""
    adopt_orphans: bool | None
    """The leader also sends the spools of this root that nobody uses any more."""
    oversize: Literal["drop", "truncate", "split"] | None
    """A longer event becomes a dead letter (`drop`), is cut (`truncate`), or is sent in parts (`split`)."""
    compression: Literal["none", "gzip"] | None
    """`gzip` makes requests smaller, for a little CPU."""
    self_metrics: Literal["off", "emf"] | None
    """`emf`: the leader adds an event a minute, of which CloudWatch makes metrics."""
    keep_delivered: Duration | None
    """Delivered records stay on disk for so long, say `"24h"`, for `cwsink verify` and `cwsink tail --since`."""
    keep_delivered_bytes: Size | None
    """The most disk space for delivered records."""
    retention_days: int | None
    """How long a group that cwsink creates keeps its events. Without it for ever."""
    tags: dict[str, str] | None
    """The tags of a group that cwsink creates."""
    kms_key_id: str | None
    """The key that encrypts a group that cwsink creates."""
    log_group_class: Literal["STANDARD", "INFREQUENT_ACCESS", "ESSENTIALS", "DELIVERY"] | None
    """The class of a group that cwsink creates. Without it AWS's `STANDARD`."""
    profile: str | None
    """The profile of `~/.aws/config` to send with."""
    role_arn: str | None
    """The role to send with. It is renewed before it expires."""
    external_id: str | None
    """The external id to assume `role_arn` with."""
    entity: dict[str, Any] | None
    """What the logs are about, for CloudWatch's related telemetry: `{"keyAttributes": {...}, "attributes": {...}}`."""
    fields: Mapping[str, str | int | float | bool] | None
    """What each record has at its top, too: `{"service": "shop", "env": "{env:STAGE}"}`."""
    trace: Literal["auto", "off"] | None
    """`auto`: each record has the `trace_id` and `span_id` of the active span."""
