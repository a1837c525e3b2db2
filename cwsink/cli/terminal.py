"""Where the commands print: rich's console, which leaves it to `main` what to do when nobody reads any more."""

from __future__ import annotations

from rich.console import Console


class Terminal(Console):
    """A console that raises BrokenPipeError. rich's own ends the process with code 1: `cwsink top --once | head`."""

    @property
    def is_live(self) -> bool:
        """Whether a picture can be redrawn in place. With TERM=dumb rich would show none at all until the end."""
        return self.is_terminal and not self.is_dumb_terminal

    def on_broken_pipe(self) -> None:
        """Raise the error that is being handled."""
        raise  # noqa: PLE0704  # rich calls this where it has caught it
