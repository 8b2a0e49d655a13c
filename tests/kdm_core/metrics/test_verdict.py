"""The word that an evaluation comes to: the rules of docs/evaluation.md."""

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from kdm_core.metrics.estimate import Estimate, resampling
from kdm_core.metrics.paired import coincidence, paired_mse
from kdm_core.metrics.spread import within_class_variance
from kdm_core.metrics.verdict import Evidence, Verdict, judge


def figure(value: float, low: float | None = None, high: float | None = None) -> Estimate:
    """A figure of 500 samples, with this interval if one is given."""
    if low is None or high is None:
        return Estimate(value, np.empty(0), 500)
    # 5 % of the replicates lie at either end, so that the quantiles are there; the median is value.
    line = np.concatenate([np.full(50, low), np.full(901, value), np.full(50, high)])
    return Estimate(value, line, 500)


@dataclass
class Case:
    """The figures of a good student, of which tests change some."""

    source: Any = "teacher"
    given: dict[str, Estimate] = field(default_factory=lambda: {
        "recall_vgg16": figure(0.86), "spread": figure(0.2), "label_accuracy": figure(0.99),
        "label_accuracy_chance": figure(0.1)})
    student: dict[str, Estimate] = field(default_factory=lambda: {
        "mse": figure(0.006), "mse_permuted": figure(0.49), "recall_vgg16": figure(0.72),
        "spread": figure(0.19), "label_agreement": figure(0.996),
        "label_agreement_chance": figure(0.1)})
    ratios: dict[str, Estimate] = field(default_factory=lambda: {
        "fd_vgg16": figure(1.01, 0.95, 1.07)})
    given_at_n: dict[str, Estimate] = field(default_factory=lambda: {"fd_vgg16": figure(6.2)})
    real: dict[str, Estimate] = field(default_factory=lambda: {"fd_vgg16": figure(2.9)})
    distances: list[str] = field(default_factory=lambda: ["fd_vgg16"])
    recalls: list[str] = field(default_factory=lambda: ["recall_vgg16"])
    classifier: float | None = 0.98
    flattered: dict[str, str] = field(default_factory=dict)
    real_data: bool = True

    def judged(self) -> dict[str, Verdict]:
        return judge(Evidence(**vars(self)))

    @property
    def student_word(self) -> str:
        return self.judged()["student"].word


@pytest.mark.parametrize(("ratio", "word"), [
    (figure(1.01, 0.95, 1.07), "as good as its teacher"),
    (figure(1.0, 0.9, 1.1), "as good as its teacher"),
    (figure(0.8, 0.7, 0.9), "better than its teacher"),
    (figure(0.97, 0.9, 1.0), "as good as its teacher"),   # the interval contains 1
    (figure(1.05, 1.02, 1.08), "close"),                  # it lies above 1
    (figure(1.05, 0.98, 1.12), "close"),                  # it reaches beyond 1.1
    (figure(0.9, 0.6, 1.4), "close"),
    (figure(1.02), "close"),                              # it has none
    (figure(1.5, 1.4, 1.6), "close"),
    (figure(1.51, 1.4, 1.6), "poor"),
    (figure(1.6, 0.9, 2.0), "poor"),
])
def test_ratios(ratio: Estimate, word: str) -> None:
    assert Case(ratios={"fd_vgg16": ratio}).student_word == word


def test_whoever_ignores_the_noise_has_all_of_the_permuted_error() -> None:
    noise = torch.randn(2, 4000, 3, generator=torch.Generator().manual_seed(0))
    teacher, other = noise
    half = 0.5 * teacher + 0.75**0.5 * other
    counts = resampling(4000, 0, 0)
    shares = [found.matched.value / found.permuted.value
              for made in (torch.zeros(4000, 3), other, half)
              for found in [paired_mse(teacher, made, counts)]]
    assert shares == pytest.approx([1.0, 1.0, 0.5], abs=0.03)


def test_the_worst_of_several_distances_decides() -> None:
    """The default run: 1.16 in VGG16's features and 1.47 or 1.52 in the classifier's."""
    case = Case(distances=["fd_vgg16", "fd_classifier"],
                ratios={"fd_vgg16": figure(1.16, 1.11, 1.22),
                        "fd_classifier": figure(1.47, 1.39, 1.61)})
    verdict = case.judged()["student"]
    assert verdict.word == "close"
    assert verdict.why[0] == ("its distance to real samples is 1.16 (fd_vgg16, 95 % interval 1.11 "
                              "to 1.22) and 1.47 (fd_classifier, 95 % interval 1.39 to 1.61) times "
                              "its teacher's")
    assert "its recall_vgg16 is 72.0 %, its teacher's 86.0 %" in verdict.why
    case.ratios["fd_classifier"] = figure(1.52, 1.43, 1.67)
    assert case.student_word == "poor"
    case.ratios = {"fd_vgg16": figure(0.8, 0.7, 0.9), "fd_classifier": figure(1.0, 0.95, 1.05)}
    assert case.student_word == "as good as its teacher"
    del case.ratios["fd_classifier"]  # as where the teacher's is zero
    assert case.student_word == "close"


