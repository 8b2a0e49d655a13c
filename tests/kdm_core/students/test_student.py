"""The student, its objective and where its weights start."""

import math
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from kdm_core import KDM
from kdm_core.errors import KDMError, MismatchError
from kdm_core.losses.distances import MSEConfig
from kdm_core.networks import MLPConfig, NetworkConfig, TransformerConfig, UNetConfig
from kdm_core.noise import draw
from kdm_core.operators import ContinuousConfig, DenseConfig, FactorisedConfig, IdentityConfig
from kdm_core.pairs.reading.resident import ResidentReader
from kdm_core.pairs.reading.whole import Pairs
from kdm_core.samples import SampleSpec
from kdm_core.sharing.folder import load_student, save_student
from kdm_core.students.initialise import start_at_student, start_at_teacher
from kdm_core.students.kdm import KDMConfig
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import (
    DenoiserConfig,
    FlowMatchingConfig,
    build_teacher,
    save_teacher,
)
from kdm_core.teachers.exact import fit_mixture
from kdm_core.training.config import TrainingConfig
from kdm_core.training.loop import fit

MLP = MLPConfig(kind="mlp", width=16, blocks=1)
UNET = UNetConfig(kind="unet", channels=8, multipliers=[1], blocks=1, attention=[])
DIT = TransformerConfig(kind="transformer", width=16, blocks=1, heads=2)
DENSE = DenseConfig(kind="dense")
IMAGES = SampleSpec(kind="image", shape=[1, 8, 8], label_names=["a", "b", "c"], sigma_data=0.5)
QUIET = LossConfig(adversarial=0.0, latent_noise=0.0)


def training(**changes: object) -> TrainingConfig:
    return TrainingConfig.model_validate({
        "steps": 24, "batch": 8, "lr": 1e-3, "ema": 0.9, "precision": "fp32",
        "checkpoint_every": 100, "log_every": 10, **changes})


def pairs(count: int = 40) -> Pairs:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 1, 8, 8, generator=generator)
    return Pairs(noise, noise.tanh(), torch.arange(count) % 3)


def build(network: NetworkConfig = MLP, **changes: object) -> KDM:
    torch.manual_seed(0)
    return KDM(KDMConfig.model_validate({
        "encoder": network, "decoder": network, "latent": 8, "operator": DENSE, **changes}),
        IMAGES)


def task(student: KDM, losses: LossConfig, **changes: object) -> StudentTask:
    config = training(**changes)
    reader = ResidentReader.of(pairs(), config.batch, seed=0)
    return StudentTask(student, losses, config, reader, pairs(4), seed=0)


def test_the_objective_is_that_of_algorithm_1() -> None:
    """Each term of eqs. 5–7, computed by hand without latent noise, and their weighted sum."""
    student = build()
    losses = LossConfig(distance=MSEConfig(kind="mse"), reconstruction=2.0, latent=3.0,
                        prediction=5.0, adversarial=0.0, latent_noise=0.0)
    run = task(student, losses)
    noise, samples, labels = run.reader(0)[:3]
    with torch.no_grad():
        z_0 = student.encode_data(samples, labels)
        pushed = student.push(student.encode_noise(noise, labels), labels)
        rec = float(((student.decode(z_0, labels) - samples) ** 2).mean())
        lat = float(((z_0 - pushed) ** 2).mean())
        pred = float(((student(noise, labels) - samples) ** 2).mean())
    found = {name: float(value) for name, value in run.step(0).items()}
    assert found["reconstruction"] == pytest.approx(rec, rel=1e-5)
    assert found["latent"] == pytest.approx(lat, rel=1e-5)
    assert found["prediction"] == pytest.approx(pred, rel=1e-5)
    assert found["loss"] == pytest.approx(2 * rec + 3 * lat + 5 * pred, rel=1e-5)


def test_a_term_without_weight_moves_nothing() -> None:
    """Table 5's columns: what has no weight leaves no trace in the gradients."""
    for changes, untouched in (({"reconstruction": 0.0, "latent": 0.0}, "data_encoder"),
                               ({"prediction": 0.0, "latent": 0.0}, "noise_encoder"),
                               ({"prediction": 0.0, "reconstruction": 0.0}, "decoder")):
        student = build()
        before = {name: value.clone() for name, value in student.state_dict().items()}
        task(student, QUIET.model_copy(update=changes)).step(0)
        moved = {name.split(".")[0] for name, value in student.state_dict().items()
                 if not torch.equal(value, before[name])}
        assert moved and untouched not in moved


def test_stopped_gradients_leave_the_target_alone() -> None:
    losses = QUIET.model_copy(update={"reconstruction": 0.0, "prediction": 0.0})
    for stop in (False, True):
        student = build()
        before = [value.clone() for value in student.data_encoder.parameters()]  # type: ignore[union-attr]
        task(student, losses.model_copy(update={"stop_gradient": stop})).step(0)
        after = student.data_encoder.parameters()  # type: ignore[union-attr]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) == stop


