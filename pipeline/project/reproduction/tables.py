"""What came out, beside what the paper published: a table in Markdown, and a figure of it."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from scipy.stats import spearmanr

from pipeline.project.reproduction.paper import TEACHER, Item, Published
from pipeline.reporting.conditions import LABELS, parts
from pipeline.reporting.document import Document
from pipeline.reporting.metrics import PLAIN, Metric, by_rank, in_features, is_genuine
from pipeline.reporting.text import interval, minus, number, percent, times

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ELSEWHERE = "the paper's figures come from other features or data than ours: compare the order, " \
            "not the values"
FOR_POINTS = ("sliced_wasserstein", "energy_distance")
LPIPS = ("lpips_vgg", "lpips_alex")
LEAST_FOR_ORDER = 3
"""Columns below which an order says nothing."""
WIDE = 20
"""By so much must values differ that an axis is logarithmic."""


class Outcome(NamedTuple):
    """A row of the table.

    Attributes:
        name: what was varied, in words.
        student: whose figures of the document it shows; the teacher's where that is `TEACHER`.
        document: None where nothing came out, for the `reason`.
        published: what the paper has there; None where it has nothing.
    """

    name: str
    student: str
    document: Document | None
    published: Published | None = None
    reason: str = ""


class Head(NamedTuple):
    """Of what a table is, and how it was made.

    Attributes:
        preset: with what was changed in it.
        command: that makes it again.
        papers: whether all settings are those of the paper's own preset.
    """

    preset: str
    student: str
    command: str
    papers: bool


class Measure(NamedTuple):
    """The distance by which rows are compared.

    Attributes:
        metric: its key and name.
        features: in whose features it is; empty for none.
        score: the key of the score in the same features, of Inception's alone.
        genuine: whether these are Inception's, so that it is FID.
    """

    metric: Metric
    features: str = ""
    score: str = ""
    genuine: bool = False

    @property
    def title(self) -> str:
        return f"{self.metric.name}, {self.features}" if self.features else self.metric.name


def measure_of(outcomes: Sequence[Outcome]) -> Measure | None:
    """The distance that all rows have, in the features that are shown first; None for none."""
    documents = [one.document for one in outcomes if one.document is not None]
    if not documents:
        return None
    first = documents[0]
    flattering = {key for one in documents for seen in one.seen.values()
                  for key in (*seen.network, *seen.images)}
    for name in by_rank(first.extractors, flattering):
        metrics = in_features(first.extractors[name])
        if "fd" in metrics:
            genuine = is_genuine(first.extractors[name])
            score = metrics["is"].key if genuine and "is" in metrics else ""
            return Measure(metrics["fd"], name, score, genuine)
    known = {key for one in documents for figures in one.students.values() for key in figures}
    return next((Measure(PLAIN[key]) for key in FOR_POINTS if key in known), None)


def table(name: str, item: Item, head: Head, outcomes: Sequence[Outcome], figure: str) -> str:
    """All of the page.

    Args:
        figure: the name of the picture's file; empty for none.
    """
    measure = measure_of(outcomes)
    comparable = head.papers and measure is not None and measure.genuine
    columns = columns_of(outcomes, measure, comparable)
    lines = [f"# {name}: {item.title}", "", summary(item, outcomes, measure), "",
             *heading(item, head, outcomes), "",
             "| " + " | ".join(["", *columns]) + " |", "|---" * (1 + len(columns)) + "|"]
    lines += ["| " + " | ".join([escaped(one.name), *(cells[row] for cells in columns.values())])
              + " |" for row, one in enumerate(outcomes)]
    lines += ["", "In brackets are 95 % bootstrap intervals."
              + ("" if comparable else f" Read with care: {ELSEWHERE}.")]
    if figure:
        lines += ["", f"![{name}: {item.title}]({figure})"]
    if reasons := list(dict.fromkeys(why_absent(outcomes))):
        lines += ["", "What is missing:", "", *(f"- {escaped(reason)}" for reason in reasons)]
    return "\n".join(lines) + "\n"


def heading(item: Item, head: Head, outcomes: Sequence[Outcome]) -> list[str]:
    """Of what the table is, a line each."""
    documents = [one.document for one in outcomes if one.document is not None]
    lines = [f"- The paper: {item.place}." + (f" There: {item.said}." if item.said else ""),
             f"- Preset: {escaped(head.preset)}. Student: {head.student}."]
    for key in ("hardware", "revision", "n"):
        found = dict.fromkeys(text for one in documents if key in one.conditions
                              for _, text in parts(one.conditions[key]))
        if found:
            lines.append(f"- {LABELS[key]}: {escaped('; '.join(found))}.")
    return [*lines, f"- Made by `{head.command}`."]


def columns_of(
    outcomes: Sequence[Outcome], measure: Measure | None, comparable: bool
) -> dict[str, list[str]]:
    """The columns with a cell a row, of which those that have nothing to say are left out."""
    aside = "" if comparable else " (other features and data)"
    known = {key for one in outcomes for key in figures(one)}
    lpips = next((key for key in LPIPS if key in known), LPIPS[0])
    columns: dict[str, list[str]] = {}
    if measure is not None:
        key = measure.metric.key
        columns[f"{measure.title} ↓"] = [value(one, key) for one in outcomes]
        columns["… over the teacher's"] = [ratio(one, key) for one in outcomes]
        if measure.score:
            columns["Inception score ↑"] = [value(one, measure.score) for one in outcomes]
    columns |= {
        "MSE, share of permuted pairs' ↓": [share(one, "mse") for one in outcomes],
        f"{PLAIN[lpips].name} ↓": [value(one, lpips) for one in outcomes],
        "parameters": [value(one, "parameters") for one in outcomes],
        "verdict": [verdict(one) for one in outcomes],
        "in the paper": ["" if one.published is None else one.published.name for one in outcomes],
        f"the paper's FID{aside} ↓": [published(one, "fid") for one in outcomes],
        f"the paper's Inception score{aside} ↑": [published(one, "inception") for one in outcomes]}
    return {title: cells for title, cells in columns.items() if any(cells)}


def figures(one: Outcome) -> Mapping[str, float]:
    """All figures of a row's model."""
    if one.document is None:
        return {}
    return (one.document.teacher if one.student == TEACHER
            else one.document.students.get(one.student, {}))


