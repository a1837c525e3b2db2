"""`python -m cwsink`: the command line, for a shell whose PATH lacks the script `cwsink`."""

from __future__ import annotations

from cwsink.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
