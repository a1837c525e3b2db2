"""README.md and the manual are true: blocks are run, commands and settings exist, messages are those the code says.

What a block shows is run as it stands, against the strict server; only ports and the word PATH are
replaced. A block or a command of a kind that is not known here fails, so that none is added unrun.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

import botocore.session
import fapilog
import msgspec
import pytest
from fapilog.core.settings import CoreSettings

from cwsink import target
from cwsink.config import SinkConfig, load_config
from cwsink.errors import ConfigError, CwsinkError
from cwsink.frontends.fapilog_sink import CloudWatchSpoolSink
from cwsink.frontends.writer import Writer
from cwsink.spool import directory, root
from cwsink.spool.directory import find_spools, open_existing
from cwsink.spool.ring import Append
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness import settings_table
from tests.harness.messages import reported
from tests.harness.pages import DEPLOYING, MANUAL, PAGES, README, ROOT, TOPICS, Block, anchors, blocks, code_in, rows
from tests.harness.support import CHILD_SECONDS, quick_config
from tests.integration import test_installation

CI: Final = (ROOT / ".ci" / "run").read_text(encoding="utf-8")

SERVER_PORT: Final = 8800  # where the README has its CloudWatch
UVICORN_PORT: Final = 8000

# Other tests run the blocks of these pages: records has test_records.py, doctor test_doctor.py, watching's commands
# test_watching.py.
RUN_ELSEWHERE: Final = ("records", "doctor")
RUN_ELSEWHERE_CONSOLE: Final = ("watching",)

# Pictures: blocks that are no code. By their first line.
PICTURES: Final = ("  worker 1      worker 2", "appended = delivered", "/myapp/prod → web-1: 1,204,312 events found")

NOT_RUN: Final = {
    "docker compose": "there is no Docker where the tests run; the file it names is looked at",
}

APPEND_ONE_RECORD: Final = "import cwsink; cwsink.Writer.open(log_group_name='/myapp/prod').append('a line of text')\n"
PROGRAM: Final = """\
import cwsink, fapilog
cwsink.install()
logger = fapilog.get_logger(settings=fapilog.Settings())
logger.info('order placed')
"""
# What a worker leaves that was told to only append.
LEFT_BEHIND: Final = """\
import cwsink, time
writer = cwsink.Writer.open(log_group_name="/myapp/prod", flusher="external")
for number in range(2):
    writer.append('{"level": "WARNING", "message": "seed %d"}' % number)
