"""Pairs as tar files of the WebDataset kind, which stream one after the other.

Of each pair, under one name:

    000000.png         the sample, 8-bit images of 1 or 3 channels
    000000.npy         or any other sample, as it is stored
    000000.noise.npy   the noise, of variance 1
    000000.cls         the class, if there are labels
    000000.json        index and split, and the name of the class

Equal pairs give equal bytes: members carry no time, owner or machine.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kdm_core.pairs.exporting.files import filling, replacing
from kdm_core.pairs.exporting.selection import Selection
from kdm_core.pairs.spec import SPLITS, StoreSpec

CHANNELS = (1, 3)


class Pair(NamedTuple):
    """One pair, its row in the store and its index."""

    row: int
    number: int
    noise: NDArray[np.floating]
    sample: NDArray[Any]
    label: int


def export_webdataset(
    chosen: Selection, out: Path, on_pairs: Callable[[int], None], per_file: int = 10_000
) -> None:
    """Write pairs into a folder of tar files `pairs-000000.tar`, … of `per_file` pairs each.

    Raises:
        DataError: it is there already or cannot be written, or pairs are damaged.
    """
    count = len(chosen.rows)
    with filling(out, f"webdataset of {per_file} {chosen.mark}") as folder:
        for number, start in enumerate(range(0, count, per_file)):
            path = folder / f"pairs-{number:06}.tar"
            part = Selection(chosen.store, chosen.rows[start : start + per_file])
            if path.exists():
                on_pairs(len(part.rows))
                continue
            with replacing(path) as file, tarfile.open(
                    fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as archive:
                for place, pair in enumerate(pairs(part), start):
                    key = f"{place:0{max(6, len(str(count - 1)))}}"
                    for ending, content in members(pair, chosen.store.spec):
                        entry = tarfile.TarInfo(f"{key}.{ending}")
                        entry.size = len(content)
                        archive.addfile(entry, io.BytesIO(content))
                    on_pairs(1)


def pairs(chosen: Selection) -> Iterator[Pair]:
    """Pairs one by one."""
    rows = iter(chosen.rows.tolist())
    for block in chosen.blocks():
        for place in range(len(block.index)):
            yield Pair(next(rows), int(block.index[place]), block.noise[place],
                       block.sample[place], int(block.label[place]))


def members(pair: Pair, spec: StoreSpec) -> Iterator[tuple[str, bytes]]:
    """The ends of the names and the contents of a pair's files."""
    if spec.sample_dtype == "uint8" and spec.samples.shape[0] in CHANNELS:
        yield "png", png(pair.sample)
    else:
        yield "npy", npy_bytes(pair.sample)
    yield "noise.npy", npy_bytes(pair.noise)
    split = next(name for name in SPLITS if pair.row in spec.split_range(name))
    facts: dict[str, Any] = {"index": pair.number, "split": split}
    if spec.samples.num_classes:
        yield "cls", str(pair.label).encode()
        facts["label_name"] = spec.samples.label_names[pair.label]
    yield "json", json.dumps(facts).encode()


def png(image: NDArray[np.uint8]) -> bytes:
    """An image (C, H, W) of 1 or 3 channels as a file."""
    from PIL import Image

    buffer = io.BytesIO()
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, format="PNG")
    return buffer.getvalue()


def npy_bytes(values: NDArray[Any]) -> bytes:
    """An array as an .npy file."""
    buffer = io.BytesIO()
    npy.write_array(buffer, np.ascontiguousarray(values), allow_pickle=False)
    return buffer.getvalue()
