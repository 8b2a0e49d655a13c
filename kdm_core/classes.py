"""Which class is which, where two things that have classes meet.

A class is known by its name, its number is only its place in one list. A name that is the class's
own number says nothing ("0", "1", … stand where a file has no names): such classes are the same
where their numbers are.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from kdm_core.errors import MismatchError, adapted

SHOWN = 20


def match_classes(mine: Sequence[str], theirs: Sequence[str], who: str, here: str) -> list[int]:
    """For each class of `mine` the number that it has in `theirs`.

    By name where all of `mine` are among `theirs`. By order where names that say nothing are all
    that differs. Both are said, unless the lists agree as they are.

    Args:
        mine: names of the classes here; there may be fewer than of theirs.
        theirs: names of the other's classes.
        who, here: whose names they are, for messages: "teacher", "the data set".

    Raises:
        MismatchError: it is not sure which class is which; the message shows both lists.
    """
    order, how = find_order(mine, theirs)
    both = f"{who}: its classes {shown(theirs)}", f"those of {here} {shown(mine)}"
    if order is None:
        raise MismatchError(f"{both[0]} and {both[1]} are not the same: give both the same names, "
                            "each of them once, or choose others")
    if how == "name":
        adapted(f"{both[0]} are matched by name with {both[1]}")
    elif how == "order":
        adapted(f"{both[0]} are taken in the order of {both[1]}, since names that are mere numbers "
                "do not say which class is which")
    return order


def find_order(
    mine: Sequence[str], theirs: Sequence[str]
) -> tuple[list[int] | None, Literal["same", "name", "order", "unsure"]]:
    """As `match_classes`, in silence: the numbers, or None, and how they were found."""
    numbers = list(range(len(mine)))
    if list(mine) == list(theirs[: len(mine)]):
        return numbers, "same"
    places = {name: number for number, name in enumerate(theirs)}
    distinct = len(set(mine)) == len(mine) and len(places) == len(theirs)
    if distinct and all(name in places for name in mine):
        return [places[name] for name in mine], "name"
    apart = any(places.get(name, number) != number for number, name in enumerate(mine))
    named = any(str(number) not in pair and pair[0] != pair[1]
                for number, pair in enumerate(zip(mine, theirs, strict=False)))
    if not distinct or apart or named or len(mine) > len(theirs):
        return None, "unsure"
    return numbers, "order"


def require_order(mine: Sequence[str], theirs: Sequence[str], who: str, here: str) -> None:
    """Make sure that both have the same classes in one order, where nothing can be numbered anew.

    Raises:
        MismatchError: they have not, or it is not sure; the message shows both lists.
    """
    order, _ = find_order(theirs, mine)
    if order != list(range(len(mine))):
        raise MismatchError(f"{who}: its classes are {shown(mine)}, those of {here} "
                            f"{shown(theirs)}: choose such that have the same classes in the same "
                            "order")
    match_classes(theirs, mine, who, here)


@torch.no_grad()
def rearrange(weights: Sequence[tuple[Tensor, int]], order: Sequence[int]) -> None:
    """Number classes anew in place: class i becomes what class order[i] was.

    Args:
        weights: each with the dimension along which it has a place for every class.
    """
    for weight, dim in weights:
        places = torch.tensor(order, device=weight.device)
        weight.copy_(weight.index_select(dim, places))


def shown(names: Sequence[str]) -> str:
    """A list of names, of which a long one is cut."""
    more = f", … ({len(names)} in all)" if len(names) > SHOWN else ""
    return f"[{', '.join(names[:SHOWN])}{more}]"
