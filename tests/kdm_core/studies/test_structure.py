"""Studies of structure find what was planted, and nothing where nothing was."""

import io
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor

from kdm_core.datasets import on_board
from kdm_core.datasets.checkerboard import DARK, EDGES, sample_board
from kdm_core.errors import KDMError
from kdm_core.figures.scatter import DARK as COLOURS
from kdm_core.figures.scatter import cell_colours
from kdm_core.figures.spectrum import spectrum as spectrum_panels
from kdm_core.metrics.paired import coincidence
from kdm_core.samples import SampleSpec
from kdm_core.studies.base import Finding, Subject
from kdm_core.studies.outliers import (
    OutliersConfig,
    boundary_distance,
    find_outliers,
    outliers,
)
from kdm_core.studies.semantics import (
    SemanticsConfig,
    agreement,
    discriminants,
    nearest_cell,
    nearest_others,
    semantics,
)
from kdm_core.studies.spectrum import SpectrumConfig, spectrum

PLANE = SampleSpec(kind="points", shape=[2], sigma_data=2.3)
IMAGE = SampleSpec(kind="image", shape=[1, 4, 4])


def unused(noise: Tensor, labels: Tensor) -> Tensor:
    raise AssertionError("these studies look at samples that there are")


def subject(
    spec: SampleSpec, noise: Tensor, teacher: Tensor, student: Tensor | None = None,
    labels: Tensor | None = None, **others: Any,
) -> Subject:
    return Subject(
        spec=spec, label_names=spec.label_names, noise=noise,
        labels=torch.zeros(len(noise), dtype=torch.int64) if labels is None else labels,
        teacher=teacher, student=teacher if student is None else student,
        **{"train_samples": sample_board(len(noise), 9, 0),
           "held_out_samples": sample_board(len(noise), 9, 1), "sample_teacher": unused,
           "sample_student": unused, "features": None, "eigenvalues": np.ones(3, complex),
           "seed": 5, "name": "kdm", **others})


def draw_noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(finding: Finding) -> None:
    """A finding can be written, shown and read."""
    json.dumps(finding.numbers, allow_nan=False)
    assert isinstance(finding.figure, Figure)
    finding.figure.savefig(io.BytesIO(), format="png", dpi=30)
    assert finding.title and finding.alt and "{" not in finding.alt + finding.caption
    assert "nan" not in finding.caption


# ---- semantics

def by_angle(noise: Tensor, turn: float = 0.0) -> Tensor:
    """A smooth map of each eighth of the plane into a cell of the board."""
    angle = (torch.atan2(noise[:, 1], noise[:, 0]) + torch.pi + turn) % (2 * torch.pi)
    place = angle / (2 * torch.pi) * 8
    corner = torch.tensor(EDGES[DARK])[place.long().clamp(max=7)]
    radius = (-noise.square().sum(1) / 2).exp()
    return (corner + 2 * torch.stack([place % 1, radius], 1)).float()


def test_cells_are_those_of_the_board_and_the_nearest_outside_of_it() -> None:
    points = sample_board(500, 3, 0)
    assert on_board(points).all()
    inside = nearest_cell(points)
    assert np.array_equal(np.array(COLOURS)[inside], cell_colours(points))
    assert (EDGES[DARK][inside] <= points).all() and (points < EDGES[DARK][inside] + 2).all()
    # Beyond a corner, in a light cell beside each of its neighbours, far above the board.
    stray = np.array([[-9.0, -9.0], [-1.9, -3.0], [-1.0, -2.2], [3.0, 50.0]])
    corners = EDGES[DARK][nearest_cell(stray)]
    assert corners.tolist() == [[-4, -4], [-4, -4], [-2, -2], [2, 2]]


