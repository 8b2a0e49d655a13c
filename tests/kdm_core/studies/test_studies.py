"""Studies of neighbourhoods, walks, copies and grids, on models whose answers are known."""

import io
import json
import warnings
from math import comb, inf

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex, to_rgba_array
from matplotlib.patches import Patch
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from kdm_core.errors import Adapted, DataError, DivergedError
from kdm_core.figures.grid import Row, draw_rows
from kdm_core.figures.memorisation import Distances
from kdm_core.figures.style import STUDENTS, drawn_in
from kdm_core.figures.tiles import mosaic, tiles
from kdm_core.metrics.neighbours import nearest
from kdm_core.samples import SampleSpec
from kdm_core.studies import Finding, StudiesConfig, Subject, run_studies
from kdm_core.studies.base import Inapplicable, varied
from kdm_core.studies.grids import GridsConfig, choose, grids
from kdm_core.studies.interpolation import (
    InterpolationConfig,
    evenly,
    great_circle,
    interpolation,
    smoothness,
)
from kdm_core.studies.memorisation import (
    Certainty,
    MemorisationConfig,
    certainty,
    memorisation,
)
from kdm_core.studies.vicinity import VicinityConfig, perturb, vicinity

OFF = StudiesConfig.model_validate(dict.fromkeys(StudiesConfig.model_fields))
CLASSES = ["nought", "one", "two"]
LIMIT = {"#d55e00"}
"""The colour of a line, where near copies begin."""


def make(kind: str, n: int = 120, classes: bool = False, sigma: float = 0.4) -> Subject:
    """The teacher scales its noise and bends it, the student only scales it."""
    image = kind == "image"
    shape = [1, 6, 6] if image else [2]
    generator = np.random.default_rng(1)
    noise = torch.from_numpy(generator.standard_normal((n, *shape)).astype(np.float32))
    labels = torch.from_numpy(generator.integers(3, size=n)) if classes else torch.full((n,), -1)
    real = generator.normal(size=(2 * n + 60, *shape)) * sigma
    train, held_out = np.split(
        (real * 127.5 + 128).clip(0, 255).astype(np.uint8) if image else real.astype(np.float32), 2)

    def teach(noise: Tensor, labels: Tensor) -> Tensor:
        return (sigma * noise).sin()

    def study(noise: Tensor, labels: Tensor) -> Tensor:
        return sigma * noise

    def between(start: Tensor, end: Tensor, weights: Tensor, labels: Tensor) -> Tensor:
        w = weights.reshape(-1, *[1] * len(shape))
        return sigma * ((1 - w) * start + w * end)

    return Subject(
        spec=SampleSpec(kind="image" if image else "points", shape=shape), name="kdm-x",
        label_names=CLASSES if classes else [], noise=noise, labels=labels,
        teacher=teach(noise, labels), student=study(noise, labels),
        train_samples=train, held_out_samples=held_out,
        sample_teacher=teach, sample_student=study, sample_latent=between,
        features=(lambda x: x.flatten(1)[:, :5].numpy()) if image else None,
        eigenvalues=np.exp(1j * np.arange(4)), seed=3)


@pytest.mark.parametrize("sigma", [0.0, 0.3, inf])
def test_perturbed_images_have_mean_zero_and_unit_deviation(sigma: float) -> None:
    x, epsilon = torch.randn(3, 8, 8) + 2, torch.randn(5, 3, 8, 8)
    made = perturb(x, epsilon, sigma, renormalise=True).flatten(1)
    torch.testing.assert_close(made.mean(1), torch.zeros(5), atol=1e-6, rtol=0)
    torch.testing.assert_close(made.std(1, correction=0), torch.ones(5))


def test_perturbation_is_the_papers() -> None:
    """x + σε, normalised by its own mean and deviation; at 0 the original, at inf the noise."""
    x, epsilon = torch.randn(3, 8, 8), torch.randn(2, 3, 8, 8)
    mixed = x + 0.3 * epsilon
    expected = torch.stack([(m - m.mean()) / m.std(correction=0) for m in mixed])
    torch.testing.assert_close(perturb(x, epsilon, 0.3, renormalise=True), expected)
    original = (x - x.mean()) / x.std(correction=0)
    torch.testing.assert_close(perturb(x, epsilon, 0.0, renormalise=True)[1], original)
    torch.testing.assert_close(perturb(x, epsilon, inf, renormalise=False), epsilon)


