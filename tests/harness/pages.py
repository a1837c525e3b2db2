"""The pages that users read, README.md and the manual: their texts, sections, blocks and tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
MANUAL: Final = ROOT / "cwsink" / "manual"
INDEX: Final = (MANUAL / "index.md").read_text(encoding="utf-8")
# The topics, in the order of the index.
TOPICS: Final = tuple(re.findall(r"\]\(([\w-]+)\.md\)", INDEX))
README: Final = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES: Final = {
    "README": README,
    "index": INDEX,
    **{topic: (MANUAL / f"{topic}.md").read_text(encoding="utf-8") for topic in TOPICS},
}
# What says how to deploy, beginning with what holds everywhere.
DEPLOYING: Final = TOPICS[TOPICS.index("deploying") : TOPICS.index("iam")]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, the page and the heading it stands under, its line there."""

    language: str
    text: str
    page: str
    heading: str
    line: int

    def __str__(self) -> str:
        return f"{self.page}:{self.line}, {self.heading}"

    @property
    def file_name(self) -> str | None:
        """The file it is shown as ("# main.py"), if any."""
        match = re.match(r"# (\w+\.py)\n", self.text)
        return match[1] if match else None


def blocks(*names: str) -> Iterator[Block]:
    """Yield the blocks of these pages; of all if none is named."""
    for page in names or PAGES:
        text, heading = PAGES[page], ""
        pattern = r"^#+ (?P<heading>.+)$|^```(?P<tag>.*)\n(?P<text>(?s:.*?))^```$"
        for match in re.finditer(pattern, text, re.MULTILINE):
            if match["heading"]:
                heading = match["heading"]
            else:
                yield Block(match["tag"], match["text"], page, heading, text.count("\n", 0, match.start()) + 1)


def prose(page: str) -> str:
    """Return a page without its blocks."""
    return re.sub(r"^```(?s:.*?)^```$", "", PAGES[page], flags=re.MULTILINE)


def anchors(page: str) -> set[str]:
    """Return what a link to a heading of the page may name, as forges make it."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", each.lower()).replace(" ", "-") for each in headings}


def rows(text: str) -> Iterator[list[str]]:
    """Yield the cells of each row of the tables in `text`, without headings."""
    lines = text.splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("|") and before.startswith("|") and not line.startswith("|---"):
            yield [cell.strip() for cell in line.strip("|").split(" | ")]


def code_in(text: str) -> list[str]:
    """Return what stands between backquotes, outside of blocks."""
    return re.findall(r"`([^`\n]+)`", re.sub(r"^```(?s:.*?)^```$", "", text, flags=re.MULTILINE))
