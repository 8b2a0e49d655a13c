"""What modes carry: bands of them are exchanged between two noises, and the change is measured.

The paper of hierarchical students (arXiv:2510.12220) contradicts itself on whether slow or fast
modes carry what is coarse. Here it is counted.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.nn.functional import avg_pool2d

from kdm_core.config import Config
from kdm_core.errors import at_most
from kdm_core.figures.modes import modes_of_images, modes_of_points
from kdm_core.students.hierarchical import Band
from kdm_core.studies.base import Finding, Inapplicable, Subject, mean_square

THIRDS = (0.0, 1 / 3, 2 / 3, 1.0)
ORDERS = {"decay": ("fast", "middle", "slow"), "rotation": ("slow", "middle", "fast")}
"""By what modes are ordered, and what its thirds are, from the first to the last."""
EVEN = 0.25
"""The share of low frequencies in a change that is equally strong at all of them."""
BACKGROUND = 4000  # real points behind the samples


class ModesConfig(Config):
    """How many noises have their modes exchanged.

    Attributes:
        pairs: of noises of one class.
        shown: of them in the figure.
    """

    pairs: int = Field(64, ge=1)
    shown: int = Field(8, ge=1)


class Exchange(NamedTuple):
    """What becomes of samples when modes are exchanged.

    Attributes:
        change: the mean squared change, as a share of that where all modes are exchanged.
        low: the share of the change's energy in means of 2×2 pixels; None where nothing changes,
            or there are no pixels.
        to_other: the mean squared difference to the samples of the other noises, as a share of
            that without any exchange.
    """

    change: float
    low: float | None
    to_other: float


def modes(subject: Subject, config: ModesConfig) -> Finding:
    """Samples whose fast, middle or slow modes, by decay and by rotation, are another noise's.

    Raises:
        Inapplicable: no two noises have one class, or it makes no difference whose modes they are.
    """
    own, other = pair_up(subject, config.pairs)
    made = {"own": subject.student[own], "other": subject.student[other],
            **exchange(subject, own, other)}
    found = measure(subject, made)
    shown = {key: samples[: config.shown].numpy() for key, samples in made.items()}
    if subject.spec.kind == "image":
        figure = modes_of_images(shown, {key: one._asdict() for key, one in found.items()})
    else:
        figure = modes_of_points(shown, {key: one._asdict() for key, one in found.items()},
                                 np.asarray(subject.train_samples[:BACKGROUND]))
    bands = [key for key in found if key != "all"]
    return Finding(
        name="modes", title="What the modes carry", figure=figure,
        alt=f"Samples of {subject.name} of {len(shown['own'])} noises, of another noise each, and "
            "those in which one third of the modes is the other noise’s: "
            f"{', '.join(bands)}, and all; below, bars of how much that changes.",
        caption=caption(subject, {key: found[key] for key in bands}, found["all"], len(own)),
        numbers={"pairs": len(own), **{
            f"{key.replace(' ', '_')}_{what}": value for key, one in found.items()
            for what, value in one._asdict().items() if value is not None}})


def pair_up(subject: Subject, pairs: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Places (n,) of noises and of others of the same class, one pair of every class first.

    Raises:
        Inapplicable: no two noises have one class, or the student's modes are all alike.
    """
    if subject.eigenvalues is not None and len(np.unique(subject.eigenvalues)) == 1:
        raise Inapplicable("all modes are alike, so that none are slow or fast", field="")
    labels = subject.labels.numpy()
    found = [(turn, *places) for label in np.unique(labels)
             for turn, places in enumerate(twos(np.flatnonzero(labels == label)))]
    if not found:
        raise Inapplicable("it takes two unseen noises of one class, and there are none", field="")
    n = at_most("pairs", pairs, len(found), "pairs of unseen noises of one class")
    _, own, other = np.array(sorted(found)[:n]).T
    return own, other


