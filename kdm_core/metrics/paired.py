"""Figures over two sets that belong together pair by pair: same noise, teacher and student.

Each has a counterpart in which the pairs are permuted: what a student that ignored its noise
would get.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from kdm_core.losses.perceptual import LPIPS


class Paired(NamedTuple):
    """The mean over matching pairs, and over pairs moved on by one."""

    matched: float
    permuted: float


def paired_mse(teacher: Tensor, student: Tensor) -> Paired:
    """Mean squared error over all values of samples (n, *shape)."""
    return Paired(float((teacher - student).square().mean()),
                  float((teacher - student.roll(1, dims=0)).square().mean()))


@torch.inference_mode()
def paired_lpips(
    lpips: LPIPS, teacher: Tensor, student: Tensor, batch: int = 50,
    on_pairs: Callable[[int], None] = lambda pairs: None,
) -> Paired:
    """LPIPS of images (n, C, H, W) in [-1, 1]; features are computed once for both figures.

    The permutation stays within a batch, so that no features need to be kept.
    """
    matched = permuted = 0.0
    for start in range(0, len(teacher), batch):
        a = lpips.features(teacher[start : start + batch])
        b = lpips.features(student[start : start + batch])
        matched += float(lpips.compare(a, b).sum())
        permuted += float(lpips.compare(a, [f.roll(1, dims=0) for f in b]).sum())
        on_pairs(min(batch, len(teacher) - start))
    return Paired(matched / len(teacher), permuted / len(teacher))
