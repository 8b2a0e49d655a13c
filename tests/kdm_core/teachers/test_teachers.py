"""Teachers: their objectives against closed forms, their training, labels, and files."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter
from torch import Tensor

from kdm_core.compute import autocast, seeded, step_generator
from kdm_core.errors import DataError, KDMError, MismatchError
from kdm_core.networks import MLPConfig, NetworkConfig, SongUNetConfig, UNetConfig, build_network
from kdm_core.samples import SampleSpec
from kdm_core.solvers import FixedSolver
from kdm_core.teachers import (
    Denoiser,
    DenoiserConfig,
    FlowMatching,
    FlowMatchingConfig,
    Teacher,
    build_teacher,
    load_teacher,
    save_teacher,
)
from kdm_core.teachers.augmentation import AugmentationConfig
from kdm_core.teachers.base import per_sample
from kdm_core.teachers.exact import fit_data
from kdm_core.teachers.training import TeacherTask, drop_labels
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import Task, fit

MLP = MLPConfig(kind="mlp", width=16, blocks=1)
UNET = UNetConfig(kind="unet", channels=8, multipliers=[1, 2], blocks=1, attention=[4])
SONG = SongUNetConfig(kind="song_unet", channels=8, multipliers=[1, 2], embedding=1, blocks=1,
                      attention=[4], dropout=0.3, augment_dim=9)
POINTS = SampleSpec(kind="points", shape=[2], sigma_data=2.0)
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)
KINDS = ["denoiser", "flow_matching"]


def make(kind: str, network: NetworkConfig, spec: SampleSpec = IMAGES, seed: int = 0) -> Teacher:
    config = (DenoiserConfig(kind="denoiser", network=network) if kind == "denoiser"
              else FlowMatchingConfig(kind="flow_matching", network=network))
    with seeded(seed):
        return build_teacher(config, spec)


LATENTS = SampleSpec(kind="latent", shape=[4, 8, 8], label_names=["a", "b", "c"], sigma_data=0.8,
                     decoder="ab" * 32, picture=[3, 64, 64])
OWN: dict[str, dict[str, object]] = {
    "mlp": {"width": 16, "blocks": 1},
    "transformer": {"width": 16, "blocks": 2, "heads": 2},
    "get": {"width": 16, "heads": 2, "mlp_ratio": 2, "iterations": 2},
    "edm2_unet": {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4],
                  "channels_per_head": 16},
    **{name: {"channels": 16, "multipliers": [1, 2], "blocks": 1, "attention": [4]}
       for name in ("unet", "song_unet", "dhariwal_unet")}}


def training(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({
        "steps": 12, "batch": 8, "lr": 1e-2, "ema": 0.9, "precision": "fp32",
        "checkpoint_every": 5, "log_every": 3, **changes})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def data(count: int = 40) -> tuple[Tensor, Tensor]:
    """Images of random bits and labels that the first row of pixels tells."""
    images = torch.rand(count, 1, 8, 8, generator=generator()).round() * 2 - 1
    labels = torch.arange(count) % 3
    images[:, :, 0] = (labels - 1).float()[:, None, None]
    return images, labels


def run(task: TeacherTask) -> Teacher:
    """Train without checkpoints; returns the averaged weights."""
    for step in range(task.config.steps):
        task.step(step)
    shadow: Teacher = task.ema.shadow
    return shadow


# Latents


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", OWN)
def test_every_network_of_ours_learns_latents(name: str, kind: str, tmp_path: Path) -> None:
    """Samples are as wide as latents are, which nothing cuts to the range of images."""
    network = TypeAdapter(NetworkConfig).validate_python({"kind": name, **OWN[name]})
    teacher = make(kind, network, LATENTS)
    latents = 3 * torch.randn(40, 4, 8, 8, generator=generator())
    task = TeacherTask(teacher, training(steps=2), latents, torch.arange(40) % 3, 0)
    losses = [task.step(step)["loss"] for step in range(2)]
    assert torch.stack(losses).isfinite().all()
    fresh = make(kind, network, LATENTS).state_dict()
    assert any(not torch.equal(fresh[name], now) for name, now in teacher.state_dict().items())
    mark = save_teacher(tmp_path, teacher.eval())
    loaded, found = load_teacher(tmp_path)
    assert (loaded.spec, found) == (LATENTS, mark)
    noise, labels = torch.randn(2, 4, 8, 8, generator=generator()), torch.tensor([0, -1])
    made = loaded.sample(noise, labels, FixedSolver(kind="euler", steps=4), "fp32").state
    assert made.shape == noise.shape
    far = loaded.denoise(100 + noise, loaded.time_at(torch.tensor(1e-3)), labels)
    assert float(far.mean()) > 50


# Objectives


class GaussianDenoiser(Denoiser):
    """The exact denoiser of N(0, sd²), D(x; σ) = x sd² / (sd² + σ²), times `factor`."""

    factor = 1.0

    def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        variance = self.spec.sigma_data**2
        return self.factor * x * variance / (variance + per_sample(time, x) ** 2)


class GaussianFlow(FlowMatching):
    """The exact velocity field between N(0, 1) and N(0, sd²) on straight paths, times `factor`."""

    factor = 1.0

    def velocity(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
        t, variance = per_sample(time, x), self.spec.sigma_data**2
        slope = (t * variance - (1 - t)) / ((1 - t) ** 2 + t**2 * variance)
        return self.factor * slope * x


def exact(kind: str) -> Teacher:
    if kind == "denoiser":
        return GaussianDenoiser(DenoiserConfig(kind="denoiser", network=MLP), POINTS)
    return GaussianFlow(FlowMatchingConfig(kind="flow_matching", network=MLP), POINTS)


@pytest.mark.parametrize(("kind", "least"), [
    # The posterior variance, sd² σ² / (sd² + σ²), is 1/λ.
    ("denoiser", 1.0),
    # ∫ sd² / (t² sd² + (1 − t)²) dt over t from 0 to 1, with sd = 2.
    ("flow_matching", 2 * math.pi / 2),
])
def test_the_least_loss_is_the_closed_form_s(kind: str, least: float) -> None:
    """Without a limit to its capacity a teacher of a Gaussian comes to this loss and no lower."""
    samples = 2 * torch.randn(200_000, 2, generator=generator(1))
    teacher = exact(kind)
    at_optimum = float(teacher.loss(samples, None, generator()))
    assert at_optimum == pytest.approx(least, rel=0.01)
    for factor in (0.9, 0.97, 1.03, 1.1):
        teacher.factor = factor  # type: ignore[assignment]
        assert float(teacher.loss(samples, None, generator())) > at_optimum


def test_noise_levels_in_training_are_log_normal() -> None:
    seen: list[Tensor] = []

    class Listening(GaussianDenoiser):
        def denoise(self, x: Tensor, time: Tensor, labels: Tensor | None) -> Tensor:
            seen.append(time.log())
            return super().denoise(x, time, labels)

    config = DenoiserConfig(kind="denoiser", network=MLP, p_mean=-0.4, p_std=1.7)
    Listening(config, POINTS).loss(torch.randn(100_000, 2), None, generator())
    assert float(seen[0].mean()) == pytest.approx(-0.4, abs=0.02)
    assert float(seen[0].std()) == pytest.approx(1.7, rel=0.01)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [MLP, UNET, SONG])
def test_training_lowers_the_loss(kind: str, network: NetworkConfig) -> None:
    samples, labels = data(32)
    teacher = make(kind, network).eval()
    before = float(teacher.loss(samples, labels, generator(1)).detach())
    task = TeacherTask(teacher, training(steps=60, batch=32), samples, labels, seed=0)
    after = float(run(task).loss(samples, labels, generator(1)))
    assert after < 0.85 * before


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [MLP, UNET, SONG])
def test_bf16_gives_the_loss_and_gradients_of_fp32(kind: str, network: NetworkConfig) -> None:
    """Only the network rounds; what multiplies and subtracts large numbers does not."""
    samples, labels = data(64)
    teacher = make(kind, network).eval()
    # Layers that start at zero would hide what comes before them.
    for index, parameter in enumerate(teacher.parameters()):
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator(index))
    found = {}
    for precision in ("fp32", "bf16"):
        teacher.zero_grad()
        with autocast(precision, samples.device):  # type: ignore[arg-type]
            loss = teacher.loss(samples, labels, generator())
        loss.backward()
        assert loss.dtype == torch.float32
        gradient = torch.cat([p.grad.flatten() for p in teacher.parameters() if p.grad is not None])
        found[precision] = float(loss.detach()), gradient
    (loss_32, gradient_32), (loss_16, gradient_16) = found["fp32"], found["bf16"]
    assert loss_16 == pytest.approx(loss_32, rel=0.01)
    assert float(torch.cosine_similarity(gradient_32, gradient_16, dim=0)) > 0.99


# Labels


@given(share=st.floats(0, 0.99), seed=st.integers(0, 1000))
def test_the_configured_share_of_labels_is_dropped(share: float, seed: int) -> None:
    labels = torch.arange(20_000) % 10
    found = drop_labels(labels, share, generator(seed))
    dropped = found == -1
    assert torch.equal(found[~dropped], labels[~dropped])
    assert float(dropped.float().mean()) == pytest.approx(share, abs=0.02)
    assert torch.equal(found, drop_labels(labels, share, generator(seed)))


def labels_seen(share: float, seed: int) -> Tensor:
    """The labels that the network is given in 20 steps of training."""
    samples, labels = data()
    task = TeacherTask(make("denoiser", MLP), training(), samples, labels, seed,
                       label_dropout=share)
    seen: list[Tensor] = []
    task.teacher.network.register_forward_pre_hook(lambda net, inputs: seen.append(inputs[2]))
    for step in range(20):
        task.step(step)
    return torch.stack(seen)


def test_training_drops_labels_anew_in_every_step() -> None:
    whole, dropped = labels_seen(0.0, 0), labels_seen(0.4, 0)
    gone = dropped == -1
    assert torch.equal(dropped[~gone], whole[~gone])
    assert not (whole == -1).any()
    assert float(gone.float().mean()) == pytest.approx(0.4, abs=0.12)
    assert len({tuple(row.tolist()) for row in gone}) > 15
    assert torch.equal(dropped, labels_seen(0.4, 0))
    assert not torch.equal(gone, labels_seen(0.4, 1) == -1)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [MLP, UNET, SONG])
def test_no_label_is_a_condition_of_its_own(kind: str, network: NetworkConfig) -> None:
    samples, labels = data()
    task = TeacherTask(make(kind, network), training(steps=30), samples, labels, 0,
                       label_dropout=0.3)
    teacher, x, time = run(task), samples[:6], torch.tensor(0.7)
    for answer in (teacher.denoise, teacher.velocity):
        none = answer(x, time, None)
        labelled = answer(x, time, labels[:6])
        assert torch.equal(none, answer(x, time, torch.full((6,), -1)))
        assert float((none - labelled).abs().max()) > 1e-3
        assert float((answer(x, time, (labels[:6] + 1) % 3) - labelled).abs().max()) > 1e-3
        # One batch may have both.
        mixed = torch.where(torch.arange(6) < 3, labels[:6], -1)
        torch.testing.assert_close(answer(x, time, mixed),
                                   torch.cat([labelled[:3], none[3:]]), rtol=1e-4, atol=1e-5)


def test_what_is_dropped_is_learned_as_the_mixture() -> None:
    """Two classes at ±1: with its label a teacher knows where it goes, without it does not."""
    spec = SampleSpec(kind="points", shape=[1], label_names=["minus", "plus"], sigma_data=1.0)
    labels = torch.arange(64) % 2
    samples = (2.0 * labels - 1)[:, None]
    with seeded(0):
        teacher = build_teacher(DenoiserConfig(
            kind="denoiser", network=MLPConfig(kind="mlp", width=32, blocks=2), p_mean=0.5), spec)
    task = TeacherTask(teacher, training(steps=400, batch=64, schedule="cosine"), samples, labels,
                       0, label_dropout=0.3)
    found = run(task)
    x, sigma = torch.tensor([[-1.0], [0.0], [0.5]]), torch.tensor(1.5)
    mixture = (x / sigma**2).tanh()
    torch.testing.assert_close(found.denoise(x, sigma, None), mixture, rtol=0, atol=0.15)
    for label, place in enumerate((-1.0, 1.0)):
        torch.testing.assert_close(found.denoise(x, sigma, torch.full((3,), label)),
                                   torch.full((3, 1), place), rtol=0, atol=0.15)


def test_labels_matter() -> None:
    with seeded(0):
        network = build_network(MLP, (2,), (2,), timed=True, num_classes=3)
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter)
    x, time = torch.randn(4, 2, generator=generator()), torch.rand(4, generator=generator())
    zero, one = (network(x, time, torch.full((4,), label)) for label in (0, 1))
    assert not torch.allclose(zero, one)


def test_a_teacher_without_labels_has_none_to_drop() -> None:
    with pytest.raises(KDMError, match="^label_dropout: "):
        TeacherTask(make("denoiser", MLP, POINTS), training(), torch.randn(8, 2),
                    torch.zeros(8, dtype=torch.int64), 0, label_dropout=0.1)


# Training


def test_what_cannot_be_trained_is_refused() -> None:
    samples, labels = data()
    exact_teacher = fit_data(IMAGES, samples, labels)
    with pytest.raises(KDMError, match="FiniteData is not trained"):
        TeacherTask(exact_teacher, training(), samples, labels, 0)
    with pytest.raises(KDMError, match=r"network\.augment_dim"):
        TeacherTask(make("denoiser", UNET), training(), samples, labels, 0,
                    augmentation=AugmentationConfig(probability=0.1))


class Killed(BaseException):
    pass


def full_task(kind: str) -> Task:
    """Everything that draws random numbers: batches, noise, both dropouts, augmentation."""
    samples, labels = data()
    return TeacherTask(make(kind, SONG), training(), samples, labels, 0, label_dropout=0.2,
                       augmentation=AugmentationConfig(flip="augment", probability=0.5))


def state(task: Task) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for name, module in task.modules.items()
            for key, value in module.state_dict().items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("kill_at", [3, 5, 11])
def test_a_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path, kind: str, kill_at: int
) -> None:
    whole = full_task(kind)
    curves = fit(whole, tmp_path / "a", "key")

    def kill(step: int) -> None:
        if step == kill_at:
            raise Killed

    with pytest.raises(Killed):
        fit(full_task(kind), tmp_path / "b", "key", kill)
    # Another process has drawn other numbers from torch's global generator.
    torch.rand(17)
    resumed = full_task(kind)
    assert fit(resumed, tmp_path / "b", "key") == curves
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name


def test_training_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    full_task("denoiser").seeded_step(0)
    assert torch.equal(torch.rand(4), expected)


def test_dropout_masks_differ_between_steps_and_are_independent_of_the_noise() -> None:
    """One stream of numbers for both would tie the masks to the noise."""
    task = full_task("denoiser")
    draws: list[Tensor] = []
    task.teacher.network.register_forward_pre_hook(
        lambda net, inputs: draws.append(torch.rand(4)))
    for step in (0, 1, 0):
        task.seeded_step(step)
    noise = torch.rand(4, generator=step_generator(torch.device("cpu"), 0, 0))
    assert torch.equal(draws[0], draws[2])
    assert not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], noise)


# Files


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("network", [MLP, UNET, SONG])
def test_round_trip_on_disk(tmp_path: Path, kind: str, network: NetworkConfig) -> None:
    teacher = make(kind, network).eval()
    for index, parameter in enumerate(teacher.parameters()):
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator(index))
    mark = save_teacher(tmp_path, teacher)
    loaded, found = load_teacher(tmp_path)
    noise, labels = torch.randn(5, 1, 8, 8, generator=generator()), torch.tensor([0, 1, 2, -1, 1])
    solver = FixedSolver(kind="euler", steps=2)
    assert found == mark
    assert loaded.config == teacher.config
    assert not loaded.training
    assert torch.equal(loaded.sample(noise, labels, solver).state,
                       teacher.sample(noise, labels, solver).state)


def test_altered_files_are_refused(tmp_path: Path) -> None:
    save_teacher(tmp_path, make("denoiser", MLP))
    config, weights = tmp_path / "config.json", tmp_path / "weights.safetensors"
    whole, content = config.read_text(), bytearray(weights.read_bytes())
    assert '"sigma_max": 80.0' in whole
    config.write_text(whole.replace('"sigma_max": 80.0', '"sigma_max": 40.0'))
    with pytest.raises(MismatchError, match=r"config\.json"):
        load_teacher(tmp_path)
    config.write_text(whole)
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(MismatchError, match=r"weights\.safetensors"):
        load_teacher(tmp_path)


def test_damaged_or_missing_files_are_refused(tmp_path: Path) -> None:
    save_teacher(tmp_path, make("denoiser", MLP))
    (tmp_path / "weights.safetensors").write_bytes(b"\x00" * 100)
    with pytest.raises(DataError, match=r"weights\.safetensors is damaged"):
        load_teacher(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(DataError, match=r"config\.json is missing"):
        load_teacher(tmp_path)
