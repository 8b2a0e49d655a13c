"""Commands as they stand in a text, and whether they could be typed: looked at without a run."""

import importlib.util
import re
import shlex
from collections.abc import Iterator
from contextlib import redirect_stderr
from io import StringIO
from typing import Any

import click
import typer
from dvc.cli import parse_args
from dvc.cli.parser import DvcParserError
from jsonschema import Draft7Validator
from ruamel.yaml import YAML

from pipeline.kdm.cli import PRESETS, app
from pipeline.params.overrides import merge
from pipeline.params.reading import read_values
from pipeline.params.run import Params
from pipeline.params.schema import FileSchema
from tests.support.imports import ROOT

ROOM = {".", ":", "apt", "cd", "do", "done", "export", "git", "mkdir", "pip", "sleep", "tar",
        "while"}
"""What a shell knows, and programs that are none of ours."""
SCHEMA = Draft7Validator(Params.model_json_schema(schema_generator=FileSchema))
KDM = typer.main.get_command(app)


def commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a script, as words, without comments and settings of variables."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=";&|")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if set(word) <= set(";&|"):
                while words and (words[0] in ("do", "while") or re.match(r"[A-Z_0-9]+=", words[0])):
                    words = words[1:]
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def wrong_fields(fragment: Any) -> list[str]:
    """What of a part of params.yaml could not stand there, in a project of preset `smoke`.

    Parts of a section count as those of a student.
    """
    if not set(fragment) <= set(Params.model_fields):
        fragment = {"students": {"kdm": fragment}}
    smoke = read_values(PRESETS / "smoke.yaml")
    smoke["students"]["kdm"]["model"]["kind"] = "kdm"  # by which another kind takes its place
    values = merge(smoke, fragment)
    for student in values["students"].values():
        student.setdefault("training", {"steps": 1, "batch": 1})
        student.setdefault("model", {"kind": "direct"})
    return [f"{error.json_path}: {error.message[:300]}" for error in SCHEMA.iter_errors(values)]


def problem(words: list[str]) -> str | None:
    """What is wrong with a command; empty if nothing is, None if nobody can say here."""
    program, *arguments = words
    if program in ROOM:
        return ""
    if program == "kdm":
        return kdm_problem(arguments)
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        return "".join(f"no target {word}" for word in arguments
                       if "=" not in word and word not in targets)
    if program == "dvc":
        return dvc_problem(arguments)
    if program == "python" and arguments[0] == "-m":
        return "" if importlib.util.find_spec(arguments[1]) else f"no module {arguments[1]}"
    return None


def kdm_problem(arguments: list[str]) -> str:
    command: Any = KDM
    while arguments and arguments[0] in getattr(command, "commands", {}):
        command, arguments = command.commands[arguments[0]], arguments[1:]
    try:
        command.make_context("kdm", list(arguments))
    except click.ClickException as error:
        return error.format_message()
    except click.exceptions.Exit:  # --help
        pass
    return ""


def dvc_problem(arguments: list[str]) -> str:
    told = StringIO()
    try:
        with redirect_stderr(told):
            parse_args(arguments)
    except (DvcParserError, SystemExit):
        return f"dvc does not take that: {told.getvalue().strip()[-300:]}"
    fragment: dict[str, Any] = {}
    for option, setting in zip(arguments, arguments[1:], strict=False):
        if option in ("-S", "--set-param"):
            path, _, value = setting.partition("=")
            section = fragment
            *parents, last = path.split(".")
            for name in parents:
                section = section.setdefault(name, {})
            section[last] = YAML(typ="safe").load(value)
    return "; ".join(wrong_fields(fragment))
