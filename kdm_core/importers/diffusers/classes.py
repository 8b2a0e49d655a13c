"""Which of a pipeline's classes is which of the data's."""

from collections import defaultdict

from kdm_core.importers.samples import label_names
from kdm_core.samples import SampleSpec


def name_classes(
    count: int, data: SampleSpec, table: list[str] | None
) -> tuple[list[str], bool]:
    """Names for a model's classes, in its order, and whether they are its own.

    A pipeline gives a class several names, separated by commas ("tench, Tinca tinca"): it is called
    as the data call it if that is one of them. Where the data have none of its names, theirs are
    taken by their order.

    Args:
        count: of the classes.
        table: what the pipeline calls them; None if it does not say.
    """
    if table is None:
        return label_names(count, data), False
    owners: defaultdict[str, set[int]] = defaultdict(set)
    for number, text in enumerate(table):
        for word in (text, *text.split(",")):
            owners[word.strip()].add(number)
    known = {word: min(numbers) for word, numbers in owners.items() if len(numbers) == 1}
    matched = {known[name]: name for name in data.label_names if name in known}
    if data.label_names and not matched:
        return label_names(count, data), False
    return [matched.get(number) or shortest(number, text, known)
            for number, text in enumerate(table)], True


def shortest(number: int, text: str, known: dict[str, int]) -> str:
    """The first of a class's names, or as much more as it takes to tell it from others."""
    first = text.split(",")[0].strip()
    return next((name for name in (first, text.strip()) if name in known), f"{first} ({number})")
