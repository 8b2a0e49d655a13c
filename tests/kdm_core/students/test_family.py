"""Students that are a teacher's denoiser: what they make, learn, keep and refuse."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import nn

from kdm_core.errors import KDMError, MismatchError
from kdm_core.sharing.export import export_student
from kdm_core.sharing.folder import check_student, load_student, save_student
from kdm_core.students import KINDS, StudentConfig, with_kind
from kdm_core.students.hierarchical import Band
from kdm_core.students.initialise import other_fields, start_at_student, start_at_teacher
from kdm_core.students.objective import LossConfig
from kdm_core.students.training import StudentTask
from kdm_core.teachers import save_teacher
from kdm_core.training.loop import fit
from tests.support.family import (
    ENDPOINT,
    IMAGES,
    MLP,
    POINTS,
    QUIET,
    TEACHERS,
    bent,
    noise_and_labels,
    student,
    task,
    teacher,
)


@pytest.mark.parametrize("name", list(TEACHERS))
@pytest.mark.parametrize(("kind", "model"), [
    ("direct", {}), ("hierarchical", {"decoder_time": "input"}),
    ("hierarchical", {"decoder_time": "input", "operator": {"kind": "none"}})])
def test_untrained_it_is_the_teacher_s_denoiser(
    name: str, kind: str, model: dict[str, Any]
) -> None:
    """At the noise and at every state between, to the bit."""
    theirs = teacher(name)
    made = student(kind, theirs, **model)
    noise, labels = noise_and_labels()
    start = torch.tensor(theirs.start)
    assert torch.equal(made(noise, labels),
                       theirs.denoise(noise * theirs.noise_scale(start), start, labels))
    positions = torch.linspace(0.1, 0.9, 5)
    time = made.time_at(positions)
    alpha, sigma = theirs.path(time)
    torch.testing.assert_close(torch.atan2(sigma, alpha * IMAGES.sigma_data) * 2 / math.pi,
                               positions, atol=0.1 if name == "discrete" else 1e-5, rtol=0)
    state = noise * made.scale(time).reshape(-1, 1, 1, 1)
    assert torch.equal(made.from_state(noise, positions, labels),
                       theirs.denoise(state, time, labels))


def test_a_decoder_that_is_told_the_end_is_another_function() -> None:
    """The difference from the teacher's denoiser that the paper's form begins with."""
    theirs = teacher("edm")
    noise, labels = noise_and_labels()
    same, other = (student("hierarchical", theirs, decoder_time=time)(noise, labels)
                   for time in ("input", "target"))
    apart = float(((same - other).square().mean() / same.square().mean()).detach())
    assert 1e-8 < apart < 10


@pytest.mark.parametrize(("kind", "model"), [
    ("direct", {}), ("hierarchical", {}), ("hierarchical", {"operator": {"kind": "resolutions"}}),
    ("hierarchical", {"operator": {"kind": "none"}})])
def test_every_kind_trains_saves_and_loads(
    tmp_path: Path, kind: str, model: dict[str, Any]
) -> None:
    made = student(kind, teacher("edm"), **model).train()
    run = task(made, ENDPOINT)
    before = {name: value.clone() for name, value in made.named_parameters() if value.numel()}
    for step in range(2):
        run.step(step)
    assert not [name for name, value in before.items()
                if torch.equal(value, dict(made.named_parameters())[name])]
    made.eval()
    mark = save_student(tmp_path, made, {"teacher": "t"})
    check_student(tmp_path)
    loaded, found = load_student(tmp_path)
    noise, labels = noise_and_labels()
    assert found == mark and loaded.config == made.config
    assert torch.equal(loaded(noise, labels), made(noise, labels))


def test_points_and_students_without_labels() -> None:
    made = student("hierarchical", teacher("mlp", POINTS))
    assert made.sample(3).shape == (3, 2)
    task(made.train(), ENDPOINT, POINTS).step(0)


def test_the_terms_by_hand() -> None:
    made = bent(student("hierarchical", teacher("edm")))
    losses = ENDPOINT.model_copy(update={"trajectory": 0.25})
    run = task(made.eval(), losses)
    (batch,) = run.batches(0)
    assert batch.inner is not None and batch.states is not None
    with torch.no_grad():
        predicted = made(batch.noise, batch.labels)
        reached = made.from_state(*batch.inner, batch.labels)
        u, v = (position.reshape(-1, 1, 1, 1) * math.pi / 2 for position in (
            batch.states.start_position, batch.states.end_position))
        time = made.time_at(batch.states.start_position)
        x = batch.states.start * made.scale(time).reshape(-1, 1, 1, 1)
        g = made.carry(x, time, batch.labels, batch.states.start_position,
                       batch.states.end_position) / IMAGES.sigma_data
        ratio = v.sin() / u.sin()
        between = ratio * batch.states.start + (v.cos() - ratio * u.cos()) * g
    expected = {"prediction": predicted - batch.samples, "endpoint": reached - batch.samples,
                "trajectory": IMAGES.sigma_data * (between - batch.states.end)}
    made.eval()
    found = {name: float(value.detach()) for name, value in made.terms(
        batch, losses, run.objective.distance)[0].items()}
    assert found == pytest.approx(
        {name: float(error.square().mean()) for name, error in expected.items()}, rel=1e-4)
    assert set(batch.inner.position.tolist()) <= {0.75, 0.5, 0.25}


def test_kdm_s_endpoint_by_hand() -> None:
    config = KINDS["kdm"].model_validate({
        "encoder": MLP, "decoder": MLP, "encoders": "shared", "latent": 6,
        "operator": {"kind": "continuous"}})
    torch.manual_seed(0)
    made: Any = config.build(IMAGES).eval()
    run = task(made, LossConfig.model_validate({"adversarial": 0.0, "endpoint": 1.0}))
    made.eval()
    (batch,) = run.batches(0)
    terms, _ = made.terms(batch, run.losses, run.objective.distance)
    state, position = batch.inner  # type: ignore[misc]
    z = made.operator.advance(made.encode(state, position, batch.labels), position,
                              made.drive(batch.labels))
    error = made.decode(z, batch.labels) - batch.samples
    assert terms["endpoint"].item() == pytest.approx(error.square().mean().item(), rel=1e-5)
    assert made.states(batch.noise, [1.0, 0.5, 0.0], batch.labels).shape == (8, 3, 1, 8, 8)
    torch.testing.assert_close(
        made.states(batch.noise, [0.0], batch.labels)[:, 0] * IMAGES.sigma_data,
        made(batch.noise, batch.labels))


@pytest.mark.parametrize("kind", ["direct", "hierarchical"])
def test_several_steps(kind: str) -> None:
    """One is the sample; more end at the same noise's; of the perfect student all are equal."""
    made = student(kind, teacher("edm"))
    noise, labels = noise_and_labels()
    assert torch.equal(made.refine(noise, labels, 1), made(noise, labels))
    two = made.refine(noise, labels, 2)
    state = (made(noise, labels) / IMAGES.sigma_data + noise) * math.sqrt(0.5)
    torch.testing.assert_close(two, made.from_state(state, torch.full((5,), 0.5), labels),
                               rtol=1e-4, atol=1e-5)
    target = torch.randn(5, 1, 8, 8)
    made.denoise = lambda x, time, labels, position: target  # type: ignore[method-assign]
    assert torch.equal(made.refine(noise, labels, 4), target)


