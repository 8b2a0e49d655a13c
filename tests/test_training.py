"""The loop: resumption to the bit, divergence, schedules, averages, the student's objective."""

import math
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdm_core.compute import step_generator
from kdm_core.errors import DataError, DivergedError
from kdm_core.losses.distances import MSEConfig
from kdm_core.networks import (
    DhariwalUNetConfig,
    EDM2UNetConfig,
    MLPConfig,
    NetworkConfig,
    SongUNetConfig,
    TransformerConfig,
)
from kdm_core.pairs.reading import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students.koopman import DenseConfig, FactorisedConfig
from kdm_core.students.model import KDM, StudentConfig, load_student, save_student
from kdm_core.students.training import LossConfig, StudentTask
from kdm_core.teachers import DenoiserConfig, build_teacher
from kdm_core.teachers.training import TeacherTask
from kdm_core.training.batches import BatchOrder
from kdm_core.training.config import TrainingConfig
from kdm_core.training.ema import EMA
from kdm_core.training.loop import Task, fit
from kdm_core.training.optimizer import learning_rate

MLP = MLPConfig(kind="mlp", width=16, blocks=1)
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)


def config(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({
        "steps": 24, "batch": 8, "lr": 1e-3, "schedule": "cosine", "warmup": 3, "ema": 0.9,
        "precision": "fp32", "checkpoint_every": 5, "log_every": 3, "clip": 1.0, **changes})


def pairs(count: int = 40) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return Pairs(noise, noise.tanh(), torch.arange(count) % 3)


def student_task(
    adversarial: float = 0.01, latent: int = 8, noise: float = 0.4, network: NetworkConfig = MLP,
    **changes: object,
) -> StudentTask:
    torch.manual_seed(0)
    student = KDM(StudentConfig(encoder=network, decoder=network, latent=latent,
                                operator=FactorisedConfig(kind="factorised")), IMAGES)
    return StudentTask(student, LossConfig(adversarial=adversarial, latent_noise=noise),
                       config(**changes), pairs(), pairs(4), seed=0)


def teacher_task() -> TeacherTask:
    torch.manual_seed(0)
    teacher = build_teacher(DenoiserConfig(kind="denoiser", network=MLP), IMAGES)
    data = pairs()
    return TeacherTask(teacher, config(), data.samples, data.labels, seed=0)


def state(task: Task) -> dict[str, Tensor]:
    return {f"{name}/{key}": value for name, module in task.modules.items()
            for key, value in module.state_dict().items()}


class Killed(BaseException):
    pass


@pytest.mark.parametrize("make", [student_task, teacher_task])
@pytest.mark.parametrize("kill_at", [3, 5, 11, 23])
def test_a_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path, make: type[Task], kill_at: int
) -> None:
    whole = make()
    curves = fit(whole, tmp_path / "a", "key")

    def kill(step: int) -> None:
        if step == kill_at:
            raise Killed

    with pytest.raises(Killed):
        fit(make(), tmp_path / "b", "key", kill)
    resumed = make()
    seen: list[int] = []
    assert fit(resumed, tmp_path / "b", "key", seen.append) == curves
    assert seen[0] == kill_at // 5 * 5 + 1 if kill_at % 5 else seen[0] == kill_at - 4
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name


@pytest.mark.parametrize("network", [
    SongUNetConfig(kind="song_unet", channels=16, multipliers=[1, 2], blocks=1, attention=[4],
                   dropout=0.3),
    DhariwalUNetConfig(kind="dhariwal_unet", channels=32, multipliers=[1, 2], blocks=1,
                       attention=[], dropout=0.3),
    EDM2UNetConfig(kind="edm2_unet", channels=16, multipliers=[1, 2], blocks=1, attention=[4],
                   channels_per_head=16, dropout=0.3),
    TransformerConfig(kind="transformer", width=32, blocks=1, heads=2),
], ids=lambda network: network.kind)
def test_students_of_every_network_train_and_resume(
    tmp_path: Path, network: NetworkConfig
) -> None:
    """Dropout draws from torch's global generator, which is therefore part of the run."""
    make = partial(student_task, network=network, latent=64, adversarial=0.0, steps=8, lr=3e-3,
                   warmup=0, schedule="constant", ema=0.0, log_every=1)
    whole = make()
    curves = fit(whole, tmp_path / "a", "key")
    assert curves[-1]["loss"] < curves[0]["loss"]

    def kill(step: int) -> None:
        torch.rand(1)  # as any other code may
        if step == 7:
            raise Killed

    with pytest.raises(Killed):
        fit(make(), tmp_path / "b", "key", kill)
    resumed = make()
    assert fit(resumed, tmp_path / "b", "key") == curves
    for name, value in state(whole).items():
        assert torch.equal(value, state(resumed)[name]), name


def test_a_checkpoint_of_other_work_is_not_used(tmp_path: Path) -> None:
    fit(student_task(), tmp_path / "c", "key")
    seen: list[int] = []
    fit(student_task(), tmp_path / "c", "another key", seen.append)
    assert seen[0] == 1


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    fit(student_task(), tmp_path / "c", "key")
    content = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="damaged"):
        fit(student_task(), tmp_path / "c", "key")


def test_divergence_is_an_error_and_leaves_no_checkpoint_of_it(tmp_path: Path) -> None:
    task = teacher_task()
    task.samples[3] = float("inf")
    with pytest.raises(DivergedError, match="lower the learning rate"):
        fit(task, tmp_path / "c", "key")
    assert not (tmp_path / "c").exists()


