"""The table of what came of the drills, in a page of the documentation."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

HEAD = "| fault | tried | outcomes | seconds |\n|---|---|---|---|\n"
BEGIN, END = "<!-- drills: begin -->\n", "<!-- drills: end -->\n"


class Result(NamedTuple):
    """What came of a drill.

    Attributes:
        outcomes: of each trial that ended well.
        failure: why it was given up; None if all trials ended well.
        seconds: that it took.
        possible: whether the fault could be made on this machine.
    """

    outcomes: list[str]
    failure: str | None
    seconds: float
    possible: bool = True


def as_table(results: dict[str, Result]) -> str:
    """A row a drill, in Markdown."""
    return HEAD + "".join(rows_of(results).values())


def rows_of(results: dict[str, Result]) -> dict[str, str]:
    """The lines of drills, by the drill."""
    rows = {}
    for name, (outcomes, failure, seconds, possible) in results.items():
        found = [f"{count} × {outcome}" if len(set(outcomes)) > 1 else outcome
                 for outcome, count in Counter(outcomes).most_common()]
        if failure is not None:
            found.append("**then it failed**")
        if not possible:
            found.append("not possible here")
        tried = len(outcomes) + (failure is not None)
        rows[name] = f"| {name} | {tried} | {', '.join(found)} | {seconds:.0f} |\n"
    return rows


def write_table(page: Path, results: dict[str, Result], order: Sequence[str]) -> None:
    """Put a table between the page's markers; rows that are there of other drills stay.

    Args:
        order: all drills that there are.
    """
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    old, _, after = rest.partition(END)
    rows = {line.split(" | ")[0].removeprefix("| "): line
            for line in old.removeprefix(HEAD).splitlines(keepends=True)} | rows_of(results)
    table = HEAD + "".join(rows[name] for name in order if name in rows)
    page.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")
