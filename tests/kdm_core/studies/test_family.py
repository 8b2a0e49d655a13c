"""Studies of what only some kinds of students can do, on students whose answers are known."""

import io
import json
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from pydantic import ValidationError
from torch import Tensor

from kdm_core.errors import Adapted, DataError, DivergedError
from kdm_core.figures.files import render
from kdm_core.metrics.frechet import fit_gaussian, frechet_distance
from kdm_core.operators import ContinuousConfig
from kdm_core.samples import SampleSpec
from kdm_core.solvers import Solution
from kdm_core.students.hierarchical import Band, Hierarchical
from kdm_core.students.seen import trains_states
from kdm_core.studies import STUDIES, Finding, StudiesConfig, Subject, run_studies
from kdm_core.studies.base import Inapplicable
from kdm_core.studies.modes import ModesConfig, low_share, modes, pair_up
from kdm_core.studies.path import PathConfig, path
from kdm_core.studies.steps import StepsConfig, steps
from kdm_core.values import as_float
from tests.kdm_core.students.test_family import bent, student, teacher
from tests.support.students import make_student

FAMILY = ("steps", "path", "modes")
ONLY = StudiesConfig.model_validate({
    name: None for name in StudiesConfig.model_fields if name not in FAMILY})
POSITIONS = [0.75, 0.25]


def kept(noise: Tensor, positions: list[float]) -> Tensor:
    """States of unit variance of a teacher that carries noise x to samples x σ: always x."""
    return noise[:, None].expand(-1, len(positions), *noise.shape[1:]).clone()


def subject(kind: str = "image", n: int = 60, **others: Any) -> Subject:
    """A teacher that makes x of noise x, and a student that makes 3/4 x of it in one step and
    (1 − 4^−k) x in k, whose states at position u are (1 − u/2) x."""
    image = kind == "image"
    shape, sigma = ([1, 6, 6], 0.5) if image else ([2], 2.0)
    spec = SampleSpec(kind="image" if image else "points", shape=shape, sigma_data=sigma)
    noise = torch.randn(n, *shape, generator=torch.Generator().manual_seed(0)) * (1 - 0.5 * image)
    real = np.random.default_rng(0).normal(0, 0.4 if image else 2, (2, 200, *shape))
    train, held_out = (real * 127 + 128).clip(0, 255).astype(np.uint8) if image else real.astype(
        np.float32)

    def take(noise: Tensor, labels: Tensor, count: int) -> Tensor:
        return (1 - 0.25**count) * noise * sigma

    def solve(noise: Tensor, labels: Tensor, count: int) -> Solution:
        return Solution((1 - 0.5**count) * noise * sigma, 2 * count - 1)

    def states(noise: Tensor, labels: Tensor, positions: list[float]) -> Tensor:
        return torch.stack([(1 - u / 2) * noise for u in positions], 1)

    given: dict[str, Any] = {
        "spec": spec, "label_names": [], "noise": noise, "name": "kdm-h", "seed": 1,
        "labels": torch.full((n,), -1), "teacher": sigma * noise, "student": 0.75 * sigma * noise,
        "train_samples": train, "held_out_samples": held_out,
        "sample_teacher": lambda x, y: sigma * x, "sample_student": lambda x, y: take(x, y, 1),
        "features": (lambda x: x.flatten(1)[:, :5].numpy()) if image else None,
        "eigenvalues": np.exp(1j * np.arange(4)), "sample_steps": take,
        "sample_teacher_steps": solve, "stored_states": kept(noise, POSITIONS),
        "positions": POSITIONS, "sample_states": states, "edit": parts(spec)}
    return Subject(**given | others)


