"""Images in a folder, one file each."""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from kdm_core.datasets.base import LabelledImages, SplitConfig, check_names, unlabelled
from kdm_core.datasets.images import FORMATS, MAX_FILE, SUFFIXES, stack_images
from kdm_core.datasets.listing import in_class_order, is_left_behind, natural, pass_over
from kdm_core.datasets.reading import existing, read_limited
from kdm_core.errors import DataError, adapted, shown


class FolderConfig(SplitConfig):
    """PNG, JPEG, WebP and BMP files in a folder, or in sub-folders of it that are the classes.

    Other files are passed over, hidden ones and hidden folders too; a line says so.

    Attributes:
        path: the folder.
        resolution: side of the square that every image is cropped (around its centre) and resized
            to; without it all images must have the same size.
    """

    source: Literal["folder"]
    path: str = Field(min_length=1)
    resolution: int | None = Field(None, ge=1, le=4096)


class Listing(NamedTuple):
    """What is in a folder: image files and folders in natural order, and what is passed over."""

    images: list[Path]
    folders: list[Path]
    others: list[Path]


def read_folder(config: FolderConfig) -> LabelledImages:
    """All images, class by class in the natural order of their names; gray if all files are.

    Class k is folder k where the names of all classes are whole numbers.

    Raises:
        DataError: the folder is missing, empty or ambiguous, or an image cannot be used.
    """
    root = existing(config.path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: correct the path or the source", field="path")
    root, (files, folders, others) = _enter(root)
    labels, names = unlabelled(len(files)), [folder.name for folder in folders]
    if names:
        check_names(names, str(root))
        names = in_class_order(names, str(root))
        if files:
            raise DataError(f"{shown(files[0])} lies beside folders of classes ({names[0]}, …): "
                            "move it into one of them or remove it")
        members: list[int] = []
        for label, name in enumerate(names):
            inside, deeper, more = _listing(root / name)
            if deeper:
                raise DataError(f"{shown(deeper[0])} is a folder inside a class: move its images "
                                "up")
            if not inside:
                raise DataError(f"{root / name} is a class without images: add some or remove it")
            files += inside
            others += more
            members += [label] * len(inside)
        labels = np.array(members, dtype=np.int64)
    if not files:
        raise DataError(f"{root} holds no images ({', '.join(sorted(SUFFIXES))})", field="path")
    pass_over([str(path.relative_to(root)) for path in others], len(files), "images", str(root))
    contents = ((shown(file), read_limited(file, MAX_FILE)) for file in files)
    images = stack_images(contents, len(files), FORMATS, config.resolution)
    return LabelledImages(images, labels, names)


def _enter(root: Path) -> tuple[Path, Listing]:
    """A folder and what is in it; if that is nothing but a folder of folders, that one."""
    found = _listing(root)
    if not found.images and len(found.folders) == 1:
        inner, inside = _enter(found.folders[0])
        if inside.folders:
            adapted(f"the folders in {inner} are taken for the classes, since {root.name} holds "
                    "nothing else", field="path")
            return inner, inside
    return root, found


def _listing(folder: Path) -> Listing:
    try:
        entries = sorted(folder.iterdir(), key=lambda entry: natural(entry.name))
    except OSError as error:
        raise DataError(f"{folder} cannot be read ({error.strerror}): check the "
                        "permissions") from error
    found = Listing([], [], [])
    for entry in entries:
        if is_left_behind(entry.name):
            found.others.append(entry)
        elif entry.is_dir():
            found.folders.append(entry)
        elif entry.suffix.lower() in SUFFIXES:
            found.images.append(entry)
        else:
            found.others.append(entry)
    return found
