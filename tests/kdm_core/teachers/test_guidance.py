"""Guidance against the formula, with exact teachers."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor

from kdm_core.errors import KDMError, MismatchError
from kdm_core.networks import MLPConfig
from kdm_core.samples import SampleSpec
from kdm_core.solvers import AdaptiveSolver, FixedSolver, SolverConfig
from kdm_core.teachers import load_sampled, load_teacher, save_teacher
from kdm_core.teachers.base import Teacher
from kdm_core.teachers.exact import GaussianMixture, GaussianMixtureConfig
from kdm_core.teachers.flow_matching import FlowMatching, FlowMatchingConfig
from kdm_core.teachers.guidance import GuidanceConfig, guided

CLASSES = SampleSpec(kind="points", shape=[2], label_names=["a", "b"], sigma_data=1.0)
PLAIN = SampleSpec(kind="points", shape=[2], sigma_data=1.0)
MEANS = torch.tensor([[2.0, 0.0], [-1.0, 1.0]], dtype=torch.float64)
VARIANCES = [0.5, 1.5]
LABELS = torch.tensor([0, 1, 1, -1])


def mixture(widening: float = 1.0, spec: SampleSpec = CLASSES) -> GaussianMixture:
    """Two round Gaussians of equal weight."""
    teacher = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=2), spec)
    covariances = torch.stack([widening * s * torch.eye(2) for s in VARIANCES])
    teacher.describe(torch.ones(2), MEANS, covariances)
    return teacher


def flow(spec: SampleSpec = CLASSES) -> FlowMatching:
    """Of any weights, so that labels matter."""
    torch.manual_seed(0)
    network = MLPConfig(kind="mlp", width=8, blocks=1)
    teacher = FlowMatching(FlowMatchingConfig(kind="flow_matching", network=network), spec)
    for parameter in teacher.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return teacher


def config(scale: float, kind: str = "classifier_free") -> GuidanceConfig:
    return GuidanceConfig(kind=kind, scale=scale)


def noise(count: int = 4) -> Tensor:
    return torch.randn(count, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@given(scale=st.floats(1, 10), sigma=st.floats(0.05, 50))
@settings(max_examples=30)
def test_classifier_free_is_the_formula(scale: float, sigma: float) -> None:
    """D + (scale − 1) (D_label − D), where D weighs the classes' denoisers by Bayes' rule; a state
    without a label is not guided."""
    x = (4 + sigma**2) ** 0.5 * noise()
    total = torch.tensor(VARIANCES, dtype=torch.float64) + sigma**2
    own = MEANS + (torch.tensor(VARIANCES, dtype=torch.float64) / total)[:, None] * (
        x[:, None] - MEANS)  # (B, class, 2)
    density = (-((x[:, None] - MEANS) ** 2).sum(-1) / (2 * total)).exp() / total
    whole = (density[..., None] * own).sum(1) / density.sum(1, keepdim=True)
    labelled = torch.stack([own[0, 0], own[1, 1], own[2, 1], whole[3]])
    found = guided(mixture(), None, config(scale)).denoise(
        x, torch.tensor(sigma, dtype=torch.float64), LABELS)
    torch.testing.assert_close(found, labelled + (scale - 1) * (labelled - whole),
                               rtol=1e-5, atol=1e-6 * scale)


@pytest.mark.parametrize("teacher", [mixture(), flow()], ids=["denoiser", "flow"])
@pytest.mark.parametrize("kind", ["classifier_free", "autoguidance"])
def test_scale_1_is_the_teacher(teacher: Teacher, kind: str) -> None:
    weak = mixture(3.0) if isinstance(teacher, GaussianMixture) else flow()
    same = guided(teacher, weak, config(1.0, kind))
    time = torch.tensor(0.4, dtype=torch.float64)
    assert torch.equal(same.denoise(noise(), time, LABELS), teacher.denoise(noise(), time, LABELS))
    assert torch.equal(same.velocity(noise(), time, LABELS),
                       teacher.velocity(noise(), time, LABELS))


def test_without_guidance_it_is_the_teacher_itself() -> None:
    teacher = mixture()
    assert guided(teacher, None, None) is teacher


@pytest.mark.parametrize("kind", ["classifier_free", "autoguidance"])
def test_velocity_and_denoiser_are_guided_alike(kind: str) -> None:
    """Each follows from the other, as in the teachers themselves, in both kinds of time."""
    time = torch.tensor(0.4, dtype=torch.float64)
    strong = guided(mixture(), mixture(3.0), config(2.5, kind))
    torch.testing.assert_close(strong.velocity(noise(), time, LABELS),
                               (noise() - strong.denoise(noise(), time, LABELS)) / time)
    stream = guided(flow(), flow(), config(2.5, kind))
    torch.testing.assert_close(stream.denoise(noise(), time, LABELS),
                               noise() + (1 - time) * stream.velocity(noise(), time, LABELS))


def test_autoguidance_gives_the_weaker_teacher_the_labels() -> None:
    strong, weak, time = mixture(), mixture(3.0), torch.tensor(1.3, dtype=torch.float64)
    found = guided(strong, weak, config(2.0, "autoguidance")).denoise(noise(), time, LABELS)
    expected = 2 * strong.denoise(noise(), time, LABELS) - weak.denoise(noise(), time, LABELS)
    torch.testing.assert_close(found, expected)
    unlabelled = 2 * strong.denoise(noise(), time, LABELS) - weak.denoise(noise(), time, None)
    assert not torch.allclose(found, unlabelled)


def test_autoguidance_by_a_teacher_without_classes() -> None:
    strong, weak = mixture(), mixture(3.0, PLAIN)
    time = torch.tensor(1.3, dtype=torch.float64)
    found = guided(strong, weak, config(2.0, "autoguidance")).denoise(noise(), time, LABELS)
    expected = 2 * strong.denoise(noise(), time, LABELS) - weak.denoise(noise(), time, None)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("solver", [
    FixedSolver(kind="heun", steps=5), FixedSolver(kind="dpmpp_2m", steps=5),
    AdaptiveSolver(kind="dopri5", tolerance=1e-3)], ids=["heun", "dpmpp_2m", "dopri5"])
@pytest.mark.parametrize("teacher", [mixture(), flow()], ids=["denoiser", "flow"])
def test_nfe_counts_both_networks(teacher: Teacher, solver: SolverConfig) -> None:
    """Found by counting the evaluations of either."""
    calls = 0
    denoise, velocity = teacher.denoise, teacher.velocity

    class Watched(type(teacher)):  # type: ignore[misc]
        def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            nonlocal calls
            calls += 1
            return denoise(x, time, labels)

        def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            nonlocal calls
            calls += 1
            return velocity(x, time, labels)

    watched = Watched(teacher.config, teacher.spec)
    found = guided(watched, None, config(2.0)).sample(noise().float(), LABELS, solver, "fp32")
    assert found.nfe == calls
    if isinstance(solver, FixedSolver):
        assert found.nfe == 2 * {"heun": 9, "dpmpp_2m": 5}[solver.kind]


def test_guidance_sharpens() -> None:
    """What it is for: samples of class a lie farther from class b."""
    x, solver = noise(200).float(), FixedSolver(kind="heun", steps=20)
    labels = torch.zeros(200, dtype=torch.int64)
    away = (MEANS[0] - MEANS[1]).float()
    plain = mixture().sample(x, labels, solver, "fp32").state @ away
    pushed = guided(mixture(), None, config(3.0)).sample(x, labels, solver, "fp32").state @ away
    assert float(pushed.mean()) > float(plain.mean()) + 1
    assert float(pushed.min()) > float(plain.min())


def test_a_guided_teacher_keeps_the_times_of_its_teacher() -> None:
    for teacher in (mixture(), flow()):
        other = guided(teacher, None, config(2.0))
        solver = FixedSolver(kind="euler", steps=7)
        times = teacher.times(solver)
        assert torch.equal(other.times(solver), times)
        assert torch.equal(other.noise_scale(times), teacher.noise_scale(times))
        assert other.ends_singular == teacher.ends_singular
        assert (other.start, other.end) == (teacher.start, teacher.end)


@pytest.mark.parametrize("share", [0.0, 0.1, None])
def test_a_folder_says_whether_its_teacher_can_do_without_labels(
    tmp_path: Path, share: float | None
) -> None:
    """None: nobody knows. It is no part of what the teacher is: the fingerprint stays."""
    teacher = flow()
    teacher.label_dropout = share
    mark = save_teacher(tmp_path, teacher)
    if share == 0:
        assert "label_dropout" not in (tmp_path / "config.json").read_text()  # as older folders
        with pytest.raises(KDMError, match=r"^guidance\.kind.*label_dropout 0"):
            load_sampled(tmp_path, config(2.0))
    else:
        found, again, _ = load_sampled(tmp_path, config(2.0))
        assert found.evaluations == 2
        assert again == mark
    teacher.label_dropout = 0.3
    assert save_teacher(tmp_path / "b", teacher) == mark
    assert load_teacher(tmp_path / "b")[0].label_dropout == 0.3


def test_exact_teachers_need_no_training_without_labels(tmp_path: Path) -> None:
    save_teacher(tmp_path, mixture())
    assert load_sampled(tmp_path, config(2.0))[0].evaluations == 2


def test_guidance_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(KDMError, match=r"^guidance\.kind: classifier_free needs"):
        guided(mixture(spec=PLAIN), None, config(2.0))
    with pytest.raises(KDMError, match=r"second, weaker teacher.*teacher's guide"):
        guided(mixture(), None, config(2.0, "autoguidance"))
    with pytest.raises(ValidationError):
        config(0.5)


def blank(components: int, shape: list[int], label_names: list[str]) -> Teacher:
    spec = SampleSpec(kind="points", shape=shape, label_names=label_names)
    config = GaussianMixtureConfig(kind="gaussian_mixture", components=components)
    return GaussianMixture(config, spec)


@pytest.mark.parametrize("weak", [flow(), blank(2, [3], ["a", "b"]), blank(3, [2], list("abc"))],
                         ids=["another ODE", "another shape", "other classes"])
def test_a_guide_must_fit_its_teacher(weak: Teacher) -> None:
    with pytest.raises(MismatchError, match="the teacher's guide must"):
        guided(mixture(), weak, config(2.0, "autoguidance"))
