"""What a report says first: what was distilled, and three numbers that sum it up."""

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from kdm_core.datasets import DatasetInfo
from pipeline.params.student import StudentParams
from pipeline.reporting.document import Document, Values, seen_by
from pipeline.reporting.metrics import PLAIN, Metric, chief
from pipeline.reporting.text import number, percent, times


class Headline(NamedTuple):
    """One large number and what it says."""

    number: str
    text: str


def lead(info: DatasetInfo, students: Mapping[str, StudentParams], document: Document) -> str:
    """What was distilled, in one sentence."""
    unit = "image" if info.samples.kind == "image" else "point"
    kinds = [f"{name} ({config.model.describe()}{', failed' if document.failed(name) else ''})"
             for name, config in students.items()]
    given = " of a given class" if info.samples.num_classes else ""
    data = f"“{info.source}” ({info.train:,} real {unit}s)"
    known = document.source == "teacher"
    what = (f"A teacher that evaluates its network {number(document.teacher['nfe'])} times for "
            f"every {unit}{given} of {data} was" if known else
            f"Pairs of noise and {unit}s of {data}, of which nobody wrote down who made them, were")
    vain = "to be " if all(map(document.failed, students)) else ""
    return (f"{what} {vain}distilled into "
            f"{'one student' if len(kinds) == 1 else f'{len(kinds)} students'} that "
            f"{'needs' if len(kinds) == 1 else 'need'} a single evaluation: {', '.join(kinds)}.")


def headlines(document: Document) -> list[Headline]:
    """Cost, speed and quality, each as one number, or as two where students differ.

    Students that failed are in none of them: what they are fast at is of no use.
    """
    students = {name: one for name, one in document.students.items() if not document.failed(name)}
    if not students:
        return [Headline("failed", "all students, for the reasons above; how fast they are says "
                         "nothing then")]
    left_out = [name for name in document.students if name not in students]
    without = f"; without {', '.join(left_out)}, which failed" if left_out else ""
    nfe = span(number, [one["nfe"] for one in students.values()])
    if document.source == "teacher":
        found = [Headline(f"{number(document.teacher['nfe'])} → {nfe}",
                          "network evaluations a sample"),
                 Headline(span(times, [one["speedup"] for one in students.values()]),
                          f"the teacher’s speed, measured side by side{without}")]
    else:
        found = [Headline(nfe, "network evaluations a sample"),
                 Headline(span(number, [one["images_per_s"] for one in students.values()]),
                          f"samples a second{without}")]
    return [*found, *(one._replace(text=f"{one.text}{without}")
                      for one in quality(document, students))]


def quality(document: Document, students: Mapping[str, Values]) -> list[Headline]:
    """The first distance to real samples as a multiple of the teacher's; else the first share.

    None that flatters one of the students.
    """
    present = {key for figures in students.values() for key in figures}
    flattering = {key for key in present for name in students
                  if seen_by(document, name).flatters(key)}
    for metric in chief(document.extractors, present - flattering, flattering):
        ratios = [document.ratios[name][metric.key] for name in students
                  if metric.key in document.ratios.get(name, {})]
        if ratios:
            return [Headline(span(times, ratios), f"the teacher’s {named(metric)} to real "
                             "samples (lower is better)")]
    shares = [one["mse"] / one["mse_permuted"] for one in students.values()
              if one.get("mse_permuted")]
    return [Headline(span(percent, shares), "of the MSE with mixed-up noises (lower is better)")
            ] if shares else []


def named(metric: Metric) -> str:
    """A metric's name, with the key that says in which features it was measured."""
    if metric.key in PLAIN:
        return metric.name[0].lower() + metric.name[1:]
    return f"{metric.name} ({metric.key})"


def span(write: Callable[[float], str], values: Sequence[float]) -> str:
    """The least and the greatest of values, or one where both read the same."""
    least, greatest = write(min(values)), write(max(values))
    return least if least == greatest else f"{least} – {greatest}"
