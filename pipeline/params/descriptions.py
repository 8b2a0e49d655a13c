"""What docstrings say of configurations and of their fields, for forms and editors."""

from typing import Literal, get_args, get_origin

from griffe import Docstring, DocstringSectionKind
from pydantic import BaseModel

from kdm_core.config import Config
from pipeline.params.schema_errors import TAGS


def tag_of(model: type[BaseModel]) -> str | None:
    """How a file calls a model that is one of several: the value of its tag."""
    for tag in TAGS:
        field = model.model_fields.get(tag)
        if field is not None and get_origin(field.annotation) is Literal:
            return " / ".join(str(value) for value in get_args(field.annotation))
    return None


def described(model: type[BaseModel]) -> tuple[str, dict[str, str]]:
    """What a model's docstring says of it, and of its attributes by their names; those that it has
    from another model are described there."""
    about = ""
    attributes: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not issubclass(base, BaseModel) or base in (BaseModel, Config):
            continue
        for section in Docstring(base.__doc__ or "").parse("google"):
            if section.kind is DocstringSectionKind.text and base is model:
                about = about or section.value
            elif section.kind is DocstringSectionKind.attributes:
                for each in section.value:
                    # Of "encoder, decoder: …" griffe takes what follows the first for its type.
                    others = f" {each.annotation}" if each.name.endswith(",") else ""
                    attributes |= dict.fromkeys(f"{each.name}{others}".split(", "),
                                                each.description)
    return about, attributes
