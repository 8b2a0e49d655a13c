"""Trajectory supervision and sampling in several steps."""

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

import kdm_core
from kdm_core.errors import KDMError
from kdm_core.losses.distances import mse
from kdm_core.networks import MLPConfig
from kdm_core.operators import (
    ContinuousConfig,
    DenseConfig,
    FactorisedConfig,
    OperatorConfig,
)
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs, read_split
from kdm_core.pairs.sampling import PairsConfig, plan_store, sample_pairs
from kdm_core.pairs.store import PairStore
from kdm_core.samples import SampleSpec
from kdm_core.solvers import AdaptiveSolver
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.students.trajectory import (
    States,
    draw_places,
    states_at,
)
from kdm_core.teachers.exact import GaussianMixture, GaussianMixtureConfig
from kdm_core.training.config import TrainingConfig

CPU = torch.device("cpu")
PLANE = SampleSpec(kind="points", shape=[2], sigma_data=0.7)
LABELLED = SampleSpec(kind="points", shape=[3], label_names=["a", "b"], sigma_data=0.7)
VARIANCES = torch.tensor([1.1, 0.2])
OPERATORS: list[OperatorConfig] = [ContinuousConfig(kind="continuous"),
                                   FactorisedConfig(kind="factorised")]


def mean_square(target: Tensor, predictions: Sequence[Tensor]) -> list[Tensor]:
    return [mse(target, prediction) for prediction in predictions]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def build(
    operator: OperatorConfig = OPERATORS[0], spec: SampleSpec = LABELLED,
    encoders: str = "shared",
) -> KDM:
    torch.manual_seed(0)
    network = MLPConfig(kind="mlp", width=16, blocks=1)
    student = KDM(KDMConfig.model_validate({
        "encoder": network, "decoder": network, "encoders": encoders, "latent": 6,
        "operator": operator}), spec)
    for parameter in student.parameters():  # also of layers that start at zero
        torch.nn.init.normal_(parameter, std=0.3, generator=generator())
    return student


def random_states(batch: int, spec: SampleSpec = LABELLED) -> tuple[States, Tensor]:
    start, end = torch.randn(2, batch, *spec.sample_shape, generator=generator(1))
    first, second = torch.rand(2, batch, generator=generator(2)).sort(descending=True, dim=0)[0]
    return States(start, end, first, second), torch.arange(batch) % 2


