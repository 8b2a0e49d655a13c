"""Differentiable augmentation of all that a discriminator sees (Zhao et al. 2020).

DiffAugment, arXiv:2006.10738: real and made images alike are changed at random, and gradients flow
through the change. So a discriminator cannot learn few real images by heart, and the student does
not learn the changes. Random numbers are from torch's global generator.
"""

from typing import Literal

import torch
from torch import Tensor

Augmentation = Literal["colour", "translation", "cutout"]

REACH = 1 / 8
"""Of a side: the furthest translation."""


def augment(images: Tensor, kinds: list[Augmentation]) -> Tensor:
    """Images (B, C, H, W) in [-1, 1], each changed in its own way; without kinds, as they are."""
    if not kinds:
        return images
    # Weights of 0 and 1 move pixels, which autocast would round.
    with torch.autocast(images.device.type, enabled=False):
        images = images.to(torch.promote_types(images.dtype, torch.float32))
        for kind in kinds:
            images = AUGMENTATIONS[kind](images)
    return images


def colour(images: Tensor) -> Tensor:
    """Brightness by ±0.5, then saturation by 0 to 2, then contrast by 0.5 to 1.5."""
    brightness, saturation, contrast = (uniform(images) for _ in range(3))
    images = images + brightness - 0.5
    grey = images.mean(dim=1, keepdim=True)
    images = grey + 2 * saturation * (images - grey)
    mean = images.mean(dim=(1, 2, 3), keepdim=True)
    return mean + (contrast + 0.5) * (images - mean)


def translation(images: Tensor) -> Tensor:
    """By up to an eighth of each side; what comes in is 0."""
    rows, columns = (shift(images, side) for side in images.shape[2:])
    return rows @ images @ columns.mT


def cutout(images: Tensor) -> Tensor:
    """A rectangle of half the height and width, with its middle anywhere in the image, is 0."""
    rows, columns = (inside(images, side) for side in images.shape[2:])
    return images * ~(rows[:, None, :, None] & columns[:, None, None, :])


AUGMENTATIONS = {"colour": colour, "translation": translation, "cutout": cutout}


def uniform(images: Tensor) -> Tensor:
    """A number in [0, 1) for each image, (B, 1, 1, 1)."""
    return torch.rand(len(images), 1, 1, 1, dtype=images.dtype, device=images.device)


def offset(images: Tensor, low: int, high: int) -> Tensor:
    """A whole number from `low` to `high`, both included, for each image, (B, 1)."""
    return torch.randint(low, high + 1, (len(images), 1), device=images.device)


def shift(images: Tensor, side: int) -> Tensor:
    """Matrices (B, 1, side, side) that move what they multiply, each by an offset of its own."""
    places, reach = torch.arange(side, device=images.device), round(side * REACH)
    moved = places + offset(images, -reach, reach)[:, :, None]
    return (places[:, None] == moved)[:, None].to(images.dtype)


def inside(images: Tensor, side: int) -> Tensor:
    """Which places (B, side) belong to half of a side, around a middle drawn for each image."""
    places, half = torch.arange(side, device=images.device), (side + 1) // 2
    first = offset(images, 0, side - 1) - half // 2
    return (places >= first) & (places < first + half)
