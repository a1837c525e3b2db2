"""Run benchmarks one after the other: `scripts/bench`, or `python -m benchmarks`.

    python -m benchmarks [--quick] [--results DIRECTORY] [NAME ...]

Without a name all are run, which takes about an hour and wants a machine that does nothing else. Each has
options of its own: `python -m benchmarks.NAME --help`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path

from benchmarks import report

NO_BENCHMARKS = {"append_peers", "machine", "pictures", "report", "__init__", "__main__"}


def benchmarks() -> dict[str, str]:
    """Return the first line of what each says of itself."""
    paths = sorted(path for path in Path(__file__).parent.glob("*.py") if path.stem not in NO_BENCHMARKS)
    return {path.stem: path.read_text(encoding="utf-8").split('"""', 2)[1].strip().splitlines()[0] for path in paths}


def main() -> int:
    """Run them; 1 if one failed."""
    known = benchmarks()
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Run benchmarks; tables and plots go to benchmarks/results/.",
        epilog="\n".join(["benchmarks:", *(f"  {name:<14}{purpose}" for name, purpose in known.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which (default: all)")
    report.add_options(parser)
    options = parser.parse_args()
    for name in options.names:
        if name not in known:
            parser.error(f"no benchmark {name}; there are: {', '.join(known)}")
    passed_on = ["--quick"] * options.quick + (["--results", str(options.results)] if options.results else [])
    failed = []
    chosen = options.names or list(known)
    for index, name in enumerate(chosen, 1):
        began = time.monotonic()
        print(f"==== {name} ({index} of {len(chosen)}): {known[name]}\n", flush=True)
        if subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *passed_on], check=False).returncode:
            failed.append(name)
        print(f"     {name}: {time.monotonic() - began:.0f} s\n", flush=True)
    if failed:
        print(f"failed: {', '.join(failed)}")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