def parts(spec: SampleSpec) -> Any:
    """An edit by which a third of the values, by their place, is another noise's; by rotation,
    these thirds begin at the other end."""

    def edit(noise: Tensor, labels: Tensor, band: Band, other: Tensor) -> Tensor:
        size = noise[0].numel()
        place = torch.arange(size) / size
        if band.by == "rotation":
            place = place.flip(0)
        inside = ((place >= band.first - 1e-9) & (place < band.last - 1e-9)).reshape(spec.shape)
        return 0.75 * spec.sigma_data * torch.where(inside, other, noise)

    return edit


def check(finding: Finding) -> None:
    """A finding can be written, shown and read."""
    assert json.loads(json.dumps(finding.numbers, allow_nan=False)) == finding.numbers
    assert isinstance(finding.figure, Figure)
    assert len(render(finding.figure)) > 10_000
    words = finding.title + finding.alt + finding.caption
    assert min(map(len, (finding.title, finding.alt, finding.caption))) > 5
    assert "nan" not in words and "{" not in words and "None" not in words


# ---- steps

def test_distances_and_errors_over_evaluations_are_those_of_each_set() -> None:
    given = subject()
    finding = steps(given, StepsConfig())
    check(finding)
    found = finding.numbers
    assert found["teacher_steps"] == [1, 2, 4]
    assert found["teacher_nfe"] == found["student_nfe"] == [1, 3, 7]
    square = float(given.teacher.square().mean())
    assert found["student_mse"] == pytest.approx([square * 0.25 ** (2 * k) for k in (1, 3, 7)],
                                                 rel=1e-4)
    assert found["teacher_mse"] == pytest.approx([square * 0.5 ** (2 * k) for k in (1, 2, 4)],
                                                 rel=1e-4)
    assert given.features is not None
    real = fit_gaussian(given.features(as_float(given.held_out_samples)))

    def distance(share: float) -> float:
        assert given.features is not None
        return frechet_distance(fit_gaussian(given.features(share * given.teacher)), real)

    for who, shares in (("student", [1 - 0.25**k for k in (1, 3, 7)]),
                        ("teacher", [1 - 0.5**k for k in (1, 2, 4)])):
        assert found[f"{who}_fd"] == pytest.approx([*map(distance, shares)], rel=1e-4)
    assert found["stored_fd"] == pytest.approx(distance(1), rel=1e-4)
    assert (found["n"], found["held_out"], found["dim"]) == (60, 200, 5)
    assert f"{found['teacher_fd'][1]:.3g} with 3" in finding.caption
    assert "not reliable" not in finding.caption
    # The teacher is at 3/4 with two steps, which are three evaluations.
    assert "the teacher takes 3 to be as near as kdm-h with one" in finding.caption
    assert "kdm-h is nearest with 7 evaluations" in finding.caption


def test_points_are_compared_by_their_sliced_distance() -> None:
    """Of a set moved by m along x the squared distance is m²/2, a mean over directions."""
    given = subject("points", 400)
    held_out = given.teacher.numpy()

    def moved(noise: Tensor, labels: Tensor, count: int) -> Tensor:
        return 2.0 * noise + torch.tensor([1.0 / count, 0.0])

    finding = steps(given._replace(held_out_samples=held_out, sample_steps=moved,
                                   student=moved(given.noise, given.labels, 1)), StepsConfig())
    check(finding)
    found = finding.numbers["student_sliced_wasserstein"]
    assert isinstance(found, list)
    assert found == pytest.approx([found[0] / k for k in (1, 3, 7)], rel=1e-4)
    assert found[0] == pytest.approx(0.5**0.5, rel=0.1)
    assert finding.numbers["stored_sliced_wasserstein"] == 0
    assert finding.numbers["student_mse"] == pytest.approx([0.5 / k**2 for k in (1, 3, 7)],
                                                           rel=1e-4)