def bounds(one: Outcome, key: str) -> tuple[float, float] | None:
    """The interval of a figure of a row's model."""
    if one.document is None:
        return None
    intervals = one.document.intervals
    own = (intervals.teacher if one.student == TEACHER
           else intervals.students.get(one.student, {}))
    return own.get(key)


def value(one: Outcome, key: str) -> str:
    if key not in figures(one):
        return ""
    around = bounds(one, key)
    return number(figures(one)[key]) + (f" {interval(*around)}" if around else "")


def ratio(one: Outcome, key: str) -> str:
    if one.document is None or key not in one.document.ratios.get(one.student, {}):
        return ""
    around = one.document.intervals.ratios.get(one.student, {}).get(key)
    return times(one.document.ratios[one.student][key]) + (f" {interval(*around)}" if around
                                                           else "")


def share(one: Outcome, key: str) -> str:
    own, permuted = (figures(one).get(name) for name in (key, f"{key}_permuted"))
    return percent(own / permuted) if own is not None and permuted else ""


def verdict(one: Outcome) -> str:
    if one.document is None:
        return ""
    known = (one.document.verdicts.teacher if one.student == TEACHER
             else one.document.verdicts.students.get(one.student))
    return "" if known is None else escaped(known.word)


def published(one: Outcome, field: str) -> str:
    found = None if one.published is None else getattr(one.published, field)
    return "" if found is None else f"{found:g}"


def summary(item: Item, outcomes: Sequence[Outcome], measure: Measure | None) -> str:
    """What came out, in words."""
    if measure is None:
        return "Nothing has come out yet by which the rows could be compared."
    ours = {one.name: figures(one)[measure.metric.key] for one in outcomes
            if one.student != TEACHER and measure.metric.key in figures(one)}
    theirs = {one.name: one.published.fid for one in outcomes if one.student != TEACHER
              and one.published is not None and one.published.fid is not None}
    if not ours:
        return "Nothing has come out yet by which the rows could be compared."
    best = min(ours, key=ours.__getitem__)
    failed = next(verdict(one) for one in outcomes if one.name == best) == "failed"
    said = (f"Here “{best}” came out best ({measure.title} {number(ours[best])}{margin(ours)}"
            f"{'; but its verdict is failed' if failed else ''})")
    if len(ours) < 2:
        said = f"Here {measure.title} is {number(ours[best])} for “{best}”"
    if not theirs:
        return said + (f"; the paper says that {item.said}." if item.said else ".")
    chosen = min(theirs, key=lambda name: theirs[name])
    called = next(one.published.name for one in outcomes if one.name == chosen and one.published)
    said += f"; in the paper “{called}” did (FID {theirs[chosen]:g}), "
    if item.kind == "sweep":
        said += "so its best is ours, too." if chosen == best else f"which is “{chosen}” here."
    else:
        said = f"{said.removesuffix(', ')}."
    return f"{said} {agreement(ours, theirs)}".rstrip()


