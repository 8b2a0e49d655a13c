"""Augmentation of training images that does not show in what is generated.

The geometric pipeline of EDM (Karras et al. 2022, arXiv:2206.00364, appendix F.2, table 6) in full:
flips, scaling, rotation, anisotropic scaling, translation. The network is told what was done to an
image, so that where it is told of nothing, as in sampling, it makes images like the data. Images
are resampled bilinearly and reflected at their edges.
"""

from math import pi
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from kdm_core.config import Config
from kdm_core.errors import KDMError
from kdm_core.samples import SampleSpec

PARAMETERS = 8
LABELS = 9
SCALE, SQUEEZE, SHIFT = 2**0.2, 2**0.2, 1 / 8  # the table's A_scale, A_aniso, A_trans


class AugmentationConfig(Config):
    """How training images are changed.

    A network learns to heed what it is told only in the course of its training: where that is
    short, changed images are generated too.

    Attributes:
        flip: whether half the images are flipped left to right: `none`; `mirror`, as more data,
            so that mirror images are generated too; `augment`, and the network is told.
        probability: of each other change, of which the network is told (EDM: 0.12 for CIFAR-10).
    """

    flip: Literal["none", "mirror", "augment"] = "none"
    probability: float = Field(0.0, ge=0, le=1)

    @property
    def labelled(self) -> bool:
        """Whether the network has to be told."""
        return self.flip == "augment" or self.probability > 0


def check_augmentation(config: AugmentationConfig, spec: SampleSpec, network: Config) -> None:
    """Make sure that these samples can be augmented, and that the network can be told.

    Args:
        config: how to augment.
        spec: what the samples are.
        network: the configuration of the teacher's network, of any kind.

    Raises:
        KDMError: they cannot, or it cannot.
    """
    if spec.kind != "image":
        raise KDMError("is for images, and the samples are no images; leave it out",
                       field="augmentation")
    found = getattr(network, "augment_dim", 0)
    if config.labelled and found != LABELS:
        raise KDMError(
            "the network has to be told how images were changed, which takes a song_unet or "
            f"dhariwal_unet with network.augment_dim: {LABELS} (found: {found}); use such a one, "
            "or flip: mirror with probability: 0", field="augmentation")


def augment(
    images: Tensor, config: AugmentationConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Change a batch at random.

    Args:
        images: (B, C, H, W) float32.
        config: what to change.
        generator: where all randomness comes from, on the images' device.

    Returns:
        The images, and augmentation labels (B, 9) that are zero for an image that was not changed;
        None where the network is not to be told.
    """
    parameters = draw(config, len(images), generator)
    changed = transform(images, parameters)
    if not config.labelled:
        return changed, None
    labels = labels_of(parameters)
    if config.flip == "mirror":
        labels[:, 0] = 0
    return changed, labels


def draw(config: AugmentationConfig, count: int, generator: torch.Generator) -> Tensor:
    """Parameters a₀ … a₇ of table 6 for each image, (count, 8), all zero for no change.

    They are flips left to right and upside down (0 or 1), scale, angle, axis and strength of the
    anisotropy, and translation to the right and down.
    """
    device = generator.device
    flips = torch.randint(2, (count, 2), generator=generator, device=device).float()
    scale, strength, right, down = torch.randn(
        (4, count), generator=generator, device=device)
    angle, axis = pi * (2 * torch.rand((2, count), generator=generator, device=device) - 1)
    drawn = torch.stack([*flips.T, scale, angle, axis, strength, right, down], dim=1)
    chances = torch.rand((count, 6), generator=generator, device=device)
    kept = chances < config.probability
    kept[:, 0] = config.flip != "none"
    # Axis and strength come and go together, and so do both directions of the translation.
    return drawn * kept[:, [0, 1, 2, 3, 4, 4, 5, 5]]


def labels_of(parameters: Tensor) -> Tensor:
    """What the network is told of parameters (B, 8): the last column of table 6, (B, 9)."""
    flip_x, flip_y, scale, angle, axis, strength, right, down = parameters.T
    return torch.stack([flip_x, flip_y, scale, angle.cos() - 1, angle.sin(),
                        strength * axis.cos(), strength * axis.sin(), right, down], dim=1)


def transform(images: Tensor, parameters: Tensor) -> Tensor:
    """Flip, then scale, rotate counter-clockwise, squeeze and shift images (B, C, H, W).

    Args:
        images: float32.
        parameters: (B, 8) as `draw` makes them; an image whose parameters are zero stays as it
            is to the bit.
    """
    flip_x, flip_y = (column.bool()[:, None, None, None] for column in parameters.T[:2])
    images = torch.where(flip_x, images.flip(-1), images)
    images = torch.where(flip_y, images.flip(-2), images)
    moved = (parameters[:, 2:] != 0).any(dim=1)[:, None, None, None]
    return torch.where(moved, warp(images, parameters), images)


def warp(images: Tensor, parameters: Tensor) -> Tensor:
    """The part of `transform` that resamples."""
    _, _, scale, angle, axis, strength, *shift = parameters.T
    # For each pixel of the result, where it came from: all changes undone, the last one first.
    squeeze = SQUEEZE**strength
    along_axes = torch.diag_embed(torch.stack([1 / squeeze, squeeze], dim=1))
    source = rotation(angle) @ rotation(axis) @ along_axes @ rotation(-axis)
    source = source / (SCALE**scale)[:, None, None]
    # The grid's coordinates run from −1 to 1 in both directions, whatever the aspect ratio.
    height, width = images.shape[-2:]
    half = torch.tensor([width, height], device=images.device) / 2
    source = source * half / half[:, None]
    offset = -source @ (2 * SHIFT * torch.stack(shift, dim=1))[:, :, None]
    grid = F.affine_grid(torch.cat([source, offset], dim=2), list(images.shape),
                         align_corners=False)
    return F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)


def rotation(angle: Tensor) -> Tensor:
    """Matrices (B, 2, 2) that rotate by angles (B,) in radians."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], dim=1).reshape(-1, 2, 2)
