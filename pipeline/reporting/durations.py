"""How long the stages of a run took, when, and how fast they were."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import NamedTuple

from pipeline.reporting import text
from pipeline.reporting.records import Timing
from pipeline.reporting.text import duration, number


class Line(NamedTuple):
    """A stage in the table; texts are empty where nothing is known.

    Attributes:
        note: of the time that it took, what is to be known besides.
        counted: what its throughput was measured on.
    """

    stage: str
    finished: str
    took: str
    note: str
    throughput: str
    counted: str
    device: str


class Durations(NamedTuple):
    """The table, and below it the sum of all times and the time with any stage at work."""

    lines: list[Line]
    total: str
    wall: str


def durations(timings: Mapping[str, Timing]) -> Durations:
    """The table of all stages, those that DVC has taken from its cache included."""
    return Durations([line(stage, timing) for stage, timing in timings.items()],
                     duration(sum(timing.seconds for timing in timings.values())),
                     duration(wall_s(timings)))


def line(stage: str, timing: Timing) -> Line:
    """The row of a stage; of the things that it counted, the one that took longest speaks for it.

    What a stage read into memory before its work, say, is left out so.
    """
    earlier = timing.earlier_seconds
    chief = max(timing.throughput, key=lambda one: one.seconds, default=None)
    speed = chief and f"{number(chief.done / max(chief.seconds, 1e-9))} {chief.unit}s/s"
    return Line(
        stage, f"{when(timing):%Y-%m-%d %H:%M} UTC" if timing.finished else "",
        duration(timing.seconds),
        f"{duration(earlier)} of it in runs that were stopped" if earlier else "",
        speed or "", chief.name if chief else "",
        f"{timing.device} ({timing.hardware})" if timing.hardware else timing.device)


def day(timings: Mapping[str, Timing]) -> str:
    """The day on which the latest result was ready; empty where nobody noted it."""
    ends = [when(timing) for timing in timings.values() if timing.finished]
    return text.day(max(ends)) if ends else ""


def wall_s(timings: Mapping[str, Timing]) -> float:
    """Seconds in which any of the stages was at work: students may be trained side by side.

    A stage that did not say when it ended counts as one that ran alone, and one that was stopped
    and went on as one that ran without a pause.
    """
    alone = sum(timing.seconds for timing in timings.values() if timing.finished is None)
    spans = sorted((when(timing).timestamp() - timing.seconds, when(timing).timestamp())
                   for timing in timings.values() if timing.finished is not None)
    total, until = 0.0, float("-inf")
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return alone + total


def when(timing: Timing) -> datetime:
    """When a stage ended, which it must have said."""
    assert timing.finished is not None
    return timing.finished.astimezone(UTC)