def test_latent_noise_is_standard_normal_and_not_cut_by_accumulation() -> None:
    whole = task(build(), QUIET, batch=40)
    parts = task(build(), QUIET, batch=40, accumulate=4)
    (batch,) = whole.batches(3)
    assert batch.latent_noise.shape == (40, 2, 8)
    assert float(batch.latent_noise.std()) == pytest.approx(1, abs=0.1)
    joined = torch.cat([part.latent_noise for part in parts.batches(3)])
    assert torch.equal(joined, batch.latent_noise)


def test_accumulated_steps_are_those_of_the_whole_batch() -> None:
    results = []
    for accumulate in (1, 4):
        student = build(operator=FactorisedConfig(kind="factorised"))
        run = task(student, QUIET.model_copy(update={"latent_noise": 0.3}), accumulate=accumulate)
        curves = [run.step(step) for step in range(3)]
        results.append((student.state_dict(), curves))
    (one, curves_1), (four, curves_4) = results
    for name, value in one.items():
        torch.testing.assert_close(four[name], value, rtol=1e-4, atol=1e-5)
    for name, value in curves_1[-1].items():
        torch.testing.assert_close(curves_4[-1][name], value, rtol=1e-3, atol=1e-4)


def test_control_is_linear_in_the_one_hot_label() -> None:
    student = build(operator=DenseConfig(kind="dense", bias=False))
    assert student.control is not None
    nn.init.normal_(student.control.weight)
    labels = torch.tensor([0, 2, 1])
    onehot = nn.functional.one_hot(labels, 3).float()
    z = torch.randn(3, 8)
    expected = student.operator(z) + onehot @ student.control.weight
    torch.testing.assert_close(student.push(z, labels), expected)


@pytest.mark.parametrize("adversarial", [0.0, 0.001])
def test_training_brings_the_student_to_its_pairs(tmp_path: Path, adversarial: float) -> None:
    losses = LossConfig(adversarial=adversarial, latent_noise=0.05)
    run = task(build(latent=64), losses, steps=300, lr=5e-3, checkpoint_every=1000)
    records = fit(run, tmp_path / "c", "key")
    assert records[-1]["prediction"] < 0.5 * records[0]["prediction"]
    assert ("discriminator" in records[-1]) == bool(adversarial)


@pytest.mark.parametrize("changes", [
    {"encoders": "shared"},
    {"encoders": "noise", "operator": IdentityConfig(kind="identity")},
    {"timed": True, "operator": ContinuousConfig(kind="continuous")},
    {"encoder": UNET, "decoder": DIT, "latent": 64},
    {"encoder": UNET, "decoder": UNET, "latent": 6, "projected_channels": 2},
])
def test_every_form_trains_saves_and_loads(tmp_path: Path, changes: dict[str, object]) -> None:
    student = build(**changes)
    losses = QUIET
    if changes.get("encoders") == "noise":
        losses = QUIET.model_copy(update={"reconstruction": 0.0, "latent": 0.0})
    run = task(student, losses)
    for value in student.parameters():  # else branches that start at zero take a step to wake up
        nn.init.normal_(value, std=0.1)
    before = {name: value.clone() for name, value in student.named_parameters()}
    run.step(0)
    still = {name for name, value in student.named_parameters() if torch.equal(value, before[name])}
    assert not still
    student.eval()
    mark = save_student(tmp_path, student, {"teacher": "t"})
    loaded, found = load_student(tmp_path)
    data = pairs(5)
    assert found == mark
    assert torch.equal(loaded(data.noise, data.labels), student(data.noise, data.labels))


