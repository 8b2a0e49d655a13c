"""The four gzipped files of MNIST and its family, in the IDX format.

Source: Y. LeCun, C. Cortes, C. Burges, the MNIST database, which describes the format; H. Xiao,
K. Rasul, R. Vollgraf, Fashion-MNIST, arXiv:1708.07747, which Debian packages.
"""

import zlib
from math import prod
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.datasets.base import LabelledConfig, check_labels, numbered_classes
from kdm_core.datasets.reading import read_limited
from kdm_core.errors import DataError

TRAIN, TEST = "train", "t10k"
IMAGES, LABELS = "images-idx3-ubyte", "labels-idx1-ubyte"
INSTALLED = Path("/usr/share/datasets/fashion-mnist")
PACKAGE = "dataset-fashion-mnist"
FASHION = ["T-shirt", "trousers", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
           "ankle boot"]
MAX_FILE = 512 * 2**20
BYTES = 0x08
"""The format's code for unsigned bytes, the third of a file."""


class IdxConfig(LabelledConfig):
    """Grey images of ten classes or others, with the published test split.

    Attributes:
        path: the folder with train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz and the two
            t10k-… (unpacked ones will do); where it is left out, Fashion-MNIST as Debian's package
            dataset-fashion-mnist installs it.
        average: pixels of a side of which the mean makes one: 2 makes 14 × 14 of 28 × 28.
        names: of the classes, from 0; their numbers where they are left out, and Fashion-MNIST's
            of that.
    """

    source: Literal["idx"]
    path: str | None = Field(None, min_length=1)
    average: int = Field(1, ge=1)
    names: list[str] | None = None


class Split(NamedTuple):
    """Images (n, 1, H, W) uint8 and labels (n,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_idx(config: IdxConfig) -> tuple[Split, Split, list[str]]:
    """The training and the test split, and the names of the classes.

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
    """
    folder = INSTALLED if config.path is None else Path(config.path)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: " + (
            f"install Fashion-MNIST (apt install {PACKAGE}), or say in which folder the four files "
            "lie" if config.path is None else "correct the path"), field="path")
    train, test = (read_split(folder, prefix, config.average) for prefix in (TRAIN, TEST))
    if train.images.shape[1:] != test.images.shape[1:]:
        raise DataError(f"{folder}: training images of {train.images.shape[2:]} pixels and test "
                        f"images of {test.images.shape[2:]}: supply files that belong together")
    names = config.names or (FASHION if config.path is None else
                             numbered_classes(train.labels, str(folder)))
    for split in (train, test):
        check_labels(split.labels, len(split.labels), len(names), str(folder))
    return train, test, names


def read_split(folder: Path, prefix: str, average: int) -> Split:
    images = read_array(folder, f"{prefix}-{IMAGES}", 3)
    labels = read_array(folder, f"{prefix}-{LABELS}", 1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images):,} images in {prefix}-{IMAGES} and "
                        f"{len(labels):,} labels in {prefix}-{LABELS}: supply files that belong "
                        "together")
    return Split(averaged(images, average, folder)[:, None], labels.astype(np.int64))


def averaged(images: NDArray[np.uint8], side: int, folder: Path) -> NDArray[np.uint8]:
    """Means (n, H/side, W/side) of squares of pixels, rounded half up."""
    n, height, width = images.shape
    if height % side or width % side:
        raise DataError(f"squares of {side} pixels do not divide the {height} × {width} of the "
                        f"images in {folder}; use a divisor of both", field="average")
    squares = images.reshape(n, height // side, side, width // side, side)
    sums = squares.sum(axis=(2, 4), dtype=np.uint32)
    means: NDArray[np.uint8] = ((2 * sums + side**2) // (2 * side**2)).astype(np.uint8)
    return means


def read_array(folder: Path, name: str, dimensions: int) -> NDArray[np.uint8]:
    """The bytes of a file, packed or not, in the shape that its head claims.

    Raises:
        DataError: it is missing, damaged, or claims another type, or more or less than it has.
    """
    path = next((one for one in (folder / f"{name}.gz", folder / name) if one.is_file()),
                folder / f"{name}.gz")
    content = read_limited(path, MAX_FILE)
    if path.suffix == ".gz":
        content = unpacked(content, path)
    start = 4 + 4 * dimensions
    if len(content) < start or content[:4] != bytes([0, 0, BYTES, dimensions]):
        raise DataError(f"{path} does not begin as an IDX file of bytes with {dimensions} "
                        f"dimension{'s' if dimensions > 1 else ''} does ({content[:4].hex(' ')}): "
                        "fetch it again")
    shape = [int.from_bytes(content[place : place + 4], "big") for place in range(4, start, 4)]
    if prod(shape) != len(content) - start:
        raise DataError(f"{path} says that it holds {' × '.join(map(str, shape))} bytes, and has "
                        f"{len(content) - start:,}: fetch it again")
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def unpacked(packed: bytes, path: Path) -> bytes:
    """What a gzipped file holds, within a limit.

    Raises:
        DataError: it is damaged, or holds more.
    """
    unpack = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
    try:
        content = unpack.decompress(packed, MAX_FILE)
    except zlib.error as error:
        raise DataError(f"{path} is no readable .gz ({error}): fetch it again") from error
    if unpack.unconsumed_tail:
        raise DataError(f"{path} unpacks to more than {MAX_FILE} bytes: it is none of these files")
    if not unpack.eof:
        raise DataError(f"{path} is cut short: fetch it again")
    return content