def margin(ours: Mapping[str, float]) -> str:
    """By how much the best one is ahead of the second."""
    if len(ours) < 2:
        return ""
    first, second = sorted(ours.values())[:2]
    return f", the next {number(second)}" if second > first else ", as the next"


def agreement(ours: Mapping[str, float], theirs: Mapping[str, float]) -> str:
    """Whether both put what both have in one order; empty where too little is there to say so."""
    both = [name for name in ours if name in theirs]
    pairs = [(ours[name], theirs[name]) for name in both]
    if len(both) < LEAST_FOR_ORDER or any(len(set(side)) < 2 for side in zip(*pairs, strict=True)):
        return ""
    found = float(spearmanr(*zip(*pairs, strict=True)).statistic)
    if found > 1 - 1e-9:
        return f"The order of the {len(both)} is the paper's."
    return (f"The order of the {len(both)} has a rank correlation (Spearman) of "
            f"{minus(f'{found:.2f}')} with the paper's.")


def why_absent(outcomes: Sequence[Outcome]) -> Iterable[str]:
    """Why cells are empty, a line each."""
    for one in outcomes:
        if one.document is None:
            yield f"{one.name}: {one.reason}"
        else:
            yield from one.document.absent


def escaped(text: str) -> str:
    """Text from outside, on one line of a table."""
    flat = " ".join(text.split()).replace("\\", "\\\\")
    for mark in "|<[*":
        flat = flat.replace(mark, f"\\{mark}")
    return flat


def drawn(outcomes: Sequence[Outcome], ordered: bool) -> "Figure | None":
    """Ours and the paper's distances over the rows, in panels of their own; None where there is
    nothing to draw.

    Args:
        ordered: whether rows are sizes, which a line joins.
    """
    from kdm_core.figures.style import STUDENTS, WIDTH, panels, short, styled
    from kdm_core.figures.style import TEACHER as GRAY

    measure = measure_of(outcomes)
    rows = [one for one in outcomes if one.student != TEACHER]
    if measure is None:
        return None
    key = measure.metric.key
    theirs = [None if one.published is None else one.published.fid for one in rows]
    count = 2 if any(fid is not None for fid in theirs) else 1
    ours = [figures(one).get(key) for one in rows]
    around = [bounds(one, key) for one in rows]
    nothing: list[tuple[float, float] | None] = [None] * len(rows)
    columns = [(measure.title, ours, around, STUDENTS[0]),
               ("the paper: FID", theirs, nothing, STUDENTS[1])][:count]
    figure, axes = panels(count, 1, WIDTH, 2.6)
    beside = next((figures(one).get(key) for one in outcomes if one.student == TEACHER), None)
    with styled():
        for axis, (title, values, intervals, colour) in zip(axes, columns, strict=True):
            shown = [(i, found, intervals[i]) for i, found in enumerate(values)
                     if found is not None]
            for place, found, bars in shown:
                error = [[max(found - bars[0], 0)], [max(bars[1] - found, 0)]] if bars else None
                axis.errorbar([place], [found], error, fmt="o", color=colour, capsize=3)
            if ordered:
                axis.plot([place for place, _, _ in shown], [found for _, found, _ in shown],
                          color=colour)
            positive = [found for _, found, _ in shown if found > 0]
            if len(positive) == len(shown) and positive and max(positive) > WIDE * min(positive):
                axis.set_yscale("log")
            axis.set_title(title)
            names = [one.published.name if one.published and values is theirs else one.name
                     for one in rows]
            axis.set_xticks(range(len(rows)), [short(name, 26) for name in names],
                            rotation=0 if len(rows) < 5 else 20)
            axis.set_xlim(-0.5, len(rows) - 0.5)
        if beside is not None:
            axes[0].axhline(beside, color=GRAY, linestyle="--", label="teacher")
            axes[0].legend()
    return figure
