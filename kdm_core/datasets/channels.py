"""Which axis of images holds the channels: the shape says it, or the user does."""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import DataError

Channels = Literal["first", "last"]
USUAL = (1, 3)


def find_channels(shape: tuple[int, ...], given: Channels | None, where: str) -> Channels:
    """Where images of a shape have their channels. Images of two axes are gray: first.

    They are the outer axis that has 1 or 3 entries. If neither has, the other two axes are equal.

    Args:
        shape: of one sample; other than of images it may be anything.
        given: what the user says, who is believed.
        where: the images' place, for messages.

    Raises:
        DataError: the shape fits both.
    """
    if given is not None or len(shape) != 3:
        return given or "first"
    one, two, three = shape
    usual = one in USUAL, three in USUAL
    first, last = usual if any(usual) else (two == three != one, one == two != three)
    if first == last:
        raise DataError(f"{where}: images of shape {shape} may have the channels first or last: "
                        "say first or last", field="channels")
    return "first" if first else "last"


def with_channels_first(samples: NDArray[Any], channels: Channels) -> NDArray[Any]:
    """Images (n, H, W), (n, C, H, W) or (n, H, W, C) as (n, C, H, W); points stay."""
    if samples.ndim == 3:
        return samples[:, None]
    return np.moveaxis(samples, -1, 1) if samples.ndim == 4 and channels == "last" else samples


def require_channels_first(shape: tuple[int, ...], where: str) -> None:
    """Raises: DataError: images have their channels last, where they must be first."""
    if len(shape) == 3 and shape[0] not in USUAL and shape[2] in USUAL:
        raise DataError(f"{where}: images of shape {shape} have the channels last: save them as "
                        "(C, H, W), which numpy.moveaxis(…, -1, -3) makes of them")
