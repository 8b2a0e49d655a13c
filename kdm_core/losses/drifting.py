"""Drifting: a loss on the distribution without a discriminator (arXiv:2602.04770).

A sample is drawn to real samples of its class and driven from the other made ones, both by weights
that fall with the distance. What is minimised is its distance from where that force would take it.
"""

from collections.abc import Sequence
from typing import Annotated, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from kdm_core.config import Config
from kdm_core.losses.features import (
    FeatureNetwork,
    FeaturesConfig,
    Frozen,
    TeacherFeatures,
    build_features,
)
from kdm_core.samples import SampleSpec

NEAREST = 1e-3
"""Mean distance that features are taken to have at least, as in the published code."""
TINY = 1e-12
PLACES = 4
"""Locations, and patches, of a feature map on which forces act in one step."""
FLAT = 1e-6
"""Added to variances, since a standard deviation of 0 has no gradient."""


class DriftingConfig(Config):
    """Attraction of predictions to real samples of their class, and repulsion from each other.

    Attributes:
        real: `pairs` (the teacher's samples) or `data` (the training samples, with the labels of
            the batch).
        features: frozen networks in whose activations forces act, besides the values themselves.
        temperatures: of the softmax over distances, in units of their mean.
    """

    real: Literal["pairs", "data"] = "pairs"
    features: list[FeaturesConfig] = [TeacherFeatures(kind="teacher")]
    temperatures: list[Annotated[float, Field(gt=0)]] = Field([0.02, 0.05, 0.2], min_length=1)


class Groups(NamedTuple):
    """Who acts on whom. Classes lie side by side, which spares the distances between them.

    Attributes:
        generated, real: (K, n) and (K, m) int64, rows of the samples of K classes; the shorter
            classes are filled up with rows that act on nothing.
        filled: (K, n) bool, which of `generated` are no such rows; every row is there once.
        acts: (K, n, n + m) bool, which of both act on each of the generated: all of its class
            without itself.
    """

    generated: Tensor
    real: Tensor
    filled: Tensor
    acts: Tensor


class Drift(NamedTuple):
    """What `drift` finds, as scalars.

    Attributes:
        loss: only its gradient tells something; its value is nearly the same in any state.
        force: root mean square of the forces before each is made to have 1, averaged over
            temperatures; what to watch. Two sets of one distribution do not quite reach 0.
    """

    loss: Tensor
    force: Tensor


def grouped(labels: Tensor, real_labels: Tensor) -> Groups:
    """The groups of generated and real samples with labels (B,) and (R,) int64."""
    classes = torch.unique(labels)
    generated, ours = members(labels, classes)
    real, theirs = members(real_labels, classes)
    acts = ours[:, :, None] & torch.cat([ours, theirs], dim=1)[:, None]
    acts[:, :, : ours.shape[1]].diagonal(dim1=1, dim2=2).fill_(False)
    return Groups(generated, real, ours, acts)


