"""What mypy and pyright have to say about calls of the public API. `scripts/check` runs both; no program does.

A line with `type: ignore` is a mistake that both must find: each complains about an ignore without a mistake.
"""

from pathlib import Path

import cwsink
import cwsink.testing
from cwsink import CloudWatchSpoolSink, JsonFormatter, SinkConfig, SpoolHandler, Writer, install, stats
from cwsink.loguru import Sink
from cwsink.structlog import LoggerFactory

SpoolHandler(log_group_name="/myapp/prod", batch_timeout_seconds="5s", spool_max_bytes="256MiB", tags={"team": "shop"})
SpoolHandler(SinkConfig(log_group_name="/myapp/prod"), "INFO")
SpoolHandler({"log_group_name": "/myapp/prod"}, spool_directory=Path("/var/spool"))
SpoolHandler(log_grup_name="/myapp/prod")  # type: ignore[call-arg]
SpoolHandler(batch_size="many")  # type: ignore[arg-type]
SpoolHandler(on_unusable="raise", log_group_name="/myapp/prod")
SpoolHandler(on_unusable="stdout")  # type: ignore[arg-type]
LoggerFactory(on_unusable="raise", log_group_name="/myapp/prod")
Sink(on_unusable="stdout")  # type: ignore[arg-type]
SpoolHandler(on_full="drop")  # type: ignore[arg-type]

SpoolHandler(fields={"service": "shop", "env": "{env:STAGE}"})
SpoolHandler(fields={"shard": 7, "canary": True})
SpoolHandler(fields={"service": ["shop"]})  # type: ignore[dict-item]
SpoolHandler(fields="service=shop")  # type: ignore[arg-type]
texts: dict[str, str] = {"service": "shop"}
SpoolHandler(fields=texts)
JsonFormatter(texts)
JsonFormatter(trace="off")
SpoolHandler(trace="on")  # type: ignore[arg-type]
JsonFormatter(fields=["shop"])  # type: ignore[arg-type]

Writer.open(log_group_name="/myapp/prod", on_full="block", read_timeout_seconds=2)
with Writer.open(log_group_name="/myapp/prod") as writer:
    writer.append("one event")
    writer.add("one event")  # type: ignore[attr-defined]
opened: cwsink.Writer = cwsink.Writer.open(log_group_name="/myapp/prod")
with opened as entered:
    again: cwsink.Writer = entered
opened.append(5)  # type: ignore[arg-type]
Writer.open(log_grup_name="/myapp/prod")  # type: ignore[call-arg]

config: SinkConfig = SinkConfig(log_group_name="/myapp/prod", drain_timeout_seconds="500ms", segment_bytes=None)
SinkConfig(log_grup_name="/myapp/prod")  # type: ignore[call-arg]
SinkConfig(flusher="thread")  # type: ignore[arg-type]
SinkConfig().batch_size = 5  # type: ignore[misc]
print(SinkConfig().batch_sise)  # type: ignore[attr-defined]

CloudWatchSpoolSink(log_group_name="/myapp/prod", pipeline="queue")
CloudWatchSpoolSink(pipeline="thread")  # type: ignore[arg-type]
LoggerFactory(log_group_name="/myapp/prod")
LoggerFactory(log_grup_name="/myapp/prod")  # type: ignore[call-arg]
Sink(log_group_name="/myapp/prod", compression="gzip")
Sink(compression="zip")  # type: ignore[arg-type]

install()
print(stats("/var/spool").spools[0].oldest_pending_seconds)
print(stats().spools[0].oldest)  # type: ignore[attr-defined]

install("/myapp/prod")  # type: ignore[call-arg]

print(cwsink.__version__, cwsink.drain(), cwsink.testing.StrictCloudWatch().endpoint_url)
print(cwsink.SpolHandler)  # type: ignore[attr-defined]
print(cwsink.testing.StrictCloudWach)  # type: ignore[attr-defined]


def misspelt() -> None:
    from cwsink import SpolHandler  # type: ignore[attr-defined]
    from cwsink.testing import StrictCloudWach  # type: ignore[attr-defined]

    print(SpolHandler, StrictCloudWach)
