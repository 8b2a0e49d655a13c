"""The check of a teacher against the data: exact teachers pass, each kind of fault is found."""

from collections.abc import Callable
from math import sqrt

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.datasets import Dataset, DatasetInfo
from kdm_core.errors import DivergedError
from kdm_core.metrics.denoising.check import LEAST, LEVELS, check_denoising, other_labels
from kdm_core.metrics.denoising.record import DenoisingCheck
from kdm_core.metrics.denoising.wiener import fit_wiener
from kdm_core.samples import SampleSpec
from kdm_core.teachers import Teacher, build_teacher
from kdm_core.teachers.denoiser import DenoiserConfig
from kdm_core.teachers.exact import GaussianMixture, GaussianMixtureConfig, fit_data

SIZE = 6
NAMES = ["one", "two", "three"]


def mixture(classes: int = 3) -> GaussianMixture:
    """The truth: a Gaussian a class, apart and of different shapes."""
    spec = SampleSpec(kind="points", shape=[SIZE], label_names=NAMES[:classes],
                      sigma_data=0.5)
    teacher = GaussianMixture(
        GaussianMixtureConfig(kind="gaussian_mixture", components=max(classes, 1)), spec)
    random = torch.Generator().manual_seed(3)
    count = max(classes, 1)
    means = 0.5 * torch.randn(count, SIZE, generator=random, dtype=torch.float64)
    factors = torch.randn(count, SIZE, SIZE, generator=random, dtype=torch.float64)
    teacher.describe(torch.ones(count), means,
                     0.05 * factors @ factors.mT + 0.002 * torch.eye(SIZE))
    return teacher


def samples_of(teacher: GaussianMixture, n: int, seed: int) -> tuple[NDArray[np.float32],
                                                                     NDArray[np.int64]]:
    random = np.random.default_rng(seed)
    labels = random.integers(len(teacher.means), size=n)
    axes, scales = teacher.axes.numpy(), teacher.variances.numpy() ** 0.5
    unit = random.standard_normal((n, SIZE))
    points = (teacher.means.numpy()[labels]
              + np.einsum("nij,nj->ni", axes[labels], scales[labels] * unit))
    return points.astype(np.float32), labels


def dataset(teacher: GaussianMixture, test: int = 300) -> Dataset:
    train, test_set = samples_of(teacher, 600, 0), samples_of(teacher, test, 1)
    if not teacher.spec.label_names:
        train, test_set = ((points, np.full(len(points), -1)) for points, _ in (train, test_set))
    info = DatasetInfo(source="npz", samples=teacher.spec, class_names=teacher.spec.label_names,
                       train=600, test=test)
    return Dataset(*train, *test_set, info)


class Faulty(Teacher):
    """A teacher whose answers are changed."""

    def __init__(self, right: Teacher, answer: Callable[[Teacher, Tensor, Tensor, Tensor | None],
                                                        Tensor]) -> None:
        super().__init__(right.config, right.spec)
        self.right, self.answer = right, answer
        self.lowest, self.highest = right.lowest, right.highest

    def path(self, time: Tensor):  # type: ignore[no-untyped-def]
        return self.right.path(time)

    def time_at(self, level: Tensor) -> Tensor:
        return self.right.time_at(level)

    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return self.answer(self.right, x, time, labels)

    def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        raise AssertionError


def found_in(
    answer: Callable[[Teacher, Tensor, Tensor, Tensor | None], Tensor], unlabelled: bool = False
) -> DenoisingCheck:
    truth = mixture()
    found = check_denoising(Faulty(truth, answer), dataset(truth), 5, unlabelled)
    assert found is not None
    return found


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("classes", [0, 3])
def test_an_exact_teacher_passes(seed: int, classes: int) -> None:
    truth = mixture(classes)
    found = check_denoising(truth, dataset(truth), seed, unlabelled=True)
    assert found is not None and found.warnings() == []
    assert [level.level for level in found.levels] == pytest.approx(
        [factor * truth.spec.sigma_data for factor in LEVELS])
    assert (found.labels is not None) == (found.unlabelled is not None) == (classes > 0)


@pytest.mark.parametrize("test", [LEAST, 300])  # with either some seeds have an interval above 0
def test_no_chance_is_a_fault_where_the_linear_denoiser_is_optimal(test: int) -> None:
    """There the exact teacher is ahead in half of all checks, and behind in the other half."""
    truth = mixture(0)
    found = [check_denoising(truth, dataset(truth, test), seed) for seed in range(60)]
    assert [check.warnings() for check in found if check is not None] == [[]] * 60


def test_the_linear_denoiser_of_one_gaussian_is_exact() -> None:
    """Wiener's filter in closed form, with the covariance taken in both ways."""
    random = np.random.default_rng(0)
    for n, size in ((500, 4), (5, 8)):
        samples = random.standard_normal((n, size)).astype(np.float32) * 0.3
        wiener = fit_wiener(samples, np.zeros(n, np.int64), 1)
        x = torch.from_numpy(random.standard_normal((3, size)))
        mean = samples.astype(np.float64).mean(0)
        covariance = np.cov(samples.astype(np.float64), rowvar=False, bias=True)
        right = mean + (x.numpy() - mean) @ np.linalg.solve(
            covariance + 0.25 * np.eye(size), covariance)
        np.testing.assert_allclose(wiener.denoise(x, 0.5).numpy(), right, atol=1e-9)