def test_several_steps_need_states_in_training() -> None:
    made = student("direct", teacher("edm"))
    noise, labels = noise_and_labels()
    for losses, able in (({"prediction": 1.0}, False), ({"endpoint": 0.5}, True)):
        made.provenance = {"phases": [{"losses": losses}]}
        assert made.can_refine() == able
    made.provenance = {"losses": {"prediction": 1.0}}
    with pytest.raises(KDMError, match=r"^steps: 2 .* use 1, or train it with losses\.endpoint"):
        made.generate(noise, labels, steps=2)
    with pytest.raises(KDMError, match="steps: 0"):
        made.refine(noise, labels, 0)


def test_the_path_of_the_modes() -> None:
    """From one encoding: the last state is the sample, and partial evolutions add up."""
    made = bent(student("hierarchical", teacher("edm")))
    noise, labels = noise_and_labels()
    path = made.states(noise, [1.0, 0.4, 0.0], labels)
    assert path.shape == (5, 3, 1, 8, 8) and path.dtype == torch.float32
    torch.testing.assert_close(path[:, 0], noise)
    torch.testing.assert_close(path[:, 2] * IMAGES.sigma_data, made(noise, labels), rtol=1e-4,
                               atol=1e-4)
    levels = made.levels(noise, labels)
    half = made.operator(made.operator(levels, 0.6), 0.4)
    for one, other in zip(half, made.operator(levels, 1.0), strict=True):
        torch.testing.assert_close(one, other)
    for refused in (student("direct", teacher("edm")),
                    student("hierarchical", teacher("edm"), operator={"kind": "none"})):
        with pytest.raises(KDMError, match="modes.*hierarchical|modes; train one"):
            refused.states(noise, [0.5], labels)


