"""What the figures of an evaluation are called, what they mean, and which are shown first."""

from collections.abc import Mapping, Set
from typing import Literal, NamedTuple

from pipeline.reporting import text
from pipeline.reporting.records import ExtractorRecord

Extractors = Mapping[str, ExtractorRecord]


class Metric(NamedTuple):
    """A kind of figure.

    Attributes:
        key: in evaluation.json and report.json.
        better: "lower", "higher" or, for what is no quality, "".
        text: what it is, in a sentence.
        share: whether it is a share, which is written in percent.
    """

    key: str
    name: str
    better: Literal["lower", "higher", ""]
    text: str
    share: bool = False

    def write(self, value: float) -> str:
        return text.percent(value) if self.share else text.number(value)

    def write_interval(self, interval: tuple[float, float]) -> str:
        factor = 100 if self.share else 1
        return text.interval(factor * interval[0], factor * interval[1])


def _metric(key: str, name: str, better: Literal["lower", "higher", ""], sentence: str,
            share: bool = False) -> tuple[str, Metric]:
    return key, Metric(key, name, better, sentence, share)


IN_FEATURES = dict([
    _metric("fd", "Fréchet distance", "lower",
            "Distance of the features of these samples to those of the reference ones, both taken "
            "for a normal distribution."),
    _metric("fd_infinity", "Fréchet distance, n\u00a0→\u00a0∞", "lower",
            "The same, extrapolated to infinitely many samples, since few make it too large."),
    _metric("kd", "Kernel distance", "lower",
            "Squared maximum mean discrepancy with a cubic kernel: no normal distribution is "
            "assumed, and few samples do not shift it."),
    _metric("is", "Score", "higher",
            "High if every image looks like one class and all classes occur."),
    _metric("precision", "Precision", "higher",
            "Share of these samples that lie among the reference ones: fidelity.", share=True),
    _metric("recall", "Recall", "higher",
            "Share of the reference samples that lie among these: diversity.", share=True),
    _metric("density", "Density", "higher",
            "How many reference neighbourhoods a sample lies in, 1 being expected; outliers among "
            "the reference samples count less than in precision."),
    _metric("coverage", "Coverage", "higher",
            "Share of the reference samples that have one of these nearby.", share=True),
])
"""By the metric's name in `ExtractorRecord.metrics`; the key differs with the extractor."""

# Only in features of the genuine Inception network do distances have the names of the literature.
GENUINE = {"fd": "FID", "fd_infinity": "FID, n\u00a0→\u00a0∞", "kd": "KID", "is": "Inception score"}

PLAIN = dict([
    _metric("lpips_vgg", "LPIPS (VGG)", "lower",
            "Perceptual difference of the student’s samples to those that it learned from, of the "
            "same noise; below it, its share of the difference when noises are mixed up."),
    _metric("lpips_alex", "LPIPS (AlexNet)", "lower",
            "The same with another network."),
    _metric("mse", "MSE", "lower",
            "Mean squared difference of the student’s samples to those that it learned from, of "
            "the same noise; below it, its share of the difference when noises are mixed up."),
    _metric("label_agreement", "Same class", "higher",
            "Share of noises for which the classifier sees one class in both images.", share=True),
    _metric("label_accuracy", "Right class", "higher",
            "Share of images that the classifier takes for the class that was asked for.",
            share=True),
    _metric("spread", "Variance within a class", "",
            "Mean over all values of their variance around the mean of the class, or of all "
            "samples where there are no classes: a student should have that of the samples that it "
            "learned from."),
    _metric("on_support", "On the board", "higher",
            "Share of points that lie on the dark cells, where all real points lie.", share=True),
    _metric("sliced_wasserstein", "Sliced Wasserstein distance", "lower",
            "Distance to the real points, averaged over random directions."),
    _metric("energy_distance", "Energy distance", "lower",
            "Distance to the real points by the mean distances within and between both sets."),
    _metric("nfe", "NFE", "lower", "Evaluations of a network for one sample."),
    _metric("images_per_s", "Samples a second", "higher",
            "Measured with the same noise, batch, device and precision."),
    _metric("parameters", "Parameters", "",
            "Numbers that were learned. A student’s include the data encoder, which sampling does "
            "not need."),
])

