"""Names of files and folders: their order, classes among them, and what nobody meant to be there.

Two lists that are joined by position need one order: the natural one, in which numbers count as
such, `img2` before `img10`, and `airplane_000` before `dog_000`.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from kdm_core.errors import DataError, adapted, shown

# In pieces, since int() refuses thousands of digits.
DIGITS = re.compile(r"(\d{1,300})")
INTEGER = re.compile(r"[+-]?\d{1,300}")
# What systems leave in folders and archives, beside hidden files.
LEFT_BEHIND = {"__macosx", "thumbs.db", "desktop.ini", "icon\r"}


def natural(name: str) -> tuple[list[str | int], str]:
    """A key that sorts names by their letters and by the numbers in them.

    The digits of all scripts are numbers. `1` and `01` are equal up to the key's last part.
    """
    return numbered_parts(name), name


def numbered_parts(name: str) -> list[str | int]:
    """Letters and numbers of a name, in turn."""
    return [int(part) if place % 2 else part for place, part in enumerate(DIGITS.split(name))]


def in_class_order(names: Iterable[str], place: str, otherwise: str = "") -> list[str]:
    """The names of class folders: class k is folder k where all are whole numbers.

    Others are in natural order.

    Args:
        names: they, each once.
        place: where they are, for messages.
        otherwise: a further way out of an error, beginning with a comma.

    Raises:
        DataError: the numbers are not 0, 1, … without a gap.
    """
    ordered = sorted(names, key=natural)
    if not ordered or not all(INTEGER.fullmatch(name) for name in ordered):
        return ordered
    ordered.sort(key=int)
    for number, name in enumerate(ordered):
        if int(name) != number:
            twice = number and int(name) == number - 1
            problem = (f"{shown(ordered[number - 1])} and {shown(name)} are one class" if twice
                       else f"class {number} has none" if int(name) > 0
                       else f"{shown(name)} is no class")
            raise DataError(f"{shown(place)}: the folders of classes are numbers, "
                            f"{some(ordered)}, and {problem}: rename them 0 to "
                            f"{len(ordered) - 1}, or give them names that are no numbers (class_1, "
                            f"…), whose order is then that of the classes{otherwise}")
    return ordered


def is_left_behind(name: str) -> bool:
    """Whether a path in a folder or archive is hidden, or what a system left there."""
    return any((part.startswith(".") and part != "..") or part.lower() in LEFT_BEHIND
               for part in PurePosixPath(name).parts)


def pass_over(names: Sequence[str], used: int, what: str, place: str) -> None:
    """Say in a line which files are not used, if there are any.

    Args:
        names: of these files.
        used: how many are used.
        what: is used, in words.
        place: where they are.
    """
    if names:
        kinds = Counter(PurePosixPath(name).suffix.lower() or "without ending" for name in names)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common(5))
        files = "file is" if len(names) == 1 else "files are"
        adapted(f"{shown(place)}: {used} {what} are used, {len(names)} other {files} passed over "
                f"({counts}{', …' if len(kinds) > 5 else ''}): {some(names)}")


def some(names: Sequence[str]) -> str:
    """The first names of many."""
    return ", ".join(map(shown, names[:3])) + (", …" if len(names) > 3 else "")
