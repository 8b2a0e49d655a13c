"""Value ranges: images are float in [-1, 1] in memory and may be uint8 at rest."""

from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SampleDtype = Literal["uint8", "float16", "float32"]


def to_uint8(images: Tensor) -> Tensor:
    """[-1, 1] floats to 0 … 255, rounding half up (127.5 x + 128, clipped), as EDM does."""
    return (images * 127.5 + 128).clamp(0, 255).to(torch.uint8)


def from_uint8(images: Tensor) -> Tensor:
    """0 … 255 to [-1, 1] floats."""
    return images.to(torch.float32) / 127.5 - 1


def as_stored(samples: Tensor, dtype: SampleDtype) -> Tensor:
    """Samples as they are at rest: images in [-1, 1] as uint8, or numbers in half or single
    precision."""
    if dtype == "uint8":
        return to_uint8(samples)
    return samples.to(torch.float16 if dtype == "float16" else torch.float32)


def as_float(samples: NDArray[np.generic]) -> Tensor:
    """Stored samples (uint8 images or floats) as the float32 tensor models work on."""
    # A copy, since memory-mapped files cannot be written and torch has no read-only tensors.
    tensor = torch.from_numpy(np.array(samples, order="C"))
    return from_uint8(tensor) if tensor.dtype == torch.uint8 else tensor.to(torch.float32)
