"""Semantic clusters in noise space: does near noise become like samples? (Fig. 2)"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.datasets.checkerboard import DARK, EDGES
from kdm_core.figures.semantics import image_clusters, point_clusters
from kdm_core.metrics.paired import coincidence
from kdm_core.studies.base import Finding, Inapplicable, Subject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Vectors = NDArray[np.floating[Any]]
"""(n, d)."""
Clusters = NDArray[np.int64]
"""(n,): the cluster of each sample, and so of the noise that it was made of."""


class SemanticsConfig(Config):
    """Clusters of samples, looked for in the noise.

    Points belong to the cell of the checkerboard that is nearest to them. Images are clustered by
    k-means of the teacher's features (of its pixels, where no features are at hand), and the
    student's go to the nearest of the same centres.

    Attributes:
        clusters: of images; a picture has no more colours that can be told apart.
        neighbours: near noises that are compared with each.
        most: noises that are looked at, the first ones. The work grows with their square; but of
            images with many more values than noises a cluster, fewer noises give poor directions,
            and what is found along them is less than what is there.
    """

    clusters: int = Field(8, ge=3, le=8)
    neighbours: int = Field(10, ge=1)
    most: int = Field(5000, ge=100)

    @property
    def least(self) -> int:
        """Noises below which nothing can be said."""
        return 2 * (self.neighbours + self.clusters)


def semantics(subject: Subject, config: SemanticsConfig) -> Finding:
    """How much of a sample's cluster its noise tells, for teacher, student and shuffled pairs.

    The label of a class-conditional model is an input that is drawn apart from the noise, so
    clusters that are the classes would say nothing of it. There the mean features of each class
    are subtracted before: what is clustered is what varies within the classes.

    Raises:
        Inapplicable: there are fewer samples than `config.least`.
    """
    n = min(config.most, len(subject.noise))
    if n < config.least:
        raise Inapplicable(f"{n} test pairs are too few for {config.clusters} clusters and "
                           f"{config.neighbours} neighbours; {config.least} would do", field="")
    subject = subject._replace(noise=subject.noise[:n], labels=subject.labels[:n],
                               teacher=subject.teacher[:n], student=subject.student[:n])
    teacher, student = find_clusters(subject, config)
    order = np.random.default_rng(subject.seed).permutation(n)
    shuffled = teacher[order]
    noise = subject.noise.flatten(1).numpy()
    near = nearest_others(noise, config.neighbours)
    numbers: dict[str, Any] = {
        "n": n, "neighbours": config.neighbours, "clusters": len(np.unique(teacher)),
        "same_cluster": float((teacher == student).mean()),
        "same_cluster_chance": coincidence(teacher, student),
        "chance": coincidence(teacher, teacher),
        subject.source: agreement(near, teacher), "student": agreement(near, student),
        "permuted": agreement(near, shuffled),
    }
    if subject.spec.kind == "points":
        figure = point_clusters(noise, [
            (subject.teacher.numpy(), teacher), (subject.student.numpy(), student),
            (subject.teacher[order].numpy(), shuffled)], subject.source)
    else:
        figure = draw_images(subject, config, teacher, student, shuffled, numbers)
    return Finding("semantics", "Clusters in noise space", alt(subject, numbers),
                   caption(subject, numbers), figure, numbers)


def draw_images(
    subject: Subject, config: SemanticsConfig, teacher: Clusters, student: Clusters,
    shuffled: Clusters, numbers: dict[str, Any],
) -> "Figure":
    """Noises along the teacher's discriminants; adds to the numbers what these tell.

    The discriminants come from the first half of the noises, all that is drawn and counted is of
    the second: in so many dimensions any clusters, shuffled ones too, look apart where they were
    fitted.
    """
    noise, half = subject.noise.flatten(1).numpy(), len(subject.noise) // 2
    axes = {key: discriminants(noise[:half], clusters[:half], config.clusters)
            for key, clusters in (("teacher", teacher), ("permuted", shuffled))}
    views = []
    for key, along, clusters in (
        (subject.source, "teacher", teacher), ("student", "teacher", student),
        ("permuted", "permuted", shuffled),
    ):
        places, of = noise[half:] @ axes[along], clusters[half:]
        near = nearest_others(places, config.neighbours)
        numbers[f"{key}_discriminants"] = agreement(near, of)
        views.append((places[:, :2], of))
    examples = [subject.teacher[teacher == c][:4].numpy() for c in range(config.clusters)]
    return image_clusters(views, examples, subject.source)


def find_clusters(subject: Subject, config: SemanticsConfig) -> tuple[Clusters, Clusters]:
    """The clusters of the teacher's and the student's samples, (n,) each."""
    if subject.spec.kind == "points":
        return nearest_cell(subject.teacher.numpy()), nearest_cell(subject.student.numpy())
    from sklearn.cluster import KMeans

    teacher, student = (features(subject, samples)
                        for samples in (subject.teacher, subject.student))
    if subject.label_names:
        labels = subject.labels.numpy()
        for label in np.unique(labels):
            rows = labels == label
            mean = teacher[rows].mean(axis=0)
            teacher[rows] -= mean
            student[rows] -= mean
    model = KMeans(config.clusters, n_init=4, random_state=subject.seed).fit(teacher)
    return model.labels_.astype(np.int64), model.predict(student).astype(np.int64)


def features(subject: Subject, samples: Tensor) -> NDArray[np.float32]:
    """A copy of the features (n, d) of samples (n, *shape), or the pixels' values."""
    found = samples.flatten(1).numpy() if subject.features is None else subject.features(samples)
    return np.array(found, dtype=np.float32)