def twos(places: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Neighbours in twos; a last one that is alone is left out."""
    return list(zip(places[::2].tolist(), places[1::2].tolist(), strict=False))


def exchange(
    subject: Subject, own: NDArray[np.int64], other: NDArray[np.int64]
) -> dict[str, Tensor]:
    """Samples (n, *shape) by the band that is the other noise's: "slow decay", …, "all"."""
    edit = subject.edit
    assert edit is not None
    noise, labels, others = subject.noise[own], subject.labels[own], subject.noise[other]
    bands = {f"{third} {by}": Band(by, THIRDS[i], THIRDS[i + 1])
             for by in ("decay", "rotation") for i, third in enumerate(ORDERS[by])}
    return {key: edit(noise, labels, band, others)
            for key, band in (bands | {"all": Band("decay", 0.0, 1.0)}).items()}


def measure(subject: Subject, made: dict[str, Tensor]) -> dict[str, Exchange]:
    """By the band, from the samples of all of them.

    Raises:
        Inapplicable: it makes no difference whose modes they are, or even whose noise it is.
    """
    own, other = made["own"].numpy(), made["other"].numpy()
    whole, apart = mean_square(made["all"].numpy(), own), mean_square(other, own)
    if whole == 0 or apart == 0:
        raise Inapplicable("samples stay as they are if all modes are exchanged" if apart else
                           "samples of different noises are all alike", field="")
    return {key: Exchange(mean_square(samples.numpy(), own) / whole,
                          low_share(samples - made["own"]) if subject.spec.kind == "image" else
                          None, mean_square(samples.numpy(), other) / apart)
            for key, samples in made.items() if key not in ("own", "other")}


def low_share(change: Tensor) -> float | None:
    """The share of the energy of changes (n, C, H, W) that is in their means over 2×2 pixels.

    1 for changes of even areas, 1/4 for white noise. An odd last row or column is left out.
    """
    height, width = (size // 2 * 2 for size in change.shape[2:])
    even = change[..., :height, :width].double()
    total = float(even.square().sum())
    return float(4 * avg_pool2d(even, 2).square().sum()) / total if total else None


def caption(
    subject: Subject, bands: dict[str, Exchange], whole: Exchange, pairs: int
) -> str:
    """What to look at, and the numbers in words."""
    said = ", ".join(f"{key} {one.change:.1%}" for key, one in bands.items())
    most = max(bands, key=lambda key: bands[key].change)
    least = min(bands, key=lambda key: bands[key].change)
    nearest = min(bands, key=lambda key: bands[key].to_other)
    alike = " of one class" if subject.label_names else ""
    return (
        f"In {pairs} pairs of noises{alike}, a third of the modes of every level of "
        f"{subject.name} is taken from the other noise. The modes are ordered by their decay or by "
        "the angle by which they turn. How much the samples change, of what they change if all "
        f"modes are exchanged: {said}. Those of {most} change most, those of {least} least. "
        f"{frequencies(bands)}If all are exchanged, {whole.to_other:.1%} of the difference to the "
        f"other noise’s sample is left, of the single bands least with {nearest}, "
        f"{bands[nearest].to_other:.1%}.")


def frequencies(bands: dict[str, Exchange]) -> str:
    """Which bands are coarse and which are fine; nothing where there are no pixels."""
    low = {key: one.low for key, one in bands.items() if one.low is not None}
    if not low:
        return ""
    coarsest, finest = max(low, key=lambda key: low[key]), min(low, key=lambda key: low[key])
    most = max(low, key=lambda key: bands[key].change)
    word = "coarse" if low[most] > EVEN else "fine"
    return (f"Changes are coarse as far as they remain in means of 2×2 pixels: that is "
            f"{low[coarsest]:.0%} of the change by {coarsest}, the coarsest, {low[finest]:.0%} by "
            f"{finest}, the finest, and {low[most]:.0%} by {most}, which changes most and so is "
            f"mostly {word} (noise without any coarse structure has {EVEN:.0%}). ")
