"""Pairs that others made, in the layouts that they come in, turned into a store."""

from pathlib import Path
from typing import Literal

from kdm_core.datasets.channels import Channels
from kdm_core.errors import DataError
from kdm_core.pairs.importing.arrays import ArraysSource
from kdm_core.pairs.importing.filling import (
    compare_with_teacher,
    import_pairs,
    say_missing_classes,
)
from kdm_core.pairs.importing.folder import PngFolder
from kdm_core.pairs.importing.latents import LatentSource
from kdm_core.pairs.importing.listing import of_kind, walk
from kdm_core.pairs.importing.plan import ImportConfig, KnownTeacher, plan_import
from kdm_core.pairs.importing.published import Order, PublishedFolder, PublishedPoints
from kdm_core.pairs.importing.ranges import RangedSource
from kdm_core.pairs.importing.source import PairSource, SampleRange
from kdm_core.pairs.importing.tars import TarSource

__all__ = ["ImportConfig", "KnownTeacher", "Layout", "Order", "PairSource", "compare_with_teacher",
           "import_pairs", "open_source", "plan_import", "say_missing_classes"]

Layout = Literal["auto", "published", "points", "npz", "png", "webdataset"]
# By the ending of a file, or of a folder's files in the order in which they are looked for.
FILES: dict[str, Layout] = {".npy": "points", ".npz": "npz", ".tar": "webdataset"}
FOLDERS: dict[str, Layout] = {".npz": "published", ".tar": "webdataset", ".png": "png"}


def open_source(
    path: Path, layout: Layout = "auto", noise: Path | None = None, order: Order = "auto",
    channels: Channels | None = None, sample_range: SampleRange | None = None,
    latents: bool = False,
) -> PairSource:
    """Find the pairs in a file or folder.

    Args:
        path: it.
        layout: what it is; found by the endings of files where that is `auto`.
        noise: the file with the noise, for the layouts `npz` and `png`.
        order: which end of a published trajectory is the noise.
        channels: of images in the layout `npz`, where their shape does not say it.
        sample_range: of images that are floats, where their values do not say it.
        latents: whether the samples are those of an autoencoder, and no images.

    Raises:
        DataError: it is missing, or not of such a layout.
    """
    if not path.exists():
        raise DataError(f"{path} does not exist: correct the path")
    chosen = find_layout(path) if layout == "auto" else layout
    if (chosen in ("published", "png")) > path.is_dir():
        raise DataError(f"{path} is no folder, which the layout {chosen} is")
    if noise is not None and chosen not in ("npz", "png"):
        raise DataError(f"the layout {chosen} has its noise in the same files", field="noise")
    if order != "auto" and chosen not in ("published", "points"):
        raise DataError(f"the layout {chosen} has names for noise and samples", field="order")
    if channels is not None and chosen != "npz":
        raise DataError(f"the layout {chosen} says itself where they are", field="channels")
    if latents and sample_range is not None:
        raise DataError("latents have none, leave it out", field="sample_range")
    found = read_layout(path, chosen, noise, order, channels)
    if latents:
        return LatentSource(found)
    return found if sample_range is None else RangedSource(found, sample_range)


def read_layout(
    path: Path, layout: Layout, noise: Path | None, order: Order, channels: Channels | None
) -> PairSource:
    """The pairs of a file or folder of this layout."""
    if layout == "published":
        return PublishedFolder(path, order)
    if layout == "points":
        return PublishedPoints(path, order)
    if layout == "npz":
        return ArraysSource(path, noise, channels)
    return PngFolder(path, noise) if layout == "png" else TarSource(path)


def find_layout(path: Path) -> Layout:
    """What a file or folder most likely is.

    Raises:
        DataError: there is nothing that the name of a layout could be told by, or several are.
    """
    if path.is_file():
        found = [layout for ending, layout in FILES.items() if path.suffix == ending]
    else:
        names = walk(path)
        found = [layout for ending, layout in FOLDERS.items() if of_kind(names, ending)]
    if len(found) != 1:
        raise DataError(f"{path} could be {' and '.join(found) or 'of no known layout'}: say "
                        "published, points, npz, png or webdataset", field="layout")
    return found[0]
