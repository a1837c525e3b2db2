"""The manual's table of the servers that were tried, made of what the zoo's tests have seen.

```text
ZOO_RESULTS=zoo.jsonl scripts/test tests/faults/zoo -m ''        # each cell appends a line, whatever its end
python -m tests.faults.zoo.table zoo.jsonl                              # prints the table
```

A record is *lost* if its logging call had returned and it has not arrived at the end of the test. It is *late* if it
was still in the spool when the program had ended; the flusher has sent it after that.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.faults.zoo.kinds import KINDS

RESULTS_VARIABLE: Final = "ZOO_RESULTS"

# What people do to a server, and the endings of the zoo that are it.
COLUMNS: Final = {
    "deploy": ("term_parent", "term_group", "int_twice", "hup", "usr2", "plain_exit"),
    "kill": ("kill_worker", "kill_all", "kill_host", "abort_worker", "vanish", "hard_exit"),
    "the flusher is killed": ("kill_flusher", "kill_ours"),
    "recycle": ("recycle",),
}
PRELOAD: Final = "preload"
_DOES_NOT: Final = "does not"
_NOT_TRIED: Final = "not tried"


class Result(NamedTuple):
    """What one cell of the zoo has seen: how many records were acknowledged, and what became of them."""

    kind: str
    ending: str
    flavour: str
    preload: bool
    acknowledged: int
    lost: int
    late: int


def note(result: Result) -> None:
    """Append a result to the file that the environment names, if it names one. Each is one `write()`."""
    if path := os.environ.get(RESULTS_VARIABLE):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{json.dumps(result._asdict())}\n")


def read(lines: Iterable[str]) -> list[Result]:
    """Return the results of a file. Of a cell that ran more than once, the last one."""
    results = [Result(**json.loads(line)) for line in lines if line.strip()]
    return list({each[:4]: each for each in results}.values())


def table(results: Iterable[Result]) -> Iterator[str]:
    """Yield the lines of the table, in Markdown."""
    results = list(results)
    columns = [*COLUMNS, PRELOAD]
    yield f"| server | {' | '.join(columns)} |"
    yield f"|---|{'---|' * len(columns)}"
    for kind in KINDS:
        mine = [each for each in results if each.kind == kind]
        if mine:
            yield f"| `{kind}` | {' | '.join(_cell(kind, column, mine) for column in columns)} |"


def _cell(kind: str, column: str, results: list[Result]) -> str:
    if column == PRELOAD:
        exists = KINDS[kind].preload is not None
        mine = [each for each in results if each.preload or KINDS[kind].is_preloaded]
    else:
        exists = bool(set(COLUMNS[column]) & set(KINDS[kind].endings))
        mine = [each for each in results if each.ending in COLUMNS[column]]
    if not mine:
        return _NOT_TRIED if exists else _DOES_NOT
    lost, late, total = (sum(getattr(each, name) for each in mine) for name in ("lost", "late", "acknowledged"))
    return f"{lost:,} lost, {late:,} late of {total:,}"


def main() -> int:
    """Print the table of the results in the files that are named."""
    lines = [line for path in sys.argv[1:] for line in Path(path).read_text(encoding="utf-8").splitlines()]
    print("\n".join(table(read(lines))))
    return 0 if lines else 1


if __name__ == "__main__":
    raise SystemExit(main())
