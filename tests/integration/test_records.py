"""cwsink/manual/records.md is true: each block is pasted and run with the real library, and what arrives is compared.

One process runs all blocks. Between two of them it spools a line with the heading of the next one.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

import cwsink
from cwsink.flusher.collector import notice
from cwsink.spool import survey
from cwsink.spool.directory import find_spools, open_existing
from cwsink.spool.record import Loss
from tests.harness.support import CHILD_SECONDS

PAGE: Final = Path(cwsink.__file__).parent / "manual" / "records.md"
BLOCK: Final = re.compile(r"^## (?P<heading>.+)$|^```(?P<language>\w+)\n(?P<text>(?s:.*?))^```$", re.MULTILINE)

# What a block is followed by, so that it logs.
THEN: Final = {
    "OpenTelemetry": "LoggingInstrumentor().uninstrument()",
    "FastAPI": """
@app.get("/boom")
async def boom():
    1 // 0

config.app = app
serve(config, "/orders/17", "/boom")
for name in ("uvicorn", "uvicorn.access"):  # as if uvicorn had not been here
    logging.getLogger(name).propagate = True
    logging.getLogger(name).handlers.clear()
""",
    "Flask": "assert app.test_client().get('/orders/17').data == b'placed'",
    "Django": """
import django, logging
from django.conf import settings
settings.configure(LOGGING=LOGGING)
django.setup()
logging.getLogger("shop").info("order placed", extra={"order": 17})
""",
    "Celery": """
import sys
from celery import signals
from celery.exceptions import WorkerShutdown
app.conf.update(broker_url="memory://", broker_connection_retry_on_startup=False)
app.tasks.register(place)

@signals.worker_ready.connect
def ready(**_):
    place.delay(17)

@signals.task_postrun.connect
def done(**_):
    raise WorkerShutdown(0)

app.Worker(pool="solo", loglevel="INFO", hostname="w@h", quiet=True, without_mingle=True, without_gossip=True).start()
""",
    "What nobody catches": """
import threading
thread = threading.Thread(target=lambda: 1 // 0, name="worker-1")
thread.start()
thread.join()
""",
}
# Access lines have no block in Python.
GUNICORN: Final = """
import datetime, logging, cwsink
from gunicorn.config import Config
from gunicorn.glogging import Logger
class Response:
    status, sent, headers = "200 OK", 7, []
config = Config()
config.set("accesslog", "-")
logger = Logger(config)
logger.access_log.handlers = [cwsink.SpoolHandler(log_group_name="/myapp/prod")]
environ = {"REQUEST_METHOD": "GET", "RAW_URI": "/orders/17?x=1", "SERVER_PROTOCOL": "HTTP/1.1",
           "PATH_INFO": "/orders/17", "QUERY_STRING": "x=1", "REMOTE_ADDR": "10.0.0.7"}
logger.access(Response, Response, environ, datetime.timedelta(milliseconds=12.5))
"""
SERVE: Final = """
import asyncio, http.client, uvicorn
def ask(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port)
    connection.request("GET", path)
    connection.getresponse().read()
    connection.close()
def serve(config, *paths):
    async def run():
        server = uvicorn.Server(config)
        task = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        for path in paths:
            await asyncio.to_thread(ask, server.servers[0].sockets[0].getsockname()[1], path)
        server.should_exit = True
        await task
    asyncio.run(run())
"""
UVICORN: Final = """
import json
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"placed"})
serve(uvicorn.Config(app, port=0, lifespan="off", log_config=LOG_CONFIG), "/orders/17?x=1")
"""
# What a block is preceded by: uvicorn's command sets up its logging before it loads the application.
BEFORE: Final = {"FastAPI": f'{SERVE}\nconfig = uvicorn.Config("shop:app", port=0)'}


def blocks() -> Iterator[tuple[str, str, str]]:
    """Yield (heading, language, text) of each fenced block of the page."""
    heading = ""
    for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        if match["heading"]:
            heading = match["heading"]
        else:
            yield heading, match["language"], match["text"]


def sections() -> Iterator[tuple[str, str]]:
    """Yield what is run under each heading."""
    for heading, language, text in blocks():
        if language == "python":
            yield heading, f"{BEFORE.get(heading, '')}\n{text}\n{THEN.get(heading, '')}"
            if heading == "OpenTelemetry":  # the handler is there before the instrumentation
                lines = text.splitlines()
                instrument = next(line for line in lines if line.startswith("LoggingInstrumentor"))
                lines.remove(instrument)
                lines.insert(next(n for n, line in enumerate(lines) if "basicConfig" in line) + 1, instrument)
                yield "OpenTelemetry, the other way round", "\n".join(lines) + "\n" + THEN[heading]
        elif heading == "Access lines" and language == "json" and "handlers" in text:
            yield "gunicorn", GUNICORN
            yield "uvicorn", SERVE + UVICORN.replace("LOG_CONFIG", f"json.loads({text!r})")


RUN: Final = """
import contextlib, logging, sys, traceback, warnings
import cwsink, cwsink.frontends.endings
warnings.simplefilter("ignore")
cwsink.frontends.endings.drain.__defaults__ = (0.0,)  # nobody sends here, so there is nothing to wait for
marks = cwsink.Writer.open(log_group_name="/myapp/prod")
for heading, code in SECTIONS:
    assert marks.append(f"## {heading}")
    exec(compile(code, heading, "exec"), {"__name__": "shop"})
    for handler in list(logging.root.handlers):
        logging.root.removeHandler(handler)
        handler.close()
    logging.root.setLevel("WARNING")
