"""Where the commands print: rich's console, which leaves it to `main` what to do when nobody reads any more."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """A console that raises BrokenPipeError. rich's own ends the process with code 1: `cwsink top --once | head`."""

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise  # noqa: PLE0704  # rich calls this where it has caught it
