"""Pairs as the authors of Koopman Distillation Models read them (arXiv:2505.13358).

Images become a folder of .npz files of one pair each, in float32, the noise multiplied by its
scale. Their code takes noise and sample from these ends of these arrays:

    with labels               endpoints    sample first; and a one-hot `label`
    flow matching (scale 1)   arr1         sample first
    others of 32 x 32         arr_0        noise first
    others                    arr_0        sample first

Points become one .npy file (2, n, D), noise first.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdm_core.errors import DataError
from kdm_core.pairs.exporting.files import filling, replacing, require_new
from kdm_core.pairs.exporting.selection import Selection
from kdm_core.pairs.spec import StoreSpec
from kdm_core.values import as_float

CIFAR = (32, 32)


def export_published(chosen: Selection, out: Path, on_pairs: Callable[[int], None]) -> None:
    """Write pairs into a folder, or points into a file.

    Raises:
        DataError: it is there already or cannot be written, or pairs are damaged.
    """
    if chosen.store.spec.samples.kind == "points":
        export_points(chosen, out, on_pairs)
        return
    key, noise_first = array_of(chosen.store.spec)
    width, number = max(6, len(str(len(chosen.rows) - 1))), 0
    classes = np.eye(chosen.store.spec.samples.num_classes, dtype=np.float32)
    with filling(out, f"published {chosen.mark}") as folder:
        for block in chosen.blocks():
            for pair in range(len(block.index)):
                ends = (scaled(block.noise[pair], chosen.store.spec),
                        as_float(block.sample[pair]).numpy())
                arrays = {key: np.stack(ends if noise_first else ends[::-1])}
                if len(classes):
                    arrays["label"] = classes[block.label[pair]]
                write_pair(folder / f"{number:0{width}}.npz", arrays)
                number += 1
                on_pairs(1)


def array_of(spec: StoreSpec) -> tuple[str, bool]:
    """The array that the states stand in, and whether noise is the first of them."""
    if spec.samples.num_classes:
        return "endpoints", False
    if spec.noise_scale == 1:
        return "arr1", False
    return "arr_0", spec.samples.sample_shape[1:] == CIFAR


def scaled(noise: NDArray[np.floating], spec: StoreSpec) -> NDArray[np.float32]:
    """Noise as the teacher's solver starts with it."""
    return noise.astype(np.float32) * np.float32(spec.noise_scale)


def write_pair(path: Path, arrays: dict[str, NDArray[Any]]) -> None:
    """One pair; what an earlier run had written stays."""
    if path.exists():
        return
    # Without waiting for the disk each time: the folder is not under its name yet.
    temporary = path.with_name(f".{path.name}")
    np.savez(temporary, allow_pickle=False, **arrays)
    temporary.replace(path)


def export_points(chosen: Selection, out: Path, on_pairs: Callable[[int], None]) -> None:
    """Both ends of the ways of points."""
    spec = chosen.store.spec
    if spec.samples.num_classes:
        raise DataError("published points have no labels: use npz", field="format")
    require_new(out)

    with replacing(out) as file:
        npy.write_array_header_1_0(file, {
            "shape": (2, len(chosen.rows), *spec.samples.sample_shape), "fortran_order": False,
            "descr": npy.dtype_to_descr(np.dtype("float32"))})
        for piece in chosen.values("noise"):
            file.write(scaled(piece, spec).data)
        for piece in chosen.values("sample"):
            file.write(np.ascontiguousarray(piece).data)
            on_pairs(len(piece))