SEEN = "its losses (adversary) have seen this network"
BETTER = figure(0.8, 0.7, 0.9)


def test_no_verdict_rests_on_a_distance_that_flatters() -> None:
    case = Case(distances=["fd_vgg16", "fd_classifier"], recalls=["recall_vgg16"],
                ratios={"fd_vgg16": BETTER, "fd_classifier": figure(1.2, 1.1, 1.3)})
    assert case.student_word == "close"
    case.flattered = {"fd_classifier": SEEN}
    verdict = case.judged()["student"]
    assert verdict.word == "better than its teacher"
    assert "fd_classifier" not in " ".join(verdict.why)
    assert verdict.unknown == [f"its fd_classifier: {SEEN}"]
    # The other way round, the figure that remains decides.
    case.flattered = {"fd_vgg16": SEEN, "recall_vgg16": SEEN}
    verdict = case.judged()["student"]
    assert verdict.word == "close" and "vgg16" not in " ".join(verdict.why)
    assert verdict.unknown == [f"its fd_vgg16, recall_vgg16: {SEEN}"]


def test_where_every_distance_flatters_there_is_no_better_than() -> None:
    case = Case(ratios={"fd_vgg16": BETTER}, flattered={"fd_vgg16": SEEN})
    found = case.judged()
    assert found["student"].word == "not judged"
    assert found["student"].unknown == [f"its fd_vgg16: {SEEN}"]
    assert found["teacher"].word == "passed"  # whom nothing flatters


def test_what_flatters_can_still_speak_against() -> None:
    case = Case(ratios={"fd_vgg16": figure(1.6, 1.5, 1.7)}, flattered={
        "fd_vgg16": SEEN, "recall_vgg16": SEEN, "label_agreement": SEEN})
    verdict = case.judged()["student"]
    assert verdict.word == "poor" and "1.60 (fd_vgg16" in verdict.why[0]
    case.student["recall_vgg16"] = figure(0.2)
    assert case.student_word == "failed"
    case.student |= {"recall_vgg16": figure(0.7), "label_agreement": figure(0.1)}
    assert case.student_word == "failed"


@pytest.mark.parametrize(("changes", "why"), [
    ({"mse": figure(0.25)}, "its MSE to its teacher's samples of the same noise is 51.0 %"),
    ({"recall_vgg16": figure(0.21)}, "its recall_vgg16 is 21.0 %, its teacher's 86.0 %"),
    ({"spread": figure(0.049)}, "its variance within a class is 24.5 % of its teacher's"),
    ({"label_agreement": figure(0.0)}, "in 0.0 % of cases (10.0 % by chance)"),
    ({"label_agreement": figure(0.18)}, "in 18.0 % of cases (10.0 % by chance)"),
    ({"label_agreement": figure(0.93), "label_agreement_chance": figure(0.93)}, "93.0 % by chance"),
])
def test_one_failing_rule_suffices_whatever_the_ratio(
    changes: dict[str, Estimate], why: str
) -> None:
    case = Case(ratios={"fd_vgg16": figure(0.8, 0.7, 0.9)})
    assert case.student_word == "better than its teacher"
    case.student |= changes
    verdict = case.judged()["student"]
    assert verdict.word == "failed"
    assert len(verdict.why) == 1 and why in verdict.why[0]


@pytest.mark.parametrize("changes", [
    {"mse": figure(0.244)}, {"recall_vgg16": figure(0.22)}, {"spread": figure(0.051)},
    {"label_agreement": figure(0.2)},
    {"label_agreement": figure(0.99), "label_agreement_chance": figure(0.97)},
])
def test_just_above_a_threshold_nothing_failed(changes: dict[str, Estimate]) -> None:
    case = Case()
    case.student |= changes
    assert case.student_word == "as good as its teacher"


def test_a_teacher_far_from_the_data_fails_with_its_students() -> None:
    case = Case(given_at_n={"fd_vgg16": figure(29.1)})
    found = case.judged()
    assert found["teacher"].word == "failed"
    assert found["teacher"].why == [
        "its fd_vgg16 is 10.03 times that of other real data, at 500 samples of each"]
    assert found["student"].word == "failed" and "its teacher failed: " in found["student"].why[0]
    case.given_at_n = {"fd_vgg16": figure(28.9)}
    assert case.judged()["teacher"].word == "passed"


def test_a_teacher_of_other_labels_fails_where_the_classifier_can_be_trusted() -> None:
    case = Case()
    case.given["label_accuracy"] = figure(0.01)
    assert case.judged()["teacher"].word == "failed"
    case.classifier = 0.3
    found = case.judged()["teacher"]
    assert found.word == "passed" and "only 30.0 % of real images" in found.unknown[0]