writer.append("seed of old", int(time.time() - 15 * 86_400) * 1000)
"""


def blocks_in(language: str) -> list[object]:
    """Return the blocks of a language that are run here, as parameters of a test."""
    elsewhere = (*DEPLOYING, *RUN_ELSEWHERE, *(RUN_ELSEWHERE_CONSOLE if language == "console" else ()))
    names = [name for name in PAGES if name not in elsewhere]
    return [pytest.param(block, id=str(block)) for block in blocks(*names) if block.language == language]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + CHILD_SECONDS
    while not condition():
        assert time.monotonic() < until, "it did not come to pass"
        time.sleep(0.05)


def get(url: str) -> str:
    """Return what an HTTP server answers; "" while there is none."""
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=CHILD_SECONDS) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


# The pages as a whole.


def test_the_first_screen_says_what_it_is_and_shows_it() -> None:
    """One sentence, the problem in three, a picture, two commands, an installation, two ways to log, in this order."""
    assert len(README.splitlines()) <= 250
    title, sentence, problem, picture, _, commands, *_ = README.split("\n\n")
    assert title == "# cwsink"
    assert sentence.count(".") == 1
    assert len(re.findall(r"[.]\s", f"{problem}\n")) == 3
    assert picture.startswith("![")
    first, second, third, event, fourth, *_ = blocks("README")
    assert first.text in commands
    assert [line.split()[1] for line in first.text.splitlines()] == ["scripts/demo", "scripts/test"]
    assert second.text.startswith("$ pip install")
    assert ("SpoolHandler" in third.text, event.language, "cwsink.install()" in fourth.text) == (True, "json", True)
    assert fourth.line < 75


def test_each_page_is_in_the_index_once() -> None:
    """And begins with its title."""
    assert sorted(TOPICS) == sorted(path.stem for path in MANUAL.glob("*.md") if path.stem != "index")
    assert all(text.startswith("# ") for text in PAGES.values())


def test_every_block_is_of_a_kind_that_is_run() -> None:
    """A block in another language would be run by no test."""
    for block in blocks(*(name for name in PAGES if name not in RUN_ELSEWHERE)):
        if block.language == "text":
            assert block.text.startswith(PICTURES), f"{block}: an unknown picture"
        else:
            others = ("dockerfile", "ini", "json", "yaml") if block.page in DEPLOYING else ("json",)
            assert block.language in ("python", "console", *others), f"{block}: {block.language!r}"


def test_the_events_of_the_first_screens_are_those_of_the_manual() -> None:
    """Another test holds those of the manual against what arrives."""
    shown = [msgspec.json.decode(block.text) for block in blocks("README") if block.language == "json"]
    known = [msgspec.json.decode(block.text) for block in blocks("records") if block.language == "json"]
    assert len(shown) == 2
    for event in shown:
        assert any(shapes_of(event) == shapes_of(each) for each in known)


def shapes_of(value: object) -> object:
    """Return a JSON value with types in the place of its texts and numbers."""
    if isinstance(value, dict):
        return {key: shapes_of(each) for key, each in value.items()}
    return type(value)


LINKS: Final = sorted({(page, link) for page in PAGES for link in re.findall(r"\]\(([^)]+)\)", PAGES[page])})


@pytest.mark.parametrize(("page", "link"), LINKS)
def test_every_link_leads_somewhere(page: str, link: str) -> None:
    """To a file, to a heading, or another site. No link leaves the package: a wheel has nothing else."""
    if link.startswith("https://"):
        return
    path, _, anchor = link.partition("#")
    here = ROOT if page == "README" else MANUAL
    there = (here / path).resolve() if path else (here / f"{page}.md")
    assert there.is_file()
    assert not path or there.is_relative_to(MANUAL.parent)
    if anchor:
        assert anchor in anchors(there.stem)


RECIPES: Final = sorted(path for path in (MANUAL / "recipes").iterdir() if path.is_file())


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.name)
def test_each_recipe_is_a_block_of_its_page(recipe: Path) -> None:
    """As a file it can be copied and linted, and as a block it is run."""
    assert recipe.read_text(encoding="utf-8") in [block.text for block in blocks(*DEPLOYING)]


def test_the_table_of_settings_is_made_of_their_documentation() -> None:
    """Of what cwsink/settings.py says of each. If not: `python -m tests.harness.settings_table` writes it."""
    assert settings_table.table() in PAGES["settings"]


def test_the_builtin_sinks_settings_come_first() -> None:
    """ "The first twelve in sink_config.cloudwatch as well": those of the built-in sink."""
    named = [name for row in rows(PAGES["settings"]) for name in code_in(row[0])]
    assert set(named[:12]) == set(SinkConfig.__struct_fields__[:12])
    assert "the first twelve" in PAGES["settings"]


def test_the_defaults_in_the_readme_are_the_defaults() -> None:
    """Where its table gives a value; some are told in words."""
    defaults = SinkConfig()
    checked = 0
    for names, values, _ in rows(README.rpartition("\n## Settings\n")[2].partition("\n## ")[0]):
        given = values.split(", ")
        for name, value in zip(code_in(names), given * (2 if len(given) == 1 else 1), strict=False):
            if re.fullmatch(r"`[^/]*`|[\d.]+|\d+ MiB", value):
                value = value.strip("`").replace(" ", "")
                assert getattr(SinkConfig(**{name: value}), name) == getattr(defaults, name), name
                checked += 1
    assert checked >= 5


def test_the_table_of_servers_has_as_many_cells_as_its_page_says() -> None:
    """Tried, not tried, and what a server does not do."""
    cells = [cell for row in rows(PAGES["losses"].partition("\n## Servers tried\n")[2]) for cell in row[1:]]
    not_tried, does_not = cells.count("not tried"), cells.count("does not")
    said = " ".join(PAGES["losses"].split())
    assert f"Of the table's {len(cells)} cells {len(cells) - not_tried - does_not} were tried, " in said
    assert f" {not_tried} were *not tried*, and {does_not} are of what a server *does not* do" in said


def test_every_placeholder_is_told() -> None:
    """As the error message of a wrong one lists them."""
    with pytest.raises(ConfigError, match="is not known") as wrong:
        target.resolve(SinkConfig(log_stream_name="{wrong}"), {}, lambda name: None)
    known = str(wrong.value).rpartition("Known: ")[2].rstrip(".").split(", ")
    assert set(known) <= set(code_in(PAGES["settings"]))


VARIABLES: Final = sorted(
    {each for text in PAGES.values() for each in re.findall(r"FAPILOG_[A-Z_]+__[A-Z_]+[A-Z]", text)}
)


@pytest.mark.parametrize("variable", VARIABLES)
def test_every_variable_is_one(variable: str) -> None:
    """fapilog ignores those it does not know, in silence."""
    _, group, name = re.split(r"FAPILOG_|__", variable)
    known = set(CoreSettings.model_fields) if group == "CORE" else set(SinkConfig.__struct_fields__)
    assert name.lower() in known


@cache
def help_of(command: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "cwsink", command, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=CHILD_SECONDS,
    ).stdout


def commands() -> set[str]:
    """Return the command lines of cwsink's on the page, without comments and what stands before "cwsink"."""
    lines = [line for block in blocks() if block.language == "console" for line in block.text.splitlines()]
    words = [code for text in PAGES.values() for code in code_in(text)]
    found = (re.match(r"(?:\$ )?(?:\w+=\S+ )*cwsink ([a-z][^#]*)", text) for text in (*lines, *words))
    return {match[1].strip() for match in found if match}


