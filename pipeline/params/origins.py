"""Where each parameter comes from: a default, a preset, or whoever wrote the file.

From which preset a file was made stands nowhere: it is the one whose values agree most with it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter

from kdm_core.config import Config
from pipeline.params.other_names import hint
from pipeline.params.reading import ParamsError, read_values
from pipeline.params.run import parse_params
from pipeline.runtime.plan.sections import stages_of, values_of

MISSING = object()
Origin = Literal["default", "preset", "yours"]


class Entry(NamedTuple):
    """One resolved parameter.

    Attributes:
        value: as JSON has it.
        origin: `default` is not in the file, `preset` is, with the value that the preset has there,
            `yours` is all else that stands in the file.
        preset: another value that the preset has there, or MISSING.
    """

    value: Any
    origin: Origin
    preset: Any


Entries = dict[str, Entry]
"""By dotted paths, in the order of the schema."""


class Given(NamedTuple):
    """What stands at a place of a file: resolved, and as it was written; MISSING for nothing."""

    value: Any
    written: Any

    def at(self, key: str | int) -> "Given":
        """What stands below, at a name or a number."""
        return Given(found(self.value, key), found(self.written, key))


NOTHING = Given(MISSING, MISSING)


def read_given(path: Path) -> Given:
    """A whole parameter file.

    Raises:
        ParamsError: it cannot be used.
    """
    values = read_values(path)
    return Given(parse_params(values, str(path)), values)


def nearest(ours: Given, presets: Iterable[tuple[str, Given]]) -> tuple[str | None, Entries]:
    """The preset from which a file was made, and the file's entries beside it.

    That is the one with most of the file's values, if it has half of them; students that a preset
    does not have speak neither for nor against it. Of equal ones it is the shortest.
    """
    best: tuple[tuple[int, int], str | None, Entries] = ((0, 0), None, entries(ours, NOTHING))
    for name, preset in presets:
        compared = entries(ours, preset)
        names = preset.value.students
        origins = [entry.origin for path, entry in compared.items() if entry.origin != "default"
                   and (not path.startswith("students.") or path.split(".")[1] in names)]
        agreeing = origins.count("preset")
        rank = (agreeing, -len(list(written_of(preset))))
        if 2 * agreeing >= len(origins) and rank > best[0]:
            best = (rank, name, compared)
    return best[1], best[2]


def entries(ours: Given, preset: Given) -> Entries:
    """All parameters of a file, compared with those of a preset."""
    return dict(walk(ours, preset, ""))


def written_of(given: Given) -> Iterator[str]:
    """The paths of all values that are written in a file."""
    return (path for path, entry in walk(given, NOTHING, "") if entry.origin != "default")


def walk(ours: Given, preset: Given, path: str) -> Iterator[tuple[str, Entry]]:
    """The parameters at a place of a file and below it, by their paths.

    A section of another kind than the preset's shares nothing with it, also where fields of both
    have the same name.
    """
    keys = keys_of(ours.value)
    if not keys:
        yield path, entry(ours, preset)
    if type(preset.value) is not type(ours.value):
        preset = NOTHING
    for key in keys:
        theirs = preset.at(key if isinstance(key, str) else partner(ours, preset, key))
        yield from walk(ours.at(key), theirs, f"{path}.{key}" if path else str(key))


def entry(ours: Given, preset: Given) -> Entry:
    """A parameter that has no others below it."""
    same = preset.written is not MISSING and preset.value == ours.value
    other = MISSING if same or preset.written is MISSING else as_json(preset.value)
    if ours.written is MISSING:
        return Entry(as_json(ours.value), "default", other)
    return Entry(as_json(ours.value), "preset" if same else "yours", other)


def keys_of(value: Any) -> list[str] | list[int]:
    """What there is below a value; nothing where it is one, as lists of numbers and names are."""
    if isinstance(value, Config):
        return list(type(value).model_fields)
    if isinstance(value, dict):
        return list(value)
    if isinstance(value, list) and any(isinstance(one, Config) for one in value):
        return list(range(len(value)))
    return []


def found(value: Any, key: str | int) -> Any:
    """What a section, a mapping or a list has at a name or number; MISSING if nothing."""
    if isinstance(value, Config):
        return getattr(value, str(key), MISSING)
    if isinstance(value, dict):
        return value.get(key, MISSING)
    if isinstance(value, list) and isinstance(key, int) and key < len(value):
        return value[key]
    return MISSING


def partner(ours: Given, preset: Given, number: int) -> int:
    """Which section of a preset's list one of ours is compared with: an equal one, wherever it
    stands, or else that of the same number."""
    theirs = preset.value if isinstance(preset.value, list) else []
    one = ours.value[number]
    return next((place for place, other in enumerate(theirs) if other == one), number)


def as_json(value: Any) -> Any:
    if isinstance(value, Config):
        return value.model_dump(mode="json")
    return TypeAdapter(Any).dump_python(value, mode="json")


def of_stage(all_entries: Entries, stage: str, students: list[str]) -> Entries:
    """The entries that decide the result of a stage, or of those of a name for all students.

    Raises:
        ParamsError: there is no such stage.
    """
    there = stages_of(students)
    asked = [one for one in there if stage in (one, one.partition("@")[0])]
    if not asked:
        meant = hint(stage, [*dict.fromkeys(one.partition("@")[0] for one in there), *there])
        raise ParamsError(f"there is no stage '{stage}'; there are {', '.join(there)}"
                          f"{'; ' if meant else ''}{meant}")
    data = all_entries["data.source"].value
    sections = {name for one in asked for name in values_of(one, data)}
    return {path: entry for path, entry in all_entries.items()
            if any(path == name or path.startswith(f"{name}.") for name in sections)}
