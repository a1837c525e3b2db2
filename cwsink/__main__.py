"""`python -m cwsink`: the command line, for where the script is not on the PATH."""

from __future__ import annotations

from cwsink.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
