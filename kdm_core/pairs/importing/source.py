"""What every layout of pairs looks like to the import."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError

NO_NOISE = ("a student is distilled from pairs, and a sample without the noise that it was made of "
            "is none")


class RawPairs(NamedTuple):
    """Pairs as their files have them.

    Attributes:
        noise: (n, *shape) floats, of any scale.
        sample: (n, *shape), uint8 or floats.
        label: (n,) int64, -1 where there are none.
    """

    noise: NDArray[Any]
    sample: NDArray[Any]
    label: NDArray[np.int64]


class PairSource(ABC):
    """Pairs of others, read a few at a time.

    Attributes:
        layout: what they are, in words.
        count: how many.
        kind: images are (C, H, W), points (D,).
        shape: of one sample.
        label_names: of the classes; empty if there are none.
    """

    layout: str
    count: int
    kind: Literal["image", "points"]
    shape: tuple[int, ...]
    label_names: list[str]

    @abstractmethod
    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        """The pairs at ascending rows (n,).

        Raises:
            DataError: a file is missing, damaged or unlike the others; the message names it.
        """

    @abstractmethod
    def where(self, row: int) -> str:
        """Where a pair lies, for messages."""


def kind_of(shape: tuple[int, ...], where: str) -> Literal["image", "points"]:
    """What samples of a shape are.

    Raises:
        DataError: neither images nor points.
    """
    if len(shape) not in (1, 3) or 0 in shape:
        raise DataError(f"{where}: samples of shape {shape} are neither images (C, H, W) nor "
                        "points (D,)")
    return "points" if len(shape) == 1 else "image"


def oriented(noise: NDArray[Any], shape: tuple[int, ...], where: str) -> NDArray[Any]:
    """Noise (*any, *shape), whose images may come as (H, W, C), as channels first.

    Raises:
        DataError: it has another shape than the samples.
    """
    inner = noise.shape[noise.ndim - len(shape):]
    if inner == shape:
        return noise
    if len(shape) == 3 and inner == (*shape[1:], shape[0]):
        return np.moveaxis(noise, -1, -3)
    raise DataError(f"{where}: noise of shape {inner} does not fit samples of shape {shape}")


def require_floats(dtype: np.dtype[Any], where: str) -> None:
    """Raises: DataError: values of a type that noise cannot have."""
    if dtype.kind != "f":
        raise DataError(f"{where}: noise of type {dtype}, expected floats")