def test_the_student_is_sampled_once_where_it_is_one_evaluation() -> None:
    """And also where a guided teacher takes two evaluations a step at least."""
    asked: list[int] = []

    def counting(noise: Tensor, labels: Tensor, count: int) -> Tensor:
        asked.append(count)
        return 0.5 * noise

    def guided(noise: Tensor, labels: Tensor, count: int) -> Solution:
        return Solution(0.4 * noise, 4 * count - 2)

    found = steps(subject(sample_steps=counting, sample_teacher_steps=guided),
                  StepsConfig(teacher_steps=[1, 2], most=20)).numbers
    assert asked == [2, 6]
    assert found["student_nfe"] == [1, 2, 6] and found["teacher_nfe"] == [2, 6]
    assert found["n"] == found["held_out"] == 20


def test_captions_of_students_that_do_not_gain_by_steps() -> None:
    given = subject()
    worse = given._replace(sample_steps=lambda x, y, k: 0.1 * x,
                           sample_teacher_steps=lambda x, y, k: Solution(0 * x + 5, 2 * k - 1))
    said = steps(worse, StepsConfig()).caption
    assert "more evaluations do not bring kdm-h nearer to real data" in said
    assert "with up to 7 evaluations the teacher is not as near as kdm-h with one" in said
    once = steps(given, StepsConfig(teacher_steps=[1])).caption
    assert "kdm-h was asked for one evaluation only" in once
    few = steps(given._replace(held_out_samples=given.held_out_samples[:4]), StepsConfig())
    assert "4 samples are no more than the 5 dimensions" in few.caption


@pytest.mark.parametrize(("lacks", "why"), [
    ({"sample_teacher_steps": None}, "chooses its steps itself"),
    ({"features": None}, "there is no extractor"),
    ({"held_out_samples": np.zeros((1, 1, 6, 6), np.uint8)}, "two held-out samples, and there are"),
])
def test_steps_of_what_cannot_be_compared(lacks: dict[str, Any], why: str) -> None:
    with pytest.raises(Inapplicable, match=why):
        steps(subject(**lacks), StepsConfig())


def test_one_noise_is_too_few_for_steps_path_and_modes() -> None:
    one = subject(n=1)
    for study, config in ((steps, StepsConfig()), (path, PathConfig()), (modes, ModesConfig())):
        with pytest.raises(Inapplicable, match="two unseen noises"):
            study(one, config)  # type: ignore[operator]


@pytest.mark.parametrize("wrong", [[], [0, 1], [2, 1], [1, 1]])
def test_steps_of_the_teacher_grow(wrong: list[int]) -> None:
    with pytest.raises(ValidationError, match="1 or more and grow"):
        StepsConfig(teacher_steps=wrong)


# ---- path

@pytest.mark.parametrize("kind", ["image", "points"])
def test_errors_on_the_way_are_those_of_the_states(kind: str) -> None:
    """(1 − u/2) x beside x: an error of u²/4 x² a value."""
    given = subject(kind)
    finding = path(given, PathConfig())
    check(finding)
    found = finding.numbers
    assert found["positions"] == [1.0, *POSITIONS, 0.0] and found["n"] == 60
    square = float(given.noise.square().mean())
    assert found["mse"] == pytest.approx([square * u * u / 4 for u in (1, 0.75, 0.25, 0)], rel=1e-4)
    other = given.noise.roll(1, 0)
    permuted = [float(((1 - u / 2) * given.noise - other).square().mean())
                for u in (1, 0.75, 0.25, 0)]
    assert found["mse_permuted"] == pytest.approx(permuted, rel=1e-4)
    mse, share = found["mse"], found["share"]
    assert isinstance(mse, list) and isinstance(share, list)
    assert share == pytest.approx([a / b for a, b in zip(mse, permuted, strict=True)], rel=1e-4)
    assert f"{share[1]:.1%} (at 0.75)" in finding.caption
    assert "0.0% at the sample" in finding.caption


