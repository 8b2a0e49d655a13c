"""Validation errors of pydantic in the words of params.yaml: path of the key, problem, hint."""

import difflib
import re
import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

from kdm_core.networks.module import IMPORT_PATH
from pipeline.params.other_names import hint

# What tells the members of a union apart. Where a section has two of them, the first one does.
TAGS = ("source", "kind", "engine")


PATTERNS = {
    IMPORT_PATH: "an import path, package.module:callable, such as mymodels.unet:build",
    "^[0-9a-f]{64}$": "64 hexadecimal digits",
    "^[0-9a-fA-F]{64}$": "64 hexadecimal digits",
}


def describe(error: ValidationError, annotation: Any) -> str:
    """What is wrong with values, a line for each problem.

    Args:
        annotation: the type that they were validated against.
    """
    return "\n".join(line(problem, annotation) for problem in error.errors(include_url=False))


def line(problem: Any, annotation: Any) -> str:
    """One problem as `key.path: what is wrong (found …)`."""
    path, model = resolve(problem["loc"], annotation)
    if path and path[-1] == "[key]":
        return (f"  {'.'.join(path[:-2]) or '(the whole file)'}: the key {problem['input']} is no "
                f"text to YAML: write it as '{problem['input']}', in quotes")
    key = ".".join(path) or "(the whole file)"
    kind, found = problem["type"], problem["input"]
    if kind == "extra_forbidden":
        known = sorted(model.model_fields) if model else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        advice = f"did you mean {near[0]}?" if near else f"allowed are: {', '.join(known)}"
        return f"  {key}: unknown key; {advice}"
    if kind == "missing":
        return f"  {key}: is missing{shortest(model, path, annotation, 'add the line')}"
    if kind == "union_tag_not_found":
        tag = problem["ctx"]["discriminator"].strip("'")
        near = difflib.get_close_matches(tag, map(str, found or ()), n=1)
        return f"  {key}.{tag}: is missing{f'; did you mean it by {near[0]}?' if near else ''}"
    if kind in ("union_tag_invalid", "literal_error"):
        return f"  {key}{none_of(problem, found)}"
    if found is None:
        return f"  {key}: is empty{shortest(model, path, annotation, 'write')}"
    if kind == "value_error":
        return f"  {key}: {problem['msg'].removeprefix('Value error, ')}"
    if kind in ("model_type", "model_attributes_type", "dict_type"):
        return f"  {key}: expected are keys with values, found {found!r}"
    if kind == "string_pattern_mismatch":
        what = PATTERNS.get(problem["ctx"]["pattern"], problem["ctx"]["pattern"])
        return f"  {key}: {found!r} is not {what}"
    message = re.sub(r"^\w+ should ", "must ", problem["msg"]).replace(" after validation", "")
    return f"  {key}: {message} (found {found!r})"


def none_of(problem: Any, found: Any) -> str:
    """The end of a line about a name that is none of those which may stand there."""
    context, tag = problem["ctx"], ""
    allowed = re.findall(r"'(.*?)'", context.get("expected_tags") or context["expected"])
    if "tag" in context:
        tag, found = f".{context['discriminator'].strip(chr(39))}", context["tag"]
    meant = hint(found, allowed)
    return f"{tag}: {found!r} is none of {', '.join(allowed)}{'; ' if meant else ''}{meant}"


def shortest(model: type[BaseModel] | None, path: list[str], annotation: Any, verb: str) -> str:
    """What to write where there is nothing, for keys of which the schema says the least there
    may be, and for sections of a whole file."""
    field = model.model_fields.get(path[-1]) if model and path else None
    if field is None:
        return ""
    if field.examples:
        return f"; {verb} `{path[-1]}: {field.examples[0]}`"
    if field.is_required():
        section = model is annotation and len(path) == 1
        return f"; `kdm preset show digits` has `{path[0]}`" if section else ""
    return "; leave it out or give it a value"


def resolve(
    loc: tuple[int | str, ...], annotation: Any
) -> tuple[list[str], type[BaseModel] | None]:
    """Follow pydantic's error location through the schema, which starts at `annotation`.

    Returns:
        The path as it stands in the file (pydantic also names the branch of a union, which the
        file does not), and the innermost model on the way.
    """
    path: list[str] = []
    model = annotation if isinstance(annotation, type) else None
    for step in loc:
        branches = union_members(annotation)
        branch = branches.get(str(step))
        if branch is not None:
            model, annotation = branch, branch
            continue
        path.append(str(step))
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
        annotation = within(annotation, str(step))
    return path, model


def within(annotation: Any, key: str) -> Any:
    """The type of what a model, a mapping or a list has under a key; None where it is unknown."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        field = annotation.model_fields.get(key)
        return only_model(field.annotation) if field else None
    if get_origin(annotation) in (dict, list):
        return only_model(get_args(annotation)[-1])
    return None


def union_members(annotation: Any) -> dict[str, type[BaseModel]]:
    """The models of a tagged union, by the value of their tag."""
    if get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    if get_origin(annotation) not in (Union, types.UnionType):
        return {}
    members: dict[str, type[BaseModel]] = {}
    for member in get_args(annotation):
        if isinstance(member, type) and issubclass(member, BaseModel):
            for tag in TAGS:
                if tag in member.model_fields:
                    names = get_args(member.model_fields[tag].annotation)
                    members |= dict.fromkeys(names, member)
    return members


def only_model(annotation: Any) -> Any:
    """`Model | None` is treated as `Model`."""
    if get_origin(annotation) in (Union, types.UnionType):
        present = [member for member in get_args(annotation) if member is not type(None)]
        if len(present) == 1:
            return present[0]
    return annotation
