"""What a report says first: what was distilled, and three numbers that sum it up."""

from collections.abc import Callable, Mapping, Sequence, Set
from math import inf
from typing import NamedTuple

from kdm_core.datasets import DatasetInfo
from kdm_core.datasets.base import NO_DATA
from kdm_core.samples import SOURCE_NAMES
from pipeline.params.student import StudentParams
from pipeline.reporting.document import Document, Values, seen_by
from pipeline.reporting.metrics import PLAIN, Extractors, Metric, by_rank, chief
from pipeline.reporting.text import number, percent, times

DISTANCE, FROM_TEACHER = "Distance to the data", "Distance to the teacher’s samples"
NO_DISTANCES = ("mse", "lpips_vgg", "nfe")
"""Of what is better the lower it is, what is no distance to the data."""
SHARES = (("recall", "Variety", "of the {1} samples lie among {0}’s"),
          ("coverage", "Variety", "of the {1} samples have one of {0}’s nearby"),
          ("on_support", "On the board", "of {0}’s points lie on the board’s dark cells"))
"""Shares that say what distances hide: (metric, title, text about a student and the samples that it
is compared with)."""


class Headline(NamedTuple):
    """One large number, of what it is, and what it says."""

    title: str
    number: str
    text: str


def lead(info: DatasetInfo, students: Mapping[str, StudentParams], document: Document) -> str:
    """What was distilled, in one sentence."""
    unit = document.kind.removesuffix("s")
    kinds = [f"{name} ({config.model.describe()}{', failed' if document.failed(name) else ''})"
             for name, config in students.items()]
    given = " of a given class" if info.samples.num_classes else ""
    data = f" of “{info.source}” ({info.train:,} real {unit}s)" if info.real else ""
    known = document.source == "teacher"
    nfe = document.teacher.get("nfe")
    cost = "" if nfe is None else f" that evaluates its network {number(nfe)} times a sample"
    what = (f"A teacher of {unit}s{given}{data}{cost} was" if known else
            f"Pairs of noise and {unit}s{data}, whose maker is not here or not known, were")
    vain = "to be " if all(map(document.failed, students)) else ""
    return (f"{what} {vain}distilled into "
            f"{'one student' if len(kinds) == 1 else f'{len(kinds)} students'} that "
            f"{'needs' if len(kinds) == 1 else 'need'} a single evaluation: {', '.join(kinds)}.")


def headlines(document: Document) -> list[Headline]:
    """How near to the data, how fast and how varied the best student is, each as one number.

    Students that failed are not it: what they are fast at is of no use.
    """
    sound = [name for name in document.students if not document.failed(name)]
    if not sound:
        return [Headline("Result", "failed", "all students, for the reasons above; how fast they "
                         "are says nothing then.")]
    flattering = {key for name in document.students for key in document.students[name]
                  if seen_by(document, name).flatters(key)}
    distance = chief_distance(document.extractors, [document.students[name] for name in sound],
                              flattering)
    name = best(document, sound, distance)
    return [*nearness(document, name, distance, flattering), *speed(document, name),
            *(variety(document, name, flattering) or fidelity(document, name))]


def chief_distance(
    extractors: Extractors, students: Sequence[Values], flattering: Set[str]
) -> Metric | None:
    """The first distance to the data that all of these students have and that flatters none."""
    common = set.intersection(*map(set, students)) if students else set()
    return next((metric for metric in chief(extractors, common - flattering, flattering)
                 if metric.better == "lower" and metric.key not in NO_DISTANCES), None)


def best(document: Document, names: list[str], distance: Metric | None) -> str:
    """The student that is nearest to the data, or else to what it learned from."""
    key = distance.key if distance else "mse"
    return min(names, key=lambda name: document.students[name].get(key, inf))