def test_editing_bands_of_modes() -> None:
    made = bent(student("hierarchical", teacher("edm")))
    noise, labels = noise_and_labels()
    other = noise.flip(0)
    own, theirs = made(noise, labels), made(other, labels)
    everything = made.edit(noise, Band("decay", 0.0, 1.0), labels, other)
    # But for the share of its own noise that the preconditioning adds.
    skip = IMAGES.sigma_data**2 / 80 * (noise - other)
    torch.testing.assert_close(everything, theirs + skip, atol=1e-4, rtol=1e-4)
    for by in ("decay", "rotation"):
        masks = [made.masks(Band(by, *ends)) for ends in ((0, 1 / 3), (1 / 3, 2 / 3), (2 / 3, 1))]
        for parts, shape in zip(zip(*masks, strict=True), made.operator.shapes, strict=True):
            count = torch.stack([part.expand(1, *shape) for part in parts]).sum(0)
            assert torch.equal(count, torch.ones_like(count))  # the bands are a partition
        some = made.edit(noise, Band(by, 0.0, 1 / 3), labels, other)
        assert not torch.allclose(some, own) and not torch.allclose(some, theirs)
        assert not torch.allclose(made.edit(noise, Band(by, 0.5, 1.0), labels), own)
    torch.testing.assert_close(made.edit(noise, Band("decay", 0.2, 0.7), labels, noise), own)
    ordered = made.operator.decay.split(made.operator.sizes)[0]
    inside = made.masks(Band("decay", 0.0, 0.5))[0]
    first = inside[0, : inside.shape[1] // 2].movedim(0, -1).reshape(-1)
    assert ordered[first].max().item() <= ordered[~first].min().item()
    for band in (Band("decay", 0.5, 0.5), Band("phase", 0.0, 1.0)):  # type: ignore[arg-type]
        with pytest.raises(KDMError, match="band: "):
            made.edit(noise, band, labels)
    with pytest.raises(KDMError, match="^kind: .* has no modes to edit; use a hierarchical one"):
        student("direct", teacher("edm")).edit(noise, Band("decay", 0.0, 0.5), labels)
    with pytest.raises(KDMError, match="edit: this student's operator is none"):
        student("hierarchical", teacher("edm"), operator={"kind": "none"}).edit(  # type: ignore[attr-defined]
            noise, Band("decay", 0.0, 0.5), labels)


def test_between_two_noises() -> None:
    made = bent(student("hierarchical", teacher("edm")))
    noise, labels = noise_and_labels()
    other = noise.flip(0)
    for weight, end in ((0.0, noise), (1.0, other)):
        torch.testing.assert_close(
            made.between(noise, other, torch.full((5,), weight), labels), made(end, labels),
            atol=1e-4, rtol=1e-4)
    assert not student("direct", teacher("edm")).has_latents


@pytest.mark.parametrize(("kind", "name"), [("direct", "edm"), ("direct", "flow"),
                                            ("hierarchical", "edm"), ("hierarchical", "mlp")])
def test_exported_samples_are_the_student_s(tmp_path: Path, kind: str, name: str) -> None:
    made = student(kind, teacher(name))
    found = bent(made) if kind == "hierarchical" else made
    for form in ("onnx", "torch-export"):
        assert export_student(found, tmp_path / form, form, "f" * 64).deviation < 1e-4  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["direct", "hierarchical"])
def test_a_killed_training_goes_on_to_the_same_bits(tmp_path: Path, kind: str) -> None:
    class Killed(BaseException):
        pass

    def kill(step: int) -> None:
        if step == 10:
            raise Killed

    def fresh() -> StudentTask:
        return task(student(kind, teacher("edm")), ENDPOINT)

    whole = fresh()
    fit(whole, tmp_path / "whole", "key")
    with pytest.raises(Killed):
        fit(fresh(), tmp_path / "killed", "key", kill)
    resumed, seen = fresh(), list[int]()
    fit(resumed, tmp_path / "killed", "key", seen.append)
    assert seen[0] == 9  # from the checkpoint at 8
    for name, value in whole.ema.shadow.state_dict().items():
        assert torch.equal(value, resumed.ema.shadow.state_dict()[name]), name