def test_perturbed_points_keep_their_variance() -> None:
    x, epsilon = torch.randn(2), torch.randn(40_000, 2)
    assert torch.equal(perturb(x, epsilon[:1], 0.0, renormalise=False)[0], x)
    torch.testing.assert_close(perturb(x, epsilon[:9], 0.5, renormalise=False),
                               (x + 0.5 * epsilon[:9]) / 1.25**0.5)
    made = perturb(torch.randn(40_000, 2), epsilon, 0.5, renormalise=False)
    assert float(made.std()) == pytest.approx(1, abs=0.02)


def test_vicinity_of_a_linear_student_is_that_of_its_noise() -> None:
    """E |a (x̂ - x)|² = a² ((1 - cos θ)² x² + sin² θ) for tan θ = σ, a value each."""
    subject = make("points")
    config = VicinityConfig(noises=1, samples=20_000, sigmas=[0.0, 0.2, 1.0])
    numbers = vicinity(subject, config).numbers
    square = float(subject.noise[0].square().mean())
    angles = np.arctan([0.0, 0.2, 1.0, inf])
    expected = 0.4**2 * ((1 - np.cos(angles)) ** 2 * square + np.sin(angles) ** 2)
    np.testing.assert_allclose(numbers["student_coordinates"], expected[:3], rtol=0.03)
    assert numbers["student_coordinates"][0] == 0
    assert numbers["student_unrelated_coordinates"] == pytest.approx(expected[3], rel=0.03)
    assert numbers["between_coordinates"][0] == pytest.approx(
        float((subject.teacher[0] - subject.student[0]).square().mean()), rel=1e-4)


def test_vicinity_tells_a_copy_and_a_student_that_ignores_its_noise() -> None:
    subject = make("image")
    same = vicinity(subject._replace(sample_student=subject.sample_teacher), VicinityConfig())
    for space in ("pixels", "features"):
        assert same.numbers[f"student_{space}"] == same.numbers[f"teacher_{space}"]
        assert not np.any(same.numbers[f"between_{space}"])
        assert (np.diff(same.numbers[f"teacher_{space}"]) > 0).all()
        assert same.numbers[f"teacher_{space}"][-1] < same.numbers[f"teacher_unrelated_{space}"]
    deaf = vicinity(subject._replace(sample_student=lambda x, y: torch.zeros_like(x)),
                    VicinityConfig())
    assert not np.any(deaf.numbers["student_pixels"])
    assert min(deaf.numbers["between_pixels"]) > 0.05


def test_neighbours_and_unrelated_noise_keep_the_class() -> None:
    """So a teacher that knows the class alone makes the same of all of them."""
    subject = make("image", classes=True)
    deaf = subject._replace(sample_teacher=lambda x, y: x * 0 + y.reshape(-1, 1, 1, 1))
    with pytest.raises(Inapplicable, match="the same sample of unrelated noises"):
        vicinity(deaf, VicinityConfig())


@pytest.mark.parametrize("sigmas", [[0.1, 0.2], [0.0], [0.0, 0.2, 0.2], []])
def test_sigmas_start_with_zero_and_grow(sigmas: list[float]) -> None:
    with pytest.raises(ValidationError, match="start with 0 and grow"):
        VicinityConfig(sigmas=sigmas)


vectors = st.lists(st.floats(-5, 5, width=32), min_size=4, max_size=4).filter(
    lambda x: np.linalg.norm(x) > 0.1)


