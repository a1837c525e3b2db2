"""`scripts/soak`: the fault tests in full, round after round, each round with another seed.

A part is a test file that has tests marked `faults` or `long`; all of its tests are run, the short ones too. One
pytest for each part and round, whose own words go to a file and are shown if it fails. The seed of a round is
Hypothesis's and in `CWSINK_SOAK_SEED`: a test that draws at random draws from it. What a test prints is what it has
counted, and stands in the results.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.soak_results import Part, report

SEED_VARIABLE = "CWSINK_SOAK_SEED"
TESTS = Path(__file__).parent
# Shorter than the file's name, which says what is tested.
NAMES = {"kill_soak": "kills"}
PROGRESS_SECONDS = 1.0
# Between two lines of progress where there is no terminal to write over the last one.
QUIET_SECONDS = 30
# What pytest gets to reap its processes when it is interrupted.
LEAVE_SECONDS = 30.0
INTERRUPTED = 128 + signal.SIGINT


def parts() -> dict[str, Part]:
    """Find all parts."""
    found = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        if re.search(r"\bmark\.(faults|long)\b", path.read_text(encoding="utf-8")):
            stem = path.stem.removeprefix("test_")
            name = NAMES.get(stem, stem)
            found[name] = Part(name, path)
    return found


def run(part: Part, seed: int, workers: str, extra: list[str]) -> None:
    """Run one part once, with a line on the terminal that says how far it is.

    Raises:
        KeyboardInterrupt: Ctrl-C; what had ended by then is in the part's results.
    """
    command = [sys.executable, "-m", "pytest", "-m", "", "-n", workers, "-v", "-p", "no:cacheprovider"]
    command += [f"--hypothesis-seed={seed}", "-o", "junit_logging=system-out"]
    words = [str(part.path.relative_to(TESTS.parent)), *extra]
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        verdicts, output = Path(place, "verdicts.xml"), Path(place, "output")
        with output.open("w") as file:
            child = subprocess.Popen(
                [*command, f"--junitxml={verdicts}", *words],
                cwd=TESTS.parent,
                env={**os.environ, SEED_VARIABLE: str(seed)},
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                start_new_session=True,  # Ctrl-C is passed on once
            )
        try:
            while child.poll() is None:
                try:
                    child.wait(PROGRESS_SECONDS)
                except subprocess.TimeoutExpired:
                    pass
                show(part, seed, time.monotonic() - began, output.read_text(errors="replace"))
        except KeyboardInterrupt:
            leave(child)
            part.is_interrupted = True
            raise
        finally:
            part.add(verdicts, seed, time.monotonic() - began, child.returncode)
            clear_line()
            if child.returncode and not part.is_interrupted:
                said = output.read_text(errors="replace")
                print(said[max(0, said.find("= FAILURES =")) :])
                again = f"scripts/soak {part.name} --seed {seed}"
                print(f"{part.name}: BREACH with seed {seed}; again: {again}", flush=True)


def leave(child: subprocess.Popen[bytes]) -> None:
    """Interrupt pytest, which reaps what its tests have started; end it if it takes too long, or Ctrl-C comes again."""
    try:
        os.killpg(child.pid, signal.SIGINT)
        child.wait(LEAVE_SECONDS)
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


_last_shown = 0.0


def show(part: Part, seed: int, seconds: float, said: str) -> None:
    """Write the line of progress: in place on a terminal, else only now and then."""
    global _last_shown
    done, failed, skipped = (len(re.findall(rf" {word} ", said)) for word in ("PASSED", "FAILED", "SKIPPED"))
    total = (re.findall(r"\[(\d+) items?\]", said) or ["?"])[0]
    line = f"{part.name}: round {part.rounds + 1}, seed {seed}, {done + failed + skipped}/{total} tests"
    line += f", {failed} failed, {skipped} not run, {seconds:.0f} s"
    if sys.stderr.isatty():
        print(f"\r{line}\x1b[K", end="", file=sys.stderr, flush=True)
    elif time.monotonic() - _last_shown >= QUIET_SECONDS:
        _last_shown = time.monotonic()
        print(line, file=sys.stderr, flush=True)


def clear_line() -> None:
    """Take the line of progress away."""
    if sys.stderr.isatty():
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def options_of(arguments: list[str], known: dict[str, Part]) -> tuple[argparse.Namespace, list[str]]:
    """Parse the command line; what follows -- is pytest's."""
    split = arguments.index("--") if "--" in arguments else len(arguments)
    parser = argparse.ArgumentParser(
        prog="scripts/soak",
        description="Run the fault tests in full. The results are a page of Markdown; exit 1 on any breach.",
        epilog="Everything after -- goes to pytest: scripts/soak zoo -- -k celery. Some tests need strace; it is "
        "installed on this machine (apt-get) only if you say so when asked, or by CWSINK_SOAK_INSTALL=1.",
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
    """Run what was asked for; 1 if anything was breached, 130 if it was interrupted before that."""
    known = parts()
    options, extra = options_of(arguments, known)
    if options.list:
        print("\n".join(f"{part.name:<24}{part.purpose}" for part in known.values()))
        return 0
    chosen = [known[name] for name in dict.fromkeys(options.names or known)]
    first = seed = options.seed if options.seed is not None else random.randrange(1, 1 << 31)
    until = time.monotonic() + 60 * options.minutes
    for number in (signal.SIGINT, signal.SIGTERM):  # also in the background, where a shell has SIGINT ignored
        signal.signal(number, signal.default_int_handler)
    is_interrupted = False
    try:
        while seed == first or time.monotonic() < until:
            for part in chosen:
                if not part.rounds or time.monotonic() < until:
                    run(part, seed, options.workers, extra)
            seed += 1
    except KeyboardInterrupt:
        is_interrupted = True
    print(report(chosen, is_interrupted=is_interrupted))
    if any(part.breaches for part in chosen):
        return 1
    return INTERRUPTED if is_interrupted else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
