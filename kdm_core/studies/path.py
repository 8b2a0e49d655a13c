"""What a student decodes on the way from noise to sample, beside the states of the pairs."""

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from kdm_core.config import Config
from kdm_core.figures.path import path_of_images, path_of_points
from kdm_core.samples import SOURCE_NAMES
from kdm_core.studies.base import Finding, Inapplicable, Subject, mean_square, varied

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = {"image": 8, "points": 4}
"""Positions in the figure."""


class PathConfig(Config):
    """How many noises are followed.

    Attributes:
        most: noises that are measured.
        shown: of them in the figure; of points, all that are measured are shown.
    """

    most: int = Field(500, ge=2)
    shown: int = Field(3, ge=1)


class States(NamedTuple):
    """States of unit variance (n, k, *shape) of the same noise at k positions, noisiest first.

    Attributes:
        samples: (n, *shape), the stored ones, in their own range.
    """

    stored: Tensor
    student: Tensor
    positions: list[float]
    samples: Tensor

    def errors(self) -> dict[str, list[float]]:
        """At every position the error, that with other noises, and its share of that."""
        made = self.student.numpy()
        kept, other = self.stored.numpy(), self.stored.roll(1, 0).numpy()
        places = range(len(self.positions))
        matched = [mean_square(made[:, i], kept[:, i]) for i in places]
        permuted = [mean_square(made[:, i], other[:, i]) for i in places]
        if min(permuted) == 0:
            raise Inapplicable("the states of different noises are all alike", field="")
        return {"mse": matched, "mse_permuted": permuted,
                "share": [a / b for a, b in zip(matched, permuted, strict=True)]}


def path(subject: Subject, config: PathConfig) -> Finding:
    """Decoded latents at the positions of the stored states, and how far they are from these.

    Raises:
        Inapplicable: the pairs have no states, or there are not two noises.
    """
    states = follow(subject, varied(subject.labels, config.most))
    errors = states.errors()
    trained = subject.states_trained
    return Finding(
        name="path",
        title="On the way from noise to sample" if trained else "Decodings that nothing has "
              "trained",
        figure=draw(subject, states, errors["share"], config.shown),
        alt=f"{'Images' if subject.spec.kind == 'image' else 'Points'} at {len(states.positions)} "
            f"positions between noise and sample: above, the states of {subject.beside}; below, "
            + (f"those of {subject.name} for the same noise" if trained else
               f"what {subject.name} decodes of its latents on the way, which no loss has trained")
            + "; then a curve of the error at every position.",
        caption=caption(subject, states.positions, errors["share"], len(states.stored)),
        numbers={"n": len(states.stored), "positions": states.positions, **errors,
                 "trained": int(trained)})


def follow(subject: Subject, chosen: NDArray[np.int64]) -> States:
    """States of noises at `chosen` (n,): at positions 1 and 0 noise and sample themselves.

    Raises:
        Inapplicable: the pairs have no states, or there are not two noises.
    """
    inner, sample = subject.stored_states, subject.sample_states
    assert sample is not None
    if inner is None:
        raise Inapplicable("the pairs hold no states between noise and sample to set beside it; "
                           "sample them with some", field="")
    if len(chosen) < 2:
        raise Inapplicable("it takes two unseen noises, and there is one", field="")
    noise, samples = subject.noise[chosen], subject.teacher[chosen]
    positions = [1.0, *subject.positions, 0.0]
    stored = torch.cat([noise[:, None], inner[chosen].to(torch.float32),
                        samples[:, None] / subject.spec.sigma_data], dim=1)
    return States(stored, sample(noise, subject.labels[chosen], positions), positions, samples)


def draw(subject: Subject, states: States, share: list[float], shown: int) -> "Figure":
    """As many positions as there is room for, both ends among them."""
    count = min(COLUMNS[subject.spec.kind], len(states.positions))
    columns = np.linspace(0, len(states.positions) - 1, count).round().astype(int)
    names = (SOURCE_NAMES[subject.source], subject.name)
    at = [states.positions[i] for i in columns]
    stored, made = (found[:, columns].numpy() for found in (states.stored, states.student))
    if subject.spec.kind == "points":
        return path_of_points(stored, made, at, states.positions, share, names,
                              states.samples.numpy())
    scale = np.float32(subject.spec.sigma_data)
    return path_of_images(scale * stored[:shown], scale * made[:shown], at, states.positions,
                          share, names)


def caption(subject: Subject, positions: list[float], share: list[float], n: int) -> str:
    """What to look at, and the numbers in words."""
    name = subject.name
    told = ("A loss has trained those on the way." if subject.states_trained else
            f"No loss has trained those on the way: they are decodings of {name}’s latents there, "
            "and nothing has made them states of an ODE.")
    inner = range(1, len(positions) - 1)
    worst = max(inner, key=lambda i: share[i])
    least = min(inner, key=lambda i: share[i])
    between = (f"{share[worst]:.1%} at {positions[worst]:.2f}" if worst == least else
               f"between {share[least]:.1%} (at {positions[least]:.2f}) and {share[worst]:.1%} "
               f"(at {positions[worst]:.2f})")
    return (
        f"Above, the states that are kept with the pairs; below, what {name} decodes when its "
        "latents of the same noise have evolved as far. "
        f"{told} Position 1 is the noise, which no student is asked to decode, and 0 the sample. "
        f"The curve is the mean squared error over {n:,} noises, as a share of that to the states "
        "of other noises: 0 % is the same state, 100 % one that has nothing to do with it. It is "
        f"{share[-1]:.1%} at the sample, {between} on the way, and {share[0]:.1%} at the noise.")
