"""A table in Markdown, and a picture, of what `benchmarks.offline` measured.

    python -m benchmarks.offline_table FILE.json [--picture FILE.png]
"""

import argparse
import statistics
from pathlib import Path
from textwrap import fill
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.offline import BESIDE
from kdm_core.serialization import read_json

FIGURES = {"classifier ↓": ("classifier: FD to held-out", ".3f"),
           "VGG16 ↓": ("vgg16: FD to held-out", ".2f"),
           "recall ↑": ("classifier: recall", ".2f"), "MSE, % ↓": ("MSE, % of permuted", ".2f"),
           "LPIPS ↓": ("LPIPS", ".3f"),
           "classifier, 2 steps ↓": ("2 steps, classifier: FD to held-out", ".3f"),
           "4 steps ↓": ("4 steps, classifier: FD to held-out", ".3f")}
NAMES = {"classifier": "The classifier's features", "vgg16": "VGG16's features"}
COLOURS = {1: "C0", 2: "C1", 4: "C2"}
"""By the number of steps."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    found = read_json(arguments.file)
    print(table(found))
    if arguments.picture:
        picture(found).savefig(arguments.picture, dpi=130)


def table(found: dict[str, Any]) -> str:
    """A row for each student, means over the seeds, the best in the first feature space first."""
    columns = ["student", "a step", "steps", *FIGURES, *(f"{space} over `{BESIDE}`'s"
                                                         for space in NAMES)]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    teacher = [f"{found['teacher'][key]:{form}}" if key in found["teacher"] else ""
               for key, form in FIGURES.values()]
    lines.append(f"| teacher | | | {' | '.join(teacher)} | | |")
    for name, row in ordered(found):
        steps = next(iter(row["runs"].values()))["steps"]
        cells = [f"`{name}`", f"{row['step']:.2f}×", f"{steps:,}",
                 *(mean(row, key, form) for key, form in FIGURES.values()),
                 *(quotient(row, space) for space in NAMES)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def ordered(found: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The rows that have been run."""
    key = FIGURES["classifier ↓"][0]
    rows = [(name, row) for name, row in found["rows"].items() if row["runs"]]
    return sorted(rows, key=lambda item: statistics.mean(values(item[1], key)))


def values(row: dict[str, Any], key: str) -> list[float]:
    """Of each seed; none where the row has no such figure."""
    return [run[key] for run in row["runs"].values() if key in run]


def mean(row: dict[str, Any], key: str, form: str) -> str:
    """Over the seeds; the picture shows each."""
    each = values(row, key)
    return f"{statistics.mean(each):{form}}" if each else ""


def quotient(row: dict[str, Any], space: str) -> str:
    value, *interval = row.get("beside direct", {}).get(space, [None])
    if value is None:
        return ""
    return f"{value:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def picture(found: dict[str, Any]) -> Figure:
    """A dot for each seed, a panel for each feature space; the teacher is a line."""
    rows = ordered(found)[::-1]
    figure = Figure(figsize=(10, 1.4 + 0.36 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, len(NAMES), sharey=True)
    for panel, (space, name) in zip(panels, NAMES.items(), strict=True):
        key = f"{space}: FD to held-out"
        for place, (_, row) in enumerate(rows):
            for steps, colour in COLOURS.items():
                each = values(row, key if steps == 1 else f"{steps} steps, {key}")
                panel.plot(each, [place] * len(each), "o", color=colour, markersize=5, alpha=0.8)
        panel.axvline(found["teacher"][key], color="black", linewidth=1)
        panel.set_xscale("log")
        panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        panel.xaxis.set_major_formatter("{x:g}")
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("Fréchet distance to held-out images")
        panel.grid(alpha=0.25)
    panels[0].set_yticks(range(len(rows)), [fill(name, 36) for name, _ in rows])
    handles = [Line2D([], [], marker="o", linestyle="", color=colour,
                      label=f"{steps} step{'s' * (steps > 1)}")
               for steps, colour in COLOURS.items()]
    handles.append(Line2D([], [], color="black", linewidth=1, label="teacher"))
    figure.legend(handles=handles, loc="outside upper right", ncols=4, frameon=False)
    return figure


if __name__ == "__main__":
    main()
