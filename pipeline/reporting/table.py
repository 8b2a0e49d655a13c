"""The tables of a report: one to compare the models by, and one an extractor with everything."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from kdm_core.datasets.base import NO_DATA
from kdm_core.figures.style import STUDENTS
from pipeline.reporting.document import Document, Model, models
from pipeline.reporting.metrics import (
    PLAIN,
    SECTIONS,
    Extractors,
    Metric,
    by_rank,
    chief,
    in_features,
    unknown,
)
from pipeline.reporting.text import interval, number, percent, times

MARKS = {"†": "the loss has seen this network",
         "‡": "the loss took as real the images that this compares with"}
"""Of figures that flatter a student."""


class Cell(NamedTuple):
    """A value, remarks below it, by what it is sorted, and `MARKS` on it with what they mean; empty
    where there is no figure."""

    value: str = ""
    notes: tuple[str, ...] = ()
    order: float | None = None
    marks: Mapping[str, str] = {}


class Name(NamedTuple):
    """The name of a model, and of which kind it is: its colour in the figures is `colour`."""

    text: str
    role: str
    colour: str
    verdict: str


class Line(NamedTuple):
    """A row of the chief table; `run` is empty where there is one run only."""

    run: str
    model: Name
    cells: list[Cell]


class Overview(NamedTuple):
    """A chief table: models are rows, metrics columns; its title tells it from others, and `aside`
    those whose models are measured at the number of samples that other real data have."""

    title: str
    aside: bool
    metrics: list[Metric]
    lines: list[Line]

    @property
    def has_ratios(self) -> bool:
        """Whether there is anything that needs the sign for multiples explained."""
        return any("×" in note for line in self.lines for cell in line.cells
                   for note in cell.notes)

    @property
    def legend(self) -> dict[str, str]:
        """The marks in it, and what they mean."""
        return legend(cell for line in self.lines for cell in line.cells)


class Row(NamedTuple):
    """A metric and its value for every model."""

    metric: Metric
    cells: list[Cell]


class Section(NamedTuple):
    """A table of details: metrics are rows, models columns."""

    title: str
    texts: list[str]
    models: list[Name]
    rows: list[Row]


def overviews(
    runs: Sequence[tuple[str, list[Model]]], extractors: Extractors
) -> list[Overview]:
    """The chief tables over the models of runs, which are (name, models).

    Figures that depend on the number of samples stand in one column only where that is the same.
    """
    sizes = dict.fromkeys(model.n for _, found in runs for model in found)
    own_sizes = {found[0].n for _, found in runs}
    tables = []
    for n in sizes:
        own = [(run, at) for run, found in runs if (at := [one for one in found if one.n == n])]
        title = about(n, [model for _, found in own for model in found]) if len(sizes) > 1 else ""
        tables.append(overview(title, n not in own_sizes, own, extractors))
    return tables


def about(n: int, found: Sequence[Model]) -> str:
    """What models that are measured at one number of samples have in common."""
    roles = {model.role for model in found}
    if roles == {"real"}:
        return f"{n:,} real samples, of which there is no counterpart of as many"
    beside = ", as many as there are other real ones" if "real" in roles else ""
    return f"{n:,} samples of each{beside}"


def overview(
    title: str, aside: bool, runs: Sequence[tuple[str, list[Model]]], extractors: Extractors
) -> Overview:
    """One chief table."""
    present = {key for _, found in runs for model in found for key in model.figures}
    flattering = {key for _, found in runs for model in found for key in present
                  if model.seen.flatters(key)}
    metrics = chief(extractors, present, flattering)
    return Overview(title, aside, metrics, [
        Line(run, name, [cell(metric, model) for metric in metrics])
        for run, found in runs for name, model in zip(names(found), found, strict=True)])


def names(found: Sequence[Model]) -> list[Name]:
    """The models' names, the students' with the colours that they have in the figures."""
    students = [model.name for model in found if model.role == "student"]
    return [Name(model.name, model.role, f"student-{students.index(model.name) % len(STUDENTS)}"
                 if model.role == "student" else model.role, model.verdict) for model in found]


def cell(metric: Metric, model: Model) -> Cell:
    """One figure with its interval, and what it is in proportion to."""
    figure = model.figures.get(metric.key)
    if figure is None:
        return Cell()
    notes = [metric.write_interval(figure.interval)] if figure.interval else []
    notes += [note for note in (write(metric.key, model) for write in NOTES) if note]
    if figure.n is not None and figure.n != model.n:
        notes.append(f"n = {figure.n:,}")
    marks = {mark: MARKS[mark] for mark, keys in (("†", model.seen.network),
                                                  ("‡", model.seen.images)) if metric.key in keys}
    return Cell(metric.write(figure.value), tuple(notes), figure.value, marks)


def legend(cells: Iterable[Cell]) -> dict[str, str]:
    """The marks on cells, and what they mean."""
    found = {mark for cell in cells for mark in cell.marks}
    return {mark: text for mark, text in MARKS.items() if mark in found}


def of_permuted(key: str, model: Model) -> str:
    permuted = model.figures.get(f"{key}_permuted")
    if permuted is None or not permuted.value:
        return ""
    share = percent(model.figures[key].value / permuted.value)
    return f"{share} of {number(permuted.value)}"


def of_teacher(key: str, model: Model) -> str:
    """How many times the teacher's a student's figure is; of one that failed nobody is told."""
    if model.verdict == "failed":
        return ""
    if key == "images_per_s" and "speedup" in model.figures:
        return times(model.figures["speedup"].value)
    ratio = model.ratios.get(key)
    if ratio is None:
        return ""
    bounds = f" {interval(*ratio.interval)}" if ratio.interval else ""
    return f"{times(ratio.value)}{bounds}"


def of_chance(key: str, model: Model) -> str:
    chance = model.figures.get(f"{key}_chance")
    return "" if chance is None else f"{percent(chance.value)} by chance"


NOTES: tuple[Callable[[str, Model], str], ...] = (of_teacher, of_permuted, of_chance)


def sections(document: Document) -> list[Section]:
    """Every figure of a run: in each extractor's features, then those that need none.

    Models that are measured at another number of samples have tables of their own.
    """
    found = models(document)
    sizes = {n: [model for model in found if model.n == n]
             for n in dict.fromkeys(model.n for model in found)}
    tables = []
    for name in by_rank(document.extractors):
        metrics = list(in_features(document.extractors[name]).values())
        tables += [section(f"In features of {name}{at(n, document)}", describe(name, document, n),
                           metrics, own) for n, own in sizes.items()]
    for title, keys in SECTIONS.items():
        tables += [section(f"{title}{at(n, document)}", [], [PLAIN[key] for key in keys], own)
                   for n, own in sizes.items()]
    shown = {row.metric.key for table in tables for row in table.rows}
    rest = sorted({key for model in found for key in model.figures if not is_aside(key)} - shown)
    tables += [section(f"Further figures{at(n, document)}", [], [unknown(key) for key in rest], own)
               for n, own in sizes.items()]
    return [table for table in tables if table.rows]


def at(n: int, document: Document) -> str:
    return "" if n == document.n else f", {n:,} samples of each"


def is_aside(key: str) -> bool:
    """Whether a figure is shown as a remark on another one."""
    return key == "speedup" or key.endswith(("_permuted", "_chance"))


def section(
    title: str, texts: list[str], metrics: list[Metric], found: list[Model]
) -> Section:
    """A table of those of the metrics that there are, for the models that have any of them."""
    metrics = [metric for metric in metrics
               if any(metric.key in model.figures for model in found)]
    shown = [any(metric.key in model.figures for metric in metrics) for model in found]
    columns = [name for name, keep in zip(names(found), shown, strict=True) if keep]
    having = [model for model, keep in zip(found, shown, strict=True) if keep]
    rows = [Row(metric, [cell(metric, model) for model in having]) for metric in metrics]
    marks = legend(cell for row in rows for cell in row.cells)
    return Section(title, [*texts, *(f"{mark} {text}." for mark, text in marks.items())],
                   columns, rows)


def describe(name: str, document: Document, n: int) -> list[str]:
    """What an extractor is, how good it is, and what was compared in its features."""
    one = document.extractors[name]
    texts = [one.text]
    if one.accuracy is not None:
        on = f" of {one.accuracy_n:,} held-out images" if one.accuracy_n else " of held-out images"
        texts.append(f"It is right about {percent(one.accuracy)}{on}.")
    kind = "real" if document.dataset != NO_DATA else "other"
    known = f"{one.reference_n:,} {kind} ones" if one.reference_n else "published statistics"
    texts.append(f"{n:,} samples of each model were compared with {known} "
                 f"({one.reference}) in {one.dim:,} features.")
    return texts


def numbers(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A study's numbers as (name, text), those of lists and tables one after another."""
    lines: list[tuple[str, str]] = []
    for key, value in found.items():
        name = key.replace("_", " ")
        if isinstance(value, Mapping):
            lines += [(f"{name}, {part}", text) for part, text in numbers(value)]
        else:
            lines.append((name, written(value)))
    return lines


def written(value: Any) -> str:
    """A number, a text, or several of them."""
    if isinstance(value, list):
        return ", ".join(map(written, value))
    plain = isinstance(value, int | float) and not isinstance(value, bool)
    return number(value) if plain else str(value)
