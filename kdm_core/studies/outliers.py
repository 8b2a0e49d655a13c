"""Outliers, traced back to the noise that they were made of (Figs. 5c and 13, appendix E.6)."""

from math import pi
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.figures.outliers import outlier_map
from kdm_core.samples import SOURCE_NAMES
from kdm_core.studies.base import Finding, Subject
from kdm_core.studies.semantics import nearest_cell

Points = NDArray[np.floating[Any]]
"""(n, 2)."""
Mask = NDArray[np.bool_]
"""(n,)."""
EXTREME = 0.05
"""The share of ordinary noises that counts as in the tail, or as near a boundary."""
AREA = 32.0
"""Of the dark cells."""


class OutliersConfig(Config):
    """DBSCAN (Ester et al. 1996) on the samples; what it calls noise are the outliers.

    Outliers are no core points (samples with at least `min_samples` samples, themselves
    included, within `eps`) and not within `eps` of one. This depends on the density: of n points
    on the board's dark cells, n π eps² / 32 are expected within eps, at 0.15 22 of 10,000 and 110
    of the paper's 50,000. With fewer than 5,000 real points are called outliers, too; the figures
    of as many real points are therefore given beside those of the models.

    Attributes:
        eps: radius, in the samples' unit; the paper's is 0.15.
        min_samples: the paper does not say; 5 is scikit-learn's default.
    """

    eps: float = Field(0.15, gt=0)
    min_samples: int = Field(5, ge=2)


class Causes(NamedTuple):
    """The noises of outliers beside the others'; `tail` and `boundary` as shares.

    Attributes:
        radius, distance: mean |noise|, and median distance to the nearest noise whose sample lies
            in another cell.
        tail: of noises with larger |noise| than all but 5 % of the others.
        boundary: of noises nearer to a boundary than all but 5 % of the others.
        either: of noises of which one or both is true.
    """

    radius: float
    distance: float
    tail: float
    boundary: float
    either: float


def outliers(subject: Subject, config: OutliersConfig) -> Finding:
    """Outliers of teacher and student, and whether they come from the tails or the boundaries.

    Raises:
        KDMError: the samples are no points of the plane.
    """
    if subject.spec.kind != "points" or subject.spec.shape != [2]:
        raise KDMError(f"samples of shape {subject.spec.shape} are no points of the plane; leave "
                       "this study out", field="")
    noise = subject.noise.numpy()
    samples = {subject.source: subject.teacher.numpy(), "student": subject.student.numpy()}
    real = np.asarray(subject.train_samples[: len(noise)])
    # Of fewer points more are outliers.
    as_many = len(real) == len(noise)
    found = {name: find_outliers(points, config) for name, points in samples.items()}
    numbers: dict[str, Any] = {
        "n": len(noise), "eps": config.eps, "min_samples": config.min_samples,
        "expected_within_eps": len(noise) * pi * config.eps**2 / AREA,
        **({"real_n": len(real), "real_share": float(find_outliers(real, config).mean())}
           if as_many else {}),
        "shared": int((found[subject.source] & found["student"]).sum()),
        "shared_expected": float(
            len(noise) * found[subject.source].mean() * found["student"].mean()),
    }
    for name, points in samples.items():
        mask = found[name]
        numbers |= {f"{name}_outliers": int(mask.sum()), f"{name}_share": float(mask.mean())}
        if mask.any() and not mask.all():
            for group, causes in zip(("outliers", "others"), trace(noise, points, mask),
                                     strict=True):
                numbers |= {f"{name}_{group}_{key}": value
                            for key, value in causes._asdict().items()}
    shown = {subject.source: SOURCE_NAMES[subject.source], "student": "student"}
    figure = outlier_map(noise, {shown[name]: (points, nearest_cell(points), found[name])
                                 for name, points in samples.items()})
    return Finding("outliers", "Outliers and where they come from",
                   f"The samples of {subject.beside} and the student, and below them the noise, "
                   "coloured by the cell that becomes of it; crosses mark outliers and the noise "
                   "they come from.",
                   caption(subject, numbers), figure, numbers)