@given(count=st.integers(1, 50), batch=st.integers(1, 60), seed=st.integers(0, 1000),
       epoch=st.integers(0, 5))
def test_an_epoch_is_a_permutation(count: int, batch: int, seed: int, epoch: int) -> None:
    order = BatchOrder(count, batch, seed)
    steps = range(epoch * order.per_epoch, (epoch + 1) * order.per_epoch)
    rows = torch.cat([order(step) for step in steps])
    assert len(rows) == order.per_epoch * order.batch > count - order.batch
    assert len(set(rows.tolist())) == len(rows)
    assert torch.equal(order(steps[0]), BatchOrder(count, batch, seed)(steps[0]))


def test_random_numbers_are_a_function_of_seed_and_step() -> None:
    cpu = torch.device("cpu")
    draws = {(seed, step): torch.randn(4, generator=step_generator(cpu, seed, step))
             for seed in (0, 1) for step in (0, 1)}
    again = torch.randn(4, generator=step_generator(cpu, 1, 0))
    assert torch.equal(draws[1, 0], again)
    assert len({tuple(values.tolist()) for values in draws.values()}) == 4


def test_learning_rate() -> None:
    c = config(steps=100, warmup=10, lr=1.0)
    assert learning_rate(c, 0) == pytest.approx(0.1)
    assert learning_rate(c, 9) == pytest.approx(1.0)
    assert learning_rate(c, 55) == pytest.approx((1 + math.cos(math.pi * 45 / 90)) / 2)
    assert learning_rate(config(schedule="constant", warmup=0, lr=0.5), 20) == 0.5


def test_ema() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = EMA(model, decay=0.9)
    nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(200):
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + 1 - decay
        ema.update(model, step)
    assert float(ema.shadow.weight) == pytest.approx(expected, rel=1e-5)


def test_a_student_s_run_does_not_depend_on_the_global_generator(tmp_path: Path) -> None:
    """A program that has drawn random numbers before ends with the same weights."""
    first = student_task()
    torch.manual_seed(1234)
    student = KDM(first.student.config, IMAGES)
    student.load_state_dict(first.student.state_dict())
    second = StudentTask(student, first.losses, first.config, first.pairs, first.validation, 0)
    fit(first, tmp_path / "a", "key")
    fit(second, tmp_path / "b", "key")
    for name, value in state(first).items():
        assert torch.equal(value, state(second)[name]), name


def test_the_objective_is_that_of_algorithm_1() -> None:
    """Each term of eqs. 5–7, computed by hand without latent noise, and their weighted sum."""
    torch.manual_seed(0)
    student = KDM(StudentConfig(encoder=MLP, decoder=MLP, latent=8,
                                operator=DenseConfig(kind="dense")), IMAGES)
    losses = LossConfig(distance=MSEConfig(kind="mse"), reconstruction=2.0, latent=3.0,
                        prediction=5.0, adversarial=0.0, latent_noise=0.0)
    data = pairs(8)
    task = StudentTask(student, losses, config(), data, pairs(4), seed=0)
    with torch.no_grad():
        z_0 = student.encode_data(data.samples, data.labels)
        pushed = student.push(student.encode_noise(data.noise, data.labels), data.labels)
        rec = ((student.decode(z_0, data.labels) - data.samples) ** 2).mean()
        lat = ((z_0 - pushed) ** 2).mean()
        pred = ((student(data.noise, data.labels) - data.samples) ** 2).mean()
    found = task.step(0)
    assert float(found["reconstruction"].detach()) == pytest.approx(float(rec), rel=1e-5)
    assert float(found["latent"].detach()) == pytest.approx(float(lat), rel=1e-5)
    assert float(found["prediction"].detach()) == pytest.approx(float(pred), rel=1e-5)
    assert float(found["loss"].detach()) == pytest.approx(float(2 * rec + 3 * lat + 5 * pred),
                                                          rel=1e-5)


def test_latent_noise_has_the_given_deviation() -> None:
    task = student_task()
    z = torch.zeros(200, 500)
    noisy = task.perturb(z, torch.Generator().manual_seed(0))
    assert float(noisy.std()) == pytest.approx(0.4, rel=0.02)


def test_control_is_linear_in_the_one_hot_label() -> None:
    torch.manual_seed(0)
    student = KDM(StudentConfig(encoder=MLP, decoder=MLP, latent=8,
                                operator=DenseConfig(kind="dense", bias=False)), IMAGES)
    assert student.control is not None
    nn.init.normal_(student.control.weight)
    labels = torch.tensor([0, 2, 1])
    onehot = nn.functional.one_hot(labels, 3).float()
    z = torch.randn(3, 8)
    expected = student.operator(z) + onehot @ student.control.weight
    torch.testing.assert_close(student.push(z, labels), expected)


@pytest.mark.parametrize("adversarial", [0.0, 0.001])
def test_training_brings_the_student_to_its_pairs(tmp_path: Path, adversarial: float) -> None:
    task = student_task(adversarial, latent=64, noise=0.05, steps=400, lr=5e-3,
                        checkpoint_every=1000)
    records = fit(task, tmp_path / "c", "key")
    assert records[-1]["prediction"] < 0.5 * records[0]["prediction"]
    assert ("discriminator" in records[-1]) == bool(adversarial)


def test_student_round_trip(tmp_path: Path) -> None:
    student = student_task().student.eval()
    mark = save_student(tmp_path, student, {"teacher": "t"})
    loaded, found = load_student(tmp_path)
    data = pairs(5)
    assert found == mark
    assert torch.equal(loaded(data.noise, data.labels), student(data.noise, data.labels))