def members(labels: Tensor, classes: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (K, n) of the members of each class, which come first, and which are members."""
    found, rows = (labels == classes[:, None]).int().sort(dim=1, descending=True, stable=True)
    most = int(found.sum(dim=1).max())
    return rows[:, :most], found[:, :most].bool()


def drift(
    generated: Tensor, real: Tensor, groups: Groups, temperatures: Sequence[float]
) -> Drift:
    """The loss of one feature, or of several that share their normalisation (eqs. 18 to 26).

    No gradient flows into `real`. A sample that is the only one of its class in `generated`, or
    has none in `real`, feels no force: one half alone would make the class collapse or scatter.
    Computed in float32 (or float64, if given), whatever autocast says.

    Args:
        generated, real: (..., B, S) and (..., R, S), such as the vectors of several locations.
        groups: of the B and R samples.
        temperatures: in units of the mean distance; their normalised forces are added.
    """
    with torch.autocast(generated.device.type, enabled=False):
        generated = generated.to(torch.promote_types(generated.dtype, torch.float32))
        with torch.no_grad():
            ours = generated[..., groups.generated, :]
            targets = torch.cat([ours, real.to(ours.dtype)[..., groups.real, :]], dim=-2)
            targets -= targets.mean(dim=-2, keepdim=True)  # so that less is lost to rounding
            distances = torch.cdist(targets[..., : ours.shape[-2], :], targets)
            # The mean over pairs that act on each other, of all classes and features.
            pairs = groups.acts.expand_as(distances).sum().clamp(min=1)
            scale = (distances.mul(groups.acts).sum() / pairs).clamp(min=NEAREST)
            unit = scale / generated.shape[-1] ** 0.5
            forces = torch.stack([
                field(targets / unit, distances / scale, groups.acts, temperature)
                for temperature in temperatures])
            # What fills up a class feels none, and does not count.
            sizes = (forces.square().flatten(1).sum(dim=1) / generated.numel()).sqrt()
            forces = torch.einsum("t...,t->...", forces, sizes.clamp(min=TINY).reciprocal())
            moved = torch.empty_like(generated)
            moved[..., groups.generated[groups.filled], :] = forces[..., groups.filled, :]
        # MSE(x̄, sg(x̄ + V)), written so that x̄ does not swallow a small V.
        loss = ((generated - generated.detach()) / unit - moved).square().mean()
    return Drift(loss, sizes.mean())


def field(targets: Tensor, distances: Tensor, acts: Tensor, temperature: float) -> Tensor:
    """The drifting field V at the generated samples (algorithm 2), (..., K, n, S).

    Args:
        targets: (..., K, n + m, S), generated samples first.
        distances: (..., K, n, n + m), of mean 1.
        acts: (K, n, n + m) bool.
    """
    logits = (distances / -temperature).masked_fill_(~acts, -torch.inf)
    # √(softmax over targets × softmax over generated samples). The published code makes no weight
    # smaller than 0.001; far from the data, where all are, a generator then shrinks to one point.
    weights = logits.log_softmax(dim=-1).add_(logits.log_softmax(dim=-2)).div_(2).exp_()
    weights.masked_fill_(~acts, 0)  # of whom nothing acts on, they are not defined
    repelling, attracting = weights.tensor_split([acts.shape[-2]], dim=-1)
    drawn, driven = attracting.sum(dim=-1, keepdim=True), repelling.sum(dim=-1, keepdim=True)
    return torch.cat([-repelling * drawn, attracting * driven], dim=-1) @ targets


class Drifting(nn.Module):
    """The loss over the values themselves and over all that frozen networks make of them.

    Each layer (B, C, H, W) gives its vectors at single locations, its mean and deviation, and those
    of its patches of 2×2 (A.5); each layer (B, C) itself. Unlike in the paper at most PLACES
    locations and patches, drawn anew in every step, 2×2 patches alone, and the mean over all kinds
    of vectors instead of their sum, so that the weight of the loss does not depend on how many
    there are. Nor is there guidance, or a queue of real samples. Forces act between the samples of
    one call.
    """

    def __init__(self, config: DriftingConfig, networks: Sequence[FeatureNetwork]) -> None:
        super().__init__()
        self.config, self.networks = config, nn.ModuleList(networks)

    def forward(
        self, predicted: Tensor, real: Tensor, labels: Tensor | None, real_labels: Tensor | None
    ) -> dict[str, Tensor]:
        """Of samples (B, *shape) and (R, *shape): `drifting`, the loss, and `drift_force`.

        Locations and patches are drawn from torch's global generator.
        """
        groups = grouped(labels, real_labels) if labels is not None and real_labels is not None \
            else grouped(alike(predicted), alike(real))
        seen = [(predicted.flatten(1), real.flatten(1))]
        for network in self.networks:
            with torch.no_grad():
                theirs = network(real, real_labels)
            seen += zip(network(predicted, labels), theirs, strict=True)
        count, temperatures = len(predicted), self.config.temperatures
        drifts = [drift(vectors[:, :count], vectors[:, count:], groups, temperatures)
                  for layers in seen for vectors in described(torch.cat(layers))]
        losses, forces = zip(*drifts, strict=True)
        return {"drifting": torch.stack(losses).mean(), "drift_force": torch.stack(forces).mean()}


def alike(samples: Tensor) -> Tensor:
    """Labels (B,) of samples (B, …) of one class."""
    return torch.zeros(len(samples), dtype=torch.int64, device=samples.device)


def described(layer: Tensor) -> list[Tensor]:
    """The vectors, each kind as (places, B, C), of a layer (B, C) or (B, C, H, W)."""
    layer = layer.float()
    if layer[0].numel() == layer.shape[1]:
        return [layer.flatten(1)[None]]
    kinds = [*patches(layer, 1).unbind(dim=-1), *moments(layer.flatten(2)[None])]
    return kinds + moments(patches(layer, 2)) if min(layer.shape[2:]) > 2 else kinds


def patches(layer: Tensor, size: int) -> Tensor:
    """Some of the square patches of a layer (B, C, H, W), as (places, B, C, size²)."""
    every = layer.unfold(2, size, size).unfold(3, size, size).flatten(4).flatten(2, 3)
    places = torch.randperm(every.shape[2], device=layer.device)[:PLACES]
    return every.index_select(2, places).permute(2, 0, 1, 3)


def moments(values: Tensor) -> list[Tensor]:
    """Means and standard deviations (places, B, C) of values (places, B, C, n)."""
    return [values.mean(dim=-1), values.var(dim=-1, correction=0).add(FLAT).sqrt()]


def build_drifting(
    config: DriftingConfig, spec: SampleSpec, device: torch.device, frozen: Frozen
) -> Drifting:
    """The loss that a configuration describes, for samples of `spec`.

    Raises:
        KDMError, DataError: as `build_features`.
    """
    return Drifting(config, [build_features(each, spec, device, frozen)
                             for each in config.features])
