"""Exact teachers against closed forms that are coded otherwise, and against their own flow."""

from math import exp, log, pi, sqrt
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdm_core.errors import KDMError
from kdm_core.samples import SampleSpec
from kdm_core.solvers import AdaptiveSolver, FixedSolver
from kdm_core.solvers.grids import KarrasGrid
from kdm_core.teachers import Teacher, build_teacher, exact, load_teacher, save_teacher
from kdm_core.teachers.exact import (
    FiniteData,
    FiniteDataConfig,
    GaussianMixture,
    GaussianMixtureConfig,
    fit_data,
    fit_mixture,
)

LINE = SampleSpec(kind="points", shape=[1])
PLANE = SampleSpec(kind="points", shape=[2])
CLASSES = SampleSpec(kind="points", shape=[2], label_names=["a", "b", "c"])
IMAGE = SampleSpec(kind="image", shape=[1, 3, 3], label_names=["a", "b"])


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def at(sigma: float) -> Tensor:
    return torch.tensor(sigma, dtype=torch.float64)


def mixture(spec: SampleSpec = CLASSES, components: int = 3, seed: int = 1) -> GaussianMixture:
    config = GaussianMixtureConfig(kind="gaussian_mixture", components=components)
    teacher = GaussianMixture(config, spec)
    size = teacher.means.shape[1]
    factor = noise(components, size, size, seed=seed)
    teacher.describe(torch.arange(1.0, components + 1), 2 * noise(components, size, seed=seed + 1),
                     factor @ factor.mT / size + 0.05 * torch.eye(size))
    return teacher


def test_two_gaussians_on_a_line_in_numbers() -> None:
    """Bayes' rule for N(1, 0.04) of weight 1/4 and N(−2, 0.25) of weight 3/4, at sigma 0.5."""
    config = GaussianMixtureConfig(kind="gaussian_mixture", components=2)
    teacher = GaussianMixture(config, LINE)
    teacher.describe(torch.tensor([1.0, 3.0]), torch.tensor([[1.0], [-2.0]]),
                     torch.tensor([[[0.04]], [[0.25]]], dtype=torch.float64))
    x, sigma = -0.4, 0.5
    parts = [(0.25, 1.0, 0.04), (0.75, -2.0, 0.25)]
    density = [w / sqrt(2 * pi * (s + sigma**2)) * exp(-((x - m) ** 2) / (2 * (s + sigma**2)))
               for w, m, s in parts]
    means = [m + s / (s + sigma**2) * (x - m) for _, m, s in parts]
    expected = sum(d * m for d, m in zip(density, means, strict=True)) / sum(density)
    found = teacher.denoise(at(x).reshape(1, 1), at(sigma), None)
    assert float(found) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("sigma", [0.01, 0.7, 20.0])
def test_denoiser_of_a_mixture_is_tweedies(sigma: float) -> None:
    """E[x₀ | x] = x + sigma² ∇ log p(x; sigma), the density as torch knows it."""
    teacher = mixture()
    covariances = teacher.axes @ teacher.variances.diag_embed() @ teacher.axes.mT
    noisy = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(logits=teacher.log_weights),
        torch.distributions.MultivariateNormal(
            teacher.means, covariances + sigma**2 * torch.eye(2, dtype=torch.float64)))
    x = (sqrt(4 + sigma**2) * noise(16, 2)).requires_grad_()
    score, = torch.autograd.grad(noisy.log_prob(x).sum(), x)
    with torch.no_grad():
        found = teacher.denoise(x, at(sigma), None)
    torch.testing.assert_close(found, x + sigma**2 * score, rtol=1e-9, atol=1e-9)


def test_a_label_selects_its_component() -> None:
    teacher, x = mixture(), noise(6, 2)
    labels = torch.tensor([0, 1, 2, 2, -1, -1])
    found = teacher.denoise(x, at(0.8), labels)
    for row, label in enumerate(labels.tolist()):
        if label < 0:
            alone = teacher.denoise(x[row : row + 1], at(0.8), None)
        else:
            one = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=1),
                                  PLANE)
            one.load_state_dict({name: value[label : label + 1]
                                 for name, value in teacher.state_dict().items()})
            alone = one.denoise(x[row : row + 1], at(0.8), None)
        torch.testing.assert_close(found[row : row + 1], alone, rtol=1e-12, atol=1e-12)


