"""What the figures of an evaluation come to, in a word.

A rule that fails decides alone. A rule whose figures are missing is named as such, and where
nothing is known of the distance to real samples there is no verdict but "failed" or "not judged":
nobody is good for want of figures. A figure that flatters a student can speak against it, and never
for it.
"""

from collections.abc import Mapping, Sequence
from math import isfinite
from typing import Literal, NamedTuple

from kdm_core.metrics.estimate import Estimate
from kdm_core.samples import Source

Word = Literal["failed", "poor", "told apart", "close", "as good as its teacher",
               "better than its teacher", "passed", "not judged"]
Figures = Mapping[str, Estimate]
OF: dict[Source, str] = {"teacher": "its teacher's", "pairs": "its pairs'"}

PAIR_ERROR = 0.5
"""Of the permuted pairs' error. A student that ignores its noise has all of it, also where it makes
the mean of all samples; one whose samples vary as the teacher's do and correlate with them by a
half has half of it."""
COLLAPSED = 0.25
"""Of the recall, and of the variance within a class: below it most of the variety is gone."""
CHANCE = 0.1
"""Of the way from chance to full agreement (Cohen's kappa): below it there is none to speak of."""
FAR = 10.0
"""Times the distance of held-out real data, at as many samples."""
CLOSE = 1.5
"""Times the teacher's distance."""
AS_GOOD = 1.1
"""The upper end of the ratio's interval."""
TRUSTED = 0.5
"""The share of held-out images about which a classifier must be right to judge others."""


class Verdict(NamedTuple):
    """A word about a model.

    Attributes:
        word: what it is.
        why: the figures that decided it, a sentence each.
        unknown: what could not be judged, and for want of what.
    """

    word: Word
    why: list[str]
    unknown: list[str]


class Evidence(NamedTuple):
    """The figures that verdicts rest on; any of them may be missing.

    Attributes:
        source: what `given` are the figures of.
        given, student: figures by name, at the same number of samples.
        ratios: the student's distances over those of what it learned from.
        given_at_n, real: figures by name, at the number of samples that held-out data have.
        distances, recalls: names of the figures that are such, one an extractor.
        classifier: how often the run's classifier is right about held-out real images.
        flattered: why a figure of the student flatters it, and what would not, by its name.
        real_data: whether distances are to real samples, and not to others of the teacher's: beside
            those the teacher itself has none but that of so many samples, so that a student is no
            good or bad multiple of it, but one that can be told from its teacher or cannot.
    """

    source: Source
    given: Figures
    student: Figures
    ratios: Figures
    given_at_n: Figures
    real: Figures
    distances: Sequence[str]
    recalls: Sequence[str]
    classifier: float | None
    flattered: Mapping[str, str] = {}
    real_data: bool = True


class Check(NamedTuple):
    """A rule applied: whether it fails, None where that cannot be said, and the figures in words.

    Attributes:
        figure: the name of that which may flatter.
    """

    fails: bool | None
    text: str
    figure: str = ""


def judge(evidence: Evidence) -> dict[str, Verdict]:
    """The verdicts on the student, as "student", and on what it learned from, by its name."""
    source = judge_source(evidence)
    return {evidence.source: source, "student": judge_student(evidence, source)}


def judge_source(evidence: Evidence) -> Verdict:
    """*failed*, *passed* or *not judged*: whether there was anything to learn."""
    checks = [*distances_of_source(evidence), label_check(evidence)]
    why, unknown = told(checks)
    if any(check.fails for check in checks):
        return Verdict("failed", failing(checks), unknown)
    judged = any(check.fails is False for check in checks[:-1])
    return Verdict("passed" if judged else "not judged", why, unknown)


def judge_student(evidence: Evidence, source: Verdict) -> Verdict:
    """One of all words but *passed*."""
    checks = [pair_check(evidence), *recall_checks(evidence), spread_check(evidence),
              agreement_check(evidence), source_check(evidence.source, source)]
    why, unknown = told([check for check in checks
                         if check.fails or check.figure not in evidence.flattered])
    if any(check.fails for check in checks):
        return Verdict("failed", failing(checks), unknown)
    word, reasons, lacking = compare(evidence)
    return Verdict(word, reasons + why, lacking + flattering(evidence) + unknown)


def compare(evidence: Evidence) -> tuple[Word, list[str], list[str]]:
    """The word that ratios of distances to real samples give, why, and what it is in want of."""
    ratios = {name: ratio for name in evidence.distances
              if (ratio := known(evidence.ratios, name)) is not None}
    to = "real samples" if evidence.real_data else "other samples of its teacher"
    whose = OF[evidence.source]
    if not ratios:
        return "not judged", [], [f"its distance to {to} beside {whose}: not both have one"]
    flattered = evidence.flattered
    ratios = {name: ratio for name, ratio in ratios.items()
              if name not in flattered or ratio.value > CLOSE}
    if not ratios:
        return "not judged", [], []
    text = " and ".join(f"{ratio.value:.2f} ({name}{within(ratio)})"
                        for name, ratio in ratios.items())
    why = [f"its distance to {to} is {text} times {whose}"]
    bounds = [span for ratio in ratios.values() if (span := ratio.interval()) is not None]
    if any(low <= CLOSE and high > FAR for low, high in bounds):
        return "not judged", [], [f"{why[0]}: too few samples to tell"]
    if max(ratio.value for ratio in ratios.values()) > CLOSE:
        return "poor" if evidence.real_data else "told apart", why, []
    if len(bounds) < len([name for name in evidence.distances if name not in flattered]):
        return "close", why, ["whether it is as good as its teacher: not every distance has a "
                              "ratio with an interval (bootstrap makes them)"]
    if all(low <= 1 and high <= AS_GOOD for low, high in bounds):
        better = evidence.real_data and all(high < 1 for _, high in bounds)
        return "better than its teacher" if better else "as good as its teacher", why, []
    return "close", why, []