"""


@pytest.fixture(scope="module")
def arrived(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """The records of each block, by its heading."""
    directory = tmp_path_factory.mktemp("records")
    env = {name: value for name, value in os.environ.items() if not name.startswith(("CWSINK_", "FAPILOG_"))}
    env |= {"CWSINK_SPOOL_DIRECTORY": str(directory / "spools"), "CWSINK_FLUSHER": "external"}
    env |= {"PYTHONPATH": os.pathsep.join(sys.path), "AWS_REGION": "us-east-1", "PYTHONWARNINGS": "ignore"}
    in_turn = sorted(sections(), key=lambda section: section[0] == "Celery")  # it changes loggers and stderr for ever
    done = subprocess.run(
        [sys.executable, "-c", f"SECTIONS = {in_turn!r}\n{RUN}"],
        env=env,
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    (path,) = find_spools(str(directory / "spools"))
    found: dict[str, list[dict[str, Any]]] = {}
    for event in survey.events(open_existing(path)):
        if event.message.startswith("## "):
            found[event.message.removeprefix("## ")] = records = []
        else:
            records.append(json.loads(event.message))
    loss = notice(Loss(12, 1769860800000, 1769860809000, "spool_full", 0))
    return {**found, "Records that are missing": [json.loads(loss.message)]}


def samples() -> Iterator[Any]:
    """The events on the page, as parameters of a test."""
    for heading, language, text in blocks():
        if language == "json" and "handlers" not in (event := json.loads(text)):
            where = event["logger"].partition(".")[0] if heading == "Access lines" else heading
            yield pytest.param(where, event, id=where)


def shape(value: Any) -> Any:
    """What a value is made of: the keys of objects, and the kinds of all else."""
    if isinstance(value, dict):
        return {name: shape(each) for name, each in value.items()}
    return float if isinstance(value, (int, float)) and not isinstance(value, bool) else type(value)


def paths(value: Any, prefix: str = "") -> Iterator[str]:
    """The names that Logs Insights gives to all that is in a record."""
    for name, each in value.items():
        yield f"{prefix}{name}"
        if isinstance(each, dict):
            yield from paths(each, f"{prefix}{name}.")


@pytest.mark.parametrize(("where", "event"), [*samples()])
def test_the_event_beside_each_block_is_what_arrives(
    arrived: dict[str, list[dict[str, Any]]], where: str, event: dict[str, Any]
) -> None:
    """The same fields in the same order, at every depth; level, logger, and what the application gave are the same."""
    alike = [each for each in arrived[where] if each["logger"] == event["logger"]]
    if where not in ("gunicorn", "uvicorn"):  # their messages hold the time or a port
        alike = [each for each in alike if each["message"] == event["message"]]
    assert len(alike) == 1, arrived[where]
    alike[0].get("diagnostics", {}).pop("task", None)  # since Python 3.12, of what is logged in asyncio
    assert json.dumps(shape(alike[0]), default=str) == json.dumps(shape(event), default=str)
    assert alike[0]["level"] == event["level"]
    for name in ("order", "customer"):
        assert alike[0].get("data", {}).get(name) == event.get("data", {}).get(name)


def test_every_block_has_its_event(arrived: dict[str, list[dict[str, Any]]]) -> None:
    """No front end is shown without what arrives of it."""
    shown = {parameter.id for parameter in samples()}
    assert arrived.keys() - {"OpenTelemetry, the other way round"} == shown


def test_the_ids_of_a_span_arrive_in_both_orders(arrived: dict[str, list[dict[str, Any]]]) -> None:
    """OpenTelemetry's logging instrumentation before the handler, and after it."""
    (before,), (after,) = arrived["OpenTelemetry"], arrived["OpenTelemetry, the other way round"]
    assert shape(before) == shape(after)
    assert (before["trace_id"], before["span_id"]) == (before["data"]["otelTraceID"], before["data"]["otelSpanID"])


