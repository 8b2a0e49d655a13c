"""All that an evaluation found out about a student, with the conditions of every figure."""

from math import isfinite
from typing import Any, Literal

from kdm_core.metrics.estimate import Estimate, certain, ratio

Who = Literal["teacher", "student", "real"]


class Results:
    """Figures of the teacher, the student and real samples that neither is compared with.

    Attributes:
        figures: by whom, by the figure's name.
        ratios: of distances, the student's over the teacher's.
        extractors: what is known of each extractor, by its name.
        extrapolation: by extractor and by whom, Fréchet distances at several n.
        absent: a line for each thing that could not be measured, and what to do about it.
        warnings: a line for each figure that is not reliable, and why.
        conditions: of all figures.
    """

    def __init__(self, conditions: dict[str, Any]) -> None:
        self.figures: dict[Who, dict[str, Estimate]] = {"teacher": {}, "student": {}, "real": {}}
        self.ratios: dict[str, Estimate] = {}
        self.extractors: dict[str, dict[str, Any]] = {}
        self.extrapolation: dict[str, dict[str, Any]] = {}
        self.absent: list[str] = []
        self.warnings: list[str] = []
        self.conditions = conditions

    def cost(self, who: Who, name: str, value: float) -> None:
        """Note a figure that does not come from samples."""
        self.figures[who][name] = certain(value)

    def compare(self, name: str) -> None:
        """Note the ratio of student and teacher in a figure that both have, where there is one."""
        found = ratio(self.figures["student"][name], self.figures["teacher"][name])
        if found is not None:
            self.ratios[name] = found

    def leave_out_undefined(self) -> None:
        """Take out figures that are no finite numbers, which JSON has not, and say so."""
        for who, figures in (*self.figures.items(), ("ratio", self.ratios)):
            for name in [name for name, one in figures.items() if not defined(one)]:
                n = figures.pop(name).n
                self.absent.append(f"{name} ({who}): it has no finite value with {n:,} samples")

    def document(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        self.leave_out_undefined()
        return {
            **{who: described(figures) for who, figures in self.figures.items()},
            "ratios": described(self.ratios),
            "extractors": self.extractors,
            "extrapolation": self.extrapolation,
            "absent": self.absent,
            "warnings": self.warnings,
            "conditions": self.conditions,
        }

    def values(self) -> dict[str, dict[str, float]]:
        """The bare figures, which DVC compares between experiments."""
        return {who: {name: estimate.value for name, estimate in figures.items()}
                for who, figures in self.figures.items() if figures}


def defined(estimate: Estimate) -> bool:
    """Whether a figure and its interval are finite."""
    return all(map(isfinite, (estimate.value, *(estimate.interval() or ()))))


def described(figures: dict[str, Estimate]) -> dict[str, dict[str, Any]]:
    return {name: {"value": estimate.value, "interval": estimate.interval(),
                   "n": estimate.n or None}
            for name, estimate in figures.items()}