@given(vectors, vectors)
def test_arcs_end_at_their_ends_and_keep_the_norm(a: list[float], b: list[float]) -> None:
    start, end = torch.tensor([a]).reshape(1, 1, 2, 2), torch.tensor([b]).reshape(1, 1, 2, 2)
    arc = great_circle(start, end, evenly(5))
    assert arc.shape == (1, 5, 1, 2, 2)
    torch.testing.assert_close(arc[:, 0], start, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(arc[:, -1], end, atol=1e-5, rtol=1e-5)
    cosine = float(torch.nn.functional.cosine_similarity(start.flatten(1), end.flatten(1)))
    if cosine > -0.999:  # opposite directions have no shortest arc
        expected = torch.linspace(float(start.norm()), float(end.norm()), 5)
        torch.testing.assert_close(arc[0].flatten(1).norm(dim=1), expected, atol=1e-4, rtol=1e-4)


def test_arcs_are_walked_evenly() -> None:
    start, end = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    angles = torch.linspace(0, torch.pi / 2, 7)
    torch.testing.assert_close(great_circle(start, end, evenly(7))[0],
                               torch.stack([angles.cos(), angles.sin()], 1))


def test_smoothness_of_even_steps_a_jump_and_none() -> None:
    even, jump = smoothness(np.full((1, 4), 0.5)), smoothness(np.array([[0.0, 0.0, 2.0, 0.0]]))
    assert (even["length"], even["largest_over_mean_step"]) == (2, 1)
    assert (jump["length"], jump["largest_over_mean_step"]) == (2, 4)
    assert jump["mean_squared_step"] == 1 > even["mean_squared_step"] == 0.25
    assert smoothness(np.zeros((2, 3)))["largest_over_mean_step"] == 1


@pytest.mark.parametrize("kind", ["image", "points"])
def test_interpolation_of_a_linear_student_is_straight(kind: str) -> None:
    subject = make(kind)
    numbers = interpolation(subject, InterpolationConfig(pairs=5, positions=7)).numbers
    ends = 0.4 * (subject.noise[:5] - subject.noise[5:10]).flatten(1)
    chord = float(ends.square().mean(1).sqrt().mean())
    assert numbers["latent_length"] == pytest.approx(chord, rel=1e-5)
    assert numbers["latent_largest_over_mean_step"] == pytest.approx(1, rel=1e-4)
    assert numbers["student_length"] > 1.02 * chord
    assert numbers["student_mse_to_teacher"] < numbers["latent_mse_to_teacher"]


def test_interpolation_needs_two_noises_and_does_without_latents() -> None:
    subject = make("image")
    finding = interpolation(subject._replace(sample_latent=None), InterpolationConfig(pairs=2))
    assert "teacher_length" in finding.numbers and "latent_length" not in finding.numbers
    assert "latent" not in finding.caption
    with pytest.raises(Inapplicable, match="two unseen noises"):
        interpolation(make("image", n=1), InterpolationConfig())


def test_nearest_equals_brute_force_in_chunks() -> None:
    generator = np.random.default_rng(0)
    train = generator.normal(5, 1, (40, 12)).astype(np.float32)
    samples = generator.normal(5, 1, (25, 12)).astype(np.float32)
    distances = np.sqrt(((samples[:, None] - train).astype(np.float64) ** 2).mean(2))
    hits = nearest(samples, train, chunk=7)
    assert (hits.place == distances.argmin(1)).all()
    np.testing.assert_allclose(hits.distance, distances.min(1), rtol=1e-6)
    own = np.array([3, 17, 39])
    among = np.sqrt(((train[own][:, None] - train).astype(np.float64) ** 2).mean(2))
    among[np.arange(3), own] = np.inf
    others = nearest(train[own], train, itself=own, chunk=7)
    assert (others.place == among.argmin(1)).all()
    np.testing.assert_allclose(others.distance, among.min(1), rtol=1e-6)


def test_planted_copies_are_found() -> None:
    """A quarter of the student's images, and two training images, are copies."""
    subject = make("image", n=80)
    train = np.array(subject.train_samples[:80])
    train[7] = train[50]
    student = subject.student.clone()
    copied = torch.arange(20) * 4
    student[copied] = torch.from_numpy(train[:20]).float() / 127.5 - 1
    finding = memorisation(subject._replace(student=student, train_samples=train),
                           MemorisationConfig())
    numbers = finding.numbers
    for space in ("pixels", "features"):
        assert numbers[f"student_least_{space}"] == numbers[f"train_least_{space}"] == 0
        assert numbers[f"teacher_least_{space}"] > 0
        assert numbers[f"threshold_{space}"] == numbers[f"train_median_{space}"] / 2
    assert numbers["student_copies_pixels"] == 0.25
    assert numbers["teacher_copies_pixels"] == 0
    assert numbers["train_copies_pixels"] == 2 / 80
    assert numbers["held_out_copies_pixels"] == 0 and numbers["n"] == 80
    assert "25.0% of the images of kdm-x" in finding.caption
    assert "0.0% of held-out real images" in finding.caption
    # 20 of 80, and none of the others.
    assert numbers["copies_p_pixels"] == pytest.approx(fisher(20, 0, 80))
    pixels, features = finding.warnings
    assert pixels.startswith("memorisation: in pixels 25.0% of the student’s images are near")
    assert "in features" in features


def fisher(own: int, other: int, n: int) -> float:
    """P(X ≥ own) for X hypergeometric: own + other near copies among 2 n images."""
    total = own + other
    return sum(comb(n, k) * comb(n, total - k) for k in range(own, total + 1)) / comb(2 * n, total)


def rivals(student: NDArray[np.float64], teacher: NDArray[np.float64],
           held_out: NDArray[np.float64]) -> Certainty:
    """How sure it is of distances whose limit of near copies is 0.5."""
    sets = {"student": student, "teacher": teacher, "held_out": held_out, "train": np.ones(3)}
    return certainty(Distances(sets, 0.5), np.random.default_rng(0))


@pytest.mark.parametrize(("own", "teacher", "held_out", "copies"), [
    (6, 0, 0, True), (5, 0, 0, False), (10, 10, 0, False), (10, 0, 10, False), (30, 10, 12, True)])
def test_more_near_copies_than_either_other_set_are_told(
    own: int, teacher: int, held_out: int, copies: bool
) -> None:
    """Of 100 images each; five more than none are within chance, six are not."""
    found = rivals(*(np.where(np.arange(100) < count, 0.1, 1.0)
                     for count in (own, teacher, held_out)))
    assert found.copies_p == pytest.approx(fisher(own, max(teacher, held_out), 100))
    assert found.copies == copies
    assert not found.nearer


def test_a_median_below_both_others_beyond_chance_is_told() -> None:
    generator = np.random.default_rng(1)
    first, second, third = generator.normal(2, 0.2, (3, 300))
    same = rivals(first, second, third)
    assert not same.nearer and not same.copies
    low, high = same.differences["held_out"]
    assert low < np.median(first) - np.median(third) < high
    assert rivals(first - 0.1, second, third).nearer
    # Nearer than one of them is what a good student is, or one of a teacher that is too near.
    assert not rivals(first - 0.1, second - 0.1, third).nearer
    assert not rivals(first - 0.1, second, third - 0.1).nearer
    # The same noise has nearly the same distance: then a small difference suffices.
    paired = rivals(first - 0.02, first, third + 0.1)
    assert paired.nearer
    assert not rivals(first - 0.02, generator.permutation(first), third + 0.1).nearer


def test_chance_alone_is_hardly_ever_told() -> None:
    """Three sets of one distribution; the margins are of 2.5 %, and must hold for both others."""
    generator = np.random.default_rng(2)
    found = [rivals(*generator.normal(1, 0.35, (3, 60))) for _ in range(60)]
    assert sum(one.copies for one in found) <= 4 and sum(one.nearer for one in found) <= 4


def test_a_student_nearer_to_the_data_is_told_of_if_its_losses_were_shown_them() -> None:
    """Its images lie on the way to training images: no copies, but too near. One that was shown
    pairs alone cannot know them, and is blurred."""
    subject = make("image", sigma=1.0)
    train = torch.from_numpy(np.array(subject.train_samples[:120])).float() / 127.5 - 1
    near = subject._replace(student=train + 0.2 * (subject.teacher - train))
    config = MemorisationConfig(ratio=0.01)
    assert not memorisation(near, config).warnings
    lines = memorisation(near._replace(shown_data=True), config).warnings
    assert len(lines) == 2 and "in pixels the student’s images are nearer" in lines[0]
    assert "held-out real images" in lines[0] and "teacher’s" in lines[0]
    assert not memorisation(subject._replace(shown_data=True), config).warnings


def test_as_many_are_compared_of_every_set() -> None:
    few = make("image")
    few = few._replace(held_out_samples=few.held_out_samples[:25])
    with pytest.warns(Adapted, match="there are 25 held-out images"):
        numbers = memorisation(few, MemorisationConfig()).numbers
    assert numbers["n"] == 25
    none = memorisation(few._replace(held_out_samples=few.held_out_samples[:0]),
                        MemorisationConfig(samples=30))
    assert none.numbers["n"] == 30 and "held_out_median_pixels" not in none.numbers
    assert "held-out" not in none.caption


@pytest.mark.parametrize("kind", ["image", "points"])
@pytest.mark.parametrize("classes", [True, False])
def test_of_two_noises_all_is_found_that_there_is(kind: str, classes: bool) -> None:
    subject = make(kind, n=2, classes=classes)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", Adapted)
        findings = list(run_studies(subject, StudiesConfig(), lambda text: None))
    said = {str(one.message).split(":")[0] for one in caught
            if issubclass(one.category, Adapted)}
    assert {"semantics", "interpolation.pairs", "vicinity.noises"} <= said
    assert any("semantics" in str(one.message) and "left out" in str(one.message)
               for one in caught)
    names = {one.name for one in findings}
    assert {"vicinity", "interpolation", "spectrum"} <= names and "semantics" not in names
    for finding in findings:
        json.dumps(finding.numbers, allow_nan=False)
        finding.figure.savefig(io.BytesIO(), format="png")


def test_one_training_image_has_no_neighbour() -> None:
    subject = make("image")
    with pytest.raises(Inapplicable, match="two training images"):
        memorisation(subject._replace(train_samples=subject.train_samples[:1]),
                     MemorisationConfig())


def test_rows_of_a_conditional_grid_are_classes() -> None:
    subject = make("image", classes=True)._replace(label_names=["a", "b", "c", "unseen"])
    rows, names = choose(subject, GridsConfig(rows=10, columns=4))
    assert names == ["a", "b", "c"]
    for label, row in enumerate(rows):
        assert row == torch.nonzero(subject.labels == label).flatten()[:4].tolist()
    assert choose(subject, GridsConfig(rows=2))[1] == ["a", "c"]
    numbers = grids(subject, GridsConfig()).numbers
    assert numbers["mse"] == pytest.approx(
        float((subject.teacher - subject.student).square().mean()), rel=1e-5)


def test_rows_of_an_unconditional_grid_are_the_first_samples() -> None:
    assert choose(make("image", n=7), GridsConfig(rows=4, columns=3)) == (
        [[0, 1, 2], [3, 4, 5], [6]], [])


def test_one_of_every_label_comes_first() -> None:
    labels = torch.tensor([2, 2, 0, 2, 1, 0])
    assert varied(labels, 4).tolist() == [0, 2, 4, 1]
    assert varied(labels, 9).tolist() == [0, 2, 4, 1, 3, 5]


def found(subject: Subject, config: StudiesConfig) -> list[Finding]:
    return list(run_studies(subject, config, lambda line: None))


@pytest.mark.parametrize(("kind", "expected"), [
    ("image", ["grids", "semantics", "vicinity", "interpolation", "spectrum", "memorisation"]),
    ("points", ["semantics", "vicinity", "interpolation", "outliers", "spectrum"])])
def test_studies_of_a_kind(kind: str, expected: list[str]) -> None:
    """Each has words, JSON and a picture that is not blank."""
    said: list[str] = []
    findings = list(run_studies(make(kind), StudiesConfig(), said.append))
    assert [finding.name for finding in findings] == expected
    assert said == [f"study: {name}" for name in expected]
    for finding in findings:
        assert min(map(len, (finding.title, finding.alt, finding.caption))) > 5
        assert json.loads(json.dumps(finding.numbers, allow_nan=False)) == finding.numbers
        buffer = io.BytesIO()
        finding.figure.savefig(buffer, format="png")
        assert np.ptp(np.asarray(Image.open(buffer).convert("L"))) > 100


def colours(finding: Finding) -> set[str]:
    """Of all that is drawn in a figure and can be asked for its colour."""
    drawn = [artist.get_color() for artist in finding.figure.findobj(
        lambda artist: hasattr(artist, "get_color"))]
    filled = [colour for artist in finding.figure.findobj(
        lambda artist: hasattr(artist, "get_facecolor"))
        for colour in np.atleast_2d(to_rgba_array(artist.get_facecolor()))]
    outlined = [colour for artist in finding.figure.findobj(Patch)
                for colour in to_rgba_array(artist.get_edgecolor())]
    return {to_hex(colour) for colour in [*drawn, *filled, *outlined]}


def test_a_student_has_the_colour_of_its_place_in_all_its_studies() -> None:
    config = StudiesConfig(semantics=None)  # which has colours of classes
    subject = make("image")
    for place in (1, len(STUDENTS) - 1):
        with drawn_in(place):
            for finding in found(subject, config):
                own = colours(finding) & set(STUDENTS)
                assert STUDENTS[place] in own, finding.name
                assert STUDENTS[(place + 1) % len(STUDENTS)] not in own - LIMIT, finding.name


def test_the_same_seed_finds_the_same() -> None:
    config = OFF.model_copy(update={"vicinity": VicinityConfig(),
                                    "memorisation": MemorisationConfig(samples=20)})
    subject = make("image")
    first, again = found(subject, config), found(subject, config)
    other = found(subject._replace(seed=4), config)
    assert [f.name for f in first] == ["vicinity", "memorisation"]
    for a, b, c in zip(first, again, other, strict=True):
        assert (a.numbers, a.caption) == (b.numbers, b.caption)
        assert a.numbers != c.numbers


def test_studies_refuse_samples_that_are_none() -> None:
    subject = make("image")
    config = OFF.model_copy(update={"vicinity": VicinityConfig()})
    broken = subject.student.clone()
    broken[3, 0, 2, 2] = torch.nan
    for part, error, message in (
        ({"student": broken}, DivergedError, "kdm-x: student: samples are not finite"),
        ({"student": subject.student[:5]}, DataError, r"student has shape \(5, 1, 6, 6\)"),
        ({"noise": subject.noise[:0]}, DataError, "noise has shape"),
        ({"sample_teacher": lambda x, y: x / 0}, DivergedError, "the teacher in a study"),
    ):
        with pytest.raises(error, match=message):
            found(subject._replace(**part), config)


def test_mosaic_is_exact_and_leaves_missing_places_empty() -> None:
    images = np.stack([np.full((1, 2, 3), value) for value in (-1.0, 0.0, 1.0)])
    picture = mosaic(images, 2, 1)
    assert picture.shape == (6, 8, 4)
    assert (picture[:2, :3] == (0, 0, 0, 255)).all()
    assert (picture[:2, 4:7] == (128, 128, 128, 255)).all()
    empty = (255, 255, 255, 0)
    assert (picture[2] == empty).all() and (picture[:, 3] == empty).all()
    assert (picture[3:, 4:] == empty).all()
    assert tiles(images).shape == (2 * 64 + 2, 2 * 96 + 2, 3)


def test_names_stand_beside_their_rows() -> None:
    from matplotlib.figure import Figure

    axis = Figure().add_subplot()
    rows = [Row("a", "#000000", np.zeros((4, 1, 8, 8))), Row("b", "#ff0000", np.ones((2, 1, 8, 8)))]
    draw_rows(axis, [rows, rows], ["1", "2", "3", "4"])
    assert [label.get_text() for label in axis.get_yticklabels()] == ["a", "b", "a", "b"]
    assert axis.get_yticks().tolist() == [3.5, 12.5, 23.5, 32.5]
    assert axis.get_xticks().tolist() == [4, 13, 22, 31]
