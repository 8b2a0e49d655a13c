"""Images in a folder, one file each."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from kdm_core.datasets.base import LabelledImages, SplitConfig, check_names, unlabelled
from kdm_core.datasets.images import MAX_FILE, stack_images
from kdm_core.datasets.reading import existing, read_limited
from kdm_core.errors import DataError

FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}


class FolderConfig(SplitConfig):
    """PNG, JPEG, WebP and BMP files in a folder, or in sub-folders of it that are the classes.

    Other files are passed over, hidden ones and hidden folders too.

    Attributes:
        path: the folder.
        resolution: side of the square that every image is cropped (around its centre) and resized
            to; without it all images must have the same size.
    """

    source: Literal["folder"]
    path: str = Field(min_length=1)
    resolution: int | None = Field(None, ge=1, le=4096)


def read_folder(config: FolderConfig) -> LabelledImages:
    """All images, class by class in the order of their names; gray if all files are.

    Raises:
        DataError: the folder is missing, empty or ambiguous, or an image cannot be used.
    """
    root = existing(config.path)
    if not root.is_dir():
        raise DataError(f"data.path: {root} is not a folder: correct the path or data.source")
    files, classes = _listing(root)
    labels = unlabelled(len(files))
    if classes:
        check_names([folder.name for folder in classes], str(root))
        if files:
            raise DataError(f"{files[0]} lies beside folders of classes ({classes[0].name}, …): "
                            "move it into one of them or remove it")
        members: list[int] = []
        for label, folder in enumerate(classes):
            inside, deeper = _listing(folder)
            if deeper:
                raise DataError(f"{deeper[0]} is a folder inside a class: move its images up")
            if not inside:
                raise DataError(f"{folder} is a class without images: add some or remove it")
            files += inside
            members += [label] * len(inside)
        labels = np.array(members, dtype=np.int64)
    if not files:
        raise DataError(f"data.path: {root} holds no images ({', '.join(sorted(SUFFIXES))})")
    contents = ((str(file), read_limited(file, MAX_FILE)) for file in files)
    images = stack_images(contents, len(files), FORMATS, config.resolution)
    return LabelledImages(images, labels, [folder.name for folder in classes])


def _listing(folder: Path) -> tuple[list[Path], list[Path]]:
    """The image files and the folders in a folder, each sorted by name."""
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check the "
                        "permissions") from error
    return ([entry for entry in entries if not entry.is_dir() and entry.suffix.lower() in SUFFIXES],
            [entry for entry in entries if entry.is_dir()])
