"""CIFAR-10 as it is published for Python.

Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009;
https://www.cs.toronto.edu/~kriz/cifar.html ("CIFAR-10 python version").
"""

import gzip
import io
import tarfile
import zlib
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from kdm_core.datasets.base import LabelledConfig, check_labels
from kdm_core.datasets.reading import existing, read_limited
from kdm_core.errors import DataError
from kdm_core.pickles import as_uint8, read_pickle

TRAIN = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5"]
TEST = "test_batch"
CLASSES = ["airplane", "automobile", "bird", "cat", "deer",
           "dog", "frog", "horse", "ship", "truck"]
MAX_BATCH = 64 * 2**20
MAX_ARCHIVE = 512 * 2**20


class Cifar10Config(LabelledConfig):
    """Images (3, 32, 32) of ten classes, with the published test split.

    Attributes:
        path: the archive cifar-10-python.tar.gz, or the folder with the six batches in it.
    """

    source: Literal["cifar10"]
    path: str = Field(min_length=1)


class Batch(NamedTuple):
    """Images (n, 3, 32, 32) uint8 and labels (n,) int64."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]


def read_cifar10(config: Cifar10Config) -> tuple[Batch, Batch]:
    """The training and the test split.

    The batches are pickles; they are read without running anything in them.

    Raises:
        DataError: a batch is missing or damaged.
    """
    path = existing(config.path)
    if path.is_dir():
        contents = {name: read_limited(path / name, MAX_BATCH) for name in [*TRAIN, TEST]}
    else:
        contents = _read_archive(path)
    batches = [_read_batch(contents[name], f"{path}: {name}") for name in TRAIN]
    train = Batch(np.concatenate([batch.images for batch in batches]),
                  np.concatenate([batch.labels for batch in batches]))
    return train, _read_batch(contents[TEST], f"{path}: {TEST}")


def _read_archive(path: Path) -> dict[str, bytes]:
    """The contents of the six batches in a .tar.gz."""
    contents: dict[str, bytes] = {}
    packed = read_limited(path, MAX_ARCHIVE)
    try:
        # Unpacked within a limit before tarfile sees it, which itself has none.
        with gzip.open(io.BytesIO(packed)) as stream:
            unpacked = stream.read(MAX_ARCHIVE + 1)
        if len(unpacked) > MAX_ARCHIVE:
            raise DataError(f"{path} unpacks to more than {MAX_ARCHIVE} bytes: it is not "
                            "cifar-10-python.tar.gz, correct the path", field="path")
        with tarfile.open(fileobj=io.BytesIO(unpacked), mode="r:") as archive:
            for member in archive:
                name = PurePosixPath(member.name).name
                file = archive.extractfile(member) if member.isreg() else None
                if file is None or name not in (*TRAIN, TEST):
                    continue
                if name in contents or member.size > MAX_BATCH:
                    raise DataError(f"{path}: {name} is there twice or too large: fetch the file "
                                    "again")
                contents[name] = file.read()
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path} is not a readable .tar.gz ({error}): fetch it again") from error
    for name in (*TRAIN, TEST):
        if name not in contents:
            raise DataError(f"{path} holds no {name}: it is not cifar-10-python.tar.gz, correct "
                            "the path or fetch it again", field="path")
    return contents


def _read_batch(content: bytes, place: str) -> Batch:
    """One batch: {"data": uint8 (n, 3072), row by row of R, then G, then B; "labels": [int]}."""
    document = read_pickle(content, place)
    images = as_uint8(document.get("data"), 3 * 32 * 32, f"{place}, 'data'")
    labels = document.get("labels")
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < len(CLASSES)
                                               for label in labels):
        raise DataError(f"{place}, 'labels': expected a list of integers from 0 to "
                        f"{len(CLASSES) - 1}: fetch the file again")
    return Batch(images.reshape(-1, 3, 32, 32),
                 check_labels(np.array(labels, np.int64), len(images), len(CLASSES), place))