def find_outliers(points: Points, config: OutliersConfig) -> Mask:
    """Which points (n, 2) belong to no cluster of DBSCAN, (n,)."""
    from sklearn.cluster import DBSCAN

    labels = DBSCAN(eps=config.eps, min_samples=config.min_samples).fit_predict(points)
    return np.asarray(labels == -1)


def trace(noise: Points, samples: Points, found: Mask) -> tuple[Causes, Causes]:
    """Where the noise of outliers lies, and where the others' does; both must occur."""
    radius = np.linalg.norm(noise, axis=1)
    distance = boundary_distance(noise, nearest_cell(samples), ~found)
    tail = radius > np.quantile(radius[~found], 1 - EXTREME)
    boundary = distance < np.quantile(distance[~found], EXTREME)
    outside, inside = (
        Causes(float(radius[rows].mean()), float(np.median(distance[rows])),
               float(tail[rows].mean()), float(boundary[rows].mean()),
               float((tail | boundary)[rows].mean()))
        for rows in (found, ~found))
    return outside, inside


def boundary_distance(
    noise: Points, cells: NDArray[np.int64], known: Mask
) -> NDArray[np.float64]:
    """Distance (n,) of each noise (n, 2) to the nearest known one whose sample is in another cell.

    Between noises that become different cells lies a decision boundary, so that this is at most
    the gap between noises more than the distance to it.

    Args:
        cells: (n,).
        known: (n,), the noises whose cell counts; that of an outlier would not.
    """
    from scipy.spatial import KDTree

    nearest = np.full(len(noise), np.linalg.norm(noise, axis=1).max())
    for cell in np.unique(cells):
        own, others = cells == cell, known & (cells != cell)
        if others.any():
            nearest[own] = KDTree(noise[others]).query(noise[own])[0]
    return nearest


def caption(subject: Subject, numbers: dict[str, Any]) -> str:
    """What to look at, and the numbers in words."""
    source = subject.source
    given = (f"Crosses are samples that DBSCAN (radius {numbers['eps']:g}, at least "
             f"{numbers['min_samples']} samples) leaves out of all clusters: "
             f"{numbers[f'{source}_outliers']} of {numbers['n']:,} of {subject.beside} "
             f"({numbers[f'{source}_share']:.2%}) and {numbers['student_outliers']} of the student "
             f"({numbers['student_share']:.2%}); {numbers['shared']} noises are outliers of both, "
             f"where {numbers['shared_expected']:.2g} would be by chance. {of_real(numbers)} "
             f"(about {numbers['expected_within_eps']:.0f} samples lie within the radius on the "
             "board). Below, the same crosses over the noise: in the tails of the Gaussian, "
             "or where two cells’ regions of noise meet?")
    whose = {source: subject.of_source, "student": "the student’s"}
    return " ".join([given, *(causes(numbers, name, of) for name, of in whose.items()
                              if f"{name}_outliers_tail" in numbers)])


def of_real(numbers: dict[str, Any]) -> str:
    """What the same rule says of as many real points, if there are as many."""
    if "real_n" not in numbers:
        return ("There are fewer real points, of which the rule would leave out more for that "
                "alone, so that they are no measure")
    return (f"Of {numbers['real_n']:,} real points it leaves out {numbers['real_share']:.2%}: what "
            "exceeds that is not due to the density alone")


def causes(numbers: dict[str, Any], name: str, whose: str) -> str:
    of = {key.removeprefix(f"{name}_outliers_"): value for key, value in numbers.items()
          if key.startswith(f"{name}_outliers_")}
    return (f"Of {whose} outliers {of['tail']:.0%} come from farther out than 95 % of the "
            f"other noises, {of['boundary']:.0%} from nearer to a boundary than 95 % of them, "
            f"{of['either']:.0%} from either (others: {numbers[f'{name}_others_either']:.0%}); "
            f"mean |noise| {of['radius']:.2f} against "
            f"{numbers[f'{name}_others_radius']:.2f}, median distance to a noise of another cell "
            f"{of['distance']:.3f} against {numbers[f'{name}_others_distance']:.3f}.")