def nearness(
    document: Document, name: str, distance: Metric | None, flattering: Set[str]
) -> list[Headline]:
    """How far from the data, beside what it learned from."""
    if distance is None:
        return []
    own, text = document.students[name], f"for {name}: {named(distance)} to {yardstick(document)}"
    alone = document.dataset == NO_DATA
    title = FROM_TEACHER if alone else DISTANCE
    if (ratio := document.ratios.get(name, {}).get(distance.key)) is not None:
        also = elsewhere(document, name, distance, flattering)
        if alone:
            return [Headline(title, times(ratio), f"that of the teacher’s own other samples, {text}"
                             f"{also}. 1 cannot be told from the teacher.")]
        whose = "teacher’s" if document.source == "teacher" else "pairs’"
        return [Headline(title, times(ratio), f"its {whose}, {text}{also}. Below 1 is closer than "
                         f"{'the teacher' if document.source == 'teacher' else 'they are'}.")]
    return [Headline(title, number(own[distance.key]),
                     f"{text}{beside(document, distance.key, number)}. Lower is better.")]


def elsewhere(document: Document, name: str, distance: Metric, flattering: Set[str]) -> str:
    """The same ratio in features of other extractors: they need not agree."""
    ratios = document.ratios[name]
    keys = [one.metrics.get("fd", "") for one in document.extractors.values()]
    return "".join(f"; {key}: {times(ratios[key])}" for key in keys
                   if key in ratios and key != distance.key and key not in flattering)


def beside(document: Document, key: str, write: Callable[[float], str]) -> str:
    """The figure of what the students learned from, as a remark."""
    theirs = getattr(document, document.source).get(key)
    return "" if theirs is None else f"; {SOURCE_NAMES[document.source]}: {write(theirs)}"


def yardstick(document: Document) -> str:
    """What distances lead to."""
    references = [one.reference for one in document.extractors.values()]
    reference = [*references, str(document.conditions.get("reference", ""))][0]
    return "held-out samples of the pairs" if "pairs" in reference else "real data"


def speed(document: Document, name: str) -> list[Headline]:
    """How much faster than its teacher, or how fast where that is unknown."""
    own = document.students[name]
    if "images_per_s" not in own:
        return []
    rate = number(own["images_per_s"])
    if "speedup" in own:
        return [Headline("Speed", times(own["speedup"]), f"its teacher’s, for {name}: {rate} "
                         f"samples a second, with {evaluations(document, name)}.")]
    return [Headline("Speed", rate, f"samples a second, for {name}, with "
                     f"{evaluations(document, name)}.")]


def evaluations(document: Document, name: str) -> str:
    """How often a student evaluates its network, and its teacher does."""
    own, theirs = document.students[name]["nfe"], document.teacher.get("nfe")
    text = f"{number(own)} network evaluation{'' if own == 1 else 's'} each"
    return text if theirs is None else f"{text} instead of {number(theirs)}"


def variety(document: Document, name: str, flattering: Set[str]) -> list[Headline]:
    """How much of the data it covers; of points, how many lie where the data do."""
    own = document.students[name]
    share = chief_share(document.extractors, own.keys() - flattering, flattering)
    if share is None:
        return []
    key, title, text = share
    said = text.format(name, compared_with(document))
    return [Headline(title, percent(own[key]),
                     f"{said} ({key}{beside(document, key, percent)}).")]


def compared_with(document: Document) -> str:
    """Which samples the students' are compared with."""
    return "real" if document.dataset != NO_DATA else "teacher’s other"


def chief_share(
    extractors: Extractors, present: Set[str], flattering: Set[str]
) -> tuple[str, str, str] | None:
    """The first of the shares that is present: its key, title and text about a student."""
    ranked = by_rank(extractors, flattering)
    keys = extractors[ranked[0]].metrics if ranked else {}
    return next(((key, title, text) for metric, title, text in SHARES
                 if (key := keys.get(metric, metric)) in present), None)


def fidelity(document: Document, name: str) -> list[Headline]:
    """How far a student's samples are from those that it learned from, of the same noise."""
    own = document.students[name]
    if not own.get("mse_permuted"):
        return []
    return [Headline("Faithfulness", percent(own["mse"] / own["mse_permuted"]), "of the MSE with "
                     f"mixed-up noises is that of {name} with the right ones. Lower is better.")]


def named(metric: Metric) -> str:
    """A metric's name, with the key that says in which features it was measured."""
    return metric.name if metric.key in PLAIN else f"{metric.name} ({metric.key})"
