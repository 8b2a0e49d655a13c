"""Which students of several runs are ahead, as far as their figures can be compared."""

from collections.abc import Callable, Mapping
from typing import NamedTuple

from pipeline.reporting.document import Document, Values, seen_by
from pipeline.reporting.headlines import (
    DISTANCE,
    Headline,
    chief_distance,
    chief_share,
    compared_with,
    named,
    yardstick,
)
from pipeline.reporting.metrics import Extractors
from pipeline.reporting.text import number, percent

SAME_SPEED = ("precision", "device", "threads", "hardware")
"""Conditions without which samples a second cannot be compared."""
TOLD = 3


class Entry(NamedTuple):
    """A student of a run, its figures, and the intervals of these."""

    who: str
    figures: Values
    intervals: Mapping[str, tuple[float, float]]


class Field(NamedTuple):
    """Students whose figures can be compared.

    Attributes:
        entries: those that did not fail; none where they are measured at several numbers of
            samples.
        extractors: those that all runs have, with the same features.
        flattering: keys of figures that flatter any of the students.
    """

    entries: list[Entry]
    extractors: Extractors
    flattering: set[str]


def field(documents: Mapping[str, Document]) -> Field:
    """The students of runs on the same data."""
    sound = [(run, name, document) for run, document in documents.items()
             for name in document.students if not document.failed(name)]
    one_n = len({document.n for document in documents.values()}) == 1
    first, *others = [document.extractors for document in documents.values()]
    return Field(
        [Entry(f"{name} of {run}", document.students[name],
               document.intervals.students.get(name, {})) for run, name, document in sound]
        if one_n else [],
        {name: one for name, one in first.items()
         if all(name in other and other[name].fingerprint == one.fingerprint for other in others)},
        {key for _, name, document in sound for key in document.students[name]
         if seen_by(document, name).flatters(key)})


def ranking(documents: Mapping[str, Document]) -> str:
    """The students by their distance to the data, in one sentence; empty where none can be said."""
    entries, extractors, flattering = field(documents)
    metric = chief_distance(extractors, [one.figures for one in entries], flattering)
    if metric is None:
        return ""
    ranked = sorted(entries, key=lambda one: one.figures[metric.key])
    texts = [f"{one.who} at {metric.write(one.figures[metric.key])}"
             + (f" {metric.write_interval(bounds)}" if (bounds := one.intervals.get(metric.key))
                else "") for one in ranked[:TOLD]]
    more = f", then {len(ranked) - TOLD} more" if len(ranked) > TOLD else ""
    return (f"By {named(metric)} to {yardstick(next(iter(documents.values())))}, the nearest is "
            f"{', then '.join(texts)}{more}. Lower is better.")


def leaders(documents: Mapping[str, Document]) -> list[Headline]:
    """The smallest distance, the highest speed and the largest share of the data covered."""
    entries, extractors, flattering = field(documents)
    if len(entries) < 2:
        return []
    found = []
    distance = chief_distance(extractors, [one.figures for one in entries], flattering)
    if distance is not None:
        found.append(lead(entries, distance.key, DISTANCE, number, -1,
                          f"for {{}}: {named(distance)}, lower is better"))
    conditions = [document.conditions for document in documents.values()]
    if all(len({str(one.get(key)) for one in conditions}) == 1 for key in SAME_SPEED):
        found.append(lead(entries, "images_per_s", "Speed", number, 1,
                          "samples a second, for {}"))
    common = set.intersection(*(set(one.figures) for one in entries))
    if (share := chief_share(extractors, common - flattering, flattering)) is not None:
        key, title, text = share
        others = compared_with(next(iter(documents.values())))
        found.append(lead(entries, key, title, percent, 1, f"{text.format('{}', others)} ({key})"))
    return [one for one in found if one is not None]


def lead(
    entries: list[Entry], key: str, title: str, write: Callable[[float], str], sign: int, text: str
) -> Headline | None:
    """Who is ahead in a figure, and who comes second.

    Args:
        sign: -1 where less is better.
        text: about who is ahead, with a place for the name.
    """
    if not all(key in one.figures for one in entries):
        return None
    first, second, *_ = sorted(entries, key=lambda one: -sign * one.figures[key])
    return Headline(title, write(first.figures[key]), f"{text.replace('{}', first.who)}. "
                    f"Next is {second.who} with {write(second.figures[key])}.")
