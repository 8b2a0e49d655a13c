"""The loop and its parts: resumption to the bit, divergence, schedules, averages, checkpoints."""

import math
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from kdm_core.compute import step_generator
from kdm_core.errors import Adapted, DataError, DivergedError, KDMError, MismatchError
from kdm_core.networks import (
    DhariwalUNetConfig,
    EDM2UNetConfig,
    MLPConfig,
    NetworkConfig,
    SongUNetConfig,
    TransformerConfig,
)
from kdm_core.operators import FactorisedConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.students.kdm import KDM, KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import DenoiserConfig, build_teacher
from kdm_core.teachers.augmentation import AugmentationConfig
from kdm_core.teachers.training import TeacherTask
from kdm_core.training import optimizer as optimizer_module
from kdm_core.training.batches import BatchOrder
from kdm_core.training.checkpoints import checkpoint_path, checkpoints, differences
from kdm_core.training.compilation import compiled
from kdm_core.training.ema import Averages
from kdm_core.training.loop import PATIENCE, Task, fit
from kdm_core.training.optimizer import ScheduledOptimizer, learning_rate
from kdm_core.training.waiting import Waiting
from tests.support.training import Killed, assert_same, config, killed_at, state

MLP = MLPConfig(kind="mlp", width=16, blocks=1)
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)


def pairs(count: int = 40) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return Pairs(noise, noise.tanh(), torch.arange(count) % 3)


def student_task(
    adversarial: float = 0.01, latent: int = 8, network: NetworkConfig = MLP, **changes: object,
) -> StudentTask:
    torch.manual_seed(0)
    student = KDM(KDMConfig(encoder=network, decoder=network, latent=latent,
                                operator=FactorisedConfig(kind="factorised")), IMAGES)
    return StudentTask(student, LossConfig(adversarial=adversarial), config(**changes),
                       ResidentReader.of(pairs(), 8, seed=0), pairs(4), seed=0)


def teacher_task(**changes: object) -> TeacherTask:
    torch.manual_seed(0)
    teacher = build_teacher(DenoiserConfig(kind="denoiser", network=MLP), IMAGES)
    data = pairs()
    return TeacherTask(teacher, config(**changes), data.samples, data.labels, seed=0)


# Resumption


