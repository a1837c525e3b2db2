"""The flusher runs in another Python than the application: CWSINK_PYTHON names it.

A frozen program's path has no module for it. PyInstaller is not needed to show that: an importer takes its place.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Final

import pytest

from cwsink.frontends import starter
from cwsink.spool.directory import find_spools, open_existing
from cwsink.spool.survey import survey
from cwsink.testing import StrictCloudWatch
from tests.conftest import Spawn
from tests.harness.pages import ROOT
from tests.harness.support import CHILD_SECONDS

PLACES: Final = (str(ROOT), sysconfig.get_path("purelib"))

# The modules are in the program; all that is on its path is the standard library, and a directory. There lie libraries
# and data of some packages, as PyInstaller leaves them, so that each of these looks like a namespace package.
FROZEN: Final = """
import os, sys, time
from importlib.machinery import PathFinder, SourceFileLoader

bundle, seconds, *places = sys.argv[1:]
sys.path[:] = [each for each in sys.path if each.startswith(sys.base_prefix) and "site-packages" not in each] + [bundle]
sys.frozen = True
for name in ("cwsink", "msgspec", "botocore"):
    os.makedirs(f"{bundle}/{name}/data", exist_ok=True)

class Archive:
    @staticmethod
    def find_spec(name, path=None, target=None):
        folder, _, _ = name.replace(".", "/").rpartition("/")
        spec = PathFinder.find_spec(name, [f"{each}/{folder}" for each in places])
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.origin = spec.origin.replace(next(filter(spec.origin.startswith, places)), bundle)
        return spec

sys.meta_path.insert(0, Archive)
import cwsink
assert cwsink.__file__ == f"{bundle}/cwsink/__init__.py"
writer = cwsink.Writer.open(log_group_name="/frozen/program", log_stream_name="s", batch_timeout_seconds=0.1)
until = time.monotonic() + float(seconds)
assert writer.append("record")
while time.monotonic() < until:
    time.sleep(0.1)
    assert writer.append("another")
"""


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A Python of its own that has cwsink in its site-packages."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    Path(packages_of(tmp_path), "cwsink.pth").write_text("\n".join(PLACES))
    return tmp_path / "venv" / "bin" / "python"


def packages_of(tmp_path: Path) -> str:
    return sysconfig.get_path("purelib", vars={"base": str(tmp_path / "venv")})


def run(spawn: Spawn, server: StrictCloudWatch, bundle: Path, python: Path, seconds: float = 0.0) -> str:
    """Run the frozen program to its end. Returns what it has said."""
    env = {**server.environment(), "CWSINK_PYTHON": str(python)}
    child = spawn(FROZEN, bundle, seconds, *PLACES, env=env)
    _, said = child.communicate(timeout=CHILD_SECONDS)
    assert child.returncode == 0, said
    return said


@pytest.mark.parametrize("unfrozen", [(), ("cwsink",), ("cwsink", "msgspec"), ("cwsink", "msgspec", "filelock")])
def test_a_frozen_program_is_served_by_the_python_that_it_names(
    spawn: Spawn, server: StrictCloudWatch, tmp_path: Path, python: Path, unfrozen: tuple[str, ...]
) -> None:
    """Also if some of what a flusher needs lies beside the program, and the rest does not. Nothing is said of it."""
    bundle = tmp_path / "bundle"
    bundle.mkdir()
    for name in unfrozen:
        (place,) = [each for each in PLACES if Path(each, name).is_dir()][:1]
        (bundle / name).symlink_to(Path(place, name))
    Path(packages_of(tmp_path), "broken.pth").write_text("import nothing_that_is_there\n")
    assert run(spawn, server, bundle, python) == ""
    assert server.messages() == ["record"]


def test_a_python_without_cwsink_is_said(spawn: Spawn, server: StrictCloudWatch, tmp_path: Path, python: Path) -> None:
    """In one line: which Python it is, and what it lacks."""
    Path(packages_of(tmp_path), "cwsink.pth").unlink()
    said = run(spawn, server, tmp_path / "bundle", python, seconds=3.0)
    (line,) = [each for each in said.splitlines() if "cannot be started" in each]
    why = f"{python} has ended before it led any spool (ModuleNotFoundError: No module named 'cwsink"
    assert line.startswith(f"cwsink: the flusher cannot be started: {why}"), line
    assert all(each.startswith("cwsink: ") for each in said.splitlines()), said


def test_a_program_that_is_no_python_is_said(spawn: Spawn, server: StrictCloudWatch, tmp_path: Path) -> None:
    """Which program was started, and that it has ended. The records wait."""
    said = run(spawn, server, tmp_path / "bundle", Path("/bin/true"), seconds=3.0)
    assert "cwsink: the flusher cannot be started: /bin/true has ended before it led any spool. " in said
    (path,) = find_spools(os.environ["CWSINK_SPOOL_DIRECTORY"])
    assert survey(open_existing(path)).pending > 1


@pytest.mark.parametrize("before", ["/opt/lib", None])
def test_the_libraries_of_a_frozen_program_are_not_those_of_another_python(
    monkeypatch: pytest.MonkeyPatch, before: str | None
) -> None:
    """PyInstaller has its own ones loaded first, and keeps what the variable was before, if it was set."""
    monkeypatch.setenv("LD_LIBRARY_PATH", "/opt/program/_internal")
    if before is not None:
        monkeypatch.setenv("LD_LIBRARY_PATH_ORIG", before)
    assert starter._environment()["LD_LIBRARY_PATH"] == "/opt/program/_internal"
    monkeypatch.setattr(sys, "_MEIPASS", "/opt/program/_internal", raising=False)
    assert starter._environment().get("LD_LIBRARY_PATH") == before
