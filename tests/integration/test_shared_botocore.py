"""botocore belongs to the application, which wraps it, mocks it, and changes what it reads while we run.

Our calls are made by a process of its own, which loads botocore anew, without what the application has done to its
own. So all is delivered, and none of our calls is a span of the application's, or a call to its mock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.support import CHILD_SECONDS, finish

PROGRAM = """
import json, logging, os, sys
{before}
import cwsink
logging.getLogger().addHandler(
    cwsink.SpoolHandler(log_group_name="/test/group", log_stream_name="stream", batch_timeout_seconds=0.1)
)
logging.warning("first")
{meanwhile}
logging.warning("second")
from cwsink.frontends.presence import this
assert this.flush(60)
{after}
"""

XRAY = (
    "aws_xray_sdk",
    """
from aws_xray_sdk.core import patch_all, xray_recorder
import botocore.session
xray_recorder.configure(context_missing="RUNTIME_ERROR", sampling=False)
segment = xray_recorder.begin_segment("app")
patch_all()
""",
    "",
    "assert segment.subsegments == [], segment.subsegments",
)
OPEN_TELEMETRY = (
    "opentelemetry.instrumentation.botocore",
    """
import botocore.session
from opentelemetry import trace
from opentelemetry.instrumentation.botocore import BotocoreInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
BotocoreInstrumentor().instrument()
""",
    "",
    "assert exporter.get_finished_spans() == ()",
)
MOCK_AWS = (
    "moto",
    """
import warnings; warnings.simplefilter("ignore")
import moto, boto3
moto.mock_aws().start()
client = boto3.client("logs", endpoint_url="https://logs.us-east-1.amazonaws.com")
client.create_log_group(logGroupName="/test/group")
""",
    "",
    'assert client.describe_log_streams(logGroupName="/test/group")["logStreams"] == []',
)
RESPONSES = ("responses", "import responses\nresponses.start()", "", "assert len(responses.calls) == 0")
URLLIB3 = (
    "urllib3",
    """
import urllib3.connectionpool
calls = []
def refuse(*args, **kwargs):
    calls.append(args)
    raise RuntimeError("the application has patched urllib3")
urllib3.connectionpool.HTTPConnectionPool.urlopen = refuse
import http.client, socket
http.client.HTTPConnection.connect = refuse
""",
    "",
    "assert calls == []",
)
VARIABLES = (
    "botocore",
    "",
    """
os.environ.update(
    AWS_ACCESS_KEY_ID="another", AWS_SECRET_ACCESS_KEY="key", AWS_REGION="eu-west-1", AWS_PROFILE="none",
    AWS_ENDPOINT_URL="http://127.0.0.1:9", HTTP_PROXY="http://127.0.0.1:9", http_proxy="http://127.0.0.1:9",
)
""",
    "",
)
SHARED = {
    "X-Ray": XRAY,
    "OpenTelemetry": OPEN_TELEMETRY,
    "moto": MOCK_AWS,
    "responses": RESPONSES,
    "urllib3": URLLIB3,
    "AWS_*": VARIABLES,
}


@pytest.mark.parametrize(("needs", "before", "meanwhile", "after"), SHARED.values(), ids=SHARED)
def test_what_the_application_does_to_botocore_is_its_own(
    server: StrictCloudWatch, spawn: Spawn, needs: str, before: str, meanwhile: str, after: str
) -> None:
    """Both records are delivered, and the application sees none of our calls."""
    pytest.importorskip(needs)
    finish(spawn(PROGRAM.format(before=before, meanwhile=meanwhile, after=after), env=server.environment()))
    assert [json.loads(each)["message"] for each in server.messages()] == ["first", "second"]


def test_what_is_loaded_into_each_python_is_not_loaded_into_ours(
    server: StrictCloudWatch, spawn: Spawn, tmp_path: Path
) -> None:
    """`opentelemetry-instrument` and `ddtrace-run` put a `sitecustomize` into PYTHONPATH: the flusher has none."""
    (tmp_path / "agent").mkdir()
    (tmp_path / "agent" / "sitecustomize.py").write_text(
        f"import os, sys\nopen({str(tmp_path / 'loaded')!r}, 'a').write(f'{{sys.orig_argv}}\\n')\n"
    )
    (tmp_path / "app.py").write_text(PROGRAM.format(before="", meanwhile="", after=""))
    path = [str(tmp_path / "agent"), *filter(None, sys.path)]
    subprocess.run(
        [sys.executable, str(tmp_path / "app.py")],
        env={**os.environ, **server.environment(), "PYTHONPATH": os.pathsep.join(path)},
        check=True,
        timeout=CHILD_SECONDS,
    )
    assert len(server.messages()) == 2
    (loaded,) = (tmp_path / "loaded").read_text().splitlines()
    assert "app.py" in loaded
