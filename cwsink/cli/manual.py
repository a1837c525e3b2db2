"""`cwsink manual`: the pages of the manual, formatted for a terminal, or as they are for a pipe."""

from __future__ import annotations

import argparse
import sys
from importlib.resources import files

from cwsink import words
from cwsink.cli import DONE, NOT_DONE, complain


def run(options: argparse.Namespace) -> int:
    """Print a page. Returns the exit code."""
    pages = files("cwsink") / "manual"
    topics = sorted(page.name.removesuffix(".md") for page in pages.iterdir() if page.name.endswith(".md"))
    topic = options.topic.lower()
    if topic not in topics:
        hint = words.did_you_mean(topic, topics)
        complain(f"the manual has no page {topic!r}.{hint} Its pages: {', '.join(topics)}.")
        return NOT_DONE
    text = (pages / f"{topic}.md").read_text(encoding="utf-8")
    if not sys.stdout.isatty():
        sys.stdout.write(text)
        return DONE
    from rich.markdown import Markdown

    from cwsink.cli.terminal import Terminal

    Terminal().print(Markdown(text, hyperlinks=False))
    return DONE
