"""Images side by side as one picture, pixel by pixel."""

from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 96  # small images are enlarged to about this many pixels
EMPTY = (255, 255, 255, 0)
Images = NDArray[np.floating[Any]]
"""(n, C, H, W) in [-1, 1], C being 1 or 3."""


def tiles(images: Images) -> NDArray[np.uint8]:
    """Images (n, C, H, W) in [-1, 1], C 1 or 3, in a square of rows: RGB (height, width, 3)."""
    factor = max(1, SIDE // max(images.shape[2:]))
    columns = ceil(sqrt(len(images)))
    large = images.repeat(factor, axis=2).repeat(factor, axis=3)
    return mosaic(large, columns, 2)[:-2, :-2, :3]


def mosaic(images: Images, columns: int, gap: int) -> NDArray[np.uint8]:
    """Images in rows of `columns`, with `gap` empty pixels after each: RGBA (height, width, 4).

    What is empty is transparent, and white where that is not shown.

    Args:
        images: (n, C, H, W) in [-1, 1], C 1 or 3; what the last row lacks stays empty.
    """
    n, channels, height, width = images.shape
    rows = ceil(n / columns)
    picture = np.full((rows * columns, height + gap, width + gap, 4), EMPTY, np.uint8)
    values = (images.transpose(0, 2, 3, 1) * 127.5 + 128).clip(0, 255).astype(np.uint8)
    picture[:n, :height, :width, :3] = values
    picture[:n, :height, :width, 3] = 255
    by_row = picture.reshape(rows, columns, height + gap, width + gap, 4).swapaxes(1, 2)
    return by_row.reshape(rows * (height + gap), columns * (width + gap), 4)
