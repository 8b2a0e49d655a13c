"""Figures over two sets that belong together sample by sample: teacher and student, same noise.

Distances have a counterpart in which the pairs are permuted: what a student that ignored its noise
would get.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.errors import DataError, MismatchError
from kdm_core.losses.perceptual import LPIPS
from kdm_core.metrics.estimate import Array, Counts, Estimate, linear_estimate, mean_estimate


class Paired(NamedTuple):
    """The mean over matching pairs, and over pairs in which the student's sample is another."""

    matched: Estimate
    permuted: Estimate


def paired_mse(teacher: Tensor, student: Tensor, counts: Counts) -> Paired:
    """Mean squared error over all values of samples (n, *shape), in their own unit squared.

    Raises:
        DataError: fewer than two pairs.
        MismatchError: the samples differ in shape.
    """
    check_pairs(teacher, student)

    def per_pair(a: Tensor, b: Tensor) -> Array:
        return as_numbers((a - b).square().flatten(1).mean(dim=1))

    return Paired(mean_estimate(per_pair(teacher, student), counts),
                  permuted_estimate(per_pair(teacher, student.roll(1, dims=0)), counts))


@torch.inference_mode()
def paired_lpips(
    lpips: LPIPS, teacher: Tensor, student: Tensor, counts: Counts, batch: int = 50,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> Paired:
    """LPIPS of images (n, C, H, W) in [-1, 1]; features are computed once for both figures.

    The permutation stays within a batch, so that no features need to be kept; batches are of
    nearly equal size, so that none has a single pair, which could not be permuted.

    Raises:
        DataError: fewer than two pairs.
        MismatchError: the images differ in shape.
    """
    check_pairs(teacher, student)
    parts = min(-(-len(teacher) // batch), len(teacher) // 2)
    matched, permuted = [], []
    for ours, theirs in zip(teacher.tensor_split(parts), student.tensor_split(parts), strict=True):
        a, b = lpips.features(ours), lpips.features(theirs)
        matched.append(as_numbers(lpips.compare(a, b)))
        permuted.append(as_numbers(lpips.compare(a, [f.roll(1, dims=0) for f in b])))
        on_pairs(len(ours))
    # Across the seams of batches each pair's neighbour is another one, which changes nothing.
    return Paired(mean_estimate(np.concatenate(matched), counts),
                  permuted_estimate(np.concatenate(permuted), counts))


def permuted_estimate(values: Array, counts: Counts) -> Estimate:
    """The mean of values (n,), of which number i comes from the samples i and i − 1.

    A sample's influence is therefore on two values. Their noise is then counted twice: the
    interval is up to √2 times too wide, never too narrow.
    """
    return linear_estimate(float(values.mean()), values + np.roll(values, -1), counts)


def label_accuracy(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], counts: Counts
) -> Estimate:
    """Share of samples whose most probable class is the wanted one: (n, classes) and (n,).

    Raises:
        DataError, MismatchError: there are no samples, or not as many labels.
    """
    if len(probabilities) != len(labels):
        raise MismatchError(f"{len(probabilities)} samples have {len(labels)} labels: give each "
                            "sample the label that it was made for")
    return mean_estimate(probabilities.argmax(axis=1) == labels, counts)


def coincidence(a: NDArray[np.integer], b: NDArray[np.integer]) -> float:
    """How often classes (n,) and (m,), not negative, that are drawn at random from each agree."""
    count = int(max(a.max(), b.max())) + 1
    shares = [np.bincount(found, minlength=count) / len(found) for found in (a, b)]
    return float(shares[0] @ shares[1])


def label_agreement(
    a: NDArray[np.floating], b: NDArray[np.floating], counts: Counts
) -> Estimate:
    """Share of pairs with the same most probable class, from probabilities (n, classes) of each.

    Raises:
        DataError, MismatchError: as `label_accuracy`.
    """
    return label_accuracy(a, b.argmax(axis=1), counts)


def check_pairs(teacher: Tensor, student: Tensor) -> None:
    """Make sure that there are pairs, and others to permute them with."""
    if teacher.shape != student.shape:
        raise MismatchError(f"samples of shapes {tuple(teacher.shape)} and {tuple(student.shape)} "
                            "are no pairs: sample teacher and student from the same noise")
    if len(teacher) < 2:
        raise DataError(f"{len(teacher)} pairs cannot be compared with permuted ones: supply at "
                        "least two")


def as_numbers(values: Tensor) -> Array:
    return values.cpu().numpy().astype(np.float64)
