"""What mypy has to say about calls of the public API. `scripts/check` runs it; no program does.

A line with `type: ignore` is a mistake that a type checker must find: mypy complains about an ignore without a mistake.
"""

from pathlib import Path

from cwsink import CloudWatchSpoolSink, SinkConfig, SpoolHandler, Writer, install, stats

SpoolHandler(log_group_name="/myapp/prod", batch_timeout_seconds="5s", spool_max_bytes="256MiB", tags={"team": "shop"})
SpoolHandler(SinkConfig(log_group_name="/myapp/prod"), "INFO")
SpoolHandler({"log_group_name": "/myapp/prod"}, spool_directory=Path("/var/spool"))
SpoolHandler(log_grup_name="/myapp/prod")  # type: ignore[call-arg]
SpoolHandler(batch_size="many")  # type: ignore[arg-type]
SpoolHandler(on_unusable="raise", log_group_name="/myapp/prod")
SpoolHandler(on_unusable="stdout")  # type: ignore[arg-type]
SpoolHandler(on_full="drop")  # type: ignore[arg-type]

Writer.open(log_group_name="/myapp/prod", on_full="block", read_timeout_seconds=2)
with Writer.open(log_group_name="/myapp/prod") as writer:
    writer.append("one event")
    writer.add("one event")  # type: ignore[union-attr]
Writer.open(log_grup_name="/myapp/prod")  # type: ignore[call-arg]

SinkConfig(log_group_name="/myapp/prod", drain_timeout_seconds="500ms", segment_bytes=None)
SinkConfig(log_grup_name="/myapp/prod")  # type: ignore[call-arg]
SinkConfig().batch_size = 5  # type: ignore[misc]

CloudWatchSpoolSink(log_group_name="/myapp/prod", pipeline="queue")
CloudWatchSpoolSink(pipeline="thread")  # type: ignore[arg-type]

install()
print(stats("/var/spool").spools[0].oldest_pending_seconds)
print(stats().spools[0].oldest)  # type: ignore[attr-defined]

install("/myapp/prod")  # type: ignore[call-arg]
