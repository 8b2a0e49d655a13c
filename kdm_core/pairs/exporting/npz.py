"""All pairs in one .npz file.

8-bit images as files for FID have them, with the noise beside them:

    arr_0 (n, H, W, C) uint8, arr_1 (n,) int64 (if there are labels), noise (n, C, H, W)

Points and float images as they are stored: sample (n, *shape), label (n,), noise (n, *shape). With
labels there is also label_names (classes,), strings. The noise has variance 1.
"""

import zipfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdm_core.pairs.exporting.files import replacing, require_new
from kdm_core.pairs.exporting.selection import Selection


def export_npz(chosen: Selection, path: Path, on_pairs: Callable[[int], None]) -> None:
    """Write pairs into one file, in pieces: it may be larger than the memory.

    Raises:
        DataError: the file is there already, it cannot be written, or pairs are damaged.
    """
    require_new(path)
    spec, shape = chosen.store.spec, chosen.store.spec.samples.sample_shape
    # Of images of C x C pixels nobody could tell that these have the channels last.
    pictures = (spec.samples.kind == "image" and spec.sample_dtype == "uint8"
                and len(set(shape)) > 1)
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        pieces = told(chosen.values("sample"), on_pairs)
        if pictures:
            last = (np.moveaxis(piece, 1, -1) for piece in pieces)
            add(archive, "arr_0", (len(chosen.rows), *shape[1:], shape[0]), "uint8", last)
        else:
            add(archive, "sample", (len(chosen.rows), *shape), spec.sample_dtype, pieces)
        if spec.samples.num_classes:
            add(archive, "arr_1" if pictures else "label", (len(chosen.rows),), "int64",
                chosen.values("label"))
            names = np.array(spec.samples.label_names)
            add(archive, "label_names", names.shape, names.dtype.str, [names])
        add(archive, "noise", (len(chosen.rows), *shape), spec.noise_dtype, chosen.values("noise"))


def add(
    archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], dtype: str,
    pieces: Iterable[NDArray[Any]],
) -> None:
    """Write an array that comes in pieces."""
    # A name alone would be given the time of writing.
    with archive.open(zipfile.ZipInfo(f"{name}.npy"), "w", force_zip64=True) as stream:
        npy.write_array_header_1_0(stream, {
            "shape": shape, "fortran_order": False, "descr": npy.dtype_to_descr(np.dtype(dtype))})
        for piece in pieces:
            stream.write(np.ascontiguousarray(piece).data)


def told(
    pieces: Iterable[NDArray[Any]], on_pairs: Callable[[int], None]
) -> Iterator[NDArray[Any]]:
    """The same pieces, each of which is told of."""
    for piece in pieces:
        yield piece
        on_pairs(len(piece))
