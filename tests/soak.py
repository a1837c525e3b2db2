"""`scripts/soak`: the long tests, round after round, each round with another seed.

A part is a test file that has tests marked `long`; all of its tests are run, the short ones too. One
pytest for each part and round, whose own words go to a file and are shown if it fails. The seed of a
round is Hypothesis's and in `CWSINK_SOAK_SEED`: a test that draws at random draws from it.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

SEED_VARIABLE = "CWSINK_SOAK_SEED"
TESTS = Path(__file__).parent
# Shorter than the file's name, which says what is tested.
NAMES = {"kill_soak": "kills"}
PROGRESS_SECONDS = 1.0


@dataclass
class Part:
    """A test file, and how it has fared."""

    name: str
    path: Path
    rounds: int = 0
    passed: int = 0
    breaches: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def purpose(self) -> str:
        """Return the first line of its docstring."""
        return self.path.read_text().split('"""', 2)[1].strip().splitlines()[0]


def parts() -> dict[str, Part]:
    """Find all parts."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if "mark.long" in path.read_text():
            stem = path.stem.removeprefix("test_")
            name = NAMES.get(stem, stem)
            found[name] = Part(name, path)
    return found


def run(part: Part, seed: int, workers: str, extra: list[str]) -> None:
    """Run one part once, with a line on the terminal that says how far it is."""
    command = [sys.executable, "-m", "pytest", "-m", "", "-n", workers, "-v", "-p", "no:cacheprovider"]
    command += [f"--hypothesis-seed={seed}"]
    command += [str(part.path.relative_to(TESTS.parent)), *extra]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(
            command, cwd=TESTS.parent, env={**os.environ, SEED_VARIABLE: str(seed)}, stdout=output, stderr=output
        )
        try:
            while child.poll() is None:
                try:
                    child.wait(PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
                show(part, seed, time.monotonic() - began, words(output))
        except BaseException:
            child.terminate()
            child.wait()
            raise
        said = words(output)
    part.rounds += 1
    part.seconds += time.monotonic() - began
    part.passed += count(said, "passed")
    failed = re.findall(r"^(?:FAILED|ERROR) \S*::(\S+)", said, re.MULTILINE)
    if child.returncode != 0:
        part.breaches += [f"{name}  (seed {seed})" for name in failed or [f"pytest: exit code {child.returncode}"]]
        print(f"\n{said}\n{part.name}: BREACH with seed {seed}; again: {SEED_VARIABLE}={seed} {' '.join(command[1:])}")


def words(output: object) -> str:
    """Return all that pytest has said."""
    file = os.dup(output.fileno())  # type: ignore[attr-defined]  # any file
    try:
        return os.pread(file, os.fstat(file).st_size, 0).decode(errors="replace")
    finally:
        os.close(file)


def count(said: str, word: str) -> int:
    """Read a number from pytest's last line."""
    found = re.findall(rf"(\d+) {word}", said)
    return int(found[-1]) if found else 0


def show(part: Part, seed: int, seconds: float, said: str) -> None:
    """Write the line of progress: in place on a terminal, else only now and then."""
    done, failed = said.count(" PASSED "), said.count(" FAILED ")
    total = (re.findall(r"\[(\d+) items\]", said) or ["?"])[0]
    line = f"{part.name}: round {part.rounds + 1}, seed {seed}, {done + failed}/{total} tests, {failed} failed"
    line += f", {seconds:.0f} s"
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
    elif int(seconds) % 30 == 0:
        print(line, file=sys.stderr, flush=True)


def summary(chosen: list[Part]) -> str:
    """Return the table that stands at the end."""
    rows = [f"\n{'part':<24}{'rounds':>8}{'passed':>8}{'breaches':>10}{'seconds':>9}"]
    for part in chosen:
        rows.append(f"{part.name:<24}{part.rounds:>8}{part.passed:>8}{len(part.breaches):>10}{part.seconds:>9.0f}")
        rows += [f"    {breach}" for breach in part.breaches]
    return "\n".join(rows)


def options_of(arguments: list[str], known: dict[str, Part]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; what follows -- is pytest's."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Run the long tests; exit 1 on any breach.",
        epilog="Everything after -- goes to pytest: scripts/soak zoo -- -k celery",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which parts (default: all); see --list")
    parser.add_argument("--list", action="store_true", help="list the parts")
    parser.add_argument(
        "--minutes", type=float, default=0.0, help="begin new rounds for this long (default: one round of each)"
    )
    parser.add_argument("--seed", type=int, help="the seed of the first round, to repeat one (default: at random)")
    parser.add_argument("-n", default="auto", dest="workers", help="tests at a time (default: one for each core)")
    options = parser.parse_args(arguments[:split])
    for name in options.names:
        if name not in known:
            parser.error(f"no part {name}; there are: {', '.join(known)}")
    return options, arguments[split + 1 :]


def main(arguments: list[str]) -> int:
    """Run what was asked for; 1 if anything was breached."""
    known = parts()
    options, extra = options_of(arguments, known)
    if options.list:
        print("\n".join(f"{part.name:<24}{part.purpose}" for part in known.values()))
        return 0
    chosen = [known[name] for name in options.names or known]
    seed = options.seed if options.seed is not None else random.randrange(1, 1 << 31)
    until = time.monotonic() + 60 * options.minutes
    try:
        while True:
            for part in chosen:
                if not part.rounds or time.monotonic() < until:
                    run(part, seed, options.workers, extra)
            seed += 1
            if time.monotonic() >= until:
                break
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
    print(summary(chosen))
    return 1 if any(part.breaches or not part.rounds for part in chosen) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