@pytest.mark.parametrize("make", [
    student_task,
    teacher_task,
    partial(student_task, adversarial=0.0, accumulate=2, optimizer="adamw", weight_decay=0.1,
            schedule="linear"),
    partial(teacher_task, accumulate=2, keep_checkpoints=1),
], ids=["student", "teacher", "adamw", "accumulated"])
@pytest.mark.parametrize("kill_at", [3, 5, 11, 23])
def test_a_killed_run_ends_like_an_undisturbed_one(
    tmp_path: Path, make: Callable[[], Task], kill_at: int
) -> None:
    whole = make()
    curves = fit(whole, tmp_path / "a", "key")
    with pytest.raises(Killed):
        fit(make(), tmp_path / "b", "key", killed_at(kill_at))
    resumed = make()
    seen: list[int] = []
    started: list[int] = []
    assert fit(resumed, tmp_path / "b", "key", seen.append, on_start=started.append) == curves
    assert started == [(kill_at - 1) // 5 * 5]
    assert seen[0] == started[0] + 1
    assert_same(whole, resumed)


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
    with pytest.raises(Killed):
        fit(make(), tmp_path / "b", "key", killed_at(7))
    resumed = make()
    assert fit(resumed, tmp_path / "b", "key") == curves
    assert_same(whole, resumed)


def test_a_student_s_run_does_not_depend_on_the_global_generator(tmp_path: Path) -> None:
    """A program that has drawn random numbers before ends with the same weights."""
    first = student_task()
    torch.manual_seed(1234)
    student = KDM(first.student.config, IMAGES)
    student.load_state_dict(first.student.state_dict())
    second = StudentTask(student, first.losses, first.config, first.reader, first.validation, 0)
    fit(first, tmp_path / "a", "key")
    fit(second, tmp_path / "b", "key")
    assert_same(first, second)


# Checkpoints


def test_a_checkpoint_of_other_work_is_not_used(tmp_path: Path) -> None:
    fit(student_task(), tmp_path / "c", "key")
    seen: list[int] = []
    with pytest.raises(Killed):
        fit(student_task(), tmp_path / "c", "another key", killed_at(7))
    fit(student_task(), tmp_path / "c", "another key", seen.append)
    assert seen[0] == 6


@pytest.mark.parametrize("keep, expected", [(1, [20]), (2, [20, 15]), (9, [20, 15, 10, 5])])
def test_the_last_checkpoints_are_kept(tmp_path: Path, keep: int, expected: list[int]) -> None:
    told: list[int] = []
    fit(teacher_task(keep_checkpoints=keep), tmp_path / "c.safetensors", "key",
        on_checkpoint=told.append)
    assert told == [5, 10, 15, 20]
    assert list(checkpoints(tmp_path / "c.safetensors")) == expected
    assert len(list(tmp_path.iterdir())) == len(expected)


def cut(content: bytes) -> bytes:
    return content[: len(content) // 2]


def flip(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


@pytest.mark.parametrize("damage", [cut, flip])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path: Path, damage: Callable[[bytes], bytes]
) -> None:
    whole = student_task()
    curves = fit(whole, tmp_path / "c", "key")
    newest = checkpoint_path(tmp_path / "c", 20)
    newest.write_bytes(damage(newest.read_bytes()))
    resumed = student_task()
    seen: list[int] = []
    said: list[str] = []
    assert fit(resumed, tmp_path / "c", "key", seen.append, say=said.append) == curves
    assert seen[0] == 16
    assert len(said) == 1 and str(newest) in said[0] and "step 15" in said[0]
    assert_same(whole, resumed)


def test_where_all_checkpoints_are_damaged_they_are_named(tmp_path: Path) -> None:
    fit(teacher_task(), tmp_path / "c", "key")
    for path in tmp_path.iterdir():
        path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(DataError, match="c-00000020 is damaged.*c-00000015 is damaged.*delete it"):
        fit(teacher_task(), tmp_path / "c", "key")


def test_a_full_disk_leaves_the_checkpoints_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = teacher_task()
    curves = fit(whole, tmp_path / "a", "key")
    real = os.fsync
    calls: list[int] = []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DataError, match="No space left on device; free some space"):
        fit(teacher_task(), tmp_path / "b", "key")
    assert sorted(path.name for path in tmp_path.glob("b*")) == ["b-00000005", "b-00000010"]
    resumed = teacher_task()
    seen: list[int] = []
    assert fit(resumed, tmp_path / "b", "key", seen.append) == curves
    assert seen[0] == 11
    assert_same(whole, resumed)


def test_a_killed_write_is_cleaned_up(tmp_path: Path) -> None:
    (tmp_path / ".c-00000003.1234.tmp").write_bytes(b"half")
    fit(teacher_task(steps=6), tmp_path / "c", "key")
    assert [path.name for path in tmp_path.iterdir()] == ["c-00000005"]


def test_a_checkpoint_of_another_architecture_names_the_fields(tmp_path: Path) -> None:
    fit(student_task(), tmp_path / "c", "key")
    with pytest.raises(MismatchError, match=r"student\.latent: 8, not 16") as caught:
        fit(student_task(latent=16), tmp_path / "c", "key")
    assert "width" not in str(caught.value)


def test_differences() -> None:
    assert differences({"a": 1, "b": {"c": [1]}}, {"a": 1, "b": {"c": [1]}}) == []
    assert differences({"a": 1, "b": {"c": [1]}, "x": 2}, {"a": 3, "b": {"c": [2]}}) == [
        "a: 1, not 3", "b.c: [1], not [2]", "x: 2, not None"]


# Failed steps


def test_divergence_is_an_error_and_leaves_no_checkpoint_of_it(tmp_path: Path) -> None:
    task = teacher_task()
    task.samples[:] = float("inf")
    records: list[object] = []
    with pytest.raises(DivergedError, match=f"{PATIENCE} steps.*lower the learning rate"):
        fit(task, tmp_path / "c", "key", on_record=records.append)
    assert not records and not list(tmp_path.iterdir())


def test_a_failed_step_is_left_out_and_counted(tmp_path: Path) -> None:
    """One bad sample of forty spoils one batch of an epoch's five."""
    task = teacher_task(log_every=5)
    task.samples[3] = float("inf")
    records = fit(task, tmp_path / "c", "key")
    assert [record["skipped"] for record in records[:4]] == [0.2] * 4
    assert all(math.isfinite(value) for record in records for value in record.values())
    assert all(value.isfinite().all() for value in state(task).values())


def test_curves_of_single_steps_leave_gaps_where_a_step_failed(tmp_path: Path) -> None:
    task = teacher_task(log_every=1, steps=20)
    bad = next(step for step in range(5) if 3 in task.order(step))
    task.samples[3] = float("inf")
    steps = [record["step"] for record in fit(task, tmp_path / "c", "key")]
    assert bad + 1 not in steps and len(steps) >= 15


def test_a_run_whose_last_steps_all_failed_has_diverged(tmp_path: Path) -> None:
    task = teacher_task(steps=6, checkpoint_every=100, log_every=5)

    def spoil(done: int) -> None:
        if done == 5:
            task.samples[:] = float("nan")

    with pytest.raises(DivergedError):
        fit(task, tmp_path / "c", "key", spoil)


# The optimiser


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(size, generator=generator)) for size in ((5, 7), (3,))]