def test_what_wrong_labels_add_is_an_optimal_denoisers_response() -> None:
    """E‖D(x, wrong) − x₀‖² − E‖D(x, right) − x₀‖² = E‖D(x, wrong) − D(x, right)‖²."""
    truth = mixture()
    found = check_denoising(truth, dataset(truth, 2000), 1)
    assert found is not None and found.labels is not None
    assert found.labels.teacher == pytest.approx(found.labels.response, rel=0.1)


FAULTS = {
    "another scale": lambda right, x, time, labels: right.denoise(x * 1.7, time, labels),
    "another level": lambda right, x, time, labels: right.denoise(x, time / 3, labels),
    "[0, 1] for [-1, 1]": lambda right, x, time, labels:
        2 * right.denoise((x + 1) / 2, time / 2, labels) - 1,
    "channels reversed": lambda right, x, time, labels:
        right.denoise(x.flip(1), time, labels).flip(1),
    "two channels swapped": lambda right, x, time, labels:
        right.denoise(x[:, [1, 0, 2, 3, 4, 5]], time, labels)[:, [1, 0, 2, 3, 4, 5]],
    "classes in another order": lambda right, x, time, labels:
        right.denoise(x, time, (labels + 1) % 3),
    "two classes swapped": lambda right, x, time, labels:
        right.denoise(x, time, torch.tensor([1, 0, 2])[labels]),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_that_weights_do_not_show_are_found(fault: str) -> None:
    warnings = found_in(FAULTS[fault]).warnings()
    assert warnings and "worse than the best linear denoiser" in warnings[0]
    assert "by heart" not in warnings[0]


def test_classes_in_another_order_are_named() -> None:
    warnings = found_in(FAULTS["classes in another order"]).warnings()
    assert "classes are likely in another order" in warnings[-1]


def test_a_teacher_that_ignores_labels_is_told_from_one_that_mistakes_them() -> None:
    found = found_in(lambda right, x, time, labels: right.denoise(x, time, None))
    assert found.labels is not None and found.labels.response == 0
    assert [line for line in found.warnings() if "hardly answers to labels" in line]


def test_classes_that_do_not_differ_say_nothing() -> None:
    """A teacher of data whose labels mean nothing is right to ignore them."""
    truth = mixture()
    data = dataset(truth)
    random = np.random.default_rng(0)
    data = data._replace(train_labels=random.permutation(data.train_labels),
                         test_labels=random.permutation(data.test_labels))
    deaf = Faulty(truth, lambda right, x, time, labels: right.denoise(x, time, None))
    found = check_denoising(deaf, data, 2)
    assert found is not None and found.labels is not None
    assert found.warnings() == []


def test_a_teacher_that_fails_without_labels_matters_where_guidance_asks_it_so() -> None:
    def answer(right: Teacher, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        return right.denoise(x, time, labels) if labels is not None else 3 * x
    assert found_in(answer).warnings() == []
    assert ["classifier-free" in line for line in found_in(answer, True).warnings()] == [True]


def test_training_samples_known_by_heart() -> None:
    truth = mixture()
    data = dataset(truth)
    learnt = fit_data(truth.spec, torch.from_numpy(data.train_samples[:60]),
                      torch.from_numpy(data.train_labels[:60]))
    found = check_denoising(learnt, data._replace(train_samples=data.train_samples[:60],
                                                  train_labels=data.train_labels[:60]), 0)
    assert found is not None and "knows those by heart" in found.warnings()[0]


def test_an_untrained_network_is_found_and_a_broken_one_is_an_error() -> None:
    spec = SampleSpec(kind="image", shape=[1, 4, 4], label_names=["a", "b"], sigma_data=0.5)
    random = np.random.default_rng(0)
    labels = random.integers(2, size=400)
    images = (128 + 60 * np.sqrt(labels + 1.0)[:, None, None, None]
              * random.standard_normal((400, 1, 1, 4))).clip(0, 255).astype(np.uint8)
    images = np.broadcast_to(images, (400, 1, 4, 4))
    info = DatasetInfo(source="npz", samples=spec, class_names=["a", "b"], train=300, test=100)
    data = Dataset(images[:300], labels[:300], images[300:], labels[300:], info)
    teacher = build_teacher(DenoiserConfig.model_validate(
        {"kind": "denoiser", "network": {"kind": "mlp", "width": 16, "blocks": 1}}), spec).eval()
    found = check_denoising(teacher, data, 0)
    assert found is not None and found.warnings()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.fill_(torch.nan)
    with pytest.raises(DivergedError, match="is not finite"):
        check_denoising(teacher, data, 0)


def test_too_few_samples_say_nothing() -> None:
    truth = mixture()
    assert check_denoising(truth, dataset(truth, LEAST - 1), 0) is None
    assert check_denoising(truth, dataset(truth, LEAST), 0) is not None


def test_wrong_labels_are_all_wrong() -> None:
    labels = torch.tensor([0, 1, 1, 2, 2, 2] * 20)
    other = other_labels(labels, 0)
    assert other is not None and bool((other != labels).all()) and set(other.tolist()) == {0, 1, 2}
    assert other_labels(torch.zeros(5, dtype=torch.int64), 0) is None


def test_figures_survive_json() -> None:
    found = found_in(FAULTS["another scale"])
    assert DenoisingCheck.model_validate_json(found.model_dump_json()) == found
    assert str(found).startswith("error on 256 held-out samples") and sqrt(found.n) == 16
