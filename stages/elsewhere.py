"""Pairs that lie elsewhere, in a bucket or on another disk; the project has a reference to them.

Each store has a place of its own below `pairs.location`, named after all that its bytes depend on.
So a run that was killed, and one on another machine, go on with it; a finished one is taken as it
is; and other parameters, or other code, never touch it. Nothing is removed there.
"""

from collections.abc import Callable
from pathlib import Path

from kdm_core.errors import KDMError
from kdm_core.pairs.location import local_path, names
from kdm_core.pairs.reference import Reference, seen_from
from kdm_core.pairs.spec import StoreSpec
from kdm_core.pairs.store import PairStore
from stages import paths

DIGITS = 16


def place_of(location: str, key: str, spec: StoreSpec) -> str:
    """Where the store of a specification is made.

    Args:
        location: `pairs.location`, the folder or URL below which all stores are.
        key: of all that samples depend on but for their number and the law of their labels.
    """
    return f"{location.rstrip('/')}/{prefix(key)}{spec.fingerprint[:DIGITS]}.zarr"


def prefix(key: str) -> str:
    """How the names of all stores begin in which equal indices of equal labels are the same pairs
    to the bit."""
    return f"pairs-{key[:DIGITS]}-"


def places_below(location: str, key: str) -> list[str]:
    """The places of all stores of a key. Arguments as those of `place_of`.

    Raises:
        DataError: the location cannot be listed.
    """
    return [f"{location.rstrip('/')}/{name}" for name in names(location)
            if name.startswith(prefix(key))]


def find_former(
    location: str, key: str, spec: StoreSpec, say: Callable[[str], None]
) -> list[PairStore]:
    """Other stores of the same pairs, with more or fewer of them. Arguments as those of `place_of`.

    Raises:
        DataError: the location cannot be listed.
    """
    found = []
    own = place_of(location, key, spec)
    for place in places_below(location, key):
        if place == own:
            continue
        try:
            store = PairStore.open(place)
        except KDMError as error:
            say(f"pairs that were sampled before cannot be used: {error}")
            continue
        if store.spec.stream == spec.stream:
            found.append(store)
    return found


def refer(store: PairStore, content: str, work: Path) -> None:
    """Write a reference to a finished store, for `paths.PAIRS`, into the folder `work`."""
    path = local_path(store.location)
    location = str(store.location) if path is None else seen_from(paths.PAIRS, path)
    Reference(location=location, fingerprint=store.spec.fingerprint, content=content,
              pairs=store.spec.count).save(work)
