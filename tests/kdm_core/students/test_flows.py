"""Students of straight lines and of equilibria, against what is known in closed form."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from kdm_core.errors import KDMError
from kdm_core.losses.distances import LPIPSConfig, PseudoHuberConfig, build_distance
from kdm_core.losses.perceptual import LPIPS
from kdm_core.networks import build_network
from kdm_core.networks.get import GETConfig
from kdm_core.samples import SampleSpec
from kdm_core.sharing.export import export_student
from kdm_core.sharing.folder import load_student, save_student
from kdm_core.solvers import FixedSolver
from kdm_core.students import KINDS
from kdm_core.students.mean_flow import MeanFlow, mean_target
from kdm_core.students.objective import LossConfig
from kdm_core.students.rectified_flow import LEAST, RectifiedFlow, u_shaped
from kdm_core.teachers.base import per_sample
from kdm_core.training.loop import fit
from tests.support.family import (
    IMAGES,
    POINTS,
    QUIET,
    TEACHERS,
    noise_and_labels,
    student,
    task,
    teacher,
)

LOSSES = LossConfig.model_validate(QUIET)
FINE = FixedSolver(kind="heun", steps=200)
CPU = torch.device("cpu")


def flow(name: str, spec: SampleSpec = IMAGES) -> RectifiedFlow:
    made = student("rectified_flow", teacher(name, spec))
    assert isinstance(made, RectifiedFlow)
    return made


def mean(name: str, random: bool = False, **model: Any) -> MeanFlow:
    """One that is told t − r by random weights, so that it matters, if wanted."""
    made = student("mean_flow", teacher(name), **model)
    assert isinstance(made, MeanFlow)
    generator = torch.Generator().manual_seed(5)
    for value in made.gap.parameters() if random else ():
        value.data = 0.1 * torch.randn(value.shape, generator=generator)
    return made


# Rectified flow


@pytest.mark.parametrize("name", list(TEACHERS))
@pytest.mark.parametrize("kind", ["rectified_flow", "mean_flow"])
def test_untrained_one_step_is_the_teacher_s_denoiser_of_the_noise(kind: str, name: str) -> None:
    theirs = teacher(name)
    made = student(kind, theirs)
    noise, labels = noise_and_labels()
    start = torch.tensor(theirs.start)
    expected = theirs.denoise(noise * theirs.noise_scale(start), start, labels)
    torch.testing.assert_close(made(noise, labels), expected, rtol=1e-5, atol=1e-5)
    first = torch.full((5,), made.first)  # type: ignore[arg-type]
    torch.testing.assert_close(made.end_of(made.entry * noise, first, labels),  # type: ignore[operator]
                               expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["edm", "mlp", "flow"])
def test_solved_finely_the_untrained_velocity_makes_the_teacher_s_samples(name: str) -> None:
    """The lines' ODE is the teacher's in another time and scale."""
    theirs, made = teacher(name), flow(name)
    noise, labels = noise_and_labels()
    wanted = theirs.sample(noise, labels, FINE, "fp32").state
    found = made.follow(noise, labels, FINE.steps, "fp32")
    assert float((found - wanted).abs().max() / wanted.std()) < 2e-3


def test_a_gaussian_s_velocity_makes_its_exact_samples_and_back() -> None:
    """N(0, s²) per value: the flow is linear, and so is a network that knows it."""
    made = flow("mlp", POINTS)
    scale = POINTS.sigma_data

    def denoise(x: Tensor, time: Tensor, labels: Tensor | None, position: Any) -> Tensor:
        sigma = per_sample(time, x)
        return x * scale**2 / (scale**2 + sigma**2)

    made.denoise = denoise  # type: ignore[method-assign]
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    # From sigma = 80 to 0, exactly: x₀ = s x / √(s² + sigma²).
    exact = noise * 80 * scale / math.sqrt(scale**2 + 80**2)
    found = made.follow(noise, steps=200, precision="fp32")
    torch.testing.assert_close(found, exact, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(made.invert(found, steps=200, precision="fp32"), noise, rtol=1e-3,
                               atol=1e-3)


def test_times_are_u_shaped() -> None:
    normal = torch.randn(200_000, 2, generator=torch.Generator().manual_seed(0))
    t = u_shaped(normal, 4.0, 0.9)
    assert t.min() >= LEAST and t.max() <= 0.9 - LEAST + 1e-6
    edges = torch.linspace(0, 1, 11, dtype=torch.float64)
    mass = (torch.sinh(4 * (edges[1:] - 0.5)) - torch.sinh(4 * (edges[:-1] - 0.5)))
    share = torch.histc(t / 0.9, 10, 0, 1) / len(t)
    torch.testing.assert_close(share.double(), mass / mass.sum(), atol=4e-3, rtol=0)


@pytest.mark.parametrize("config", [
    {"kind": "mse"}, {"kind": "pseudo_huber", "c": 0.1},
    {"kind": "lpips", "net": "vgg", "resolution": 16, "mse": 0.5, "huber": 0.25}])
def test_its_terms_are_those_of_the_paper(config: dict[str, Any]) -> None:
    """Of the velocity's error: its square; its pseudo-Huber distance times 1 − t; and LPIPS of the
    line's end over t."""
    made = flow("edm")
    losses = LossConfig.model_validate({**QUIET, "distance": config})
    run = task(made, losses)
    made.eval()
    (batch,) = run.batches(0)
    terms, _ = made.terms(batch, losses, run.objective.distance)
    t = u_shaped(batch.latent_noise[:, :, 0], 4.0, made.first)
    near, far = (per_sample(value, batch.noise) for value in (1 - t, t))
    x = near * batch.samples + far * batch.noise
    with torch.no_grad():
        end = made.end_of(x, t, batch.labels)
    error = (batch.noise - batch.samples - (x - end) / far).double().square().flatten(1).mean(1)
    huber = {"pseudo_huber": 0.1, "lpips": 0.00054 * 8}.get(config["kind"], 0.0)
    parts = {"mse": error, "huber": (1 - t) * ((error + huber**2).sqrt() - huber),
             "lpips": None}
    if config["kind"] == "lpips":
        lpips = LPIPS(16)
        parts["lpips"] = lpips.to_target(batch.samples, [end])[0] / t
        wanted = parts["lpips"] + 0.5 * error + 0.25 * parts["huber"]
    else:
        wanted = parts["mse" if config["kind"] == "mse" else "huber"]
    found = float(terms["prediction"].detach())
    assert found == pytest.approx(float(wanted.mean()), rel=2e-3)


