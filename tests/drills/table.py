"""The table of what came of the drills, in a page of the documentation."""

from collections import Counter
from pathlib import Path
from typing import NamedTuple

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
    lines = ["| fault | tried | outcomes | seconds |", "|---|---|---|---|"]
    for name, (outcomes, failure, seconds, possible) in results.items():
        found = [f"{count} × {outcome}" if len(set(outcomes)) > 1 else outcome
                 for outcome, count in Counter(outcomes).most_common()]
        if failure is not None:
            found.append("**then it failed**")
        if not possible:
            found.append("not possible here")
        tried = len(outcomes) + (failure is not None)
        lines.append(f"| {name} | {tried} | {', '.join(found)} | {seconds:.0f} |")
    return "\n".join(lines) + "\n"


def write_table(page: Path, table: str) -> None:
    """Put a table between the page's markers."""
    before, _, rest = page.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}{table}{END}{after}", encoding="utf-8")
