"""Validation errors of pydantic in the words of params.yaml: path of the key, problem, hint."""

import difflib
import types
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import BaseModel, ValidationError

# What tells the members of a union apart. Where a section has two of them, the first one does.
TAGS = ("source", "kind", "engine")


def describe(error: ValidationError, annotation: Any) -> str:
    """What is wrong with values, a line for each problem.

    Args:
        annotation: the type that they were validated against.
    """
    return "\n".join(line(problem, annotation) for problem in error.errors(include_url=False))


def line(problem: Any, annotation: Any) -> str:
    """One problem as `key.path: what is wrong (found …)`."""
    path, model = resolve(problem["loc"], annotation)
    key = ".".join(path) or "(the whole file)"
    if problem["type"] == "extra_forbidden":
        known = sorted(model.model_fields) if model else []
        near = difflib.get_close_matches(path[-1], known, n=1)
        hint = f"did you mean {near[0]}?" if near else f"allowed are: {', '.join(known)}"
        return f"  {key}: unknown key; {hint}"
    if problem["type"] == "missing":
        return f"  {key}: is missing"
    if problem["type"] == "union_tag_not_found":
        return f"  {key}.{problem['ctx']['discriminator'].strip(chr(39))}: is missing"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "value_error":
        return f"  {key}: {message}"
    return f"  {key}: {message} (found {problem['input']!r})"


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