def test_more_steps_go_back_to_the_first_noise() -> None:
    made = flow("edm")
    noise, labels = noise_and_labels()
    once = made(noise, labels)
    t = torch.full((5,), made.first / 2)
    state = (1 - made.first / 2) * once + made.first / 2 * noise
    torch.testing.assert_close(made.refine(noise, labels, 2), made.end_of(state, t, labels))
    assert made.can_refine() and mean("edm").can_refine()
    with pytest.raises(KDMError, match="steps: 0"):
        made.refine(noise, labels, 0)


# Mean flow


@pytest.mark.parametrize("derivative", ["difference", "jvp"])
@pytest.mark.parametrize(("r", "t"), [(0.1, 0.7), (0.5, 0.9), (0.0, 0.987)])
@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_the_target_of_a_gaussian_is_its_average_velocity(
    scale: float, r: float, t: float, derivative: Any
) -> None:
    """On independent noise and N(0, s²), whose flow is z_r = z_t √(A(r) / A(t)), in expectation
    over the pairs of a state. With the derivative's sign turned it is another."""

    def variance(q: Tensor) -> Tensor:
        return (1 - q) ** 2 * scale**2 + q**2

    def exact(z: Tensor, r: Tensor, t: Tensor) -> Tensor:
        r, t = per_sample(r, z), per_sample(t, z)
        return z * (1 - torch.sqrt(variance(r) / variance(t))) / (t - r)

    total = (1 - t) ** 2 * scale**2 + t**2
    z = 0.8 * math.sqrt(total)
    # x₀ given the state is normal; with both signs of its deviation the mean is exact.
    centre, width = (1 - t) * scale**2 / total * z, scale * t / math.sqrt(total)
    away = width * torch.randn(500, 1, generator=torch.Generator().manual_seed(0))
    x0 = torch.cat([centre + away, centre - away])
    velocity = (z - (1 - t) * x0) / t - x0
    times = torch.full((1000,), r), torch.full((1000,), t)
    found = mean_target(exact, torch.full((1000, 1), z), velocity, *times, derivative).mean()
    wanted = exact(torch.full((1, 1), z), times[0][:1], times[1][:1])
    assert float(found) == pytest.approx(float(wanted), abs=1e-3)
    turned = 2 * velocity.mean() - found
    assert abs(float(turned - wanted)) > 1e-2


