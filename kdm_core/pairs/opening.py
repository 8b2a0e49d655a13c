"""Going on with a store that is there, or making it; and whether the disk has room for the rest."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from kdm_core.errors import DataError, KDMError
from kdm_core.pairs.location import local_path
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore, array_layout


def open_or_create(
    location: Path | str, spec: StoreSpec, provenance: dict[str, Any]
) -> PairStore:
    """A new store, or one of the same specification that is there already, for writing.

    Raises:
        MismatchError: what is there holds other pairs.
        DataError: something else is there, or it cannot be written.
    """
    try:
        store = PairStore.open(location, writable=True)
    except DataError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        try:
            return PairStore.create(location, spec, provenance)
        except DataError as refused:
            try:
                store = PairStore.open(location, writable=True)  # another process was faster
            except DataError:
                raise refused from None
    store.require(spec)
    return store


def open_unfinished(
    path: Path, spec: StoreSpec, say: Callable[[str], None]
) -> PairStore | None:
    """The store of an earlier run, to go on with it; one that cannot be gone on with is removed.

    Args:
        say: told why that one is not used.
    """
    if not path.exists():
        return None
    try:
        store = PairStore.open(path, writable=True)
        store.require(spec)
    except KDMError as error:
        say(f"starting over: {error}")
        shutil.rmtree(path)
        return None
    return store


def require_space(store: PairStore, pairs: int) -> None:
    """Fail before the work and not after it when so many more pairs cannot fit on the disk.

    Raises:
        DataError: they cannot.
    """
    path = local_path(store.location)
    if path is None:
        return
    size = stored_bytes(store.spec, pairs)
    free = shutil.disk_usage(path).free
    if free < size:
        raise DataError(f"{path}: the pairs need up to {size / 1e6:,.0f} MB, {free / 1e6:,.0f} MB "
                        "are free: make room, take fewer pairs or another place")


def stored_bytes(spec: StoreSpec, pairs: int) -> int:
    """The bytes that pairs take at most; samples are compressed."""
    return pairs * sum(int(np.prod(shape)) * np.dtype(dtype).itemsize
                       for shape, dtype, _ in array_layout(spec).values())