def descend(
    optimizer: ScheduledOptimizer, step: int, spoil: float = 0.0, scale: float = 3.0
) -> dict[str, Tensor]:
    """An update with random gradients (of norm about 6 × scale), one of them replaced."""
    generator = torch.Generator().manual_seed(step)
    for parameter in optimizer.parameters:
        parameter.grad = scale * torch.randn(parameter.shape, generator=generator)
    if spoil:
        optimizer.parameters[1].grad[2] = spoil  # type: ignore[index]
    return optimizer.update(step)


@pytest.mark.parametrize("kind", ["adam", "adamw"])
@pytest.mark.parametrize("clip", [0.0, 2.0])
def test_updates_are_those_of_torch(kind: str, clip: float) -> None:
    """Against the plain optimiser and `clip_grad_norm_`, in their order."""
    cfg = config(optimizer=kind, clip=clip, betas=[0.8, 0.95], weight_decay=0.1, lr=0.01)
    ours = ScheduledOptimizer(parameters(), cfg)
    theirs = parameters()
    cls = torch.optim.AdamW if kind == "adamw" else torch.optim.Adam
    plain = cls(theirs, betas=(0.8, 0.95), weight_decay=0.1, foreach=False)
    for step in range(24):
        curves = descend(ours, step)
        generator = torch.Generator().manual_seed(step)
        for parameter in theirs:
            parameter.grad = 3 * torch.randn(parameter.shape, generator=generator)
        norm = nn.utils.clip_grad_norm_(theirs, clip or math.inf)
        plain.param_groups[0]["lr"] = learning_rate(cfg, step)
        plain.step()
        assert float(curves["gradient_norm"]) == pytest.approx(float(norm))
        assert not curves["skipped"]
    for mine, other in zip(ours.parameters, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("device_skips", [True, False])
@pytest.mark.parametrize("spoil", [math.nan, math.inf, -math.inf])
def test_an_update_that_is_not_finite_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, device_skips: bool, spoil: float
) -> None:
    """To the bit, moments and their step counts included, as if it had never been."""
    if not device_skips:
        monkeypatch.setattr(optimizer_module, "SKIPPING_KERNELS", ())
    spoiled, clean = (ScheduledOptimizer(parameters(), config()) for _ in range(2))
    for step in range(6):
        if step == 3:
            before = [p.clone() for p in spoiled.parameters]
            assert descend(spoiled, step, spoil)["skipped"] == 1
            assert all(map(torch.equal, before, spoiled.parameters))
        else:
            assert descend(spoiled, step)["skipped"] == 0
            descend(clean, step)
    assert all(map(torch.equal, spoiled.parameters, clean.parameters))
    for name, value in clean.state_tensors().items():
        assert torch.equal(value, spoiled.state_tensors()[name]), name