def test_agreement_and_coincidence_are_what_counting_gives() -> None:
    generator = np.random.default_rng(0)
    places, clusters = generator.normal(size=(40, 3)), generator.integers(4, size=40)
    distance = np.linalg.norm(places[:, None] - places, axis=2)
    np.fill_diagonal(distance, np.inf)
    nearest = distance.argsort(axis=1)[:, :5]
    wanted = np.mean([[clusters[j] == clusters[i] for j in nearest[i]] for i in range(40)])
    assert agreement(nearest_others(places, 5), clusters) == pytest.approx(wanted, abs=1e-12)
    other = generator.integers(6, size=40)
    assert coincidence(clusters, other) == pytest.approx(
        np.mean([[a == b for a in clusters] for b in other]), abs=1e-12)


def test_a_planted_map_of_the_plane_is_found_and_its_permutation_is_not() -> None:
    noise = draw_noise(1500, 2)
    finding = semantics(subject(PLANE, noise, by_angle(noise), by_angle(noise, 0.05)),
                        SemanticsConfig())
    check(finding)
    found = finding.numbers
    assert found["teacher"] > 0.85 and found["student"] > 0.85
    assert found["permuted"] == pytest.approx(found["chance"], abs=0.02)
    assert found["chance"] == pytest.approx(1 / 8, abs=0.01)
    # Turned by 0.05, so that 0.05 of each π/4 lies in the next cell.
    assert found["same_cluster"] == pytest.approx(1 - 0.05 / (np.pi / 4), abs=0.02)
    assert found["same_cluster_chance"] == pytest.approx(1 / 8, abs=0.01)
    assert f"{found['teacher']:.0%} with the teacher" in finding.caption
    # The map colours the noise by what becomes of it.
    colours = finding.figure.axes[0].collections[0].get_facecolors()
    assert len(np.unique(colours, axis=0)) == 8


def test_samples_that_ignore_their_noise_are_at_chance() -> None:
    points = torch.from_numpy(sample_board(1500, 4, 0))
    found = semantics(subject(PLANE, draw_noise(1500, 2), points), SemanticsConfig()).numbers
    assert found["teacher"] == pytest.approx(found["chance"], abs=0.02)
    assert found["same_cluster"] == 1


def planted_images(noise: Tensor, classes: Tensor | None = None) -> Tensor:
    """Images in which the signs of three pixels' noises are parts that are bright or dark."""
    flat = noise.flatten(1)
    parts = (flat[:, :3] > 0).float() * 0.8 - 0.4
    images = torch.zeros(len(noise), 16)
    images[:, :12] = parts.repeat_interleave(4, dim=1)
    if classes is not None:  # nothing that varies within classes is as large as what is between
        images[:, 12:] += 6 * classes[:, None]
    return images.reshape(noise.shape) + 0.01 * draw_noise(*noise.shape, seed=7)


def test_clusters_of_images_are_predicted_by_their_noise() -> None:
    noise = draw_noise(1600, 1, 4, 4)
    finding = semantics(subject(IMAGE, noise, planted_images(noise)), SemanticsConfig())
    check(finding)
    found = finding.numbers
    assert found["clusters"] == 8 and "pixels" in finding.caption
    assert found["chance"] == pytest.approx(1 / 8, abs=0.01)
    # In all 16 dimensions there is something to see, along the three that matter much more.
    assert found["teacher"] > 0.2
    assert found["teacher_discriminants"] > found["teacher"] + 0.1
    for key in ("permuted", "permuted_discriminants"):
        assert found[key] == pytest.approx(found["chance"], abs=0.03)
    assert found["student"] == found["teacher"] and found["same_cluster"] == 1
    assert found["student_discriminants"] == found["teacher_discriminants"]
    assert len(finding.figure.axes) == 3 + 8


