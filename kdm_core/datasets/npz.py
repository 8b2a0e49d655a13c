"""Images in one .npz file, as `numpy.savez` writes it."""

from typing import Literal

import numpy as np
from pydantic import Field

from kdm_core.datasets.arrays import LabelledArrays
from kdm_core.datasets.base import LabelledImages, SplitConfig
from kdm_core.datasets.channels import (
    USUAL,
    Channels,
    find_channels,
    with_channels_first,
)
from kdm_core.datasets.images import MAX_VALUES
from kdm_core.datasets.reading import existing_file
from kdm_core.errors import DataError


class NpzConfig(SplitConfig):
    """An .npz file with these arrays, of which the first is required:

        images, samples or arr_0    uint8, (n, H, W), (n, H, W, C) or (n, C, H, W), C being 1 or 3
        labels, y or arr_1          integers (n,), from 0
        label_names or names        strings, one for each class

    Attributes:
        path: the file.
        channels: where they are, if the shape does not say it, as (n, 3, 32, 3) does not.
    """

    source: Literal["npz"]
    path: str = Field(min_length=1)
    channels: Channels | None = None


def read_npz(config: NpzConfig) -> LabelledImages:
    """All images of the file.

    Raises:
        DataError: it is missing or damaged, or its arrays are not as `NpzConfig` says.
    """
    path = existing_file(config.path)
    arrays = LabelledArrays(path)
    found, where = arrays.samples, f"{path}: {arrays.key}"
    inner = found.shape[1:]
    if found.dtype != np.uint8 or not (len(inner) == 2 or len(inner) == 3
                                       and (inner[0] in USUAL or inner[2] in USUAL)):
        raise DataError(f"{where}: images of type {found.dtype} and shape {found.shape}, expected "
                        "uint8 (0 to 255) and (n, H, W), (n, H, W, C) or (n, C, H, W), with C = 1 "
                        "or 3: save them so; (images * 255).round().astype('uint8') makes them of "
                        "floats in [0, 1]")
    if found.nbytes > MAX_VALUES:
        raise DataError(f"{where} is larger than {MAX_VALUES} bytes: use fewer or smaller images")
    channels = find_channels(inner, config.channels, where)
    images = np.ascontiguousarray(with_channels_first(found.whole(), channels))
    if images.shape[1] not in USUAL:
        raise DataError(f"{channels}, but then images of shape {inner} have {images.shape[1]} "
                        "channels, and not 1 or 3: leave it out", field="channels")
    return LabelledImages(images, arrays.labels, arrays.label_names)
