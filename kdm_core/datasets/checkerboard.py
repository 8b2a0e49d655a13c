"""Points on the dark cells of a checkerboard, where a stray sample is plain to see."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.config import Config

EDGES = np.array([-4.0, -2.0, 0.0, 2.0, 4.0])
# Columns and rows of the 8 dark cells, from the corner at (-4, -4), which is dark.
DARK = np.array([(column, row) for column in range(4) for row in range(4)
                 if (column + row) % 2 == 0])


class CheckerboardConfig(Config):
    """Points (2,), uniform on the dark cells of a 4 x 4 board over [-4, 4)².

    Attributes:
        train, test: number of points to draw for each split.
    """

    source: Literal["checkerboard"]
    train: int = Field(50_000, ge=1)
    test: int = Field(10_000, ge=2)


def sample_board(count: int, seed: int, stream: int) -> NDArray[np.float32]:
    """Points (count, 2), a function of (count, seed, stream); all of them are on the board.

    Args:
        count: how many.
        seed, stream: not negative; streams of one seed are independent.
    """
    generator = np.random.default_rng([seed, stream])
    corners = EDGES[DARK[generator.integers(len(DARK), size=count)]]
    # float32 can hold all multiples of 2^-22 up to 4. Finer ones could be rounded up onto the
    # next cell, which is light.
    offsets = generator.integers(2**23, size=(count, 2)) * 2.0**-22
    points: NDArray[np.float32] = (corners + offsets).astype(np.float32)
    return points


def on_board(points: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether points (n, 2) lie on dark cells, (n,).

    Exact: coordinates are only compared, never computed with. A cell has its lower edges and not
    its upper ones. NaN lies nowhere.
    """
    cells = np.searchsorted(EDGES, points, side="right") - 1
    inside = ((cells >= 0) & (cells < len(EDGES) - 1)).all(axis=1)
    dark: NDArray[np.bool_] = inside & (cells.sum(axis=1) % 2 == 0)
    return dark
