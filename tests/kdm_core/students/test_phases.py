"""Training in phases, real samples of the data, and the guard of losses on the distribution."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kdm_core.datasets import Dataset
from kdm_core.datasets.base import assemble
from kdm_core.errors import DataError, DivergedError, KDMError, MismatchError
from kdm_core.losses.adversary import AdversaryConfig
from kdm_core.losses.drifting import DriftingConfig
from kdm_core.networks import MLPConfig
from kdm_core.operators import FactorisedConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students.given import Given, RealSamples
from kdm_core.students.guard import LONG, Guard, problem
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.phases import NextPhase, Phase, Reports, fit_phases, phases
from kdm_core.students.training import StudentTask
from kdm_core.training.checkpoints import Record, checkpoints
from kdm_core.training.config import TrainingConfig
from stages.train_student import real_samples

MLP = MLPConfig(kind="mlp", width=16, blocks=1)
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)
DATA = LossConfig(adversarial=0.01, adversary=AdversaryConfig(real="data", channels=8))


def pairs(count: int = 40) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return Pairs(noise, noise.tanh(), torch.arange(count) % 3)


def real(count: int = 30) -> RealSamples:
    images = torch.randint(256, (count, 1, 8, 8), generator=torch.Generator().manual_seed(1))
    return RealSamples(images.to(torch.uint8), torch.arange(count) % 3, 3)


def fresh() -> KDM:
    torch.manual_seed(0)
    return KDM(KDMConfig(encoder=MLP, decoder=MLP, latent=8,
                             operator=FactorisedConfig(kind="factorised")), IMAGES)


def plan(*then: NextPhase, **changes: object) -> list[Phase]:
    training = TrainingConfig.model_validate({
        "steps": 12, "batch": 8, "lr": 1e-3, "ema": 0.9, "precision": "fp32",
        "checkpoint_every": 5, "log_every": 3, **changes})
    return phases(Phase(LossConfig(adversarial=0.0), training), then)


def build(student: KDM, phase: Phase, number: int) -> StudentTask:
    reader = ResidentReader.of(pairs(), phase.training.batch, seed=number)
    return StudentTask(student, phase.losses, phase.training, reader, pairs(12), number,
                       Given(real()))


def trained(
    folder: Path, phases: list[Phase], reports: Reports | None = None
) -> tuple[KDM, Record]:
    return fit_phases(fresh(), phases, build, folder / "checkpoint.safetensors", "key",
                      reports or Reports())


class Killed(BaseException):
    pass


def killed_at(step: int) -> Callable[[int], None]:
    def kill(done: int) -> None:
        if done == step:
            raise Killed

    return kill


TWO = (NextPhase(steps=10, lr=5e-4, batch=4, losses=DATA), NextPhase(steps=4, lr=1e-4))


@pytest.mark.parametrize("kill_at", [3, 7, 12, 13, 18, 22, 23, 25])
def test_a_killed_training_goes_on_in_its_phase_and_ends_alike(
    tmp_path: Path, kill_at: int
) -> None:
    whole: list[Record] = []
    first, last = trained(tmp_path / "a", plan(*TWO), Reports(on_record=whole.append))
    with pytest.raises(Killed):
        trained(tmp_path / "b", plan(*TWO), Reports(on_step=killed_at(kill_at)))
    starts: list[int] = []
    points: list[Record] = []
    second, again = trained(tmp_path / "b", plan(*TWO),
                            Reports(on_start=starts.append, on_record=points.append))
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert points == whole and last == again
    assert [point["step"] for point in whole] == sorted(point["step"] for point in whole)
    assert whole[-1]["step"] == last["step"] == 26
    # A phase that was complete is not trained again.
    assert starts[0] == (kill_at - kill_at % 5 if kill_at <= 12 else 12)


def test_a_phase_is_a_training_that_starts_at_the_last_ones_average(tmp_path: Path) -> None:
    """The same as one training, then another one whose student starts at its weights."""
    one, _ = trained(tmp_path / "one", plan())
    both = plan(NextPhase(steps=6, lr=5e-4, losses=DATA))
    task = build(one.requires_grad_(True), both[1], 1)
    for step in range(6):
        task.seeded_step(step)
    two, _ = trained(tmp_path / "two", both)
    for name, value in task.ema.shadow.state_dict().items():
        assert torch.equal(value, two.state_dict()[name]), name


def test_what_a_phase_leaves_out_is_as_before() -> None:
    found = plan(NextPhase(steps=5, lr=1e-4, losses=DATA), NextPhase(steps=3, lr=1e-5, ema=0.5),
                 clip=2.0, schedule="cosine", warmup=2)
    assert [phase.losses for phase in found] == [LossConfig(adversarial=0.0), DATA, DATA]
    assert [phase.training.ema for phase in found] == [0.9, 0.9, 0.5]
    assert {phase.training.clip for phase in found} == {2.0}
    # A schedule is that of one phase.
    assert [phase.training.schedule for phase in found] == ["cosine", "constant", "constant"]
    assert [phase.training.warmup for phase in found] == [2, 0, 0]


@settings(max_examples=30)
@given(st.lists(st.integers(-1, 3), min_size=4, max_size=40), st.integers(0, 2**20))
def test_real_samples_have_the_labels_of_the_batch(own: list[int], seed: int) -> None:
    labels = torch.tensor([*own, 0, 1, 2, 3])
    images = torch.arange(len(labels), dtype=torch.float32).reshape(-1, 1)
    drawn = RealSamples(images, labels, 4)
    wanted = torch.randint(4, (200,), generator=torch.Generator().manual_seed(seed))
    chances = torch.rand(200, generator=torch.Generator().manual_seed(seed + 1))
    found = drawn.draw(wanted, chances)[:, 0].long()
    assert torch.equal(labels[found], wanted)
    # The largest chance there is stays within the class.
    last = drawn.draw(wanted, torch.full((200,), 1 - 2**-24))[:, 0].long()
    assert torch.equal(labels[last], wanted)


def test_every_real_sample_of_a_class_is_as_likely() -> None:
    labels = torch.tensor([0] * 3 + [1] * 7)
    drawn = RealSamples(torch.arange(10.0).reshape(-1, 1), labels, 2)
    chances = torch.rand(21_000, generator=torch.Generator().manual_seed(0))
    counts = torch.bincount(
        drawn.draw(torch.ones(21_000, dtype=torch.int64), chances).flatten().long(), minlength=10)
    assert counts[:3].sum() == 0
    assert torch.all((counts[3:] - 3000).abs() < 5 * 3000**0.5)


def test_a_student_without_classes_is_given_any() -> None:
    drawn = RealSamples(torch.arange(10.0).reshape(-1, 1), torch.arange(10) % 3, 0)
    found = drawn.draw(None, torch.rand(500, generator=torch.Generator().manual_seed(0)))
    assert len(found.unique()) == 10


def test_a_class_without_real_samples_is_refused() -> None:
    with pytest.raises(DataError, match="class 2 of the pairs has no training samples"):
        RealSamples(torch.zeros(4, 1), torch.tensor([0, 1, 1, 3]), 4)


def test_losses_that_need_the_data_say_so() -> None:
    phase = plan(NextPhase(steps=5, lr=1e-4, losses=DATA))[1]
    reader = ResidentReader.of(pairs(), 8, seed=0)
    with pytest.raises(KDMError, match="real: data needs the samples of the data"):
        StudentTask(fresh(), phase.losses, phase.training, reader, pairs(4), 0)


def test_the_discriminator_sees_the_data_as_real() -> None:
    """Its update is that of a hand-made batch of the data's samples, not of the teacher's."""
    phase = plan(NextPhase(steps=5, lr=1e-4, losses=DATA))[1]
    task = build(fresh(), phase, 0)
    seen: list[Tensor] = []
    task.adversary.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    batch = task.batches(0)[0]
    task.step(0)
    assert batch.real is not None and torch.equal(seen[0], batch.real)
    assert not torch.equal(seen[0], batch.samples)
    assert all(any(torch.equal(one, other) for other in (task.real_samples.samples / 127.5 - 1))
               for one in seen[0])


# The guard


def point(step: int, **values: float) -> Record:
    return {"step": float(step), "validation_distance": 0.0, **values}


def test_a_fallen_recall_is_a_problem() -> None:
    fine = [point(i, validation_recall=0.8) for i in range(5)]
    assert problem(None, fine) is None
    assert problem(None, [*fine, point(5, validation_recall=0.41)]) is None
    assert "recall" in str(problem(None, [*fine, point(5, validation_recall=0.39)]))


def test_samples_that_moved_away_are_a_problem() -> None:
    near = [point(0, validation_distance=0.02), point(1, validation_distance=-0.001)]
    assert problem(None, near) is None
    assert problem(None, [*near, point(2, validation_distance=0.09)]) is None
    assert "energy distance" in str(problem(None, [*near, point(2, validation_distance=0.11)]))


@pytest.mark.parametrize("loss", ["bce", "hinge", "relativistic"])
def test_a_discriminator_that_has_won_for_long_is_a_problem(loss: str) -> None:
    config = AdversaryConfig.model_validate({"loss": loss})
    won = [point(i, discriminator=1e-3) for i in range(LONG)]
    assert "discriminator" in str(problem(config, won))
    assert problem(config, won[1:]) is None
    assert problem(config, [*won[1:], point(LONG, discriminator=0.5)]) is None


def test_the_guard_measures_variety_and_distance() -> None:
    samples = pairs(200).samples
    guard = Guard(fresh(), samples)
    same = guard.measure(samples)
    other = guard.measure(-samples[:1].repeat(200, 1, 1, 1))
    assert same["validation_recall"] == 1.0 and other["validation_recall"] < 0.05
    assert abs(same["validation_distance"]) < 0.01 and 0.3 < other["validation_distance"] < 1


def test_a_phase_that_collapses_leaves_its_best_weights(tmp_path: Path) -> None:
    """A rate at which the student is ruined: the weights before that are the result, and a
    warning says why."""
    said: list[str] = []
    good, _ = trained(tmp_path / "good", plan(steps=60))
    ruin = NextPhase(steps=30, lr=3.0, ema=0.0, losses=LossConfig(adversarial=10.0))
    student, last = trained(tmp_path / "bad", plan(ruin, steps=60), Reports(warn=said.append))
    assert len(said) == 1 and "went wrong" in said[0]
    noise, samples, labels = pairs(12)[:3]
    assert last["validation_mse"] == pytest.approx(
        float((student.generate(noise, labels, "fp32") - samples).square().mean()), rel=1e-5)
    before = float((good.generate(noise, labels, "fp32") - samples).square().mean())
    assert last["validation_mse"] < 2 * before
    assert np.isfinite(last["validation_mse"])


def test_a_phase_without_such_a_loss_still_diverges(tmp_path: Path) -> None:
    with pytest.raises(DivergedError):
        trained(tmp_path, plan(NextPhase(steps=30, lr=1e30), nonfinite="zero"))


def test_files_of_phases_do_not_meet(tmp_path: Path) -> None:
    trained(tmp_path, plan(*TWO))
    names = [tmp_path / f"{stem}.safetensors"
             for stem in ("checkpoint", "checkpoint-1", "checkpoint-2")]
    assert [max(checkpoints(name), default=0) for name in names] == [12, 10, 0]


# The stage


def dataset(names: list[str], labels: list[int]) -> Dataset:
    images = (np.arange(len(labels)) * 7 % 256).astype(np.uint8)
    samples = np.broadcast_to(images[:, None, None, None], (len(labels), 1, 8, 8)).copy()
    whole = samples, np.array(labels)
    return assemble("test", "image", whole, whole, names, conditional=True)


def test_the_data_s_classes_are_the_student_s_by_name() -> None:
    found = real_samples(dataset(["b", "c", "a"], [0, 1, 2, 0]), IMAGES, torch.device("cpu"))
    drawn = found.draw(torch.tensor([0, 1, 1, 2]), torch.tensor([0.0, 0.0, 0.9, 0.5]))
    values = ((drawn[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()
    assert values == [14, 0, 21, 7]


def test_data_that_are_no_such_samples_are_refused() -> None:
    other = SampleSpec(kind="image", shape=[1, 16, 16])
    with pytest.raises(MismatchError, match="real: data"):
        real_samples(dataset(["a"], [0, 0]), other, torch.device("cpu"))


def test_drifting_trains_a_student_and_is_resumed(tmp_path: Path) -> None:
    losses = LossConfig(adversarial=0.0, drifting=0.1, drift=DriftingConfig(
        real="data", features=[]))
    both = plan(NextPhase(steps=10, lr=5e-4, batch=24, losses=losses))
    points: list[Record] = []
    first, _ = trained(tmp_path / "a", both, Reports(on_record=points.append))
    with pytest.raises(Killed):
        trained(tmp_path / "b", both, Reports(on_step=killed_at(18)))
    second, _ = trained(tmp_path / "b", both)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name
    assert points[-1]["drift_force"] > 0 and "drift_force" not in points[0]
    without, _ = trained(tmp_path / "c", plan(NextPhase(
        steps=10, lr=5e-4, batch=24, losses=LossConfig(adversarial=0.0))))
    assert any(not torch.equal(value, without.state_dict()[name])
               for name, value in first.state_dict().items())
