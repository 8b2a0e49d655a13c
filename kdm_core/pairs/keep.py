"""The mask of a pair store: which pairs students read, and why others are left out.

Two arrays, one entry a pair, in the store's own group or in a small group beside it:

    keep     (n,) bool     whether the pair is kept
    reasons  (n,) uint16   bit k is set where reason k speaks against it, 0 where it is kept

The names of the reasons stand in the attributes, under `kdm_keep`.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec

from kdm_core.errors import DataError
from kdm_core.pairs.location import failures, open_group, storage

KEEP_ATTRIBUTE = "kdm_keep"
MAX_REASONS = 16


class KeepMask(NamedTuple):
    """Which pairs of a store are kept.

    Attributes:
        pairs: the store's fingerprint.
        names: of the reasons, at most 16; bit k of `reasons` is `names[k]`.
        reasons: (n,) uint16; 0 keeps a pair.
    """

    pairs: str
    names: list[str]
    reasons: NDArray[np.uint16]

    @property
    def keep(self) -> NDArray[np.bool_]:
        """(n,) bool."""
        return np.equal(self.reasons, 0)

    def counts(self) -> dict[str, int]:
        """Pairs that each reason speaks against; several can speak against one."""
        return {name: int((self.reasons >> k & 1).sum()) for k, name in enumerate(self.names)}

    def write(self, group: zarr.Group) -> None:
        """Put the mask into a group, in place of one that is there."""
        for name, values in (("keep", self.keep), ("reasons", self.reasons)):
            group.create_array(name, data=values, overwrite=True,
                               compressors=[ZstdCodec(level=1), Crc32cCodec()])
        # Last, since a mask without it is none.
        group.update_attributes({KEEP_ATTRIBUTE: {"pairs": self.pairs, "names": self.names}})

    def save(self, location: str | Path) -> None:
        """Write the mask as a group of its own."""
        with failures(location):
            self.write(zarr.create_group(storage(location, read_only=False), overwrite=True))

    @classmethod
    def load(cls, location: str | Path) -> "KeepMask":
        """Read a mask that has a group of its own.

        Raises:
            DataError: there is none, or it is damaged.
        """
        mask = cls.find(open_group(location), location)
        if mask is None:
            raise DataError(f"{location} holds no mask of pairs: filter them")
        return mask

    @classmethod
    def find(cls, group: zarr.Group, location: str | Path) -> "KeepMask | None":
        """The mask in a group, if it has one.

        Raises:
            DataError: it is damaged.
        """
        attributes: Any = group.attrs.get(KEEP_ATTRIBUTE)
        if attributes is None:
            return None
        try:
            arrays: dict[str, Any] = {name: group[name] for name in ("keep", "reasons")}
            keep, reasons = arrays["keep"][:], arrays["reasons"][:]
            mask = cls(str(attributes["pairs"]), list(attributes["names"]),
                       np.asarray(reasons, np.uint16))
            if len(mask.names) > MAX_REASONS or not np.array_equal(keep, mask.keep):
                raise ValueError("its two arrays contradict each other")
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, ZeroDivisionError) as error:
            raise DataError(f"{location}: the mask of pairs is damaged ({error}): filter again"
                            ) from error
        return mask