def test_clusters_are_looked_for_within_classes() -> None:
    """Labels are drawn apart from the noise: clusters that are the classes show no structure."""
    noise, labels = draw_noise(1600, 1, 4, 4), torch.arange(1600) % 3
    images = planted_images(noise, labels)
    told = IMAGE.model_copy(update={"label_names": ["a", "b", "c"]})
    config = SemanticsConfig(clusters=3)
    ignoring = semantics(subject(IMAGE, noise, images, labels=labels), config).numbers
    assert ignoring["teacher_discriminants"] == pytest.approx(ignoring["chance"], abs=0.03)
    finding = semantics(subject(told, noise, images, labels=labels), config)
    assert finding.numbers["teacher_discriminants"] > finding.numbers["chance"] + 0.15
    assert "within the classes" in finding.caption


def test_features_are_used_where_there_are_any() -> None:
    noise = draw_noise(400, 1, 4, 4)
    images = draw_noise(400, 1, 4, 4, seed=1)  # noise tells nothing of the pixels
    known = {image.numpy().tobytes(): seen for image, seen in zip(images, noise, strict=True)}

    def features(samples: Tensor) -> Any:
        return np.stack([known[one.numpy().tobytes()].flatten()[:2].numpy() for one in samples])

    blind = semantics(subject(IMAGE, noise, images), SemanticsConfig()).numbers
    seeing = semantics(subject(IMAGE, noise, images, features=features), SemanticsConfig())
    assert seeing.numbers["teacher"] > blind["teacher"] + 0.05
    assert "features" in seeing.caption and "pixels" not in seeing.caption


def test_discriminants_are_the_axes_along_which_means_differ() -> None:
    generator = np.random.default_rng(2)
    clusters = generator.integers(3, size=6000)
    noise = generator.normal(size=(6000, 30))
    noise[:, 4] += 2.0 * (clusters - 1)
    noise[:, 9] += 0.8 * (clusters == 1)
    axes = discriminants(noise, clusters, 3)
    assert axes.shape == (30, 2)
    assert np.allclose(axes.T @ axes, np.eye(2), atol=1e-12)
    assert abs(axes[4, 0]) > 0.99 and abs(axes[9, 1]) > 0.95


def test_shuffled_clusters_are_not_found_by_fitting_them() -> None:
    """With as many dimensions as samples any clusters lie apart where directions are fitted."""
    noise = draw_noise(600, 1, 20, 20)
    spec = IMAGE.model_copy(update={"shape": [1, 20, 20]})
    found = semantics(subject(spec, noise, draw_noise(600, 1, 20, 20, seed=3)),
                      SemanticsConfig()).numbers
    assert found["permuted_discriminants"] == pytest.approx(found["chance"], abs=0.04)
    clusters = np.random.default_rng(0).integers(8, size=600)
    flat = noise.flatten(1).numpy()
    places = flat @ discriminants(flat, clusters, 8)
    assert agreement(nearest_others(places, 10), clusters) > 0.5


def test_only_the_first_samples_are_looked_at_and_too_few_are_refused() -> None:
    noise = draw_noise(300, 2)
    whole = subject(PLANE, noise, by_angle(noise))
    assert semantics(whole, SemanticsConfig(most=100)).numbers["n"] == 100
    few = subject(PLANE, noise[:30], by_angle(noise[:30]))
    with pytest.raises(KDMError, match="30 test pairs are too few"):
        semantics(few, SemanticsConfig())


# ---- outliers

