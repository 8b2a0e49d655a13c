"""How often the classes of data are, and labels in the same proportion."""

from collections.abc import Sequence
from math import gcd

import numpy as np
from numpy.typing import NDArray

from kdm_core.errors import MismatchError


def label_counts(
    labels: NDArray[np.int64], class_names: list[str], names: list[str]
) -> list[int]:
    """How many labels each class of a model has among those of some data.

    Args:
        labels: of the data, (n,), each one of `class_names`.
        class_names: the data's classes.
        names: the model's. They are the data's of the same names, in whatever order; where the
            names are others (numbers, say), those of the same numbers.

    Raises:
        MismatchError: there are not as many.
    """
    if len(class_names) != len(names):
        raise MismatchError(f"labels: the data has {len(class_names)} classes and the model "
                            f"{len(names)}: choose data with the model's classes")
    counts = np.bincount(labels, minlength=len(names)).tolist()
    order = names if set(names) == set(class_names) else class_names
    return [counts[class_names.index(name)] for name in order]


def label_weights(counts: Sequence[int]) -> list[int] | None:
    """The least whole numbers in the proportion of some counts; None where all are equal."""
    divisor = gcd(*counts)
    weights = [count // divisor for count in counts]
    return weights if len(set(weights)) > 1 else None
