"""The best linear denoiser of a data set: Wiener's filter."""

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.values import as_float

ROWS = 20_000  # samples that the covariance is taken of
VALUES = 50_000_000  # of all of them together, for the memory
WIDEST = 3072  # values a sample (CIFAR-10's) up to which it is a matrix of that size,
FEW = 2048  # and samples that it is taken of beyond


class Wiener(NamedTuple):
    """The best linear denoiser of samples with this mean and covariance V diag(s) Vᵀ, flat.

    Attributes:
        mean: (D,).
        variances: s (K,), the others are taken as 0.
        axes: V (D, K).
        class_means: (classes, D); those of classes without samples are the mean.
    """

    mean: Tensor
    variances: Tensor
    axes: Tensor
    class_means: Tensor

    def denoise(self, x: Tensor, level: float, labels: Tensor | None = None) -> Tensor:
        """E of x₀ given x₀ + level ε (B, D); with labels (B,), about the means of their classes."""
        mean = self.mean if labels is None else self.class_means[labels]
        shrink = self.variances / (self.variances + level**2)
        return mean + (x - mean) @ self.axes * shrink @ self.axes.mT


def fit_wiener(samples: NDArray[np.generic], labels: NDArray[np.int64], classes: int) -> Wiener:
    """Mean and covariance of as many samples as take seconds, evenly taken.

    Args:
        samples: (n, *shape) as they are stored.
        labels: (n,), in [0, classes) unless `classes` is 0.
    """
    size = int(np.prod(samples.shape[1:]))
    most = min(ROWS, VALUES // size) if size <= WIDEST else min(FEW, VALUES // size)
    taken = even_rows(len(samples), max(most, 2))
    flat = as_float(samples[taken]).flatten(1).to(torch.float64)
    mean = flat.mean(0)
    centred = flat - mean
    if size <= len(flat):
        variances, axes = torch.linalg.eigh(centred.mT @ centred / len(flat))
    else:  # the same, by the smaller product
        squares, left = torch.linalg.eigh(centred @ centred.mT)
        kept = squares > squares[-1] * 1e-10
        variances = squares[kept] / len(flat)
        axes = centred.mT @ left[:, kept] / squares[kept].sqrt()
    own = labels[taken]
    means = mean.repeat(classes, 1)
    for label in np.unique(own) if classes else []:
        means[label] = flat[own == label].mean(0)
    return Wiener(mean, variances.clamp(min=0), axes, means)


def even_rows(count: int, most: int) -> NDArray[np.int64]:
    """At most so many rows, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).astype(np.int64)
