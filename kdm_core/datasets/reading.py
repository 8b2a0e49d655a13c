"""Reading files that a user names, within limits."""

from pathlib import Path

from kdm_core.errors import DataError, shown


def existing(path: str) -> Path:
    """The file or folder that a `path` names.

    Raises:
        DataError: there is none.
    """
    found = Path(path)
    if not found.exists():
        raise DataError(f"{path} does not exist: correct the path", field="path")
    return found


def existing_file(path: str) -> Path:
    """The regular file that a `path` names.

    Raises:
        DataError: there is none.
    """
    found = existing(path)
    if not found.is_file():
        raise DataError(f"{path} is not a file: correct the path or the source", field="path")
    return found


def read_limited(path: Path, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes.

    Raises:
        DataError: it is missing, larger, or may not be read.
    """
    if not path.is_file():  # a device or pipe could be read for ever
        raise DataError(f"{shown(path)} is missing or not a file: supply it")
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read ({error.strerror}): check the disk and the "
                        "permissions") from error
    if len(content) > limit:
        raise DataError(f"{shown(path)} is larger than {limit} bytes: remove it or make it smaller")
    return content
