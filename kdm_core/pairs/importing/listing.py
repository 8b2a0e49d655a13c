"""The files of a folder of pairs, in the order of the pairs."""

import os
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path

from kdm_core.datasets.listing import is_left_behind, natural, numbered_parts
from kdm_core.errors import DataError, shown


def walk(folder: Path) -> list[str]:
    """All files in a folder and its sub-folders, relative to it; hidden folders are not entered.

    Links are followed, as classes may be links to folders elsewhere.

    Raises:
        DataError: a folder cannot be read, or is met again by a link.
    """
    found, entered = [], set()
    for place, folders, files in os.walk(folder, onerror=refuse, followlinks=True):
        if (real := os.path.realpath(place)) in entered:
            raise DataError(f"{shown(place)} is, by a link, a folder that was read already: remove "
                            "the link")
        entered.add(real)
        folders[:] = [name for name in folders if not is_left_behind(name)]
        prefix = os.path.relpath(place, folder)
        found += [name if prefix == "." else f"{prefix}/{name}" for name in files]
    return found


def refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): check the permissions")


def of_kind(names: Iterable[str], suffix: str) -> list[str]:
    """The files with an ending, `.PNG` like `.png`, that are not hidden, in the order of pairs.

    That is the natural order of their own names, and only then of their folders: the first pairs,
    which are tested on, come from all classes alike.
    """
    return sorted((name for name in names
                   if name.lower().endswith(suffix) and not is_left_behind(name)), key=by_name)


def by_name(name: str) -> tuple[object, object]:
    """A key that puts 2.npz before 10.npz, and a/2.npz before b/2.npz."""
    folder, _, file = name.rpartition("/")
    return natural(file), natural(folder)


def require_one_order(names: list[str], place: str) -> None:
    """Make sure that sorted files can be joined by position with what is in one file.

    Raises:
        DataError: they lie in several folders, or only zeros before a number tell two apart.
    """
    problem = None
    if len({name.rpartition("/")[0] for name in names}) > 1:
        problem = "the images lie in several folders"
    for first, second in pairwise(names):
        if numbered_parts(first) == numbered_parts(second):
            problem = f"{first} and {second} have the same number"
    if problem:
        raise DataError(f"{place}: noise in one file is joined to images by position, and "
                        f"{problem}, so that their order is not sure: put the noise of each image "
                        "beside it, as NAME.npy beside NAME.png")
