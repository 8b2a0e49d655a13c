"""Whole sets of images to latents, and of latents to images, a batch at a time."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.decoders.base import Autoencoder
from kdm_core.errors import DivergedError
from kdm_core.values import as_float

BATCH = 64


@torch.inference_mode()
def encode_all(
    model: Autoencoder, images: NDArray[np.uint8], device: torch.device, batch: int = BATCH,
    on_images: Callable[[int], None] = lambda images: None,
) -> NDArray[np.float16]:
    """Latents (n, *shape) of uint8 images (n, *picture), as they are kept.

    Float16 rounds numbers of order one by 2e-4, on average; an autoencoder loses more.

    Args:
        model: is moved to the device.
        images: may be memory-mapped.
        device, batch: where, and how many images at a time.
        on_images: told after each batch how many images it had.

    Raises:
        KDMError: images have another shape, or there is no encoder.
        DivergedError: a latent is not finite, or too large for float16.
    """
    model = model.to(device).eval()
    found = np.empty((len(images), *model.shape), np.float16)
    for start in range(0, len(images), batch):
        chunk = as_float(images[start : start + batch]).to(device)
        latents = model.encode(chunk).to(torch.float16)
        require_finite(latents, "latents", start)
        found[start : start + len(chunk)] = latents.cpu().numpy()
        on_images(len(chunk))
    return found


@torch.inference_mode()
def decode_all(
    model: Autoencoder, latents: Tensor, device: torch.device, batch: int = BATCH,
    on_images: Callable[[int], None] = lambda images: None,
) -> Tensor:
    """Images (n, *picture) float32 in [-1, 1], on the CPU, of latents (n, *shape).

    Args:
        model: is moved to the device.
        latents: of any floating type, on any device.
        device, batch: where, and how many images at a time.
        on_images: told after each batch how many images it had.

    Raises:
        KDMError: latents have another shape.
        DivergedError: a latent or a pixel is not finite.
    """
    model = model.to(device).eval()
    found = torch.empty(len(latents), *model.picture)
    for start in range(0, len(latents), batch):
        images = model.decode(latents[start : start + batch].to(device))
        require_finite(images, "images", start)
        found[start : start + len(images)] = images.cpu()
        on_images(len(images))
    return found


def require_finite(values: Tensor, what: str, start: int) -> None:
    """Make sure that a batch, the first of which is number `start`, is finite.

    Raises:
        DivergedError: it is not.
    """
    broken = (~values.isfinite()).flatten(1).any(dim=1).nonzero().flatten()
    if len(broken):
        raise DivergedError(
            f"the autoencoder makes {what} that are not finite (number {start + int(broken[0])} is "
            "the first): what it was given is not finite or far from what it was trained on, or "
            "its weights are damaged; check both, or take another autoencoder")
