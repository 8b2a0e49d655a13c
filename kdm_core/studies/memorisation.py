"""The training images that are nearest to a model's images: is it a copyist?"""

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.errors import at_most
from kdm_core.figures.memorisation import Distances, Neighbours, nearest_training_images
from kdm_core.metrics.neighbours import Nearest, nearest
from kdm_core.studies.base import Finding, Inapplicable, Subject, spaces
from kdm_core.values import as_float


class MemorisationConfig(Config):
    """What counts as a near copy. All training images are held in memory, as float32.

    Attributes:
        samples: images of each model, and training images, whose nearest neighbour among all
            training images is found.
        ratio: near copies are closer to their training image than this times the median distance
            of a training image to the nearest other one.
        pairs: closest pairs in the figure, for each model and space.
    """

    samples: int = Field(500, ge=1)
    ratio: float = Field(0.5, gt=0)
    pairs: int = Field(8, ge=1)


def memorisation(subject: Subject, config: MemorisationConfig) -> Finding:
    """Nearest training images in pixels and features, beside what training images are to another.

    Raises:
        Inapplicable: there is one training image, which has no other.
    """
    if len(subject.train_samples) < 2:
        raise Inapplicable("studies.memorisation: it takes two training images, and there is one")
    train = as_float(subject.train_samples)
    n = at_most("studies.memorisation.samples", config.samples, len(subject.student), "test pairs")
    at_most("studies.memorisation.samples", config.samples, len(train), "training images")
    made = {"student": subject.student[:n], subject.source: subject.teacher[:n]}
    generator = np.random.default_rng(subject.seed)
    own = np.sort(generator.permutation(len(train))[: config.samples])
    pictures: list[Neighbours] = []
    found: dict[str, Distances] = {}
    for space, vectors in spaces(subject).items():
        bank = vectors(train)
        hits = {who: nearest(vectors(samples), bank) for who, samples in made.items()}
        hits["train"] = nearest(bank[own], bank, itself=own)
        found[space] = Distances({who: hit.distance for who, hit in hits.items()}, config.ratio)
        pictures.append(Neighbours(space, {
            who: closest(samples, train, hits[who], config.pairs)
            for who, samples in made.items()}))
    return Finding(
        name="memorisation", title="Nearest training images",
        figure=nearest_training_images(pictures, found, subject.name, subject.source),
        alt=f"Pairs of an image of {subject.name} or of {subject.beside} and the training image "
            f"nearest to it, the closest {min(config.pairs, n)} in {' and in '.join(found)}; "
            "below, how the distances to the nearest training image are distributed.",
        caption=_caption(subject, found, len(made["student"]), len(train)),
        numbers={"n": len(made["student"]), "train_n": len(train), "ratio": config.ratio,
                 **{f"{key}_{space}": value for space, distances in found.items()
                    for key, value in distances.numbers().items()}})


def closest(
    samples: Tensor, train: Tensor, hits: Nearest, pairs: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The samples (pairs, *shape) that are nearest to the data, and their neighbours."""
    order = torch.from_numpy(hits.distance.argsort(kind="stable")[:pairs])
    return samples[order].numpy(), train[torch.from_numpy(hits.place)[order]].numpy()


def _caption(subject: Subject, found: dict[str, Distances], n: int, train_n: int) -> str:
    ratio, source = next(iter(found.values())).ratio, subject.source
    said = "; ".join(
        f"in {space} {distances.copies('student'):.1%} of the images of {subject.name}, "
        f"{distances.copies(source):.1%} of {subject.of_source} and "
        f"{distances.copies('train'):.1%} of the training images, with median distances of "
        f"{distances.median('student'):.3g}, {distances.median(source):.3g} and "
        f"{distances.median('train'):.3g}"
        for space, distances in found.items())
    return (f"The images nearest to any of the {train_n} training images, out of {n} of each "
            "set, each above its training image. Pairs that look the same are copies; pairs that "
            "only look alike are what a model that knows the data makes, too, and blurred images "
            "are near to everything. Near copies, closer to a training image than "
            f"{ratio:g} times the median distance of a training image to the nearest other one: "
            f"{said}.")
