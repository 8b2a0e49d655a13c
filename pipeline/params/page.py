"""The page of all parameters, made of their schema.

A table a section of the file. What is there once stands in its parent's table with its whole path;
sections of several kinds have a heading a kind, and what is used in several places comes once, at
the end.
"""

import json
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from pipeline.params.schema import objects, schema_text
from pipeline.params.schema_errors import TAGS

Part = dict[str, Any]
HEAD = """# Parameters

All that may stand in `params.yaml`, by section. `NAME` is a name of yours, `[]` an item of a list,
and *required* is what has no default. In a project, `kdm params show` prints the values in force
and where each comes from. Editors complete the file by its schema.

This page is made of the code: `kdm params reference --out docs/parameters.md`.
"""
COLUMNS = "| parameter | type | default | meaning |\n|---|---|---|---|\n"


def page_text() -> str:
    """The page, in Markdown."""
    return Page(json.loads(schema_text())).text()


class Page:
    """A page that is being written.

    Attributes:
        parts: the schema's definitions, by name.
        groups: for each definition the names of those that may stand in the same places.
        places: where a group may stand, as `(definition, property)`.
        later: groups that stand in several places, which come at the end.
    """

    def __init__(self, schema: Part) -> None:
        self.parts: dict[str, Part] = {"": schema} | schema["$defs"]
        self.groups: dict[str, tuple[str, ...]] = {}
        self.places: dict[tuple[str, ...], list[tuple[str, str]]] = defaultdict(list)
        self.later: list[tuple[str, ...]] = []
        fields = [(owner, name, tuple(references(field))) for owner, part in self.parts.items()
                  for name, field in part.get("properties", {}).items()]
        for _, _, names in fields:
            members = tuple(dict.fromkeys((*(old for name in names
                                             for old in self.groups.get(name, ())), *names)))
            self.groups |= dict.fromkeys(members, members)
        for owner, name, names in fields:
            if names and names[0] != "JsonValue":
                self.places[self.groups[names[0]]].append((owner, name))

    def text(self) -> str:
        """All sections of the file, then what stands in several of them."""
        written = [HEAD, *(self.section(name) for name in self.parts[""]["properties"])]
        shared: list[str] = []
        for group in self.later:  # which grows on the way
            shared.append("\n".join(self.kinds(group, self.title(group))))
        written += ["## Used in several places\n", *sorted(shared)]
        return "\n".join(written)

    def section(self, name: str) -> str:
        field = self.parts[""]["properties"][name]
        names = tuple(references(field))
        if not names:
            return f"## `{name}`\n\n{self.table('', only=name)}"
        about = self.parts[names[0]].get("description", "") if len(names) == 1 else ""
        about = plain(field.get("description", "") or about)
        opening = f"## `{name}`\n\n" + (f"{about}\n\n" if about else "")
        if len(names) > 1:
            return opening + "\n".join(self.kinds(names, name))
        below: list[str] = []
        path = f"{name}.NAME." if "additionalProperties" in field else f"{name}."
        return opening + "\n".join([self.table(names[0], path, below), *below])

    def kinds(self, group: tuple[str, ...], path: str) -> list[str]:
        """A heading and a table for each of those that may stand in a place."""
        written: list[str] = []
        several = len(group) > 1
        if self.is_shared(group):
            title = ", ".join(f"`{name}`" for name in self.names(group))
            written.append(f"### {title}\n")
        for name in group:
            part, below = self.parts[name], list[str]()
            about = plain(part.get("description", ""))
            if several:
                written.append(f"{'#' * (4 if self.is_shared(group) else 3)} "
                               f"{self.heading(group, name, path)}\n")
            written += [f"{about}\n"] if about else []
            prefix = f"{path.partition(',')[0]}."
            written.append(self.table(name, prefix, below, without=tag(part) if several else ""))
            written += below
        return written

    def table(self, owner: str, path: str = "", below: list[str] | None = None,
              only: str = "", without: str = "") -> str:
        """A line a parameter; what has headings of its own is added to `below`."""
        below = [] if below is None else below
        lines = [self.line(*row) for row in self.rows(owner, path, below)
                 if row[0] != path + without and (not only or row[0] == only)]
        return COLUMNS + "\n".join(lines) + "\n" if lines else "No parameters.\n"

    def rows(self, owner: str, path: str, below: list[str]) -> Iterator[tuple[str, str, str, str]]:
        """`(path, type, default, meaning)` of a definition's parameters and of those within."""
        required = self.parts[owner].get("required", [])
        for name, field in self.parts[owner]["properties"].items():
            if not owner and references(field):
                continue
            where = path + name + ("[]" if has_items(field) else "")
            found = tuple(references(field))
            known = found and found[0] in self.parts and found[0] != "JsonValue"
            group = self.groups[found[0]] if known else ()
            default = ("*required*" if name in required and "default" not in field
                       else f"`{value(field.get('default'))}`")
            meaning = plain(field.get("description", ""))
            kind = self.kind(field, where)
            if len(group) == 1 and not self.is_shared(group):
                meaning = meaning or plain(self.parts[group[0]].get("description", ""))
                yield where, kind, default, meaning
                yield from self.rows(group[0], f"{where}.", below)
                continue
            yield where, kind, default, meaning
            if group and self.is_shared(group) and group not in self.later:
                self.later.append(group)
            elif group and not self.is_shared(group):
                below += self.kinds(group, where)

    def line(self, path: str, kind: str, default: str, meaning: str) -> str:
        cells = (f"`{path}`", kind, default, meaning)
        return "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"

    def is_shared(self, group: tuple[str, ...]) -> bool:
        return len(self.places[group]) > 1

    def names(self, group: tuple[str, ...]) -> list[str]:
        """How a group is called where it stands, the most frequent first."""
        names = [name for _, name in self.places[group]]
        return sorted(dict.fromkeys(names), key=lambda name: (-names.count(name), name))

    def title(self, group: tuple[str, ...]) -> str:
        return ", ".join(self.names(group))

    def heading(self, group: tuple[str, ...], name: str, path: str) -> str:
        part = self.parts[name]
        return f"`{path.partition(',')[0]}` with `{tag(part)}: {part['title']}`"

    def link(self, group: tuple[str, ...], name: str, path: str) -> str:
        """A member of a group, with a link to where it stands."""
        shared = self.is_shared(group)
        if len(group) == 1:
            title = self.title(group)
            return f"[{title}](#{anchor(title)})" if shared else "section"
        heading = self.heading(group, name, self.title(group) if shared else path)
        return f"[`{self.parts[name]['title']}`](#{anchor(heading)})"

    def kind(self, field: Part, path: str) -> str:
        """What may stand there, in words."""
        if "$ref" in field:
            name = field["$ref"].rpartition("/")[2]
            return "any" if name == "JsonValue" else self.link(self.groups[name], name, path)
        for key in ("anyOf", "oneOf"):
            if key in field:
                return (", " if key == "oneOf" else " or ").join(
                    self.kind(choice, path) for choice in field[key])
        if "const" in field or "enum" in field:
            return ", ".join(f"`{choice}`" for choice in field.get("enum", [field.get("const")]))
        found: str = field["type"]
        if found == "array":
            return f"list of {self.kind(field['items'], path)}"
        if found == "object":
            return f"mapping to {self.kind(field['additionalProperties'], path)}"
        return {"boolean": "true, false", "string": "text"}.get(found, found) + limits(field)


