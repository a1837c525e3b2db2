"""The results page of `scripts/soak`: what ran, what was breached, what was not run and why, what was counted.

Pure but for reading pytest's JUnit XML and the machine's name for the heading.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
# A number with a fraction is a measurement; one that stands alone is a count.
_NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?(?![\w.]*\d)")
_PLACE = "\0"  # where a number stood
MOST_FIGURES = 24  # of one part: what differs in every test is no figure


@dataclass
class Part:
    """A test file, and how it has fared."""

    name: str
    path: Path
    rounds: int = 0
    passed: int = 0
    seconds: float = 0.0
    breaches: list[str] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    figures: dict[str, list[float]] = field(default_factory=dict)
    is_interrupted: bool = False

    @property
    def purpose(self) -> str:
        """Return the first line of its docstring."""
        return self.path.read_text(encoding="utf-8").split('"""', 2)[1].strip().splitlines()[0]

    def add(self, verdicts: Path, seed: int, seconds: float, code: int) -> None:
        """Take in the results of one round: pytest's JUnit file, if it came to write one, and its exit code."""
        self.seconds += seconds
        self.seeds.append(seed)
        self.rounds += not self.is_interrupted
        failed = 0
        for case in cases(verdicts):
            name = case.get("name", "?")
            if (skipped := case.find("skipped")) is not None:
                self.not_run[name] = skipped.get("message", "").removeprefix("not run: ")
            elif case.find("failure") is not None or case.find("error") is not None:
                failed += 1
                self.breaches.append(f"{name} (seed {seed})")
            else:
                self.passed += 1
                self._count(case.findtext("system-out") or "")
        if code and not failed and not self.is_interrupted:
            self.breaches.append(f"pytest ended with exit code {code} (seed {seed})")

    def _count(self, said: str) -> None:
        """Add up what a test has printed: counts are summed over tests and rounds, the highest measurement stays."""
        for line in filter(str.strip, said.splitlines()):
            if "- Captured Out -" in line:  # pytest's own heading
                continue
            template, found = _NUMBER.sub(_PLACE, line.strip()), _NUMBER.findall(line)
            numbers = self.figures.setdefault(template, [0] * len(found))
            for index, text in enumerate(found):
                number = float(text.replace(",", ""))
                numbers[index] = max(numbers[index], number) if "." in text else numbers[index] + int(number)

    def told(self) -> list[str]:
        """Return the figures as they were printed."""
        return [_filled(template, numbers) for template, numbers in self.figures.items()]


def _filled(template: str, numbers: list[float]) -> str:
    left = iter(numbers)
    return re.sub(_PLACE, lambda _: f"{next(left):,}", template)


def cases(verdicts: Path) -> Iterator[ElementTree.Element]:
    """Return what pytest says of each test; nothing if it was killed."""
    if verdicts.exists() and verdicts.stat().st_size:
        yield from ElementTree.parse(verdicts).iter("testcase")


def report(parts: list[Part], *, is_interrupted: bool) -> str:
    """Return the page."""
    breaches = [f"{part.name}: {breach}" for part in parts for breach in part.breaches]
    missing = [f"{part.name}: {name}: {why}" for part in parts for name, why in part.not_run.items()]
    lines = ["# Results of scripts/soak", "", heading(parts), ""]
    lines += ["| part | rounds | passed | not run | breaches | seconds |", "|---|---:|---:|---:|---:|---:|"]
    lines += [
        f"| {part.name} | {part.rounds} | {part.passed:,} | {len(part.not_run)} | {len(part.breaches)} "
        f"| {part.seconds:,.0f} |"
        for part in parts
    ]
    lines += section("Counted", [f"{part.name}: {line}" for part in parts for line in part.told()[:MOST_FIGURES]])
    lines += section("Not run", missing)
    lines += section("Breaches", breaches)
    verdict = {0: "no breach", 1: "1 breach"}.get(len(breaches), f"{len(breaches)} breaches")
    if missing:
        verdict += f", tests not run: {len(missing)}"
    if is_interrupted:
        verdict += f", interrupted; not begun: {', '.join(part.name for part in parts if not part.seeds) or 'none'}"
    return "\n".join(["", *lines, "", f"**{verdict[0].upper()}{verdict[1:]}.**"])


def section(title: str, items: list[str]) -> list[str]:
    """Return a list under a heading; nothing for an empty one."""
    return ["", f"## {title}", "", *(f"* {item}" for item in items)] if items else []


def heading(parts: list[Part]) -> str:
    """Return when, where and of what."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    ).stdout.strip()
    seeds = sorted({seed for part in parts for seed in part.seeds})
    span = "none" if not seeds else str(seeds[0]) if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    return (
        f"{time.strftime('%Y-%m-%d %H:%M UTC', time.gmtime())}, commit {commit or 'unknown'}, "
        f"Python {platform.python_version()}, {platform.system()} {platform.release()}, {os.cpu_count()} cores, "
        f"seeds {span}, {sum(part.seconds for part in parts) / 60:.1f} minutes"
    )