def test_the_ends_are_the_noise_and_the_stored_sample() -> None:
    """Not the student's: a teacher whose samples are others is what the error at 0 tells of."""
    given = subject()
    found = path(given._replace(teacher=0 * given.teacher), PathConfig())
    mse = found.numbers["mse"]
    assert isinstance(mse, list)
    assert mse[-1] == pytest.approx(float(given.noise.square().mean()), rel=1e-4)
    assert path(given, PathConfig(most=10)).numbers["n"] == 10


def test_only_trained_states_are_called_such() -> None:
    """No words call what nothing has trained a path of the teacher's."""
    for trained in (True, False):
        finding = path(subject(states_trained=trained), PathConfig())
        words = finding.title + finding.alt + finding.caption
        assert "path" not in words.lower()
        assert ("no loss has trained" in words.lower()) != trained
        assert ("A loss has trained those on the way" in words) == trained
        assert finding.numbers["trained"] == trained


@pytest.mark.parametrize(("lacks", "why"), [
    ({"stored_states": None, "positions": []}, "no states between noise and sample"),
    ({"teacher": torch.zeros(60, 1, 6, 6),
      "sample_states": lambda x, y, p: torch.zeros(len(x), len(p), *x.shape[1:])}, "all alike"),
])
def test_paths_that_cannot_be_compared(lacks: dict[str, Any], why: str) -> None:
    with pytest.raises(Inapplicable, match=why):
        path(subject(**lacks), PathConfig())


def test_a_path_of_one_state_has_no_range() -> None:
    given = subject()
    one = path(given._replace(stored_states=given.stored_states[:, :1],  # type: ignore[index]
                              positions=[0.75]), PathConfig())
    assert "% at 0.75 on the way" in one.caption and "between" not in one.caption.split("is a")[-1]


def test_a_student_s_record_says_whether_states_were_trained() -> None:
    assert not trains_states({}) and not trains_states({"losses": {"endpoint": 1.0}})
    assert not trains_states({"losses": {"trajectory": 0.0}})
    assert trains_states({"losses": {"trajectory": 0.1}})
    assert trains_states({"phases": [{"losses": {}}, {"losses": {"trajectory": 1}}]})


# ---- modes

def test_exchanges_are_measured_by_what_they_change() -> None:
    """A third of the values is exchanged: two of six rows of pixels, 2×2 pixels as they are."""
    given = subject()
    finding = modes(given, ModesConfig(pairs=30))
    check(finding)
    found = finding.numbers
    own, other = given.student[::2], given.student[1::2]
    change = (other - own).double()
    whole = float(change.square().sum())
    for i, (by_decay, by_rotation) in enumerate(zip(
            ("fast_decay", "middle_decay", "slow_decay"),
            ("fast_rotation", "middle_rotation", "slow_rotation"), strict=True)):
        part = change[:, :, 2 * i : 2 * i + 2]
        energy = float(part.square().sum())
        means = part.reshape(-1, 2, 3, 2).mean((1, 3))
        low = 4 * float(means.square().sum()) / energy
        for band in (by_decay, by_rotation):
            assert found[f"{band}_change"] == pytest.approx(energy / whole, rel=1e-4)
            assert found[f"{band}_to_other"] == pytest.approx(1 - energy / whole, rel=1e-4)
            assert found[f"{band}_low"] == pytest.approx(low, rel=1e-4)
    assert found["all_change"] == 1 and found["all_to_other"] == 0 and found["pairs"] == 30
    assert len([key for key in found if key.endswith("_change")]) == 7