def nearest_cell(points: Vectors) -> Clusters:
    """The dark cell, 0 … 7, that each point (n, 2) lies in or nearest to."""
    lower = EDGES[DARK]
    outside = np.maximum(lower - points[:, None], points[:, None] - (lower + 2)).clip(min=0)
    return np.asarray((outside**2).sum(axis=2).argmin(axis=1))


def discriminants(noise: Vectors, clusters: Clusters, count: int) -> Vectors:
    """Directions (d, count − 1) in which clusters of noises (n, d) differ, most telling first.

    Fisher's linear discriminants: the ratio of the variance between clusters to all variance is
    largest along them. All noise together has the covariance I by construction, so that they are
    the principal axes of the clusters' means, and no covariance needs to be estimated.
    """
    shares = np.bincount(clusters, minlength=count) / len(clusters)
    means = np.stack([noise[clusters == c].mean(axis=0) if shares[c] else np.zeros(noise.shape[1])
                      for c in range(count)])
    weighted = np.sqrt(shares)[:, None] * (means - shares @ means)
    return np.asarray(np.linalg.svd(weighted, full_matrices=False)[2][: count - 1].T)


def nearest_others(places: Vectors, neighbours: int) -> NDArray[np.int64]:
    """The rows (n, neighbours) of the places (n, d) nearest to each, without itself."""
    from sklearn.neighbors import NearestNeighbors

    finder = NearestNeighbors(n_neighbors=neighbours).fit(places)
    return np.asarray(finder.kneighbors(return_distance=False))


def agreement(near: NDArray[np.int64], clusters: Clusters) -> float:
    """Mean share of the rows `near` to each one (n, neighbours) that are of its cluster."""
    return float((clusters[near] == clusters[:, None]).mean())


def alt(subject: Subject, numbers: dict[str, Any]) -> str:
    if subject.spec.kind == "points":
        return (f"The noise plane, coloured by the cell of the samples of {subject.beside} and of "
                "the student, and by cells that were permuted; below, the samples in these "
                "colours.")
    return (f"Noises along two directions, coloured by which of {numbers['clusters']} clusters of "
            f"images they become with {subject.beside}, with the student, and permuted; below, "
            "images of each cluster.")


def caption(subject: Subject, numbers: dict[str, Any]) -> str:
    """What to look at, and the numbers in words."""
    points = subject.spec.kind == "points"
    looks = look_at_points(subject) if points else look_at_images(subject, numbers)
    text = ("{looks} Of the {neighbours} noises nearest to a noise, this share becomes a sample of "
            "the same {unit}: {given:.0%} with {beside}, {student:.0%} with the student, "
            "{permuted:.0%} permuted, {chance:.0%} by chance.")
    if not points:
        text += (" Of those nearest along the most telling directions alone: "
                 "{given_discriminants:.0%}, {student_discriminants:.0%} and "
                 "{permuted_discriminants:.0%} permuted.")
    text += (" Both put {same_cluster:.0%} of the noises into the same {unit} "
             "({same_cluster_chance:.0%} by chance).")
    given = {key.replace(subject.source, "given"): value for key, value in numbers.items()
             if key.startswith(subject.source)}
    return text.format(looks=looks, unit="cell" if points else "cluster", beside=subject.beside,
                       **given, **numbers)


def look_at_points(subject: Subject) -> str:
    return ("A noise has the colour of the cell that its sample lies in or nearest to. Where there "
            "is structure, a cell comes from one region of noise; at the right, "
            f"{subject.of_source} samples were permuted: there is none.")


def look_at_images(subject: Subject, numbers: dict[str, Any]) -> str:
    basis = "features" if subject.features is not None else "pixels, for lack of features,"
    classes = (" A class is an input and tells nothing of the noise, so the mean of each was "
               "subtracted first: clusters are of what varies within the classes."
               if subject.label_names else "")
    return (f"{subject.of_source.capitalize()} images were divided by their {basis} into "
            f"{numbers['clusters']} clusters (k-means), of which the first images are "
            f"shown.{classes} Above are the noises along the two directions that tell the clusters "
            "apart best, and each cluster’s mean as a large dot; directions were found in one half "
            "of the noises and the other is shown. Where dots lie apart, the noise has a say in "
            "the cluster; at the right, clusters were permuted: it has none.")
