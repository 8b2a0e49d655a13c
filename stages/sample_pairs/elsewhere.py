"""Pairs that are there already: in this project, in a bucket or on another disk.

Pairs are what their specification says, whoever sampled them with which release, device or number
of threads. So a run that was killed, and one on another machine, go on with what is there; a
finished store is taken as it is; and pairs of another specification are never touched. Nothing is
removed behind `pairs.location`.
"""

from collections.abc import Callable, Iterator
from pathlib import Path

from kdm_core.errors import KDMError
from kdm_core.pairs.location import local_path, names
from kdm_core.pairs.reference import Reference, seen_from
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from pipeline.pairs.kept import KEPT
from pipeline.runtime import paths

PREFIX, SUFFIX, DIGITS = "pairs-", ".zarr", 16
UNFINISHED = paths.WORK / "sample_pairs"


def stores_there(location: str | None, say: Callable[[str], None]) -> Iterator[PairStore]:
    """All stores that may hold pairs of this project: unfinished, finished and kept ones.

    Args:
        location: `pairs.location`, the folder or URL below which stores are made; None for none.
        say: told of those that cannot be read.

    Raises:
        DataError: the location cannot be listed.
    """
    here = [path for path in (paths.PAIRS, *KEPT.glob("[!.]*")) if path.exists()]
    places: list[str | Path] = [*places_below(location),
                                *sorted(UNFINISHED.glob("*/pairs.zarr")), *here]
    for place in places:
        try:
            yield PairStore.open(place)
        except KDMError as error:
            say(f"pairs that were sampled before cannot be used: {error}")


def places_below(location: str | None) -> list[str]:
    """The places of all stores below a location."""
    return [] if location is None else [
        f"{location.rstrip('/')}/{name}" for name in names(location)
        if name.startswith(PREFIX) and name.endswith(SUFFIX)]


def place_of(location: str, spec: StoreSpec) -> str:
    """Where below a location a new store of a specification is made."""
    return f"{location.rstrip('/')}/{PREFIX}{spec.fingerprint[:DIGITS]}{SUFFIX}"


def refer(store: PairStore, content: str, work: Path) -> None:
    """Write a reference to a finished store, for `paths.PAIRS`, into the folder `work`."""
    path = local_path(store.location)
    location = str(store.location) if path is None else seen_from(paths.PAIRS, path)
    Reference(location=location, fingerprint=store.spec.fingerprint, content=content,
              pairs=store.spec.count).save(work)
