"""Data sets on disk: four .npy files and a dataset.json, written last."""

import hashlib
import io
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from kdm_core.datasets.base import Dataset, DatasetInfo, check_labels
from kdm_core.errors import DataError
from kdm_core.samples import Kind
from kdm_core.serialization import fingerprint, read_json, write_atomic, write_json

INFO = "dataset.json"
AT_REST: dict[Kind, type[np.generic]] = {
    "image": np.uint8, "latent": np.float16, "points": np.float32}
ARRAYS = ("train_samples", "train_labels", "test_samples", "test_labels")


def save_dataset(folder: Path, dataset: Dataset) -> str:
    """Write a data set; returns its fingerprint, also in dataset.json.

    The fingerprint is a SHA-256 over the info and the dtypes, shapes and bytes of the arrays.

    Raises:
        DataError: the disk is full or may not be written.
    """
    # While the arrays are replaced there is no dataset.json, and so no data set.
    try:
        (folder / INFO).unlink(missing_ok=True)
    except OSError as error:
        raise DataError(f"cannot replace {folder / INFO}: {error.strerror}; check the "
                        "permissions, then run again") from error
    digest = hashlib.sha256(fingerprint(dataset.info.model_dump()).encode())
    for name, values in zip(ARRAYS, dataset[:-1], strict=True):
        array = np.ascontiguousarray(values)
        digest.update(f"\n{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.reshape(-1).data)
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        write_atomic(folder / f"{name}.npy", buffer.getvalue())
    mark = digest.hexdigest()
    write_json(folder / INFO, {**dataset.info.model_dump(), "fingerprint": mark})
    return mark


def open_dataset(folder: Path) -> tuple[Dataset, str]:
    """A data set that `save_dataset` wrote, its arrays memory-mapped, and its fingerprint.

    Shapes and labels are checked; the samples' bytes are not, so that opening is quick.

    Raises:
        DataError: a file is missing, damaged, or does not fit the others.
    """
    document = read_json(folder / INFO)
    try:
        mark: str = document.pop("fingerprint")
        info = DatasetInfo.model_validate(document)
    except (ValidationError, KeyError, AttributeError, TypeError) as error:
        raise DataError(f"{folder / INFO} is not the description of a data set ({error}): delete "
                        "it and make it again") from error
    dtype = AT_REST[info.samples.kind]
    arrays: dict[str, NDArray[Any]] = {}
    for split, count in (("train", info.train), ("test", info.test)):
        samples, labels = f"{split}_samples", f"{split}_labels"
        arrays[samples] = _open(folder / f"{samples}.npy", dtype,
                                (count, *info.samples.sample_shape))
        arrays[labels] = _open(folder / f"{labels}.npy", np.int64, (count,))
        if info.class_names:
            check_labels(arrays[labels], count, len(info.class_names),
                         str(folder / f"{labels}.npy"))
    return Dataset(**arrays, info=info), mark


def _open(path: Path, dtype: type[np.generic], shape: tuple[int, ...]) -> NDArray[Any]:
    """Memory-map an array that must have this type and shape."""
    again = "delete the folder and make it again"
    if not path.is_file():
        raise DataError(f"{path} is missing: {again}")
    try:
        array: Any = np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # numpy raises several kinds on a damaged header
        raise DataError(f"{path} is damaged ({error}): {again}") from error
    if not isinstance(array, np.ndarray) or array.dtype != dtype or array.shape != shape:
        found = f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else "no array"
        raise DataError(f"{path} holds {found}, {INFO} says {np.dtype(dtype)} {shape}: {again}")
    return array