def test_what_a_request_raises_arrives_once(arrived: dict[str, list[dict[str, Any]]]) -> None:
    """FastAPI's block is served by uvicorn as its command does: by default that keeps its own records to itself."""
    (failed,) = [each for each in arrived["FastAPI"] if "ZeroDivisionError" in json.dumps(each)]
    assert (failed["level"], failed["logger"]) == ("ERROR", "uvicorn.error")
    assert failed["diagnostics"]["exception"]["error.type"] == "ZeroDivisionError"


def test_every_field_of_the_queries_is_one_of_a_record(arrived: dict[str, list[dict[str, Any]]]) -> None:
    """Five queries, and each field in them is in a record as it arrives, under this name."""
    known = {path for records in arrived.values() for record in records for path in paths(record)}
    queries = [text for _, language, text in blocks() if language == "text"]
    assert len(queries) == 5
    words = "filter fields stats sort limit by in or and as desc asc count sum pct bin ispresent".split()
    for query in queries:
        plain = re.sub(r'"[^"]*"', "", query)
        own = set(re.findall(r"\bas (\w+)", plain))
        named = set(re.findall(r"(?<![\w.@])[a-z_][\w.]*", plain)) - own - set(words)
        assert named, query
        assert named <= known, named - known


def test_the_metric_filter_finds_the_notice(arrived: dict[str, list[dict[str, Any]]]) -> None:
    """What it compares and sums up is a number of a notice, and of nothing else."""
    (notice_of_loss,) = arrived["Records that are missing"]
    assert "`{ $._cwsink.lost > 0 }`" in PAGE.read_text()
    assert notice_of_loss["_cwsink"]["lost"] == 12
    assert not [
        each for records in arrived.values() for each in records if "_cwsink" in each and each != notice_of_loss
    ]


def test_the_table_names_each_field(arrived: dict[str, list[dict[str, Any]]]) -> None:
    """All that stands at the top of a record is in the table, but for what is fapilog's own."""
    table = re.findall(r"(?:^\|.*\n)+", PAGE.read_text(), re.MULTILINE)[0]
    top = {name for records in arrived.values() for record in records for name in record}
    assert top - set(re.findall(r"`(\w+)`", table)) == {"service", "env", "context", "_cwsink"}