def test_differences_are_the_derivative_of_a_network() -> None:
    made = mean("mlp", random=True)
    noise, labels = noise_and_labels()
    t = torch.linspace(0.2, 0.9, 5)
    velocity = noise - noise.tanh()
    x = noise.tanh() + per_sample(t, noise) * velocity

    def network(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return made.mean(x, r, t, labels)

    difference, exact = (mean_target(network, x, velocity, 0.3 * t, t, how)
                         for how in ("difference", "jvp"))  # type: ignore[arg-type]
    torch.testing.assert_close(difference, exact, rtol=1e-3, atol=1e-3)
    assert not torch.allclose(exact, velocity, atol=1e-2)


def test_its_loss_by_hand() -> None:
    made = mean("edm", random=True, truncate=0.25, equal=0.5)
    run = task(made, LOSSES)
    made.eval()
    (batch,) = run.batches(0)
    held_out = run.validation
    far = (held_out.samples - held_out.noise).square().flatten(1).mean(1).sqrt()
    assert float(made.farthest) == pytest.approx(float(torch.quantile(far, 0.75)), rel=1e-6)
    terms, samples = made.terms(batch, LOSSES, run.objective.distance)
    normal = batch.latent_noise
    t = u_shaped(normal[:, :, 0], 4.0, made.first)
    equal = normal[:, 1, 1] < 0
    assert 0 < int(equal.sum()) < len(t)
    r = torch.where(equal, t, (t - torch.sigmoid(normal[:, 0, 1] - 0.8)).clamp(min=0))
    velocity = batch.noise - batch.samples
    x = batch.samples + per_sample(t, velocity) * velocity

    def network(x: Tensor, r: Tensor, t: Tensor) -> Tensor:
        return made.mean(x, r, t, batch.labels)

    with torch.no_grad():
        target = mean_target(network, x, velocity, r, t)
        error = (network(x, r, t) - target).square().flatten(1).mean(1)
    torch.testing.assert_close(target[equal], velocity[equal])
    kept = velocity.square().flatten(1).mean(1).sqrt() <= made.farthest
    assert 0 < int(kept.sum()) < len(kept)
    wanted = (kept * error * (error + 0.01) ** -0.5).mean()
    assert float(terms["prediction"].detach()) == pytest.approx(float(wanted), rel=1e-4)
    assert samples.shape == batch.samples.shape


def test_steps_of_a_mean_flow_are_its_jumps() -> None:
    made = mean("flow", random=True)
    noise, labels = noise_and_labels()
    half, end = torch.full((5,), 0.5), torch.full((5,), 1.0)
    state = made.jump(noise, half, end, labels)
    torch.testing.assert_close(made.refine(noise, labels, 2),
                               made.jump(state, torch.zeros(5), half, labels))
    torch.testing.assert_close(made.refine(noise, labels, 1), made(noise, labels))


def test_what_it_is_told_of_the_gap_is_nothing_for_none() -> None:
    made = mean("edm", random=True)
    assert not made.gap(torch.zeros(3)).any() and made.gap(torch.ones(3)).any()


# Equilibria


@pytest.mark.parametrize(("width", "injection", "heads", "mlp_ratio", "millions"), [
    (256, 6, 4, 6, 8.6), (384, 6, 6, 6, 19.2), (512, 6, 8, 8, 37.2), (768, 1, 12, 12, 62.2),
    (768, 6, 12, 8, 83.5)])
def test_equilibrium_transformers_have_the_published_sizes(
    width: int, injection: int, heads: int, mlp_ratio: int, millions: float
) -> None:
    """With their positions, which the paper counts."""
    config = GETConfig(kind="get", width=width, injection=injection, heads=heads,
                       mlp_ratio=mlp_ratio)
    with torch.device("meta"):
        network: Any = build_network(config, (3, 32, 32), (3, 32, 32))
    count = sum(value.numel() for value in network.parameters()) + network.positions.numel()
    assert round(count / 1e6, 1) == millions


GET = {"kind": "denoiser", "network": {
    "kind": "get", "width": 16, "heads": 2, "mlp_ratio": 2, "iterations": 3}}


def equilibrium() -> Any:
    torch.manual_seed(0)
    made: Any = KINDS["direct"].model_validate({"kind": "direct", "denoiser": GET}).build(IMAGES)
    for value in made.parameters():
        nn.init.normal_(value, std=0.2)
    return made.eval()


def test_an_equilibrium_learns_by_all_its_iterates() -> None:
    made = equilibrium()
    noise, labels = noise_and_labels()
    found = made.iterates(noise, labels)
    assert len(found) == 3 and torch.equal(found[-1], made(noise, labels))
    assert not torch.allclose(found[0], found[1])
    run = task(made, LOSSES)
    made.eval()
    (batch,) = run.batches(0)
    terms, predicted = made.terms(batch, LOSSES, run.objective.distance)
    errors = [(one - batch.samples).square().mean()
              for one in made.iterates(batch.noise, batch.labels)]
    wanted = 0.64 * errors[0] + 0.8 * errors[1] + errors[2]
    assert float(terms["prediction"].detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    torch.testing.assert_close(predicted, made(batch.noise, batch.labels))


def test_no_label_adds_nothing_to_an_equilibrium() -> None:
    network = equilibrium().network
    noise, _ = noise_and_labels()
    none = torch.full((5,), -1)
    torch.testing.assert_close(network(noise, None, none), network(noise, None, None))


# What all of them do as other students do


def every(kind: str) -> Any:
    return equilibrium() if kind == "get" else (
        mean("mlp", random=True) if kind == "mean_flow" else flow("edm"))


@pytest.mark.parametrize("kind", ["rectified_flow", "mean_flow", "get"])
def test_they_train_save_load_and_go_on_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == 10:
            raise Killed

    whole = task(every(kind), LOSSES)
    before = {name: value.clone() for name, value in whole.student.named_parameters()
              if value.numel()}
    fit(whole, tmp_path / "whole", "key")
    after = dict(whole.student.named_parameters())
    assert not [name for name, value in before.items() if torch.equal(value, after[name])]
    with pytest.raises(Killed):
        fit(task(every(kind), LOSSES), tmp_path / "killed", "key", kill)
    resumed = task(every(kind), LOSSES)
    fit(resumed, tmp_path / "killed", "key")
    for name, value in whole.ema.shadow.state_dict().items():
        assert torch.equal(value, resumed.ema.shadow.state_dict()[name]), name
    best = whole.ema.shadow.eval()
    save_student(tmp_path / "saved", best, {})
    loaded, _ = load_student(tmp_path / "saved")
    noise, labels = noise_and_labels()
    assert torch.equal(loaded(noise, labels), best(noise, labels))


@pytest.mark.parametrize("kind", ["rectified_flow", "mean_flow", "get"])
def test_their_exports_make_the_same_samples(tmp_path: Path, kind: str) -> None:
    for form in ("onnx", "torch-export"):
        made = export_student(every(kind), tmp_path / form, form, "f" * 64)  # type: ignore[arg-type]
        assert made.deviation < 1e-4


@pytest.mark.parametrize(("model", "losses", "reason"), [
    ({"kind": "mean_flow"}, {"distance": {"kind": "l1"}}, "^losses.distance.kind: .* use mse"),
    ({"kind": "rectified_flow", "denoiser": GET}, {}, "^denoiser.network.kind: get takes no time"),
    ({"kind": "direct", "denoiser": GET}, {"endpoint": 1.0}, "^losses.endpoint: .* no time"),
    ({"kind": "rectified_flow"}, {"endpoint": 1.0}, "^losses.endpoint: .* no use for it"),
    ({"kind": "mean_flow"}, {"adversarial": 1.0}, "^losses.adversarial: .* no use for it"),
])
def test_what_they_cannot_learn_is_refused(
    model: dict[str, Any], losses: dict[str, Any], reason: str
) -> None:
    config = KINDS[model["kind"]].model_validate(model)
    with pytest.raises(ValueError, match=reason):
        config.check(LossConfig.model_validate({**QUIET, **losses}))


def test_a_kernel_without_forward_derivative_is_named() -> None:
    """Group normalisation of images whose channels come last has none in torch."""
    made = mean("edm", derivative="jvp")
    with pytest.raises(KDMError, match="^derivative: .* use difference"):
        task(made, LOSSES).step(0)


def test_all_pairs_cannot_be_left_out() -> None:
    with pytest.raises(ValidationError, match="less than 1"):
        KINDS["mean_flow"].model_validate({"kind": "mean_flow", "truncate": 1.0})


def test_the_published_distance_of_lines() -> None:
    """LPIPS + 0.00054 √D: the same as a pseudo-Huber distance of that c beside it."""
    distance = build_distance(LPIPSConfig(kind="lpips", resolution=16, huber=2.0), CPU)
    plain = build_distance(LPIPSConfig(kind="lpips", resolution=16), CPU)
    huber = build_distance(PseudoHuberConfig(kind="pseudo_huber", c=0.00054 * 8), CPU)
    a, b = torch.rand(2, 3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert float(distance(a, [b])[0]) == pytest.approx(
        float(plain(a, [b])[0] + 2 * huber(a, [b])[0]), rel=1e-5)


def test_other_students_have_no_inverse() -> None:
    with pytest.raises(KDMError, match="^kind: .* use a rectified_flow"):
        mean("edm").invert(torch.zeros(1, 1, 8, 8), "a")
