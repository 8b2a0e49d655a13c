"""Labels as users give them: names or numbers of classes, for one sample or many.

One meaning everywhere. In words, as a string, a class is called by its name; by its number, from 0,
too, unless some class is named by another number than its own. So "2" is the class named "2"
wherever there is one. As an integer it is its number.
"""

import csv
import operator
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from kdm_core.classes import shown
from kdm_core.errors import KDMError, adapted

Label = str | int
# A single one, also in a list, is that of all samples.
Labels = Label | Sequence[Label] | NDArray[Any] | Tensor
INTEGERS = {torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16,
            torch.uint32, torch.uint64}


def as_labels(labels: Labels | None, names: Sequence[str], n: int, who: str) -> Tensor | None:
    """One label for each of n samples, (n,) int64, where it was given.

    Args:
        labels: a name or an integer for all samples; or a list, array or tensor with one for each,
            or with a single one for all. None is for models without classes alone.
        names: of the model's classes; empty if it takes none.
        who: what takes them, for messages, such as "student".

    Returns:
        On the device of a tensor, otherwise on the CPU; None for models without classes.

    Raises:
        KDMError: these are no labels of the model's, not as many, or given to one without classes.
    """
    if not names:
        if labels is not None:
            raise KDMError(f"labels: this {who} takes none; leave them out")
        return None
    if labels is None:
        raise KDMError(f"labels: this {who} needs them: give one for each sample, or one for all, "
                       f"as labels={names[0]!r}; its classes are {shown(names)}")
    numbers = as_numbers(labels, names)
    if numbers.shape not in ((), (1,), (n,)):
        raise KDMError(f"labels: {tuple(numbers.shape)} were given for {n} samples; give one for "
                       "each, or a single one for all")
    if n and numbers.numel():
        least, most = int(numbers.min()), int(numbers.max())
        if least < 0 or most >= len(names):
            raise KDMError(f"labels: this {who}'s are 0 to {len(names) - 1}, found "
                           + (f"{least} to {most}" if least < most else f"{least}"))
    return numbers.expand(n)


def as_numbers(labels: Any, names: Sequence[str]) -> Tensor:
    """Labels of any form as int64, of any shape and range.

    Raises:
        KDMError: they are neither integers nor names of classes.
    """
    if isinstance(labels, Tensor):
        if labels.dtype in INTEGERS:
            return labels.detach().to(torch.int64)
        raise KDMError(f"a tensor of {labels.dtype} has no labels; give integers (labels.long() of "
                       "whole numbers) or names of classes", field="labels")
    if hasattr(labels, "__array__") and not isinstance(labels, str):
        array = np.asarray(labels)
        if array.dtype.kind in "iu":
            return torch.from_numpy(array.astype(np.int64))
        if array.dtype.kind not in "UOT":
            raise KDMError(f"an array of {array.dtype} has no labels; give integers "
                           "(labels.astype(int) of whole numbers) or names of classes",
                           field="labels")
        labels = array.tolist()
    if not isinstance(labels, Sequence) or isinstance(labels, str | bytes):
        return torch.tensor(as_number(labels, names), dtype=torch.int64)
    # Each name once, so that what there is to say of it is said once.
    called = {name: named_class(name, names) for name in
              dict.fromkeys(label for label in labels if isinstance(label, str))}
    return torch.tensor([called[label] if isinstance(label, str) else as_number(label, names)
                         for label in labels], dtype=torch.int64)


def as_number(label: object, names: Sequence[str]) -> int:
    """A single label as a number of any range."""
    if isinstance(label, str):
        return named_class(label, names)
    if isinstance(label, Tensor | np.ndarray | np.generic) and label.ndim == 0:
        label = label.item()
    try:
        if isinstance(label, bool):  # which Python takes for a number
            raise TypeError
        number = operator.index(label)  # type: ignore[arg-type]
    except TypeError:
        raise KDMError(f"{repr(label)[:50]} is no label; give integers or names of classes, which "
                       f"are {shown(names)}", field="labels") from None
    if not -(2**63) <= number < 2**63:
        raise KDMError("there is no class of a number so large: they are numbered 0 to "
                       f"{len(names) - 1}", field="labels")
    return number


def named_class(text: str, names: Sequence[str]) -> int:
    """The number of the class that is called so.

    Raises:
        KDMError: there is no such class, or there are several.
    """
    own = {str(number): number for number in range(len(names))}
    if names.count(text) == 1:
        number = names.index(text)
        if own.get(text, number) != number:
            adapted(f"{text} is taken for the class of that name, which is number {number}; class "
                    f"number {text} is named {names[own[text]]}", field="labels")
        return number
    if text in names:
        raise KDMError(f"{names.count(text)} classes are named {text}: give a number",
                       field="labels")
    # Whether some class is named by a whole number that is not its own.
    otherwise = any(name.isdecimal() and own.get(name) != number
                    for number, name in enumerate(names))
    if text in own and not otherwise:
        return own[text]
    near = get_close_matches(text.lower(), [name.lower() for name in names], cutoff=0.5)
    like = [name for name in names if name.lower() in near]
    raise KDMError(f"there is no class '{text}'"
                   + (f"; near are {', '.join(like)}" if like else "")
                   + f"; the classes are {shown(names)}"
                   + ("" if otherwise else f", or 0 to {len(names) - 1}"), field="labels")


def parse_classes(text: str, names: Sequence[str]) -> list[int]:
    """The numbers of the classes that a text names, as in `circle,square` or `0,1,2`.

    A name with a comma in it stands between double quotes.

    Raises:
        KDMError: there is no such class, or there are none at all; near names are told.
    """
    if not names:
        raise KDMError("this takes none, since there are no classes; leave them out",
                       field="labels")
    if text in names:
        return [named_class(text, names)]
    parts = [part.strip() for row in csv.reader([text], skipinitialspace=True) for part in row]
    if not parts or not all(parts):
        raise KDMError(f"'{text}' has an empty entry; give names or numbers of classes, such as "
                       "0,1,2", field="labels")
    return [named_class(part, names) for part in parts]


def in_turn(text: str, n: int, names: Sequence[str]) -> list[int]:
    """The classes that a text names, as one label for each of n samples, in turn.

    Raises:
        KDMError: as `parse_classes`, or there are fewer samples than labels.
    """
    found = parse_classes(text, names)
    if len(found) > n:
        raise KDMError(f"{len(found)} labels for {n} samples; take more", field="labels")
    return [found[index % len(found)] for index in range(n)]
