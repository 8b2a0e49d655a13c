"""Images side by side as one picture, pixel by pixel."""

from math import ceil, sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

SIDE = 96  # small images are enlarged to about this many pixels


def tiles(images: NDArray[np.floating[Any]]) -> NDArray[np.uint8]:
    """Images (n, C, H, W) in [-1, 1], C 1 or 3, in a square of rows: RGB (height, width, 3)."""
    n, _, height, width = images.shape
    factor = max(1, SIDE // max(height, width))
    columns = ceil(sqrt(n))
    pitch_y, pitch_x = height * factor + 2, width * factor + 2
    picture = np.full((ceil(n / columns) * pitch_y - 2, columns * pitch_x - 2, 3), 255, np.uint8)
    for index, image in enumerate(images):
        row, column = divmod(index, columns)
        values = (image.transpose(1, 2, 0) * 127.5 + 128).clip(0, 255).astype(np.uint8)
        large = values.repeat(factor, axis=0).repeat(factor, axis=1)
        y, x = row * pitch_y, column * pitch_x
        picture[y : y + pitch_y - 2, x : x + pitch_x - 2] = large
    return picture