def test_captions_name_the_bands_that_the_numbers_name() -> None:
    """Slow modes make samples brighter by a half, fast ones by a checkerboard of 1/4."""
    chess = (torch.arange(6)[:, None] + torch.arange(6)) % 2 * 2.0 - 1

    def edit(noise: Tensor, labels: Tensor, band: Band, other: Tensor) -> Tensor:
        base = 0.75 * 0.5 * noise
        if band.last - band.first == 1:
            return base + 1
        if band.by == "rotation":
            return base
        return base + {0: 0.25 * chess, 1: 0 * chess, 2: torch.tensor(0.5)}[round(3 * band.first)]

    finding = modes(subject(edit=edit), ModesConfig(pairs=8))
    check(finding)
    found = finding.numbers
    assert [found[f"{band}_decay_change"] for band in ("fast", "middle", "slow")] == pytest.approx(
        [1 / 16, 0, 1 / 4], abs=1e-6)
    assert found["slow_decay_low"] == pytest.approx(1)
    assert found["fast_decay_low"] == pytest.approx(0, abs=1e-6)
    assert "middle_decay_low" not in found and "slow_rotation_low" not in found
    assert "Those of slow decay change most" in finding.caption
    assert "100% of the change by slow decay, the coarsest, 0% by fast decay" in finding.caption
    assert "is mostly coarse" in finding.caption
    assert "is mostly fine" in modes(subject(edit=lambda x, y, band, o: edit(
        x, y, band._replace(first=0.0, last=1 / 3) if band.last - band.first < 1 else band, o)),
        ModesConfig(pairs=8)).caption