def planted_outliers() -> tuple[Tensor, Tensor, Tensor]:
    """A map of the plane with strays: rows 0–2 of the tails, rows 3–5 of boundaries, teacher and
    student sharing rows 0 and 3."""
    noise = draw_noise(6000, 2)
    noise[:3] = torch.tensor([[5.0, 2.0], [-5.0, 2.0], [2.0, -5.0]])
    noise[3:6] = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-0.001, -1.0]])  # of angle k π/4
    # Cells by the angle; in each of them, the samples fill a lattice of 27 × 27 places.
    cells = nearest_cell(by_angle(noise).numpy())
    order = np.empty(6000, np.int64)
    for cell in range(8):
        order[cells == cell] = np.arange((cells == cell).sum()) % 27**2
    places = np.stack([order % 27, order // 27], axis=1) / 26 * 2
    teacher = torch.from_numpy((EDGES[DARK][cells] + places).astype(np.float32))
    student = teacher.clone()
    strays = torch.tensor([[8.0, 0.0], [-7.0, 1.0], [0.0, 9.0], [-1.0, -3.0], [1.0, -1.0],
                           [-3.0, -1.0]])
    teacher[[0, 1, 3, 4]] = strays[[0, 1, 3, 4]]
    student[[0, 2, 3, 5]] = strays[[0, 2, 3, 5]]
    return noise, teacher, student


def test_planted_outliers_are_found_and_traced_to_their_causes() -> None:
    noise, teacher, student = planted_outliers()
    finding = outliers(subject(PLANE, noise, teacher, student), OutliersConfig())
    check(finding)
    found = finding.numbers
    assert found["teacher_outliers"] == found["student_outliers"] == 4
    assert found["shared"] == 2
    assert found["shared_expected"] == pytest.approx(16 / 6000)
    assert found["teacher_share"] == pytest.approx(4 / 6000)
    assert found["real_n"] == 6000 and found["real_share"] < 0.001
    assert found["expected_within_eps"] == pytest.approx(6000 * np.pi * 0.15**2 / 32)
    # Of fewer real points more are outliers, for want of neighbours: they are no measure.
    given = subject(PLANE, noise, teacher, student)
    fewer = outliers(given._replace(train_samples=given.train_samples[:500]), OutliersConfig())
    assert "real_share" not in fewer.numbers and "fewer real points" in fewer.caption
    for who in ("teacher", "student"):
        assert found[f"{who}_outliers_tail"] == found[f"{who}_outliers_boundary"] == 0.5
        assert found[f"{who}_outliers_either"] == 1
        assert found[f"{who}_others_tail"] == pytest.approx(0.05, abs=0.001)
        assert found[f"{who}_others_boundary"] == pytest.approx(0.05, abs=0.001)
        assert found[f"{who}_outliers_radius"] > 3 > found[f"{who}_others_radius"]
    # The crosses are the strays, above in the samples and below in the noise.
    rows = [0, 1, 3, 4]
    for place, wanted in ((0, teacher[rows]), (2, noise[rows])):
        crosses = finding.figure.axes[place].collections[-1].get_offsets()
        assert np.allclose(np.asarray(crosses), wanted.numpy())
    assert "4 of 6,000 of the teacher (0.07%)" in finding.caption


def test_no_outliers_have_no_causes() -> None:
    noise = draw_noise(6000, 2)
    points = torch.from_numpy(sample_board(6000, 1, 0))
    finding = outliers(subject(PLANE, noise, points), OutliersConfig(eps=0.4))
    check(finding)
    assert finding.numbers["teacher_outliers"] == 0 and finding.numbers["shared"] == 0
    assert not [key for key in finding.numbers if key.endswith(("_tail", "_radius"))]
    assert "outliers 0%" not in finding.caption


def test_what_is_too_sparse_is_said_by_the_real_points() -> None:
    noise = draw_noise(60, 2)
    points = torch.from_numpy(sample_board(60, 1, 0))
    finding = outliers(subject(PLANE, noise, points), OutliersConfig(min_samples=10))
    check(finding)
    assert finding.numbers["teacher_outliers"] == 60 and finding.numbers["real_share"] == 1
    assert "it leaves out 100.00%" in finding.caption


def test_outliers_are_neither_core_points_nor_next_to_one() -> None:
    """DBSCAN by its definition."""
    points = sample_board(1500, 2, 0)
    near = np.linalg.norm(points[:, None] - points, axis=2) <= 0.15
    core = near.sum(axis=1) >= 5
    wanted = ~core & ~(near & core).any(axis=1)
    assert 0 < wanted.sum() < 1500
    assert np.array_equal(find_outliers(points, OutliersConfig()), wanted)


def test_the_distance_to_a_boundary_is_that_to_the_nearest_noise_of_another_cell() -> None:
    generator = np.random.default_rng(1)
    noise, cells = generator.normal(size=(80, 2)), generator.integers(3, size=80)
    known = generator.random(80) > 0.2
    distance = np.linalg.norm(noise[:, None] - noise, axis=2)
    distance[(cells[:, None] == cells) | ~known] = np.inf
    assert np.allclose(boundary_distance(noise, cells, known), distance.min(axis=1))


@pytest.mark.parametrize("spec", [IMAGE, PLANE.model_copy(update={"shape": [3]})])
def test_outliers_are_for_the_plane(spec: SampleSpec) -> None:
    noise = draw_noise(10, *spec.shape)
    with pytest.raises(KDMError, match="samples of shape"):
        outliers(subject(spec, noise, noise), OutliersConfig())


# ---- spectrum

def test_the_numbers_of_a_spectrum() -> None:
    values = np.array([0.5, -0.98, 1.02j, -1.02j, 0.3 + 0.4j, 0.3 - 0.4j, 0.0, 1.0])
    finding = spectrum(subject(PLANE, draw_noise(5, 2), draw_noise(5, 2), eigenvalues=values),
                       SpectrumConfig())
    check(finding)
    found = finding.numbers
    assert found["count"] == 8 and found["smallest"] == 0
    assert found["largest"] == pytest.approx(1.02)
    assert found["median"] == pytest.approx((0.5 + 0.98) / 2)
    assert found["near_circle"] == 4 / 8 and found["outside"] == 2 / 8
    assert found["complex"] == 4 / 8
    # The one of modulus 1 has no time scale; 1 / ln 2 is the median of the others' seven.
    assert found["time_scales"][1] == pytest.approx(1 / np.log(2))
    assert "0.05" in finding.caption and "1.020" in finding.caption


def test_a_spectrum_that_keeps_all_sizes() -> None:
    finding = spectrum(subject(PLANE, draw_noise(5, 2), draw_noise(5, 2)), SpectrumConfig())
    check(finding)
    assert finding.numbers["time_scales"] == [] and "none of them changes" in finding.caption


def test_the_histogram_holds_all_moduli_and_parts_them_at_one() -> None:
    generator = np.random.default_rng(0)
    values = generator.normal(size=300) + 1j * generator.normal(size=300)
    finding = spectrum(subject(PLANE, draw_noise(5, 2), draw_noise(5, 2), eigenvalues=values),
                       SpectrumConfig())
    bars = finding.figure.axes[1].patches
    heights = {round(bar.get_x(), 6): bar.get_height() for bar in bars}
    assert sum(heights.values()) == 300
    assert sum(h for x, h in heights.items() if x < 0.999) == (np.abs(values) < 1).sum()


def test_the_panels_of_several_students_are_on_one_scale() -> None:
    figure = spectrum_panels({"a": np.array([0.5 + 0j]), "b": np.array([2j])},
                             {"a": "#ff0000", "b": "#00ff00"})
    assert [axis.get_xlim() for axis in figure.axes] == [(-2.2, 2.2)] * 2
    assert [axis.get_title() for axis in figure.axes] == ["a: largest |λ| 0.500",
                                                          "b: largest |λ| 2.000"]


@pytest.mark.parametrize(("config", "wrong"), [
    (SemanticsConfig, {"clusters": 9}), (SemanticsConfig, {"clusters": 2}),
    (SemanticsConfig, {"neighbours": 0}), (OutliersConfig, {"eps": 0.0}),
    (OutliersConfig, {"min_samples": 1}), (SpectrumConfig, {"near": 0.0}),
])
def test_parameters_that_make_no_sense(config: Callable[..., Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(**wrong)
