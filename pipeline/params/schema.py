"""The JSON schema of params.yaml, by which editors complete and check it."""

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import CoreSchema, core_schema
from ruamel.yaml import YAML

from kdm_core.students import ASSUMED, KINDS
from pipeline.params.descriptions import described, tag_of
from pipeline.params.run import Params

DIALECT = "http://json-schema.org/draft-07/schema#"
"""The one that editors know for YAML."""


def schema_text() -> str:
    """The schema as it stands in its file."""
    schema = Params.model_json_schema(schema_generator=FileSchema)
    return json.dumps({"$schema": DIALECT, **schema}, indent=1, ensure_ascii=False) + "\n"


class FileSchema(GenerateJsonSchema):
    """Pydantic's schema with the docstrings' descriptions, and without what editors do not use."""

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        found = super().generate(schema, mode)
        for part in list(objects(found)):
            if "oneOf" in part and "discriminator" in part:
                require_tag(part.pop("discriminator"), found["$defs"])
        return found

    def model_schema(self, schema: core_schema.ModelSchema) -> JsonSchemaValue:
        found, model = super().model_schema(schema), schema["cls"]
        about, attributes = described(model)
        found |= {"title": tag_of(model) or model.__name__, "description": about}
        if not about:
            del found["description"]
        for name, field in found.get("properties", {}).items():
            if name in attributes:
                field["description"] = attributes[name]
            if "examples" in field:  # they are text of the file
                field["examples"] = [YAML(typ="safe").load(text) for text in field["examples"]]
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        """No: it would be the field's name."""
        return False

    def encode_default(self, dft: Any) -> Any:
        """A default as a file would say it: of a section, what must stand in it."""
        if isinstance(dft, BaseModel):
            return dft.model_dump(mode="json", exclude_unset=True)
        return super().encode_default(dft)


def require_tag(discriminator: dict[str, Any], definitions: dict[str, Any]) -> None:
    """A section that may be of several kinds says of which it is, also where one has a default;
    a student alone need not."""
    tag = discriminator["propertyName"]
    for reference in discriminator["mapping"].values():
        name = reference.rpartition("/")[2]
        if name == KINDS[ASSUMED].__name__:
            continue
        member = definitions[name]
        member["required"] = sorted({*member.get("required", []), tag})


def objects(value: Any) -> Iterator[dict[str, Any]]:
    """All objects within JSON."""
    if isinstance(value, dict):
        yield value
    for part in value.values() if isinstance(value, dict) else value:
        if isinstance(part, dict | list):
            yield from objects(part)
