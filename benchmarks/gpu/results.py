"""The file of results: written anew, and all at once, after each of them."""

from pathlib import Path
from typing import Any

from benchmarks.gpu.bench import Row
from kdm_core.errors import KDMError
from kdm_core.serialization import read_json, write_json


class Results:
    """Rows by part, in the order of their measurement.

    Attributes:
        content: what the file holds: `machine`, `trial`, `conditions`, and `parts`, each a list of
            rows.
    """

    def __init__(self, path: Path, machine: dict[str, Any], trial: bool, anew: bool) -> None:
        """Go on with a file that is there, or begin one.

        Args:
            anew: begin it even if it is there.

        Raises:
            KDMError: it is of another machine, or a trial and this is none, or the other way round.
            DataError: it is damaged.
        """
        self.path, self.machine = path, machine
        self.content: dict[str, Any] = {
            "machine": machine, "trial": trial, "conditions": {}, "parts": {}}
        if path.exists() and not anew:
            found = read_json(path)
            for name in ("machine", "trial"):
                if found.get(name) != self.content[name]:
                    raise KDMError(f"{path} has results of another kind ({name}: "
                                   f"{found.get(name)}, here {self.content[name]}); give another "
                                   "--out, or --anew to begin it again")
            self.content = found

    def has(self, part: str, name: str) -> bool:
        """Whether a row was measured already."""
        return any(row["name"] == name and "why_not" not in row for row in self.rows(part))

    def rows(self, part: str) -> list[Row]:
        found: list[Row] = self.content["parts"].get(part, [])
        return found

    def add(self, part: str, name: str, row: Row) -> None:
        """Keep a row, in the place of one of that name."""
        others = [other for other in self.rows(part) if other["name"] != name]
        self.replace(part, [*others, {"name": name, **self.machine, **row}])

    def replace(self, part: str, rows: list[Row]) -> None:
        """Keep all rows of a part."""
        self.content["parts"][part] = rows
        write_json(self.path, self.content)