def test_clipping_is_the_same_where_the_kernel_cannot_do_it(
    monkeypatch: pytest.MonkeyPatch
) -> None:
    inside = ScheduledOptimizer(parameters(), config())
    for step in range(5):
        descend(inside, step)
    monkeypatch.setattr(optimizer_module, "SKIPPING_KERNELS", ())
    outside = ScheduledOptimizer(parameters(), config())
    for step in range(5):
        descend(outside, step)
    for first, second in zip(inside.parameters, outside.parameters, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-6, atol=1e-7)


def test_gradients_that_are_not_finite_are_replaced_like_the_published_code_s() -> None:
    ours = ScheduledOptimizer([nn.Parameter(torch.zeros(4))], config(nonfinite="zero", clip=0.0))
    ours.parameters[0].grad = torch.tensor([math.nan, math.inf, -math.inf, 2.0])
    curves = ours.update(0)
    assert "skipped" not in curves
    moments = ours.state_tensors()["0.exp_avg"]
    torch.testing.assert_close(moments, 0.1 * torch.tensor([0.0, 1e5, -1e5, 2.0]))
    assert ours.parameters[0].isfinite().all()


def test_gradients_add_up_until_the_update() -> None:
    ours = ScheduledOptimizer(parameters(), config())
    for _ in range(2):
        ours.backward(sum((p**2).sum() for p in ours.parameters) / 2)  # type: ignore[arg-type]
    wanted = torch.cat([2 * p.detach().flatten() for p in ours.parameters])
    norm = ours.update(0)["gradient_norm"]
    assert float(norm) == pytest.approx(float(wanted.norm()))
    assert all(p.grad is None for p in ours.parameters)


@pytest.mark.parametrize("make", [student_task, teacher_task])
def test_accumulation_is_the_whole_batch(make: Callable[..., Task]) -> None:
    """Micro-batches see the same samples and, where the step draws them at once, noises."""
    if make is student_task:
        make = partial(make, adversarial=0.0)  # batch norm sees a micro-batch at a time
    whole, parts = make(), make(accumulate=4)
    if isinstance(parts, TeacherTask):
        # Noise is drawn a micro-batch at a time: only the number of samples is the same.
        rows: list[Tensor] = []
        real = parts.descend
        parts.descend = lambda part, generator: rows.append(part) or real(part, generator)  # type: ignore[assignment, func-returns-value, method-assign]
        parts.step(0)
        assert torch.equal(torch.cat(rows), whole.order(0)) and len(rows) == 4  # type: ignore[attr-defined]
        return
    for step in range(3):
        first, second = whole.step(step), parts.step(step)
        for name, value in first.items():
            torch.testing.assert_close(second[name], value, rtol=1e-4, atol=1e-5)


