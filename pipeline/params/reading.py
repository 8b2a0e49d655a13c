"""Reading parameter files, with errors that a person can act on."""

from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from kdm_core.errors import KDMError
from pipeline.params.schema_errors import describe

FILE = Path("params.yaml")


class ParamsError(KDMError):
    """params.yaml cannot be used; the message has one line a problem."""


def read_file(path: Path = FILE) -> bytes:
    """A parameter file as it is.

    Raises:
        ParamsError: it is missing.
    """
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ParamsError(f"{path} is missing: run this in a project's folder (`kdm new DIR` "
                          "makes one), or let `kdm preset use digits` write it") from error


def read_values(path: Path = FILE) -> Any:
    """What stands in a parameter file, valid or not.

    Raises:
        ParamsError: it is missing, or no YAML.
    """
    try:
        return YAML(typ="safe", pure=True).load(read_file(path).decode("utf-8"))
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f", line {mark.line + 1}" if mark is not None else ""
        raise ParamsError(f"{path}{where} is no valid YAML: {error.problem or error}") from error
    except (YAMLError, UnicodeDecodeError) as error:
        raise ParamsError(f"{path} is no valid YAML: {error}") from error


def parse(annotation: Any, values: Any, name: str) -> Any:
    """Validate what was read from `name`: all of a file, or one section of it.

    Raises:
        ParamsError: it is not what the schema allows.
    """
    try:
        return TypeAdapter(annotation).validate_python(values)
    except ValidationError as error:
        raise ParamsError(f"{name} cannot be used:\n{describe(error, annotation)}") from error
