"""The page of all parameters is that of the code, and complete."""

import re
from collections import Counter
from pathlib import Path

from typer.testing import CliRunner

from pipeline.kdm.cli import app
from pipeline.params.page import Page, page_text
from tests.support.imports import ROOT

PAGE = ROOT / "docs/parameters.md"


def test_the_page_is_that_of_the_code(tmp_path: Path) -> None:
    assert PAGE.read_text(encoding="utf-8") == page_text(), (
        "parameters have changed; renew their page: kdm params reference --out docs/parameters.md")
    done = CliRunner().invoke(app, ["params", "reference", "--out", str(tmp_path / "page.md")])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == page_text()


def test_headings_are_unique() -> None:
    headings = Counter(re.findall(r"^#+ .*", page_text(), re.MULTILINE))
    assert headings.most_common(1)[0][1] == 1


def test_every_parameter_stands_there() -> None:
    text = page_text()
    for path in ("seed", "compute.threads", "pairs.train", "pairs.solver.steps", "data.path",
                 "students.NAME.training", "students.NAME.then[].lr", "losses.distance",
                 "filter.copies[].threshold", "network.multipliers", "network.arguments",
                 "studies.vicinity.sigmas", "teacher.guide.training", "training.ema",
                 "students.NAME.model.operator.spectrum", "spectrum.weight"):
        assert f"| `{path}` |" in text, path


def test_a_schema_that_is_read() -> None:
    number = {"type": "number", "exclusiveMinimum": 0}
    parts = {
        "A": {"title": "a", "properties": {"kind": {"const": "a"}, "x": number}},
        "B": {"title": "b", "properties": {"kind": {"const": "b"}, "next": {
            "anyOf": [{"$ref": "#/$defs/C"}, {"type": "null"}], "default": None}}},
        "C": {"title": "C", "description": "Within.", "required": ["z"],
              "properties": {"z": {"enum": ["p|q"]}}}}
    text = Page({"$defs": parts, "properties": {
        "top": {"oneOf": [{"$ref": "#/$defs/A"}, {"$ref": "#/$defs/B"}]}}}).text()
    assert "### `top` with `kind: a`\n\n| parameter" in text
    assert "| `top.x` | number > 0 | `null` |  |" in text
    assert "| `top.next` | section or null | `null` | Within. |" in text
    assert r"| `top.next.z` | `p\|q` | *required* |  |" in text
