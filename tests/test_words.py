"""The library's words are its own: it knows neither a params.yaml nor the commands around it.

What is wrong is said of a field or an argument. Where that stands, in a file or behind an option,
callers say with `placed` and `naming`.
"""

import ast
import re
from collections.abc import Iterator
from typing import Any

import pytest
import typer

from kdm_core.errors import KDMError, about, naming, placed
from pipeline.kdm.cli import app
from pipeline.params.run import Params
from tests.support.imports import ROOT


def options(command: Any) -> set[str]:
    """All of a command's, and of the commands below it."""
    own = {name for param in command.params for name in param.opts if name.startswith("--")}
    return own.union(*map(options, getattr(command, "commands", {}).values()))


OPTIONS = options(typer.main.get_command(app))
NAMES = re.compile("|".join((
    rf"(?<![\w.])(?:{'|'.join(Params.model_fields)})\.(?!(?:json|npz|safetensors|zarr)\b)\w",
    rf"(?:{'|'.join(sorted(OPTIONS))})(?![\w-])",
    r"params\.yaml", r"\bkdm [a-z]", r"(?i:\bdvc\b|\bprefect\b)", r"\bdocs/",
    r"(?<!`)\bstages?\b(?!`)")))


def foreign_words(source: str) -> Iterator[tuple[int, str]]:
    """Lines of a program and what they say there that a user of it alone would not know."""
    for node in ast.walk(ast.parse(source)):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        if isinstance(node, ast.JoinedStr | ast.Constant):
            text = "".join(str(getattr(part, "value", "")) if isinstance(part, ast.Constant)
                           else "NAME" for part in parts)
            for number, line in enumerate(text.splitlines()):
                if NAMES.search(line):
                    yield node.lineno + number, line.strip()


def test_the_library_names_no_parameter_file_option_command_stage_or_page() -> None:
    found = [f"{file.relative_to(ROOT)}:{number}: {line}"
             for file in sorted((ROOT / "kdm_core").rglob("*.py"))
             for number, line in foreign_words(file.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("text", [
    '"training: lower pairs.solver.steps"', 'f"students.{name}: no"', '"say --trust-code"',
    '"see docs/storage.md"', '"`kdm pairs repair` mends it"', '"run the stage that makes it"',
    '"""Words.\n\nOf params.yaml.\n"""', '"`dvc repro`"', '("kdm " "pairs verify")'])
def test_foreign_words_are_found(text: str) -> None:
    assert list(foreign_words(text))


def test_a_field_is_called_by_where_it_stands() -> None:
    with placed("teacher"), placed("guide"):
        assert str(KDMError("no such file", field="file")) == "teacher.guide.file: no such file"
        assert str(KDMError("it is damaged", field="")) == "teacher.guide: it is damaged"
        assert str(KDMError("x.pt is damaged")) == "x.pt is damaged"
    with naming("--{}".format):
        assert about("device", "there is none") == "--device: there is none"
    assert about("device", "there is none") == "device: there is none"
    assert about("", "there is none") == "there is none"