def test_shared_encoders_are_one_that_is_told_the_position() -> None:
    student = build(encoders="shared")
    x, labels = torch.randn(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    for part in student.modules():  # adaptive layers start at zero, where the time has no effect
        if isinstance(part, nn.Linear):
            nn.init.normal_(part.weight, std=0.3)
    at_noise = student.encode(x, 1.0, labels)
    torch.testing.assert_close(student.encode_noise(x, labels), at_noise)
    torch.testing.assert_close(student.encode_data(x * IMAGES.sigma_data, labels),
                               student.encode(x, torch.zeros(4), labels))
    assert not torch.allclose(at_noise, student.encode(x, 0.5, labels))
    with pytest.raises(KDMError, match="use shared"):
        build().encode(x, 0.5, labels)


def test_a_latent_of_any_size_by_projection() -> None:
    student = build(UNET, latent=6, projected_channels=2)
    noise, labels = torch.randn(3, 1, 8, 8), torch.zeros(3, dtype=torch.int64)
    assert student.encode_noise(noise, labels).shape == (3, 6)
    assert student(noise, labels).shape == (3, 1, 8, 8)
    with pytest.raises(ValueError, match="projected_channels"):
        build(UNET, latent=6)
    with pytest.raises(ValidationError, match="leave it out"):
        build(MLP, latent=6, projected_channels=2)


def test_samples_are_those_of_their_noise_whatever_the_batch() -> None:
    student = build().eval()
    noise, labels = draw(3, range(7), (1, 8, 8), "float32", 3)
    expected = student.generate(torch.from_numpy(noise), torch.from_numpy(labels), "fp32")
    for batch in (2, 7, 100):
        torch.testing.assert_close(student.sample(7, seed=3, precision="fp32", batch=batch),
                                   expected, rtol=1e-5, atol=1e-5)
    chosen = student.sample(2, seed=3, labels=[2, 2], precision="fp32")
    wanted = student.generate(torch.from_numpy(noise[:2]), torch.tensor([2, 2]), "fp32")
    torch.testing.assert_close(chosen, wanted)


@pytest.mark.parametrize(("arguments", "message"), [
    ({"n": 0}, "n ≥ 1"), ({"n": 2, "seed": -1}, "seed ≥ 0"),
    ({"n": 3, "labels": [0, 0]}, "one for each"), ({"n": 2, "labels": [0, 3]}, "0 to 2"),
])
def test_what_cannot_be_sampled_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(KDMError, match=message):
        build().sample(**arguments)  # type: ignore[arg-type]


def test_labels_for_an_unconditional_student_are_refused() -> None:
    points = SampleSpec(kind="points", shape=[2], sigma_data=1.0)
    student = KDM(KDMConfig(encoder=MLP, decoder=MLP, latent=4, operator=DENSE), points)
    assert student.sample(3).shape == (3, 2)
    with pytest.raises(KDMError, match="takes none"):
        student.sample(3, labels=[0, 0, 0])


def test_a_student_starts_at_its_teacher_s_weights(tmp_path: Path) -> None:
    teacher = build_teacher(DenoiserConfig(kind="denoiser", network=MLP), IMAGES)
    for value in teacher.parameters():
        nn.init.normal_(value)
    mark = save_teacher(tmp_path, teacher)
    student = build(timed=True)
    taken, found = start_at_teacher(student, tmp_path)
    assert found == mark
    theirs = teacher.network.state_dict()  # type: ignore[operator,union-attr]
    for part in (student.noise_encoder, student.data_encoder, student.decoder):
        own = part.network.state_dict()  # type: ignore[union-attr]
        assert torch.equal(own["blocks.0.first.weight"], theirs["blocks.0.first.weight"])
    # The layer that gives the latent has another shape, and is the student's own.
    assert student.noise_encoder.network.leave.weight.shape != theirs["leave.weight"].shape
    assert torch.equal(student.decoder.network.leave.weight, theirs["leave.weight"])
    assert 0 < taken < sum(value.numel() for value in student.parameters())
    # EDM tells its network log(sigma) / 4.
    assert student.time_of_ends.tolist() == pytest.approx(
        [math.log(level) / 4 for level in (0.002, 80.0)])
    assert float(student.time(1.0, torch.zeros(2))[0]) == float(student.time_of_ends[1])  # type: ignore[index]


def test_the_teacher_s_ends_of_flow_matching_are_0_and_1(tmp_path: Path) -> None:
    save_teacher(tmp_path, build_teacher(
        FlowMatchingConfig(kind="flow_matching", network=MLP), IMAGES))
    student = build(timed=True)
    start_at_teacher(student, tmp_path)
    assert student.time_of_ends.tolist() == [1, 0]  # its samples are at time 1


def test_a_teacher_of_another_kind_has_nothing_to_start_at(tmp_path: Path) -> None:
    save_teacher(tmp_path / "unet", build_teacher(
        DenoiserConfig(kind="denoiser", network=UNET), IMAGES))
    with pytest.raises(MismatchError, match="fit the teacher's network"):
        start_at_teacher(build(timed=True), tmp_path / "unet")
    with pytest.raises(MismatchError, match=r"model\.timed"):
        start_at_teacher(build(), tmp_path / "unet")
    exact = fit_mixture(IMAGES, torch.randn(6, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1, 2]))
    save_teacher(tmp_path / "exact", exact)
    with pytest.raises(MismatchError, match="no network"):
        start_at_teacher(build(timed=True), tmp_path / "exact")


def test_a_student_starts_at_another_of_the_same_architecture() -> None:
    other, student = build(), build()
    for value in other.parameters():
        nn.init.normal_(value)
    mark = start_at_student(student, other, "there")
    assert all(torch.equal(value, other.state_dict()[name])
               for name, value in student.state_dict().items())
    assert start_at_student(build(), other, "elsewhere") == mark
    nn.init.zeros_(next(other.parameters()))
    assert start_at_student(build(), other, "there") != mark  # other weights in the same place
    with pytest.raises(MismatchError, match=r"model\.latent \(here 9, there 8\)"):
        start_at_student(build(latent=9), other, "there")


@pytest.mark.parametrize(("losses", "model", "message"), [
    ({"reconstruction": 0.0, "latent": 0.0, "prediction": 0.0}, {}, "nothing to learn"),
    ({}, {"encoders": "noise"}, "losses.reconstruction"),
    ({"trajectory": 1.0}, {}, "model.encoders: shared"),
    ({"trajectory": 1.0}, {"encoders": "shared"}, "operator.kind: continuous"),
])
def test_losses_that_a_student_cannot_have(
    losses: dict[str, float], model: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(**model).config.check(LossConfig.model_validate(losses))
