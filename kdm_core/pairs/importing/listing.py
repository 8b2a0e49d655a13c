"""The files of a folder of pairs, in the order of the pairs."""

import os
from pathlib import Path

from kdm_core.errors import DataError


def files_under(folder: Path, suffix: str) -> list[str]:
    """The files in a folder and its sub-folders, relative to it; hidden ones are left out.

    In the order of their own names, and only then of their folders: the first pairs, which are
    tested on, come from all classes alike.

    Raises:
        DataError: a folder cannot be read.
    """
    found = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        prefix = os.path.relpath(place, folder)
        found += [name if prefix == "." else f"{prefix}/{name}" for name in files
                  if name.endswith(suffix) and not name.startswith(".")]
    return sorted(found, key=by_number)


def refuse(error: OSError) -> None:
    raise DataError(f"{error.filename} cannot be read ({error.strerror}): check the permissions")


def by_number(name: str) -> tuple[int, str, str]:
    """A key that puts 2.npz before 10.npz."""
    folder, _, file = name.rpartition("/")
    return len(file), file, folder