@given(seed=st.integers(0, 10**6), sigma=st.floats(1.0, 100.0))
@settings(max_examples=15)
def test_sampling_a_gaussian_is_its_flow_map(seed: int, sigma: float) -> None:
    """To sigma_min, after which one step to no noise errs by sigma_min² / 2s."""
    teacher = mixture(PLANE, 1, seed)
    grid = KarrasGrid(kind="karras", sigma_min=1e-4, sigma_max=sigma)
    solver = AdaptiveSolver(kind="dopri5", tolerance=1e-10, grid=grid)
    found = teacher.sample(noise(8, 2, seed=seed), None, solver, "fp32", keep_states=True)
    assert found.states is not None
    truth = teacher.flow_map(sigma * noise(8, 2, seed=seed), sigma)
    torch.testing.assert_close(found.states[-1], truth, rtol=1e-6, atol=1e-6)


def test_flow_map_of_classes() -> None:
    """The flow of a label is that of its Gaussian alone, and maps compose."""
    teacher, labels = mixture(), torch.tensor([2, 0, 1, 1])
    x = 30 * noise(4, 2)
    half = teacher.flow_map(x, 30.0, 2.0, labels)
    torch.testing.assert_close(teacher.flow_map(half, 2.0, 0.0, labels),
                               teacher.flow_map(x, 30.0, 0.0, labels))
    grid = KarrasGrid(kind="karras", sigma_min=1e-4, sigma_max=30.0)
    solver = AdaptiveSolver(kind="dopri5", tolerance=1e-10, grid=grid)
    found = teacher.sample(x / 30, labels, solver, "fp32").state
    torch.testing.assert_close(found, teacher.flow_map(x, 30.0, 0.0, labels).float(),
                               rtol=1e-5, atol=1e-5)


def test_flow_map_carries_the_noise_to_the_data() -> None:
    """N(mean, S + sigma² I) to N(mean, S), as it is linear: through its matrix."""
    teacher = mixture(PLANE, 1)
    origin, basis = torch.zeros(1, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    shift = teacher.flow_map(origin, 5.0)
    matrix = (teacher.flow_map(basis, 5.0) - shift).mT
    covariance = (teacher.axes @ teacher.variances.diag_embed() @ teacher.axes.mT)[0]
    wide = covariance + 25 * basis
    torch.testing.assert_close(matrix @ wide @ matrix.mT, covariance)
    torch.testing.assert_close(teacher.flow_map(teacher.means, 5.0), teacher.means)


@pytest.mark.parametrize("labels", [None, torch.tensor([0, -1])])
def test_a_mixture_has_no_flow_map(labels: Tensor | None) -> None:
    with pytest.raises(KDMError, match="no closed form"):
        mixture().flow_map(noise(2, 2), 80.0, 0.0, labels)


@given(angle=st.floats(0, 2 * pi), shift=st.floats(-5, 5), sigma=st.floats(0.01, 50))
@settings(max_examples=30)
def test_denoisers_turn_and_move_with_their_data(angle: float, shift: float, sigma: float) -> None:
    sine, cosine = torch.sin(at(angle)), torch.cos(at(angle))
    turn = torch.stack([torch.stack([cosine, -sine]), torch.stack([sine, cosine])])
    plain, moved = mixture(PLANE, 2), mixture(PLANE, 2)
    moved.means.copy_(plain.means @ turn.mT + shift)
    moved.axes.copy_(turn @ plain.axes)
    x = sigma * noise(5, 2)
    torch.testing.assert_close(moved.denoise(x @ turn.mT + shift, at(sigma), None),
                               plain.denoise(x, at(sigma), None) @ turn.mT + shift,
                               rtol=1e-8, atol=1e-8)


def training_set(spec: SampleSpec, count: int = 40) -> tuple[Tensor, Tensor]:
    samples = torch.randn(count, *spec.sample_shape, generator=generator(3)) + 1
    return samples, torch.arange(count) % max(spec.num_classes, 1)


@pytest.mark.parametrize("rows", [7, 4096])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 40.0])
def test_finite_data_is_a_softmax(monkeypatch: pytest.MonkeyPatch, rows: int, sigma: float) -> None:
    """Over all samples at once, one state after another; however many rows it sees at a time."""
    monkeypatch.setattr(exact, "ROWS", rows)
    samples, labels = training_set(IMAGE)
    teacher = fit_data(IMAGE, samples, labels)
    x = samples[:4].double() + sigma * noise(4, 1, 3, 3)
    given_labels = torch.tensor([0, 1, -1, 1])
    found = teacher.denoise(x, at(sigma), given_labels)
    for row, label in enumerate(given_labels.tolist()):
        own = samples.double() if label < 0 else samples[labels == label].double()
        weights = (-((x[row] - own) ** 2).sum((1, 2, 3)) / (2 * sigma**2)).softmax(0)
        expected = (weights[:, None, None, None] * own).sum(0)
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=1e-10)


