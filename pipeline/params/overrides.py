"""Overrides of params.yaml: some of its values, given to a run beside the file."""

import io
import types
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    GetPydanticSchema,
    WithJsonSchema,
    create_model,
)
from pydantic_core import CoreSchema
from ruamel.yaml import YAML

from kdm_core.serialization import write_atomic
from pipeline.params.descriptions import described, tag_of
from pipeline.params.reading import ParamsError, read_values
from pipeline.params.run import Params, parse_params
from pipeline.params.schema_errors import TAGS, union_members, within

MISSING = object()


def form(_: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
    """What is shown of overrides: the partial schema, with fields for the students by name.

    Those are the students of the params.yaml in the current folder, which is where flows are
    deployed; others may be given as well.
    """
    shown = handler(partial(Params).__pydantic_core_schema__)
    students = handler.resolve_ref_schema(shown)["properties"]["students"]
    students["properties"] = {name: {**students["additionalProperties"], "title": name}
                              for name in student_names()}
    return shown


def student_names() -> list[str]:
    """The students of params.yaml; none where it cannot be read: a run then says what is wrong."""
    try:
        values = read_values()
    except (ParamsError, OSError):
        return []
    students = values.get("students") if isinstance(values, dict) else None
    return [str(name) for name in students] if isinstance(students, dict) else []


# What is given is validated as a part of the whole; the schema is for forms, and for servers.
Overrides = Annotated[dict[str, Any], GetPydanticSchema(get_pydantic_json_schema=form)]


class Change(NamedTuple):
    """One value that an override changed; `before` is MISSING where there was none."""

    parameter: str
    before: Any
    now: Any


@cache
def partial(model: type[BaseModel]) -> type[BaseModel]:
    """A copy of a model in which every field may be left out, at any depth.

    The members of a union need no tag: a value is a member if it could be part of it. What fields
    say of each other is not checked.
    """
    about, attributes = described(model)
    fields: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        annotation: Any = partial_type(field.annotation)
        # What bounds the number of entries holds for the whole, and not for some of them.
        if field.metadata and get_origin(field.annotation) is not dict:
            annotation = Annotated[annotation, *field.metadata]
        # A default would be filled in by forms; with a factory, the schema has none.
        fields[name] = (annotation, Field(
            default_factory=type(None), title=name, description=attributes.get(name)))
    config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False,
                        title=tag_of(model) or model.__name__, protected_namespaces=())
    made: type[BaseModel] = create_model(
        model.__name__, __config__=config, __doc__=about, __module__=model.__module__, **fields)
    return made


def partial_type(annotation: Any) -> Any:
    """A field's type, with every model in it `partial`."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        kept = [each for each in arguments[1:] if not getattr(each, "discriminator", None)]
        inner = partial_type(arguments[0])
        return Annotated[inner, *kept] if kept else inner
    if origin in (Union, types.UnionType):
        return Union[tuple(partial_type(each) for each in arguments)]  # noqa: UP007
    if origin is list:
        return list.__class_getitem__(partial_type(arguments[0]))
    if origin is dict:
        key, value = arguments
        return dict.__class_getitem__((key, partial_type(value)))
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return partial(annotation)
    # Prefect's form shows a boolean as a switch and sends `false` where nobody has touched it, and
    # shows the one value of a tag as a constant that it never sends. Both become a choice.
    if annotation is bool:
        return Annotated[bool, WithJsonSchema({"enum": [True, False]})]
    if origin is Literal:
        return Annotated[annotation, WithJsonSchema({"enum": list(arguments)})]
    return annotation


def merge(values: Any, overrides: Any, annotation: Any = Params) -> Any:
    """Values with others put over them.

    Sections are merged key by key, unless the override names another model of those that may stand
    there, which then takes its place. All else is replaced.

    Args:
        annotation: the type of the values.
    """
    if not (isinstance(values, dict) and isinstance(overrides, dict)):
        return deepcopy(overrides)
    model, wanted = member(values, annotation), member(overrides, annotation)
    if model is not None and wanted not in (None, model):
        return deepcopy(overrides)
    merged = {key: deepcopy(value) for key, value in values.items() if key not in overrides}
    for key, value in overrides.items():
        merged[key] = merge(values.get(key), value, within(model or annotation, str(key)))
    return {key: merged[key] for key in dict.fromkeys([*values, *overrides])}


def member(section: dict[str, Any], annotation: Any) -> type[BaseModel] | None:
    """The model of a union that a section names by its tag; None if it names none."""
    members = union_members(annotation)
    named = (section.get(tag) for tag in TAGS)
    return next((members[name] for name in named if isinstance(name, str) and name in members),
                None)


def changes(before: Any, now: Any, path: str = "") -> list[Change]:
    """The values that differ, one a leaf."""
    if isinstance(before, dict) and isinstance(now, dict):
        return [change for key in dict.fromkeys([*before, *now])
                for change in changes(before.get(key, MISSING), now.get(key, MISSING),
                                      f"{path}.{key}" if path else str(key))]
    return [] if type(before) is type(now) and before == now else [Change(path, before, now)]


def override(path: Path, overrides: dict[str, Any]) -> list[Change]:
    """Write overrides into a parameter file, whose comments and order are kept.

    Returns:
        What changed; where that is nothing, the file is not touched.

    Raises:
        ParamsError: there is no such file, or it could not be used with the overrides, or they
            cannot be written into it. It is then as it was.
        DataError: it cannot be written.
    """
    before = read_values(path)
    now = merge(before, overrides)
    parse_params(now, f"{path} with the overrides")
    changed = changes(before, now)
    if changed:
        write_atomic(path, rewritten(path, before, now))
    return changed


def rewritten(path: Path, before: Any, now: Any) -> bytes:
    """A parameter file's text with other values.

    Raises:
        ParamsError: parts of the file share what only one of them is to change.
    """
    yaml = round_trip()
    document = yaml.load(path.read_text(encoding="utf-8"))
    update(document, before, now)
    stream = io.StringIO()
    yaml.dump(document, stream)
    text = stream.getvalue()
    if YAML(typ="safe", pure=True).load(text) != now:
        raise ParamsError(f"{path}: parts of it share values (& and *), which overrides cannot "
                          "keep apart: write them out")
    return text.encode()


def round_trip() -> YAML:
    """A reader and writer of YAML that keeps comments and the files' style."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.brace_single_entry_mapping_in_flow_sequence = True
    yaml.representer.add_representer(
        type(None), lambda made, _: made.represent_scalar("tag:yaml.org,2002:null", "null"))
    return yaml


def update(document: Any, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Change a loaded document from what it was to what it is to be."""
    for key in before.keys() - now.keys():
        del document[key]
    for key, value in now.items():
        if key in before and isinstance(before[key], dict) and isinstance(value, dict):
            update(document[key], before[key], value)
        elif key not in before or changes(before[key], value):
            document[key] = value
