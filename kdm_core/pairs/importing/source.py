"""What every layout of pairs looks like to the import."""

from abc import ABC, abstractmethod
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kdm_core.datasets.channels import Channels
from kdm_core.errors import DataError
from kdm_core.samples import Kind

NO_NOISE = ("a student is distilled from pairs, and a sample without the noise that it was made of "
            "is none")


SampleRange = Literal["signed", "unit", "bytes"]


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
        kind: images and latents are (C, H, W), points (D,).
        shape: of one sample.
        label_names: of the classes; empty if there are none.
        numbered: whether these are only numbers, up to the largest label.
        sample_range: of images that are floats, if the user said it.
        labels: of all pairs (n,), -1 without classes; None if each is read with its pair.
    """

    layout: str
    count: int
    kind: Kind
    shape: tuple[int, ...]
    label_names: list[str]
    numbered: bool = False
    sample_range: SampleRange | None = None
    labels: NDArray[np.int64] | None = None

    @abstractmethod
    def read(self, rows: NDArray[np.int64]) -> RawPairs:
        """The pairs at ascending rows (n,).

        Raises:
            DataError: a file is missing, damaged or unlike the others; the message names it.
        """

    @abstractmethod
    def where(self, row: int) -> str:
        """Where a pair lies, for messages."""


def kind_of(shape: tuple[int, ...], where: str) -> Kind:
    """What samples of a shape are.

    Raises:
        DataError: neither images nor points.
    """
    if len(shape) not in (1, 3) or 0 in shape:
        raise DataError(f"{where}: samples of shape {shape} are neither images (C, H, W) nor "
                        "points (D,)")
    return "points" if len(shape) == 1 else "image"


def oriented(
    noise: NDArray[Any], shape: tuple[int, ...], where: str, channels: Channels | None = "first"
) -> NDArray[Any]:
    """Noise (*any, *shape), whose images may come as (H, W, C), as channels first.

    Args:
        noise: it.
        shape: of one sample.
        where: the noise's place, for messages.
        channels: where they are if the shape fits both; None if that is to be refused.

    Raises:
        DataError: it has another shape than the samples, or one that fits both.
    """
    inner = noise.shape[noise.ndim - len(shape):]
    last = (*shape[1:], shape[0])
    if len(shape) == 3 and inner == shape == last and shape[0] > 1 and channels is None:
        raise DataError(f"{where}: noise of shape {inner} may have the channels first or last: say "
                        "first or last", field="channels")
    if inner == shape and not (channels == "last" and inner == last):
        return noise
    if len(shape) == 3 and inner == last:
        return np.moveaxis(noise, -1, -3)
    raise DataError(f"{where}: noise of shape {inner} does not fit samples of shape {shape}")


def require_samples(dtype: np.dtype[Any], kind: Kind, where: str) -> None:
    """Raises: DataError: values of a type whose range is unknown."""
    if dtype.kind != "f" and (dtype != np.uint8 or kind != "image"):
        advice = {"points": "floats: if they are flat images, save them as (n, H, W, C)",
                  "latent": "floats, as an autoencoder gives them",
                  "image": "uint8 (0 to 255) or floats: save them so"}[kind]
        raise DataError(f"{where}: samples of type {dtype}, expected {advice}")


def require_floats(dtype: np.dtype[Any], where: str) -> None:
    """Raises: DataError: values of a type that noise cannot have."""
    if dtype.kind != "f":
        raise DataError(f"{where}: noise of type {dtype}, expected floats")