def test_finite_data_where_a_class_comes_late(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first rows that it sees hold nothing for such a label."""
    monkeypatch.setattr(exact, "ROWS", 5)
    samples, _ = training_set(PLANE, 20)
    spec = SampleSpec(kind="points", shape=[2], label_names=["a", "b"])
    teacher = fit_data(spec, samples, (torch.arange(20) >= 17).long())
    found = teacher.denoise(noise(3, 2), at(100.0), torch.ones(3, dtype=torch.int64))
    mean = samples[17:].double().mean(0).expand(3, 2)
    torch.testing.assert_close(found, mean, rtol=0.1, atol=0.02)


def test_finite_data_is_a_mixture_of_points() -> None:
    """The same denoiser as of a mixture whose components have shrunk to the samples."""
    samples, labels = training_set(PLANE, 6)
    data = fit_data(PLANE, samples, labels)
    points = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=6), PLANE)
    points.describe(torch.ones(6), samples, torch.zeros(6, 2, 2))
    for sigma in (0.1, 1.0, 30.0):
        x = samples[:4].double() + sigma * noise(4, 2)
        torch.testing.assert_close(data.denoise(x, at(sigma), None),
                                   points.denoise(x, at(sigma), None), rtol=1e-9, atol=1e-9)


def test_sampling_finite_data_gives_the_data() -> None:
    samples, labels = training_set(CLASSES, 12)
    teacher = fit_data(CLASSES, samples, labels)
    wanted = torch.arange(8) % 3
    solver = FixedSolver(kind="heun", steps=40)
    found = teacher.sample(noise(8, 2).float(), wanted, solver, "fp32").state
    distance, row = torch.cdist(found, samples).min(1)
    assert float(distance.max()) < 1e-3
    assert torch.equal(labels[row], wanted)


def test_fit_mixture_has_the_moments_of_the_classes() -> None:
    samples, labels = training_set(CLASSES, 50)
    teacher = fit_mixture(CLASSES, samples, labels, ridge=0.01)
    torch.testing.assert_close(teacher.log_weights.exp(), torch.tensor([17, 17, 16]) / 50.0,
                               check_dtype=False)
    for k in range(3):
        own = samples[labels == k].double()
        torch.testing.assert_close(teacher.means[k], own.mean(0))
        found = teacher.axes[k] @ teacher.variances[k].diag() @ teacher.axes[k].mT
        torch.testing.assert_close(found, own.T.cov(correction=0) + 0.01 * torch.eye(2).double())


def test_fit_mixture_without_classes_is_one_gaussian() -> None:
    """Of images too, and of fewer samples than dimensions."""
    spec = SampleSpec(kind="image", shape=[1, 3, 3])
    samples, labels = training_set(spec, 5)
    teacher = fit_mixture(spec, samples, labels + 3)
    assert teacher.means.shape == (1, 9)
    torch.testing.assert_close(teacher.means[0], samples.double().mean(0).flatten())
    assert int((teacher.variances < 1.001e-4).sum()) == 5  # 9 dimensions, 4 directions
    found = teacher.denoise(noise(2, 1, 3, 3), at(1.0), None)
    assert found.shape == (2, 1, 3, 3)


@pytest.mark.parametrize("fit", [fit_mixture, fit_data])
def test_a_class_without_samples_is_refused(fit: Any) -> None:
    samples, _ = training_set(CLASSES)
    with pytest.raises(KDMError, match="class 2 has no training samples"):
        fit(CLASSES, samples, torch.arange(40) % 2)


def test_components_must_be_the_classes() -> None:
    with pytest.raises(KDMError, match=r"^components: 2.*set it to 3"):
        GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=2), CLASSES)


def teachers() -> list[Teacher]:
    samples, labels = training_set(CLASSES)
    return [mixture(), fit_data(CLASSES, samples, labels)]


@pytest.mark.parametrize("teacher", teachers(), ids=["mixture", "data"])
def test_round_trip_on_disk(teacher: Teacher, tmp_path: Path) -> None:
    mark = save_teacher(tmp_path, teacher)
    loaded, found = load_teacher(tmp_path)
    assert found == mark
    assert type(loaded) is type(teacher)
    labels = torch.tensor([0, 1, 2, -1])
    assert torch.equal(loaded.denoise(noise(4, 2), at(1.0), labels),
                       teacher.denoise(noise(4, 2), at(1.0), labels))


@pytest.mark.parametrize("teacher", teachers(), ids=["mixture", "data"])
def test_denoiser_and_velocity(teacher: Teacher) -> None:
    """v = (x − D) / sigma, in the state's dtype, whether times are one or one a state, and whatever
    the precision of networks."""
    x, labels = noise(4, 2), torch.tensor([0, 1, 2, -1])
    sigma = torch.tensor([0.1, 1.0, 5.0, 60.0], dtype=torch.float64)
    whole = teacher.denoise(x, sigma, labels)
    for row in range(4):
        one = slice(row, row + 1)
        torch.testing.assert_close(teacher.denoise(x[one], sigma[row], labels[one]), whole[one])
    velocity = teacher.velocity(x, sigma, labels)
    torch.testing.assert_close(x - sigma[:, None] * velocity, whole)
    single = teacher.denoise(x.float(), sigma.float(), labels)
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, whole.float(), rtol=1e-4, atol=1e-4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(teacher.denoise(x.float(), sigma.float(), labels), single)


@pytest.mark.parametrize("teacher", teachers(), ids=["mixture", "data"])
def test_there_is_nothing_to_train(teacher: Teacher) -> None:
    assert not list(teacher.parameters())
    with pytest.raises(KDMError, match="cannot be trained"):
        teacher.loss(noise(4, 2).float(), None, generator())


@pytest.mark.parametrize("teacher", teachers(), ids=["mixture", "data"])
def test_far_noise_and_no_noise(teacher: Teacher) -> None:
    """The denoiser goes from the mean of the data to the state itself, if that is data."""
    samples, _ = training_set(CLASSES)
    mean = teacher.denoise(noise(1, 2), at(1e6), None)
    known = samples.double().mean(0) if isinstance(teacher, FiniteData) else (
        torch.tensor([1, 2, 3]).double() / 6 @ mixture().means)
    torch.testing.assert_close(mean[0], known, rtol=1e-4, atol=1e-4)
    x = samples[:3].double()
    torch.testing.assert_close(teacher.denoise(x, at(1e-5), None), x, rtol=1e-6, atol=1e-6)


def test_a_fresh_mixture_is_normal() -> None:
    spec = SampleSpec(kind="points", shape=[2], sigma_data=2.0)
    teacher = build_teacher(GaussianMixtureConfig(kind="gaussian_mixture", components=3), spec)
    x = noise(4, 2)
    torch.testing.assert_close(teacher.denoise(x, at(1.5), None), x * 4 / (4 + 2.25))


def test_default_grid_is_the_configurations() -> None:
    grid = KarrasGrid(kind="karras", sigma_max=10.0)
    teacher = build_teacher(FiniteDataConfig(kind="finite_data", count=3, grid=grid), PLANE)
    times = teacher.times(FixedSolver(kind="euler", steps=4))
    assert float(times[0]) == pytest.approx(teacher.start) == pytest.approx(10)
    assert float(times[-1]) == 0
    assert log(float(times[-2])) == pytest.approx(log(0.002))


def test_a_device_without_float64_gets_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = mixture()
    monkeypatch.setattr(exact, "state_dtype", lambda device: torch.float32)
    teacher.to("cpu")
    assert {b.dtype for b in teacher.buffers()} == {torch.float32}
    found = teacher.denoise(noise(4, 2).float(), at(1.0).float(), None)
    torch.testing.assert_close(found.double(), mixture().denoise(noise(4, 2), at(1.0), None),
                               rtol=1e-4, atol=1e-4)