def test_a_classifier_that_is_mostly_wrong_fails_no_student() -> None:
    case = Case()
    case.student["label_agreement"] = figure(0.1)  # no more than chance
    assert case.student_word == "failed"
    case.classifier, case.source, case.real_data = 0.3, "pairs", False
    found = case.judged()["student"]
    assert found.word == "as good as its teacher"
    assert any("only 30.0 % of its pairs' images" in line for line in found.unknown)


def test_nobody_is_good_for_want_of_figures() -> None:
    bare = Case(given={}, student={}, ratios={}, given_at_n={}, real={}, distances=[], recalls=[],
                classifier=None)
    found = bare.judged()
    assert {who: one.word for who, one in found.items()} == {
        "teacher": "not judged", "student": "not judged"}
    assert len(found["student"].unknown) == 6 and not found["student"].why
    # Without features, but with pairs: what can fail may fail.
    bare.student = {"mse": figure(0.5), "mse_permuted": figure(0.5)}
    assert bare.student_word == "failed"
    bare.student = {"mse": figure(0.01), "mse_permuted": figure(0.5)}
    assert bare.student_word == "not judged"
    # A figure that is no number is none.
    broken = Case(ratios={"fd_vgg16": figure(float("nan"))})
    assert broken.student_word == "not judged"
    broken = Case()
    broken.student["mse"] = figure(float("nan"))
    assert "its error beside" in broken.judged()["student"].unknown[0]


def test_without_real_data_to_compare_the_teacher_is_not_judged() -> None:
    found = Case(real={}).judged()
    assert found["teacher"].word == "not judged"
    assert "whether its teacher is any good" in found["student"].unknown


def test_of_pairs_of_unknown_origin_no_teacher_is_named() -> None:
    found = Case(source="pairs").judged()
    assert found["pairs"].word == "passed" and found["student"].word == "as good as its teacher"
    assert not any("teacher" in line for line in found["student"].why)
    assert Case(source="pairs", ratios={}).student_word == "not judged"


@pytest.mark.parametrize(("ratio", "word"), [
    (figure(0.8, 0.7, 0.9), "as good as its teacher"),
    (figure(1.0, 0.9, 1.1), "as good as its teacher"),
    (figure(1.3, 1.2, 1.4), "close"),
    (figure(1.6, 1.5, 1.7), "told apart"),
    (figure(40.0, 38.0, 42.0), "told apart"),
    (figure(1.2, 0.8, 17.0), "not judged"),               # so few samples tell nothing
])
def test_beside_its_teachers_own_samples_a_student_is_told_apart_or_not(
    ratio: Estimate, word: str
) -> None:
    """There a teacher has the distance of so many samples alone, so no multiple of it is poor."""
    found = Case(source="pairs", real={}, real_data=False,
                 ratios={"fd_vgg16": ratio}).judged()["student"]
    assert found.word == word
    assert any("other samples of its teacher" in line for line in (*found.why, *found.unknown))


def test_one_class_tells_nothing_of_classes() -> None:
    case = Case()
    case.student |= {"label_agreement": figure(1.0), "label_agreement_chance": figure(1.0)}
    verdict = case.judged()["student"]
    assert verdict.word == "as good as its teacher"
    assert verdict.unknown == ["its classes, of which there is only one"]


def test_variance_within_classes() -> None:
    labels = torch.tensor([0, 0, 1, 1])
    samples = torch.tensor([[1.0, 0.0], [3.0, 0.0], [10.0, 5.0], [10.0, 9.0]])
    found = within_class_variance(samples, labels, resampling(4, 20, 0))
    assert found.value == pytest.approx((1 + 0 + 0 + 4) / 4) and found.n == 4
    every = within_class_variance(samples, torch.full((4,), -1), resampling(4, 0, 0))
    assert every.value == pytest.approx(samples.var(dim=0, correction=0).mean().item())


def test_a_student_that_makes_the_mean_of_each_class_has_failed() -> None:
    """Its error is below half of the permuted pairs', so that only its spread tells."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(1000) % 10
    centres = 2 * torch.randn(10, 5, generator=generator)
    teacher = centres[labels] + torch.randn(1000, 5, generator=generator)
    counts = resampling(1000, 50, 0)
    mse = paired_mse(teacher, centres[labels], counts)
    assert mse.matched.value < 0.3 * mse.permuted.value
    case = Case(given={"spread": within_class_variance(teacher, labels, counts)},
                student={"mse": mse.matched, "mse_permuted": mse.permuted,
                         "spread": within_class_variance(centres[labels], labels, counts)})
    verdict = case.judged()["student"]
    assert verdict.word == "failed" and "variance within a class" in verdict.why[0]


def test_chance() -> None:
    assert coincidence(np.array([0, 1, 1, 1]), np.array([1, 1, 0, 2])) == pytest.approx(
        0.25 * 0.25 + 0.75 * 0.5)


def test_rules_need_no_torch() -> None:
    script = ("import sys, kdm_core.metrics.verdict; "
              "sys.exit('torch is imported' if 'torch' in sys.modules else 0)")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