def adaptations(make: Callable[[], object]) -> list[str]:
    """What is said of adaptations while something is made."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Adapted)
        make()
    return [str(one.message) for one in caught if issubclass(one.category, Adapted)]


def test_what_a_training_does_otherwise_than_asked_is_said() -> None:
    assert adaptations(teacher_task) == adaptations(student_task) == []
    assert adaptations(lambda: teacher_task(batch=5000)) == [
        "batch: 5,000 are asked for, and there are 40 samples to train on: these are used"]
    assert adaptations(lambda: ResidentReader.of(pairs(), 41, seed=0)) == [
        "batch: 41 are asked for, and there are 40 samples to train on: these are used"]
    assert adaptations(lambda: teacher_task(warmup=96)) == [
        "warmup: 96 steps of warm-up in a training of 24: the learning rate rises to 25% "
        "of lr at its last step, and the schedule has no effect"]
    assert adaptations(lambda: teacher_task(warmup=23)) == []


def test_augmented_training_is_not_compiled_and_says_so() -> None:
    torch.manual_seed(0)
    teacher = build_teacher(DenoiserConfig(kind="denoiser", network=MLP), IMAGES)
    data = pairs()
    said = adaptations(lambda: TeacherTask(
        teacher, config(compile="on"), data.samples, data.labels, seed=0,
        augmentation=AugmentationConfig(flip="mirror")))
    assert said == ["compile: a training with augmentation is not compiled"]


def test_a_batch_that_cannot_be_cut_is_refused() -> None:
    with pytest.raises(KDMError, match="accumulate"):
        teacher_task(accumulate=3)


@given(steps=st.integers(1, 10_000), warmup=st.integers(0, 12_000), lr=st.floats(1e-6, 1.0),
       schedule=st.sampled_from(["constant", "cosine", "linear"]), data=st.data())
def test_learning_rates_rise_and_fall(
    steps: int, warmup: int, lr: float, schedule: str, data: st.DataObject
) -> None:
    cfg = config(steps=steps, warmup=warmup, lr=lr, schedule=schedule)
    step = data.draw(st.integers(0, steps - 1))
    rate, following = learning_rate(cfg, step), learning_rate(cfg, step + 1)
    assert 0 < rate <= lr * (1 + 1e-12)
    if step + 1 < warmup:
        assert rate < following
    elif schedule != "constant" and step >= warmup:
        assert rate > following
    if steps > warmup and step + 1 == steps and schedule != "constant":
        assert following == pytest.approx(0.0, abs=1e-12)


def test_learning_rate() -> None:
    c = config(steps=100, warmup=10, lr=1.0)
    assert learning_rate(c, 0) == pytest.approx(0.1)
    assert learning_rate(c, 9) == pytest.approx(1.0)
    assert learning_rate(c, 55) == pytest.approx((1 + math.cos(math.pi * 45 / 90)) / 2)
    assert learning_rate(config(schedule="constant", warmup=0, lr=0.5), 20) == 0.5
    linear = config(steps=100, warmup=20, lr=1.0, schedule="linear")
    assert learning_rate(linear, 60) == pytest.approx(0.5)


# Averages


def test_ema() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    ema = Averages(model, config(ema=0.9))
    nn.init.ones_(model.weight)
    expected = 0.0
    for step in range(200):
        smooth = min(0.9, (1 + step) / (10 + step))
        expected = smooth * expected + 1 - smooth
        ema.update(model, step)
    assert float(ema.shadow.weight) == pytest.approx(expected, rel=1e-5)


def test_averages_carry_the_buffers() -> None:
    model = nn.BatchNorm1d(3)
    ema = Averages(model, config())
    model(torch.randn(8, 3))
    ema.update(model, 0)
    assert ema.shadow.running_mean is not None and model.running_mean is not None
    assert torch.equal(ema.shadow.running_mean, model.running_mean)


# Order, randomness, waiting, compilation


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


def test_waiting_is_the_time_between_steps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each step takes 3 s, and 1 s passes between two; points of the curves are left out."""
    clock = iter(second for step in range(100) for second in (4.0 * step, 4.0 * step + 3))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    waiting = Waiting(torch.device("cpu"))
    fit(teacher_task(steps=6, log_every=3, checkpoint_every=100), tmp_path / "c", "key",
        waiting=waiting)
    assert (waiting.measured_s, waiting.waited_s) == (2 * (3 * 3 + 2), 4.0)
    assert waiting.share == pytest.approx(4 / 22)


def test_waiting_for_data_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 s of every 3 from one step to the next, and none of the step itself."""
    now = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: now)

    class Slow(TeacherTask):
        def prepare(self, step: int) -> None:
            nonlocal now
            now += 2

        def step(self, step: int) -> dict[str, Tensor]:
            nonlocal now
            now += 1
            return super().step(step)

    fast, waiting = teacher_task(steps=4, log_every=4), Waiting(torch.device("cpu"))
    slow = Slow(fast.teacher, fast.config, fast.samples, fast.labels, seed=0)
    fit(slow, tmp_path / "c", "key", waiting=waiting)
    assert (waiting.measured_s, waiting.waited_s) == (10, 6)


def test_without_a_compiler_training_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_compiler(*arguments: Any, **options: Any) -> Any:
        raise RuntimeError("no working C++ compiler\nwas found")

    monkeypatch.setattr(torch, "compile", no_compiler)
    said: list[str] = []
    model = nn.Linear(3, 3)
    cpu = torch.device("cpu")
    assert compiled(model, config(compile="on"), cpu, said.append) is model
    assert len(said) == 1 and "no working C++ compiler); going on without" in said[0]
    assert model(torch.ones(1, 3)).shape == (1, 3)
    compiled(model, config(compile="auto"), cpu, said.append)
    compiled(model, config(compile="off"), cpu, said.append)
    assert len(said) == 1
