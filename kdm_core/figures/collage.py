"""Two collages side by side, to be compared by eye."""

import numpy as np
from numpy.typing import NDArray

from kdm_core.figures.tiles import Images, tiles


def slide(left: Images, right: Images) -> NDArray[np.uint8]:
    """Square collages of as many images (n, C, H, W) each, white between them: RGB (h, w, 3)."""
    collages = [tiles(left), tiles(right)]
    height, width, _ = collages[0].shape
    gap = np.full((height, width // 8, 3), 255, np.uint8)
    return np.concatenate([collages[0], gap, collages[1]], axis=1)
