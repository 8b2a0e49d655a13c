"""All that an evaluation found out about a student, with the conditions of every figure."""

from math import isfinite
from typing import Any, Literal

from kdm_core.metrics.estimate import Estimate, certain, ratio
from kdm_core.metrics.verdict import Evidence, Verdict, judge
from kdm_core.samples import Source
from kdm_core.students.seen import NOTHING, Seen

Who = Literal["teacher", "pairs", "student", "real", "autoencoded"]
Figures = dict[str, Estimate]
REASONS = {
    "network": "its losses ({}) have seen this network; an extractor that none has seen tells "
               "(evaluation.extractors)",
    "images": "its losses ({}) took as real the training images that it is compared with; others "
              "tell (evaluation.reference: test)",
}
"""Why a figure flatters a student."""


class Results:
    """Figures of the student, of what it learned from, and of real samples that neither is
    compared with.

    Attributes:
        source: "teacher", or "pairs" where nobody knows which teacher made them.
        figures: by whom, by the figure's name; all of sets of one size, but for `lpips_…`.
            `autoencoded` are the other real samples as an autoencoder gives them back, the best
            that models of its latents can reach.
        at_equal_n: those that depend on the number of samples once more, of as many samples as
            there are real ones; empty where there are as many, and `figures` has theirs, too.
        ratios: of distances, the student's over those of what it learned from.
        distances: names of the figures that are distances to real samples, or
        real_data: where that is false, to samples of the teacher in their place.
        classifier: how often the run's classifier is right about held-out real images.
        extractors: what is known of each extractor, by its name.
        seen: by the student's losses.
        in_seen: names of figures in features that they have seen, by the network.
        beside_seen: names of figures of a comparison with images that they took as real.
        extrapolation: by extractor and by whom, Fréchet distances at several n.
        autoencoded: whether real samples as an autoencoder gives them back stand beside them.
        absent: a line for each thing that could not be measured, and what to do about it.
        warnings: a line for each figure that is not reliable, and why.
        conditions: of all figures.
    """

    def __init__(
        self, conditions: dict[str, Any], source: Source, seen: Seen = NOTHING,
        real_data: bool = True, autoencoded: bool = False,
    ) -> None:
        self.source, self.real_data, self.autoencoded = source, real_data, autoencoded
        self.figures: dict[Who, Figures] = {source: {}, "student": {}, "real": {}}
        if autoencoded:
            self.figures["autoencoded"] = {}
        self.at_equal_n: dict[Who, Figures] = {}
        self.ratios: Figures = {}
        self.distances: list[str] = []
        self.classifier: float | None = None
        self.extractors: dict[str, dict[str, Any]] = {}
        self.seen = seen
        self.in_seen: dict[str, list[str]] = {}
        self.beside_seen: list[str] = []
        self.extrapolation: dict[str, dict[str, Any]] = {}
        self.absent: list[str] = []
        self.warnings: list[str] = []
        self.conditions = conditions

    def cost(self, who: Who, name: str, value: float) -> None:
        """Note a figure that does not come from samples."""
        self.figures[who][name] = certain(value)

    def reference(self, split: str) -> str:
        """What a split of the data is, with which all are compared."""
        return f"{split} split" if self.real_data else "samples of the validation pairs"

    def compare(self, name: str) -> None:
        """Note a distance, and the ratio of the student and what it learned from, if there is one.
        """
        self.distances.append(name)
        found = ratio(self.figures["student"][name], self.figures[self.source][name])
        if found is not None:
            self.ratios[name] = found

    def mark_network(self, network: str, *names: str) -> None:
        """Note that figures come from a network, which the student's losses may have seen."""
        if network in self.seen.networks:
            self.in_seen.setdefault(network, []).extend(names)

    def mark_images(self, *names: str) -> None:
        """Note that figures compare with images that the student's losses may have seen."""
        if self.seen.real:
            self.beside_seen.extend(names)

    def flattering(self) -> dict[str, dict[str, list[str]]]:
        """The student's figures that flatter it, by what was seen, with the terms of its losses."""
        own = self.figures["student"]
        return {
            "network": {name: list(self.seen.networks[network])
                        for network, names in self.in_seen.items() for name in names
                        if name in own},
            "images": {name: list(self.seen.real) for name in self.beside_seen if name in own}}

    def flattered(self) -> dict[str, str]:
        """Why a figure flatters the student, and what would not, by its name."""
        reasons: dict[str, list[str]] = {}
        for what, found in self.flattering().items():
            for name, terms in found.items():
                reasons.setdefault(name, []).append(REASONS[what].format(", ".join(terms)))
        return {name: "; ".join(texts) for name, texts in reasons.items()}

    def leave_out_undefined(self) -> None:
        """Take out figures that are no finite numbers, which JSON has not, and say so."""
        fewer = [(f"{who}, fewer samples", one) for who, one in self.at_equal_n.items()]
        for who, figures in (*self.figures.items(), *fewer, ("ratio", self.ratios)):
            for name in [name for name, one in figures.items() if not defined(one)]:
                n = figures.pop(name).n
                self.absent.append(f"{name} ({who}): it has no finite value with {n:,} samples")

    def beside_real(self, who: Who) -> Figures:
        """Figures of a set of as many samples as the real ones are."""
        return (self.at_equal_n or self.figures).get(who, {})

    def recalls(self) -> list[str]:
        """The name of every extractor's recall."""
        return [one["metrics"]["recall"] for one in self.extractors.values()]

    def verdicts(self) -> dict[str, Verdict]:
        """On the student, and on what it learned from."""
        return judge(Evidence(
            source=self.source, given=self.figures[self.source], student=self.figures["student"],
            ratios=self.ratios, given_at_n=self.beside_real(self.source),
            real=self.beside_real("real"), distances=self.distances, recalls=self.recalls(),
            classifier=self.classifier, flattered=self.flattered(), real_data=self.real_data))

    def document(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        self.leave_out_undefined()
        return {
            "verdicts": {who: one._asdict() for who, one in self.verdicts().items()},
            **{who: described(figures) for who, figures in self.figures.items()},
            "at_equal_n": {who: described(figures) for who, figures in self.at_equal_n.items()},
            "ratios": described(self.ratios),
            "seen": self.flattering(),
            "extractors": self.extractors,
            "extrapolation": self.extrapolation,
            "absent": self.absent,
            "warnings": self.warnings,
            "conditions": self.conditions,
        }

    def values(self) -> dict[str, float | str | None]:
        """The few figures of the student by which runs are compared, None where there is none.

        `ratio_…` are distances over the teacher's, `recall` is the lowest of all extractors, and
        `mse_share` is of the error of permuted pairs.
        """
        own = {name: one.value for name, one in self.figures["student"].items()}
        theirs = {name: one.value for name, one in self.figures[self.source].items()}
        recalls = [own[name] for name in self.recalls() if name in own]
        return {
            "verdict": short(self.verdicts()["student"].word),
            **{f"ratio_{name.removeprefix('fd_')}": one.value
               for name, one in self.ratios.items()},
            "recall": min(recalls, default=None),
            "mse_share": over(own.get("mse"), own.get("mse_permuted")),
            "lpips": own.get("lpips_vgg", own.get("lpips_alex")),
            "agreement": own.get("label_agreement"),
            "speedup": over(own.get("images_per_s"), theirs.get("images_per_s")),
            "nfe": own.get("nfe"),
        }


def defined(estimate: Estimate) -> bool:
    """Whether a figure and its interval are finite."""
    return all(map(isfinite, (estimate.value, *(estimate.interval() or ()))))


def short(word: str) -> str:
    """A verdict's word for a narrow column: "better", "as good", "close", …"""
    return word.removesuffix(" than its teacher").removesuffix(" as its teacher")


def over(value: float | None, other: float | None) -> float | None:
    """A quotient, where there is one."""
    return value / other if value is not None and other else None


def described(figures: Figures) -> dict[str, dict[str, Any]]:
    return {name: {"value": estimate.value, "interval": estimate.interval(),
                   "n": estimate.n or None}
            for name, estimate in figures.items()}