@pytest.mark.parametrize("command", sorted(commands()))
def test_every_command_and_option_exists(command: str) -> None:
    """`--help` of the command mentions each option the page uses with it."""
    name, *words = re.split(r" --(?: |$)", command)[0].split()  # what follows is another program's
    for option in (word for word in words if word.startswith("-")):
        assert re.search(rf"(?<![\w-]){option}(?![\w-])", help_of(name)), option
    assert help_of(name)


def test_the_ledger_of_the_status_has_the_terms_of_the_equation(server: StrictCloudWatch, tmp_path: Path) -> None:
    """`cwsink status --json` has each word of it, and the numbers add up."""
    (equation,) = (block.text for block in blocks() if block.text.startswith(PICTURES[1]))
    session = Session(server, tmp_path)
    session.seed()
    (spool,) = json.loads(session.check_output(["cwsink", "status", "--json", session.path]))["spools"]
    assert set(re.findall(r"[a-z_]{7,}", equation.replace("never appended, counted by reason", ""))) <= spool.keys()
    others = spool["delivered"] + sum(spool["dead_lettered"].values()) + spool["evicted"] + spool["pending"]
    assert spool["appended"] == others == 3


# Its blocks.


class Session:
    """A shell session: what a console block does, one command after the other."""

    def __init__(self, server: StrictCloudWatch, tmp_path: Path) -> None:
        self.server = server
        self.cwd = tmp_path
        self.path = str(tmp_path / "spools")  # what the page calls PATH
        self.ports = {SERVER_PORT: int(server.endpoint_url.rpartition(":")[2]), UVICORN_PORT: free_port()}
        self.has_replayed = False
        self._background: list[subprocess.Popen[str]] = []
        bin_directory = tmp_path / "bin"
        bin_directory.mkdir()
        (bin_directory / "cwsink").write_text(f'#!/bin/sh\nexec {sys.executable} -m cwsink "$@"\n')
        (bin_directory / "cwsink").chmod(0o700)
        self.env = {
            **os.environ,
            **server.environment(),
            "PATH": f"{bin_directory}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "UVICORN_PORT": str(self.ports[UVICORN_PORT]),
            "NO_PROXY": "*",
        }

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._background:
            if child.poll() is None:
                child.terminate()
        for child in self._background:
            guard = threading.Timer(CHILD_SECONDS, os.killpg, (child.pid, signal.SIGKILL))
            guard.start()
            child.wait()
            guard.cancel()

    def seed(self) -> None:
        """Leave what a dead worker leaves: two records to deliver, and one that is too old for it."""
        self.check_output([sys.executable, "-c", LEFT_BEHIND])

    def check_output(self, words: list[str], **env: str) -> str:
        """Run a command to its end; it must succeed. Returns its stdout."""
        done = subprocess.run(
            words, cwd=self.cwd, env={**self.env, **env}, capture_output=True, text=True, timeout=CHILD_SECONDS
        )
        assert done.returncode == 0, f"{words}: exit code {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def start(self, words: list[str]) -> subprocess.Popen[str]:
        """Start a command that does not end by itself; its output goes to a file named `<program>.out`."""
        with open(self.cwd / f"{words[0]}.out", "w", encoding="utf-8") as output:
            child = subprocess.Popen(
                words,
                cwd=self.cwd,
                env={**self.env, "PYTHONUNBUFFERED": "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        self._background.append(child)
        return child

    def output_of(self, program: str) -> str:
        return (self.cwd / f"{program}.out").read_text(encoding="utf-8")

    def run(self, line: str) -> None:
        """Run one line as it stands on the page."""
        for shown, port in self.ports.items():
            line = line.replace(f"127.0.0.1:{shown}", f"127.0.0.1:{port}")
        words = [self.path if word == "PATH" else word for word in shlex.split(line, comments=True)]
        if reason := next((NOT_RUN[known] for known in NOT_RUN if known in " ".join(words)), ""):
            self.look_at_files(words, reason)
            return
        if words[0] not in self.PROGRAMS:
            pytest.fail(f"no test knows how to run {line!r}")
        self.PROGRAMS[words[0]](self, words)

    def look_at_files(self, words: list[str], reason: str) -> None:
        for path in (ROOT / word for word in words if "/" in word):
            assert path.is_file(), reason
            assert all(word.split("=")[0] in path.read_text() for word in words if "=" in word), reason

    def export(self, words: list[str]) -> None:
        self.env.update(word.split("=", 1) for word in words[1:])  # type: ignore[arg-type]  # a pair each, or it raises

    def script(self, words: list[str]) -> None:
        """CI runs them from a clean clone, in environments they make themselves."""
        assert os.access(ROOT / words[0], os.X_OK)
        if words[0] == "scripts/localstack":
            assert words[1] in self.check_output([str(ROOT / words[0]), "--help"])
            assert "scripts/test --localstack" in CI
        else:
            assert words[0] in CI

    def pip(self, words: list[str]) -> None:
        """test_installation.py runs them, in environments of their own."""
        assert " ".join(words) in test_installation.lines()

    def cwsink(self, words: list[str]) -> None:
        if "-f" in words:
            child = self.start(words)
            wait_until(lambda: "seed 1" in self.output_of("cwsink"))
            child.send_signal(signal.SIGINT)
            child.wait(CHILD_SECONDS)
        elif words[1] == "verify":  # with a history: test_verify.py
            done = subprocess.run(
                words, cwd=self.cwd, env=self.env, capture_output=True, text=True, timeout=CHILD_SECONDS
            )
            assert (done.returncode, "has no history" in done.stderr) == (1, True)
        elif words[1] == "run":  # with a server: test_deploying.py, test_run.py
            self.check_output([*words[: words.index("--") + 1], "true"])
        elif words[1] == "flush" and "--once" not in words:
            child = self.start(words)
            wait_until(lambda: "standing for election" in self.output_of("cwsink"))
            child.terminate()
            assert child.wait(CHILD_SECONDS) == 0
        else:
            output = self.check_output(words)
            if words[1] == "flush":
                sent = self.server.messages("/myapp/prod")
                assert sum('"seed ' in message for message in sent) == 2
                assert any("seed of old" in message for message in sent) == self.has_replayed
            elif words[1] == "tail":
                assert "seed" in output
            elif words[1] == "alarms":
                assert "AWS::CloudWatch::Alarm" in output
            elif words[1] == "manual":
                assert output == PAGES[words[2] if len(words) > 2 else "index"]
            elif words[1] == "replay" and "--dead-letters" not in words:
                said = ("would send 3 records", "settled 3 records", "nothing was pending", "No orphans")
                assert any(each in output for each in said), output
            elif words[1] == "replay":
                self.has_replayed = "--dry-run" not in words
                assert "replay" in output
            else:
                assert ("OK: 1 spool" if words[1] == "check" else "/myapp/prod") in output

    def python(self, words: list[str]) -> None:
        """`python -m cwsink.testing`: a server of its own, at another port than ours."""
        assert words[1:3] == ["-m", "cwsink.testing"], words
        self.serve(words, "/_cwsink/summary")

    def moto_server(self, words: list[str]) -> None:
        self.serve(words, "/moto-api/")

    def serve(self, words: list[str], path: str) -> None:
        port = free_port()
        child = self.start([str(port) if word == str(SERVER_PORT) else word for word in words])
        wait_until(lambda: child.poll() is not None or get(f"http://127.0.0.1:{port}{path}"))
        assert child.poll() is None, self.output_of(words[0])
        child.terminate()
        child.wait(CHILD_SECONDS)

    def uvicorn(self, words: list[str]) -> None:
        (source,) = (block.text for block in blocks() if block.file_name == "main.py")
        (self.cwd / "main.py").write_text(source)
        self.start(words)
        # Not a request that logs: how many records there are is counted below.
        wait_until(lambda: "Application startup complete" in self.output_of("uvicorn"))

    def curl(self, words: list[str]) -> None:
        url = words[1]
        if "_cwsink" in url:  # what was logged gets there within batch_timeout_seconds
            wait_until(lambda: "orders" in get(url))
        else:
            wait_until(lambda: get(url))

    PROGRAMS: Final[dict[str, Callable[[Session, list[str]], None]]] = {
        "export": export,
        "pip": pip,
        "scripts/demo": script,
        "scripts/test": script,
        "scripts/localstack": script,
        "cwsink": cwsink,
        "python": python,
        "moto_server": moto_server,
        "uvicorn": uvicorn,
        "curl": curl,
    }


@pytest.fixture
def session(server: StrictCloudWatch, tmp_path: Path) -> Iterator[Session]:
    """A session with the strict server as its CloudWatch; what it started is ended."""
    with Session(server, tmp_path) as session:
        yield session


@pytest.mark.parametrize("block", blocks_in("console"))
def test_console(block: Block, session: Session) -> None:
    """Every command line works; after a block of exports alone a program logs by them."""
    lines = block.text.splitlines()
    assert all(line.startswith("$ ") for line in lines)
    if "cwsink " in block.text:
        session.seed()
    if "--dead-letters" in block.text:
        session.check_output(["cwsink", "flush", "--once"])
    for line in lines:
        session.run(line.removeprefix("$ "))
    if all(line.startswith("$ export ") for line in lines):
        session.env.setdefault("FAPILOG_CORE__SINKS", '["cloudwatch"]')
        assert session.check_output([sys.executable, "-c", PROGRAM]) == ""
        (message,) = session.server.messages(session.env.get("FAPILOG_CLOUDWATCH__LOG_GROUP_NAME", "/fapilog/default"))
        assert json.loads(message)["message"] == "order placed"


@pytest.mark.parametrize("block", blocks_in("python"))
def test_python(block: Block, session: Session) -> None:
    """Every example does what it is there for."""
    if block.file_name == "main.py":
        assert "uvicorn main:app" in PAGES["testing"], "test_console runs it"
    elif block.file_name:
        (session.cwd / block.file_name).write_text(block.text)
        pytest_plugins = importlib.metadata.entry_points(group="pytest11")
        plugin = () if "cwsink" in pytest_plugins.names else ("-p", "cwsink.testing.pytest_plugin")
        words = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *plugin, "--rootdir", ".", block.file_name]
        assert "1 passed" in session.check_output(words)
    else:
        is_a_look = "cwsink.stats()" in block.text
        script = f"{APPEND_ONE_RECORD * is_a_look}{block.text}"
        shown = session.check_output([sys.executable, "-c", script])
        assert len(shown.split()) == 5 * is_a_look  # the stream's name, its state, and three numbers
        (event,) = session.server.events("/myapp/prod")
        assert ("order placed" if "order placed" in block.text else "a line of text") in event.message


def test_uvicorn_keeps_every_record_when_it_is_told_to_end(session: Session) -> None:
    """Local testing: 100 requests, SIGTERM at once, and all of them are delivered."""
    for block in (block for block in blocks() if "uvicorn" in block.text and block.heading == "Local testing"):
        for line in block.text.splitlines():
            if "curl" not in line:
                session.run(line.removeprefix("$ "))
    for number in range(100):
        assert get(f"http://127.0.0.1:{session.ports[UVICORN_PORT]}/{number}") == "hello\n"
    session.__exit__()
    (path,) = find_spools(session.path)
    books = survey(open_existing(path))
    assert (books.appended, books.delivered) == (100, 100)


def test_size_guard_leaves_nothing_but_a_note(session: Session) -> None:
    """Behaviour, long events: with `serialize_in_flush`; without it fapilog does not run it at all."""
    session.env.update(FAPILOG_CORE__SINKS='["cloudwatch"]', FAPILOG_CORE__PROCESSORS='["size_guard"]')
    for in_flush in ("true", "false"):
        session.env["FAPILOG_CORE__SERIALIZE_IN_FLUSH"] = in_flush
        session.check_output([sys.executable, "-c", PROGRAM.replace("'order placed'", "'x' * 300_000")])
    cut, whole = session.server.messages()
    assert "_truncated" in cut
    assert len(cut) < 200
    assert len(whole) > 300_000


# Its permissions.

# AWS checks it as a part of CreateLogGroup with tags ("tags": "you must have either the logs:TagResource or ...").
CHECKED_BY_CREATE: Final = {"TagResource"}


def statements() -> dict[str, set[str]]:
    """Return the actions of each statement of the policy on the page, by its name."""
    (policy,) = (json.loads(block.text) for block in blocks("iam"))
    return {
        each["Sid"]: {action.removeprefix("logs:") for action in each["Action"]}
        for each in policy["Statement"]
        if each["Effect"] == "Allow"
    }


@pytest.mark.parametrize(
    ("needed", "has_group", "settings"),
    [
        pytest.param(["Minimal"], True, {}, id="minimal"),
        pytest.param(["Minimal", "WithCreation"], False, {}, id="with creation"),
        pytest.param(
            ["Minimal", "WithCreation", "WithExtras"],
            False,
            {"retention_days": 7, "tags": {"team": "shop"}},
            id="with extras",
        ),
    ],
)
def test_the_policy_is_enough_and_not_too_much(
    server: StrictCloudWatch, needed: list[str], has_group: bool, settings: dict[str, object]
) -> None:
    """With everything else denied records are delivered, and the calls the server saw are those of the policy."""
    allowed = set().union(*(statements()[name] for name in needed))
    every_action = set(botocore.session.Session().get_service_model("logs").operation_names)
    assert allowed < every_action
    server.faults.deny(*(every_action - allowed))
    config = quick_config(server.endpoint_url, **settings)
    if has_group:
        server.create_group(config.log_group_name)
    writer = Writer(config)
    assert writer.append("a record")
    assert writer.flush(CHILD_SECONDS)
    assert server.messages() == ["a record"]
    assert server.calls.keys() == allowed - CHECKED_BY_CREATE
    assert "AccessDeniedException" not in server.summary()["errors"]
    group = server.group(config.log_group_name)
    assert group is not None
    assert (group.retention_days, group.tags) == (settings.get("retention_days"), settings.get("tags", {}))


def test_the_policy_is_of_one_group() -> None:
    """No statement allows more than the group of the example."""
    (policy,) = (json.loads(block.text) for block in blocks("iam"))
    for statement in policy["Statement"]:
        resources = statement["Resource"]
        for resource in [resources] if isinstance(resources, str) else resources:
            assert re.fullmatch(r"arn:aws:logs:us-east-1:\d{12}:log-group:/myapp/prod(:\*)?", resource)


# Its messages.


class Trouble:
    """Makes trouble, and hears what is said about it."""

    def __init__(
        self,
        server: StrictCloudWatch,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        self.server = server
        self.tmp_path = tmp_path
        self.monkeypatch = monkeypatch
        self.stack = contextlib.ExitStack()
        self._capfd = capfd
        self._heard = ""

    def heard(self) -> str:
        """Return all that was said on stderr and stdout."""
        out, err = self._capfd.readouterr()
        self._heard += err + out
        return self._heard

    def log(self, message: str = "a record", timestamp_ms: int | None = None, **settings: object) -> Writer:
        """Append one record to a spool, for the leader of this process to deliver."""
        writer = Writer(quick_config(**{"endpoint_url": self.server.endpoint_url, **settings}))
        writer.append(message, timestamp_ms)
        return writer

    def fail(self, code: str) -> None:
        """Let every call end with an error code of AWS."""
        self.server.faults.fail_next(20, code)
        self.log()

    def command(self, *words: str) -> None:
        """Run `cwsink` with these words."""
        done = subprocess.run(
            [sys.executable, "-m", "cwsink", *words], cwd=ROOT, capture_output=True, text=True, timeout=CHILD_SECONDS
        )
        self.tell(done.stdout, done.stderr)

    def tell(self, *texts: str) -> None:
        """Let these texts be heard, too."""
        self._heard += "".join(f"{text}\n" for text in texts)

    def open(self, **settings: object) -> None:
        """Open a spool that cannot be used, as fapilog does."""
        with pytest.raises(CwsinkError):
            CloudWatchSpoolSink(quick_config(self.server.endpoint_url, **settings))

    def spool(self) -> str:
        """Make a spool that is in order; return its path."""
        return Writer(quick_config(self.server.endpoint_url)).directory.path


def no_credentials(trouble: Trouble) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        trouble.monkeypatch.delenv(name)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        trouble.monkeypatch.setenv(name, os.devnull)
    trouble.log()


def no_region(trouble: Trouble) -> None:
    """And what the row says of the way out: the spool that was made without a region is delivered with one."""
    trouble.monkeypatch.delenv("AWS_REGION")
    trouble.monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    trouble.log(region=None, flusher="external")
    trouble.command("flush", "--once", "--timeout", "2")
    trouble.monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    trouble.command("flush", "--once")
    assert trouble.server.messages() == ["a record"]


def failing_helper(trouble: Trouble) -> None:
    (trouble.tmp_path / "config").write_text("[profile logs]\ncredential_process = false\n")
    trouble.monkeypatch.setenv("AWS_CONFIG_FILE", str(trouble.tmp_path / "config"))
    trouble.log(profile="logs")


def missing_group(trouble: Trouble) -> None:
    trouble.log(create_log_group=False)


def missing_stream(trouble: Trouble) -> None:
    trouble.server.create_group("/test/group")
    trouble.log(create_log_stream=False)


def unreachable(trouble: Trouble) -> None:
    trouble.log(endpoint_url=f"http://127.0.0.1:{free_port()}")


def no_ca_file(trouble: Trouble) -> None:
    trouble.monkeypatch.setenv("AWS_CA_BUNDLE", "/nowhere/ca.pem")
    trouble.log(endpoint_url=trouble.server.endpoint_url.replace("http:", "https:"))


def stranger(trouble: Trouble) -> None:
    trouble.server.faults.fail_next(20, "", 404)
    trouble.log()


def refusing_proxy(trouble: Trouble) -> None:
    trouble.server.faults.fail_next(20, "", 407)
    trouble.log()


def no_proxys_url(trouble: Trouble) -> None:
    trouble.monkeypatch.setenv("HTTP_PROXY", "http://[bad")
    trouble.monkeypatch.setenv("NO_PROXY", "")
    trouble.log()


def black_hole(trouble: Trouble) -> None:
    listener = trouble.stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
    for _ in range(4):  # its queue is full: the kernel drops whatever comes
        filler = trouble.stack.enter_context(socket.socket())
        filler.setblocking(False)
        filler.connect_ex(listener.getsockname())
    trouble.log(endpoint_url=f"http://127.0.0.1:{listener.getsockname()[1]}", connect_timeout_seconds=0.2)


def no_answer(trouble: Trouble) -> None:
    trouble.server.faults.hang(30, 20, action="PutLogEvents")
    trouble.log(read_timeout_seconds=0.2)


def wrong_setting(trouble: Trouble) -> None:
    with pytest.raises(CwsinkError):
        CloudWatchSpoolSink(log_group="/myapp/prod")


class Waiting:
    """An enricher that waits."""

    name = "waiting"

    async def enrich(self, event: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {}


def waiting_plugin(trouble: Trouble) -> None:
    sinks = [CloudWatchSpoolSink(quick_config(flusher="external"))]
    logger = fapilog.get_logger(sinks=sinks, settings=fapilog.Settings(), reuse=False)
    logger.enable_enricher(Waiting())
    logger.info("one")
    asyncio.run(logger.stop_and_drain())


def of_another_user(trouble: Trouble) -> None:
    trouble.spool()
    trouble.monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    trouble.open()


def open_to_others(trouble: Trouble) -> None:
    os.chmod(trouble.spool(), 0o770)
    trouble.open()


def no_root(trouble: Trouble) -> None:
    trouble.monkeypatch.delenv("CWSINK_SPOOL_DIRECTORY")
    trouble.monkeypatch.setattr(root, "_default_roots", lambda env: iter([os.devnull]))
    trouble.open()


def unusable_root(trouble: Trouble) -> None:
    trouble.open(spool_directory=os.devnull)


def nfs(trouble: Trouble) -> None:
    if sys.platform != "linux":
        pytest.skip("only Linux tells the file system")
    trouble.monkeypatch.setattr(directory, "filesystem_of", lambda path, mountinfo: "nfs")
    trouble.open()


def not_our_file(trouble: Trouble) -> None:
    writer = trouble.log(flusher="external")
    Path(writer.directory.cursor).unlink()
    Path(writer.directory.cursor).mkdir()
    trouble.command("flush", "--once")


def newer_format(trouble: Trouble) -> None:
    path = Path(trouble.spool(), "FORMAT")
    content = {**json.loads(path.read_text()), "format": directory.FORMAT_VERSION + 1}
    content.pop("checksum")
    path.write_text(json.dumps({**content, "checksum": directory._checksum(content)}))
    trouble.open()


def damaged_format(trouble: Trouble) -> None:
    """A power failure may leave it empty."""
    Path(trouble.spool(), "FORMAT").write_bytes(b"")
    trouble.command("status")


def full_spool(trouble: Trouble) -> None:
    """Nobody delivers, so nothing makes room; the notice is in the stream as soon as there is some."""
    writer = trouble.log(on_full="drop_newest", spool_max_bytes=16_384, segment_bytes=4096, flusher="external")
    while writer.append("x" * 1000):
        pass
    for _ in range(2):
        trouble.command("flush", "--once")
        writer.append("there is room again")
    trouble.tell(*trouble.server.messages())


def full_disk(trouble: Trouble) -> None:
    writer = trouble.log()
    trouble.monkeypatch.setattr(writer._ring, "append", lambda payload: Append.FAILED)
    assert not writer.append("x" * 100_000)


def too_old(trouble: Trouble) -> None:
    trouble.log(timestamp_ms=int(time.time() - 15 * 86_400) * 1000)


def too_new(trouble: Trouble) -> None:
    trouble.log(timestamp_ms=int(time.time() + 3 * 3600) * 1000)


def oversize(trouble: Trouble) -> None:
    trouble.log("x" * 2000, max_event_bytes=1000)


def poison(trouble: Trouble) -> None:
    trouble.server.faults.poison = "a bad record"
    trouble.log("a bad record")


def removed_spool(trouble: Trouble) -> None:
    writer = trouble.log()
    assert writer.flush(CHILD_SECONDS)
    shutil.rmtree(writer.directory.path)
    wait_until(lambda: writer.append("a record") and "made anew" in trouble.heard())


def no_spool(trouble: Trouble) -> None:
    (trouble.tmp_path / "spools").mkdir()
    trouble.command("status")


def no_leader(trouble: Trouble) -> None:
    trouble.log(flusher="external")
    trouble.command("status")


def left_behind(trouble: Trouble, host: str) -> None:
    """A worker on a host of that name has logged, and has ended."""
    code = f"import cwsink.host; cwsink.host.name = lambda: {host!r}\n{LEFT_BEHIND}"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=CHILD_SECONDS)
    trouble.command("status")


def two_hosts(trouble: Trouble) -> None:
    Path(trouble.spool(), "leader.host").write_text('{"boot_id": "another", "host": "web-2"}')
    trouble.log()


def stopped_leader(trouble: Trouble) -> None:
    if sys.platform != "linux":
        pytest.skip("without /proc it takes 30 s to see")
    trouble.log(flusher="external")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-m", "cwsink", "flush"], env=environment, stdout=subprocess.PIPE) as leader:
        try:
            (path,) = find_spools(str(trouble.tmp_path / "spools"))
            wait_until(lambda: survey(open_existing(path)).epoch)
            leader.send_signal(signal.SIGSTOP)
            wait_until(lambda: (Path(f"/proc/{leader.pid}/stat").read_text().rpartition(")")[2].split()[0]) == "T")
            trouble.log(flusher="external")  # with nothing pending nobody would mind
            trouble.command("status")
        finally:
            leader.kill()


def no_python(trouble: Trouble) -> None:
    trouble.monkeypatch.setenv("CWSINK_PYTHON", "/does/not/exist")
    writer = trouble.log()
    # The shell that starts it cannot tell: only a later look finds that nobody leads.
    wait_until(lambda: writer.append("a record") and "cannot be started" in trouble.heard())


def out_of_reach_at_the_end(trouble: Trouble) -> None:
    code = LEFT_BEHIND.replace(', flusher="external"', ', endpoint_url="http://127.0.0.1:1"')
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=CHILD_SECONDS)
    trouble.tell(done.stderr)


def two_settings(trouble: Trouble) -> None:
    trouble.log()
    trouble.log(batch_size=7)


SAID_WHEN: Final[dict[str, Callable[[Trouble], None]]] = {
    "cannot deliver to ...: AccessDeniedException": lambda trouble: trouble.fail("AccessDeniedException"),
    "cannot deliver to ...: ExpiredTokenException": lambda trouble: trouble.fail("ExpiredTokenException"),
    "...: UnrecognizedClientException": lambda trouble: trouble.fail("UnrecognizedClientException"),
    "cannot deliver to ...: ThrottlingException": lambda trouble: trouble.fail("ThrottlingException"),
    "cannot deliver to ...: CredentialRetrievalError": failing_helper,
    "cannot deliver to ...: NoCredentialsError": no_credentials,
    "cannot deliver to ...: NoRegionError": no_region,
    "cannot deliver to ...: ResourceNotFoundException": missing_group,
    "does not exist, and create_log_stream is off": missing_stream,
    "cannot deliver to ...: EndpointConnectionError": unreachable,
    "cannot deliver to ...: SSLError": no_ca_file,
    "cannot deliver to ...: NotCloudWatchError": stranger,
    "cannot deliver to ...: ProxyAuthenticationError": refusing_proxy,
    "...: InvalidProxyError": no_proxys_url,
    "...: ConnectTimeoutError": black_hole,
    "...: ReadTimeoutError": no_answer,
    "the sink cannot start, and fapilog will log elsewhere": wrong_setting,
    "is not a cwsink setting. Did you mean": wrong_setting,
    "keeps fapilog's queue": waiting_plugin,
    "the spool ... belongs to user": of_another_user,
    "can be written by other users": open_to_others,
    "no directory for the spool can be used": no_root,
    "the spool directory ... cannot be used": unusable_root,
    "lies on a nfs file system": nfs,
    "is no file of this user and this spool. It was set aside": not_our_file,
    "CloudWatch takes nothing that is sent there": lambda trouble: trouble.fail("InvalidParameterException"),
    "has format ...; this cwsink reads format": newer_format,
    "FORMAT cannot be read: ... The records there are kept": damaged_format,
    "LOST ... in all): the spool is full": full_spool,
    "LOST ... in all): the disk fails": full_disk,
    "and nothing is lost yet": full_spool,
    "cannot be delivered (too_old)": too_old,
    "cannot be delivered (too_new)": too_new,
    "cannot be delivered (oversize)": oversize,
    "cannot be delivered (poison)": poison,
    "was removed or moved. It was made anew": removed_spool,
    "cwsink: ... dropped ..., reason": full_spool,
    "holds no spool: nothing was logged into it yet": no_spool,
    "Nobody sends": no_leader,
    "An orphan of host": lambda trouble: left_behind(trouble, "web-2"),
    "none that logged there is left": lambda trouble: left_behind(trouble, socket.gethostname()),
    "Two hosts must not share a spool": two_hosts,
    "the flusher cannot be started": no_python,
    "records stay in": out_of_reach_at_the_end,
    "the settings of ... differ from those of": two_settings,
    "is no region that the installed botocore knows": lambda _: load_config(region="eu-wset-1"),
    "Stalled": stopped_leader,
}
# Rows about what is seen elsewhere than in a line of ours; other tests of this file run the ways out.
NO_MESSAGE: Final = ("records on stdout as well",)


def test_every_row_of_troubleshooting_is_complete_and_checked() -> None:
    """What you see, why, what to do; each message it quotes is heard by the next test, or stands in the code."""
    quoted = []
    for row in rows(PAGES["troubleshooting"]):
        assert len(row) == 3, row
        assert all(row), row
        if not row[0].startswith(NO_MESSAGE):
            assert code_in(row[0]), row
            quoted += code_in(row[0])
    assert len(set(quoted)) == len(quoted)
    assert set(SAID_WHEN) <= set(quoted)
    messages = [message for _, message in reported()]
    for quote in set(quoted) - set(SAID_WHEN):
        assert any(all(piece.strip() in message for piece in quote.split("...")) for message in messages), quote


def test_each_line_that_cwsink_says_has_its_row() -> None:
    """A row quotes of it what is always the same."""
    quoted = [quote for row in rows(PAGES["troubleshooting"]) for quote in code_in(row[0])]
    found = list(reported())
    assert len(found) > 60
    assert [each for each in found if not any(has_in_common(quote, each[1]) for quote in quoted)] == []


def has_in_common(quote: str, message: str) -> bool:
    """Tell whether what always stands in one of them stands in the other."""
    return any(
        piece in other
        for one, other in ((quote, message), (message, quote))
        for piece in (each.strip() for each in one.split("..."))
        if len(piece) >= 8
    )


@pytest.mark.parametrize("message", SAID_WHEN)
def test_each_error_is_said_as_the_page_quotes_it(
    message: str,
    server: StrictCloudWatch,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By the code itself, when the trouble is there ("..." stands for what differs)."""
    trouble = Trouble(server, tmp_path, monkeypatch, capfd)
    pattern = ".*".join(map(re.escape, message.split("...")))
    with trouble.stack:
        SAID_WHEN[message](trouble)
        try:
            wait_until(lambda: re.search(pattern, trouble.heard()))
        except AssertionError:
            pytest.fail(f"not said: {message!r}, but:\n{trouble.heard()}")
