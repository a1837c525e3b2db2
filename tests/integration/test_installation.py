"""The installation that README.md names: from a checkout and from a wheel, into an environment that has nothing."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Final

import pytest

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
    if done.returncode and "pip" in words and NO_REGISTRY.search(done.stderr):
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
    assert "order placed" in run([str(venv / "bin" / "cwsink"), "tail", "-n", "1"], tmp_path, **env)
