"""Images in one .npz file, as `numpy.savez` writes it."""

import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.datasets.base import (
    LabelledImages,
    SplitConfig,
    check_labels,
    numbered_classes,
    unlabelled,
)
from kdm_core.datasets.images import MAX_VALUES
from kdm_core.datasets.reading import existing_file
from kdm_core.errors import DataError

IMAGES = ("images", "samples", "arr_0")
LABELS = ("labels", "y")
NAMES = ("label_names", "names")


class NpzConfig(SplitConfig):
    """An .npz file with these arrays, of which the first is required:

        images, samples or arr_0    uint8, (n, H, W), (n, H, W, C) or (n, C, H, W), C being 1 or 3
        labels or y                 integers (n,), from 0
        label_names or names        strings, one for each class
    """

    source: Literal["npz"]
    path: str = Field(min_length=1)


def read_npz(config: NpzConfig) -> LabelledImages:
    """All images of the file.

    Raises:
        DataError: it is missing or damaged, or its arrays are not as `NpzConfig` says.
    """
    path = existing_file(config.path)
    if not zipfile.is_zipfile(path):  # else numpy would take it for an .npy file or a pickle
        raise DataError(f"{path} is not an .npz file, or cut off: write it anew with numpy.savez")
    arrays = _read_arrays(path)
    images = channels_first(arrays["images"], path)
    labels, names = arrays.get("labels"), arrays.get("names")
    if labels is None:
        if names is not None:
            raise DataError(f"{path} has names of classes but no labels: add the array 'labels'")
        return LabelledImages(images, unlabelled(len(images)), [])
    if names is None:
        class_names = numbered_classes(labels, str(path)) if labels.dtype.kind in "iu" else []
    elif names.dtype.kind == "U" and names.ndim == 1:
        class_names = [str(name) for name in names]
    else:
        raise DataError(f"{path}: 'label_names' has type {names.dtype} and shape {names.shape}, "
                        "expected one string for each class")
    return LabelledImages(
        images, check_labels(labels, len(images), len(class_names), str(path)), class_names)


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays there are of "images", "labels" and "names", under these keys."""
    found: dict[str, NDArray[Any]] = {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            for member in archive.zip.infolist():
                if member.file_size > MAX_VALUES:
                    raise DataError(f"{path}: the array '{member.filename}' is larger than "
                                    f"{MAX_VALUES} bytes: use fewer or smaller images")
            for key, aliases in (("images", IMAGES), ("labels", LABELS), ("names", NAMES)):
                name = _only(aliases, archive.files, path)
                if name is not None:
                    # A member that is no array comes as bytes; this makes its type an error.
                    found[key] = np.asarray(archive[name])
    except DataError:
        raise
    except Exception as error:  # numpy, zipfile and zlib raise a dozen kinds on damaged files
        raise DataError(f"{path} is not a readable .npz file of plain arrays "
                        f"({type(error).__name__}: {error}): write it anew with numpy.savez"
                        ) from error
    if "images" not in found:
        raise DataError(f"{path} has no array 'images': name the array of images so")
    return found


def _only(aliases: Sequence[str], names: Sequence[str], path: Path) -> str | None:
    """The one of `aliases` that is among `names`, if any."""
    present = [name for name in aliases if name in names]
    if len(present) > 1:
        raise DataError(f"{path} has arrays {' and '.join(map(repr, present))}, which mean the "
                        f"same: keep only '{present[0]}'")
    return present[0] if present else None


def channels_first(images: NDArray[Any], path: Path) -> NDArray[np.uint8]:
    """Images in any layout of `NpzConfig` as (n, C, H, W).

    Raises:
        DataError: they are not uint8, or which axis holds the channels is unclear.
    """
    if images.dtype != np.uint8 or images.ndim not in (3, 4):
        raise DataError(f"{path}: images of type {images.dtype} and shape {images.shape}, expected "
                        "uint8 and (n, H, W), (n, H, W, C) or (n, C, H, W)")
    if images.ndim == 3:
        return images[:, None]
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise DataError(f"{path}: in images of shape {images.shape} "
                        f"{'either' if first else 'neither'} of the axes 1 and 3 could be the "
                        "channels, of which there must be 1 or 3: store gray images as (n, H, W)")
    return images if first else np.ascontiguousarray(images.transpose(0, 3, 1, 2))
