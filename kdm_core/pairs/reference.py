"""References: small folders that stand where a pair store is looked for, and say where it lies.

So a store in a bucket, or on another disk, is an output of the pipeline as any other: who opens the
reference for reading has the store.
"""

import os
from pathlib import Path

from pydantic import Field, ValidationError

from kdm_core.config import Config
from kdm_core.errors import DataError
from kdm_core.pairs.location import local_path
from kdm_core.serialization import read_json, write_json

FILE = "reference.json"
HASH = "^[0-9a-f]{64}$"


class Reference(Config):
    """Where a store lies, and which one it is.

    Attributes:
        location: a URL, or a folder, absolute or seen from the reference's own.
        fingerprint: of the store's specification.
        content: its content hash.
        pairs: how many it holds.
    """

    location: str = Field(min_length=1)
    fingerprint: str = Field(pattern=HASH)
    content: str = Field(pattern=HASH)
    pairs: int = Field(ge=1)

    def save(self, folder: Path) -> None:
        """Write the reference as a folder."""
        write_json(folder / FILE, self.model_dump())

    def target(self, place: Path | str) -> Path | str:
        """The store's location, as it is seen from here; `place` is the reference's own folder."""
        folder, path = local_path(place), local_path(self.location)
        if folder is None or path is None:
            return self.location
        # By its name: the folder may lie behind a link, on a larger disk say.
        return Path(os.path.normpath(folder / path))


def seen_from(folder: Path, location: Path | str) -> str:
    """A store's location as a reference in `folder` has it."""
    path = local_path(location)
    return str(location) if path is None or path.is_absolute() else os.path.relpath(path, folder)


def find_reference(location: Path | str) -> Reference | None:
    """The reference that a folder is; None where it is none.

    Raises:
        DataError: it is damaged.
    """
    path = local_path(location)
    if path is None or not (path / FILE).is_file():
        return None
    try:
        return Reference.model_validate(read_json(path / FILE))
    except ValidationError as error:
        [first, *_] = error.errors(include_url=False)
        where = ".".join(map(str, first["loc"]))
        raise DataError(f"{path / FILE} is no reference to a pair store ({where}: "
                        f"{first['msg']}): delete it and make it again") from error