def references(field: Part) -> list[str]:
    """The definitions that a property is made of."""
    return list(dict.fromkeys(part["$ref"].rpartition("/")[2] for part in objects([field])
                              if isinstance(part.get("$ref"), str)))


def has_items(field: Part) -> bool:
    """Whether a property is a list of sections."""
    return bool(field.get("type") == "array" and references(field))


def tag(part: Part) -> str:
    """The property that says of which kind a section is."""
    return next((name for name in TAGS if "const" in part["properties"].get(name, {})
                 or "enum" in part["properties"].get(name, {})), "")


def limits(field: Part) -> str:
    """Between what a number must lie."""
    signs = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<",
             "multipleOf": "a multiple of"}
    found = [f"{sign} {value(field[key])}" for key, sign in signs.items() if key in field]
    return f" {', '.join(found)}" if found else ""


def value(given: Any) -> str:
    """A value as a file would say it on one line."""
    if isinstance(given, dict):
        return "{" + ", ".join(f"{key}: {value(each)}" for key, each in given.items()) + "}"
    if isinstance(given, list):
        return "[" + ", ".join(map(value, given)) + "]"
    if isinstance(given, str):
        return given or '""'
    return json.dumps(given)


def plain(text: str) -> str:
    """A description on one line, beginning as a sentence does."""
    text = " ".join(text.split())
    return text[:1].upper() + text[1:]


def anchor(heading: str) -> str:
    """Where a heading of ours is found: GitHub's rule for what stands in them."""
    kept = "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_ ")
    return kept.replace(" ", "-")