def test_weights_of_a_teacher(tmp_path: Path) -> None:
    theirs = teacher("edm")
    mark = save_teacher(tmp_path, theirs)
    for kind in ("direct", "hierarchical"):
        made = student(kind, theirs)
        for value in made.parameters():
            nn.init.zeros_(value)
        taken, found = start_at_teacher(made, tmp_path)
        assert found == mark
        assert taken == sum(value.numel() for value in theirs.network.state_dict().values())  # type: ignore[operator,union-attr]
        assert all(torch.equal(value, theirs.network.state_dict()[name])  # type: ignore[operator,union-attr]
                   for name, value in made.network.state_dict().items())
    other = TypeAdapter(StudentConfig).validate_python({
        "kind": "direct", "denoiser": {**TEACHERS["edm"], "preconditioning": {"kind": "vp"}}})
    with pytest.raises(MismatchError, match="preconditioning or grid .* is not the teacher's"):
        start_at_teacher(other.build(IMAGES), tmp_path)


@pytest.mark.parametrize(("theirs", "message"), [
    (None, "^denoiser: nobody knows the teacher"),
    ({"kind": "gaussian_mixture"}, "^denoiser: this teacher is a closed form"),
    ({"kind": "denoiser", "network": {"kind": "diffusers_unet"}},
     r"network \(diffusers_unet\) is one of others"),
])
def test_a_teacher_of_which_no_student_is_made(
    theirs: dict[str, Any] | None, message: str
) -> None:
    for kind in ("direct", "hierarchical"):
        with pytest.raises(MismatchError, match=message):
            KINDS[kind]().completed(theirs)
    with pytest.raises(KDMError, match="left to a teacher"):
        KINDS["direct"]().build(IMAGES)


def test_networks_of_others_are_refused() -> None:
    with pytest.raises(ValidationError, match="network of others"):
        KINDS["hierarchical"].model_validate({"denoiser": {
            "kind": "denoiser", "network": {"kind": "module", "factory": "a:b"}}})


@pytest.mark.parametrize(("kind", "losses", "message"), [
    ("direct", {"reconstruction": 1.0}, "losses.reconstruction: a student of this kind"),
    ("direct", {"trajectory": 1.0}, "losses.trajectory"),
    ("hierarchical", {"latent": 1.0}, "losses.latent"),
    ("direct", {"prediction": 0.0}, "losses.prediction: it is 0"),
])
def test_losses_that_a_kind_has_no_use_for(
    kind: str, losses: dict[str, float], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        KINDS[kind]().check(LossConfig.model_validate({**QUIET, **losses}))


def test_a_path_that_the_decoder_cannot_know() -> None:
    config = KINDS["hierarchical"].model_validate({"operator": {"kind": "none"}})
    with pytest.raises(ValueError, match=r"set model\.operator.* model\.decoder_time: target"):
        config.check(LossConfig.model_validate({**QUIET, "trajectory": 1.0}))


def test_a_student_without_a_kind_is_the_paper_s() -> None:
    assert with_kind({"latent": 3})["kind"] == "kdm"
    assert with_kind({"kind": "direct"})["kind"] == "direct"
    assert with_kind("x") == "x"


def test_a_student_starts_at_another_of_its_kind_alone() -> None:
    direct, other = (student("direct", teacher("edm")) for _ in range(2))
    for value in other.parameters():
        nn.init.normal_(value)
    start_at_student(direct, other, "there")
    noise, labels = noise_and_labels()
    assert torch.equal(direct(noise, labels), other(noise, labels))
    with pytest.raises(MismatchError, match=r"model\.kind \(here 'direct', there 'hierarchical'"):
        start_at_student(direct, student("hierarchical", teacher("edm")), "there")
    with pytest.raises(MismatchError, match=r"model\.denoiser"):
        start_at_student(direct, student("direct", teacher("mlp")), "there")
    assert other_fields(KINDS["direct"](), other.config) == []  # left to a teacher
