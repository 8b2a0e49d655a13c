"""The figures of the paper that are a study's picture: making the study, and its page."""

from collections.abc import Mapping
from pathlib import Path

from kdm_core.studies import STUDIES
from pipeline.params.run import Params
from pipeline.project.reproduction.paper import Item, ReproductionError
from pipeline.project.reproduction.tables import Head, escaped
from pipeline.reporting.conditions import git_revision
from pipeline.reporting.reading import Study, read_studies, read_timings
from pipeline.reporting.table import numbers


def require_studies(name: str, item: Item, params: Params) -> None:
    """Make sure, before anything runs, that the studies of a figure will be made.

    Raises:
        ReproductionError: they will not; the message says what to do.
    """
    kind = "points" if params.data.source == "checkerboard" else "image"
    for study in item.studies:
        if getattr(params.studies, study) is None:
            raise ReproductionError(f"params.yaml: studies.{study} is null, and {name} is its "
                                    "picture: leave that line out")
        if kind not in STUDIES[study].kinds:
            raise ReproductionError(
                f"{name} is made of {' and '.join(STUDIES[study].kinds)}, and the data here are of "
                f"kind {kind}: add --preset {item.presets[-1]}")


def find_studies(name: str, item: Item, student: str) -> list[Study]:
    """A student's studies of a figure, from the current folder.

    Raises:
        DataError: they are damaged.
        ReproductionError: one of them could not be made.
    """
    made = {one.finding.name: one for one in (read_studies([student]) or {}).get(student, [])}
    if lacking := [study for study in item.studies if study not in made]:
        raise ReproductionError(f"the study {lacking[0]} of {student}, whose picture {name} is, "
                                "could say nothing of this run: the lines of the stage "
                                f"study@{student} say why (`dvc repro --force --single-item "
                                f"study@{student}` shows them again)")
    return [made[study] for study in item.studies]


def page(name: str, item: Item, head: Head, studies: Mapping[Path, Study]) -> str:
    """The page of a figure; its pictures by their files."""
    timing = read_timings([head.student]).get(f"study@{head.student}")
    revision = git_revision()
    lines = [f"# {name}: {item.title}", "", item.seen, "",
             f"- The paper: {item.place}." + (f" There: {item.said}." if item.said else ""),
             f"- Preset: {escaped(head.preset)}. Student: {head.student}."]
    if timing is not None and timing.hardware:
        lines.append(f"- Hardware: {escaped(timing.hardware)}.")
    if revision:
        lines.append(f"- Revision of the project: {revision}.")
    lines.append(f"- Made by `{head.command}`.")
    for file, study in studies.items():
        found = study.finding
        lines += ["", f"## {escaped(found.title)}", "", f"![{escaped(found.alt)}]({file.name})", "",
                  escaped(found.caption), "", "| measured | |", "|---|---|",
                  *(f"| {escaped(key)} | {escaped(value)} |"
                    for key, value in numbers(found.numbers))]
    return "\n".join(lines) + "\n"
