"""What finished runs came to: kept in docs/results, told in docs/results.md.

    python -m benchmarks.results keep PROJECT NAME [FIGURE …]
    python -m benchmarks.results

The first copies a finished run's report.json, its params.yaml and pictures (samples.png and those
that are named) to docs/results/NAME. Both write the tables of the page anew from what is kept, so
that no figure is copied by hand.
"""

import argparse
import shutil
from pathlib import Path
from typing import Any

from kdm_core.serialization import read_json, write_atomic
from pipeline.project.reproduction.paper import ITEMS

KEPT = Path("docs/results")
PAGE = Path("docs/results.md")
COLUMNS = {"classifier": "Fréchet distance, classifier ↓", "vgg16": "Fréchet distance, VGG16 ↓"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers()
    keeping = commands.add_parser("keep")
    keeping.add_argument("project", type=Path)
    keeping.add_argument("name")
    keeping.add_argument("figures", nargs="*", help="of reports/figures, besides samples.png")
    arguments = parser.parse_args()
    if "project" in arguments:
        keep(arguments.project, KEPT / arguments.name, ["samples.png", *arguments.figures])
    write_atomic(PAGE, filled(PAGE.read_text(encoding="utf-8")).encode())


def keep(project: Path, target: Path, figures: list[str]) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in ["params.yaml", "reports/report.json", *(f"reports/figures/{f}" for f in figures)]:
        shutil.copy(project / file, target / Path(file).name)


def filled(page: str) -> str:
    """The page with its tables between their markers."""
    runs = {path.parent.name: read_json(path) for path in sorted(KEPT.glob("*/report.json"))}
    parts = {"summary": summary(runs), **{name: table(report) for name, report in runs.items()}}
    for name, text in parts.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- end of {name} -->"
        if page.count(begin) != 1 or page.count(end) != 1:
            raise SystemExit(f"{PAGE}: write {begin.strip()} and {end} where its table belongs")
        before, rest = page.split(begin)
        page = f"{before}{begin}{text}\n{end}{rest.split(end)[1]}"
    return page


def summary(runs: dict[str, Any]) -> str:
    """Expected beside measured, a line for each student; then what has not been run."""
    lines = [row("preset", "student", "paper, or reference", "ours", "hardware", "time", "command"),
             "|---|---|---|---|---|---|---|"]
    for name, report in runs.items():
        reference = (f"its teacher, {report['teacher']['nfe']:g} evaluations: "
                     f"{measured(report['teacher'], report['intervals']['teacher'], 'classifier')}")
        for student, figures in report["students"].items():
            ours = measured(figures, report["intervals"]["students"][student], "classifier")
            seconds = report["stages"][f"train_student@{student}"]
            lines.append(row(name, f"`{student}`", reference, ours,
                             report["conditions"]["hardware"], minutes(seconds),
                             f"`kdm new DIR --preset {name}`, `dvc repro`"))
    for name, item in ITEMS.items():
        if item.kind == "run":
            lines += [row(one.preset, f"`{one.student}`", f"FID {one.fid}, IS {one.inception}",
                          "not run yet", "", "", f"`kdm reproduce {name}`")
                      for one in item.published if one.preset not in runs]
    return "\n".join(lines)


def table(report: dict[str, Any]) -> str:
    """The students of a run beside their teacher."""
    spaces = [part for space in COLUMNS.values() for part in (space, "… over the teacher's")]
    lines = [row("", "verdict", *spaces, "recall, classifier ↑", "MSE, % of permuted ↓",
                 "evaluations", "images/s ↑", "parameters", "trained in"), "|---" * 12 + "|"]
    teacher, intervals = report["teacher"], report["intervals"]
    distances = [part for space in COLUMNS
                 for part in (measured(teacher, intervals["teacher"], space), "1")]
    lines.append(row("teacher", "", *distances, *costs(teacher, report["stages"]["teacher"])))
    for name, figures in report["students"].items():
        distances = [part for space in COLUMNS for part in (
            measured(figures, intervals["students"][name], space),
            measured(report["ratios"][name], intervals["ratios"][name], space))]
        lines.append(row(f"`{name}`", report["verdicts"]["students"][name]["word"], *distances,
                         *costs(figures, report["stages"][f"train_student@{name}"])))
    return "\n".join(lines)


def costs(figures: dict[str, float], seconds: float) -> list[str]:
    """The columns that do not depend on a feature space but for recall."""
    share = (f"{100 * figures['mse'] / figures['mse_permuted']:.2f}" if "mse" in figures else "")
    return [f"{figures['recall_classifier']:.3f}", share, f"{figures['nfe']:g}",
            f"{figures['images_per_s']:,.0f}", f"{figures['parameters']:,.0f}", minutes(seconds)]


def measured(figures: dict[str, float], intervals: dict[str, list[float]], space: str) -> str:
    """A distance with its 95 % interval."""
    key = f"fd_{space}"
    interval = intervals.get(key)
    value = f"{figures[key]:.3g}"
    return value if not interval else f"{value} [{interval[0]:.3g}, {interval[1]:.3g}]"


def minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 60 else f"{seconds:.0f} s"


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
