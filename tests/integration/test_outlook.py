"""What a process can tell of its flusher at once: that there is no region, no credentials, nobody at the endpoint.

It errs in one direction only: what it does not know may give credentials.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec
import pytest

from cwsink.frontends import outlook
from cwsink.frontends.outlook import Outlook
from tests.harness.interleave import until
from tests.harness.support import SPOOL_FORMAT, quick_config

NO_METADATA: Final = {"AWS_EC2_METADATA_DISABLED": "true"}
KEYS: Final = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
Look = Callable[..., Outlook]
ONLY_A_REGION: Final = "# mine\n[default]\nregion = eu-central-1\noutput=json\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr(outlook, "_FILES_OF_BOTO", ("~/.boto",))


@pytest.fixture
def refusing() -> Iterator[int]:
    """A port that nobody listens at, and that nobody else gets."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]


@pytest.fixture
def listening() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def look() -> Iterator[Look]:
    """Makes outlooks, and closes them."""
    made = []

    def make(env: dict[str, str], region: str | None = "us-east-1", url: str | None = None, **settings: str) -> Outlook:
        spool_format = msgspec.structs.replace(SPOOL_FORMAT, region=region, endpoint_url=url)
        made.append(Outlook(spool_format, quick_config(**settings), env))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.mark.parametrize(
    ("env", "files", "is_hopeless"),
    [
        (NO_METADATA, {}, True),
        ({**NO_METADATA, "AWS_REGION": "us-east-1", "AWS_ACCESS_KEY_ID": ""}, {"config": ONLY_A_REGION}, True),
        ({**NO_METADATA, **KEYS}, {}, False),
        ({**NO_METADATA, "AWS_WEB_IDENTITY_TOKEN_FILE": "/token"}, {}, False),
        ({**NO_METADATA, "AWS_OF_NEXT_YEAR": "x"}, {}, False),
        ({**NO_METADATA, "BOTO_CONFIG": "/boto"}, {}, False),
        (NO_METADATA, {"credentials": "[default]\naws_access_key_id = test\n"}, False),
        (NO_METADATA, {"config": "[default]\nregion = x\ncredential_process = helper\n"}, False),
        (NO_METADATA, {"config": "#" * 100_000}, False),
        (NO_METADATA, {"../.boto": ""}, False),
    ],
    ids=str,
)
def test_no_credentials_are_only_where_nothing_may_give_some(
    look: Look, tmp_path: Path, env: dict[str, str], files: dict[str, str], is_hopeless: bool
) -> None:
    """A variable, a line or a file that is not known is enough."""
    (tmp_path / ".aws").mkdir()
    for name, text in files.items():
        (tmp_path / ".aws" / name).write_text(text)
    assert look(env).why_hopeless() == ("NoCredentialsError: Unable to locate credentials" if is_hopeless else "")
    assert look(env, profile="of mine").why_hopeless() == ""


@pytest.mark.parametrize("name", ["config", "credentials"])
def test_no_region_is_only_where_no_file_names_one(look: Look, tmp_path: Path, name: str) -> None:
    """The spool has none, and the files that AWS's tools share have none either."""
    assert look(KEYS, region=None).why_hopeless() == "NoRegionError: You must specify a region."
    (tmp_path / ".aws").mkdir()
    (tmp_path / ".aws" / name).write_text(ONLY_A_REGION)
    assert look(KEYS, region=None).why_hopeless() == ""


def test_a_host_that_is_not_ec2s_gives_no_credentials(
    look: Look, refusing: int, listening: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is at the metadata service's address, or is silent; a service that is there may give some."""
    monkeypatch.setattr(outlook, "_METADATA_SERVICE", ("127.0.0.1", refusing))
    assert "NoCredentialsError" in look({}).why_hopeless()
    monkeypatch.setattr(outlook, "_METADATA_SERVICE", ("192.0.2.1", 80))
    silent = look({})
    until(lambda: silent.why_hopeless() != "", "nobody answers there")
    monkeypatch.setattr(outlook, "_METADATA_SERVICE", ("127.0.0.1", listening))
    monkeypatch.setattr(outlook, "_METADATA_SECONDS", 0.0)
    found = look({})
    until(lambda: found.why_hopeless() == "", "it answers")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_endpoint_that_refuses_is_seen_at_once(look: Look, refusing: int, listening: int, host: str) -> None:
    """Where its address is known. One that accepts, a name, and one behind a proxy are left to the flusher."""
    url = f"http://{host}:{refusing}"
    why = f'EndpointConnectionError: Could not connect to the endpoint URL: "{url}"'
    assert look(KEYS, url=url).why_hopeless() == why
    assert look({**KEYS, "HTTPS_PROXY": "http://proxy"}, url=url).why_hopeless() == ""
    assert look(KEYS, url=f"http://name.invalid:{refusing}").why_hopeless() == ""
    found = look(KEYS, url=f"http://{host}:{listening}")
    assert found.why_hopeless() == ""


def test_it_keeps_no_descriptor(look: Look, refusing: int, listening: int) -> None:
    """Whatever the answer was."""
    before = os.listdir("/dev/fd")
    for port in (refusing, listening):
        found = look({}, url=f"http://127.0.0.1:{port}")
        found.why_hopeless()
        found.close()
    assert os.listdir("/dev/fd") == before