@pytest.fixture(scope="module")
def gaussian(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    """Pairs with 5 states of N(0, diag VARIANCES), solved by its exact teacher."""
    exact = GaussianMixture(GaussianMixtureConfig(kind="gaussian_mixture", components=1), PLANE)
    exact.describe(torch.ones(1), torch.zeros(1, 2), VARIANCES.diag()[None])
    config = PairsConfig.model_validate({
        "solver": AdaptiveSolver(kind="dopri5", tolerance=1e-7, steps=18), "train": 300,
        "validation": 2, "test": 2, "precision": "fp32", "batch": 76, "shard": 76, "chunk": 76,
        "noise_dtype": "float32", "sample_dtype": "float32", "states": 5})
    store = PairStore.create(tmp_path_factory.mktemp("pairs") / "p",
                             plan_store(config, exact, "f" * 64, None, 0, CPU), {})
    sample_pairs(store, exact, CPU)
    return read_split(store, "train", CPU, states=True)


class Whitened(KDM):
    """The student whose latents of that Gaussian follow C_t exactly: E(x, u) = e^{au} x / g(u).

    The flow scales axis k of unit-variance states by g_k(u) = √((s_k + σ²) / (σ_d² + σ²)), where
    σ = σ_d tan(πu/2): divided by it, a path stands still, and e^{au} makes it fall at rate a.
    """

    def __init__(self, rate: float) -> None:
        network = MLPConfig(kind="mlp", width=8, blocks=1)
        super().__init__(KDMConfig(encoder=network, decoder=network, encoders="shared",
                                       latent=2, operator=OPERATORS[0]), PLANE)
        self.rate = rate

    def factor(self, position: float | Tensor) -> Tensor:
        u = torch.as_tensor(position, dtype=torch.float64).reshape(-1, 1)
        sigma2, data = (0.7 * torch.tan(math.pi * u / 2)).square(), 0.7**2
        g = ((VARIANCES + sigma2) / (data + sigma2)).sqrt()
        return (torch.exp(self.rate * u) / g).float()

    def encode(self, state: Tensor, position: float | Tensor, labels: Tensor | None) -> Tensor:
        return state * self.factor(position)

    def decode_state(self, z: Tensor, position: float | Tensor, labels: Tensor | None) -> Tensor:
        return z / self.factor(position)


def follow_exactly(student: Whitened) -> None:
    """Set C_t = e^{−at}."""
    with torch.no_grad():
        student.operator.nu.fill_(math.log(student.rate))
        student.operator.omega.zero_()


def all_states(pairs: Pairs, seed: int = 0) -> States:
    return states_at(pairs, draw_places(len(pairs.noise), pairs, generator(seed)), 0.7)


def test_an_operator_that_follows_the_path_has_no_loss(gaussian: Pairs) -> None:
    student = Whitened(0.8)
    states = all_states(gaussian)
    with torch.no_grad():
        assert float(student.trajectory(states, None, mean_square)) > 1e-2
        follow_exactly(student)
        assert float(student.trajectory(states, None, mean_square)) < 1e-6


@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_steps_along_the_path_end_at_the_sample(gaussian: Pairs, steps: int) -> None:
    student = Whitened(0.8)
    follow_exactly(student)
    made = student.refine(gaussian.noise, None, steps)
    torch.testing.assert_close(made, gaussian.samples, rtol=1e-3, atol=1e-3)


def test_the_operator_is_learned_from_the_path(gaussian: Pairs) -> None:
    """Rate and rotation of the path, from states alone."""
    student = Whitened(0.8)
    with torch.no_grad():
        student.operator.nu.fill_(0.9)
        student.operator.omega.fill_(0.7)
    optimizer = torch.optim.Adam(student.operator.parameters(), lr=0.03)
    for step in range(200):
        optimizer.zero_grad()
        student.trajectory(all_states(gaussian, step), None, mean_square).backward()
        optimizer.step()
    assert float(student.operator.nu.detach().exp()) == pytest.approx(0.8, rel=0.02)
    assert float(student.operator.omega.detach()) == pytest.approx(0, abs=0.02)


def test_places_are_all_pairs_alike(gaussian: Pairs) -> None:
    drawn = draw_places(21_000, gaussian, generator())
    counts = Counter(tuple(places) for places in drawn.tolist())
    assert set(counts) == {(i, j) for i in range(7) for j in range(i + 1, 7)}
    # 21 pairs, 1000 expected of each with a deviation of 31.
    assert max(abs(count - 1000) for count in counts.values()) < 160
    assert torch.equal(drawn, draw_places(21_000, gaussian, generator()))


def test_states_are_those_of_their_pairs(gaussian: Pairs) -> None:
    assert gaussian.trajectory is not None
    assert gaussian.positions is not None
    batch = Pairs(*(values[[4, 9, 2]] for values in gaussian.values), gaussian.positions)
    found = states_at(batch, torch.tensor([[0, 6], [2, 3], [5, 6]]), 0.7)
    assert torch.equal(found.start[0], gaussian.noise[4])
    assert torch.equal(found.end[0], gaussian.samples[4] / 0.7)
    assert torch.equal(found.start[1], gaussian.trajectory[9, 1].float())
    assert torch.equal(found.end[1], gaussian.trajectory[9, 2].float())
    assert torch.equal(found.start[2], gaussian.trajectory[2, 4].float())
    u = gaussian.positions.tolist()
    assert found.start_position.tolist() == [1, u[1], u[4]]
    assert found.end_position.tolist() == [0, u[2], 0]


@pytest.mark.parametrize("operator", OPERATORS)
def test_terms_are_their_formula(operator: OperatorConfig) -> None:
    """One state after the other, and the gradient reaches every part."""
    student = build(operator)
    states, labels = random_states(5)
    found = student.trajectory(states, labels, mean_square)
    latent, prediction = [], []
    for i in range(5):
        row = slice(i, i + 1)
        u, v, label = float(states.start_position[i]), float(states.end_position[i]), labels[row]
        pushed = student.operator.advance(student.encode(states.start[row], u, label), u - v,
                                          student.drive(label))
        latent.append(mse(student.encode(states.end[row], v, label), pushed))
        prediction.append(
            0.7**2 * mse(states.end[row], student.decode_state(pushed, v, label)))
    torch.testing.assert_close(found, (sum(latent) + sum(prediction)) / 5)
    found.backward()  # type: ignore[no-untyped-call]
    reached = {name.split(".")[0] for name, p in student.named_parameters()
               if p.grad is not None and bool(p.grad.any())}
    assert reached == {"noise_encoder", "operator", "control", "decoder"}


@pytest.mark.parametrize("operator", OPERATORS)
def test_one_step_is_the_forward_pass(operator: OperatorConfig) -> None:
    student = build(operator).eval()
    noise, labels = torch.randn(7, 3, generator=generator()), torch.arange(7) % 2
    with torch.no_grad():
        once = student(noise, labels)
        assert torch.equal(student.generate(noise, labels, "fp32", steps=1), once)
        torch.testing.assert_close(student.refine(noise, labels, 1), once)
        twice = student.generate(noise, labels, "fp32", steps=2)
    assert twice.shape == once.shape
    assert twice.dtype == torch.float32
    assert not torch.allclose(twice, once, atol=1e-3)


def test_steps_without_loss_in_between_are_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a decoder that is the encoder's inverse, C_{1/k} k times is C, drive included."""
    student = build().eval()
    rotation = torch.linalg.qr(torch.randn(6, 6, generator=generator()))[0]
    monkeypatch.setattr(student, "encode", lambda state, position, labels: state @ rotation)
    monkeypatch.setattr(student, "decode_state", lambda z, position, labels: z @ rotation.T)
    noise, labels = torch.randn(7, 6, generator=generator()), torch.arange(7) % 2
    whole = student.refine(noise, labels, 1)
    for steps in (2, 5):
        torch.testing.assert_close(student.refine(noise, labels, steps), whole)


def test_training_learns_the_states(gaussian: Pairs) -> None:
    """The real task; the curve has the term, and it falls."""
    torch.manual_seed(0)
    network = MLPConfig(kind="mlp", width=32, blocks=1)
    student = KDM(KDMConfig(encoder=network, decoder=network, encoders="shared", latent=8,
                                operator=OPERATORS[0]), PLANE)
    config = TrainingConfig(steps=150, batch=64, lr=3e-3, ema=0.9, precision="fp32")
    losses = LossConfig(adversarial=0.0, latent_noise=0.0, trajectory=1.0)
    reader = ResidentReader.of(gaussian, config.batch, seed=0)
    task = StudentTask(student, losses, config, reader, gaussian, seed=0)
    curve = [float(task.step(step)["trajectory"]) for step in range(150)]
    assert sum(curve[-10:]) < 0.1 * sum(curve[:10])
    made = task.ema.shadow.generate(gaussian.noise, None, "fp32", steps=3)
    assert float(mse(made, gaussian.samples)) < 0.05 * float(gaussian.samples.square().mean())


def test_bfloat16_is_the_same_to_its_precision() -> None:
    student, (states, labels) = build().requires_grad_(False), random_states(16)
    exact = student.trajectory(states, labels, mean_square)
    with torch.autocast("cpu", torch.bfloat16):
        rounded = student.trajectory(states, labels, mean_square)
    assert rounded.dtype == torch.float32
    assert float(rounded) == pytest.approx(float(exact), rel=0.05)


def test_what_cannot_be_followed_is_named(gaussian: Pairs) -> None:
    states, labels = random_states(4)
    with pytest.raises(KDMError, match=r"^encoders: separate .* use shared"):
        build(encoders="separate").trajectory(states, labels, mean_square)
    with pytest.raises(KDMError, match=r"^operator\.kind: .*continuous"):
        build(DenseConfig(kind="dense")).trajectory(states, labels, mean_square)
    with pytest.raises(KDMError, match=r"losses\.trajectory: .* states"):
        draw_places(4, gaussian._replace(trajectory=None, positions=None), generator())
    with pytest.raises(KDMError, match="steps: 0"):
        build().generate(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64), steps=0)
    with pytest.raises(KDMError, match="use shared"):
        build(encoders="separate").generate(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int64),
                                            steps=2)


def test_a_student_keeps_its_states_on_disk(tmp_path: Path) -> None:
    """Saved and loaded, it refines as before."""
    student = build().eval()
    kdm_core.save_pretrained(student, tmp_path / "s")
    again = kdm_core.from_pretrained(tmp_path / "s")
    noise, labels = torch.randn(4, 3, generator=generator()), torch.arange(4) % 2
    assert torch.equal(again.generate(noise, labels, "fp32", steps=3),
                       student.generate(noise, labels, "fp32", steps=3))