def test_coarse_and_fine_changes() -> None:
    assert low_share(torch.ones(2, 1, 5, 7)) == 1
    assert low_share(torch.zeros(2, 3, 4, 4)) is None
    white = torch.randn(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    assert low_share(white) == pytest.approx(0.25, abs=0.01)


def test_points_have_no_coarse_changes() -> None:
    finding = modes(subject("points"), ModesConfig(pairs=30))
    check(finding)
    assert not [key for key in finding.numbers if key.endswith("_low")]
    assert "coarse" not in finding.caption and "of one class" not in finding.caption


def test_noises_are_paired_within_classes_and_classes_alternate() -> None:
    labels = torch.tensor([2, 0, 2, 0, 1, 0, 0, 2, 2])
    given = subject(n=9, labels=labels, label_names=["a", "b", "c"])
    own, other = pair_up(given, 3)
    assert (labels[own] == labels[other]).all()
    assert own.tolist() == [0, 1, 5] and other.tolist() == [2, 3, 6]
    with pytest.warns(Adapted, match="there are 4 pairs of unseen noises"):
        assert len(pair_up(given, 5)[0]) == 4
    assert "of one class" in modes(given, ModesConfig(pairs=4)).caption
    with pytest.raises(Inapplicable, match="two unseen noises of one class"):
        pair_up(given._replace(labels=torch.arange(9)), 1)


@pytest.mark.parametrize(("lacks", "why"), [
    ({"eigenvalues": np.ones(6, complex)}, "all modes are alike"),
    ({"edit": lambda x, y, band, other: 0.375 * x}, "stay as they are"),
    ({"student": torch.zeros(60, 1, 6, 6)}, "different noises are all alike"),
])
def test_modes_that_tell_nothing(lacks: dict[str, Any], why: str) -> None:
    with pytest.raises(Inapplicable, match=why):
        modes(subject(**lacks), ModesConfig(pairs=30))


# ---- students of all kinds

def run(given: Subject, config: StudiesConfig = ONLY) -> tuple[list[str], list[str]]:
    """The studies that were made, and what was said of others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Adapted)
        names = [finding.name for finding in run_studies(given, config, lambda text: None)]
    return names, [str(one.message) for one in caught]


def test_students_have_the_studies_of_what_they_can_do() -> None:
    order = list(STUDIES)
    assert list(StudiesConfig.model_fields)[:2] == order[:2] and [*FAMILY, "spectrum"] == order[5:9]
    pairs_only = StudiesConfig.model_validate({**ONLY.model_dump(), "modes": {"pairs": 20}})
    assert run(subject(), pairs_only) == (list(FAMILY), [])
    # Those that cannot are not talked about; pairs without states are.
    able = {"sample_steps": "steps", "sample_states": "path", "edit": "modes"}
    assert run(subject(**dict.fromkeys(able))) == ([], [])
    names, said = run(subject(stored_states=None, positions=[], edit=None))
    assert names == ["steps"] and "left out" in said[0] and said[0].startswith("path: the pairs")
    names, said = run(subject(source="pairs", edit=None))
    assert names == ["path"] and said[0].startswith("steps: it samples the teacher")


def test_studies_refuse_what_is_not_finite_or_of_another_shape() -> None:
    given = subject()
    for part, error, message in (
        ({"sample_steps": lambda x, y, k: x / 0}, DivergedError, "kdm-h in several steps"),
        ({"sample_teacher_steps": lambda x, y, k: Solution(x / 0, k)}, DivergedError,
         "the teacher in fewer steps"),
        ({"sample_states": lambda x, y, p: kept(x, p) / 0}, DivergedError, "kdm-h's states"),
        ({"edit": lambda x, y, band, other: x / 0}, DivergedError, "kdm-h with modes exchanged"),
        ({"stored_states": kept(given.noise, POSITIONS) / 0}, DivergedError, "stored_states"),
        ({"positions": [0.5]}, DataError, r"shape \(60, 2, 1, 6, 6\) where \(60, 1,"),
    ):
        with pytest.raises(error, match=message):
            run(given._replace(**part))  # type: ignore[arg-type]


def test_abilities_of_the_kinds() -> None:
    theirs = teacher("edm")
    direct, plain = student("direct", theirs), student("hierarchical", theirs)
    without = student("hierarchical", theirs, operator={"kind": "none"})
    assert plain.has_states and plain.has_modes
    assert not any((direct.has_states, direct.has_modes, without.has_states, without.has_modes))
    dense, shared = make_student(), make_student(
        operator=ContinuousConfig(kind="continuous"), encoders="shared")
    assert not (dense.has_states or dense.has_modes or shared.has_modes) and shared.has_states


def test_a_hierarchical_student_has_all_three() -> None:
    """With its real functions: the exchange of all modes leaves nothing of its own levels."""
    made: Hierarchical = bent(student("hierarchical", teacher("edm")))
    spec, n = made.spec, 12
    noise = torch.randn(n, *spec.shape, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(n) % 3
    eigenvalues = made.eigenvalues()
    assert eigenvalues is not None
    given = subject(
        n=n, spec=spec, noise=noise, labels=labels, label_names=spec.label_names,
        teacher=noise.tanh(), student=made.generate(noise, labels), positions=POSITIONS,
        stored_states=kept(noise, POSITIONS).half(), eigenvalues=eigenvalues.numpy(),
        held_out_samples=np.random.default_rng(0).integers(0, 256, (30, 1, 8, 8), np.uint8),
        sample_steps=lambda x, y, k: made.generate(x, y, "fp32", k),
        sample_teacher_steps=lambda x, y, k: Solution(x.tanh(), 2 * k - 1),
        sample_states=lambda x, y, positions: made.states(x, positions, y),
        edit=lambda x, y, band, other: made.edit(x, band, y, other))
    config = StudiesConfig.model_validate({**ONLY.model_dump(), "modes": {"pairs": 6}})
    findings = {one.name: one for one in run_studies(given, config, lambda text: None)}
    assert list(findings) == list(FAMILY)
    for finding in findings.values():
        check(finding)
        finding.figure.savefig(io.BytesIO(), format="png", dpi=30)
    share, mse = (findings["path"].numbers[key] for key in ("share", "mse"))
    assert isinstance(share, list) and isinstance(mse, list) and len(share) == 4
    at_end = float((given.student - given.teacher).square().mean()) / spec.sigma_data**2
    assert mse[-1] == pytest.approx(at_end, rel=1e-4)
    exchanged = findings["modes"].numbers
    assert all(0 < exchanged[f"{band}_decay_change"] < 3  # type: ignore[operator]
               for band in ("fast", "middle", "slow"))