def pair_check(evidence: Evidence) -> Check:
    """The error between student and teacher on the same noise."""
    error, permuted = (known(evidence.student, name) for name in ("mse", "mse_permuted"))
    if error is None or permuted is None or permuted.value <= 0:
        return Check(None, "its error beside that of permuted pairs, for want of both")
    share = error.value / permuted.value
    return Check(share > PAIR_ERROR,
                 f"its MSE to {OF[evidence.source]} samples of the same noise is {percent(share)} "
                 "of that of permuted pairs")


def recall_checks(evidence: Evidence) -> list[Check]:
    """Whether real samples are still found among the student's, in every extractor's features."""
    checks = []
    for name in evidence.recalls:
        own, theirs = known(evidence.student, name), known(evidence.given, name)
        if own is None or theirs is None or theirs.value <= 0:
            checks.append(Check(None, f"its {name}, of which there is none to compare with"))
        else:
            checks.append(Check(own.value < COLLAPSED * theirs.value,
                                f"its {name} is {percent(own.value)}, {OF[evidence.source]} "
                                f"{percent(theirs.value)}", name))
    return checks or [Check(None, "its recall, for want of features")]


def spread_check(evidence: Evidence) -> Check:
    """Whether the samples of a class still differ."""
    own, theirs = (known(figures, "spread") for figures in (evidence.student, evidence.given))
    if own is None or theirs is None or theirs.value <= 0:
        return Check(None, "its variance within a class, of which there is none to compare with")
    share = own.value / theirs.value
    return Check(share < COLLAPSED, f"its variance within a class is {percent(share)} of "
                                    f"{OF[evidence.source]}")


def agreement_check(evidence: Evidence) -> Check:
    """Whether a classifier that can be trusted sees the same class in both samples of a noise."""
    return distrusted(evidence) or class_check(
        evidence.student, "label_agreement",
        f"a classifier sees the class of {OF[evidence.source]} samples in its own")


def label_check(evidence: Evidence) -> Check:
    """Whether a classifier that can be trusted sees the class that was asked for."""
    return distrusted(evidence) or class_check(
        evidence.given, "label_accuracy", "a classifier sees the class that was asked for")


def distrusted(evidence: Evidence) -> Check | None:
    """That nothing can be said of classes, where the classifier itself is mostly wrong."""
    if evidence.classifier is None or evidence.classifier >= TRUSTED:
        return None
    of = "real images" if evidence.real_data else "its pairs' images"
    return Check(None, "its classes: the classifier itself is right about only "
                       f"{percent(evidence.classifier)} of {of}")


def source_check(name: Source, source: Verdict) -> Check:
    """Whether there was anything to learn."""
    if source.word == "not judged":
        return Check(None, f"whether its {name} {'is' if name == 'teacher' else 'are'} any good")
    why = f": {'; '.join(source.why)}" if source.word == "failed" else ""
    return Check(source.word == "failed", f"its {name} {source.word}{why}")


def class_check(figures: Figures, name: str, text: str) -> Check:
    """An agreement of classes beside the agreement that chance would give."""
    found, chance = known(figures, name), known(figures, f"{name}_chance")
    if found is None or chance is None:
        return Check(None, "its classes, for want of a classifier or of labels")
    if chance.value > 1 - 1e-9:
        return Check(None, "its classes, of which there is only one")
    kappa = (found.value - chance.value) / (1 - chance.value)
    return Check(kappa < CHANCE, f"{text} in {percent(found.value)} of cases "
                                 f"({percent(chance.value)} by chance)", name)


def distances_of_source(evidence: Evidence) -> list[Check]:
    """How much further from the data it is than other real data, at as many samples."""
    checks = []
    for name in evidence.distances:
        own, real = known(evidence.given_at_n, name), known(evidence.real, name)
        if own is None or real is None or real.value <= 0:
            checks.append(Check(None, f"its {name}, for want of other real data to compare with"))
        else:
            times = own.value / real.value
            checks.append(Check(times > FAR, f"its {name} is {times:.2f} times that of other real "
                                             f"data, at {own.n:,} samples of each"))
    return checks or [Check(None, "its distance to real samples, for want of features")]


def flattering(evidence: Evidence) -> list[str]:
    """The figures that speak for nobody, together where that is for the same reason."""
    reasons: dict[str, list[str]] = {}
    for name in (*evidence.distances, *evidence.recalls, "label_agreement"):
        if name in evidence.flattered:
            reasons.setdefault(evidence.flattered[name], []).append(name)
    return [f"its {', '.join(names)}: {reason}" for reason, names in reasons.items()]


def told(checks: Sequence[Check]) -> tuple[list[str], list[str]]:
    """What rules found, and what they could not judge."""
    return ([check.text for check in checks if check.fails is not None],
            [check.text for check in checks if check.fails is None])


def failing(checks: Sequence[Check]) -> list[str]:
    return [check.text for check in checks if check.fails]


def known(figures: Figures, name: str) -> Estimate | None:
    """A figure that is there and a number."""
    found = figures.get(name)
    return found if found is not None and isfinite(found.value) else None


def within(ratio: Estimate) -> str:
    span = ratio.interval()
    return "" if span is None else f", 95 % interval {span[0]:.2f} to {span[1]:.2f}"


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
