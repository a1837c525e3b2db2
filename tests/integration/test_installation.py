"""What a newcomer does: the installation that README.md names, and its commands, where there is nothing else."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

from cwsink.testing import StrictCloudWatch
from tests.harness.pages import blocks
from tests.harness.support import CHILD_SECONDS

ROOT: Final = Path(__file__).resolve().parents[2]
# What pip says where there is no registry to take the dependencies from.
NO_REGISTRY: Final = re.compile("No matching distribution found|Could not fetch|connection", re.IGNORECASE)
INSTALL_SECONDS: Final = 300
PROGRAM: Final = """
import logging, cwsink
logging.basicConfig(level="INFO", handlers=[cwsink.SpoolHandler(log_group_name="/myapp/prod", flusher="external")])
logging.info("order placed")
print(cwsink.__file__)
"""


def lines() -> list[str]:
    """The lines of the README's block."""
    (block,) = re.findall(r"```console\n(\$ pip install \.\n(?s:.*?))```", (ROOT / "README.md").read_text())
    return [line.removeprefix("$ ") for line in block.splitlines()]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what is installed from."""
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT / "cwsink", copy / "cwsink", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    return copy


def run(words: list[str], cwd: Path, **env: str) -> str:
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(words, cwd=cwd, env={**plain, **env}, capture_output=True, text=True, timeout=INSTALL_SECONDS)
    if done.returncode and "install" in words and NO_REGISTRY.search(done.stderr):
        pytest.skip("there is no registry that has cwsink's dependencies")
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.long
@pytest.mark.timeout(2 * INSTALL_SECONDS)
@pytest.mark.parametrize("way", ["checkout", "wheel"])
def test_cwsink_is_installed_as_the_readme_says(checkout: Path, tmp_path: Path, way: str) -> None:
    """A program logs, and the command finds its record; a wheel holds the manual and the mark for type checkers."""
    venv = tmp_path / "venv"
    run([sys.executable, "-m", "venv", str(venv)], tmp_path)
    python = str(venv / "bin" / "python")
    assert len(lines()) == 3
    for line in lines()[:1] if way == "checkout" else lines()[1:]:
        words = [python, "-m", *shlex.split(line)]
        if "dist/cwsink-*.whl" in words:
            (wheel,) = checkout.glob("dist/cwsink-*.whl")
            names = zipfile.ZipFile(wheel).namelist()
            assert {"cwsink/py.typed", "cwsink/manual/records.md"} <= set(names)
            assert not [name for name in names if not name.startswith(("cwsink/", "cwsink-"))]
            words[words.index("dist/cwsink-*.whl")] = str(wheel)
        run(words, checkout)
    env = {"CWSINK_SPOOL_DIRECTORY": str(tmp_path / "spools"), "AWS_REGION": "us-east-1"}
    assert str(venv) in run([python, "-c", PROGRAM], tmp_path, **env)
    cwsink = str(venv / "bin" / "cwsink")
    assert "order placed" in run([cwsink, "tail", "-n", "1"], tmp_path, **env)
    assert "log_group_name" in run([cwsink, "manual", "settings"], tmp_path)
    if way == "wheel":
        run([python, "-m", "pip", "install", "twine", f"cwsink[demo] @ {wheel.as_uri()}"], tmp_path)
        run([python, "-m", "twine", "check", "--strict", str(wheel)], tmp_path)
        assert "Nothing was lost." in run([cwsink, "demo"], tmp_path)


# These go on until they are told to end.
ENDLESS: Final = ("cwsink top", "cwsink tail -f", "cwsink flush PATH")


@pytest.mark.long
@pytest.mark.timeout(3 * INSTALL_SECONDS)
def test_a_newcomer_gets_through_the_readme(server: StrictCloudWatch, checkout: Path, tmp_path: Path) -> None:
    """Its programs and commands, in their order, in an environment that has cwsink and what it brings along."""
    venv, root = tmp_path / "venv", tmp_path / "spools"
    run([sys.executable, "-m", "venv", str(venv)], tmp_path)
    run([str(venv / "bin" / "pip"), "install", "."], checkout)
    environment = {
        **server.environment(),
        "CWSINK_SPOOL_DIRECTORY": str(root),
        "PATH": f"{venv / 'bin'}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "COLUMNS": "100",
    }
    seen = []
    for block in blocks("README"):
        if block.language == "python":
            subprocess.run(
                [venv / "bin" / "python", "-c", block.text],
                cwd=tmp_path,
                env=environment,
                check=True,
                timeout=CHILD_SECONDS,
            )
        elif block.language == "console" and block.text.startswith("$ cwsink"):
            for line in block.text.splitlines():
                words = shlex.split(line.removeprefix("$ "), comments=True)
                seen.append(go_on(words, tmp_path, str(root), environment))
    assert len(seen) == 13
    assert server.wait_for_events(3, CHILD_SECONDS)
    assert "/myapp/prod" in seen[0]


def go_on(words: list[str], cwd: Path, root: str, environment: dict[str, str]) -> str:
    """Do a command as a newcomer does, who has one spool, and no history and no gunicorn. Returns what it says."""
    is_endless = " ".join(words).startswith(ENDLESS)
    if "run" in words:
        words = [*words[: words.index("--") + 1], "python", "--version"]
    words = [root if word == "PATH" else word for word in words]
    with subprocess.Popen(
        words, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as child:
        try:
            said = child.communicate(timeout=3 if is_endless else CHILD_SECONDS)[0]
        except subprocess.TimeoutExpired:
            child.send_signal(signal.SIGINT)
            said = child.communicate(timeout=CHILD_SECONDS)[0]
    # What CloudWatch has cannot be compared with a history that is not kept, and doctor has something to say of that.
    allowed = (0, 130) if is_endless else (0, 1) if words[1] in ("verify", "doctor") else (0,)
    assert child.returncode in allowed, f"{words}: {child.returncode}\n{said}"
    assert "Traceback" not in said
    return said
