"""Files and folders that appear under their names when they are whole."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from kdm_core.errors import DataError
from kdm_core.pairs.location import failures

MARK = "export.txt"


def require_new(path: Path) -> None:
    """Raises: DataError: something is there already."""
    if path.exists():
        raise DataError(f"{path} exists already: move it away or name another place")


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write, which becomes `path` at the end.

    Raises:
        DataError: it cannot be written.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    with failures(f"cannot write {path}"):
        try:
            with temporary.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def filling(folder: Path, mark: str) -> Iterator[Path]:
    """A folder to fill, which becomes `folder` at the end.

    What an earlier run of the same `mark` had put into it before it was stopped is still there.

    Raises:
        DataError: it cannot be written.
    """
    require_new(folder)
    work = folder.with_name(f".{folder.name}.exporting")
    files, known = work / "files", work / MARK
    with failures(f"cannot write {folder}"):
        if not (known.is_file() and known.read_text() == mark):
            shutil.rmtree(work, ignore_errors=True)
            files.mkdir(parents=True)
            known.write_text(mark)
        yield files
        files.rename(folder)
        shutil.rmtree(work)
