"""The training images that are nearest to a model's images: is it a copyist?"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

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

LEVEL = 0.025
"""One-sided, of both tests."""
RESAMPLES = 1000


class MemorisationConfig(Config):
    """What counts as a near copy. All training images are held in memory, as float32.

    Attributes:
        samples: images of each model, held-out images and training images, whose nearest
            neighbour among all (other) training images is found; as many of each.
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
        raise Inapplicable("it takes two training images, and there is one", field="")
    train = as_float(subject.train_samples)
    n = equal_number(subject, config.samples)
    made = {"student": subject.student[:n], subject.source: subject.teacher[:n]}
    generator = np.random.default_rng(subject.seed)
    own = np.sort(generator.permutation(len(train))[:n])
    others = np.sort(generator.permutation(len(subject.held_out_samples))[:n])
    held_out = {"held_out": as_float(subject.held_out_samples[others])} if len(others) else {}
    pictures: list[Neighbours] = []
    found: dict[str, Distances] = {}
    for space, vectors in spaces(subject).items():
        bank = vectors(train)
        hits = {who: nearest(vectors(samples), bank)
                for who, samples in (made | held_out).items()}
        hits["train"] = nearest(bank[own], bank, itself=own)
        found[space] = Distances({who: hit.distance for who, hit in hits.items()}, config.ratio)
        pictures.append(Neighbours(space, {
            who: closest(samples, train, hits[who], config.pairs)
            for who, samples in made.items()}))
    sure = {space: certainty(distances, generator) for space, distances in found.items()}
    return Finding(
        name="memorisation", title="Nearest training images",
        figure=nearest_training_images(pictures, found, subject.name, subject.source),
        alt=f"Pairs of an image of {subject.name} or of {subject.beside} and the training image "
            f"nearest to it, the closest {min(config.pairs, n)} in {' and in '.join(found)}; "
            "below, how the distances to the nearest training image are distributed.",
        caption=_caption(subject, found, n, len(train)),
        numbers={"n": n, "train_n": len(train), "ratio": config.ratio,
                 **{f"{key}_{space}": value for space, distances in found.items()
                    for key, value in (distances.numbers() | sure[space].numbers()).items()}},
        warnings=[line for space, distances in found.items()
                  for line in warnings(subject, space, distances, sure[space])])


def equal_number(subject: Subject, asked: int) -> int:
    """As many of every set as are asked for, or as the smallest has; held-out data may be missing.
    """
    sets = {"test pairs": len(subject.student), "training images": len(subject.train_samples),
            "held-out images": len(subject.held_out_samples)}
    there, what = min((there, what) for what, there in sets.items() if there)
    return at_most("samples", asked, there, what)


class Certainty(NamedTuple):
    """How sure it is that the student's images lie nearer to training images than others do.

    Attributes:
        copies_p: of Fisher's exact test, one-sided, that it has a larger share of near copies than
            those of the others that have most.
        differences: 95 % bootstrap intervals of its median distance less that of each other set;
            samples of the same noise are drawn together.
    """

    copies_p: float
    differences: dict[str, tuple[float, float]]

    @property
    def copies(self) -> bool:
        return self.copies_p < LEVEL

    @property
    def nearer(self) -> bool:
        return all(high < 0 for _, high in self.differences.values())

    def numbers(self) -> dict[str, Any]:
        return {"copies_p": self.copies_p, **{f"median_beyond_{who}": list(bounds)
                                              for who, bounds in self.differences.items()}}


def certainty(distances: Distances, generator: np.random.Generator) -> Certainty:
    """Of the student beside all other sets but the training images themselves."""
    from scipy.stats import fisher_exact

    found = dict(distances.nearest)
    del found["train"]
    counts = {who: int((values < distances.threshold).sum()) for who, values in found.items()}
    own = found.pop("student")
    n, copies, most = len(own), counts.pop("student"), max(counts.values())
    p = fisher_exact([[copies, n - copies], [most, n - most]], "greater").pvalue
    moved: dict[str, list[float]] = {who: [] for who in found}
    for _ in range(RESAMPLES):
        paired, apart = generator.integers(n, size=(2, n))
        median = np.median(own[paired])
        for who, values in found.items():
            moved[who].append(median - np.median(values[apart if who == "held_out" else paired]))
    return Certainty(float(p), {who: interval(differences) for who, differences in moved.items()})


def interval(replicates: Sequence[float]) -> tuple[float, float]:
    low, high = np.quantile(replicates, [LEVEL, 1 - LEVEL])
    return float(low), float(high)


def warnings(
    subject: Subject, space: str, distances: Distances, sure: Certainty
) -> Iterator[str]:
    """What speaks for blurred images, or for copies.

    A student of pairs alone knows the training images through its teacher only; if its own are
    nearer to them in the median, they are blurred, and blurred images are near to everything.
    """
    names = {subject.source: subject.of_source, "held_out": "held-out real images"}
    others = [who for who in names if who in distances.nearest]
    if sure.copies:
        shares = ", ".join(f"{distances.copies(who):.1%} of {names[who]}" for who in others)
        yield (f"memorisation: in {space} {distances.copies('student'):.1%} of the student’s "
               f"images are near copies of training images, {shares} (p = {sure.copies_p:.2g})")
    if sure.nearer and subject.shown_data:
        medians = ", ".join(f"{distances.median(who):.3g} of {names[who]}" for who in others)
        yield (f"memorisation: in {space} the student’s images are nearer to training images than "
               f"others: their median distance is {distances.median('student'):.3g}, that "
               f"{medians}. It repeats what its losses were shown, or it blurs")


def closest(
    samples: Tensor, train: Tensor, hits: Nearest, pairs: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The samples (pairs, *shape) that are nearest to the data, and their neighbours."""
    order = torch.from_numpy(hits.distance.argsort(kind="stable")[:pairs])
    return samples[order].numpy(), train[torch.from_numpy(hits.place)[order]].numpy()


def _caption(subject: Subject, found: dict[str, Distances], n: int, train_n: int) -> str:
    ratio = next(iter(found.values())).ratio
    names = {"student": f"the images of {subject.name}", subject.source: subject.of_source,
             "held_out": "held-out real images", "train": "the training images"}
    said = "; ".join(
        f"in {space} " + ", ".join(f"{distances.copies(who):.1%} of {names[who]}"
                                   for who in distances.nearest) + ", with median distances of "
        + ", ".join(f"{distances.median(who):.3g}" for who in distances.nearest)
        for space, distances in found.items())
    return (f"The images nearest to any of the {train_n} training images, out of {n} of each "
            "set, each above its training image. Pairs that look the same are copies; pairs that "
            "only look alike are what a model that knows the data makes, too, and blurred images "
            "are near to everything. Near copies, closer to a training image than "
            f"{ratio:g} times the median distance of a training image to the nearest other one: "
            f"{said}.")
