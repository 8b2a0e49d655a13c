"""A zip of images with a dataset.json, as the dataset tools of StyleGAN2-ADA to EDM2 write it.

Layout: https://github.com/NVlabs/edm, dataset_tool.py and training/dataset.py.
"""

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from posixpath import commonpath
from typing import Any, Literal, NamedTuple

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
from kdm_core.datasets.images import FORMATS, MAX_FILE, SUFFIXES, stack_images
from kdm_core.datasets.listing import is_left_behind, natural, pass_over
from kdm_core.datasets.reading import existing_file
from kdm_core.errors import DataError, adapted

LABELS = "dataset.json"
MAX_LABELS = 256 * 2**20


class EdmZipConfig(SplitConfig):
    """A zip with images of one size and a `dataset.json`: {"labels": [[name, class], …] or null}.

    The images are PNG, JPEG, WebP or BMP; all may lie in a folder. What else is in the zip is
    passed over, and a line says so.

    Attributes:
        path: the zip.
    """

    source: Literal["edm_zip"]
    path: str = Field(min_length=1)


class Contents(NamedTuple):
    """What a zip holds.

    Attributes:
        images: by their names as seen from where the labels lie.
        labels: the member with these, if there is one.
        others: names of what is passed over.
    """

    images: dict[str, zipfile.ZipInfo]
    labels: zipfile.ZipInfo | None
    others: list[str]


def read_edm_zip(config: EdmZipConfig) -> LabelledImages:
    """All images in the natural order of their names. Nothing is written to the disk.

    Raises:
        DataError: the file is missing or damaged, or its images and labels do not fit.
    """
    path = existing_file(config.path)
    try:
        archive = zipfile.ZipFile(path)
    except Exception as error:  # BadZipFile, OSError, NotImplementedError, UnicodeDecodeError, …
        raise DataError(f"{path} is not a readable zip file ({error}): fetch or make it "
                        "again") from error
    with archive:
        found = _contents(archive, path)
        names = sorted(found.images, key=natural)
        if not names:
            raise DataError(f"{path} holds no {', '.join(FORMATS)} images: supply another file")
        pass_over(found.others, len(names), "images", str(path))
        labels = None
        if found.labels is None:
            adapted(f"{path} holds no {LABELS}: its images have no labels")
        else:
            root = PurePosixPath(found.labels.filename).parent
            labels = _labels(_read(archive, found.labels, MAX_LABELS, path), names, root, path)
        files = _files(archive, [found.images[name] for name in names], path)
        images = stack_images(files, len(names), FORMATS)
    if labels is None:
        return LabelledImages(images, unlabelled(len(images)), [])
    class_names = numbered_classes(labels, f"{path}: {LABELS}")
    return LabelledImages(
        images, check_labels(labels, len(names), len(class_names), f"{path}: {LABELS}"),
        class_names)


def _contents(archive: zipfile.ZipFile, path: Path) -> Contents:
    """The members, sorted out.

    Raises:
        DataError: a name is unsafe or there twice, or images are not beside the labels.
    """
    images: dict[str, zipfile.ZipInfo] = {}
    listings: list[zipfile.ZipInfo] = []
    others = []
    for member in archive.infolist():
        name, parts = member.filename, PurePosixPath(member.filename)
        if member.is_dir():
            continue
        if is_left_behind(name):
            others.append(name)
        elif parts.is_absolute() or ".." in parts.parts or "\\" in name or not name.isprintable():
            raise DataError(f"{path}: the member name {name!r} is unsafe: make the file again")
        elif parts.name == LABELS:
            listings.append(member)
        elif parts.suffix.lower() not in SUFFIXES:
            others.append(name)
        elif str(parts) in images:
            raise DataError(f"{path}: there are two members {name}: remove one")
        else:
            images[str(parts)] = member
    if len(listings) > 1:
        raise DataError(f"{path} holds {' and '.join(one.filename for one in listings[:2])}: "
                        "remove one")
    if not listings:
        return Contents(images, None, others)
    root = PurePosixPath(listings[0].filename).parent
    if apart := [name for name in images if not PurePosixPath(name).is_relative_to(root)]:
        raise DataError(f"{path}: {apart[0]} does not lie beside {listings[0].filename}, which has "
                        "the labels: put all images there")
    return Contents({str(PurePosixPath(name).relative_to(root)): member
                     for name, member in images.items()}, listings[0], others)


def _read(archive: zipfile.ZipFile, member: zipfile.ZipInfo, limit: int, path: Path) -> bytes:
    """The content of a member of at most `limit` bytes."""
    place = f"{path}: {member.filename}"
    # zipfile never yields more than the announced size, so a false one cannot get past this.
    if member.file_size > limit:
        raise DataError(f"{place} unpacks to {member.file_size} bytes, at most {limit} are "
                        "allowed: make it smaller")
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise DataError(f"{place} is packed with method {member.compress_type}: use deflate")
    try:
        return archive.read(member)
    except Exception as error:  # zlib.error, RuntimeError if encrypted, BadZipFile, EOFError, …
        raise DataError(f"{place} is damaged or encrypted ({error}): fetch or make the zip "
                        "again") from error


def _files(
    archive: zipfile.ZipFile, members: list[zipfile.ZipInfo], path: Path
) -> Iterator[tuple[str, bytes]]:
    for member in members:
        yield f"{path}: {member.filename}", _read(archive, member, MAX_FILE, path)


def _labels(
    content: bytes, names: list[str], root: PurePosixPath, path: Path
) -> NDArray[np.int64] | None:
    """The labels of the named images, from the text of dataset.json, which lies in `root`.

    It has the names as seen from there, as they stand in the zip, or as seen from a folder
    that all images are in.
    """
    place = f"{path}: {LABELS}"
    try:
        document: Any = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place} is not valid JSON ({error}): make it again") from error
    if not isinstance(document, dict) or "labels" not in document:
        raise DataError(f"{place}: expected an object with the key 'labels'")
    entries = document["labels"]
    if entries is None:
        return None
    if not isinstance(entries, list):
        raise DataError(f"{place}: 'labels' must be null or a list of [name, class]")
    classes: dict[str, int] = {}
    for entry in entries:
        match entry:
            # bool is an int to Python; beyond 32 bits it is no class in any case.
            case [str(given), int(label)] if not isinstance(label, bool) and abs(label) < 2**31:
                name = str(PurePosixPath(given))
                if name in classes:
                    raise DataError(f"{place}: two labels for {name[:200]!r}: remove one")
                classes[name] = label
            case _:
                raise DataError(f"{place}: {str(entry)[:100]} is not [name, class], with the class "
                                "an integer from 0")
    paths = [PurePosixPath(name) for name in names]
    folder = PurePosixPath(commonpath([path.parent for path in paths]))
    for listed in ([root / path for path in paths],
                   *([path.relative_to(above) for path in paths]
                     for above in (folder, *folder.parents))):
        if classes.keys() == set(map(str, listed)):
            return np.array([classes[str(name)] for name in listed], dtype=np.int64)
    different = min(classes.keys() ^ set(names))
    problem = "has a label but is not in the zip" if different in classes else "has no label"
    raise DataError(f"{place}: {different[:200]!r} {problem} ({len(classes)} labels, "
                    f"{len(names)} images): make the zip again")