SECTIONS = {
    "From the same noise": ("lpips_vgg", "lpips_alex", "mse",
                                                "label_agreement"),
    "Labels": ("label_accuracy",),
    "Variety": ("spread",),
    "Points": ("on_support", "sliced_wasserstein", "energy_distance"),
    "Cost": ("nfe", "images_per_s", "parameters"),
}
"""The tables of what is not measured in an extractor's features."""

# Around the chief table's two columns of cost, those of these that there are, at most SIX.
CHIEF_IN_FEATURES = ("fd", "fd_infinity", "kd")
CHIEF_PLAIN = ("on_support", "sliced_wasserstein", "energy_distance", "lpips_vgg", "mse")
CHIEF_LAST = ("precision", "recall", "coverage", "is")
CHIEF_COST = ("images_per_s", "nfe")
SIX = 6

# Those best known in the literature first; the classifier of the run itself last.
EXTRACTORS = ("dinov2", "clip", "vgg16", "inception", "classifier")


def by_rank(extractors: Extractors, flattering: Set[str] = frozenset()) -> list[str]:
    """The names of extractors, the one whose figures are shown first at the head.

    Args:
        flattering: keys of figures that flatter somebody; their extractors come last.
    """
    def rank(name: str) -> tuple[bool, bool, int, str]:
        one = extractors[name]
        known = [i for i, start in enumerate(EXTRACTORS) if name.startswith(start)]
        return (not flattering.isdisjoint(one.metrics.values()), not is_genuine(one),
                (known or [len(EXTRACTORS)])[0], name)

    return sorted(extractors, key=rank)


def is_genuine(extractor: ExtractorRecord) -> bool:
    """Whether these are the features that FID, KID and the Inception score are defined in."""
    return extractor.metrics.get("fd", "").startswith("fid")


def in_features(extractor: ExtractorRecord) -> dict[str, Metric]:
    """The metrics in one extractor's features by their names, those that are known first."""
    names = [*(name for name in IN_FEATURES if name in extractor.metrics),
             *(name for name in extractor.metrics if name not in IN_FEATURES)]
    metrics = {}
    for name in names:
        key = extractor.metrics[name]
        metric = IN_FEATURES.get(name, unknown(key))._replace(key=key)
        renamed = GENUINE.get(name) if is_genuine(extractor) else None
        metrics[name] = metric._replace(name=renamed or metric.name)
    return metrics


def unknown(key: str) -> Metric:
    """What is not described here is shown by its key."""
    return Metric(key, key, "", "")


def chief(
    extractors: Extractors, present: Set[str], flattering: Set[str] = frozenset()
) -> list[Metric]:
    """The metrics by which models are compared at a glance, eight at most: first how good and how
    fast they are.

    Args:
        present: keys of the figures that there are.
        flattering: of those that flatter somebody in what a loss has seen.
    """
    featured = in_features(extractors[by_rank(extractors, flattering)[0]]) if extractors else {}
    candidates = [*(featured[name] for name in CHIEF_IN_FEATURES if name in featured),
                  *(PLAIN[key] for key in CHIEF_PLAIN),
                  *(featured[name] for name in CHIEF_LAST if name in featured)]
    quality = [metric for metric in candidates if metric.key in present]
    # LPIPS says what the MSE says, and closer to what the eye sees.
    if "lpips_vgg" in present - flattering:
        quality = [metric for metric in quality if metric.key != "mse"]
    cost = [PLAIN[key] for key in CHIEF_COST if key in present]
    return quality[:1] + cost + quality[1:SIX]
